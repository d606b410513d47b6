"""AI feedback gone wrong: servers that leave, answers that are none, files that cannot be judged, places that are
taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from assent.cli import main
from assent.data.formats import load_examples

from .servers import FakeServer, Handler

JUDGED = json.dumps(
    {
        "prompt": [{"role": "user", "content": "q"}],
        "responses": [{"messages": [{"role": "assistant", "content": text}]} for text in "ab"],
        "feedback": [{"kind": "pair", "chosen": 0, "rejected": 1, "annotator": "j"}],
    }
)


class Endpoint(FakeServer):
    """Answers every question with `text` and `ended`; after `left` more, with status `status`."""

    def __init__(self) -> None:
        self.left, self.status, self.text, self.ended = 1 << 30, 503, "[[A]]", "stop"
        super().__init__()

    def respond(self, handler: Handler) -> None:
        with self.lock:
            self.left -= 1
            gone = self.left < 0
        if gone:
            handler.say("out of order", self.status)
        else:
            handler.say({"choices": [{"message": {"content": self.text}, "finish_reason": self.ended}]})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"q{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.yaml").write_text("principles: [{critique: c, revision: r, choice: x}]\n")
    return tmp_path


def words(command: str, folder: Path, url: str, *more: str) -> list[str]:
    own = {"judge": [], "critique": ["--principles", str(folder / "p.yaml")]}
    return [
        *(command, str(folder / "rows.jsonl"), "--source", f"j=openai={url}", *own[command]),
        *("--out", str(folder / "out.jsonl"), "--judge.cache", str(folder / "cache"), "--remote.retries", "0", *more),
    ]


@pytest.mark.parametrize("command", ["judge", "critique"])
def test_a_server_that_leaves_is_asked_again_for_the_rest_alone(folder: Path, endpoint: Endpoint, command: str, caplog):
    endpoint.left = 7
    more = ["--judge.contradiction", "tie"] if command == "judge" else []
    assert main(words(command, folder, endpoint.url, *more)) == 4
    assert "servers left questions without an answer (j " in caplog.text
    assert "mostly: the server answered 503" in caplog.text
    if command == "judge":  # of the critiques none came to a revision
        assert main(words(command, folder, endpoint.url, *more)) == 2
        assert "exists already" in caplog.text
    assert (folder / "out.jsonl").exists() == (command == "judge")
    endpoint.left, before = 1 << 20, 1 << 20
    assert main(words(command, folder, endpoint.url, *more, "--resume")) == 0
    asked = before - endpoint.left
    whole = (folder / "out.jsonl").read_bytes()
    (folder / "out.jsonl").unlink()
    endpoint.left = 0  # nothing is asked any more
    assert main(words(command, folder, endpoint.url, *more)) == 0
    assert (folder / "out.jsonl").read_bytes() == whole and endpoint.left == 0
    assert asked == {"judge": 12 + 2, "critique": 2 * 12 + 1}[command] - 7  # those it was tried with among them


def test_a_server_that_is_not_there_is_said_before_any_work(folder: Path, endpoint: Endpoint, caplog):
    endpoint.left = 0
    for command in ("judge", "critique"):
        assert main(words(command, folder, endpoint.url)) == 2
        assert not (folder / "out.jsonl").exists()
    assert caplog.text.count("answered 503") == 2
    prompts = ["--prompts", str(folder / "rows.jsonl"), "--out", str(folder / "out.jsonl"), "--remote.retries", "0"]
    assert main(["contrast", f"openai={endpoint.url}", *prompts, "--judge.cache", str(folder / "cache")]) == 2


def test_questions_that_a_server_cannot_read_are_failures_and_no_reason_to_ask_again(folder: Path, endpoint, caplog):
    """An answer too long for the judge: the server says 400, each time."""
    endpoint.left, endpoint.status = 2 + 8, 400
    assert main(words("judge", folder, endpoint.url, "--judge.contradiction", "tie")) == 0
    assert len(load_examples(str(folder / "out.jsonl")).examples) == 4
    endpoint.left = 2
    more = ["--resume", "--judge.cache", str(folder / "other"), "--judge.contradiction", "tie"]
    assert main(words("judge", folder, endpoint.url, *more)) == 2
    assert "no verdict on any of 6 rows. Mostly: the server answered 400." in caplog.text


@pytest.mark.parametrize(
    ("text", "ended", "reason"),
    [
        ("I would rather not say.", "stop", "no verdict"),
        ("[[A]]", "length", "what it wrote was cut off"),
        ("", "stop", "it wrote nothing"),
        ("[[A]] or [[B]]", "stop", "several verdicts"),
    ],
)
def test_nonsense_is_counted_and_no_verdict(folder: Path, endpoint: Endpoint, text, ended, reason, capsys, caplog):
    endpoint.text, endpoint.ended = text, ended
    assert main(words("judge", folder, endpoint.url, "--summary", str(folder / "s.json"))) == 2
    told = json.loads((folder / "s.json").read_text())
    assert told["rows"] == 0 and told["left_out"] == {"no judge gave a verdict": 6}
    assert told["judges"]["j"]["failures"] == {reason: 6} and told["judges"]["j"]["verdicts"] == 0
    assert (
        f"no verdict on any of 6 rows. Mostly: {reason}." in caplog.text and f"6: {reason}" in capsys.readouterr().out
    )


def test_a_critic_without_words(folder: Path, endpoint: Endpoint, caplog):
    endpoint.text = "<think>hm</think>"
    assert main(words("critique", folder, endpoint.url)) == 2
    assert "none of 12 answers was revised. Mostly: critique: it wrote nothing." in caplog.text


@pytest.mark.parametrize(
    ("rows", "more", "reason"),
    [
        ('{"prompt": "q", "completion": "a"}', [], "one answer, which cannot be compared"),
        ('{"prompt": "q"}', [], "answers to prompts are needed"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b"}', ["--judge.prompt", "four-way"], "2 answers; the judge's"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b"}', ["--judge.prompt", "principle"], "Give --principles FILE"),
        (
            JUDGED,
            [],
            "rows.jsonl:1: has feedback by 'j' already",
        ),
    ],
)
def test_rows_that_cannot_be_judged(folder: Path, endpoint: Endpoint, rows: str, more: list[str], reason: str, caplog):
    (folder / "rows.jsonl").write_text(rows + "\n")
    assert main(words("judge", folder, endpoint.url, *more)) == 2
    assert reason in caplog.text and endpoint.left == 1 << 30 and not (folder / "out.jsonl").exists()


def test_who_cannot_be_asked(folder: Path, endpoint: Endpoint, caplog):
    file, url = str(folder / "rows.jsonl"), endpoint.url
    begin = ["judge", file, "--out", str(folder / "out.jsonl"), "--source"]
    for sources, reason in {
        ("http://x",): "--source: expected openai=URL or judge=FOLDER",
        ("opnai=http://x",): "expected openai=URL or judge=FOLDER",
        (f"openai={url}", f"openai={url}"): "two are called 'judge'. Give each a name",
        (f"a=openai={url}", f"b=openai={url}"): "'b' is the same model as another",
        ("judge=none-such",): "none-such",
        ("openai=http://user:word@x",): "Got one with a user name",
    }.items():
        caplog.clear()
        assert main([*begin, *sources, "--judge.cache", str(folder / "cache")]) == 2
        assert reason in caplog.text
        assert "user:word" not in caplog.text


def test_resume_replaces_nothing_that_is_not_its_own(folder: Path, endpoint: Endpoint, caplog):
    out = folder / "out.jsonl"
    for content in ('{"prompt": "other?", "chosen": "a", "rejected": "b"}\n', "no rows at all\n"):
        out.write_text(content)
        assert main(words("judge", folder, endpoint.url, "--resume")) == 2
        assert out.read_text() == content and "--resume: --out" in caplog.text
    out.unlink()
    out.mkdir()
    assert main(words("judge", folder, endpoint.url, "--resume")) == 2
    assert "is a folder" in caplog.text and endpoint.left == 1 << 30


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "t.yaml:1: expected a list of {positive: ..., negative: ...}"),
        ("[]", "expected a list of {positive: ..., negative: ...}"),
        ("- {positive: 'good {prompt}'}", "t.yaml:1: a template is {positive: ..., negative: ...}"),
        ("- {positive: 'good {prompt}', negative: bad}", "negative must be text with {prompt} once"),
        ("- {positive: '{prompt} {prompt}', negative: '{prompt}'}", "positive must be text with {prompt} once"),
        ("- {positive: 'be {prompt}', negative: ' be  {prompt} '}", "both sides ask for the same"),
        ("- {positive: [a], negative: '{prompt}'}", "positive must be text with {prompt} once"),
        ("\xff", "it is not UTF-8 text"),
    ],
)
def test_templates_that_contrast_nothing(folder: Path, endpoint: Endpoint, text: str, reason: str, caplog):
    (folder / "t.yaml").write_bytes(text.encode("latin-1"))
    begin = ["contrast", f"openai={endpoint.url}", "--prompts", str(folder / "rows.jsonl"), "--out"]
    assert main([*begin, str(folder / "out.jsonl"), "--templates", str(folder / "t.yaml")]) == 2
    assert reason in caplog.text and endpoint.left == 1 << 30
    assert main([*begin, str(folder / "out.jsonl"), "--templates", "harmlesness"]) == 2
    assert "Perhaps you meant 'harmlessness'" in caplog.text


def test_options_that_nothing_reads(folder: Path, endpoint: Endpoint, caplog):
    rows, out = str(folder / "rows.jsonl"), str(folder / "out.jsonl")
    contrast = ["contrast", "--prompts", rows, "--out", out]
    for command, reason in {
        (*contrast, "folder", "--judge.model", "m"): "--judge.model is read only where MODEL is openai=URL",
        (
            *contrast,
            f"openai={endpoint.url}",
            "--sampling.top_p",
            "0.9",
        ): "--sampling.top_p is read only where MODEL is a",
        (*contrast, f"openai={endpoint.url}", "--engine.name", "vllm"): "--engine.name is read only where MODEL is a",
        (*words("judge", folder, endpoint.url), "--judge.attempts", "2"): "--judge.attempts 2 asks again",
        (*words("judge", folder, endpoint.url), "--judge.engine", "vllm"): "--judge.engine is read only with --source",
        (*words("judge", folder, endpoint.url), "--principles", str(folder / "p.yaml")): "does not show the principle",
        (*words("judge", folder, endpoint.url), "--judge.soft", "--judge.contradiction", "tie"): "written verdicts",
    }.items():
        caplog.clear()
        assert main([*command]) == 2
        assert reason in caplog.text
    assert endpoint.left == 1 << 30


def test_both_answers_alike_and_cut_ones_are_no_pairs(folder: Path, endpoint: Endpoint, caplog):
    endpoint.text = "the same"
    command = ["contrast", f"openai={endpoint.url}", "--prompts", str(folder / "rows.jsonl"), "--out"]
    assert main([*command, str(folder / "a.jsonl"), "--judge.cache", str(folder / "a")]) == 2
    assert "none of 6 prompts has a pair. Mostly: both answers are the same." in caplog.text
    endpoint.ended = "length"
    assert main([*command, str(folder / "b.jsonl"), "--judge.cache", str(folder / "b")]) == 2
    assert "Mostly: positive: what it wrote was cut off." in caplog.text
