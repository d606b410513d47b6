"""Answers side by side, for the page: all of an evaluation from its answers.jsonl, and of each run from its
samples.jsonl by step. What cannot be read is named, nothing is fatal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from assent.data.records import Message
from assent.evaluate.results import Answer, PolicyTable
from assent.evaluate.runs import Run


class Source(NamedTuple):
    """What says which answer is better: a score of each, or, where `judged`, a verdict against the baseline's."""

    name: str
    judged: bool = False


class Sample(NamedTuple):
    """One answer. None is what nobody knows; `values` are in the order of the set's sources, 1 a win, 0.5 a tie and 0 a
    loss where the source is judged; `why` says by source why there is none."""

    text: str
    tokens: int | None = None
    finished: bool | None = None
    values: tuple[float | None, ...] = ()
    why: Mapping[int, str] = {}
    log_prob: float | None = None


class Asked(NamedTuple):
    """A prompt. `number` is its place in its file, from 0."""

    number: int
    messages: tuple[Message, ...]
    kind: str = ""


class SampleRow(NamedTuple):
    """The answers of all columns to a prompt (its place in the set): the first of each, or the second, ..."""

    prompt: int
    repeat: int
    answers: tuple[Sample | None, ...]


@dataclass(frozen=True)
class SampleSet:
    """Answers of several columns (policies, or steps of a run) to the same prompts.

    baseline  the column that others are compared with; None: each row's first
    total     rows that there were, of which `rows` may be fewer
    """

    name: str
    about: str
    columns: tuple[str, ...]
    baseline: int | None
    sources: tuple[Source, ...]
    prompts: tuple[Asked, ...]
    rows: tuple[SampleRow, ...]
    total: int
    problems: tuple[str, ...] = ()

    def baseline_of(self, row: SampleRow) -> int | None:
        """The column that the row's others are compared with; None where it has no answer."""
        if self.baseline is not None:
            return self.baseline if row.answers[self.baseline] is not None else None
        return next((place for place, answer in enumerate(row.answers) if answer is not None), None)

    def gain(self, row: SampleRow, column: int, source: int) -> float | None:
        """By how much the column's answer is better than the baseline's: a difference of scores, or a verdict from one
        half. None without a verdict."""
        base, ours = self.baseline_of(row), row.answers[column]
        if base is None or base == column or ours is None:
            return None
        theirs = row.answers[base]
        value = ours.values[source]
        if self.sources[source].judged:
            return None if value is None else value - 0.5
        other = None if theirs is None else theirs.values[source]
        return None if value is None or other is None else value - other


# ---- of an evaluation


def evaluation_samples(table: PolicyTable, file: Path | None) -> SampleSet | None:
    """All answers of `file`, and where there is none, or it is of other policies, the few that are in the table."""
    problems: list[str] = []
    if file is not None and file.is_file():
        rows = list(_lines(file, problems))
        names = [policy.name for policy in table.policies]
        if strange := sorted({row.policy for row in rows} - set(names)):
            problems.append(f"{file.name} has answers of {strange[0]}, which is not in the table; left out")
        elif rows:
            return _of_rows(table, names, rows, problems)
    return _of_comparisons(table, problems)


class _Row(NamedTuple):
    policy: str
    prompt: int
    messages: tuple[Message, ...]
    kind: str
    text: str
    raw: Mapping[str, Any]


def _lines(file: Path, problems: list[str]) -> Iterator[_Row]:
    broken = []
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                row = _row(line)
                if row is None:
                    broken.append(number)
                else:
                    yield row
    except OSError as error:
        problems.append(f"{file.name} cannot be read: {error.strerror}")
    if broken:
        first = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        problems.append(f"{file.name}: {len(broken)} lines are not answers (line {first}); left out")


def _row(line: str) -> _Row | None:
    try:
        raw = json.loads(line)
        policy, place, text = raw["policy"], raw["prompt_index"], raw["response"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(policy, str) or type(place) is not int or not isinstance(text, str):
        return None
    kind = raw.get("kind", "")
    return _Row(policy, place, messages_of(raw.get("prompt")), kind if isinstance(kind, str) else "", text, raw)


def _of_rows(table: PolicyTable, names: Sequence[str], rows: Sequence[_Row], problems: Sequence[str]) -> SampleSet:
    scores = dict.fromkeys(name for row in rows for name in _mapping(row.raw, "scores"))
    judges = dict.fromkeys(name for row in rows for name in _mapping(row.raw, "wins") if name not in scores)
    sources = [*(Source(name) for name in scores), *(Source(name, True) for name in judges)]
    sources.sort(key=lambda source: source.name != table.by)
    prompts: dict[int, Asked] = {}
    columns: dict[tuple[int, int], dict[int, Sample]] = {}
    seen: dict[tuple[int, str], int] = {}
    for row in rows:
        prompts.setdefault(row.prompt, Asked(row.prompt, row.messages, row.kind))
        repeat = seen.get((row.prompt, row.policy), 0)
        seen[row.prompt, row.policy] = repeat + 1
        columns.setdefault((row.prompt, repeat), {})[names.index(row.policy)] = _sample(row, sources)
    places = {number: place for place, number in enumerate(sorted(prompts))}
    made = tuple(
        SampleRow(places[number], repeat, tuple(found.get(column) for column in range(len(names))))
        for (number, repeat), found in sorted(columns.items())
    )
    return SampleSet(
        name="evaluation",
        about="The same prompts, answered by each policy: all of them, in the order of their file.",
        columns=tuple(names),
        baseline=names.index(table.baseline) if table.baseline in names else 0,
        sources=tuple(sources),
        prompts=tuple(prompts[number] for number in places),
        rows=made,
        total=len(made),
        problems=tuple(problems),
    )


def _sample(row: _Row, sources: Sequence[Source]) -> Sample:
    scores, wins, why = (_mapping(row.raw, key) for key in ("scores", "wins", "unscored"))
    values = [_mean(wins.get(name)) if judged else number_of(scores.get(name)) for name, judged in sources]
    told = {
        place: str(why[name])
        for place, ((name, _), value) in enumerate(zip(sources, values, strict=True))
        if value is None and name in why
    }
    finished = row.raw.get("finished")
    return Sample(
        row.text,
        _whole(row.raw.get("tokens")),
        finished if isinstance(finished, bool) else None,
        tuple(values),
        told,
        number_of(row.raw.get("log_prob")),
    )


def _of_comparisons(table: PolicyTable, problems: Sequence[str]) -> SampleSet | None:
    if not table.comparisons:
        return None
    names = list(dict.fromkeys(name for shown in table.comparisons for name in shown.answers))
    answers = [answer for shown in table.comparisons for answer in shown.answers.values()]
    sources = tuple(Source(name) for name in dict.fromkeys(name for answer in answers for name in answer.scores))
    rows = [
        SampleRow(place, 0, tuple(_of_answer(shown.answers.get(name), sources) for name in names))
        for place, shown in enumerate(table.comparisons)
    ]
    return SampleSet(
        name="evaluation",
        about="The same prompts, answered by each policy; a few, drawn by chance and not chosen by result.",
        columns=tuple(names),
        baseline=names.index(table.baseline) if table.baseline in names else 0,
        sources=sources,
        prompts=tuple(Asked(place, shown.prompt) for place, shown in enumerate(table.comparisons)),
        rows=tuple(rows),
        total=len(rows),
        problems=tuple(problems),
    )


def _of_answer(answer: Answer | None, sources: Sequence[Source]) -> Sample | None:
    if answer is None:
        return None
    values = tuple(answer.scores.get(source.name) for source in sources)
    return Sample(answer.text, answer.num_tokens, answer.finished, values)


# ---- of a run


def run_samples(run: Run) -> SampleSet | None:
    """A run's samples by step; prompts that were answered at several steps first."""
    steps = sorted({sample["step"] for sample in run.samples})
    if not steps:
        return None
    keys = dict.fromkeys(
        key
        for sample in run.samples
        for key, value in sample.items()
        if key not in ("step", "length") and number_of(value) is not None
    )
    places = {step: place for place, step in enumerate(steps)}
    found: dict[tuple[Message, ...], list[list[Sample]]] = {}
    for sample in run.samples:
        columns = found.setdefault(messages_of(sample.get("prompt")), [[] for _ in steps])
        made = _sampled(sample, list(keys))
        if made not in columns[places[sample["step"]]]:  # a resumed run writes some steps again
            columns[places[sample["step"]]].append(made)
    ordered = sorted(found.items(), key=lambda entry: sum(map(bool, entry[1])) < 2)
    rows = tuple(
        SampleRow(place, repeat, tuple(own[repeat] if repeat < len(own) else None for own in columns))
        for place, (_, columns) in enumerate(ordered)
        for repeat in range(max(map(len, columns)))
    )
    return SampleSet(
        name=run.name,
        about=f"The same prompts, answered by {run.name} early and late in training.",
        columns=tuple(f"step {step}" for step in steps),
        baseline=None,
        sources=tuple(Source(key) for key in keys),
        prompts=tuple(Asked(place, messages) for place, (messages, _) in enumerate(ordered)),
        rows=rows,
        total=len(rows),
    )


def _sampled(sample: Mapping[str, Any], keys: Sequence[str]) -> Sample:
    text, finished = sample.get("response", ""), sample.get("finished")
    return Sample(
        text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str),
        _whole(sample.get("length")),
        finished if isinstance(finished, bool) else None,
        tuple(number_of(sample.get(key)) for key in keys),
    )


# ---- what files may hold


def messages_of(prompt: object) -> tuple[Message, ...]:
    """A prompt of a file, whatever it is, as messages."""
    if isinstance(prompt, list):
        turns = [turn for turn in prompt if isinstance(turn, dict)]
        return tuple(Message(str(turn.get("role", "user")), _text(turn.get("content"))) for turn in turns)
    return (Message("user", _text(prompt)),)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def number_of(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: object) -> int | None:
    number = number_of(value)
    return None if number is None else round(number)


def _mean(values: object) -> float | None:
    known = [n for n in map(number_of, values if isinstance(values, list) else ()) if n is not None]
    return sum(known) / len(known) if known else None


def _mapping(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    return value if isinstance(value, dict) else {}
