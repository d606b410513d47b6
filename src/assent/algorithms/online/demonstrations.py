"""Demonstrations: right answers that the policy did not sample. Those of the data, or those that it finds when it is
given a hint."""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from assent.config.distill import GKDDistill
from assent.config.online import GivenConfig, OnlineConfig
from assent.data.chat import Chat
from assent.data.columns import column, column_names
from assent.data.records import Example, RowError
from assent.errors import ConfigError, DataError
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, beside, joined, rollout_of

log = logging.getLogger(__name__)


def answers_by_row(chat: Chat, examples: Sequence[Example], config: OnlineConfig) -> dict[int, np.ndarray]:
    """The data's own answers, by row, where something asks for them. Raises DataError where there are none, or not all
    that are needed."""
    longest, distill = config.sampling.max_new_tokens, config.distill
    share = distill.on_policy if isinstance(distill, GKDDistill) else 1.0
    if config.given.source != "row" and config.shaping.baseline != "row" and share == 1:
        return {}
    found = row_answers(chat, examples, longest)
    answers = {row: ids for row, ids in enumerate(found) if ids is not None}
    if share < 1 and len(answers) < len(found):
        without = next(examples[row] for row, ids in enumerate(found) if ids is None)
        raise DataError(
            f"{config.data.train}: {len(found) - len(answers)} of {len(found)} rows, first {without.origin}, have no "
            f"answer of at most {longest} tokens (--sampling.max_new_tokens), and --distill.on_policy {share:g} learns "
            "from the rows' own. Allow longer ones, leave these rows out, or use --distill.on_policy 1."
        )
    if not answers:
        raise DataError(
            f"{config.data.train}: no row has an answer of at most {longest} tokens, which --given.source row and "
            "--shaping.baseline row ask for. See: assent data FILE"
        )
    return answers


def row_answers(chat: Chat, examples: Sequence[Example], longest: int) -> list[np.ndarray | None]:
    """The row's own answer to each prompt as token ids, as if it had been sampled; None where it cannot be: it is
    missing, longer than `longest` tokens, or has tokens of the template inside."""
    return [_row_answer(chat, example, longest) for example in examples]


def _row_answer(chat: Chat, example: Example, longest: int) -> np.ndarray | None:
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
    return ids if whole and size and ids[-1] in chat.eos_ids else None


def of_rows(
    prompts: Sequence[np.ndarray], rows: Sequence[int] | np.ndarray, answers: Mapping[int, np.ndarray]
) -> Rollout:
    """The answers to these rows, where there are any, as demonstrations; `prompts` are those of all rows."""
    found = [[_whole(answers[row])] if row in answers else [] for row in rows]
    return rollout_of([prompts[row] for row in rows], np.asarray(rows), found, demonstrations=True)


def with_answers(
    rollout: Rollout, prompts: Sequence[np.ndarray], rows: np.ndarray, answers: Mapping[int, np.ndarray]
) -> Rollout:
    """The rollout with the answers to further rows as demonstrations, whose reward nobody asks for."""
    if not len(rows):
        return rollout
    found = of_rows(prompts, rows, answers)
    found = replace(found, reward=np.zeros(len(found), np.float32))
    return joined([rollout, found]) if len(rollout) else found


def _whole(ids: np.ndarray) -> Completion:
    return Completion(ids, np.full(len(ids), np.nan, np.float32), True)


def of_hints(rollout: Rollout, hinted: Rollout | None) -> Rollout:
    """What was sampled to the prompts with a hint, as demonstrations to the same prompts without it."""
    found: dict[int, list[Completion]] = {}
    if hinted is not None:
        for row, ids, finished in zip(hinted.rows.tolist(), hinted.answers, hinted.finished.tolist(), strict=True):
            found[row] = [replace(_whole(ids), finished=finished)]
    groups = [found.get(row, []) for row in rollout.rows.tolist()]
    return rollout_of(rollout.prompts, rollout.rows, groups, demonstrations=True)


def hints_by_row(chat: Chat, examples: Sequence[Example], config: OnlineConfig) -> list[np.ndarray | None]:
    """The prompts with a hint, where hints are given; None for those that are too long. Raises as `hinted`, and
    DataError where all are too long."""
    if config.given.source != "hint":
        return []
    room = config.data.max_length - config.sampling.max_new_tokens
    hints = hinted(chat, examples, config.given.hint or "", room)
    without = sum(hint is None for hint in hints)
    count = f"{config.data.train}: {without} of {len(hints)} prompts"
    misfits = f"{count} have more than {room} tokens with --given.hint"
    if without == len(hints):
        raise DataError(
            f"{misfits} (--data.max_length less --sampling.max_new_tokens). Shorten the hint, or raise the former."
        )
    if without:
        log.warning(f"{misfits} and get no hint")
    return hints


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
        hinted_turn = replace(last, content=f"{last.content}\n\n{_Filled().vformat(hint, (), values)}")
        try:
            ids = chat.prompt_ids(replace(example, prompt=(*before, hinted_turn)))
        except RowError as error:
            raise ConfigError(f"--given.hint {hint!r}: {example.origin}: {error}") from None
        prompts.append(ids if len(ids) <= longest else None)
    return prompts


def with_demonstrations(config: GivenConfig, rollout: Rollout, found: Rollout) -> tuple[Rollout, float]:
    """The rollout with the demonstrations (scored as they are, at most one to a prompt) behind the sampled responses,
    and the share of prompts that got one."""
    if not len(found):
        return rollout, 0.0
    if config.when == "better":
        assert rollout.reward is not None and found.reward is not None
        best = np.array([rewards.max() for rewards in rollout.by_prompt(rollout.reward)])
        found = found.take(np.flatnonzero(found.reward > best[found.prompt]))
    return beside(rollout, found), len(found) / len(rollout.prompts)
