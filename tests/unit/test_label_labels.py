"""Answers: saved once, corrected by further rows, never overwritten, never lost."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DBAPIError

from assent.people.kinds import LabelError
from assent.people.store import audit, drafts, items, labels, projects, queue
from assent.people.store import tables as t
from assent.people.store.errors import ChangedError, GoneError, LeaseError, MissingError, StaleError
from tests.labelling import BETTER, START, answer, item, made, take, task, work

WORSE = {"verdict": "better", "better": 1, "strength": 1}
LATE = START + 30 * 60


def rows(store, project, **options):
    with store.reading() as c:
        return list(labels.labels(c, project, **options))


def test_an_answer_is_saved_with_all_that_belongs_to_it(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slot = take(store, project, one)
    answer(store, slot, one, BETTER | {"comment": "a\u2028b \U0001f600"})
    (row,) = rows(store, project)
    assert row.value == BETTER | {"comment": "a\u2028b \U0001f600"} and row.seconds == 1.0 and row.made_at == START
    assert (row.item, row.slot, row.user, row.name) == (slot.item.id, slot.id, one.id, "annotator 0")
    assert (row.action, row.purpose, row.shown, row.current) == ("label", "work", slot.shown, True)


def test_the_same_request_again_changes_nothing(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db")
    slot = take(store, project, one)
    with store.writing() as c:
        first = labels.save(c, slot.id, one, "r1", BETTER, 1.0, START)
    with store.writing() as c:
        again = labels.save(c, slot.id, one, "r1", BETTER, 9.0, LATE)
    assert (first.repeated, again.repeated) == (False, True) and first.label == again.label
    other = take(store, project, two)
    with store.writing() as c:
        assert not labels.save(c, other.id, two, "r1", BETTER, 1.0, START).repeated  # another user's own r1
    assert len(rows(store, project)) == 2


@pytest.mark.parametrize("how", ["value", "slot", "skip"])
def test_the_same_request_with_another_meaning_is_refused(tmp_path, how):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slot = take(store, project, one)
    answer(store, slot, one, request="r1")
    following = take(store, project, one)
    with pytest.raises(StaleError, match="sent before"), store.writing() as c:
        if how == "skip":
            labels.skip(c, slot.id, one, "r1", "", START)
        else:
            labels.save(c, slot.id if how == "value" else following.id, one, "r1", WORSE, 1.0, START)
    assert [row.value for row in rows(store, project)] == [BETTER]


@pytest.mark.parametrize("request_id", ["", "x" * 101])
def test_a_request_needs_a_number(tmp_path, request_id):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slot = take(store, project, one)
    with pytest.raises(StaleError, match="request number"), store.writing() as c:
        labels.save(c, slot.id, one, request_id, BETTER, 1.0, START)


def test_a_value_that_is_none_is_refused_and_the_slot_stays(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slot = take(store, project, one)
    for value in ({"verdict": "better", "better": 2, "strength": 1}, {"verdict": "nonsense"}, {}, "no object", None):
        with pytest.raises((LabelError, StaleError)), store.writing() as c:
            labels.save(c, slot.id, one, "r", value, 1.0, START)
    assert take(store, project, one).id == slot.id and rows(store, project) == []


def test_in_a_second_tab_the_answer_is_stale_and_kept_as_a_draft(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slot = take(store, project, one)
    answer(store, slot, one, request="tab 1")
    with pytest.raises(StaleError, match="answered already"), store.writing() as c:
        labels.save(c, slot.id, one, "tab 2", WORSE, 1.0, START)
    assert [row.value for row in rows(store, project)] == [BETTER]
    with store.reading() as c:
        assert drafts.draft(c, slot) == WORSE


def test_nobody_answers_for_another(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db")
    slot = take(store, project, one)
    for key in (slot.id, 999):
        with pytest.raises(MissingError, match="none of your items"), store.writing() as c:
            labels.save(c, key, two, "r", BETTER, 1.0, START)


def test_what_came_too_late_is_a_draft_that_the_next_lease_finds(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=1)
    slot = take(store, project, one)
    other = take(store, project, two, LATE)
    with pytest.raises(LeaseError, match="Nothing is lost"), store.writing() as c:
        labels.save(c, slot.id, one, "r", WORSE, 1.0, LATE)
    assert rows(store, project) == []
    with store.writing() as c:
        queue.release(c, other.id, two, LATE)
    again = take(store, project, one, LATE)
    assert again.id != slot.id and again.item.id == slot.item.id
    with store.reading() as c:
        assert drafts.draft(c, again) == WORSE
    answer(store, again, one, now=LATE)
    with store.reading() as c:
        assert drafts.draft(c, again) is None
    assert len(rows(store, project)) == 1


def test_an_answer_to_a_withdrawn_item_is_kept_as_a_draft(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db", count=2)
    slot = take(store, project, one)
    with store.writing() as c:
        items.withdraw(c, slot.item.id, None, "contains a name")
        items.withdraw(c, slot.item.id, None, "once more")
    with pytest.raises(GoneError, match="withdrawn"), store.writing() as c:
        labels.save(c, slot.id, one, "r", BETTER, 1.0, START)
    with store.reading() as c:
        assert drafts.draft(c, slot) == BETTER
        assert items.item(c, slot.item.id).withdrawn == "contains a name"
        assert [entry.what for entry in audit.entries(c, project)].count("item withdrawn") == 1
    assert take(store, project, one).item.id == 2
    assert rows(store, project) == []


def test_answers_of_a_withdrawn_item_stay_in_the_history_alone(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slot = work(store, project, one)
    with store.writing() as c:
        items.withdraw(c, slot.item.id, None, "broken")
        with pytest.raises(GoneError):
            labels.undo(c, one, project, "undo", START)
    assert rows(store, project) == [] and len(rows(store, project, current=False)) == 1


def test_undo_leases_the_last_answer_again_and_overwrites_nothing(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    first, second = work(store, project, one), work(store, project, one, now=START + 1)
    third = take(store, project, one, START + 2)
    with store.writing() as c:
        back = labels.undo(c, one, project, "u1", START + 3)
        assert labels.undo(c, one, project, "u1", START + 3).id == back.id == second.id
    assert take(store, project, one, START + 4).id == second.id  # before the third, which is held as well
    answer(store, second, one, WORSE, START + 5)
    assert take(store, project, one, START + 6).id == third.id
    with store.reading() as c:
        history = labels.history(c, project, one)
    assert [(row.action, row.slot, row.current) for row in history] == [
        ("label", second.id, True),
        ("undo", second.id, False),
        ("label", second.id, False),
        ("label", first.id, True),
    ]
    assert [row.supersedes for row in history] == [history[1].id, history[2].id, None, None]
    assert [row.value for row in rows(store, project)] == [BETTER, WORSE]


def test_undo_goes_back_step_by_step_and_ends(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slots = [work(store, project, one, now=START + i) for i in range(3)]
    for number, slot in enumerate(reversed(slots)):
        with store.writing() as c:
            assert labels.undo(c, one, project, f"u{number}", START + 9).id == slot.id
    with store.writing() as c, pytest.raises(MissingError, match="nothing to undo"):
        labels.undo(c, one, project, "u3", START + 9)
    with store.writing() as c, pytest.raises(StaleError, match="another meaning"):
        labels.undo(c, one, project, f"{slots[0].id} {START}", START + 9)
    assert rows(store, project) == []


def test_undo_after_others_have_answered(tmp_path):
    store, project, (one, two, three) = made(tmp_path / "labels.db", count=1, overlap=2)
    slot = work(store, project, one)
    work(store, project, two)
    with store.writing() as c:
        assert items.item(c, 1).state == "done"
        labels.undo(c, one, project, "undo", LATE)
        assert (items.item(c, 1).state, items.item(c, 1).done) == ("full", 1)
    with store.writing() as c:  # the lease runs out: the place goes to somebody else
        assert queue.next_slot(c, project, three, LATE + 3600).item.id == 1
    with pytest.raises(LeaseError), store.writing() as c:
        labels.save(c, slot.id, one, "late", WORSE, 1.0, LATE + 3600)


def test_undo_of_a_decided_item_is_refused(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slot = work(store, project, one)
    with store.writing() as c:
        c.execute(update(t.items).where(t.items.c.id == slot.item.id).values(state="decided"))
    with store.writing() as c, pytest.raises(StaleError, match="decided"):
        labels.undo(c, one, project, "undo", START)
    assert len(rows(store, project)) == 1


def test_undo_of_a_skip(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", count=2)
    slot = take(store, project, one)
    with store.writing() as c:
        labels.skip(c, slot.id, one, "s", "unclear", START)
        assert labels.undo(c, one, project, "u", START).id == slot.id
        assert (items.item(c, 1).skips, items.item(c, 1).taken) == (0, 1)
        labels.skip(c, slot.id, one, "s2", "unclear", START + 1)
    assert take(store, project, two).item.id == 1
    with store.writing() as c, pytest.raises(StaleError, match="others have it now"):
        labels.undo(c, one, project, "u2", START + 2)


def test_a_lead_sends_an_answer_back(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    slot = work(store, project, one)
    with store.writing() as c:
        row = c.execute(select(t.slots).where(t.slots.c.id == slot.id)).one()
        labels.reopen(c, row, project, "sent back 1", "Look at the date.", START + 5)
    again = take(store, project, one, START + 6)
    assert (again.id, again.note) == (slot.id, "Look at the date.")
    answer(store, again, one, WORSE, START + 7)
    with store.reading() as c:
        assert queue.slot_of(c, slot.id).note is None
        assert [row.reason for row in labels.of_item(c, slot.item.id)] == [None, "Look at the date.", None]


def test_drafts_are_kept_by_item_and_user(tmp_path):
    store, project, (one, two, _) = made(tmp_path / "labels.db", overlap=2)
    slot, other = take(store, project, one), take(store, project, two)
    with store.writing() as c:
        drafts.keep_draft(c, slot.id, one, {"comment": "a"}, START)
        drafts.keep_draft(c, slot.id, one, {"comment": "ab"}, START)
        with pytest.raises(MissingError):
            drafts.keep_draft(c, slot.id, two, {"comment": "x"}, START)
        assert drafts.draft(c, slot) == {"comment": "ab"} and drafts.draft(c, other) is None


@pytest.mark.parametrize("name", ["labels", "audit"])
@pytest.mark.parametrize("how", ["update", "delete"])
def test_history_and_audit_log_cannot_be_changed(tmp_path, name, how):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    work(store, project, one)
    table = t.metadata.tables[name]
    statement = update(table).values(made_at=0.0) if how == "update" else delete(table)
    with pytest.raises(DBAPIError, match=f"{name} is append-only"), store.writing() as c:
        c.execute(statement)
    with store.reading() as c:
        assert c.execute(select(table.c.made_at)).scalars().all() != []
        assert 0.0 not in c.execute(select(table.c.made_at)).scalars().all()


def test_a_reader_writes_nothing(tmp_path):
    store, project, _ = made(tmp_path / "labels.db")
    with pytest.raises(Exception, match="read-?only|cannot be written"), store.reading() as c:
        c.execute(text("DELETE FROM drafts"))


def test_items_come_in_once(tmp_path):
    store, project, _ = made(tmp_path / "labels.db", count=3)
    with store.writing() as c:
        batch = [item(2), item(3), item(3, topic="again"), item(4)]
        assert items.add_items(c, project, batch) == items.Added(new=2, known=2)
        assert items.add_items(c, project, (item(i) for i in range(1500))) == items.Added(new=1495, known=5)
        assert [row.id for row in items.page(c, project, after=3, limit=2)] == [4, 5]
        found = items.page(c, project, items.Filter(text='Question 77?"'))
        assert found == [] and len(items.page(c, project, items.Filter(text="Question 77?"))) == 1
        assert items.page(c, project, items.Filter(text="%"), limit=3) == []
        assert items.page(c, project, items.Filter(state="done")) == []


def test_an_item_comes_back_as_it_was(tmp_path):
    from assent.data.records import Message, ToolCall

    store, project, _ = made(tmp_path / "labels.db", count=0)
    turns = (
        Message("system", "é\u2028"),
        Message("user", "<b>&"),
        Message("assistant", "", tool_calls=(ToolCall("f", "{}", "1"),), trained=False),
    )
    whole = item(1)
    whole = type(whole)(turns, ("a", "b"), sources=("x", None), meta={"n": [1, None, {"k": 2.5}]}, topic="t", overlap=2)
    with store.writing() as c:
        items.add_items(c, project, [whole])
        (row,) = items.page(c, project, items.Filter(topic="t"))
        assert row.content == whole and row.wanted == 2 and row.content.digest == whole.digest


def test_a_changed_task_with_labels(tmp_path):
    store, project, (one, *_) = made(tmp_path / "labels.db")
    with store.writing() as c:
        assert projects.put_project(c, task()).definition.version == 1
        assert projects.put_project(c, task(strength=2)).definition.version == 2  # nobody has answered yet
        project = projects.put_project(c, task())
    slot = work(store, project, one)
    held = take(store, project, one)
    with store.writing() as c:
        assert projects.put_project(c, task(title="Better?")).definition.version == 4
    with pytest.raises(ChangedError, match="The task pairs has labels, and strength changed"), store.writing() as c:
        projects.put_project(c, task(strength=1))
    with store.writing() as c:
        project = projects.put_project(c, task(strength=1), new_version=True)
        assert [each.version for each in projects.definitions(c, project)] == [5, 4, 3, 2, 1]
        assert projects.definitions(c, project)[-1].task == task()
    answer(store, held, one, {"verdict": "better", "better": 0, "strength": 3})  # as it was shown
    new = take(store, project, one)
    with pytest.raises(LabelError, match="strength"), store.writing() as c:
        labels.save(c, new.id, one, "r", {"verdict": "better", "better": 0, "strength": 3}, 1.0, START)
    with store.reading() as c:
        versions = {each.id: each.version for each in projects.definitions(c, project)}
        assert [versions[row.definition] for row in labels.labels(c, project)] == [3, 3]
        assert slot.definition.version == 3
