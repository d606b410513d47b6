"""YAML files for the dataclasses of `assent.config`: read with file and line in every complaint, written, validated.

A nested mapping is a nested dataclass: the key `lr` under `optim` is the option `--optim.lr`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import yaml

from assent.config.nodes import LARGEST, SCALAR, TAG, WrongType, composed, cut, shown, value_as
from assent.config.ranges import Range, beyond
from assent.config.relations import RELATIONS
from assent.config.sections import hints_of, ranges_of
from assent.counterparts import counterpart
from assent.errors import ConfigError
from assent.files import not_a_file
from assent.names import suggestion

T = TypeVar("T")

REQUIRED = object()
"""Stands where an option has no default."""

LISTED = 20
"""Most complaints about a configuration."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its dotted name, type, default (`REQUIRED` where there is none), and the section that holds it."""

    name: str
    kind: Any
    default: Any
    section: type

    @property
    def range(self) -> Range | None:
        return ranges_of(self.section).get(self.name.rpartition(".")[2])


def options(cls: type) -> list[Option]:
    """Every option of a configuration class, in the order of its fields."""
    return list(_options(cls, "", REQUIRED))


def read(cls: type[T], path: str | Path, missing: object = REQUIRED) -> T:
    """`load` on a file. Raises `ConfigError` where it cannot be read."""
    if (kind := not_a_file(path)) is not None:
        raise ConfigError(f"Cannot read the configuration file {path}: it is {kind}.")
    try:
        with Path(path).open("rb") as file:
            text = file.read(LARGEST + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"Cannot read the configuration file {path}: {reason}.") from error
    return load(cls, text, str(path), missing)


def load(cls: type[T], text: str, source: str = "<yaml>", missing: object = REQUIRED) -> T:
    """A configuration from YAML text; what the text leaves out has its default. `missing` fills options that have
    none; without it they are an error. Raises `ConfigError` with `source` and line for each unknown or repeated key
    and each value of the wrong type."""
    node = composed(text, source)
    problems: list[str] = []
    lines: dict[str, str] = {}
    given: dict[str, Any] = {}
    if node is not None:
        _read_section(_Reader(source, cls, problems, lines, given), cls, node, "")
    if missing is REQUIRED:
        absent = [option.name for option in options(cls) if option.default is REQUIRED and option.name not in given]
        problems += [f"{source}: '{name}' is missing, and it has no default." for name in absent]
    if problems:
        more = ["There may be more."] if len(problems) > LISTED else []
        raise ConfigError("\n".join(problems[:LISTED] + more))
    return cast(T, _build(cls, "", REQUIRED, given, missing))


def dump(config: Any) -> str:
    """The configuration as YAML text; `load(type(config), dump(config)) == config`."""
    return yaml.dump(plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def plain(config: Any) -> dict[str, Any]:
    """The configuration as what its YAML text holds: dicts, lists, texts and numbers."""
    return cast("dict[str, Any]", _plain(config, type(config)))


def validate(config: Any) -> None:
    """Raises one `ConfigError` that names every option out of range and every contradiction, or, before these can be
    asked about, every value of a wrong type (from Python)."""
    if wrong := [
        f"--{option.name} must be {describe(option.kind)}. Got {value!r}."
        for option in options(type(config))
        if not _fits(value := value_of(config, option.name), option.kind)
    ]:
        raise ConfigError("\n".join(wrong))
    if unwritable := [
        f"--{option.name}: {text!r} is no UTF-8, which neither options nor model folders can hold. Choose another name."
        for option in options(type(config))
        for text in _texts(value_of(config, option.name))
        if any("\ud800" <= letter <= "\udfff" for letter in text)
    ]:
        raise ConfigError("\n".join(unwritable))
    problems = [
        f"--{option.name} must be {option.range.words}. Got {value!r}."
        for option in options(type(config))
        if option.range is not None
        and (value := value_of(config, option.name)) is not None
        and not option.range.holds(value)
    ]
    problems += (
        []
        if problems
        else [
            f"--{option.name} must be {words}. Got {value!r}."
            for option in options(type(config))
            if (words := beyond(value := value_of(config, option.name))) is not None
        ]
    )
    for kind, relation in RELATIONS:
        if isinstance(config, kind) and (problem := relation(config)):
            problems.append(problem)
    if problems:
        raise ConfigError("\n".join(problems))


def _texts(value: Any) -> Iterator[str]:
    """Every text in the value of an option."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])


def value_of(config: Any, name: str) -> Any:
    """The value of the option with this dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from Python has the type of an option."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(value is None if arm is types.NoneType else _fits(value, arm) for arm in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if kind is float and type(value) is int:
        return abs(value) <= sys.float_info.max
    if kind is int and isinstance(value, bool):
        return False
    return isinstance(value, kind)


# ---- reading


@dataclass(frozen=True, slots=True)
class _Reader:
    """What is collected while a document is walked: complaints, the line of each key, the value of each option."""

    source: str
    cls: type
    problems: list[str]
    lines: dict[str, str]
    given: dict[str, Any]

    def where(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"

    def names(self) -> list[str]:
        leaves = [option.name for option in options(self.cls)]
        return leaves + sorted({name.rpartition(".")[0] for name in leaves if "." in name})


def _read_section(reader: _Reader, cls: type, node: yaml.Node, prefix: str) -> None:
    if isinstance(node, yaml.ScalarNode) and node.tag == TAG + "null":
        return
    if not isinstance(node, yaml.MappingNode):
        name = f"'{prefix[:-1]}'" if prefix else "the file"
        reader.problems.append(f"{reader.where(node)}: {name} must hold `key: value` lines. Got {shown(node)}.")
        return
    hints = hints_of(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    for key_node, value in node.value:
        if len(reader.problems) > LISTED:
            return
        where = reader.where(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            reader.problems.append(f"{where}: a key must be a word. Got {shown(key_node)}.")
            continue
        key = cut(key_node.value)
        name = prefix + key
        if key not in fields:
            reader.problems.extend(_unknown_key(reader, key_node, value, prefix))
        elif name in reader.lines:
            reader.problems.append(f"{where}: the key '{name}' is there already ({reader.lines[name]}).")
        else:
            reader.lines[name] = where
            if dataclasses.is_dataclass(hints[key]):
                _read_section(reader, cast(type, hints[key]), value, name + ".")
                continue
            try:
                reader.given[name] = value_as(value, hints[key])
            except WrongType as error:
                place, got = reader.where(error.node), error.got or shown(error.node)
                reader.problems.append(f"{place}: '{name}' must be {describe(hints[key])}. Got {got}.")


def _unknown_key(reader: _Reader, node: yaml.Node, value: yaml.Node, prefix: str) -> list[str]:
    """Complaints about a key that is no option: of another tool's, one for it or for each key below it."""
    key, known = cut(node.value), reader.names()
    name = prefix + key
    found = [
        f"{reader.where(leaf)}: {line}"
        for inner, leaf in _leaves(name, node, value)
        if (line := counterpart(inner, known, f"'{inner}'", "this command", "'{}'".format))
    ]
    if found:
        return found
    if key in known:
        hint = f" Write it as nested keys: '{key.partition('.')[0]}:', and under it the rest."
    else:
        hint = suggestion(name, known)
    return [f"{reader.where(node)}: unknown key '{name}'.{hint}"]


def _leaves(name: str, node: yaml.Node, value: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    """Dotted names of a key and of all keys below it, with the nodes that they stand in."""
    yield name, node
    for inner, below in value.value if isinstance(value, yaml.MappingNode) else ():
        if isinstance(inner, yaml.ScalarNode):
            yield from _leaves(f"{name}.{cut(inner.value)}", inner, below)


def describe(kind: Any) -> str:
    """A type of options in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arm is types.NoneType else describe(arm) for arm in args)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin is tuple:
        return f"a list of values, each {describe(args[0])}"
    if origin is dict:
        keys = "whole numbers" if args[0] is int else "text"
        return f"a mapping from {keys} to " + (
            "text" if args[1] is str else "values" if args[1] == SCALAR else "numbers"
        )
    return {
        str: "text (in quotes where it looks like something else)",
        bool: "true or false",
        int: "a whole number",
    }.get(kind, "a number")


# ---- building and writing


def _options(cls: type, prefix: str, holder: Any) -> Iterator[Option]:
    """`holder` is the default instance of `cls` that the enclosing class gives, or `REQUIRED`."""
    hints = hints_of(cls)
    for field in dataclasses.fields(cls):
        default = _default(field, holder)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _options(cast(type, hints[field.name]), f"{prefix}{field.name}.", default)
        else:
            yield Option(prefix + field.name, hints[field.name], default, cls)


def _default(field: dataclasses.Field[Any], holder: Any) -> Any:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return REQUIRED  # also where an enclosing default had to put something there
    if holder is not REQUIRED:
        return getattr(holder, field.name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _build(cls: type, prefix: str, holder: Any, given: dict[str, Any], missing: object) -> Any:
    hints = hints_of(cls)
    values = {}
    for field in dataclasses.fields(cls):
        name, default = prefix + field.name, _default(field, holder)
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = _build(cast(type, hints[field.name]), name + ".", default, given, missing)
        else:
            values[field.name] = given.get(name, missing if default is REQUIRED else default)
    return cls(**values)


class _Dumper(yaml.SafeDumper):
    """Escapes Unicode line breaks, which PyYAML would write as they are and read back as spaces."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar(TAG + "str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _plain(value: Any, kind: Any) -> Any:
    """A value as YAML has it; the whole number 1 where a number is asked for is 1.0, as it would be when read."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = hints_of(type(value))
        return {
            field.name: _plain(getattr(value, field.name), hints[field.name]) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple | list):
        return [_plain(item, get_args(kind)[0]) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item, get_args(kind)[1]) for key, item in value.items()}
    number = kind is float or float in get_args(kind)
    return float(value) if number and isinstance(value, int | float) else value
