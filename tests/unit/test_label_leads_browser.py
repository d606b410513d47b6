"""A lead in a real browser, from invitation to reward model: agreement moves while people label, disagreements are
decided by keyboard, labels are exported, and `assent reward` trains on the file."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from assent.cli import main
from assent.data.formats import load_examples
from assent.data.records import Message
from assent.people.task import Item, TaskDefinition
from tests.browser import ARGUMENTS, CHROMIUM, sync_playwright

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("sqlalchemy")

PASSWORD = "a long password"
PATIENCE = 60_000
"""Milliseconds: the machine may be busy."""
ITEMS = 8
LEAD = "/p/pairs/lead"


class Served:
    """A label server in a thread, with a lead."""

    def __init__(self, folder: Path) -> None:
        from assent.people.store import Store, accounts, items, projects
        from assent.people.web.app import application

        self.store = Store.open(folder / "labels.db")
        task = TaskDefinition("pairs", "pair", title="Which answer helps more?", items="x.jsonl", overlap=2)
        rows = [
            Item((Message("user", f"Question {i}?"),), (f"Yes, that is {i}.", f"No, never {i}."), topic=f"t{i % 2}")
            for i in range(ITEMS)
        ]
        with self.store.writing() as c:
            project = projects.put_project(c, task)
            items.add_items(c, project, rows)
            lead = accounts.add_user(c, "leah", PASSWORD, "lead", None)
            accounts.add_member(c, project, lead, "lead", None)
        self.place = socket.socket()
        self.place.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.place.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(application(self.store), log_config=None, lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.place]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def decisions(self) -> dict[int, Any]:
        """What stands as decided, by item."""
        from assent.people.store import labels, projects

        with self.store.reading() as c:
            found = labels.labels(c, projects.project(c, "pairs"), "adjudication")
            return {one.item: one.value for one in found}

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.store.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert CHROMIUM is not None, "ASSENT_BROWSER asks for the tests in a browser, and no chromium is here"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


@pytest.fixture
def person(browser, served) -> Iterator[Callable[..., Any]]:
    """`person(**options)`: a browser of its own; what its pages complain of fails the test."""
    contexts, complaints = [], []

    def opened(**options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1200, "height": 800}, base_url=served.url, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def sign_in(page: Any, name: str = "leah") -> Any:
    page.goto("/login")
    page.fill("[name=user]", name)
    page.fill("[name=password]", PASSWORD)
    page.click("main button")
    page.wait_for_url(lambda url: "/login" not in url)
    return page


def labelled(page: Any, wanted: str) -> None:
    """Answers one item after the other by keyboard, for the answer that begins with Yes (y) or No (n)."""
    for word in wanted:
        slot = page.get_attribute("#work", "data-slot")
        left = page.inner_text(".answer .body >> nth=0").strip().lower()
        page.keyboard.press("2" if left.startswith(word) else "6")
        page.keyboard.press("Enter")
        page.locator(f'#work[data-slot="{slot}"]').wait_for(state="detached")
        page.wait_for_load_state("load")


def until(page: Any, holds: Callable[[], bool]) -> None:
    """Waits for something that a page shows; its own scripts are all that it may run."""
    end = time.monotonic() + PATIENCE / 1000
    while not holds():
        assert time.monotonic() < end, page.inner_text("main")
        page.wait_for_timeout(100)


def facts(page: Any) -> list[str]:
    """The large numbers of the overview."""
    found: list[str] = page.locator(".fact b").all_inner_texts()
    return found


def test_from_an_invitation_to_a_reward_model(served, person, tiny_model_dir, tmp_path, capsys):
    lead = sign_in(person())
    lead.goto(LEAD + "/people")
    lead.fill("[name=uses]", "2")
    lead.click("text=Make a link")
    link = lead.input_value(".once")

    team = [person(), person()]
    for name, page in zip(("ann", "bob"), team, strict=True):
        page.goto(link)
        page.fill("[name=user]", name)
        page.fill("[name=password]", PASSWORD)
        page.click("main button")
        page.wait_for_selector("#work")

    lead.goto(LEAD)
    assert lead.inner_text(".fact b") == "0"
    labelled(team[0], "ynyn")
    labelled(team[1], "ynyn")
    until(lead, lambda: facts(lead)[0] == "8" and facts(lead)[2] == "1.00")
    labelled(team[0], "ynyn")
    labelled(team[1], "nynn")
    until(lead, lambda: facts(lead)[0] == "16" and float(facts(lead)[2]) < 0.6)

    decided_by_keyboard(lead, served)
    file = exported(lead, tmp_path)
    examples = load_examples(str(file)).examples
    assert len(examples) == ITEMS and sum(len(example.feedback) == 1 for example in examples) == 2

    command = f"reward --model.path {tiny_model_dir} --data.train {file} --out {tmp_path / 'reward'}"
    options = "--train.max_steps 2 --train.batch_size 2 --train.threads 1 --data.max_length 128 --model.precision fp32"
    assert main([*command.split(), *options.split()]) == 0, capsys.readouterr().err
    metrics = [json.loads(line) for line in (tmp_path / "reward" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in metrics) and (tmp_path / "reward" / "model").is_dir()


def decided_by_keyboard(lead: Any, served: Served) -> None:
    """Three items wait: one is decided as an annotator did, one otherwise, one is left; a decision is taken back and
    made again."""
    lead.goto(LEAD + "/adjudicate")
    first = item_of(lead)
    assert "3 items" in lead.inner_text(".pace")
    lead.keyboard.press("q")
    lead.wait_for_url("**last=*")
    assert served.decisions()[first]["verdict"] == "better"
    second = item_of(lead)
    lead.keyboard.press("7")
    lead.keyboard.press("Enter")
    lead.wait_for_url(f"**last={second}")
    assert served.decisions()[second] == {"verdict": "better", "better": 1, "strength": 3}
    lead.keyboard.press("u")
    lead.wait_for_url(f"**item={second}")
    assert set(served.decisions()) == {first}
    lead.keyboard.press("1")
    lead.keyboard.press("Enter")
    lead.wait_for_url(f"**last={second}")
    assert served.decisions()[second] == {"verdict": "better", "better": 0, "strength": 3}
    lead.keyboard.press("s")
    lead.keyboard.press("Enter")
    lead.wait_for_selector("text=Nothing to decide")


def item_of(lead: Any) -> int:
    return int(lead.input_value("#work [name=item]"))


def exported(lead: Any, folder: Path) -> Path:
    lead.goto(LEAD + "/files")
    with lead.expect_download() as download:
        lead.click("text=Download")
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    assert re.fullmatch(r"pairs-assent\.jsonl", file.name)
    return file
