"""Demonstrations with labels: what an attribute model finds in every answer that is learnt, turn by turn."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from assent.config import DataConfig, SourceConfig
from assent.data.chat import Chat
from assent.data.dataset import read_examples
from assent.data.formats import to_row
from assent.data.jsonl import json_line
from assent.data.records import Example, Message, Problem, Rating, Response, RowError
from assent.data.steering import Steering
from assent.data.turns import trained_turns
from assent.data.views import sft_view
from assent.distributed import on_main
from assent.errors import DataError
from assent.loops.labelled import label, read_answers
from assent.loops.loop import Loop
from assent.models.reward_head import HeadRule
from assent.outputs import write_text
from assent.rewards.reading import REWARD

log = logging.getLogger(__name__)

MODEL = "model"
"""What outputs of a reward model are called by, in ratings: model/helpfulness."""
PLACE = "turn of a demonstration"
"""Column of rows of single turns: which row of the demonstrations, and which turn of its answer."""
Attributes = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Labeller:
    """An attribute model as a source of labels: `rule` are its outputs, of which `steering` names some."""

    source: SourceConfig
    rule: HeadRule
    steering: Steering

    def measured(self, rating: Rating) -> list[float] | None:
        """What was measured, in the order of `steering`; None where some of it could not be."""
        if len(self.rule) == 1:
            return [rating.scores[REWARD] / (self.rule.weights or (1.0,))[0]]
        outputs = [rating.scores.get(f"{MODEL}/{name}") for name in self.steering.names]
        return None if None in outputs else [value for value in outputs if value is not None]

    def labels(self, rating: Rating) -> tuple[Attributes, int] | None:
        """The same as values that can be asked for, and how many lay outside of the scale."""
        values = self.measured(rating)
        if values is None:
            return None
        rounded, outside = self.steering.rounded(values)
        return tuple(zip(self.steering.names, map(int, rounded), strict=True)), outside

    def worth(self, labels: Sequence[Attributes]) -> np.ndarray:
        """What labels [n] are worth by the weights of the model, [n]; without weights all count alike."""
        weights = dict(zip(self.rule.names, self.rule.weights or (1.0,) * len(self.rule), strict=True))
        return np.array([sum(weights[name] * value for name, value in each) for each in labels])


def demonstrations(loop: Loop, name: str, file: str, data: DataConfig, labeller: Labeller, chat: Chat) -> Path:
    """`name`/labelled.jsonl: the demonstrations of a file, where every trained turn has attributes. Labels that the
    file gives stay; the other turns are scored, each as the answer to all that stands before it. Rows with a turn that
    could not be scored are left out.

    Numbers of the last stage: `rows`, `turns`, `given` (labels of the file), `unscored` (rows left out) and `clamped`
    (values outside of the scale). Raises DataError for labels that do not fit as for any bad row, and where none is
    left."""
    read = LabelView(labeller.steering)
    examples = on_main(lambda: read_examples(data, file, read, chat))
    turns = [*unlabelled(examples)]
    reads = [file] if Path(file).exists() else []
    if turns:
        asked = loop.stage(f"{name}/turns.jsonl", lambda path: write(path, turns), reads=reads)
        rated_file = label(loop, f"{name}/rated.jsonl", asked, labeller.source)
        reads = [*reads, str(rated_file)]

    def join(path: Path) -> Mapping[str, float]:
        rated = ratings(rated_file) if turns else {}
        made, numbers = joined(examples, rated, labeller)
        if not made:
            raise DataError(f"{file}: no demonstration is left: none could be labelled ({numbers['unscored']:,} rows).")
        say(numbers)
        return {**write(path, made), **numbers}

    return loop.stage(f"{name}/labelled.jsonl", join, reads=reads, about="labels of demonstrations")


@dataclass(frozen=True, slots=True)
class LabelView:
    """One response in each example, as SFT reads it; labels in the file must be those of `steering`, one for each
    attribute. What stands in the prompt is only read, so its labels are not kept."""

    steering: Steering

    def __call__(self, examples: Sequence[Example]) -> tuple[list[Example], list[Problem]]:
        projected, problems = sft_view(examples)
        kept = []
        for example in projected:
            try:
                for turn in example.responses[0].messages:
                    if turn.attributes:
                        self.steering.checked(dict(turn.attributes), whole=True)
            except ValueError as error:
                problems.append(RowError("attributes", str(error)).at(example.origin))
            else:
                kept.append(replace(example, prompt=tuple(replace(turn, attributes=()) for turn in example.prompt)))
        return kept, problems


def unlabelled(examples: Sequence[Example]) -> Iterator[Example]:
    """Every trained turn without attributes as the one answer to what stands before it."""
    for row, example in enumerate(examples):
        turns = example.responses[0].messages
        for index in trained_turns(turns):
            if not turns[index].attributes:
                before = (*example.prompt, *(replace(turn, attributes=(), trained=True) for turn in turns[:index]))
                answer = (Response((turns[index],)),)
                yield replace(example, prompt=before, responses=answer, feedback=(), meta={PLACE: [row, index]})


def ratings(file: Path) -> dict[tuple[int, int], Rating]:
    """The rating of each turn that has one."""
    found = {}
    for example in read_answers(file):
        place = example.meta[PLACE]
        assert isinstance(place, list)
        for rating in example.feedback:
            if isinstance(rating, Rating):
                found[place[0], place[1]] = rating
    return found


def joined(
    examples: Sequence[Example], rated: Mapping[tuple[int, int], Rating], labeller: Labeller
) -> tuple[list[Example], dict[str, int]]:
    """The examples with the labels of their turns, and what there is to say of them."""
    numbers = dict.fromkeys(("turns", "given", "unscored", "clamped"), 0)
    made = []
    for row, example in enumerate(examples):
        (response,) = example.responses
        turns, outside, given = list(response.messages), 0, 0
        for index in trained_turns(turns):
            if turns[index].attributes:
                given += 1
                continue
            rating = rated.get((row, index))
            labels = None if rating is None else labeller.labels(rating)
            if labels is None:
                break
            turns[index], outside = replace(turns[index], attributes=labels[0]), outside + labels[1]
        else:
            made.append(replace(example, responses=(replace(response, messages=tuple(turns)),), feedback=()))
            numbers["turns"] += len(trained_turns(turns))
            numbers["given"] += given
            numbers["clamped"] += outside
            continue
        numbers["unscored"] += 1
    return made, numbers


def labels_in(examples: Sequence[Example]) -> list[Attributes]:
    """The labels of all answers."""
    return [turn.attributes for e in examples for turn in e.responses[0].messages if turn.attributes]


def say(numbers: Mapping[str, float]) -> None:
    """What is worth saying of labels."""
    if numbers["unscored"]:
        log.warning(f"{numbers['unscored']:,} rows are left out: the attribute model could not score an answer of them")
    if numbers["clamped"]:
        log.warning(
            f"{numbers['clamped']:,} measured values lay outside of --steering.lowest to --steering.highest, and count "
            "as the nearest value there"
        )


def write(path: Path, examples: Sequence[Example]) -> Mapping[str, float]:
    """Writes rows of assent's own shape, whole or not at all."""
    on_main(lambda: write_text(path, "".join(json_line(to_row(example)) for example in examples)))
    return {"rows": len(examples)}


def plain(example: Example, steering: Steering) -> Example:
    """The example as whoever scores answers reads it: without a word of what was asked for."""

    def without(turns: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(replace(turn, attributes=()) for turn in turns)

    return replace(
        example,
        prompt=without(example.prompt),
        responses=tuple(replace(each, messages=without(each.messages)) for each in example.responses),
        template_kwargs={n: value for n, value in example.template_kwargs.items() if n not in steering.names},
    )
