"""What a run warns of: by its metrics, and by what its drift alarm has raised."""

from __future__ import annotations

import json

from assent.evaluate.pages import number
from assent.evaluate.runs import Run
from assent.foreign import printable
from assent.train.alarm import FILE


def alarms_of(run: Run) -> tuple[str, ...]:
    """Sentences: the alarm of the last evaluation, and those of alarms.jsonl, in their order. Rows that cannot be read
    are left out."""
    return tuple(filter(None, (alarm(run), *_raised(run))))


def alarm(run: Run) -> str:
    """What to say where the last evaluation has set off the alarm of `algorithms.preference.diagnostics`, else ""."""
    raised = run.metrics.get("eval/alarm/both_fall")
    if raised is None or raised.values[-1] != 1:
        return ""
    likelihood = "a likelihood term (--plus sft:0.2), dpop, " if "eval/logprob/chosen" in run.metrics else ""
    moves = [
        f"{key.rpartition('/')[2]} {number(series.values[0], 2)} → {number(series.values[-1], 2)}"
        for key, series in run.metrics.items()
        if key.startswith("eval/logprob/")
    ]
    return (
        f"Both kinds of answers are less likely than at the start ({', '.join(moves)} nats per token): probability has "
        "moved to answers that nobody has judged, whatever accuracy and margin say. Look at the sampled answers. "
        f"Remedies: {likelihood}a larger --loss.beta, a smaller --optim.lr, fewer steps."
    )


def _raised(run: Run) -> list[str]:
    try:
        lines = (run.path / FILE).read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(says := row.get("says"), str):
            found.append(printable(says[:1].upper() + says[1:]))
    return found
