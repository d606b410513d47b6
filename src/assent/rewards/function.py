"""The user's own function as a source of rewards, called as TRL calls it."""

from __future__ import annotations

import asyncio
import inspect
import reprlib
import traceback
from collections.abc import Sequence
from typing import Any

from assent.data.records import Example
from assent.errors import ConfigError
from assent.functions import load_function
from assent.rewards.group import Group, RewardError, Scores, checked, prompt_text

GIVEN = ("prompts", "completions", "completion_ids")


class FunctionReward:
    """`f(prompts, completions, **columns) -> list[float | None]`, with one entry of each list for each answer.

    prompts         messages [{"role", "content"}, ...]
    completions     the answer as messages: [{"role": "assistant", "content": text}]
    completion_ids  its tokens, for functions that ask for them
    columns         every other column of the rows, under its name; None where a row lacks it

    A function that does not take `**` is given what it names. One whose `completions` are annotated as `list[str]` gets
    prompts and answers as plain text. It may be `async`. None stands for no reward. What it raises ends the run: only
    its author knows whether trying again would help.
    """

    def __init__(self, spec: str, flag: str, name: str | None = None) -> None:
        """`spec` is FILE.py:function or module:function. Raises ConfigError, with the `flag` it was given by, where
        there is none or it cannot be called by name."""
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
        self._plain = str(annotation).endswith("[str]")

    def check(self, examples: Sequence[Example]) -> None:
        """Raises ConfigError where the function needs a column that no row has: better before training than in it."""
        columns = {column: None for example in examples for column in example.meta}
        for name in self._required:
            if name not in (*GIVEN, *columns):
                raise ConfigError(
                    f"{self.who} needs '{name}', which no row has. It can have: {', '.join((*GIVEN, *columns))}."
                )

    def score(self, groups: Sequence[Group]) -> Scores:
        """Raises RewardError when the function raises or returns anything but one reward for each answer."""
        arguments = self._arguments(groups)
        try:
            returned = self.function(**arguments)
            if inspect.iscoroutine(returned):
                returned = asyncio.run(returned)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raised = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            raise RewardError(f"{self.who} raised {raised}.{self._hint(error)}") from error
        values = self._listed(returned)
        unscored = sum(value is None for value in values)
        failures = {"returned None": unscored} if unscored else {}
        return Scores(checked(self.who, groups, values), failures=failures)

    def _arguments(self, groups: Sequence[Group]) -> dict[str, list[Any]]:
        answers = [(group, text) for group in groups for text in group.texts]
        columns = dict.fromkeys([*self._required, *(column for group in groups for column in group.example.meta)])
        known: dict[str, list[Any]] = {
            column: [group.example.meta.get(column) for group, _ in answers] for column in columns
        }
        if self._plain:
            known["prompts"] = [prompt_text(group.example.prompt) for group, _ in answers]
            known["completions"] = [text for _, text in answers]
        else:
            known["prompts"] = [
                [{"role": message.role, "content": message.content} for message in group.example.prompt]
                for group, _ in answers
            ]
            known["completions"] = [[{"role": "assistant", "content": text}] for _, text in answers]
        if all(len(group.ids) == len(group) for group in groups):
            known["completion_ids"] = [[int(token) for token in ids] for group in groups for ids in group.ids]
        elif "completion_ids" in self._required:
            raise RewardError(f"{self.who} asks for completion_ids, but the tokens of these answers were not kept.")
        return known if self._takes_all else {name: known[name] for name in self._named if name in known}

    def _listed(self, returned: object) -> Sequence[object]:
        if hasattr(returned, "tolist"):  # arrays and tensors
            returned = returned.tolist()
        if not isinstance(returned, Sequence) or isinstance(returned, str | bytes):
            raise RewardError(
                f"{self.who} returned {reprlib.repr(returned)}; expected a list with one reward for each answer."
            )
        return returned

    def _hint(self, error: Exception) -> str:
        if self._plain or "completions" not in self._named or not isinstance(error, TypeError | AttributeError):
            return ""
        return (
            ' Each of the completions is a list of messages, [{"role": "assistant", "content": text}]; annotate the '
            "parameter as `completions: list[str]` to be given plain text."
        )
