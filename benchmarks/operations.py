"""What counts as work in the MFU columns."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

BEFORE = ("q_proj", "k_proj", "v_proj", "lora_")


class Weights(NamedTuple):
    """Numbers of weights that are multiplied: of the decoder layers, of the language-model head, and of LoRA adapters
    in the layers; and of the body's those behind the last layer's queries, keys and values, which a reward model
    multiplies only for the tokens that are read."""

    body: int
    head: int
    adapters: int
    tail: int = 0


def multiplied_weights(model: PreTrainedModel) -> Weights:
    """The input embedding is only looked up, a reward head is too small to count."""
    layers = list(model.base_model.layers)  # type: ignore[union-attr]
    matrices = [(name, weight) for layer in layers for name, weight in layer.named_parameters() if weight.ndim == 2]
    adapters = sum(weight.numel() for name, weight in matrices if "lora_" in name)
    body = sum(weight.numel() for _, weight in matrices) - adapters
    last = [(name, weight) for name, weight in layers[-1].named_parameters() if weight.ndim == 2]
    tail = sum(weight.numel() for name, weight in last if not any(part in name for part in BEFORE))
    head = model.get_output_embeddings()
    return Weights(body, 0 if head is None else head.weight.numel(), adapters, tail)  # type: ignore[operator]
