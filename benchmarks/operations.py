"""What counts as work in the MFU columns."""

from __future__ import annotations

from transformers import PreTrainedModel


def multiplied_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights in the matrix products of the decoder layers and of the language-model head; the input embedding is only
    looked up, a reward head is too small to count."""
    layers = list(model.base_model.layers)  # type: ignore[union-attr]
    body = sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.ndim == 2)
    head = model.get_output_embeddings()
    return body, 0 if head is None else head.weight.numel()  # type: ignore[operator]
