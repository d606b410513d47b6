"""Who is locked out, exactly when, and let in again; and what leads decide at the same time."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import text

from assent.people.store import audit, items, labels, queue, review, sessions, standing
from assent.people.store.errors import StaleError
from assent.people.store.records import Slot, Waiting
from assent.people.task import Screening, Thresholds
from tests.labelling import START, answer, item, made, take, work

A, B = ({"verdict": "better", "better": which, "strength": 2} for which in (0, 1))


def known(store, project, count, purpose="gold"):
    with store.writing() as c:
        items.add_items(c, project, [item(100 + i) for i in range(count)], purpose, [A] * count, now=START)


def say(store, project, user, values, now=START):
    """Answers one item after the other; what came of the last."""
    saved = None
    for place, value in enumerate(values):
        slot = take(store, project, user, now + place)
        with store.writing() as c:
            saved = labels.save(c, slot.id, user, f"r {slot.id}", value, 1.0, now + place)
    return saved.locked


@pytest.mark.parametrize(("right", "locked"), [(14, False), (13, True)])
def test_a_share_is_reached_whatever_binary_fractions_say(tmp_path, right, locked):
    options = {"gold": "g", "gold_share": 0.999, "thresholds": {"gold": 0.56, "at_least": 25}}
    store, project, (one, *_) = made_of(tmp_path, options)
    known(store, project, 25)
    assert 0.56 * 25 > 14
    assert bool(say(store, project, one, [A] * right + [B] * (25 - right))) is locked


def made_of(folder, options):
    built = {"thresholds": Thresholds, "screening": Screening}
    options = {name: built[name](**value) if name in built else value for name, value in options.items()}
    return made(folder / "labels.db", 3, **options)


def test_who_is_let_in_again_starts_anew(tmp_path):
    options = {"gold": "g", "gold_share": 0.999, "thresholds": {"gold": 0.7, "at_least": 3}}
    store, project, (one, *_) = made_of(tmp_path, options)
    known(store, project, 12)
    assert say(store, project, one, [B, B, A])
    with store.writing() as c:
        assert isinstance(queue.next_slot(c, project, one, START + 5), Waiting)
        standing.unlock(c, project, one, None, START + 10)
    assert say(store, project, one, [A, A, A], START + 20) is None
    assert say(store, project, one, [B], START + 30) is None, "3 of 4 are 75 %"
    assert say(store, project, one, [B], START + 40), "3 of 5 are 60 %"


def test_nobody_passes_a_screening_by_its_being_withdrawn(tmp_path):
    options = {"screening": {"items": "s", "threshold": 0.8, "at_least": 3}}
    store, project, (one, two, three) = made_of(tmp_path, options)
    known(store, project, 3, "screening")
    for user, value in ((one, B), (two, A)):
        say(store, project, user, [value] * 2)
    with store.writing() as c:
        items.withdraw(c, items.page(c, project, items.Filter("screening"))[-1].id, None, "wrong", START)
        assert isinstance(found := queue.next_slot(c, project, one, START + 5), Waiting) and "0 of 2" in found.message
        assert isinstance(queue.next_slot(c, project, two, START + 5), Slot)
        assert queue.next_slot(c, project, three, START + 5).purpose == "screening"


def test_of_two_leads_the_second_is_told_what_the_first_decided(tmp_path):
    store, project, (one, two, lead) = made(tmp_path / "labels.db", 1, overlap=2)
    for user, value in ((one, A), (two, B)):
        work(store, project, user, value)
    with store.writing() as c:
        first = review.decide(c, project, 1, lead, "r1", A, START, known=0)
        assert review.decide(c, project, 1, lead, "r1", A, START, known=0).repeated
    with pytest.raises(StaleError, match="Another lead has decided"), store.writing() as c:
        review.decide(c, project, 1, two, "r2", B, START, known=0)
    with store.writing() as c:
        assert review.decision(c, project, 1) == first.label
        second = review.decide(c, project, 1, two, "r3", B, START, known=first.label)
        review.undecide(c, project, 1, two, START)
    with pytest.raises(StaleError, match="taken back"), store.writing() as c:
        review.decide(c, project, 1, lead, "r4", A, START, known=second.label)


def test_nothing_is_decided_about_known_answers(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db", 1)
    known(store, project, 1)
    for do in (review.mark, review.decide):
        more = ("note",) if do is review.mark else ("r", A)
        with pytest.raises(StaleError, match="known answer"), store.writing() as c:
            do(c, project, 2, one, *more, START)


def test_no_annotator_keeps_an_answer_from_being_sent_back(tmp_path):
    store, project, (one, _, lead) = made(tmp_path / "labels.db")
    label = answer(store, take(store, project, one), one, A, request="r")
    answer(store, take(store, project, one), one, A, request=f"sent back {label}")
    with store.writing() as c:
        review.send_back(c, project, label, lead, "look", START + 5)
        assert not labels.label(c, label).current


def test_rows_of_the_history_are_not_replaced_either(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    label = answer(store, take(store, project, one), one, A)
    with store.reading() as c:
        if c.dialect.name != "sqlite":
            pytest.skip("REPLACE is SQLite's")
    raw = sqlite3.connect(tmp_path / "labels.db")
    for table, same in (("labels", "id"), ("audit", "id")):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(f"REPLACE INTO {table} SELECT * FROM {table} WHERE {same} = 1")
    raw.execute("UPDATE users SET name = 'x' WHERE 0")
    raw.close()
    with store.writing() as c:
        assert c.execute(text("SELECT count(*) FROM labels")).scalar() == label == 1
        word = sessions.invite(c, project, "annotator", None)
        key = c.execute(text("SELECT max(id) FROM invitations")).scalar()
        sessions.revoke_invitation(c, key, None)
        assert word and audit.entries(c, project)[0].what == "invitation revoked"
        assert "account made" not in [each.what for each in audit.entries(c, project)]
        assert "account made" in [each.what for each in audit.entries(c, project, server=True)]
