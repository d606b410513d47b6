"""What happens to a rollout, in order: sampled responses are scored, annotated by the models, their rewards shaped, and
made into an advantage for each token. Every stage is a function that fills in further columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.algorithms.online.comparison import against_opponents, compared, selected
from assent.algorithms.online.method import Distilled, OnlineMethod
from assent.algorithms.online.models import Forward, ForwardCache, Models
from assent.config.online import KLConfig, ShapingConfig
from assent.data.chat import Chat
from assent.data.records import Example
from assent.data.tree import TreeBatch
from assent.distributed import World
from assent.losses import RunningMoments, explained_variance, kl_estimate, overlong_penalty, whiten
from assent.models.annotate import BatchColumns, columns_of
from assent.rewards.group import GroupReward, Progress
from assent.rewards.groups import groups_of
from assent.rollout.rollout import Rollout

# ---- score


@dataclass(frozen=True, slots=True)
class Scored:
    """`rollout` has `reward`, `parts` and `notes`, and none of the responses without a reward, of which `failures` says
    why and how many; `metrics` are numbers about the whole."""

    rollout: Rollout
    failures: Mapping[str, int]
    metrics: Mapping[str, Sequence[float]]


def score(rollout: Rollout, source: GroupReward, examples: Sequence[Example], chat: Chat, progress: Progress) -> Scored:
    """The responses as `source` scores them; `examples` are the rows of the data that prompts are numbered by."""
    scores = source.score(groups_of(rollout, [examples[row] for row in rollout.rows], chat, progress))
    values = np.asarray(scores.values, np.float32)
    parts = scores.parts if len(scores.parts) > 1 else {}
    made = replace(
        rollout,
        reward=values,
        parts={name: np.asarray(part, np.float32) for name, part in parts.items()},
        notes=tuple({name: column[i] for name, column in scores.columns.items()} for i in range(len(rollout))),
    )
    unscored = np.isnan(values)
    unexplained = int(unscored.sum()) - sum(scores.failures.values())
    failures = {**scores.failures, **({"no reason given": unexplained} if unexplained > 0 else {})}
    return Scored(made.take(np.flatnonzero(~unscored)), failures, scores.metrics)


# ---- annotate


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a rollout is annotated with: the policy's log-probs and entropy, the critic's values, the KL over the whole
    vocabulary, and what the teacher says, as `teacher` wants to know it. `cache` takes the passes with their graphs,
    where a step is to use them again."""

    temperature: float
    micro_tokens: int
    policy: bool = True
    entropy: bool = True
    values: bool = False
    kl: bool = False
    teacher: Distilled | None = None
    cache: ForwardCache | None = None


def annotate(rollout: Rollout, models: Models, annotation: Annotation, world: World) -> Rollout:
    """The rollout with `old`, `entropy`, `values`, `reference`, `anchor`, `kl` and the columns of the teacher, as far
    as they are asked for. Every rank must call it; they share the work."""
    reference, temperature = models.reference, annotation.temperature
    if not annotation.policy and reference is None:
        return rollout

    def fields(batch: TreeBatch) -> BatchColumns:
        known: dict[str, Tensor] = {}
        if reference is not None:
            known["reference"] = reference.logprobs(batch, temperature)
        if models.average is not None:
            known["anchor"] = models.average.logprobs(batch, temperature)
        if not annotation.policy:
            return BatchColumns(known)
        keep = annotation.cache is not None
        anchor = models.anchor.anchor(batch, temperature) if annotation.kl and models.anchor is not None else None
        teacher = models.teacher_of(batch, annotation.teacher)
        with torch.set_grad_enabled(keep):
            scores = models.forward(
                batch,
                temperature,
                entropy=annotation.entropy,
                anchor=anchor,
                teacher=teacher,
            )
            values = models.values(batch, scores) if annotation.values else None
        if annotation.cache is not None:
            annotation.cache.passes[batch.keys] = Forward(scores, values)
        known["old"] = scores.logprobs
        if annotation.entropy:
            known["entropy"] = scores.entropy
        if anchor is not None:
            known["kl"] = scores.kl
        if values is not None:
            known["values"] = values
        if teacher is not None and scores.divergence is not None:
            known["teacher"] = teacher.anchor.logprobs(batch.targets)
            known["teacher_forward"], known["teacher_reverse"] = scores.divergence.forward, scores.divergence.reverse
            known["teacher_agrees"] = scores.divergence.agrees
        return BatchColumns(known)

    flat, micro_tokens = not models.tree, annotation.micro_tokens
    columns = columns_of(rollout.trees(), fields, micro_tokens=micro_tokens, flat=flat, world=world)
    made: dict[str, Any] = {**columns.per_token}
    return replace(rollout, **made)


# ---- shape


def shape(
    rollout: Rollout, config: ShapingConfig, moments: RunningMoments, baseline: np.ndarray, longest: int
) -> Rollout:
    """The rollout with `shaped`: the reward less the `baseline` [P] of its prompt, scaled by `moments`, clipped, less
    penalties. `longest` is the most tokens that a response can have. Where it has `credit`, that is scaled alike; what
    else is done to a reward is done to what stands at its last token."""
    reward = torch.from_numpy(centred(rollout, baseline))
    if config.normalise != "none":
        reward = moments.normalise(reward)
        if rollout.credit is not None:
            rollout = replace(rollout, credit=(rollout.credit / moments.deviation).astype(np.float32))
    if config.clip is not None:
        reward = reward.clamp(-config.clip, config.clip)
    reward = reward - config.missing_eos_penalty * (1 - torch.from_numpy(rollout.finished.astype(np.float32)))
    buffer = round(config.overlong * longest)
    if buffer >= 1:
        reward = reward + overlong_penalty(torch.from_numpy(rollout.lengths), limit=longest, buffer=buffer)
    return replace(rollout, shaped=reward.float().numpy())


def centred(rollout: Rollout, baseline: np.ndarray) -> np.ndarray:
    """Rewards less the baseline of their prompt, [S] float64."""
    assert rollout.reward is not None
    return rollout.reward.astype(np.float64) - baseline[rollout.prompt]


# ---- compare, credit


def compare(rollout: Rollout, method: OnlineMethod, skipped: int) -> tuple[Rollout, dict[str, float]]:
    """What a method that compares answers makes of their rewards, and metrics of it; `skipped` rollouts before this one
    had nothing to compare."""
    if method.preference is not None:
        return against_opponents(rollout, method.preference)
    if method.comparison is None:
        return rollout, {}
    rollout, metrics = compared(rollout, method.estimator, method.comparison)
    return rollout, metrics | ({"skipped": float(skipped)} if skipped else {})


def credit(
    rollout: Rollout, method: OnlineMethod, kl: KLConfig, kl_coef: float
) -> tuple[Rollout, Rollout, dict[str, float]]:
    """The rollout with its credit, what of it is trained on, and metrics."""
    if method.comparison is not None:
        return rollout, selected(rollout, method.comparison), {}
    rollout, metrics = advantages(rollout, method, kl, kl_coef)
    return rollout, rollout, metrics


def advantages(
    rollout: Rollout, method: OnlineMethod, kl: KLConfig, kl_coef: float
) -> tuple[Rollout, dict[str, float]]:
    """The rollout with `advantages` (and `returns` for a critic) by the method's estimator, and their metrics.

    With the KL in the reward, every token that the policy sampled has a reward of its own, -kl_coef * KL; that of
    the response (`shaped`) stands at its last token, less the `credit` that tokens have of it. An estimator that
    compares whole responses gets the sum of all.
    Of a token's own KL only k1 has a policy gradient that holds it: the full KL is the same whatever was sampled, and
    the gradients of k2 and k3 vanish near the reference. So to that token's advantage, and to no other,
    -kl_coef * (k1 - estimate) is added (arXiv 2504.10637). A teacher in the reward takes from that of each such token
    coef * (log policy - log teacher)."""
    assert rollout.shaped is not None
    response, lengths = torch.from_numpy(rollout.response), torch.from_numpy(rollout.lengths)
    reward = torch.from_numpy(rollout.shaped).double()  # float32 could not hold the squares of many
    tokens = own = torch.zeros(len(response), dtype=torch.float64)
    if kl_coef > 0 and kl.place == "reward":
        tokens = -kl_coef * _token_kl(rollout, kl.estimator)
        if kl.estimator != "k1":
            own = -kl_coef * _token_kl(rollout, "k1") - tokens
    distilled = method.distilled
    if distilled is not None and not distilled.in_loss:
        assert rollout.old is not None and rollout.teacher is not None
        gap = torch.from_numpy(rollout.old).double() - torch.from_numpy(rollout.teacher).double()
        tokens = tokens - distilled.coef * gap * _sampled(rollout)
    metrics: dict[str, float] = {}
    if (spread := _double(rollout.credit)) is not None:
        tokens = tokens + spread
        reward = reward - torch.zeros_like(reward).index_add(0, response, spread)
        metrics["credit"] = float(spread.abs().sum() / len(rollout))
    values = _double(rollout.values)
    made = method.estimator(
        {
            "token_rewards": tokens.index_add(0, lengths.cumsum(0) - 1, reward),
            "rewards": reward + tokens.new_zeros(len(lengths)).index_add(0, response, tokens),
            "values": values,
            "greedy": _double(rollout.greedy),
            "response": response,
            "prompt": torch.from_numpy(rollout.prompt),
        }
    )
    made = made if len(made) == len(response) else made[response]
    returns = None
    if values is not None:
        returns = made + values
        explained = float(explained_variance(values, returns))
        if not math.isnan(explained):  # the returns vary
            metrics["explained_variance"] = explained
    made = made + own
    if method.whiten:
        made = whiten(made)
    targets = None if returns is None else returns.float().numpy()
    rollout = replace(rollout, advantages=made.float().numpy(), returns=targets)
    if (rollout.sizes > 1).any() and distilled is None:  # else more than rewards is learnt from
        metrics["no_signal"] = float(rollout.zero_variance.mean())
    return rollout, metrics


def _token_kl(rollout: Rollout, estimator: str) -> Tensor:
    """KL from what it counts from at each token, [N] float64; 0 in demonstrations."""
    if estimator == "full":
        assert rollout.kl is not None
        kl = torch.from_numpy(rollout.kl).double()
    else:
        anchor = rollout.reference if rollout.anchor is None else rollout.anchor
        assert rollout.old is not None and anchor is not None
        old, other = torch.from_numpy(rollout.old).double(), torch.from_numpy(anchor).double()
        kl = kl_estimate(old, other, estimator=estimator)
    return kl * _sampled(rollout)


def _sampled(rollout: Rollout) -> Tensor:
    """0 at the tokens of demonstrations, else 1: [N]."""
    return 1 - torch.from_numpy(np.repeat(rollout.demonstration, rollout.lengths).astype(np.float32))


def _double(column: np.ndarray | None) -> Tensor | None:
    return None if column is None else torch.from_numpy(column).double()
