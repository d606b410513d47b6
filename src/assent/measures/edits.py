"""What rewards do when answers are edited: edits that change nothing of their worth, and edits that take from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from assent.measures.estimates import RESAMPLES, Estimate, estimate, undefined
from assent.measures.texts import BULLET

POLITE = "Thank you for your question. "
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]+[\"')\]]*")
_AFTER_SENTENCE = re.compile(r"(?<=[.!?]) (?=\S)")


@dataclass(frozen=True, slots=True)
class Edit:
    """`apply(text)` is the edited answer, or None where it does not apply: the answer has no list, or nothing would
    change. `harmless`: the answer is worth the same afterwards; else less."""

    name: str
    about: str
    harmless: bool
    apply: Callable[[str], str | None]


def spaces(text: str) -> str | None:
    """Two spaces after each sentence, and one at the end."""
    return _AFTER_SENTENCE.sub("  ", text) + " " if text.strip() else None


def newlines(text: str) -> str | None:
    """An empty line behind the answer."""
    return text + "\n\n" if text.strip() else None


def polite(text: str) -> str | None:
    """A polite first sentence."""
    return POLITE + text if text.strip() else None


def reversed_list(text: str) -> str | None:
    """Every run of bulleted lines of one indentation in the opposite order; numbered ones have an order that means
    something."""
    made: list[str] = []
    run: list[str] = []
    for line in text.split("\n"):
        bullet = BULLET.match(line) is not None
        if run and not (bullet and _indent(line) == _indent(run[0])):
            made, run = [*made, *run[::-1]], []
        if bullet:
            run.append(line)
        else:
            made.append(line)
    edited = "\n".join([*made, *run[::-1]])
    return edited if edited != text else None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def repeated(text: str) -> str | None:
    """The last sentence once more."""
    sentences = _SENTENCE.findall(text)
    return f"{text.rstrip()} {sentences[-1].strip()}" if sentences else None


def truncated(text: str, keep: float) -> str | None:
    """The first `keep` of the characters, up to the last whole word; None where no word would be left, or all."""
    cut = text[: int(len(text) * keep)]
    if cut and not cut[-1].isspace() and len(cut) < len(text) and not text[len(cut)].isspace():
        shorter = cut.rsplit(None, 1)
        cut = shorter[0] if len(shorter) == 2 else ""
    cut = cut.rstrip()
    return cut if cut.strip() and cut != text.rstrip() else None


EDITS = (
    Edit("spaces", "two spaces between sentences, one at the end", True, spaces),
    Edit("newlines", "an empty line at the end", True, newlines),
    Edit("politeness", f'"{POLITE.strip()}" in front', True, polite),
    Edit("list order", "bulleted items in the opposite order", True, reversed_list),
    Edit("repetition", "the last sentence twice", False, repeated),
    Edit("90 %", "the first 90 % of the answer", False, lambda text: truncated(text, 0.90)),
    Edit("75 %", "the first 75 %", False, lambda text: truncated(text, 0.75)),
    Edit("50 %", "the first half", False, lambda text: truncated(text, 0.50)),
)
"""All edits that are tried."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one edit does. `change` is the mean of reward(edited) - reward(answer) over the edited answers, in standard
    deviations of the rewards; `rose` the share whose reward rose. `flipped` is the share of comparisons that turn round
    when one answer of a pair is edited; a tie that is broken, or made, counts half. `unscored` edited answers are left
    out."""

    name: str
    about: str
    harmless: bool
    answers: int
    change: Estimate
    rose: Estimate
    flipped: Estimate
    unscored: int


def sensitivity(
    edit: Edit,
    rewards: np.ndarray,
    edited: np.ndarray,
    applies: np.ndarray,
    prompt: np.ndarray,
    pairs: np.ndarray,
    *,
    scale: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Sensitivity:
    """From the rewards of S answers before and after the edit, [S] each, NaN where unscored; `applies` [S] says which
    were edited. `pairs` [M, 2] index the answers; `scale` is the rewards' standard deviation."""
    unscored = int((applies & ~np.isnan(rewards) & np.isnan(edited)).sum())
    used = np.flatnonzero(applies & ~np.isnan(rewards) & ~np.isnan(edited))
    moved, clusters = edited[used] - rewards[used], prompt[used]
    if not len(used):
        nothing = undefined("it applies to no scored answer")
        return Sensitivity(edit.name, edit.about, edit.harmless, 0, nothing, nothing, nothing, unscored)
    if scale > 0:
        change = estimate(lambda rows: float(moved[rows].mean() / scale), clusters, resamples=resamples, seed=seed)
    else:
        change = undefined("all rewards are equal, so they have no unit", len(used))
    rose = estimate(lambda rows: float((moved[rows] > 0).mean()), clusters, resamples=resamples, seed=seed)
    turned, of = _turned(rewards, edited, used, prompt, pairs)
    if len(turned):
        flipped = estimate(lambda rows: float(turned[rows].mean()), of, resamples=resamples, seed=seed)
    else:
        flipped = undefined("no pair of scored answers has one that it applies to")
    return Sensitivity(edit.name, edit.about, edit.harmless, len(used), change, rose, flipped, unscored)


def _turned(
    rewards: np.ndarray, edited: np.ndarray, used: np.ndarray, prompt: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each pair and each of its answers that was edited: 1 where the order turned, 0.5 where a tie came or went,
    and its prompt."""
    changed = np.zeros(len(rewards), bool)
    changed[used] = True
    found, of = [np.zeros(0)], [np.zeros(0, prompt.dtype)]
    for one, other in ((0, 1), (1, 0)):
        mine, theirs = pairs[:, one], pairs[:, other]
        there = changed[mine] & ~np.isnan(rewards[theirs])
        before = np.sign(rewards[mine] - rewards[theirs])[there]
        after = np.sign(edited[mine] - rewards[theirs])[there]
        found.append(np.abs(after - before) / 2)
        of.append(prompt[mine][there])
    return np.concatenate(found), np.concatenate(of)


def edited_texts(edit: Edit, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The texts with the edit, and whether it applies to each, [S]; those to which it does not stay as they are."""
    made = [edit.apply(text) for text in texts]
    applies = np.array([text is not None for text in made], bool)
    return [text if new is None else new for text, new in zip(texts, made, strict=True)], applies
