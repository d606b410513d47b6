"""What a model folder holds, read from its configuration before any weight is."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from assent.config import ModelConfig
from assent.errors import ModelError
from assent.models.parts import decoder_of
from assent.models.stored import configuration

log = logging.getLogger(__name__)

_TOWERS = ("vision_config", "audio_config", "visual_config", "vq_config")


def read_config(folder: str, source: ModelConfig, **options: Any) -> PreTrainedConfig:
    """A folder's configuration. Raises ModelError where the weights are stored quantised, or an encoder reads the
    prompt: neither can be trained here."""
    config = configuration(folder, source.revision, source.trust_remote_code, **options)
    for part in (config, config.get_text_config()):
        stored = getattr(part, "quantization_config", None)
        if stored is not None:
            method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
            raise ModelError(
                f"{source.path}: its weights are stored quantised ({getattr(method, 'value', method) or 'unknown'}). "
                "Give the folder with whole weights; with --model.lora.rank 16 --model.lora.quantize nf4 they take 4 "
                "bits each while adapters are trained."
            )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{source.path} is an encoder-decoder model ({config.model_type}): an encoder reads its prompts. Give a "
            "decoder-only model, such as Qwen3, Llama, Gemma or OLMo."
        )
    return config


def check_causal(config: PreTrainedConfig, path: str) -> None:
    """Raises ModelError where transformers has no causal language model for this configuration."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in (getattr(config, "auto_map", {}) or {}):
        return
    if any(getattr(config, name, None) is not None for name in _TOWERS):
        raise ModelError(
            f"{path} is a model of images or sound and text ({config.model_type}), which transformers does not load as "
            "a causal language model. Give a text model; many families have one beside it."
        )
    raise ModelError(
        f"{path} ({config.model_type}) is no model that transformers can load as a causal language model. Give a "
        "decoder-only model."
    )


def check_parts(model: PreTrainedModel, config: PreTrainedConfig, path: str) -> None:
    """Says so where transformers leaves other parts of a composite model out of what is loaded, and so saved. Raises
    ModelError where the language model alone could not be loaded again."""
    if type(model.config) is type(config):
        return
    if type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{path} is a composite model ({config.model_type}) whose language model transformers cannot load alone, "
            "so it could not be saved. Give a text model."
        )
    log.warning(
        f"{path} is a composite model ({config.model_type}): its language model alone is trained and saved "
        f"({model.config.model_type}), without its other parts"
    )


def freeze_towers(model: PreTrainedModel) -> None:
    """What text never reaches in a composite model stays as it is, and is saved with it."""
    decoder = decoder_of(model)
    if decoder is model or getattr(decoder, "config", model.config) is model.config:
        return
    kept = [decoder, *(part for part in [model.get_output_embeddings()] if part is not None)]
    trained = {id(weight) for part in kept for weight in part.parameters()}
    for weight in model.parameters():
        if id(weight) not in trained:
            weight.requires_grad_(False)


def rope_limit(config: PreTrainedConfig) -> int | None:
    """The longest sequence for which rotary frequencies do not depend on how long the longest of a batch is, or None
    where they never do: longrope and dynamic NTK change all of a batch with it."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    limits = []
    for table in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = table.get("rope_type") or ""
        if kind == "longrope":
            limits.append(table.get("original_max_position_embeddings"))
        elif "dynamic" in kind:
            limits.append(getattr(text, "max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=None)


def longest(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model reads as it was meant to, or None where its configuration sets no limit."""
    limits = (getattr(config.get_text_config(), "max_position_embeddings", None), rope_limit(config))
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)
