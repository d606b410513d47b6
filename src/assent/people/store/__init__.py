"""Where annotations are kept: accounts, projects, items, the queue, labels and the audit log, in SQLite or PostgreSQL.

`Store` opens and migrates a database and gives transactions; all else are functions over a connection:

    with store.writing() as connection:
        slot = queue.next_slot(connection, project, user, now)
"""

from assent.people.store.store import Store as Store
