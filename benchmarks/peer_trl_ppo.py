"""One side of a row: PPO of the last TRL that has it, in an environment of its own.

python -m benchmarks.peer_trl_ppo ppo MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import torch
import trl
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
)

from benchmarks.plan import ANSWERS, NEW_TOKENS, SEED
from benchmarks.turns import Turns

LEARNING_RATE = 1e-5
ROLLOUTS = 1000  # more than any run takes


class Clock(TrainerCallback):
    """Ends a step, which is a rollout and one update. Without a stop token each answer has exactly NEW_TOKENS."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_step_end(self, *_: object, **__: object) -> None:
        self.turns.step(tokens=ANSWERS * NEW_TOKENS)


def main() -> None:
    name, precision, warmup, folder = sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("trl", "transformers", "torch")}
    clock = Clock(Turns(warmup, versions=versions))
    ids = json.loads((folder / "peer-prompts.json").read_text(encoding="utf-8"))
    data = Dataset.from_list([{"input_ids": row} for row in ids])
    base = folder / "old" / name

    def causal() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    def scorer() -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(f"{base}-reward", num_labels=1, dtype=torch.float32)

    with tempfile.TemporaryDirectory() as out:
        args = trl.PPOConfig(
            output_dir=out,
            per_device_train_batch_size=ANSWERS,
            local_rollout_forward_batch_size=ANSWERS,
            num_mini_batches=1,
            num_ppo_epochs=1,
            total_episodes=ANSWERS * ROLLOUTS,
            response_length=NEW_TOKENS,
            temperature=1.0,
            num_sample_generations=0,
            learning_rate=LEARNING_RATE,
            bf16=precision == "bf16",
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            seed=SEED,
        )
        trainer = trl.PPOTrainer(
            args=args,
            processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
            model=causal(),
            ref_model=causal(),
            reward_model=scorer(),
            value_model=scorer(),
            train_dataset=data,
            eval_dataset=data.select(range(1)),
            callbacks=[clock],
        )
        # Its own loader shuffles; this one hands out the same prompts as the other side gets, in the same order.
        loader = DataLoader(data, batch_size=ANSWERS, collate_fn=trainer.data_collator, drop_last=True)
        trainer.dataloader = trainer.accelerator.prepare(loader)
        trainer.train()


if __name__ == "__main__":
    main()
