"""The benchmark of online methods on the assistant world: its runs, their budget, and its tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from assent.config import METHODS, SamplingConfig, settings  # noqa: E402
from assent.config.sections import default_of  # noqa: E402
from assent.lab.artifacts import WorldPaths, build_world  # noqa: E402
from benchmarks import online_plan, online_world  # noqa: E402
from benchmarks.online_plan import ANSWERS, BASE, VARIANTS, Base, Cell, configuration  # noqa: E402
from benchmarks.online_world import ablation_table, method_table, train  # noqa: E402

NOWHERE = Base(WorldPaths(Path("world")), Path("sft"), Path("reward"))


@pytest.mark.parametrize("method", online_world.REWARDED)
def test_every_method_trains_on_as_many_answers(method: str) -> None:
    config = configuration(Cell(method, 1e-4, 3), NOWHERE, Path("out"))
    settings.validate(config)
    assert config.train.batch_size * config.rollout.responses == ANSWERS
    assert (config.optim.lr, config.train.seed) == (1e-4, 3)
    kl, shaping = (default_of(METHODS[method].config, section) for section in ("kl", "shaping"))
    assert config.shaping.overlong == shaping.overlong == (0.2 if method == "dapo" else 0.0)
    assert config.kl.coef == (online_plan.KL if kl.place == "reward" and kl.coef > 0 else kl.coef)


def test_variants_change_one_thing_each() -> None:
    base = configuration(Cell("ppo", 1e-4, 0), NOWHERE, Path("out"))
    seen = {settings.dump(base)}
    for name in VARIANTS.keys() - {BASE}:
        config = configuration(Cell("ppo", 1e-4, 0, name), NOWHERE, Path("out"))
        settings.validate(config)
        changed = VARIANTS[name][1]
        assert replace(config, **{section: getattr(base, section) for section in changed}) == base
        assert settings.dump(config) not in seen, name
        seen.add(settings.dump(config))
    mixed = configuration(Cell("ppo", 1e-4, 0, "ptx"), NOWHERE, Path("out"))
    assert mixed.ptx.data == str(NOWHERE.world.sft)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("online")
    world = build_world(folder / "world", scale=0.02)
    for name in ("sft", "reward"):
        (folder / name).mkdir()
    (folder / "sft" / "model").symlink_to(world.base)
    (folder / "sft" / "model" / "README.md").write_text("made by hand")
    scorer = AutoModelForSequenceClassification.from_pretrained(world.base, num_labels=1, dtype="float32")
    scorer.save_pretrained(folder / "reward" / "model")
    AutoTokenizer.from_pretrained(world.base).save_pretrained(folder / "reward" / "model")
    return Base(world, folder / "sft", folder / "reward")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_plan, "ANSWERS", 8)
    monkeypatch.setattr(online_plan, "SAMPLING", SamplingConfig(max_new_tokens=6))
    monkeypatch.setattr(online_world, "SAMPLING", SamplingConfig(max_new_tokens=6))


def rollouts(folder: Path) -> list[float]:
    """Tokens of the answers of each rollout that are trained on."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [8 * row["length"] for row in rows if "length" in row]


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_run_ends_with_the_rollout_that_spends_its_tokens(
    method: str, base: Base, small: None, tmp_path: Path
) -> None:
    train(Cell(method, 1e-4, 0), base, tmp_path / "run", 100)
    took, sampled = json.loads((tmp_path / "run" / "took.json").read_text()), rollouts(tmp_path / "run")
    assert took["tokens"] == pytest.approx(sum(sampled), abs=0.01)
    assert took["rollouts"] == len(sampled) and took["steps"] == len(sampled) * (4 if method == "ppo" else 1)
    assert sum(sampled[:-1]) < 100 <= sum(sampled)
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_answers_that_are_not_trained_on_count(base: Base, small: None, tmp_path: Path) -> None:
    train(Cell("remax", 1e-4, 0), base, tmp_path / "run", 100)
    took = json.loads((tmp_path / "run" / "took.json").read_text())
    assert took["tokens"] >= sum(rollouts(tmp_path / "run")) + took["rollouts"] * 8  # the greedy ones, at least 1 each


def test_command_makes_the_table_and_keeps_what_is_there(
    base: Base, small: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = base.sft.parent
    (base.reward / "model" / "README.md").write_text("made by hand")
    arguments = ["x", "--out", str(out), "--scale", "0.02", "--rates", "1e-4", "--methods", "rloo", "--tokens"]
    monkeypatch.setattr(sys, "argv", [*arguments, "30"])
    assert online_world.main() == 0
    table = capsys.readouterr().out
    assert "| start | " in table and "| RLOO | " in table and (out / "methods.md").read_text() in table
    monkeypatch.setattr(online_world, "train", None)  # nothing is trained again
    assert online_world.main() == 0
    assert capsys.readouterr().out == table
    monkeypatch.setattr(sys, "argv", [*arguments, "31"])
    with pytest.raises(SystemExit):
        online_world.main()
    assert "another --tokens: 30, not 31" in capsys.readouterr().err


def write(folder: Path, gold: Mapping[int, float]) -> None:
    folder.mkdir(parents=True)
    rows = [
        {"prompt_index": i, "kl": 1.0, "num_tokens": 5, "finished": i != 1, "scores": {"gold": g, "proxy": 2 * g}}
        for i, g in gold.items()
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text(json.dumps({"seconds": 7.0, "steps": 3, "rollouts": 2, "budget": 1}))


def test_rates_are_chosen_by_other_prompts_than_are_reported(tmp_path: Path) -> None:
    cells = [Cell("ppo", rate, 0) for rate in (1e-4, 1e-3)]
    write(tmp_path / "start", dict.fromkeys(range(8), 0.0))
    # better where rates are chosen (prompts 0 and 4), worse where they are reported
    write(tmp_path / "runs" / cells[0].name, {i: 3.0 if i % 4 == 0 else 1.0 for i in range(8)})
    write(tmp_path / "runs" / cells[1].name, dict.fromkeys(range(8), 2.0))
    row = method_table(tmp_path, cells).splitlines()[-1].split(" | ")
    assert row[:4] == ["| PPO", "1.00 ±0.00", "+1.00 [1.00, 1.00]", "2.00"]
    assert row[4:7] == ["1.00", "5.0", "16.7%"] and row[7:] == ["2", "3", "7", "0.0001", "0.001: 2.00 |"]


def test_variants_are_compared_with_the_base_of_the_same_seeds(tmp_path: Path) -> None:
    cells = [Cell("ppo", 1e-4, seed, variant) for variant in (BASE, "ewma") for seed in (0, 1)]
    for cell, gold in zip(cells, (1.0, 2.0, 2.5, 1.5)):
        write(tmp_path / "runs" / cell.name, dict.fromkeys(range(8), gold))
    base, ewma = (line.split(" | ")[1:4] for line in ablation_table(tmp_path, cells).splitlines()[2:])
    assert base == ["1.50 ±0.00", "", "1.00, 2.00"]
    assert ewma == ["2.00 ±0.00", "+0.50 [0.50, 0.50]", "+1.50, -0.50"]
