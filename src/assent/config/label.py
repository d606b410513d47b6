"""Options of `assent label`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from assent.config.ranges import Count, Named, Positive
from assent.config.sections import Sections

ACTIONS = ("export", "load", "backup", "invite", "machine")
"""Options that do one thing and end, in place of the server; also while a server runs on the same database."""


@dataclass(frozen=True)
class LabelConfig(Sections):
    """A server on which people label answers, each task a project with its own pages; and its database."""

    tasks: tuple[str, ...] = ()
    """Files that define tasks (docs/labelling.md). Tasks that are in the database already need none."""
    db: Named = "labels.db"
    """Database: an SQLite file, or a postgresql:// URL. It is made where it is missing."""
    host: Named = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Interval(ge=0, le=65535)] = 8400
    """Port to listen on; 0: any free one, which is printed."""
    public_url: Named | None = None
    """Where people reach the server, if a proxy stands before it: https://labels.example.org. Links begin so, and
    cookies are sent over https alone."""
    new_version: bool = False
    """Take a task whose meaning has changed; labels of before are kept as those of the version before."""
    export: Named | None = None
    """Write the labels of a project to this file, and end."""
    of: Literal["best", "labels", "decisions"] = "best"
    """export: of each item a lead's decision where there is one, else all labels (best); all labels, without decisions;
    or decisions alone."""
    load: Named | None = None
    """Add the items, and the labels if there are any, of this file to a project, and end."""
    format: Named | None = None
    """Shape of export: assent, trl, sharegpt, helpsteer, argilla or labelstudio; default: assent. Shape of load;
    default: found out."""
    project: Named | None = None
    """Which project an action is about; default: that of TASKS, or the only one."""
    backup: Named | None = None
    """Write a copy of the database to this file, also while others work on it, and end."""
    invite: Literal["annotator", "lead"] | None = None
    """Print a link that lets people join a project, and end."""
    uses: Count = 1
    """invite: how many people may join by the link."""
    days: Positive = 7.0
    """invite: how long the link holds."""
    machine: Named | None = None
    """Make a machine annotator of this name in a project, print its token, and end."""
    drain: Positive = 10.0
    """Seconds for the requests under way once it is asked to stop (SIGTERM, Ctrl-C)."""
