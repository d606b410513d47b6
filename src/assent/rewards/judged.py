"""Examples and their rewards as what `assent.measures` measures; and the rewards of edited answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from assent.data.conversions import comparisons, overall_ratings
from assent.data.records import Example, Response, RowError
from assent.measures.edits import EDITS, Sensitivity, edited_texts, sensitivity
from assent.measures.estimates import RESAMPLES
from assent.measures.judged import Judged
from assent.rewards.group import Scores

Scorer = Callable[[Sequence[Example]], Scores]
"""The rewards of all responses of all examples, in order."""

COLUMNS = ("subset", "source", "annotator")
"""Columns of rows that accuracy is told apart by, where they are there."""
MOST_LABELS = 60
"""Different values that a column may have to be one of them."""
RATINGS = "overall rating"


def judged(
    examples: Sequence[Example],
    scores: Scores,
    *,
    gold: np.ndarray | None = None,
    members: Sequence[str] = (),
    columns: Sequence[str] = COLUMNS,
) -> tuple[Judged, dict[str, int]]:
    """The responses of all examples with their rewards and comparisons, and why feedback of some examples is not used,
    counted by reason. Examples of the same prompt are one prompt.

    `gold` [S] is what each response is worth; without it the responses' overall ratings are, where there are any.
    `members` are the names in `scores.parts` of an ensemble's members."""
    starts = np.cumsum([0, *(len(example.responses) for example in examples)])
    assert len(scores.values) == starts[-1], "one reward for each response"
    rated = np.full(starts[-1], np.nan)
    prompts: dict[object, int] = {}
    unused: Counter[str] = Counter()
    prompt, pairs, ties, strengths, rows = [], [], [], [], []
    for example, start in zip(examples, starts[:-1].tolist(), strict=True):
        number = prompts.setdefault((example.prompt, example.tools), len(prompts))
        prompt += [number] * len(example.responses)
        try:
            stated, tied = comparisons(example)
            for index, value in overall_ratings(example).items():
                rated[start + index] = value
        except RowError as error:
            unused[error.reason] += 1
            continue
        for pair in stated:
            pairs.append((start + pair.chosen, start + pair.rejected))
            strengths.append(np.nan if pair.strength is None else pair.strength)
            rows.append((example, pair.annotator))
        ties += [(start + one, start + other) for one, other in tied]
    truth = rated if gold is None else gold
    found = Judged(
        rewards=np.asarray(scores.values, np.float64),
        prompt=np.array(prompt, np.int64),
        texts=tuple(response.text for example in examples for response in example.responses),
        pairs=np.array(pairs, np.int64).reshape(-1, 2),
        strength=np.array(strengths, np.float64),
        groups=_groups(rows, columns),
        ties=np.array(ties, np.int64).reshape(-1, 2),
        gold=None if np.isnan(truth).all() else truth,
        members=np.stack([scores.parts[name] for name in members]) if len(members) > 1 else None,
    )
    return found, dict(unused)


def _groups(rows: Sequence[tuple[Example, str | None]], columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of each column that pairs are told apart by: of the row, or the pair's annotator."""
    groups = {}
    for column in columns:
        values = [example.meta.get(column) for example, _ in rows]
        if column == "annotator":
            values = [own if own is not None else value for (_, own), value in zip(rows, values, strict=True)]
        labels = tuple(str(value) if isinstance(value, str | int | bool) else "" for value in values)
        if 1 < len({*labels} - {""}) <= MOST_LABELS:
            groups[column] = labels
    return groups


def sensitivities(
    examples: Sequence[Example],
    scores: Scores,
    score: Scorer,
    *,
    rows: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Sensitivity, ...]:
    """What each of `EDITS` does to the rewards of `rows` examples drawn by chance; their unit is the standard deviation
    of all rewards. Every answer of a drawn example is edited and scored anew."""
    starts = np.cumsum([0, *(len(example.responses) for example in examples)])
    chosen = np.sort(np.random.default_rng(seed).permutation(len(examples))[:rows])
    drawn = [examples[index] for index in chosen]
    if not drawn:
        return ()
    places = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in chosen])
    part = Scores(scores.values[places])
    base, _ = judged(drawn, part)
    scale = float(np.nanstd(scores.values)) if not np.isnan(scores.values).all() else 0.0
    found = []
    for edit in EDITS:
        texts, applies = edited_texts(edit, base.texts)
        edited = np.where(applies, np.nan, base.rewards)
        touched = _edited(drawn, texts, applies)
        if touched:
            edited[applies] = score(touched).values
        found.append(
            sensitivity(
                edit,
                base.rewards,
                edited,
                applies,
                base.prompt,
                base.pairs,
                scale=scale,
                resamples=resamples,
                seed=seed,
            )
        )
    return tuple(found)


def _edited(examples: Sequence[Example], texts: Sequence[str], applies: np.ndarray) -> list[Example]:
    """The examples with nothing but their edited responses; those without one are left out."""
    made, start = [], 0
    for example in examples:
        end = start + len(example.responses)
        responses = tuple(
            _with_text(response, text)
            for response, text, there in zip(
                example.responses, texts[start:end], applies[start:end].tolist(), strict=True
            )
            if there
        )
        start = end
        if responses:
            made.append(replace(example, responses=responses, feedback=()))
    return made


def _with_text(response: Response, text: str) -> Response:
    *before, last = response.messages
    return replace(response, messages=(*before, replace(last, content=text)))


def failures(scores: Scores) -> Mapping[str, int]:
    """Why answers are unscored, and how many; what no source explains is counted as well."""
    known = dict(scores.failures)
    rest = int(np.isnan(scores.values).sum()) - sum(known.values())
    return known | ({"no reason given": rest} if rest > 0 else {})
