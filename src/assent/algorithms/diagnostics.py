"""Whether learning from feedback went well: margins, likelihoods, and what length has to do with both."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from assent.algorithms.features import Features
from assent.config import Objective
from assent.train.loop import Sums
from assent.train.measured import Evaluation

log = logging.getLogger(__name__)

SIDES = {"pairs": ("chosen", "rejected"), "binary": ("desirable", "undesirable"), "ranking": ("best", "rest")}
SIDES["rating"] = SIDES["ranking"]
"""What the two kinds of answers are called in metrics, the preferred one first."""

QUANTILES = (5, 25, 50, 75, 95)
FALL = 0.05
"""Nats per token that both sides must have lost before that is called a fall."""


@dataclass(frozen=True, slots=True)
class Described:
    metrics: Sums
    items: Mapping[str, Tensor]
    accuracy: tuple[Tensor, Tensor]
    """Its sum and number in each tree, [P]."""


def describe(features: Features, row: Objective, beta: float) -> Described:
    """Metrics of a micro-batch and its single numbers: `length`, `likelihood` (nats per token) and implicit `reward` of
    each response, `margin` of each pair, `label` of yes/no data."""
    policy, length = features.policy.detach(), features.length
    reward = beta * implicit_rewards(features, row)
    likelihood = policy / length
    items = {"length": length, "likelihood": likelihood, "reward": reward}
    if row.feedback == "pairs":
        pairs = features.batch.pairs
        first, second = pairs[:, 0], pairs[:, 1]
    else:
        better = _better(features, row)
        first, second = better.nonzero().flatten(), (~better).nonzero().flatten()
        pairs = _ordered(features) if row.feedback != "binary" else first.new_zeros(0, 2)
    gap = reward[pairs[:, 0]] - reward[pairs[:, 1]]
    order = likelihood[pairs[:, 0]] - likelihood[pairs[:, 1]]
    number = len(pairs)
    metrics: dict[str, tuple[Tensor | float, float]] = {}
    for name, index in zip(SIDES[row.feedback], (first, second), strict=True):
        metrics[f"reward/{name}"] = (reward[index].sum(), len(index))
        metrics[f"logprob/{name}"] = (policy[index].sum(), float(length[index].sum()))
        metrics[f"logprob_sum/{name}"] = (policy[index].sum(), len(index))
    if row.feedback == "binary":
        threshold = _threshold(features, beta)
        right = torch.cat([reward[first] > threshold, reward[second] < threshold]).float()
        metrics["accuracy"] = (right.sum(), len(reward))
        accuracy = features.batch.by_tree(right, torch.cat([first, second]))
        return Described(metrics, items | {"label": features.desirable}, accuracy)
    right = _above(gap)
    metrics["accuracy"] = (right.sum(), number)
    metrics["margin"] = (gap.sum(), number)
    metrics["agreement"] = (_above(gap * order).sum(), number)
    return Described(metrics, items | {"margin": gap}, features.batch.by_tree(right, pairs[:, 0]))


def _above(values: Tensor) -> Tensor:
    """Which are above 0; a 0, as at the start of every comparison with oneself, counts half."""
    return (values.sign() + 1) / 2


def implicit_rewards(features: Features, row: Objective) -> Tensor:
    """The reward of each response by the objective's own measure, without its factor beta, [S]."""
    reward = features.policy.detach()
    if row.needs_reference:
        reward = reward - features.reference
    return reward / features.length if row.reward.endswith("/length") else reward


def summary(feedback: str, items: Mapping[str, np.ndarray]) -> dict[str, float]:
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
    if feedback == "binary":
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
        sides = SIDES[feedback]
        if not all(f"eval/logprob/{name}" in evaluation.metrics for name in sides):
            return evaluation
        now = [evaluation.metrics[f"eval/logprob/{name}"] for name in sides]
        if not self.start:
            self.start = now
        fallen = all(value < before - FALL for value, before in zip(now, self.start, strict=True))
        if fallen and not self.warned:
            self.warned = True
            moves = ", ".join(f"{s} {b:.2f} -> {n:.2f}" for s, b, n in zip(sides, self.start, now, strict=True))
            likelihood = "--plus sft:0.2, assent dpop, " if feedback == "pairs" else ""
            log.warning(
                f"Both kinds of answers have become less likely ({moves} nats per token): the policy moves to answers "
                f"that nobody has judged. Remedies: {likelihood}a larger --loss.beta, fewer steps."
            )
        return replace(evaluation, metrics={**evaluation.metrics, "eval/alarm/both_fall": float(fallen)})

    def state_dict(self) -> dict[str, Any]:
        return {"start": list(self.start), "warned": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start, self.warned = list(state["start"]), bool(state["warned"])


def _better(features: Features, row: Objective) -> Tensor:
    """Which responses are desirable, or the best of their prompt, [S] bool."""
    if row.feedback == "binary":
        return features.desirable > 0
    score, prompt = _scores(features), features.prompt
    best = torch.full((int(prompt.max()) + 1 if len(prompt) else 0,), -torch.inf, device=score.device)
    return score == best.scatter_reduce(0, prompt, score, "amax")[prompt]


def _scores(features: Features) -> Tensor:
    """Ratings, or levels turned so that more is better, [S]."""
    fields = features.batch.per_response
    return fields["rating"] if "rating" in fields else -fields["level"]


def _ordered(features: Features) -> Tensor:
    """All pairs (better, worse) of answers to one prompt, [., 2]."""
    score, prompt = _scores(features), features.prompt
    return ((prompt[:, None] == prompt) & (score[:, None] > score)).nonzero()


def _threshold(features: Features, beta: float) -> Tensor | float:
    """Where an objective for yes/no labels draws the line between the two kinds, in rewards."""
    fields = features.batch.per_response
    if "kl" in fields:
        return beta * fields["kl"][:1]
    return fields["shift"][:1] if "shift" in fields else 0.0
