"""The folder of a loop: what is finished is not done again, what was changed is named, and interruptions leave the same
bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from assent import config as configuration
from assent.config import OptimConfig, SFTConfig, TrainConfig
from assent.config.composed import composed
from assent.config.loops import LoopConfig
from assent.errors import ConfigError, RunFolderError
from assent.loops.loop import STATE, digest_of, opened, seed_of
from assent.outputs import write_text


@dataclass(frozen=True)
class CountingConfig(LoopConfig):
    """A loop that counts: rounds of a number, a file of it, and a training run on the data."""


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path) -> CountingConfig:
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CountingConfig(
        model={"path": str(tiny_model_dir), "precision": "fp32"},
        data={"train": str(tmp_path / "data.jsonl"), "max_length": 64},
        out=str(tmp_path / "loop"),
        rounds=2,
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(batch_size=3, max_steps=2),
    )


class Stop(BaseException):
    """What ends the process, here."""


def count(config: CountingConfig, stop: str = "") -> list[str]:
    """Runs the loop; returns the stages that were done now. `stop` is a stage that ends in the middle."""
    did: list[str] = []

    def write(name: str, text: str):
        def make(path: Path):
            did.append(name)
            if name == stop:
                raise Stop
            write_text(path, text)
            return {"length": len(text), "unknown": float("nan")}

        return make

    with opened("count", config) as loop:
        model = config.model.path
        for number in range(1, config.rounds + 1):
            place = f"round-{number}"
            words = loop.stage(
                f"{place}/words.txt", write(f"{place}/words.txt", f"{number}\n"), reads=[model, config.data.train]
            )
            run = SFTConfig(
                replace(config.model, path=model), config.data, str(loop.folder), optim=config.optim, train=config.train
            )
            model = str(loop.train(f"{place}/sft", run, reads=[words]))
    return did


def files(folder: Path) -> dict[str, bytes]:
    """What counts of a loop: its state, its texts, and the weights."""
    kept = ("loop.jsonl", "words.txt", "model.safetensors")
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.name in kept}


def test_finished_stages_are_not_done_again_and_a_stop_leaves_the_same_bytes(config: CountingConfig):
    whole = replace(config, out=config.out + "-whole")
    assert count(whole) == ["round-1/words.txt", "round-2/words.txt"]
    with pytest.raises(Stop):
        count(config, stop="round-2/words.txt")
    folder = Path(config.out)
    with (folder / STATE).open("a") as file:
        file.write('{"stage": "round-2/wo')  # killed while it was written
    assert count(replace(config, resume="auto")) == ["round-2/words.txt"]
    assert len(files(folder)) == 5
    assert files(folder) == files(Path(whole.out))
    rows = [json.loads(line) for line in (folder / STATE).read_text().splitlines()]
    assert [row["stage"] for row in rows] == [f"round-{n}/{part}" for n in (1, 2) for part in ("words.txt", "sft")]
    assert rows[0]["numbers"] == {"length": 2, "unknown": None}
    assert rows[1]["numbers"]["steps"] == 2 and rows[1]["reads"] == {"round-1/words.txt": rows[0]["output"]}
    assert rows[2]["reads"]["round-1/sft"] == digest_of(folder / "round-1" / "sft")


def test_more_rounds_are_added_and_another_place_is_the_same_loop(config: CountingConfig):
    count(replace(config, rounds=1))
    moved = Path(config.out).rename(config.out + "-moved")
    again = replace(config, out=str(moved), resume="auto", rounds=2)
    assert count(again) == ["round-2/words.txt"]
    assert count(again) == []


def test_a_run_that_was_killed_before_its_line_is_not_trained_again(config: CountingConfig):
    count(replace(config, rounds=1))
    before = files(folder := Path(config.out))
    state = folder / STATE
    state.write_bytes(b"".join(state.read_bytes().splitlines(keepends=True)[:1]))
    metrics = (folder / "round-1" / "sft" / "metrics.jsonl").read_bytes()
    assert count(replace(config, rounds=1, resume="auto")) == []
    assert files(folder) == before
    assert (folder / "round-1" / "sft" / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resume": None}, "an earlier loop is there. Continue it with --resume auto"),
        ({"optim": OptimConfig(lr=2e-3)}, "  --optim.lr: 0.001 -> 0.002"),
        ({"options": {"loss.beta": "1"}}, "  --options: {} -> None\n  --options.loss.beta: None -> '1'"),
    ],
)
def test_a_folder_of_another_loop_is_refused(config: CountingConfig, change, message: str):
    count(replace(config, rounds=1))
    before = files(Path(config.out))
    with pytest.raises(RunFolderError) as error:
        count(replace(config, **{"rounds": 1, "resume": "auto"} | change))
    assert message in str(error.value)
    assert files(Path(config.out)) == before


def test_folders_that_hold_something_else(config: CountingConfig):
    folder = Path(config.out)
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    with pytest.raises(RunFolderError, match="holds no loop"):
        count(config)
    assert [child.name for child in folder.iterdir()] == ["mine.txt"]
    with pytest.raises(RunFolderError, match="of assent count, not other"):
        (folder / "mine.txt").unlink()
        count(replace(config, rounds=1))
        with opened("other", replace(config, resume="auto")):
            pass


@pytest.mark.parametrize("damage", ["missing", "changed", "weights", "read", "state"])
def test_what_was_changed_behind_the_loops_back_is_named(config: CountingConfig, damage: str):
    count(replace(config, rounds=1))
    folder = Path(config.out)
    words, weights = folder / "round-1" / "words.txt", folder / "round-1" / "sft" / "model" / "model.safetensors"
    if damage == "missing":
        words.unlink()
    elif damage in ("changed", "weights"):
        file = words if damage == "changed" else weights
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    elif damage == "read":
        Path(config.data.train).write_text("{}\n")
    else:
        (folder / STATE).write_text('{"stage": "round-1/words.txt"}\n')
    with pytest.raises(RunFolderError) as error:
        count(replace(config, rounds=1, resume="auto"))
    told = {
        "missing": f"{words} is missing",
        "changed": f"{words} is not what count has made",
        "weights": f"{folder / 'round-1' / 'sft'} is not what count has made",
        "read": f"{config.data.train} is not what round-1/words.txt was made from",
        "state": "a line is no finished stage",
    }[damage]
    assert told in str(error.value)


def test_seeds_of_parts_differ_and_stay():
    seeds = {seed_of(0), seed_of(1), seed_of(0, 1), seed_of(0, "1", "answers"), seed_of(0, 2, "answers")}
    assert len(seeds) == 5 and seed_of(0, 1) == seed_of(0, "1")
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(7, 1, "answers") == 1726341087


def test_options_of_what_is_trained_are_checked():
    shared = {"model": {"path": "m"}, "data": {"train": "d"}, "out": "o", "sampling": {"max_new_tokens": 9}}
    run = composed("grpo", shared, {"kl.coef": "0.3", "rewards.model": "rm"})
    assert (run.kl.coef, run.rewards.model, run.sampling.max_new_tokens) == (0.3, ("rm",), 9)
    assert not hasattr(composed("dpo", shared, {"loss.beta": "1"}), "sampling")
    assert isinstance(composed("reward", shared), configuration.RewardConfig)
    for command, own, message in (
        ("dpo", {"loss.bta": "1"}, "--options loss.bta: dpo has no option 'loss.bta'. Perhaps you meant 'loss.beta'."),
        ("dpo", {"loss.beta": "x"}, "'loss.beta' must be a number"),
        ("dpo", {"loss.beta": "-1"}, "dpo: "),
        ("dpo", {"out": "x"}, "dpo has no option 'out'"),
        ("ppoo", {}, "assent ppoo trains nothing. Perhaps you meant 'ppo'."),
    ):
        with pytest.raises(ConfigError) as error:
            composed(command, shared, own)
        assert message in str(error.value)
