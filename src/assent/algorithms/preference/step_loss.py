"""The loss of a micro-batch: the terms of an objective, what their losses ask for, and what their sum is divided by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from assent.config import OBJECTIVES, PairConfig, PreferenceConfig, keywords, loss_of, objective_of
from assent.config.objectives import SFT_TERM, FeedbackKind
from assent.data.packing import Counts
from assent.data.tree import TreeBatch
from assent.losses import LOSSES
from assent.losses.functions import TensorFunction, with_options
from assent.models.policy import TokenScores

REFERENCE_POINT, SHIFT = "reference_point", "shift"
"""Fields [S] that the whole step gives its batches (step_wide.py), one number for all: of KTO, and of BCO."""


def coupled_fields(number: int) -> tuple[str, str]:
    """Fields [S] of the same kind, of term `number` where its loss couples all pairs of a step: its gradient for each
    response's log-prob, and its value, shared out evenly."""
    return f"gradient/{number}", f"value/{number}"


# ---- what losses ask for


@dataclass(frozen=True)
class Inputs:
    """Both models' reading of a micro-batch. `reference_tokens` are the reference's log-probs [N], None without one."""

    batch: TreeBatch
    scores: TokenScores
    reference_tokens: Tensor | None

    @cached_property
    def policy(self) -> Tensor:
        """log pi of whole responses, [S]."""
        return self.batch.sum_by_response(self.scores.logprobs)

    @cached_property
    def reference(self) -> Tensor:
        """log pi_ref of whole responses, [S]."""
        return self.batch.sum_by_response(self.of_reference)

    @property
    def of_reference(self) -> Tensor:
        """The reference's log-probs of the trained tokens, [N]."""
        assert self.reference_tokens is not None, "this loss was said to need no reference"
        return self.reference_tokens

    @cached_property
    def length(self) -> Tensor:
        """Trained tokens of each response, [S]."""
        return self.batch.tokens_by_response()

    @cached_property
    def kl(self) -> Tensor:
        """KL(reference || policy) of each response's predictions, [S]."""
        return self.batch.sum_by_response(self.scores.kl)

    @cached_property
    def weight(self) -> Tensor:
        """WPO: exp of the mean over tokens of log pi(token) - log sum_v pi(v)^2 (arXiv 2406.11827), a constant, [S]."""
        likely = self.batch.sum_by_response((self.scores.logprobs - self.scores.collision).detach())
        return (likely / self.length).exp()

    @property
    def chosen(self) -> Tensor:
        """Which response each pair prefers, [M]."""
        return self.batch.pairs[:, 0]

    @property
    def rejected(self) -> Tensor:
        return self.batch.pairs[:, 1]

    def shared(self, tokens: Tensor, side: Tensor) -> Tensor:
        """Sums over the first min(|chosen|, |rejected|) trained tokens of the response `side` of each pair, [M]."""
        lengths = self.length.long()
        begin = lengths.cumsum(0) - lengths
        shared = lengths[self.batch.pairs].amin(1)
        pair = torch.repeat_interleave(shared)
        offset = torch.arange(len(pair), device=pair.device) - (shared.cumsum(0) - shared)[pair]
        return tokens.new_zeros(len(shared)).index_add(0, pair, tokens[begin[side][pair] + offset])


class Requirement(Enum):
    """What a loss may ask for that costs something: it is made only where an input needs it."""

    REFERENCE = auto()
    COLLISION = auto()
    """How alike two draws of the policy are, token by token."""
    ANCHOR = auto()
    """The reference's predictions over the whole vocabulary."""
    MISMATCHED = auto()
    """Answers to other prompts, for KTO's reference point."""
    SHIFT = auto()
    """BCO's moving average."""


class Input(NamedTuple):
    """`feedback` is the kind that alone has it; None: every kind that judges responses one by one or in a list."""

    read: Callable[[Inputs], Tensor]
    words: str
    feedback: FeedbackKind | None = None
    need: Requirement | None = None

    @property
    def size(self) -> str:
        """The letter of its length."""
        return "M" if self.feedback == "pairs" else "S"


def _of_both(
    name: str, words: str, read: Callable[[Inputs], Tensor], need: Requirement | None = None
) -> dict[str, Input]:
    """A quantity of responses [S] as those of both sides of each pair, [M]."""
    return {
        f"{name}_chosen": Input(lambda x: read(x)[x.chosen], f"{words} the chosen response", "pairs", need),
        f"{name}_rejected": Input(lambda x: read(x)[x.rejected], f"{words} the rejected response", "pairs", need),
    }


def _of_shared(name: str, read: Callable[[Inputs], Tensor], need: Requirement | None = None) -> dict[str, Input]:
    """Log-probs of as many first tokens of both sides as the shorter one has, [M]."""
    words = "log-prob of the first min(length_chosen, length_rejected) tokens of the"
    return {
        f"{name}_chosen_shared": Input(
            lambda x: x.shared(read(x), x.chosen), f"{words} chosen response", "pairs", need
        ),
        f"{name}_rejected_shared": Input(
            lambda x: x.shared(read(x), x.rejected), f"{words} rejected response", "pairs", need
        ),
    }


LOSS_INPUTS: Mapping[str, Input] = {
    "policy": Input(lambda x: x.policy, "log-prob of the response under the policy"),
    "reference": Input(lambda x: x.reference, "the same under the reference, a constant", None, Requirement.REFERENCE),
    "prompt": Input(lambda x: x.batch.prompt, "which prompt it answers, 0, 1, ..., never decreasing"),
    "desirable": Input(lambda x: x.batch.per_response["label"], "1 for a desirable response, 0 for another", "binary"),
    "level": Input(
        lambda x: x.batch.per_response["level"], "its rank among the prompt's responses, 0 the best", "ranking"
    ),
    "rating": Input(lambda x: x.batch.per_response["rating"], "its rating", "rating"),
    "kl": Input(
        lambda x: x.batch.per_response[REFERENCE_POINT],
        "how far the policy is from the reference on responses to other prompts of the step, at least 0, a constant",
        "binary",
        Requirement.MISMATCHED,
    ),
    "shift": Input(
        lambda x: x.batch.per_response[SHIFT],
        "moving average of the rewards so far, a constant",
        "binary",
        Requirement.SHIFT,
    ),
    "margin": Input(
        lambda x: x.batch.margin, "the pair's strength, above 0: only data with strengths have it", "pairs"
    ),
    **_of_both("policy", "log-prob under the policy of", lambda x: x.policy),
    **_of_both(
        "reference", "log-prob under the reference, a constant, of", lambda x: x.reference, Requirement.REFERENCE
    ),
    **_of_both("length", "trained tokens of", lambda x: x.length),
    **_of_both(
        "weight",
        "how likely the policy finds its tokens (WPO's weight), a constant, of",
        lambda x: x.weight,
        Requirement.COLLISION,
    ),
    **_of_both("kl", "KL(reference || policy), summed over the predictions, of", lambda x: x.kl, Requirement.ANCHOR),
    **_of_shared("policy", lambda x: x.scores.logprobs),
    **_of_shared("reference", lambda x: x.of_reference, Requirement.REFERENCE),
}
"""Every parameter that a loss may have: of each response [S], or of each pair [M]."""
WITH_REFERENCE = frozenset({Requirement.REFERENCE, Requirement.ANCHOR, Requirement.MISMATCHED})
"""The needs that a reference serves."""


# ---- terms


@dataclass(frozen=True, slots=True)
class Term:
    """One summand: weight times a loss with its options. With `whole_step` the loss couples all pairs of a step."""

    name: str
    loss: TensorFunction
    weight: float = 1.0
    whole_step: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.loss.inputs

    def read(self, inputs: Inputs) -> dict[str, Tensor]:
        """What the loss asks for, by name."""
        return {name: LOSS_INPUTS[name].read(inputs) for name in self.inputs}


def terms_of(config: PreferenceConfig) -> list[Term]:
    """The objective itself, then what `plus` adds, each at its own defaults."""
    key = objective_of(config)
    row = OBJECTIVES[key]
    terms = [Term(key, with_options(LOSSES[row.loss], keywords(loss_of(config))), whole_step=row.whole_step)]
    for name, weight in (config.plus if isinstance(config, PairConfig) else {}).items():
        if name == SFT_TERM:
            terms.append(Term(SFT_TERM, TensorFunction(LOSSES["chosen_nll"]), weight))
        else:
            other = OBJECTIVES[name]
            terms.append(Term(name, with_options(LOSSES[other.loss], other.options), weight, other.whole_step))
    return terms


def needs_of(terms: Sequence[Term]) -> frozenset[Requirement]:
    """What all terms together need."""
    return frozenset(need for term in terms for name in term.inputs if (need := LOSS_INPUTS[name].need) is not None)


# ---- their sum


@dataclass(frozen=True, slots=True)
class Mean:
    """What the loss of a step is a mean over: the number in the whole step, that in a batch, and how much each of the
    batch's losses counts (None: all the same)."""

    step: Callable[[Counts], int]
    batch: Callable[[TreeBatch], int]
    weights: Callable[[TreeBatch], Tensor] | None = None


def weight_by_prompt(batch: TreeBatch) -> Tensor:
    """One over the number of pairs of each pair's prompt, [M]: every prompt counts the same, a ranking of K answers by
    1 / (K choose 2) for each of its pairs."""
    prompt = batch.prompt[batch.pairs[:, 0]]
    return 1.0 / torch.bincount(prompt, minlength=1)[prompt]


def _prompts(weights: Callable[[TreeBatch], Tensor] | None = None) -> Mean:
    return Mean(lambda counts: counts.prompts, lambda batch: len(batch.keys), weights)


MEANS: Mapping[str, Mean] = {
    "pairs": _prompts(weight_by_prompt),
    "binary": Mean(lambda counts: counts.responses, lambda batch: batch.num_responses),
    "ranking": _prompts(),
    "rating": _prompts(),
}
"""By kind of feedback."""


def step_loss(inputs: Inputs, terms: Sequence[Term], mean: Mean, counts: Counts) -> Tensor:
    """A micro-batch's part of the loss of its step: sum over terms of weight * sum of losses / number in the step."""
    total = torch.zeros((), device=inputs.batch.tokens.device)
    for number, term in enumerate(terms):
        part = (
            _coupled(inputs, number) if term.whole_step else _mean(term.loss(term.read(inputs)), inputs, mean, counts)
        )
        total = total + term.weight * part
    return total


def _mean(losses: Tensor, inputs: Inputs, mean: Mean, counts: Counts) -> Tensor:
    if mean.weights is not None:
        losses = losses * mean.weights(inputs.batch)
    return losses.sum() / max(1, mean.step(counts))


def _coupled(inputs: Inputs, number: int) -> Tensor:
    """The value of a term that step_wide.py has computed, and its gradient."""
    gradient, value = (inputs.batch.per_response[name] for name in coupled_fields(number))
    return (gradient * (inputs.policy - inputs.policy.detach()) + value).sum()
