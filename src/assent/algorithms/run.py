"""One training run from start or checkpoint to the final model: what stands around the train loop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from assent import settings
from assent.algorithms.beforehand import try_outputs
from assent.algorithms.card import model_card
from assent.algorithms.final import write_final
from assent.algorithms.guard import guard
from assent.algorithms.job import Job
from assent.data.dataset import summary
from assent.errors import Interrupted, RunFolderError
from assent.models.policy import Backbone
from assent.train import checkpoint, completions, distributed, interrupt
from assent.train.finite import require_answers, require_evaluated, require_saved
from assent.train.log import MetricsLog, SamplesLog, open_trackers
from assent.train.loop import Algorithm, StepResult, resolved, train_steps
from assent.train.optim import build_optimizer
from assent.train.progress import Progress, say


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out metrics (names under "eval/") and rows for samples.jsonl."""

    metrics: dict[str, float]
    samples: list[dict[str, object]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its folder, the final model's folder, and the last metrics, held-out ones included."""

    out: Path
    model: Path
    steps: int
    metrics: Mapping[str, float]


SHOWN = ("loss", "nll", "accuracy", "reward", "kl")
"""Metrics beside the progress bar, where an algorithm has them."""


@dataclass(frozen=True, slots=True)
class Due:
    """What is left to do of the step that was taken last: rows for the logs, an evaluation, a checkpoint."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[dict[str, object], ...] = ()
    measure: bool = False
    save: bool = False


class Run:
    """The mutable part of a run: step, logs, best evaluation so far. `kept` is the last good state, which belongs to
    the weights as they are where `intact`; `began` was the first, `written` the one in the newest checkpoint."""

    def __init__(
        self,
        job: Job,
        algorithm: Algorithm,
        *,
        total: int,
        evaluate: Callable[[], Evaluation] | None,
        best: tuple[str, Callable[..., float]],
        learning_rates: Mapping[str, float],
    ) -> None:
        self.job, self.algorithm, self.total, self.evaluate, self.best = job, algorithm, total, evaluate, best
        self.config = job.config
        rates = [(module, learning_rates.get(name, self.config.optim.lr)) for name, module in algorithm.modules.items()]
        self.optimizer = build_optimizer(rates, self.config.optim)
        self.optimizer.register_step_pre_hook(lambda *_: self._begin_update())
        self.step = 0
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.metrics: dict[str, float] = {}
        self.due = Due(measure=evaluate is not None)
        resumed = job.folder.checkpoint is not None
        positions = self._restore() if resumed else {}
        self.logs = self._open_logs(positions) if job.world.is_main else {}
        self.keep()
        self.began = self.kept
        self.written = self.kept if resumed else None

    # ---- checkpoints

    def _restore(self) -> dict[str, int]:
        assert self.job.folder.checkpoint is not None
        state = checkpoint.load(self.job.folder.checkpoint)
        for name, module in self.algorithm.modules.items():
            distributed.load_full_state_dict(module, state[name])
        distributed.load_full_optimizer_state(self.optimizer, self.algorithm.modules, state["optimizer"])
        self.algorithm.load_state_dict(state["algorithm"])
        torch.set_rng_state(state["run"]["rng"])
        self.step, self.metrics = state["run"]["step"], state["run"]["metrics"]
        self.best_step, self.best_value = state["run"]["best_step"], state["run"]["best_value"]
        self.due = Due(**state["run"].get("due", {}))
        if self.step > self.total:
            raise RunFolderError(f"--resume: that checkpoint is of step {self.step}, the run has only {self.total}.")
        if self.job.world.is_main:
            say(f"Resuming {self.config.out} at step {self.step} of {self.total}.")
        return state["run"]["positions"]

    def keep(self) -> None:
        """Makes the state of this moment the last good one. Costs next to nothing: the weights are not in it."""
        run = {
            "step": self.step,
            "metrics": dict(self.metrics),
            "best_step": self.best_step,
            "best_value": self.best_value,
            "rng": torch.get_rng_state(),
            "positions": {name: log.position() for name, log in self.logs.items()},
            "due": asdict(self.due),
        }
        self.kept: dict[str, Any] = {"algorithm": self.algorithm.state_dict(), "run": run}
        self._before: list[int] | None = None

    def _begin_update(self) -> None:
        self._before = self._versions()

    @property
    def intact(self) -> bool:
        """Whether the weights are still those of `kept`: unless an update began, and has changed any."""
        return self._before is None or self._before == self._versions()

    def _versions(self) -> list[int]:
        """How often each trained tensor, and each of the optimiser, was written to."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        return [tensor._version for tensor in (*weights, *state) if isinstance(tensor, Tensor)]

    def save(self) -> None:
        """Writes `kept` as a checkpoint, with the weights. Every rank must call it. Raises NonFiniteError where one of
        its numbers, or of those that its models give, is not finite."""
        kept = self.kept
        for name, module in self.algorithm.modules.items():
            if isinstance(module, Backbone):
                require_answers(kept["run"]["step"], name, own_numbers(module, self.job.tokenizer))
                distributed.reshard(module)
        state: dict[str, Any] = {
            name: distributed.full_state_dict(module) for name, module in self.algorithm.modules.items()
        }
        state["optimizer"] = distributed.full_optimizer_state(self.optimizer, self.algorithm.modules)
        state |= resolved(kept)
        distributed.on_main(lambda: self._write_checkpoint(state))
        self.written = kept

    def _write_checkpoint(self, state: Mapping[str, Any]) -> None:
        require_saved(state["run"]["step"], {name: part for name, part in state.items() if name != "run"})
        for log in self.logs.values():
            log.sync()
        checkpoint.save(
            self.job.folder.checkpoints,
            state["run"]["step"],
            state,
            meta=self.job.folder.meta(),
            keep=self.config.train.keep,
            best_step=state["run"]["best_step"],
        )

    # ---- logs

    def _open_logs(self, positions: Mapping[str, int]) -> dict[str, Any]:
        folder = self.job.folder
        plain = yaml.safe_load(settings.dump(self.config))
        trackers = open_trackers(self.config.report_to, folder.path, folder.run_id, plain, self.step)
        return {
            "metrics": MetricsLog(folder.metrics, positions.get("metrics", 0), trackers),
            "samples": SamplesLog(folder.samples, positions.get("samples", 0)),
        }

    def log(self, metrics: Mapping[str, float], samples: Any = ()) -> None:
        if self.logs:
            if metrics:
                self.logs["metrics"].write(self.step, metrics)
            for sample in samples:
                self.logs["samples"].write(self.step, sample)

    # ---- steps

    def take(self, result: StepResult) -> None:
        """Takes in one optimiser step; `conclude` does what is due then."""
        train = self.config.train
        self.step = result.step
        self.metrics |= {name: value for name, value in result.metrics.items() if not name.startswith("time/")}
        last = self.step == self.total
        logged = self.step % train.log_every == 0 or last or result.window.metrics
        self.due = Due(
            result.metrics if logged else {},
            result.window.samples,
            measure=self.evaluate is not None and (last or _every(train.eval_every, self.step)),
            save=last or _every(train.save_every, self.step),
        )
        self.keep()

    def conclude(self) -> None:
        """Logs, evaluates and saves, as far as it is due. Raises Interrupted where the run was asked to stop."""
        if self.due.metrics or self.due.samples:
            self.log(self.due.metrics, self.due.samples)
            self.due = replace(self.due, metrics={}, samples=())
            self.keep()
        if self.due.measure and self.evaluate is not None:
            improved = self.measure()
            self.due = Due(save=self.due.save or (improved and self.step > 0))
            self.keep()
        if self.due.save:
            self.due = Due()
            self.keep()
            self.save()
        if distributed.any_true(interrupt.requested() > 0) and self.step < self.total:
            raise Interrupted(interrupt.requested() or signal.SIGTERM)

    def measure(self) -> bool:
        """Evaluates; says whether this is the best so far."""
        assert self.evaluate is not None
        with interrupt.interruptible(self.job.world.size == 1):
            evaluation = self.evaluate()
        require_evaluated(self.step, evaluation.metrics)
        self.metrics |= evaluation.metrics
        self.log(evaluation.metrics, [{**sample, "held_out": True} for sample in evaluation.samples])
        name, better = self.best
        value = evaluation.metrics[name]
        if self.best_value is not None and better(value, self.best_value) == self.best_value:
            return False
        self.best_step, self.best_value = self.step, value
        return True

    def finish(self, final: Mapping[str, Backbone]) -> RunResult:
        """Writes the final model folders, and reads them back."""
        folder = self.job.folder
        card = partial(model_card, self.config, self.metrics, self.step)
        for name, backbone in final.items():
            written = write_final(self.job, backbone, folder.path / name, card, compared=name == "model")
            if self.job.world.is_main:
                for note in written.notes:
                    say(f"{folder.path / name}: {note}")
        distributed.barrier()
        return RunResult(folder.path, folder.model, self.step, dict(self.metrics))


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def run(
    job: Job,
    algorithm: Algorithm,
    *,
    total: int,
    evaluate: Callable[[], Evaluation] | None,
    best: tuple[str, Callable[..., float]],
    final: Mapping[str, Backbone],
    averages: Sequence[torch.nn.Module] = (),
    learning_rates: Mapping[str, float] | None = None,
) -> RunResult:
    """Trains to step `total`, evaluating, logging and saving as `train` says. `best` names the evaluation metric and
    `min` or `max`; `final` maps folder names to the models to write at the end ("model" is the result); `averages` are
    models that follow those that are trained, and are saved with them.

    Whatever ends it early, `guard` saves the last good state and says what there is. Raises ShutdownRequested after
    SIGINT, SIGTERM or SIGHUP; NonFiniteError before a bad update.
    """
    modules = (*algorithm.modules.values(), *averages)
    try_outputs(job, modules, final, total=total, keeps_best=evaluate is not None)
    state = Run(job, algorithm, total=total, evaluate=evaluate, best=best, learning_rates=learning_rates or {})
    label, main = Path(job.config.out).name, job.world.is_main
    if main and (report := job.folder.data()):
        say(summary(report))
    with closing(job.folder), guard(state), Progress(total, label, state.step) if main else nullcontext() as bar:
        state.conclude()
        steps = train_steps(algorithm, state.optimizer, job.config.optim, job.world, start=state.step, total=total)
        for result in steps:
            if result is None:
                state.keep()
                continue
            state.take(result)
            if bar and result.window.samples:
                bar.show(completions.table(result.window.samples))
            if bar:
                bar.update(state.step, {name: result.metrics[name] for name in SHOWN if name in result.metrics})
            state.conclude()
        with interrupt.interruptible(job.world.size == 1):
            return state.finish(final)
