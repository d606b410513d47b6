"""A reward model of several outputs recovers the gold attributes from clean ratings of which a part is missing, on
answers that nobody rated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from assent.algorithms.reward.attributes import AttributeRegression, begin_at
from assent.data.packing import EpochStream, window
from assent.data.tree import TokenTree
from assent.lab.enumerable import EnumerableWorld
from assent.lab.learning import MAX_LENGTH, Setting
from assent.models.heads import WantedHead, load_score_model
from assent.models.loading import load_tokenizer
from assent.models.reward_head import HeadRule

NAMES = ("length", "early letters", "late start")
STEPS, RATED, HELD_OUT = 350, 0.9, 0.2


def gold(world: EnumerableWorld) -> NDArray[np.float64]:
    """[X, Y, K]: letters of the answer; how many are among the first three; whether it begins with one of the last."""
    found = np.zeros((len(world.prompts), len(world.responses), len(NAMES)))
    for y, answer in enumerate(map(world.text, world.responses)):
        begins = float(answer[:1] in world.letters[-3:]) if answer else 0.0
        found[:, y] = len(answer), sum(letter in world.letters[:3] for letter in answer), begins
    return found


def rank_correlation(outputs: NDArray[np.float64], ratings: NDArray[np.float64]) -> float:
    """Goodman and Kruskal's gamma: of all pairs whose ratings differ, the share in order less the share out of it."""
    one, other = np.triu_indices(len(ratings), 1)
    order = np.sign(ratings[one] - ratings[other]) * np.sign(outputs[one] - outputs[other])
    return float(order.sum() / np.count_nonzero(ratings[one] != ratings[other]))


def test_gold_attributes_are_recovered(setting: Setting) -> None:
    world, draw = setting.world, np.random.default_rng(setting.seed)
    truth = gold(world)
    unseen = draw.random(truth.shape[:2]) < HELD_OUT
    ratings = np.where(draw.random(truth.shape) < RATED, truth, np.nan).astype(np.float32)
    trees: list[TokenTree] = []
    for x, tree in enumerate(world.trees()):
        kept = np.flatnonzero(~unseen[x] & ~np.isnan(ratings[x]).all(axis=1))
        branches = tuple(tree.branches[y] for y in kept)
        trees.append(replace(tree, branches=branches, per_response={"ratings": ratings[x][kept]}))

    torch.manual_seed(setting.seed)
    scorer = load_score_model(
        setting.model,
        load_tokenizer(setting.model),
        max_length=MAX_LENGTH,
        seed=setting.seed,
        head=WantedHead(
            HeadRule(NAMES, (1.0, 1.0, 1.0)),
            begin=lambda model: begin_at(model, trees, np.nanmean(ratings, (0, 1)).tolist(), 1 << 20),
        ),
    )
    before = correlations(scorer, world, truth, unseen)
    algorithm = AttributeRegression(scorer, EpochStream(trees, batch_size=8, micro_tokens=1 << 20, seed=0, flat=False))
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=4e-3, weight_decay=0.0)
    windows = iter(algorithm.windows())
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / STEPS)
        made = next(windows)
        for batch in made.batches:
            algorithm.loss(batch, made.counts).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = correlations(scorer, world, truth, unseen)
    assert min(before) < 0.5
    assert min(after) >= 0.9, dict(zip(NAMES, after, strict=True))


@torch.no_grad()
def correlations(scorer, world: EnumerableWorld, truth: NDArray[np.float64], unseen: NDArray[np.bool_]) -> list[float]:
    """Of each attribute, over the answers that nobody rated."""
    (batch,) = window(world.trees(), micro_tokens=1 << 20).batches
    outputs = scorer(batch, batch.last).double().numpy().reshape(truth.shape)
    return [rank_correlation(outputs[unseen][:, k], truth[unseen][:, k]) for k in range(len(NAMES))]
