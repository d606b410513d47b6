"""Held-out evaluation of whatever an algorithm trains on: its own loss and metrics, without gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from assent.algorithms.run import Evaluation
from assent.data.packing import EpochStream
from assent.data.tree import TokenTree
from assent.statistics import proportion_interval
from assent.train.distributed import World, all_sum_dict
from assent.train.loop import Algorithm, add_sums

CHUNK = 64
"""Trees in one evaluation window; the loss is a sum over global counts, so it changes nothing."""


@torch.no_grad()
def held_out(algorithm: Algorithm, trees: Sequence[TokenTree], stream: EpochStream, world: World) -> Evaluation:
    """The metrics of `algorithm.loss` on `trees`, each under "eval/"; accuracies with their 95 % Wilson interval
    (`_low`, `_high`)."""
    sums: dict = {}
    for module in algorithm.modules.values():
        module.eval()
    for start in range(0, len(trees), CHUNK):
        part = stream.pack(trees[start : start + CHUNK])
        for batch in part.batches:
            add_sums(sums, algorithm.loss(batch.to(world.device), part.counts).metrics)
    for module in algorithm.modules.values():
        module.train()
    metrics: dict[str, float] = {}
    for name, (value, count) in all_sum_dict(sums).items():
        metrics[f"eval/{name}"] = value / count
        if name == "accuracy":
            interval = proportion_interval(value, count)
            metrics["eval/accuracy_low"], metrics["eval/accuracy_high"] = interval.low, interval.high
    return Evaluation(metrics)
