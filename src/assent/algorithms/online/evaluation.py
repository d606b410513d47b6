"""Responses of the policy to held-out prompts, with their distance from a reference and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from assent.algorithms.answers import answers_of
from assent.algorithms.measured import Measures
from assent.algorithms.online.models import Models
from assent.algorithms.online.rollouts import Rollouts, counted
from assent.algorithms.online.samples import means, rollout_metrics, rows_of
from assent.algorithms.online.stages import Annotation, annotate, score
from assent.data.records import Example
from assent.rewards.group import RewardError
from assent.rollout.rollout import Rollout
from assent.rollout.sampler import Ask, Sampler
from assent.statistics import mean_interval
from assent.train.measured import Each, Evaluation

SEED = 1 << 40
"""Evaluations sample with the same numbers each time, so that responses differ only as policies do."""


def answered(
    sampler: Sampler,
    models: Models,
    prompts: Sequence[np.ndarray],
    annotation: Annotation,
    *,
    n: int = 1,
    seed: int = SEED,
) -> Rollout:
    """`n` responses to each of the prompts (token ids) by the policy as it is now, read by the models. Every rank must
    call it; they share the work, and all get all responses."""
    (rollout,) = sampler.sample([Ask(prompts, np.arange(len(prompts)), n, seed)])
    return annotate(rollout, models, annotation, sampler.world)


def evaluate(rollouts: Rollouts, examples: Sequence[Example], measures: Measures) -> Evaluation:
    """One response to each held-out prompt, sampled and scored as in training, and measured."""
    if rollouts.sampler.busy:
        rollouts.sample()
    chat, config = rollouts.session.chat, rollouts.config
    annotation = Annotation(config.sampling.temperature, config.train.micro_tokens, teacher=rollouts.method.distilled)
    prompts = [chat.prompt_ids(example) for example in examples]
    answers = answered(rollouts.sampler, rollouts.models, prompts, annotation)
    made = score(answers, rollouts.source, examples, chat, rollouts.progress)
    found = made.rollout
    if not len(found):
        reasons = counted(made.failures)
        raise RewardError(f"evaluation: not one of {len(examples)} answers could be scored ({reasons}).")
    assert found.reward is not None
    rewarded = config.rewards.named
    numbers = rollout_metrics(found, rewarded=rewarded) | means([made.metrics])
    metrics = {f"eval/{name}": value for name, value in numbers.items()}
    rewards = found.reward.tolist()
    if rewarded:
        interval = mean_interval(rewards)
        metrics |= {"eval/reward_low": interval.low, "eval/reward_high": interval.high}
        metrics["eval/unscored"] = 1 - len(found) / len(examples)
    if measures.rows:
        metrics |= measures(answers_of(answers, chat, "policy", measures.prompts))
    followed = rewards if rewarded else _from_teacher(found)
    each = {row: (value, 1.0) for row, value in zip(found.rows[found.prompt].tolist(), followed, strict=True)}
    samples = rows_of(found, examples, chat, demonstrations=False, rewarded=rewarded)
    return Evaluation(metrics, samples, Each.of(each, len(examples)))


def _from_teacher(rollout: Rollout) -> list[float]:
    """KL(policy || teacher) of each response, in nats per token."""
    assert rollout.teacher_reverse is not None
    kls: list[float] = (rollout.sums(rollout.teacher_reverse) / rollout.lengths).tolist()
    return kls
