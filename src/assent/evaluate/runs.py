"""Reading run folders for the report: what is there is read, what is missing or broken is named, nothing is fatal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assent.config import METHODS, OBJECTIVES, REWARD_MODELS
from assent.config.objectives import CUSTOM
from assent.errors import RunFolderError
from assent.evaluate.results import EVALUATION, Track, TrackPoint
from assent.foreign import printable, without_keys
from assent.statistics import Interval

FILES = ("metrics.jsonl", "samples.jsonl", "resolved.yaml", "environment.json", "data.json")
LOOP = "loop.jsonl"
"""The state of a loop (`assent.loops.loop`), in its folder."""
NAMES = {
    "sft": "SFT",
    **{key: row.name for key, row in REWARD_MODELS.items()},
    "reward": "Reward",
    CUSTOM: "Custom",
    **{key: row.name for key, row in OBJECTIVES.items()},
    **{key: row.name for key, row in METHODS.items()},
}
"""Command -> what it is called in the report."""


@dataclass(frozen=True)
class Series:
    """One metric over training: steps [n] rising, values [n]; NaN where the logged value was not a finite number."""

    steps: np.ndarray
    values: np.ndarray


class Columns:
    """Rows of metrics.jsonl, one by one, as series. A resumed run logs some steps twice: the later row holds."""

    def __init__(self) -> None:
        self.newest = -1
        """The last step of all rows."""
        self.nonfinite = self.repeated = 0
        self._columns: dict[str, dict[int, float]] = {}

    def take(self, row: dict) -> None:
        """One row, an object with a `step`."""
        step = row["step"]
        self.repeated += step < self.newest
        self.newest = max(self.newest, step)
        for key, value in row.items():
            number = _number(value)
            if key == "step" or number is None:
                continue
            self.nonfinite += not math.isfinite(number)
            self._columns.setdefault(key, {})[step] = number if math.isfinite(number) else math.nan

    def series(self) -> dict[str, Series]:
        """All metrics so far."""
        return {
            key: Series(np.array(sorted(column)), np.array([column[step] for step in sorted(column)], dtype=np.float64))
            for key, column in self._columns.items()
        }


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    path: Path
    metrics: dict[str, Series] = field(default_factory=dict)
    samples: tuple[dict, ...] = ()
    config: str | None = None
    environment: object = None
    data: object = None
    has_model: bool = False
    problems: tuple[str, ...] = ()
    """What is missing or broken, in plain words."""

    @property
    def kind(self) -> str:
        """The algorithm's name, of the command in environment.json ("Robust DPO" of "robust-dpo"); empty where
        unknown."""
        found = self.environment if isinstance(self.environment, dict) else {}
        if isinstance(earlier := found.get("configuration"), str):  # of an earlier version
            return earlier.removesuffix("Config")
        key = found.get("command")
        return NAMES.get(key, key) if isinstance(key, str) else ""

    @property
    def command_line(self) -> str:
        """What started the run, without keys; "" where nobody wrote it down."""
        found = self.environment.get("command_line") if isinstance(self.environment, dict) else None
        return without_keys(printable(found)) if isinstance(found, str) else ""

    @property
    def last_step(self) -> int | None:
        """The last logged step."""
        return max((int(series.steps[-1]) for series in self.metrics.values()), default=None)


def find_runs(folder: Path) -> list[Path]:
    """`folder` itself when it is a run folder, else the run folders directly in it; those in its rounds where it is a
    loop's. Raises `RunFolderError`."""
    if not folder.is_dir():
        raise RunFolderError(f"Run folder {folder} does not exist. Give the --out folder of a training command.")
    if _is_run(folder):
        return [folder]
    if (folder / LOOP).is_file():
        rounds = sorted((child for child in folder.iterdir() if child.is_dir()), key=_by_number)
        return [run for place in rounds for run in sorted(place.iterdir()) if run.is_dir() and _is_run(run)]
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and _is_run(child))
    if not inside and not (folder / EVALUATION).is_file():
        raise RunFolderError(
            f"{folder} is not a run folder and holds none: expected one of {', '.join(FILES)} in it or one level below."
        )
    return inside


def _by_number(folder: Path) -> tuple[int, str]:
    """Rounds of a loop in their order."""
    found = re.fullmatch(r"round-(\d+)", folder.name)
    return (int(found[1]) if found else -1, folder.name)


def read_run(path: Path) -> Run:
    """Read one run folder; every missing or broken file becomes a line of `problems`."""
    problems: list[str] = []
    metrics = _series(list(_json_lines(path / "metrics.jsonl", problems)), problems)
    samples = tuple(_json_lines(path / "samples.jsonl", problems))
    config = _text(path / "resolved.yaml", problems)
    has_model = (path / "model").is_dir()
    if not has_model:
        problems.append("model/ is missing: the run has not finished")
    return Run(
        name=printable(path.resolve().name),
        path=path,
        metrics=metrics,
        samples=samples,
        config=config,
        environment=_json(path / "environment.json", problems),
        data=_json(path / "data.json", problems),
        has_model=has_model,
        problems=tuple(problems),
    )


def track_of(run: Run) -> Track | None:
    """Gold against proxy from the metrics `eval/gold` and `eval/reward`, with `eval/kl` and the bounds `eval/gold_low`,
    `eval/gold_high`, `eval/reward_low`, `eval/reward_high` where logged. None without two steps that have both."""
    columns = {
        key: dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        for key, series in run.metrics.items()
        if key.startswith("eval/")
    }
    steps = sorted(columns.get("eval/gold", {}).keys() & columns.get("eval/reward", {}).keys())
    if len(steps) < 2:
        return None

    def interval(key: str, step: int) -> Interval:
        mean, low, high = (columns.get(name, {}).get(step, math.nan) for name in (key, f"{key}_low", f"{key}_high"))
        return Interval(mean, low, high, n=0)

    points = (
        TrackPoint(int(s), columns.get("eval/kl", {}).get(s), interval("eval/gold", s), interval("eval/reward", s))
        for s in steps
    )
    return Track(run.name, tuple(points))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _text(path: Path, problems: list[str]) -> str | None:
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return None
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return None


def _json(path: Path, problems: list[str]) -> object:
    text = _text(path, problems)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is not complete JSON; left out")
        return None


def _json_lines(path: Path, problems: list[str]) -> Iterator[dict]:
    text = _text(path, problems)
    lines = [] if text is None else text.split("\n")
    broken = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and is_step(row.get("step")):
            yield row
        # A run that was killed leaves its last line without the line break.
        elif number == len(lines):
            problems.append(f"{path.name}: the last line is broken off (the run was stopped while writing); left out")
        else:
            broken.append(number)
    if broken:
        first = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        problems.append(f"{path.name}: {len(broken)} lines are not JSON objects with a step (line {first}); left out")


def is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _series(rows: list[dict], problems: list[str]) -> dict[str, Series]:
    """Columns of the numeric entries."""
    columns = Columns()
    for row in rows:
        columns.take(row)
    if columns.nonfinite:
        problems.append(f"metrics.jsonl: {columns.nonfinite} values are not finite numbers; shown as gaps")
    if columns.repeated:
        problems.append(
            f"metrics.jsonl: {columns.repeated} rows repeat earlier steps (the run was resumed); the later ones hold"
        )
    return columns.series()


def _number(value: object) -> float | None:
    """The number that `assent.train.log` wrote; it writes "nan", "inf" and "-inf" as text. None for anything else."""
    if value is None or value in ("nan", "inf", "-inf"):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
