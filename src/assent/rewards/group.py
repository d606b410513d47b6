"""Rewards for groups of answers, asked for in text: what a source is given, what it gives back, and sums of sources."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from assent.data.records import Example, Response
from assent.data.tree import TokenTree
from assent.errors import ConfigError, NonFiniteError, UserError
from assent.foreign import shown

UNREADABLE = "its chat template cannot write the answer"
"""Why a reward model leaves an answer unscored."""
LARGEST = float(np.finfo(np.float32).max)
"""Rewards are kept as float32: what is further from 0 would be infinite there."""


class RewardError(UserError):
    """A source of rewards that cannot be used, or gave something else than rewards."""


class NonFiniteReward(RewardError, NonFiniteError):
    """A reward that is NaN, infinite, or too large for float32. It ends the run like every reward that cannot be had:
    with its state saved."""

    exit_code = NonFiniteError.exit_code


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: optimiser steps taken, of how many, and how many are one pass over the prompts."""

    step: int = 0
    steps: int = 0
    per_epoch: int = 1

    @property
    def epoch(self) -> float:
        """Passes done, with their fraction."""
        return self.step / self.per_epoch

    @property
    def epochs(self) -> int:
        """Passes in the whole run, the last perhaps in part."""
        return -(-self.steps // self.per_epoch)


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
    progress: Progress = Progress()
    """Where the run stands that asks."""
    responses: tuple[Response, ...] = ()
    """Answers of a data set as it has them, perhaps of several turns; empty for sampled ones."""
    tree: TokenTree | None = None
    """The same as tokens, where they are read as such; `ids` and `prompt_ids` are its own."""

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.finished) == len(self.lengths), "one entry for each answer"
        assert not self.ids or len(self.ids) == len(self.texts), "one entry for each answer"
        assert not self.responses or len(self.responses) == len(self.texts), "one entry for each answer"

    def __len__(self) -> int:
        return len(self.texts)

    def alone(self, index: int) -> Group:
        """A group of one: that answer."""
        one = slice(index, index + 1)
        return replace(
            self,
            texts=self.texts[one],
            finished=self.finished[one],
            lengths=self.lengths[one],
            ids=self.ids[one],
            responses=self.responses[one],
            tree=None if self.tree is None else replace(self.tree, branches=self.tree.branches[one]),
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
    abstained: np.ndarray | None = None
    """[S] bool: unscored because the source does not judge such answers (a function's None), as another may."""
    columns: Mapping[str, Sequence[object]] = field(default_factory=dict)
    """What else is to be written down about each answer, S of them, by name: for samples."""
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Numbers about the whole, by name; their mean is logged."""
    why: Sequence[str | None] = ()
    """Why each answer is unscored, S of them, None for one that has a reward; empty where the source does not say."""
    shares: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What `values` are the sum of, each [S], by name; empty where they are no sum."""

    def reasons(self) -> list[str | None]:
        """Why each of the S answers is unscored, as far as it is known; None for one that has a reward."""
        known = self.why or [" or ".join(self.failures) or "no reward"] * len(self.values)
        missing = np.isnan(self.values).tolist()
        return [reason or "no reward" if gone else None for reason, gone in zip(known, missing, strict=True)]


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


class Nothing:
    """No source at all: nobody says what answers are worth, which is then the same for all."""

    name = "none"

    def check(self, examples: Sequence[Example]) -> None:
        pass

    def score(self, groups: Sequence[Group]) -> Scores:
        return Scores(np.zeros(sum(map(len, groups))))


class WeightedSum:
    """`values = sum(weight * values of the source)`; the parts are logged under the names of their sources.

    An answer that a source with a weight other than 0 left unscored is unscored. One that a source abstains from is
    worth what the others give it, and unscored where all abstain. A weight of 0 only logs."""

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
        """Raises NonFiniteReward where a sum is not a float32 number, besides what the sources raise."""
        scores = [source.score(groups) for source in self.sources]
        total = np.zeros(sum(map(len, groups)))
        judged, failed = np.zeros((2, len(total)), bool)
        shares: dict[str, np.ndarray] = {}
        for source, weight, score in zip(self.sources, self.weights, scores, strict=True):
            if weight:
                left = np.zeros(len(total), bool) if score.abstained is None else score.abstained
                with np.errstate(over="ignore", invalid="ignore"):  # `combined` finds what is not finite
                    total += (worth := np.where(left, 0.0, weight * score.values))
                    inner = {f"{source.name}/{part}": weight * own for part, own in score.shares.items()}
                shares |= inner or {source.name: worth}
                judged |= ~left
                failed |= np.isnan(score.values) & ~left
        values = combined(self.name, groups, total, judged & ~failed)
        return replace(from_sources(self.sources, scores, values), shares=shares)


def check_names(name: str, sources: Sequence[GroupReward]) -> None:
    """Raises ConfigError when there are no sources or two have the same name, which logs could not tell apart."""
    twice = [source for source, count in Counter(source.name for source in sources).items() if count > 1]
    if not sources or twice:
        got = f"{', '.join(twice)} more than once" if twice else "none"
        raise ConfigError(f"{name}: expected at least one source of rewards, each with a name of its own; got {got}.")


def from_sources(sources: Sequence[GroupReward], scores: Sequence[Scores], values: np.ndarray) -> Scores:
    """`values`, and what several sources say beside their rewards, under their names."""
    parts: dict[str, np.ndarray] = {}
    failures: dict[str, int] = {}
    columns: dict[str, Sequence[object]] = {}
    metrics: dict[str, Sequence[float]] = {}
    for source, score in zip(sources, scores, strict=True):
        parts[source.name] = score.values
        parts |= {f"{source.name}/{part}": own for part, own in score.parts.items()}
        failures |= {f"{source.name}: {reason}": count for reason, count in score.failures.items()}
        columns |= {f"{source.name}/{column}": own for column, own in score.columns.items()}
        metrics |= {f"{source.name}/{metric}": own for metric, own in score.metrics.items()}
    return Scores(values, parts, failures, None, columns, metrics, _why(sources, scores, values))


def _why(sources: Sequence[GroupReward], scores: Sequence[Scores], values: np.ndarray) -> Sequence[str | None]:
    """Why answers are unscored in `values`, [S], by what the sources say of them; empty where all are scored."""
    if not np.isnan(values).any():
        return ()
    told = [
        [reason and f"{source.name}: {reason}" for reason in own.reasons()]
        for source, own in zip(sources, scores, strict=True)
    ]
    return [
        "; ".join(filter(None, reasons)) or "no reward" if gone else None
        for gone, *reasons in zip(np.isnan(values).tolist(), *told, strict=True)
    ]


def in_order(pieces: Sequence[Scores]) -> Scores:
    """What one source gave for one portion of the answers after the other, as one."""
    failures: Counter[str] = Counter()
    metrics: dict[str, list[float]] = {}
    for piece in pieces:
        failures.update(piece.failures)
        for name, numbers in piece.metrics.items():
            metrics.setdefault(name, []).extend(numbers)
    names = dict.fromkeys(name for piece in pieces for name in piece.columns)
    columns = {
        name: [value for piece in pieces for value in piece.columns.get(name, [None] * len(piece.values))]
        for name in names
    }
    abstained = [np.zeros(len(piece.values), bool) if piece.abstained is None else piece.abstained for piece in pieces]
    return Scores(
        np.concatenate([piece.values for piece in pieces]),
        _joined([piece.parts for piece in pieces], pieces),
        dict(failures),
        np.concatenate(abstained),
        columns,
        metrics,
        [reason for piece in pieces for reason in piece.reasons()] if failures else (),
        _joined([piece.shares for piece in pieces], pieces),
    )


def _joined(numbers: Sequence[Mapping[str, np.ndarray]], pieces: Sequence[Scores]) -> dict[str, np.ndarray]:
    """Numbers [S] by name of all pieces; NaN in those that have none of the name."""
    names = dict.fromkeys(name for each in numbers for name in each)
    nothing = [np.full(len(piece.values), np.nan) for piece in pieces]
    return {
        name: np.concatenate([each.get(name, none) for each, none in zip(numbers, nothing, strict=True)])
        for name in names
    }


def checked(who: str, groups: Sequence[Group], values: Sequence[object]) -> np.ndarray:
    """What `who` gave for all answers in order, [S] float64; None (unscored) becomes NaN.

    Raises RewardError when there are more or fewer values than answers or one is no number, and NonFiniteReward, with
    the row and the answer, when one is NaN, infinite, or no float32 number."""
    answers = [(group.example, text) for group in groups for text in group.texts]
    if len(values) != len(answers):
        raise RewardError(
            f"{who} gave {len(values)} rewards; expected {len(answers)}: one for each answer, in order, None for an "
            "answer that has none."
        )
    checked_values = np.full(len(answers), np.nan)
    for index, ((example, text), value) in enumerate(zip(answers, values, strict=True)):
        if value is not None:
            checked_values[index] = reward(who, text, example.origin, value)
    return checked_values


def combined(who: str, groups: Sequence[Group], values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """`checked` for what `who` computed [S] from the numbers of others; NaN where `scored` [S] is false."""
    return checked(
        who, groups, [value if there else None for value, there in zip(values.tolist(), scored, strict=True)]
    )


def reward(who: str, text: str, prompt: object, value: object) -> float:
    """What `who` gave for the answer `text` to `prompt`, as a number. Raises RewardError for what is none,
    NonFiniteReward where float32 cannot hold it."""
    try:
        if isinstance(value, str | bytes):  # float would read them
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
        given = f"{number:.6g}"
    except OverflowError:
        number, given = math.inf, f"a number above {sys.float_info.max:.3g}"
    except (TypeError, ValueError):
        raise RewardError(
            f"{who} gave {shown(value)} for the answer {shown(text)} to {prompt}; expected a number, or None for no "
            "reward."
        ) from None
    if not abs(number) <= LARGEST:
        raise NonFiniteReward(
            f"{who} gave {given} for the answer {shown(text)} to {prompt}; expected a finite number within float32, or "
            "None for no reward."
        )
    return number
