"""Our side of scoring pairs: what `assent score` does with them, from text to rewards.

python -m benchmarks.ours_score WHAT MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch

from assent.config import ScoreConfig
from assent.data.formats import load_examples
from assent.data.packing import order
from assent.data.views import answers_view
from assent.distributed import World
from assent.models.loading import quiet_transformers
from assent.rewards.model import ModelReward
from assent.rewards.outside import open_source
from benchmarks.operations import multiplied_weights
from benchmarks.plan import SCORED, SEED, WHATS
from benchmarks.turns import Turns


def main() -> None:
    what, name, precision, warmup, folder = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
    turns = Turns(warmup, versions=versions)
    quiet_transformers()
    for work in scoring(what, name, precision, folder):
        turns.step(**work)


def scoring(what: str, name: str, precision: str, folder: Path) -> Iterator[dict[str, float]]:
    """Scores the next pairs for each item asked for: tokens that count, and operations (2 for each weight of the
    layers) of all answers with their prompts, and of what was really computed."""
    config = ScoreConfig((str(folder / f"{name}-reward"),), "", precision=precision)  # type: ignore[arg-type]
    outside = open_source(config, World(0, 1, 0, torch.device("cpu")))
    examples, _ = answers_view(load_examples(folder / WHATS[what].data).examples)
    (model,) = outside.source.sources
    assert isinstance(model, ModelReward) and outside.chat is not None
    weights = multiplied_weights(model.scorer.plain)
    prompts = [len(outside.chat.prompt_ids(example)) for example in examples]
    endless = cycle(order(len(examples), seed=SEED, epoch=0).tolist())
    while True:
        some = list(islice(endless, SCORED))
        scores = outside.score([examples[index] for index in some])
        assert not scores.failures, scores.failures
        shared, answers = sum(prompts[index] for index in some), sum(scores.columns["tokens"])  # type: ignore[arg-type]
        tokens, packed = 2 * shared + answers, shared + answers
        computed = (weights.body - weights.tail) * packed + weights.tail * 2 * len(some)
        yield {"tokens": tokens, "flops": 2 * weights.body * tokens, "computed_flops": 2 * computed}


if __name__ == "__main__":
    main()
