"""What a run says when it is done, and leaves in summary.json and on the model card: what was gained, which step is in
model/, what lies where, and what one can do next."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from assent.algorithms.commands import Command, words
from assent.algorithms.measured import Measured, change
from assent.config import RunConfig
from assent.statistics import Interval
from assent.train.facts import Fact, rounded, short
from assent.train.progress import clock

FILE = "summary.json"
COUNTS = ("rows_used", "rows_skipped", "rows_unused", "too_long", "shortened")
CONTENTS = ("examples", "responses_cut", "tokens_trained")


@dataclass(frozen=True, slots=True)
class Pace:
    """What this process has trained: `seconds` of optimiser steps after `since`, with so many trained tokens."""

    since: int = 0
    seconds: float = 0.0
    tokens: float = 0.0

    def after(self, metrics: Mapping[str, float]) -> Pace:
        """With one more step."""
        return Pace(self.since, self.seconds + metrics["time/step"], self.tokens + metrics["tokens"])

    @property
    def speed(self) -> float:
        """Trained tokens a second."""
        return self.tokens / self.seconds if self.seconds > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Summary:
    """A finished run. `step` is that of the weights in model/, `final` whether they are the best or the last;
    `metrics` are the means of the last steps; `start`, `best` and `end` are evaluations, `end` that of the weights in
    model/. `folders` are those of the final models."""

    config: RunConfig
    command: Command
    steps: int
    step: int
    final: Literal["best", "last"]
    metrics: Mapping[str, float]
    start: Measured | None
    best: Measured | None
    end: Measured | None
    pace: Pace
    data: Mapping[str, Any]
    folders: tuple[str, ...]

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def gain(self) -> Interval | None:
        """By how much the followed metric has risen from the start to the weights in model/."""
        if self.start is None or self.end is None or self.start.step == self.end.step:
            return None
        return change(self.start, self.end)

    def value(self, measured: Measured | None) -> float | None:
        """The metric that decides the best step."""
        return None if measured is None else measured.metrics.get(f"eval/{self.command.followed.best}")


# ---- for people


def closing(run: Summary) -> list[Fact]:
    """The lines at the end of a run."""
    return [_finished(run), *_held_out(run), *_best(run), *_folders(run), *_next(run)]


def _finished(run: Summary) -> Fact:
    pace = run.pace
    done = f"{run.out} after {run.steps:,} steps"
    if pace.seconds <= 0:
        return Fact("Finished", f"{done}, none of them now")
    now = "" if not pace.since else f", {run.steps - pace.since:,} of them now"
    return Fact("Finished", f"{done}{now}, in {clock(pace.seconds)} ({rounded(pace.speed)} trained tokens/s)")


def _held_out(run: Summary) -> list[Fact]:
    if run.end is None:
        last = ", ".join(f"{words(name)} {short(value)}" for name, value in run.metrics.items())
        return [Fact("Training", f"{last} (of the last steps; nothing was held out)")]
    first, *others = run.command.followed.held_out
    said = [_ends(run, first) + gained(run)]
    if more := [_ends(run, name) for name in others if f"eval/{name}" in run.end.metrics]:
        said.append(", ".join(more))
    return [Fact("Held out" if number == 0 else "", text) for number, text in enumerate(said)]


def _ends(run: Summary, name: str) -> str:
    """A held-out metric at the start and for the weights in model/."""
    assert run.end is not None
    key = f"eval/{name}"
    before = None if run.start is None else run.start.metrics.get(key)
    now = short(run.end.metrics[key])
    return f"{words(name)} {now}" if before is None else f"{words(name)} {short(before)} -> {now}"


def gained(run: Summary) -> str:
    """The change of the followed metric, with its interval."""
    gain = run.gain
    if gain is None or not gain.n:
        return ""
    between = "too few for an interval" if math.isnan(gain.low) else f"95 % {gain.low:+.3g} to {gain.high:+.3g}"
    return f": {gain.mean:+.3g} ({between}; the same {gain.n:,} examples)"


def _best(run: Summary) -> list[Fact]:
    value = run.value(run.best)
    if run.best is None or value is None:
        return []
    followed = run.command.followed
    name = f"{'lowest' if followed.better is min else 'highest'} held-out {words(followed.best)}"
    where = f"step {run.best.step:,}" if run.best.step else "the start (step 0)"
    if run.best.step == run.step:
        return [Fact("Best", f"{where} by {name} ({short(value)}): the one in model/")]
    own = run.value(run.end)
    here = "" if own is None else f" ({short(own)})"
    facts = [Fact("Best", f"{where} by {name} ({short(value)}); model/ is step {run.step:,}{here}")]
    if run.best.step:
        target = shlex.quote(f"{run.out}-best")
        facts.append(Fact("", f"assent export {_quoted(run.out)} --checkpoint best --out {target}", command=True))
    return facts


def _folders(run: Summary) -> list[Fact]:
    kind = "reward model" if run.command.scores else "model"
    which = f"step {run.step:,}, the {run.final}"
    facts = [Fact("Folders", f"{run.out / 'model'}: the {kind} ({which})")]
    facts += [Fact("", f"{run.out / name}: the {name} ({which})") for name in run.folders if name != "model"]
    steps = sorted({run.steps, *((run.best.step,) if run.best is not None and run.best.step else ())})
    return [
        *facts,
        Fact("", f"{run.out / 'checkpoints'}: step {' and step '.join(f'{step:,}' for step in steps)}, to go on from"),
        Fact("", f"{run.out / 'metrics.jsonl'}, samples.jsonl, {FILE}: every step, answers, these lines"),
    ]


def _next(run: Summary) -> list[Fact]:
    """Commands that can be copied."""
    out = _quoted(run.out)
    commands = [f"assent report {out} --out {_quoted(run.out / 'report.html')}"]
    if run.command.scores:
        start, data = shlex.quote(run.config.model.path), shlex.quote(run.config.data.train)
        commands.append(
            f"assent grpo --model.path {start} --data.train {data} --rewards.model {out} "
            f"--out {_quoted(run.out.with_name(f'{run.out.name}-grpo'))}"
        )
    else:
        commands.append(f"assent generate {out}")
    commands.append(f"assent export {out} --dtype bf16 --out {_quoted(run.out.with_name(f'{run.out.name}-bf16'))}")
    commands.append(
        f"assent {run.command.key} --config {_quoted(run.out / 'resolved.yaml')} --resume auto "
        f"--train.max_steps {2 * run.steps}"
    )
    return [Fact("Next" if number == 0 else "", text, command=True) for number, text in enumerate(commands)]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


# ---- for machines


def write_summary(run: Summary, folder: Path) -> None:
    """Writes summary.json into the run folder, whole or not at all."""
    file = folder / FILE
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(as_json(run), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    temporary.replace(file)


def as_json(run: Summary) -> dict[str, Any]:
    """The same facts as plain JSON; numbers that are not finite are null."""
    followed, gain = run.command.followed, run.gain
    found = {
        "command": run.command.key,
        "steps": run.steps,
        "step": run.step,
        "final": run.final,
        "followed": followed.held_out[0],
        "best_by": followed.best,
        "start": _evaluation(run.start),
        "best": _evaluation(run.best),
        "end": _evaluation(run.end),
        "gain": None if gain is None else asdict(gain),
        "metrics": dict(run.metrics),
        "data": _data(run.data),
        "pace": {**asdict(run.pace), "tokens_per_second": run.pace.speed},
        "folders": [*run.folders, "checkpoints"],
        "next": [fact.text for fact in _next(run)],
    }
    return _finite(found)


def _data(report: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of data.json."""
    files = [
        {name: value for name, value in file.items() if name in ("file", "rows") or name in COUNTS}
        for file in report.get("files", ())
    ]
    parts = {part: {name: report[part][name] for name in CONTENTS} for part in ("train", "eval") if part in report}
    return {"files": files, **parts}


def _evaluation(measured: Measured | None) -> dict[str, Any] | None:
    return None if measured is None else {"step": measured.step, "metrics": dict(measured.metrics)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
