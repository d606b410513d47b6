"""What compared methods were given, and what they took: which of it is equal, and the steps, tokens and seconds that
cannot all be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from assent.config import OnlineConfig, PolicyRunConfig
from assent.evaluate.elsewhere import Elsewhere
from assent.measures.estimates import Estimate
from assent.measures.shapes import Measured
from assent.train.log import read_metrics

BUDGET = "budget"
NOT_EQUAL = "tokens and seconds are not, nor can they be: the rows budget/... have them"


def budgets(runs: Mapping[str, PolicyRunConfig]) -> Elsewhere:
    """Of finished runs: by name what each took, and a sentence on what was the same for all."""
    return Elsewhere({name: spent(run) for name, run in runs.items()}, notes=(said(runs),))


def spent(config: PolicyRunConfig) -> dict[str, Measured]:
    """The optimiser steps of a run, its trained and sampled tokens, and the seconds of its steps (sampling and scoring
    in them, evaluations not); what metrics.jsonl does not have of every step (--train.log_every) is left out."""
    rows = [row for row in read_metrics(Path(config.out) / "metrics.jsonl") if "loss" in row]
    last = {int(row["step"]): row for row in rows}  # of a step that was repeated the later row
    numbers = {"steps": float(max(last, default=0))}
    if last and len(last) == numbers["steps"]:
        numbers["trained-tokens"] = sum(row["tokens"] for row in last.values())
        if isinstance(config, OnlineConfig):
            answers = config.train.batch_size * config.rollout.responses
            numbers["sampled-tokens"] = sum(answers * row.get("length", 0.0) for row in last.values())
        numbers["seconds"] = sum(row["time/step"] for row in last.values())
    return {f"{BUDGET}/{name}": Measured(Estimate(value)) for name, value in numbers.items()}


def said(runs: Mapping[str, PolicyRunConfig]) -> str:
    """A sentence on what all methods were given alike, and what not."""
    values: dict[str, Mapping[str, object]] = {
        "start": {name: run.model.path for name, run in runs.items()},
        "data": {name: run.data.train for name, run in runs.items()},
    }
    if any(run.train.max_steps is not None for run in runs.values()):
        values["optimiser steps"] = {name: run.train.max_steps or "all" for name, run in runs.items()}
    if any(run.train.max_steps is None for run in runs.values()):
        values["passes over the prompts"] = {
            name: run.train.epochs if run.train.max_steps is None else "-" for name, run in runs.items()
        }
    values["prompts for one step"] = {name: _prompts(run) for name, run in runs.items()}
    parts = [f"Equal for all methods: {', '.join(_same(values)) or 'nothing'}"]
    parts += [f"{what}: {', '.join(_each(given))}" for what, given in values.items() if len(set(given.values())) > 1]
    return "; ".join([*parts, NOT_EQUAL])


def _prompts(config: PolicyRunConfig) -> float:
    """A rollout is trained on for several steps."""
    size: float = config.train.batch_size
    if isinstance(config, OnlineConfig):
        size /= config.rollout.epochs * config.rollout.minibatches
    return size


def _same(values: Mapping[str, Mapping[str, object]]) -> list[str]:
    """What is one for all, with its value."""
    return [f"{what} ({_shown(next(iter(v.values())))})" for what, v in values.items() if len(set(v.values())) == 1]


def _each(given: Mapping[str, object]) -> list[str]:
    return [f"{name} {_shown(value)}" for name, value in given.items()]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
