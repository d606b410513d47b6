"""Configuration classes made from tables: one section of options for each row."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from typing_extensions import Doc

from assent.rules import Rule


class Option(NamedTuple):
    """An option that rows of a table share by name."""

    kind: Any
    help: str
    rule: Rule | None = None


def make_section(name: str, values: Mapping[str, Any], options: Mapping[str, Option], module: str) -> type:
    """The options of one row, `values` their defaults."""
    fields = [
        (key, Annotated[options[key].kind, Doc(options[key].help)], dataclasses.field(default=value))
        for key, value in values.items()
    ]
    return make_class(f"{class_name(name)}Section", fields, (), f"Options of {name}.", module)


def make_class(
    name: str, fields: list[tuple[str, Any, Any]], bases: tuple[type, ...], doc: str, module: str
) -> type[Any]:
    """A frozen dataclass of `module`."""
    made = dataclasses.make_dataclass(name, fields, bases=bases, frozen=True)
    made.__doc__, made.__module__ = doc, module
    return made


def section_rules(section: type, options: Mapping[str, Option]) -> dict[str, Rule]:
    """The ranges of a made section's options."""
    return {f.name: rule for f in dataclasses.fields(section) if (rule := options[f.name].rule) is not None}


def class_name(name: str) -> str:
    """A row's name as part of a class name: "REINFORCE++" becomes "REINFORCEPlusPlus"."""
    return re.sub(r"\W", "", name.replace("+", "Plus"))
