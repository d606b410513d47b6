"""The tables. Labels and the audit log are append-only (triggers of the first migration hold it); a slot, an item and
a membership say what is the case now, and can be computed again from the labels.

An item wants `wanted` slots and has `taken` of them (leased or done), `done` with an answer. While it wants more it
stands in a lane of its project's queue, at its `turn`: in lane 1 where its file put it, in lane 0, which goes first,
once a slot came back or more answers were asked for, with a turn higher than all before it. So somebody for whom
everything up to a turn is done (`cursor_0`, `cursor_1` of a membership) never has to look there again.

A project counts its items of work that were not withdrawn (`size`), and those that are done or decided (`finished`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON as Json
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    FromClause,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    insert,
    literal_column,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
JSON = Json(none_as_null=True)
Key = BigInteger().with_variant(Integer, "sqlite")
Time = Float(53)
"""Seconds since 1970, UTC."""
LIVE = "state IN ('leased', 'done')"
KNOWN = "state IN ('leased', 'done', 'skipped')"


def _one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


def in_state(slots: FromClause, *states: str) -> ColumnElement[bool]:
    """Whether slots are in one of these states: written out, as only then a database sees that one of its indexes over
    such slots will do."""
    written: list[ColumnElement[str]] = [literal_column(f"'{state}'") for state in states]
    return slots.c.state == written[0] if len(written) == 1 else slots.c.state.in_(written)


def made(c: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """Inserts a row, and says which id it got."""
    key = c.execute(insert(table).values(dict(row))).inserted_primary_key
    assert key is not None
    return int(key[0])


users = Table(
    "users",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", String(80), nullable=False),
    Column("folded", String(160), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("password", String(200)),
    Column("made_at", Time, nullable=False),
    Column("made_by", ForeignKey("users.id")),
    Column("disabled_at", Time),
    _one_of("role", "admin", "lead", "annotator", "judge"),
)
sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("made_at", Time, nullable=False),
    Column("expires_at", Time, nullable=False, index=True),
)
tokens = Table(
    "tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("made_at", Time, nullable=False),
    Column("made_by", ForeignKey("users.id")),
    Column("revoked_at", Time),
)
projects = Table(
    "projects",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("definition_id", Key),
    Column("turn", BigInteger, nullable=False, server_default="0"),
    Column("made_at", Time, nullable=False),
    Column("size", Integer, nullable=False, server_default="0"),
    Column("finished", Integer, nullable=False, server_default="0"),
)
definitions = Table(
    "definitions",
    metadata,
    Column("id", Key, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("meaning", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("made_at", Time, nullable=False),
    UniqueConstraint("project_id", "version"),
)
invitations = Table(
    "invitations",
    metadata,
    Column("id", Key, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("project_id", ForeignKey("projects.id"), index=True),
    Column("role", String(16), nullable=False),
    Column("uses", Integer, nullable=False),
    Column("used", Integer, nullable=False, server_default="0"),
    Column("made_at", Time, nullable=False),
    Column("made_by", ForeignKey("users.id")),
    Column("expires_at", Time, nullable=False),
    Column("revoked_at", Time),
    _one_of("role", "admin", "lead", "annotator"),
    CheckConstraint("used <= uses", name="uses"),
)
memberships = Table(
    "memberships",
    metadata,
    Column("project_id", ForeignKey("projects.id"), primary_key=True),
    Column("user_id", ForeignKey("users.id"), primary_key=True, index=True),
    Column("role", String(16), nullable=False),
    Column("joined_at", Time, nullable=False),
    Column("locked_at", Time),
    Column("locked_why", Text),
    Column("screened_at", Time),
    Column("served", Integer, nullable=False, server_default="0"),
    Column("done", Integer, nullable=False, server_default="0"),
    Column("cursor_0", BigInteger, nullable=False, server_default="0"),
    Column("cursor_1", BigInteger, nullable=False, server_default="0"),
    _one_of("role", "lead", "annotator", "judge"),
)
items = Table(
    "items",
    metadata,
    Column("id", Key, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("key", String(64), nullable=False),
    Column("answers", SmallInteger, nullable=False),
    Column("expected", JSON),
    Column("topic", Text),
    Column("overlap", Integer),
    Column("wanted", Integer, nullable=False),
    Column("taken", Integer, nullable=False, server_default="0"),
    Column("done", Integer, nullable=False, server_default="0"),
    Column("skips", Integer, nullable=False, server_default="0"),
    Column("state", String(16), nullable=False),
    Column("lane", SmallInteger),
    Column("turn", BigInteger),
    Column("made_at", Time, nullable=False),
    Column("withdrawn_at", Time),
    Column("withdrawn_why", Text),
    UniqueConstraint("project_id", "purpose", "key"),
    _one_of("purpose", "work", "gold", "screening"),
    _one_of("state", "open", "full", "done", "decided", "withdrawn"),
    CheckConstraint("0 <= done AND done <= taken AND taken <= wanted", name="overlap"),
    CheckConstraint("(lane IS NULL) = (turn IS NULL)", name="turn"),
    Index("ix_items_queue", "project_id", "lane", "turn", **_where("lane IS NOT NULL")),
    Index("ix_items_page", "project_id", "purpose", "id"),
    Index("ix_items_state", "project_id", "purpose", "state", "id"),
)
contents = Table(  # apart from what changes with every slot
    "contents",
    metadata,
    Column("item_id", ForeignKey("items.id"), primary_key=True),
    Column("payload", JSON, nullable=False),
)
slots = Table(
    "slots",
    metadata,
    Column("id", Key, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("definition_id", ForeignKey("definitions.id"), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("shown", JSON, nullable=False),
    Column("leased_at", Time, nullable=False),
    Column("leased_until", Time, nullable=False),
    Column("ended_at", Time),
    Column("label_id", Key),
    Column("note", Text),
    _one_of("purpose", "work", "second", "gold", "screening", "adjudication"),
    _one_of("state", "leased", "done", "skipped", "lapsed", "released"),
    Index("uq_slots_user", "item_id", "user_id", "purpose", unique=True, **_where(KNOWN)),
    Index("uq_slots_number", "item_id", "number", unique=True, **_where(f"purpose = 'work' AND {LIVE}")),
    Index("ix_slots_item", "item_id"),
    Index("ix_slots_due", "project_id", "leased_until", **_where("state = 'leased'")),
    Index("ix_slots_leased", "user_id", "project_id", "leased_at", **_where("state = 'leased'")),
    Index("ix_slots_ended", "user_id", "project_id", "ended_at", **_where("state IN ('done', 'skipped')")),
    Index("ix_slots_done", "user_id", "project_id", "purpose", "id", **_where("state = 'done'")),
    Index("ix_slots_project", "project_id", "purpose", "item_id", **_where("state = 'done'")),
)
labels = Table(
    "labels",
    metadata,
    Column("id", Key, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("slot_id", ForeignKey("slots.id"), nullable=False, index=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("definition_id", ForeignKey("definitions.id"), nullable=False),
    Column("request", String(100), nullable=False),
    Column("action", String(16), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("value", JSON),
    Column("reason", Text),
    Column("seconds", Float(53)),
    Column("supersedes", Key),
    Column("made_at", Time, nullable=False),
    ForeignKeyConstraint(["supersedes"], ["labels.id"]),
    UniqueConstraint("user_id", "request"),
    _one_of("action", "label", "skip", "undo"),
    CheckConstraint("(action = 'undo') <= (supersedes IS NOT NULL)", name="undone"),
    Index("ix_labels_project", "project_id", "id"),
    Index("ix_labels_item", "item_id", "id"),
    Index("ix_labels_user", "user_id", "project_id", "id"),
)
drafts = Table(
    "drafts",
    metadata,
    Column("item_id", ForeignKey("items.id"), primary_key=True),
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("purpose", String(16), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("made_at", Time, nullable=False),
)
audit = Table(
    "audit",
    metadata,
    Column("id", Key, primary_key=True),
    Column("made_at", Time, nullable=False),
    Column("user_id", ForeignKey("users.id")),
    Column("project_id", ForeignKey("projects.id")),
    Column("what", String(40), nullable=False),
    Column("target", String(200), nullable=False),
    Column("detail", JSON),
    Index("ix_audit_project", "project_id", "id"),
)
messages = Table(
    "messages",
    metadata,
    Column("id", Key, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("made_by", ForeignKey("users.id")),
    Column("made_at", Time, nullable=False),
    Column("text", Text, nullable=False),
    Column("read_at", Time),
    Index("ix_messages_user", "user_id", "project_id", "id"),
)
