"""The database of labels: opening, migrating, and what it refuses."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import DatabaseError

from assent.people.store import Store, migrate
from assent.people.store.store import connect, url_of
from assent.people.store.tables import metadata
from tests.labelling import START, answer, made, take, work


def test_smoke(tmp_path):
    store, project, (one, two, three) = made(tmp_path / "labels.db", overlap=2)
    slot = take(store, project, one)
    assert take(store, project, one).id == slot.id
    answer(store, slot, one)
    assert [work(store, project, user).item.id for user in (two, three)] == [slot.item.id, slot.item.id + 1]
    with store.reading() as c:
        assert inspect(c).get_table_names()
