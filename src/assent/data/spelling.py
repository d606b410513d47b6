"""Control tokens that stand in message text as letters.

A row whose text spells a control token ("<|im_end|>") is rendered with that spelling hidden behind a stand-in, and
encoded by a copy of the tokenizer in which the control tokens have names that no text can have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from assent.data.records import RowError

HIDE, NAME = "\U0010fffe", "\U0010ffff"
"""Unicode noncharacters: valid in a string, never part of text. HIDE stands around the id of a control token whose
spelling is text, NAME around the new name of a control token."""

_HIDE = "|".join(map(re.escape, (HIDE, json.dumps(HIDE)[1:-1], HIDE.encode("unicode_escape").decode())))
_HIDDEN = re.compile(rf"(?:{_HIDE})(\d+)(?:{_HIDE})")
STAND_INS = re.compile(rf"{_HIDE}|{NAME}")
"""What no text of a row with hidden spellings may hold: it could pass for a stand-in or a control token. A template may
write a stand-in as JSON or as Python does."""


class Spelling:
    """Which spellings are hidden where. `controls` (spelling to id) are never read in text; of them, `answers` are what
    assistant messages may write (thinking, tool calls)."""

    def __init__(self, backend: Tokenizer, controls: Mapping[str, int], answers: Collection[str]) -> None:
        self._backend = backend
        self.controls = dict(controls)
        self.pattern = any_of(controls)
        self._in_answers = any_of([spelling for spelling in controls if spelling not in answers])
        self._names = {spelling: f"{NAME}{index}{NAME}" for spelling, index in controls.items()}
        self._spellings = {index: spelling for spelling, index in controls.items()}

    def spelled(self, value: Any, answer: bool = False) -> bool:
        """Whether a text, or a text inside lists and mappings, spells a token that must be hidden there."""
        if isinstance(value, str):
            return (self._in_answers if answer else self.pattern).search(value) is not None
        if isinstance(value, Mapping):
            return any(self.spelled(key, answer) or self.spelled(item, answer) for key, item in value.items())
        return isinstance(value, list) and any(self.spelled(item, answer) for item in value)

    def hide(self, value: Any, answer: bool = False) -> Any:
        """The same with a stand-in for each such spelling."""
        if isinstance(value, str):
            pattern = self._in_answers if answer else self.pattern
            return pattern.sub(lambda match: f"{HIDE}{self.controls[match[0]]}{HIDE}", value)
        if isinstance(value, Mapping):
            return {self.hide(key, answer): self.hide(item, answer) for key, item in value.items()}
        return [self.hide(item, answer) for item in value] if isinstance(value, list) else value

    def reveal(self, rendered: str) -> str:
        """The template's own control tokens get their names, hidden ones become plain text again. Raises `RowError`
        where the template has taken a stand-in apart."""
        parts = _HIDDEN.split(rendered)  # text, the id of a hidden one, text, ...
        if any(STAND_INS.search(text) for text in parts[::2]) or any(
            int(i) not in self._spellings for i in parts[1::2]
        ):
            raise RowError(None, "the chat template changes text that spells a control token")
        parts[::2] = [self.pattern.sub(lambda match: self._names[match[0]], text) for text in parts[::2]]
        parts[1::2] = [self._spellings[int(i)] for i in parts[1::2]]
        return "".join(parts)

    @cached_property
    def backend(self) -> Tokenizer:
        """The tokenizer with its control tokens renamed: same ids, but no text can spell them."""
        state = json.loads(self._backend.to_str())
        for token in state["added_tokens"]:
            if token["content"] in self._names:
                token |= {"content": self._names[token["content"]], "normalized": False}
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._names.get(piece, piece): index for piece, index in model["vocab"].items()}
        else:
            model["vocab"] = [[self._names.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = self._names.get(model["unk_token"], model["unk_token"])
        state["post_processor"] = None  # it only adds special tokens, which the template writes itself
        backend = Tokenizer.from_str(json.dumps(state))
        for spelling, index in self.controls.items():
            assert backend.token_to_id(self._names[spelling]) == index, f"renaming moved {spelling}"
        return backend


def partners(token: str) -> list[str]:
    """What a token would be closed or opened by: <x> and </x>, [X] and [/X], <|x> and <x|>, begin and end."""
    made = []
    for opened, closed in ((r"<([^/|｜<>]+)>", "</{}>"), (r"</([^/|｜<>]+)>", "<{}>"), (r"\[([^/\[\]]+)\]", "[/{}]"),
                           (r"\[/([^/\[\]]+)\]", "[{}]"), (r"<\|([^|<>]+)>", "<{}|>"), (r"<([^|<>]+)\|>", "<|{}>"),
                           (r"◁([^/]+)▷", "◁/{}▷"), (r"◁/([^/]+)▷", "◁{}▷")):  # fmt: skip
        if match := re.fullmatch(opened, token):
            made.append(closed.format(match[1]))
    for one, other in (("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END")):
        made += [token.replace(a, b) for a, b in ((one, other), (other, one)) if a in token]
    return made


def any_of(spellings: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or "(?!)")
