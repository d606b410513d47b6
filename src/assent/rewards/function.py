"""The user's own function as a source of rewards, called as TRL calls it."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assent.data.records import Example, Message
from assent.errors import ConfigError
from assent.foreign import shown, without_keys
from assent.functions import load_function
from assent.guest import Guest, blamed, ends_programs
from assent.rewards.group import Group, NonFiniteReward, Progress, RewardError, Scores, checked

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


class FunctionReward:
    """`f(prompts, completions, **columns) -> list[float | None]`, with one entry of each list for each answer.

    prompts         the row's own prompt: text, or messages [{"role", "content"}, ...]
    completions     the answer likewise: text where the row's prompt is text, else [{"role": "assistant", "content"}]
    completion_ids  its tokens
    columns         every other column of the rows, under its name; None where a row lacks it
    trainer_state   `global_step` optimiser steps of `max_steps` are taken, `epoch` passes of `num_train_epochs`
    log_extra       f(column, values): one value for each answer, to be written beside it in samples.jsonl
    log_metric      f(name, number): goes into the metrics, as the mean of all calls

    A function that does not take `**` is given what it names. It may be `async`. None stands for an answer that it does
    not judge. What it raises ends the run: only its author knows whether trying again would help.
    """

    def __init__(self, spec: str, flag: str, name: str | None = None) -> None:
        """`spec` is FILE.py:function or module:function. Raises ConfigError, with the `flag` it was given by, where
        there is none or it cannot be called by name."""
        self.spec, self.flag = spec, flag
        self._guest = Guest()
        with self._guest.turn():
            self.function = load_function(spec, flag)
        function = spec.rpartition(":")[2]
        self.name = name or function
        self.who = f"{flag} {spec}: {function}"
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError):
            raise ConfigError(f"{self.who} has no signature that Python can read; wrap it in a function.") from None
        if nameless := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]:
            raise ConfigError(f"{self.who} must take its arguments by name; {', '.join(nameless)} cannot be.")
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._named = [p.name for p in named]
        self._required = [p.name for p in named if p.default is p.empty]
        annotation = next((p.annotation for p in named if p.name == "completions"), None)
        self._wants_text = str(annotation).endswith("[str]")

    def check(self, examples: Sequence[Example]) -> None:
        """Raises ConfigError where the function needs a column that no row has, or declares that it reads text and the
        rows are messages: better before training than in it."""
        columns = {column: None for example in examples for column in _columns(example)}
        for name in self._required:
            if name not in (*GIVEN, *columns):
                raise ConfigError(
                    f"{self.who} needs '{name}', which no row has. It can have: {', '.join((*GIVEN, *columns))}."
                )
        messages = next((example for example in examples if example.prompt_text is None), None)
        if self._wants_text and messages is not None:
            raise ConfigError(
                f"{self.who} declares `completions` as text, but where a row's prompt is messages ({messages.origin}), "
                'it is given messages, as TRL gives them: [{"role": "assistant", "content": text}]. Read '
                "completion[0]['content'], and declare list[list[dict]]; or write the prompts as text."
            )

    def score(self, groups: Sequence[Group]) -> Scores:
        """Raises RewardError when the function raises or returns anything but one reward for each answer."""
        log = _Log(self.who, sum(map(len, groups)))
        arguments = self._arguments(groups, log)
        with self._guest.turn():
            try:
                returned = self.function(**arguments)
                if inspect.isawaitable(returned):
                    returned = asyncio.run(_awaited(returned))
            except RewardError:
                raise
            except BaseException as error:
                if not isinstance(error, Exception) and not ends_programs(error):
                    raise
                raise RewardError(f"{self.who} raised {blamed(error)}.{self._hint(error, groups)}") from error
        values = self._listed(returned)
        abstained = np.array([value is None for value in values], bool)
        return Scores(
            checked(self.who, groups, values),
            failures={"returned None": int(abstained.sum())} if abstained.any() else {},
            abstained=abstained,
            columns=log.columns,
            metrics=log.metrics,
        )

    def _arguments(self, groups: Sequence[Group], log: _Log) -> dict[str, Any]:
        answers = [(group, text) for group in groups for text in group.texts]
        rows = {id(group): _columns(group.example) for group in groups}
        columns = dict.fromkeys([*self._required, *(column for row in rows.values() for column in row)])
        known: dict[str, Any] = {column: [rows[id(group)].get(column) for group, _ in answers] for column in columns}
        known["prompts"] = [_prompt(group.example) for group, _ in answers]
        known["completions"] = [_completion(group, index) for group in groups for index in range(len(group))]
        if all(len(group.ids) == len(group) for group in groups):
            known["completion_ids"] = [[int(token) for token in ids] for group in groups for ids in group.ids]
        elif "completion_ids" in self._required:
            raise RewardError(f"{self.who} asks for completion_ids, but the tokens of these answers were not kept.")
        known["trainer_state"] = _trainer_state(groups[0].progress if groups else Progress())
        known["log_extra"], known["log_metric"] = log.extra, log.metric
        return known if self._takes_all else {name: known[name] for name in self._named if name in known}

    def _listed(self, returned: object) -> Sequence[object]:
        if hasattr(returned, "tolist"):  # arrays and tensors
            returned = returned.tolist()
        if not isinstance(returned, Sequence) or isinstance(returned, str | bytes):
            raise RewardError(
                f"{self.who} returned {shown(returned)}; expected a list with one reward for each answer."
            )
        return returned

    def _hint(self, error: BaseException, groups: Sequence[Group]) -> str:
        if "completions" not in self._named or not isinstance(error, TypeError | AttributeError):
            return ""
        if all(group.example.prompt_text is None for group in groups):
            return (
                " The prompts of the rows are messages, so each of the completions is a list of messages, "
                '[{"role": "assistant", "content": text}].'
            )
        return (
            " The prompts of the rows are text, so each of the completions is text; where a row's prompt is messages, "
            "it is a list of messages."
        )


class _Log:
    """What a function writes down while it scores `count` answers."""

    def __init__(self, who: str, count: int) -> None:
        self.who, self.count = who, count
        self.columns: dict[str, list[object]] = {}
        self.metrics: dict[str, list[float]] = {}

    def extra(self, column: str, values: Sequence[object]) -> None:
        """Raises RewardError unless there is one value for each answer."""
        listed = values.tolist() if hasattr(values, "tolist") else list(values)
        if len(listed) != self.count:
            raise RewardError(
                f"{self.who}: log_extra('{column}') got {len(listed)} values; expected {self.count}: one for each "
                "answer."
            )
        plain = [value if _is_plain(value) else str(value) for value in listed]
        self.columns[str(column)] = [without_keys(value) if isinstance(value, str) else value for value in plain]

    def metric(self, name: str, value: float) -> None:
        """Raises RewardError for what is no number, NonFiniteReward for one that is not finite: it would be part of a
        mean."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise RewardError(f"{self.who}: log_metric('{name}') got {shown(value)}; expected a number.") from None
        if not math.isfinite(number):
            raise NonFiniteReward(f"{self.who}: log_metric('{name}') got {number}; expected a finite number.")
        self.metrics.setdefault(str(name), []).append(number)


def _is_plain(value: object) -> bool:
    """Whether JSON has such a value; anything else is written down as text."""
    return isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))


def _columns(example: Example) -> dict[str, object]:
    """The row's columns beside the prompt and its answers."""
    own: dict[str, object] = {}
    if example.tools is not None:
        own["tools"] = json.loads(example.tools)
    if example.template_kwargs:
        own["chat_template_kwargs"] = dict(example.template_kwargs)
    return {**own, **example.meta}


def _prompt(example: Example) -> object:
    if example.prompt_text is not None:
        return example.prompt_text
    return [_message(message) for message in example.prompt]


def _completion(group: Group, index: int) -> object:
    if group.example.prompt_text is not None:
        return group.texts[index]
    if group.responses:
        return [_message(message) for message in group.responses[index].messages]
    return [{"role": "assistant", "content": group.texts[index]}]


def _message(message: Message) -> dict[str, object]:
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
        for call in message.tool_calls
    ]
    extra = {
        "reasoning_content": message.reasoning,
        "tool_calls": calls or None,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    given = {key: value for key, value in extra.items() if value is not None}
    return {"role": message.role, "content": message.content, **given}


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What functions read of transformers' class of this name, under the same names. (That one's import takes seconds,
    in each worker.)"""

    epoch: float
    global_step: int
    max_steps: int
    num_train_epochs: int
    is_world_process_zero: bool = True
    is_local_process_zero: bool = True
    log_history: tuple[dict[str, float], ...] = ()


def _trainer_state(progress: Progress) -> TrainerState:
    return TrainerState(progress.epoch, progress.step, progress.steps, progress.epochs)


async def _awaited(returned: Any) -> object:
    return await returned
