"""What scores answers in an evaluation: every source of rewards by itself, and the user's function as gold."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePath

import numpy as np

from assent import distributed
from assent.config import EvalConfig, EvalJudgeConfig, JudgeConfig, SourceConfig
from assent.data.records import Example, Message, Response
from assent.distributed import World, gathered
from assent.errors import ConfigError, ModelError
from assent.evaluate.answers import Sampled
from assent.evaluate.measured import GOLD
from assent.evaluate.policies import PolicySource, split_name
from assent.evaluate.prompts import PromptSet
from assent.functions import load_function
from assent.guest import Guest, blamed, ends_programs
from assent.measures.answers import Answers
from assent.models.digests import tokenizer_digest
from assent.rewards.build import source_names
from assent.rewards.group import Group, RewardError, checked, in_order, reward
from assent.rewards.judge.openai import OpenAIJudge, tried
from assent.rewards.judge.prompt import read_prompt
from assent.rewards.judge.source import JudgeReward
from assent.rewards.outside import KINDS, Outside, open_source, rewards_of
from assent.rewards.shared import Shared

Scorer = Callable[[Sequence[Message], str], float | None]
NO_OPINION = "the scorer has no opinion"
CHUNK = 512


class Sources:
    """The sources of an evaluation by name: `words` of --rewards, of which `judges` compare answers with the baseline's
    and the others score them, and functions. A source is opened once for all policies that speak alike.

    Raises ConfigError for words that name nothing, and for two of one name."""

    def __init__(
        self, config: EvalConfig, prompts: PromptSet, world: World, functions: Mapping[str, Scorer] | None = None
    ) -> None:
        self.config, self.prompts, self.world = config, prompts, world
        self.functions = dict(functions or {})
        if config.scorer is not None:
            self.functions[GOLD] = gold(config.scorer, prompts.examples)
        self.words: dict[str, str] = {}
        for name, word in map(self._named, config.rewards):
            if name in self.words or name in self.functions:
                raise ConfigError(f"--rewards: two sources are called '{name}'. Name them: NAME=SOURCE.")
            self.words[name] = word
        self.judges = [name for name, word in self.words.items() if self._compares(word)]
        self._open: dict[tuple[str, str], Outside] = {}

    @property
    def names(self) -> list[str]:
        """All that scores answers; gold first."""
        return [*self.functions, *(name for name in self.words if name not in self.judges)]

    def _named(self, word: str) -> tuple[str, str]:
        name, given, _ = word.partition("=")
        if given and name not in KINDS and (parts := split_name(word))[0]:
            return parts
        rewards = rewards_of(self.config.source(word, None))
        if rewards.model:
            path = PurePath(rewards.model[0])
            return (path.parent.name if path.name == "model" and path.parent.name else path.name), word
        return source_names(rewards)[0], word

    def _compares(self, word: str) -> bool:
        """Whether a judge is asked to compare answers. Raises ConfigError where it cannot compare two."""
        judge = self.config.judge
        if not rewards_of(self.config.source(word, None)).judges:
            return False
        prompt = read_prompt(judge.prompt)
        if prompt.compares and prompt.mode != "pairwise":
            raise ConfigError(f"--judge.prompt {judge.prompt} shows more than two answers. Take one of mode pairwise.")
        if prompt.compares and judge.rule != "win_rate":
            raise ConfigError(f"--judge.rule {judge.rule} is about groups of answers. Here one is compared with one.")
        return prompt.compares

    def check(self, policies: Sequence[PolicySource]) -> None:
        """Before any work: every source is opened and asked whether it can score answers to these prompts."""
        example = self.prompts.examples[0]
        for name in self.functions:
            distributed.on_main(partial(self._ask, name, example, TRIED[0]))
        for policy in policies:
            for name in self.words:
                outside = self.opened(name, policy)
                if name in self.judges:
                    self.judge(name, policy).check(self.prompts.examples)
                else:
                    outside.check(self.prompts.examples)
        self._try_judges()

    def opened(self, name: str, policy: PolicySource) -> Outside:
        """A source for the answers of a policy; a judge that compares reads text alone, whoever wrote it."""
        spoken = self.config.tokenizer if policy.is_file or name in self.judges else policy.path
        key = name, "" if spoken is None else repr(sorted(tokenizer_digest(spoken).items()))
        if key not in self._open:
            try:
                self._open[key] = open_source(self._source(name, spoken), self.world, forgiving=True)
            except (ConfigError, ModelError) as error:
                said = str(error).replace("SOURCE ", "--rewards ", 1)
                raise type(error)(said if said.startswith("--") else f"--rewards {self.words[name]}: {said}") from None
        return self._open[key]

    def _source(self, name: str, spoken: str | None) -> SourceConfig:
        """The options of a source. What a contradiction is worth is about comparisons alone."""
        config = self.config.source(self.words[name], spoken)
        if name in self.judges or config.judge.contradiction != EvalJudgeConfig().contradiction:
            return config
        return replace(config, judge=replace(config.judge, contradiction=JudgeConfig().contradiction))

    def _served(self) -> Iterator[tuple[str, JudgeReward, OpenAIJudge]]:
        """Every judge on a server that is open, with its name."""
        for (name, _), outside in self._open.items():
            for part in outside.source.sources:
                if isinstance(part, Shared) and isinstance(part.source, JudgeReward):
                    if isinstance(part.source.judge, OpenAIJudge):
                        yield name, part.source, part.source.judge

    @property
    def unanswered(self) -> dict[str, Counter[str]]:
        """Judge -> the questions that its server did not answer, by why, of all ranks. Every rank must call it."""
        found: dict[str, Counter[str]] = {}
        for name, _, served in self._served():
            for counted in gathered(partial(Counter, served.unanswered)):
                found[name] = found.get(name, Counter()) + counted
        return {name: counted for name, counted in found.items() if counted}

    def _try_judges(self) -> None:
        """Raises RewardError for a judge's server that does not answer: it is asked about made-up answers."""
        made_up = Group(self.prompts.examples[0], TRIED, (True, True), (0, 0))
        for name, judge, served in self._served():
            distributed.on_main(partial(tried, f"--rewards {name}", served, partial(judge.score, [made_up])))

    def judge(self, name: str, policy: PolicySource) -> Shared:
        """A judge that compares, as a source whose work all ranks share."""
        (shared,) = self.opened(name, policy).source.sources
        assert isinstance(shared, Shared) and isinstance(shared.source, JudgeReward)
        return shared

    def scored(self, policy: PolicySource, sampled: Sampled) -> Answers:
        """The answers with every score. Every rank must call it; the work is shared."""
        answers, scores, unscored = sampled.answers, {}, {}
        for name in self.names:
            if name in self.functions:
                values, reasons = distributed.on_main(partial(self._by_function, name, answers))
            else:
                values, reasons = self._by_source(self.opened(name, policy), sampled)
            scores[name], unscored[name] = values, reasons
        return replace(answers, scores=scores, unscored=unscored)

    def _by_function(self, name: str, answers: Answers) -> tuple[np.ndarray, tuple[str, ...]]:
        examples = self.prompts.examples
        found = [
            self._ask(name, examples[prompt], text)
            for prompt, text in zip(answers.prompt.tolist(), answers.texts, strict=True)
        ]
        values = np.array([np.nan if value is None else value for value in found], np.float64)
        return values, tuple(NO_OPINION if value is None else "" for value in found)

    def _ask(self, name: str, example: Example, text: str) -> float | None:
        value = self.functions[name](example.prompt, text)
        return None if value is None else reward(f"The scorer '{name}'", text, str(example.origin), value)

    def _by_source(self, outside: Outside, sampled: Sampled) -> tuple[np.ndarray, tuple[str, ...]]:
        answers = sampled.answers
        if not len(answers):
            return np.zeros(0), ()
        groups = list(self._groups(sampled))
        if sampled.ids:
            starts = range(0, len(groups), max(1, CHUNK // self.config.answers))
            size = starts.step
            found = in_order([outside.source.score(groups[start : start + size]) for start in starts])
        else:
            found = outside.score([replace(group.example, responses=group.responses) for group in groups])
        return np.asarray(found.values, np.float64), tuple(reason or "" for reason in found.reasons())

    def _groups(self, sampled: Sampled) -> Iterator[Group]:
        """The answers to each prompt; those that were sampled here with their tokens."""
        answers = sampled.answers
        for prompt in np.unique(answers.prompt).tolist():
            rows = np.flatnonzero(answers.prompt == prompt).tolist()
            texts = tuple(answers.texts[row] for row in rows)
            finished = (True,) * len(rows) if answers.finished is None else tuple(answers.finished[rows].tolist())
            yield Group(
                self.prompts.examples[prompt],
                texts,
                finished,
                (0,) * len(rows) if answers.tokens is None else tuple(answers.tokens[rows].tolist()),
                ids=tuple(sampled.ids[row] for row in rows) if sampled.ids else (),
                prompt_ids=sampled.prompt_ids.get(prompt, ()),
                responses=() if sampled.ids else tuple(Response((Message("assistant", text),)) for text in texts),
            )


TRIED = ("I do not know.", "I cannot tell.")
"""The answers that functions, and judges on servers, are tried on before work is spent."""


def gold(spec: str, prompts: Sequence[Example]) -> Scorer:
    """The user's function as a scorer of answers to these prompts. It raises RewardError, with the function's line,
    for what the function raises, and for what is no number and not None."""
    guest, by_prompt = Guest(), {example.prompt: example for example in prompts}
    with guest.turn():
        function = load_function(spec, "--scorer")

    def score(prompt: Sequence[Message], answer: str) -> float | None:
        example = by_prompt[tuple(prompt)]
        with guest.turn():
            try:
                value = function(prompt, answer)
            except BaseException as error:
                if not isinstance(error, Exception) and not ends_programs(error):
                    raise
                raised = blamed(error, spec.rpartition(":")[0])
                to = f"for the answer {reprlib.repr(answer)} to {example.origin}"
                raise RewardError(f"--scorer {spec} raised {raised} {to}.") from error
        if value is None:
            return None
        return float(checked(f"--scorer {spec}", [Group(example, (answer,), (True,), (0,))], [value])[0])

    return score
