"""One side of a row: a trainer of TRL, in TRL's own environment.

python -m benchmarks.peer_trl WHAT MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
)

from benchmarks.plan import BATCH, LORA_ALPHA, LORA_RANK, MAX_LENGTH, SEED, WHATS
from benchmarks.turns import Turns

LEARNING_RATE = 1e-4
TRAINERS = {
    "sft": ("trl", "SFT"),
    "dpo": ("trl", "DPO"),
    "lora-dpo": ("trl", "DPO"),
    "kto": ("trl", "KTO"),
    "simpo": ("trl.experimental.cpo", "CPO"),
    "orpo": ("trl.experimental.orpo", "ORPO"),
    "cpo": ("trl.experimental.cpo", "CPO"),
    "reward": ("trl", "Reward"),
}
"""Where the trainer and its configuration are, and what their names begin with."""
CHOICES = {"simpo": {"loss_type": "simpo", "cpo_alpha": 0.0}}
"""What makes a trainer of several methods the one of the row."""
# KTO's answers to other prompts (KL_attention_mask) are not counted.
MASKS = ("attention_mask", "chosen_attention_mask", "rejected_attention_mask")


class Clock(TrainerCallback):
    """Ends a step, with the tokens of its batch that are not padding, as the collator made it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.tokens: list[int] = []

    def watch(self, trainer: Trainer) -> None:
        collate = trainer.data_collator

        def counting(rows: list[dict]) -> dict:
            batch = collate(rows)
            self.tokens.append(sum(int(batch[name].sum()) for name in MASKS if name in batch))
            return batch

        trainer.data_collator = counting

    def on_step_end(self, args, state, control, **_: object) -> None:
        self.turns.step(tokens=self.tokens[state.global_step - 1])


def main() -> None:
    what, name, precision, warmup, folder = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("trl", "transformers", "torch")}
    clock = Clock(Turns(warmup, versions=versions))
    rows = json.loads((folder / f"peer-{WHATS[what].data}").read_text(encoding="utf-8"))
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
            **CHOICES.get(what, {}),
        }
        common = {"processing_class": AutoTokenizer.from_pretrained(path), "callbacks": [clock]}
        if what == "reward":
            model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if what == "lora-dpo":
            common["peft_config"] = LoraConfig(
                r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
            )
        module, method = TRAINERS[what]
        config, kind = (getattr(importlib.import_module(module), method + part) for part in ("Config", "Trainer"))
        if what == "sft":
            rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        trainer = kind(model=model, args=config(**options), train_dataset=Dataset.from_list(rows), **common)
        clock.watch(trainer)
        trainer.train()
    raise RuntimeError(f"the data ended before the turns did: {len(rows)} rows")


if __name__ == "__main__":
    main()
