"""What sampled answers are worth: every source of rewards that the options name, asked by all ranks together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePath

import numpy as np

from assent.algorithms.job import Job
from assent.algorithms.rollouts import Fields, annotate
from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.records import Example, Message, Response, RowError
from assent.data.tree import Branch, TokenTree, TreeBatch
from assent.errors import ConfigError, DataError
from assent.models.loading import load_tokenizer
from assent.models.policy import ScoreModel
from assent.online import OnlineConfig, RemoteConfig, RewardsConfig
from assent.rewards.ensemble import Ensemble
from assent.rewards.function import FunctionReward
from assent.rewards.group import Group, GroupReward, Scores, WeightedSum, checked
from assent.rewards.pool import PooledReward, portable
from assent.rewards.remote import RemoteReward, Server
from assent.rewards.rules import rule_reward
from assent.settings import suggestion
from assent.train.distributed import World, gather_objects

MODELS = "model"
"""What the reward model, or the ensemble of several, is called in weights and logs."""
LISTED = 5
"""Prompts in an error."""


def reward_source(current: Job, config: OnlineConfig) -> WeightedSum:
    """The weighted sum of all that `config.rewards` names. Every rank must ask it about the same groups.

    Raises ConfigError for a rule, function, server or weight that cannot be, before any model is loaded, and ModelError
    for a folder that is no reward model."""
    rewards, world = config.rewards, current.world
    found: list[tuple[str, Callable[[str], GroupReward]]] = [
        *((_before(spec), partial(_rule, spec, world)) for spec in rewards.rules),
        *((spec.rpartition(":")[2], partial(_function, spec, rewards, world)) for spec in rewards.functions),
        *((_before(spec), partial(_server, spec, config.remote, current)) for spec in rewards.servers),
    ]
    if rewards.model:
        found.append((MODELS, partial(_models, current, config)))
    names = _distinct([name for name, _ in found])
    weights = _weights(rewards.weights, names)
    return WeightedSum("--rewards.weights", [build(name) for name, (_, build) in zip(names, found)], weights)


def groups_of(trees: Sequence[TokenTree], examples: Sequence[Example], chat: Chat) -> list[Group]:
    """Rollout trees as sources of rewards are shown them; `chat` is the policy's."""
    return [
        Group(
            example,
            texts=tuple(chat.decode(branch.ids, tree.prompt) for branch in tree.branches),
            finished=tuple(bool(finished) for finished in tree.per_response["finished"]),
            lengths=tuple(len(branch) for branch in tree.branches),
            ids=tuple(branch.ids for branch in tree.branches),
            prompt_ids=tree.prompt,
        )
        for tree, example in zip(trees, examples, strict=True)
    ]


class ModelReward:
    """A frozen reward model with its own tokenizer and chat template. Where those are the policy's, it reads the
    sampled tokens themselves; otherwise the answers' text in its own words. Its forward passes are shared by all ranks.

    An answer that its chat template cannot write is unscored."""

    def __init__(
        self,
        name: str,
        scorer: ScoreModel,
        chat: Chat,
        policy_chat: Chat,
        *,
        max_length: int,
        micro_tokens: int,
        world: World,
    ) -> None:
        """`max_length` is the longest prompt with its answer, `micro_tokens` the most packed tokens in one pass."""
        self.name = name
        self.scorer = scorer
        self.chat = chat
        self.same_tokens = chat.speaks_like(policy_chat)
        self.max_length = max_length
        self.micro_tokens = micro_tokens
        self.world = world

    def check(self, examples: Sequence[Example]) -> None:
        """Raises DataError for prompts that are too long for it or that its chat template refuses."""
        if self.same_tokens:
            return
        prompts = [Example(e.prompt, origin=e.origin, tools=e.tools) for e in examples]
        _, problems = self.chat.trees(prompts, self.max_length)
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems[:LISTED])
            raise DataError(
                f"The reward model '{self.name}' cannot read {len(problems)} of {len(examples)} prompts:\n{listed}"
            )

    def score(self, groups: Sequence[Group]) -> Scores:
        read = [self._tree(group) for group in groups]
        trees = [tree for tree, _ in read if tree is not None]
        scored = iter(self._annotated(trees) if trees else [])
        values: list[float | None] = []
        for group, (tree, kept) in zip(groups, read, strict=True):
            own: list[float | None] = [None] * len(group)
            if tree is not None:
                for index, value in zip(kept, next(scored).per_response["reward"].tolist(), strict=True):
                    own[index] = value
            values += own
        unread = values.count(None)
        failures = {"its chat template cannot write the answer": unread} if unread else {}
        return Scores(checked(f"The reward model '{self.name}'", groups, values), failures=failures)

    def _annotated(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        def rewards(batch: TreeBatch) -> Fields:
            return Fields(per_response={"reward": self.scorer(batch, batch.last)})

        flat = not self.scorer.tree
        return annotate(trees, rewards, micro_tokens=self.micro_tokens, flat=flat, world=self.world)

    def _tree(self, group: Group) -> tuple[TokenTree | None, Sequence[int]]:
        """What the model reads, and which of the answers that is."""
        every = range(len(group))
        if self.same_tokens:
            assert len(group.ids) == len(group) and len(group.prompt_ids), "the sampled tokens are kept"
            branches = tuple(Branch(np.asarray(ids), np.ones(len(ids), bool)) for ids in group.ids)
            return TokenTree(np.asarray(group.prompt_ids), branches), every
        try:
            return self._reword(group, every), every
        except RowError:
            kept = [index for index in every if self._can_read(group, index)]
            return self._reword(group, kept) if kept else None, kept

    def _can_read(self, group: Group, index: int) -> bool:
        try:
            self._reword(group, [index])
        except RowError:
            return False
        return True

    def _reword(self, group: Group, indices: Sequence[int]) -> TokenTree:
        answers = tuple(Response((Message("assistant", group.texts[index]),)) for index in indices)
        asked = Example(group.example.prompt, answers, tools=group.example.tools)
        return self.chat.tree(asked, self.max_length)


class Shared:
    """A source that each rank asks about its share of the groups; all get all rewards. What one rank raises, every rank
    raises, so none is left waiting."""

    def __init__(self, source: GroupReward, world: World) -> None:
        self.name = source.name
        self.source = source
        self.world = world

    def check(self, examples: Sequence[Example]) -> None:
        self.source.check(examples)

    def score(self, groups: Sequence[Group]) -> Scores:
        share = -(-len(groups) // self.world.size)
        mine = groups[self.world.rank * share :][:share]
        outcome: Scores | Exception = Scores(np.zeros(0))
        caught: Exception | None = None
        try:
            if mine:
                outcome = self.source.score(mine)
        except Exception as error:
            if self.world.size == 1:
                raise
            outcome, caught = portable(error), error
        values: list[np.ndarray] = []
        failures: Counter[str] = Counter()
        for given in gather_objects(outcome):
            if isinstance(given, Exception):
                raise given from caught
            assert not given.parts, f"{self.name} is a single source"
            values.append(given.values)
            failures.update(given.failures)
        return Scores(np.concatenate(values), failures=dict(failures))


def _rule(spec: str, world: World, name: str) -> GroupReward:
    try:
        return Shared(rule_reward(spec, name), world)
    except ConfigError as error:
        raise ConfigError(f"--rewards.rules: {error}") from None


def _function(spec: str, rewards: RewardsConfig, world: World, name: str) -> GroupReward:
    flag = "--rewards.functions"
    source: GroupReward = FunctionReward(spec, flag, name)
    if rewards.workers:
        build = partial(FunctionReward, spec, flag, name)
        source = PooledReward(name, build, workers=rewards.workers, limit=rewards.time_limit)
    return Shared(source, world)


def _server(spec: str, remote: RemoteConfig, current: Job, name: str) -> GroupReward:
    shape, given, url = spec.partition("=")
    if not given:  # the text is not shown: it may hold a password
        raise ConfigError("--rewards.servers: expected SHAPE=URL, for example openrlhf=http://localhost:5000.")
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
        return Shared(RemoteReward(name, server, current.chat.prompt_text), current.world)
    except ConfigError as error:
        raise ConfigError(f"--rewards.servers: {error}") from None


def _models(current: Job, config: OnlineConfig, name: str) -> GroupReward:
    paths = config.rewards.model
    if len(paths) == 1:
        return _model(current, config, paths[0], name)
    names = _distinct([PurePath(path).name for path in paths])
    members = [_model(current, config, path, member) for path, member in zip(paths, names, strict=True)]
    return Ensemble(name, members, config.rewards.ensemble, k=config.rewards.deviations)


def _model(current: Job, config: OnlineConfig, path: str, name: str) -> ModelReward:
    own = ModelConfig(path, trust_remote_code=config.model.trust_remote_code)
    return ModelReward(
        name,
        current.score_model(path, trainable=False, new_head=False),
        Chat(load_tokenizer(own), rendered=config.data.rendered),
        current.chat,
        max_length=config.data.max_length,
        micro_tokens=config.train.micro_tokens,
        world=current.world,
    )


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
