"""metrics.jsonl and its like, trackers, progress, interrupts, the run folder."""

from __future__ import annotations

import builtins
import io
import json
import logging
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from assent import messages
from assent.errors import OutputError, UserError
from assent.interrupt import Interrupt
from assent.train import checkpoint
from assent.train.log import MetricsLog, SamplesLog, open_trackers, read_jsonl, read_metrics
from assent.train.progress import ProgressDisplay, clock

SOURCE = Path(checkpoint.__file__).parents[2]

# ---- metrics.jsonl and samples.jsonl


def test_rows_are_on_disk_at_once_and_come_back_as_numbers(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"loss": torch.tensor(0.5), "rows": 3, "norm": np.float32(0.25), "time/step": 0.1})
    log.write(2, {"loss": float("nan"), "high": float("inf"), "low": torch.tensor(-float("inf"))})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": 1, "loss": 0.5, "rows": 3, "norm": 0.25, "time/step": 0.1}'
    assert json.loads(lines[1], parse_constant=pytest.fail) == {"step": 2, "loss": "nan", "high": "inf", "low": "-inf"}
    first, second = read_metrics(log.path, times=False)
    assert first == {"step": 1, "loss": 0.5, "rows": 3, "norm": 0.25}
    assert np.isnan(second["loss"]) and second["high"] == float("inf") and second["low"] == -float("inf")


def test_resuming_drops_exactly_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    straight = MetricsLog(tmp_path / "straight.jsonl")
    log = MetricsLog(path)
    for step in (1, 2):
        log.write(step, {"loss": 1 / step})
        straight.write(step, {"loss": 1 / step})
    log.write(2, {"eval/loss": 9.0})  # the same step, before the checkpoint: stays
    straight.write(2, {"eval/loss": 9.0})
    position = log.position()
    log.write(2, {"late": 1.0})  # the same step, after the checkpoint: goes
    log.write(3, {"loss": 7.0})
    with path.open("ab") as file:
        file.write(b'{"step": 4, "lo')  # killed while writing
    assert len(read_metrics(path)) == 5
    resumed = MetricsLog(path, keep_bytes=position)
    for target in (resumed, straight):
        target.write(3, {"loss": 1 / 3})
    assert path.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    MetricsLog(path)
    assert path.read_bytes() == b""


def test_a_log_shorter_than_its_checkpoint_says_so_and_keeps_whole_lines(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2')
    MetricsLog(path, keep_bytes=1000).write(3, {})
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "metrics.jsonl is shorter" in caplog.text
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


def test_samples_keep_any_text(tmp_path):
    log = SamplesLog(tmp_path / "samples.jsonl")
    sample = {"prompt": "漢字\n\u2028\x00", "answer": "\ud800", "reward": float("nan"), "ids": [1, 2]}
    log.write(5, sample)
    assert read_jsonl(log.path) == [{"step": 5, **sample, "reward": "nan"}]
    assert "漢字" in log.path.read_text(encoding="utf-8")


class Recorder:
    def __init__(self):
        self.seen = []

    def log(self, step, metrics):
        self.seen.append((step, dict(metrics)))

    def close(self):
        self.seen.append("closed")


def test_trackers_get_the_same_numbers(tmp_path):
    tracker = Recorder()
    log = MetricsLog(tmp_path / "m.jsonl", trackers=[tracker])
    log.write(1, {"loss": torch.tensor(2.0)})
    log.close()
    assert tracker.seen == [(1, {"loss": 2.0}), "closed"]


def test_a_tracker_that_fails_is_said_and_left(tmp_path, screen):
    class Failing(Recorder):
        def log(self, step, metrics):
            super().log(step, metrics)
            raise ConnectionError("the network is gone")

    text, failing, other = screen(terminal=False), Failing(), Recorder()
    log = MetricsLog(tmp_path / "m.jsonl", trackers=[failing, other])
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
    assert [step for step, _ in failing.seen] == [1] and [step for step, _ in other.seen] == [1, 2]
    assert "Failing failed and gets no more of this run (ConnectionError: the network is gone)" in text.getvalue()
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2]


def test_a_tracker_that_does_not_start_is_one_message(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(UserError, match="--report_to tensorboard: the tracker does not start: FileExistsError"):
        open_trackers(("tensorboard",), tmp_path, "id", {})


def test_a_log_that_cannot_be_opened_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"metrics\.jsonl cannot be written: a file is in the way"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_names_the_extra(tmp_path, monkeypatch, name):
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module.split(".")[0] in ("wandb", "trackio") or module == "torch.utils.tensorboard":
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf"--report_to {name} .*pip install 'assent\[track\]'"):
        open_trackers([name], tmp_path, "id", {})


def test_trackers_are_called_as_their_packages_expect(tmp_path, monkeypatch):
    """Stand-ins for wandb and trackio: what is asked of them at the start, per row and at the end."""
    calls = []

    class Run:
        def log(self, metrics, step):
            calls.append((step, metrics))

        def finish(self):
            calls.append("finish")

    class Package:
        @staticmethod
        def init(**kwargs):
            calls.append(kwargs)
            return Run()

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, Package)
    for tracker in open_trackers(["wandb", "trackio"], tmp_path / "run1", "abc", {"lr": 1.0}):
        tracker.log(3, {"loss": 1.5})
        tracker.close()
    assert calls[0]["id"] == "abc" and calls[0]["resume"] == "allow" and calls[0]["config"] == {"lr": 1.0}
    assert calls[1]["name"] == "run1-abc" and calls[1]["project"] == "assent"
    assert calls[2:] == [(3, {"loss": 1.5}), "finish"] * 2


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboard")
    (tracker,) = open_trackers(["tensorboard"], tmp_path, "id", {}, start=2)
    tracker.log(3, {"loss": 1.0})
    tracker.close()
    assert list((tmp_path / "tensorboard").iterdir())


# ---- progress and interrupts


@pytest.fixture
def screen(monkeypatch):
    def make(terminal: bool) -> io.StringIO:
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=120)
        monkeypatch.setattr(messages, "console", lambda: console)
        return text

    return make


def test_plain_lines_are_few_and_tell_the_time_left(screen, monkeypatch):
    text, now = screen(terminal=False), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with ProgressDisplay(50, "sft", start=10) as bar:
        for step in range(11, 51):
            now[0] += 3.0
            bar.update(step, "loss 1.235")
    lines = text.getvalue().splitlines()
    assert lines[0] == "sft 14/50  1:48 left  loss 1.235"  # 4 of 40 steps took 12 s, 36 are left
    assert lines[-1] == "sft 50/50  took 2:00  loss 1.235"
    assert len(lines) == 10


def test_nested_bars_on_a_terminal(screen):
    text = screen(terminal=True)
    with ProgressDisplay(2, "demo") as outer:
        with ProgressDisplay(3, "sft") as inner:
            inner.update(3, "loss 0.5")
        outer.update(1)
        logging.getLogger("assent.anything").info("between [phases]")
    assert ProgressDisplay._bars is None
    assert all(part in text.getvalue() for part in ("demo", "sft", "3/3", "loss 0.5", "between [phases]"))


def test_clock():
    assert [clock(s) for s in (0.4, 61.6, 3600 * 2 + 65)] == ["0:00", "1:02", "2:01:05"]


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert signal.getsignal(signal.SIGTERM) != before and not interrupt.requested
    assert signal.getsignal(signal.SIGTERM) == before
