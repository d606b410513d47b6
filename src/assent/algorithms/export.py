"""`assent export`: a plain model folder of whatever holds a model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from assent.config import ExportConfig, ModelConfig
from assent.data.chat import Chat
from assent.errors import ConfigError, ModelError, RunFolderError
from assent.models.adapters import HEADS, add_lora, checkpoint_weights
from assent.models.loading import HEAD, load_tokenizer, open_model, quiet_transformers
from assent.models.readback import compare_folder
from assent.models.saving import cast, stop_ids, stored_as, write_folder
from assent.models.sources import Checkpoint, Source, ask_hub, resolve
from assent.train.progress import say


def export(config: ExportConfig) -> Path:
    """Writes the model that `config.model` stands for to `config.out`, complete or not at all, and reads it back.

    Raises RunFolderError where `config.out` holds something, ModelError where there is no model."""
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"--out {out} exists and is not empty. Choose another --out, or remove it.")
    quiet_transformers()
    source = resolve(config.model)
    ask_hub(source)
    if config.adapters == "keep" and not _has_own_adapters(source):
        raise ConfigError(f"--adapters keep: {config.model} is not one set of adapters on a whole model.")
    model = ModelConfig(config.model, trust_remote_code=config.trust_remote_code)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise RunFolderError(f"cannot write to {out.parent}: {error.strerror}.") from error
    try:
        partial.chmod(0o755)
        checked = _write(model, source, partial, config)
        (partial / "README.md").write_text(_card(config, source, checked), encoding="utf-8")
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    say(f"{out}: {checked}")
    return out


def _write(model: ModelConfig, source: Source, folder: Path, config: ExportConfig) -> str:
    auto, task, config_of = _kind(model, source)
    loaded, missing = open_model(auto, model, task=task, new=HEAD, config=config_of)
    if missing:
        raise ModelError(f"{config.model} has no {', '.join(sorted(missing))}: it is no whole reward model.")
    tokenizer = load_tokenizer(model)
    weights: dict[str, torch.Tensor] = dict(loaded.state_dict())
    stops = stop_ids(Chat(tokenizer), loaded.generation_config) if task == "CAUSAL_LM" else frozenset()
    dtype = stored_as(loaded, config.dtype)
    write_folder(loaded, tokenizer, folder, weights, dtype=dtype, stops=stops)
    if config.adapters == "keep":
        base, _ = open_model(auto, ModelConfig(source.base, source.revision), task=task, new=HEAD, config=config_of)
        _keep(source, base, task, dtype, folder / "adapter")
    return compare_folder(auto, loaded, folder, weights, config.dtype)


def _kind(model: ModelConfig, source: Source) -> tuple[Any, str, PreTrainedConfig]:
    """Which class the folder was saved for, its task and its configuration."""
    shared = {"revision": source.revision, "trust_remote_code": model.trust_remote_code}
    if source.is_scorer:
        config = AutoConfig.from_pretrained(source.base, num_labels=1, **shared)
        return AutoModelForSequenceClassification, "SEQ_CLS", config
    config = AutoConfig.from_pretrained(source.base, **shared)
    if any("SequenceClassification" in name for name in config.architectures or ()):
        return AutoModelForSequenceClassification, "SEQ_CLS", config
    return AutoModelForCausalLM, "CAUSAL_LM", config


def _has_own_adapters(source: Source) -> bool:
    """Whether adapters belong to a model that others can load."""
    match source.layers:
        case [Checkpoint() as only]:
            return only.lora.rank > 0
        case [_]:
            return True
    return False


def _keep(source: Source, base: Any, task: str, dtype: torch.dtype, folder: Path) -> None:
    """Writes the adapters on `base` by themselves, for peft."""
    (layer,) = source.layers
    if not isinstance(layer, Checkpoint):
        folder.mkdir()
        for file in [*layer.glob("adapter_*.json"), *layer.glob("adapter_*.safetensors")]:
            shutil.copy2(file, folder)
        return
    adapted = add_lora(base, layer.lora, task, HEADS[task])
    parts = cast(base, checkpoint_weights(layer), dtype)
    adapted.save_pretrained(folder, state_dict=parts, save_embedding_layers=False)


def _card(config: ExportConfig, source: Source, checked: str) -> str:
    made = "".join(f"\n- {layer.file.parent if isinstance(layer, Checkpoint) else layer}" for layer in source.layers)
    return f"""---
library_name: transformers
tags: [assent]
---
# {Path(config.out).name}

`{config.model}` as a plain model folder, made by `assent export` of

- {source.base}{made}

{checked}
"""
