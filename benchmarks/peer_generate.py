"""One side of a row: `transformers.generate`, in TRL's environment.

python -m benchmarks.peer_generate generate-NUMBER MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.plan import GENERATE_PROMPT, NEW_TOKENS, SEED, random_prompts, size_of
from benchmarks.turns import Turns


def main() -> None:
    number, name, precision, warmup = size_of(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
    turns = Turns(warmup, versions=versions)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(Path(sys.argv[5]) / name, dtype=dtype).eval()
    torch.manual_seed(SEED)
    for prompts in random_prompts(number, model.config.vocab_size):
        ids = torch.tensor(prompts)
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
            )
        turns.step(tokens=out[:, GENERATE_PROMPT:].numel())


if __name__ == "__main__":
    main()
