"""What a model is, as digests of its files: whether it is still the same when a run goes on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers.utils import cached_file

from assent import cpus
from assent.errors import ModelError
from assent.foreign import brief
from assent.models.sources import ADAPTER, Checkpoint, resolve

TOKENIZER = ("*token*.json", "chat_template*", "additional_chat_templates/*", "vocab.*", "merges.txt", "*.model")
WEIGHTS = ("*.safetensors", "value_head.bin", "gate/*.safetensors")
CONFIGURATION = ("config.json", "generation_config.json", "*.py")
SETTLED = 2_000_000_000
"""Nanoseconds after which a change of a file surely shows in its times."""

_known: dict[tuple[str | int, ...], str] = {}


def model_digests(path: str, revision: str | None = None) -> dict[str, str]:
    """Part of a model -> sha256: weights, configuration (with code that comes with it) and tokenizer (with chat
    template). Of a model of the hub it is its commit, which stands for all of them."""
    source = resolve(path, revision)
    if not Path(source.base).is_dir():
        base = {"commit": _commit(source.base, source.revision)}
        weights, configuration = [], []
    else:
        base = {}
        weights = _matching(Path(source.base), WEIGHTS)
        configuration = _matching(Path(source.base), CONFIGURATION)
    for layer in source.layers:
        weights += [layer.file] if isinstance(layer, Checkpoint) else _matching(layer, (*WEIGHTS, "pytorch_model.bin"))
        configuration += [] if isinstance(layer, Checkpoint) else [layer / ADAPTER]
    parts = {"weights": weights, "configuration": configuration}
    return (
        base | {part: files_digest(files) for part, files in parts.items() if files} | tokenizer_digest(path, revision)
    )


def tokenizer_digest(path: str, revision: str | None = None) -> dict[str, str]:
    """The part of `model_digests` that is about text."""
    source = resolve(path, revision)
    folder, its_revision = source.tokenizer()
    if not Path(folder).is_dir():
        return {"tokenizer": _commit(folder, its_revision)}
    templates = [
        layer.chat_template for layer in source.layers if isinstance(layer, Checkpoint) and layer.chat_template
    ]
    files = [Path(template) for template in templates if Path(template).is_file()]
    return {"tokenizer": files_digest([*_matching(Path(folder), TOKENIZER), *files])}


def files_digest(files: Iterable[Path]) -> str:
    """sha256 of the names and contents of files, whatever their order and folder."""
    with ThreadPoolExecutor(cpus.usable()) as pool:  # hashing leaves Python's lock to others
        listed = sorted(files, key=lambda file: (file.name, str(file)))
        lines = [f"{file.name} {digest}\n" for file, digest in zip(listed, pool.map(file_digest, listed), strict=True)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of a file. Content that was read before is known by the file's identity, size and times; ctime, which
    nobody can set back, is among them."""
    now, state = time.time_ns(), file.stat()
    key = (os.path.realpath(file), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key in _known:
        return _known[key]
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if now - max(state.st_ctime_ns, state.st_mtime_ns) > SETTLED:
        _known[key] = digest
    return digest


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _commit(name: str, revision: str | None) -> str:
    """The commit of a model of the hub that is in the cache. Raises ModelError where it cannot be had."""
    try:
        return Path(cached_file(name, "config.json", revision=revision) or "").parent.name
    except OSError as error:
        raise ModelError(f"{name} is no folder here, and cannot be had from the hub: {brief(error)}") from error
