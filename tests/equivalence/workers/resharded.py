"""Gradients of a policy whose sharded weights are given back between the forward and the backward pass; started on
two ranks by test_resharded.py, or called in process.

Arguments: the model folder, the folder for the gradients.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from assent import distributed as d
from assent.config import ModelConfig
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.models.loading import load_policy
from assent.models.policy import Policy, TokenScores

WAYS = ("kept", "given back", "given back, unseen", "after every forward", "another pass between", "value head alone")
"""What becomes of the gathered weights before the gradients need them."""


class Wrapped:
    """Something in which FSDP finds no tensors."""

    def __init__(self, scores: TokenScores) -> None:
        self.scores = scores


class Unseen(Policy):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        scores = super().forward(*args, **kwargs)
        return Wrapped(scores) if isinstance(scores, TokenScores) else scores


def batch(rank: int) -> TreeBatch:
    """The share of one rank: shares are unequal."""
    draw = np.random.default_rng(rank)
    prompt, *answers = (draw.integers(0, 300, size) for size in ((7, 4, 6), (3, 5))[rank])
    return collate([TokenTree(prompt, tuple(Branch(ids, np.ones(len(ids), bool)) for ids in answers))])


def loss(policy: Policy, share: TreeBatch) -> torch.Tensor:
    """Something of everything that the head gives."""
    anchor = policy.anchor(share, 2.0)
    scores = policy(share, 0.7, entropy=True, anchor=anchor)
    scores = scores.scores if isinstance(scores, Wrapped) else scores
    assert scores.values is not None
    return (scores.logprobs + 0.3 * scores.entropy + 0.5 * scores.kl + 0.2 * scores.values).sum()


def gradients(model: Path, way: str, world: d.World, shares: list[TreeBatch]) -> dict[str, torch.Tensor]:
    """Of all shares, whole."""
    policy = load_policy(ModelConfig(str(model), precision="fp32"), max_length=64)
    policy.add_value_head()
    torch.nn.init.constant_(policy.value_head.weight, 0.1)
    if way == "given back, unseen":
        policy.__class__ = Unseen
    d.shard(policy, world, blocks=policy.blocks)
    parts = [part for part in policy.modules() if isinstance(part, FSDPModule)]
    if parts and way == "after every forward":
        policy.set_reshard_after_forward(True)
    for share in shares:
        total = policy(share, head_only=True).values.sum() if way == "value head alone" else loss(policy, share)
        if way == "another pass between":
            with torch.no_grad(), d.unsharded(policy):
                policy(share)
        if way.startswith("given back"):
            for part in parts:
                part.reshard()
        total.backward()
    found = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


def main(model: Path, out: Path) -> None:
    world = d.init(1)
    for way in WAYS:
        found = gradients(model, way, world, [batch(world.rank)])
        if world.is_main:
            torch.save(found, out / f"{way}.pt")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
