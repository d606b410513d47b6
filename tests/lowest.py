"""Prints the lowest versions that pyproject.toml allows, as pins: `python tests/lowest.py > pins.txt`. Of the extras it
takes those in which a newest version would hide an older one's faults; vLLM pins torch itself, and needs a test of its
own."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXTRAS = ("quant", "oracle", "math", "re2", "eval", "serve", "people")
BOUND = re.compile(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9][0-9.]*)")


def pins(project: Mapping[str, Any]) -> list[str]:
    """One pin for each requirement. Raises ValueError for one without a lower bound."""
    extras = project["optional-dependencies"]
    found = []
    for requirement in [*project["dependencies"], *(one for extra in EXTRAS for one in extras[extra])]:
        bound = BOUND.fullmatch(requirement)
        if bound is None:
            raise ValueError(f"{requirement!r} has no lower bound of the form NAME>=VERSION")
        found.append("==".join(bound.groups()))
    return found


def main() -> None:
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    print("\n".join(pins(tomllib.loads(file.read_text(encoding="utf-8"))["project"])))


if __name__ == "__main__":
    main()
