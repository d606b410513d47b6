"""Examples as token trees within a length limit: what becomes of those that are longer.

A row is longer than the limit where its prompt and its longest answer do not fit together. Its answers are then cut at
the end, without EOS. Where the prompt alone leaves no room for an answer, `--data.long` says what happens:

    drop                   the row is left out and counted
    refuse                 the row is a bad one, and counts against --data.max_bad
    truncate_prompt_left   of every row that is longer than the limit, whole turns are taken off the beginning of the
                           conversation, until the row fits or only the last question and what follows it is left; a
                           system message stays. What is still too long is dropped.

The same happens with a row that has more characters than that many tokens could ever hold (`assent.data.extent`); its
answers are not cut.

Turns are taken off rather than tokens, so that what remains is a conversation that the chat template has written whole.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from assent.data.chat import Chat
from assent.data.records import Example, Message, Problem
from assent.data.tree import TokenTree

Long = Literal["drop", "refuse", "truncate_prompt_left"]

UNLIMITED = 2**40


@dataclass(frozen=True, slots=True)
class Fitted:
    """Trees and the examples that they are made of, in order; `TokenTree.key` is the index of the example as it was
    given. `problems` has what could not be tokens, of which `long` are there for their length alone. `shortened`
    prompts lost turns. `sizes` are the tokens of prompt and responses of whole rows."""

    trees: list[TokenTree]
    examples: list[Example]
    problems: list[Problem]
    long: int
    shortened: int
    sizes: list[tuple[int, list[int]]]


def fitted(chat: Chat, examples: Sequence[Example], max_length: int, long: Long) -> Fitted:
    """Every example that can be tokens within `max_length`, and what became of the others."""
    given: dict[int, Example] = {}
    too_long: list[Problem] = []
    for index, example in enumerate(examples):
        error = chat.too_long(example, max_length)
        shorter = _shorter(chat, example, max_length) if error and long == "truncate_prompt_left" else None
        if shorter is not None or error is None:
            given[index] = shorter or example
        else:
            too_long.append(replace(error.at(example.origin), fault=long == "refuse"))
    places = list(given)
    whole, problems = chat.trees(list(given.values()), UNLIMITED)
    whole = [replace(tree, key=places[tree.key]) for tree in whole]
    kept: list[tuple[TokenTree, Example]] = []
    again: dict[int, Example] = {}
    for tree in whole:
        example = given[tree.key]
        if _longest(tree) <= max_length:
            kept.append((tree, example))
            continue
        if long == "truncate_prompt_left":
            example, tree = _shortened(chat, example, tree, max_length)
        if len(tree.prompt) < max_length:
            again[tree.key] = example
        else:
            reason = f"has {len(tree.prompt)} tokens: no room for an answer within {max_length} (--data.max_length)"
            too_long.append(Problem(example.origin, "prompt", reason, fault=long == "refuse"))
    keys = list(again)
    cut, unfit = chat.trees(list(again.values()), max_length)
    kept += [(replace(tree, key=keys[tree.key]), again[keys[tree.key]]) for tree in cut]
    kept.sort(key=lambda each: each[0].key)
    return Fitted(
        trees=[tree for tree, _ in kept],
        examples=[example for _, example in kept],
        problems=[*problems, *too_long, *unfit],
        long=len(too_long),
        shortened=sum(example is not examples[tree.key] for tree, example in kept),
        sizes=[(len(tree.prompt), [len(branch) for branch in tree.branches]) for tree in whole],
    )


def _longest(tree: TokenTree) -> int:
    """Tokens of the prompt and its longest response; a prompt alone needs room for one."""
    return len(tree.prompt) + max((len(branch) for branch in tree.branches), default=1)


def _shorter(chat: Chat, example: Example, max_length: int) -> Example | None:
    """The example without as many of its first turns as it takes not to be too long by its characters alone."""
    made = [*_later(example.prompt)]
    fits = bisect(made, False, key=lambda prompt: chat.too_long(replace(example, prompt=prompt), max_length) is None)
    return replace(example, prompt=made[fits]) if fits < len(made) else None


def _shortened(chat: Chat, example: Example, tree: TokenTree, max_length: int) -> tuple[Example, TokenTree]:
    """The example with as many of its first turns taken off as it takes to fit, and its tokens."""
    for prompt in _later(example.prompt):
        shorter = replace(example, prompt=prompt)
        trees, _ = chat.trees([shorter], UNLIMITED)
        if not trees:  # a template that needs what was taken off
            continue
        example, tree = shorter, replace(trees[0], key=tree.key)
        if _longest(tree) <= max_length:
            break
    return example, tree


def _later(prompt: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """The prompt without its first exchange, without its first two, ...; what stands before the first stays."""
    starts = [index for index, turn in enumerate(prompt) if turn.role == "user"]
    for start in starts[1:]:
        yield (*prompt[: starts[0]], *prompt[start:])
