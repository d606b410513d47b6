"""Cases take the seeds in turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

SEEDS = (0, 1, 2)


def in_turns(cases: Iterable[str]) -> Any:
    """Parametrises `setting` and `name`: each case on one seed. What is wrong in a loss is wrong on every seed, and
    every seed is there among the cases of a test."""
    pairs = [(SEEDS[number % len(SEEDS)], case) for number, case in enumerate(cases)]
    ids = [f"{case}-seed{seed}" for seed, case in pairs]
    return pytest.mark.parametrize(("setting", "name"), pairs, indirect=["setting"], ids=ids)
