"""Reward models from several ranked answers to a prompt: the best as a choice, all pairs of a prompt, or the whole
order as a sequence of choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from assent.algorithms.reward.single import single_output
from assent.algorithms.reward.train import EpochTraining, train_on
from assent.config import RewardRankingConfig
from assent.data.packing import Counts, EpochStream
from assent.data.tree import TreeBatch
from assent.data.views import ranking_view
from assent.losses import best_of_k, k_wise, ordered_pairs, plackett_luce_scores
from assent.models.policy import ScoreModel
from assent.train.loop import Loss
from assent.train.run import RunResult
from assent.train.session import open_session

RANKING_LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "choice": best_of_k,
    "kwise": k_wise,
    "plackett-luce": plackett_luce_scores,
}
"""By the option `reward.loss`: scores, levels and prompts of responses to losses, [S]."""


class RewardRanking(EpochTraining):
    """Negative log-likelihood of the rankings, mean over all rankings of a step."""

    def __init__(self, scorer: ScoreModel, stream: EpochStream, loss: str) -> None:
        super().__init__(scorer, stream)
        self.losses = RANKING_LOSSES[loss]

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        scores, level = self.scorer.rewards(batch).reward, batch.per_response["level"]
        losses = self.losses(scores, level, batch.prompt)
        found = scores.detach()
        pairs = ordered_pairs(level, batch.prompt)
        gap = found[pairs[:, 0]] - found[pairs[:, 1]]
        right = (gap > 0).float()
        return Loss(
            losses.sum() / max(1, counts.prompts),
            {
                "nll": (losses.sum(), len(batch.keys)),
                "accuracy": (right.sum(), len(pairs)),
                "best": (_finds_best(found, level, batch), len(batch.keys)),
                "margin": (gap.sum(), len(pairs)),
                "score": (found.sum(), batch.num_responses),
            },
            followed=batch.by_tree(right, pairs[:, 0]),
        )


def _finds_best(scores: Tensor, level: Tensor, batch: TreeBatch) -> Tensor:
    """In how many rankings an answer of the best level alone has the highest score."""
    tops = []
    for among in (level == 0, level > 0):
        top = scores.new_full((len(batch.keys),), -torch.inf)
        tops.append(top.scatter_reduce(0, batch.prompt[among], scores[among], "amax"))
    return (tops[0] > tops[1]).sum()


def train_reward_ranking(config: RewardRankingConfig) -> RunResult:
    """Trains a reward model on the rankings of `config.data`, which may have any number of answers and tied ones;
    `config.out`/model is a folder as that of `train_reward`."""
    session = open_session(config)
    data = session.prepare(ranking_view)
    scorer = single_output(session, config.reward.output, "rankings", kind=ScoreModel)
    stream = session.stream(data.train, scorer)
    return train_on(session, RewardRanking(scorer, stream, config.reward.loss), scorer, stream, data)
