"""Models in: Hugging Face folders, hub ids, runs, checkpoints and adapters as fp32 master weights, safetensors only."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.errors import AssentError, ModelError
from assent.foreign import named
from assent.models.adapters import adapt, lay, shapes_in
from assent.models.finite import not_finite
from assent.models.folders import check_causal, check_parts, freeze_towers, read_config, rope_limit
from assent.models.keys import check_keys, check_tied
from assent.models.mixtures import parts_in
from assent.models.policy import Policy, ScoreModel
from assent.models.quantize import loading_options, settle
from assent.models.quiet import quieten
from assent.models.readback import sample_batch
from assent.models.recipe import original_template
from assent.models.saving import remember
from assent.models.sources import Checkpoint, Source, ask_hub, resolve
from assent.models.stored import check_build, configuration
from assent.models.verify import Sample, choose_layout, choose_short


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


def load_folder(what: str, path: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except AssentError:
        raise
    except Exception as error:  # libraries raise what they like of a folder that is not as it should be
        raise ModelError(f"cannot load the {what} {path}: {named(error)}.") from error


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token."""

    source = resolve(config.path, config.revision)
    ask_hub(source)
    configuration(source.base, source.revision, config.trust_remote_code)  # a tokenizer's loader would hide its faults
    folder, revision = source.tokenizer()

    def load() -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=config.trust_remote_code)
        if not tokenizer.is_fast:
            raise ModelError(f"{folder}: its tokenizer has no fast version, which exact trained spans need.")
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{folder}: its tokenizer has no EOS token, so answers could not learn to end.")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.chat_template = original_template(tokenizer.chat_template)  # of a reward model's folder
        for layer in source.layers:
            if isinstance(layer, Checkpoint) and layer.chat_template is not None:
                tokenizer = Chat(tokenizer, layer.chat_template).tokenizer
        return tokenizer

    return load_folder("tokenizer", config.path, load)


def load_policy(
    config: ModelConfig, *, max_length: int, device: torch.device | str = "cpu", trainable: bool = True
) -> Policy:
    """A causal language model ready for tree batches: dropout off, assent's attention, LoRA adapters if asked for (and
    then the frozen weights in few bits, if asked for). Raises ModelError where `layout` asks for a tree that the
    architecture cannot compute exactly, and where the frozen weights cannot be quantised."""
    bits = few_bits(config, device, trainable)
    model = load_folder("model", config.path, lambda: _causal(config, bits))
    policy = prepare(Policy, model, config, max_length, device, trainable)
    if trainable and config.lora.rank > 0:
        vocab = policy.plain.config.get_text_config().vocab_size
        batch = sample_batch(vocab, flat=not policy.tree).to(policy.device)
        adapt(policy, config.lora, "CAUSAL_LM", lambda: policy(batch).logprobs)
    return policy


def few_bits(
    config: ModelConfig, device: torch.device | str, trainable: bool, keep: list[str] | None = None
) -> dict[str, Any]:
    if not trainable or config.lora.rank == 0:
        return {}
    precision = resolve_precision(config.precision, device)
    return loading_options(config.lora.quantize, precision=precision, device=device, keep=keep)


def open_model(
    auto: Any,
    source: ModelConfig,
    *,
    task: str = "CAUSAL_LM",
    amend: Callable[[Any], set[str]] = lambda model: set(),
    **options: Any,
) -> tuple[Any, set[str]]:
    """(the model, names of its weights that the folder lacks): in fp32, with adapters and checkpoints merged in. A
    causal model may lack none; of a reward model (`task` SEQ_CLS) the caller knows what may be new. `amend` may change
    the model before adapters and checkpoints are laid on it, and gives the names of the weights that it brought: of the
    model's, and of those in the folder that they were made of. Raises
    ModelError where the folder's weights and its configuration do not belong together."""
    place = resolve(source.path, source.revision)
    ask_hub(place)
    if place.layers and "quantization_config" in options:
        raise ModelError(
            f"--model.lora.quantize needs a whole model. Make one of {source.path} first: assent export {source.path} "
            "--out FOLDER"
        )
    shared = {"revision": place.revision, "trust_remote_code": source.trust_remote_code}
    config = options.setdefault("config", configuration(place.base, place.revision, source.trust_remote_code))
    recorded = copy.deepcopy(config)
    check_build(partial(_made, auto, source.trust_remote_code), config, place.base, place.revision)
    model, info = auto.from_pretrained(
        place.base,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused in our words
        **shared,
        **options,
    )
    missing, brought = set(info["missing_keys"]), amend(model)
    lacking, surplus = missing if task == "CAUSAL_LM" else (), set(info["unexpected_keys"]) - brought
    if surplus and task != "CAUSAL_LM":
        surplus -= _output_head(recorded, source.trust_remote_code) | parts_in(surplus)
    check_keys(place.base, lacking, surplus, info["mismatched_keys"], headless=task)
    check_tied(model, place.base)
    remember(model, place.base, place.revision, recorded, plain=place.is_plain)
    missing -= brought
    if place.layers:
        lay(model, place.layers, task)
        missing -= set(shapes_in(place.layers))
    if (words := not_finite(model.named_parameters())) is not None:
        raise ModelError(_of_file(place, words))
    return model, missing


def _made(auto: Any, trust: bool, config: Any) -> PreTrainedModel:
    """The model that `auto`, one of transformers' or a class of its own, makes of a configuration."""
    return auto.from_config(config, trust_remote_code=trust) if hasattr(auto, "from_config") else auto(config)


def _output_head(config: Any, trust: bool) -> set[str]:
    """The names of what a causal model has beside its decoder, which a reward model replaces."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust)
    except (ValueError, AttributeError, RuntimeError):  # there is no causal class of this type
        return set()
    inside = {id(weight) for weight in model.base_model.parameters()} if model.base_model is not model else set()
    return {name for name, weight in model.named_parameters() if inside and id(weight) not in inside}


def _of_file(place: Source, words: str) -> str:
    """That a weight is not finite, with the file that holds it."""
    for file in place.files():
        if file.suffix == ".safetensors" and (stored := not_finite(load_file(file).items())) is not None:
            return (
                f"{file}: {stored}. Such weights give no numbers: the file is of a training that diverged, or damaged."
            )
    return f"{place.base}: {words}, as fp32 reads it: the stored number is beyond fp32."


def stored_config(source: ModelConfig, **options: Any) -> Any:
    """The configuration of the folder that `source` stands for. Raises ModelError as `read_config`."""
    place = resolve(source.path, source.revision)
    ask_hub(place)
    return read_config(place.base, replace(source, revision=place.revision), **options)


def _causal(config: ModelConfig, bits: dict[str, Any]) -> PreTrainedModel:
    stored = stored_config(config)
    check_causal(stored, config.path)
    model, _ = open_model(AutoModelForCausalLM, config, config=stored, **bits)
    check_parts(model, stored, config.path)
    return model


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


def prepare(
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
    if isinstance(backbone, ScoreModel):
        choose_short(backbone, sample)
    return backbone
