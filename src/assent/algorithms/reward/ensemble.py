"""Reward models with several heads over one model, each trained on its own bootstrap sample: an ensemble at the price
of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from assent.algorithms.reward.train import EpochTraining, train_on
from assent.config import EnsembleConfig, EnsembleSection
from assent.data.packing import Counts, EpochStream
from assent.data.tree import TokenTree, TreeBatch
from assent.data.views import pair_view
from assent.losses import bradley_terry
from assent.models.heads import WantedHead
from assent.models.policy import ScoreModel
from assent.models.reward_head import HeadRule
from assent.train.facts import Line
from assent.train.loop import Loss
from assent.train.run import RunResult
from assent.train.session import open_session

TIMES = "bootstrap"
"""The field [S, K] that says how often the prompt of a response is in each head's sample."""


class HeadEnsemble(EpochTraining):
    """Negative log-likelihood of the preferences by each head, where a pair counts as often as its prompt is in the
    head's sample; the mean over heads and over all pairs of a step."""

    def __init__(self, scorer: ScoreModel, stream: EpochStream, section: EnsembleSection) -> None:
        super().__init__(scorer, stream)
        self.section = section

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        outputs = self.scorer(batch, batch.last)
        heads, (chosen, rejected) = outputs.shape[1], batch.pairs.T
        margin = batch.margin.repeat_interleave(heads) if self.section.margin else None
        losses = bradley_terry(outputs[chosen].flatten(), outputs[rejected].flatten(), margin).view(-1, heads)
        if TIMES in batch.per_response:  # not in held-out data
            losses = losses * batch.per_response[TIMES][chosen]
        total = losses.sum() / heads
        outputs = outputs.detach()
        scores = self.scorer.rule.reward(outputs)
        gap = scores[chosen] - scores[rejected]
        right, pairs, responses = (gap > 0).float(), len(batch.pairs), batch.num_responses
        return Loss(
            total / max(1, counts.pairs),
            {
                "nll": (total, pairs),
                "accuracy": (right.sum(), pairs),
                "margin": (gap.sum(), pairs),
                "score": (scores.sum(), responses),
                "std": (outputs.std(1, correction=0).sum(), responses),
            },
            followed=batch.by_tree(right, chosen),
        )


def with_samples(trees: Sequence[TokenTree], heads: int, seed: int) -> list[TokenTree]:
    """The trees with `TIMES`: for each head as many prompts drawn with replacement as there are, with all of their
    pairs (pairs of one prompt are no independent evidence)."""
    draw = np.random.default_rng([seed, heads])
    even = np.full(len(trees), 1 / len(trees))
    times = draw.multinomial(len(trees), even, size=heads).T.astype(np.float32)
    return [
        replace(tree, per_response={**tree.per_response, TIMES: np.repeat(own[None], len(tree.branches), axis=0)})
        for tree, own in zip(trees, times, strict=True)
    ]


def rule_for(section: EnsembleSection) -> HeadRule:
    """The heads, and how they become one reward."""
    names = tuple(f"head-{number}" for number in range(1, section.heads + 1))
    weights = (1 / section.heads,) * section.heads
    return HeadRule(names, weights, ensemble=section.combine, deviations=section.deviations)


def train_ensemble(config: EnsembleConfig) -> RunResult:
    """Trains a reward model with `config.ensemble.heads` heads on the pairs of `config.data`; `config.out`/model is an
    `AutoModelForSequenceClassification` folder whose logits at the last token are the heads' rewards; its config.json
    says how they become one."""
    section = config.ensemble
    session = open_session(config)
    data = session.prepare(pair_view)
    scorer = session.score_model(trainable=True, new_head=True, head=WantedHead(rule_for(section)))
    if section.frozen:
        scorer.model.requires_grad_(False)
        scorer.head.requires_grad_(True)
    scorer.plain.config.assent_head["trained_at"] = "last"
    data = replace(data, train=with_samples(data.train, section.heads, config.train.seed))
    stream = session.stream(data.train, scorer)
    frozen = ", over a frozen model" if section.frozen else ""
    about = Line("Heads", f"{section.heads}, as one reward their {section.combine}{frozen}")
    return train_on(session, HeadEnsemble(scorer, stream, section), scorer, stream, data, about=[about])
