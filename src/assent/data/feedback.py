"""Feedback on an example as numbers of its token tree: pairs of branches, and fields with one number per branch, or
several.

    Pair       pairs      (chosen, rejected, strength or 0)
    Binary     "label"    1 desirable, 0 undesirable
    Ranking    "level"    0 for the best level, then 1, 2, ...
    Rating     "ratings"  one column for each attribute, in the order in which they are first named; the mean of
                          the annotators who gave it, NaN where nobody did
               "rating"   the number itself, where that is all there is: {"rating": x}

A field is there where the example has feedback of its kind, and NaN at branches without. Answers that are told apart
by feedback must differ as tokens as well, also after a cut: otherwise they are a `RowError`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from assent.data.records import Binary, Example, Feedback, Pair, Ranking, Rating, RowError
from assent.data.tree import Branch


def tree_pairs(
    example: Example, branches: Sequence[Branch], eos_ids: Collection[int]
) -> tuple[tuple[int, int, float], ...]:
    """The example's `Pair` feedback as (chosen, rejected, margin)."""
    pairs = []
    for pair in (item for item in example.feedback if isinstance(item, Pair)):
        chosen, rejected = branches[pair.chosen], branches[pair.rejected]
        if np.array_equal(chosen.ids, rejected.ids):
            raise RowError("rejected", "is the same as chosen" + _up_to(chosen, eos_ids))
        pairs.append((pair.chosen, pair.rejected, float(pair.strength or 0.0)))
    return tuple(pairs)


def response_fields(example: Example, branches: Sequence[Branch], eos_ids: Collection[int]) -> dict[str, np.ndarray]:
    """The example's other feedback by name, each [number of branches] or [number of branches, K] float32."""
    fields: dict[str, np.ndarray] = {}
    for item in example.feedback:
        for name, index, value in _numbers(item):
            fields.setdefault(name, np.full(len(branches), np.nan, np.float32))[index] = value
    if (ratings := _ratings(example, len(branches))) is not None:
        fields["ratings"] = ratings
    for name, values in fields.items():
        first: dict[bytes, int] = {}
        judged = ~np.isnan(values.reshape(len(branches), -1)).all(axis=1)
        for index in np.flatnonzero(judged).tolist():
            twin = first.setdefault(branches[index].ids.tobytes(), index)
            if not np.array_equal(values[twin], values[index], equal_nan=True):
                same = f"is the same as response {twin + 1}{_up_to(branches[index], eos_ids)}"
                raise RowError(f"response {index + 1}", f"{same}, but has another {name.removesuffix('s')}")
    return fields


def _numbers(item: Feedback) -> list[tuple[str, int, float]]:
    """(field, response, value) of one piece of feedback."""
    if isinstance(item, Binary):
        return [("label", item.response, float(item.label))]
    if isinstance(item, Ranking):
        return [("level", index, float(level)) for level, indices in enumerate(item.levels) for index in indices]
    if isinstance(item, Rating) and _is_overall(item):
        return [("rating", item.response, float(item.scores["rating"]))]
    return []


def _is_overall(item: Rating) -> bool:
    return item.scores.keys() == {"rating"}


def _ratings(example: Example, branches: int) -> np.ndarray | None:
    """[branches, K], or None where no attribute is rated."""
    given = [item for item in example.feedback if isinstance(item, Rating) and not _is_overall(item)]
    names = list(dict.fromkeys(name for item in given for name in item.scores))
    if not names:
        return None
    total, votes = np.zeros((2, branches, len(names)))
    for item in given:
        for name, value in item.scores.items():
            if not np.isnan(value):
                total[item.response, names.index(name)] += value
                votes[item.response, names.index(name)] += 1
    with np.errstate(invalid="ignore"):
        return (total / votes).astype(np.float32)


def _up_to(branch: Branch, eos_ids: Collection[int]) -> str:
    return "" if int(branch.ids[-1]) in eos_ids else " up to --data.max_length"
