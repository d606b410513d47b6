"""What preference losses ask for, by the names of their parameters, from a batch and its scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from assent.data.tree import TreeBatch
from assent.models.policy import TokenScores


def inputs_of(loss: Callable[..., Tensor]) -> tuple[str, ...]:
    """The tensors that a loss asks for: its positional parameters. (Its options are keyword-only.)"""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return tuple(name for name, p in inspect.signature(loss).parameters.items() if p.kind in kinds)


class Features:
    """Every quantity is an attribute: [S] per response, and for pairs [M] with the suffix `_chosen` or `_rejected`.
    `reference` holds the reference's per-token log-probs [N], None where no loss needs them."""

    def __init__(self, batch: TreeBatch, scores: TokenScores, reference: Tensor | None) -> None:
        self.batch = batch
        self.scores = scores
        self.reference_tokens = reference

    def __getitem__(self, name: str) -> Tensor:
        base, _, side = name.rpartition("_")
        if name.endswith("_shared"):
            whose, _, which = base.rpartition("_")
            return self._shared(self.scores.logprobs if whose == "policy" else self._reference_tokens, which)
        if side in ("chosen", "rejected"):
            return getattr(self, base)[self.batch.pairs[:, int(side == "rejected")]]
        return getattr(self, name)

    def of(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """These quantities by name."""
        return {name: self[name] for name in names}

    @cached_property
    def policy(self) -> Tensor:
        return self.batch.sum_by_response(self.scores.logprobs)

    @cached_property
    def reference(self) -> Tensor:
        return self.batch.sum_by_response(self._reference_tokens)

    @property
    def _reference_tokens(self) -> Tensor:
        assert self.reference_tokens is not None, "this loss was said to need no reference"
        return self.reference_tokens

    @cached_property
    def length(self) -> Tensor:
        return self.batch.tokens_by_response()

    @property
    def margin(self) -> Tensor:
        return self.batch.margin

    @property
    def prompt(self) -> Tensor:
        return self.batch.prompt

    @property
    def desirable(self) -> Tensor:
        return self.batch.per_response["label"]

    @property
    def level(self) -> Tensor:
        return self.batch.per_response["level"]

    @property
    def rating(self) -> Tensor:
        return self.batch.per_response["rating"]

    @property
    def shift(self) -> Tensor:
        return self.batch.per_response["shift"]

    @cached_property
    def kl(self) -> Tensor:
        """KTO's reference point where the step has one, else each response's KL(reference || policy)."""
        if "kl" in self.batch.per_response:
            return self.batch.per_response["kl"]
        return self.batch.sum_by_response(self.scores.kl)

    @cached_property
    def weight(self) -> Tensor:
        """WPO: exp of the mean over tokens of log pi(token) - log sum_v pi(v)^2 (arXiv 2406.11827), a constant."""
        likely = self.batch.sum_by_response((self.scores.logprobs - self.scores.collision).detach())
        return (likely / self.length).exp()

    def _shared(self, tokens: Tensor, side: str) -> Tensor:
        """Sums over the first min(|chosen|, |rejected|) trained tokens of each pair's `side`, [M]."""
        lengths = self.length.long()
        begin = lengths.cumsum(0) - lengths
        shared = lengths[self.batch.pairs].amin(1)
        pair = torch.repeat_interleave(shared)
        offset = torch.arange(len(pair), device=pair.device) - (shared.cumsum(0) - shared)[pair]
        which = begin[self.batch.pairs[:, int(side == "rejected")]][pair] + offset
        return tokens.new_zeros(len(shared)).index_add(0, pair, tokens[which])


def weight_by_prompt(batch: TreeBatch) -> Tensor:
    """One over the number of pairs of each pair's prompt, [M]: every prompt counts the same, a ranking of K answers by
    1 / (K choose 2) for each of its pairs."""
    prompt = batch.prompt[batch.pairs[:, 0]]
    return 1.0 / torch.bincount(prompt, minlength=1)[prompt]
