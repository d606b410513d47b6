"""Results of lm-evaluation-harness (`--output_path`), read as numbers of a policy: its own command does the running."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from assent.measures.estimates import Estimate, undefined
from assent.measures.shapes import Measured

HARNESS = "harness"
NO_NUMBER = "the harness has no number"
NO_METRIC = ("alias", "name", "sample_len", "sample_count", "samples")
"""What stands beside the metrics of a task, by version."""
MADE = {"versions": "version", "n-shot": "examples in its prompt", "n-samples": "samples", "task_hashes": "digest"}
"""What decides whether two results of a task can be compared -> in words."""
_NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class HarnessResults:
    """Numbers by harness/TASK.METRIC, and what each task was made with, as far as the file says it."""

    model: str
    numbers: Mapping[str, Measured]
    made: Mapping[str, Mapping[str, object]]


def read_harness(raw: Mapping[str, Any]) -> HarnessResults:
    """Its tasks and groups as harness/TASK.METRIC (and .FILTER where that is not "none"), each with the normal interval
    of its standard error where it has one. Raises TypeError, KeyError and ValueError for JSON of another kind."""
    results, groups = raw["results"], raw.get("groups") or {}
    if not isinstance(results, Mapping) or not results:
        raise TypeError("no results")
    samples = {task: _samples(raw, task, row) for task, row in {**groups, **results}.items()}
    found = {key: number for task, row in {**groups, **results}.items() for key, number in _task(task, row, samples)}
    if not found:
        raise ValueError("it has no numbers")
    made: dict[str, dict[str, object]] = {task: {"n-samples": count} for task, count in samples.items() if count}
    for name in MADE:
        for task, value in (raw.get(name) or {}).items():
            if name != "n-samples" and task in samples and value is not None:
                made.setdefault(task, {})[name] = value
    return HarnessResults(str(raw.get("model_name") or ""), found, made)


def _samples(raw: Mapping[str, Any], task: str, row: Mapping[str, Any]) -> int:
    known = (raw.get("n-samples") or {}).get(task) or {}
    return int(known.get("effective") or row.get("sample_len") or known.get("original") or 0)


def _task(task: str, row: Mapping[str, Any], samples: Mapping[str, int]) -> Iterator[tuple[str, Measured]]:
    for name, value in row.items():
        metric, _, filtered = name.partition(",")
        if name in NO_METRIC or metric == "bypass" or metric.endswith("_stderr"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        key = f"{HARNESS}/{task}.{metric}" + (f".{filtered}" if filtered not in ("", "none") else "")
        if not math.isfinite(value):
            yield key, Measured(undefined(NO_NUMBER, samples[task]), {NO_NUMBER: 1})
            continue
        error = row.get(f"{metric}_stderr,{filtered}" if filtered else f"{metric}_stderr")  # or "N/A"
        low = high = None
        if isinstance(error, int | float) and math.isfinite(error):
            low, high = value - _NORMAL * error, value + _NORMAL * error
        yield key, Measured(Estimate(value, low, high, samples[task]))
