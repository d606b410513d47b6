"""Nodes of YAML as the values of options: what is composed is bounded, and no value is made but those asked for."""

from __future__ import annotations

import re
import types
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from assent.errors import ConfigError

SCALAR = bool | int | float | str
"""The type of an option's values that may be any of these."""

LARGEST, LEVELS = 2**18, 100
"""Most characters of a configuration, and levels of nesting in it."""

TAG = "tag:yaml.org,2002:"
OLD_INT = re.compile(r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+)")
"""Numbers to the base of 8 and 60 in YAML 1.1, which nobody means: 010, 1:30."""
_SCALARS = {str: ("str",), bool: ("bool",), int: ("int",), float: ("float", "int", "str")}


def composed(text: str, source: str) -> yaml.Node | None:
    """The document as nodes: aliases are the same node again, and no value is made yet."""
    if len(text) > LARGEST:
        raise ConfigError(f"{source}: a configuration has at most {LARGEST:,} characters.")
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        line, reason = _deepest_line(text), "lists and mappings are nested too deeply"
    except yaml.reader.ReaderError as error:
        line, reason = text.count("\n", 0, error.position) + 1, "a character stands there that is no text"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, reason = mark.line + 1 if mark else 1, getattr(error, "problem", None) or str(error)
    raise ConfigError(f"{source}:{line}: not valid YAML: {reason}.")


def _deepest_line(text: str) -> int:
    """The line where nesting goes beyond what anybody writes."""
    level = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > LEVELS:
            return getattr(event.start_mark, "line", 0) + 1
    raise AssertionError("it was nested too deeply")


class WrongType(Exception):
    """A node that does not have the type asked for. `got` says what is wrong where showing the node would not."""

    def __init__(self, node: yaml.Node, got: str | None = None):
        super().__init__()
        self.node = node
        self.got = got


def value_as(node: yaml.Node, kind: Any) -> Any:
    """The value of a node as `kind`: a scalar, `X | None`, `Literal`, `tuple[X, ...]` or `dict[str, X]`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = [arm for arm in args if arm is not types.NoneType]
        if kind == SCALAR:
            return _any_scalar(node)
        assert len(inner) == 1, f"options are `X` or `X | None`, not {kind}"
        is_null = isinstance(node, yaml.ScalarNode) and node.tag == TAG + "null"
        return None if is_null else value_as(node, inner[0])
    if origin is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise WrongType(node)
        return tuple(value_as(item, args[0]) for item in node.value)
    if origin is dict:
        if not isinstance(node, yaml.MappingNode):
            raise WrongType(node)
        values: dict[Any, Any] = {}
        for key, item in node.value:
            name = value_as(key, args[0])
            if name in values:
                raise WrongType(key, got=f"the key '{name}' twice")
            values[name] = value_as(item, args[1])
        return values
    if origin is Literal:
        if isinstance(node, yaml.ScalarNode) and node.value in args:
            return node.value  # also `off`, which YAML 1.1 takes for false
        raise WrongType(node)
    return _scalar(node, kind)


def scalar(text: str) -> bool | int | float | str:
    """A word of the command line as YAML reads it: true or false, a number, else text."""
    if text.lstrip()[:1] in ("&", "!"):
        return text
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader) if text.strip() else None
        return _any_scalar(node) if isinstance(node, yaml.ScalarNode) else text
    except (yaml.YAMLError, RecursionError, WrongType):
        return text


def _any_scalar(node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise WrongType(node)
    kind = node.tag.removeprefix(TAG)
    if kind in ("bool", "int", "float"):
        return _constructed(node)
    if kind in ("str", "null", "timestamp", "!"):
        return node.value
    raise WrongType(node)


def _constructed(node: yaml.ScalarNode) -> Any:
    """The value of a scalar, whose tag may say more than its text can be (`!!bool maybe`)."""
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, LookupError, ArithmeticError, yaml.YAMLError):
        raise WrongType(node, got=f"{cut(node.value)!r}, which is no {node.tag.removeprefix(TAG)}") from None


def _scalar(node: yaml.Node, kind: Any) -> Any:
    if not isinstance(node, yaml.ScalarNode) or node.tag.removeprefix(TAG) not in _SCALARS[kind]:
        raise WrongType(node)
    if kind in (int, float) and node.tag == TAG + "int" and OLD_INT.fullmatch(node.value):
        raise WrongType(node, got=f"{cut(node.value)!r}, which YAML reads as {_constructed(node)}")
    try:
        if kind is float and node.tag == TAG + "str":  # YAML 1.1 reads 1e-4, without a point, as text
            return float(node.value)
        return kind(_constructed(node))
    except (ValueError, OverflowError):
        raise WrongType(node) from None


def shown(node: yaml.Node) -> str:
    """A node as the person wrote it, with its kind."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    kind = {"str": "text", "null": "nothing", "bool": "true or false", "int": "whole number", "float": "number"}
    tag = node.tag.removeprefix(TAG)
    return f"{cut(node.value)!r} ({kind.get(tag, cut(tag))})" if node.value else kind.get(tag, cut(tag))


def cut(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"
