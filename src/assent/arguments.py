"""The words of a command line, checked before the option parser sees them, so that every mistake is one line of the
same style, with what was expected and what was probably meant."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from assent.config.settings import REQUIRED, Option, describe
from assent.counterparts import NAMES, counterpart
from assent.errors import ConfigError
from assent.names import suggestion


def take_config(words: list[str]) -> tuple[list[str], str | None]:
    """The words without `--config FILE`, and the file."""
    file: str | None = None
    rest = []
    while words:
        word = words.pop(0)
        if word != "--config" and not word.startswith("--config="):
            rest.append(word)
            continue
        if file is not None:
            raise ConfigError("--config is given twice. Put everything into one file, or the rest on the command line.")
        file = word.partition("=")[2] or (words.pop(0) if words else "")
        if not file:
            raise ConfigError("--config needs a YAML file.")
    return rest, file


def check(
    command: str, options: Sequence[Option], positional: Sequence[str], words: Sequence[str], given: set[str]
) -> list[str]:
    """The words with those of no flag behind the flags of the options that they are for (`positional`), of which one
    may take several. Raises one `ConfigError` that names, a line each, every
    option that the command does not have, every value that is missing or does not fit, and, if nothing else is wrong,
    each required option that is neither here nor in `given`."""
    known = {option.name: option for option in options}
    groups, places = _grouped(known, positional, words)
    problems = [line for flag, values in groups for line in _wrong(command, flag, values, known, positional)]
    several = any(get_origin(known[name].kind) is tuple for name in positional)
    loose = [words[place] for place in places]
    if not several:  # elsewhere such a word may be meant as it is
        problems += [line for word in loose if (line := _hydra(command, word, known, positional))]
        loose = [word for word in loose if not _hydra(command, word, known, positional)]
    if not positional:
        problems += [f"Unexpected '{word}': options of assent {command} begin with --." for word in loose]
    elif not several and len(loose) > len(positional):
        takes = " ".join(f"one {name.upper()}" for name in positional)
        problems.append(f"assent {command} takes {takes}. Got {' '.join(loose)}.")
    if not problems:
        seen = {_name(flag) for flag, _ in groups} | given | set(positional[: len(loose)])
        absent = [option.name for option in options if option.default is REQUIRED and option.name not in seen]
        shown = [name.upper() if name in positional else f"--{name}" for name in absent]
        problems = [f"{', '.join(shown)} must be given: no default fits."] if absent else []
    if problems:
        raise ConfigError(("\n" if len(problems) > 1 else " ").join([*problems, f"See: assent {command} --help"]))
    rest = [word for place, word in enumerate(words) if place not in places]
    return [word for name, own in _shared(positional, loose, known).items() for word in (f"--{name}", *own)] + rest


def _shared(positional: Sequence[str], loose: Sequence[str], known: dict[str, Option]) -> dict[str, list[str]]:
    """Which option each word is for, in order: the one that takes several takes what the others leave."""
    left, found = list(loose), {}
    for number, name in enumerate(positional):
        others = len(positional) - number - 1
        size = max(1, len(left) - others) if get_origin(known[name].kind) is tuple else 1
        found[name], left = left[:size], left[size:]
    return {name: own for name, own in found.items() if own}


def _grouped(
    known: dict[str, Option], positional: Sequence[str], words: Sequence[str]
) -> tuple[list[tuple[str, list[str]]], list[int]]:
    """Each flag, as it was written, with its values; and the places of the words that belong to no flag."""
    groups: list[tuple[str, list[str]]] = []
    loose: list[int] = []
    room = 0.0
    for place, word in enumerate(words):
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            option = known.get(_name(flag))
            groups.append((flag, [value] if equals else []))
            room = 0 if equals or option is None else _most_values(option.kind)
        elif room > 0:
            groups[-1][1].append(word)
            room -= 1
        elif (
            groups
            and _unknown(groups[-1][0], known)
            and (not positional or _name(groups[-1][0]) in NAMES)
            and not _hydra("", word, known, positional)
        ):
            groups[-1][1].append(word)  # of a flag that is not known: said with it
        else:
            loose.append(place)
    return groups, loose


def _wrong(
    command: str, flag: str, values: list[str], known: dict[str, Option], positional: Sequence[str]
) -> Iterator[str]:
    name = _name(flag)
    option = known.get(name) if name not in positional else None
    if option is None:
        if not _is_switch(flag, known):
            names = [other for other in known if other not in positional]
            yield _translated(command, name, flag, known, positional) or (
                f"Unknown option '{flag}' of assent {command}.{suggestion(name, names, '--')}"
            )
        return
    if option.kind is bool and values:
        section, dot, last = name.rpartition(".")
        yield f"--{name} takes no value; --{section}{dot}no_{last} is its opposite. Got '{values[0]}'."
        return
    keys = [value.partition(":")[0] for value in values] if get_origin(option.kind) is dict else []
    if len(set(keys)) < len(keys):
        yield f"--{name} must be {_wanted(option.kind)}. Got {' '.join(values)}."
    if not values and _most_values(option.kind) == 1:
        yield f"--{name} needs a value: {describe(option.kind)}."
    for value in values:
        if not _fits(value, option.kind):
            choices = [str(arm) for arm in _arms(option.kind) if isinstance(arm, str)]
            yield f"--{name} must be {_wanted(option.kind)}. Got '{value}'.{suggestion(value, choices)}"


def _translated(command: str, name: str, shown: str, known: dict[str, Option], positional: Sequence[str]) -> str | None:
    """What another tool's option is here."""

    def written(option: str) -> str:
        return f"{option.upper()}, without a name," if option in positional else f"--{option}"

    return counterpart(name, known, shown, f"assent {command}", written)


def _hydra(command: str, word: str, known: dict[str, Option], positional: Sequence[str]) -> str | None:
    """What a word KEY=VALUE, as verl takes its options, is here; None for any other word."""
    key, equals, _ = word.partition("=")
    name = key.lstrip("+~")
    if not equals:
        return None
    if name in known and name not in positional:
        return f"{key}= is --{name} in assent."
    return _translated(command, name, f"{key}=", known, positional)


def _unknown(flag: str, known: dict[str, Option]) -> bool:
    return _name(flag) not in known and not _is_switch(flag, known)


def _is_switch(flag: str, known: dict[str, Option]) -> bool:
    """Whether this is --no_X of a switch X."""
    section, dot, last = _name(flag).rpartition(".")
    option = known.get(f"{section}{dot}{last.removeprefix('no_')}")
    return last.startswith("no_") and option is not None and option.kind is bool


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _most_values(kind: Any) -> float:
    """Words that an option of this type takes."""
    if kind is bool:
        return 0
    return float("inf") if get_origin(kind) in (tuple, dict) else 1


def _arms(kind: Any) -> tuple[Any, ...]:
    """What a value may be: the words of a `Literal`, the types of a union, or of a tuple's items."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return args
    if origin in (Union, types.UnionType):
        return tuple(inner for arm in args for inner in _arms(arm))
    return _arms(args[0]) if origin is tuple else (kind,)


def _fits(word: str, kind: Any) -> bool:
    if get_origin(kind) is dict:
        key, colon, value = word.partition(":")
        return bool(key and colon) and _fits(value, get_args(kind)[1])
    return any(_is(word, arm) for arm in _arms(kind))


def _is(word: str, arm: Any) -> bool:
    if isinstance(arm, str):
        return word == arm
    if arm is types.NoneType:
        return word == "None"
    try:
        arm(word)
    except ValueError:
        return False
    return True


def _wanted(kind: Any) -> str:
    if get_origin(kind) is dict:
        return f"KEY:{'NUMBER' if get_args(kind)[1] is float else 'VALUE'} pairs, each key once"
    return describe(get_args(kind)[0] if get_origin(kind) is tuple else kind).replace("null", "None")
