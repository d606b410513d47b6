"""Gated reward models of others, read without the code that comes with them: ArmoRM (arXiv 2406.12845) and QRM
(arXiv 2409.10164).

    regression_layer.weight   [K, h], or with Q quantiles of each attribute [K Q, h]: the reward is their mean
    gating.layers.i           linear layers with ReLU, in QRM also BatchNorm behind each ReLU
    gating.logit_scale        [1]
    reward_transform_matrix   [K, K]

What is linear is folded: the mean over quantiles into the head, BatchNorm into the layer behind it. So both are a head
of K outputs and a `Gate`, equal to the originals but for rounding.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assent.errors import ModelError
from assent.models.gate import Gate, GateRule, filled, made
from assent.models.sources import Source
from assent.models.stored import CONFIG, fetched, folder_of, read_object, stored_weights, weight_files
from assent.models.stored_heads import stored_heads

HEAD, MATRIX, SCALE = "regression_layer.weight", "reward_transform_matrix", "gating.logit_scale"
TURNS: Mapping[str, str] = {
    "llama": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma2": "<end_of_turn>\n<start_of_turn>model\n",
}
"""By type of model, the text before the last answer, where these models read the prompt."""
_LAYER = re.compile(r"gating\.layers\.(\d+)\.(weight|bias|running_mean|running_var|num_batches_tracked)")
EPS = 1e-5
"""What BatchNorm adds to a variance."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Such a folder: the linear head [K, h] fp32, the names of its outputs, and its gate, which reads the prompt where
    the `text` before the last answer begins."""

    head: Tensor
    names: tuple[str, ...]
    gate: Gate
    rule: GateRule
    text: str
    where: str

    def turn(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The ids of `text`. Raises ModelError where the tokenizer lacks one of its control tokens."""
        for token in re.findall(r"<[^>]+>", self.text):
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise ModelError(
                    f"{self.where}: its gate reads the prompt where an answer's turn begins ({self.text!r}), and its "
                    f"tokenizer has no {token}."
                )
        return tuple(tokenizer(self.text, add_special_tokens=False)["input_ids"])


def parts_in(names: Collection[str]) -> set[str]:
    """Those weights that belong to such a head and gate; none where the head is not among them."""
    return {name for name in names if _is_part(name)} if {HEAD, SCALE} <= set(names) else set()


def find_mixture(place: Source) -> Mixture | None:
    """Head and gate of such a folder or hub id; None for all others. Raises ModelError, with what is missing or odd."""
    folder = folder_of(place.base, place.revision)
    config = read_object(folder / CONFIG)
    if not Path(place.base).is_dir():
        if "Gating" not in str(config.get("architectures")):
            return None
        fetched(place.base, place.revision)
    names = stored_weights(folder).keys()
    return _read(folder, config, _tensors(folder)) if {HEAD, SCALE} <= names else None


def output_names(place: Source) -> tuple[str, ...]:
    """What the outputs of a reward model are called, of assent's making or another's; none where there is no head.
    Raises ModelError as `find_mixture` and `stored_heads`."""
    if (mixture := find_mixture(place)) is not None:
        return mixture.names
    rule = stored_heads(place).rule
    return () if rule is None else rule.names


def _read(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Mixture:
    kind = str(config.get("model_type"))
    if kind not in TURNS:
        raise ModelError(
            f"{folder}: where a gated model of type {kind} reads the prompt is not known (of {' and '.join(TURNS)} it "
            "is)."
        )
    layers = _layers(folder, stored)
    size = len(layers[-1][1])
    rows, width = stored[HEAD].shape
    if rows % size or layers[0][0].shape[1] != width:
        raise ModelError(
            f"{folder}: {HEAD} has {rows} x {width} numbers, which do not fit a gate over {size} outputs that reads "
            f"states of {layers[0][0].shape[1]}."
        )
    matrix = stored.get(MATRIX, torch.eye(size)).float()
    if matrix.shape != (size, size):
        raise ModelError(f"{folder}: {MATRIX} has {list(matrix.shape)} numbers, expected [{size}, {size}].")
    rule = GateRule(
        hidden=tuple(len(bias) for _, bias in layers[:-1]),
        temperature=float(config.get("gating_temperature", 10)),
        transform=tuple(map(tuple, matrix.tolist())),
    )
    weights = {"logit_scale": stored[SCALE].reshape(1)}
    for index, (weight, bias) in enumerate(layers):
        weights |= {f"layers.{index}.weight": weight.float(), f"layers.{index}.bias": bias.float()}
    gate = filled(made(rule, width), weights, folder)
    head = stored[HEAD].double().view(size, rows // size, width).mean(1).float()
    return Mixture(head, _names(config, size), gate, rule, TURNS[kind], str(folder))


def _is_part(name: str) -> bool:
    return name in (HEAD, MATRIX, SCALE) or _LAYER.fullmatch(name) is not None


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The head, the gate and the matrix."""
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys() if _is_part(name)}
    return found


def _layers(folder: Path, stored: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the linear layers, float64, with BatchNorm folded into the layer behind it."""
    parts: dict[int, dict[str, Tensor]] = {}
    for name, x in stored.items():
        if (match := _LAYER.fullmatch(name)) is not None:
            parts.setdefault(int(match[1]), {})[match[2]] = x.double()
    found: list[tuple[Tensor, Tensor]] = []
    stretch = shift = None
    for index in sorted(parts):
        part = parts[index]
        if "running_mean" in part:
            stretch = part["weight"] / (part["running_var"] + EPS).sqrt()
            shift = part["bias"] - part["running_mean"] * stretch
            continue
        weight = part.get("weight", torch.zeros(0))
        if weight.ndim != 2 or (found and weight.shape[1] != len(found[-1][1])):
            raise ModelError(f"{folder}: gating.layers.{index} is no layer that follows the one before it.")
        bias = part.get("bias", torch.zeros(len(weight), dtype=torch.float64))
        if stretch is not None and shift is not None:
            weight, bias = weight * stretch, bias + weight @ shift
            stretch = shift = None
        found.append((weight, bias))
    if not found or stretch is not None:
        raise ModelError(f"{folder}: its gate (gating.layers) does not end in a linear layer.")
    return found


def _names(config: Mapping[str, Any], size: int) -> tuple[str, ...]:
    """The names of the outputs where the configuration has them."""
    labels = config.get("id2label") or {}
    names = tuple(str(labels.get(str(k), f"LABEL_{k}")) for k in range(size))
    plain = [name for k, name in enumerate(names) if name == f"LABEL_{k}"]
    return tuple(f"objective_{k}" for k in range(size)) if plain or len(set(names)) < size else names
