"""Who gets which item: overlap, leases, order, extra annotators, gold, screening, second looks."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from assent.people.store import Store, accounts, items, labels, projects, queue, standing
from assent.people.store import tables as t
from assent.people.store.errors import AccessError, LeaseError, MissingError
from assent.people.store.records import Slot, Waiting
from assent.people.task import Attribute, Extra, Screening, Thresholds
from tests.labelling import BETTER, START, answer, item, made, take, task, work

WORSE = {"verdict": "better", "better": 1, "strength": 1}


def asked(store: Store, project, user, now: float = START) -> Slot | Waiting:
    with store.writing() as c:
        return queue.next_slot(c, project, user, now)


def rated(value: int) -> dict:
    return {"scores": [{"helpfulness": value}, {"helpfulness": 2}]}


def test_each_item_gets_its_annotators_and_nobody_an_item_twice(tmp_path):
    store, project, people = made(tmp_path / "labels.db", count=6, users=4, overlap=2)
    had = Counter()
    for _ in range(3):
        for user in people:
            had[user.id, work(store, project, user).item.id] += 1
    assert set(had.values()) == {1} and len(had) == 12
    assert Counter(key for _, key in had) == dict.fromkeys(range(1, 7), 2)
    for user in people:
        assert asked(store, project, user) == Waiting("done", "There is nothing left for you here. Thank you.")
    with store.reading() as c:
        assert {row.state for row in items.page(c, project)} == {"done"}


def test_a_rows_own_overlap_wins(tmp_path):
    store, project, people = made(tmp_path / "labels.db", count=1, users=3, overlap=1)
    with store.writing() as c:
        items.add_items(c, project, [item(7, overlap=3)])
    had = [work(store, project, user).item.id for user in people]
    assert had == [1, 2, 2] and work(store, project, people[0]).item.id == 2


def test_items_come_in_their_order_and_a_lease_is_resumed(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db")
    first = take(store, project, one)
    assert take(store, project, two).item.id == 2
    again = take(store, project, one, START + 60)
    assert again.id == first.id and again.leased_until == first.leased_until + 60


def test_only_asking_for_an_item_takes_a_lease(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    with store.writing() as c:
        queue.ahead(c, project, one)
        labels.history(c, project, one)
        items.page(c, project)
        projects.projects(c, one)
        assert c.execute(select(t.slots)).all() == []


def test_a_lease_that_runs_out_goes_to_the_next_who_asks(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=1)
    slot = take(store, project, one)
    waiting = asked(store, project, two)
    assert isinstance(waiting, Waiting) and waiting.reason == "others" and waiting.again == START + 60
    late = START + 30 * 60
    assert take(store, project, two, late).item.id == slot.item.id
    with store.reading() as c:
        found = items.item(c, slot.item.id)
        assert (found.wanted, found.taken, found.done, found.state) == (1, 1, 0, "full")
    with pytest.raises(LeaseError, match="ran out, and somebody else has it now"):
        answer(store, slot, one, now=late)


def test_somebody_late_keeps_what_nobody_else_took(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=2)
    slot = take(store, project, one)
    late = START + 10_000
    assert answer(store, slot, one, now=late) == 1
    slot = take(store, project, one, late)
    assert take(store, project, two, late + 10_000).item.id == slot.item.id
    with store.writing() as c:
        queue.release(c, queue.next_slot(c, project, two, late + 10_000).id, two, late + 10_000)
    assert answer(store, slot, one, now=late + 10_001) == 2


def test_releasing_lets_others_have_it_at_once(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=3)
    slot = take(store, project, one)
    assert take(store, project, two).item.id == 2
    with store.writing() as c:
        queue.release(c, slot.id, one, START)
        queue.release(c, slot.id, one, START)
    answer(store, take(store, project, two), two)
    assert take(store, project, two).item.id == slot.item.id
    with store.writing() as c, pytest.raises(LeaseError):
        queue.renew(c, slot.id, one, START)
    with store.writing() as c, pytest.raises(MissingError, match="none of your items"):
        queue.release(c, slot.id, two, START)


def test_a_skipped_item_waits_for_somebody_else(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=2)
    slot = take(store, project, one)
    with store.writing() as c:
        assert not labels.skip(c, slot.id, one, "r", " unclear ", START).repeated
        assert labels.skip(c, slot.id, one, "r", "unclear", START).repeated
    assert take(store, project, one).item.id == 2
    assert take(store, project, two).item.id == 1
    with store.reading() as c:
        found = items.item(c, 1)
        assert (found.skips, found.taken, found.state) == (1, 1, "full")
        assert labels.history(c, project, one)[0].reason == "unclear"


def test_what_comes_back_reaches_even_those_who_were_past_it(tmp_path):
    """Also after everybody's cursor is behind it."""
    store, project, (one, two, three) = made(tmp_path / "labels.db", count=30, overlap=2)
    slot = take(store, project, one)
    for user in (two, three):
        for _ in range(12):
            work(store, project, user)
    with store.writing() as c:
        queue.release(c, slot.id, one, START)
    seen = {work(store, project, three).item.id for _ in range(2)}
    assert slot.item.id in seen and take(store, project, one).item.id != slot.item.id


def test_the_database_itself_refuses_more_than_the_overlap(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=1)
    slot = take(store, project, one)
    row = {"project_id": project.id, "item_id": slot.item.id, "definition_id": slot.definition.id, "purpose": "work"}
    row |= {"state": "leased", "shown": [0, 1], "leased_at": START, "leased_until": START}
    for user, number in ((two, 0), (one, 1)):
        with pytest.raises(IntegrityError), store.writing() as c:
            c.execute(t.slots.insert().values(row | {"user_id": user.id, "number": number}))
    with pytest.raises(IntegrityError), store.writing() as c:
        c.execute(update(t.items).values(taken=2))


def test_helpsteer2s_rule_asks_for_more_annotators_by_itself(tmp_path):
    options = {"kind": "attributes", "attributes": {"helpfulness": Attribute()}, "overlap": 3, "extra": Extra()}
    store, project, people = made(tmp_path / "labels.db", count=2, users=6, **options)
    for user, first, second in zip(people, (0, 2, 3), (0, 1, 2)):
        answer(store, take(store, project, user), user, rated(first))
        answer(store, take(store, project, user), user, rated(second))
    with store.reading() as c:
        one, two = items.page(c, project)
        assert (one.wanted, one.done, one.state) == (5, 3, "open")
        assert (two.wanted, two.done, two.state) == (3, 3, "done")
    assert [take(store, project, user).item.id for user in people[3:5]] == [1, 1]
    assert asked(store, project, people[5]).reason == "others"
    for user in people[3:5]:
        answer(store, take(store, project, user), user, rated(4))
    with store.reading() as c:
        assert items.item(c, 1).state == "done"
        assert len(list(labels.labels(c, project))) == 8


def test_a_corrected_answer_asks_for_nobody_more(tmp_path):
    options = {"kind": "attributes", "attributes": {"helpfulness": Attribute()}, "overlap": 2, "extra": Extra()}
    store, project, (one, two, three) = made(tmp_path / "labels.db", count=1, **options)
    work(store, project, one, rated(0))
    work(store, project, two, rated(4))
    with store.writing() as c:
        assert items.item(c, 1).wanted == 5
        slot = labels.undo(c, two, project, "undo", START)
        assert items.item(c, 1).wanted == 2
    answer(store, slot, two, rated(1), now=START + 1)
    with store.reading() as c:
        assert (items.item(c, 1).wanted, items.item(c, 1).state) == (2, "done")
    assert asked(store, project, three).reason == "done"


def test_sides_are_shuffled_by_the_seed_and_balanced_within_an_item(tmp_path):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        store, project, people = made(tmp_path / f"{name}.db", count=12, users=2, overlap=2, seed=seed)
        orders.append([[work(store, project, user).shown for user in people] for _ in range(12)])
    assert orders[0] == orders[1] != orders[2]
    assert all(first == second[::-1] for first, second in orders[0])
    assert {first for first, _ in orders[0]} == {(0, 1), (1, 0)}


def test_items_of_known_answer_are_mixed_in(tmp_path):
    options = {"gold": "gold.jsonl", "gold_share": 0.3}
    store, project, people = made(tmp_path / "labels.db", count=100, users=2, **options)
    with store.writing() as c:
        items.add_items(c, project, [item(1000 + i) for i in range(20)], "gold", [BETTER] * 20)
    for user in people:
        purposes = [work(store, project, user).purpose for _ in range(40)]
        assert 5 <= purposes.count("gold") <= 19
    with store.reading() as c:
        had = [row.item_id for row in c.execute(select(t.slots).where(t.slots.c.purpose == "gold"))]
        assert max(Counter(had).values()) == 2  # both have the first ones
        assert standing.known_answers(c, project, people[0], "gold")[0] > 4


def test_who_fails_on_known_answers_is_locked_out(tmp_path):
    options = {"gold": "gold.jsonl", "gold_share": 0.9, "thresholds": Thresholds(gold=0.7, at_least=4)}
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=100, **options)
    with store.writing() as c:
        items.add_items(c, project, [item(1000 + i) for i in range(20)], "gold", [BETTER] * 20)
    given = 0
    while given < 4:
        slot = take(store, project, one)
        given += slot.purpose == "gold"
        with store.writing() as c:
            saved = labels.save(c, slot.id, one, f"{slot.id}", WORSE, 1.0, START)
    assert saved.locked == "0 of 4 items of known answer were right; this task needs 70%. Ask the lead."
    assert asked(store, project, one) == Waiting("locked", saved.locked)
    with store.writing() as c, pytest.raises(AccessError, match="0 of 4"):
        labels.undo(c, one, project, "undo", START)
    with store.writing() as c:
        standing.unlock(c, project, one, None, START)
    assert isinstance(asked(store, project, one), Slot)
    assert isinstance(asked(store, project, two), Slot)


def test_screening_comes_first_and_lets_only_the_good_in(tmp_path):
    options = {"screening": Screening("screen.jsonl", threshold=0.75, at_least=4)}
    store, project, (one, two, lead) = made(tmp_path / "labels.db", count=9, **options)
    with store.writing() as c:
        items.add_items(c, project, [item(1000 + i) for i in range(6)], "screening", [BETTER] * 6)
        accounts.add_member(c, project, lead, "lead", None)
    for value in (BETTER, BETTER, WORSE, BETTER):
        assert work(store, project, one, value).purpose == "screening"
    assert work(store, project, one).purpose == "work"
    assert take(store, project, lead).purpose == "work"
    assert work(store, project, two).purpose == "screening"
    for number in range(3):
        slot = take(store, project, two)
        assert slot.purpose == "screening"
        with store.writing() as c:
            saved = labels.skip(c, slot.id, two, f"skip {number}", "", START)
    assert saved.locked == "1 of 4 screening items were right; this task needs 75%. Ask the lead."
    assert asked(store, project, two).reason == "locked"


def test_a_second_look_is_at_ones_own_items_of_a_while_ago_turned_around(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db", count=100, second_pass=0.2)
    slots = [work(store, project, one, now=START + i) for i in range(100)]
    first = {slot.item.id: (place, slot.shown) for place, slot in enumerate(slots) if slot.purpose == "work"}
    seconds = [(place, slot) for place, slot in enumerate(slots) if slot.purpose == "second"]
    assert 8 <= len(seconds) <= 30 and len({slot.item.id for _, slot in seconds}) == len(seconds)
    for place, slot in seconds:
        before, shown = first[slot.item.id]
        assert place - before >= queue.BEFORE_SECOND and slot.shown == shown[::-1]
    assert len({first[slot.item.id][0] // 20 for _, slot in seconds}) > 1
    with store.reading() as c:
        assert all(row.done <= 1 for row in items.page(c, project, limit=200))


def test_a_changed_overlap_opens_and_closes_items(tmp_path):
    store, project, (one, two, three) = made(tmp_path / "labels.db", count=4)
    for user in (one, two, three):
        work(store, project, user)
    with store.writing() as c:
        more = projects.put_project(c, task(overlap=2))
        assert [(i.wanted, i.state) for i in items.page(c, more)] == [(2, "open")] * 4
    seen = sorted(work(store, more, one).item.id for _ in range(3))
    assert seen == [2, 3, 4] and asked(store, more, one).reason == "done"
    with store.writing() as c:
        fewer = projects.put_project(c, task(overlap=1))
        assert [(i.wanted, i.taken, i.state) for i in items.page(c, fewer)] == [
            (1, 1, "done"),
            (2, 2, "done"),
            (2, 2, "done"),
            (1, 1, "done"),
        ]
    assert asked(store, fewer, two).reason == "done"


def test_a_changed_overlap_leaves_the_rule_for_further_annotators(tmp_path):
    options = {"kind": "attributes", "attributes": {"helpfulness": Attribute()}}
    store, project, people = made(tmp_path / "labels.db", count=2, overlap=3, **options)
    for user, first, second in zip(people, (0, 4, 2), (1, 2, 2)):
        work(store, project, user, rated(first))
        work(store, project, user, rated(second))
    for overlap, extra, wanted in (
        (2, Extra(), [5, 3]),
        (2, Extra(up_to=4), [4, 3]),
        (2, None, [3, 3]),
        (4, Extra(), [4, 4]),
        (3, Extra(), [5, 3]),
    ):
        with store.writing() as c:
            projects.put_project(c, task(overlap=overlap, extra=extra, **options))
            assert [each.wanted for each in items.page(c, project)] == wanted
            done = sum(each.state == "done" for each in items.page(c, project))
            assert queue.ahead(c, project, people[0]).done == done == sum(number == 3 for number in wanted)


def test_a_hundred_annotators_of_ten_items(tmp_path):
    store, project, people = made(tmp_path / "labels.db", count=10, users=100, overlap=2)
    given = [(user, asked(store, project, user)) for user in people]
    slots = [(user, slot) for user, slot in given if isinstance(slot, Slot)]
    assert Counter(slot.item.id for _, slot in slots) == dict.fromkeys(range(1, 11), 2)
    assert {slot.reason for _, slot in given if isinstance(slot, Waiting)} == {"others"}
    for user, slot in slots:
        answer(store, slot, user)
    with store.reading() as c:
        assert queue.ahead(c, project, people[0]) == queue.Ahead(mine=1, waiting=0, items=10, done=10)
    assert {asked(store, project, user).reason for user in people[::9]} == {"done"}


def test_progress_of_very_many_is_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "COUNTED", 5)
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=12, overlap=2)
    waiting = []
    for _ in range(12):
        work(store, project, one)
        with store.reading() as c:
            waiting.append(queue.ahead(c, project, one).waiting)
    assert waiting == [*range(11, -1, -1)]
    for _ in range(3):
        work(store, project, two)
    with store.writing() as c:
        assert queue.ahead(c, project, two) == queue.Ahead(mine=3, waiting=9, items=12, done=3)
        items.withdraw(c, 1, None, "done, and yet")
        assert queue.ahead(c, project, two) == queue.Ahead(mine=3, waiting=8, items=11, done=2)


def test_progress_counts(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=5, overlap=2)
    for _ in range(3):
        work(store, project, one)
    work(store, project, two)
    with store.writing() as c:
        items.withdraw(c, 5, None, "broken")
        assert queue.ahead(c, project, one) == queue.Ahead(mine=3, waiting=1, items=4, done=1)
    take(store, project, one)
    with store.writing() as c:
        assert queue.ahead(c, project, one).waiting == 0


def test_strangers_get_nothing(tmp_path):
    store, project, _ = made(tmp_path / "labels.db")
    with store.writing() as c:
        stranger = accounts.add_user(c, "stranger", None, "annotator", None)
    with pytest.raises(AccessError, match="no member"):
        asked(store, project, stranger)
