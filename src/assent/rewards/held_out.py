"""A source of rewards that nothing is trained by: `--alarm.held_out`."""

from __future__ import annotations

import os
from typing import cast

from assent.config import OnlineConfig, PolicyRunConfig, RewardsConfig
from assent.config.judge import JudgeConfig
from assent.config.online import RemoteConfig
from assent.errors import ConfigError
from assent.models.digests import model_digests
from assent.rewards.build import Asking, RewardSession, source_names, sum_of
from assent.rewards.group import GroupReward
from assent.rewards.judge.prompt import read_prompt
from assent.rewards.judge.source import check_size
from assent.rewards.outside import sorted_out

FLAG = "--alarm.held_out"
ASKED = ("servers", "judges")
"""Kinds of sources that are asked with options which only online methods have."""


def held_out_source(session: RewardSession, config: PolicyRunConfig) -> GroupReward | None:
    """What `config.alarm.held_out` names; None where nothing. Every rank must call it.

    Raises ConfigError for what is a reward that the policy is trained by, and for what cannot be asked about the
    answers of this run; else as `sum_of`."""
    word = config.alarm.held_out
    if word is None or not config.alarm.rate:
        return None
    kind, value = sorted_out(word, FLAG)
    online = config if isinstance(config, OnlineConfig) else None
    if online is None and kind in ASKED:
        raise ConfigError(
            f"{FLAG} {word}: servers and judges are asked with --remote and --judge, which only the online methods "
            "have. Give a reward model, a rule, a function or implicit=FOLDER."
        )
    if online is not None:
        _check_other(kind, value, online)
    if kind == "judges":
        assert online is not None
        prompt = read_prompt(online.judge.prompt)
        check_size(prompt, online.judge, online.rollout.responses, f"--rollout.responses {online.rollout.responses}")
    return sum_of(session, _asking(RewardsConfig(**{kind: (value,)}), config, online))  # type: ignore[arg-type]


def _asking(rewards: RewardsConfig, config: PolicyRunConfig, online: OnlineConfig | None) -> Asking:
    return Asking(
        rewards,
        RemoteConfig() if online is None else online.remote,
        config.data.max_length,
        config.train.micro_tokens,
        config.model.trust_remote_code,
        config.data.rendered,
        judge=JudgeConfig() if online is None else online.judge,
        precision=config.model.precision,
        max_batch=64 if online is None else online.sampling.max_batch,
        memory=0.4 if online is None else online.engine.memory,
        flag=FLAG,
        weights_flag=FLAG,
        output_flag=FLAG,
        implicit_flags=(FLAG, FLAG),
    )


def _check_other(kind: str, value: str, config: OnlineConfig) -> None:
    """Raises ConfigError where the policy is trained by this source. One that is only logged (weight 0) is none."""
    rewards = config.rewards
    trained = {"model": rewards.model} | {name: getattr(rewards, name) for name in ASKED}
    trained |= {name: getattr(rewards, name) for name in ("rules", "functions", "implicit")}
    if value not in trained[kind] and not any(_same(kind, value, other) for other in trained[kind]):
        return
    if not _weight(kind, value, rewards):
        return
    raise ConfigError(
        f"{FLAG} {value}: the policy is trained by this reward (--rewards.{kind}), so it cannot tell whether what is "
        "gained is real. Give one that was made from other labels, for example: assent reward on pairs that the first "
        "has not seen."
    )


def _weight(kind: str, value: str, rewards: RewardsConfig) -> float:
    """The weight of a training reward; of models, that of all together."""
    order = ("rules", "functions", "servers", "judges", "implicit", "model")
    places = [(name, one) for name in order[:-1] for one in cast("tuple[str, ...]", getattr(rewards, name))]
    places += [("model", rewards.model[0])] if rewards.model else []
    for (own, one), name in zip(places, source_names(rewards), strict=True):
        if own == kind and (kind == "model" or one == value or _same(kind, value, one)):
            return rewards.weights.get(name, 1.0)
    return 1.0


def _same(kind: str, one: str, other: str) -> bool:
    """Whether two words name the same source: models by their weights, functions by file and name."""
    if kind in ("model", "implicit"):
        digests = [{part: d for part, d in model_digests(path).items() if part != "tokenizer"} for path in (one, other)]
        return digests[0] == digests[1]
    if kind == "functions":
        (file, _, name), (its_file, _, its_name) = one.rpartition(":"), other.rpartition(":")
        return name == its_name and os.path.realpath(file) == os.path.realpath(its_file)
    return one.rstrip("/") == other.rstrip("/")
