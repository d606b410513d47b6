"""`assent export`: a plain model folder of whatever holds a model."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from assent.config import ExportConfig, ModelConfig
from assent.data.chat import Chat
from assent.data.steerable import always_asked, asked_for
from assent.errors import ConfigError, ModelError
from assent.models.adapters import add_lora, checkpoint_weights
from assent.models.gate import save_gate
from assent.models.heads import NO_PAD, open_scorer, outward
from assent.models.loading import load_tokenizer, open_model, quiet_transformers
from assent.models.mixtures import find_mixture
from assent.models.readback import compare_folder, reading_class
from assent.models.saving import cast, check_new, complete_or_absent, stop_ids, stored_as, write_folder
from assent.models.sources import CRITIC, Checkpoint, Source, ask_hub, resolve
from assent.models.stored_heads import stored_heads, write_rule
from assent.train import checkpoint

log = logging.getLogger(__name__)


def export(config: ExportConfig) -> Path:
    """Writes the model that `config.model` stands for to `config.out`, complete or not at all, and reads it back.

    Raises RunFolderError where `config.out` holds something, ModelError where there is no model, ConfigError for a
    checkpoint that the run does not have."""
    out = check_new(config.out)
    quiet_transformers()
    path = chosen(config)
    source = resolve(path)
    ask_hub(source)
    if config.adapters == "keep" and not _has_own_adapters(source):
        raise ConfigError(f"--adapters keep: {path} is not one set of adapters on a whole model.")
    model = ModelConfig(path, trust_remote_code=config.trust_remote_code)
    with complete_or_absent(out) as partial:
        checked = _write(model, source, partial, config)
        (partial / "README.md").write_text(_card(out.name, path, source, checked), encoding="utf-8")
    log.info(f"{out}: {checked}")
    return out


def chosen(config: ExportConfig) -> str:
    """The path of what is to be exported: the model as it is given, or a part or a checkpoint of the run there."""
    place = Path(config.model)
    if config.checkpoint is not None:
        place = _checkpoint(place, config.checkpoint)
    if config.part != "critic":
        return config.model if config.checkpoint is None else str(place)
    critic = place / (CRITIC if (place / CRITIC).is_dir() else f"{CRITIC}.safetensors")
    if not critic.exists():
        raise ConfigError(
            f"--part critic: {place} has none. Runs and checkpoints of ppo have one, unless it shares the policy's "
            "layers (--critic.shared)."
        )
    return str(critic)


def _checkpoint(run: Path, which: str) -> Path:
    """The checkpoint of a run that is called "best", "last", or by its step."""
    folder, flag = run / "checkpoints", f"--checkpoint {which}"
    if not folder.is_dir():
        raise ConfigError(f"{flag}: {run} has no checkpoints/. Give the run folder, the --out of a training command.")
    found = checkpoint.by_step(folder)
    if which == "last":
        path = checkpoint.newest_complete(folder)
    elif which == "best":
        path = checkpoint.best(folder)
    elif which.isdecimal():
        path = found.get(int(which))
    else:
        raise ConfigError(f"{flag}: expected best, last, or the number of a step.")
    if path is None:
        known = ", ".join(map(str, found)) or "none"
        why = f" {_no_best(folder)}" if which == "best" else ""
        raise ConfigError(f"{flag}: {run} has no such checkpoint.{why} There are those of steps: {known}.")
    return path


def _no_best(folder: Path) -> str:
    """Why a run has no checkpoint of its best step."""
    newest = checkpoint.newest_complete(folder)
    step = None if newest is None else checkpoint.read_manifest(newest)["best_step"]
    if step is None:
        return "Without held-out data no step is the best."
    return f"The best step was {step}." if step else "The best step was the start, the model that the run began with."


def _write(model: ModelConfig, source: Source, folder: Path, config: ExportConfig) -> str:
    tokenizer = load_tokenizer(model)
    given = config.attributes
    if given is None:
        chat = Chat(tokenizer)
    else:
        chat = always_asked(tokenizer, asked_for(tokenizer.chat_template, given, "--attributes", config.model))
    if config.part != "policy" and (
        source.is_scorer or find_mixture(source) is not None or stored_heads(source).rule is not None
    ):
        return _write_scorer(model, source, folder, config, chat)
    loaded, _ = open_model(AutoModelForCausalLM, model)
    weights: dict[str, torch.Tensor] = dict(loaded.state_dict())
    stops = stop_ids(chat, loaded.generation_config)
    dtype = stored_as(loaded, config.dtype)
    write_folder(loaded, chat.tokenizer, folder, weights, dtype=dtype, stops=stops)
    if config.adapters == "keep":
        base, _ = open_model(AutoModelForCausalLM, ModelConfig(source.base, source.revision))
        _keep(source, base, "CAUSAL_LM", dtype, folder / "adapter")
    return compare_folder(AutoModelForCausalLM, loaded, folder, weights, config.dtype)


def _write_scorer(model: ModelConfig, source: Source, folder: Path, config: ExportConfig, chat: Chat) -> str:
    """A reward model's folder, with the tokenizer and the configuration that others read its rewards by."""
    if config.adapters == "keep" and stored_heads(source).value is not None:
        raise ConfigError("--adapters keep: adapters with a value head beside them are no reward model by themselves.")
    found = open_scorer(model, 0, {})
    if found.fresh:
        raise ModelError(f"{model.path} has no trained {found.head}.weight: it is no whole reward model.")
    loaded = found.model
    weights: dict[str, torch.Tensor] = dict(loaded.state_dict())
    dtype = stored_as(loaded, config.dtype)
    tokenizer = outward(loaded, chat, found.rule)
    write_folder(loaded, tokenizer, folder, weights, dtype=dtype)
    if config.adapters == "keep":
        start = ModelConfig(source.base, source.revision)
        has_head = stored_heads(resolve(source.base, source.revision)).rule is not None
        base = open_scorer(start, 0, {}, None if has_head else found.rule).model
        _keep(source, base, "SEQ_CLS", dtype, folder / "adapter")
        write_rule(folder / "adapter", found.rule)
    checked = compare_folder(reading_class(loaded), loaded, folder, weights, config.dtype)
    if found.rule.offset:
        offset = ", ".join(f"{number:g}" for number in found.rule.offset)
        checked += f" Beware: others read the logits alone, to which assent adds {offset} as the value head does."
    if found.gate is not None:
        gate, gate_rule = found.gate
        save_gate(gate.state_dict(), gate_rule, folder)
    return checked if loaded.config.pad_token_id is not None else f"{checked} Beware: {NO_PAD}."


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
    adapted = add_lora(base, layer.lora, task)
    parts = cast(base, checkpoint_weights(layer), dtype)
    adapted.save_pretrained(folder, state_dict=parts, save_embedding_layers=False)


def _card(name: str, path: str, source: Source, checked: str) -> str:
    made = "".join(f"\n- {layer.file.parent if isinstance(layer, Checkpoint) else layer}" for layer in source.layers)
    return f"""---
library_name: transformers
tags: [assent]
---
# {name}

`{path}` as a plain model folder, made by `assent export` of

- {source.base}{made}

{checked}
"""
