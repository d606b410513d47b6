"""What kinds of reward models learn in the assistant world, whose gold reward is known:

    python -m benchmarks.reward_lab bias  --out FOLDER    annotators who like long answers: a plain model, ODIN, a gate
    python -m benchmarks.reward_lab kwise --out FOLDER    rankings of four answers: K-wise beside all their pairs

Three seeds each (data and training), means with 95 % intervals; the tables stand in docs/reward-models.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t

from assent.algorithms.reward.gate import train_gate
from assent.algorithms.reward.odin import train_reward_odin
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.reward.ranking import train_reward_ranking
from assent.config import (
    DataConfig,
    GateSection,
    InitConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RewardGateConfig,
    RewardModelConfig,
    RewardOdinConfig,
    RewardRankingConfig,
    TrainConfig,
    TrustConfig,
)
from assent.config.reward import GateOptim, GateTrain
from assent.data.chat import Chat
from assent.data.formats.native import to_row
from assent.data.records import Example, Message, Pair, Rating, Response
from assent.distributed import World
from assent.evaluate.trust import trust
from assent.lab.annotators import Annotator, labelled
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.artifacts import GOLD
from assent.lab.world import AssistantWorld
from assent.models.annotate import BatchColumns, columns_of
from assent.models.heads import load_score_model
from assent.models.init import random_model, train_tokenizer, write_new_model
from assent.models.loading import load_tokenizer, quiet_transformers

SEEDS, HELD = (0, 1, 2), 400
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
    """A small random Llama with a tokenizer of the world's words; kept where it is there."""
    if (folder / "config.json").is_file():
        return folder
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


def over_seeds(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean, and half the 95 % interval of Student's t."""
    found = np.asarray(values, float)
    if len(found) < 2:
        return float(found.mean()), float("nan")
    return float(found.mean()), float(t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))


def said(found: dict[str, list[dict[str, float]]]) -> None:
    """A table: each kind's means over the seeds, with the 95 % interval of Student's t."""
    for name, runs in found.items():
        cells = []
        for key in runs[0]:
            values = np.array([run[key] for run in runs])
            cells.append("{} {:.3f} +- {:.3f}".format(key, *over_seeds(values)))
        print(f"{name}: {'; '.join(cells)}", flush=True)


def trusted(run: Path, held: Path, gold: Path) -> dict[str, float]:
    """What the trust report of a reward says of length, on pairs labelled by gold, and its accuracy there."""
    out = run / "trust"
    trust(TrustConfig((str(run),), str(held), scorer=f"{gold}:gold", out=str(out), probes=0, precision="fp32"))
    (file,) = json.loads((out / "trust.json").read_text())["files"]
    length = next(row for row in file["bias"]["relations"] if row["feature"] == "length")
    return {
        "accuracy": file["accuracy"]["right"]["mean"],
        "where the better is shorter": file["parts"]["better answer"]["shorter"]["right"]["mean"],
        "length given gold": length["given_gold"]["value"],
        "longer preferred, excess": file["bias"]["longer"]["excess"]["value"],
    }


def bias(out: Path, rows: int, taste: float, seeds: Sequence[int]) -> None:
    """One annotator, to whom a word more is worth `taste` of gold reward, in pairs and in ratings of helpfulness."""
    found: dict[str, list[dict[str, float]]] = {}
    annotator = Annotator("long", temperature=0.4, length_bias=taste)
    world = AssistantWorld(0)
    world.save(out / "world.json")
    (out / "gold.py").write_text(GOLD)
    for seed in seeds:
        rng = np.random.default_rng([seed, 7])
        drawn = [draw(world, rng, 2, 0.8) for _ in range(rows)]
        held = [draw(world, rng, 2, 0.8) for _ in range(HELD)]
        judged = [labelled(world, one.example, [annotator], rng, ratings=True) for one in drawn]
        pairs, ratings = out / f"pairs-{seed}.jsonl", out / f"ratings-{seed}.jsonl"
        write_rows(pairs, [pair_row(e, *chosen(e)) for e in judged])
        write_rows(ratings, [to_row(replace(e, feedback=rated(e))) for e in judged])
        eval_rows = [pair_row(one.example, *np.argsort(one.gold)[::-1].tolist()) for one in held]
        eval_file = write_rows(out / f"held-{seed}.jsonl", eval_rows)
        right = np.mean([one.gold[chosen(e)[0]] == max(one.gold) for one, e in zip(drawn, judged, strict=True)])
        base = base_model(out / f"base-{seed}", drawn, seed)
        for name, train in biased(out, base, pairs, ratings, seed).items():
            run = out / f"{name}-{seed}".replace(" ", "-").replace(",", "")
            if not (run / "lab.json").is_file():
                taken = {"labels that are gold's": float(right), "CPU seconds": seconds(train, run)}
                (run / "lab.json").write_text(json.dumps({**trusted(run, eval_file, out / "gold.py"), **taken}))
            found.setdefault(name, []).append(json.loads((run / "lab.json").read_text()))
            print(name, seed, found[name][-1], flush=True)
    said(found)


def biased(out: Path, base: Path, pairs: Path, ratings: Path, seed: int) -> dict[str, Callable[[Path], Any]]:
    """What trains each kind into a folder. The gates stand on the model that the plain run has trained."""
    plain = {"batch_size": 32, "epochs": 4, "micro_tokens": 8192}
    # as many steps, of twice the answers: correlations of few say little
    twice = {**plain, "batch_size": 64, "epochs": 8}

    def gate(run: Path, decorrelate: bool) -> None:
        given = options(out / f"reward-{seed}", pairs, run, seed)
        given |= {"optim": GateOptim(lr=1e-2), "train": GateTrain(256, max_steps=100, seed=seed, threads=1)}
        section = GateSection(str(ratings), layers=1, width=64, temperature=1.0, decorrelate=decorrelate)
        train_gate(RewardGateConfig(**given, gate=section))

    return {
        "reward": lambda run: train_reward(RewardConfig(**options(base, pairs, run, seed, **plain))),
        "reward-odin": lambda run: train_reward_odin(RewardOdinConfig(**options(base, pairs, run, seed, **twice))),
        "reward-gate, length left in": lambda run: gate(run, False),
        "reward-gate": lambda run: gate(run, True),
    }


def chosen(example: Example) -> tuple[int, int]:
    """The chosen and the rejected answer of the one pair."""
    (pair,) = (item for item in example.feedback if isinstance(item, Pair))
    return pair.chosen, pair.rejected


def rated(example: Example) -> tuple[Rating, ...]:
    return tuple(item for item in example.feedback if isinstance(item, Rating))


def ranked(one: Drawn, temperature: float, rng: np.random.Generator) -> list[int]:
    """The order of one annotator: Plackett-Luce on gold (utilities with Gumbel noise, so that pairs of it are
    Bradley-Terry)."""
    return np.argsort([-g / temperature - rng.gumbel() for g in one.gold]).tolist()


def kwise(out: Path, rows: int, seeds: Sequence[int]) -> None:
    """The same rankings as trees of four answers, and as six rows of pairs each."""
    found: dict[str, list[dict[str, float]]] = {"reward, pairs": [], "reward-ranking, kwise": []}
    for seed in seeds:
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
    parser.add_argument("what", choices=["bias", "kwise"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--bias", type=float, default=0.12)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    quiet_transformers()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "bias":
        bias(given.out, given.rows or 1000, given.bias, given.seeds)
    else:
        kwise(given.out, given.rows or 800, given.seeds)


if __name__ == "__main__":
    main()
