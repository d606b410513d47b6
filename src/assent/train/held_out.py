"""Held-out evaluation of whatever an algorithm trains on: its own loss and metrics, without gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from assent.data.packing import EpochStream, Window
from assent.data.tree import TokenTree
from assent.distributed import World, all_sum_dict, gather_objects
from assent.statistics import proportion_interval
from assent.train.finite import DIVERGED, require_numbers
from assent.train.loop import Algorithm, add_sums
from assent.train.measured import Each, Evaluation

CHUNK = 64
"""Trees in one evaluation window; the loss is a sum over global counts, so it changes nothing."""


@torch.no_grad()
def held_out(
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    stream: EpochStream,
    world: World,
    prepare: Callable[[Window], Window] = lambda window: window,
    summary: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]] = lambda items: {},
) -> Evaluation:
    """The metrics of `algorithm.loss` on `trees`, each under "eval/"; accuracies with their 95 % Wilson interval
    (`_low`, `_high`); and what `summary` makes of the loss's items over all trees and ranks. The keys of the trees are
    their positions."""
    sums: dict = {}
    items: dict[str, list[np.ndarray]] = defaultdict(list)
    followed: dict[int, tuple[float, float]] = {}
    for module in algorithm.modules.values():
        module.eval()
    for start in range(0, len(trees), CHUNK):
        part = prepare(stream.pack(trees[start : start + CHUNK]))
        for batch in part.batches:
            loss = algorithm.loss(batch.to(world.device), part.counts)
            add_sums(sums, loss.metrics)
            for name, values in loss.items.items():
                items[name].append(values.float().cpu().numpy())
            if loss.followed is not None:
                followed |= zip(batch.keys, zip(*(x.tolist() for x in loss.followed), strict=True), strict=True)
    for module in algorithm.modules.values():
        module.train()
    metrics: dict[str, float] = {}
    for name, (value, count) in all_sum_dict(sums).items():
        if not count:  # of a kind that the held-out data do not have
            continue
        require_numbers("evaluation", {name: value}, DIVERGED)
        metrics[f"eval/{name}"] = value / count
        if name == "accuracy":
            interval = proportion_interval(value, count)
            metrics["eval/accuracy_low"], metrics["eval/accuracy_high"] = interval.low, interval.high
    ranks = gather_objects({name: np.concatenate(parts) for name, parts in items.items()})
    everything = {name: np.concatenate([rank[name] for rank in ranks]) for name in items}
    metrics |= {f"eval/{name}": value for name, value in summary(everything).items()}
    found = {key: value for rank in gather_objects(followed) for key, value in rank.items()}
    return Evaluation(metrics, each=Each.of(found, len(trees)) if found else None)
