"""The database's revision, and the way to the newest one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from assent.people.store.errors import OpenError

FOLDER = Path(__file__).parent / "migrations"


def _config(connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def newest() -> str:
    """The revision that this code works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def state(connection: Connection, name: str) -> Literal["empty", "older", "current"]:
    """How old the database is. Raises OpenError where it is newer, or holds somebody else's tables."""
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None:
        if others := set(inspect(connection).get_table_names()) - {"alembic_version"}:
            listed = ", ".join(sorted(others)[:5])
            raise OpenError(f"--db {name}: it is another program's database (tables: {listed}). Give one of its own.")
        return "empty"
    script = ScriptDirectory.from_config(_config())
    if revision == script.get_current_head():
        return "current"
    if revision not in {each.revision for each in script.walk_revisions()}:
        raise OpenError(
            f"--db {name}: a newer assent has made it (revision {revision}; this one knows up to "
            f"{script.get_current_head()}). Update assent: pip install -U 'assent[people]'"
        )
    return "older"


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Brings the database to a revision, within the transaction of its connection."""
    command.upgrade(_config(connection), revision)
