"""A label server for tests, asked without a network: people in every role, and a project with items."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from assent.data.records import Message
from assent.people.store import Store, accounts, items, projects, sessions
from assent.people.store.records import Project
from assent.people.task import Item
from assent.people.taskfile import load_task
from assent.people.web.app import application

PASSWORD = "a long password"
START = 1_800_000_000.0
JSON = {"Accept": "application/json"}
SECRET = "policy-of-mine"
"""A source of answers, which no annotator may see."""


class Site:
    """`people` are clients that are signed in: nobody, other (without a part in the project), ann, bob, lea, adm."""

    def __init__(self, folder: Path, task: str = "kind: pair", count: int = 6, answers: int = 2) -> None:
        self.now = START
        self.store = Store.open(folder / "labels.db")
        self.people: dict[str, TestClient] = {}
        self.tokens: dict[str, str] = {}
        with self.store.writing() as c:
            self.project = self.put(c, f"name: pairs\nitems: x.jsonl\n{task}\n")
            items.add_items(c, self.project, [item(i, answers) for i in range(count)])
            for name, role in (("other", "annotator"), ("ann", "annotator"), ("bob", "annotator"), ("lea", "lead")):
                user = accounts.add_user(c, name, None, role, None)
                if name != "other":
                    accounts.add_member(c, self.project, user, role, None)
            for name, role in (("adm", "admin"), ("bot", "judge")):
                user = accounts.add_user(c, name, None, role, None)
            accounts.add_member(c, self.project, user, "judge", None)
            for name in ("other", "ann", "bob", "lea", "adm", "bot"):
                self.tokens[name] = sessions.api_token(c, accounts.user(c, name), None)
        self.app = application(self.store, clock=lambda: self.now)
        self.people = {name: self.client(name) for name in ("nobody", "other", "ann", "bob", "lea", "adm")}

    def put(self, c: Any, text: str) -> Project:
        return projects.put_project(c, load_task(text, "t.yaml"))

    def client(self, name: str = "nobody") -> TestClient:
        """A browser of somebody's."""
        made = TestClient(self.app, base_url="http://localhost", follow_redirects=False, raise_server_exceptions=False)
        if name != "nobody":
            with self.store.writing() as c:
                made.cookies.set("assent_session", sessions.start_session(c, accounts.user(c, name), self.now))
        return made

    def api(self, name: str = "bot") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[name]}"}

    def close(self) -> None:
        self.store.close()


def item(number: int, answers: int = 2) -> Item:
    texts = tuple(f"answer {which} to {number}" for which in range(answers))
    sources = tuple(f"{SECRET}-{which}" for which in range(answers))
    return Item((Message("user", f"Question {number}?"),), texts, sources, meta={"source": SECRET})


def csrf_of(client: TestClient, path: str = "/login") -> str:
    """What a form of this browser carries."""
    text = client.get(path, follow_redirects=True).text
    found = re.search(r'name="csrf" value="(\w+)"', text)
    assert found is not None, text
    return found[1]


def form(client: TestClient, path: str = "/p/pairs") -> dict[str, str]:
    """The hidden fields of the page of an item."""
    page = client.get(path).text.split('id="work"')[1].split("</form>")[0]
    return dict(re.findall(r'type="hidden" name="(csrf|slot|request|opened)" value="([^"]*)"', page))


def post(client: TestClient, path: str, fields: Mapping[str, Any], **headers: str) -> Any:
    return client.post(path, data=dict(fields), headers=headers)
