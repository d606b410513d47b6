"""ODIN frees the reward of a relation with length that the plain reward model takes up from the same pairs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from assent.algorithms.reward.odin import Odin, OdinScoreModel
from assent.algorithms.reward.pairs import RewardModelling
from assent.config import ModelConfig, OdinSection, OptimConfig, RewardSection
from assent.data.packing import EpochStream
from assent.data.tree import Branch, TokenTree, collate
from assent.distributed import World
from assent.models.heads import WantedHead, load_score_model
from assent.train.loop import train_steps
from assent.train.optim import build_optimizer

ONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
GOOD, BAD, FILLER = 50, 60, 70
STEPS = 60


def answer(good: bool, length: int) -> Branch:
    """A word that is good or bad, and filler."""
    return Branch(np.array([GOOD if good else BAD] + [FILLER] * length), np.ones(length + 1, bool))


def pairs(number: int, seed: int, taste: float) -> list[TokenTree]:
    """Good against bad answers of random length; with `taste` the label is that of quality + taste * length."""
    draw, made = np.random.default_rng(seed), []
    for key in range(number):
        first = bool(draw.integers(2))
        lengths = draw.integers(1, 13, 2)
        worth = (2.0 if first else 0.0) + taste * lengths[0], (0.0 if first else 2.0) + taste * lengths[1]
        best = int(worth[1] + draw.logistic() * 0.3 > worth[0])
        branches = (answer(first, lengths[0]), answer(not first, lengths[1]))
        made.append(TokenTree(np.array([5, 6]), branches, ((best, 1 - best, 0.0),), key=key))
    return made


def trained(kind: str, folder: Path, tokenizer) -> tuple[float, float]:
    """Correlation of reward and length among equally good answers, and accuracy about which is good."""
    head = WantedHead(kind=partial(OdinScoreModel, seed=0) if kind == "odin" else None)
    scorer = load_score_model(ModelConfig(str(folder), precision="fp32"), tokenizer, max_length=64, head=head)
    stream = EpochStream(pairs(256, 1, 0.25), batch_size=32, micro_tokens=1 << 20, seed=0, flat=False)
    if kind == "odin":
        algorithm = Odin(scorer, stream, OdinSection(), ONE)
    else:
        algorithm = RewardModelling(scorer, stream, RewardSection())
    optim = OptimConfig(lr=3e-3, warmup=0.0)
    optimizer = build_optimizer([(scorer, optim.lr)], optim)
    for _ in train_steps(algorithm, optimizer, optim, ONE, start=0, total=STEPS):
        pass
    held = [answer(good, length) for good in (True, False) for length in range(1, 13)]
    batch = collate([TokenTree(np.array([5, 6]), tuple(held))])
    with torch.no_grad():
        good, bad = scorer.rewards(batch).reward.view(2, 12).numpy()
    length = np.arange(1, 13)
    relation = np.mean([np.corrcoef(length, part)[0, 1] * part.std() for part in (good, bad)])
    return relation / np.concatenate([good, bad]).std(), (good[:, None] > bad[None]).mean()


def test_odin_frees_the_reward_of_length(tiny_model_dir: Path, tokenizer) -> None:
    plain, accuracy = trained("reward", tiny_model_dir, tokenizer)
    freed, its_accuracy = trained("odin", tiny_model_dir, tokenizer)
    assert plain > 0.3, f"{plain:.2f}: the plain model has taken up no relation, so there is none to lose"
    assert abs(freed) < 0.4 * plain, f"{freed:.2f} is not far below {plain:.2f}"
    assert its_accuracy > 0.9, f"quality is not told apart: {its_accuracy:.2f}, {accuracy:.2f} without ODIN"
