"""What lies in a model folder, looked at before a library loads it: files that are no files, a configuration that says
what cannot be, weights that are there twice or in part."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from assent.errors import ModelError, UserError
from assent.files import not_a_file
from assent.foreign import brief, named

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LONGEST = 1 << 26
"""Bytes of a configuration or an index."""
MOST_LAYERS, MOST_EXPERTS = 200, 4_096
"""What a configuration may ask for where its folder does not hold as many weights: building more takes for ever."""
ROOM = 100_000_000
"""Numbers that are made in memory even where the folder holds none of them."""

_WHOLE = re.compile(r"[IU]\d+|BOOL")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_COUNTS = re.compile(r"(^|_)(layers?|experts|blocks|depth)$")
_SIZES = re.compile(r"(^|_)(size|dim|heads?|embd|layers?|experts|positions|rank|width|d_model)$")
_FACTORS = re.compile(r"eps|factor|theta|scal|multiplier|cap")
_PARTS = re.compile(r"^(Validation error for field '[^']*'|Class validation error for validator '[^']*'):\s+\w+: ")


def folder_of(base: str, revision: str | None = None) -> Path:
    """Where the files of a folder or of a hub id lie on this machine. Raises ModelError."""
    if Path(base).is_dir():
        return Path(base)
    try:
        found = cached_file(base, "config.json", revision=revision)
    except OSError as error:
        raise ModelError(f"{base}: the hub did not give its config.json ({brief(error)}).") from error
    if found is None:
        raise ModelError(f"{base}: the hub did not give its config.json.")
    return Path(found).parent


def fetched(base: str, revision: str | None, also: Sequence[str] = ()) -> Path:
    """`folder_of`, where of a hub id all weights lie then, which transformers would fetch only once the model's shape
    is known, and the files `also` where it has them."""
    folder = folder_of(base, revision)
    if Path(base).is_dir():
        return folder
    get = partial(cached_file, base, revision=revision, _raise_exceptions_for_missing_entries=False)
    try:
        index = get(INDEX)
        names = {WEIGHTS} if index is None else set(read_object(Path(index))["weight_map"].values())
        for name in sorted(names | {*also}):
            get(name)
    except OSError as error:
        raise ModelError(f"{base}: the hub did not give its weights ({brief(error)}).") from error
    return folder


def configuration(base: str, revision: str | None = None, trust: bool = False, **options: Any) -> PreTrainedConfig:
    """The configuration of a folder or hub id. Raises ModelError, with the file and what is wrong in it."""
    folder = folder_of(base, revision)
    _check_files(folder)
    file, raw = folder / CONFIG, read_object(folder / CONFIG)
    _check_numbers(file, raw, _count(folder))
    try:
        return AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=trust, **options)
    except UserError:
        raise
    except Exception as error:  # what a class makes of odd values differs from class to class
        raise ModelError(f"{file}: {_explained(error, raw)}") from error


def check_build(make: Any, config: PreTrainedConfig, base: str, revision: str | None) -> None:
    """Builds the model without memory, as `make(config)` would. Raises ModelError where that fails, where it would ask
    for far more numbers than the folder holds, and where weights are stored as whole numbers without a word of how they
    were quantised."""
    folder = folder_of(base, revision)
    file = folder / CONFIG
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            asked = {name: x.shape for name, x in make(copy.deepcopy(config)).named_parameters()}
    except UserError:
        raise
    except Exception as error:
        raise ModelError(f"{file}: no model can be built as it says: {_explained(error, read_object(file))}") from error
    stored = stored_weights(folder) if Path(base).is_dir() else {}  # those of the hub may have to be fetched yet
    coded = {name: kind for name, (kind, _) in stored.items() if _WHOLE.fullmatch(kind) and name in asked}
    if coded:
        raise ModelError(
            f"{folder}: {_some(set(coded))} are stored as whole numbers ({min(coded.values())}), and config.json does "
            "not say what these stand for. Give the folder with whole weights."
        )
    held = {name: shape for name, (_, shape) in stored.items()}
    size, there = sum(map(math.prod, asked.values())), sum(map(math.prod, held.values()))
    if held and size > 4 * there + ROOM:
        other = next((name for name in held if name in asked and held[name] != tuple(asked[name])), None)
        example = "" if other is None else f" ({other}: {tuple(asked[other])} here, {held[other]} there)"
        raise ModelError(
            f"{file} asks for {size:,} weights, the folder holds {there:,}{example}. The configuration belongs to "
            "other weights."
        )


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights. Raises ModelError where it holds two sets of them, or a set in part."""
    chosen = read_object(folder / CONFIG).get("transformers_weights")
    if chosen is None:  # else the configuration says which of several
        _check_one_set(folder)
    name = chosen or (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
    file = folder / str(name)
    if not file.is_file():
        return []
    return _shards(file) if file.suffix == ".json" else [file]


def _check_one_set(folder: Path) -> None:
    index, whole = (folder / INDEX).is_file(), (folder / WEIGHTS).is_file()
    shards = {file.name for file in folder.glob("model-*.safetensors") if _SHARD.fullmatch(file.name)}
    listed = {file.name for file in _shards(folder / INDEX)} if index else set()
    if whole and (others := (shards | listed) - {WEIGHTS}):
        raise ModelError(f"{folder} holds two sets of weights: {WEIGHTS}, and {_some(others)}. Keep one of them.")
    if shards and not index:
        raise ModelError(f"{folder} holds {_some(shards)} without {INDEX}, which says what is in which.")
    if unnamed := shards - listed:
        raise ModelError(f"{folder} holds {_some(unnamed)}, which {INDEX} does not name: of which set are they?")


def _shards(index: Path) -> list[Path]:
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{index}: expected a weight_map from the names of weights to files.")
    names = set(files.values())
    if absent := {name for name in names if not (index.parent / name).is_file()}:
        raise ModelError(f"{index} names {_some(absent)}, which the folder lacks.")
    return [index.parent / name for name in sorted(names)]


def stored_weights(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of all stored weights by name, from the files' headers. Raises ModelError as `weight_files`,
    and for a file that is cut or no safetensors."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "np") as stored:  # for torch, memory as large as the file would count as used
                for name in stored.keys():
                    part = stored.get_slice(name)
                    found[name] = part.get_dtype(), tuple(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: not a whole safetensors file: {brief(error)}") from error
    return found


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that must hold an object. Raises ModelError."""
    if (kind := not_a_file(file)) is not None:
        raise ModelError(f"{file} is {kind}; expected a file.")
    if file.is_file() and (size := file.stat().st_size) > LONGEST:
        raise ModelError(f"{file} has {size:,} bytes, too many for a file of this name.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON: {brief(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected a JSON object, got {type(content).__name__}.")
    return content


def _check_files(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        kind = not_a_file(file)
        if kind is not None and (not file.is_dir() or file.suffix in (".json", ".safetensors", ".jinja")):
            raise ModelError(f"{file} is {kind}; expected a file.")
    generation = folder / "generation_config.json"
    if generation.is_file():  # one that cannot be read would be passed over in silence
        read_object(generation)


def _count(folder: Path) -> int:
    with contextlib.suppress(ModelError):  # it is said where the weights are loaded
        return len(stored_weights(folder))
    return 0


def _check_numbers(file: Path, raw: Mapping[str, Any], weights: int) -> None:
    """What would take for ever, or fail far from its cause."""
    for path, value in _fields(raw):
        name = path.rpartition(".")[2]
        most = max(weights, MOST_EXPERTS if "expert" in name else MOST_LAYERS)
        if _COUNTS.search(name) and type(value) is int and value > most:
            raise ModelError(f"{file}: {path} is {value}; the folder holds {weights} weights in all.")
        if name in ("dtype", "torch_dtype") and isinstance(value, str | int | float):
            kind = getattr(torch, str(value).removeprefix("torch."), None)
            if value != "auto" and not isinstance(kind, torch.dtype):
                raise ModelError(f"{file}: {path} is {value!r}, which is no dtype, such as float32 or bfloat16.")


def _explained(error: Exception, raw: Mapping[str, Any]) -> str:
    """What a class said of a configuration, with the fields that it may have meant."""
    said = brief(_PARTS.sub("", str(error))) if _PARTS.match(str(error)) else named(error)
    if isinstance(error, KeyError) and error.args:
        fields = [path for path, value in _fields(raw) if value == error.args[0]]
        if fields:
            return f"{fields[0]} {error.args[0]!r} is not known to this model."
    odd = [f"{path} {value!r}" for path, value in _fields(raw) if _is_odd(path, value, raw)]
    return f"{said}{'' if said.endswith('.') else '.'}{f' There stands: {_listed(odd)}.' if odd else ''}"


def odd_numbers(raw: Mapping[str, Any]) -> str:
    """Numbers of a configuration that may be why its model gives none, for a message."""
    factors = [
        f"{path} {value}" for path, value in _fields(raw) if type(value) in (int, float) and _FACTORS.search(path)
    ]
    return _listed(factors)


def _is_odd(path: str, value: Any, raw: Mapping[str, Any]) -> bool:
    """Whether a size is below 1, a number is text, or a token has no row in the embedding."""
    name, rows = path.rpartition(".")[2], raw.get("vocab_size")
    if isinstance(value, str):
        return bool(_SIZES.search(name) or _FACTORS.search(name))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value < 1 if _SIZES.search(name) else name.endswith("_token_id") and type(rows) is int and value >= rows


def _fields(raw: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """All values, by their dotted names."""
    for name, value in raw.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _some(names: set[str]) -> str:
    return _listed(sorted(names))
