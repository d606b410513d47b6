"""Whether answers have the form that was asked for, and whether one of several is right: checks with options, from
which a measure is made."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import gammaln

from assent.errors import ConfigError
from assent.measures.answers import Answers
from assent.measures.patterns import found
from assent.measures.shapes import Column, Each, Statistic, Whole

_FENCED = re.compile(r"\s*```(?:json|JSON)?[ \t]*\n(.*?)\n[ \t]*```\s*", re.DOTALL)
FEW = "fewer than {k} of the prompt's answers could be judged"


def matches(name: str, pattern: str) -> Each:
    """Share of answers in which a pattern of Python's `re` is found, as the measure `name`. Raises ConfigError for a
    pattern that is none.

    With the extra `re2` time grows with the answers alone; without it, or for patterns that look around, some patterns
    take very long on some answers."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{name}: {pattern!r} is no pattern of Python's re: {error}.") from None
    return Each(
        name=name,
        about=f"share of answers in which the pattern {pattern} is found",
        unit="share",
        better="higher",
        of=lambda answers: Column.of([float(found(pattern, text)) for text in answers.texts]),
    )


def is_json(text: str, keys: Sequence[str] = ()) -> bool:
    """Whether a text is one JSON value and nothing else, or such a value in one Markdown fence; with `keys`, an object
    that has each of them. NaN and Infinity are not JSON, nor are two equal keys of one object."""
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refused, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and set(keys) <= value.keys())


def _refused(constant: str) -> object:
    raise ValueError(constant)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key twice")
    return made


def json_with(keys: Sequence[str] = ()) -> Each:
    """Share of answers that are JSON, with these keys where some are given."""
    wanted = f" object with {', '.join(keys)}" if keys else ""
    return Each(
        name="json",
        about=f"share of answers that are one JSON{wanted or ' value'}, plain or in one Markdown fence",
        unit="share",
        better="higher",
        on_request=True,
        of=lambda answers: Column.of([float(is_json(text, keys)) for text in answers.texts]),
    )


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The chance that at least one of k answers is right, from `right` of `answers` that are:

        1 - C(answers - right, k) / C(answers, k)

    unbiased for k <= answers (Chen et al., arXiv 2107.03374); NaN for more."""
    if k > answers:
        return math.nan
    if answers - right < k:
        return 1.0
    logs = gammaln(answers - right + 1) - gammaln(answers - right - k + 1)
    logs -= gammaln(answers + 1) - gammaln(answers - k + 1)
    return float(-math.expm1(logs)) if right else 0.0


def pass_at(k: int, right: Callable[[Answers], Column], name: str) -> Whole:
    """pass@k over the prompts, where `right` says 1 or 0 of each answer and `name` what that is. An answer that could
    not be judged is left out; a prompt with fewer than k others fails with its answers."""

    def prepare(answers: Answers) -> Statistic:
        judged = right(answers)
        there = ~np.isnan(judged.values)
        size = len(answers.prompts)
        of, wins = (
            np.bincount(answers.prompt[there], weights=weights, minlength=size)
            for weights in (None, (judged.values[there] > 0.5).astype(np.float64))
        )
        value = np.array([pass_at_k(int(n), int(c), k) for n, c in zip(of, wins, strict=True)])
        reasons = tuple(
            why or (FEW.format(k=k) if math.isnan(value[prompt]) else "")
            for why, prompt in zip(judged.reasons, answers.prompt, strict=True)
        )

        def statistic(rows: np.ndarray) -> float:
            prompt = answers.prompt[rows]
            # Each drawing of a prompt brings all its answers: together they weigh one.
            return float(np.average(value[prompt], weights=1 / of[prompt])) if len(rows) else math.nan

        return Statistic(statistic, answers.prompt, reasons)

    return Whole(
        name=f"pass@{k}",
        about=f"chance that at least one of {k} answers is right ({name}), unbiased (2107.03374)",
        unit="share",
        better="higher",
        needs=("references",) if k == 1 else ("references", "several"),
        prepare=prepare,
    )
