"""The state of a training run, from start or checkpoint to the final model: what is logged, evaluated and saved around
the steps of `assent.train.loop`."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assent import distributed, interrupt, messages
from assent.config import settings
from assent.deferred import resolved
from assent.errors import CheckpointError, DriftStop, Interrupted, RunFolderError
from assent.models.policy import Backbone
from assent.models.readback import own_numbers
from assent.outputs import write_text
from assent.train import checkpoint
from assent.train.alarm import DriftAlarm
from assent.train.card import model_card
from assent.train.closing import TRUST, Appraisal, Pace, Summary, closing, write_summary
from assent.train.commands import Live, command_of
from assent.train.facts import layout
from assent.train.final import write_final
from assent.train.finite import require_answers, require_evaluated, require_saved
from assent.train.log import MetricsLog, SamplesLog, open_trackers
from assent.train.measured import Evaluation, Measured
from assent.train.optim import build_optimizer
from assent.train.session import Session
from assent.train.state import gather_state, load_state

if TYPE_CHECKING:
    from assent.train.loop import Algorithm, StepResult

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class Due:
    """What is left to do of the step that was taken last: rows for the logs, an evaluation, alarms to tell of (so many,
    the newest), a checkpoint."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[dict[str, object], ...] = ()
    measure: bool = False
    save: bool = False
    alarms: int = 0


class TrainingRun:
    """The mutable part of a run: step, logs, best evaluation so far. `kept` is the last good state, which belongs to
    the weights as they are where `intact`; `began` was the first, `written` the one in the newest checkpoint."""

    def __init__(
        self,
        session: Session,
        algorithm: Algorithm,
        *,
        total: int,
        evaluate: Callable[[], Evaluation] | None,
        learning_rates: Mapping[str, float],
        alarm: DriftAlarm | None = None,
    ) -> None:
        self.session, self.algorithm, self.total, self.evaluate = session, algorithm, total, evaluate
        self.config, self.command, self.alarm = session.config, command_of(session.config), alarm
        rates = [(module, learning_rates.get(name, self.config.optim.lr)) for name, module in algorithm.modules.items()]
        self.optimizer = build_optimizer(rates, self.config.optim)
        self.optimizer.register_step_pre_hook(lambda *_: self._begin_update())
        self.step = 0
        self.start: Measured | None = None
        self.best: Measured | None = None
        self.last: Measured | None = None
        self.metrics: dict[str, float] = {}
        self.live = Live(self.command.followed)
        self.due = Due(measure=evaluate is not None)
        resumed = session.folder.checkpoint is not None
        positions = self._restore() if resumed else {}
        self.pace = Pace(self.step)
        self.logs = self._open_logs(positions) if session.world.is_main else {}
        self._write_alarms()
        self.keep()
        self.began = self.kept
        self.written = self.kept if resumed else None

    # ---- checkpoints

    def _restore(self) -> dict[str, int]:
        assert self.session.folder.checkpoint is not None
        state = checkpoint.load(self.session.folder.checkpoint)
        load_state(state, self.algorithm.modules, self.optimizer)
        self.algorithm.load_state_dict(state["algorithm"])
        torch.set_rng_state(state["run"]["rng"])
        self.step, self.metrics = state["run"]["step"], state["run"]["metrics"]
        known = {name: Measured.from_state(each) for name, each in state["run"]["measured"].items()}
        self.start, self.best, self.last = (known.get(name) for name in MEASURED)
        if self.last is not None:
            self.live.measure(self.last)
        self.due = Due(**state["run"].get("due", {}))
        if self.alarm is not None and (known := state["run"].get("alarm")) is not None:
            self.alarm.load_state_dict(known)
        if self.step > self.total:
            raise RunFolderError(f"--resume: that checkpoint is of step {self.step}, the run has only {self.total}.")
        return state["run"]["positions"]

    def keep(self) -> None:
        """Makes the state of this moment the last good one. Costs next to nothing: the weights are not in it."""
        run = {
            "step": self.step,
            "metrics": dict(self.metrics),
            "measured": {name: found.state_dict() for name, found in self._measured().items()},
            "rng": torch.get_rng_state(),
            "positions": {name: log.position() for name, log in self.logs.items()},
            "due": asdict(self.due),
            "alarm": None if self.alarm is None else self.alarm.state_dict(),
        }
        self.kept: dict[str, Any] = {"algorithm": self.algorithm.state_dict(), "run": run}
        self._before: list[int] | None = None

    def _measured(self) -> dict[str, Measured]:
        """The evaluations so far, by what they are remembered as."""
        found = zip(MEASURED, (self.start, self.best, self.last), strict=True)
        return {name: measured for name, measured in found if measured is not None}

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
                require_answers(kept["run"]["step"], name, own_numbers(module, self.session.tokenizer))
        state = gather_state(self.algorithm.modules, self.optimizer) | resolved(kept)
        distributed.on_main(lambda: self._write_checkpoint(state))
        self.written = kept

    def _write_checkpoint(self, state: Mapping[str, Any]) -> None:
        require_saved(state["run"]["step"], {name: part for name, part in state.items() if name != "run"})
        for log in self.logs.values():
            log.sync()
        best = state["run"]["measured"].get("best")
        checkpoint.save(
            self.session.folder.checkpoints,
            state["run"]["step"],
            state,
            meta=self.session.folder.meta(),
            keep=self.config.train.keep,
            best_step=None if best is None else best["step"],
        )

    # ---- logs

    def _open_logs(self, positions: Mapping[str, int]) -> dict[str, Any]:
        folder = self.session.folder
        options = settings.plain(self.config)
        trackers = open_trackers(self.config.report_to, folder.path, folder.run_id, options, self.step)
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
        self.live.take(result.metrics)
        self.pace = self.pace.after(result.metrics)
        raised = 0
        if self.alarm is not None and self.alarm.points == "rollout" and "rollout" in result.window.metrics:
            raised = len(self.alarm.take(self.step, result.metrics))
        last = self.step == self.total
        logged = self.step % train.log_every == 0 or last or result.window.metrics
        self.due = Due(
            result.metrics if logged else {},
            result.window.samples,
            measure=self.evaluate is not None and (last or _every(train.eval_every, self.step)),
            save=last or _every(train.save_every, self.step),
            alarms=raised,
        )
        self.keep()

    def conclude(self) -> None:
        """Logs, evaluates, tells of alarms and saves, as far as it is due. Raises Interrupted where the run was asked
        to stop, DriftStop where an alarm stops it."""
        if self.due.metrics or self.due.samples:
            self.log(self.due.metrics, self.due.samples)
            self.due = replace(self.due, metrics={}, samples=())
            self.keep()
        if self.due.measure and self.evaluate is not None:
            improved = self.measure()
            wanted = self.step > 0 or self.config.train.final == "best"  # nothing may turn out better than the start
            self.due = Due(save=self.due.save or (improved and wanted), alarms=self.due.alarms)
            self.keep()
        stopping = self._tell_alarms()
        if self.due.save:
            self.due = Due()
            self.keep()
            self.save()
        if distributed.any_true(interrupt.requested() > 0) and self.step < self.total:
            raise Interrupted(interrupt.requested() or signal.SIGTERM)
        if stopping and self.step < self.total:
            raise DriftStop(f"Stopped at step {self.step:,} by the drift alarm (--alarm.stop).")

    def _tell_alarms(self) -> bool:
        """Says and writes what was raised; whether that stops the run."""
        if self.alarm is None or not self.due.alarms:
            return False
        for row in self.alarm.raised[-self.due.alarms :]:
            log.warning(f"Drift alarm, {row.says}")
        self._write_alarms()
        self.due = replace(self.due, alarms=0)
        self.keep()
        return self.alarm.config.stop

    def _write_alarms(self) -> None:
        if self.alarm is not None and self.session.world.is_main:
            self.alarm.write(self.session.folder.path)

    def measure(self) -> bool:
        """Evaluates; says whether this is the best so far."""
        assert self.evaluate is not None
        with interrupt.interruptible(self.session.world.size == 1):
            evaluation = self.evaluate()
        require_evaluated(self.step, evaluation.metrics)
        self.metrics |= evaluation.metrics
        self.log(evaluation.metrics, [{**sample, "held_out": True} for sample in evaluation.samples])
        if self.alarm is not None and self.alarm.points == "evaluation":
            raised = len(self.alarm.take(self.step, evaluation.metrics))
            self.due = replace(self.due, alarms=self.due.alarms + raised)
        self.last = Measured(self.step, evaluation.metrics, evaluation.each)
        self.start = self.start or self.last
        self.live.measure(self.last)
        followed, name = self.command.followed, f"eval/{self.command.followed.best}"
        value, best = evaluation.metrics.get(name), self.best and self.best.metrics[name]
        improved = value is not None and (best is None or followed.better(value, best) != best)
        if improved:
            self.best = self.last
        if value is None:
            log.warning(f"held out at step {self.step:,}: {followed.best} could not be measured: not the best step")
        log.info(self.live.held_out + (", the best so far" if improved and self.step else ""))
        return improved

    def finish(self, final: Mapping[str, Backbone], appraise: Callable[[], Appraisal | None]) -> RunResult:
        """Writes the final model folders, and reads them back; then says and writes what the run has come to.
        `appraise` looks at the final weights; every rank calls it."""
        folder, summary = self.session.folder, self._take_final(tuple(final))
        if (found := appraise()) is not None:
            text = json.dumps(found.numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            distributed.on_main(lambda: write_text(folder.path / TRUST, text))
            summary = replace(summary, appraisal=found)
        card = partial(model_card, summary)
        for name, backbone in final.items():
            written = write_final(self.session, backbone, folder.path / name, card, compared=name == "model")
            for note in written.notes:
                log.warning(f"{folder.path / name}: {note}")
        distributed.on_main(lambda: write_summary(summary, folder.path))
        log.info(layout(closing(summary), messages.width()))
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
            steps=self.step,
            step=self.step,
            final="last",
            metrics=self.live.means(),
            start=self.start,
            best=self.best,
            last=self.last,
            end=self.last,
            pace=self.pace,
            data=self.session.folder.data(),
            folders=folders,
            checkpoints=tuple(checkpoint.by_step(self.session.folder.checkpoints)),
        )
        if self.config.train.final == "last" or self.best is None:
            return last
        if self.best.step != self.step:
            assert self.written is self.kept, "the last step is in its checkpoint before its weights are replaced"
            self._load_best(self.best.step)
        return replace(last, step=self.best.step, final="best", end=self.best)

    def _load_best(self, step: int) -> None:
        path = checkpoint.by_step(self.session.folder.checkpoints).get(step)
        advice = "--resume auto --train.final last writes the last step."
        if path is None:  # that of the start is kept where the run began with --train.final best
            which = f"step {step}" if step else "the start, the model that this run began with"
            raise RunFolderError(f"--train.final best: the best was {which}, of which no checkpoint is there. {advice}")
        try:
            state = checkpoint.load(path)
        except CheckpointError as error:
            raise CheckpointError(f"--train.final best: {error} {advice}") from error
        load_state(state, self.algorithm.modules)


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
