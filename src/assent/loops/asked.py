"""The stage in which people label: the loop writes what is to be labelled, ends, and goes on with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from assent.data.formats import load_examples, to_row
from assent.data.formats.fields import same_answer
from assent.data.formats.load import moved
from assent.data.jsonl import json_line
from assent.data.records import Example, Feedback, Pair, Ranking
from assent.distributed import on_main
from assent.errors import DataError, Incomplete
from assent.loops.labelled import read_answers
from assent.loops.loop import Loop
from assent.outputs import write_text
from assent.rollout.answering import FINISHED, TOKENS

TO_LABEL, LABELLED = "to_label.jsonl", "labelled.jsonl"


def label_by_people(loop: Loop, place: str, answers: str | Path) -> Path:
    """The rows of `answers` with the feedback that people gave in `place`/labelled.jsonl: a file of any shape whose
    rows have these prompts and answers (to one prompt there may be several rows), with pairs, rankings, ratings or
    yes/no labels. Where that file is not there yet, writes `place`/to_label.jsonl and raises Incomplete, which says
    what to do. Raises DataError for rows about something else.

    Numbers of the stage: `answers`, `unscored` (answers that no feedback is about), `rows` that people labelled."""
    folder = loop.folder / place
    labelled = folder / LABELLED
    if not on_main(labelled.exists):
        on_main(lambda: _ask(Path(answers), folder / TO_LABEL, labelled))

    def make(path: Path) -> Mapping[str, float]:
        return on_main(lambda: _read(Path(answers), labelled, path))

    return loop.stage(f"{place}/people.jsonl", make, reads=(answers, labelled), about="labels of people")


def _ask(answers: Path, to_label: Path, labelled: Path) -> None:
    rows = [_bare(example) for example in read_answers(answers) if example.responses]
    write_text(to_label, "".join(json_line(to_row(row)) for row in rows))
    count = sum(len(row.responses) for row in rows)
    raise Incomplete(
        f"{count:,} answers to {len(rows):,} prompts wait for labels in {to_label}. Put the same rows with feedback "
        f"(pairs, rankings, ratings or yes/no labels: docs/formats.md) into {labelled}, and give the same command with "
        "--resume auto. `assent label` asks people (docs/loops.md)."
    )


def _bare(example: Example) -> Example:
    meta = {name: value for name, value in example.meta.items() if name not in (TOKENS, FINISHED)}
    return replace(example, feedback=(), meta=meta)


def _read(answers: Path, labelled: Path, path: Path) -> Mapping[str, float]:
    loaded = load_examples(labelled)
    if loaded.problems:
        raise DataError(f"{loaded.problems[0]}. Every row that people labelled must be readable.")
    examples = read_answers(answers)
    found = with_feedback(examples, loaded.examples)
    write_text(path, "".join(json_line(to_row(example)) for example in found))
    about = [{index for item in example.feedback for index in _about(item)} for example in found]
    total = sum(len(example.responses) for example in found)
    return {"answers": total, "unscored": total - sum(map(len, about)), "rows": loaded.num_rows}


def with_feedback(examples: Sequence[Example], labelled: Sequence[Example]) -> list[Example]:
    """The examples with the feedback of those rows of `labelled` that have the same prompt, by the places of their own
    responses. Raises DataError for a row of another prompt, or with an answer that is none of this prompt's."""
    places = {example.prompt: number for number, example in enumerate(examples)}
    feedback: list[list[Feedback]] = [[] for _ in examples]
    for row in labelled:
        if (number := places.get(row.prompt)) is None:
            raise DataError(f"{row.origin}: its prompt is none of those that were to be labelled.")
        where = []
        for index, response in enumerate(row.responses, 1):
            own = examples[number].responses
            twin = next((place for place, each in enumerate(own) if same_answer(each, response)), None)
            if twin is None:
                raise DataError(f"{row.origin}: answer {index} is none of those that were to be labelled.")
            where.append(twin)
        feedback[number] += [moved(item, where.__getitem__) for item in row.feedback]
    return [replace(example, feedback=tuple(own)) for example, own in zip(examples, feedback, strict=True)]


def _about(item: Feedback) -> tuple[int, ...]:
    """The responses that a piece of feedback is about."""
    match item:
        case Pair():
            return item.chosen, item.rejected
        case Ranking():
            return tuple(index for level in item.levels for index in level)
    return (item.response,)
