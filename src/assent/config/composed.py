"""Configurations of runs that a command with several of them makes: the sections that all share, and single options of
one run as words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, get_origin

import yaml

from assent.config import settings
from assent.config.base import RunConfig
from assent.config.reward import REWARD_MODELS
from assent.config.training import TRAINERS
from assent.errors import ConfigError
from assent.names import suggestion

OURS = ("out", "resume", "resume_changed")
"""Options of a run that follow from those of the command that makes it."""


def composed(
    command: str,
    shared: Mapping[str, Any],
    own: Mapping[str, str] | None = None,
    *,
    flag: str = "--options",
    prefix: str = "",
    taken: Collection[str] = (),
) -> Any:
    """The checked configuration of `assent COMMAND`: `shared` as YAML would have it, of which sections that the command
    does not have are left away, and above it the options `own`, dotted names with their values as text. Messages call
    these `flag` `prefix`OPTION; `taken` are options that follow from something else.

    Raises ConfigError for an option that the command does not have or cannot take.

    >>> shared = {"model": {"path": "m"}, "data": {"train": "d"}, "out": "o"}
    >>> composed("simpo", shared, {"loss.beta": "2.5"}).loss.beta
    2.5
    """
    kind = config_of(command)
    who = prefix.rstrip(".") or command
    ours = (*OURS, *taken)
    known = {option.name: option for option in settings.options(kind) if option.name not in ours}
    tops = {name.partition(".")[0] for name in (*known, *ours)} & {field.name for field in fields(kind)}
    tree = {name: _copied(value) for name, value in shared.items() if name in tops}
    for name, text in (own or {}).items():
        if name not in known:
            hint = suggestion(name, known, prefix)
            raise ConfigError(f"{flag} {prefix}{name or 'OPTION'}: {who} has no option '{name}'.{hint}")
        _put(tree, name, _value(text, known[name].kind))
    loaded = settings.load(kind, yaml.safe_dump(tree), f"{flag} of {who}")
    try:
        settings.validate(loaded)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error} Options of {who} alone: {flag} {prefix}OPTION:VALUE.") from error
    return loaded


def config_of(command: str) -> type[RunConfig]:
    """The class of a training command's options. Raises ConfigError where the command does not train."""
    if command in TRAINERS:
        return TRAINERS[command].config
    if command in REWARD_MODELS:
        return REWARD_MODELS[command].config
    known = [*TRAINERS, *REWARD_MODELS]
    raise ConfigError(f"assent {command} trains nothing.{suggestion(command, known)}")


def target_of(command: str) -> str:
    """The function of a training command, as "module:function"."""
    return TRAINERS[command].target if command in TRAINERS else REWARD_MODELS[command].target


def _value(text: str, kind: Any) -> Any:
    """A word of a command line as YAML reads it; one word stands for a list of one."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return [value] if get_origin(kind) is tuple and not isinstance(value, list) else value


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def _copied(value: Any) -> Any:
    return {name: _copied(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value
