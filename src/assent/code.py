"""The source files behind a function that a user names."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

INSTALLED = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def sources(spec: str) -> dict[str, Path]:
    """The files behind FILE.py:function or module:function: its own under the function's name, and those that it
    imports, and they, under their own. Modules of Python itself, of other installed packages and of assent are not
    among them (their versions stand for them), nor is what is imported while the code runs by other means."""
    place, _, function = spec.rpartition(":")
    roots = [entry for entry in [os.path.dirname(place) or ".", *map(str, sys.path)] if not _installed(entry)]
    if place.endswith(".py"):
        above, start, own = [], Path(place), {}
    else:
        *above, start = _find(place, [*roots, *map(str, sys.path)]) or [_origin(place)]
        own = {place.partition(".")[0]: [str(_root(start, place))]}  # an installed package may be named as well
    found: dict[str, Path] = {}
    waiting = [file for file in (start, *above) if file.is_file()]
    while waiting:
        file = waiting.pop()
        name = function if file == start else os.path.relpath(file, start.parent)
        if not any(os.path.samefile(file, other) for other in found.values()):
            found[name] = file
            waiting += _imported(file, lambda module: own.get(module.partition(".")[0], roots))
    return found


def _imported(file: Path, roots: Callable[[str], Sequence[str]]) -> Iterator[Path]:
    """The files of what is imported anywhere in a file; `roots` says where a module is looked for."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # said when the function is loaded
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _find(alias.name, roots(alias.name))
        elif isinstance(node, ast.ImportFrom):
            module, level = node.module or "", node.level
            base = [str(file.parents[level - 1])] if 0 < level <= len(file.parents) else roots(module)
            for name in [alias.name for alias in node.names]:
                yield from _find(f"{module}.{name}".lstrip("."), base) or (_find(module, base) if module else ())


def _find(module: str, roots: Sequence[str]) -> list[Path]:
    """The file of a module below one of `roots`, after those of the packages that it is in; nothing where there is
    none."""
    *packages, last = module.split(".")
    if module.partition(".")[0] == "assent":
        return []
    for root in roots:
        folder = Path(root, *packages)
        for file in (folder / f"{last}.py", folder / last / "__init__.py"):
            if file.is_file():
                above = [Path(root, *packages[: n + 1], "__init__.py") for n in range(len(packages))]
                return [*(each for each in above if each.is_file()), file]
    return []


def _origin(module: str) -> Path:
    """Where Python itself finds a module."""
    with suppress(Exception):  # parents of a module are run, and may raise anything
        if (found := importlib.util.find_spec(module)) is not None and found.origin:
            return Path(found.origin)
    return Path(module)


def _root(file: Path, module: str) -> Path:
    """The entry of sys.path that a module was found in."""
    depth = module.count(".") + (file.name == "__init__.py")
    return file.parents[depth] if depth < len(file.parents) else file.parent


def _installed(entry: str) -> bool:
    real = os.path.realpath(entry)
    return any(real == place or real.startswith(place + os.sep) for place in INSTALLED) or real.endswith(".zip")
