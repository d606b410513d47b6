"""Results of lm-evaluation-harness (`--output_path`), read as numbers of a policy: its own command does the running."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assent.errors import DataError
from assent.foreign import brief
from assent.measures.estimates import Estimate
from assent.measures.shapes import Measured

HARNESS = "harness"
_NORMAL = 1.959964


def read_harness(path: str) -> dict[str, Measured]:
    """Its numbers as harness/TASK.METRIC (and .FILTER where that is not "none"), each with the normal interval of its
    standard error where it has one. Raises DataError for a file of another kind."""
    try:
        raw = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        results, samples = raw["results"], raw.get("n-samples", {})
        if not isinstance(results, Mapping) or not results:
            raise TypeError("no results")
        found = {
            key: number for task, row in results.items() for key, number in _of_task(task, row, samples.get(task, {}))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"--harness {path}: not a result file of lm-evaluation-harness ({brief(error)}). Give the results_*.json "
            "that lm-eval run --output_path writes."
        ) from None
    if not found:
        raise DataError(f"--harness {path}: it has no numbers.")
    return found


def _of_task(task: str, row: Mapping[str, Any], samples: Mapping[str, Any]) -> list[tuple[str, Measured]]:
    found = []
    n = int(samples.get("effective", samples.get("original", 0)) or 0)
    for name, value in row.items():
        metric, _, filtered = name.partition(",")
        if metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}_stderr,{filtered}" if filtered else f"{metric}_stderr")
        low = high = None
        if isinstance(error, int | float) and math.isfinite(error):
            low, high = value - _NORMAL * error, value + _NORMAL * error
        key = f"{HARNESS}/{task}.{metric}" + (f".{filtered}" if filtered not in ("", "none") else "")
        failed = {"the harness has no number": 1} if not math.isfinite(value) else {}
        number = Estimate(None, n=n, problem="the harness has no number") if failed else Estimate(value, low, high, n)
        found.append((key, Measured(number, failed)))
    return found
