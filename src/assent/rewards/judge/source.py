"""A judge as a source of rewards: which answers it is shown in which order, and what becomes of its verdicts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from assent.config import JudgeConfig
from assent.data.columns import column, has_column
from assent.data.records import Example, Message
from assent.errors import ConfigError, DataError
from assent.rewards.group import Group, Scores, checked
from assent.rewards.judge import parse
from assent.rewards.judge.ask import Answer, Judge
from assent.rewards.judge.asking import Asker
from assent.rewards.judge.ledger import CACHED as CACHED
from assent.rewards.judge.ledger import Ledger
from assent.rewards.judge.parse import Unreadable
from assent.rewards.judge.prompt import Prompt
from assent.rewards.judge.template import Forged
from assent.rewards.judge.verdicts import RULES, best, consistent, settled, share_of

FORGED = "a text holds a delimiter of the judge's prompt"
CONTRADICTION = "the judge contradicts itself when the order changes"
ALONE = "there is nothing to compare it with"
NO_CHANCES = "no probabilities of the letters"
NOT_SO_MANY = "the judge's prompt shows another number of answers"
BASELINE = -1
"""The number of the row's answer among those of a group."""

Reading = np.ndarray | str
"""What a verdict says: a share for each answer in the order shown, or numbers of one answer. Or why it cannot be
read."""


class Showing(NamedTuple):
    """One question to a judge: answers of a group, in the order in which they are shown."""

    group: int
    shown: tuple[int, ...]


class JudgeReward:
    """A judge, asked what a prompt file says, as a source of rewards.

    rating, criteria  each answer by itself: its number; sum_k weight_k * number_k, the numbers as parts
    pairwise          pairs of answers in both orders; two with the same text are tied without a question
    choice            all answers of a group at once, each once in every place

    A comparison of which one order cannot be read counts for nothing, and so does, unless asked otherwise, one whose
    orders contradict each other. An answer without a verdict that counts is unscored, with the reason."""

    def __init__(self, name: str, prompt: Prompt, judge: Judge, config: JudgeConfig, budget: float) -> None:
        """`budget` are the seconds for one call of `score`. Raises ConfigError where `config` asks what is about
        another kind of prompt."""
        self.name = name
        self.prompt = prompt
        self.judge = judge
        self.config = config
        self.asker = Asker(judge, prompt.digest, config, budget, soft=config.soft)
        self.against_row = prompt.mode == "pairwise" and config.pairs == "baseline"
        check_options(prompt, config)

    def check(self, examples: Sequence[Example]) -> None:
        """Raises DataError for rows that lack what the prompt shows, OutputError where the cache cannot be written."""
        self.asker.check()
        needed = "shows the row's answer" if self.prompt.needs_reference else ""
        needed = "compares with the row's answer (--judge.pairs baseline)" if self.against_row else needed
        for example in examples:
            if needed and not example.responses:
                raise DataError(f"{example.origin}: the row has no answer; the judge {needed}.")
            for name in self.prompt.columns:
                if column(example.meta, name) is None:
                    there = "is empty" if has_column(example.meta, name) else "is missing"
                    raise DataError(
                        f"{example.origin}: the column '{name}' {there}; {self.prompt.source} shows it to the judge."
                    )

    def score(self, groups: Sequence[Group]) -> Scores:
        """Raises what the judge raises."""
        ledger = Ledger()
        showings = [Showing(number, shown) for number, group in enumerate(groups) for shown in self._shown(group)]
        readings = self._readings(groups, showings, ledger)
        if self.prompt.compares:
            return self._compared(groups, dict(zip(showings, readings, strict=True)), ledger)
        return self._single(groups, readings, ledger)

    # ---- what is shown

    def _shown(self, group: Group) -> list[tuple[int, ...]]:
        """The answers of every question about a group, in the order in which they are shown."""
        if self.prompt.mode == "choice":
            every = tuple(range(len(group)))
            if len(group) != len(self.prompt.letters):
                return []
            return [every[first:] + every[:first] for first in every]
        if not self.prompt.compares:
            return [(index,) for index in range(len(group))]
        pairs = [pair for pair in self._pairs(group) if _text(group, pair[0]) != _text(group, pair[1])]
        return [shown for i, j in pairs for shown in ((i, j), (j, i))]

    def _pairs(self, group: Group) -> list[tuple[int, int]]:
        every = range(len(group))
        return [(index, BASELINE) for index in every] if self.against_row else list(combinations(every, 2))

    def _messages(self, group: Group, shown: Sequence[int]) -> tuple[Message, ...]:
        row = {name: _written(column(group.example.meta, name)) for name in self.prompt.columns}
        reference = _text(group, BASELINE) if self.prompt.needs_reference else None
        texts = [_text(group, index) for index in shown]
        return self.prompt.messages(conversation(group.example.prompt), texts, reference, row)

    # ---- what is asked

    def _readings(self, groups: Sequence[Group], showings: Sequence[Showing], ledger: Ledger) -> list[Reading]:
        asked: dict[int, tuple[Message, ...]] = {}
        for number, (group, shown) in enumerate(showings):
            try:
                asked[number] = self._messages(groups[group], shown)
            except Forged:
                ledger.note(unreadable=True)
        found = self.asker.readings(asked, self._understood, ledger)
        return [found.get(number, FORGED) for number in range(len(showings))]

    def _understood(self, answer: Answer) -> np.ndarray:
        prompt = self.prompt
        if prompt.mode == "rating":
            return np.array([parse.rating(answer.text, prompt.form, prompt.scale, prompt.whole)])
        if prompt.mode == "criteria":
            names = [criterion.name for criterion in prompt.criteria]
            return np.array(parse.criteria(answer.text, names, prompt.scale, prompt.whole))
        known = [*prompt.letters, *([prompt.tie] if prompt.tie else [])]
        if self.config.soft:
            chances = answer.chances or {}
            if answer.text or not chances:  # a folder's judge writes nothing
                parse.letter(answer.text, prompt.form, known)
            if not prompt.letters or not all(letter in chances for letter in prompt.letters):
                raise Unreadable(NO_CHANCES)
            logs = [chances[letter] for letter in prompt.letters]
            if not max(logs) > -math.inf or any(map(math.isnan, logs)):
                raise Unreadable(NO_CHANCES)
            return share_of(logs)
        if prompt.verdicts:
            share = prompt.verdicts[parse.letter(answer.text, prompt.form, prompt.verdicts)]
            return np.array([share, 1 - share])
        letter = parse.letter(answer.text, prompt.form, known)
        count = len(prompt.letters)
        return np.full(count, 1 / count) if letter == prompt.tie else np.eye(count)[prompt.letters.index(letter)]

    # ---- what it is worth

    def _single(self, groups: Sequence[Group], readings: Sequence[Reading], ledger: Ledger) -> Scores:
        failures = Counter(reading for reading in readings if isinstance(reading, str))
        weights = np.array([criterion.weight for criterion in self.prompt.criteria]) if self.prompt.criteria else None
        numbers = [None if isinstance(reading, str) else reading for reading in readings]
        values = [None if n is None else float(n[0] if weights is None else weights @ n) for n in numbers]
        parts = {
            criterion.name: np.array([np.nan if n is None else n[k] for n in numbers])
            for k, criterion in enumerate(self.prompt.criteria)
        }
        shares = {} if weights is None else {name: w * own for w, (name, own) in zip(weights, parts.items())}
        columns = {"verdict": [r if isinstance(r, str) else r.tolist() for r in readings]}
        why = [reading if isinstance(reading, str) else None for reading in readings]
        return Scores(
            checked(self._who, groups, values), parts, dict(failures), None, columns, ledger.metrics, why, shares
        )

    def _compared(self, groups: Sequence[Group], readings: Mapping[Showing, Reading], ledger: Ledger) -> Scores:
        values: list[float | None] = []
        why: list[str | None] = []
        verdicts: list[object] = []
        for number, group in enumerate(groups):
            if not len(group):
                continue
            rewards, reasons, said = self._group(number, group, readings, ledger)
            values += [None if np.isnan(reward) else float(reward) for reward in rewards]
            why += reasons
            verdicts += said
        failures = Counter(reason for reason in why if reason is not None)
        columns = {"verdicts": verdicts}
        return Scores(checked(self._who, groups, values), {}, dict(failures), None, columns, ledger.metrics, why)

    def _group(
        self, number: int, group: Group, readings: Mapping[Showing, Reading], ledger: Ledger
    ) -> tuple[np.ndarray, list[str | None], list[list[object]]]:
        """Rewards [S] of a group, why answers have none, and what was said about each."""
        size = len(group)
        if self.prompt.mode == "choice" and size != len(self.prompt.letters):
            return np.full(size, np.nan), [NOT_SO_MANY] * size, [[] for _ in range(size)]
        pairs, shares = [], []
        said: list[list[object]] = [[] for _ in range(size)]
        reasons: list[Counter[str]] = [Counter() for _ in range(size)]
        comparisons = [tuple(range(size))] if self.prompt.mode == "choice" else self._pairs(group)
        for shown in comparisons:
            outcome = self._outcome(number, group, shown, readings, ledger)
            for place, index in enumerate(shown):
                if index != BASELINE:
                    others: list[object] = [other for other in shown if other not in (index, BASELINE)] or ["row"]
                    told = outcome if isinstance(outcome, str) else float(outcome[place])
                    said[index].append({"against": others, "outcome": told})
                    reasons[index].update([outcome] if isinstance(outcome, str) else [])
            if not isinstance(outcome, str):
                pairs.append(shown)
                shares.append(outcome)
        rewards = self._rewards(size, pairs, shares)
        first = [(counted.most_common(1) or [(ALONE, 1)])[0][0] for counted in reasons]
        return rewards, [why if gone else None for why, gone in zip(first, np.isnan(rewards).tolist())], said

    def _outcome(
        self, number: int, group: Group, shown: tuple[int, ...], readings: Mapping[Showing, Reading], ledger: Ledger
    ) -> Reading:
        """What one comparison gives each of its answers, or why nothing."""
        if self.prompt.mode == "pairwise" and _text(group, shown[0]) == _text(group, shown[1]):
            return np.array([0.5, 0.5])
        orders = [shown[first:] + shown[:first] for first in range(len(shown))]
        found = [readings[Showing(number, order)] for order in orders]
        for reading in found:
            if not isinstance(reading, str) and len(best(reading)) == 1:
                ledger.note(first_shown_wins=0 in best(reading))
        if bad := [reading for reading in found if isinstance(reading, str)]:
            return bad[0]
        shares = np.array(
            [[reading[order.index(index)] for index in shown] for order, reading in zip(orders, found, strict=True)]
        )
        ledger.note(consistency=consistent(shares))
        result = settled(shares, "mean" if self.config.soft else self.config.contradiction)
        return CONTRADICTION if result is None else result

    def _rewards(self, size: int, pairs: Sequence[tuple[int, ...]], shares: Sequence[np.ndarray]) -> np.ndarray:
        if self.prompt.mode == "choice":
            return shares[0] if shares else np.full(size, np.nan)
        rule = RULES[self.config.rule]
        if self.against_row:  # the row's answer is one more of the group
            pairs = [(index, size) for index, _ in pairs]
        return rule(size + self.against_row, [(i, j) for i, j in pairs], [float(share[0]) for share in shares])[:size]

    @property
    def _who(self) -> str:
        return f"The judge '{self.name}'"


def check_options(prompt: Prompt, config: JudgeConfig) -> None:
    """Raises ConfigError where options are about another kind of prompt."""
    if prompt.mode == "claims":
        raise ConfigError(f"{prompt.source} asks for claims, which are no reward. It is for assent eval --consistency.")
    if config.soft and prompt.verdicts:
        raise ConfigError(
            f"--judge.soft takes the probabilities of letters; {prompt.source} has verdicts in words of its own."
        )
    usual = replace(JudgeConfig(), prompt=config.prompt)
    for name, modes in {
        "pairs": ("pairwise",),
        "rule": ("pairwise",),
        "contradiction": ("pairwise", "choice"),
        "soft": ("pairwise", "choice"),
    }.items():
        if getattr(config, name) != getattr(usual, name) and prompt.mode not in modes:
            raise ConfigError(
                f"--judge.{name} is about prompts of mode {' or '.join(modes)}. Got {prompt.source}, of mode "
                f"{prompt.mode}."
            )


def check_size(prompt: Prompt, config: JudgeConfig, size: int, what: str) -> None:
    """Raises ConfigError where groups of `size` answers (`what` says which) cannot be judged."""
    if prompt.mode == "choice" and size != len(prompt.letters):
        raise ConfigError(f"{prompt.source} shows {len(prompt.letters)} answers to one prompt. Got {size}: {what}.")
    if prompt.mode == "pairwise" and size < 2 and config.pairs == "all":
        raise ConfigError(
            f"{prompt.source} compares answers to one prompt with each other. Got a single answer: {what}. Compare "
            "with the row's answer (--judge.pairs baseline), or take a prompt that rates single answers."
        )


def check_no_reference(prompt: Prompt, name: str) -> None:
    """Raises ConfigError for a prompt file, called `name`, that shows the row's answer where a row's answers are what
    is judged."""
    if prompt.needs_reference:
        raise ConfigError(
            f"--judge.prompt {name} shows the answer in the row as {{{{ reference }}}}. Here the row's "
            "answers are what is judged: show a column of its own, {{ row.NAME }}."
        )


def conversation(prompt: Sequence[Message]) -> str:
    """What a judge is shown of a conversation: the text of a single message as it is, several with their roles."""
    if len(prompt) == 1:
        return _said(prompt[0])
    return "\n\n".join(f"[{message.role}]\n{_said(message)}" for message in prompt)


def _said(message: Message) -> str:
    calls = [f"(calls {call.name} with {call.arguments})" for call in message.tool_calls]
    return "\n".join([*([message.content] if message.content or not calls else []), *calls])


def _text(group: Group, index: int) -> str:
    """An answer as it is shown; of several turns, as a conversation."""
    if index == BASELINE:
        return conversation(group.example.responses[0].messages)
    return conversation(group.responses[index].messages) if group.responses else group.texts[index]


def _written(value: object) -> str:
    """The value of a column as a template shows it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
