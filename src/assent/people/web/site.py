"""What all requests share: the store, the clock, how often people may try to sign in, and how pages are made."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from starlette.responses import HTMLResponse

from assent import __version__
from assent.people.store import Store
from assent.people.web.refusals import Refused
from assent.people.web.words import FILTERS
from assent.serve.asgi import Rates

if TYPE_CHECKING:
    from assent.people.store.board import Board

HERE = Path(__file__).parent
STATIC = HERE / "static"

BY_NAME = (0.1, 10.0)
"""Tries to sign in under one name: a second, and at once."""
BY_ADDRESS = (0.5, 40.0)
"""The same from one address, behind which a whole team may sit."""


class Tries:
    """How often passwords, invitations and tokens may be tried in vain, by name and by address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` goes forward alone: a system's time may be set back."""
        self._clock = clock
        self._names, self._addresses = Rates(*BY_NAME), Rates(*BY_ADDRESS)
        self._lock = threading.Lock()

    def take(self, address: str, name: str | None = None) -> None:
        """Raises Refused where it was too often."""
        now = self._clock()
        with self._lock:
            wait = self._addresses.take(address, now)
            if name is not None and not wait:
                wait = self._names.take(name.casefold(), now)
        if wait:
            raise Refused(429, "too_often", f"Too many tries. The next one is free in {1 + int(wait)} s.", wait)

    def fine(self, address: str, name: str) -> None:
        """The last try of a name from an address was none in vain."""
        with self._lock:
            self._addresses.give_back(address)
            self._names.give_back(name.casefold())


@dataclass(frozen=True)
class Site:
    """One server of labels."""

    store: Store
    clock: Callable[[], float] = time.time
    public_url: str = ""
    """Where people reach it, if a proxy stands before it."""
    tries: Tries = field(default_factory=Tries)
    boards: dict[int, Board] = field(default_factory=dict, compare=False)
    """What leads look at, by project."""
    hashing: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(2))
    """argon2 takes 64 MB each time: only so many passwords are tried at once."""


@cache
def environment() -> jinja2.Environment:
    """Where the templates are, and what they may use."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"static": static_url, "version": __version__}
    made.filters |= FILTERS
    return made


@cache
def static_url(name: str) -> str:
    """The address of a file that is kept by browsers until it changes."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


def page(template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """A template as an answer. Half of a surrogate pair, which no page can carry, is shown as "?"."""
    text = environment().get_template(template).render(values)
    return HTMLResponse(text.encode("utf-8", "replace"), status)
