"""Functions that a user names: FILE.py:function or module:function."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assent.errors import ConfigError
from assent.guest import blamed, ends_programs

_loads = itertools.count()


def load_function(spec: str, flag: str) -> Callable[..., Any]:
    """The function that `spec` names. Its file or module is run, because the user asked for it by name. Raises
    `ConfigError`, with the `flag` it was given by, where there is none, and for whatever running it raises."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ConfigError(f"{flag} must be FILE.py:function or module:function. Got '{spec}'.")
    try:
        module = _run_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except BaseException as error:
        if not isinstance(error, Exception) and not ends_programs(error):
            raise
        raise ConfigError(f"{flag} {spec}: {place} cannot be imported: {blamed(error, place)}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(f"{flag} {spec}: {place} has no function '{name}'. It has: {', '.join(names) or 'none'}.")
    return function


def _run_file(file: Path) -> Any:
    """The file as a module under a name that no other has: dataclasses look their module up, and each load is anew."""
    name = f"{file.stem}#{next(_loads)}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
