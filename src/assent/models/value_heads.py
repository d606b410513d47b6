"""Value heads beside causal language models, on the final hidden state, as others save them:

    v_head.summary[.i].weight, .bias   TRL, LLaMA-Factory, ms-swift, and GRM (arXiv 2406.10216), whose head is an MLP
                                       with ReLUs
    value_head.weight                  OpenRLHF, or as config.json calls it (`value_head_prefix`)

They stand among the model's weights (TRL, GRM, OpenRLHF) or in a file of their own (LLaMA-Factory, beside a whole model
or adapters; TRL, beside adapters).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from assent.errors import ModelError
from assent.foreign import brief
from assent.models.sources import Source
from assent.models.stored import CONFIG, fetched, read_object, stored_weights, weight_files

FILES = ("value_head.safetensors", "value_head.bin")
BESIDE_ADAPTERS = "pytorch_model.bin"
"""Where TRL writes a value head whose model has adapters: beside them, among no other weights."""
NAMES = ("v_head", "value_head")
"""What heads are called among a model's weights."""

_PART = re.compile(r"summary\.(?:(\d+)\.)?(weight|bias)")
_PLAIN = re.compile(r"()(weight|bias)")


@dataclass(frozen=True, slots=True)
class ValueHead:
    """The layers of a value head, each (weight [out, in], bias [out]) in fp32, with a ReLU between any two. `names` are
    what they are called among the model's weights, where they stand there."""

    file: Path
    layers: tuple[tuple[Tensor, Tensor], ...]
    names: frozenset[str] = frozenset()

    @property
    def outputs(self) -> int:
        return len(self.layers[-1][1])

    @property
    def hidden(self) -> list[int]:
        """The widths between its layers; empty for a linear head."""
        return [len(bias) for _, bias in self.layers[:-1]]

    @property
    def offset(self) -> tuple[float, ...]:
        """What a linear head adds to its product; an MLP's is inside it."""
        bias = self.layers[0][1]
        return tuple(bias.tolist()) if not self.hidden and bool(bias.any()) else ()


def value_head(source: Source) -> ValueHead | None:
    """The value head of a folder, or of the adapters on top of it. Raises ModelError where it cannot be read."""
    base = fetched(source.base, source.revision, FILES)
    for folder in (layer for layer in reversed(source.layers) if isinstance(layer, Path)):
        for name in (*FILES, BESIDE_ADAPTERS):
            if (folder / name).is_file():
                stored = _loaded(folder / name)
                if name in FILES or any(weight.startswith("v_head.") for weight in stored):
                    return _made(folder / name, stored)
    for name in FILES:
        if (base / name).is_file():
            return _made(base / name, _loaded(base / name))
    own = read_object(base / CONFIG).get("value_head_prefix")
    heads = tuple(f"{name}." for name in (*NAMES, own) if isinstance(name, str) and name)
    found: dict[str, Tensor] = {}
    for file in weight_files(base) if any(name.startswith(heads) for name in stored_weights(base)) else ():
        with safe_open(file, "pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(heads)}
    return replace(_made(base, found), names=frozenset(found)) if found else None


def fill(head: nn.Module, value: ValueHead) -> None:
    """Copies its weights into a head of the same shape, linear without bias or an MLP. Raises ModelError."""
    layers = [head] if isinstance(head, nn.Linear) else [part for part in head.modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, value.layers, strict=True):
            if layer.weight.shape != weight.shape:
                raise ModelError(
                    f"{value.file}: its value head is for another model: {list(weight.shape)}, where this one has "
                    f"{list(layer.weight.shape)}."
                )
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(bias)


def _part(name: str) -> re.Match[str] | None:
    """Which layer a weight belongs to. Whoever calls it a `v_head` without a summary reads it elsewhere."""
    head, _, part = name.partition(".")
    if head == "summary":
        return _PART.fullmatch(name)
    return _PART.fullmatch(part) or (None if head == "v_head" else _PLAIN.fullmatch(part))


def _loaded(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ModelError(f"{file}: not a readable value head: {brief(error)}") from error
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ModelError(f"{file}: expected named tensors.")
    return found


def _made(file: Path, tensors: Mapping[str, Tensor]) -> ValueHead:
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := _part(name)) is None:
            raise ModelError(
                f"{file}: a value head of another kind, with {name}; known are v_head.summary (TRL and its relatives) "
                "and value_head (OpenRLHF, which says another name in config.json as value_head_prefix)."
            )
        parts.setdefault(int(match[1] or 0), {})[match[2]] = tensor.float()
    layers: list[tuple[Tensor, Tensor]] = []
    for index in sorted(parts):
        weight, bias = parts[index].get("weight"), parts[index].get("bias")
        if weight is None or weight.ndim != 2:
            raise ModelError(f"{file}: its value head lacks the weight of a layer, or it is no matrix.")
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if bias.shape != (len(weight),) or (layers and weight.shape[1] != len(layers[-1][1])):
            raise ModelError(f"{file}: the layers of its value head do not fit together.")
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ModelError(f"{file}: its value head holds numbers that are not finite.")
        layers.append((weight, bias))
    return ValueHead(file, tuple(layers))
