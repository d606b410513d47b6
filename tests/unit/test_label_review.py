"""Review of labels: what is looked at again, decided, sent back; the board in memory; lists of many items."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from assent.errors import AssentError
from assent.people.kinds import LabelError
from assent.people.store import Store, accounts, items, labels, listing, queue, review
from assent.people.store.board import Board
from assent.people.store.errors import GoneError, MissingError, StaleError
from assent.people.store.records import Project, User
from assent.people.task import TaskDefinition
from tests.labelling import START, answer, item, made, take, work

A, B = ({"verdict": "better", "better": which, "strength": 2} for which in (0, 1))
BAD = {"verdict": "both_bad", "better": None, "strength": None}
PAIRS = TaskDefinition("t", "pair")


def world(path: Path, count: int = 4, **options: Any) -> tuple[Store, Project, list[User], User]:
    """A project of overlap 2 with two annotators and a lead."""
    store, project, people = made(path / "labels.db", count, 2, overlap=2, **options)
    with store.writing() as c:
        lead = accounts.add_user(c, "leah", None, "lead", None, START)
        accounts.add_member(c, project, lead, "lead", None, START)
    return store, project, people, lead


def said(store: Store, project: Project, people: list[User], *values: tuple[Any, Any]) -> list[int]:
    """Each item gets a value of each annotator (None: a skip); the items."""
    found = []
    for number, pair in enumerate(values):
        for user, value in zip(people, pair, strict=True):
            slot = take(store, project, user, START + number)
            if value is None:
                with store.writing() as c:
                    labels.skip(c, slot.id, user, f"skip {slot.id}", "no idea", START + number)
            else:
                answer(store, slot, user, value, START + number)
        found.append(slot.item.id)
    return found


def state(store: Store, key: int) -> str:
    with store.reading() as c:
        return items.item(c, key).state


# ---- what is looked at again


def test_what_makes_an_item_one_to_look_at():
    found = review.dispute(PAIRS, 1, [A, B, A], 0)
    assert found.differs == 1 and found.reasons() == ("annotators differ",) and found.reasons(1.0) == ()
    assert review.dispute(PAIRS, 1, [A, {"verdict": "tie", "better": None, "strength": None}], 0).reasons() == ()
    both = review.dispute(PAIRS, 1, [BAD, BAD], 2, "odd")
    assert both.reasons() == ("marked", "both bad, says 2", "skipped by 2")
    best = TaskDefinition("t", "best")
    assert review.dispute(best, 1, [{"best": None}, {"best": 0}], 0).reasons() == ("both bad",)
    edit = TaskDefinition("t", "edit")
    assert review.dispute(edit, 1, [{"text": "a", "from": None}, {"text": "b", "from": None}], 0).reasons() == ()


def test_the_queue_its_order_and_what_leaves_it(tmp_path):
    store, project, people, lead = world(tmp_path, 5)
    agree, differ, bad, skipped = said(store, project, people, (A, A), (A, B), (A, BAD), (None, A))
    board = Board(store, project.id)

    def waiting(threshold: float = review.DIFFER) -> list[int]:
        view = board.look(30, 30)
        with store.reading() as c:
            return [one.item for one in review.waiting(c, project, view.disputes, threshold)]

    assert waiting() == [differ, bad, skipped] and waiting(0.25) == [differ, bad, skipped]
    with store.writing() as c:
        review.mark(c, project, agree, lead, "looks odd", START)
        review.decide(c, project, bad, lead, "r1", A, START)
        review.pass_over(c, project, skipped, lead, START)
    assert waiting() == [agree, differ]
    with store.writing() as c:
        review.unmark(c, project, agree, lead, START)
    assert waiting() == [differ]
    slot = take(store, project, people[0], START + 9)  # the skipped item's second place, by somebody who is new
    with store.writing() as c:
        third = accounts.add_user(c, "third", None, "annotator", None, START)
        accounts.add_member(c, project, third, "annotator", None, START)
        queue.release(c, slot.id, people[0], START + 9)
    assert work(store, project, third, B, START + 10).item.id == skipped
    assert waiting() == [differ, skipped], "somebody said something new"
    with store.writing() as c:
        items.withdraw(c, differ, lead, "broken", START)
    assert waiting() == [skipped]
    store.close()


# ---- decisions


def test_a_decision_ends_an_item_and_can_be_taken_back(tmp_path):
    store, project, people, lead = world(tmp_path)
    (key,) = said(store, project, people, (A, B))
    with store.writing() as c:
        first = review.decide(c, project, key, lead, "r1", B, START + 5)
    with store.writing() as c:
        again = review.decide(c, project, key, lead, "r1", B, START + 6)
    assert again.label == first.label and again.repeated and state(store, key) == "decided"
    with store.writing() as c, pytest.raises(StaleError, match="lead has decided"):
        labels.undo(c, people[0], project, "u1", START + 7)
    with store.writing() as c:
        second = review.decide(c, project, key, lead, "r2", A, START + 8)
    with store.reading() as c:
        rows = {one.id: one for one in labels.of_item(c, key)}
        (decision,) = labels.labels(c, project, "adjudication")
        assert decision.id == second.label and decision.value == A and not rows[first.label].current
        assert len(list(labels.labels(c, project))) == 2, "annotators' labels stand"
        assert items.item(c, key).done == 2, "a decision is no annotator's label"
        assert review.last_decided(c, project, lead) == key
    with store.writing() as c:
        review.undecide(c, project, key, lead, START + 9)
    assert state(store, key) == "done"
    with store.writing() as c:
        assert list(labels.labels(c, project, "adjudication")) == [] and review.last_decided(c, project, lead) is None
        with pytest.raises(StaleError, match="Nothing is decided"):
            review.undecide(c, project, key, lead, START + 10)
        log = [entry.what for entry in review.log_of(c, project, key)]
    assert log == [review.UNDECIDED, review.DECIDED, review.UNDECIDED, review.DECIDED]
    store.close()


def test_an_open_item_that_is_decided_is_given_to_nobody(tmp_path):
    store, project, people, lead = world(tmp_path, 2)
    slot = take(store, project, people[0])
    with store.writing() as c:
        review.decide(c, project, slot.item.id, lead, "r1", A, START)
        queue.release(c, slot.id, people[0], START)
    assert state(store, slot.item.id) == "decided"
    assert take(store, project, people[0]).item.id != slot.item.id
    with store.writing() as c:
        review.undecide(c, project, slot.item.id, lead, START)
    assert state(store, slot.item.id) == "open" and take(store, project, people[1]).item.id == slot.item.id
    store.close()


def test_bad_decisions_change_nothing(tmp_path):
    store, project, people, lead = world(tmp_path)
    (key,) = said(store, project, people, (A, B))
    with pytest.raises(LabelError, match="strength"), store.writing() as c:
        review.decide(c, project, key, lead, "r1", {"verdict": "better", "better": 0}, START)
    assert state(store, key) == "done"
    with pytest.raises(MissingError), store.writing() as c:
        review.decide(c, project, key + 99, lead, "r1", A, START)
    with store.writing() as c:
        items.withdraw(c, key, lead, "broken", START)
    with pytest.raises(GoneError), store.writing() as c:
        review.decide(c, project, key, lead, "r1", A, START)
    store.close()


def test_an_admin_who_decides_becomes_a_lead_of_the_project(tmp_path):
    store, project, people, _ = world(tmp_path)
    (key,) = said(store, project, people, (A, B))
    with store.writing() as c:
        admin = accounts.add_user(c, "root", None, "admin", None, START)
        review.decide(c, project, key, admin, "r1", A, START)
    assert state(store, key) == "decided"
    store.close()


# ---- sent back


def test_what_is_sent_back_comes_to_its_annotator_first_with_the_reason(tmp_path):
    store, project, people, lead = world(tmp_path)
    key, _ = said(store, project, people, (A, B), (A, A))
    with store.reading() as c:
        label = next(one for one in labels.of_item(c, key) if one.user == people[1].id)
    with store.writing() as c:
        review.send_back(c, project, label.id, lead, " Look at\nthe second  answer. ", START + 50)
    slot = take(store, project, people[1], START + 60)
    assert slot.item.id == key and slot.note == "Look at the second answer." and slot.shown == label.shown
    assert slot.leased_until == START + 50 + 7 * 86_400, "a lead's wish outlasts a lease"
    assert take(store, project, people[0], START + 60).item.id != key
    with store.reading() as c:
        assert [one.user for one in labels.labels(c, project) if one.item == key] == [people[0].id]
    with store.writing() as c, pytest.raises(StaleError, match="sent back before"):
        review.send_back(c, project, label.id, lead, "again", START + 61)
    answer(store, slot, people[1], A, START + 70)
    with store.reading() as c:
        assert {one.value["better"] for one in labels.labels(c, project) if one.item == key} == {0}
        (entry,) = review.log_of(c, project, key)
    assert entry.what == review.SENT_BACK and entry.detail["annotator"] == people[1].name and entry.by == "leah"
    store.close()


def test_what_cannot_be_sent_back(tmp_path):
    store, project, people, lead = world(tmp_path)
    (key,) = said(store, project, people, (A, B))
    with store.reading() as c:
        label = labels.of_item(c, key)[0].id
    with store.writing() as c:
        decision = review.decide(c, project, key, lead, "r1", A, START)
    for number in (label, decision.label):
        with store.writing() as c, pytest.raises(StaleError):
            review.send_back(c, project, number, lead, "why", START)
    with store.writing() as c, pytest.raises(MissingError):
        review.send_back(c, project, 999, lead, "why", START)
    other = made(tmp_path / "other.db", 1, 1, name="elsewhere")
    with other[0].writing() as c, pytest.raises(AssentError):
        review.mark(c, project, 77, lead, "not mine", START)
    other[0].close()
    store.close()


# ---- the board


def test_the_board_follows_the_database(tmp_path):
    store, project, people, lead = world(tmp_path, 6)
    board = Board(store, project.id)
    view = board.look(30, 30)
    assert view.live is not None and view.live.labels == 0 and view.disputes == {}
    one, two, three = said(store, project, people, (A, A), (A, B), (A, None))
    board._free_at = 0.0
    view = board.look(30, 30)
    assert view.live is not None and view.live.labels == 5 and view.behind == 0
    assert view.live.annotators["annotator 0"].agreement.mean == 0.5 and view.skips == {"annotator 1": 1}
    with store.writing() as c:
        labels.undo(c, people[1], project, "u1", START + 9)
        items.withdraw(c, two, lead, "broken", START)
    board._free_at = 0.0
    view = board.look(30, 30)
    assert view.live is not None and view.live.labels == 3 and view.skips == {}, "nothing of what was withdrawn"
    assert view.live.annotators["annotator 0"].agreement.mean == 1
    answer(store, take(store, project, people[1], START + 10), people[1], B, START + 10)
    board._free_at = time.monotonic() + 60
    view = board.look()
    assert view.behind == 1 and view.live is not None and view.live.labels == 3, "it rests, and says what it lacks"
    store.close()


def test_what_fails_in_the_background_leaves_the_page_its_numbers(tmp_path, monkeypatch, caplog):
    store, project, people, _ = world(tmp_path)
    board = Board(store, project.id)
    said(store, project, people, (A, A))
    assert board.look(30, 30).live is not None
    monkeypatch.setattr("assent.people.store.board.measure", lambda *_: 1 / 0)
    said(store, project, people, (A, B))
    board._free_at = 0.0
    view = board.look(30, 30)
    assert view.live is not None and view.live.labels == 2 and "live agreement" in caplog.text
    store.close()


def test_only_labels_of_the_newest_meaning_count(tmp_path):
    from assent.people.store import projects
    from tests.labelling import task

    store, project, people, _ = world(tmp_path)
    said(store, project, people, (A, A))
    with store.writing() as c:
        newer = projects.put_project(c, task(overlap=2, ties=False), None, START, new_version=True)
    board = Board(store, newer.id)
    view = board.look(30, 30)
    assert view.live is not None and view.live.labels == 0
    said(store, newer, people, (A, B))
    board._free_at = 0.0
    view = board.look(30, 30)
    assert view.live is not None and view.live.labels == 2 and view.behind == 0
    store.close()


# ---- lists


def test_lists_are_filtered_searched_and_paged(tmp_path):
    store, project, people, lead = world(tmp_path, 0)
    with store.writing() as c:
        items.add_items(c, project, [item(i, topic="odd" if i % 2 else "even") for i in range(120)], now=START)
        items.add_items(c, project, [item(500)], "gold", [A], now=START)
    said(store, project, people, (A, A), (A, None))
    with store.reading() as c:
        first = listing.page(c, project, listing.Wanted(), limit=50)
        rest = listing.page(c, project, listing.Wanted(), first.next or 0, limit=100)
        assert [len(first.lines), len(rest.lines), rest.next] == [50, 70, None]
        assert first.lines[0].prompt == "Question 0?" and first.lines[0].state == "done"
        odd = listing.page(c, project, listing.Wanted(topic="odd"), limit=100)
        assert len(odd.lines) == 60 and {line.topic for line in odd.lines} == {"odd"}
        assert [line.done for line in listing.page(c, project, listing.Wanted(state="done")).lines] == [2]
        assert len(listing.page(c, project, listing.Wanted(skipped=True)).lines) == 1
        assert len(listing.page(c, project, listing.Wanted(purpose="gold")).lines) == 1
        found = listing.page(c, project, listing.Wanted(text="QUESTION 11"))
        assert [line.prompt for line in found.lines] == [f"Question {i}?" for i in (11, *range(110, 120))]
        assert listing.page(c, project, listing.Wanted(text='50%" or 1=1')).lines == ()
        assert listing.counts(c, project)["work"]["done"] == 1 and listing.topics(c, project) == ["even", "odd"]
    store.close()


def test_a_search_that_takes_long_says_how_far_it_has_come(tmp_path, monkeypatch):
    store, project, *_ = world(tmp_path, 40)
    monkeypatch.setattr(listing, "STRIDE", 10)
    ticks = iter(range(100))
    with store.reading() as c:
        found = listing.page(c, project, listing.Wanted(text="nowhere"), clock=lambda: float(next(ticks)))
        assert (found.lines, found.searched, found.next) == ((), False, 10)
        found = listing.page(c, project, listing.Wanted(text="Question 39?"), 30, clock=lambda: 0.0)
        assert len(found.lines) == 1 and found.searched and found.next is None
    store.close()
