"""Rewards for groups of answers, asked for in text: what a source is given, what it gives back, and sums of sources."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from assent.data.records import Example, Message
from assent.errors import ConfigError, NonFiniteError, UserError


class RewardError(UserError):
    """A source of rewards that cannot be used, or gave something else than rewards."""


class NonFiniteReward(RewardError, NonFiniteError):
    """A reward that is NaN or infinite. It ends the run like every reward that cannot be had: with its state saved."""


@dataclass(frozen=True, slots=True)
class Group:
    """The answers to one prompt. `example` has the prompt's messages and, as `meta`, the row's other columns."""

    example: Example
    texts: tuple[str, ...]
    finished: tuple[bool, ...]
    """Whether each ended by itself."""
    lengths: tuple[int, ...]
    """Tokens of each."""
    ids: tuple[Sequence[int] | np.ndarray, ...] = ()
    """The tokens themselves, for sources that ask for them; empty where nobody kept them."""
    prompt_ids: Sequence[int] | np.ndarray = ()
    """The tokens that they were sampled from."""

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.finished) == len(self.lengths), "one entry for each answer"
        assert not self.ids or len(self.ids) == len(self.texts), "one entry for each answer"

    def __len__(self) -> int:
        return len(self.texts)

    def alone(self, index: int) -> Group:
        """A group of one: that answer."""
        one = slice(index, index + 1)
        return Group(
            self.example, self.texts[one], self.finished[one], self.lengths[one], self.ids[one], self.prompt_ids
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of the S answers of all groups in order. Unscored answers are NaN: counted and left out, never 0."""

    values: np.ndarray
    """[S] float64."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What `values` were made from, each [S], by name: for logs."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Why answers are unscored, and how many."""


class GroupReward(Protocol):
    """A source of rewards: a model, a rule, a function, a server, or several of them."""

    name: str

    def check(self, examples: Sequence[Example]) -> None:
        """Raises ConfigError or DataError where answers to these prompts could not be scored: better before training
        than in it."""
        ...

    def score(self, groups: Sequence[Group]) -> Scores:
        """The rewards of all answers. Raises RewardError where it has none to give."""
        ...


class WeightedSum:
    """`values = sum(weight * values of the source)`; the parts are logged under the names of their sources.

    An answer that a source with a weight other than 0 left unscored is unscored. A weight of 0 only logs."""

    def __init__(self, name: str, sources: Sequence[GroupReward], weights: Sequence[float]) -> None:
        """Raises ConfigError unless there is one finite weight for each source, not all of them 0, and every source
        has a name of its own."""
        check_names(name, sources)
        if len(weights) != len(sources) or not all(map(math.isfinite, weights)) or not any(weights):
            raise ConfigError(
                f"{name}: expected {len(sources)} finite weights, not all of them 0, for "
                f"{', '.join(source.name for source in sources)}; got {list(weights)}."
            )
        self.name = name
        self.sources = tuple(sources)
        self.weights = tuple(weights)

    def check(self, examples: Sequence[Example]) -> None:
        for source in self.sources:
            source.check(examples)

    def score(self, groups: Sequence[Group]) -> Scores:
        scores = [source.score(groups) for source in self.sources]
        total = np.zeros(sum(map(len, groups)))
        for weight, score in zip(self.weights, scores, strict=True):
            if weight:
                total += weight * score.values
        return Scores(total, *by_source(self.sources, scores))


def check_names(name: str, sources: Sequence[GroupReward]) -> None:
    """Raises ConfigError when there are no sources or two have the same name, which logs could not tell apart."""
    twice = [source for source, count in Counter(source.name for source in sources).items() if count > 1]
    if not sources or twice:
        got = f"{', '.join(twice)} more than once" if twice else "none"
        raise ConfigError(f"{name}: expected at least one source of rewards, each with a name of its own; got {got}.")


def by_source(sources: Sequence[GroupReward], scores: Sequence[Scores]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Parts and failures of several sources under their names."""
    parts: dict[str, np.ndarray] = {}
    failures: dict[str, int] = {}
    for source, score in zip(sources, scores, strict=True):
        parts[source.name] = score.values
        parts |= {f"{source.name}/{part}": values for part, values in score.parts.items()}
        failures |= {f"{source.name}: {reason}": count for reason, count in score.failures.items()}
    return parts, failures


def checked(who: str, groups: Sequence[Group], values: Sequence[object]) -> np.ndarray:
    """What `who` gave for all answers in order, [S] float64; None (unscored) becomes NaN.

    Raises RewardError when there are more or fewer values than answers or one is no number, and NonFiniteReward, with
    the row and the answer, when one is NaN or infinite."""
    answers = [(group.example, text) for group in groups for text in group.texts]
    if len(values) != len(answers):
        raise RewardError(
            f"{who} gave {len(values)} rewards; expected {len(answers)}: one for each answer, in order, None for an "
            "answer that has none."
        )
    checked_values = np.full(len(answers), np.nan)
    for index, ((example, text), value) in enumerate(zip(answers, values, strict=True)):
        if value is not None:
            checked_values[index] = _number(who, example, text, value)
    return checked_values


def _number(who: str, example: Example, text: str, value: object) -> float:
    about = f"for the answer {reprlib.repr(text)} to {example.origin}"
    try:
        if isinstance(value, str | bytes):  # float would read them
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise RewardError(
            f"{who} gave {reprlib.repr(value)} {about}; expected a number, or None for no reward."
        ) from None
    if not math.isfinite(number):
        raise NonFiniteReward(f"{who} gave {number} {about}; expected a finite number, or None for no reward.")
    return number


def prompt_text(messages: Sequence[Message]) -> str:
    """A prompt as plain text: the contents of its messages, with an empty line between them."""
    return "\n\n".join(message.content for message in messages)
