"""Results that other tools have written, for the table of an evaluation: of lm-evaluation-harness and of RewardBench
(whose files `assent trust` writes, too)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assent.errors import ConfigError, DataError
from assent.evaluate.harness import HARNESS, MADE, HarnessResults, read_harness
from assent.evaluate.policies import PolicySource, split_name
from assent.evaluate.results import Described
from assent.foreign import brief
from assent.measures import rewardbench
from assent.measures.estimates import Estimate, undefined
from assent.measures.rewardbench import ROWS, ROWS_2, SECTIONS, TIES, Overall
from assent.measures.shapes import Measured
from assent.statistics import Interval, proportion_interval

log = logging.getLogger(__name__)

FLAG = "--results"
EXPECTED = (
    "Expected results_*.json (or the folder) that lm-eval run --output_path writes, or results/MODEL.json or "
    "eval-set/MODEL.json of RewardBench"
)
DESCRIBED = {
    HARNESS: Described("As lm-evaluation-harness has it, TASK.METRIC", "", None),
    "budget": Described("What training took: optimiser steps, tokens, seconds of steps", "", None),
    "rewardbench": Described("RewardBench (arXiv 2403.13787), from a file of its results", "share", "higher"),
    "rewardbench-2": Described("RewardBench 2 (arXiv 2506.01937), from a file of its results", "share", "higher"),
}
"""What the numbers are, by the part of their names before the slash."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """By policy its numbers, those of sources of rewards as source/benchmark.number, and sentences about all."""

    policies: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    sources: Mapping[str, Measured] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def plus(self, other: Elsewhere) -> Elsewhere:
        """With what is in another."""
        names = dict.fromkeys((*self.policies, *other.policies))
        both = {name: {**self.policies.get(name, {}), **other.policies.get(name, {})} for name in names}
        return Elsewhere(both, {**self.sources, **other.sources}, (*self.notes, *other.notes))

    def described(self) -> dict[str, Described]:
        """What the measures are that some policy has."""
        names = {key.partition("/")[0] for numbers in self.policies.values() for key in numbers}
        return {name: DESCRIBED[name] for name in DESCRIBED if name in names}


NOTHING = Elsewhere()


def read_results(words: Sequence[str], policies: Sequence[PolicySource], sources: Sequence[str]) -> Elsewhere:
    """The files NAME=FILE by what they are of: a policy, or for RewardBench also a source of rewards. Raises
    ConfigError for a name that is neither, DataError for a file that is none of these, and for results of one task that
    were not made alike."""
    names = {policy.name for policy in policies}
    found: dict[str, dict[str, Measured]] = {}
    probes: dict[str, Measured] = {}
    harness: dict[str, HarnessResults] = {}
    for word in words:
        name, file = split_name(word)
        if name not in names and name not in sources:
            there = ", ".join((*sorted(names), *sources))
            raise ConfigError(f"{FLAG} {word}: expected NAME=FILE with the name of a policy or of rewards ({there}).")
        result = _read(file)
        if isinstance(result, HarnessResults):
            if name not in names:
                raise ConfigError(
                    f"{FLAG} {word}: results of lm-evaluation-harness are a policy's, and {name} is none."
                )
            harness[name] = result
        numbers = result.numbers if isinstance(result, HarnessResults) else result
        if name in names:
            found[name] = found.get(name, {}) | dict(numbers)
        else:
            probes |= {f"{name}/{key.replace('/', '.')}": number for key, number in numbers.items()}
    _check_alike(harness)
    return Elsewhere(found, probes)


def _check_alike(results: Mapping[str, HarnessResults]) -> None:
    """Numbers of one task stand in one row: they must be of the same version, prompts and samples of it."""
    first: dict[tuple[str, str], tuple[str, object]] = {}
    for policy, result in results.items():
        for task, made in result.made.items():
            for what, value in made.items():
                other, known = first.setdefault((task, what), (policy, value))
                if known != value:
                    raise DataError(
                        f"{FLAG}: {other} and {policy} were not asked the same of {task}: its {MADE[what]} is {known} "
                        f"and {value}. Run lm-eval on both alike."
                    )


def _read(file: str) -> HarnessResults | dict[str, Measured]:
    path = Path(file).expanduser()
    if path.is_dir():
        return _folder(path)
    raw = _json(path)
    try:
        if isinstance(raw.get("results"), Mapping):
            return read_harness(raw)
        numbers = read_rewardbench(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{FLAG} {file}: cannot be used ({brief(error)}). {EXPECTED}.") from None
    if not numbers:
        raise DataError(f"{FLAG} {file}: it has neither results of tasks nor subsets of RewardBench. {EXPECTED}.")
    return numbers


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{FLAG} {path}: cannot be read as JSON ({brief(error)}). {EXPECTED}.") from None
    if not isinstance(raw, dict):
        raise DataError(f"{FLAG} {path}: holds no object. {EXPECTED}.")
    return raw


def _folder(folder: Path) -> HarnessResults:
    """All tasks of the results in a folder of lm-eval; of a task that ran twice the newest, by the date in the name."""
    files = sorted(folder.rglob("results*.json"), key=lambda path: path.name)
    found = []
    for path in files:
        result = _read(str(path))
        if isinstance(result, HarnessResults):
            found.append((path, result))
    if not found:
        raise DataError(f"{FLAG} {folder}: no results of lm-eval are in it. {EXPECTED}.")
    if len(models := {result.model or path.parent.name for path, result in found}) > 1:
        raise DataError(f"{FLAG} {folder}: it has results of several models ({', '.join(sorted(models))}). Give one's.")
    numbers: dict[str, Measured] = {}
    made: dict[str, Mapping[str, object]] = {}
    for path, result in found:
        if again := sorted(numbers.keys() & result.numbers.keys()):
            log.info(f"{FLAG} {folder}: {len(again)} numbers are there twice; those of {path.name} count.")
        numbers |= result.numbers
        made |= result.made
    return HarnessResults(found[-1][1].model, numbers, made)


# ---- RewardBench


def read_rewardbench(raw: Mapping[str, Any]) -> dict[str, Measured]:
    """Its overall score and sections from the numbers of its subsets, or of its sections: results/MODEL.json and
    eval-set/MODEL.json of RewardBench 1, eval-set/MODEL.json of 2, as they or `assent trust` write them. Nothing for
    JSON without any of these. Raises ValueError for what is no share.

    A subset has Wilson's interval where its number is a share of the benchmark's rows of it; else it has none."""
    given = raw["extra_results"] if isinstance(raw.get("extra_results"), Mapping) else raw
    if any(name in given for name in ROWS):
        subsets = {name: _subset(name, given[name], ROWS[name]) for name in ROWS if name in given}
        rows = raw.get("num_prompts")
        if rows is not None and rows != sum(ROWS[name] for name in subsets):
            subsets = {name: _plain(value) for name, value in subsets.items()}
        return _numbers("rewardbench", rewardbench.rewardbench(subsets))
    if "Reasoning" in given or "Chat Hard" in given:
        return _sections({name: _subset(name, given[name], 0) for name in SECTIONS if name in given})
    if any(name in given for name in ROWS_2):
        subsets = {name: _subset(name, given[name], ROWS_2[name]) for name in ROWS_2 if name in given}
        return _numbers("rewardbench-2", rewardbench.rewardbench_2(subsets))
    return {}


def _subset(name: str, value: object, rows: int) -> Interval:
    if value is None:
        return Interval(math.nan, math.nan, math.nan, 0)
    most = 1.01 if name == TIES else 1  # the score of the ties has a hundredth beyond
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"'{name}' must be a share from 0 to 1, got {value!r}")
    right = round(value * rows)
    if rows and name != TIES and abs(right - value * rows) < 1e-6 * rows:
        return proportion_interval(right, rows)
    return Interval(float(value), math.nan, math.nan, rows)


def _plain(value: Interval) -> Interval:
    """Without an interval: it is of fewer rows than the benchmark has, and nobody says how many."""
    return Interval(value.mean, math.nan, math.nan, 0)


def _numbers(name: str, overall: Overall) -> dict[str, Measured]:
    found = {f"{name}/score": _measured(overall.score, overall.missing)}
    for section, value in overall.sections.items():
        found[f"{name}/{_key(section)}"] = _measured(value.score, value.missing)
    return found


def _sections(there: Mapping[str, Interval]) -> dict[str, Measured]:
    missing = tuple(name for name in SECTIONS if name not in there or math.isnan(there[name].mean))
    score = None if missing else rewardbench.weighted_mean(list(there.values()), [1.0] * len(there))
    numbers = {f"rewardbench/{_key(name)}": _measured(value, ()) for name, value in there.items()}
    return {"rewardbench/score": _measured(score, missing)} | numbers


def _key(section: str) -> str:
    return section.lower().replace(" ", "-")


def _measured(value: Interval | None, missing: Sequence[str]) -> Measured:
    """A number of which parts are missing is none: it could not be compared."""
    failures = {f"{name} is not in the file": 1 for name in missing}
    if value is None or missing or math.isnan(value.mean):
        return Measured(undefined("subsets are missing"), failures)
    low, high = (None if math.isnan(bound) else bound for bound in (value.low, value.high))
    return Measured(Estimate(value.mean, low, high, value.n))
