"""Principles in a file: what answers are criticised, rewritten and chosen by (Constitutional AI, arXiv 2212.08073).

A YAML or JSON file in one of these shapes:

    principles: [{name, critique, revision, choice}, ...]    our own; critique and revision, choice, or all three
    {name: {prompt: text or [text], edit_request: text}}     the paper's CritiqueRevisionInstructions.json
    {constitutions: [{critic, revision}], system_chat}       llm-swarm's
    [text, ...]                                              the paper's RLMadisonInstructions.json: choices

Example conversations stand in `few_shots` (`system_chat`), or in a file of their own: lists of {role, content}, or the
paper's texts of "Human:", "Assistant:", "CritiqueRequest:", "Critique:", "RevisionRequest:" and "Revision:" turns. What
the paper writes around a request ("CritiqueRequest:", "Options:") is taken off: here requests are turns of a chat."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from assent.config.nodes import composed, shown
from assent.data.records import Message
from assent.errors import ConfigError
from assent.files import not_a_file
from assent.names import suggestion

FIELDS = ("name", "critique", "revision", "choice")
SHAPES = (
    "principles: [{critique: ..., revision: ..., choice: ...}, ...], the shape of CritiqueRevisionInstructions.json "
    "({NAME: {prompt, edit_request}}), or a list of texts to choose by"
)
SAID = re.compile(r"^\s*(?:CritiqueRequest|RevisionRequest):|(?:Critique|Revision|Options):\s*$")
"""What the paper writes before and behind a request."""
TURN = re.compile(r"(?:^|\n)\s*(Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision):")
ASKS = {"Human": "user", "CritiqueRequest": "user", "RevisionRequest": "user"}


@dataclass(frozen=True, slots=True)
class Principle:
    """What is asked about an answer by one principle: for a critique, for a revision after it, for a choice of two."""

    name: str
    critique: str | None = None
    revision: str | None = None
    choice: str | None = None


@dataclass(frozen=True, slots=True)
class Constitution:
    """The principles of a file, and example conversations, each a list of turns. `digest` is that of the file."""

    source: str
    principles: tuple[Principle, ...]
    few_shots: tuple[tuple[Message, ...], ...]
    digest: str

    def drawn(self, seed: int, *of: object) -> Principle:
        """One of them, at random; the same for the same seed and the same `of`."""
        return self.principles[draw(len(self.principles), seed, *of)]


def draw(count: int, seed: int, *of: object) -> int:
    """A number below `count`, at random; the same for the same seed and the same `of`."""
    text = json.dumps([seed, *map(str, of)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % count


def read_principles(file: str, kind: str, flag: str = "--principles") -> Constitution:
    """The principles of a file by which answers are criticised and revised (`kind` "critique"), or chosen ("choice").
    Raises ConfigError, with file and line, for a file of another shape and for one without principles of the kind."""
    text = _text(file, flag)
    node = composed(text, f"{flag} {file}")
    reader = _Reader(f"{flag} {file}")
    found, shots = reader.principles(node), reader.shots(node)
    fitting = tuple(p for p in found if (p.choice if kind == "choice" else p.critique and p.revision))
    if not fitting:
        needed = "a choice" if kind == "choice" else "a critique and a revision"
        raise ConfigError(f"{flag} {file}: none of its {len(found)} principles has {needed}. Expected {SHAPES}.")
    return Constitution(file, fitting, shots, hashlib.sha256(text.encode()).hexdigest())


def read_few_shots(file: str, flag: str = "--few_shots") -> tuple[tuple[Message, ...], ...]:
    """Example conversations alone. Raises ConfigError, with file and line."""
    node = composed(_text(file, flag), f"{flag} {file}")
    reader = _Reader(f"{flag} {file}")
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        reader.fail(node, "expected a list of conversations, each of {role, content} or a text of the paper's turns")
    return tuple(map(reader.conversation, node.value))


def _text(file: str, flag: str) -> str:
    if (kind := not_a_file(file)) is not None:
        raise ConfigError(f"{flag} {file}: it is {kind}. Give a YAML or JSON file.")
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{flag} {file}: {reason}.") from None


class _Reader:
    """A file, whose every complaint has its line."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, node: yaml.Node | None, reason: str) -> NoReturn:
        raise ConfigError(f"{self.source}:{node.start_mark.line + 1 if node else 1}: {reason}.")

    def principles(self, node: yaml.Node | None) -> list[Principle]:
        """All principles, whatever they have."""
        if isinstance(node, yaml.SequenceNode):
            found = [self._listed(item, number) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            fields = self.fields(node)
            if listed := fields.get("principles") or fields.get("constitutions"):
                if not isinstance(listed, yaml.SequenceNode):
                    self.fail(listed, f"expected a list of principles; got {shown(listed)}")
                found = [self._listed(item, number) for number, item in enumerate(listed.value)]
            else:
                found = [self._published(name, item) for name, item in fields.items()]
        else:
            self.fail(node, f"no principles{'; a list begins each with - ' if node else ''}. Expected {SHAPES}")
        if not found:
            self.fail(node, f"no principles. Expected {SHAPES}")
        return found

    def shots(self, node: yaml.Node | None) -> tuple[tuple[Message, ...], ...]:
        if not isinstance(node, yaml.MappingNode):
            return ()
        fields = self.fields(node)
        listed = fields.get("few_shots") or fields.get("system_chat")
        if listed is None:
            return ()
        if not isinstance(listed, yaml.SequenceNode):
            self.fail(listed, f"few_shots is a list of conversations; got {shown(listed)}")
        return tuple(map(self.conversation, listed.value))

    def _listed(self, node: yaml.Node, number: int) -> Principle:
        name = f"{number + 1}"
        if isinstance(node, yaml.ScalarNode):
            return Principle(name, choice=self.text(node))
        fields = self.fields(node)
        if "critic" in fields:
            fields["critique"] = fields.pop("critic")
        for field in fields:
            if field not in FIELDS:
                hint = suggestion(field, FIELDS)
                self.fail(fields[field], f"a principle has no field '{field}'.{hint} Known: {', '.join(FIELDS)}")
        texts = {field: self.text(value) for field, value in fields.items()}
        if ("critique" in texts) != ("revision" in texts) or not {"critique", "choice"} & texts.keys():
            self.fail(node, "a principle has a critique and a revision, or a choice, or all three")
        return Principle(**{"name": name, **texts})

    def _published(self, name: str, node: yaml.Node) -> Principle:
        fields = self.fields(node) if isinstance(node, yaml.MappingNode) else {}
        if fields.keys() != {"prompt", "edit_request"}:
            self.fail(node, f"'{name}' is no principle. Expected {SHAPES}")
        asked = fields["prompt"]
        if isinstance(asked, yaml.SequenceNode) and len(asked.value) == 1:
            asked = asked.value[0]
        return Principle(name, self.text(asked), self.text(fields["edit_request"]))

    def fields(self, node: yaml.Node) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"expected fields; got {shown(node)}")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in found:
                self.fail(key, f"the field {shown(key)} is there twice, or is no name")
            found[key.value] = value
        return found

    def text(self, node: yaml.Node) -> str:
        """A text of words, without what the paper writes around it."""
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            self.fail(node, f"expected text; got {shown(node)}")
        text = SAID.sub("", SAID.sub("", str(node.value)).strip()).strip()
        if not text:
            self.fail(node, "expected text; got none")
        return text

    def conversation(self, node: yaml.Node) -> tuple[Message, ...]:
        """Turns of user and assistant in turn, the last an assistant's."""
        if isinstance(node, yaml.ScalarNode):
            parts = TURN.split(str(node.value).rstrip().removesuffix("Human:"))
            turns = [
                Message(ASKS.get(who, "assistant"), said.strip())
                for who, said in zip(parts[1::2], parts[2::2], strict=True)
            ]
        elif isinstance(node, yaml.SequenceNode):
            turns = [self._turn(item) for item in node.value]
        else:
            self.fail(node, f"expected a conversation; got {shown(node)}")
        roles = [turn.role for turn in turns if turn.role != "system"]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            self.fail(node, "an example is turns of user and assistant by turns, the last an assistant's")
        return tuple(turns)

    def _turn(self, node: yaml.Node) -> Message:
        fields = self.fields(node)
        if fields.keys() != {"role", "content"} or fields["role"].value not in ("system", "user", "assistant"):
            self.fail(node, "a turn is {role: system, user or assistant, content: text}")
        return Message(str(fields["role"].value), str(fields["content"].value))
