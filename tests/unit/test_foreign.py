"""Text of others in messages: short, on one line, without keys."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path

import pytest

from assent import cli, foreign
from assent.errors import ConfigError, UserError
from assent.files import not_a_file
from assent.foreign import LENGTH, LONGEST, brief, message, named, without_keys

KEY = "q7/Zr+x9 'nothing\\ordinary"


def test_long_text_is_cut_and_its_length_is_said() -> None:
    said = brief(ValueError("x" * 1_000_000))
    assert len(said) < LENGTH + 40 and said.endswith("… (1,000,000 characters)")
    assert brief(b"\xff" + b"y" * 500).startswith("\ufffdyyy")
    assert brief("one\n  two\t three") == "one two three"
    assert brief("x" * LENGTH) == "x" * LENGTH


def test_an_exception_without_words_is_its_type() -> None:
    assert brief(KeyError()) == "KeyError" and named(ZeroDivisionError()) == "ZeroDivisionError"
    assert named(OSError("no")) == "OSError: no"

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert named(Mute()) == "Mute: Mute, whose text cannot be had (RuntimeError)"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cret-value",
        "401 for https://me:s3cret@example.org/x",
        "GET /score?api_key=s3cret&x=1",
        "bad token hf_s3cretAbcdefghijklmnop",
        "key sk-proj-s3cretAbcdefghijklmnop is wrong",
        "ghp_s3cretAbcdefghijklmnopqrs",
    ],
)
def test_what_looks_like_a_key_is_hidden(text: str) -> None:
    assert "s3cret" not in without_keys(text) and foreign.HIDDEN in without_keys(text)


@pytest.mark.parametrize(
    "text", ["the token is missing", "a Basic reader", "Bearer of news", "http://host:80/a?b=c", "key: value, rank 3"]
)
def test_ordinary_words_stay(text: str) -> None:
    assert without_keys(text) == text


def test_keys_of_the_environment_are_hidden_in_any_spelling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path))  # a path is no key
    monkeypatch.setenv("MONKEY", "plain words")
    quoted = "q7%2FZr%2Bx9%20%27nothing%5Cordinary"
    said = without_keys(f"got {KEY} and {quoted} under {tmp_path} with plain words")
    assert said == f"got [key] and [key] under {tmp_path} with plain words"
    assert KEY[:20] not in brief("z" * (LENGTH - 10) + KEY), "cut before the key was hidden"


def test_a_key_that_was_told_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_told", set())
    foreign.hide("opensesame1")
    foreign.hide("short")
    assert without_keys("opensesame1 is short") == "[key] is short"


def test_whole_messages_are_cut_in_the_middle() -> None:
    said = message("begin" + "x" * 1_000_000 + "end")
    assert len(said) < LONGEST + 60 and said.startswith("begin") and said.endswith("end")
    assert "characters left out" in said and message("short") == "short"


def test_the_command_hides_keys_in_errors_and_tracebacks(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HUB_TOKEN", "correct-horse-battery")

    def refuse(_: object) -> None:
        raise UserError("the hub says correct-horse-battery is wrong")

    monkeypatch.setattr(cli, "_run", refuse)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "error: the hub says [key] is wrong\n"
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    try:
        raise RuntimeError("correct-horse-battery" + "x" * 100_000)
    except RuntimeError as error:
        foreign.print_traceback(type(error), error, error.__traceback__)
    assert "RuntimeError: [key]xxx" in told.getvalue() and len(told.getvalue()) < LONGEST + 100


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
    (tmp_path / "file").write_text("")
    kinds = {name: not_a_file(tmp_path / name) for name in ("pipe", "s", ".", "file", "none")}
    assert kinds == {"pipe": "a named pipe", "s": "a socket", ".": "a folder", "file": None, "none": None}
    assert not_a_file("/dev/null") == "a device" and not_a_file("nul\0") is None


@pytest.mark.parametrize("kind", ["a named pipe", "a folder"])
def test_commands_name_what_is_no_file(kind: str, tmp_path: Path) -> None:
    from assent import settings
    from assent.config import SFTConfig
    from assent.data.readers import read_rows
    from assent.errors import DataError
    from assent.functions import load_function

    odd = tmp_path / "odd.py"
    os.mkfifo(odd) if kind == "a named pipe" else odd.mkdir()
    with pytest.raises(ConfigError, match=f"configuration file {odd}: it is {kind}"):
        settings.read(SFTConfig, odd)
    with pytest.raises(ConfigError, match=f"--scorer {odd}:f: {odd} is {kind}; expected a file"):
        load_function(f"{odd}:f", "--scorer")
    if kind == "a named pipe":
        with pytest.raises(DataError, match=f"{odd} is {kind}; expected a file"):
            read_rows(odd)
