"""Models out: plain Hugging Face folders in the dtype that came in, which end answers where they were taught to."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from assent.data.chat import Chat
from assent.errors import ModelError, OutputError, RunFolderError
from assent.foreign import brief
from assent.lock import check_free
from assent.models.adapters import merged_weights
from assent.models.policy import Backbone, ScoreModel
from assent.models.quantize import dequantised, without_quantisation
from assent.models.sources import resolve
from assent.models.stored import configuration
from assent.outputs import writing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """A model as its folder has it, before anything is made of it: the configuration, the dtype of the weights, and
    whether the folder alone gives them (otherwise adapters or a checkpoint were laid on top)."""

    config: PreTrainedConfig
    dtype: torch.dtype
    plain: bool


def remember(model: PreTrainedModel, folder: str, revision: str | None, config: PreTrainedConfig, plain: bool) -> None:
    """Keeps with a model that was just loaded what saving it needs; `config` is the folder's own."""
    model._assent_origin = ModelOrigin(copy.deepcopy(model.config), stored_dtype(folder, revision, config), plain)


def origin_of(model: PreTrainedModel) -> ModelOrigin:
    """What `remember` kept; of a model that did not come from a folder, the model as it is."""
    known = getattr(model, "_assent_origin", None)
    return known or ModelOrigin(model.config, torch.float32, True)


def stored_dtype(folder: str, revision: str | None, config: PreTrainedConfig) -> torch.dtype:
    """The dtype that transformers' dtype="auto" takes: the configuration's, else that of the first weight."""
    named = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if named is not None:
        dtype = getattr(torch, str(named).removeprefix("torch."), None)
        return dtype if isinstance(dtype, torch.dtype) and dtype in _STORED.values() else torch.float32
    if not Path(folder).is_dir():
        folder = str(Path(cached_file(folder, "config.json", revision=revision) or "").parent)
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():
                kind = stored.get_slice(name).get_dtype()
                if kind in _STORED:
                    return _STORED[kind]
    return torch.float32


# ---- where answers end


def stop_ids(chat: Chat, generation: GenerationConfig | None) -> frozenset[int]:
    """The tokens that end a sampled answer: what ends a turn by the tokenizer and its template, and what the model's
    generation_config names. Where that was only derived from the configuration, whose class has an EOS id by default,
    an id counts if it is a control token."""
    named = set(_eos_list(generation))
    if getattr(generation, "_from_model_config", False):
        named &= set(chat.tokenizer.added_tokens_decoder)
    return chat.eos_ids | named


def generation_config(path: str, revision: str | None = None) -> GenerationConfig:
    """The generation config of a model on disk or the hub."""
    base = resolve(path, revision)
    try:
        return GenerationConfig.from_pretrained(base.base, revision=base.revision)
    except OSError:
        return GenerationConfig.from_model_config(configuration(base.base, base.revision))


def _eos_list(config: Any) -> list[int]:
    found = getattr(config, "eos_token_id", None)
    if found is None:
        return []
    return [int(i) for i in found] if isinstance(found, list | tuple) else [int(found)]


def _with_ends(before: list[int], stops: Collection[int]) -> int | list[int] | None:
    ids = [*before, *sorted(set(stops) - set(before))]
    return ids[0] if len(ids) == 1 else ids or None


# ---- what is written


def check_new(out: str | Path) -> Path:
    """A folder that is yet to be written. Raises RunFolderError where something is in it, or a run is at work in one
    that it lies in."""
    out = Path(out)
    check_free(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"--out {out} exists and is not empty. Choose another --out, or remove it.")
    return out


@contextmanager
def complete_or_absent(out: str | Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` at the end, or nothing where something fails. Raises RunFolderError as
    `check_new`, and OutputError where it cannot be made or written."""
    out = check_new(out)
    with writing(out, f"--out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}-", dir=out.parent))
    try:
        with writing(out, f"--out {out}", inside=partial):
            partial.chmod(0o755)
            yield partial
            os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` at the end. Where something fails, what stood there
    stays, and unless the disk failed what was written stays beside it, as NAME.unfinished. Raises OutputError."""
    partial = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(folder, inside=partial):
            partial.mkdir(parents=True)
            yield partial
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
            partial.rename(folder)
    except OutputError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def save_model(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state: Mapping[str, Tensor] | None = None,
    *,
    dtype: str = "auto",
    stops: Collection[int] = (),
) -> dict[str, Tensor]:
    """Writes a Hugging Face folder that transformers loads by itself. LoRA adapters are merged into it and also kept
    beside it in `adapter/` (where they belong to a whole model that others can load). `state` holds the full weights
    where the module itself is sharded; the module is left as it is. Quantised weights are written whole. Gives what was
    written as it was before it was cast to the folder's dtype, under the names of the plain model.

    dtype  "auto" (that of the folder the model came from), "fp32", "bf16" or "fp16"
    stops  tokens that end an answer; the folder's generation stops at them beside those it stopped at before
    """
    model, plain = backbone.model, backbone.plain
    weights = dict(model.state_dict() if state is None else state)
    kind = stored_as(plain, dtype)
    if hasattr(model, "peft_config"):
        weights = _save_adapter(model, weights, folder / "adapter", kind, origin_of(plain).plain)
    else:
        weights = dequantised(plain, weights)
    ends = () if isinstance(backbone, ScoreModel) else stops
    write_folder(plain, tokenizer, folder, weights, dtype=kind, stops=ends)
    return weights


def stored_as(model: PreTrainedModel, dtype: str) -> torch.dtype:
    """The dtype that weights of this model are written in."""
    return origin_of(model).dtype if dtype == "auto" else DTYPES[dtype]


def _save_adapter(
    model: Any, weights: Mapping[str, Tensor], folder: Path, dtype: torch.dtype, whole_base: bool
) -> dict[str, Tensor]:
    """Writes the adapters, and gives the merged weights. What the run has learnt is on the disk before the merge."""
    if whole_base:
        parts = cast(model.get_base_model(), weights, dtype)
        model.save_pretrained(folder, state_dict=parts, save_embedding_layers=False)  # of the adapters only
    try:
        return merged_weights(model, weights)
    except (ModelError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"The adapters could not be merged ({brief(error)}). Nothing is lost: "
            + (f"they are in {folder} (peft loads them), " if whole_base else "")
            + "and the run's last checkpoint has them."
        ) from error


def write_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    stops: Collection[int] = (),
) -> None:
    """A model folder with its tokenizer; see `write_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    write_model(model, folder, weights, dtype=dtype, stops=stops, pad=tokenizer.pad_token_id if stops else None)


def write_model(
    model: PreTrainedModel,
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    stops: Collection[int] = (),
    pad: int | None = None,
) -> None:
    """`weights` (under the names of `model`), and the configuration that `model` came with."""
    shell = copy.copy(without_quantisation(model))
    shell.config = saved_config(model, dtype, stops)
    generation = copy.deepcopy(model.generation_config) if model.can_generate() else None
    shell.generation_config = None if generation is None else GenerationConfig()  # the own one may not pass its checks
    shell.save_pretrained(folder, state_dict=cast(model, weights, dtype))
    shell.config.dtype = dtype  # transformers writes that of the weights in memory
    shell.config.save_pretrained(folder)
    if generation is not None:
        generation.eos_token_id = _with_ends(_eos_list(generation), stops)
        if pad is not None:
            generation.pad_token_id = pad
        generation.to_json_file(folder / "generation_config.json")


def saved_config(model: PreTrainedModel, dtype: torch.dtype, stops: Collection[int]) -> PreTrainedConfig:
    """The configuration to write: as it came, but for what training decides (where answers end, a new head). Rates that
    training sets to 0 have their own values again."""
    config = copy.deepcopy(without_quantisation(model).config)
    _restore_numbers(config, origin_of(model).config)
    config.dtype = dtype
    if stops:
        text = config.get_text_config()
        ends = _with_ends(_eos_list(text), stops)
        text.eos_token_id = ends
        if text is not config and hasattr(config, "eos_token_id"):
            config.eos_token_id = ends
    return config


def _restore_numbers(config: PreTrainedConfig, own: PreTrainedConfig) -> None:
    for name, value in vars(own).items():
        now = getattr(config, name, None)
        if isinstance(value, PreTrainedConfig) and isinstance(now, PreTrainedConfig):
            _restore_numbers(now, value)
        elif isinstance(value, float) and now != value:
            setattr(config, name, value)


def cast(model: PreTrainedModel, weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in `dtype`, but for those that the architecture keeps in fp32, a reward head, and whole numbers.
    Tied weights stay one tensor."""
    head = (getattr(model.config, "assent_head", None) or {"weight": "score.weight"})["weight"].split(".")[0] + "."
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    done: dict[tuple[Any, ...], Tensor] = {}
    written = {}
    for name, x in weights.items():
        place = (x.data_ptr(), x.shape, x.stride(), x.dtype)
        if place not in done:
            exact = not x.is_floating_point() or name.startswith(head) or kept & set(name.split("."))
            done[place] = x if exact else x.to(dtype)
            if dtype == torch.float16 and not exact and not done[place].isfinite().all() and x.isfinite().all():
                raise ModelError(f"fp16 cannot hold {name}, whose weights reach {x.abs().max():.3g}. Save it as bf16.")
        written[name] = done[place]
    return written
