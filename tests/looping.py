"""A small world for loops: a policy that writes a few words and ends, a reward model, prompts, a reward function."""

from __future__ import annotations

import gc
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assent.algorithms.sft import train_sft
from assent.config import OptimConfig, SFTConfig, TrainConfig

WORDS = ("red", "green", "blue", "What", "Paris", "Name", "water", "three", "capital")


@dataclass(frozen=True)
class World:
    """What loops are made of: a random model, a policy that has learnt to write a few words and end, a reward model,
    prompts, and a reward function."""

    tiny: Path
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
            "train.max_steps": 2,
            "train.save_every": 1,
            "train.threads": 1,
            "rounds": 2,
        }


def words_of(command: str, options: dict[str, Any]) -> list[str]:
    """The words of a command line; a list is several words."""
    values = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [command, *(str(word) for name, value in values.items() for word in (f"--{name}", *value))]


def make_world(folder: Path, model: Path, scorer: Path) -> World:
    """In `folder`, from a random model."""
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
            {"path": str(model), "precision": "fp32"},
            {"train": str(folder / "sft.jsonl"), "max_length": 64},
            str(folder / "policy"),
            optim=OptimConfig(lr=1e-2),
            train=TrainConfig(batch_size=16, epochs=3),
        )
    )
    gc.collect()
    gc.freeze()  # loops collect garbage between their stages: not what was imported, again and again
    return World(model, folder / "policy", scorer, folder / "prompts.jsonl", f"{folder / 'mine.py'}:length")
