"""Digests of all that a run reads besides its options (`assent.config.inputs` says what that is)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from assent.code import sources
from assent.config import OnlineConfig, RunConfig
from assent.config.inputs import INPUTS, Kind, named
from assent.data.chat import Chat
from assent.data.dataset import Prepared, fingerprint
from assent.data.readers import read_rows
from assent.data.records import Example, Problem
from assent.data.tree import TokenTree
from assent.models.digests import file_digest, model_digests, tokenizer_digest
from assent.rewards.held_out import FLAG
from assent.rewards.implicit import implicit_of
from assent.rewards.judge.prompt import prompt_file
from assent.rewards.outside import sorted_out

Parts = dict[str, str]
"""Part of an input -> its digest."""


def digests(config: RunConfig, chat: Chat, data: Prepared) -> dict[str, Parts]:
    """Option -> part -> digest, of all that `config` names; of the rows, what became of them."""
    found: dict[str, Parts] = {}
    for option, kind in INPUTS.items():
        values = named(config, option)
        for number, value in enumerate(values, 1):
            which = f"{number}: " if len(values) > 1 else ""
            parts = READERS[kind](value, config, chat, data)
            found.setdefault(option, {}).update({which + part: digest for part, digest in parts.items()})
    held_out = "data.train" if config.data.eval is None else "data.eval"
    found["data.train"] |= _rows("", data.train_examples, data.train)
    found[held_out] |= _rows("held-out ", data.eval_examples, data.eval)
    return {option: parts for option, parts in found.items() if parts}


def numbers_digest(values: np.ndarray) -> str:
    """sha256 of an array's content."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _model(path: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    return model_digests(path, config.model.revision)


def _aligned(path: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    """Of a policy that is a reward: its own, and where its run says what it is compared with, also that model's."""
    assert isinstance(config, OnlineConfig)
    given = config.rewards.implicit_reference
    flags = ("--rewards.implicit_reference", "--rewards.implicit_beta")
    read = implicit_of(path, reference=given, beta=config.rewards.implicit_beta, flags=flags)
    parts = model_digests(path, config.model.revision)
    parts["scale"] = hashlib.sha256(repr((read.beta, read.per_token)).encode()).hexdigest()
    if given is None and read.reference is not None:
        theirs = model_digests(read.reference, read.reference_revision)
        parts |= {f"reference's {part}": digest for part, digest in theirs.items()}
    return parts


def _tokenizer(path: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    return tokenizer_digest(path)


def _template(chosen: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    return {"text": hashlib.sha256(chat.template.encode("utf-8", "surrogatepass")).hexdigest()}


def _columns(path: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    """Whole rows as they are in the file."""
    read = islice(read_rows(path, config.data.split), config.data.limit)
    return {"rows": _counted(row.reason if isinstance(row, Problem) else row for _, row in read)}


def _code(spec: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    return {name: file_digest(file) for name, file in sources(spec).items()}


def _server(spec: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    model = config.remote.model if isinstance(config, OnlineConfig) else None
    return {"address": hashlib.sha256(repr((spec, model)).encode()).hexdigest()}


def _judge(spec: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    kind, _, where = spec.partition("=")
    if kind == "model":
        return model_digests(where)
    model = config.judge.model if isinstance(config, OnlineConfig) else None
    return {"address": hashlib.sha256(repr((spec, model)).encode()).hexdigest()}


def _prompt(name: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    """Of a prompt that judges are asked."""
    asked = isinstance(config, OnlineConfig) and config.rewards.judges
    return {"text": file_digest(prompt_file(name))} if asked else {}


def _source(word: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    """Of a source of rewards: those of its kind."""
    kind, value = sorted_out(word, FLAG)
    return SOURCES[kind](value, config, chat, data) if kind in SOURCES else {}


def _later(path: str, config: RunConfig, chat: Chat, data: Prepared) -> Parts:
    """Of what is used of rows, and computed log-probs."""
    return {}


SOURCES: Mapping[str, Callable[[str, RunConfig, Chat, Prepared], Parts]] = {
    "model": _model,
    "implicit": _model,
    "functions": _code,
    "servers": _server,
    "judges": _judge,
}
READERS: Mapping[Kind, Callable[[str, RunConfig, Chat, Prepared], Parts]] = {
    "model": _model,
    "aligned": _aligned,
    "tokenizer": _tokenizer,
    "template": _template,
    "rows": _later,
    "columns": _columns,
    "code": _code,
    "server": _server,
    "judge": _judge,
    "prompt": _prompt,
    "log-probs": _later,
    "source": _source,
}
"""How each kind of input is read."""


# ---- rows


def _rows(which: str, examples: Sequence[Example], trees: Sequence[TokenTree]) -> Parts:
    """Rows as they are used, with all columns that anything could read, and the tokens that became of them."""
    if not examples:
        return {}
    rows = ([getattr(example, name) for name in USED] for example in examples)
    return {f"{which}rows": _counted(rows), f"{which}tokens": fingerprint(trees)}


USED = tuple(field.name for field in fields(Example) if field.name != "origin")
"""What decides of a row; where it stands does not."""


def _counted(rows: Iterable[Any]) -> str:
    """The number of rows, and sha256 of them as JSON, in order; the order of keys does not count."""
    digest, number = hashlib.sha256(), 0
    for number, row in enumerate(rows, start=1):  # noqa: B007
        digest.update(json.dumps(row, sort_keys=True, default=_plain).encode() + b"\n")
    return f"{number} rows {digest.hexdigest()}"


def _plain(value: object) -> object:
    """What JSON lacks: records by their kind and fields, anything else by how it shows itself."""
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, [getattr(value, name) for name in _names(type(value))]]
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
