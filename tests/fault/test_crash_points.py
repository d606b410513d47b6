"""Errors at every call of the loop: a run that breaks there, for whatever reason, saves the last step that was done and
says so, and continued it gives the bytes of one that never broke."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import linecache
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import assent
import assent.train.run as run_module
import assent.train.runfolder as runfolder
import assent.train.session as session_module
from assent.config import (
    CriticConfig,
    DataConfig,
    KLConfig,
    ModelConfig,
    OptimConfig,
    ProbeConfig,
    RewardsConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    ShapingConfig,
    TrainConfig,
    online_config,
    preference_config,
)
from assent.errors import CheckpointError, OutputError, ShutdownRequested
from assent.train import checkpoint
from assent.train.guard import NOTHING, CodeEnded
from assent.train.log import read_jsonl, read_metrics
from assent.train.run import RunResult, TrainingRun

from . import commands

SOURCE = Path(assent.__file__).parent
CALLERS = {
    str(SOURCE / name)
    for name in (
        "train/loop.py",
        "train/log.py",
        "train/checkpoint.py",
        "data/packing.py",
        "train/run.py",
        "train/held_out.py",
        "rollout/sampler.py",
        "rollout/rollout.py",
        "rewards/groups.py",
        "models/annotate.py",
        "models/references.py",
        "algorithms/online/train.py",
        "algorithms/online/rollouts.py",
        "algorithms/online/stages.py",
        "algorithms/online/prompts.py",
        "algorithms/online/samples.py",
        "algorithms/online/coefficients.py",
        "algorithms/online/step_loss.py",
        "algorithms/online/ewma.py",
        "algorithms/online/evaluation.py",
        "algorithms/preference/train.py",
        "algorithms/preference/step_loss.py",
        "algorithms/preference/step_wide.py",
        "algorithms/preference/diagnostics.py",
        "algorithms/sft.py",
    )
}
"""Whose calls break."""
assert all(Path(name).is_file() for name in CALLERS)
FUNCTION = """
def length(completions, **columns):
    return [float(len(str(text))) for text in completions]
"""
Site = tuple[str, int, str]
"""File, line and what is called there."""


class Broken(RuntimeError):
    """What is raised where nothing else is."""


KINDS: tuple[Callable[[], BaseException | None], ...] = (
    Broken,
    MemoryError,
    lambda: OSError(errno.ENOSPC, "No space left on device"),
    lambda: SystemExit(0),
    KeyboardInterrupt,
    lambda: signal.raise_signal(signal.SIGTERM),
)


@dataclass
class Tracer:
    """Sees every call that `CALLERS` make between `on` and `off`; at the `number`th of `site` it raises `kind()`."""

    site: Site | None = None
    number: int = 0
    kind: Callable[[], BaseException | None] = Broken

    def __post_init__(self) -> None:
        self.seen: Counter[Site] = Counter()
        self.raised = False
        self.files = CALLERS if self.site is None else {self.site[0]}

    def on(self) -> None:
        sys.setprofile(self._see)

    def off(self) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_call"):
            return
        caller = frame.f_back if event == "call" else frame
        if caller is None or caller.f_code.co_filename not in self.files:
            return
        site = (caller.f_code.co_filename, caller.f_lineno, getattr(argument, "__name__", "") or frame.f_code.co_name)
        if self.site is not None and site != self.site:
            return
        self.seen[site] += 1
        if self.site is not None and self.seen[site] == self.number:
            self.off()
            self.raised = True
            if (error := self.kind()) is not None:
                raise error


@pytest.fixture(scope="module")
def train(tiny_model_dir: Path, tokenizer) -> Iterator[Callable[..., None]]:
    """Trains as the commands do, but that models and data are loaded once, and no final model is written; what
    happens from the first step on is traced."""
    loaded: dict[str, Any] = {}

    def once(load: Callable[..., Any]) -> Callable[..., Any]:
        def copied(*arguments: Any, **options: Any) -> Any:
            key = repr((load.__name__, arguments[:1] if load.__name__ == "prepare" else arguments, options))
            if key not in loaded:
                loaded[key] = load(*arguments, **options)
            return loaded[key] if load.__name__ in ("prepare", "load_tokenizer") else copy.deepcopy(loaded[key])

        return copied

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assent.train.checkpoint.sync", lambda path: None)  # nobody cuts the power here
        patch.setattr("assent.train.checkpoint.versions", dict)
        patch.setattr(session_module, "digests", lambda *_: {})
        for name in ("load_policy", "load_score_model", "load_tokenizer", "prepare"):
            patch.setattr(session_module, name, once(getattr(session_module, name)))
        patch.setattr(runfolder, "environment", lambda ranks=1: {"threads": 1, "ranks": ranks})
        patch.setattr("assent.train.loop.try_outputs", lambda *_, **__: None)
        patch.setattr(TrainingRun, "finish", lambda self, *_: RunResult(Path(), Path(), self.step, {}, self.step))
        tracers: list[Tracer | None] = [None]
        conclude = TrainingRun.conclude

        def concluding(self: TrainingRun) -> None:
            if (tracer := tracers[-1]) is not None and not self.step:
                tracer.on()
            conclude(self)

        patch.setattr(TrainingRun, "conclude", concluding)

        def run(config: RunConfig, tracer: Tracer | None = None) -> None:
            tracers.append(tracer)
            try:
                commands.train(config)
            finally:
                sys.setprofile(None)

        yield run


@pytest.fixture(scope="module")
def make(tiny_model_dir: Path, tmp_path_factory) -> Callable[[str, Path], RunConfig]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "mine.py").write_text(FUNCTION)
    rows = [{"prompt": f"{i} red?", "chosen": "paris egg", "rejected": "no", "gold": "e"} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(name: str, out: Path) -> RunConfig:
        shared: dict[str, Any] = {
            "model": ModelConfig(str(tiny_model_dir), precision="fp32"),
            "data": DataConfig(str(folder / "rows.jsonl"), eval_fraction=0.34, max_length=64),
            "out": str(out),
            "optim": OptimConfig(lr=1e-2, warmup=0.0),
            "train": TrainConfig(batch_size=2, micro_tokens=100, max_steps=3, eval_every=2, save_every=2, threads=1),
        }
        if name == "sft":
            return SFTConfig(**shared)
        if name == "tr-dpo":
            reference = {"mode": "moving", "rate": 0.5, "every": 1}
            return preference_config("tr-dpo", **shared, reference=reference, probe=ProbeConfig(1, 3))
        options: dict[str, Any] = {"critic": CriticConfig("policy"), "loss": {"ewma": 0.5}} if name == "ppo" else {}
        return online_config(
            name,
            **shared,
            **options,
            kl=vars(KLConfig(0.1)),
            shaping=vars(ShapingConfig("running", "running")),
            rewards=RewardsConfig(functions=(f"{folder / 'mine.py'}:length",)),
            rollout=vars(RolloutConfig(responses=2, minibatches=2)),
            sampling=SamplingConfig(max_new_tokens=4),
        )

    return build


def outcome(out: Path) -> dict[str, object]:
    """All that a run computes: its last checkpoint, metrics without times, samples."""
    newest = checkpoint.newest_complete(out / "checkpoints")
    if newest is None:
        return {}
    state = json.loads((newest / "state.json").read_text())
    state["run"].pop("positions")  # the lengths of times differ
    due = state["run"]["due"]["metrics"]
    state["run"]["due"]["metrics"] = {name: value for name, value in due.items() if not name.startswith("time/")}
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in newest.glob("*.safetensors")}
    return files | {
        "state": state,
        "metrics": read_metrics(out / "metrics.jsonl", times=False),
        "samples": read_jsonl(out / "samples.jsonl"),
    }


@pytest.fixture
def updates(monkeypatch) -> list[int]:
    """The steps whose update is done, and counted as such."""
    done: list[int] = []
    take = run_module.TrainingRun.take

    def taking(self: TrainingRun, result: Any) -> None:
        take(self, result)
        done.append(result.step)

    monkeypatch.setattr(run_module.TrainingRun, "take", taking)
    return done


NO_CALLS = ("<listcomp>", "<dictcomp>", "<genexpr>", "len", "isinstance", "__enter__", "__exit__", "end_workers")
"""What is no call in the text, or cannot break; the guard cannot stand before its own beginning and after its end."""
NEVER = "ignore_errors=True"
"""On a line: its call keeps its errors to itself, so none can come out of it."""


def by_line(seen: Iterable[Site]) -> dict[tuple[str, int], list[Site]]:
    """The calls that may break, by file and line."""
    lines: dict[tuple[str, int], list[Site]] = {}
    for site in sorted(seen):
        if site[2] not in NO_CALLS and NEVER not in linecache.getline(*site[:2]):
            lines.setdefault(site[:2], []).append(site)
    return lines


POINTS = {"sft": 60, "tr-dpo": 15, "grpo": 50, "ppo": 4}
"""Least calls that each of them is the first to make, on one half of the lines."""


@dataclass(frozen=True)
class Straight:
    """A run that nothing broke: what it computed, and how often it made each call."""

    outcome: dict[str, object]
    seen: Counter[Site]


@pytest.fixture(scope="module")
def straight(make, train, tmp_path_factory) -> Callable[[str], Straight]:
    """`straight(name)`; for tests that follow `updates`, which is seen."""
    found: dict[str, Straight] = {}

    def once(name: str) -> Straight:
        if name not in found:
            tracer, out = Tracer(), tmp_path_factory.mktemp("straight") / name
            train(make(name, out), tracer)
            found[name] = Straight(outcome(out), tracer.seen)
        return found[name]

    return once


def one_of_each_line(name: str, half: int, straight: Callable[[str], Straight], draw: random.Random) -> list[Site]:
    """A call on each line, odd ones or even ones, that none of the runs before this one in `POINTS` makes a call on."""
    before = {line for other in [*POINTS][: [*POINTS].index(name)] for line in by_line(straight(other).seen)}
    lines = by_line(straight(name).seen)
    return [draw.choice(calls) for line, calls in lines.items() if line[1] % 2 == half and line not in before]


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", POINTS)
def test_every_call_may_break(name: str, half: int, make, train, straight, updates: list[int], tmp_path: Path) -> None:
    wanted, seen = straight(name).outcome, straight(name).seen
    assert len(wanted["metrics"]) >= 3
    sites = one_of_each_line(name, half, straight, random.Random(name))
    draw, lost = random.Random(name), 0
    continued: list[dict[str, object]] = []  # what was found to go on rightly: many calls leave the same behind
    for index, site in enumerate(sites):
        tracer = Tracer(site, draw.randint(1, seen[site]), draw.choice((Broken, *KINDS)))
        out = tmp_path / str(index)
        where = f"{name}: call {tracer.number} of {site}, {tracer.kind}"
        updates.clear()
        try:
            train(make(name, out), tracer)
        except BaseException as error:
            lost += told(error, updates, out, where)
        assert tracer.raised, where
        if (left := outcome(out)) not in continued:
            train(replace(make(name, out), resume="auto"))
            assert outcome(out) == wanted, where
            continued.append(left)
    for site in draw.sample(sites, 2):  # and by SIGKILL, or the power
        out = tmp_path / f"killed {site[1]}"
        if (pid := os.fork()) == 0:
            train(make(name, out), Tracer(site, draw.randint(1, seen[site]), lambda: os._exit(9)))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9, site
        train(replace(make(name, out), resume="auto"))
        assert outcome(out) == wanted, site
    print(f"{name}: {len(sites)} calls broken, {lost} in the middle of an update; {len(continued)} states continued")
    assert len(sites) >= POINTS[name] and len(continued) >= min(3, len(sites) // 3) and lost <= 20


def told(error: BaseException, updates: list[int], out: Path, where: str) -> bool:
    """Whether the error says that a step was lost, in the middle of its update; else it must say that none was."""
    assert isinstance(
        error, Broken | MemoryError | OSError | OutputError | CheckpointError | CodeEnded | ShutdownRequested
    ), where
    said = "\n".join([str(error), *getattr(error, "__notes__", ())])
    newest = checkpoint.newest_complete(out / "checkpoints")
    step = checkpoint.read_manifest(newest)["step"] if newest else None
    if step is None:
        assert (NOTHING in said and not updates) or "No checkpoint exists yet: --resume auto begins" in said, (
            where,
            said,
        )
        return NOTHING not in said
    if "was under way" in said or isinstance(error, CheckpointError):
        assert f"The newest checkpoint is that of step {step}; continue with --resume auto" in said, (where, said)
        return True
    done = updates[-1] if updates else 0
    assert f"Checkpoint of step {step} saved; continue with --resume auto." in said, (where, said)
    assert step in (done, done + 1), (where, said)
    return False
