"""One side of a row: TRL's SFT, DPO or reward trainer, in TRL's own environment.

python -m benchmarks.peer_trl WHAT MODEL PRECISION WARMUP FOLDER
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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from benchmarks.plan import BATCH, MAX_LENGTH, SEED, data_file
from benchmarks.turns import Turns

LEARNING_RATE = 1e-4


class Clock(TrainerCallback):
    """Ends a step, with the tokens of its batch that are not padding, as the collator made it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.tokens: list[int] = []

    def watch(self, trainer: trl.SFTTrainer | trl.DPOTrainer | trl.RewardTrainer) -> None:
        collate = trainer.data_collator

        def counting(rows: list[dict]) -> dict:
            batch = collate(rows)
            self.tokens.append(int(batch["attention_mask"].sum()))
            return batch

        trainer.data_collator = counting

    def on_step_end(self, args, state, control, **_: object) -> None:
        self.turns.step(tokens=self.tokens[state.global_step - 1])


def main() -> None:
    what, name, precision, warmup, folder = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("trl", "transformers", "torch")}
    clock = Clock(Turns(warmup, versions=versions))
    rows = json.loads((folder / f"peer-{data_file(what)}").read_text(encoding="utf-8"))
    path = str(folder / name)
    with tempfile.TemporaryDirectory() as out:
        options = {
            "output_dir": out,
            "per_device_train_batch_size": BATCH,
            "max_steps": len(rows) // BATCH,
            "max_length": MAX_LENGTH,
            "learning_rate": LEARNING_RATE,
            "train_sampling_strategy": "sequential",
            "bf16": precision == "bf16",
            "use_cpu": True,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1000,
            "disable_tqdm": True,
            "seed": SEED,
        }
        common = {"processing_class": AutoTokenizer.from_pretrained(path), "callbacks": [clock]}
        if what == "reward":
            model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
            config, kind = trl.RewardConfig, trl.RewardTrainer
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            config, kind = (trl.SFTConfig, trl.SFTTrainer) if what == "sft" else (trl.DPOConfig, trl.DPOTrainer)
        if what == "sft":
            rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        trainer = kind(model=model, args=config(**options), train_dataset=Dataset.from_list(rows), **common)
        clock.watch(trainer)
        trainer.train()
    raise RuntimeError(f"the data ended before the turns did: {len(rows)} rows")


if __name__ == "__main__":
    main()
