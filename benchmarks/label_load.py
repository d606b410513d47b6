"""How long a page and a save of `assent label` take with many annotators at once, and whether anything is lost:

    python -m benchmarks.label_load                       50 people and 8 programs for three minutes, 20,000 items
    python -m benchmarks.label_load --items 100000        and the pages of a lead, with so many items
    python -m benchmarks.label_load --people 5 --seconds 20 --items 500

One server, a process of its own, as users start it. People have a browser's session: they open the page of the next
item, think for 5 to 15 seconds, and send its form; programs have tokens, ask for the next item and label it without a
pause. Every label that was answered with success must be in the database once, nobody may have had an item twice, and
no item more annotators than it wants: else the exit code is 1. Times are those of the clients, in the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from sqlalchemy import select

from assent.people.store import accounts, projects, sessions
from assent.people.store import tables as t
from assent.people.store.store import Store
from benchmarks import people_lab as lab

PROJECT = "load"
WORDS = "the answer says what a person who asked would want to know of it and gives the reason in few words".split()
FIELD = re.compile(r'<input type="hidden" name="(csrf|slot|request|opened)" value="([^"]*)"')
FORM = re.compile(r'<form method="post" action="[^"]*/label".*?</form>', re.DOTALL)
CHOICE = re.compile(r'name="choice" value="((?:left|right)-\d)"')
LEADS = ("/", "/p/{}/lead", "/p/{}/lead/items", "/p/{}/lead/items?q=person", "/p/{}/lead/annotators",
         "/p/{}/lead/adjudicate", "/p/{}/lead/audit", "/p/{}/lead/people")  # fmt: skip
ROUNDS = 20


@dataclass
class Seen:
    """What the clients saw: seconds by what was asked, answers by status, and the requests that were answered with
    success."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: Counter[str] = field(default_factory=Counter)
    saved: set[tuple[str, str]] = field(default_factory=set)

    async def ask(self, what: str, sending: Any) -> Any:
        """Sends one request; None where it came to nothing."""
        begun = time.perf_counter()
        try:
            answer = await sending
        except httpx2.HTTPError as error:
            self.answers[f"{what}: {type(error).__name__}"] += 1
            return None
        self.times[what].append(time.perf_counter() - begun)
        self.answers[f"{what}: {answer.status_code}"] += 1
        return answer


def write_items(path: Path, count: int) -> Path:
    """Pairs of answers of about sixty words with a list, a formula and some code in them."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(2)]
            texts[0] += f"\n\n- one **{number}**\n- two\n\n```python\nprint({number})\n```"
            texts[1] += f"\n\nso that $x_{{{number}}} = {number}^2$."
            prompt = f"Question {number}: {' '.join(draw.choices(WORDS, k=12))}?"
            answers = [{"messages": [{"role": "assistant", "content": text}]} for text in texts]
            row = {"prompt": [{"role": "user", "content": prompt}], "responses": answers, "feedback": []}
            file.write(json.dumps(row) + "\n")
    return path


def signed_in(db: Path, people: Sequence[str], lead: str) -> dict[str, str]:
    """Name -> session of a new account, as its cookie has it."""
    found = {}
    with Store.open(db, create=False) as store, store.writing() as c:
        project = projects.project(c, PROJECT)
        for name in (*people, lead):
            user = accounts.add_user(c, name, None, "lead" if name == lead else "annotator", None)
            accounts.add_member(c, project, user, "lead" if name == lead else "annotator", None)
            found[name] = sessions.start_session(c, user, time.time())
    return found


async def person(client: httpx2.AsyncClient, name: str, seen: Seen, until: float, pace: tuple[float, float]) -> None:
    """Opens the next item's page, thinks, and sends the form, until the time is over."""
    draw = random.Random(name)
    await asyncio.sleep(draw.uniform(0, pace[1]))
    while time.monotonic() < until:
        page = await seen.ask("a page", client.get(f"/p/{PROJECT}"))
        if page is None or page.status_code != 200 or not (form := FORM.search(page.text)):
            await asyncio.sleep(1.0)
            continue
        fields = dict(FIELD.findall(form[0]))
        await asyncio.sleep(draw.uniform(*pace))
        fields |= {"choice": draw.choice(CHOICE.findall(form[0])), "seconds": "7.5"}
        sent = await seen.ask("a form saved", client.post(f"/p/{PROJECT}/label", data=fields))
        if sent is not None and sent.status_code == 303:
            seen.saved.add((name, fields["request"]))


async def program(client: httpx2.AsyncClient, name: str, seen: Seen, until: float) -> None:
    """Asks for items and labels them as fast as it can."""
    number = 0
    while time.monotonic() < until:
        found = await seen.ask("next (API)", client.get(f"/api/p/{PROJECT}/next"))
        if found is None or found.status_code != 200 or "slot" not in (work := found.json()):
            await asyncio.sleep(1.0)
            continue
        number += 1
        value = {"verdict": "better", "better": number % 2, "strength": 1 + number % 3}
        body = {"slot": work["slot"], "request": f"{name}-{number}", "value": value, "seconds": 1.0}
        sent = await seen.ask("a label saved (API)", client.post(f"/api/p/{PROJECT}/label", json=body))
        if sent is not None and sent.status_code == 200:
            seen.saved.add((name, body["request"]))


async def crowd(
    url: str, people: dict[str, str], programs: dict[str, str], seconds: float, pace: tuple[float, float]
) -> Seen:
    """Everybody at work for so long."""
    seen, until = Seen(), time.monotonic() + seconds
    given = {"base_url": url, "timeout": 60.0, "trust_env": False}
    clients = [httpx2.AsyncClient(**given, cookies={"assent_session": word}) for word in people.values()]
    machines = [httpx2.AsyncClient(**given, headers={"Authorization": f"Bearer {word}"}) for word in programs.values()]
    try:
        async with asyncio.TaskGroup() as group:
            for name, client in zip(people, clients, strict=True):
                group.create_task(person(client, name, seen, until, pace))
            for name, client in zip(programs, machines, strict=True):
                group.create_task(program(client, name, seen, until))
    finally:
        for client in (*clients, *machines):
            with suppress(Exception):
                await client.aclose()
    return seen


def leads(url: str, session: str) -> Seen:
    """A lead's pages, one after the other, nobody else at work."""
    seen = Seen()
    with httpx2.Client(base_url=url, cookies={"assent_session": session}, timeout=120.0, trust_env=False) as client:
        for page in LEADS:
            place = page.format(PROJECT)
            for turn in range(ROUNDS + 1):
                begun = time.perf_counter()
                status = client.get(place).status_code
                seen.answers[f"{place}: {status}"] += 1
                if turn:  # the first one fills caches
                    seen.times[place].append(time.perf_counter() - begun)
                else:
                    seen.times[f"{place}, first"].append(time.perf_counter() - begun)
    return seen


def problems(db: Path, seen: Seen) -> list[str]:
    """What is wrong with the labels in the database."""
    with Store.open(db, create=False) as store, store.reading() as c:
        query = select(t.users.c.name, t.labels.c.request, t.labels.c.item_id).where(t.labels.c.action == "label")
        rows = c.execute(query.join(t.users, t.users.c.id == t.labels.c.user_id)).all()
        taken = c.execute(select(t.items.c.id, t.items.c.wanted, t.items.c.done)).all()
    there = Counter((row.name, row.request) for row in rows)
    twice = Counter((row.name, row.item_id) for row in rows)
    per_item = Counter(row.item_id for row in rows)
    lost = seen.saved - set(there)
    found = [f"{len(lost):,} labels that were answered with success are lost"] if lost else []
    found += [f"{name} {request} is there {n} times" for (name, request), n in there.items() if n > 1][:5]
    found += [f"{name} has item {item} {n} times" for (name, item), n in twice.items() if n > 1][:5]
    found += [f"item {row.id} has {per_item[row.id]} labels, and wants {row.wanted}" for row in taken
              if per_item[row.id] > row.wanted][:5]  # fmt: skip
    found += [
        f"item {row.id} counts {row.done} of {per_item[row.id]}" for row in taken if row.done != per_item[row.id]
    ][:5]
    print(f"{len(seen.saved):,} labels answered with success, {len(rows):,} in the database")
    return found


def table(seen: Seen) -> list[str]:
    """Markdown: milliseconds."""
    lines = ["| | asked | p50 ms | p95 ms | p99 ms | longest |", "|---|---|---|---|---|---|"]
    for what, times in seen.times.items():
        cells = [f"{1000 * value:.0f}" for value in (*np.percentile(times, (50, 95, 99)), max(times))]
        lines.append(f"| {what} | {len(times):,} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--programs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--pace", type=float, nargs=2, default=(5.0, 15.0), help="seconds that a person thinks")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root, db = Path(place), Path(place) / "labels.db"
        rows = write_items(root / "items.jsonl", given.items)
        task = lab.write_task(root / "task.yaml", name=PROJECT, kind="pair", items=str(rows), overlap=2)
        people = [f"person {number}" for number in range(given.people)]
        begun = time.monotonic()
        with lab.LabelServer([task], db, root / "server.log") as server:
            print(f"{given.items:,} items, ready after {time.monotonic() - begun:.1f} s", flush=True)
            words = signed_in(db, people, "lead")
            lead = words.pop("lead")
            programs = dict(lab.hired(db, PROJECT, [f"program {n}" for n in range(given.programs)], "judge"))
            before = os.getloadavg()[0]
            seen = asyncio.run(crowd(server.url, words, programs, given.seconds, tuple(given.pace)))
            print("\n".join(table(seen)))
            print("answers:", dict(seen.answers))
            wrong = problems(db, seen)
            pages = leads(server.url, lead)
            print("\n".join(table(pages)))
            strange = [what for what in pages.answers if not what.endswith(": 200")]
            wrong += [f"a lead's page: {what}" for what in strange]
            cpu = lab.processor_seconds(server)
            print(
                f"processor seconds of the server: {cpu:.0f}; "
                f"load before {before:.1f}, at the end {os.getloadavg()[0]:.1f}"
            )
    print("\n".join(wrong) or "nothing lost, nothing twice")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
