"""What could fail at the end of a run fails before its first step: places, room, the final folders, the rewards."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assent.cli import main
from assent.config import (
    METHODS,
    OBJECTIVES,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ReferenceConfig,
    RewardConfig,
    RewardsConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
    preference_config,
)
from assent.errors import ModelError, OutputError
from assent.models import saving
from assent.train import beforehand, final
from assent.train.runfolder import RunFolder

from . import commands
from .commands import grpo_words, result

FUNCTION = """
import random
from pathlib import Path

import numpy as np
import torch

asked = 0

def good(completions, gold, **columns):
    global asked
    asked += 1
    drawn = random.random() + np.random.rand() + float(torch.rand(()))
    with (Path(__file__).parent / "asked").open("a") as file:
        file.write(f"{asked} {len(completions)} {columns['prompts'][0]!r}\\n")
    return [len(str(c)) % 7 + 1e-3 * (asked + drawn) for c in completions]

def raising(completions, **columns):
    raise KeyError("no such key")

def few(completions, **columns):
    return [1.0]

def words(completions, **columns):
    return ["good" for _ in completions]

def odd(completions, **columns):
    return [float("nan") for _ in completions]

def silent(completions, **columns):
    return [None for _ in completions]

def badly_logged(completions, log_extra, **columns):
    log_extra("size", [1])
    return [1.0 for _ in completions]
"""
Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, with prompts as text, and as messages, and columns for rewards."""
    texts = [f"{i} red green?" for i in range(8)]
    made = [{"prompt": text, "chosen": f"Yes {i}.", "rejected": "No."} for i, text in enumerate(texts)]
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "gold": "4"}) + "\n" for row in made))
    return file


@pytest.fixture
def function(tmp_path: Path) -> Callable[[str], str]:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTION)
    return lambda name: f"{file}:{name}"


@pytest.fixture
def make(tiny_model_dir: Path, teacher_dir: Path, rows: Path, tmp_path: Path, function: Callable[[str], str]) -> Make:
    """A run of two steps."""

    def build(name: str, out: str = "run", **train: object) -> RunConfig:
        lora = LoraConfig(rank=2) if "lora" in name else LoraConfig()
        shared = {
            "model": ModelConfig(str(tiny_model_dir), precision="fp32", lora=lora),
            "data": DataConfig(str(rows), max_length=64),
            "out": str(tmp_path / out),
            "optim": OptimConfig(lr=1e-3),
            "train": TrainConfig(**{"batch_size": 4, "max_steps": 2, "threads": 1, **train}),
        }
        match name.split()[0]:
            case "sft":
                return SFTConfig(**shared)
            case "reward":
                return RewardConfig(**shared)
            case objective if objective in OBJECTIVES:
                options = {"reference": {"mode": "moving"}} if objective == "tr-dpo" else {}
                return preference_config(objective, **shared, **options)
            case method:
                rewards = RewardsConfig(functions=(function("good"),))
                sampling = SamplingConfig(max_new_tokens=5)
                critic = {"critic": {"start": "policy"}} if METHODS[method].has_critic else {}
                if METHODS[method].needs_teacher:
                    critic["distill"] = {"teacher": str(teacher_dir)}
                return online_config(method, **shared, **critic, rewards=rewards, sampling=sampling)

    return build


def train(config: RunConfig) -> Path:
    commands.train(config)
    return Path(config.out)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def once_begun(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], object]], None]:
    """Something happens to the run folder once the data are read."""
    original = RunFolder.record

    def arrange(happens: Callable[[Path], object]) -> None:
        def record(folder: RunFolder, report: dict, inputs: dict) -> None:
            original(folder, report, inputs)
            happens(folder.path)

        monkeypatch.setattr(RunFolder, "record", record)

    return arrange


def untouched(out: Path) -> bool:
    """Whether nothing was trained, and nothing is left of what was tried."""
    names = {path.name for path in out.iterdir()}
    return not names & {"model", "checkpoints", ".trial"} and not (out / "metrics.jsonl").is_file()


# ---- places


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (lambda out: (out / "checkpoints").write_text(""), r"checkpoints.*a file is in the way"),
        (lambda out: (out / "model").write_text(""), r"model.*a file is in the way"),
        (lambda out: (out / "model.unfinished").write_text(""), r"model\.unfinished.*a file is in the way"),
        (lambda out: (out / "metrics.jsonl").mkdir(), r"metrics\.jsonl cannot be written: it is a folder"),
        (lambda out: (out / "samples.jsonl").symlink_to("/dev/full"), r"samples\.jsonl.*no regular file"),
        (lambda out: (out / "model").symlink_to("/proc/self"), r"model.README\.md cannot be written"),
    ],
)
def test_what_stands_in_the_way_is_named(happens, words: str, make: Make, once_begun):
    config = make("sft")
    once_begun(happens)
    with pytest.raises(OutputError, match=words) as caught:
        train(config)
    assert str(caught.value).startswith(f"--out {config.out}: ")
    assert not list(Path(config.out).rglob("*.safetensors")) and not (Path(config.out) / "metrics.jsonl").is_file()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """File systems of one's own, where this user may make them."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("this user may not mount a file system")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("room", ["200k", "640k"])
def test_a_small_disk_is_refused_before_training(room: str, make: Make, disk):
    """On the first not even the model fits, on the second a checkpoint does not fit beside it."""
    out = disk(f"size={room}") / "run"
    with pytest.raises(OutputError, match=r"No space left on device|are free there; a checkpoint takes \d+ kB"):
        train(replace(make("sft"), out=str(out)))
    assert untouched(out)
    assert "metrics.jsonl" not in {path.name for path in out.iterdir()}


def test_a_disk_with_room_is_used(make: Make, disk):
    out = disk("size=8m") / "run"
    assert (train(replace(make("sft"), out=str(out))) / "model" / "README.md").is_file()


def test_a_reference_cache_that_cannot_be_kept_is_not_computed(make: Make, tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    config = replace(make("dpo"), reference=ReferenceConfig(mode="cached", cache=str(tmp_path / "file" / "cache")))
    with pytest.raises(OutputError, match=r"^--reference\.cache .*cache cannot be written: a file is in the way"):
        train(config)
    assert "Computing" not in capsys.readouterr().err


# ---- room


@pytest.mark.parametrize("name", ["sft", "sft lora", "reward", "reward lora", "tr-dpo", "grpo lora", "ppo"])
def test_what_a_run_takes_is_known_before_it(name: str, make: Make, monkeypatch: pytest.MonkeyPatch):
    """Checkpoint and final folders, within 3 %; and what was tried leaves nothing."""
    known: list[tuple[int, int]] = []
    monkeypatch.setattr(beforehand, "_check_room", lambda session, one, final, *_: known.append((one, final)))
    out = train(make(name))
    ((one, final_size),) = known
    (written,) = (out / "checkpoints").glob("step-*")
    assert one == pytest.approx(size(written), rel=0.03)
    folders = [out / part for part in ("model", "critic") if (out / part).is_dir()]
    assert final_size == pytest.approx(sum(map(size, folders)), rel=0.03)
    assert not (out / ".trial").exists() and not list(out.glob("*.unfinished"))


@pytest.mark.parametrize("name", ["sft", "sft lora", "reward", "reward lora"])
def test_a_large_model_is_tried_without_its_weights(name: str, make: Make, monkeypatch: pytest.MonkeyPatch):
    known: list[int] = []
    monkeypatch.setattr(beforehand, "WHOLE", 0)
    monkeypatch.setattr(beforehand, "_check_room", lambda session, one, final, *_: known.append(final))
    written = final._write
    tried: list[str] = []
    monkeypatch.setattr(final, "_write", lambda *given: (tried.append(given[2].name), written(*given))[1])
    out = train(make(name))
    assert tried == ["model"], "only at the end"
    assert known[0] == pytest.approx(size(out / "model"), rel=0.1)


def free(monkeypatch: pytest.MonkeyPatch, config: RunConfig, count: float) -> None:
    """So many checkpoints have room beside the final model."""
    original = beforehand._check_room

    def check(session, one, final, *rest):
        monkeypatch.setattr(beforehand, "free_bytes", lambda path: int(count * one + final))
        original(session, one, final, *rest)

    monkeypatch.setattr(beforehand, "_check_room", check)


def test_too_little_room_is_refused_with_what_helps(make: Make, monkeypatch: pytest.MonkeyPatch):
    config = make("sft")
    free(monkeypatch, config, 0.9)
    with pytest.raises(OutputError) as caught:
        train(config)
    said = str(caught.value)
    assert "are free there; a checkpoint takes" in said and "kB" in said
    assert "--model.lora.rank" in said and "--model.save_dtype bf16" in said
    assert untouched(Path(config.out))


@pytest.mark.parametrize(("count", "steps", "told"), [(1.1, 1, False), (1.1, 6, True), (3.1, 6, False)])
def test_too_little_room_for_all_that_is_kept_is_said(
    count: float, steps: int, told: bool, make: Make, monkeypatch: pytest.MonkeyPatch, capsys
):
    config = make("sft", save_every=1, keep=2, max_steps=steps)
    free(monkeypatch, config, count)
    train(config)
    said = capsys.readouterr().err
    assert ("Up to 3 checkpoints will be added (--train.keep 2, and the next while it is written)" in said) == told


def test_an_engine_needs_room_of_its_own(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(beforehand, "_engine_folder", lambda session: tmp_path / "engine")
    original = beforehand.free_bytes
    monkeypatch.setattr(beforehand, "free_bytes", lambda path: 1000 if path.name == "engine" else original(path))
    with pytest.raises(
        OutputError, match=r"--engine\.weights .*engine: 1 kB are free there, and the weights .* kB, twice"
    ):
        train(make("grpo"))
    (tmp_path / "engine").write_text("in the way")
    with pytest.raises(OutputError, match=r"--engine\.weights: .*engine cannot be written: a file is in the way"):
        train(make("grpo", "other"))


# ---- the final model


def test_adapters_that_would_merge_wrongly_are_found_before_training(make: Make, monkeypatch: pytest.MonkeyPatch):
    """At the start they are zero, and any merge would do."""

    def without_adapters(model, state):
        merged = merged_weights(model, state)
        return {name: weights if "q_proj" not in name else base(state, name) for name, weights in merged.items()}

    def base(state, name):
        return state[f"base_model.model.{name.removesuffix('.weight')}.base_layer.weight"]

    merged_weights = saving.merged_weights
    monkeypatch.setattr(saving, "merged_weights", without_adapters)
    config = make("sft lora")
    with pytest.raises(ModelError, match="with the merged weights transformers differs"):
        train(config)
    assert untouched(Path(config.out))


def test_a_tokenizer_that_cannot_be_saved_is_found_before_training(make: Make, monkeypatch: pytest.MonkeyPatch):
    def fails(self, folder, **options):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", fails)
    config = make("reward")
    with pytest.raises(OutputError, match="No space left on device"):
        train(config)
    assert untouched(Path(config.out))


def test_a_model_that_could_not_be_loaded_again_is_found(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(beforehand, "WHOLE", 0)
    monkeypatch.setattr(beforehand, "shell_of", lambda auto, folder: torch.nn.Linear(1, 1))
    with pytest.raises(ModelError, match="would not load this model as it is saved: of its weights"):
        train(make("sft"))


def test_a_failed_end_leaves_no_half_model(make: Make, monkeypatch: pytest.MonkeyPatch):
    """The disk fills while the final model is written: no folder of that name; with room, resuming writes it."""
    config = make("sft")
    original = saving.write_model

    def full(model, folder, *rest, **options):
        if folder.name == "model.unfinished" and ".trial" not in folder.parts:
            raise OSError(28, "No space left on device")
        original(model, folder, *rest, **options)

    with monkeypatch.context() as broken:
        broken.setattr(saving, "write_model", full)
        with pytest.raises(OutputError, match=r"model cannot be written: No space left on device. Make room there"):
            train(config)
    out = Path(config.out)
    assert not (out / "model").exists() and not (out / "model.unfinished").exists()
    train(replace(config, resume="auto"))
    assert (out / "model" / "README.md").is_file()


# ---- rewards


def options(out: Path, model: Path, data: Path, *rewards: str) -> list[str]:
    return grpo_words(out, model, data, *rewards, "--train.batch_size", "4", steps=2)


@pytest.mark.parametrize(
    ("name", "words", "more"),
    [
        ("raising", "raising raised KeyError: 'no such key' (", ()),
        ("raising", "raising raised KeyError: 'no such key' (", ("--rewards.workers", "1")),
        ("few", "gave 1 rewards; expected 2: one for each answer", ()),
        ("words", "gave 'good' for the answer ", ()),
        ("odd", "gave nan for the answer ", ()),
        ("badly_logged", "log_extra('size') got 1 values; expected 2", ()),
    ],
)
def test_rewards_are_asked_before_training(
    name: str, words: str, more: tuple[str, ...], tiny_model_dir, rows, function, tmp_path: Path, capsys
):
    out = tmp_path / "run"
    code = main(options(out, tiny_model_dir, rows, "--rewards.functions", function(name), *more))
    said = capsys.readouterr().err
    assert code == (3 if name == "odd" else 2)
    assert words in said and "(Tried before training, on the made-up answer 'I do not know.'.)" in said
    assert "Traceback" not in said and untouched(out)


def test_a_function_that_abstains_is_asked_in_training(tiny_model_dir, rows, function, tmp_path: Path, capsys):
    assert main(options(tmp_path / "run", tiny_model_dir, rows, "--rewards.functions", function("silent"))) == 2
    assert "rollout 1: not one of 8 answers could be scored" in capsys.readouterr().err


def test_every_kind_of_row_is_asked_about(tiny_model_dir, function, tmp_path: Path):
    kinds = [
        {"prompt": "Text?", "gold": "1"},
        {"prompt": [{"role": "user", "content": "Messages?"}], "gold": "1"},
        {"prompt": "More?", "gold": "2"},
    ]
    (tmp_path / "kinds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kinds * 2))
    rewards = ("--rewards.functions", function("good"), "--train.max_steps", "1")
    assert main(options(tmp_path / "run", tiny_model_dir, tmp_path / "kinds.jsonl", *rewards)) == 0
    first, *rest = (tmp_path / "asked").read_text().splitlines()
    assert first.startswith("1 4 'Text?'"), "two answers to one row of each of two kinds"
    assert rest[0].startswith("1 8 "), "the run's own copy has not been asked before"


def test_what_is_tried_changes_nothing_of_the_run(make: Make, monkeypatch: pytest.MonkeyPatch):
    """A function that counts its calls, and draws from every generator."""

    def seeded(name: str) -> Path:
        import random

        import numpy as np

        random.seed(1)
        np.random.seed(1)
        return train(make("grpo", name))

    with_trial = result(seeded("with"))
    monkeypatch.setattr("assent.train.loop.try_outputs", lambda *_, **__: None)
    monkeypatch.setattr("assent.algorithms.online.train.try_rewards", lambda *_: None)
    assert with_trial == result(seeded("without"))


def test_where_nothing_is_tried_nothing_is_left(make: Make, tmp_path: Path):
    out = train(make("ppo"))
    expected = {"resolved.yaml", "environment.json", "data.json", "metrics.jsonl", "samples.jsonl", "checkpoints"}
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} >= expected | {"model", "critic"}
    assert not [path for path in out.rglob("*") if path.name.endswith((".part", ".unfinished")) or ".tmp-" in path.name]
    assert os.listdir(out / "checkpoints") == ["step-000002"]
