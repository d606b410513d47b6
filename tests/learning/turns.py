"""Cases take the seeds in turns."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

SEEDS = (0, 1, 2)


def in_turns(cases: Iterable[str]) -> Any:
    """Parametrises `setting` and `name`: each case on one seed, with ASSENT_SEEDS=all on each of them. What is wrong in
    a loss is wrong on every seed, and every seed is there among the cases of a test."""
    everywhere = os.environ.get("ASSENT_SEEDS") == "all"
    pairs = [
        (seed, case)
        for number, case in enumerate(cases)
        for seed in (SEEDS if everywhere else [SEEDS[number % len(SEEDS)]])
    ]
    ids = [f"{case}-seed{seed}" for seed, case in pairs]
    return pytest.mark.parametrize(("setting", "name"), pairs, indirect=["setting"], ids=ids)
