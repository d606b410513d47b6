"""What a run writes down while it goes: metrics.jsonl, samples.jsonl, and outside trackers.

One JSON object per line, flushed line by line. JSON has no NaN: numbers that are not finite are the strings "nan",
"inf" and "-inf", and `read_metrics` turns them back. Keys that start with `time/` (seconds, tokens per second) depend
on the machine's mood; everything else is the same bytes for the same run.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from assent.data.jsonl import json_line
from assent.errors import UserError
from assent.foreign import named
from assent.outputs import append, writing

log = logging.getLogger(__name__)

TIME = "time/"


class JsonlLog:
    """A file of JSON lines that can be cut back to where a checkpoint was taken.

    `keep_bytes` is what `position` said then; whatever was written after it belongs to steps that will be repeated, and
    is dropped. 0 starts an empty file.
    """

    def __init__(self, path: str | Path, keep_bytes: int = 0):
        """Raises OutputError where the file cannot be written."""
        self.path = Path(path)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self._file = self.path.open("r+b", buffering=0)  # so that a row is on the disk whole, or not at all
        size = self._file.seek(0, os.SEEK_END)
        if size < keep_bytes:
            log.warning(
                f"{self.path} is shorter ({size} bytes) than when the checkpoint was taken ({keep_bytes}); rows of "
                "earlier steps are missing from it."
            )
            keep_bytes = size
        self._file.truncate(self._line_end(keep_bytes))
        self._leave_out_damage()
        self._file.seek(0, os.SEEK_END)

    def _leave_out_damage(self) -> None:
        """Rows that are no rows any more (of a disk that was full, of two writers) are said, and kept in another file:
        nothing that reads this one could."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        broken = [number for number, line in enumerate(lines, start=1) if not _is_row(line)]
        if not broken:
            return
        aside = self.path.with_suffix(".damaged" + self.path.suffix)
        self.path.replace(aside)
        with writing(self.path):
            self._file.close()
            self._file = self.path.open("x+b", buffering=0)
        append(self._file, b"".join(line for line in lines if _is_row(line)))
        log.warning(
            f"{self.path}: {len(broken)} of {len(lines)} rows are damaged (the first is line {broken[0]}) and left "
            f"out; what the file held is in {aside.name}."
        )

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Appends one object, whole or not at all. A lone surrogate in a text becomes its JSON escape. Raises
        OutputError."""
        append(self._file, json_line(row).encode())

    def position(self) -> int:
        """Bytes written so far: a checkpoint stores this, after `sync`."""
        return self._file.tell()

    def sync(self) -> None:
        """Sees to it that what was written is on the disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _line_end(self, position: int) -> int:
        """The end of the last whole line within the first `position` bytes."""
        with self.path.open("rb") as file:
            return file.read(position).rfind(b"\n") + 1


class MetricsLog(JsonlLog):
    """metrics.jsonl: `{"step": 12, "loss": 0.5, ..., "time/step": 0.1}`, and the same to every tracker. A tracker that
    fails gets no more, which is said: the run's own file has everything."""

    def __init__(self, path: str | Path, keep_bytes: int = 0, trackers: Sequence[Tracker] = ()):
        super().__init__(path, keep_bytes)
        self._trackers = list(trackers)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Numbers or 0-d tensors by name."""
        numbers = {name: value if type(value) is int else float(value) for name, value in metrics.items()}
        self.write_row({"step": step, **{name: _finite_or_text(value) for name, value in numbers.items()}})
        self._tell(lambda tracker: tracker.log(step, numbers))

    def close(self) -> None:
        super().close()
        self._tell(lambda tracker: tracker.close())

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                tell(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                who = type(tracker).__name__
                log.warning(f"{who} failed and gets no more of this run ({named(error)}). {self.path} goes on.")


class SamplesLog(JsonlLog):
    """samples.jsonl: prompts and answers of the policy, with the step they were made at."""

    def write(self, step: int, sample: Mapping[str, Any]) -> None:
        self.write_row({"step": step, **{name: _finite_or_text(value) for name, value in sample.items()}})


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """All rows. A last line that was cut off (the run was killed, or is writing it just now) is left out."""
    lines = Path(path).read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def read_metrics(path: str | Path, times: bool = True) -> list[dict[str, float]]:
    """The rows of metrics.jsonl as numbers; with `times` false, without the `time/` keys, of whatever section."""
    return [
        {
            name: float(value) if isinstance(value, str) else value
            for name, value in row.items()
            if times or f"/{TIME}" not in f"/{name}"
        }
        for row in read_jsonl(path)
    ]


class Tracker(Protocol):
    """An outside place for metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(
    names: Sequence[str], folder: Path, run_id: str, config: Mapping[str, Any], start: int = 0
) -> list[Tracker]:
    """The trackers of `report_to`. `run_id` lets a resumed run go on in the tracker; `start` is the step it resumes at.

    Raises `UserError` naming the extra to install if a package is missing, and for what keeps a tracker from starting.
    """
    return [_open(name, folder, run_id, config, start) for name in names]


def _open(name: str, folder: Path, run_id: str, config: Mapping[str, Any], start: int) -> Tracker:
    try:
        return _TRACKERS[name](folder, run_id, config, start)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--report_to {name}: the tracker does not start: {named(error)}") from error


class TensorBoard:
    """Event files in `<run>/tensorboard`."""

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any], start: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        # purge_step hides what the killed run had logged after its checkpoint.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases; WANDB_PROJECT, WANDB_MODE and its other variables are honoured."""

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any], start: int):
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "assent"),
            name=folder.name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio's local store; TRACKIO_PROJECT names the project."""

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any], start: int):
        try:
            import trackio
        except ImportError as error:
            raise _missing("trackio") from error
        project = os.environ.get("TRACKIO_PROJECT", "assent")
        self._run = trackio.init(project=project, name=f"{folder.name}-{run_id}", resume="allow", config=dict(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def _missing(package: str) -> UserError:
    return UserError(f"--report_to {package} needs the package {package}: pip install 'assent[track]'.")


def _finite_or_text(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
