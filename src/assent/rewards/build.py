"""What sampled answers are worth: every source of rewards that the options name, asked by all ranks together."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol

from assent.config import ModelConfig, OnlineConfig, RewardsConfig
from assent.data.chat import Chat
from assent.distributed import World
from assent.errors import ConfigError
from assent.models.loading import load_tokenizer
from assent.models.policy import ScoreModel
from assent.names import suggestion
from assent.rewards.ensemble import Ensemble
from assent.rewards.function import FunctionReward
from assent.rewards.group import Group, GroupReward, WeightedSum
from assent.rewards.model import ModelReward
from assent.rewards.pool import PooledReward
from assent.rewards.reading import Reading
from assent.rewards.remote import VLLM, RemoteReward, Server, WrittenAnswer
from assent.rewards.rules import is_slow, rule_reward
from assent.rewards.served import ServedModel
from assent.rewards.shared import Shared

MODELS = "model"
"""What the reward model, or the ensemble of several, is called in weights and logs."""


class RewardSession(Protocol):
    """What sources need of the run that asks them."""

    @property
    def world(self) -> World: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def chat(self) -> Chat:
        """The policy's."""
        ...

    def score_model(self, path: str, *, trainable: bool, new_head: bool) -> ScoreModel: ...


def reward_source(session: RewardSession, config: OnlineConfig) -> WeightedSum:
    """The weighted sum of all that `config.rewards` names. Every rank must ask it about the same groups.

    Raises ConfigError for a rule, function, server or weight that cannot be, before any model is loaded, and ModelError
    for a folder that is no reward model."""
    rewards, world = config.rewards, session.world
    found: list[tuple[str, Callable[[str], GroupReward]]] = [
        *((_before(spec), partial(_rule, spec, rewards, world)) for spec in rewards.rules),
        *((spec.rpartition(":")[2], partial(_function, spec, rewards, world)) for spec in rewards.functions),
        *((_before(spec), partial(_server, spec, config, session)) for spec in rewards.servers),
    ]
    if rewards.model:
        found.append((MODELS, partial(_models, session, config)))
    names = _distinct([name for name, _ in found])
    weights = _weights(rewards.weights, names)
    return WeightedSum("--rewards.weights", [build(name) for name, (_, build) in zip(names, found)], weights)


def afresh(source: GroupReward) -> GroupReward:
    """The same source, with functions of the user's files loaded anew, so that asking it leaves no trace in them."""
    match source:
        case WeightedSum():
            return WeightedSum(source.name, [afresh(part) for part in source.sources], source.weights)
        case Shared():
            return Shared(afresh(source.source), source.world)
        case PooledReward():
            return PooledReward(source.name, pickle.loads(source.build), workers=1, limit=source.limit)
        case FunctionReward():
            return FunctionReward(source.spec, source.flag, source.name)
    return source


def _rule(spec: str, rewards: RewardsConfig, world: World, name: str) -> GroupReward:
    try:
        source: GroupReward = rule_reward(spec, name)
    except ConfigError as error:
        raise ConfigError(f"--rewards.rules: {error}") from None
    if is_slow(spec):
        build = partial(rule_reward, spec, name)
        source = PooledReward(name, build, workers=max(1, rewards.workers), limit=rewards.time_limit)
    return Shared(source, world)


def _function(spec: str, rewards: RewardsConfig, world: World, name: str) -> GroupReward:
    flag = "--rewards.functions"
    source: GroupReward = FunctionReward(spec, flag, name)
    if rewards.workers:
        build = partial(FunctionReward, spec, flag, name)
        source = PooledReward(name, build, workers=rewards.workers, limit=rewards.time_limit)
    return Shared(source, world)


def _server(spec: str, config: OnlineConfig, session: RewardSession, name: str) -> GroupReward:
    shape, given, url = spec.partition("=")
    if not given:  # the text is not shown: it may hold a password
        raise ConfigError("--rewards.servers: expected SHAPE=URL, for example openrlhf=http://localhost:5000.")
    remote = config.remote
    key = "" if remote.key_env is None else os.environ.get(remote.key_env, "")
    if remote.key_env is not None and not key:
        raise ConfigError(f"--remote.key_env: the environment variable {remote.key_env} is not set, or empty.")
    server = Server(
        url,
        shape,
        model=remote.model or "",
        label=remote.label or "",
        key=key,
        timeout=remote.timeout,
        retries=remote.retries,
        budget=remote.budget,
        concurrency=remote.concurrency,
        batch=remote.batch,
    )
    try:
        if shape == VLLM:
            own = session.chat
            if remote.tokenizer is not None:
                folder = ModelConfig(remote.tokenizer, trust_remote_code=config.model.trust_remote_code)
                own = Chat(load_tokenizer(folder), rendered=config.data.rendered)
            source: GroupReward = ServedModel(name, server, Reading(own, session.chat, config.data.max_length))
        else:
            source = RemoteReward(name, server, partial(written, session.tokenizer))
    except ConfigError as error:
        raise ConfigError(f"--rewards.servers: {error}") from None
    return Shared(source, session.world)


def written(tokenizer: Any, group: Group) -> list[WrittenAnswer | None]:
    """The answers as text, with the spelling of every token that was sampled: a finished answer ends with the token
    that ended it, one that was cut does not."""
    assert len(group.ids) == len(group), "the sampled tokens are kept"
    spell = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    prompt = [int(token) for token in group.prompt_ids]
    return [WrittenAnswer(spell(prompt), spell(prompt + [int(token) for token in ids])) for ids in group.ids]


def _models(session: RewardSession, config: OnlineConfig, name: str) -> GroupReward:
    paths = config.rewards.model
    if len(paths) == 1:
        return _model(session, config, paths[0], name)
    names = _distinct([PurePath(path).name for path in paths])
    members = [_model(session, config, path, member) for path, member in zip(paths, names, strict=True)]
    return Ensemble(name, members, config.rewards.ensemble, k=config.rewards.deviations)


def _model(session: RewardSession, config: OnlineConfig, path: str, name: str) -> ModelReward:
    own = ModelConfig(path, trust_remote_code=config.model.trust_remote_code)
    scorer = session.score_model(path, trainable=False, new_head=False)
    reweight(scorer, config.rewards.output_weights, path)
    return ModelReward(
        name,
        scorer,
        Chat(load_tokenizer(own), rendered=config.data.rendered),
        session.chat,
        max_length=config.data.max_length,
        micro_tokens=config.train.micro_tokens,
        world=session.world,
    )


def reweight(scorer: ScoreModel, weights: Mapping[str, float], path: str) -> None:
    """The rule that --rewards.output_weights gives instead of the model's own. Raises ConfigError where it has no
    outputs of these names."""
    if not weights:
        return
    if len(scorer.rule) == 1:
        raise ConfigError(f"--rewards.output_weights: {path} has a single output. Leave the option out.")
    scorer.rule = scorer.rule.reweighted(weights)


def _before(spec: str) -> str:
    """The name in NAME=ARGUMENT."""
    return spec.partition("=")[0]


def _distinct(names: Sequence[str]) -> list[str]:
    """The names; those that stand there more than once get numbers: "format-1", "format-2"."""
    total, seen = Counter(names), Counter[str]()
    made = []
    for name in names:
        seen[name] += 1
        made.append(f"{name}-{seen[name]}" if total[name] > 1 else name)
    return made


def _weights(given: Mapping[str, float], names: Sequence[str]) -> list[float]:
    for name in given:
        if name not in names:
            raise ConfigError(
                f"--rewards.weights: no source of rewards is called '{name}'.{suggestion(name, [*names])} There are: "
                f"{', '.join(names)}."
            )
    return [given.get(name, 1.0) for name in names]
