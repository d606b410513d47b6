"""Reward models from pairs: Bradley-Terry at the last token, or at every token of the response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from assent.config import RewardConfig, RewardSection
from assent.data.packing import Counts, EpochStream, Window
from assent.data.tree import TreeBatch
from assent.data.views import pair_view
from assent.losses import bradley_terry, bradley_terry_tokens
from assent.models.policy import ScoreModel
from assent.train.held_out import held_out
from assent.train.loop import Loss, run
from assent.train.opening import about_stream
from assent.train.run import RunResult
from assent.train.session import open_session


class RewardModelling:
    """Negative log-likelihood of the preferences, mean over all pairs of a step."""

    def __init__(self, scorer: ScoreModel, stream: EpochStream, section: RewardSection) -> None:
        self.scorer = scorer
        self.stream = stream
        self.section = section
        self.modules = {"reward": scorer}

    def windows(self) -> Iterator[Window]:
        return iter(self.stream)

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        margin = batch.margin if self.section.margin else None
        chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
        if self.section.readout == "mean":
            both = self.scorer(batch, torch.cat([batch.label, batch.last]))
            tokens, scores = both.split([len(batch.label), batch.num_responses])
            losses = bradley_terry_tokens(tokens, batch.response, batch.pairs, batch.num_responses, margin)
        else:
            scores = self.scorer(batch, batch.last)
            losses = bradley_terry(scores[chosen], scores[rejected], margin)
        gap = (scores[chosen] - scores[rejected]).detach()
        right = (gap > 0).float()
        pairs, responses = len(batch.pairs), batch.num_responses
        return Loss(
            losses.sum() / max(1, counts.pairs),
            {
                "nll": (losses.sum(), pairs),
                "accuracy": (right.sum(), pairs),
                "margin": (gap.sum(), pairs),
                "score": (scores.detach().sum(), responses),
            },
            followed=batch.by_tree(right, chosen),
        )

    def stepped(self, metrics: Mapping[str, float]) -> None:
        """Nothing follows from an update."""

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def train_reward(config: RewardConfig) -> RunResult:
    """Trains a reward model on the pairs of `config.data`; `config.out`/model is an
    `AutoModelForSequenceClassification` folder whose one logit at the last token is the reward (or the decoder with
    its head, where transformers has no such class: see models.heads)."""
    session = open_session(config)
    data = session.prepare(pair_view)
    scorer = session.score_model(trainable=True, new_head=True)
    scorer.plain.config.assent_head["trained_at"] = config.reward.readout
    stream = session.stream(data.train, scorer)
    algorithm = RewardModelling(scorer, stream, config.reward)
    total = session.total_steps(stream.steps_per_epoch)
    return run(
        session,
        algorithm,
        total=total,
        evaluate=(lambda: held_out(algorithm, data.eval, stream, session.world)) if data.eval else None,
        final={"model": scorer},
        about=[about_stream(stream, total)],
    )
