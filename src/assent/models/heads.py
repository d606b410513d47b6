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
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.tree import collate
from assent.errors import ModelError
from assent.foreign import named
from assent.models.adapters import adapt
from assent.models.gate import Gate, GateRule, save_gate, stored_gate
from assent.models.gated import GatedScoreModel
from assent.models.head_classes import OWN, causal_class, has_class, last_token_head, own_class, resize_head
from assent.models.loading import (
    few_bits,
    load_folder,
    load_tokenizer,
    open_model,
    prepare,
    stored_config,
)
from assent.models.mixtures import Mixture, find_mixture
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
from assent.models.stored_heads import SECTION, StoredHeads, asked_of, chosen_output, stored_heads, write_rule
from assent.models.value_heads import ValueHead, fill

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A model with its head. `own`: transformers has no class for it that reads the last token as we do; `fresh`: the
    head is new. `gate` weighs its outputs, where the folder has one."""

    model: PreTrainedModel
    head: str
    own: bool
    fresh: bool
    rule: HeadRule
    gate: tuple[Gate, GateRule] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class WantedHead:
    """Which of a folder's heads is wanted, or which new one, and what reads it.

    outputs  what a new head gives, and what a trained one must give; None: those of the folder, of a new head one
    renewed  a new head of `outputs` takes the place of whatever is there
    only     the one output of several that is kept, whose value is the reward
    begin    called with a model whose head is new
    kind     the class that reads the head, called as `ScoreModel` is; None: that one, or with the folder's gate
             `GatedScoreModel`
    """

    outputs: HeadRule | None = None
    renewed: bool = False
    only: str | None = None
    begin: Callable[[ScoreModel], None] | None = None
    kind: Callable[..., ScoreModel] | None = None


AS_IT_IS = WantedHead()
"""The head that is there or, where there is none, a new one of one output."""


def load_score_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    device: torch.device | str = "cpu",
    trainable: bool = True,
    seed: int = 0,
    new_head: bool = True,
    head: WantedHead = AS_IT_IS,
) -> ScoreModel:
    """A reward model or critic from the folder of one or, with a fresh head drawn from `seed`, from any causal model.
    With `new_head=False` a folder without a trained head is refused. Where transformers has a sequence-classification
    class whose logits are its linear head at the last token (which is measured), it is of that class, else one of ours.
    Adapters and bits are as in `load_policy`; the head is always trained whole, and computed in fp32.

    Raises ModelError where the folder's outputs are others than those of `head`."""
    bits = few_bits(config, device, trainable, keep=[OWN, "classifier"])
    asked = None if head.renewed else head.outputs
    found = load_folder("reward model", config.path, lambda: open_scorer(config, seed, bits, asked))
    kind = _kind(found, head, trainable, config.path)
    if head.only is not None:
        found = _single(found, head.only, config.path)
    if head.renewed:
        assert head.outputs is not None, "a new head has outputs"
        resize_head(found.model, found.head, len(head.outputs))
        found = _found(found.model, found.head, found.own, True, head.outputs)
    model = found.model
    if found.fresh:
        _require_allowed(found, config.path, new_head)
    for one in (model.config, model.config.get_text_config()):
        one.pad_token_id = tokenizer.pad_token_id
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None  # there is no padding here; where the pad token is EOS it would not be trained
    read = partial(kind, head=found.head, rule=found.rule)
    scorer: ScoreModel = prepare(read, model, config, max_length, device, trainable)
    if found.fresh and head.begin is not None:
        head.begin(scorer)
    if trainable and config.lora.rank > 0:
        vocab = scorer.plain.config.get_text_config().vocab_size
        batch = sample_batch(vocab, flat=not scorer.tree).to(scorer.device)
        adapt(scorer, config.lora, "SEQ_CLS", lambda: scorer(batch, batch.last))
    return scorer


def _kind(found: Found, head: WantedHead, trainable: bool, path: str) -> Callable[..., ScoreModel]:
    """What reads the head. Says where a gate is left behind."""
    if found.gate is None:
        return head.kind or ScoreModel
    if trainable or head.only is not None or head.renewed:
        log.warning(f"{path}: its gate is left behind, which belongs to the weights and outputs as they are")
    elif head.kind is None:
        gate, rule = found.gate
        return partial(GatedScoreModel, gate=gate, gate_rule=rule)
    else:
        log.info(f"{path}: its gate makes way for another")
    return head.kind or ScoreModel


def _require_allowed(found: Found, path: str, new_head: bool) -> None:
    """Says that a head is new. Raises ModelError where it must not be."""
    if not new_head:
        raise ModelError(
            f"{path} has no trained reward head ({found.head}.weight). Train one with: assent reward "
            f"--model.path {path} --data.train PAIRS --out FOLDER"
        )
    reader = "a class of assent's own (transformers has none that reads it so)"
    reader = reader if found.own else type(found.model).__name__
    many = "one output" if len(found.rule) == 1 else f"{len(found.rule)} outputs ({shown(found.rule.names)})"
    log.info(f"{path}: its head of {many} ({found.head}.weight) is new and untrained, in {reader}")


def open_scorer(config: ModelConfig, seed: int, bits: dict[str, Any], outputs: HeadRule | None = None) -> Found:
    """The model in transformers' own class where that reads what we read, else in ours; a new head, of `outputs`, is
    drawn from `seed`."""
    place = resolve(config.path, config.revision)
    ask_hub(place)
    mixture = find_mixture(place)
    if mixture is None:
        found = _opened(config, place, seed, bits, stored_heads(place), outputs)
        return dataclasses.replace(found, gate=stored_gate(found.model, place))
    plain = dataclasses.replace(config, trust_remote_code=False)
    found = _opened(plain, place, seed, bits, StoredHeads(len(mixture.names), HeadRule(mixture.names, ())), outputs)
    return _filled(found, mixture, load_tokenizer(plain))


def _filled(found: Found, mixture: Mixture, tokenizer: PreTrainedTokenizerBase) -> Found:
    """The model with the head and the gate of another tool's folder, whose code it no longer names."""
    if not found.fresh:  # adapters or a checkpoint brought another head, for which there is no gate
        return found
    with torch.no_grad():
        getattr(found.model, found.head).weight.copy_(mixture.head)
    if hasattr(found.model.config, "auto_map"):
        del found.model.config.auto_map
    rule = dataclasses.replace(mixture.rule, pattern=mixture.turn(tokenizer))
    return dataclasses.replace(found, fresh=False, gate=(mixture.gate, rule))


def _opened(
    config: ModelConfig,
    place: Source,
    seed: int,
    bits: dict[str, Any],
    stored: StoredHeads,
    outputs: HeadRule | None,
) -> Found:
    """`open_scorer` without what is beside the head."""
    rule = asked_of(stored, outputs, config.path)
    hf_config = stored_config(config, num_labels=stored.below or len(rule))
    section = getattr(hf_config, SECTION, None) or {}
    opened = partial(_seeded, config=config, seed=seed, bits=bits, outputs=len(rule), value=stored.value)
    if stored.value is not None:
        log.info(f"{config.path}: its reward head is the value head in {stored.value.file}")
        if stored.value.hidden:
            hf_config.assent_head = {"class": "assent", "layers": stored.value.hidden}
            section = hf_config.assent_head
    if section.get("class") != "assent" and has_class(hf_config, config.trust_remote_code):
        model, missing = opened(AutoModelForSequenceClassification, hf_config=hf_config)
        head = last_token_head(model)
        if head is not None:
            return _found(model, head, False, _lacks_only(head, config.path, missing), rule)
        hf_config = stored_config(config, num_labels=stored.below or len(rule))
    causal, hf_config = causal_class(place, config, hf_config)
    model, missing = opened(own_class(causal), hf_config=hf_config)
    return _found(model, OWN, True, _lacks_only(OWN, config.path, missing), rule)


def _found(model: PreTrainedModel, head: str, own: bool, fresh: bool, rule: HeadRule) -> Found:
    """With what config.json is to say of the head."""
    before = getattr(model.config, SECTION, None) or {}
    model.config.assent_head = {
        "weight": f"{head}.0.weight" if "layers" in before else f"{head}.weight",
        "class": "assent" if own else "transformers",
        "read_at": "the end token of the answer",
        **{name: before[name] for name in ("trained_at", "layers") if name in before},
        **rule.section(),
    }
    return Found(model, head, own, fresh, rule)


def _single(found: Found, output: str, path: str) -> Found:
    """The same model with only this output of its head, which is the reward. Raises ModelError where there is none of
    this name, and for a head of several layers, which has no rows of its own."""
    index = chosen_output(found.rule, output, path)
    if not isinstance(getattr(found.model, found.head), nn.Linear):
        if len(found.rule) == 1:
            return found
        raise ModelError(f"--reward.output {output}: the head of {path} has several layers. Train all of its outputs.")
    row = getattr(found.model, found.head).weight.detach()[index : index + 1].clone()
    resize_head(found.model, found.head, 1)
    with torch.no_grad():
        getattr(found.model, found.head).weight.copy_(row)
    here = slice(index, index + 1)
    rule = HeadRule((output,), (1.0,), found.rule.scale[here], found.rule.offset[here])
    return _found(found.model, found.head, found.own, found.fresh, rule)


def _seeded(
    kind: Any,
    *,
    config: ModelConfig,
    hf_config: PreTrainedConfig,
    seed: int,
    bits: dict[str, Any],
    outputs: int,
    value: ValueHead | None,
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the weights that the folder lacks, which are drawn from `seed`. A value head beside
    the model becomes its head; where adapters or a checkpoint bring one of another number of `outputs`, there is place
    for it."""

    def amended(model: PreTrainedModel) -> set[str]:
        found = {name: getattr(model, name, None) for name in (OWN, "classifier")}
        heads = {name: head for name, head in found.items() if isinstance(head, nn.Linear | nn.Sequential)}
        filled = set()
        for name, head in heads.items():
            if value is not None:
                fill(head, value)
                filled |= {f"{name}.{part}" for part, _ in head.named_parameters()} | value.names
            if isinstance(head, nn.Linear) and head.out_features != outputs:
                resize_head(model, name, outputs)
        return filled

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_model(kind, config, task="SEQ_CLS", config=hf_config, amend=amended, **bits)


def _lacks_only(head: str, folder: str, missing: set[str]) -> bool:
    """Whether the head is new. Raises ModelError where the folder lacks other weights."""
    own = {name for name in missing if name.startswith(f"{head}.")}
    if others := sorted(missing - own):
        raise ModelError(f"{folder} lacks {', '.join(others[:3])}.")
    return bool(own)


# ---- folders


def save_reward_model(
    scorer: ScoreModel,
    chat: Chat,
    folder: Path,
    state: Mapping[str, Tensor] | None = None,
    *,
    dtype: str = "auto",
) -> dict[str, Tensor]:
    """`save_model`, such that the usual recipe (the folder's chat template, its tokenizer, the model's logits) gives
    the outputs that assent reads: the chat template ends at the end of the answer, and what pads ends no answer. A gate
    lies in a folder of its own there; what only a training needed is left out. `state` holds the whole weights of the
    scorer where it is sharded."""
    whole = scorer.state_dict() if state is None else state
    outside = outward(scorer.plain, chat, scorer.rule)
    written = save_model(scorer, outside, folder, _part(whole, "model."), dtype=dtype)
    if (folder / "adapter").is_dir():
        write_rule(folder / "adapter", scorer.rule)
    if isinstance(scorer, GatedScoreModel):
        save_gate(_part(whole, "gate."), scorer.gate_rule, folder)
    return written


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one of a module's parts, under their names there."""
    return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}


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
    usage = Usage(
        section["class"] == "assent", section["weight"], pads, rule=rule, layers=len(section.get("layers", ()))
    )
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
