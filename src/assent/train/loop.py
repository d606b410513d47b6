"""The train loop. It knows no algorithm: it asks one for windows of packed trees and for the loss of a micro-batch, and
yields a `StepResult` after each update. Evaluating, logging and saving stand outside (`assent.train.run`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from assent.config import OptimConfig
from assent.data.packing import Counts, Window
from assent.data.tree import TreeBatch
from assent.distributed import World, all_sum_dict, clip_grad_norm
from assent.interrupt import interruptible
from assent.train.finite import require_numbers, require_updated
from assent.train.optim import lr_at, set_lr

UNAPPLIED = "The update was not applied. Lower --optim.lr, or look at the rows, rewards and weights of its loss."

Sums = Mapping[str, tuple[Tensor | float, float]]
"""Metrics as (sum, count): added up over micro-batches and ranks, divided once."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Loss of one micro-batch: `total` is a scalar, already divided by the window's global counts. `items` are numbers
    of single pairs or responses, which evaluations look at as a distribution. `followed` are sum and number of the
    followed metric in each tree, [P], by which evaluations of the same data are compared."""

    total: Tensor
    metrics: Sums
    items: Mapping[str, Tensor] = field(default_factory=dict)
    followed: tuple[Tensor, Tensor] | None = None


class Algorithm(Protocol):
    """Where windows come from, and what their loss is."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained, by name."""
        ...

    def windows(self) -> Iterator[Window | None]:
        """Windows without end, continuing from the loaded state; None at a point on the way to one whose state is worth
        keeping."""
        ...

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss: ...

    def stepped(self, metrics: Mapping[str, float]) -> None:
        """Called after each update, with the metrics of its step over all ranks: whatever follows from it is done here,
        before its state is asked for."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state of this moment. It changes nothing and waits for nothing: what is costly is `Deferred`, what is
        written to in place is copied. The modules are not in it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step did. `metrics` are global; `window` is what it was made from."""

    step: int
    metrics: dict[str, float]
    window: Window


def train_steps(
    algorithm: Algorithm,
    optimizer: torch.optim.Optimizer,
    config: OptimConfig,
    world: World,
    *,
    start: int,
    total: int,
) -> Iterator[StepResult | None]:
    """Takes the optimiser steps `start`+1 ... `total`; None where the algorithm has come to a state worth keeping
    between two of them. Raises NonFiniteError before an update whose loss, gradient or any other number of the step is
    not finite (the weights are then still those of the step before), and after one that made a weight that is not. All
    but the update itself may be interrupted."""
    windows = algorithm.windows()
    alone = world.size == 1
    for step in range(start + 1, total + 1):
        begun = time.perf_counter()
        while (window := _next(windows, alone)) is None:
            yield None
        ready = time.perf_counter()
        with interruptible(alone):
            metrics = _gradients(algorithm, window, config, world)
            require_numbers(f"step {step}", metrics, UNAPPLIED)
        set_lr(optimizer, lr_at(step - 1, total, config))
        metrics |= dict(window.metrics)
        metrics["lr"] = optimizer.param_groups[0]["lr"]
        metrics["tokens"] = float(window.counts.tokens)
        optimizer.step()
        require_updated(step, algorithm.modules)
        optimizer.zero_grad(set_to_none=True)
        algorithm.stepped(metrics)
        ended = time.perf_counter()
        metrics["time/step"] = ended - begun
        metrics["time/window"] = ready - begun
        metrics["time/tokens_per_second"] = sum(batch.num_tokens for batch in window.batches) / (ended - ready)
        yield StepResult(step, metrics, window)


def _next(windows: Iterator[Window | None], alone: bool) -> Window | None:
    with interruptible(alone):
        return next(windows)


def _gradients(algorithm: Algorithm, window: Window, config: OptimConfig, world: World) -> dict[str, float]:
    """Leaves the gradients of a step, clipped, at the weights; its metrics."""
    sums: dict[str, tuple[Tensor | float, float]] = {}
    for batch in window.batches:
        loss = algorithm.loss(batch.to(world.device), window.counts)
        loss.total.backward()
        add_sums(sums, {"loss": (loss.total.detach(), 0.0), **loss.metrics})
    metrics = _reduce(sums)
    for name, module in algorithm.modules.items():
        key = "grad_norm" if len(algorithm.modules) == 1 else f"grad_norm/{name}"
        metrics[key] = float(clip_grad_norm(trainable(module), config.max_grad_norm))
    return metrics


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that the optimiser updates."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def add_sums(sums: dict[str, tuple[Tensor | float, float]], new: Sums) -> None:
    """Adds (sum, count) metrics up in place."""
    for name, (value, count) in new.items():
        value = value.detach() if isinstance(value, Tensor) else value
        have, number = sums.get(name, (0.0, 0.0))
        sums[name] = (have + value, number + count)


def _reduce(sums: Sums) -> dict[str, float]:
    """Global means, without what the step has none of; the loss is divided already."""
    totals = all_sum_dict(sums)
    loss, _ = totals.pop("loss")
    return {"loss": loss} | {name: value / count for name, (value, count) in totals.items() if count}
