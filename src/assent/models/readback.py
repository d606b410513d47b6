"""What was saved is read back as others read it, and compared with the model in memory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.distributed import reshard
from assent.errors import ModelError
from assent.foreign import brief
from assent.models.policy import Backbone, ScoreModel
from assent.models.quantize import quantised_layers
from assent.models.saving import cast, stored_as

LIMIT = 600_000_000
"""Parameters up to which a second copy of the model is made to compare numbers."""
TOLERANCE = 2e-3
"""Nats, or units of reward, that the same fp32 weights may differ by in two implementations."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What reading a folder back has shown, in a sentence, and whether its readers should beware."""

    words: str
    beware: bool = False


def sample_batch(vocab: int, *, flat: bool, last: int | None = None) -> TreeBatch:
    """Two short rows of random tokens that share a prompt; they end in the token `last` where one is given."""
    draw = np.random.default_rng(0)
    prompt, *answers = (draw.integers(0, vocab, size) for size in (4, 3, 6))
    if last is not None:
        answers = [np.append(ids, last) for ids in answers]
    branches = tuple(Branch(ids, np.ones(len(ids), bool)) for ids in answers)
    return collate([TokenTree(prompt, branches)], flat=flat)


def reading_class(model: PreTrainedModel) -> Any:
    """What loads a reward model's folder: transformers' sequence-classification class, or a class of our own where it
    has none that reads it so."""
    own = (getattr(model.config, "assent_head", None) or {}).get("class") == "assent"
    return type(model) if own else AutoModelForSequenceClassification


@torch.no_grad()
def own_numbers(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What the model in memory says of the sample: log-probs [N] of a policy, logits [S * K] of a reward model; in
    fp32, or where it is sharded, in its own precision. Every rank must call it."""
    batch = sample_batch(_plain_ids(backbone.plain, tokenizer), flat=not backbone.tree, last=_end(backbone, tokenizer))
    batch = batch.to(backbone.device)
    precision, training = backbone.precision, backbone.training
    if not isinstance(backbone, FSDPModule):  # whose weights may be gathered as bf16
        backbone.precision = "fp32"
    backbone.eval()
    try:
        if not isinstance(backbone, ScoreModel):
            return backbone(batch).logprobs.float().cpu()
        out = backbone(batch, batch.last).float().cpu()
        return (out - torch.tensor(backbone.rule.offset) if backbone.rule.offset else out).flatten()
    finally:
        backbone.precision = precision
        backbone.train(training)
        reshard(backbone)


def read_back(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor],
    own: Tensor,
    dtype: str = "auto",
    *,
    rounded: bool = False,
) -> Finding:
    """How the folder was checked and what was found. `weights` are the whole fp32 weights under the
    names of the plain model, `own` what `own_numbers` gave; with `rounded` these are of bf16 precision.

    Small models are loaded by transformers: the stored weights must be these, and with these transformers must give the
    same numbers, alone and in padded batches. Of large ones, names, shapes and dtypes are compared with what the stored
    configuration makes of them. Raises ModelError where weights are wrong."""
    plain = backbone.plain
    auto: Any = AutoModelForCausalLM
    if isinstance(backbone, ScoreModel):
        auto = reading_class(plain)
    model, checked = _read_weights(auto, plain, folder, weights, dtype)
    if model is None:
        return Finding(checked)
    if quantised_layers(plain):
        return Finding("Read back by transformers: the stored weights are what the weights in few bits stand for.")
    model.load_state_dict({name: x.float() if x.is_floating_point() else x for name, x in weights.items()})
    try:
        return _compare_numbers(backbone, tokenizer, folder, model.eval(), own, rounded)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        if isinstance(error, ModelError):
            raise
        return Finding(f"{checked} In transformers they give no numbers here ({brief(error)}).", beware=True)


def _compare_numbers(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    model: PreTrainedModel,
    own: Tensor,
    rounded: bool,
) -> Finding:
    """Compares what transformers makes of the same fp32 weights, for single rows and in padded batches."""
    plain = backbone.plain
    batch = sample_batch(_plain_ids(plain, tokenizer), flat=True, last=_end(backbone, tokenizer))
    rows = [batch.tokens[s.start : s.end] for s in batch.segments]
    lengths = [len(row) for row in rows]
    answers = [int(n) for n in torch.bincount(batch.response)]
    model.config.get_text_config().use_cache = False
    theirs = _numbers(model, rows, answers)
    gap = (theirs - own).abs().max().item()
    allowed = 0.3 if rounded else TOLERANCE * max(1.0, own.abs().max().item())
    if gap > allowed and hasattr(backbone.model, "peft_config"):
        raise ModelError(
            f"{folder}: with the merged weights transformers differs by {gap:.2g} from the model with its adapters. "
            f"Use the adapters in {folder / 'adapter'} instead, and report this architecture."
        )
    if not gap <= allowed:
        return Finding(
            f"Read back by transformers, whose numbers differ from those in training by up to {gap:.2g}.", beware=True
        )
    pad = model.config.pad_token_id if isinstance(backbone, ScoreModel) else tokenizer.pad_token_id
    sides = () if pad is None else ("left", "right")
    odd = [side for side in sides if _padded_gap(model, pad, rows, lengths, answers, side, own) > max(allowed, 0.01)]
    if odd:
        return Finding(
            "Read back by transformers with the same numbers for single rows, but others in batches padded on the "
            f"{' or '.join(odd)}: read rows one by one.",
            beware=True,
        )
    return Finding("Read back by transformers: the same numbers as in training, for single rows and in padded batches.")


def compare_folder(
    auto: Any, model: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor], dtype: str = "auto"
) -> str:
    """Checks that a folder holds `weights` and nothing else, without comparing numbers; as `read_back`."""
    return _read_weights(auto, model, folder, weights, dtype)[1]


def shell_of(auto: Any, folder: Path) -> PreTrainedModel:
    """The model that a folder's configuration asks for, without numbers."""
    make = getattr(auto, "from_config", None) or auto._from_config  # the latter of classes of our own
    with torch.device("meta"):
        return make(AutoConfig.from_pretrained(folder))


def _read_weights(
    auto: Any, plain: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor], dtype: str
) -> tuple[PreTrainedModel | None, str]:
    """The folder as transformers loads it, where that is cheap, and what was found."""
    stored = cast(plain, weights, stored_as(plain, dtype))
    if type(plain).__module__.startswith("transformers_modules"):
        return None, "Not read back: its code came with the model."
    if sum(x.numel() for x in weights.values()) > LIMIT:
        _compare_names(auto, folder, stored)
        return None, "Names and shapes of the stored weights are those that the configuration asks for in transformers."
    model, info = auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    _compare_weights(model, info, stored, folder)
    return model, "Read back by transformers: the stored weights are those that were saved."


def _plain_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids below this are text in both the tokenizer and the model."""
    return min(model.config.get_text_config().vocab_size, len(tokenizer))


def _end(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.eos_token_id if isinstance(backbone, ScoreModel) else None


def _compare_weights(model: nn.Module, info: Mapping[str, Any], stored: Mapping[str, Tensor], folder: Path) -> None:
    wrong = {*info["missing_keys"], *info["unexpected_keys"], *(key[0] for key in info["mismatched_keys"])}
    found = model.state_dict()
    wrong |= found.keys() ^ stored.keys()
    wrong |= {n for n in found.keys() & stored.keys() if not torch.equal(found[n].float(), stored[n].cpu().float())}
    if wrong:
        raise ModelError(
            f"{folder}: transformers reads other weights than were trained: {', '.join(sorted(wrong)[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. The run's last checkpoint has them."
        )


def _compare_names(auto: Any, folder: Path, stored: Mapping[str, Tensor]) -> None:
    asked = {name: x.shape for name, x in shell_of(auto, folder).state_dict().items()}
    size = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as found:
            size += sum(int(np.prod(found.get_slice(name).get_shape())) for name in found.keys())
    whole = sum({(x.data_ptr(), x.shape): x.numel() for x in stored.values()}.values())
    if asked != {name: x.shape for name, x in stored.items()} or size != whole:
        raise ModelError(f"{folder}: the stored weights are not those that its configuration asks for.")


@torch.no_grad()
def _numbers(model: nn.Module, rows: list[Tensor], answers: list[int]) -> Tensor:
    """Of each row by itself the log-probs of its last tokens, as many as `answers` says, or its score."""
    logits = [model(input_ids=ids[None]).logits[0].float() for ids in rows]
    return torch.cat([_of_row(x, ids, n, len(ids)) for x, ids, n in zip(logits, rows, answers, strict=True)])


def _of_row(logits: Tensor, ids: Tensor, answer: int, end: int) -> Tensor:
    if logits.ndim == 1:
        return logits
    scores = logits[end - answer - 1 : end - 1].log_softmax(-1)
    return scores.gather(1, ids[end - answer : end, None].long()).squeeze(1)


@torch.no_grad()
def _padded_gap(
    model: nn.Module,
    pad: int,
    rows: list[Tensor],
    lengths: list[int],
    answers: list[int],
    side: str,
    own: Tensor,
) -> float:
    """How far the numbers move once the rows stand in one batch, padded with the token `pad`."""
    width = max(lengths)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row.long(), 1
    extra = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if side == "left" and _takes_positions(model) else {}
    logits = model(input_ids=ids, attention_mask=mask, **extra).logits.float()
    ends = [width if side == "left" else length for length in lengths]
    found = torch.cat([_of_row(logits[i], ids[i], answers[i], ends[i]) for i in range(len(rows))])
    return (found - own).abs().max().item()


def _takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters
