"""Sources of rewards outside of a training run, by the words that name them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from assent.config import ModelConfig, RewardsConfig, ScoredFileConfig, SourceConfig
from assent.config.online_relations import unread
from assent.data.chat import Chat
from assent.data.records import Example
from assent.distributed import World
from assent.errors import ConfigError, ModelError
from assent.models.folders import longest
from assent.models.heads import load_score_model
from assent.models.loading import load_policy, load_tokenizer, stored_config
from assent.models.policy import Policy, ScoreModel
from assent.names import suggestion
from assent.rewards.build import Asking, source_names, sum_of
from assent.rewards.ensemble import Ensemble
from assent.rewards.group import GroupReward, Scores, WeightedSum
from assent.rewards.implicit import ImplicitReward, implicit_of
from assent.rewards.judge.prompt import read_prompt
from assent.rewards.judge.source import JudgeReward, check_no_reference, check_size
from assent.rewards.model import ModelReward
from assent.rewards.remote import SHAPES
from assent.rewards.rules import RULES, SPELLINGS, counts_tokens
from assent.rewards.scoring import score_examples
from assent.rewards.shared import Shared

MOST = 8192
"""Tokens of the longest prompt with its answer, where models would read more and nothing is said."""
FLAGS = ("--reference", "--beta")
"""The options by which the reference and the scale of an implicit reward are given."""
JUDGES = {"openai": "openai", "judge": "model"}
"""What stands before "=" in a judge's word -> the same in `RewardsConfig.judges`."""
KINDS = {
    **dict.fromkeys(RULES, "rules"),
    **dict.fromkeys(SHAPES, "servers"),
    **dict.fromkeys(JUDGES, "judges"),
    "implicit": "implicit",
}
"""What stands before "=" in a word -> the option of `RewardsConfig` that it belongs to."""
WHOLE = ("rules", "servers")
"""The options whose values are whole words, NAME=ARG; those of others are what stands behind "="."""


@dataclass(frozen=True)
class Outside:
    """A source of rewards, and how what it scores is read. `chat` is None where no tokenizer is known: nothing that
    was named reads tokens."""

    source: WeightedSum
    chat: Chat | None
    max_length: int
    world: World

    def check(self, examples: Sequence[Example]) -> None:
        """Asks whatever reads columns of the rows, and servers, whether it can score answers to these prompts, and
        judges whether it can these answers. What a model cannot read is counted while it scores. Raises ConfigError or
        DataError."""
        _check(self.source, examples)

    def score(self, examples: Sequence[Example]) -> Scores:
        """The rewards of all responses of all examples, as `score_examples` gives them."""
        return score_examples(self.source, examples, self.chat, max_length=self.max_length)


def _check(source: GroupReward, examples: Sequence[Example]) -> None:
    match source:
        case WeightedSum():
            for part in source.sources:
                _check(part, examples)
        case Ensemble() | ModelReward() | ImplicitReward():
            return
        case Shared():
            _check(source.source, examples)
        case JudgeReward():
            for example in examples:
                check_size(source.prompt, source.config, len(example.responses), f"the answers of {example.origin}")
            source.check(examples)
        case _:
            source.check([replace(example, responses=(), feedback=()) for example in examples])


def open_source(config: SourceConfig, world: World, *, forgiving: bool = False) -> Outside:
    """What `config.source` names; where `forgiving`, judges on servers count what these do not answer. Raises
    ConfigError, with the word, for one that names nothing and for options that do not fit it, ModelError for a folder
    that is no reward model."""
    rewards = rewards_of(config)
    models = _models(rewards, config)
    limit = _limit(models, config)
    rendered = isinstance(config, ScoredFileConfig) and config.rendered
    spoken = config.tokenizer or next(iter([*rewards.model, *rewards.implicit]), config.remote.tokenizer)
    if spoken is None and (counting := next(filter(counts_tokens, rewards.rules), None)):
        raise ConfigError(f"SOURCE {counting} counts tokens, and it is not known whose. Give --tokenizer FOLDER.")
    asker = _Asker(config, world, limit, spoken, rendered)
    asking = Asking(
        rewards,
        config.remote,
        limit,
        config.micro_tokens,
        config.trust_remote_code,
        rendered,
        flag="SOURCE",
        length_flag="--max_length",
        weights_flag="--weights",
        output_flag="--weights",
        judge=config.judge,
        precision=config.precision,
        implicit_flags=FLAGS,
        forgiving=forgiving,
    )
    source = sum_of(asker, asking)
    return Outside(source, asker.chat if spoken else None, limit, world)


def rewards_of(config: SourceConfig) -> RewardsConfig:
    """What the words of `config.source` stand for. Raises ConfigError."""
    found: dict[str, list[str]] = {}
    for word in config.source:
        kind, value = sorted_out(word)
        if value in found.setdefault(kind, []):
            raise ConfigError(f"SOURCE {word.partition('=')[0]} is named twice.")
        found[kind].append(value)
    models = len(found.get("model", ()))
    if config.ensemble != "mean" and models < 2:
        raise ConfigError(f"--ensemble {config.ensemble} is about several reward models. Got {models}.")
    for flag, given in zip(FLAGS, (config.reference is not None, config.beta is not None), strict=True):
        if given and "implicit" not in found:
            raise ConfigError(f"{flag} is about the policy of implicit=FOLDER. None is named.")
    _check_judges(found.get("judges", ()), config)
    rewards = RewardsConfig(
        **{kind: tuple(values) for kind, values in found.items()},  # type: ignore[arg-type]
        ensemble=config.ensemble,
        deviations=config.deviations,
        workers=config.workers,
        time_limit=config.time_limit,
        implicit_reference=config.reference,
        implicit_beta=config.beta,
    )
    return _weighted(rewards, config)


def _check_judges(judges: Sequence[str], config: SourceConfig) -> None:
    """Raises ConfigError for options of judges that do not fit: the answers of a row are what is judged here, and none
    of them is a measure for the others."""
    if problem := unread(config.judge, judges, "openai=URL", "judge=FOLDER"):
        raise ConfigError(problem)
    if judges and config.judge.pairs == "baseline":
        raise ConfigError(
            "--judge.pairs baseline compares with the answer in the row, for answers that are sampled. Here the row's "
            "answers are what is judged: use --judge.pairs all."
        )
    if judges:
        check_no_reference(read_prompt(config.judge.prompt), config.judge.prompt)


def _weighted(rewards: RewardsConfig, config: SourceConfig) -> RewardsConfig:
    """With the weights: by its name each is of a source, else of an output of the reward models."""
    names = source_names(rewards)
    of_sources = {name: weight for name, weight in config.weights.items() if name in names}
    others = {name: weight for name, weight in config.weights.items() if name not in names}
    if others and not rewards.model:
        name = next(iter(others))
        raise ConfigError(
            f"--weights: no source is called '{name}'.{suggestion(name, [*names])} There are: {', '.join(names)}."
        )
    return replace(rewards, weights=of_sources, output_weights=others)


def sorted_out(word: str, flag: str = "SOURCE") -> tuple[str, str]:
    """The option of `RewardsConfig` that a word belongs to, and its value there. Raises ConfigError, which calls it
    `flag`."""
    name, given, value = word.partition("=")
    if os.path.exists(os.path.expanduser(word)):
        return "model", word
    if name in KINDS and (given or name in RULES):
        if given and not value:
            raise ConfigError(f"{flag} {name}= says nothing. {_what_there_is()}")
        if name in JUDGES:
            return "judges", f"{JUDGES[name]}={value}"
        return KINDS[name], word if KINDS[name] in WHOLE else value
    if given and "/" not in name:
        raise ConfigError(f"{flag} {name}=...: there is no '{name}'.{suggestion(name, KINDS)} {_what_there_is()}")
    if ":" in word:
        return "functions", word
    return "model", word


def _what_there_is() -> str:
    rules = ", ".join(spelling.written for spelling in SPELLINGS.values())
    shapes = ", ".join(f"{shape}=URL" for shape in SHAPES)
    return (
        "A source is a reward model (folder, run or hub id), FILE.py:function, a rule "
        f"({rules}), a server ({shapes}), a judge (openai=URL, judge=FOLDER), or implicit=FOLDER."
    )


def _models(rewards: RewardsConfig, config: SourceConfig) -> list[str]:
    """All models that will be loaded."""
    models = [*rewards.model, *rewards.implicit]
    for folder in rewards.implicit:
        found = implicit_of(folder, reference=config.reference, beta=config.beta, flags=FLAGS)
        models += [found.reference] if found.reference is not None else []
    return models


def _limit(models: Sequence[str], config: SourceConfig) -> int:
    """The longest prompt with its answer, in tokens."""
    limits = [config.max_length or MOST]
    for path in models:
        try:
            found = longest(stored_config(ModelConfig(path, trust_remote_code=config.trust_remote_code)))
        except ModelError as error:
            raise ModelError(f"SOURCE {path}: {error} {_what_there_is()}") from None
        limits += [found] if found is not None and config.max_length is None else []
    return min(limits)


@dataclass(frozen=True)
class _Asker:
    """What sources need of a command that asks them."""

    config: SourceConfig
    world: World
    limit: int
    spoken: str | None
    rendered: bool

    @cached_property
    def chat(self) -> Chat:
        if self.spoken is None:
            raise ConfigError(
                "a server is sent text that a chat template has written, and none is known. Give --tokenizer FOLDER, "
                "that of the model whose answers are scored."
            )
        return Chat(load_tokenizer(self._model(self.spoken)), rendered=self.rendered)

    def score_model(self, path: str, *, trainable: bool, new_head: bool) -> ScoreModel:
        model = self._model(path)
        return load_score_model(
            model,
            load_tokenizer(model),
            max_length=self.limit,
            device=self.world.device,
            trainable=trainable,
            new_head=new_head,
        )

    def frozen_policy(self, path: str, revision: str | None = None) -> Policy:
        model = replace(self._model(path), revision=revision)
        return load_policy(model, max_length=self.limit, device=self.world.device, trainable=False).eval()

    def _model(self, path: str) -> ModelConfig:
        config = self.config
        return ModelConfig(path, precision=config.precision, trust_remote_code=config.trust_remote_code)
