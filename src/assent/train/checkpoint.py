"""Checkpoints that are complete or absent.

    run/checkpoints/step-000120/
        policy.safetensors      one file for each top-level entry of the state that holds tensors
        optimizer.safetensors
        state.json              everything else, with references to the tensors
        manifest.json           step, sizes and sha256 of all files, versions, what the run was made of

A checkpoint is written into `step-000120.tmp-<pid>`, every file flushed to disk, the manifest last, then renamed. There
is no pickle in it: safetensors and JSON only. `save` deletes nothing before the new checkpoint is in place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from assent.environment import versions
from assent.errors import CheckpointError
from assent.outputs import sync

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 3
_COMPLETE = re.compile(r"step-(\d+)(\.old)?")
_LEFTOVER = re.compile(r"step-\d+\.tmp-\d+")


def save(
    folder: str | Path,
    step: int,
    state: Mapping[str, object],
    *,
    meta: Mapping[str, object] | None = None,
    keep: int = 2,
    best_step: int | None = None,
) -> Path:
    """Writes `state` as `folder/step-<step>` and returns that path; call it on one rank only.

    `state` maps file-name-safe names to nested dicts, lists and tuples of tensors, numpy arrays and scalars, numbers,
    strings, bytes, bools and None; all come back with the same types and bytes. A plain dict of tensors (a model's
    state dict) keeps its names in its file, so `policy.safetensors` is what Hugging Face would read. Tied tensors are
    stored once. `meta` (config hash, data fingerprint, world size) goes into the manifest.

    Afterwards only the newest `keep` checkpoints remain, and for each of them the one its `best_step` names. A later
    checkpoint than `step` is from a course that was abandoned (corrupt, or the run was continued from before it) and
    is removed.

    Raises `CheckpointError` if the disk is full or not writable; every earlier checkpoint is then untouched.
    """
    folder = Path(folder)
    final = folder / f"step-{step:06d}"
    temporary = unfinished(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        _write_files(temporary, step, state, dict(meta or {}), best_step)
        _publish(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError | SafetensorError):
            raise
        raise CheckpointError(
            f"Could not write the checkpoint of step {step} in {folder}: {error}. Earlier checkpoints are untouched; "
            "make room or fix the permissions, then continue with --resume auto."
        ) from error
    _retain(folder, step, keep)
    return final


def unfinished(folder: Path, step: int) -> Path:
    """Where this process writes the checkpoint of `step` before it gets its name."""
    return folder / f"step-{step:06d}.tmp-{os.getpid()}"


def load(path: str | Path) -> dict[str, Any]:
    """The state that `save` was given. Tensors are on the CPU.

    Raises `CheckpointError` naming the file and what is wrong with it, if anything differs from the manifest."""
    path = Path(path)
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        _check_file(path / name, entry)
    try:
        tensors = {
            name.removesuffix(".safetensors"): load_file(path / name)
            for name in manifest["files"]
            if name.endswith(".safetensors")
        }
        tree = json.loads((path / STATE).read_text(encoding="utf-8"))
        return {name: _decode(value, tensors.get(name, {})) for name, value in tree.items()}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: the files match the manifest but cannot be read: {error!r}.") from error


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint: step, best_step, meta, versions, files. Reads no tensors.

    Raises `CheckpointError` if `path` is no checkpoint, or its manifest is absent or damaged."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint folder. Expected one named step-<number>.")
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path / MANIFEST}: missing, so this is no complete checkpoint.")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        seal = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: not readable ({type(error).__name__}).") from error
    if seal != _seal(manifest):
        raise CheckpointError(f"{path / MANIFEST}: its sha256 does not match its content; the file was damaged.")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST}: format {manifest['format']}; this version reads format {FORMAT}. The version of "
            "assent that wrote it can continue it."
        )
    return manifest


def verify(path: str | Path) -> dict[str, Any]:
    """Checks every file of a checkpoint against its manifest and returns the manifest. Raises `CheckpointError`."""
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        _check_file(Path(path) / name, entry)
    return manifest


def newest_complete(folder: str | Path) -> Path | None:
    """The checkpoint with the highest step whose files all match their manifest; None if there is none. Warns about
    each damaged one that it passes over."""
    return _passing_over(*_newest(Path(folder)))


def best(folder: str | Path) -> Path | None:
    """The checkpoint that the newest complete one names as the best so far; None if it names none."""
    newest = newest_complete(folder)
    return by_step(folder).get(read_manifest(newest)["best_step"]) if newest else None


def by_step(folder: str | Path) -> dict[int, Path]:
    """The checkpoints that are there, by their steps, the newest last."""
    return {_step(path): path for path in reversed(_checkpoints(Path(folder)))}


def find_resume(folder: str | Path, resume: str | None) -> Path | None:
    """What `--resume` means: None starts anew; "auto" is the newest complete checkpoint in `folder`, or None if there
    is none at all; anything else is one checkpoint folder, which must be complete (there is no falling back from it).
    Raises `CheckpointError` where that one, or all of them, are damaged."""
    if resume is None:
        return None
    if resume == "auto":
        newest, damaged = _newest(Path(folder))
        if newest is None and damaged:
            lines = "\n".join(
                [f"--resume auto: no checkpoint in {folder} is whole:", *(f"  {each}" for each in damaged)]
            )
            raise CheckpointError(f"{lines}\nRestore one of them, or start a new run in another --out.")
        return _passing_over(newest, damaged)
    path = Path(resume)
    if (path / "checkpoints").is_dir():
        raise CheckpointError(
            f"--resume {resume}: this is a run folder. Give one of its checkpoints (checkpoints/step-<number>), or "
            "use --resume auto with --out."
        )
    verify(path)
    return path


def _newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and what is wrong with each that is newer."""
    damaged = []
    for path in _checkpoints(folder):
        try:
            verify(path)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            return path, damaged
    return None, damaged


def _passing_over(newest: Path | None, damaged: list[str]) -> Path | None:
    for problem in damaged:
        log.warning(f"Checkpoint passed over: {problem}")
    return newest


# --- the folder -------------------------------------------------------------------------------------------------------


def _write_files(
    folder: Path, step: int, state: Mapping[str, object], meta: dict[str, object], best_step: int | None
) -> None:
    files: dict[str, dict[str, object]] = {}
    tree: dict[str, object] = {}
    for name, value in state.items():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name), f"{name!r} cannot be a file name"
        tensors = _Tensors()
        tree[name] = _encode(value, name, tensors)
        if tensors.by_name:
            file = folder / f"{name}.safetensors"
            save_file(tensors.by_name, file, metadata={"format": "pt"})
            files[file.name] = _seal_file(file)
    (folder / STATE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")
    files[STATE] = _seal_file(folder / STATE)
    manifest = {
        "format": FORMAT,
        "step": step,
        "best_step": best_step,
        "meta": json.loads(json.dumps(meta)),  # the seal is over what a reader will find
        "versions": versions(),
        "files": files,
    }
    manifest["sha256"] = _seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def _publish(temporary: Path, final: Path) -> None:
    """Renames the finished folder into place. A checkpoint of the same step gives way to it, and stays readable as
    `.old` until the new one has the name."""
    old = final.with_name(final.name + ".old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _retain(folder: Path, step: int, keep: int) -> None:
    """Deletes what `save` no longer keeps. A failed deletion costs disk space, not the run."""
    current = [path for path in _checkpoints(folder) if _step(path) <= step]
    kept = {_step(path) for path in current[: max(1, keep)]}
    for path in current[: max(1, keep)]:
        try:
            kept.add(read_manifest(path)["best_step"])
        except CheckpointError:
            continue
    for path in _checkpoints(folder):
        replaced = path.suffix == ".old" and path.with_suffix("").exists()
        if replaced or _step(path) not in kept:
            # Renamed first: a kill in the middle of the deletion must not leave something that looks complete.
            doomed = path.with_name(f"{path.name.removesuffix('.old')}.tmp-{os.getpid()}")
            try:
                path.rename(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                log.warning(f"Could not delete the old checkpoint {path}: {error}")


def _remove_leftovers(folder: Path) -> None:
    """Unfinished folders of processes that were killed."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first; a `.old` twin after its successor. Unfinished folders are not among them, damaged ones are."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _COMPLETE.fullmatch(path.name)]
    return sorted(found, key=lambda path: (-_step(path), path.name))


def _step(path: Path) -> int:
    match = _COMPLETE.fullmatch(path.name)
    assert match, path
    return int(match.group(1))


def _seal_file(path: Path) -> dict[str, object]:
    sync(path)
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, though the manifest lists it.")
    size = path.stat().st_size
    if size != entry["size"]:
        raise CheckpointError(
            f"{path}: {size} bytes, but the manifest says {entry['size']}; the file was cut or changed."
        )
    if _sha256(path) != entry["sha256"]:
        raise CheckpointError(f"{path}: its sha256 differs from the manifest's; the content was changed or damaged.")


# --- nested state as JSON plus tensors --------------------------------------------------------------------------------


class _Tensors:
    """Collects the tensors of one file. Exact aliases (tied weights) get one entry."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._names: dict[tuple, str] = {}
        self._storages: set[int] = set()

    def add(self, tensor: Tensor, path: str) -> str:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            raise TypeError(f"{path}: a checkpoint holds plain dense tensors, not {type(tensor).__name__}")
        identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in self._names:
            return self._names[identity]
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        # safetensors wants tensors that own their memory.
        if storage.nbytes() != plain.nbytes or storage.data_ptr() in self._storages:
            plain = plain.clone()
        self._storages.add(plain.untyped_storage().data_ptr())
        name = path.partition("/")[2] or "value"
        while name in self.by_name or name == "__metadata__":
            name += "~"
        self.by_name[name] = plain
        self._names[identity] = name
        return name


def _encode(value: object, path: str, tensors: _Tensors) -> object:
    """JSON for `value`; what JSON lacks becomes an object with one key that starts with "$"."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        return {"$tensor": tensors.add(value, path)}
    if isinstance(value, (np.ndarray, np.generic)):
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        return {kind: tensors.add(torch.from_numpy(np.array(value, order="C")), path)}
    if type(value) is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if type(value) is list:
        return [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"$tuple": [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{path}/{key}", tensors) for key, item in value.items()}
        return {"$items": [[_encode(k, path, tensors), _encode(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    raise TypeError(f"{path}: a checkpoint cannot hold {type(value).__name__}; give tensors, arrays, numbers or text")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {key: _decode(item, tensors) for key, item in value.items()}
    content = value[tag]
    match tag:
        case "$tensor":
            return tensors[content]
        case "$array":
            return tensors[content].numpy().copy()
        case "$scalar":
            return tensors[content].numpy().copy()[()]
        case "$float":
            return float(content)
        case "$bytes":
            return base64.b64decode(content)
        case "$tuple":
            return tuple(_decode(item, tensors) for item in content)
        case "$items":
            return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    raise ValueError(f"unknown tag {tag!r} in {STATE}")
