"""Loops that are killed at random moments, between stages and inside of them, and continued: the same bytes.

A loop is a row of `LOOPS`: its name, and a function that gives the words of its command line, but for --out and
--resume, in a small `World`."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from assent.algorithms.sft import train_sft
from assent.config import OptimConfig, SFTConfig, TrainConfig
from assent.loops.loop import STATE, digest_of

from .commands import until

WORDS = ("red", "green", "blue", "What", "Paris", "Name", "water", "three", "capital")
KILLS = 3


@dataclass(frozen=True)
class World:
    """What loops are made of: a policy that has learnt to write a few words and end, a reward model, prompts, and a
    reward function."""

    policy: Path
    scorer: Path
    prompts: Path
    function: str

    def shared(self) -> dict[str, Any]:
        """Options that every loop here is given."""
        return {
            "model.path": self.policy,
            "model.precision": "fp32",
            "data.train": self.prompts,
            "data.max_length": 64,
            "sampling.max_new_tokens": 12,
            "sampling.max_batch": 4,
            "optim.lr": 1e-3,
            "train.batch_size": 4,
            "train.max_steps": 3,
            "train.save_every": 1,
            "train.threads": 1,
            "rounds": 2,
        }


def words_of(command: str, options: dict[str, Any]) -> list[str]:
    """The words of a command line; a list is several words."""
    values = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [command, *(str(word) for name, value in values.items() for word in (f"--{name}", *value))]


def iterate(world: World) -> list[str]:
    return words_of(
        "iterate",
        world.shared()
        | {
            "data.eval_fraction": 0.3,
            "labels.source": world.scorer,
            "labels.precision": "fp32",
            "answers": 3,
            "choose.fewer": "use",
            "choose.unfinished": "keep",
            "measures": ["length", "kl"],
            "refresh.labels": world.function,
            "refresh.budget": 12,
        },
    )


def steerlm(world: World) -> list[str]:
    demonstrations, ratings = (world.prompts.with_name(f"{name}.jsonl") for name in ("sft", "ratings"))
    rated = [
        {**json.loads(line), "kind": number % 5, "long": number % 3}
        for number, line in enumerate(demonstrations.read_text().splitlines()[:40])
    ]
    write(ratings, [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "responses": [{"messages": [{"role": "assistant", "content": row["completion"]}]}],
            "feedback": [{"kind": "rating", "response": 0, "scores": {name: row[name] for name in ("kind", "long")}}],
        }
        for row in rated
    ])  # fmt: skip
    return words_of(
        "steerlm",
        world.shared()
        | {
            "data.train": demonstrations,
            "prompts": world.prompts,
            "steering.ratings": ratings,
            "steering.limit": 3,
            "steering.sweep": "long",
            "demonstrations": 0.2,
        },
    )


def apo(world: World) -> list[str]:
    golden, pairs = (world.prompts.with_name(f"{name}.jsonl") for name in ("sft", "pairs"))
    write(pairs, [
        {"prompt": f"Name {number} things.", "chosen": f"{WORDS[number % 9]} water", "rejected": WORDS[number % 7]}
        for number in range(24)
    ])  # fmt: skip
    return words_of(
        "apo",
        world.shared()
        | {
            "data.train": golden,
            "data.eval_fraction": 0.3,
            "reward_model": world.scorer,
            "pairs": pairs,
            "prompts": world.prompts,
            "rounds": 1,
            "answers": 3,
        },
    )


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


LOOPS: dict[str, Callable[[World], list[str]]] = {"iterate": iterate, "steerlm": steerlm, "apo": apo}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_dir: Path, scorer_dir: Path) -> World:
    folder = tmp_path_factory.mktemp("loops")
    rng = random.Random(1)
    prompts = [f"Name {number} colours." for number in range(20)]
    rows = [
        {"prompt": prompt, "completion": " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))} for prompt in prompts * 8
    ]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (folder / "mine.py").write_text(
        "def length(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"
    )
    train_sft(
        SFTConfig(
            {"path": str(tiny_model_dir), "precision": "fp32"},
            {"train": str(folder / "sft.jsonl"), "max_length": 64},
            str(folder / "policy"),
            optim=OptimConfig(lr=1e-2),
            train=TrainConfig(batch_size=16, epochs=3),
        )
    )
    return World(folder / "policy", scorer_dir, folder / "prompts.jsonl", f"{folder / 'mine.py'}:length")


def lines(out: Path) -> int:
    """Finished stages."""
    return (out / STATE).read_bytes().count(b"\n") if (out / STATE).exists() else 0


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_is_killed_goes_on_to_the_same_bytes(name: str, world: World, children, tmp_path: Path):
    out = tmp_path / "loop"
    words = [*LOOPS[name](world), "--out", str(out), "--resume", "auto"]
    assert children.wait(children.start(words), 300) == 0, children.log.read_text()
    seconds = [json.loads(line)["seconds"] for line in (out / "times.jsonl").read_text().splitlines()]
    whole = out.rename(tmp_path / "whole")

    rng, killed = random.Random(name), []
    for stage in sorted(rng.sample(range(len(seconds)), KILLS)):
        pid = children.start(words)
        until(lambda: lines(out) >= stage, 120)  # noqa: B023
        time.sleep(rng.uniform(0, 1.2 * seconds[stage]))
        os.kill(pid, signal.SIGKILL)
        killed.append(children.wait(pid))
    assert -signal.SIGKILL in killed
    assert children.wait(children.start(words), 300) == 0, children.log.read_text()

    assert (out / STATE).read_text() == (whole / STATE).read_text()
    for line in (out / STATE).read_text().splitlines():
        stage = json.loads(line)["stage"]
        assert digest_of(out / stage) == digest_of(whole / stage), stage
    assert not list(out.rglob("*.parts")) and not list(out.rglob("*.part"))
