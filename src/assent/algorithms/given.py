"""Right answers that the policy did not sample: those of the data, or those that it finds when it is given a hint."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from assent.algorithms.rollouts import GIVEN, keep
from assent.config import GivenConfig
from assent.data.chat import Chat
from assent.data.columns import column, column_names
from assent.data.records import Example, RowError
from assent.data.tree import Branch, TokenTree
from assent.errors import ConfigError


def row_trees(chat: Chat, examples: Sequence[Example], longest: int) -> list[TokenTree | None]:
    """For each prompt a tree with the row's own answer, as if it had been sampled; None where it cannot be: it is
    missing, longer than `longest` tokens, or has tokens of the template inside."""
    return [_row_tree(chat, example, longest) for example in examples]


def _row_tree(chat: Chat, example: Example, longest: int) -> TokenTree | None:
    if not example.responses:
        return None
    prompt = chat.prompt_ids(example)
    try:
        tree = chat.tree(replace(example, responses=example.responses[:1]), len(prompt) + longest, 0)
    except RowError:
        return None
    branch = tree.branches[0]
    size = int(branch.trained.sum())
    ids = branch.ids[:size]
    whole = bool(branch.trained[:size].all()) and np.array_equal(tree.prompt, prompt)
    if not whole or not size or ids[-1] not in chat.eos_ids:
        return None
    return TokenTree(prompt, (Branch(ids, np.ones(size, bool), {}),), per_response={"finished": np.ones(1, np.float32)})


class _Filled(string.Formatter):
    """Fills in names as a whole: a dot leads into a column, not to an attribute."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        return kwargs[field_name], field_name


def hinted(chat: Chat, examples: Sequence[Example], hint: str, longest: int) -> list[np.ndarray | None]:
    """The prompts with the hint below their last message, as token ids; None where those are more than `longest`.
    Raises ConfigError where a row lacks what the hint names, and where its braces cannot be read."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(hint) if name is not None]
    except ValueError as error:
        raise ConfigError(f"--given.hint {hint!r}: {error}. A brace itself is written twice: {{{{ or }}}}.") from None
    prompts: list[np.ndarray | None] = []
    for example in examples:
        values = {name: column(example.meta, name) for name in names}
        if example.responses and "answer" in values:
            values["answer"] = example.responses[0].text
        if missing := [name for name in names if values[name] is None]:
            raise ConfigError(
                f"--given.hint {hint!r}: {example.origin} has no {missing[0]}. It can name: answer, "
                f"{', '.join(column_names([example.meta])) or 'no column'}."
            )
        *before, last = example.prompt
        told = replace(last, content=f"{last.content}\n\n{_Filled().vformat(hint, (), values)}")
        try:
            ids = chat.prompt_ids(replace(example, prompt=(*before, told)))
        except RowError as error:
            raise ConfigError(f"--given.hint {hint!r}: {example.origin}: {error}") from None
        prompts.append(ids if len(ids) <= longest else None)
    return prompts


def with_given(
    config: GivenConfig, trees: Sequence[TokenTree], given: Sequence[TokenTree | None]
) -> tuple[list[TokenTree], float]:
    """The trees with the given answers (scored as they are, one each) behind the sampled ones, and the share of prompts
    that got one."""
    made = []
    for tree, extra in zip(trees, given, strict=True):
        fits = extra is not None and len(extra.branches) > 0
        if fits and config.when == "better":
            assert extra is not None
            fits = bool(extra.per_response["reward"][0] > tree.per_response["reward"].max())
        made.append(_joined(tree, extra if fits else None))
    return made, float(np.mean([len(new.branches) > len(old.branches) for new, old in zip(made, trees, strict=True)]))


def _joined(tree: TokenTree, extra: TokenTree | None) -> TokenTree:
    """The branches of both; "given" tells them apart, and the sampler's log-probs of the given ones are not known."""
    branches = [(branch, 0.0) for branch in tree.branches]
    per_response = dict(tree.per_response)
    if extra is not None:
        branches += [(branch, 1.0) for branch in extra.branches]
        unknown = np.full(len(extra.branches), np.nan, np.float32)
        per_response = {
            name: np.concatenate([values, extra.per_response.get(name, unknown)])
            for name, values in per_response.items()
        }
    made = []
    for branch, given in branches:
        size = int(branch.trained.sum())
        sampler = np.full(size, np.nan, np.float32) if given else branch.per_token["sampler"]
        made.append(replace(branch, per_token={"sampler": sampler, GIVEN: np.full(size, given, np.float32)}))
    return replace(tree, branches=tuple(made), per_response=per_response)


def sampled_only(trees: Sequence[TokenTree]) -> Sequence[TokenTree]:
    """The trees without given answers."""
    if GIVEN not in trees[0].branches[0].per_token:
        return trees
    return [keep(tree, np.array([branch.per_token[GIVEN][0] == 0 for branch in tree.branches])) for tree in trees]
