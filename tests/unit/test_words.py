"""A configuration as a command line: reading it gives the same configuration."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from assent.cli import COMMANDS, parse
from assent.config import CompareConfig, DataConfig, DemoConfig, EvalConfig, ModelConfig, SamplingConfig
from assent.config.words import command_of

CASES: list[tuple[str, Any]] = [
    ("demo", DemoConfig()),
    ("demo", DemoConfig(out="runs/my demo", seed=3, scale=0.5, resume=True)),
    ("eval", EvalConfig(("runs/a", "b=hub/id"), "p.jsonl", "out")),
    (
        "eval",
        EvalConfig(
            ("a b", "it's=x"),
            "p.jsonl",
            "out",
            rewards=("proxy=runs/reward", "exact=answer"),
            columns={"prompt": "question", "response": "the answer"},
            checkpoints=True,
            limit=7,
            sampling=SamplingConfig(temperature=0.0, max_new_tokens=9),
        ),
    ),
    (
        "compare",
        CompareConfig(
            model=ModelConfig("base"),
            data=DataConfig("pairs.jsonl", eval="held out.jsonl"),
            out="out",
            methods=("dpo", "kto"),
            scorer="gold.py:score",
            options={"dpo.loss.beta": "0.2"},
        ),
    ),
]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_what_is_read_from_the_words_is_the_configuration(name: str, config: Any):
    words = shlex.split(command_of(name, config, COMMANDS[name].positional))
    assert words[:2] == ["assent", name]
    assert parse(name, words[2:]) == (False, config)


def test_places_can_be_left_out():
    config = EvalConfig(("a",), "p", "out", resume=True)
    assert command_of("eval", config, ("policies",), ("out", "resume")) == "assent eval a --prompts p"
