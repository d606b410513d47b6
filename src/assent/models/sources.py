"""What a path means: a model folder, a run, a checkpoint of a run, adapters on a base model, or an id of the hub."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import cached_file
from transformers.utils.hub import hf_api, is_offline_mode

from assent.config import LoraConfig
from assent.errors import ModelError
from assent.files import not_a_file
from assent.foreign import brief
from assent.names import nearest

ADAPTER = "adapter_config.json"
SCORER, CRITIC = "reward", "critic"
"""What a reward model, and a critic, are called in the checkpoints of their runs."""
RUN_NAMES = frozenset({"runs", "models", "checkpoints", "outputs"})
"""First parts of paths that nobody means as an owner on the hub."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a run at some step: `file` on top of the model that the run began with."""

    file: Path
    lora: LoraConfig
    chat_template: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: configuration, tokenizer and weights of `base` (a folder or hub id), and then, in this
    order, what is laid on top: peft adapter folders and checkpoints."""

    base: str
    revision: str | None
    layers: tuple[Path | Checkpoint, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether others load it as it is."""
        return not self.layers

    @property
    def is_scorer(self) -> bool:
        """Whether a reward model's checkpoint or adapters are laid on top."""
        return any(
            layer.file.stem in (SCORER, CRITIC)
            if isinstance(layer, Checkpoint)
            else _json(layer / ADAPTER).get("task_type") == "SEQ_CLS"
            for layer in self.layers
        )

    def tokenizer(self) -> tuple[str, str | None]:
        """The folder whose tokenizer speaks for the model, and its revision: the last one that has any."""
        for layer in reversed(self.layers):
            if isinstance(layer, Path) and (layer / "tokenizer_config.json").is_file():
                return str(layer), None
        return self.base, self.revision

    def files(self) -> list[Path]:
        """Everything that decides its numbers. Raises ModelError where the hub does not give it."""
        folder = Path(self.base)
        if not folder.is_dir():
            found = cached_file(self.base, "config.json", revision=self.revision)
            if found is None:
                raise ModelError(f"{self.base}: the hub did not give its config.json.")
            folder = Path(found).parent
        files = sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("value_head.bin")])
        for layer in self.layers:
            if isinstance(layer, Checkpoint):
                files.append(layer.file)
                continue
            kinds = ("*.safetensors", "value_head.bin", "pytorch_model.bin")  # the last two with value heads
            files += [layer / ADAPTER, *(file for kind in kinds for file in layer.glob(kind))]
        return files


def resolve(path: str, revision: str | None = None) -> Source:
    """What `path` stands for. Raises ModelError, at once, where it names nothing: what looks like a path is never asked
    of the hub."""
    folder = Path(path).expanduser()
    if not folder.exists():
        if _looks_local(path):
            raise ModelError(f"{path}: there is no such folder.{_near(folder)}")
        return Source(path, revision)
    for file in (folder, folder / "config.json", folder / ADAPTER):
        kind = not_a_file(file)
        if kind is not None and not (file == folder and folder.is_dir()):
            raise ModelError(f"{file} is {kind}; expected a {'model folder' if file == folder else 'file'}.")
    if (folder / "manifest.json").is_file() and (folder / "state.json").is_file():
        return _from_checkpoint(folder)
    if folder.name == f"{CRITIC}.safetensors" and (folder.parent / "manifest.json").is_file():
        return _from_checkpoint(folder.parent, CRITIC)
    if (folder / "config.json").is_file():
        if (folder / ADAPTER).is_file() and any(folder.glob("model*.safetensors")):
            raise ModelError(f"{path} holds both a whole model and adapters ({ADAPTER}). Keep one of them there.")
        if not (folder / ADAPTER).is_file():
            return Source(str(folder), revision)
    if (folder / ADAPTER).is_file():
        return _from_adapter(folder)
    if (folder / "model" / "config.json").is_file():
        return resolve(str(folder / "model"))
    steps = sorted((folder / "checkpoints").glob("step-*[0-9]"))
    hint = f" It is a run without a final model; its newest checkpoint is {steps[-1]}." if steps else ""
    raise ModelError(
        f"{path} is not a model folder: it has no config.json (nor model/config.json, as a run has, nor "
        f"{ADAPTER}).{hint}"
    )


def model_folder(path: str) -> str:
    """The plain model folder or hub id that `path` stands for, a run's final model for instance. Raises ModelError for
    what only assent can put together."""
    source = resolve(path)
    if not source.is_plain:
        raise ModelError(
            f"{path} is not a whole model by itself. Make one of it first: assent export {path} --out FOLDER"
        )
    return source.base


def _from_checkpoint(folder: Path, part: str = "policy") -> Source:
    file = folder / f"{part}.safetensors"
    if not file.is_file():  # a reward model's run
        file = folder / f"{SCORER}.safetensors"
    record = _json(folder / "manifest.json").get("files", {}).get(file.name)
    if record is None or not file.is_file():
        raise ModelError(f"{folder}: a checkpoint without a model in it.")
    if _sha256(file, file.stat().st_mtime_ns) != record["sha256"]:
        raise ModelError(f"{file} was damaged: its sha256 is not the one in manifest.json. Use another checkpoint.")
    options = folder.parent.parent / "resolved.yaml"
    try:
        run: Mapping[str, Any] = yaml.safe_load(options.read_text(encoding="utf-8"))
        model = run["model"]
        lora = LoraConfig(**{**model["lora"], "targets": tuple(model["lora"]["targets"])})
        start, revision, template = model["path"], model.get("revision"), model.get("chat_template")
        if part == CRITIC and run["critic"]["start"] != "policy":
            begun = run["critic"]["start"]
            start = run["rewards"]["model"][0] if begun == "reward" else begun
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise ModelError(
            f"{folder}: the options of its run are needed to read a checkpoint, and {options} does not give them "
            f"({brief(error)}). Leave checkpoints in their run folder."
        ) from None
    if lora.quantize != "none":
        raise ModelError(
            f"{folder}: a checkpoint whose frozen weights are in few bits ({lora.quantize}). Finish the run with "
            "--resume auto; its model/ is whole."
        )
    below = _start(start, revision, f"{folder}: its run began with")
    return replace(below, layers=(*below.layers, Checkpoint(file, lora, template)))


def _from_adapter(folder: Path) -> Source:
    for file in folder.glob("*.safetensors"):
        if (kind := not_a_file(file)) is not None:
            raise ModelError(f"{file} is {kind}; expected a file.")
    config = _json(folder / ADAPTER)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{folder / ADAPTER} does not say which model the adapters belong to.")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: adapters of the kind {config.get('peft_type')}. assent reads LoRA.")
    below = _start(base, config.get("revision"), f"{folder}: its adapters belong to")
    return replace(below, layers=(*below.layers, folder))


def _start(path: str, revision: str | None, why: str) -> Source:
    try:
        return resolve(path, revision)
    except ModelError as error:
        raise ModelError(f"{why} {path}, which cannot be had: {error}") from None


@functools.cache
def _sha256(file: Path, _changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {brief(error)}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected a JSON object, got {type(content).__name__}.")
    return content


def _looks_local(path: str) -> bool:
    """Whether a path that does not exist is certainly none of the hub's owner/name."""
    parts = path.replace(os.sep, "/").split("/")
    begins = path.startswith(("/", ".", "~")) or path.endswith("/") or "\\" in path
    return begins or len(parts) > 2 or (len(parts) == 2 and (parts[0] in RUN_NAMES or Path(parts[0]).exists()))


def _near(folder: Path) -> str:
    """Where one may have meant to go."""
    there = folder
    while not there.exists() and there != there.parent:
        missing, there = there.name, there.parent
    names = (
        sorted(child.name for child in there.iterdir() if child.is_dir() and child.name[0] != ".")
        if there.is_dir()
        else []
    )
    close = nearest(missing, names)
    if close is not None:
        return f" Did you mean {there / close}?"
    listed = ", ".join(names[:8]) or "no folders"
    where = "here" if str(there) == "." else f"in {there}"
    return f" There are {where}: {listed}{', …' if len(names) > 8 else ''}."


def ask_hub(source: Source) -> None:
    """Asks the hub once about an id that is not in the cache, before a library tries many times. Raises ModelError
    where the hub does not give it."""
    path = source.base
    if Path(path).is_dir() or _cached(path, "config.json", source.revision):
        return
    if is_offline_mode():
        raise ModelError(
            f"{path}: there is no such folder here, and the hub is not asked (HF_HUB_OFFLINE is set). Fetch it where "
            f"there is a network: HF_HUB_OFFLINE=0 {_command(source)}"
        )
    try:
        info = hf_api().repo_info(path, revision=source.revision, timeout=10)
    except Exception as error:  # the hub's client raises errors of several libraries
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{path}: there is no such folder here, and the hub did not give it ({brief(first)}). The command that "
            f"fetches it: {_command(source)}"
        ) from None
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if ADAPTER in files and "config.json" not in files:
        raise ModelError(
            f"{path} holds adapters. Fetch them (hf download {path} --local-dir FOLDER) and give that folder."
        )


def check_there(flag: str, path: str, revision: str | None = None) -> None:
    """Raises ModelError, which begins with `flag`, where the model of that path is not there and cannot be fetched:
    before any work is spent. Without the hub its weights must be in the cache too."""
    try:
        source = resolve(path, revision)
        ask_hub(source)
    except ModelError as error:
        raise ModelError(f"{flag} {error}") from None
    weights = ("model.safetensors", "model.safetensors.index.json")
    if Path(source.base).is_dir() or not is_offline_mode():
        return
    if not any(_cached(source.base, name, source.revision) for name in weights):
        raise ModelError(
            f"{flag} {path}: its safetensors are not in the cache, and the hub is not asked (HF_HUB_OFFLINE is set). "
            f"Fetch them where there is a network: HF_HUB_OFFLINE=0 {_command(source)}"
        )


def _command(source: Source) -> str:
    """What fetches a model of the hub into the cache."""
    return f"hf download {source.base}" + (f" --revision {source.revision}" if source.revision else "")


def _cached(path: str, name: str, revision: str | None) -> bool:
    try:
        return cached_file(path, name, revision=revision, local_files_only=True) is not None
    except OSError:
        return False
