"""ODIN: pairs train the sum of two heads, of which one takes up what the length of an answer explains; the other alone
is the reward (arXiv 2402.07319).

    loss = mean over pairs of -log sigmoid((r_Q + r_L)_chosen - (r_Q + r_L)_rejected)
           + length_weight * (1 - corr(length, r_L) + |corr(length, r_Q)|) + orthogonal_weight * |W_Q . W_L|

The correlations are those of all responses of an optimiser step: a pass without gradients reads both heads, whose
gradients the training pass then follows, so that neither micro-batches nor ranks change a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from assent.algorithms.reward.single import single_output
from assent.algorithms.reward.train import EpochTraining, train_on
from assent.config import OdinSection, RewardOdinConfig
from assent.data.packing import Counts, EpochStream, Window
from assent.data.tree import TokenTree, TreeBatch
from assent.data.views import pair_view
from assent.distributed import World, gather_objects
from assent.errors import DataError
from assent.losses import bradley_terry, correlation, odin_length
from assent.models.policy import ScoreModel, head_outputs
from assent.train.loop import Loss
from assent.train.run import RunResult
from assent.train.session import open_session

QUALITY, VERBOSITY, VALUE = "gradient/quality", "gradient/verbosity", "value/length"
"""Fields [S] that the whole step gives its batches: what the length term's gradient is for each response's two scores,
and its value in even shares."""


class OdinScoreModel(ScoreModel):
    """A reward model with a second head of one output, which takes up what length explains. It is trained, lies in
    checkpoints, and is in no folder that is written."""

    def __init__(self, model: PreTrainedModel, *, seed: int, **options: Any) -> None:
        """The second head is drawn from `seed`; `options` are those of `ScoreModel`."""
        super().__init__(model, **options)
        config = self.plain.config.get_text_config()
        self.second = SecondHead(config.hidden_size, getattr(config, "initializer_range", 0.02), seed)

    @property
    def heads(self) -> list[nn.Module]:
        return [*super().heads, self.second]

    def forward(self, batch: TreeBatch, index: Tensor, *, states: bool = False, both: bool = False) -> Any:
        """As `ScoreModel`; with `both` what `two_parts` is made of: the first head's outputs at `index`, of the second
        one's weight and of 0, [n + 2, K]; and the second one's outputs, [n, 1]."""
        if not both:
            return super().forward(batch, index, states=states)
        read = self.hidden_at(batch, index)
        other, weight = self.second(read)
        # The first head reads the second one's weight: FSDP gathers a head's weights in its own forward alone.
        return head_outputs(self.head, torch.cat([read.to(weight.dtype), weight, torch.zeros_like(weight)])), other

    def two_parts(self, batch: TreeBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each response its reward and the output of the second head, [S] each; and the product of the two heads'
        weights, a scalar."""
        rows, other = self(batch, batch.last, both=True)  # cut out here: FSDP warns where a view is what it returns
        return self.rule.reward(rows[:-2]), other.squeeze(-1), (rows[-2] - rows[-1]).squeeze(-1)


class SecondHead(nn.Module):
    """A linear head of one output that also gives its weight, [1, h]: where heads are sharded, there is no other place
    to read it."""

    def __init__(self, width: int, spread: float, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed + 1)  # from `seed` itself the first head is drawn
        self.weight = nn.Parameter(spread * torch.randn(1, width, generator=draw))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(states.to(self.weight.dtype), self.weight), self.weight.clone()


class Odin(EpochTraining):
    """The sum above, over all pairs and responses of a step."""

    scorer: OdinScoreModel

    def __init__(self, scorer: OdinScoreModel, stream: EpochStream, section: OdinSection, world: World) -> None:
        super().__init__(scorer, stream)
        self.section, self.world = section, world

    def windows(self) -> Iterator[Window]:
        return map(self.prepare, super().windows())

    @torch.no_grad()
    def prepare(self, window: Window) -> Window:
        """The step with the gradients of the term that couples its responses."""
        batches = [batch.to(self.world.device) for batch in window.batches]
        own = [_double(self.scorer.two_parts(batch)[:2], batch) for batch in batches]
        ranks = gather_objects([torch.cat(parts) for parts in zip(*own, strict=True)])
        quality, verbosity, length = (torch.cat(parts) for parts in zip(*ranks, strict=True))
        with torch.enable_grad():
            leaves = [quality.requires_grad_(), verbosity.requires_grad_()]
            term = self.section.length_weight * odin_length(quality, verbosity, length).sum() / max(1, len(length))
            slopes = torch.autograd.grad(term, leaves)
        start = sum(len(parts[0]) for parts in ranks[: self.world.rank])
        made = []
        for batch in batches:
            where = slice(start, start + batch.num_responses)
            start = where.stop
            made.append(_with_fields(batch, slopes[0][where], slopes[1][where], float(term) / max(1, len(length))))
        seen = {
            "correlation/quality": float(correlation(length, quality)),
            "correlation/verbosity": float(correlation(length, verbosity)),
        }
        return replace(window, batches=tuple(made), metrics={**window.metrics, **seen})

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        quality, verbosity, inner = self.scorer.two_parts(batch)
        chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
        both = quality + verbosity
        losses = bradley_terry(both[chosen], both[rejected])
        total = losses.sum() / max(1, counts.pairs) + self._of_weights(inner, batch, counts)
        if QUALITY in batch.per_response:  # an evaluation has no steps
            total = total + _coupled(batch, quality, verbosity)
        return _described(total, losses, quality.detach(), verbosity.detach(), inner.detach(), batch)

    def _of_weights(self, inner: Tensor, batch: TreeBatch, counts: Counts) -> Tensor:
        """The batch's part of the orthogonality term, which belongs to the whole step."""
        share = batch.num_responses / max(1, counts.responses)
        return self.section.orthogonal_weight * share * inner.abs()


def _double(parts: Sequence[Tensor], batch: TreeBatch) -> list[Tensor]:
    """Both scores and the length of each response, [S] float64 on the CPU."""
    return [x.double().cpu() for x in (*parts, batch.tokens_by_response())]


def _with_fields(batch: TreeBatch, quality: Tensor, verbosity: Tensor, value: float) -> TreeBatch:
    fields = {QUALITY: quality, VERBOSITY: verbosity, VALUE: torch.full_like(quality, value)}
    moved = {name: x.to(batch.tokens.device, torch.float32) for name, x in fields.items()}
    return replace(batch, per_response={**batch.per_response, **moved})


def _coupled(batch: TreeBatch, quality: Tensor, verbosity: Tensor) -> Tensor:
    """The value of the length term that the step has computed, and its gradient."""
    fields = batch.per_response
    follows = fields[QUALITY] * (quality - quality.detach()) + fields[VERBOSITY] * (verbosity - verbosity.detach())
    return (follows + fields[VALUE]).sum()


def _described(
    total: Tensor, losses: Tensor, quality: Tensor, verbosity: Tensor, inner: Tensor, batch: TreeBatch
) -> Loss:
    """The loss with its metrics; accuracy, margin and score are those of the part that is kept."""
    chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
    gap, both = quality[chosen] - quality[rejected], quality + verbosity
    right = (gap > 0).float()
    pairs, responses = len(batch.pairs), batch.num_responses
    metrics = {
        "nll": (losses.sum(), pairs),
        "accuracy": (right.sum(), pairs),
        "accuracy_of_both": ((both[chosen] > both[rejected]).sum(), pairs),
        "margin": (gap.sum(), pairs),
        "score": (quality.sum(), responses),
        "overlap": (inner.abs() * responses, responses),
    }
    items = {"quality": quality, "verbosity": verbosity, "length": batch.tokens_by_response()}
    return Loss(total, metrics, items, batch.by_tree(right, chosen))


def length_relations(items: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Pearson's correlation of length with both parts over all held-out responses; of something constant none."""
    found = {}
    for name in ("quality", "verbosity"):
        if np.ptp(items["length"]) > 0 and np.ptp(items[name]) > 0:
            found[f"correlation/{name}"] = float(np.corrcoef(items["length"], items[name])[0, 1])
    return found


def train_reward_odin(config: RewardOdinConfig) -> RunResult:
    """Trains a reward model whose reward says nothing of length on the pairs of `config.data`; `config.out`/model is a
    folder as that of `train_reward`, with the head r_Q alone."""
    session = open_session(config)
    data = session.prepare(pair_view)
    _require_lengths(config.data.train, data.train)
    kind = partial(OdinScoreModel, seed=config.train.seed)
    scorer = single_output(session, config.reward.output, "pairs", kind=kind)
    stream = session.stream(data.train, scorer)
    algorithm = Odin(scorer, stream, config.reward, session.world)
    return train_on(session, algorithm, scorer, stream, data, summary=length_relations)


def _require_lengths(file: str, trees: Sequence[TokenTree]) -> None:
    lengths = {int(branch.trained.sum()) for tree in trees for branch in tree.branches}
    if len(lengths) == 1:
        raise DataError(
            f"{file}: all answers have {lengths.pop()} tokens, so there is no relation with length to take out. "
            "Use: assent reward"
        )
