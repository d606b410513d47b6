"""Verdicts out of what a judge wrote. What is not exactly one verdict of the form that was asked for is none: nothing
is guessed, repaired, clipped to the scale or given a default.

What stands before the last `</think>` is not read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from assent.measures.answers import Claim
from assent.rewards.judge.prompt import REASONING, Form

LONGEST = 40
"""Characters between the two sides of a form that could be a verdict."""
OBJECTS = 1000
"""Braces in a text that are tried as the beginning of JSON."""
NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")

EMPTY = "it wrote nothing"
THINKING = "its thoughts did not end"
NONE = "no verdict"
SEVERAL = "several verdicts"
UNKNOWN = "a verdict that was not asked for"
OUTSIDE = "a number outside the scale"
FRACTION = "a number that is not whole"
NO_JSON = "no JSON of the criteria"
CRITERIA = "not exactly the criteria"
NO_NUMBER = "a criterion without a number"
NO_CLAIMS = "no JSON of claims"
NOT_CLAIMS = "not exactly claims with a verdict each"
VERDICTS = ("supported", "contradicted", "neither")


class Unreadable(Exception):
    """Why what a judge wrote is no verdict."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def letter(text: str, form: Form, letters: Collection[str]) -> str:
    """The one letter of `letters` in the form. Raises Unreadable."""
    found = _verdicts(text, form)
    if not set(found) <= set(letters):
        raise Unreadable(UNKNOWN)
    return _one(found)


def rating(text: str, form: Form, scale: tuple[float, float], whole: bool) -> float:
    """The one number within the scale, both ends included. Raises Unreadable."""
    found = _verdicts(text, form)
    if not all(NUMBER.fullmatch(word) and len(word) < 20 for word in found):
        raise Unreadable(UNKNOWN)
    return _within(_one([float(word) for word in found]), scale, whole)


def criteria(text: str, names: Sequence[str], scale: tuple[float, float], whole: bool) -> list[float]:
    """The numbers of a JSON object that has all of `names`, no other field but "reasoning", and each within the scale.
    Raises Unreadable."""
    objects = [found for found in _objects(said(text)) if found.keys() & set(names)]
    if not objects:
        raise Unreadable(NO_JSON)
    one = _one(objects)
    if one.keys() - {REASONING} != set(names):
        raise Unreadable(CRITERIA)
    values = [one[name] for name in names]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise Unreadable(NO_NUMBER)
    return [_within(value, scale, whole) for value in values]


def claims(text: str) -> tuple[Claim, ...]:
    """The claims of a JSON object {"claims": [{"claim": text, "verdict": one of VERDICTS}, ...]}, without other fields
    but "reasoning"; none at all are claims too. Raises Unreadable."""
    objects = [found for found in _objects(said(text)) if "claims" in found]
    if not objects:
        raise Unreadable(NO_CLAIMS)
    one = _one(objects)
    listed = one["claims"]
    if one.keys() - {REASONING} != {"claims"} or not isinstance(listed, list):
        raise Unreadable(NOT_CLAIMS)
    return tuple(map(_claim, listed))


def _claim(raw: Any) -> Claim:
    if not isinstance(raw, dict) or raw.keys() != {"claim", "verdict"}:
        raise Unreadable(NOT_CLAIMS)
    text, verdict = raw["claim"], raw["verdict"]
    if not isinstance(text, str) or not text.strip() or verdict not in VERDICTS:
        raise Unreadable(NOT_CLAIMS)
    return Claim(text.strip(), verdict)


def said(text: str) -> str:
    """What the judge says when it has thought. Raises Unreadable where that is nothing."""
    words = spoken(text)
    if "<think>" in words:
        raise Unreadable(THINKING)
    if not words.strip():
        raise Unreadable(EMPTY)
    return words


def spoken(text: str) -> str:
    """What stands behind the last thought that ended; all, where there is none."""
    return text.rpartition("</think>")[2]


def _verdicts(text: str, form: Form) -> list[str]:
    """All that stands in the form; of several, where the form says so, the last. At least one."""
    words = said(text)
    if not form.before:
        found, start = [words.strip()], 0
    else:
        pattern = rf"{re.escape(form.before)}\s*([^\n]{{0,{LONGEST}}}?)\s*{re.escape(form.after)}"
        matches = list(re.finditer(pattern, words))
        if not matches:
            raise Unreadable(NONE)
        found, start = [match[1] for match in matches], matches[-1].start()
    for names in form.sections:
        if not any(re.search(rf"<{name}>.*?</{name}>", words[:start], re.DOTALL) for name in names):
            raise Unreadable(f"no <{'> or <'.join(names)}>")
    return found[-1:] if form.several == "last" else found


def _one(found: list[Any]) -> Any:
    if any(other != found[0] for other in found):
        raise Unreadable(SEVERAL)
    return found[0]


def _within(value: float, scale: tuple[float, float], whole: bool) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise Unreadable(OUTSIDE) from None
    if not (math.isfinite(number) and scale[0] <= number <= scale[1]):
        raise Unreadable(OUTSIDE)
    if whole and number != int(number):
        raise Unreadable(FRACTION)
    return number


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects that stand in a text, those inside others left out."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
    found, place = [], text.find("{")
    for _ in range(OBJECTS):
        if place < 0:
            break
        try:
            value, end = decoder.raw_decode(text, place)
            found.append(value)
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a field twice")
    return made


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
