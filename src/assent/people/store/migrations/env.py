"""Alembic runs the revisions on the connection, and in the transaction, of whoever asks for it."""

from alembic import context

from assent.people.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
