"""Models in: Hugging Face folders, hub ids, runs, checkpoints and adapters as fp32 master weights, safetensors only."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.errors import ModelError
from assent.models.adapters import HEADS, adapt, lay, names_in
from assent.models.attention import inexact_reason, install
from assent.models.keys import check_keys
from assent.models.policy import Policy, ScoreModel, verify
from assent.models.quantize import loading_options, quantised_layers, settle
from assent.models.readback import sample_batch
from assent.models.saving import remember
from assent.models.sources import Checkpoint, ask_hub, resolve

HEAD = ("score.weight", "score.bias")
"""The weights of a reward head, which a causal model's folder lacks."""


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


def _load(what: str, path: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load the {what} {path}: {reason}") from error


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token."""

    source = resolve(config.path, config.revision)
    ask_hub(source)
    folder, revision = source.tokenizer()

    def load() -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=config.trust_remote_code)
        if not tokenizer.is_fast:
            raise ModelError(f"{folder}: its tokenizer has no fast version, which exact trained spans need.")
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{folder}: its tokenizer has no EOS token, so answers could not learn to end.")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        for layer in source.layers:
            if isinstance(layer, Checkpoint) and layer.chat_template is not None:
                tokenizer = Chat(tokenizer, layer.chat_template).tokenizer
        return tokenizer

    return _load("tokenizer", config.path, load)


def load_policy(
    config: ModelConfig, *, max_length: int, device: torch.device | str = "cpu", trainable: bool = True
) -> Policy:
    """A causal language model ready for tree batches: dropout off, assent's attention, LoRA adapters if asked for (and
    then the frozen weights in few bits, if asked for). Raises ModelError where `layout` asks for a tree that the
    architecture cannot compute exactly, and where the frozen weights cannot be quantised."""
    bits = _bits(config, device, trainable)
    model = _load("model", config.path, lambda: _causal(config, bits))
    tree = _choose_layout(model, config, max_length)
    policy = _prepare(Policy, model, config, tree, device, trainable)
    if trainable and config.lora.rank > 0:
        batch = sample_batch(policy.plain.config.get_text_config().vocab_size, flat=not policy.tree).to(policy.device)
        adapt(policy, config.lora, "CAUSAL_LM", lambda: policy(batch).logprobs)
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
    model, fresh = _load("reward model", config.path, lambda: _classifier(config, seed, bits))
    if fresh and not new_head:
        raise ModelError(
            f"{config.path} has no trained reward head (score.weight). Train one with: assent reward --model.path "
            f"{config.path} --data.train PAIRS --out FOLDER"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    tree = _choose_layout(model, config, max_length)
    scorer = _prepare(ScoreModel, model, config, tree, device, trainable)
    if trainable and config.lora.rank > 0:
        batch = sample_batch(scorer.plain.config.get_text_config().vocab_size, flat=not scorer.tree).to(scorer.device)
        adapt(scorer, config.lora, "SEQ_CLS", lambda: scorer(batch, batch.last), keep=HEADS["SEQ_CLS"])
    return scorer


def _bits(
    config: ModelConfig, device: torch.device | str, trainable: bool, keep: list[str] | None = None
) -> dict[str, Any]:
    if not trainable or config.lora.rank == 0:
        return {}
    precision = resolve_precision(config.precision, device)
    return loading_options(config.lora.quantize, precision=precision, device=device, keep=keep)


def open_model(
    auto: Any, source: ModelConfig, *, task: str = "CAUSAL_LM", new: tuple[str, ...] = (), **options: Any
) -> tuple[Any, set[str]]:
    """(the model, names of its weights that the folder lacks): in fp32, with adapters and checkpoints merged in. `new`
    are names of weights that may be lacking. Raises ModelError where the folder's weights and its configuration do not
    belong together."""
    place = resolve(source.path, source.revision)
    ask_hub(place)
    if place.layers and "quantization_config" in options:
        raise ModelError(
            f"--model.lora.quantize needs a whole model. Make one of {source.path} first: assent export {source.path} "
            "--out FOLDER"
        )
    shared = {"revision": place.revision, "trust_remote_code": source.trust_remote_code}
    options.setdefault("config", AutoConfig.from_pretrained(place.base, **shared))
    recorded = copy.deepcopy(options["config"])
    model, info = auto.from_pretrained(
        place.base,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused in our words
        **shared,
        **options,
    )
    missing = set(info["missing_keys"])
    check_keys(place.base, missing - set(new), set(info["unexpected_keys"]), info["mismatched_keys"], headless=task)
    remember(model, place.base, place.revision, recorded, plain=place.is_plain)
    if place.layers:
        lay(model, place.layers, task)
        missing -= names_in(place.layers)
    return model, missing


def _causal(config: ModelConfig, bits: dict[str, Any]) -> PreTrainedModel:
    model, _ = open_model(AutoModelForCausalLM, config, **bits)
    return model


def _classifier(config: ModelConfig, seed: int, bits: dict[str, Any]) -> tuple[PreTrainedModel, bool]:
    """The model, and whether its head is new."""
    place = resolve(config.path, config.revision)
    ask_hub(place)
    hf_config = AutoConfig.from_pretrained(
        place.base, revision=place.revision, trust_remote_code=config.trust_remote_code, num_labels=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing = open_model(
            AutoModelForSequenceClassification, config, task="SEQ_CLS", new=HEAD, config=hf_config, **bits
        )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ModelError(f"{type(model).__name__} keeps its head under another name than `score`.")
    return model, bool(missing)


def _choose_layout(model: PreTrainedModel, config: ModelConfig, max_length: int) -> bool:
    """Whether the model computes trees."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max_length > limit:
        raise ModelError(f"{config.path} reads at most {limit} tokens. Got --data.max_length {max_length}.")
    if config.layout == "flat":
        return False
    reason = inexact_reason(model, max_length)
    if reason is None:
        return True
    if config.layout == "tree":
        raise ModelError(f"{config.path} cannot share prompts exactly: {reason}. Use --model.layout flat.")
    print(f"{config.path}: prompts are not shared, because {reason}")
    return False


def _prepare(
    kind: Any, model: PreTrainedModel, config: ModelConfig, tree: bool, device: torch.device | str, trainable: bool
) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    for module in model.modules():  # some attentions read their rate at construction
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    if tree:
        install(model)
    settle(model)
    model.requires_grad_(trainable and config.lora.rank == 0)  # adapters come with their own; packed weights have none
    model.train(trainable)
    if trainable and config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backbone = kind(model, precision=resolve_precision(config.precision, device), tree=tree).to(device)
    if tree and quantised_layers(model):
        verify(backbone, tolerance=0.3)  # products of few bits round differently in either layout
    elif tree:
        verify(backbone)
    return backbone
