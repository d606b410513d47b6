"""`assent reward-gate`: linear heads from ratings or a trained head, length taken out, a gate trained on pairs; the
folder that comes of it, and what reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification

from assent.algorithms.reward import gate as gating
from assent.cli import main
from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.records import Example, Message, Response
from assent.data.tree import collate
from assent.models.heads import load_score_model, save_reward_model
from assent.models.loading import load_tokenizer, quiet_transformers
from assent.models.policy import ScoreModel
from assent.models.reward_head import HeadRule

quiet_transformers()

NAMES = ("helpfulness", "courtesy", "verbosity")
SMALL = "--gate.width 16 --gate.layers 1 --train.max_steps 30 --train.batch_size 16 --train.threads 1"
GOOD, KIND, LONG = "yes it is so", "thank you dear friend", "and then and then some more"


def answer(rng: np.random.Generator) -> tuple[str, dict[str, float]]:
    """A text, and what it holds of each attribute."""
    counts = rng.integers(0, 4, 3)
    parts = [part for part, n in zip((GOOD, KIND, LONG), counts, strict=True) for _ in range(n)]
    rng.shuffle(parts)
    return " ".join(["well", *parts]), dict(zip(NAMES, map(float, counts), strict=True))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """ratings.jsonl and pairs.jsonl: to questions that begin with "facts" help counts, to others courtesy."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rated = []
    for i in range(60):
        text, scores = answer(rng)
        rated.append({"prompt": f"question {i}", "response": text, **scores})
    write(folder / "ratings.jsonl", rated)
    pairs = []
    for i in range(80):
        kind = i % 2
        first, second = answer(rng), answer(rng)
        while first[1][NAMES[kind]] == second[1][NAMES[kind]]:
            second = answer(rng)
        chosen, rejected = sorted((first, second), key=lambda found: -found[1][NAMES[kind]])
        prompt = f"{('facts only please tell me', 'be kind to me now')[kind]} {i}"
        pairs.append({"prompt": prompt, "chosen": chosen[0], "rejected": rejected[0]})
    write(folder / "pairs.jsonl", pairs)
    return folder


@pytest.fixture(scope="module")
def attributes(tiny_model_dir: Path, tokenizer, tmp_path_factory) -> Path:
    """A model of three outputs on the tiny backbone."""
    config = ModelConfig(str(tiny_model_dir), precision="fp32")
    scorer = load_score_model(config, tokenizer, max_length=128, outputs=HeadRule(NAMES, (1.0, 1.0, 1.0)), seed=3)
    with torch.no_grad():
        scorer.head.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "attributes"
    save_reward_model(scorer, Chat(tokenizer), folder)
    return folder


def command(model: Path, pairs: Path, out: Path, *more: str) -> list[str]:
    words = f"reward-gate --model.path {model} --model.precision fp32 --data.train {pairs} --out {out} --data.max_length 128 {SMALL}"
    return [*words.split(), *more]


@pytest.fixture(scope="module")
def run(attributes: Path, data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "gated"
    assert main(command(attributes, data / "pairs.jsonl", out, "--data.eval_fraction", "0.2")) == 0
    return out


def load(folder: Path, **options: Any) -> ScoreModel:
    config = ModelConfig(str(folder), precision="fp32", **options)
    return load_score_model(config, load_tokenizer(config), max_length=128, trainable=False, new_head=False)


def examples() -> list[Example]:
    return [
        Example(
            (Message("user", f"{start} {i}"),),
            tuple(Response((Message("assistant", text),)) for text in (f"{GOOD} {LONG}", KIND, f"{KIND} {GOOD} {i}")),
        )
        for i, start in enumerate(("facts only please", "be kind to me now"))
    ]


def trees_for(folder: Path) -> list:
    chat = Chat(load_tokenizer(ModelConfig(str(folder))))
    return [chat.tree(example, 128) for example in examples()]


def test_a_run_says_what_it_weighs_and_how_it_compares(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    end = rows[-1]
    for name in ("accuracy", "accuracy_fixed", "accuracy_uniform", "nll", "length_relation"):
        assert f"eval/{name}" in end, name
    weights = [end[f"eval/weight/{name}"] for name in NAMES]
    assert all(weight > 0 for weight in weights)
    trained = [row["nll"] for row in rows if "nll" in row]
    assert np.mean(trained[-5:]) < np.mean(trained[:5])
    summary = json.loads((run / "summary.json").read_text())
    assert "accuracy_fixed" in json.dumps(summary)
