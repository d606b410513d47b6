"""The train loop. It knows no algorithm: it asks one for windows of packed trees and for the loss of a micro-batch, and
yields a `StepResult` after each update. What is evaluated, logged and saved then is up to `assent.train.run`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from assent import messages
from assent.config import OptimConfig
from assent.data.packing import Counts, Window
from assent.data.tree import TreeBatch
from assent.distributed import World, all_sum_dict, clip_grad_norm
from assent.interrupt import interruptible
from assent.models.policy import Backbone
from assent.train import completions
from assent.train.beforehand import try_outputs
from assent.train.closing import Appraisal
from assent.train.facts import Line, layout
from assent.train.finite import require_numbers, require_updated
from assent.train.guard import guard
from assent.train.measured import Evaluation
from assent.train.opening import opening, write_opening
from assent.train.optim import lr_at, set_lr
from assent.train.progress import ProgressDisplay
from assent.train.run import RunResult, TrainingRun
from assent.train.session import Session

log = logging.getLogger(__name__)

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


# ---- a run

_REHEARSED: ContextVar[bool] = ContextVar("rehearsed", default=False)


@contextlib.contextmanager
def rehearsal() -> Iterator[None]:
    """Runs that begin inside end before their first step, when everything is read, loaded and tried: for what must be
    known of several runs before the first of them is trained."""
    token = _REHEARSED.set(True)
    try:
        yield
    finally:
        _REHEARSED.reset(token)


def run(
    session: Session,
    algorithm: Algorithm,
    *,
    total: int,
    evaluate: Callable[[], Evaluation] | None,
    final: Mapping[str, Backbone],
    about: Sequence[Line],
    averages: Sequence[torch.nn.Module] = (),
    learning_rates: Mapping[str, float] | None = None,
    appraise: Callable[[], Appraisal | None] = lambda: None,
) -> RunResult:
    """Trains to step `total`, evaluating, logging and saving as `train` says. `final` maps folder names to the models
    to write at the end ("model" is the result); `about` is what the algorithm says of itself before the first step;
    `averages` are models that follow those that are trained, and are saved with them. `appraise` is asked at the end,
    with the final weights, how far they can be trusted.

    Whatever ends it early, `guard` saves the last good state and says what there is. Raises ShutdownRequested after
    SIGINT, SIGTERM or SIGHUP; NonFiniteError before a bad update.
    """
    modules = (*algorithm.modules.values(), *averages)
    try_outputs(session, modules, final, total=total, keeps_best=evaluate is not None)
    if _REHEARSED.get():
        session.folder.close()
        return RunResult(session.folder.path, session.folder.model, 0, {}, 0)
    state = TrainingRun(session, algorithm, total=total, evaluate=evaluate, learning_rates=learning_rates or {})
    label, main = Path(session.config.out).name, session.world.is_main
    if main:
        start = state.step
        facts = opening(session, state.command, algorithm.modules, state.optimizer, about, step=start, total=total)
        log.info(layout(facts, messages.width()))
        write_opening(facts, session.folder.path, step=start, total=total)
    with contextlib.closing(session.folder), guard(state):
        with ProgressDisplay(total, label, state.step) if main else contextlib.nullcontext() as bar:
            state.conclude()
            _take_steps(state, bar)
        with interruptible(session.world.size == 1):
            return state.finish(final, appraise)


def _take_steps(state: TrainingRun, bar: ProgressDisplay | None) -> None:
    """All steps, with what is due after each."""
    session, algorithm = state.session, state.algorithm
    steps = train_steps(
        algorithm, state.optimizer, session.config.optim, session.world, start=state.step, total=state.total
    )
    for result in steps:
        if result is None:
            state.keep()
            continue
        state.take(result)
        if bar and result.window.samples:
            bar.show(completions.table(result.window.samples))
        if bar:
            bar.update(state.step, str(state.live))
        state.conclude()
        if bar:
            bar.refresh(str(state.live))


# ---- a step


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
        metrics["time/tokens_per_second"] = window.num_tokens / (ended - ready)
        yield StepResult(step, metrics, window)


def _next(windows: Iterator[Window | None], alone: bool) -> Window | None:
    with interruptible(alone):
        return next(windows)


def _gradients(algorithm: Algorithm, window: Window, config: OptimConfig, world: World) -> dict[str, float]:
    """Leaves the gradients of a step, clipped, at the weights; its metrics."""
    sums: dict[str, tuple[Tensor | float, float]] = {}
    for loss in _losses(algorithm, window, world):
        loss.total.backward()
        add_sums(sums, {"loss": (loss.total.detach(), 0.0), **loss.metrics})
    metrics = _reduce(sums)
    for name, module in algorithm.modules.items():
        key = "grad_norm" if len(algorithm.modules) == 1 else f"grad_norm/{name}"
        metrics[key] = float(clip_grad_norm(trainable(module), config.max_grad_norm))
    return metrics


def _losses(algorithm: Algorithm, window: Window, world: World) -> Iterator[Loss]:
    """Of one micro-batch after the other, so that there is one graph at a time."""
    for batch in window.batches:
        yield algorithm.loss(batch.to(world.device), window.counts)
    if window.mixed is not None:
        for batch in window.mixed.batches:
            yield window.mixed.loss(batch.to(world.device))


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
