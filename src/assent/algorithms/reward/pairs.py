"""Reward models from pairs: Bradley-Terry at the last token, or at every token of the response."""

from __future__ import annotations

import torch

from assent.algorithms.reward.train import EpochTraining, train_on
from assent.config import RewardConfig, RewardSection
from assent.data.packing import Counts, EpochStream
from assent.data.tree import TreeBatch
from assent.data.views import pair_view
from assent.errors import ConfigError
from assent.losses import bradley_terry, bradley_terry_tokens
from assent.models.policy import ScoreModel
from assent.models.reward_head import shown
from assent.train.loop import Loss
from assent.train.run import RunResult
from assent.train.session import open_session


class RewardModelling(EpochTraining):
    """Negative log-likelihood of the preferences, mean over all pairs of a step."""

    def __init__(self, scorer: ScoreModel, stream: EpochStream, section: RewardSection) -> None:
        super().__init__(scorer, stream)
        self.section = section

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        margin = batch.margin if self.section.margin else None
        chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
        if self.section.readout == "mean":
            both = self.scorer.scalars(batch, torch.cat([batch.label, batch.last]))
            tokens, scores = both.split([len(batch.label), batch.num_responses])
            losses = bradley_terry_tokens(tokens, batch.response, batch.pairs, batch.num_responses, margin)
        else:
            scores = self.scorer.rewards(batch).reward
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


def train_reward(config: RewardConfig) -> RunResult:
    """Trains a reward model on the pairs of `config.data`; `config.out`/model is an
    `AutoModelForSequenceClassification` folder whose one logit at the last token is the reward (or the decoder with
    its head, where transformers has no such class: see models.heads)."""
    session = open_session(config)
    data = session.prepare(pair_view)
    scorer = session.score_model(trainable=True, new_head=True, only=config.reward.output)
    if len(scorer.rule) > 1:
        raise ConfigError(
            f"{config.model.path} has {len(scorer.rule)} outputs ({shown(scorer.rule.names)}), and pairs train one. Say"
            " which: --reward.output NAME"
        )
    scorer.plain.config.assent_head["trained_at"] = config.reward.readout
    stream = session.stream(data.train, scorer)
    return train_on(session, RewardModelling(scorer, stream, config.reward), scorer, stream, data)
