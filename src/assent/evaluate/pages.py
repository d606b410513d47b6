"""What the HTML pages of assent share: how templates are read, how numbers are written, and which files are its own
pages, that may be replaced."""

from __future__ import annotations

import math
import os
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from assent.errors import RunFolderError
from assent.foreign import printable
from assent.lock import check_free

SIGNATURE = "Written by assent "
"""In the last lines of every page."""


def page_environment() -> Environment:
    """How templates of pages are read: everything that is text is escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("assent.evaluate", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["number"] = number
    return environment


def template_source(name: str) -> str:
    """A file beside the templates, as it is."""
    return resources.files("assent.evaluate").joinpath("templates", name).read_text(encoding="utf-8")


def number(value: float | None, digits: int | None = None, sign: str = "") -> str:
    """A number for people: four significant digits, or `digits` decimals; "–" when there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{sign}.{digits}f}" if digits is not None else f"{value:{sign}.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def check_page(path: str | Path) -> None:
    """Raises `RunFolderError` where a page may not be written to `path`: something else is there, or a run is at work
    in the folder."""
    path = Path(path)
    check_free(path)
    if os.path.lexists(path) and not _is_page(path):
        raise RunFolderError(f"--out {path} is there and no report of assent, so it stays. Choose another name.")


def _is_page(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(2000)
            file.seek(max(0, path.stat().st_size - 2000))
            end = file.read()
    except OSError as error:
        raise RunFolderError(f"--out {path} cannot be read: {error.strerror}. Choose another name.") from error
    return start.lstrip().startswith(b"<!DOCTYPE html>") and SIGNATURE.encode() in end
