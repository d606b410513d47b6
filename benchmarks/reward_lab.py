"""What kinds of reward models learn in the assistant world, whose gold reward is known:

    python -m benchmarks.reward_lab odin  --out FOLDER    annotators who like long answers: a plain model beside ODIN
    python -m benchmarks.reward_lab kwise --out FOLDER    rankings of four answers: K-wise beside all their pairs

Three seeds each (data and training), means with 95 % intervals; the tables stand in docs/reward-models.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t

from assent.algorithms.reward.odin import train_reward_odin
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.reward.ranking import train_reward_ranking
from assent.config import (
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RewardModelConfig,
    RewardOdinConfig,
    RewardRankingConfig,
    TrainConfig,
)
from assent.data.chat import Chat
from assent.data.records import Example, Message, Response
from assent.distributed import World
from assent.lab.annotators import Annotator, labelled
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.world import AssistantWorld
from assent.models.annotate import BatchColumns, columns_of
from assent.models.heads import load_score_model
from assent.models.init import random_model, train_tokenizer, write_new_model
from assent.models.loading import load_tokenizer

SEEDS = (0, 1, 2)
ONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@dataclass(frozen=True)
class Drawn:
    """A prompt with answers, the gold reward of each, and its length in words."""

    example: Example
    gold: tuple[float, ...]


def draw(world: AssistantWorld, rng: np.random.Generator, answers: int, gap: float) -> Drawn:
    """A prompt with different answers whose gold rewards are at least `gap` apart, one from the next."""
    prompt = world.draw_prompt(rng)
    task = world.lookup(prompt)
    while True:
        texts = [world.respond(prompt, draw_style(task, COMPARISON_MIX, rng), rng) for _ in range(answers)]
        gold = [world.gold(prompt, text).reward for text in texts]
        if np.diff(sorted(gold)).min() >= gap:
            return Drawn(Example(prompt, tuple(Response((Message("assistant", t),)) for t in texts)), tuple(gold))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def pair_row(example: Example, chosen: int, rejected: int) -> dict[str, Any]:
    answers = [turns(response.messages) for response in example.responses]
    return {"prompt": turns(example.prompt), "chosen": answers[chosen], "rejected": answers[rejected]}


def base_model(folder: Path, drawn: Sequence[Drawn], seed: int) -> Path:
    """A small random Llama with a tokenizer of the world's words."""
    examples = [one.example for one in drawn]
    texts = [turn.content for e in examples for turn in (*e.prompt, *(r.messages[0] for r in e.responses))]
    size = InitConfig(data="", out="", vocab_size=640, hidden_size=64, layers=2, heads=4, kv_heads=2, seed=seed)
    tokenizer = train_tokenizer([*texts, "user assistant system"], size.vocab_size)
    return write_new_model(tokenizer, random_model(tokenizer, size), folder)


def options(base: Path, data: Path, out: Path, seed: int, **train: Any) -> dict[str, Any]:
    return {
        "model": ModelConfig(str(base), precision="fp32"),
        "data": DataConfig(str(data), max_length=192),
        "out": str(out),
        "optim": OptimConfig(lr=2e-3),
        "train": TrainConfig(seed=seed, threads=1, **train),
    }


def scores(run: Path, drawn: Sequence[Drawn]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of all answers, and their lengths in tokens."""
    config = ModelConfig(str(run / "model"), precision="fp32")
    tokenizer = load_tokenizer(config)
    scorer = load_score_model(config, tokenizer, max_length=192, trainable=False, new_head=False)
    trees, _ = Chat(tokenizer).trees([one.example for one in drawn], 192)
    found = columns_of(
        trees,
        lambda batch: BatchColumns(per_response={"reward": scorer.rewards(batch).reward}),
        micro_tokens=4096,
        flat=False,
        world=ONE,
    )
    return found.per_response["reward"], np.array([len(b) for tree in trees for b in tree.branches], float)


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Correlation of what is left of x and y when the best line in `given` is taken out."""
    design = np.stack([given, np.ones_like(given)], 1)
    x, y = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y))
    return float(np.corrcoef(x, y)[0, 1])


def measures(run: Path, drawn: Sequence[Drawn]) -> dict[str, float]:
    """Accuracy against gold on all pairs, and on those where the better answer is the shorter; length beside gold."""
    reward, length = scores(run, drawn)
    gold = np.concatenate([one.gold for one in drawn])
    starts = np.cumsum([0, *(len(one.gold) for one in drawn)])
    pairs = [(i, j) for a, b in zip(starts, starts[1:], strict=False) for i, j in combinations(range(a, b), 2)]
    better, worse = np.array([(i, j) if gold[i] > gold[j] else (j, i) for i, j in pairs]).T
    right, shorter = reward[better] > reward[worse], length[better] < length[worse]
    return {
        "accuracy": float(right.mean()),
        "accuracy, better is shorter": float(right[shorter].mean()),
        "corr(reward, length | gold)": partial(reward, length, gold),
        "corr(reward, gold)": float(np.corrcoef(reward, gold)[0, 1]),
    }


def seconds(function: Callable[[Any], Any], config: RewardModelConfig) -> float:
    begun = time.process_time()
    function(config)
    return time.process_time() - begun


def said(found: dict[str, list[dict[str, float]]]) -> None:
    """A table: each kind's means over the seeds, with the 95 % interval of Student's t."""
    for name, runs in found.items():
        cells = []
        for key in runs[0]:
            values = np.array([run[key] for run in runs])
            half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
            cells.append(f"{key} {values.mean():.3f} +- {half:.3f}")
        print(f"{name}: {'; '.join(cells)}", flush=True)


def odin(out: Path, rows: int, bias: float) -> None:
    """One annotator, to whom a word more is worth `bias` of gold reward."""
    found: dict[str, list[dict[str, float]]] = {"reward": [], "reward-odin": []}
    annotator = Annotator("long", temperature=0.4, length_bias=bias)
    for seed in SEEDS:
        world, rng = AssistantWorld(0), np.random.default_rng([seed, 7])
        drawn = [draw(world, rng, 2, 0.8) for _ in range(rows)]
        held = [draw(world, rng, 2, 0.8) for _ in range(500)]
        pairs = [labelled(world, one.example, [annotator], rng) for one in drawn]
        data = write_rows(
            out / f"pairs-{seed}.jsonl", [pair_row(e, e.feedback[-1].chosen, e.feedback[-1].rejected) for e in pairs]
        )
        labels = np.mean(
            [one.gold[e.feedback[-1].chosen] == max(one.gold) for one, e in zip(drawn, pairs, strict=True)]
        )
        base = base_model(out / f"base-{seed}", drawn, seed)
        for name, function, kind in (
            ("reward", train_reward, RewardConfig),
            ("reward-odin", train_reward_odin, RewardOdinConfig),
        ):
            run = out / f"{name}-{seed}"
            given = options(base, data, run, seed, batch_size=64, epochs=6, micro_tokens=8192)
            taken = seconds(function, kind(**given))
            found[name].append({**measures(run, held), "labels that are gold's": float(labels), "CPU seconds": taken})
            print(name, seed, found[name][-1], flush=True)
    said(found)


def ranked(one: Drawn, temperature: float, rng: np.random.Generator) -> list[int]:
    """The order of one annotator: Plackett-Luce on gold (utilities with Gumbel noise, so that pairs of it are
    Bradley-Terry)."""
    return np.argsort([-g / temperature - rng.gumbel() for g in one.gold]).tolist()


def kwise(out: Path, rows: int) -> None:
    """The same rankings as trees of four answers, and as six rows of pairs each."""
    found: dict[str, list[dict[str, float]]] = {"reward, pairs": [], "reward-ranking, kwise": []}
    for seed in SEEDS:
        world, rng = AssistantWorld(0), np.random.default_rng([seed, 8])
        drawn = [draw(world, rng, 4, 0.05) for _ in range(rows)]
        held = [draw(world, rng, 2, 0.8) for _ in range(500)]
        orders = [ranked(one, 0.4, rng) for one in drawn]
        trees = [
            {
                "prompt": turns(one.example.prompt),
                "responses": [{"messages": turns(r.messages)} for r in one.example.responses],
                "feedback": [{"kind": "ranking", "levels": [[i] for i in order]}],
            }
            for one, order in zip(drawn, orders, strict=True)
        ]
        flat = [
            pair_row(one.example, i, j)
            for one, order in zip(drawn, orders, strict=True)
            for i, j in combinations(order, 2)
        ]
        base = base_model(out / f"base-{seed}", drawn, seed)
        # sixteen rankings, or as many pairs, in a step: the same steps on the same judgements
        for name, function, kind, content, size in (
            ("reward, pairs", train_reward, RewardConfig, flat, 96),
            ("reward-ranking, kwise", train_reward_ranking, RewardRankingConfig, trees, 16),
        ):
            stem = name.split(",")[0]
            run = out / f"{stem}-{seed}"
            data = write_rows(out / f"{stem}-{seed}.jsonl", content)
            given = options(base, data, run, seed, batch_size=size, epochs=2, micro_tokens=8192)
            taken = seconds(function, kind(**given))
            tokens = json.loads((run / "data.json").read_text())["train"]["tokens"]
            found[name].append({**measures(run, held), "tokens, thousands": 2 * tokens / 1000, "CPU seconds": taken})
            print(name, seed, found[name][-1], flush=True)
    said(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["odin", "kwise"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--bias", type=float, default=0.12)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "odin":
        odin(given.out, given.rows or 3000, given.bias)
    else:
        kwise(given.out, given.rows or 800)


if __name__ == "__main__":
    main()
