"""Labels and the audit log hold against SQLite's INSERT OR REPLACE, too, which is no DELETE to a trigger."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
KEYS = {
    "labels": "id = NEW.id OR (user_id = NEW.user_id AND request = NEW.request)",
    "audit": "id = NEW.id",
}


def upgrade() -> None:
    """Makes the triggers; a new row has no id yet, and meets none."""
    if op.get_bind().dialect.name != "sqlite":
        return
    for table, same in KEYS.items():
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
