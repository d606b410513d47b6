"""What a run says when it is done, and leaves in summary.json and on the model card: what was gained, which step is in
model/, what lies where, and what one can do next."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from assent.config import RunConfig
from assent.outputs import write_text
from assent.statistics import Interval
from assent.train.commands import TrainingCommand, command_of, words
from assent.train.facts import Line, measured, plural, rounded
from assent.train.measured import Measured, change
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
    `metrics` are the means of the last steps; `start`, `best`, `last` and `end` are evaluations, `end` that of the
    weights in model/. `folders` are those of the final models, `checkpoints` the steps that are kept."""

    config: RunConfig
    steps: int = 0
    step: int = 0
    final: Literal["best", "last"] = "last"
    metrics: Mapping[str, float] = field(default_factory=dict)
    start: Measured | None = None
    best: Measured | None = None
    last: Measured | None = None
    end: Measured | None = None
    pace: Pace = Pace()
    data: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ("model",)
    checkpoints: tuple[int, ...] = ()

    @property
    def command(self) -> TrainingCommand:
        return command_of(self.config)

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def gain(self) -> Interval | None:
        """By how much the followed metric has risen from the start to the weights in model/."""
        if self.start is None or self.end is None or self.start.step == self.end.step:
            return None
        return change(self.start, self.end)

    def value(self, found: Measured | None) -> float | None:
        """The metric that decides the best step."""
        return None if found is None else found.metrics.get(f"eval/{self.command.followed.best}")


# ---- for people


def closing(run: Summary) -> list[Line]:
    """The lines at the end of a run."""
    return [_finished(run), *_held_out(run), *_best(run), *_folders(run), *_next(run)]


def _finished(run: Summary) -> Line:
    pace = run.pace
    done = f"{run.out} after {plural(run.steps, 'step')}"
    if pace.seconds <= 0:
        return Line("Finished", f"{done}, none of them now")
    now = "" if not pace.since else f", {run.steps - pace.since:,} of them now"
    return Line("Finished", f"{done}{now}, in {clock(pace.seconds)} ({rounded(pace.speed)} trained tokens/s)")


def _held_out(run: Summary) -> list[Line]:
    if run.end is None:
        last = ", ".join(f"{words(name)} {measured(value)}" for name, value in run.metrics.items())
        return [Line("Training", f"{last} (of the last steps; nothing was held out)")]
    first, *others = run.command.followed.held_out
    there = [name for name in others if f"eval/{name}" in run.end.metrics]
    said = [_ends(run, first) + gained(run)] if f"eval/{first}" in run.end.metrics else []
    said += [", ".join(_ends(run, name) for name in there)] if there else []
    return [Line("" if number else "Held out", text) for number, text in enumerate(said)]


def _ends(run: Summary, name: str) -> str:
    """A held-out metric at the start and for the weights in model/, where these are others."""
    assert run.end is not None
    key = f"eval/{name}"
    before = None if run.start is None or run.start.step == run.end.step else run.start.metrics.get(key)
    now = measured(run.end.metrics[key])
    return f"{words(name)} {now}" if before is None else f"{words(name)} {measured(before)} -> {now}"


def gained(run: Summary) -> str:
    """The change of the followed metric, with its interval."""
    gain = run.gain
    if gain is None or not gain.n:
        return ""
    between = "too few for an interval" if math.isnan(gain.low) else f"95 % {gain.low:+.3g} to {gain.high:+.3g}"
    return f": {gain.mean:+.3g} ({between}; the same {gain.n:,} examples)"


def _best(run: Summary) -> list[Line]:
    value = run.value(run.best)
    if run.best is None or value is None:
        return []
    followed = run.command.followed
    name = f"{'lowest' if followed.better is min else 'highest'} held-out {words(followed.best)}"
    where = f"step {run.best.step:,}" if run.best.step else "the start (step 0)"
    if run.best.step == run.step:
        found, last = f"{where} by {name} ({measured(value)}): the one in model/", run.value(run.last)
        if run.step != run.steps and last is not None:
            found += f"; the last step, {run.steps:,}, has {measured(last)}"
        return [Line("Best", found)]
    own = run.value(run.end)
    here = "" if own is None else f" ({measured(own)})"
    facts = [Line("Best", f"{where} by {name} ({measured(value)}); model/ is step {run.step:,}{here}")]
    if run.best.step in run.checkpoints:
        target = _quoted(run.out.with_name(f"{run.out.name}-best"))
        facts.append(Line("", f"assent export {_quoted(run.out)} --checkpoint best --out {target}", command=True))
    return facts


def _folders(run: Summary) -> list[Line]:
    """What lies in the run folder."""
    kind = "reward model" if run.command.scores else "model"
    lines = [
        f"{name}/: the {kind if name == 'model' else name}, step {run.step:,} ({run.final})" for name in run.folders
    ]
    kept = ", ".join(f"{step:,}" for step in run.checkpoints)
    lines += [
        f"checkpoints/: of steps {kept}, to go on from",
        f"metrics.jsonl, samples.jsonl, {FILE}: steps, answers, this summary",
    ]
    return [Line("" if number else "Wrote", line) for number, line in enumerate(lines)]


def _next(run: Summary) -> list[Line]:
    """Commands that can be copied."""
    out, config = _quoted(run.out), run.config

    def beside(name: str) -> str:
        return _quoted(run.out.with_name(f"{run.out.name}-{name}"))

    use = Line("To chat", f"assent generate {out}", command=True)
    if run.command.scores:
        given = f"--model.path {shlex.quote(config.model.path)} --data.train {shlex.quote(config.data.train)}"
        use = Line("To use it", f"assent grpo {given} --rewards.model {out} --out {beside('grpo')}", command=True)
    again = f"--config {_quoted(run.out / 'resolved.yaml')} --resume auto --train.max_steps {2 * run.steps}"
    return [
        Line("To look", f"assent report {out} --out {_quoted(run.out / 'report.html')}", command=True),
        use,
        Line("To export", f"assent export {out} --dtype bf16 --out {beside('bf16')}", command=True),
        Line("To go on", f"assent {run.command.key} {again}", command=True),
    ]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


# ---- for machines


def write_summary(run: Summary, folder: Path) -> None:
    """Writes summary.json into the run folder, whole or not at all. Raises OutputError where it cannot."""
    write_text(folder / FILE, json.dumps(as_json(run), indent=1, ensure_ascii=False, allow_nan=False))


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
        "last": _evaluation(run.last),
        "end": _evaluation(run.end),
        "gain": None if gain is None else asdict(gain),
        "metrics": dict(run.metrics),
        "data": _data(run.data),
        "pace": {**asdict(run.pace), "tokens_per_second": run.pace.speed},
        "folders": list(run.folders),
        "checkpoints": list(run.checkpoints),
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


def _evaluation(found: Measured | None) -> dict[str, Any] | None:
    return None if found is None else {"step": found.step, "metrics": dict(found.metrics)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
