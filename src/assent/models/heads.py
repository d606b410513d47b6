"""Reward models and critics: any causal language model's decoder with a linear head on the final hidden state, one
output, read at chosen tokens."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_outputs import SequenceClassifierOutput

from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.tree import collate
from assent.errors import ModelError
from assent.foreign import named
from assent.models.adapters import adapt
from assent.models.loading import few_bits, load_folder, open_model, prepare, stored_config
from assent.models.policy import ScoreModel
from assent.models.readback import sample_batch
from assent.models.recipe import (
    Usage,
    differing_scores,
    differing_tokens,
    others_scores,
    probes,
    reward_tokenizer,
)
from assent.models.saving import save_model
from assent.models.sources import Source, resolve

log = logging.getLogger(__name__)

OWN = "score"
"""The head of our own, as transformers calls it in most of its classes."""
SECTION = "assent_head"
"""What config.json says of the head: its `weight`, the `class` that reads it ("transformers" or "assent"), and where it
is read and was trained."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A model with its head. `own`: transformers has no class for it that reads the last token as we do; `fresh`: the
    head is new."""

    model: PreTrainedModel
    head: str
    own: bool
    fresh: bool


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
    """A reward model or critic from the folder of one or, with a fresh head drawn from `seed`, from any causal model.
    With `new_head=False` a folder without a trained head is refused. Where transformers has a sequence-classification
    class whose logit is its linear head at the last token (which is measured), it is of that class, else one of ours.
    Adapters and bits are as in `load_policy`; the head is always trained whole, and computed in fp32."""
    bits = few_bits(config, device, trainable, keep=[OWN, "classifier"])
    found = load_folder("reward model", config.path, lambda: open_scorer(config, seed, bits))
    model = found.model
    if found.fresh and not new_head:
        raise ModelError(
            f"{config.path} has no trained reward head ({found.head}.weight). Train one with: assent reward "
            f"--model.path {config.path} --data.train PAIRS --out FOLDER"
        )
    if found.fresh:
        reader = (
            "a class of assent's own (transformers has none that reads it so)" if found.own else type(model).__name__
        )
        log.info(f"{config.path}: its head of one output ({found.head}.weight) is new and untrained, in {reader}")
    for one in (model.config, model.config.get_text_config()):
        one.pad_token_id = tokenizer.pad_token_id
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None  # there is no padding here; where the pad token is EOS it would not be trained
    scorer = prepare(partial(ScoreModel, head=found.head), model, config, max_length, device, trainable)
    if trainable and config.lora.rank > 0:
        vocab = scorer.plain.config.get_text_config().vocab_size
        batch = sample_batch(vocab, flat=not scorer.tree).to(scorer.device)
        adapt(scorer, config.lora, "SEQ_CLS", lambda: scorer(batch, batch.last))
    return scorer


def open_scorer(config: ModelConfig, seed: int, bits: dict[str, Any]) -> Found:
    """The model in transformers' own class where that reads what we read, else in ours; a new head is drawn from
    `seed`."""
    hf_config = stored_config(config, num_labels=1)
    section = getattr(hf_config, SECTION, None) or {}
    if section.get("class") != "assent" and _has_class(hf_config, config.trust_remote_code):
        model, missing = _seeded(AutoModelForSequenceClassification, config, hf_config, seed, bits)
        head = last_token_head(model)
        if head is not None:
            return _found(model, head, False, _lacks_only(head, config.path, missing))
        hf_config = stored_config(config, num_labels=1)
    causal, hf_config = _causal_class(resolve(config.path, config.revision), config, hf_config)
    model, missing = _seeded(own_class(causal), config, hf_config, seed, bits)
    return _found(model, OWN, True, _lacks_only(OWN, config.path, missing))


def _found(model: PreTrainedModel, head: str, own: bool, fresh: bool) -> Found:
    """With what config.json is to say of the head."""
    before = getattr(model.config, SECTION, None) or {}
    model.config.assent_head = {
        "weight": f"{head}.weight",
        "class": "assent" if own else "transformers",
        "read_at": "the end token of the answer",
        **{name: before[name] for name in ("trained_at",) if name in before},
    }
    return Found(model, head, own, fresh)


def _seeded(
    kind: Any, config: ModelConfig, hf_config: PreTrainedConfig, seed: int, bits: dict[str, Any]
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the weights that the folder lacks, which are drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_model(kind, config, task="SEQ_CLS", config=hf_config, **bits)


def _lacks_only(head: str, folder: str, missing: set[str]) -> bool:
    """Whether the head is new. Raises ModelError where the folder lacks other weights."""
    if others := sorted(missing - {f"{head}.weight", f"{head}.bias"}):
        raise ModelError(f"{folder} lacks {', '.join(others[:3])}.")
    return f"{head}.weight" in missing


def _has_class(config: PreTrainedConfig, trust_remote_code: bool) -> bool:
    """Whether transformers, or trusted code in the folder, has a sequence-classification class for it."""
    remote = getattr(config, "auto_map", None) or {}
    if trust_remote_code and "AutoModelForSequenceClassification" in remote:
        return True
    return type(config) in AutoModelForSequenceClassification._model_mapping


def _causal_class(place: Source, config: ModelConfig, hf_config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig]:
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
        section = getattr(hf_config, SECTION, None)
        hf_config = hf_config.get_text_config()
        hf_config.num_labels = 1
        if section is not None:
            hf_config.assent_head = section
    return kind, hf_config


@cache
def own_class(causal: Any) -> type[PreTrainedModel]:
    """The causal model's class with a linear head on its hidden states instead of its output head: the weights have the
    names that transformers' sequence-classification classes give them (the decoder's own, and `score.weight`)."""

    def __init__(self: Any, config: PreTrainedConfig, *args: Any, **options: Any) -> None:
        causal.__init__(self, config, *args, **options)
        body = body_of(self)
        self._body_name = next(name for name, module in self.named_modules() if module is body)
        _keep_only(self, self._body_name)
        setattr(self, OWN, nn.Linear(config.get_text_config().hidden_size, 1, bias=False))

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
    """The name of the linear layer that gives the model's logit from the final hidden state of the last token, or None
    where the class reads another token or transforms the state. Measured on one row, with random weights in the head
    (a head of zeros would hide any difference)."""
    inside = {id(module) for module in model.base_model.modules()}
    heads = [
        (name, module)
        for name, module in model.named_children()
        if isinstance(module, nn.Linear) and module.out_features == 1 and id(module) not in inside
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


# ---- folders


def save_reward_model(
    scorer: ScoreModel, chat: Chat, folder: Path, state: Mapping[str, Tensor] | None = None, *, dtype: str = "auto"
) -> dict[str, Tensor]:
    """`save_model`, such that the usual recipe (the folder's chat template, its tokenizer, the model's logit) gives the
    reward that assent reads: the chat template ends at the end of the answer, and what pads ends no answer."""
    return save_model(scorer, outward(scorer.plain, chat), folder, state, dtype=dtype)


def outward(model: PreTrainedModel, chat: Chat) -> PreTrainedTokenizerBase:
    """The tokenizer to write beside a reward model, whose configuration is made to agree with it."""
    tokenizer = reward_tokenizer(chat, model.get_input_embeddings().num_embeddings)
    config = model.config
    for one in (config, config.get_text_config()):
        one.pad_token_id = tokenizer.pad_token_id
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"  # so that servers and pipelines give the logit itself
    return tokenizer


def usage_of(model: PreTrainedModel, chat: Chat, folder: Path, source: ModelConfig | None = None) -> Usage:
    """How a written folder is read elsewhere; with `source` it is loaded and compared."""
    section = getattr(model.config, SECTION)
    usage = Usage(section["class"] == "assent", section["weight"], model.config.pad_token_id is not None)
    notes = [] if usage.pads else [NO_PAD]
    if source is not None:
        notes += _compared(folder, chat, usage, source)
    return dataclasses.replace(usage, notes=tuple(notes))


NO_PAD = "the tokenizer has no token to pad with that ends no answer: score one answer at a time, or with assent"


def _compared(folder: Path, chat: Chat, usage: Usage, source: ModelConfig) -> list[str]:
    """What transformers alone reads differently of a written folder."""
    if not _fits(folder):
        return ["it was not loaded again to compare its rewards: memory is too small for another copy"]
    try:
        text = AutoConfig.from_pretrained(folder).get_text_config()
        limit = getattr(text, "max_position_embeddings", None) or 1 << 20
        examples = probes(chat, limit)
        if not examples:
            return ["its rewards were not compared: the chat template writes none of the conversations to compare"]
        notes = [
            f"its chat template gives other tokens than assent reads ({name})"
            for name in differing_tokens(folder, chat, examples, limit)
        ]
        rows = list(examples.values())
        trust = source.trust_remote_code
        theirs = others_scores(folder, usage, rows, trust_remote_code=trust)
        own = ModelConfig(str(folder), precision="fp32", layout="flat", trust_remote_code=trust)
        scorer = load_score_model(own, chat.tokenizer, max_length=limit, trainable=False, new_head=False)
        batch = collate([chat.tree(example, limit) for example in rows], flat=True)
        with torch.no_grad():
            ours = scorer(batch, batch.last)
    except Exception as error:  # the run is done and its folder written: tell, and go on
        return [f"transformers alone could not read it ({named(error)})"]
    gaps = differing_scores(theirs, ours)
    where = {"none": "one answer at a time", "right": "padded on the right", "left": "padded on the left"}
    return notes + [
        f"transformers alone gives rewards up to {gap:.2g} from assent's, {where[side]}" for side, gap in gaps.items()
    ]


def _fits(folder: Path) -> bool:
    """Whether memory holds the folder's weights once more in fp32, where the system tells."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return True
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors")) < free
