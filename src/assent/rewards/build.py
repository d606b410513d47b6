"""What sampled answers are worth: every source of rewards that the options name, asked by all ranks together."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any, Literal, Protocol

from assent.config import METHODS, JudgeConfig, ModelConfig, OnlineConfig, RemoteConfig, RewardsConfig, method_of
from assent.config.estimators import ESTIMATORS
from assent.data.chat import Chat
from assent.distributed import World
from assent.errors import ConfigError
from assent.models.loading import load_tokenizer
from assent.models.policy import Policy, ScoreModel
from assent.models.shared_ids import check_shared_ids
from assent.names import suggestion
from assent.rewards.ensemble import Ensemble
from assent.rewards.function import FunctionReward
from assent.rewards.group import Group, GroupReward, Nothing, WeightedSum
from assent.rewards.implicit import ImplicitReward, implicit_of
from assent.rewards.judge.build import judge_reward
from assent.rewards.judge.folder import Place
from assent.rewards.judge.prompt import read_prompt
from assent.rewards.judge.source import check_size
from assent.rewards.model import ModelReward
from assent.rewards.pool import PooledReward
from assent.rewards.reading import Reading
from assent.rewards.remote import SHAPES, RemoteReward, Server, WrittenAnswer
from assent.rewards.rules import is_slow, rule_reward
from assent.rewards.served import ServedModel
from assent.rewards.shared import Shared

MODELS, JUDGE, IMPLICIT = "model", "judge", "implicit"
"""What the reward model, or the ensemble of several, a judge, and the implicit reward of a policy are called in weights
and logs."""


class RewardSession(Protocol):
    """What sources need of whoever asks them, a training run or a command that scores."""

    @property
    def world(self) -> World: ...

    @property
    def chat(self) -> Chat:
        """Of the model whose answers are scored. Raises ConfigError where a command knows none."""
        ...

    def score_model(self, path: str, *, trainable: bool, new_head: bool) -> ScoreModel: ...

    def frozen_policy(self, path: str, revision: str | None = None) -> Policy: ...


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked, and how. `flag` is how messages call a source that was named; {} stands for the kind."""

    rewards: RewardsConfig
    remote: RemoteConfig
    max_length: int
    micro_tokens: int
    trust_remote_code: bool = False
    rendered: bool = False
    judge: JudgeConfig = JudgeConfig()
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    max_batch: int = 64
    memory: float = 0.4
    flag: str = "--rewards.{}"
    length_flag: str = "--data.max_length"
    weights_flag: str = "--rewards.weights"
    output_flag: str = "--rewards.output_weights"
    implicit_flags: tuple[str, str] = ("--rewards.implicit_reference", "--rewards.implicit_beta")
    forgiving: bool = False
    """Judges on servers: what they do not answer is counted and ends nothing."""


def reward_source(session: RewardSession, config: OnlineConfig) -> GroupReward:
    """The weighted sum of all that `config.rewards` names, if anything. Every rank must ask it about the same groups.

    Raises ConfigError for a rule, function, server or weight that cannot be, before any model is loaded, and ModelError
    for a folder that is no reward model."""
    if not config.rewards.named:
        return Nothing()
    _check_judges(config)
    data, trust = config.data, config.model.trust_remote_code
    return sum_of(
        session,
        Asking(
            config.rewards,
            config.remote,
            data.max_length,
            config.train.micro_tokens,
            trust,
            data.rendered,
            judge=config.judge,
            precision=config.model.precision,
            max_batch=config.sampling.max_batch,
            memory=config.engine.memory,
        ),
    )


Made = tuple[str, Callable[[str], GroupReward]]
"""What a source is called, but for numbers, and how it is made of its name."""


def sum_of(session: RewardSession, asking: Asking) -> WeightedSum:
    """The weighted sum of all that is asked. Raises as `reward_source`."""
    found = _sources(session, asking)
    names = _distinct([name for name, _ in found])
    weights = _weights(asking.rewards.weights, names)
    return WeightedSum(asking.weights_flag, [build(name) for name, (_, build) in zip(names, found)], weights)


def source_names(rewards: RewardsConfig) -> list[str]:
    """What the sources that are named are called, in weights and logs."""
    return _distinct([name for name, _ in _sources(None, Asking(rewards, RemoteConfig(), 0, 0))])


def _sources(session: Any, asking: Asking) -> list[Made]:
    """All that is named: rules, functions, servers, judges, implicit rewards, and last the models, which are one."""
    rewards = asking.rewards
    found: list[Made] = [
        *((_before(spec), partial(_rule, spec, session, asking)) for spec in rewards.rules),
        *((spec.rpartition(":")[2], partial(_function, spec, session, asking)) for spec in rewards.functions),
        *((_before(spec), partial(_server, spec, session, asking)) for spec in rewards.servers),
        *((JUDGE, partial(_judge, spec, session, asking)) for spec in rewards.judges),
        *((IMPLICIT, partial(_implicit, folder, session, asking)) for folder in rewards.implicit),
    ]
    if rewards.model:
        found.append((MODELS, partial(_models, session, asking)))
    return found


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


def _rule(spec: str, session: RewardSession, asking: Asking, name: str) -> GroupReward:
    rewards = asking.rewards
    try:
        source: GroupReward = rule_reward(spec, name)
    except ConfigError as error:
        raise ConfigError(f"{asking.flag.format('rules')}: {error}") from None
    if is_slow(spec):
        build = partial(rule_reward, spec, name)
        source = PooledReward(name, build, workers=max(1, rewards.workers), limit=rewards.time_limit)
    return Shared(source, session.world)


def _function(spec: str, session: RewardSession, asking: Asking, name: str) -> GroupReward:
    flag, rewards = asking.flag.format("functions"), asking.rewards
    source: GroupReward = FunctionReward(spec, flag, name)
    if rewards.workers:
        build = partial(FunctionReward, spec, flag, name)
        source = PooledReward(name, build, workers=rewards.workers, limit=rewards.time_limit)
    return Shared(source, session.world)


def _server(spec: str, session: RewardSession, asking: Asking, name: str) -> GroupReward:
    shape, given, url = spec.partition("=")
    flag, remote = asking.flag.format("servers"), asking.remote
    if not given:  # the text is not shown: it may hold a password
        raise ConfigError(f"{flag}: expected SHAPE=URL, for example openrlhf=http://localhost:5000.")
    key = "" if remote.key_env is None else os.environ.get(remote.key_env, "")
    if remote.key_env is not None and not key:
        raise ConfigError(f"--remote.key_env: the environment variable {remote.key_env} is not set, or empty.")
    server = Server(
        url,
        shape,
        model=remote.model or "",
        label=remote.label or "",
        weights=remote.weights,
        key=key,
        timeout=remote.timeout,
        retries=remote.retries,
        budget=remote.budget,
        concurrency=remote.concurrency,
        batch=remote.batch,
    )
    try:
        if shape in SHAPES and SHAPES[shape].ids:
            own = session.chat if remote.tokenizer is None else _chat(remote.tokenizer, asking)
            source: GroupReward = ServedModel(
                name, server, Reading(own, session.chat, asking.max_length), asking.length_flag
            )
        elif shape in SHAPES and SHAPES[shape].pairs:
            source = RemoteReward(name, server, two_texts)
        else:
            source = RemoteReward(name, server, partial(written, session.chat.tokenizer))
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None
    return Shared(source, session.world)


def needs_answers(config: OnlineConfig) -> bool:
    """Whether a judge is shown the rows' own answers."""
    if not config.rewards.judges:
        return False
    prompt = read_prompt(config.judge.prompt)
    return prompt.needs_reference or (prompt.mode == "pairwise" and config.judge.pairs == "baseline")


def _judge(spec: str, session: RewardSession, asking: Asking, name: str) -> GroupReward:
    judge, flag = asking.judge, asking.flag.format("judges")
    if judge.engine == "vllm" and session.world.size > 1:
        raise ConfigError(
            f"--judge.engine vllm inside a run needs a run of one process; this one has {session.world.size}. Serve "
            f"the judge (vllm serve), and give {flag} openai=URL."
        )
    place = Place(
        session.world.device,
        judge.engine,
        asking.precision,
        trust_remote_code=asking.trust_remote_code,
        max_batch=asking.max_batch,
        micro_tokens=asking.micro_tokens,
        memory=asking.memory,
    )
    made = judge_reward(spec, name, judge, asking.remote, place, flag, asking.forgiving)
    return Shared(made, session.world)


def _check_judges(config: OnlineConfig) -> None:
    """Raises ConfigError where judges would be asked about fewer answers than what they are asked compares."""
    if config.rewards.judges:
        prompt, responses = read_prompt(config.judge.prompt), config.rollout.responses
        check_size(prompt, config.judge, responses, f"--rollout.responses {responses}")
        for option, asks in _single_answers(config).items():
            if asks:
                check_size(prompt, config.judge, 1, f"{option} asks about one answer to a prompt")


def _single_answers(config: OnlineConfig) -> dict[str, bool]:
    """The options by which rewards of single answers are asked for beside those of groups, and whether they do."""
    name = method_of(config)
    return {
        "the evaluation (--data.eval, --data.eval_fraction)": config.data.eval is not None
        or config.data.eval_fraction > 0,
        "--shaping.baseline row": config.shaping.baseline == "row",
        f"--given.source {config.given.source}": config.given.source != "none",
        f"the estimator of {name}": config.loss.estimator is None
        and "greedy" in ESTIMATORS[METHODS[name].estimator].needs,
    }


def written(tokenizer: Any, group: Group) -> list[WrittenAnswer | None]:
    """The answers as text, with the spelling of every token that was sampled: a finished answer ends with the token
    that ended it, one that was cut does not. Half a character, a word in other pieces than the tokenizer would cut it
    into, or a control token spelled out are other tokens when the text is read again."""
    assert len(group.ids) == len(group), "the sampled tokens are kept"
    spell = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    prompt = [int(token) for token in group.prompt_ids]
    sent = [prompt + [int(token) for token in ids] for ids in group.ids]
    texts = [spell(ids) for ids in sent]
    again = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    asked = spell(prompt)
    return [WrittenAnswer(asked, text, ids == back) for text, ids, back in zip(texts, sent, again, strict=True)]


def two_texts(group: Group) -> list[WrittenAnswer | None]:
    """The answers beside what they answer, both in plain words: the texts of the prompt's messages, and the answer."""
    example = group.example
    asked = example.prompt_text or "\n\n".join(message.content for message in example.prompt)
    return [WrittenAnswer(asked, text) for text in group.texts]


def _models(session: RewardSession, asking: Asking, name: str) -> GroupReward:
    paths = asking.rewards.model
    if len(paths) == 1:
        return _model(session, asking, paths[0], name)
    names = _distinct([PurePath(path).name for path in paths])
    members = [_model(session, asking, path, member) for path, member in zip(paths, names, strict=True)]
    return Ensemble(name, members, asking.rewards.ensemble, k=asking.rewards.deviations)


def _model(session: RewardSession, asking: Asking, path: str, name: str) -> ModelReward:
    scorer = session.score_model(path, trainable=False, new_head=False)
    reweight(scorer, asking.rewards.output_weights, path, asking.output_flag)
    return ModelReward(
        name,
        scorer,
        _chat(path, asking),
        session.chat,
        max_length=asking.max_length,
        micro_tokens=asking.micro_tokens,
        world=session.world,
    )


def _implicit(folder: str, session: RewardSession, asking: Asking, name: str) -> ImplicitReward:
    rewards, trust = asking.rewards, asking.trust_remote_code
    flags = asking.implicit_flags
    found = implicit_of(folder, reference=rewards.implicit_reference, beta=rewards.implicit_beta, flags=flags)
    chat = _chat(folder, asking)
    reference = None
    if found.reference is not None:
        revision = found.reference_revision
        check_shared_ids(flags[0], found.reference, chat.tokenizer, revision=revision, trust_remote_code=trust)
        reference = session.frozen_policy(found.reference, revision)
    return ImplicitReward(
        name,
        session.frozen_policy(folder),
        reference,
        chat,
        session.chat,
        beta=found.beta,
        per_token=found.per_token,
        max_length=asking.max_length,
        micro_tokens=asking.micro_tokens,
        world=session.world,
    )


def _chat(path: str, asking: Asking) -> Chat:
    """How the model at `path` writes conversations."""
    own = ModelConfig(path, trust_remote_code=asking.trust_remote_code)
    return Chat(load_tokenizer(own), rendered=asking.rendered)


def reweight(
    scorer: ScoreModel, weights: Mapping[str, float], path: str, flag: str = "--rewards.output_weights"
) -> None:
    """The rule that `flag` gives instead of the model's own. Raises ConfigError where it has no outputs of these
    names."""
    if not weights:
        return
    if len(scorer.rule) == 1:
        raise ConfigError(f"{flag} {', '.join(weights)}: {path} has a single output. Leave the option out.")
    scorer.reweigh(weights, flag)


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
