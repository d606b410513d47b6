"""Packages that only some measures need: imported where they are used, named with the command that installs them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from assent.errors import ConfigError

COMMAND = "pip install 'assent[eval]'"
PACKAGES = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score", "nltk": "nltk", "sklearn": "scikit-learn"}
"""Module -> the name under which it is installed; all of them are in the extra `eval`."""


def missing(module: str) -> str:
    """Where a module of `PACKAGES` cannot be imported: its package, and the command that installs it."""
    if not module or importlib.util.find_spec(module) is not None:
        return ""
    return f"the package {PACKAGES[module]}: {COMMAND}"


def extra(module: str, measure: str) -> Any:
    """The module, imported. Raises ConfigError, naming the measure and the command, where its package is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = PACKAGES[module.partition(".")[0]]
        raise ConfigError(
            f"{measure} needs the package {package}, which cannot be imported here ({error}). Install it: {COMMAND}"
        ) from None
