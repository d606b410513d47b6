"""Models in and out: plain Hugging Face folders (or hub ids), fp32 master weights, safetensors only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from assent.config import LoraConfig, ModelConfig
from assent.errors import ModelError
from assent.models.folders import check_causal, check_parts, freeze_towers, read_config, rope_limit
from assent.models.policy import Backbone, Policy, ScoreModel
from assent.models.quantize import (
    dequantised,
    is_transposed,
    loading_options,
    settle,
    without_quantisation,
)
from assent.models.quiet import quieten
from assent.models.verify import Sample, choose_layout


def quiet_transformers() -> None:
    """Leaves the terminal to assent's own progress."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def native_precision(device: torch.device | str) -> str:
    """ "bf16" where the hardware multiplies bfloat16 natively (Ampere and later; AVX512-bf16 or AMX), else "fp32"."""
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if capable else "fp32"


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """The precision that "auto" stands for on this device."""
    return native_precision(device) if precision == "auto" else precision


def model_folder(path: str) -> str:
    """A run folder stands for its final model; everything else for itself."""
    folder = Path(path)
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelError(f"{path} is not a model folder: it has no config.json (nor model/config.json, as a run has).")
    return path


def _load(what: str, path: str, load: Callable[[str], Any]) -> Any:
    folder = model_folder(path)
    try:
        return load(folder)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "" if Path(folder).exists() else " There is no such folder, and the hub did not give it."
        raise ModelError(f"cannot load the {what} {path}:{hint} {reason}") from error


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token."""

    def load(folder: str) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        if not tokenizer.is_fast:
            raise ModelError(f"{folder}: its tokenizer has no fast version, which exact trained spans need.")
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{folder}: its tokenizer has no EOS token, so answers could not learn to end.")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    return _load("tokenizer", config.path, load)


def load_policy(
    config: ModelConfig, *, max_length: int, device: torch.device | str = "cpu", trainable: bool = True
) -> Policy:
    """A causal language model ready for tree batches: dropout off, assent's attention, LoRA adapters if asked for (and
    then the frozen weights in few bits, if asked for). Raises ModelError where `layout` asks for a tree that the
    architecture cannot compute exactly, and where the frozen weights cannot be quantised."""
    bits = _bits(config, device, trainable)
    model = _load("model", config.path, lambda folder: _causal(folder, config, bits))
    policy = _prepare(Policy, model, config, max_length, device, trainable)
    if trainable and config.lora.rank > 0:
        policy.model = add_lora(policy.model, config.lora, "CAUSAL_LM")
    return policy


def load_score_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    device: torch.device | str = "cpu",
    trainable: bool = True,
    seed: int = 0,
    new_head: bool = True,
) -> ScoreModel:
    """A sequence-classification model with one output, from such a folder or, with a fresh head drawn from `seed`,
    from any causal model. With `new_head=False` a folder without a trained head is refused. Adapters and bits are as in
    `load_policy`; the head is always trained whole."""
    bits = _bits(config, device, trainable, keep=["score"])
    model, fresh = _load("reward model", config.path, lambda folder: _classifier(folder, config, seed, bits))
    if fresh and not new_head:
        raise ModelError(
            f"{config.path} has no trained reward head (score.weight). Train one with: assent reward --model.path "
            f"{config.path} --data.train PAIRS --out FOLDER"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    scorer = _prepare(ScoreModel, model, config, max_length, device, trainable)
    if trainable and config.lora.rank > 0:
        scorer.model = add_lora(scorer.model, config.lora, "SEQ_CLS")
    return scorer


def _bits(
    config: ModelConfig, device: torch.device | str, trainable: bool, keep: list[str] | None = None
) -> dict[str, Any]:
    if not trainable or config.lora.rank == 0:
        return {}
    precision = resolve_precision(config.precision, device)
    return loading_options(config.lora.quantize, precision=precision, device=device, keep=keep)


def _from_pretrained(auto: Any, folder: str, source: ModelConfig, **options: Any) -> Any:
    return auto.from_pretrained(
        folder,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
        dtype=torch.float32,
        use_safetensors=True,
        **options,
    )


def _causal(folder: str, config: ModelConfig, bits: dict[str, Any]) -> PreTrainedModel:
    stored = read_config(folder, config)
    check_causal(stored, config.path)
    model, info = _from_pretrained(AutoModelForCausalLM, folder, config, output_loading_info=True, **bits)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"{folder} is not a causal language model's folder: it lacks {missing}.")
    if "score.weight" in info["unexpected_keys"]:  # with tied embeddings nothing is missing
        raise ModelError(f"{folder} is a reward model's folder (it has score.weight), not a causal language model's.")
    check_parts(model, stored, config.path)
    return model


def _classifier(folder: str, config: ModelConfig, seed: int, bits: dict[str, Any]) -> tuple[PreTrainedModel, bool]:
    """The model, and whether its head is new."""
    hf_config = read_config(folder, config, num_labels=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = _from_pretrained(
            AutoModelForSequenceClassification, folder, config, config=hf_config, output_loading_info=True, **bits
        )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ModelError(f"{type(model).__name__} keeps its head under another name than `score`.")
    missing = set(info["missing_keys"])
    if missing - {"score.weight", "score.bias"}:
        raise ModelError(f"{folder} lacks {', '.join(sorted(missing)[:3])}.")
    return model, bool(missing)


def _check_length(model: PreTrainedModel, config: ModelConfig, max_length: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and 0 < limit < max_length:
        raise ModelError(f"{config.path} reads at most {limit} tokens. Got --data.max_length {max_length}.")
    limit = rope_limit(model.config)
    if limit is not None and limit < max_length:
        raise ModelError(
            f"{config.path}: its rotary embedding changes for a whole batch when one of its sequences has more than "
            f"{limit} tokens, so results would depend on what else is in the batch. Got --data.max_length "
            f"{max_length}; it can be {limit} at most."
        )


def _prepare(
    kind: Any, model: PreTrainedModel, config: ModelConfig, max_length: int, device: torch.device | str, trainable: bool
) -> Any:
    _check_length(model, config, max_length)
    settle(model)
    model.requires_grad_(trainable and config.lora.rank == 0)  # adapters come with their own; packed weights have none
    freeze_towers(model)
    model.train(trainable)
    if trainable and config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backbone = kind(model, precision=resolve_precision(config.precision, device), tree=False).to(device)
    sample = Sample.of(backbone)
    quieten(model)
    choose_layout(backbone, sample, config.path, config.layout, max_length)
    return backbone


def add_lora(model: PreTrainedModel, lora: LoraConfig, task: str) -> Any:
    """The model with trainable adapters; everything else is frozen (a reward head stays trained)."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    targets = "all-linear" if lora.targets == ("all-linear",) else list(lora.targets)
    return get_peft_model(
        model,
        PeftConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=targets,
            task_type=task,
            modules_to_save=["score"] if task == "SEQ_CLS" else None,
        ),
    )


def save_model(
    backbone: Backbone, tokenizer: PreTrainedTokenizerBase, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a Hugging Face folder that transformers loads by itself. LoRA adapters are merged into it and also kept
    beside it in `adapter/`. `state` holds the full weights where the module itself is sharded; the module is left as
    it is. Quantised weights are written as fp32."""
    model = backbone.model
    weights = dict(model.state_dict() if state is None else state)
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder / "adapter", state_dict=weights)
        weights = merged_weights(model, weights)
    without_quantisation(backbone.plain).save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def merged_weights(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the Hugging Face model inside a LoRA model, W + (alpha / rank) B A, under its own names. `state`
    is the state dict of the LoRA model, whose frozen weights may be quantised: W is then what they stand for."""
    merged = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".").replace(".base_layer.", "."): x
        for name, x in dequantised(model, state).items()
        if ".lora_" not in name and ".original_module." not in name
    }
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and "default" in layer.lora_A:
            low, high = (state[f"{name}.lora_{part}.default.weight"] for part in "AB")
            change = layer.scaling["default"] * (high @ low)
            weight = name.removeprefix("base_model.model.") + ".weight"
            merged[weight] = merged[weight] + (change.T if is_transposed(layer.get_base_layer()) else change)
    return merged
