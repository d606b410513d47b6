"""A rollout's columns against the same operations on plain lists of responses, over random rollouts: with prompts that
have no responses, without any at all, with responses of one token.

Which columns there are is read off the fields and their documented shapes, so a new one that an operation forgets
fails here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assent.data.packing import count, packed_size, window
from assent.distributed import World
from assent.rollout.engine import Completion
from assent.rollout.rollout import PER_RESPONSE, PER_TOKEN, Fields, Rollout, beside, joined, pack, rollout_of

DOCUMENTED: dict[str, str] = dict(re.findall(r"^(\w+) {2,}(.+)$", inspect.getdoc(Rollout) or "", re.MULTILINE))
STRUCTURE = ("prompts", "rows", "prompt", "ids", "lengths", "parts", "notes")
"""What the plain model holds in another form; every other field is a column of values."""
TOKEN_COLUMNS = [name for name, words in DOCUMENTED.items() if words.startswith("[N]") and name not in STRUCTURE]
RESPONSE_COLUMNS = [name for name, words in DOCUMENTED.items() if words.startswith("[S]") and name not in STRUCTURE]
ALWAYS = ("sampler", "finished", "demonstration")
OPTIONAL = [name for name in (*TOKEN_COLUMNS, *RESPONSE_COLUMNS) if name not in ALWAYS]
DTYPES = {"finished": bool, "demonstration": bool}

# ---- the plain model


@dataclass
class Response:
    ids: list[int]
    tokens: dict[str, list[float]]
    numbers: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)
    note: dict[str, object] | None = None


@dataclass
class Prompt:
    ids: list[int]
    row: int
    responses: list[Response]


def columns_of(prompts: Sequence[Prompt], known: Sequence[str]) -> Rollout:
    responses = [one for prompt in prompts for one in prompt.responses]
    tokens = {
        name: np.array([value for one in responses for value in one.tokens[name]], np.float32)
        for name in TOKEN_COLUMNS
        if name in known or name in ALWAYS
    }
    numbers = {
        name: np.array([one.numbers[name] for one in responses], DTYPES.get(name, np.float32))
        for name in RESPONSE_COLUMNS
        if name in known or name in ALWAYS
    }
    parts = responses[0].parts if responses else {}
    return Rollout(
        prompts=tuple(np.array(prompt.ids, np.int64) for prompt in prompts),
        rows=np.array([prompt.row for prompt in prompts], np.int64),
        prompt=np.array([i for i, prompt in enumerate(prompts) for _ in prompt.responses], np.int64),
        ids=np.array([token for one in responses for token in one.ids], np.int64),
        lengths=np.array([len(one.ids) for one in responses], np.int64),
        parts={name: np.array([one.parts[name] for one in responses], np.float32) for name in parts},
        notes=tuple(one.note for one in responses if one.note is not None),
        **tokens,  # type: ignore[arg-type]
        **numbers,  # type: ignore[arg-type]
    )


def same(rollout: Rollout, prompts: Sequence[Prompt], known: Sequence[str]) -> None:
    """The rollout is this model, column by column, in values, lengths and dtypes."""
    wanted = columns_of(prompts, known)
    for one in fields(Rollout):
        got, want = getattr(rollout, one.name), getattr(wanted, one.name)
        if one.name == "prompts":
            assert [ids.tolist() for ids in got] == [ids.tolist() for ids in want]
        elif one.name == "notes":
            assert got == want
        elif one.name == "parts":
            if len(wanted):
                assert got.keys() == want.keys()
            for name, values in want.items():
                np.testing.assert_array_equal(got[name], values, err_msg=name)
        elif want is None:
            assert got is None, one.name
        else:
            np.testing.assert_array_equal(got, want, err_msg=one.name)
            assert got.dtype == want.dtype, one.name


# ---- random rollouts


@dataclass(frozen=True)
class Kind:
    """Which columns a rollout has."""

    known: list[str]
    parts: list[str]
    noted: bool


KINDS = st.builds(
    Kind,
    known=st.lists(st.sampled_from(OPTIONAL), unique=True),
    parts=st.sampled_from([[], ["a", "b"]]),
    noted=st.booleans(),
)
SHAPES = st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(1, 4), max_size=3)), max_size=4)
"""Of each prompt: its length, and those of its responses."""
FULL = st.lists(
    st.tuples(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=3)), min_size=1, max_size=4
)
"""Every prompt has a response."""


class Numbers:
    """Values that are all different."""

    def __init__(self, seed: int = 0) -> None:
        self.next = 10 * seed
        self.draw = np.random.default_rng(seed)

    def __call__(self) -> int:
        self.next += 1
        return self.next

    def response(self, length: int, kind: Kind) -> Response:
        numbers: dict[str, float] = {
            name: bool(self.draw.random() < 0.5) if name in DTYPES else float(self()) for name in RESPONSE_COLUMNS
        }
        return Response(
            ids=[self() for _ in range(length)],
            tokens={name: [float(self()) for _ in range(length)] for name in TOKEN_COLUMNS},
            numbers=numbers,
            parts={name: float(self()) for name in kind.parts},
            note={"number": self()} if kind.noted else None,
        )

    def prompts(self, shape: Sequence[tuple[int, Sequence[int]]], kind: Kind) -> list[Prompt]:
        return [
            Prompt([self() for _ in range(size)], self(), [self.response(length, kind) for length in lengths])
            for size, lengths in shape
        ]


seeds = st.integers(0, 99)
often = settings(max_examples=80, deadline=None)


# ---- columns


def test_every_field_is_documented_and_known_as_a_column() -> None:
    assert list(DOCUMENTED) == [one.name for one in fields(Rollout)]
    assert {*PER_TOKEN} == {*TOKEN_COLUMNS} and {*PER_RESPONSE} == {*RESPONSE_COLUMNS}
    assert {*STRUCTURE, *TOKEN_COLUMNS, *RESPONSE_COLUMNS} == {*DOCUMENTED}
    assert {*Fields._fields} - {"sampled"} <= {*PER_TOKEN}


@often
@given(SHAPES, KINDS, seeds)
def test_what_is_read_off_the_lengths(shape: Any, kind: Kind, seed: int) -> None:
    prompts = Numbers(seed).prompts(shape, kind)
    rollout = columns_of(prompts, kind.known)
    responses = [one for prompt in prompts for one in prompt.responses]
    assert len(rollout) == len(responses)
    assert rollout.sizes.tolist() == [len(prompt.responses) for prompt in prompts]
    assert [ids.tolist() for ids in rollout.answers] == [one.ids for one in responses]
    assert [rollout.ids[start] for start in rollout.starts] == [one.ids[0] for one in responses]
    assert rollout.response.tolist() == [i for i, one in enumerate(responses) for _ in one.ids]
    values = np.arange(len(rollout))
    assert [part.tolist() for part in rollout.by_prompt(values)] == [
        [i for i in values.tolist() if rollout.prompt[i] == number] for number in range(len(prompts))
    ]
    assert rollout.sums(rollout.sampler).tolist() == [sum(one.tokens["sampler"]) for one in responses]


@often
@given(SHAPES, KINDS, st.data())
def test_taking_responses(shape: Any, kind: Kind, data: st.DataObject) -> None:
    prompts = Numbers().prompts(shape, kind)
    rollout = columns_of(prompts, kind.known)
    keep = np.array([data.draw(st.booleans()) for _ in range(len(rollout))], bool)
    left = iter(keep)
    kept = [replace(prompt, responses=[one for one in prompt.responses if next(left)]) for prompt in prompts]
    same(rollout.take(np.flatnonzero(keep)), kept, kind.known)


@often
@given(SHAPES, KINDS, st.data())
def test_taking_prompts(shape: Any, kind: Kind, data: st.DataObject) -> None:
    """In any order, any of them twice."""
    prompts = Numbers().prompts(shape, kind)
    which = data.draw(st.lists(st.integers(0, len(prompts) - 1), max_size=5)) if prompts else []
    made = columns_of(prompts, kind.known).of_prompts(which)
    same(made, [prompts[i] for i in which], kind.known)


@often
@given(SHAPES, KINDS, seeds)
def test_without_demonstrations(shape: Any, kind: Kind, seed: int) -> None:
    prompts = Numbers(seed).prompts(shape, kind)
    rollout = columns_of(prompts, kind.known)
    left = [
        replace(prompt, responses=[one for one in prompt.responses if not one.numbers["demonstration"]])
        for prompt in prompts
    ]
    same(rollout.sampled(), left, kind.known)
    assert (rollout.sampled() is rollout) == (left == prompts)


@often
@given(st.lists(SHAPES, min_size=1, max_size=3), KINDS)
def test_joining_rollouts_of_different_prompts(shapes: Any, kind: Kind) -> None:
    numbers = Numbers()
    models = [numbers.prompts(shape, kind) for shape in shapes]
    made = joined([columns_of(prompts, kind.known) for prompts in models])
    same(made, [prompt for prompts in models for prompt in prompts], kind.known)


@often
@given(SHAPES, KINDS, st.data())
def test_responses_beside_others_to_the_same_prompts(shape: Any, kind: Kind, data: st.DataObject) -> None:
    numbers = Numbers()
    first = numbers.prompts(shape, kind)
    more = [data.draw(st.lists(st.integers(1, 4), max_size=2)) for _ in first]
    second = [
        replace(prompt, responses=[numbers.response(length, kind) for length in lengths])
        for prompt, lengths in zip(first, more, strict=True)
    ]
    both = [
        replace(one, responses=[*one.responses, *other.responses]) for one, other in zip(first, second, strict=True)
    ]
    same(beside(columns_of(first, kind.known), columns_of(second, kind.known)), both, kind.known)


def test_what_only_one_of_two_has_is_unknown_of_the_other() -> None:
    """A part of the reward, or notes; the other columns are those of the first."""
    numbers = Numbers()
    plain = numbers.prompts([(1, [2])], Kind([], [], False))
    full = numbers.prompts([(1, [1, 3])], Kind(["reward"], ["a", "b"], True))
    alike = [columns_of(full, []), columns_of(plain, [])]
    for rollouts in (alike, alike[::-1]):
        made = joined(rollouts)
        places = np.flatnonzero(np.isnan(made.parts["a"]))
        assert places.tolist() == ([2] if rollouts is alike else [0])
        assert [note != {} for note in made.notes] == [bool(x) for x in ~np.isnan(made.parts["b"])]
    assert joined([columns_of(plain, []), columns_of(full, ["reward"])]).reward is None


# ---- state


@often
@given(SHAPES, KINDS)
def test_the_state_is_the_whole_rollout_but_its_notes(shape: Any, kind: Kind) -> None:
    prompts = Numbers().prompts(shape, kind)
    rollout = columns_of(prompts, kind.known)
    state = rollout.state_dict()
    for prompt in prompts:
        for one in prompt.responses:
            one.note = None
    same(Rollout.from_state(state), prompts, kind.known)
    assert {*state} == {one.name for one in fields(Rollout) if getattr(rollout, one.name) is not None} - {"notes"} | {
        "prompt_lengths"
    }


def test_a_column_that_an_operation_forgets_fails() -> None:
    """The comparisons above see every column: each one changed alone is found."""
    kind = Kind(OPTIONAL, ["a", "b"], True)
    prompts = Numbers().prompts([(2, [1, 3]), (1, []), (3, [2])], kind)
    rollout = columns_of(prompts, kind.known)
    same(rollout, prompts, kind.known)
    for one in fields(Rollout):
        value = getattr(rollout, one.name)
        if one.name == "parts":
            changes: list[Any] = [{}, {name: values + 1 for name, values in value.items()}]
        elif isinstance(value, tuple):
            changes = [value[::-1], value[:-1]]
        else:
            changes = [value[::-1], value[:-1], value.astype(np.complex64)]
            changes += [] if one.name in STRUCTURE else [None]
        for changed in changes:
            if one.name == "finished" or one.name == "demonstration":
                changed = None if changed is None else ~value
            with pytest.raises(AssertionError):
                same(replace(rollout, **{one.name: changed}), prompts, kind.known)


# ---- trees


def alone(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, rank, torch.device("cpu"))


def field_of(name: str) -> Callable[[Response], list[float]]:
    if name == "sampled":
        return lambda one: [0.0 if one.numbers["demonstration"] else 1.0] * len(one.ids)
    return lambda one: one.tokens[name]


def has(name: str, prompts: Sequence[Prompt], kind: Kind) -> bool:
    """Whether the trees have this field: `sampled` only where there are demonstrations."""
    if name == "sampled":
        return any(one.numbers["demonstration"] for prompt in prompts for one in prompt.responses)
    return name in kind.known or name in ALWAYS


@often
@given(SHAPES, KINDS, seeds)
def test_a_tree_for_each_prompt(shape: Any, kind: Kind, seed: int) -> None:
    prompts = Numbers(seed).prompts(shape, kind)
    rollout = columns_of(prompts, kind.known)
    for names in ((), ("sampler",), Fields._fields, TOKEN_COLUMNS):
        trees = rollout.trees(*names)
        assert [tree.key for tree in trees] == [*range(len(prompts))]
        expected = [name for name in names if has(name, prompts, kind)]
        for tree, prompt in zip(trees, prompts, strict=True):
            assert tree.prompt.tolist() == prompt.ids
            sides = [one.numbers["side"] for one in prompt.responses]
            compared = rollout.side is not None and rollout.shaped is not None
            assert not tree.pairs  # sides of numbers that are all above 0: nothing is worse
            labels = {"label": [float(side > 0) for side in sides]} if compared else {}
            points = [one.numbers["reference_point"] for one in prompt.responses]
            labels |= {"reference_point": points} if compared and rollout.reference_point is not None else {}
            assert {name: values.tolist() for name, values in tree.per_response.items()} == labels
            for branch, one in zip(tree.branches, prompt.responses, strict=True):
                assert branch.ids.tolist() == one.ids and branch.trained.tolist() == [True] * len(one.ids)
                assert [*branch.per_token] == expected
                for name in expected:
                    assert branch.per_token[name].tolist() == field_of(name)(one), name


@often
@given(SHAPES, KINDS, st.booleans())
def test_packed_sizes_are_those_of_the_trees(shape: Any, kind: Kind, flat: bool) -> None:
    rollout = columns_of(Numbers().prompts(shape, kind), kind.known)
    sizes = rollout.packed_sizes(flat)
    assert sizes.dtype == np.int64 and sizes.tolist() == [packed_size(tree, flat) for tree in rollout.trees()]


@often
@given(FULL, KINDS, seeds, st.booleans(), st.integers(1, 30), st.integers(1, 3))
def test_packing(shape: Any, kind: Kind, seed: int, flat: bool, micro_tokens: int, ranks: int) -> None:
    """Over all ranks every prompt once, with its fields; what the rollout does not have is None in every batch."""
    prompts = Numbers(seed).prompts(shape, kind)
    rollout = columns_of(prompts, kind.known)
    seen: list[int] = []
    for rank in range(ranks):
        made = pack(rollout, micro_tokens=micro_tokens, flat=flat, world=alone(rank, ranks))
        plain = window(rollout.trees(), micro_tokens=micro_tokens, flat=flat, rank=rank, ranks=ranks)
        assert made.counts == count(rollout.trees())
        for batch, wanted in zip(made.batches, plain.batches, strict=True):
            assert batch.keys == wanted.keys and torch.equal(batch.tokens, wanted.tokens)
            assert torch.equal(batch.label, wanted.label)
            seen += batch.keys
            here = [one for key in batch.keys for one in prompts[key].responses]
            for name, values in Fields.of(batch)._asdict().items():
                if not has(name, prompts, kind):
                    assert values is None, name
                    continue
                assert values.dtype == torch.float32
                assert values.tolist() == [value for one in here for value in field_of(name)(one)], name
    assert sorted(seen) == [*range(len(prompts))]


# ---- from what was sampled


@often
@given(SHAPES, st.booleans())
def test_completions_as_columns(shape: Any, demonstrations: bool) -> None:
    prompts = Numbers().prompts(shape, Kind([], [], False))
    for prompt in prompts:
        for one in prompt.responses:
            one.numbers["demonstration"] = demonstrations
    groups = [
        [
            Completion(np.array(one.ids), np.array(one.tokens["sampler"], np.float32), bool(one.numbers["finished"]))
            for one in prompt.responses
        ]
        for prompt in prompts
    ]
    made = rollout_of(
        [np.array(prompt.ids) for prompt in prompts],
        np.array([prompt.row for prompt in prompts]),
        groups,
        demonstrations=demonstrations,
    )
    same(made, prompts, [])
