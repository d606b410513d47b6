"""Messages from leads to annotators."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.Float(53)


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "messages",
        sa.Column("id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("made_by", KEY),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("read_at", TIME),
        sa.ForeignKeyConstraint(["made_by"], ["users.id"], name=op.f("fk_messages_made_by_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_messages_project_id_projects")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_messages_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
    )
    op.create_index("ix_messages_user", "messages", ["user_id", "project_id", "id"])
