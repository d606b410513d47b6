"""`assent curate` with judges that leave, are killed half-way, or answer nothing, and with models that are none."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from assent.cli import main

from .servers import FakeServer, Handler

COUNT = 40


class Endpoint(FakeServer):
    """Rates a request by how many words it has, 1 to 5; after `left` more answers it says `status`."""

    def __init__(self) -> None:
        self.left, self.status, self.pause, self.text, self.asked = 1 << 30, 503, 0.0, "", list[str]()
        super().__init__()

    def respond(self, handler: Handler) -> None:
        request = handler.body["messages"][-1]["content"].split("<request ")[1].split(">\n", 1)[1]
        words = request.split("\n</request")[0].split()
        with self.lock:
            self.left -= 1
            self.asked.append(" ".join(words))
            gone = self.left < 0
        time.sleep(self.pause)
        if gone:
            handler.say("out of order", self.status)
        else:
            text = self.text or f"It has {len(words)} words. [[{min(5, len(words) // 3)}]]"
            handler.say({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Tell me of {'the big red house and ' * (n % 5)}number {n}."} for n in range(COUNT)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def words(folder: Path, url: str, *more: str, out: str = "out.jsonl", cache: str = "cache") -> list[str]:
    return [
        *("curate", str(folder / "p.jsonl"), "--out", str(folder / out), "--take", "20", "--topics.number", "2"),
        *("--filter.near", "1", "--complexity.source", f"j=openai={url}", "--judge.cache", str(folder / cache)),
        *("--remote.retries", "0", "--summary", str(folder / "s.json"), *more),
    ]


def test_ratings_are_the_judges_and_the_highest_are_drawn_more_often(folder: Path, endpoint: Endpoint, capsys):
    assert main(words(folder, endpoint.url)) == 0
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["meta"]["complexity"] == min(5, len(row["prompt"][-1]["content"].split()) // 3)
    told = json.loads((folder / "s.json").read_text())["complexity"]
    assert (told["by"], told["start"], told["levels"]) == ("j", 5.0, {"1": 8, "3": 8, "5": 24})
    assert "Tell me of number 0." in endpoint.asked and len(endpoint.asked) == COUNT + 1  # and what it was tried with
    assert "drawn 2 times as often" in capsys.readouterr().out


def test_a_judge_that_leaves_is_asked_again_for_the_rest_alone(folder: Path, endpoint: Endpoint, caplog, capsys):
    endpoint.left = 15
    assert main(words(folder, endpoint.url)) == 4
    assert "servers left questions without an answer" in caplog.text
    told = json.loads((folder / "s.json").read_text())["complexity"]
    assert sum(told["unrated"].values()) == COUNT - 14 and "503" in capsys.readouterr().out
    endpoint.left = 1 << 20
    assert main(words(folder, endpoint.url)) == 2 and "exists already" in caplog.text
    before = len(endpoint.asked)
    assert main(words(folder, endpoint.url, "--resume")) == 0
    assert len(endpoint.asked) - before == COUNT - 14
    assert main(words(folder, endpoint.url, out="straight.jsonl", cache="another")) == 0
    assert (folder / "out.jsonl").read_bytes() == (folder / "straight.jsonl").read_bytes()


def test_killed_and_resumed_is_straight(folder: Path, endpoint: Endpoint, children):
    assert main(words(folder, endpoint.url, out="straight.jsonl", cache="another")) == 0
    endpoint.asked.clear()
    endpoint.pause = 0.2
    pid = children.start(words(folder, endpoint.url, "--resume", "--remote.concurrency", "1"))
    end = time.monotonic() + 600
    while len(endpoint.asked) < 8 and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    assert children.wait(pid) == -signal.SIGKILL
    assert not (folder / "out.jsonl").exists() and 8 <= (before := len(endpoint.asked)) < COUNT
    endpoint.pause = 0.0
    assert main(words(folder, endpoint.url, "--resume")) == 0
    assert len(endpoint.asked) - before <= COUNT + 1 - (before - 1)  # one may have been under way
    assert (folder / "out.jsonl").read_bytes() == (folder / "straight.jsonl").read_bytes()


def test_resume_refuses_rows_of_other_prompts(folder: Path, endpoint: Endpoint, caplog):
    (folder / "out.jsonl").write_text(json.dumps({"prompt": "Something else?"}) + "\n")
    assert main(words(folder, endpoint.url, "--resume")) == 2
    assert "has answers to other prompts than these" in caplog.text


@pytest.mark.parametrize(("text", "reason"), [("I would rather not.", "no verdict"), ("[[9]]", "off the scale")])
def test_a_judge_that_rates_nothing(folder: Path, endpoint: Endpoint, text: str, reason: str, caplog):
    endpoint.text = text
    assert main(words(folder, endpoint.url)) == 2
    assert f"none of {COUNT} prompts was rated. Mostly: " in caplog.text and "features of the text" in caplog.text
    assert not (folder / "out.jsonl").exists()


def test_a_judge_that_is_not_there_is_said_before_any_work(folder: Path, endpoint: Endpoint, caplog):
    endpoint.left = 0
    assert main(words(folder, endpoint.url)) == 2
    assert "--complexity.source: " in caplog.text and "503" in caplog.text and len(endpoint.asked) == 1
    assert not (folder / "out.jsonl").exists()


def test_models_for_topics(folder: Path, tiny_model_dir: Path, caplog):
    plain = ["curate", str(folder / "p.jsonl"), "--filter.near", "1", "--take", "10", "--topics.number", "3"]
    assert main([*plain, "--out", str(folder / "a"), "--topics.model", str(tiny_model_dir), "--precision", "fp32"]) == 0
    rows = [json.loads(line) for line in (folder / "a").read_text().splitlines()]
    assert len(rows) == 10 and len({row["meta"]["topic"] for row in rows}) > 1
    (folder / "none").mkdir()
    assert main([*plain, "--out", str(folder / "b"), "--topics.model", str(folder / "none")]) == 2
    assert "--topics.model" in caplog.text and "config.json" in caplog.text and not (folder / "b").exists()
