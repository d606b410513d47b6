"""A loop's folder for the report and the live view: what its stages said of themselves, round by round. Nothing here
knows what a loop does: a stage `round-3/chosen.jsonl` with a number `pairs` is the row "chosen: pairs" in the third
column."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from assent.evaluate.results import EVALUATION
from assent.evaluate.runs import LOOP, Run, Series
from assent.foreign import printable

OPTIONS, TIMES = "loop.yaml", "times.jsonl"
"""What `assent.loops.loop` writes beside its state."""
ROUND = re.compile(r"round-(\d+)/(.+)")
START, EVAL = "start/", "eval"
BOUNDS = ("_low", "_high")
FIRST = ("gold", "reward", "first", "win_rate", "kl", "length", "unfinished")
"""Numbers of evaluations that are shown before the others."""


@dataclass(frozen=True)
class Stage:
    """A finished stage: its round (0 for the start, None outside of rounds), its name there, and what it said."""

    round: int | None
    name: str
    numbers: Mapping[str, float | None]
    path: str
    seconds: float | None = None


@dataclass(frozen=True)
class Row:
    """A number by round: of a stage, "" for evaluations."""

    stage: str
    name: str
    values: tuple[float | None, ...]
    bounds: tuple[tuple[float, float] | None, ...] = ()


@dataclass(frozen=True)
class Rounds:
    """A loop. `asked` is the number of its rounds, where its options say it."""

    name: str
    path: Path
    command: str = ""
    asked: int | None = None
    stages: tuple[Stage, ...] = ()
    problems: tuple[str, ...] = field(default=())

    @property
    def numbers(self) -> list[int]:
        """Its rounds so far; 0 is the start."""
        return sorted({stage.round for stage in self.stages if stage.round is not None})

    @property
    def evaluations(self) -> list[Path]:
        """The folders of its evaluations, the newest first."""
        found = [self.path / stage.path for stage in self.stages if (self.path / stage.path / EVALUATION).is_file()]
        return found[::-1]

    def rows(self) -> list[Row]:
        """Every number of every stage of a round, those of evaluations first."""
        rounds = self.numbers
        known: dict[tuple[str, str], dict[int, float | None]] = {}
        for stage in self.stages:
            if stage.round is not None:
                for name, value in stage.numbers.items():
                    known.setdefault((stage.name, name), {})[stage.round] = value
        made = []
        for (stage_name, name), values in known.items():
            if name.endswith(BOUNDS) and (stage_name, _without_bound(name)) in known:
                continue
            low, high = (known.get((stage_name, name + end), {}) for end in BOUNDS)
            made.append(
                Row(
                    "" if stage_name == EVAL else stage_name,
                    name,
                    tuple(values.get(number) for number in rounds),
                    tuple(_pair(low.get(number), high.get(number)) for number in rounds),
                )
            )
        order = {name: place for place, name in enumerate(FIRST)}
        return sorted(made, key=lambda row: (bool(row.stage), order.get(row.name, len(FIRST)) if not row.stage else 0))

    def as_run(self) -> Run:
        """The same as metrics over rounds, for figures."""
        columns: dict[str, list[tuple[int, float]]] = {}
        for stage in self.stages:
            if stage.round is not None:
                prefix = "eval/" if stage.name == EVAL else f"{stage.name}/"
                for name, value in stage.numbers.items():
                    columns.setdefault(prefix + name, []).append((stage.round, math.nan if value is None else value))
        metrics = {
            key: Series(np.array([step for step, _ in own]), np.array([value for _, value in own], np.float64))
            for key, own in columns.items()
        }
        return Run(self.name, self.path, metrics)


def is_loop(folder: Path) -> bool:
    """Whether a folder is that of a loop."""
    return (folder / LOOP).is_file()


def read_rounds(folder: Path) -> Rounds:
    """What there is to be read of a loop; what is broken is named."""
    problems: list[str] = []
    options = _options(folder / OPTIONS)
    seconds = {row.get("stage"): row.get("seconds") for row in _lines(folder / TIMES, problems)}
    stages = []
    for row in _lines(folder / LOOP, problems):
        path, numbers = row.get("stage"), row.get("numbers")
        if not isinstance(path, str) or not isinstance(numbers, dict):
            problems.append(f"{LOOP}: a line is no finished stage; left out")
            continue
        place, name = _place(path)
        known = {printable(key): _number(value) for key, value in numbers.items()}
        took = seconds.get(path)
        stages.append(Stage(place, name, known, path, took if isinstance(took, int | float) else None))
    asked = options.get("rounds")
    return Rounds(
        name=printable(folder.resolve().name),
        path=folder,
        command=printable(str(options.get("command", ""))),
        asked=asked if isinstance(asked, int) else None,
        stages=tuple(stages),
        problems=tuple(problems),
    )


def _place(path: str) -> tuple[int | None, str]:
    """The round and the name of a stage."""
    if (found := ROUND.fullmatch(path)) is not None:
        return int(found[1]), _plain(found[2])
    return (0, _plain(path.removeprefix(START))) if path.startswith(START) else (None, _plain(path))


def _plain(name: str) -> str:
    path = PurePosixPath(name)
    return printable(str(path.with_suffix("") if path.suffix in (".jsonl", ".json") else path))


def _without_bound(name: str) -> str:
    return next(name.removesuffix(end) for end in BOUNDS if name.endswith(end))


def _pair(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _options(file: Path) -> Mapping[str, object]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(file: Path, problems: list[str]) -> Iterator[dict[str, object]]:
    """Objects of a file of JSON lines; one that a killed loop has left half is none."""
    try:
        text = file.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{file.name} cannot be read: {error.strerror}")
        return
    broken = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield row
        else:
            broken += 1
    if broken:
        problems.append(f"{file.name}: {broken} lines are not whole; left out")
