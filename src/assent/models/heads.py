"""Reward models and critics: any causal language model's decoder with a linear head of K outputs on the final hidden
state, read at chosen tokens."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
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

from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.tree import collate
from assent.errors import ModelError
from assent.foreign import named
from assent.models.adapters import adapt
from assent.models.head_classes import OWN, last_token_head, own_class, resize_head
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
from assent.models.reward_head import HeadRule, rule_of, shown
from assent.models.saving import save_model
from assent.models.sources import Source, ask_hub, resolve
from assent.models.stored_heads import SECTION, asked_of, chosen_output, stored_heads, write_rule

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A model with its head. `own`: transformers has no class for it that reads the last token as we do; `fresh`: the
    head is new."""

    model: PreTrainedModel
    head: str
    own: bool
    fresh: bool
    rule: HeadRule


def load_score_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    device: torch.device | str = "cpu",
    trainable: bool = True,
    seed: int = 0,
    new_head: bool = True,
    outputs: HeadRule | None = None,
    only: str | None = None,
    begin: Callable[[ScoreModel], None] | None = None,
) -> ScoreModel:
    """A reward model or critic from the folder of one or, with a fresh head drawn from `seed`, from any causal model.
    With `new_head=False` a folder without a trained head is refused. Where transformers has a sequence-classification
    class whose logits are its linear head at the last token (which is measured), it is of that class, else one of ours.
    Adapters and bits are as in `load_policy`; the head is always trained whole, and computed in fp32.

    `outputs` are what a new head gives, and what a trained one must give; without them a head has the outputs of its
    folder, a new one a single one. `only` keeps one output of several, whose value becomes the reward; `begin` is
    called with a model whose head is new. Raises ModelError where the folder's outputs are others."""
    bits = few_bits(config, device, trainable, keep=[OWN, "classifier"])
    found = load_folder("reward model", config.path, lambda: open_scorer(config, seed, bits, outputs))
    if only is not None:
        found = _single(found, only, config.path)
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
        many = "one output" if len(found.rule) == 1 else f"{len(found.rule)} outputs ({shown(found.rule.names)})"
        log.info(f"{config.path}: its head of {many} ({found.head}.weight) is new and untrained, in {reader}")
    for one in (model.config, model.config.get_text_config()):
        one.pad_token_id = tokenizer.pad_token_id
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None  # there is no padding here; where the pad token is EOS it would not be trained
    kind = partial(ScoreModel, head=found.head, rule=found.rule)
    scorer = prepare(kind, model, config, max_length, device, trainable)
    if found.fresh and begin is not None:
        begin(scorer)
    if trainable and config.lora.rank > 0:
        vocab = scorer.plain.config.get_text_config().vocab_size
        batch = sample_batch(vocab, flat=not scorer.tree).to(scorer.device)
        adapt(scorer, config.lora, "SEQ_CLS", lambda: scorer(batch, batch.last))
    return scorer


def open_scorer(config: ModelConfig, seed: int, bits: dict[str, Any], outputs: HeadRule | None = None) -> Found:
    """The model in transformers' own class where that reads what we read, else in ours; a new head, of `outputs`, is
    drawn from `seed`."""
    place = resolve(config.path, config.revision)
    ask_hub(place)
    stored = stored_heads(place)
    rule = asked_of(stored, outputs, config.path)
    hf_config = stored_config(config, num_labels=stored.below or len(rule))
    section = getattr(hf_config, SECTION, None) or {}
    opened = partial(_seeded, config=config, seed=seed, bits=bits, outputs=len(rule))
    if section.get("class") != "assent" and _has_class(hf_config, config.trust_remote_code):
        model, missing = opened(AutoModelForSequenceClassification, hf_config=hf_config)
        head = last_token_head(model)
        if head is not None:
            return _found(model, head, False, _lacks_only(head, config.path, missing), rule)
        hf_config = stored_config(config, num_labels=stored.below or len(rule))
    causal, hf_config = _causal_class(place, config, hf_config)
    model, missing = opened(own_class(causal), hf_config=hf_config)
    return _found(model, OWN, True, _lacks_only(OWN, config.path, missing), rule)


def _found(model: PreTrainedModel, head: str, own: bool, fresh: bool, rule: HeadRule) -> Found:
    """With what config.json is to say of the head."""
    before = getattr(model.config, SECTION, None) or {}
    model.config.assent_head = {
        "weight": f"{head}.weight",
        "class": "assent" if own else "transformers",
        "read_at": "the end token of the answer",
        **{name: before[name] for name in ("trained_at",) if name in before},
        **rule.section(),
    }
    return Found(model, head, own, fresh, rule)


def _single(found: Found, output: str, path: str) -> Found:
    """The same model with only this output of its head, which is the reward."""
    index = chosen_output(found.rule, output, path)
    row = getattr(found.model, found.head).weight.detach()[index : index + 1].clone()
    resize_head(found.model, found.head, 1)
    with torch.no_grad():
        getattr(found.model, found.head).weight.copy_(row)
    scale, offset = (part[index : index + 1] for part in (found.rule.scale, found.rule.offset))
    return _found(found.model, found.head, found.own, found.fresh, HeadRule((output,), (1.0,), scale, offset))


def _seeded(
    kind: Any, *, config: ModelConfig, hf_config: PreTrainedConfig, seed: int, bits: dict[str, Any], outputs: int
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the weights that the folder lacks, which are drawn from `seed`. Where adapters or a
    checkpoint bring a head of another number of `outputs`, there is place for it."""

    def make_room(model: PreTrainedModel) -> None:
        for head in (name for name in (OWN, "classifier") if isinstance(getattr(model, name, None), nn.Linear)):
            if getattr(model, head).out_features != outputs:
                resize_head(model, head, outputs)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_model(kind, config, task="SEQ_CLS", config=hf_config, before_layers=make_room, **bits)


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
        outputs = hf_config.num_labels
        hf_config = hf_config.get_text_config()
        hf_config.num_labels = outputs
        if section is not None:
            hf_config.assent_head = section
    return kind, hf_config


# ---- folders


def save_reward_model(
    scorer: ScoreModel, chat: Chat, folder: Path, state: Mapping[str, Tensor] | None = None, *, dtype: str = "auto"
) -> dict[str, Tensor]:
    """`save_model`, such that the usual recipe (the folder's chat template, its tokenizer, the model's logits) gives
    the outputs that assent reads: the chat template ends at the end of the answer, and what pads ends no answer."""
    written = save_model(scorer, outward(scorer.plain, chat, scorer.rule), folder, state, dtype=dtype)
    if (folder / "adapter").is_dir():
        write_rule(folder / "adapter", scorer.rule)
    return written


def outward(model: PreTrainedModel, chat: Chat, rule: HeadRule) -> PreTrainedTokenizerBase:
    """The tokenizer to write beside a reward model, whose configuration is made to agree with it, and with `rule`."""
    tokenizer = reward_tokenizer(chat, model.get_input_embeddings().num_embeddings)
    config = model.config
    for one in (config, config.get_text_config()):
        one.pad_token_id = tokenizer.pad_token_id
    config.id2label = dict(enumerate(rule.names))
    config.label2id = {name: k for k, name in enumerate(rule.names)}
    config.problem_type = "regression"  # so that servers and pipelines give the logits themselves
    config.assent_head = {**config.assent_head, **rule.section()}
    return tokenizer


def usage_of(model: PreTrainedModel, chat: Chat, folder: Path, source: ModelConfig | None = None) -> Usage:
    """How a written folder is read elsewhere; with `source` it is loaded and compared."""
    section = getattr(model.config, SECTION)
    pads, rule = model.config.pad_token_id is not None, rule_of(section, str(folder))
    usage = Usage(section["class"] == "assent", section["weight"], pads, rule=rule)
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
            ours = ours - ours.new_tensor(scorer.rule.offset) if scorer.rule.offset else ours
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
