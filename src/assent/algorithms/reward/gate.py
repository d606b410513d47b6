"""Gated mixture (ArmoRM, arXiv 2406.12845): a gate on the prompt weighs the outputs of a frozen reward model.

Stage 1 (`gate_outputs`) are outputs for absolute ratings, and length taken out of them. In stage 2, here, the gate is
trained on pairs. The backbone is frozen, so its states are computed once (`gate_tables`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel

from assent.algorithms.reward.gate_outputs import check_source, outputs_of, without_length
from assent.algorithms.reward.gate_tables import RowStream, Tables, gaps_of, joined, tables_of
from assent.algorithms.reward.train import EpochTraining, train_on
from assent.config import RewardGateConfig
from assent.data.packing import Counts, EpochStream
from assent.data.tree import TokenTree, TreeBatch
from assent.data.views import pair_view
from assent.errors import DataError
from assent.losses import bradley_terry
from assent.losses.linear import pair_weights
from assent.models.gate import LAST, GateRule, made, shares
from assent.models.gated import GatedScoreModel
from assent.models.reward_head import HeadRule
from assent.train.facts import Line, rounded
from assent.train.loop import Loss
from assent.train.run import RunResult
from assent.train.session import open_session

FEWEST = 10
"""Pairs that a gate is trained on at least."""
STREAM = 3
"""Tells the draws of dropout from other uses of a seed."""


class GateTraining(EpochTraining):
    """The gate alone is trained: -log sigmoid of the gated rewards' gap, mean over all pairs of a step."""

    def __init__(
        self, scorer: GatedScoreModel, stream: EpochStream, tables: Tables, fixed: np.ndarray, dropout: float
    ) -> None:
        """`fixed` [K] are the best weights of the outputs that do not depend on the prompt."""
        super().__init__(scorer, stream)
        self.gate, self.tables = scorer.gate, tables
        self.modules = {"gate": scorer.gate}
        self.fixed = torch.from_numpy(fixed).to(tables.outputs)
        self.dropout, self.units = dropout, sum(scorer.gate_rule.hidden)

    def kept(self, prompts: int) -> Tensor | None:
        """What dropout multiplies the gate's hidden units by in this step, for the prompts of this rank out of so many;
        None where it is off."""
        if not (self.gate.training and self.dropout):
            return None
        stream = self.stream
        of_all = dropped(prompts, self.units, self.dropout, seed=stream.seed, step=stream.given)
        return torch.from_numpy(of_all[stream.rank :: stream.ranks]).to(self.fixed)

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        rows, prompts = batch.tokens[batch.last], batch.tokens[: len(batch.keys)]
        chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
        outputs, weights = self.tables.outputs[rows], self.gate(self.tables.states[prompts], self.kept(counts.prompts))
        rewards = shares(outputs, weights[batch.prompt], self.gate.transform).sum(1)
        losses = bradley_terry(rewards[chosen], rewards[rejected])
        gap = (rewards[chosen] - rewards[rejected]).detach()
        right, pairs = (gap > 0).float(), len(batch.pairs)
        metrics: dict[str, tuple[Tensor | float, float]] = {
            "nll": (losses.sum(), pairs),
            "accuracy": (right.sum(), pairs),
            "margin": (gap.sum(), pairs),
        }
        others = {"fixed": outputs @ self.fixed, "uniform": (outputs @ self.gate.transform).mean(1)}
        for name, reward in others.items():
            metrics[f"accuracy_{name}"] = ((reward[chosen] > reward[rejected]).float().sum(), pairs)
        for name, column in zip(self.scorer.rule.names, weights.detach().T, strict=True):
            metrics[f"weight/{name}"] = (column.sum(), len(batch.keys))
        return Loss(
            losses.sum() / max(1, counts.pairs),
            metrics,
            items={"reward": rewards.detach(), "length": self.tables.lengths[rows]},
            followed=batch.by_tree(right, chosen),
        )


def dropped(rows: int, units: int, share: float, *, seed: int, step: int) -> np.ndarray:
    """Dropout as factors [rows, units]: 0 with probability `share`, otherwise 1 / (1 - share). A function of its
    arguments alone: all ranks draw the same for a whole step, and a resumed run draws what it would have drawn."""
    draw = np.random.Generator(np.random.Philox(key=[seed, (STREAM << 48) + step]))
    return np.where(draw.random((rows, units), np.float32) < share, 0, 1 / (1 - share)).astype(np.float32)


def length_relation(items: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Rank correlation of the reward with the length of the answer, over all held-out answers."""
    found = spearmanr(items["reward"], items["length"]).statistic if len(items["reward"]) > 2 else np.nan
    return {} if np.isnan(found) else {"length_relation": float(found)}


def train_gate(config: RewardGateConfig) -> RunResult:
    """Trains a gate over a frozen reward model; `config.out`/model holds both: a plain folder of K outputs for others,
    whose rewards are gated here (`assent.models.gate`)."""
    session = open_session(config)
    check_source(config)
    data = session.prepare(pair_view)
    if (pairs := sum(len(tree.pairs) for tree in data.train)) < FEWEST:
        raise DataError(f"{config.data.train}: a gate needs at least {FEWEST} pairs to be trained on. Got {pairs}.")
    scorer, outputs = outputs_of(session, config, partial(_with_new_gate, config=config))
    tables = tables_of(session, scorer, data.train)
    held: list[TokenTree] = []
    both = tables
    if data.eval:
        both, held = joined(tables, tables_of(session, scorer, data.eval))
    matrix, length = without_length(tables, scorer.rule, config.gate)
    fixed = matrix @ pair_weights(gaps_of(tables) @ matrix)
    scorer.rule = replace(scorer.rule, weights=tuple(fixed.tolist()))
    scorer.set_transform(matrix.astype(np.float32).tolist(), config.gate.verbosity if config.gate.decorrelate else None)
    train, world = config.train, session.world
    stream = RowStream(
        tables.trees,
        batch_size=train.batch_size,
        micro_tokens=train.micro_tokens,
        seed=train.seed,
        flat=False,
        rank=world.rank,
        ranks=world.size,
    )
    size = sum(weight.numel() for weight in scorer.gate.parameters())
    gate = Line("Gate", f"{rounded(size)} parameters, on the state at {LAST}; all else is frozen")
    about, algorithm = [outputs, length, gate], GateTraining(scorer, stream, both, fixed, config.gate.dropout)
    return train_on(session, algorithm, scorer, stream, data, summary=length_relation, about=about, held=held)


def _with_new_gate(
    model: PreTrainedModel, *, config: RewardGateConfig, rule: HeadRule, **options: Any
) -> GatedScoreModel:
    """The model with a gate drawn from the run's seed, over outputs from which nothing is taken out yet."""
    section, width = config.gate, model.config.get_text_config().hidden_size
    gate_rule = GateRule(
        hidden=(section.width,) * section.layers,
        temperature=section.temperature,
        transform=tuple(map(tuple, np.eye(len(rule)).tolist())),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        gate = made(gate_rule, width, scale=section.scale)
    return GatedScoreModel(model, gate=gate, gate_rule=gate_rule, rule=rule, **options)
