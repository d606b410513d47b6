"""Our side of a row of sampling: assent's torch engine.

python -m benchmarks.ours_generate generate-NUMBER|compiled-NUMBER MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np

from assent.config import ModelConfig, SamplingConfig
from assent.models.loading import load_policy, quiet_transformers
from assent.rollout.torch_engine import TorchEngine
from benchmarks.operations import multiplied_weights
from benchmarks.plan import GENERATE_PROMPT, MAX_LENGTH, NEW_TOKENS, SEED, random_prompts, size_of
from benchmarks.turns import Turns


def main() -> None:
    number, name, precision, warmup = size_of(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
    turns = Turns(warmup, versions=versions)
    quiet_transformers()
    config = ModelConfig(str(Path(sys.argv[5]) / name), precision=precision)  # type: ignore[arg-type]
    policy = load_policy(config, max_length=MAX_LENGTH, trainable=False)
    engine = TorchEngine(policy.model, (), precision, compiled=sys.argv[1].startswith("compiled"))
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, max_batch=number)
    body, head, _ = multiplied_weights(policy.model)
    for prompts in random_prompts(number, policy.model.config.vocab_size):
        groups = engine.generate([np.array(ids) for ids in prompts], 1, sampling, SEED)
        new = sum(len(completion) for group in groups for completion in group)
        # Forward passes of prompts and answers, the head only where a token is drawn; without attention's products.
        flops = 2 * (body + head) * new + 2 * body * number * GENERATE_PROMPT
        turns.step(tokens=new, flops=flops, computed_flops=flops)


if __name__ == "__main__":
    main()
