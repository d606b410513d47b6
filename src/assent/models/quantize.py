"""Frozen weights in 4 or 8 bits (bitsandbytes, QLoRA: arXiv 2305.14314), and as whole numbers again when a model is
saved."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_bitsandbytes_available

from assent.errors import ModelError


def loading_options(kind: str, *, precision: str, device: torch.device | str, keep: list[str] | None) -> dict[str, Any]:
    """What `from_pretrained` needs to store linear layers in `kind` ("nf4", "int8"; "none": nothing) on `device`.
    Layers named in `keep` stay as they are (None: the output head). Raises ModelError where this cannot work here."""
    if kind == "none":
        return {}
    device = torch.device(device)
    _check_support(kind, device)
    if kind == "int8":
        how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            llm_int8_skip_modules=keep,  # of 4 bits as well
        )
    return {"quantization_config": how, "device_map": {"": device}}


def _check_support(kind: str, device: torch.device) -> None:
    option = f"--model.lora.quantize {kind}"
    if not is_bitsandbytes_available():
        raise ModelError(f"{option} needs the package bitsandbytes (0.50 or later): pip install 'assent[quant]'.")
    supported = sorted(importlib.import_module("bitsandbytes").supported_torch_devices)
    if device.type not in supported:
        raise ModelError(f"{option}: bitsandbytes does not run on {device.type}. It runs on {', '.join(supported)}.")
    if kind == "int8" and dist.is_initialized() and dist.get_world_size() > 1:
        # bitsandbytes keeps what it needs on the weight itself, which FSDP replaces; 4-bit layers keep it on the layer
        raise ModelError(
            f"{option} works in one process: these weights cannot be sharded. Got {dist.get_world_size()} ranks. Start "
            "without torchrun, or use --model.lora.quantize nf4."
        )


def quantised_layers(model: nn.Module) -> dict[str, Any]:
    """The layers whose weights are packed, by name."""
    if not getattr(model, "is_quantized", False):
        return {}
    kinds = importlib.import_module("bitsandbytes").nn
    packed = (kinds.Linear4bit, kinds.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, packed)}


def settle(model: nn.Module) -> None:
    """Makes packed layers fit to be trained around, sharded and checkpointed."""
    for layer in quantised_layers(model).values():
        # Else an evaluation on a CPU with AVX512-bf16 repacks 4-bit weights to a layout without a backward pass.
        layer.support_avx512bf16_for_cpu = False
        layer.register_state_dict_post_hook(_drop_statistics)


def _drop_statistics(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leaves the parameters of a packed layer. Its scales follow from the model folder, and sharded layers show none:
    so a checkpoint has the same names for any number of ranks."""
    own = {prefix + name for name, _ in layer.named_parameters()}
    for name in [name for name in state if name.startswith(prefix) and name not in own]:
        del state[name]


def dequantised(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state`, the whole state dict of `model`, with fp32 weights for the packed ones."""
    whole = dict(state)
    for name, layer in quantised_layers(model).items():
        packed, functional = state[f"{name}.weight"], importlib.import_module("bitsandbytes").functional
        if hasattr(layer, "quant_state"):
            scales = layer.quant_state
            weight = functional.dequantize_4bit(packed.to(scales.code.device), scales).float()
        else:
            scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
            weight = functional.int8_vectorwise_dequant(packed.to(scales.device), scales).float()
        whole[f"{name}.weight"] = (weight.T if is_transposed(layer) else weight).to(packed.device).contiguous()
        if layer.bias is not None:  # cast to the dtype of the products
            whole[f"{name}.bias"] = state[f"{name}.bias"].float()
    return whole


def is_transposed(layer: nn.Module) -> bool:
    """Whether a model folder keeps the weight of this layer as [in, out]. Packed, it is always [out, in]."""
    return issubclass(getattr(layer, "source_cls", type(layer)), Conv1D)


def without_quantisation(model: PreTrainedModel) -> PreTrainedModel:
    """A shallow copy of `model` that writes whole weights, and a configuration that says so."""
    if not getattr(model, "is_quantized", False):
        return model
    shell = copy.copy(model)
    del shell.hf_quantizer
    shell.config = copy.deepcopy(model.config)
    del shell.config.quantization_config
    return shell
