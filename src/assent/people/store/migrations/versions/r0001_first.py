"""The first tables, and the triggers that hold labels and the audit log append-only."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.Float(53)
APPEND_ONLY = ("labels", "audit")


def upgrade() -> None:
    """Makes all of it."""
    _accounts()
    _projects()
    _members()
    _items()
    _slots()
    _labels()
    postgresql = op.get_bind().dialect.name == "postgresql"
    for table in APPEND_ONLY:
        (_forbid_postgresql if postgresql else _forbid_sqlite)(table)


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def _accounts() -> None:
    """Who may come in."""
    op.create_table(
        "users",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("folded", sa.String(length=160), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password", sa.String(length=200)),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("made_by", KEY),
        sa.Column("disabled_at", TIME),
        sa.CheckConstraint("role IN ('admin', 'lead', 'annotator', 'judge')", name=op.f("ck_users_role")),
        sa.ForeignKeyConstraint(["made_by"], ["users.id"], name=op.f("fk_users_made_by_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("folded", name=op.f("uq_users_folded")),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])
    op.create_table(
        "tokens",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("made_by", KEY),
        sa.Column("revoked_at", TIME),
        sa.ForeignKeyConstraint(["made_by"], ["users.id"], name=op.f("fk_tokens_made_by_users")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_tokens_user_id_users")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_tokens")),
    )
    op.create_index(op.f("ix_tokens_user_id"), "tokens", ["user_id"])


def _projects() -> None:
    """Tasks."""
    op.create_table(
        "projects",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("definition_id", KEY),
        sa.Column("turn", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
    )
    op.create_table(
        "definitions",
        sa.Column("id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("meaning", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_definitions_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_definitions")),
        sa.UniqueConstraint("project_id", "version", name=op.f("uq_definitions_project_id_version")),
    )


def _members() -> None:
    """Who may work on them."""
    op.create_table(
        "invitations",
        sa.Column("id", KEY, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("project_id", KEY),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), server_default="0", nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("made_by", KEY),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        sa.CheckConstraint("role IN ('admin', 'lead', 'annotator')", name=op.f("ck_invitations_role")),
        sa.CheckConstraint("used <= uses", name=op.f("ck_invitations_uses")),
        sa.ForeignKeyConstraint(["made_by"], ["users.id"], name=op.f("fk_invitations_made_by_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_invitations_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("hash", name=op.f("uq_invitations_hash")),
    )
    op.create_index(op.f("ix_invitations_project_id"), "invitations", ["project_id"])
    op.create_table(
        "memberships",
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("joined_at", TIME, nullable=False),
        sa.Column("locked_at", TIME),
        sa.Column("locked_why", sa.Text()),
        sa.Column("screened_at", TIME),
        sa.Column("served", sa.Integer(), server_default="0", nullable=False),
        sa.Column("done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cursor_0", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cursor_1", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("role IN ('lead', 'annotator', 'judge')", name=op.f("ck_memberships_role")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_memberships_project_id_projects")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id_users")),
        sa.PrimaryKeyConstraint("project_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_index(op.f("ix_memberships_user_id"), "memberships", ["user_id"])


def _items() -> None:
    """What is asked about."""
    op.create_table(
        "items",
        sa.Column("id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("answers", sa.SmallInteger(), nullable=False),
        sa.Column("expected", sa.JSON()),
        sa.Column("topic", sa.Text()),
        sa.Column("overlap", sa.Integer()),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Integer(), server_default="0", nullable=False),
        sa.Column("done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("skips", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("lane", sa.SmallInteger()),
        sa.Column("turn", sa.BigInteger()),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("withdrawn_at", TIME),
        sa.Column("withdrawn_why", sa.Text()),
        sa.CheckConstraint("purpose IN ('work', 'gold', 'screening')", name=op.f("ck_items_purpose")),
        sa.CheckConstraint("state IN ('open', 'full', 'done', 'decided', 'withdrawn')", name=op.f("ck_items_state")),
        sa.CheckConstraint("(lane IS NULL) = (turn IS NULL)", name=op.f("ck_items_turn")),
        sa.CheckConstraint("0 <= done AND done <= taken AND taken <= wanted", name=op.f("ck_items_overlap")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_items_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_items")),
        sa.UniqueConstraint("project_id", "purpose", "key", name=op.f("uq_items_project_id_purpose_key")),
    )
    op.create_index("ix_items_page", "items", ["project_id", "purpose", "id"])
    op.create_index("ix_items_queue", "items", ["project_id", "lane", "turn"], **_where("lane IS NOT NULL"))
    op.create_index("ix_items_state", "items", ["project_id", "purpose", "state", "id"])
    op.create_table(
        "contents",
        sa.Column("item_id", KEY, nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("fk_contents_item_id_items")),
        sa.PrimaryKeyConstraint("item_id", name=op.f("pk_contents")),
    )
    op.create_table(
        "drafts",
        sa.Column("item_id", KEY, nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("fk_drafts_item_id_items")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_drafts_user_id_users")),
        sa.PrimaryKeyConstraint("item_id", "user_id", "purpose", name=op.f("pk_drafts")),
    )


def _slots() -> None:
    """Who has which item."""
    op.create_table(
        "slots",
        sa.Column("id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("item_id", KEY, nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("definition_id", KEY, nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("leased_at", TIME, nullable=False),
        sa.Column("leased_until", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("label_id", KEY),
        sa.Column("note", sa.Text()),
        sa.CheckConstraint(
            "purpose IN ('work', 'second', 'gold', 'screening', 'adjudication')", name=op.f("ck_slots_purpose")
        ),
        sa.CheckConstraint("state IN ('leased', 'done', 'skipped', 'lapsed', 'released')", name=op.f("ck_slots_state")),
        sa.ForeignKeyConstraint(["definition_id"], ["definitions.id"], name=op.f("fk_slots_definition_id_definitions")),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("fk_slots_item_id_items")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_slots_project_id_projects")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_slots_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slots")),
    )
    op.create_index("ix_slots_done", "slots", ["user_id", "project_id", "purpose", "id"], **_where("state = 'done'"))
    op.create_index("ix_slots_due", "slots", ["project_id", "leased_until"], **_where("state = 'leased'"))
    op.create_index(
        "ix_slots_ended", "slots", ["user_id", "project_id", "ended_at"], **_where("state IN ('done', 'skipped')")
    )
    op.create_index("ix_slots_item", "slots", ["item_id"])
    op.create_index("ix_slots_leased", "slots", ["user_id", "project_id", "leased_at"], **_where("state = 'leased'"))
    op.create_index("ix_slots_project", "slots", ["project_id", "purpose", "item_id"], **_where("state = 'done'"))
    op.create_index(
        "uq_slots_number",
        "slots",
        ["item_id", "number"],
        unique=True,
        **_where("purpose = 'work' AND state IN ('leased', 'done')"),
    )
    op.create_index(
        "uq_slots_user",
        "slots",
        ["item_id", "user_id", "purpose"],
        unique=True,
        **_where("state IN ('leased', 'done', 'skipped')"),
    )


def _labels() -> None:
    """What was answered, and what was done."""
    op.create_table(
        "labels",
        sa.Column("id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("item_id", KEY, nullable=False),
        sa.Column("slot_id", KEY, nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("definition_id", KEY, nullable=False),
        sa.Column("request", sa.String(length=100), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("value", sa.JSON()),
        sa.Column("reason", sa.Text()),
        sa.Column("seconds", TIME),
        sa.Column("supersedes", KEY),
        sa.Column("made_at", TIME, nullable=False),
        sa.CheckConstraint("(action = 'undo') <= (supersedes IS NOT NULL)", name=op.f("ck_labels_undone")),
        sa.CheckConstraint("action IN ('label', 'skip', 'undo')", name=op.f("ck_labels_action")),
        sa.ForeignKeyConstraint(
            ["definition_id"], ["definitions.id"], name=op.f("fk_labels_definition_id_definitions")
        ),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("fk_labels_item_id_items")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_labels_project_id_projects")),
        sa.ForeignKeyConstraint(["slot_id"], ["slots.id"], name=op.f("fk_labels_slot_id_slots")),
        sa.ForeignKeyConstraint(["supersedes"], ["labels.id"], name=op.f("fk_labels_supersedes_labels")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_labels_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
        sa.UniqueConstraint("user_id", "request", name=op.f("uq_labels_user_id_request")),
    )
    op.create_index("ix_labels_item", "labels", ["item_id", "id"])
    op.create_index("ix_labels_project", "labels", ["project_id", "id"])
    op.create_index(op.f("ix_labels_slot_id"), "labels", ["slot_id"])
    op.create_index("ix_labels_user", "labels", ["user_id", "project_id", "id"])
    op.create_table(
        "audit",
        sa.Column("id", KEY, nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("user_id", KEY),
        sa.Column("project_id", KEY),
        sa.Column("what", sa.String(length=40), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("detail", sa.JSON()),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_audit_project_id_projects")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_audit_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_project", "audit", ["project_id", "id"])


def _forbid_sqlite(table: str) -> None:
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _forbid_postgresql(table: str) -> None:
    op.execute(
        f"CREATE FUNCTION {table}_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_is_append_only()"
    )
