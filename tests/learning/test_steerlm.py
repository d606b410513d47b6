"""A policy trained by steerlm is what it is asked to be: asked and true verbosity correlate, and correctness stays.

The world: questions whose right answer is yes, answered in one to six words. How many words an answer has is unrelated
to the question and to whether it is right. The attribute model is told ratings, the policy demonstrations alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from assent.config import InitConfig, SteerLMConfig
from assent.loops.steerlm import steerlm
from assent.measures.steering import correlation
from assent.models.init import random_model, train_tokenizer, write_new_model

WORDS = ("{}", "{} indeed", "{} it is", "{} quite so for sure", "{} as most of us say")
THINGS = ("snow", "milk", "salt", "chalk", "rice", "flour", "cotton", "sugar")


def gold(text: str) -> tuple[float, float]:
    """Verbosity, correctness."""
    words = text.split()
    lengths = [len(form.split()) for form in WORDS]
    return float(min(range(5), key=lambda level: abs(lengths[level] - len(words)))), 4.0 * (words[:1] == ["yes"])


@pytest.fixture(scope="module")
def loop(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("steerlm"), random.Random(0)
    drawn = [(rng.choice(THINGS), rng.randrange(5), rng.random() < 0.7) for _ in range(400)]
    rows = [
        {"prompt": f"Is {thing} white?", "completion": WORDS[level].format("yes" if right else "no")}
        for thing, level, right in drawn
    ]
    rated = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "responses": [{"messages": [{"role": "assistant", "content": row["completion"]}]}],
            "feedback": [{"kind": "rating", "response": 0, "scores": {"correctness": 4 * right, "verbosity": level}}],
        }
        for row, (_, level, right) in zip(rows, drawn, strict=True)
    ]
    for name, content in (
        ("sft", rows),
        ("ratings", rated),
        ("prompts", [{"prompt": f"Is {thing} white?"} for thing in THINGS]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    tokenizer = train_tokenizer([*(text for row in rows for text in row.values()), "user assistant"] * 3, 360)
    size = InitConfig(data="", out="", hidden_size=48, layers=2, heads=4, kv_heads=2, context=128, seed=0)
    base = write_new_model(tokenizer, random_model(tokenizer, size), folder / "base")
    steerlm(
        SteerLMConfig(
            model={"path": str(base), "precision": "fp32"},
            data={"train": str(folder / "sft.jsonl"), "max_length": 64},
            out=str(folder / "loop"),
            rounds=2,
            prompts=str(folder / "prompts.jsonl"),
            answers=4,
            optim={"lr": 6e-3},
            train={"batch_size": 24, "max_steps": 90, "threads": 1},
            sampling={"max_new_tokens": 24},
            steering={"ratings": str(folder / "ratings.jsonl"),
                "options": {"train.max_steps": "60"}, "wanted": "correctness=4", "prompts":
                      str(folder / "prompts.jsonl")},
        )
    )  # fmt: skip
    return folder / "loop"


@pytest.mark.parametrize("number", [1, 2])
def test_answers_are_as_verbose_as_they_were_asked_to_be_and_as_right(loop: Path, number: int):
    rows = [json.loads(line) for line in (loop / f"round-{number}" / "asked-answers.jsonl").read_text().splitlines()]
    asked = [row["meta"]["asked"] for row in rows]
    found = np.array([gold(row["responses"][0]["messages"][0]["content"]) for row in rows])
    of = {name: np.array([one[0] == name for one in asked]) for name in ("verbosity", "correctness")}
    value, prompt = np.array([one[1] for one in asked]), np.array([one[2] for one in asked])
    own = of["verbosity"]
    steered = correlation(value[own], found[own, 0], prompt[own])
    assert steered.mean >= 0.8 and steered.low > 0.6, steered
    right = [found[own & (value == level), 1].mean() for level in range(5)]
    assert min(right) >= 3.2, right
    wrong = found[of["correctness"] & (value == 0), 1].mean()  # asked to be wrong, it is
    assert wrong < 1.5, wrong
    said = json.loads((loop / f"round-{number}" / "steering.json").read_text())["attributes"]
    assert abs(said["verbosity"]["correlation"]["mean"] - steered.mean) < 0.15
