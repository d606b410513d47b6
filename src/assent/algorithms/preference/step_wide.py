"""What a single micro-batch cannot tell its losses: KTO's reference point and BCO's shift are means over a whole step,
and AOT sorts all pairs of it. Each becomes a field of the step's batches before it is trained, so neither micro-batches
nor ranks change a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from assent.algorithms.preference.step_loss import REFERENCE_POINT, SHIFT, Inputs, Term, coupled_fields
from assent.data.mismatch import MISMATCHED
from assent.data.packing import Counts, Window
from assent.data.tree import TreeBatch
from assent.distributed import all_sum_dict, gather_objects
from assent.models.policy import Policy
from assent.models.references import FIELD, Reference
from assent.train.finite import DIVERGED, require_numbers

# ---- KTO


@torch.no_grad()
def with_reference_point(window: Window, policy: Policy, reference: Reference) -> Window:
    """KTO: the step's own answers with z0 = max(0, mean of log pi/pi_ref over the mismatched ones). The reference has
    read these beside the prompt's own answers; the policy reads them here, without gradients, and is then trained on
    the own answers alone: a backward pass through answers whose gradient is zero would cost more than it saves."""
    own, gap, number = [], torch.zeros((), dtype=torch.float64), 0
    for batch in window.batches:
        batch = _with_reference(batch, reference.logprobs(batch))
        foreign = batch.per_response[MISMATCHED] > 0
        other = batch.select(foreign)
        gap += (policy(other).logprobs - other.per_token[FIELD]).double().sum().cpu()
        number += int(foreign.sum())
        own.append(batch.select(~foreign))
    total, count = all_sum_dict({"kl": (gap, number)})["kl"]
    require_numbers("KL of mismatched answers", {"kl": total}, DIVERGED)  # max would take a NaN for 0
    z0 = max(0.0, total / max(1.0, count))
    counts = replace(window.counts, responses=window.counts.responses - window.counts.prompts)
    batches = tuple(_with_constant(batch, REFERENCE_POINT, z0) for batch in own)
    return replace(window, batches=batches, counts=counts, metrics={**window.metrics, "reference_point": z0})


# ---- BCO

SHIFT_DECAY = 0.9


def with_shift(window: Window, shift: float) -> Window:
    """BCO: the step with its shift."""
    return replace(window, batches=tuple(_with_constant(batch, SHIFT, shift) for batch in window.batches))


def moved_shift(shift: float, metrics: Mapping[str, float]) -> float:
    """BCO: delta after a step with these metrics, the moving average of (mean desirable + mean undesirable reward) / 2.
    A step that has one kind only moves nothing."""
    means = [metrics[name] for name in ("reward/undesirable", "reward/desirable") if name in metrics]
    return SHIFT_DECAY * shift + (1 - SHIFT_DECAY) * sum(means) / 2 if len(means) == 2 else shift


# ---- AOT

TRAINED: Mapping[str, Callable[[Inputs], Tensor]] = {
    "policy_chosen": lambda inputs: inputs.chosen,
    "policy_rejected": lambda inputs: inputs.rejected,
}
"""Inputs of a coupling loss that have gradients, and whose log-probs they are, [M]."""


@torch.no_grad()
def with_gradients(window: Window, terms: Sequence[Term], read: Callable[[TreeBatch], Inputs], rank: int) -> Window:
    """The step with the gradients of those terms that couple all its pairs: one pass without gradients, `read`, gives
    the log-probs of all ranks, and the training pass then follows gradient * log-prob."""
    coupling = [(number, term) for number, term in enumerate(terms) if term.whole_step]
    inputs = [read(batch) for batch in window.batches]
    fields: list[dict[str, Tensor]] = [{} for _ in inputs]
    for number, term in coupling:
        for each, made in zip(fields, _gradients(term, inputs, window.counts, rank), strict=True):
            each.update(zip(coupled_fields(number), made, strict=True))
    return replace(window, batches=tuple(map(_with_fields, inputs, fields)))


def _gradients(term: Term, inputs: Sequence[Inputs], counts: Counts, rank: int) -> list[tuple[Tensor, Tensor]]:
    """For each micro-batch the gradient of the term for each response's log-prob, and its value in even shares, [S]."""
    mine = [term.read(each) for each in inputs]
    ranks = gather_objects({name: torch.cat([part[name] for part in mine]).cpu() for name in term.inputs})
    everyone = {name: torch.cat([part[name] for part in ranks]) for name in term.inputs}
    trained = [name for name in term.inputs if name in TRAINED]
    with torch.enable_grad():
        for name in trained:
            everyone[name].requires_grad_()
        total = term.loss(everyone).sum() / max(1, counts.pairs)
        gradients = torch.autograd.grad(total, [everyone[name] for name in trained])
    start = sum(len(part[trained[0]]) for part in ranks[:rank])
    made = []
    for each in inputs:
        where = slice(start, start + len(each.batch.pairs))
        start = where.stop
        gradient = torch.zeros(each.batch.num_responses, device=each.batch.tokens.device)
        for name, values in zip(trained, gradients, strict=True):
            gradient.index_add_(0, TRAINED[name](each), values[where].to(gradient.device))
        made.append((gradient, torch.full_like(gradient, float(total) / max(1, counts.responses))))
    return made


# ---- fields of batches


def _with_reference(batch: TreeBatch, logprobs: Tensor) -> TreeBatch:
    """The batch with the reference's log-probs, which are then not computed again."""
    return replace(batch, per_token={**batch.per_token, FIELD: logprobs})


def _with_fields(inputs: Inputs, fields: Mapping[str, Tensor]) -> TreeBatch:
    batch = replace(inputs.batch, per_response={**inputs.batch.per_response, **fields})
    return batch if inputs.reference_tokens is None else _with_reference(batch, inputs.reference_tokens)


def _with_constant(batch: TreeBatch, name: str, value: float) -> TreeBatch:
    """The batch with a field that is the same number for every response."""
    constant = torch.full_like(batch.last, value, dtype=torch.float32)
    return replace(batch, per_response={**batch.per_response, name: constant})
