"""Ratings by attribute: which attributes a data set has, in which order, and examples as those of a regression."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from assent.data.conversions import Unused
from assent.data.records import Example, Problem, Rating, RowError
from assent.data.tree import TokenTree
from assent.errors import DataError
from assent.names import suggestion

MISSING = -100.0
"""What files write for an attribute that nobody rated."""

Scale = tuple[float, float]
"""The lowest and the highest rating."""


@dataclass(frozen=True, slots=True)
class AttributeView:
    """Examples with the responses of which somebody rated one of `names` (without names: any attribute of the file, in
    the order in which they first stand there). Each response has one `Rating` with all names in their order: the mean
    of the annotators who gave it, NaN where nobody did. A rating outside of `scale` is a bad row.

    Called like every view (`assent.data.views`). Raises DataError where nothing is rated, or not by one of `names`."""

    names: tuple[str, ...] = ()
    scale: Scale | None = None

    def __call__(self, examples: Sequence[Example]) -> tuple[list[Example], list[Problem]]:
        there = attributes_in(examples)
        if not examples:
            return [], []
        if not there:
            file = examples[0].origin.file
            raise DataError(f"{file}: ratings are needed, of one attribute or several. This file has none.")
        for name in self.names:
            if name not in there:
                raise DataError(
                    f"--attributes.outputs: {examples[0].origin.file} has no ratings called '{name}'."
                    f"{suggestion(name, there)} There are: {', '.join(there)}."
                )
        kept: list[Example] = []
        problems: list[Problem] = []
        for example in examples:
            try:
                kept.append(with_attributes(example, self.names or there, self.scale))
            except RowError as error:
                problems.append(replace(error.at(example.origin), fault=not isinstance(error, Unused)))
        return kept, problems


def deciding(view: AttributeView) -> Callable[[Sequence[Example]], tuple[list[Example], list[Problem]]]:
    """The view that reads every file by the attributes of the first one, the training data, unless they are named."""
    chosen = view

    def project(examples: Sequence[Example]) -> tuple[list[Example], list[Problem]]:
        nonlocal chosen
        chosen = replace(chosen, names=chosen.names or attributes_in(examples))
        return chosen(examples)

    return project


def attributes_in(examples: Sequence[Example]) -> tuple[str, ...]:
    """The attributes that are rated anywhere, in the order in which they first stand there."""
    found: dict[str, None] = {}
    for example in examples:
        for item in example.feedback:
            if isinstance(item, Rating):
                found |= dict.fromkeys(name for name, value in item.scores.items() if not _missing(value))
    return tuple(found)


def with_attributes(example: Example, names: Sequence[str], scale: Scale | None = None) -> Example:
    """The example reduced to what is rated by these attributes. Raises RowError."""
    given: dict[int, dict[str, list[float]]] = {}
    for item in example.feedback:
        if not isinstance(item, Rating):
            continue
        for name, value in item.scores.items():
            if name in names and not _missing(value):
                _check(name, value, scale)
                given.setdefault(item.response, {}).setdefault(name, []).append(value)
    if not given:
        rated = any(isinstance(item, Rating) for item in example.feedback)
        if rated:
            raise Unused("feedback", "rated by none of the attributes")
        raise RowError("feedback", "no ratings")
    used = sorted(given)
    feedback = tuple(
        Rating(place, {name: _mean(given[index].get(name, ())) for name in names}) for place, index in enumerate(used)
    )
    return replace(example, responses=tuple(example.responses[index] for index in used), feedback=feedback)


def names_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """The attributes of examples that `AttributeView` gave."""
    first = examples[0].feedback[0]
    assert isinstance(first, Rating)
    return tuple(first.scores)


def with_ratings_field(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """The trees of such examples with their field "ratings" [S, K], also where the only attribute is called rating."""
    made = []
    for tree in trees:
        fields = dict(tree.per_response)
        if "ratings" not in fields:
            fields["ratings"] = fields.pop("rating")[:, None]
        made.append(replace(tree, per_response=fields))
    return made


@dataclass(frozen=True, slots=True)
class Spread:
    """The ratings of one attribute: how many there are, from where to where, and their mean."""

    count: int
    lowest: float
    highest: float
    mean: float


def spread_of(trees: Sequence[TokenTree], names: Sequence[str]) -> dict[str, Spread]:
    """The spread of each attribute over all trees."""
    ratings = np.concatenate([tree.per_response["ratings"] for tree in trees]).astype(np.float64)
    found = {}
    for name, column in zip(names, ratings.T, strict=True):
        own = column[~np.isnan(column)]
        empty = not len(own)
        found[name] = Spread(
            len(own), *((math.nan,) * 3 if empty else (float(own.min()), float(own.max()), float(own.mean())))
        )
    return found


def _missing(value: float) -> bool:
    return value == MISSING or math.isnan(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _check(name: str, value: float, scale: Scale | None) -> None:
    if not math.isfinite(value):
        raise RowError(name, f"expected a finite number, got {value}")
    if scale is not None and not scale[0] <= value <= scale[1]:
        ends = f"{scale[0]:g} (--attributes.lowest) to {scale[1]:g} (--attributes.highest)"
        raise RowError(name, f"expected a rating from {ends}, got {value:g}")
