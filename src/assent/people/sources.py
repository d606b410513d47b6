"""Where a task's items come from: files with answers, or prompts that policies answer, blind and with their seed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from assent.config import ModelConfig
from assent.data.formats import load_examples
from assent.data.records import Example, Origin, Problem, RowError
from assent.distributed import World
from assent.errors import ConfigError, DataError
from assent.people.asked import called, say_problems
from assent.people.items import item_from, known_value
from assent.people.kinds import Value
from assent.people.principles import draw
from assent.people.task import Item, TaskDefinition, digest_of
from assent.rollout.answering import Asked, answered, asked, close, opened, room_of

log = logging.getLogger(__name__)

Purpose = Literal["work", "gold", "screening"]
SAMPLED = "sampled"
"""The column of items that were sampled: of each answer its policy, seed, and numbers of the draw."""
BLOCK = 1024
"""Prompts that are answered before they are handed on: what is lost when a process is killed."""
CUT = "an answer reached sampling.max_new_tokens"
EMPTY = "an answer has no text"


@dataclass(frozen=True, slots=True)
class Batch:
    """Items for a purpose; `expected` has the known answer to each gold or screening item."""

    purpose: Purpose
    items: list[Item]
    expected: list[Value] | None = None


def batches(task: TaskDefinition, known: Collection[str] = ()) -> Iterator[Batch]:
    """All items of a task, in parts that can be stored one by one. Prompts whose `prompt_key` is in `known` are not
    answered again. Rows that cannot be used are named.

    Raises ConfigError, DataError for a file without a usable row, ModelError."""
    if task.screening is not None:
        items, values = known_items(task, task.screening.items, "screening.items")
        if len(items) < task.screening.at_least:
            raise DataError(
                f"{task.source}: screening.items has {len(items)} usable rows, and screening.at_least asks for "
                f"{task.screening.at_least} answers. Add rows, or lower it."
            )
        yield Batch("screening", items, values)
    if task.gold is not None:
        yield Batch("gold", *known_items(task, task.gold, "gold"))
    if not task.policies:
        yield Batch("work", file_items(task))
        return
    for made in sampled_items(task, known):
        yield Batch("work", made)


def prompt_key(item: Item) -> str:
    """Identifies an item's prompt, whatever the answers are."""
    return replace(item, responses=()).digest


# ---- files


def file_items(task: TaskDefinition) -> list[Item]:
    """The items of `task.items`, whose rows have their answers. Raises DataError where there is none."""
    return [item for item, _ in _rows(task, task.items, "items", lambda example: item_from(example, task))]


def known_items(task: TaskDefinition, file: str, option: str) -> tuple[list[Item], list[Value]]:
    """Items of known answer: rows with feedback that is one answer to such a task. Raises DataError where there is
    none."""
    found = _rows(task, file, option, lambda example: item_from(example, task))
    items, values, problems = [], [], []
    for item, example in found:
        try:
            values.append(known_value(example, item, task))
            items.append(item)
        except RowError as error:
            problems.append(error.at(example.origin))
    say_problems(file, problems)
    if not items:
        raise DataError(f"{task.source}: {option}: no row of {file} has a known answer. The first: {problems[0]}")
    return items, values


def _rows(task: TaskDefinition, file: str, option: str, make: Callable[[Example], Item]) -> list[tuple[Item, Example]]:
    """An item for each row, each once; problems are said."""
    examples, problems = _loaded(task, file, option)
    found: list[tuple[Item, Example]] = []
    seen: dict[str, Origin] = {}
    for example in examples:
        try:
            item = make(example)
            key = digest_of([prompt_key(item), sorted(item.responses)])
            if key in seen:
                same = "prompt and answers" if item.responses else "prompt"
                raise RowError("prompt", f"the same {same} as {seen[key]}")
        except RowError as error:
            problems.append(error.at(example.origin))
            continue
        seen[key] = example.origin
        found.append((item, example))
    say_problems(file, problems)
    if not found:
        raise DataError(
            f"{task.source}: {option}: no row of {file} is an item of a task of kind {task.kind}. The first: "
            f"{problems[0]}"
        )
    return found


def _loaded(task: TaskDefinition, file: str, option: str) -> tuple[list[Example], list[Problem]]:
    own: dict[str, Any] = {}
    if option == "items":
        own = {"format": task.format, "columns": task.columns, "split": task.split, "limit": task.limit}
    try:
        loaded = load_examples(file, **own)
    except DataError as error:
        raise DataError(f"{task.source}: {option}: {error}") from None
    return loaded.examples, list(loaded.problems)


# ---- policies


def assigned(task: TaskDefinition, key: str) -> list[int]:
    """Which policy (by its place) gives each answer to a prompt: all in turn, in an order that is drawn for it."""
    order: list[int] = []
    left = list(range(len(task.policies)))
    while left:
        order.append(left.pop(draw(len(left), task.seed, "policies", key, len(left))))
    return [order[place % len(order)] for place in range(task.sampled)]


def sampled_items(task: TaskDefinition, known: Collection[str] = ()) -> Iterator[list[Item]]:
    """Items whose answers are sampled, some hundred at a time. What a prompt is answered depends on the task's seed and
    on its place among the rows, not on what is known already."""
    if task.sampling.temperature == 0 and task.sampled > len(task.policies):
        raise ConfigError(
            f"{task.source}: sampling.temperature 0 gives each policy one answer to a prompt, and {task.sampled} are "
            f"asked of {len(task.policies)}. Raise the temperature, or name more policies."
        )
    prompts = [(prompt_key(item), example) for item, example in _rows(task, task.items, "items", _prompt_of(task))]
    numbers = _numbers(task, prompts)
    world = World(0, 1, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    makers = [_Maker(task, place, world) for place in range(len(task.policies))]
    found = 0
    for start in range(0, len(prompts), BLOCK):
        block = [n for n in range(start, min(start + BLOCK, len(prompts))) if prompts[n][0] not in known]
        if not block:
            continue
        log.info(f"{task.name}: {len(block):,} prompts are answered by {', '.join(task.policies)}")
        said: dict[tuple[int, int], list[_Answer] | Problem] = {}
        for maker in makers:
            said |= maker.answers([(n, prompts[n][1], numbers[n]) for n in block])
            if len(makers) > 1:
                maker.close()
        made: list[Item] = []
        problems: list[Problem] = []
        for n in block:
            one = _item(task, n, prompts[n], numbers[n], said)
            if isinstance(one, Problem):
                problems.append(one)
            else:
                made.append(one)
        say_problems(task.items, problems)
        found += len(made)
        yield made
        if not found and problems:
            log.warning(f"none of the first {start + len(block):,} prompts has an item. The last: {problems[-1]}")
    for maker in makers:
        maker.close()


def _prompt_of(task: TaskDefinition) -> Callable[[Example], Item]:
    """The item that a row's prompt will be; whatever answers the row has are not shown."""
    alone = replace(task, kind="edit")  # the kind that needs no answers

    return lambda example: item_from(replace(example, responses=(), feedback=()), alone)


def _numbers(task: TaskDefinition, prompts: Sequence[tuple[str, Example]]) -> list[dict[int, tuple[int, int]]]:
    """For each prompt: policy -> (its answers, the prompt's number in that policy's draws of so many answers)."""
    counts: dict[tuple[int, int], int] = {}
    found = []
    for key, _ in prompts:
        mine: dict[int, tuple[int, int]] = {}
        asked_for = assigned(task, key)
        for policy in dict.fromkeys(asked_for):
            count = asked_for.count(policy)
            number = counts.get((policy, count), 0)
            counts[policy, count] = number + 1
            mine[policy] = (count, number)
        found.append(mine)
    return found


@dataclass(frozen=True, slots=True)
class _Answer:
    """One sampled answer, as a response of its own, and where it was drawn."""

    example: Example
    seed: int
    number: int
    of: int


class _Maker:
    """A policy, whose model is loaded when it is asked."""

    def __init__(self, task: TaskDefinition, place: int, world: World) -> None:
        self.task, self.place, self.world = task, place, world
        self.model = ModelConfig(task.policies[place], precision=task.precision)
        self.seed = draw(2**31, task.seed, "policy", place)
        self._opened: Any = None

    @property
    def source(self) -> str:
        return called(self.model.path)

    def answers(
        self, prompts: Sequence[tuple[int, Example, dict[int, tuple[int, int]]]]
    ) -> dict[tuple[int, int], list[_Answer] | Problem]:
        """(prompt's number, policy) -> its answers, or why there are none."""
        task, found = self.task, dict[tuple[int, int], list[_Answer] | Problem]()
        mine = [(n, example, parts[self.place]) for n, example, parts in prompts if self.place in parts]
        if not mine:
            return found
        if self._opened is None:
            self._opened = opened(self.model, task.engine, task.sampling, self.world)
        chat, engine = self._opened
        room = room_of(self.model, task.sampling)
        by_count: dict[int, list[tuple[int, int, Asked]]] = {}
        for n, example, (count, number) in mine:
            ready, problems = asked(chat, [replace(example, responses=(), feedback=())], room)
            if problems:
                found[n, self.place] = problems[0]
            else:
                by_count.setdefault(count, []).append((n, number, ready[0]))
        for count, group in by_count.items():
            for run in _runs(group):
                first = run[0][1]
                made = engine.generate([one.ids for _, _, one in run], count, task.sampling, self.seed, first)
                for (n, number, one), completions in zip(run, made, strict=True):
                    (row,), counts = answered(chat, [one], [completions], self.source)
                    if counts.empty or counts.unfinished:
                        found[n, self.place] = Problem(one.example.origin, None, CUT if counts.unfinished else EMPTY)
                    else:
                        found[n, self.place] = [
                            _Answer(replace(row, responses=(response,)), self.seed, number, place)
                            for place, response in enumerate(row.responses)
                        ]
        return found

    def close(self) -> None:
        """Gives the model's memory back."""
        if self._opened is not None:
            close(self._opened[1])
            self._opened = None
            gc.collect()


def _runs(group: Sequence[tuple[int, int, Asked]]) -> Iterator[list[tuple[int, int, Asked]]]:
    """Prompts whose numbers follow each other: an engine numbers what it is given at once."""
    run: list[tuple[int, int, Asked]] = []
    for one in group:
        if run and one[1] != run[-1][1] + 1:
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _item(
    task: TaskDefinition,
    n: int,
    prompt: tuple[str, Example],
    numbers: dict[int, tuple[int, int]],
    said: dict[tuple[int, int], list[_Answer] | Problem],
) -> Item | Problem:
    """The item of a prompt with its answers in the order that was drawn, and how each was sampled."""
    key, example = prompt
    left: dict[int, list[_Answer]] = {}
    for policy in numbers:
        got = said[n, policy]
        if isinstance(got, Problem):
            return replace(got, reason=f"{task.policies[policy]}: {got.reason}")
        left[policy] = list(got)
    chosen = [(policy, left[policy].pop(0)) for policy in assigned(task, key)]
    record = [
        {"policy": task.policies[policy], "seed": each.seed, "prompt": each.number, "answer": each.of}
        for policy, each in chosen
    ]
    meta = {**example.meta, SAMPLED: {"task_seed": task.seed, "answers": record}}
    responses = tuple(each.example.responses[0] for _, each in chosen)
    try:
        return item_from(replace(example, responses=responses, feedback=(), meta=meta), task)
    except RowError as error:
        return error.at(example.origin)
