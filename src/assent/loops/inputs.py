"""What a loop is going to read and does not make itself: whether it is there, before any work is spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from assent.config.inputs import INPUTS, named
from assent.config.iterate import PEOPLE, POLICY
from assent.config.loops import LoopConfig
from assent.config.people import is_served
from assent.data.formats import load_examples
from assent.errors import DataError
from assent.functions import load_function
from assent.guest import Guest
from assent.models.sources import check_there
from assent.rewards.outside import sorted_out

Kind = Literal["model", "rows", "code", "source"]
READ: Mapping[str, Kind] = {
    "model.path": "model",
    "reward_model": "model",
    "steering.model": "model",
    "contrasted": "model",
    "rewards.model": "model",
    "rewards.implicit": "model",
    "rewards.implicit_reference": "model",
    "labels.source": "source",
    "labels.reference": "model",
    "refresh.labels": "source",
    "source": "source",
    "rewards.judges": "source",
    "rewards.functions": "code",
    "scorer": "code",
    "data.train": "rows",
    "data.eval": "rows",
    "pairs": "rows",
    "pairs_eval": "rows",
    "prompts": "rows",
    "comparisons": "rows",
    "demonstrations": "rows",
    "refresh.data": "rows",
    "steering.ratings": "rows",
    "steering.prompts": "rows",
}
"""Option of a loop -> what it names."""
OPTIONS = ("options", "reward_options", "refresh.options", "steering.options")
"""Where the options of a loop's runs stand, which may name something as well (`config.inputs.INPUTS`)."""
OF_RUNS: Mapping[str, Kind] = {"model": "model", "aligned": "model", "rows": "rows", "columns": "rows", "code": "code"}


def check_inputs(config: LoopConfig, *, rows: bool) -> None:
    """Raises ModelError, ConfigError or DataError, with the option, for what a loop names and is not there. Files of
    rows are read where `rows` says so. For rank 0."""
    for flag, kind, name in named_by(config):
        match kind:
            case "model":
                check_there(flag, name, config.model.revision if flag == "--model.path" else None)
            case "source":
                _check_source(flag, name)
            case "code":
                with Guest().turn():
                    load_function(name, flag)
            case "rows" if rows:
                _check_rows(flag, name, config)


def named_by(config: LoopConfig) -> Iterator[tuple[str, Kind, str]]:
    """What the options of a loop name: the flag, what it is, and its name."""
    for option, kind in READ.items():
        for name in named(config, option):
            if isinstance(name, str) and not is_served(name):  # of another loop the option may be a number
                yield f"--{option}", kind, name
    for place in OPTIONS:
        for given in _given(config, place):
            option, value = given
            own = next((name for name in INPUTS if option == name or option.endswith(f".{name}")), None)
            if own is not None and (found := OF_RUNS.get(INPUTS[own])) is not None and value not in ("", "null"):
                yield f"--{place} {option}:{value}:", found, value


def _given(config: LoopConfig, place: str) -> list[tuple[str, str]]:
    value: Any = config
    for part in place.split("."):
        value = getattr(value, part, None)
    return [(name, text) for name, text in value.items() if isinstance(text, str)] if isinstance(value, Mapping) else []


def _check_source(flag: str, word: str) -> None:
    """A word of `labels.source`, of a judge ([NAME=]judge=FOLDER), or of `rewards.judges` (model=FOLDER)."""
    if word in (PEOPLE, POLICY):
        return
    for mark in ("judge=", "model=", "implicit="):
        before, found, name = word.rpartition(mark)
        if found and "/" not in before:
            check_there(flag, name)
            return
    if flag in ("--labels.source", "--refresh.labels"):
        kind, value = sorted_out(word, flag)
        if kind == "model":
            check_there(flag, value)
        elif kind == "functions":
            with Guest().turn():
                load_function(value, flag)


def _check_rows(flag: str, file: str, config: LoopConfig) -> None:
    data = config.data
    shape: dict[str, Any] = {}
    if flag in ("--data.train", "--data.eval"):
        shape = {"format": data.format, "columns": data.columns, "split": data.split, "limit": data.limit}
    try:
        loaded = load_examples(file, **shape)
    except DataError as error:
        raise DataError(f"{flag} {error}") from None
    if not loaded.examples:
        raise DataError(f"{flag} {file}: no row can be used. The first: {loaded.problems[0]}")
