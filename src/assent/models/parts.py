"""Where the parts of a Hugging Face model are: the decoder that reads tokens, and its layers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """What makes final hidden states of tokens: the language model without its head, and without what else a composite
    model has (vision and audio towers). `model` is the Hugging Face model itself, not a LoRA model around it."""
    decoder: nn.Module = model.get_decoder()
    if decoder is not model and isinstance(decoder, PreTrainedModel):  # a `decoder` may also be an output layer
        return decoder
    if model.base_model is not model:
        return model.base_model
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inner[0] if len(inner) == 1 else model


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of the decoder."""
    lists = [m for m in decoder_of(model).modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    return list(lists[0]) if lists else []


def plain_of(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model itself, of a LoRA model too: adapters are inside its layers."""
    found: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore
    return found
