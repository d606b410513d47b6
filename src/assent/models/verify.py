"""Whether what is trained is the model: checked on load, on a few tokens, against the model's own logits of each
sequence alone, by its own attention, in evaluation mode. No architecture is taken on trust, and none by its name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.errors import ModelError
from assent.foreign import named
from assent.models.attention import attention_of, inexact_reason, install, use_attention
from assent.models.parts import decoder_of
from assent.models.policy import Backbone, Policy
from assent.models.quantize import quantised_layers
from assent.models.quiet import noisy_part
from assent.models.readout import shorten
from assent.models.stored import odd_numbers

log = logging.getLogger(__name__)

TOLERANCE = 2e-3
"""Of the spread of the logits (of hidden states: of their root mean square). One token too many or too few in an
attention changes them by about that spread."""
SAME = 1e-4
"""The same of two ways to compute one thing in fp32."""
_FEW_BITS = 0.3  # products of few bits round differently in either layout
_LOW = 0.5  # nats by which half of the log-probs may differ in bf16


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with two answers, and what the model's own code makes of either sequence: its final hidden states and,
    of a causal language model, its logits, [T_i, h] and [T_i, V]."""

    prompt: np.ndarray
    answers: tuple[np.ndarray, ...]
    hidden: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]

    @classmethod
    def of(cls, backbone: Backbone) -> Sample:
        """Raises ModelError where the model's own code fails, gives no finite numbers, or sees later tokens."""
        model = backbone.plain
        ids = ordinary_ids(model, 15)
        prompt, answers = ids[:5], (ids[5:9], ids[9:15])
        rows = [np.concatenate([prompt, answer]) for answer in answers]
        hidden, logits = own_outputs(model, rows, with_logits=isinstance(backbone, Policy))
        said = torch.cat(logits or hidden)
        if not said.isfinite().all():
            raise ModelError(
                f"{type(model).__name__}: its own code gives {said[~said.isfinite()][0].item()} for a few ordinary "
                "tokens, though its weights are finite. Does config.json fit them? "
                f"({odd_numbers(model.config.to_dict())})"
            )
        first, second = (states[: len(prompt)] for states in (logits or hidden))
        if not _differ(first, second) <= (_FEW_BITS if quantised_layers(model) else TOLERANCE):
            raise ModelError(
                f"{type(model).__name__} is no causal language model: it sees later tokens when it reads a token "
                "(is_decoder may be off in its config.json)."
            )
        return cls(prompt, answers, tuple(hidden), tuple(logits))

    def batch(self, tree: bool, device: torch.device) -> TreeBatch:
        branches = tuple(Branch(ids, np.ones(len(ids), bool)) for ids in self.answers)
        return collate([TokenTree(self.prompt, branches)], flat=not tree).to(device)


def ordinary_ids(model: PreTrainedModel, count: int, seed: int = 0) -> np.ndarray:
    """Random ids, without those that the configuration gives a meaning (pad, image, ...)."""
    config = model.config.get_text_config()
    vocab = min(config.vocab_size, model.get_input_embeddings().weight.shape[0])
    meant: set[int] = set()
    for values in (model.config.to_dict(), config.to_dict()):
        for name, value in values.items():
            if name.endswith(("_token_id", "_token_index")):
                meant.update(value if isinstance(value, list) else [value])
    ids = np.setdiff1d(np.arange(vocab), [x for x in meant if isinstance(x, int)])
    return np.random.default_rng(seed).choice(ids, count).astype(np.int64)


@torch.no_grad()
def own_outputs(
    model: PreTrainedModel, rows: Sequence[np.ndarray], *, with_logits: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Final hidden states and logits of each row of ids alone, by the model's own eager attention in evaluation mode.
    Raises ModelError where its code fails."""
    training, previous = model.training, attention_of(model)
    modes = {module: module.training for module in model.modules()}
    hidden: list[Tensor] = []
    logits: list[Tensor] = []
    hook = decoder_of(model).register_forward_hook(lambda _, __, out: hidden.append(out.last_hidden_state[0]))
    try:
        _switch(model, "eager")
        model.eval()
        for row in rows:
            ids = torch.from_numpy(row)[None].to(next(model.parameters()).device)
            if with_logits:
                logits.append(model(input_ids=ids, use_cache=False).logits[0].float())
            else:
                decoder_of(model)(input_ids=ids, use_cache=False)
    except Exception as error:
        raise ModelError(f"{type(model).__name__}: its own code fails on a few tokens: {named(error)}.") from error
    finally:
        hook.remove()
        _switch(model, previous)
        model.train(training)
        for module, mode in modes.items():
            module.training = mode
    return hidden, logits


def _switch(model: PreTrainedModel, name: str) -> None:
    try:
        use_attention(model, name)
    except ValueError:  # it knows no other than it has
        pass


def choose_layout(backbone: Backbone, sample: Sample, path: str, layout: str, max_length: int) -> None:
    """Settles how a model, in the mode in which it will be used, computes batches: as trees where these give what its
    own code gave of `sample` when it was loaded, else as padded rows by its own attention (and says why), as `layout`
    ("auto", "tree" or "flat") allows. Raises ModelError where it is exact in no way, with the reason."""
    model = backbone.plain
    own_attention = attention_of(model)
    reason = None
    if layout != "flat":
        reason = inexact_reason(model, max_length)
        if reason is None:
            install(model)
            backbone.tree = True
            reason = fault(backbone, sample)
            if reason is None:
                return
            backbone.tree = False
            _switch(model, own_attention)
        if layout == "tree":
            raise ModelError(f"{path} cannot share prompts exactly: {reason}. Use --model.layout flat.")
    wrong = fault(backbone, sample)
    if wrong is not None:
        raise ModelError(f"{path} ({type(model).__name__}) cannot be trained exactly: {wrong}.")
    if reason is not None:
        log.warning(f"{path}: prompts are not shared, because {reason}")


@torch.no_grad()
def choose_short(backbone: Backbone, sample: Sample) -> None:
    """Settles whether the last layer of a model that shares prompts is computed only for the tokens that are read:
    where that gives, for the last tokens of `sample`, what it gives when it is computed for all."""
    if not backbone.tree or not backbone.blocks:
        return
    last, batch = backbone.blocks[-1], sample.batch(True, backbone.device)
    precision, backbone.precision = backbone.precision, "fp32"
    try:
        whole = backbone.hidden(batch).index_select(0, batch.last)
        shorten(last)
        backbone.short = True
        found = backbone.hidden_at(batch, batch.last)
        backbone.short = found.shape == whole.shape and _differ(whole, found) <= SAME
    except Exception as error:  # its code wants something else, and all of it is computed
        log.debug("the last layer is computed whole: %s", named(error))
        backbone.short = False
    finally:
        backbone.precision = precision
        if not backbone.short:
            vars(last).pop("forward", None)


def fault(backbone: Backbone, sample: Sample) -> str | None:
    """What is wrong with a backbone as it computes this sample now, or None."""
    batch = sample.batch(backbone.tree, backbone.device)
    try:
        first, second = (_outputs(backbone, batch, "fp32") for _ in range(2))
        if _far(first, second):
            return _noise(backbone, batch)
        return _inexact(first, backbone, batch, sample) or _rough(backbone, batch, sample)
    except ModelError as error:
        return str(error)
    except Exception as error:
        what = "shared prompts" if backbone.tree else "padded rows"
        return f"its code fails on {what}: {named(error)}"


@torch.no_grad()
def _outputs(backbone: Backbone, batch: TreeBatch, precision: str) -> Tensor:
    """[N, 2], log-probs and entropies of a policy's trained tokens; of others the hidden states [T, h]."""
    previous, backbone.precision = backbone.precision, precision
    try:
        if not isinstance(backbone, Policy):
            return backbone.hidden(batch)
        scores = backbone(batch, entropy=True)
        return torch.stack([scores.logprobs, scores.entropy], 1)
    finally:
        backbone.precision = previous


def _expected(backbone: Backbone, batch: TreeBatch, sample: Sample) -> tuple[Tensor, float]:
    """What `_outputs` should be, and the size of it that a difference is measured by."""
    start = len(sample.prompt)
    if not isinstance(backbone, Policy):
        later = sample.hidden[1][start:] if backbone.tree else sample.hidden[1]
        exact = torch.cat([sample.hidden[0], later])
        return exact, exact.float().square().mean().sqrt().item()
    rows = []
    for logits, answer in zip(sample.logits, sample.answers, strict=True):
        logp = torch.log_softmax(logits[start - 1 : -1], -1)
        ids = torch.from_numpy(answer)[:, None].to(logp.device)
        rows.append(torch.stack([logp.gather(1, ids)[:, 0], -(logp.exp() * logp).sum(-1)], 1))
    return torch.cat(rows), _spread(sample.logits)


def _inexact(got: Tensor, backbone: Backbone, batch: TreeBatch, sample: Sample) -> str | None:
    want, size = _expected(backbone, batch, sample)
    worst = (got - want).abs().max().item()
    if worst <= size * (_FEW_BITS if quantised_layers(backbone.plain) else TOLERANCE):
        return None
    unit = " nats" if isinstance(backbone, Policy) else f" (their size is {size:.2g})"
    what = "log-probs" if isinstance(backbone, Policy) else "hidden states"
    how = "sharing prompts changes" if backbone.tree else "padded rows change"
    return f"{how} its {what} by {worst:.2g}{unit} from those of its own code on each sequence alone"


def _noise(backbone: Backbone, batch: TreeBatch) -> str:
    """Where it comes from that two passes over the same tokens differ."""
    where = noisy_part(backbone.plain, lambda: _far(*(_outputs(backbone, batch, "fp32") for _ in range(2))))
    mode = "training" if backbone.plain.training else "evaluation"
    return (
        f"in {mode} mode two passes over the same tokens differ: {where} draws random numbers that no option turns off"
    )


def _far(first: Tensor, second: Tensor) -> bool:
    return not bool(((first - second).abs() <= 1e-3 * first.abs().clamp(min=1e-3)).all())


def _rough(backbone: Backbone, batch: TreeBatch, sample: Sample) -> str | None:
    """Whether the precision that trains, where it is lower, is still about right."""
    if backbone.precision == "fp32":
        return None
    got = _outputs(backbone, batch, backbone.precision).float()
    want, size = _expected(backbone, batch, sample)
    worst = (got - want).abs().median().item() / (1.0 if isinstance(backbone, Policy) else size)
    if worst <= _LOW:
        return None
    return f"in {backbone.precision} its results are {worst:.2g} off (use --model.precision fp32)"


def allowed(logits: Sequence[Tensor], *, few_bits: bool = False) -> float:
    """Nats by which log-probs may differ from those that these own logits [T, V] give."""
    return _spread(logits) * (_FEW_BITS if few_bits else TOLERANCE)


def _spread(logits: Sequence[Tensor]) -> float:
    return max(torch.cat(tuple(logits)).std(-1).mean().item(), 1e-3)


def _differ(first: Tensor, second: Tensor) -> float:
    return ((first - second).abs().max() / first.float().std().clamp(min=1e-6)).item()
