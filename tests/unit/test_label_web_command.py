"""`assent label`: the server as a process, and what is done to its database from the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")

from assent.cli import main
from assent.people.store import Store, accounts, labels, projects, queue
from assent.people.store.records import Slot

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Question {i}?"}],
        "responses": [{"messages": [{"role": "assistant", "content": text}]} for text in ("yes", "no")],
        "feedback": [],
    }
    for i in range(4)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "task.yaml").write_text("name: pairs\nkind: pair\nitems: items.jsonl\n")
    (tmp_path / "other.yaml").write_text("name: others\nkind: yesno\nitems: items.jsonl\n")
    return tmp_path


@pytest.fixture
def run(folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]):
    """`run(*words)`: the exit code, what is printed, and what is said."""

    def command(*words: str) -> tuple[int, str, str]:
        caplog.clear()
        capsys.readouterr()
        code = main(["label", "--db", "labels.db", *words])
        return code, capsys.readouterr().out.strip(), caplog.text

    return command


def made(folder: Path, *files: str) -> None:
    """The database with the projects of these files."""
    from assent.config import LabelConfig
    from assent.people.label import _prepare, _tasks

    config = LabelConfig(tuple(files) or ("task.yaml",), db="labels.db")
    with Store.open("labels.db") as store:
        for task in _tasks(config):
            _prepare(config, store, task)
        with store.writing() as c:
            ann = accounts.add_user(c, "ann", None, "annotator", None)
            project = projects.project(c, "pairs")
            accounts.add_member(c, project, ann, "annotator", None)
            slot = queue.next_slot(c, project, ann, time.time())
            assert isinstance(slot, Slot)
            labels.save(c, slot.id, ann, "r", {"verdict": "better", "better": 0, "strength": 2}, 1.0, time.time())


def test_labels_go_out_and_come_back(folder: Path, run) -> None:
    made(folder)
    code, _, said = run("--export", "out.jsonl")
    (row,) = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
    assert code == 0 and "out.jsonl: 1 rows of pairs" in said and row["feedback"][0]["annotator"] == "ann"
    code, _, said = run("--export", "out.jsonl")
    assert code == 2 and "exists already" in said
    assert run("--export", "trl.jsonl", "--format", "trl")[0] == 0
    code, _, said = run("--load", "out.jsonl")
    assert code == 0 and "0 new items (1 were there), 0 labels (1 were there)" in said
    code = main(["label", "task.yaml", "--db", "second.db", "--load", "out.jsonl"])
    assert code == 0
    with Store.open("second.db") as store, store.reading() as c:
        (label,) = labels.labels(c, projects.project(c, "pairs"))
        assert (label.name, label.value["better"], label.shown) == (
            "ann",
            0,
            tuple(row["meta"]["annotated"][0]["shown"]),
        )


def test_a_copy_an_invitation_and_a_token(folder: Path, run) -> None:
    made(folder)
    assert run("--backup", "copy.db")[0] == 0
    with Store.open("copy.db", create=False) as copy, copy.reading() as c:
        assert len(list(labels.labels(c, projects.project(c, "pairs")))) == 1
    code, _, said = run("--backup", "copy.db")
    assert code == 2 and "exists already" in said
    code, link, said = run("--invite", "annotator", "--uses", "3", "--public_url", "https://labels.example.org/")
    assert code == 0 and re.fullmatch(r"https://labels\.example\.org/join/[\w-]{43}", link) and "3 people" in said
    assert link not in said
    code, token, said = run("--machine", "bot")
    assert code == 0 and re.fullmatch(r"[\w-]{43}", token) and token not in said
    assert run("--machine", "bot")[0] == 0
    code, _, said = run("--machine", "ann")
    assert code == 2 and "a person's account" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--export", "a", "--backup", "b"), "each do one thing and end"), (("--format", "trl"), "is read only with"),
        (("--uses", "2"), "is read only with --invite"), (("--new_version",), "Give its file"),
        (("--public_url", "labels.example.org"), "must be like https://"),
        (("--public_url", "https://a.org/labels"), "at the root of a name"),
        (("nowhere.yaml",), "nowhere.yaml"), (("--backup", "b.db"), "there is no such file"),
        (("task.yaml", "task.yaml"), "two tasks are named 'pairs'"), (("--port", "99999"), "must be from 0 to 65535"),
        (("task.yaml", "--port", "0", "--host", "no.such.host.invalid"), "no.such.host.invalid"),
        (("broken.yaml",), "broken.yaml"), (("--import", "x"), "--import is --load in assent"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_code_2(folder: Path, run, words: tuple[str, ...], said: str) -> None:
    (folder / "broken.yaml").write_text("name: [")
    code, _, text = run(*words)
    assert code == 2 and said in text and "Traceback" not in text


def test_which_project_is_meant(folder: Path, run) -> None:
    made(folder, "task.yaml", "other.yaml")
    code, _, said = run("--export", "out.jsonl")
    assert code == 2 and "Say it with --project NAME" in said and "pairs, others" in said
    code, _, said = run("--export", "out.jsonl", "--project", "pair")
    assert code == 2 and "Perhaps you meant 'pairs'" in said
    assert run("--export", "out.jsonl", "--project", "pairs")[0] == 0
    assert run("task.yaml", "--export", "again.jsonl")[0] == 0
    (folder / "task.yaml").write_text("name: pairs\nkind: best\nitems: items.jsonl\n")
    code, _, said = run("task.yaml", "--export", "third.jsonl")
    assert code == 2 and "--new_version" in said


def test_the_extra_is_asked_for(folder: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assent.people.label.NEEDED", ("argon2", "no_such_package"))
    code, _, said = run("task.yaml")
    assert code == 2 and "needs no_such_package. Install it with: pip install 'assent[people]'" in said


def test_it_serves_until_a_signal_and_prints_the_first_link_once(folder: Path, children, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["label", str(folder / "task.yaml"), "--db", str(folder / "labels.db"), "--port", "0", "--host", "0.0.0.0"]

    def start() -> tuple[int, str]:
        log.write_text("")
        (folder / "task.yaml").write_text(f"name: pairs\nkind: pair\nitems: {folder / 'items.jsonl'}\n")
        pid = children.start(words, log)
        for _ in range(1200):
            if "Ctrl-C stops it" in (text := log.read_text()):
                return pid, text
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    pid, text = start()
    assert "4 new items (work)" in text and "passwords go there unencrypted" in text
    link = re.search(r"once: (http://[\d.:]+)(/join/[\w-]+)", text)
    assert link is not None
    url = link[1].replace("0.0.0.0", "127.0.0.1")
    with httpx2.Client(base_url=url) as client:
        assert client.get("/health").text == "ok\n"
        page = client.get(link[2])
        csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
        assert csrf is not None
        fields: dict[str, Any] = {"csrf": csrf[1], "user": "lea", "password": "a long password"}
        assert client.post(link[2], data=fields).status_code == 303
        assert client.get("/p/pairs").status_code == 200
    os.kill(pid, signal.SIGINT)
    assert children.wait(pid, 120) == 0
    assert "All requests are answered." in log.read_text()
    pid, text = start()
    assert "once:" not in text and "0 new items (work), 4 that were there" in text
    os.kill(pid, signal.SIGTERM)
    assert children.wait(pid, 120) == 0
