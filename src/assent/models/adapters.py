"""Low-rank adapters: put into a model to be trained, merged into its weights, read from other folders."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from assent.config import LoraConfig
from assent.errors import ModelError
from assent.foreign import brief
from assent.models.policy import Backbone
from assent.models.quantize import dequantised, is_transposed
from assent.models.sources import Checkpoint
from assent.names import suggestion

log = logging.getLogger(__name__)

ALL_LINEAR = ("all-linear",)
READ_BY_WEIGHT = dict.fromkeys(("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), ("out_proj", "conv1d"))
"""Architectures whose kernels read these layers' weights past any adapter; peft refuses them."""


def adapt(backbone: Backbone, lora: LoraConfig, task: str, output: Callable[[], Tensor]) -> None:
    """Puts trainable adapters into a model whose loss is made of `output()`. Raises ModelError as `add_lora`, and where
    an adapter that was asked for by name has no part in the output: it would be saved as it began. (all-linear leaves
    such layers out, and says so.)"""
    without = _routers(backbone.model, output) if lora.targets == ALL_LINEAR else set()
    backbone.model = add_lora(backbone.model, lora, task, without)
    try:
        with torch.enable_grad():  # also where a model is loaded under no_grad
            idle = _idle(backbone.model, output())
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"--model.lora.targets {' '.join(lora.targets)}: {type(backbone.plain).__name__} does not run with adapters"
            f" there ({brief(error)}). Name other layers."
        ) from error
    if idle and lora.targets == ALL_LINEAR:
        backbone.model = add_lora(backbone.model.unload(), lora, task, without | idle)
        with torch.enable_grad():
            idle = _idle(backbone.model, output())
    if idle:
        raise ModelError(
            f"--model.lora.targets: adapters on {_some(idle)} would never be trained: this model is read past them. "
            "Leave these layers out, or train all weights with --model.lora.rank 0."
        )


def _routers(model: nn.Module, output: Callable[[], Tensor]) -> set[str]:
    """Linear layers of a class of their own that give more than one tensor: adapters have no place in these."""
    found: set[str] = set()

    def watch(name: str) -> Any:
        return lambda _, __, out: None if isinstance(out, Tensor) else found.add(name)

    own = [
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and type(m).forward != nn.Linear.forward
    ]
    hooks = [module.register_forward_hook(watch(name)) for name, module in own]
    if hooks:
        with torch.no_grad():
            output()
    for hook in hooks:
        hook.remove()
    return found


def add_lora(model: PreTrainedModel, lora: LoraConfig, task: str, without: Collection[str] = ()) -> Any:
    """The model with trainable adapters; everything else is frozen (a reward head stays trained). Raises ModelError
    for targets that match nothing, for a rank above every width, and where the adapters could not be merged exactly
    into the model afterwards."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    modules, parameters = _targets(model, lora)
    if lora.rank > (widest := max(max(weight.shape, default=0) for weight in model.parameters())):
        raise ModelError(f"--model.lora.rank {lora.rank}: no weight of this model is wider than {widest}.")
    excluded = {*without, *(READ_BY_WEIGHT.get(model.config.model_type, ()) if lora.targets == ALL_LINEAR else ())}
    before = {name: weight.shape for name, weight in model.state_dict().items()}
    try:
        with _quiet_peft():
            adapted = get_peft_model(
                model,
                PeftConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    target_modules=modules,
                    target_parameters=parameters or None,
                    exclude_modules=sorted(excluded) or None,
                    task_type=task,
                    modules_to_save=_heads(model) if task == "SEQ_CLS" else None,
                ),
            )
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"--model.lora.targets {' '.join(lora.targets)}: peft cannot put adapters there: {brief(error)}. Name "
            "other layers."
        ) from error
    _check_merge(adapted, before)
    if lora.targets == ALL_LINEAR:
        _tell_left_out(adapted, excluded)
    return adapted


def _heads(model: PreTrainedModel) -> list[str]:
    """The layers that give a reward, which are trained whole."""
    outputs = model.config.num_labels
    return [
        name
        for name, child in model.named_children()
        if name == "score" or (isinstance(child, nn.Linear) and child.out_features == outputs)
    ]


def _idle(model: nn.Module, output: Tensor) -> set[str]:
    """The layers whose adapters have no part in `output`. Leaves no gradients."""
    adapters = {name: weight for name, weight in model.named_parameters() if ".lora_" in name}
    found: Sequence[Tensor | None] = [None] * len(adapters)
    if output.requires_grad:
        found = torch.autograd.grad(output.sum(), list(adapters.values()), allow_unused=True)
    return {_plain_name(name.split(".lora_")[0]) for name, g in zip(adapters, found, strict=True) if g is None}


def merged_weights(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the Hugging Face model inside a LoRA model, W + (alpha / rank) B A, under its own names. `state`
    is the state dict of the LoRA model, whose frozen weights may be quantised: W is then what they stand for. Raises
    ModelError where a part of the adapters has no place in W."""
    from peft.tuners.lora import LoraLayer

    merged = {_plain_name(name): x for name, x in dequantised(model, state).items() if not _is_adapter(name)}
    used: set[str] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.scaling:
            continue
        weight, change, names = _change(name, layer, state)
        if merged[weight].shape != change.shape:
            raise ModelError(f"adapters on {weight} have the shape {tuple(change.shape)} and cannot be merged into it.")
        merged[weight] = merged[weight] + change
        used |= names
    left = {name for name in state if ".lora_" in name} - used
    if left:
        raise ModelError(f"adapters of this kind cannot be merged into the weights: {_some(left)}.")
    return merged


def lay(model: PreTrainedModel, layers: Sequence[Path | Checkpoint], task: str) -> None:
    """Changes the weights of `model` to what adapter folders and checkpoints make of them, in this order."""
    for layer in layers:
        if isinstance(layer, Path):
            _merge_folder(model, layer)
            continue
        state = checkpoint_weights(layer)
        if layer.lora.rank:
            adapted = add_lora(model, layer.lora, task)
            state = merged_weights(adapted, state)
            adapted.unload()
        _fill(model, state, layer.file)


def shapes_in(layers: Sequence[Path | Checkpoint]) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights in these folders and checkpoints, by the last two parts of their names
    ("score.weight"); those of the last layer count."""
    files = [file for layer in layers for file in ([layer.file] if isinstance(layer, Checkpoint) else _stored(layer))]
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():
                found[".".join(_plain_name(name).split(".")[-2:])] = tuple(stored.get_slice(name).get_shape())
    return found


def _stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("adapter_model*.safetensors"))


def checkpoint_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of the model in a checkpoint, under the names that it had in training."""
    found = load_file(checkpoint.file)
    return {name.removeprefix("model."): x for name, x in found.items() if name.startswith("model.")}


def _merge_folder(model: PreTrainedModel, folder: Path) -> None:
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    if not _stored(folder):
        raise ModelError(f"{folder}: no adapter weights there in safetensors.")
    try:
        with _quiet_peft(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = PeftConfig.from_pretrained(folder)
            if config.task_type == "CAUSAL_LM":
                config.task_type = None  # they fit a reward model's layers as well
            adapted = PeftModel.from_pretrained(model, folder, config=config)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise ModelError(f"{folder}: these adapters do not fit the model: {brief(error)}.") from error
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        raise ModelError(f"{folder}: these adapters do not fit the model: weights are missing.")
    known = get_peft_model_state_dict(adapted)
    stored = {name for file in _stored(folder) for name in load_file(file)}
    if len(stored) > len(known) and (surplus := stored - known.keys()):
        raise ModelError(f"{folder}: the model has no place for {len(surplus)} of these weights: {_some(surplus)}.")
    merged = merged_weights(adapted, adapted.state_dict())
    _check_tied(adapted)
    adapted.unload()
    _fill(model, merged, folder)


def _fill(model: PreTrainedModel, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copies whole weights into a model. Of tied ones, one name is enough."""
    own = model.state_dict(keep_vars=True)
    given = {id(own[name]) for name in weights if name in own}
    missing = {name for name, tensor in own.items() if id(tensor) not in given}
    surplus = weights.keys() - own.keys()
    wrong = {name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape}
    for names, what in ((missing, "lacks"), (surplus, "has what the model lacks:"), (wrong, "has other shapes of")):
        if names:
            raise ModelError(f"{source} {what} {_some(names)}.")
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)


def _targets(model: PreTrainedModel, lora: LoraConfig) -> tuple[str | list[str], list[str]]:
    """Which modules and which bare parameters (experts in one tensor) the names of `lora.targets` mean."""
    if lora.targets == ALL_LINEAR:
        return "all-linear", []
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    layers += [name for name, module in model.named_modules() if type(module).__name__ in ("Conv1D", "Conv1d")]
    tensors = [name for name, weight in model.named_parameters() if weight.ndim == 3]
    fused = _old_names(model)
    modules, parameters = [], []
    for target in lora.targets:
        if target in fused or any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules()):
            modules.append(target)
        elif any(name.endswith(f".{target}") for name in tensors):
            parameters.append(target)
        elif target in ALL_LINEAR:
            raise ModelError("--model.lora.targets all-linear stands alone, without other names.")
        else:
            names = sorted({name.rpartition(".")[2] for name in (*layers, *tensors)} | fused)
            raise ModelError(
                f"--model.lora.targets: no layer is called '{target}'.{suggestion(target, names)} There are: "
                f"{', '.join(names)}."
            )
    return modules, parameters


def _old_names(model: PreTrainedModel) -> set[str]:
    """Names that single layers had before their architecture was written with fused experts; peft understands them."""
    try:
        from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
    except ImportError:
        return set()
    return set(_MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type), ()))


def _check_merge(adapted: Any, before: Mapping[str, torch.Size]) -> None:
    """Merges once without numbers: every adapter must find its place, and the result be the plain model."""
    _check_tied(adapted)
    if getattr(adapted.get_base_model(), "is_quantized", False):
        return  # packed weights have other shapes
    merged = merged_weights(adapted, {name: weight.to("meta") for name, weight in adapted.state_dict().items()})
    if {name: weight.shape for name, weight in merged.items()} != before:
        odd = sorted(merged.keys() ^ before.keys()) or [n for n in before if merged[n].shape != before[n]]
        raise ModelError(f"adapters on this architecture cannot be merged exactly: {_some(set(odd))}.")


def _check_tied(adapted: Any) -> None:
    """Raises ModelError where an adapter changes one of two tied weights: the folder could hold only one of them."""
    shared: dict[int, list[str]] = defaultdict(list)
    for name, weight in adapted.state_dict(keep_vars=True).items():
        if not _is_adapter(name):
            shared[id(weight)].append(name)
    for names in shared.values():
        if len(names) > 1 and any(".base_layer" in name or ".modules_to_save." in name for name in names):
            here, there = (_plain_name(name).removesuffix(".weight") for name in names[:2])
            raise ModelError(
                f"--model.lora.targets: {here} and {there} are one tied weight, and adapters would change only one of "
                "them. Leave it out, or train all weights with --model.lora.rank 0."
            )


def _change(name: str, layer: Any, state: Mapping[str, Tensor]) -> tuple[str, Tensor, set[str]]:
    """What the adapter of one layer adds: (name of the weight, the change, names of the adapter's parts)."""
    plain, scale = _plain_name(name), layer.scaling["default"]
    embedding = f"{name}.lora_embedding_A.default"
    if embedding in state:
        parts = {embedding, f"{name}.lora_embedding_B.default"}
        low, high = (state[part] for part in sorted(parts))
        return f"{plain}.weight", scale * (high @ low).T, parts
    names = {f"{name}.lora_{part}.default.weight" for part in "AB"}
    low, high = (state[part] for part in sorted(names))
    if low.ndim != 2:
        raise ModelError(f"adapters on {plain}, a {type(layer.get_base_layer()).__name__}, are not supported.")
    if not hasattr(layer, "parameter_name"):
        change = high @ low
        turned = change.T if is_transposed(layer.get_base_layer()) else change
        return f"{plain}.weight", scale * turned, names
    target = f"{plain}.{layer.parameter_name}"
    if getattr(layer.get_base_layer(), layer.parameter_name).ndim == 2:
        return target, scale * (high @ low), names
    low = low.reshape(layer.num_experts, -1, low.shape[-1])  # [E, r, in]
    high = high.reshape(high.shape[0], -1, layer.num_experts)  # [out, r, E]
    order = "ore,eri->eoi" if layer._did_swap_in_out_features else "ore,eri->eio"
    return target, scale * torch.einsum(order, high, low), names


def _tell_left_out(adapted: Any, excluded: Collection[str]) -> None:
    """All-linear cannot take everything: says what stays as it is."""
    plain = adapted.get_base_model()
    wrapped = {
        _plain_name(name) + "." + layer.parameter_name
        for name, layer in plain.named_modules()
        if hasattr(layer, "parameter_name")
    }
    experts = {_plain_name(name) for name, weight in plain.named_parameters() if weight.ndim == 3} - wrapped
    experts = {name for name in experts if ".lora_" not in name and "conv" not in name}
    names = {name.rpartition(".")[2] for name in (*experts, *excluded)}
    if names:
        log.info(
            f"--model.lora.targets all-linear leaves out {', '.join(sorted(names))}, where adapters would not work"
        )


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".original_module." in name


def _plain_name(name: str) -> str:
    """A name inside a LoRA model, as the model without adapters has it."""
    name = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
    return name.replace(".base_layer", "")


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without what peft says about its own calls: a property of transformers that it still reads, what it settles by
    itself, patterns that it makes for fused experts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        warnings.filterwarnings(
            "ignore", "Model has `tie_word_embeddings=True`", UserWarning
        )  # refused where it matters
        warnings.filterwarnings("ignore", r"target_parameters=.* but no parameter was matched", RuntimeWarning)
        yield
