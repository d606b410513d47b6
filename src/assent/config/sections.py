"""Sections of configurations: what they hold, and how they are given from Python."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from assent.config.ranges import Range, range_of
from assent.errors import ConfigError
from assent.names import suggestion

C = TypeVar("C", bound="Sections")


class Sections:
    """Base of configurations that have sections. A section is given as a mapping of the options that differ from the
    configuration's own defaults, as in YAML, or as an instance of its class."""

    def __post_init__(self) -> None:
        cls: Any = type(self)
        sections = sections_of(cls)
        for name, value in list(vars(self).items()):
            if name in sections:
                value = _section(cls, name, sections[name], value)
            object.__setattr__(self, name, _listed(value))  # the dataclass is frozen, and not yet made


@functools.cache
def hints_of(cls: type) -> Mapping[str, Any]:
    """The types of a class's fields."""
    return get_type_hints(cls)


@functools.cache
def sections_of(cls: type) -> Mapping[str, type]:
    """The sections of a configuration class: name -> class."""
    hints = hints_of(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[f.name])}


@functools.cache
def ranges_of(cls: type) -> Mapping[str, Range]:
    """The ranges of a class's options: name -> range."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: found for name, hint in hints.items() if (found := range_of(hint)) is not None}


def configuration(cls: type[C], options: Mapping[str, Any]) -> C:
    """A configuration from its options, sections as mappings or instances.

    Raises `ConfigError` that names what is unknown or missing."""
    _check_names(cls, options, "")
    return cls(**options)


def default_of(cls: type, name: str) -> Any:
    """The section that a configuration class begins with; None where one of its options has no default."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def keywords(section: Any) -> dict[str, Any]:
    """The options of a section by name, as keyword arguments."""
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


# ---- how a section is given


def _section(cls: type, name: str, kind: type, value: Any) -> Any:
    if type(value) is kind:
        return value
    if value is None or isinstance(value, Mapping):  # an empty section in YAML is None as well
        return _merged(kind, default_of(cls, name), value or {}, f"{name}.")
    if dataclasses.is_dataclass(value) and issubclass(kind, type(value)):
        given, own = type(value).__name__, _differences(kind, type(value))
        raise ConfigError(
            f"{name}: {given}(...) would set every option of the section, and {cls.__name__} has defaults of its own "
            f"({own}). Give the options that you mean as a mapping, {name}={{{_example(value)}}}; "
            f"{name}=vars({given}(...)) means all of them."
        )
    raise ConfigError(f"{name} must be a mapping of options or a {kind.__name__}. Got {type(value).__name__}.")


def _listed(value: Any) -> Any:
    """A list as the tuple that it stands for, also one in a section."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        lists = {key: tuple(item) for key, item in vars(value).items() if isinstance(item, list)}
        return dataclasses.replace(value, **lists) if lists else value
    return tuple(value) if isinstance(value, list) else value


def _differences(kind: type, base: type) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(base)}
    changed = [f"{f.name}={f.default!r}" for f in dataclasses.fields(kind) if f.default != defaults.get(f.name)]
    return ", ".join(changed)


def _example(value: Any) -> str:
    """The options of an instance that are not at their defaults, as the inside of a mapping."""
    given = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    usual = {f.name: f.default for f in dataclasses.fields(value)}
    return ", ".join(f"{name!r}: {one!r}" for name, one in given if one != usual[name]) or "..."


def _merged(kind: type, default: Any, given: Mapping[str, Any], prefix: str) -> Any:
    """`default` (None: the class's own defaults) with the options in `given`."""
    _check_names(kind, given, prefix, complete=default is None)
    values = dict(given)
    for name, inner in sections_of(kind).items():
        if isinstance(values.get(name), Mapping):
            start = default_of(kind, name) if default is None else getattr(default, name)
            values[name] = _merged(inner, start, values[name], f"{prefix}{name}.")
    return kind(**values) if default is None else dataclasses.replace(default, **values)


def _check_names(cls: type, given: Mapping[str, Any], prefix: str, complete: bool = True) -> None:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in given:
        if name not in fields:
            raise ConfigError(f"Unknown option '{prefix}{name}'.{suggestion(str(name), fields, prefix)}")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    for name in required if complete else ():
        if name not in given:
            raise ConfigError(f"'{prefix}{name}' is missing, and it has no default.")
