"""The relations between the options of judges, for `assent.config.relations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assent.config.judge import WriterConfig


def writer_is_asked(config: Any) -> str | None:
    """For every configuration with a section `judge` that writes."""
    judge = config.judge
    if judge.attempts > 1 and judge.temperature == 0:
        return (
            f"--judge.attempts {judge.attempts} asks again for a verdict that cannot be read, with another seed, which "
            "changes something at a --judge.temperature above 0. Got 0."
        )
    return None


def verdicts_are_asked(config: Any) -> str | None:
    """For every configuration with a section `judge` that gives verdicts."""
    judge = config.judge
    if problem := writer_is_asked(config):
        return problem
    if judge.soft and judge.contradiction != type(judge)().contradiction:
        return (
            f"--judge.contradiction {judge.contradiction} is about written verdicts; those of --judge.soft are always "
            "averaged over the orders. Leave one of them out."
        )
    return None


def judge_is_asked(config: Any) -> str | None:
    """For every configuration with a section `judge` whose verdicts become rewards."""
    judge = config.judge
    if problem := verdicts_are_asked(config):
        return problem
    if judge.rule == "bradley_terry" and judge.pairs == "baseline":
        return (
            "--judge.rule bradley_terry fits the comparisons of a group's answers with one another: --judge.pairs all. "
            "Got --judge.pairs baseline."
        )
    return None


def unread(judge: WriterConfig, judges: Sequence[str], server: str, folder: str) -> str | None:
    """Options of one kind of judge, where there is none of that kind; `server` and `folder` are how they are named."""
    kinds = {spec.partition("=")[0] for spec in judges}
    for option, kind, words, given in (
        ("model", "openai", server, judge.model is not None),
        ("key_env", "openai", server, judge.key_env is not None),
        ("body", "openai", server, bool(judge.body)),
        ("engine", "model", folder, judge.engine != "torch"),
    ):
        if given and kind not in kinds:
            return f"--judge.{option} is read only with {words}. There is none."
    return None
