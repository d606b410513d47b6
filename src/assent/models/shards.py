"""Safetensors files read and written in parts of tensors, through ordinary reads and writes: memory holds the part, not
the file. (What safetensors maps for torch counts as memory of the process, whatever is read of it.)"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from assent.errors import ModelError
from assent.foreign import brief
from assent.models.stored import INDEX, WEIGHTS, weight_files

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What is merged, or copied."""
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
SHARD = 5_000_000_000
"""Most bytes of one file that is written."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: its bytes begin at `offset` in `file`."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def read(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Its numbers from `start` to `stop`, flattened, as they are stored."""
        return reader.read(self.file, self.offset, self.dtype, start, stop)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All weights of a folder, in the order in which they lie there. Raises ModelError as `weight_files`, for a file
    that is cut or no safetensors, and for numbers of another kind than `DTYPES`."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "np") as stored, file.open("rb") as raw:  # mapped as shared: no memory of the process
                offset = 8 + int.from_bytes(raw.read(8), "little")
                for name in stored.offset_keys():  # nothing lies between two of them: safetensors has made sure
                    part = stored.get_slice(name)
                    kind, shape = part.get_dtype(), tuple(part.get_shape())
                    if kind not in DTYPES:
                        raise ModelError(f"{file}: {name} is stored as {kind}: in few bits. Give whole weights.")
                    found[name] = StoredTensor(file, offset, DTYPES[kind], shape)
                    offset += math.prod(shape) * DTYPES[kind].itemsize
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: not a whole safetensors file: {brief(error)}") from error
    if not found:
        raise ModelError(f"{folder} holds no weights in safetensors ({WEIGHTS}, or {INDEX} and what it names).")
    return found


class Reader:
    """Parts of stored tensors. Files stay open until the end."""

    def __init__(self) -> None:
        self._open: dict[Path, FileIO] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self, path: Path, offset: int, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Of the numbers that begin at `offset` those from `start` to `stop`. Raises ModelError where the file became
        shorter."""
        if path not in self._open:
            self._open[path] = FileIO(path)
        file, size = self._open[path], dtype.itemsize
        buffer = bytearray((stop - start) * size)
        file.seek(offset + start * size)
        view, done = memoryview(buffer), 0
        while done < len(buffer):
            if not (count := file.readinto(view[done:])):
                raise ModelError(f"{path} has become shorter while it was read. Is something writing to it?")
            done += count
        return torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)


def write_weights(
    folder: Path,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    parts: Callable[[str], Iterable[Tensor]],
    limit: int | None = None,
) -> None:
    """Writes tensors of these dtypes and shapes, each from the `parts` of its numbers in their order, into files of at
    most `limit` bytes (a larger tensor has one of its own), with an index where there are several."""
    shards = list(_shards(tensors, limit or SHARD))
    names = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        ordered = sorted(
            shard, key=lambda tensor: -tensors[tensor][0].itemsize
        )  # so each begins at a multiple of its size
        with (folder / name).open("wb", buffering=0) as file:
            _write_all(file, _header({tensor: tensors[tensor] for tensor in ordered}))
            for tensor in ordered:
                for part in parts(tensor):
                    assert part.dtype == tensors[tensor][0]
                    _write_all(file, part.contiguous().view(torch.uint8).numpy().data)
    if len(shards) > 1:
        index = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in tensors.values())
        content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], limit: int) -> Iterator[list[str]]:
    shard: list[str] = []
    room = limit
    for name, (dtype, shape) in tensors.items():
        size = dtype.itemsize * math.prod(shape)
        if shard and size > room:
            yield shard
            shard, room = [], limit
        shard.append(name)
        room -= size
    yield shard


def _header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The head of a safetensors file: its length, then JSON, padded to a multiple of 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": KINDS[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(file: FileIO, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
