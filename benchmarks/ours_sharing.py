"""What sharing a prompt is worth: the forward and backward pass of a GRPO step, with every prompt once for all its
answers (share) or once for each of them (flat). Both sides are ours, and give the same gradient.

python -m benchmarks.ours_sharing share-ANSWERS|flat-ANSWERS MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from assent.algorithms.online.method import method_with
from assent.algorithms.online.models import Models
from assent.algorithms.online.step_loss import forward, step_loss
from assent.config import DataConfig, ModelConfig, online_config
from assent.data.packing import window
from assent.data.tree import Branch, TokenTree
from assent.models.loading import load_policy, quiet_transformers
from benchmarks.operations import multiplied_weights
from benchmarks.ours import Work, window_work
from benchmarks.plan import BETA, MAX_LENGTH, SEED, SHARE_ANSWER, SHARE_ANSWERS, SHARE_PROMPT, size_of
from benchmarks.turns import Turns


def main() -> None:
    task, name, precision, warmup, folder = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
    turns = Turns(warmup, versions=versions)
    quiet_transformers()
    for work in passes(task, name, precision, folder):
        turns.step(**work)


def passes(task: str, name: str, precision: str, folder: Path) -> Iterator[Work]:
    """Computes the gradient of a step for each item asked for. Prompts and answers are random tokens; the log-probs of
    sampler and reference and the advantages are random numbers, which cost the same as any others."""
    model = ModelConfig(str(folder / name), precision=precision)  # type: ignore[arg-type]
    kl = {"coef": BETA["grpo"]}
    config = online_config("grpo", model=model, data=DataConfig("none"), out="none", kl=kl)
    policy = load_policy(model, max_length=MAX_LENGTH)
    models, method = Models(policy, None, None), method_with(config)
    weights = multiplied_weights(policy.plain)
    draw = np.random.default_rng(SEED)
    vocabulary = int(policy.plain.config.vocab_size)
    while True:
        trees = [random_tree(size_of(task), vocabulary, draw) for _ in range(SHARE_ANSWERS // size_of(task))]
        step = window(trees, micro_tokens=config.train.micro_tokens, flat=task.startswith("flat"))
        for batch in step.batches:
            passed = forward(batch, models, method, method.start, config)
            step_loss(batch, passed, method, method.start, config, step.counts).total.backward()
        policy.zero_grad(set_to_none=True)
        yield window_work(step, on_body=6 * weights.body, on_head=6 * weights.head)


def random_tree(answers: int, vocabulary: int, draw: np.random.Generator) -> TokenTree:
    """A prompt and its sampled, scored answers."""
    fields = ("old", "sampler", "reference", "advantages")
    branches = tuple(
        Branch(
            draw.integers(10, vocabulary, SHARE_ANSWER),
            np.ones(SHARE_ANSWER, bool),
            {name: draw.normal(size=SHARE_ANSWER).astype(np.float32) for name in fields},
        )
        for _ in range(answers)
    )
    return TokenTree(draw.integers(10, vocabulary, SHARE_PROMPT), branches)


if __name__ == "__main__":
    main()
