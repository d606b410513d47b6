"""The classes that read reward heads: one of our own for any decoder, and whether transformers' reads as we do."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_outputs import SequenceClassifierOutput

from assent.config import ModelConfig
from assent.errors import ModelError
from assent.models.sources import Source

OWN = "score"
"""The head of our own, as transformers calls it in most of its classes."""


@cache
def own_class(causal: Any) -> type[PreTrainedModel]:
    """The causal model's class with a linear head on its hidden states instead of its output head: the weights have the
    names that transformers' sequence-classification classes give them (the decoder's own, and `score.weight`)."""

    def __init__(self: Any, config: PreTrainedConfig, *args: Any, **options: Any) -> None:
        causal.__init__(self, config, *args, **options)
        body = body_of(self)
        self._body_name = next(name for name, module in self.named_modules() if module is body)
        _keep_only(self, self._body_name)
        setattr(self, OWN, new_head(config))

    def beheaded(self: Any) -> bool:
        return "_body_name" in self.__dict__  # not yet while the causal model is built

    def base_model(self: Any) -> nn.Module:
        return self.get_submodule(self._body_name) if beheaded(self) else getattr(self, self.base_model_prefix, self)

    def get_output_embeddings(self: Any) -> nn.Module | None:
        return None if beheaded(self) else causal.get_output_embeddings(self)

    def forward(
        self: Any, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in given.items() if value is not None}
        states = self.base_model(input_ids=input_ids, use_cache=False, **given).last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return SequenceClassifierOutput(logits=self.score(states[torch.arange(len(last), device=last.device), last]))

    def _init_weights(self: Any, module: nn.Module) -> None:
        if module is not self or not beheaded(self):  # some write into their output head here
            causal._init_weights(self, module)

    stem = causal.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    members = {
        "__init__": __init__,
        "__module__": causal.__module__,
        "base_model": property(base_model),
        "get_output_embeddings": get_output_embeddings,
        "forward": forward,
        "_init_weights": _init_weights,
        "_tied_weights_keys": None,
    }
    return type(f"{stem}ForSequenceClassification", (causal,), members)


def has_class(config: PreTrainedConfig, trust_remote_code: bool) -> bool:
    """Whether transformers, or trusted code in the folder, has a sequence-classification class for it."""
    remote = getattr(config, "auto_map", None) or {}
    if trust_remote_code and "AutoModelForSequenceClassification" in remote:
        return True
    return type(config) in AutoModelForSequenceClassification._model_mapping


def causal_class(place: Source, config: ModelConfig, hf_config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig]:
    """The class that `AutoModelForCausalLM` would make of the folder, and its configuration."""
    remote = getattr(hf_config, "auto_map", None) or {}
    if config.trust_remote_code and "AutoModelForCausalLM" in remote:
        return get_class_from_dynamic_module(
            remote["AutoModelForCausalLM"], place.base, revision=place.revision
        ), hf_config
    kind = AutoModelForCausalLM._model_mapping.get(type(hf_config), None)
    if kind is None:
        raise ModelError(f"{config.path}: transformers has no causal language model of type {hf_config.model_type}.")
    kind = kind[0] if isinstance(kind, tuple) else kind
    text = hf_config.sub_configs.get("text_config")
    if text is not None and getattr(kind, "config_class", None) == text:
        section = getattr(hf_config, "assent_head", None)
        outputs = hf_config.num_labels
        hf_config = hf_config.get_text_config()
        hf_config.num_labels = outputs
        if section is not None:
            hf_config.assent_head = section
    return kind, hf_config


def new_head(config: PreTrainedConfig) -> nn.Module:
    """A linear head without bias or, where the configuration names widths between `layers`, an MLP with ReLUs."""
    between = (getattr(config, "assent_head", None) or {}).get("layers", [])
    widths = [config.get_text_config().hidden_size, *between, config.num_labels]
    if not between:
        return nn.Linear(widths[0], widths[1], bias=False)
    parts: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        parts += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def body_of(model: PreTrainedModel) -> nn.Module:
    """The decoder whose output is the final hidden states: what holds the input embeddings and has no output head."""
    embedding, body = model.get_input_embeddings(), model
    while body.get_output_embeddings() is not None or body is model:
        body = next(
            child
            for child in body.children()
            if isinstance(child, PreTrainedModel) and any(module is embedding for module in child.modules())
        )
    return body


def _keep_only(model: nn.Module, path: str) -> None:
    """Removes what stands beside the module at `path`, at each level above it."""
    name, _, rest = path.partition(".")
    for other in [other for other, _ in model.named_children() if other != name]:
        delattr(model, other)
    if rest:
        _keep_only(model.get_submodule(name), rest)


@torch.no_grad()
def last_token_head(model: PreTrainedModel) -> str | None:
    """The name of the linear layer that gives the model's logits from the final hidden state of the last token, or None
    where the class reads another token or transforms the state. Measured on one row, with random weights in the head
    (a head of zeros would hide any difference)."""
    inside = {id(module) for module in model.base_model.modules()}
    heads = [
        (name, module)
        for name, module in model.named_children()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels and id(module) not in inside
    ]
    if len(heads) != 1 or model.base_model is model:
        return None
    name, head = heads[0]
    text, training, trained = model.config.get_text_config(), model.training, head.weight.detach().clone()
    ids = torch.tensor([[i for i in range(min(12, text.vocab_size)) if i != text.pad_token_id]], device=model.device)
    model.eval()
    head.weight.copy_(torch.randn(trained.shape, generator=torch.Generator().manual_seed(0)))
    try:
        got = model(input_ids=ids).logits.float()
        want = head(model.base_model(input_ids=ids).last_hidden_state[:, -1]).float()
        exact = got.shape == want.shape and bool((got - want).abs().max() <= 1e-3 * want.abs().max())
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # it wants other inputs than ids
        exact = False
    finally:
        head.weight.copy_(trained)
        model.train(training)
    return name if exact else None


def resize_head(model: PreTrainedModel, head: str, outputs: int) -> None:
    """Puts a linear head of so many outputs, whose weights are still to be given, in place of the one there."""
    before = getattr(model, head)
    made = nn.Linear(before.in_features, outputs, bias=before.bias is not None, device=before.weight.device)
    setattr(model, head, made.to(before.weight.dtype))
    model.config.num_labels = outputs
    if hasattr(model, "num_labels"):
        model.num_labels = outputs
