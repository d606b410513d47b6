"""What happens to a running label server and its database: no room on the disk, a file that is gone, a second server, a
backup under load, a signal under load. Whoever asks is told in words, and what was acknowledged is there."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")

from assent.cli import main
from assent.people.store import Store, accounts, labels, projects, sessions
from tests.fault.test_label_faults import in_child
from tests.labserver import LabelProcess

pytestmark = pytest.mark.skipif("ASSENT_POSTGRES" in os.environ, reason="about files")
ITEMS = 400
TIE = {"verdict": "tie"}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {number}?"}],
            "responses": [{"messages": [{"role": "assistant", "content": text}]} for text in ("yes", "no")],
            "feedback": [],
        }
        for number in range(ITEMS)
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "task.yaml"
    file.write_text(f"name: pairs\nkind: pair\nitems: {tmp_path / 'items.jsonl'}\n")
    return file


@pytest.fixture
def server(task: Path, tmp_path: Path, children) -> Iterator[LabelProcess]:
    with LabelProcess(children, tmp_path, task) as made:
        yield made


def tokens(db: Path, *names: str) -> dict[str, str]:
    """Machines of the project, with their tokens."""
    with Store.open(db, create=False) as store, store.writing() as c:
        project = projects.project(c, "pairs")
        found = {}
        for name in names:
            user = accounts.add_user(c, name, None, "judge", None)
            accounts.add_member(c, project, user, "judge", None)
            found[name] = sessions.api_token(c, user, None)
    return found


@contextmanager
def machine(url: str, token: str) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=f"{url}/api/p/pairs", headers=headers, timeout=300, trust_env=False) as client:
        yield client


def label(client: httpx2.Client, request: str, comment: str = "") -> Any:
    """Labels the next item; the answer, whatever it is."""
    found = client.get("/next")
    if found.status_code != 200 or "slot" not in (work := found.json()):
        return found
    value = TIE | ({"comment": comment} if comment else {})
    return client.post("/label", json={"slot": work["slot"], "request": request, "value": value})


def saved(db: Path) -> Counter[tuple[str, str]]:
    """Whose requests are in a database, which is whole."""
    with Store.open(db, create=False) as store, store.reading() as c:
        assert c.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        project = projects.project(c, "pairs")
        assert project.definition.task.kind == "pair"
        assert len({(row.item, row.name) for row in labels.labels(c, project)}) == len(list(labels.labels(c, project)))
        rows = c.exec_driver_sql("SELECT u.name, l.request FROM labels l JOIN users u ON u.id = l.user_id").all()
    return Counter((row[0], row[1]) for row in rows)


class Crowd:
    """Machines that label until they are stopped; `given` are the requests that were answered with success."""

    def __init__(self, words: dict[str, str], *urls: str) -> None:
        self.given: set[tuple[str, str]] = set()
        self.refused: Counter[str] = Counter()
        self.over = threading.Event()
        self.threads = [
            threading.Thread(target=self._work, args=(name, word, urls[place % len(urls)]))
            for place, (name, word) in enumerate(words.items())
        ]
        for thread in self.threads:
            thread.start()

    def _work(self, name: str, word: str, url: str) -> None:
        number = 0
        with machine(url, word) as client:
            while not self.over.is_set():
                number += 1
                try:
                    answer = label(client, f"r{number}")
                except httpx2.HTTPError:
                    self.refused["no answer"] += 1
                    return
                if answer.status_code == 200 and "label" in answer.json():
                    self.given.add((name, f"r{number}"))
                elif answer.status_code == 200:
                    return  # nothing is left
                else:
                    self.refused[answer.json()["error"]["code"]] += 1

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + 600
        while (
            len(self.given) < count and time.monotonic() < until and any(map(threading.Thread.is_alive, self.threads))
        ):
            time.sleep(0.02)
        assert len(self.given) >= count, (self.refused, self.given)

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(600)


# ---- no room


def test_a_full_disk_is_told_and_it_goes_on_by_itself_when_there_is_room(server: LabelProcess) -> None:
    """Neither the log that is written ahead nor the file itself can grow."""
    word = tokens(server.db, "bot")["bot"]
    given = set()
    assert server.pid is not None
    with machine(server.url, word) as client:
        for number in range(3):
            assert label(client, f"before {number}").status_code == 200
            given.add(("bot", f"before {number}"))
        _, most = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        grown = max(each.stat().st_size for each in server.db.parent.glob("labels.db*"))
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (grown + 40_000, most))
        for number in range(200):
            answer = label(client, f"full {number}", "x" * 5000)
            if answer.status_code != 200:
                break
            given.add(("bot", f"full {number}"))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (507, "room")
        assert error["message"].startswith("The server's disk is full. Nothing was saved")
        assert client.get("/progress").json()["mine"] == len(given)  # who reads is not kept out
        again = label(client, "still")
        assert again.status_code == 507
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, most))
        assert label(client, "after").status_code == 200
        given.add(("bot", "after"))
    assert saved(server.db) == Counter(given)
    said = server.log.read_text()
    assert "Traceback" not in said and "cannot grow" in said and "Make room on the disk and try again" in said


def limited(folder: Path, size: int, *words: str) -> str:
    """What a command says that may write no file larger than this; it must fail with a message alone."""
    log = folder / "said"

    def run() -> None:
        with log.open("w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            os._exit(main(["label", *words]))

    assert in_child(run) in (1, 2)
    said = log.read_text()
    assert "Traceback" not in said, said
    return said


def test_commands_without_room_say_so_and_leave_what_there_was(task: Path, tmp_path: Path) -> None:
    db, copy = tmp_path / "labels.db", tmp_path / "copy.db"
    assert "cannot grow" in limited(tmp_path, 50_000, str(task), "--db", str(db), "--export", str(tmp_path / "o"))
    db.unlink(missing_ok=True)
    for each in tmp_path.glob("labels.db-*"):
        each.unlink()
    assert main(["label", str(task), "--db", str(db), "--load", str(tmp_path / "items.jsonl")]) == 0
    before = saved(db)
    here = ("--db", str(db))
    said = limited(tmp_path, 100_000, *here, "--backup", str(copy))
    assert "the copy could not be made" in said and "Make room there" in said and not [*tmp_path.glob("*copy.db*")]
    said = limited(tmp_path, 1000, *here, "--export", str(tmp_path / "out.jsonl"))
    (tmp_path / "more.jsonl").write_text(
        (tmp_path / "items.jsonl").read_text().replace("Question", "More " + "x" * 900)
    )
    said = limited(tmp_path, 300_000, *here, "--load", str(tmp_path / "more.jsonl"))
    assert "cannot grow" in said and "Nothing of this was saved" in said
    assert saved(db) == before
    assert main(["label", *here, "--load", str(tmp_path / "more.jsonl")]) == 0
    assert main(["label", *here, "--backup", str(copy)]) == 0


# ---- a file that is gone


def test_a_database_that_is_moved_or_replaced_takes_nothing_more(server: LabelProcess, tmp_path: Path) -> None:
    """What would be written to a file without a name would be lost at the end, without a word."""
    word = tokens(server.db, "bot")["bot"]
    assert main(["label", "--db", str(server.db), "--backup", str(tmp_path / "copy.db")]) == 0
    with machine(server.url, word) as client:
        assert label(client, "before").status_code == 200
        server.db.rename(tmp_path / "away.db")
        answer = client.get("/next")
        assert answer.status_code == 503 and "cannot use its database" in answer.json()["error"]["message"]
        assert "moved, removed or replaced" in server.log.read_text()
        assert not server.db.exists()  # and no new one was begun
        shutil.copy(tmp_path / "copy.db", server.db)
        assert client.get("/next").status_code == 503
        server.db.unlink()
        (tmp_path / "away.db").rename(server.db)
        assert label(client, "after").status_code == 200
    assert set(saved(server.db)) == {("bot", "before"), ("bot", "after")}


# ---- many at once


def test_two_servers_on_one_database_are_as_one(task: Path, tmp_path: Path, children) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with LabelProcess(children, tmp_path, task) as one:
        two = LabelProcess(children, other, task)
        two.db = one.db
        with two:
            crowd = Crowd(tokens(one.db, "a", "b", "c", "d"), one.url, two.url)
            crowd.wait_for(60)
            crowd.stop()
    assert set(crowd.refused) <= {"busy"}
    assert saved(one.db) == Counter(crowd.given)


def test_a_backup_under_load_has_all_that_was_acknowledged_before_it(server: LabelProcess, tmp_path: Path) -> None:
    crowd = Crowd(tokens(server.db, "a", "b", "c"), server.url)
    try:
        for number in range(2):
            crowd.wait_for(20 * (number + 1))
            before = set(crowd.given)
            assert main(["label", "--db", str(server.db), "--backup", str(tmp_path / f"copy{number}.db")]) == 0
            assert before <= set(saved(tmp_path / f"copy{number}.db"))
    finally:
        crowd.stop()
    assert not crowd.refused
    assert saved(server.db) == Counter(crowd.given)
    restored = tmp_path / "copy1.db"  # a copy is served like any other, under its own name
    assert main(["label", "--db", str(restored), "--export", str(tmp_path / "rows.jsonl")]) == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(saved(restored))


def test_a_signal_under_load_ends_it_in_order(server: LabelProcess) -> None:
    crowd = Crowd(tokens(server.db, "a", "b", "c", "d"), server.url)
    crowd.wait_for(20)
    assert server.stop() == 0
    crowd.stop()
    assert set(crowd.refused) <= {"stopping", "no answer"}
    assert crowd.given <= set(saved(server.db))
    assert "All requests are answered." in server.log.read_text()


# ---- files that are none


@pytest.mark.parametrize(("what", "words"), [("text", "no database"), ("newer", "a newer assent"), ("page", "damaged")])
def test_a_database_that_cannot_be_served_is_named(task: Path, tmp_path: Path, caplog, what: str, words: str) -> None:
    db = tmp_path / "labels.db"
    assert main(["label", str(task), "--db", str(db), "--load", str(tmp_path / "items.jsonl")]) == 0
    if what == "text":
        db.write_text("id,prompt\n" * 100)
    elif what == "newer":
        with sqlite3.connect(db) as c:
            c.execute("UPDATE alembic_version SET version_num = '9999'")
        c.close()
    else:
        whole = bytearray(db.read_bytes())
        whole[8192:] = os.urandom(len(whole) - 8192)
        db.write_bytes(whole)
    before = db.read_bytes()
    caplog.clear()
    assert main(["label", str(task), "--db", str(db), "--port", "0"]) == 2
    assert words in caplog.text and "Traceback" not in caplog.text
    assert db.read_bytes() == before
