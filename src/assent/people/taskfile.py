"""TASK.yaml as a `TaskDefinition`: every complaint has its file and line, and all of them come at once."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml

from assent.config import settings
from assent.config.nodes import LARGEST, TAG, WrongType, composed, cut, shown, value_as
from assent.config.ranges import beyond
from assent.config.sections import hints_of, ranges_of
from assent.errors import ConfigError
from assent.files import not_a_file
from assent.names import suggestion
from assent.people.task import ANSWERS, HELPSTEER, TaskDefinition

T = TypeVar("T")

WRONG = object()
"""In place of a value about which there is a complaint."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LEVELS = 10
"""Most steps from the lowest rating to the highest."""
OF_KINDS: Mapping[str, tuple[str, ...]] = {
    "attributes": ("attributes",),
    "extra": ("attributes",),
    "labels": ("spans",),
    "strength": ("pair",),
    "ties": ("pair", "ranking"),
    "both_bad": ("pair", "best"),
    "cannot_judge": ("pair", "yesno"),
}
"""Options that only some kinds have."""
NEEDS: Mapping[str, str] = {
    "answers": "policies",
    "sampling": "policies",
    "engine": "policies",
    "precision": "policies",
    "gold_share": "gold",
}
"""Options that mean nothing without another one."""


def read_task(path: str | Path) -> TaskDefinition:
    """The task that a file defines. Raises ConfigError with file and line for each thing that is wrong with it."""
    if (kind := not_a_file(path)) is not None:
        raise ConfigError(f"Cannot read the task {path}: it is {kind}. Give a YAML file.")
    try:
        with Path(path).open("rb") as file:
            text = file.read(LARGEST + 1).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"Cannot read the task {path}: {reason}.") from None
    return load_task(text, str(path))


def load_task(text: str, source: str) -> TaskDefinition:
    """The same from text, which `dump_task` has perhaps written."""
    node = composed(text, source)
    reader = _Reader(source)
    if node is None:
        raise ConfigError(f"{source}: the file is empty. A task has at least `name`, `kind` and `items`.")
    values = reader.section(TaskDefinition, node, "")
    task = None
    if not reader.problems:
        task = TaskDefinition(**values, source=source)
        if task.kind == "attributes" and not task.attributes:
            task = dataclasses.replace(task, attributes=dict(HELPSTEER))
        _check(reader, task)
    if reader.problems:
        more = ["There may be more."] if len(reader.problems) > settings.LISTED else []
        raise ConfigError("\n".join(reader.problems[: settings.LISTED] + more))
    assert task is not None
    return task


def dump_task(task: TaskDefinition) -> str:
    """The definition as YAML text, all options written out; `load_task` reads it back to an equal one."""
    text = settings.dump(dataclasses.replace(task, source=""))
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("source:"))


@dataclass
class _Reader:
    """A file while it is read: complaints, and the line of each key by its dotted name."""

    source: str
    problems: list[str] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"

    def at(self, name: str) -> str:
        """Where the key of that dotted name stands."""
        return f"{self.source}:{self.lines.get(name, 1)}"

    def section(self, cls: type, node: yaml.Node, prefix: str) -> dict[str, Any]:
        """The values of a class's fields; complaints about all else."""
        if not isinstance(node, yaml.MappingNode):
            name = f"'{prefix[:-1]}'" if prefix else "a task"
            self.problems.append(f"{self.where(node)}: {name} must hold `key: value` lines. Got {shown(node)}.")
            return {}
        hints = {name: hint for name, hint in hints_of(cls).items() if name != "source"}
        values: dict[str, Any] = {}
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(f"{self.where(key_node)}: a key must be a word. Got {shown(key_node)}.")
                continue
            key = cut(key_node.value)
            name = prefix + key
            if key not in hints:
                hint = suggestion(key, hints) or f" Known: {', '.join(hints)}."
                self.problems.append(f"{self.where(key_node)}: unknown key '{name}'.{hint}")
            elif name in self.lines:
                self.problems.append(
                    f"{self.where(key_node)}: the key '{name}' is there already (line {self.lines[name]})."
                )
            else:
                self.lines[name] = key_node.start_mark.line + 1
                found = self.value(cls, key, hints[key], value, name)
                if found is not WRONG:
                    values[key] = found
        self._check_missing(cls, node, values, prefix)
        return values

    def _check_missing(self, cls: type, node: yaml.Node, values: Mapping[str, Any], prefix: str) -> None:
        required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
        for name in (*required, *(("items",) if cls is TaskDefinition else ())):
            if prefix + name not in self.lines:
                self.problems.append(f"{self.where(node)}: '{prefix}{name}' is missing, and it has no default.")

    def value(self, cls: type, key: str, kind: Any, node: yaml.Node, name: str) -> Any:
        """The value of a field; WRONG behind a complaint."""
        arms = [arm for arm in get_args(kind) if arm is not types.NoneType]
        if get_origin(kind) in (Union, types.UnionType) and len(arms) == 1 and dataclasses.is_dataclass(arms[0]):
            if node.tag == TAG + "null":
                return None
            kind = arms[0]
        if dataclasses.is_dataclass(kind):
            return self.made(kind, node, f"{name}.")
        inner = get_args(kind)
        if get_origin(kind) is tuple and dataclasses.is_dataclass(inner[0]):
            return self.listed(inner[0], node, name)
        if get_origin(kind) is dict and dataclasses.is_dataclass(inner[1]):
            return self.named(inner[1], node, name)
        try:
            value = value_as(node, kind)
        except WrongType as error:
            got = error.got or shown(error.node)
            self.problems.append(f"{self.where(error.node)}: '{name}' must be {settings.describe(kind)}. Got {got}.")
            return WRONG
        span = ranges_of(cls).get(key)
        words = span.words if span is not None and value is not None and not span.holds(value) else beyond(value)
        if words is not None:
            self.problems.append(f"{self.where(node)}: '{name}' must be {words}. Got {shown(node)}.")
            return WRONG
        return value

    def made(self, cls: Any, node: yaml.Node, prefix: str) -> Any:
        """One object of a class."""
        before = len(self.problems)
        if node.tag == TAG + "null":
            node = yaml.MappingNode(TAG + "map", [], node.start_mark, node.end_mark)
        values = self.section(cls, node, prefix)
        return cls(**values) if len(self.problems) == before else WRONG

    def listed(self, cls: Any, node: yaml.Node, name: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            self.problems.append(f"{self.where(node)}: '{name}' must be a list. Got {shown(node)}.")
            return WRONG
        return tuple(self.made(cls, item, f"{name}[{index}].") for index, item in enumerate(node.value))

    def named(self, cls: Any, node: yaml.Node, name: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            self.problems.append(
                f"{self.where(node)}: '{name}' must be names, each with its fields. Got {shown(node)}."
            )
            return WRONG
        found: dict[str, Any] = {}
        for key, value in node.value:
            word = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if not word.strip() or word in found:
                reason = "is there already" if word in found else "is no name"
                self.problems.append(f"{self.where(key)}: {name}: {shown(key)} {reason}.")
                continue
            self.lines[f"{name}.{word}"] = key.start_mark.line + 1
            found[word] = self.made(cls, value, f"{name}.{word}.")
        return found


# ---- what must hold between options


def _check(reader: _Reader, task: TaskDefinition) -> None:
    """Adds a complaint for each thing that does not fit together."""
    say = reader.problems.append
    if not NAME.fullmatch(task.name):
        say(
            f"{reader.at('name')}: 'name' must be letters, digits, dots, dashes and underscores, at most 64, the first "
            f"a letter or digit. Got {cut(task.name)!r}."
        )
    unset = TaskDefinition(name=task.name, kind=task.kind)
    for option, kinds in OF_KINDS.items():
        if task.kind not in kinds and getattr(task, option) != getattr(unset, option):
            say(
                f"{reader.at(option)}: '{option}' is for kind {' or '.join(kinds)}; this task's kind is {task.kind}. "
                "Remove it."
            )
    for option, needed in NEEDS.items():
        if not getattr(task, needed) and getattr(task, option) != getattr(unset, option):
            say(f"{reader.at(option)}: '{option}' means nothing without '{needed}'. Add that, or remove it.")
    if not 0 <= task.strength <= 3:
        say(f"{reader.at('strength')}: 'strength' must be from 0 to 3. Got {task.strength}.")
    _check_names(reader, task)
    _check_people(reader, task)
    fewest, most = ANSWERS[task.kind]
    if task.policies and not max(fewest, 1) <= task.sampled <= most:
        wanted = f"{fewest}" if fewest == most else f"{max(fewest, 1)} to {most}"
        say(f"{reader.at('answers')}: a task of kind {task.kind} has {wanted} answers to an item. Got {task.sampled}.")
    if len(set(task.policies)) < len(task.policies) or not all(word.strip() for word in task.policies):
        say(f"{reader.at('policies')}: 'policies' must be different model or run folders.")


def _check_names(reader: _Reader, task: TaskDefinition) -> None:
    """Of attributes and labels."""
    say = reader.problems.append
    for name, each in task.attributes.items():
        at = reader.at(f"attributes.{name}")
        if not 1 <= each.highest - each.lowest <= LEVELS:
            say(
                f"{at}: 'attributes.{name}' must go from 'lowest' to a 'highest' that is 1 to {LEVELS} above it. Got "
                f"{each.lowest} and {each.highest}."
            )
        for level in each.levels:
            if not each.lowest <= level <= each.highest:
                say(f"{at}: 'attributes.{name}.levels' has {level}, which is not from {each.lowest} to {each.highest}.")
    if task.kind == "spans" and not task.labels:
        say(f"{reader.at('kind')}: a task of kind spans needs 'labels': what a passage may be marked as.")
    if len(set(task.labels)) < len(task.labels) or not all(label.strip() for label in task.labels):
        say(f"{reader.at('labels')}: 'labels' must be different words. Got {', '.join(map(repr, task.labels))}.")


def _check_people(reader: _Reader, task: TaskDefinition) -> None:
    """Of who is asked how often."""
    say = reader.problems.append
    if task.extra is not None and task.kind == "attributes":
        if task.extra.up_to <= task.overlap:
            say(
                f"{reader.at('extra.up_to')}: 'extra.up_to' ({task.extra.up_to}) must be above 'overlap' "
                f"({task.overlap}), the annotators that every item has."
            )
        if task.extra.attribute not in task.attributes:
            hint = suggestion(task.extra.attribute, task.attributes)
            say(
                f"{reader.at('extra.attribute')}: 'extra.attribute' must be one of the attributes "
                f"({', '.join(task.attributes)}). Got {task.extra.attribute!r}.{hint}"
            )
    if task.thresholds.gold is not None and task.gold is None:
        say(f"{reader.at('thresholds.gold')}: 'thresholds.gold' means nothing without 'gold'. Add that, or remove it.")
    known = "gold" if task.gold else "screening" if task.screening else ""
    if task.kind == "edit" and known:
        say(
            f"{reader.at(known)}: what is written has no known answer: a task of kind edit has no '{known}'. Remove it."
        )
