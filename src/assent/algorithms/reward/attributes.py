"""Reward models from ratings: a head with one output for each attribute, fitted to what annotators gave."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from assent.algorithms.reward.train import EpochTraining, train_on
from assent.config import AttributesConfig, AttributesSection
from assent.data.attributes import (
    AttributeView,
    Spread,
    deciding,
    names_of,
    spread_of,
    with_ratings_field,
)
from assent.data.packing import Counts, window
from assent.data.tree import TokenTree, TreeBatch
from assent.errors import DataError
from assent.losses import attribute_regression, rated
from assent.models.heads import WantedHead
from assent.models.policy import ScoreModel
from assent.models.reward_head import HeadRule
from assent.train.facts import Line
from assent.train.loop import Loss
from assent.train.run import RunResult
from assent.train.session import open_session

log = logging.getLogger(__name__)

HELPSTEER = {"helpfulness": 0.3, "correctness": 0.74, "coherence": 0.46, "complexity": 0.47, "verbosity": -0.33}
"""The weights of Nemotron-4 340B Reward (arXiv 2406.11704)."""
FIRST = 64
"""Responses whose hidden states a new head begins from."""


class AttributeRegression(EpochTraining):
    """Mean squared error over all ratings of a step."""

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        outputs = self.scorer(batch, batch.last)
        ratings = batch.per_response["ratings"]
        errors = attribute_regression(outputs.flatten(), ratings.flatten()).view_as(ratings)
        given = rated(ratings)
        metrics = {"mse": (errors.sum(), int(given.sum()))}
        items = {}
        for k, name in enumerate(self.scorer.rule.names):
            if len(self.scorer.rule) > 1:
                metrics[f"mse/{name}"] = (errors[:, k].sum(), int(given[:, k].sum()))
            items[f"output/{name}"] = outputs.detach()[:, k]
            items[f"rating/{name}"] = torch.where(given[:, k], ratings[:, k], torch.nan)
        none = torch.zeros(len(batch.keys), dtype=torch.float64, device=outputs.device)
        followed = (
            none.index_add(0, batch.prompt, errors.detach().sum(1).double()),
            none.index_add(0, batch.prompt, given.sum(1).double()),
        )
        return Loss(errors.sum() / max(1, counts.ratings), metrics, items, followed)


def correlations(items: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Pearson's correlation of each output with the ratings, and their mean; left out where either does not vary."""
    found = {}
    for name, ratings in items.items():
        if not name.startswith("rating/"):
            continue
        attribute = name.removeprefix("rating/")
        there = ~np.isnan(ratings)
        x, y = items[f"output/{attribute}"][there].astype(np.float64), ratings[there].astype(np.float64)
        if len(x) > 1 and x.std() > 0 and y.std() > 0:
            found[f"correlation/{attribute}"] = float(np.corrcoef(x, y)[0, 1])
    if not found:
        return {}
    mean = {"correlation": sum(found.values()) / len(found)}
    return mean if len(items) == 2 else mean | found


def rule_for(section: AttributesSection, spreads: Mapping[str, Spread]) -> HeadRule:
    """The outputs, their scales, and how they become one reward. Raises DataError for an attribute without ratings, and
    where all are constant; says which ones are."""
    names = tuple(spreads)
    if empty := [name for name, spread in spreads.items() if not spread.count]:
        raise DataError(f"No rating to train on of {', '.join(empty)}. Leave it out of --attributes.outputs.")
    constant = {name: spread for name, spread in spreads.items() if spread.lowest == spread.highest}
    for name, spread in constant.items():
        if len(constant) < len(names):
            log.warning(f"the attribute {name} is {spread.lowest:g} in all {spread.count:,} ratings: nothing to learn")
    if len(constant) == len(names):
        raise DataError(f"All ratings of {', '.join(names)} are equal, so there is nothing to learn.")
    scale = tuple(section.scale or (spread.lowest, spread.highest) for spread in spreads.values())
    usual = HELPSTEER if set(names) == set(HELPSTEER) else dict.fromkeys(names, 1 / len(names))
    rule = HeadRule(names, tuple(usual[name] for name in names), scale)
    return rule.reweighted(section.weights, "--attributes.weights") if section.weights else rule


@torch.no_grad()
def begin_at(scorer: ScoreModel, trees: Sequence[TokenTree], means: Sequence[float], micro_tokens: int) -> None:
    """Sets a new head such that its outputs begin near the mean ratings: `W[k] = means[k] * mu / |mu|^2` with mu the
    mean hidden state of the first responses. The head has no bias (others would not read one), and from weights near 0
    an optimiser would spend its first steps on the means alone."""
    few: list[TokenTree] = []
    while len(few) < len(trees) and sum(len(tree.branches) for tree in few) < FIRST:
        few.append(trees[len(few)])
    states = [
        scorer.hidden_at(batch, batch.last).float()
        for batch in (b.to(scorer.device) for b in window(few, micro_tokens=micro_tokens, flat=not scorer.tree).batches)
    ]
    mean = torch.cat(states).mean(0)
    scorer.head.weight.copy_(torch.tensor(means, device=mean.device)[:, None] * mean / mean.square().sum())


def train_attributes(config: AttributesConfig) -> RunResult:
    """Trains a reward model on the ratings of `config.data`: one output for each attribute, in the ratings' own unit.
    `config.out`/model is an `AutoModelForSequenceClassification` folder whose logits at the last token are the
    attributes; its config.json says what they are called and how they become one reward."""
    section = config.attributes
    session = open_session(config)
    data = session.prepare(deciding(AttributeView(section.outputs, section.scale)))
    names = names_of(data.train_examples)
    data = replace(data, train=with_ratings_field(data.train), eval=with_ratings_field(data.eval))
    spreads = spread_of(data.train, names)
    rule = rule_for(section, spreads)
    means = [spread.mean for spread in spreads.values()]
    head = WantedHead(rule, begin=lambda model: begin_at(model, data.train, means, config.train.micro_tokens))
    scorer = session.score_model(trainable=True, new_head=True, head=head)
    scorer.plain.config.assent_head["trained_at"] = "last"
    stream = session.stream(data.train, scorer)
    algorithm = AttributeRegression(scorer, stream)
    return train_on(session, algorithm, scorer, stream, data, summary=correlations, about=[_about(rule, spreads)])


def _about(rule: HeadRule, spreads: Mapping[str, Spread]) -> Line:
    parts = [
        f"{name} ({spread.count:,} ratings, {low:g} to {high:g}, weight {weight:g})"
        for (name, spread), (low, high), weight in zip(spreads.items(), rule.scale, rule.weights, strict=True)
    ]
    return Line("Outputs", ", ".join(parts))
