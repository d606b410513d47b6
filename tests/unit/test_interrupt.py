"""Signals in stretches and outside of them; streams that do not break; guests."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

from assent import interrupt
from assent.errors import Interrupted
from assent.guest import Guest, blamed, ends_programs
from assent.interrupt import Interrupt, interruptible
from assent.process import Steady, steady_output


def test_a_signal_ends_a_stretch_and_waits_outside_of_one():
    with Interrupt() as handler:
        signal.raise_signal(signal.SIGHUP)  # in an update, say
        assert handler.requested and interrupt.requested() == signal.SIGHUP
        with pytest.raises(Interrupted), interruptible():
            raise AssertionError("not reached")
        handler.close()
        with interruptible():
            signal.raise_signal(signal.SIGTERM)  # while saving
    assert interrupt.requested() == 0


def test_what_is_made_of_an_interruption_is_one_still():
    for error in (ValueError, KeyboardInterrupt):
        with Interrupt(), pytest.raises(Interrupted) as raised, interruptible():
            try:
                signal.raise_signal(signal.SIGTERM)
            except BaseException as caught:
                raise error("the code gives up") from caught
        assert raised.value.number == signal.SIGTERM and isinstance(raised.value.__cause__, error)
    with Interrupt(), pytest.raises(Interrupted), interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            pass  # swallowed: it is raised at the end of the stretch


def test_what_the_process_was_started_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Interrupt() as handler, interruptible():
            signal.raise_signal(signal.SIGHUP)
            assert not handler.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_taken():
    def enter() -> None:
        with Interrupt(), interruptible():
            pass

    thread = threading.Thread(target=enter)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


# ---- streams


class Full(io.StringIO):
    def write(self, text: str = "") -> int:
        raise OSError(28, "No space left on device")

    flush = isatty = write


@pytest.mark.parametrize("stream", [None, Full(), open(os.devnull)])
def test_a_stream_that_breaks_loses_words_only(stream):
    steady = Steady(lambda: stream)
    assert steady.write("gone") == 4
    steady.writelines(["a", "b"])
    steady.flush()
    if stream is not None:
        stream.close()
    assert not steady.isatty() and steady.write("gone") == 4


def test_a_stream_shows_what_it_cannot_carry():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    steady = Steady(lambda: stream)
    steady.write("naïve 你")
    steady.close()
    assert raw.getvalue() == b"na\\xefve \\u4f60" and not stream.closed and steady.encoding == "ascii"


def test_printing_cannot_fail_in_steady_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    with steady_output():
        print("lost", flush=True)
    with pytest.raises(OSError, match="No space left"):
        print("not a run's")


# ---- guests


def test_what_a_guest_does_to_the_process_ends_with_its_turn(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    guest, handler = Guest(), signal.getsignal(signal.SIGTERM)
    state = torch.get_rng_state()
    with guest.turn():
        os.chdir("own")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.rand(3)
        sys.stderr.close()
    assert os.getcwd() == str(tmp_path) and signal.getsignal(signal.SIGTERM) == handler
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled() and not sys.stderr.closed
    assert torch.equal(torch.get_rng_state(), state)
    with guest.turn():
        assert os.getcwd() == str(tmp_path / "own")
        (tmp_path / "own").rmdir()  # its folder is gone
    with guest.turn():
        pass
    assert os.getcwd() == str(tmp_path)


def test_a_persons_ctrl_c_is_not_the_codes():
    def caught(action) -> tuple[bool, str]:
        with Guest().turn():
            try:
                action()
            except BaseException as error:
                return ends_programs(error), blamed(error)

    def interrupts() -> None:
        raise KeyboardInterrupt

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert caught(interrupts)[0] and not caught(lambda: signal.raise_signal(signal.SIGINT))[0]
    ends, said = caught(lambda: sys.exit("no"))
    assert ends and said.startswith("SystemExit: no (") and said.endswith("), which ends a program")
    assert caught(lambda: 1 / 0)[0] is False
