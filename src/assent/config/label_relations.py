"""What must hold between the options of `assent label`."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from assent.config.label import ACTIONS, LabelConfig

PLAIN = LabelConfig()


def _one_action(config: LabelConfig) -> str | None:
    given = [f"--{name}" for name in ACTIONS if getattr(config, name) is not None]
    if len(given) > 1:
        return f"{' and '.join(given)} each do one thing and end. Give one of them."
    return None


def _read_options(config: LabelConfig) -> str | None:
    for name, actions in (
        ("format", ("export", "load")),
        ("project", ("export", "load", "invite", "machine")),
        ("of", ("export",)),
        ("uses", ("invite",)),
        ("days", ("invite",)),
    ):
        unused = all(getattr(config, action) is None for action in actions)
        if unused and getattr(config, name) != getattr(PLAIN, name):
            return f"--{name} is read only with {' or '.join(f'--{action}' for action in actions)}."
    if config.new_version and not config.tasks:
        return "--new_version is about a task that has changed. Give its file."
    return None


def _is_url(config: LabelConfig) -> str | None:
    if config.public_url is None:
        return None
    try:
        found = urlsplit(config.public_url)
        whole = found.scheme in ("http", "https") and found.hostname and not (found.path.strip("/") or found.query)
    except ValueError:
        whole = False
    if not whole:
        return (
            f"--public_url must be like https://labels.example.org, with nothing behind it: the server answers at the "
            f"root of a name. Got {config.public_url}."
        )
    return None


LABEL: tuple[tuple[type, Callable[[LabelConfig], str | None]], ...] = (
    (LabelConfig, _one_action),
    (LabelConfig, _read_options),
    (LabelConfig, _is_url),
)
