"""Whether learning from feedback went well: margins, likelihoods, and what length has to do with both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from assent.algorithms.preference.step_loss import REFERENCE_POINT, SHIFT, Inputs
from assent.config import Objective
from assent.train.loop import Sums
from assent.train.measured import Evaluation

log = logging.getLogger(__name__)

QUANTILES = (5, 25, 50, 75, 95)
FALL = 0.05
"""Nats per token that both sides must have lost before that is called a fall."""

# ---- what is compared


@dataclass(frozen=True, slots=True)
class Compared:
    """What one kind of feedback compares. `sides` are its two kinds of answers in metrics, the preferred one first, and
    `split` says which responses these are. `pairs` are all comparisons (better, worse) [., 2]; None: answers are judged
    one by one. `remedy` helps this kind alone where both sides fall."""

    sides: tuple[str, str]
    split: Callable[[Inputs], tuple[Tensor, Tensor]]
    pairs: Callable[[Inputs], Tensor] | None
    remedy: str = ""


def _parted(better: Tensor) -> tuple[Tensor, Tensor]:
    return better.nonzero().flatten(), (~better).nonzero().flatten()


def _scored(score: Callable[[Inputs], Tensor]) -> Compared:
    """Of several answers to a prompt, by a score [S]: the best against the rest."""

    def split(inputs: Inputs) -> tuple[Tensor, Tensor]:
        values, prompt = score(inputs), inputs.batch.prompt
        best = torch.full((int(prompt.max()) + 1 if len(prompt) else 0,), -torch.inf, device=values.device)
        return _parted(values == best.scatter_reduce(0, prompt, values, "amax")[prompt])

    def pairs(inputs: Inputs) -> Tensor:
        values, prompt = score(inputs), inputs.batch.prompt
        return ((prompt[:, None] == prompt) & (values[:, None] > values)).nonzero()

    return Compared(("best", "rest"), split, pairs)


COMPARED: Mapping[str, Compared] = {
    "pairs": Compared(
        ("chosen", "rejected"),
        lambda inputs: (inputs.chosen, inputs.rejected),
        lambda inputs: inputs.batch.pairs,
        remedy="--plus sft:0.2, assent dpop, ",
    ),
    "binary": Compared(
        ("desirable", "undesirable"), lambda inputs: _parted(inputs.batch.per_response["label"] > 0), None
    ),
    "ranking": _scored(lambda inputs: -inputs.batch.per_response["level"]),
    "rating": _scored(lambda inputs: inputs.batch.per_response["rating"]),
}
"""By kind of feedback."""


# ---- of a micro-batch


@dataclass(frozen=True, slots=True)
class Described:
    """Metrics of a micro-batch and its single numbers: `length`, `likelihood` (nats per token) and implicit `reward` of
    each response, `margin` of each pair, `label` of yes/no data."""

    metrics: Sums
    items: Mapping[str, Tensor]
    accuracy: tuple[Tensor, Tensor]
    """Its sum and number in each tree, [P]."""


def item_metrics(inputs: Inputs, row: Objective, beta: float) -> Described:
    """How the policy reads the answers that an objective compares."""
    policy, length = inputs.policy.detach(), inputs.length
    reward = beta * implicit_rewards(inputs, row)
    likelihood = policy / length
    items = {"length": length, "likelihood": likelihood, "reward": reward}
    compared = COMPARED[row.feedback]
    first, second = compared.split(inputs)
    metrics: dict[str, tuple[Tensor | float, float]] = {}
    for name, index in zip(compared.sides, (first, second), strict=True):
        metrics[f"reward/{name}"] = (reward[index].sum(), len(index))
        metrics[f"logprob/{name}"] = (policy[index].sum(), float(length[index].sum()))
        metrics[f"logprob_sum/{name}"] = (policy[index].sum(), len(index))
    if compared.pairs is None:
        threshold = _threshold(inputs, beta)
        right = torch.cat([reward[first] > threshold, reward[second] < threshold]).float()
        metrics["accuracy"] = (right.sum(), len(reward))
        accuracy = inputs.batch.by_tree(right, torch.cat([first, second]))
        return Described(metrics, items | {"label": inputs.batch.per_response["label"]}, accuracy)
    pairs = compared.pairs(inputs)
    gap = reward[pairs[:, 0]] - reward[pairs[:, 1]]
    order = likelihood[pairs[:, 0]] - likelihood[pairs[:, 1]]
    right, number = _above(gap), len(pairs)
    metrics["accuracy"] = (right.sum(), number)
    metrics["margin"] = (gap.sum(), number)
    metrics["agreement"] = (_above(gap * order).sum(), number)
    return Described(metrics, items | {"margin": gap}, inputs.batch.by_tree(right, pairs[:, 0]))


def _above(values: Tensor) -> Tensor:
    """Which are above 0; a 0, as at the start of every comparison with oneself, counts half."""
    return (values.sign() + 1) / 2


def _threshold(inputs: Inputs, beta: float) -> Tensor | float:
    """Where an objective for yes/no labels draws the line between the two kinds, in rewards."""
    fields = inputs.batch.per_response
    if REFERENCE_POINT in fields:
        return beta * fields[REFERENCE_POINT][:1]
    return fields[SHIFT][:1] if SHIFT in fields else 0.0


def implicit_rewards(inputs: Inputs, row: Objective) -> Tensor:
    """The reward of each response by the objective's own measure, without its factor beta, [S]."""
    reward = inputs.policy.detach()
    if row.needs_reference:
        reward = reward - inputs.reference
    return reward / inputs.length if row.per_token else reward


# ---- of an evaluation


def evaluation_summary(items: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of all held-out answers: quantiles of the margin, Spearman correlations of length with the likelihood per token
    and with the implicit reward, and for yes/no data the area under the ROC curve of the reward. Correlations of
    something constant are left out."""
    found: dict[str, float] = {}
    if "margin" in items and len(items["margin"]):
        for percent, value in zip(QUANTILES, np.percentile(items["margin"], QUANTILES), strict=True):
            found[f"margin_p{percent}"] = float(value)
    for name in ("likelihood", "reward"):
        if np.ptp(items["length"]) > 0 and np.ptp(items[name]) > 0:
            found[f"spearman/length_{name}"] = float(spearmanr(items["length"], items[name]).statistic)
    if "label" in items:
        yes = items["label"] > 0
        pairs = int(yes.sum()) * int((~yes).sum())
        if pairs:
            ranks = rankdata(items["reward"])[yes].sum()
            found["auc"] = float((ranks - yes.sum() * (yes.sum() + 1) / 2) / pairs)
    return found


class Watch:
    """The alarm for the commonest failure: both kinds of answers become less likely than at the start, so the policy
    moves its probability to answers that nobody has judged."""

    def __init__(self) -> None:
        self.start: list[float] = []
        self.warned = False

    def check(self, evaluation: Evaluation, feedback: str) -> Evaluation:
        """The evaluation with "eval/alarm/both_fall" (1 where both have fallen by more than `FALL` nats per token);
        unchanged where the held-out data have one kind only."""
        compared = COMPARED[feedback]
        sides = compared.sides
        if not all(f"eval/logprob/{name}" in evaluation.metrics for name in sides):
            return evaluation
        now = [evaluation.metrics[f"eval/logprob/{name}"] for name in sides]
        if not self.start:
            self.start = now
        fallen = all(value < before - FALL for value, before in zip(now, self.start, strict=True))
        if fallen and not self.warned:
            self.warned = True
            moves = ", ".join(f"{s} {b:.2f} -> {n:.2f}" for s, b, n in zip(sides, self.start, now, strict=True))
            log.warning(
                f"Both kinds of answers have become less likely ({moves} nats per token): the policy moves to answers "
                f"that nobody has judged. Remedies: {compared.remedy}a larger --loss.beta, fewer steps."
            )
        return replace(evaluation, metrics={**evaluation.metrics, "eval/alarm/both_fall": float(fallen)})

    def state_dict(self) -> dict[str, Any]:
        return {"start": list(self.start), "warned": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start, self.warned = list(state["start"]), bool(state["warned"])
