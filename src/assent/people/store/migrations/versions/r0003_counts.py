"""How many items a project has, and how many are finished, counted as they change."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the columns, and counts what there is."""
    for name in ("size", "finished"):
        op.add_column("projects", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    work = "(SELECT count(*) FROM items WHERE project_id = projects.id AND purpose = 'work' AND state {})"
    size, finished = work.format("<> 'withdrawn'"), work.format("IN ('done', 'decided')")
    op.execute(f"UPDATE projects SET size = {size}, finished = {finished}")
