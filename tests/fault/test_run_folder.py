"""One history of a run: changed inputs, odd names, and what else stands in a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assent import lock
from assent.algorithms.online.train import train_online
from assent.algorithms.preference.train import train_preference
from assent.algorithms.sft import train_sft
from assent.cli import COMMANDS, main
from assent.config import (
    CompareConfig,
    CustomConfig,
    DemoConfig,
    GateSection,
    ReportConfig,
    RewardConfig,
    RewardGateConfig,
    RunConfig,
    SFTConfig,
    online_config,
    preference_config,
    settings,
)
from assent.config.inputs import INPUTS
from assent.errors import ConfigError, RunFolderError, UserError
from assent.rewards.judge.prompt import FOLDER
from assent.train import checkpoint
from assent.train.log import MetricsLog, read_metrics

# ---- what a run reads

CODE = """
from helper_of_rewards import long

def words(completions, **columns):
    return [long(text) for text in completions]
"""


def write_rows(file: Path, number: int = 8) -> Path:
    made = [
        {"prompt": f"Egg {i}?", "chosen": "Boil it.", "rejected": f"No {i}.", "answer": str(i), "level": i}
        for i in range(number)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, monkeypatch) -> Path:
    """A folder with models, rows and code, all of which may be changed."""
    for name in ("model", "other"):
        shutil.copytree(tiny_model_dir, tmp_path / name)
    for name in ("train", "eval", "more"):
        write_rows(tmp_path / f"{name}.jsonl", 8 if name == "train" else 3)
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "helper_of_rewards.py").write_text("def long(text):\n    return float(len(text))\n")
    (tmp_path / "template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "asked.yaml").write_text((FOLDER / "pairwise.yaml").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def made(place: Path, name: str, **options: Any) -> Any:
    """The configuration of a command over that folder."""
    shared: dict[str, Any] = {
        "model": {"path": str(place / "model"), "precision": "fp32"} | options.pop("model", {}),
        "data": {"train": str(place / "train.jsonl"), "max_length": 64} | options.pop("data", {}),
        "out": str(place / "run"),
        "train": {"batch_size": 2, "max_steps": 2, "threads": 1},
    }
    if name == "sft":
        return SFTConfig(**shared, **options)
    if name in ("ppo", "grpo"):
        return online_config(name, **shared, sampling={"max_new_tokens": 3}, **options)
    if name in ("reward", "reward-gate"):
        return {"reward": RewardConfig, "reward-gate": RewardGateConfig}[name](**shared, **options)
    if name == "custom":
        return CustomConfig(**shared, probe={"prompts": 0}, **options)
    return preference_config(name, **shared, probe={"prompts": 0}, **options)


def read(config: RunConfig) -> None:
    """The run up to where it has read its data; a new one then has a checkpoint, as if it had been trained."""
    from assent.data.views import pair_view, prompt_view, sft_view
    from assent.train.session import open_session

    view = {
        "SFTConfig": sft_view,
        "DPOConfig": pair_view,
        "RewardConfig": pair_view,
        "RewardGateConfig": pair_view,
    }.get(type(config).__name__, prompt_view)
    session = open_session(config)
    try:
        session.prepare(view)
        if session.folder.checkpoint is None:
            checkpoint.save(session.folder.checkpoints, 1, {"x": 1}, meta=session.folder.meta())
    finally:
        session.folder.close()


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        text = (place / file).read_text()
        assert old in text, (file, old)
        (place / file).write_text(text.replace(old, new, 1))

    return change


def other_weights(folder: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = place / folder / "model.safetensors"
        state = load_file(file)
        state["model.norm.weight"][0] += 1
        save_file(state, file, metadata={"format": "pt"})

    return change


def without_last_row(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        lines = (place / name).read_text().splitlines(keepends=True)
        (place / name).write_text("".join(lines[:-1]))

    return change


def moved_row(place: Path) -> None:
    """From the training rows to the held-out ones."""
    *kept, last = (place / "train.jsonl").read_text().splitlines(keepends=True)
    (place / "train.jsonl").write_text("".join(kept))
    (place / "eval.jsonl").write_text((place / "eval.jsonl").read_text() + last)


GRPO: dict[str, Any] = {"rewards": {"rules": ("exact",)}, "kl": {"coef": 0.0}}
FUNCTION = {"rewards": {"functions": ("PLACE/code.py:words",)}, "kl": {"coef": 0.0}}
CASES: dict[str, tuple[str, str, dict[str, Any], Callable[[Path], None] | dict[str, Any], str]] = {
    "start weights": ("model.path", "sft", {}, other_weights("model"), "weights"),
    "DPO's reference is the start": ("model.path", "dpo", {}, other_weights("model"), "weights"),
    "configuration": ("model.path", "sft", {}, edit("model/generation_config.json", "{", '{"top_k": 7,'), "configurat"),
    "tokenizer": ("model.path", "sft", {}, edit("model/tokenizer.json", "{", "{ "), "tokenizer"),
    "template": (
        "model.chat_template",
        "sft",
        {"model": {"chat_template": "PLACE/template.jinja"}},
        edit("template.jinja", "<|im_end|>\n", "<|im_end|>\n\n"),
        "text",
    ),
    "a row less": ("data.train", "sft", {}, without_last_row("train.jsonl"), "rows: 8 rows .* -> 7"),
    "another answer": ("data.train", "dpo", {}, edit("train.jsonl", "Boil it.", "Fry it."), "tokens"),
    "a gold column": ("data.train", "grpo", GRPO, edit("train.jsonl", '"answer": "3"', '"answer": "4"'), "rows"),
    "any other column": ("data.train", "grpo", GRPO, edit("train.jsonl", '"level": 3', '"level": 4'), "rows"),
    "held out by share": (
        "data.train",
        "dpo",
        {"data": {"eval_fraction": 0.5}},
        edit("train.jsonl", "No 1.", "Yes 1."),
        "rows",
    ),
    "held-out file": (
        "data.eval",
        "sft",
        {"data": {"eval": "PLACE/eval.jsonl"}},
        without_last_row("eval.jsonl"),
        "held",
    ),
    "moved to held-out": ("data.eval", "sft", {"data": {"eval": "PLACE/eval.jsonl"}}, moved_row, "held-out rows"),
    "reference": ("reference.path", "dpo", {"reference": {"path": "PLACE/other"}}, other_weights("other"), "weights"),
    "reference of the KL": (
        "kl.reference",
        "grpo",
        GRPO | {"kl": {"reference": "PLACE/other"}},
        other_weights("other"),
        "weights",
    ),
    "teacher": (
        "distill.teacher",
        "grpo",
        GRPO | {"distill": {"teacher": "PLACE/other"}},
        other_weights("other"),
        "weights",
    ),
    "critic": (
        "critic.start",
        "ppo",
        GRPO | {"critic": {"start": "PLACE/other"}},
        other_weights("other"),
        "weights",
    ),
    "reward model": (
        "rewards.model",
        "grpo",
        {"rewards": {"model": ("PLACE/other",)}},
        other_weights("other"),
        "weights",
    ),
    "reward model's tokenizer": (
        "rewards.model",
        "grpo",
        {"rewards": {"model": ("PLACE/other", "PLACE/model")}},
        edit("other/tokenizer.json", "{", "{ "),
        "1: tokenizer",
    ),
    "reward function": ("rewards.functions", "grpo", FUNCTION, edit("code.py", "[long(", "[2 * long("), "words"),
    "policy loss": (
        "loss.function",
        "grpo",
        GRPO | {"loss": {"function": "PLACE/code.py:words"}},
        edit("code.py", "[long(", "[2 * long("),
        "words",
    ),
    "estimator": (
        "loss.estimator",
        "grpo",
        GRPO | {"loss": {"estimator": "PLACE/code.py:words"}},
        edit("code.py", "[long(", "[2 * long("),
        "words",
    ),
    "objective": (
        "objective",
        "custom",
        {"objective": "PLACE/code.py:words"},
        edit("code.py", "[long(", "[2 * long("),
        "words",
    ),
    "held-out reward": (
        "alarm.held_out",
        "grpo",
        GRPO | {"alarm": {"held_out": "PLACE/code.py:words"}},
        edit("code.py", "[long(", "[2 * long("),
        "words",
    ),
    "held-out reward model": (
        "alarm.held_out",
        "grpo",
        GRPO | {"alarm": {"held_out": "PLACE/other"}},
        other_weights("other"),
        "weights",
    ),
    "what it imports": (
        "rewards.functions",
        "grpo",
        FUNCTION,
        edit("helper_of_rewards.py", "len", "2*len"),
        "helper_of",
    ),
    "reward server": (
        "rewards.servers",
        "grpo",
        {"rewards": {"servers": ("openrlhf=http://localhost:1",)}},
        {"rewards": {"servers": ("openrlhf=http://localhost:2",)}},
        "address",
    ),
    "judge on a server": (
        "rewards.judges",
        "grpo",
        {"rewards": {"judges": ("openai=http://localhost:1",)}},
        {"rewards": {"judges": ("openai=http://localhost:2",)}},
        "address",
    ),
    "judge in a folder": (
        "rewards.judges",
        "grpo",
        {"rewards": {"judges": ("model=PLACE/other",)}},
        edit("other/tokenizer.json", "{", "{ "),
        "tokenizer",
    ),
    "what a judge is asked": (
        "judge.prompt",
        "grpo",
        {"rewards": {"judges": ("openai=http://localhost:1",)}, "judge": {"prompt": "PLACE/asked.yaml"}},
        edit("asked.yaml", "better", "best"),
        "text",
    ),
    "its tokenizer": (
        "remote.tokenizer",
        "grpo",
        GRPO | {"remote": {"tokenizer": "PLACE/other"}},
        edit("other/tokenizer.json", "{", "{ "),
        "tokenizer",
    ),
    "aligned policy": (
        "rewards.implicit",
        "grpo",
        {"rewards": {"implicit": ("PLACE/other",), "implicit_reference": "PLACE/model", "implicit_beta": 0.1}},
        other_weights("other"),
        "weights",
    ),
    "what it is compared with": (
        "rewards.implicit_reference",
        "grpo",
        {"rewards": {"implicit": ("PLACE/model",), "implicit_reference": "PLACE/other", "implicit_beta": 0.1}},
        other_weights("other"),
        "weights",
    ),
    "ratings of a gate": (
        "gate.ratings",
        "reward-gate",
        {"gate": GateSection(ratings="PLACE/more.jsonl")},
        without_last_row("more.jsonl"),
        "rows",
    ),
    "golden answers": (
        "adversarial.golden",
        "reward",
        {"adversarial": {"golden": "PLACE/eval.jsonl", "samples": "PLACE/more.jsonl"}},
        without_last_row("eval.jsonl"),
        "rows",
    ),
    "samples beside them": (
        "adversarial.samples",
        "reward",
        {"adversarial": {"golden": "PLACE/eval.jsonl", "samples": "PLACE/more.jsonl"}},
        without_last_row("more.jsonl"),
        "rows",
    ),
    "older reward model": (
        "old.path",
        "reward",
        {"old": {"coef": 1.0, "path": "PLACE/other"}},
        other_weights("other"),
        "weights",
    ),
    "mixed-in rows": (
        "ptx.data",
        "grpo",
        GRPO | {"ptx": {"data": "PLACE/more.jsonl"}},
        without_last_row("more.jsonl"),
        "rows",
    ),
    "engine's server": (
        "engine.url",
        "grpo",
        GRPO | {"engine": {"name": "vllm", "url": "http://localhost:1"}},
        {"engine": {"name": "vllm", "url": "http://localhost:2"}},
        "address",
    ),
}


def filled(options: Any, place: Path) -> Any:
    if isinstance(options, dict):
        return {name: filled(value, place) for name, value in options.items()}
    if isinstance(options, tuple):
        return tuple(filled(value, place) for value in options)
    if isinstance(options, GateSection):
        return replace(options, ratings=filled(options.ratings, place))
    return options.replace("PLACE", str(place)) if isinstance(options, str) else options


@pytest.mark.parametrize("case", CASES)
def test_a_change_of_anything_that_is_read_is_noticed(case: str, place: Path, capsys) -> None:
    option, command, options, change, part = CASES[case]
    config = made(place, command, **filled(options, place))
    read(config)
    read(replace(config, resume="auto"))
    capsys.readouterr()
    if callable(change):
        change(place)
    else:
        config = made(place, command, **filled({**options, **change}, place))
    with pytest.raises(RunFolderError) as refused:
        read(replace(config, resume="auto"))
    said = str(refused.value)
    assert re.search(rf"--{option}, .*{part}.*", said), said
    named = re.search(r"--resume_changed (.*)$", said)[1].split()
    assert option in named and len(named) <= 2, said
    read(replace(config, resume="auto", resume_changed=tuple(named)))
    kept = json.loads((place / "run" / "environment.json").read_text())["history"][-1]["inputs"]
    assert any(name.startswith(option) for name in kept)


# Texts that name nothing outside, or what the run does not read; compare's own are read once, when all is trained.
NAMES_NOTHING = set(
    "out resume resume_changed model.revision model.template_kwargs model.lora.targets data.split data.format "
    "data.columns rewards.rules rewards.weights rewards.output_weights remote.model remote.label remote.key_env "
    "judge.model judge.key_env judge.body "
    "judge.cache curriculum.column given.hint reward.output attributes.outputs attributes.weights gate.verbosity "
    "engine.weights plus methods options loss.options scorer reward_model prompts eval.measures eval.best".split()
)


def has_text(kind: Any) -> bool:
    from typing import Literal, get_args, get_origin

    return kind is str or (get_origin(kind) is not Literal and any(map(has_text, get_args(kind))))


def test_every_option_that_names_something_is_known() -> None:
    seen: set[str] = set()
    for command in COMMANDS.values():
        if issubclass(command.config, RunConfig):
            names = {option.name for option in settings.options(command.config) if has_text(option.kind)}
            assert names <= INPUTS.keys() | NAMES_NOTHING, f"{command.help} {names - INPUTS.keys() - NAMES_NOTHING}"
            seen |= names
    assert seen >= INPUTS.keys() | NAMES_NOTHING
    assert {case[0] for case in CASES.values()} == INPUTS.keys() - {"reference.cache"}, "that has a test of its own"


def test_what_moved_but_is_the_same_goes_on(place: Path, capsys) -> None:
    options: dict[str, Any] = filled(FUNCTION | {"data": {"eval": "PLACE/eval.jsonl"}}, place)
    read(made(place, "grpo", **options))
    (place / "moved").mkdir()
    for name in ("model", "train.jsonl", "eval.jsonl", "code.py", "helper_of_rewards.py"):
        (place / name).rename(place / "moved" / name)
    sys.path.insert(0, str(place / "moved"))
    moved = made(place / "moved", "grpo", **filled(FUNCTION | {"data": {"eval": "PLACE/eval.jsonl"}}, place / "moved"))
    read(replace(moved, out=str(place / "run"), resume="auto"))
    sys.path.remove(str(place / "moved"))
    assert f"--data.train: '{place}/train.jsonl' -> '{place}/moved/train.jsonl'" in capsys.readouterr().err


def test_other_log_probs_in_the_cache_are_noticed(place: Path) -> None:
    """They are read, or computed, after everything else."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    cache = place / "cache.safetensors"
    config = made(place, "dpo", reference={"mode": "cached", "cache": str(cache)})
    train_preference(config)
    longer = replace(config, resume="auto", train=replace(config.train, max_steps=3))
    cache.unlink()
    train_preference(longer)  # computed anew, the same
    with safe_open(cache, "numpy") as stored:
        values, metadata = stored.get_tensor("reference"), stored.metadata()
    values[0] -= 1
    save_file({"reference": values}, cache, metadata=metadata)
    with pytest.raises(RunFolderError, match=r"--reference.cache, log-probs: (.|\n)*--resume_changed reference.cache$"):
        train_preference(longer)
    train_preference(replace(longer, resume_changed=("reference.cache",)))


def test_a_run_goes_on_with_another_reward_where_that_is_wanted(place: Path, capsys) -> None:
    config = made(place, "grpo", **filled(FUNCTION, place))
    train_online(config)
    longer = replace(config, resume="auto", train=replace(config.train, max_steps=3))
    edit("helper_of_rewards.py", "len", "100 * len")(place)
    sys.modules.pop("helper_of_rewards")
    capsys.readouterr()
    assert main(["grpo", "--config", written(place, longer)]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"(?m)^error: --resume: this is not what the run has read so far:\n  --rewards.functions, helper_of", said
    )
    assert "Traceback" not in said
    assert main(["grpo", "--config", written(place, longer), "--resume_changed", "rewards.functions"]) == 0
    manifest = checkpoint.read_manifest(place / "run" / "checkpoints" / "step-000003")["meta"]
    assert manifest["inputs"] == json.loads((place / "run" / "data.json").read_text())["inputs"]
    assert [row["step"] for row in read_metrics(place / "run" / "metrics.jsonl") if "loss" in row] == [1, 2, 3]
    assert not (place / "run" / lock.NAME).exists()


def written(place: Path, config: RunConfig) -> str:
    (place / "run.yaml").write_text(settings.dump(config))
    return str(place / "run.yaml")


def test_names_of_changed_inputs_are_checked(place: Path) -> None:
    base = made(place, "sft")
    for config, words in (
        (replace(base, resume_changed=("data.train",)), "Give --resume auto with it"),
        (
            replace(base, resume="auto", resume_changed=("data.trian",)),
            "Perhaps you meant 'data.train'. There are: mod",
        ),
        (replace(base, resume="auto", resume_changed=("rewards.model",)), "no such input"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            settings.validate(config)


# ---- what else stands in a folder


def test_damaged_rows_of_a_log_are_said_and_left_out(tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "loss": 2.0}\n', b'{"step": 2, "loss": 1.0}\n']
    content = good[0] + b"\0" * 40 + b"\n" + b'{"step": 2, "lo\n' + good[1]
    path.write_bytes(content + b'{"step": 3, "loss": 0.5}\n')
    log = MetricsLog(path, len(content))
    assert "2 of 4 rows are damaged (the first is line 2) and left out" in " ".join(capsys.readouterr().err.split())
    assert log.position() == len(b"".join(good))
    log.write(3, {"loss": 0.25})
    log.close()
    assert [row["loss"] for row in read_metrics(path)] == [2.0, 1.0, 0.25]
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == content


@pytest.mark.parametrize("name", ["two\nlines", "-x", " blanks ", "ünï ☃", "n" * 250, "%s {x}", "--", "a'b\"c"])
def test_odd_names_work(name: str, place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    (place / name).mkdir()
    shutil.move(place / "model", place / name / "model")
    rows = shutil.move(place / "train.jsonl", place / name / "train.jsonl")
    config = made(place, "sft", model={"path": f"{name}/model"}, data={"train": str(rows)})
    config = replace(config, out=name + "/" + name)
    train_sft(config)
    train_sft(replace(config, resume="auto"))
    assert Path(config.out, "model", "config.json").is_file()


def test_names_that_are_no_utf8_are_refused_at_once(place: Path, capfd, caplog) -> None:
    words = ["sft", "--model.path", str(place / "model"), "--data.train", str(place / "train.jsonl"), "--out"]
    bad = os.fsdecode(os.fsencode(str(place)) + b"/\xff\xfe")
    assert main([*words, bad]) == 2
    assert main([*words[:4], bad, "--out", str(place / "run")]) == 2
    assert main(["export", str(place / "model"), "--out", bad]) == 2
    said = capfd.readouterr().err
    assert "--out: " in said and "--data.train: " in said and r"\udcff\udcfe' is no UTF-8" in said
    assert not (place / "run").exists() and len([path for path in place.iterdir() if b"\xff" in os.fsencode(path)]) == 0
    folder = place / "rows"
    folder.mkdir()
    shutil.move(place / "train.jsonl", os.fsencode(folder) + b"/\xff.jsonl")  # in a folder of data it may stand
    with open(os.fsencode(folder) + b"/\xff.jsonl", "a") as file:
        file.write("{}\n")
    with caplog.at_level("CRITICAL", "assent.data.views"):  # pytest's workers cannot pass such names on
        train_sft(made(place, "sft", data={"train": str(folder), "max_bad": 0.5}))
    data = json.loads((place / "run" / "data.json").read_text())
    assert "\udcff.jsonl:9" in data["files"][0]["problems"][0]


FOREIGN = ["{}\n", "", "<!DOCTYPE html>\n<html><p>My thesis.</p></html>\n", "Written by assent 1.0"]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_report_replaces_only_a_report(content: str, place: Path) -> None:
    from assent.evaluate.report import write_report

    read(made(place, "sft"))
    page = place / "mine.html"
    page.write_text(content)
    with pytest.raises(RunFolderError, match=r"mine.html is there and no report of assent, so it stays"):
        write_report(ReportConfig((str(place / "run"),), str(page)))
    assert page.read_text() == content
    with pytest.raises(RunFolderError, match="no report of assent"):
        write_report(ReportConfig((str(place / "run"),), str(place)))
    for _ in range(2):
        write_report(ReportConfig((str(place / "run"),), str(place / "new" / "page.html")))


def test_compare_and_demo_go_on_only_in_a_folder_of_their_own(place: Path) -> None:
    from assent.evaluate.compare import compare
    from assent.lab.demo import run_demo

    base = made(place, "dpo")
    out = place / "photos"
    out.mkdir()
    (out / "report.html").write_text("mine")
    config = CompareConfig(base.model, base.data, str(out), resume="auto", scorer="x:y", prompts=base.data.train)
    with pytest.raises(RunFolderError, match="no earlier comparison is in"):
        compare(config)
    with pytest.raises(RunFolderError, match="holds no demo"):
        run_demo(DemoConfig(str(out), resume=True))
    (out / "dpo").mkdir()
    with pytest.raises(RunFolderError, match="no report of assent"):
        compare(config)
    (out / "report.html").unlink()
    (out / "evaluation.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="evaluation.json is not an evaluation table"):
        compare(config)
    assert {path.name for path in out.iterdir()} == {"dpo", "evaluation.json"}
    world = place / "demo" / "world"
    world.mkdir(parents=True)
    (world / "world.json").write_text('{"world": "assistant", "seed": 3, "scale": 0.5}')
    for demo, words in (
        (DemoConfig(seed=3, scale=1.0, resume=True), "made with --scale 0.5"),
        (DemoConfig(), "--resume"),
    ):
        with pytest.raises(RunFolderError, match=words):
            run_demo(replace(demo, out=str(place / "demo")))
