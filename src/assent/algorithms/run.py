"""One training run from start or checkpoint to the final model: what stands around the train loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from assent import settings
from assent.algorithms.card import model_card
from assent.algorithms.closing import Pace, Summary, closing, write_summary
from assent.algorithms.commands import Live, command_of
from assent.algorithms.job import Job
from assent.algorithms.measured import Evaluation, Measured
from assent.algorithms.opening import opening
from assent.errors import CheckpointError, RunFolderError, UserError
from assent.models.heads import save_reward_model, usage_of
from assent.models.policy import Backbone, ScoreModel
from assent.models.readback import own_numbers, read_back
from assent.models.recipe import Usage
from assent.models.saving import save_model, stop_ids
from assent.train import checkpoint, completions, distributed
from assent.train.facts import Fact, tell
from assent.train.log import MetricsLog, SamplesLog, open_trackers
from assent.train.loop import Algorithm, StepResult, train_steps
from assent.train.optim import build_optimizer
from assent.train.progress import Interrupt, Progress, say
from assent.train.runfolder import config_hash


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its folder, the final model's folder, and the last metrics, held-out ones included. `step` is
    that of the weights in `model`; the evaluations are None where nothing was held out."""

    out: Path
    model: Path
    steps: int
    metrics: Mapping[str, float]
    step: int
    start: Measured | None = None
    best: Measured | None = None
    end: Measured | None = None

    @property
    def best_step(self) -> int | None:
        return None if self.best is None else self.best.step


MEASURED = ("start", "best", "last")
"""The evaluations that a run remembers."""


class Run:
    """The mutable part of a run: step, logs, best evaluation so far."""

    def __init__(
        self,
        job: Job,
        algorithm: Algorithm,
        *,
        total: int,
        evaluate: Callable[[], Evaluation] | None,
        learning_rates: Mapping[str, float],
    ) -> None:
        self.job, self.algorithm, self.total, self.evaluate = job, algorithm, total, evaluate
        self.config, self.command = job.config, command_of(job.config)
        rates = [(module, learning_rates.get(name, self.config.optim.lr)) for name, module in algorithm.modules.items()]
        self.optimizer = build_optimizer(rates, self.config.optim)
        self.step = 0
        self.start: Measured | None = None
        self.best: Measured | None = None
        self.last: Measured | None = None
        self.metrics: dict[str, float] = {}
        self.live = Live(self.command.followed)
        positions = self._restore() if job.folder.checkpoint is not None else {}
        self.pace = Pace(self.step)
        self.logs = self._open_logs(positions) if job.world.is_main else None

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
        kept = {name: Measured.from_state(each) for name, each in state["run"]["measured"].items()}
        self.start, self.best, self.last = (kept.get(name) for name in MEASURED)
        if self.last is not None:
            self.live.measure(self.last)
        if self.step > self.total:
            raise RunFolderError(f"--resume: that checkpoint is of step {self.step}, the run has only {self.total}.")
        return state["run"]["positions"]

    def save(self) -> None:
        """Writes a checkpoint of this step. Every rank must call it."""
        state: dict[str, Any] = {
            name: distributed.full_state_dict(module) for name, module in self.algorithm.modules.items()
        }
        state["optimizer"] = distributed.full_optimizer_state(self.optimizer, self.algorithm.modules)
        state["algorithm"] = self.algorithm.state_dict()
        state["run"] = {
            "step": self.step,
            "metrics": self.metrics,
            "measured": {
                name: measured.state_dict()
                for name, measured in zip(MEASURED, (self.start, self.best, self.last), strict=True)
                if measured is not None
            },
            "rng": torch.get_rng_state(),
            "positions": {name: log.position() for name, log in self.logs.items()} if self.logs else {},
        }
        distributed.on_main(
            lambda: checkpoint.save(
                self.job.folder.checkpoints,
                self.step,
                state,
                meta={"config": config_hash(self.config), "ranks": self.job.world.size},
                keep=self.config.train.keep,
                best_step=None if self.best is None else self.best.step,
            )
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
        """Records one optimiser step."""
        self.step = result.step
        self.metrics |= {name: value for name, value in result.metrics.items() if not name.startswith("time/")}
        self.live.take(result.metrics)
        self.pace = self.pace.after(result.metrics)
        due = self.step % self.config.train.log_every == 0 or self.step == self.total or result.window.metrics
        self.log(result.metrics if due else {}, result.window.samples)

    def measure(self) -> bool:
        """Evaluates; says whether this is the best so far."""
        assert self.evaluate is not None
        evaluation = self.evaluate()
        self.metrics |= evaluation.metrics
        self.log(evaluation.metrics, [{**sample, "held_out": True} for sample in evaluation.samples])
        self.last = Measured(self.step, evaluation.metrics, evaluation.each)
        self.start = self.start or self.last
        self.live.measure(self.last)
        followed, name = self.command.followed, f"eval/{self.command.followed.best}"
        value, best = evaluation.metrics[name], self.best and self.best.metrics[name]
        if math.isnan(value) or (best is not None and followed.better(value, best) == best):
            improved = False
        else:
            self.best, improved = self.last, True
        if self.job.world.is_main:
            say(self.live.held_out + (", the best so far" if improved and self.step else ""))
        return improved

    def finish(self, final: Mapping[str, Backbone]) -> RunResult:
        """Writes the final model folders, and reads them back; then says and writes what the run has come to."""
        folder, summary = self.job.folder, self._take_final(tuple(final))
        for name, backbone in final.items():
            own = own_numbers(backbone, self.job.tokenizer)
            distributed.reshard(backbone)
            state = distributed.full_state_dict(backbone)
            checked, usage = distributed.on_main(partial(self._write, backbone, name, state, own))
            if self.job.world.is_main:
                card = model_card(summary, usage, checked)
                (folder.path / name / "README.md").write_text(card, encoding="utf-8")
        distributed.barrier()
        if self.job.world.is_main:
            write_summary(summary, folder.path)
            tell(closing(summary))
        return RunResult(
            out=folder.path,
            model=folder.model,
            steps=self.step,
            metrics=dict(self.metrics),
            step=summary.step,
            start=summary.start,
            best=summary.best,
            end=summary.end,
        )

    def _take_final(self, folders: tuple[str, ...]) -> Summary:
        """Puts the weights that `train.final` asks for into the modules."""
        last = Summary(
            config=self.config,
            command=self.command,
            steps=self.step,
            step=self.step,
            final="last",
            metrics=self.live.means(),
            start=self.start,
            best=self.best,
            end=self.last,
            pace=self.pace,
            data=self.job.folder.data(),
            folders=folders,
        )
        if self.config.train.final == "last" or self.best is None:
            return last
        if self.best.step != self.step:
            try:
                state = checkpoint.load(checkpoint.path_of(self.job.folder.checkpoints, self.best.step))
            except CheckpointError as error:
                raise CheckpointError(
                    f"--train.final best: {error} The last step is safe; --resume auto --train.final last writes that."
                ) from error
            for name, module in self.algorithm.modules.items():
                distributed.load_full_state_dict(module, state[name])
        return replace(last, step=self.best.step, final="best", end=self.best)

    def _write(
        self, backbone: Backbone, name: str, state: Mapping[str, Tensor], own: Tensor
    ) -> tuple[str, Usage | None]:
        """One model folder: what reading it back has shown, and of a reward model how it is read elsewhere."""
        weights = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
        job, dtype, folder = self.job, self.config.model.save_dtype, self.job.folder.path / name
        if isinstance(backbone, ScoreModel):
            written = save_reward_model(backbone, job.chat, folder, weights, dtype=dtype)
        else:
            ends = stop_ids(job.chat, backbone.plain.generation_config)
            written = save_model(backbone, job.tokenizer, folder, weights, dtype=dtype, stops=ends)
        rounded = job.world.size > 1 and backbone.precision == "bf16"
        checked = read_back(backbone, job.tokenizer, folder, written, own, dtype, rounded=rounded)
        if checked.beware:
            say(f"{folder}: {checked.words}")
        if not isinstance(backbone, ScoreModel):
            return checked.words, None
        usage = usage_of(backbone.plain, job.chat, folder, self.config.model if name == "model" else None)
        for note in usage.notes:
            say(f"{folder}: {note}.")
        return checked.words, usage


def _saving(steps: Iterator[StepResult], state: Run) -> Iterator[StepResult]:
    """The steps. Where what stands outside of the run gives up (a server, the user's function), nothing is lost: the
    state of the last step is saved before the error goes on."""
    try:
        yield from steps
    except UserError as error:
        state.save()
        error.args = (f"{error}\nCheckpoint of step {state.step} saved; continue with --resume auto.",)
        raise


def run(
    job: Job,
    algorithm: Algorithm,
    *,
    total: int,
    evaluate: Callable[[], Evaluation] | None,
    final: Mapping[str, Backbone],
    about: Sequence[Fact],
    learning_rates: Mapping[str, float] | None = None,
) -> RunResult:
    """Trains to step `total`, evaluating, logging and saving as `train` says. `final` maps folder names to the models
    to write at the end ("model" is the result); `about` is what the algorithm says of itself before the first step.

    Raises ShutdownRequested after Ctrl-C or SIGTERM, with a checkpoint written; NonFiniteError before a bad update.
    """
    state = Run(job, algorithm, total=total, evaluate=evaluate, learning_rates=learning_rates or {})
    train, label = job.config.train, Path(job.config.out).name
    if job.world.is_main:
        start = state.step
        tell(opening(job, state.command, algorithm.modules, state.optimizer, about, step=start, total=total))
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        bar = stack.enter_context(Progress(total, label, state.step)) if job.world.is_main else None
        if evaluate and state.step == 0 and state.last is None:
            state.measure()
            if train.final == "best":  # nothing may turn out to be better than the start
                state.save()
        steps = train_steps(algorithm, state.optimizer, job.config.optim, job.world, start=state.step, total=total)
        for result in _saving(steps, state):
            state.take(result)
            if bar and result.window.samples:
                bar.show(completions.table(result.window.samples))
            if bar:
                bar.update(state.step, str(state.live))
            last = state.step == total
            improved = False
            if evaluate and (last or (train.eval_every and state.step % train.eval_every == 0)):
                improved = state.measure()
            stop = distributed.any_true(interrupt.requested)
            if last or stop or improved or (train.save_every and state.step % train.save_every == 0):
                state.save()
            if stop and not last:
                raise interrupt.error(f"Checkpoint of step {state.step} saved; continue with --resume auto.")
    return state.finish(final)
