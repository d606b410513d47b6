"""What the metrics of a run warn of."""

from __future__ import annotations

from assent.evaluate.runs import Run


def alarms_of(run: Run) -> tuple[str, ...]:
    """What is to be said of a run, a sentence or two each."""
    return tuple(filter(None, (alarm(run),)))


def alarm(run: Run) -> str:
    """What to say where the last evaluation has set off the alarm of `algorithms.preference.diagnostics`, else ""."""
    raised = run.metrics.get("eval/alarm/both_fall")
    if raised is None or raised.values[-1] != 1:
        return ""
    likelihood = "a likelihood term (--plus sft:0.2), dpop, " if "eval/logprob/chosen" in run.metrics else ""
    moves = [
        f"{key.rpartition('/')[2]} {_number(series.values[0])} → {_number(series.values[-1])}"
        for key, series in run.metrics.items()
        if key.startswith("eval/logprob/")
    ]
    return (
        f"Both kinds of answers are less likely than at the start ({', '.join(moves)} nats per token): probability has "
        "moved to answers that nobody has judged, whatever accuracy and margin say. Look at the sampled answers. "
        f"Remedies: {likelihood}a larger --loss.beta, a smaller --optim.lr, fewer steps."
    )


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
