"""Text of others in messages: short, on one line, without keys."""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from assent import cli, foreign
from assent.errors import ConfigError, ModelError, UserError
from assent.files import not_a_file
from assent.foreign import LENGTH, LONGEST, brief, message, named, without_keys
from assent.http import Client, Patience, ServerAnswerError, run

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
    from assent.config import SFTConfig, settings
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


# ---- keys and long texts from outside, on their way into messages


class Echo(BaseHTTPRequestHandler):
    """A server that refuses, and says with which key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = f"wrong key: {self.headers['Authorization']}".encode() + b" no" * 100_000
        self.send_response(401)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_echoes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_told", set())
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Client("the reward server", f"http://127.0.0.1:{server.server_port}", "s3cretwithoutname")
        patience = Patience(timeout=5, deadline=time.monotonic() + 5)
        with pytest.raises(ServerAnswerError) as error:
            run(client.ask("/x", {}, lambda reply: reply, patience, expected="rewards", failed="gave none"))
        server.shutdown()
    said = str(error.value)
    assert "answered 401" in said and "wrong key: Bearer [key]" in said and "s3cret" not in said and len(said) < 500


def test_a_hub_that_echoes_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from assent.models import sources

    class Hub:
        def repo_info(self, *_: object, **__: object) -> None:
            raise OSError("401 Client Error: invalid user token hf_s3cretAbcdefghijklmnop" + "!" * 1_000_000)

    monkeypatch.setattr(sources, "is_offline_mode", lambda: False)
    monkeypatch.setattr(sources, "hf_api", Hub)
    with pytest.raises(ModelError) as error:
        sources.ask_hub(sources.Source("owner/name", None))
    assert "401 Client Error" in str(error.value)
    assert "s3cret" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("body", ["raise ValueError(KEY + 'x' * 1_000_000)", "return KEY + 'x' * 1_000_000"])
def test_reward_code_that_says_much(body: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from assent.data.records import Example, Message
    from assent.rewards.function import FunctionReward
    from assent.rewards.group import Group, RewardError

    monkeypatch.setenv("JUDGE_API_KEY", "s3cret-of-the-judge")
    file = tmp_path / "mine.py"
    file.write_text(f"KEY = 's3cret-of-the-judge'\ndef f(completions):\n    {body}\n")
    group = Group(Example((Message("user", "a"),), ()), ("b",), (True,), (1,))
    with pytest.raises(RewardError) as error:
        FunctionReward(f"{file}:f", "--rewards.functions").score([group])
    assert len(message(error.value)) < 700 and "s3cret" not in message(error.value)


def test_what_reward_code_writes_down_holds_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from assent.data.records import Example, Message
    from assent.rewards.function import FunctionReward
    from assent.rewards.group import Group

    monkeypatch.setenv("JUDGE_API_KEY", "s3cret-of-the-judge")
    file = tmp_path / "mine.py"
    file.write_text(
        "def f(completions, log_extra):\n    log_extra('said', ['s3cret-of-the-judge: no'])\n    return [1]\n"
    )
    group = Group(Example((Message("user", "a"),), ()), ("b",), (True,), (1,))
    assert FunctionReward(f"{file}:f", "--rewards.functions").score([group]).columns == {"said": ["[key]: no"]}
