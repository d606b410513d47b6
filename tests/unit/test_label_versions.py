"""A task whose answers mean something else: old ones are kept, and their items are asked again."""

from __future__ import annotations

import pytest

from assent.people import stored
from assent.people.store import audit, items, labels, projects, queue, review, standing
from assent.people.store.errors import StaleError
from assent.people.store.records import Slot
from tests.labelling import START, answer, item, made, take, task, work

A, B = ({"verdict": "better", "better": which, "strength": 2} for which in (0, 1))
RANKED = {"levels": [[1], [0]]}


def changed(store, now=START + 50, **options):
    with store.writing() as c:
        return projects.put_project(c, task(**options), now=now, new_version=True)


def said(store, project):
    with store.reading() as c:
        return [[(label.annotator, label.value) for label in each.labels] for each in stored.labelled(c, project)]


def test_items_are_asked_again_under_another_meaning_and_old_answers_count_again_under_theirs(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", 2, overlap=2)
    for user in (one, two):
        work(store, project, user, A)
        with store.writing() as c:
            labels.skip(c, queue.next_slot(c, project, user, START).id, user, f"skip {user.id}", "?", START)
    ranked = changed(store, kind="ranking", overlap=2)
    assert said(store, ranked) == []
    with store.reading() as c:
        assert [(row.state, row.done, row.taken, row.skips) for row in items.page(c, ranked)] == [("open", 0, 0, 0)] * 2
        assert queue.ahead(c, ranked, one).mine == 0
        assert len(list(labels.labels(c, ranked, current=False))) == 4, "nothing is lost"
    for user in (one, two):
        for _ in range(2):
            work(store, ranked, user, RANKED, START + 60)
    assert said(store, ranked) == [[(one.name, RANKED), (two.name, RANKED)]] * 2
    back = changed(store, START + 90, overlap=2)
    assert said(store, back) == [[(one.name, A), (two.name, A)]]
    with store.reading() as c:
        first, second = items.page(c, back)
        assert (first.state, first.done, second.done, second.skips) == ("done", 2, 0, 2)
        assert queue.ahead(c, back, one).mine == 1


def test_an_answer_that_was_under_way_is_kept_and_its_item_asked_again(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db", 1)
    held = take(store, project, one)
    ranked = changed(store, kind="ranking")
    label = answer(store, held, one, A, START + 60)
    with store.reading() as c:
        assert labels.label(c, label).value == A
        assert items.item(c, held.item.id).done == 0
    with pytest.raises(StaleError, match="answered already"):
        answer(store, held, one, B, START + 70)
    again = take(store, ranked, one, START + 80)
    assert again.item.id == held.item.id and again.definition.task.kind == "ranking"
    answer(store, again, one, RANKED, START + 90)
    assert said(store, ranked) == [[(one.name, RANKED)]]


def test_a_decision_of_an_earlier_meaning_decides_nothing(tmp_path):
    store, project, (one, two, lead) = made(tmp_path / "labels.db", 1, overlap=2)
    for user, value in ((one, A), (two, B)):
        work(store, project, user, value)
    with store.writing() as c:
        review.decide(c, project, 1, lead, "d", A, START)
    ranked = changed(store, kind="ranking", overlap=2)
    with store.reading() as c:
        assert items.item(c, 1).state == "open" and list(stored.chosen(c, ranked, "decisions")) == []
        assert review.dispute_of(c, ranked, 1).differs == 0
    with pytest.raises(StaleError), store.writing() as c:
        review.send_back(c, ranked, 1, lead, "why", START + 60)
    back = changed(store, START + 90, overlap=2)
    with store.reading() as c:
        assert items.item(c, 1).state == "decided"
        assert [each.labels[0].value for each in stored.chosen(c, back)] == [A]


def test_items_that_a_task_cannot_ask_are_withdrawn_and_known_answers_wait_for_new_ones(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db", 2, gold="gold.jsonl", gold_share=0.5)
    with store.writing() as c:
        items.add_items(c, project, [item(9)], "gold", [A], now=START)
    best = changed(store, kind="best", gold="gold.jsonl", gold_share=0.5)
    with store.reading() as c:
        (gold,) = items.page(c, best, items.Filter("gold"))
        assert gold.state == "withdrawn" and "earlier version" in gold.withdrawn
    with store.writing() as c:
        items.add_items(c, best, [item(9)], "gold", [{"best": 1}], now=START + 60)
        (gold,) = items.page(c, best, items.Filter("gold"))
        assert gold.state == "open" and gold.expected == {"best": 1} and gold.withdrawn is None
        items.withdraw(c, gold.id, one, "wrong", START + 61)
        items.add_items(c, best, [item(9)], "gold", [{"best": 0}], now=START + 62)
        assert items.item(c, gold.id).state == "withdrawn", "a lead took it out"
        entries = audit.entries(c, best)
        assert [entry.detail for entry in entries if entry.what == "known answers changed"] == [
            {"purpose": "gold", "changed": 1}
        ] * 2
    edited = changed(store, START + 90, kind="edit")
    with store.writing() as c:
        assert isinstance(queue.next_slot(c, edited, one, START + 95), Slot)


def test_a_known_answer_that_is_corrected_counts_from_now_on(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db", 1, gold="gold.jsonl", gold_share=0.99)
    with store.writing() as c:
        items.add_items(c, project, [item(9)], "gold", [A], now=START)
    slot = take(store, project, one)
    assert slot.purpose == "gold"
    answer(store, slot, one, B)
    with store.writing() as c:
        assert standing.known_answers(c, project, one, "gold") == (0, 1)
        assert items.add_items(c, project, [item(9)], "gold", [B], now=START + 9).new == 0
        assert standing.known_answers(c, project, one, "gold") == (1, 1)
