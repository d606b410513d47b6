"""Loops on two ranks that are killed and continued give what they give on one: the same stages, answers and choices,
the same numbers and weights but for rounding."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from assent.loops.loop import STATE

from ..fault.commands import until
from ..fault.test_loops import LOOPS, lines
from ..looping import World

NUMBERS = ("labelled.jsonl", "rated.jsonl", "asked-rated.jsonl", "choices.jsonl", "pairs.jsonl", "chosen.jsonl")
"""Files with rewards or shares in them, which may differ in their last digits; all others are the same bytes."""
CASES = [name if name == "iterate" else pytest.param(name, marks=pytest.mark.slow) for name in LOOPS]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_what_one_gives(name: str, loop_world: World, children, tmp_path: Path):
    words = LOOPS[name](loop_world)
    one, two = tmp_path / "one", tmp_path / "two"
    assert children.wait(children.start([*words, "--out", str(one)]), 600) == 0, children.log.read_text()
    again = [*words, "--out", str(two), "--resume", "auto"]
    ranks = children.ranks(tmp_path, again)
    until(lambda: lines(two) > lines(one) // 2, 600)
    for pid in ranks.pids:
        os.kill(pid, signal.SIGKILL)
    assert ranks.codes(60) == [-signal.SIGKILL] * 2
    assert lines(two) < lines(one)
    children.ranks(tmp_path, again).join(600)

    expected, found = rows(one), rows(two)
    assert [*found] == [*expected]
    for stage, numbers in expected.items():
        assert found[stage] == pytest.approx(numbers, rel=2e-4, abs=1e-5, nan_ok=True), stage
        if (file := two / stage).suffix == ".jsonl" and file.name not in NUMBERS:
            assert file.read_bytes() == (one / stage).read_bytes(), stage
    models = sorted(path.relative_to(one) for path in one.rglob("model.safetensors"))
    assert models
    for path in models:
        weights, others = load_file(one / path), load_file(two / path)
        for key, value in weights.items():
            torch.testing.assert_close(
                others[key], value, rtol=0, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}"
            )


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The numbers of each stage, None as NaN."""
    made = [json.loads(line) for line in (out / STATE).read_text().splitlines()]
    return {
        row["stage"]: {key: float("nan") if value is None else value for key, value in row["numbers"].items()}
        for row in made
    }
