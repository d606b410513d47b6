"""Any order of what people do with the queue, against a plain model of it: no slot twice, nobody twice at an item,
never more than the overlap, every answer in the history exactly once."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from assent.people.store import accounts, drafts, items, labels, projects, queue
from assent.people.store import tables as t
from assent.people.store.errors import GoneError, LeaseError, MissingError, StaleError, StoreError
from assent.people.store.records import Slot, Waiting
from assent.people.task import Attribute, Extra
from tests.labelling import START, answer, item, made, task

USERS = 4
ratings = st.integers(0, 4)
who = st.integers(0, USERS - 1)


def scores(rating: int) -> dict:
    return {"scores": [{"helpfulness": rating}, {"helpfulness": 2}]}


class Queue(RuleBasedStateMachine):
    """`saved` is what was acknowledged and holds, by slot; `rows` how many rows the history must have."""

    @initialize(overlap=st.integers(1, 3), extra=st.booleans(), second=st.sampled_from([0.0, 0.3]))
    def start(self, overlap: int, extra: bool, second: float) -> None:
        memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.options = {"kind": "attributes", "attributes": {"helpfulness": Attribute()}, "second_pass": second}
        self.options |= {"extra": Extra(up_to=4) if extra else None}
        path = Path(self.folder.name) / "labels.db"
        self.store, self.project, self.users = made(path, count=3, users=USERS, overlap=overlap, **self.options)
        self.now, self.count, self.rows, self.items = START, 0, 0, 3
        self.slots: dict[int, Slot] = {}
        self.saved: dict[int, dict | None] = {}
        self.requests: list[tuple[int, int, str, dict]] = []
        self.withdrawn: set[int] = set()

    def request(self) -> str:
        self.count += 1
        return f"r{self.count}"

    @rule(user=who)
    def ask(self, user: int) -> None:
        with self.store.writing() as c:
            held = c.execute(
                select(t.slots.c.id)
                .join(t.items, t.items.c.id == t.slots.c.item_id)
                .where(t.slots.c.user_id == self.users[user].id, t.slots.c.state == "leased")
                .where(t.items.c.state != "withdrawn")
            ).scalars()
            mine = set(held)
            slot = queue.next_slot(c, self.project, self.users[user], self.now)
        if isinstance(slot, Waiting):
            assert not mine and slot.reason in ("done", "others")
            return
        assert slot.id in mine if mine else slot.id not in self.slots
        assert slot.leased_until > self.now and slot.item.id not in self.withdrawn
        self.slots[slot.id] = slot

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), rating=ratings)
    def save(self, data: st.DataObject, rating: int) -> None:
        """Also by a form of long ago."""
        key = data.draw(st.sampled_from(sorted(self.slots)))
        user = next(user for user in self.users if user.id == self.slots[key].user)
        self.send(key, self.users.index(user), self.request(), scores(rating))

    def send(self, key: int, user: int, request: str, value: dict) -> None:
        try:
            label = answer(self.store, self.slots[key], self.users[user], value, self.now, request)
        except (StaleError, LeaseError, GoneError) as error:
            assert isinstance(error, GoneError) == (self.slots[key].item.id in self.withdrawn)
            assert key in self.saved or not isinstance(error, StaleError)
            with self.store.reading() as c:
                assert drafts.draft(c, self.slots[key]) == value
            return
        assert key not in self.saved and label
        self.saved[key] = value
        self.rows += 1
        self.requests.append((key, user, request, value))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        key, user, request, value = data.draw(st.sampled_from(self.requests))
        with self.store.writing() as c:
            assert labels.save(c, key, self.users[user], request, value, 1.0, self.now).repeated

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.slots)))
        user = next(user for user in self.users if user.id == self.slots[key].user)
        try:
            with self.store.writing() as c:
                labels.skip(c, key, user, self.request(), "unclear", self.now)
        except (StaleError, LeaseError, GoneError):
            return
        assert key not in self.saved
        self.saved[key] = None
        self.rows += 1

    @rule(user=who)
    def undo(self, user: int) -> None:
        try:
            with self.store.writing() as c:
                slot = labels.undo(c, self.users[user], self.project, self.request(), self.now)
        except MissingError:
            assert not any(self.slots[key].user == self.users[user].id for key in self.saved)
            return
        except StoreError:
            return
        del self.saved[slot.id]
        self.rows += 1

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.slots)))
        user = next(user for user in self.users if user.id == self.slots[key].user)
        with self.store.writing() as c:
            queue.release(c, key, user, self.now)

    @rule(minutes=st.sampled_from([1, 20, 31]))
    def wait(self, minutes: int) -> None:
        self.now += 60 * minutes

    @rule()
    def add(self) -> None:
        with self.store.writing() as c:
            items.add_items(c, self.project, [item(self.items)], now=self.now)
        self.items += 1

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(1, self.items))
        with self.store.writing() as c:
            items.withdraw(c, key, None, "broken", self.now)
        self.withdrawn.add(key)

    @rule(overlap=st.integers(1, 3))
    def change(self, overlap: int) -> None:
        with self.store.writing() as c:
            self.project = projects.put_project(c, task(overlap=overlap, **self.options), now=self.now)

    @invariant()
    def holds(self) -> None:
        with self.store.reading() as c:
            slots = c.execute(select(t.slots)).all()
            stored = c.execute(select(t.items)).all()
            history = c.execute(select(t.labels)).all()
            current = list(labels.labels(c, self.project, purpose=None))
            done = {m.user.id: m.done for m in accounts.members(c, self.project)}
        known = Counter((s.item_id, s.user_id, s.purpose) for s in slots if s.state in ("leased", "done", "skipped"))
        assert all(times == 1 for times in known.values())
        assert len(history) == self.rows
        expected = {key: value for key, value in self.saved.items() if self.slots[key].item.id not in self.withdrawn}
        assert {row.slot: row.value for row in current} == expected and len(current) == len(expected)
        assert sum(done.values()) == sum(value is not None for value in self.saved.values())
        for row in stored:
            live = [s for s in slots if s.item_id == row.id and s.purpose == "work" and s.state in ("leased", "done")]
            assert row.taken == len(live) <= row.wanted and row.done == sum(s.state == "done" for s in live)
            assert len({s.number for s in live}) == len(live)
            if row.state != "withdrawn":
                assert (row.lane is not None) == (row.state == "open") == (row.taken < row.wanted)
                assert row.wanted >= self.project.task.overlap
            else:
                assert row.lane is None

    def teardown(self) -> None:
        """In the end everybody works until nothing is left: every item has its answers, or all have had it."""
        if not hasattr(self, "store"):
            return
        try:
            self.finish()
        finally:
            self.store.close()
            self.folder.cleanup()

    def finish(self) -> None:
        self.now += 10_000
        for _ in range(40 * self.items):
            asked = 0
            for user in range(USERS):
                before = len(self.saved)
                self.ask(user)
                with self.store.reading() as c:
                    held = c.execute(
                        select(t.slots.c.id).where(
                            t.slots.c.user_id == self.users[user].id, t.slots.c.state == "leased"
                        )
                    ).scalars()
                    held = [key for key in held if self.slots[key].item.id not in self.withdrawn]
                for key in held:
                    self.send(key, user, self.request(), scores(2))
                asked += len(self.saved) - before
            if not asked:
                break
        self.holds()
        with self.store.reading() as c:
            for row in c.execute(select(t.items).where(t.items.c.state.notin_(("done", "withdrawn")))):
                had = {s.user for s in self.slots.values() if s.item.id == row.id and s.id in self.saved}
                assert len(had) == USERS, f"item {row.id} is {row.state}, and only {had} have had it"


Queue.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
test_any_order_of_what_people_do = Queue.TestCase
