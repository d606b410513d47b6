"""The reward function of the rows of GRPO and RLOO, on both sides. Standard library only."""

from __future__ import annotations


def remainder(completions: list[list[dict[str, str]]], **_: object) -> list[float]:
    """A cheap number that differs between answers: the length of the text modulo 7."""
    return [float(len(completion[0]["content"]) % 7) for completion in completions]
