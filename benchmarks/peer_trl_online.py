"""One side of a row: a trainer of TRL that learns on its own answers, in TRL's own environment.

python -m benchmarks.peer_trl_online WHAT MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.plan import ANSWERS, BETA, CONTEXT, GROUP, NEW_TOKENS, SEED
from benchmarks.reward import remainder
from benchmarks.turns import Turns

LEARNING_RATE = 1e-4
ROLLOUTS = 1000  # more than any run takes
IN_ORDER = {"max_completion_length": NEW_TOKENS, "shuffle_dataset": False}


class Clock(TrainerCallback):
    """Ends a step, which is a rollout and one update, with the number of sampled tokens."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.tokens = ANSWERS * NEW_TOKENS  # where no reward counts them: all have full length

    def reward(self, completions: list, completion_ids: list[list[int]], **_: object) -> list[float]:
        self.tokens = sum(len(ids) for ids in completion_ids)
        return remainder(completions)

    def on_step_end(self, *_: object, **__: object) -> None:
        self.turns.step(tokens=self.tokens)


def grouped(what: str) -> dict[str, Any]:
    """Options of what compares several answers to a prompt."""
    return {**IN_ORDER, "num_generations": GROUP[what], "beta": BETA[what]}


def online_dpo() -> tuple[Any, Any, dict[str, Any]]:
    """Its batch is prompts, with two answers to each; the reference is a copy that it makes."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    prompts, beta = ANSWERS // GROUP["online-dpo"], BETA["online-dpo"]
    more = {"per_device_train_batch_size": prompts, "max_new_tokens": NEW_TOKENS, "beta": beta}
    return OnlineDPOConfig, OnlineDPOTrainer, {**more, "max_length": CONTEXT}


def main() -> None:
    what, name, precision, warmup, folder = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("trl", "transformers", "torch")}
    clock = Clock(Turns(warmup, versions=versions))
    rows = json.loads((folder / "peer-rollouts.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    own = (
        {"teacher_model": AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)}
        if what == "gkd"
        else {"reward_funcs": clock.reward}
    )
    config, kind, more = {
        "grpo": lambda: (trl.GRPOConfig, trl.GRPOTrainer, grouped(what)),
        "rloo": lambda: (trl.RLOOConfig, trl.RLOOTrainer, grouped(what)),
        "gkd": lambda: (trl.DistillationConfig, trl.DistillationTrainer, IN_ORDER),
        "online-dpo": online_dpo,
    }[what]()
    with tempfile.TemporaryDirectory() as out:
        args = config(
            output_dir=out,
            max_steps=ROLLOUTS,
            temperature=1.0,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},  # all answers have full length
            learning_rate=LEARNING_RATE,
            bf16=precision == "bf16",
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1000,
            disable_tqdm=True,
            seed=SEED,
            **{"per_device_train_batch_size": ANSWERS} | more,
        )
        trainer = kind(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder / name),
            callbacks=[clock],
            **own,
        )
        trainer.train()


if __name__ == "__main__":
    main()
