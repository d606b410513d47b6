"""Whether a policy trained by `assent steerlm` is what it is asked to be, in the assistant world, whose gold attributes
are known:

    python -m benchmarks.loops_steerlm --out FOLDER [--seeds 0 1 2] [--quick]

For each seed: SFT of a random model on the world's demonstrations (which tell it the facts); an attribute model of it,
from ratings by the gold rubric; then two rounds of steerlm. Each verbosity is asked for at held-out prompts, all other
attributes as by default, and the gold rubric, which no training step saw of these answers, says what they are:
correlation of asked and gold verbosity, and whether correctness stays. Beside it the plain SFT policy's correctness.
What is there already in FOLDER is kept, also of a loop that was interrupted. The numbers stand in docs/steerlm.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assent.algorithms.sft import train_sft
from assent.config import (
    DataConfig,
    GenerateConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    SFTConfig,
    SteerLMConfig,
    TrainConfig,
)
from assent.data.formats import load_examples
from assent.data.formats.native import to_row
from assent.data.jsonl import write_rows
from assent.data.records import Example, Message, Rating, Response
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.artifacts import WorldPaths, build_world
from assent.lab.world import AssistantWorld, load_world
from assent.loops.steered import ASKED
from assent.loops.steerlm import steerlm
from assent.measures.steering import correlation
from assent.models.loading import quiet_transformers
from assent.rollout.chat import generate
from assent.statistics import mean_interval
from benchmarks.reward_lab import over_seeds

SAMPLING = SamplingConfig(max_new_tokens=64, max_batch=128)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    scale: float = 1.0
    rated: int = 2000
    epochs: int = 4
    batch: int = 16
    prompts: int = 200


QUICK = Size(scale=0.05, rated=60, epochs=1, prompts=10)


def rated(world: AssistantWorld, held: set[Any], count: int, rng: np.random.Generator) -> list[Example]:
    """Prompts with four answers in mixed styles, rated by the gold rubric."""
    made: list[Example] = []
    while len(made) < count:
        if (prompt := world.draw_prompt(rng)) in held:
            continue
        task = world.lookup(prompt)
        texts = [*dict.fromkeys(world.respond(prompt, draw_style(task, COMPARISON_MIX, rng), rng) for _ in range(4))]
        ratings = tuple(Rating(i, world.gold(prompt, text).attributes(), "gold") for i, text in enumerate(texts))
        made.append(Example(prompt, tuple(Response((Message("assistant", text),)) for text in texts), ratings))
    return made


def common(model: Path, data: Path, out: Path, seed: int, size: Size) -> dict[str, Any]:
    return {
        "model": ModelConfig(str(model), precision="fp32"),
        "data": DataConfig(str(data), max_length=256),
        "out": str(out),
        "optim": OptimConfig(lr=2e-3),
        "train": TrainConfig(size.batch, 8192, size.epochs, seed=seed, threads=1, log_every=20),
        "resume": "auto",
    }


def trained(out: Path, seed: int, size: Size) -> Path:
    """The folder of the loop of one seed, finished."""
    paths = WorldPaths(out / "world")
    if not paths.world.is_file():
        build_world(paths.root, seed=seed, scale=size.scale)
    world, ratings = load_world(paths.root), out / "ratings.jsonl"
    if not ratings.is_file():
        held = {example.prompt for example in load_examples(paths.prompts_eval).examples}
        write_rows(map(to_row, rated(world, held, size.rated, np.random.default_rng([seed, 9]))), str(ratings))
    train_sft(SFTConfig(**common(paths.base, paths.sft, out / "sft", seed, size)))
    if not (out / "plain.jsonl").is_file():
        generate(
            GenerateConfig(
                str(out / "sft"), str(paths.prompts_eval), str(out / "plain.jsonl"), limit=size.prompts, seed=seed,
                precision="fp32", sampling=SAMPLING,
            )
        )  # fmt: skip
    steerlm(
        SteerLMConfig(
            **common(out / "sft" / "model", paths.sft, out / "loop", seed, size),
            rounds=2,
            prompts=str(paths.prompts),
            sampling=SAMPLING,
            steering={
                "ratings": str(ratings),
                "options": {"optim.lr": "1e-3", "train.batch_size": "8"},
                "prompts": str(paths.prompts_eval),
                "limit": size.prompts,
                "sweep": ("verbosity",),
            },
        )
    )
    return out / "loop"


def measured(world: AssistantWorld, answers: Path) -> dict[str, float]:
    """What the gold rubric says of the answers that were asked for."""
    asked, found, prompt = [], [], []
    for example in load_examples(answers).examples:
        about: Any = example.meta[ASKED]
        if example.responses:
            gold = world.gold(example.prompt, example.responses[0].text)
            asked.append(about[1])
            prompt.append(about[2])
            found.append((gold.verbosity, gold.correctness))
    x, table, number = np.array(asked), np.array(found), np.array(prompt)
    numbers = {"correlation, gold verbosity": correlation(x, table[:, 0], number).mean}
    for value in sorted(set(asked)):
        numbers[f"gold verbosity at {value}"] = float(table[x == value, 0].mean())
        numbers[f"gold correctness at {value}"] = mean_interval(table[x == value, 1]).mean
    return numbers


def plain_numbers(world: AssistantWorld, answers: Path) -> dict[str, float]:
    """The same of the plain SFT policy, which cannot be asked."""
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    gold = [world.gold([Message(t["role"], t["content"]) for t in row["prompt"]], row["response"]) for row in rows]
    return {
        "gold verbosity": float(np.mean([each.verbosity for each in gold])),
        "gold correctness": float(np.mean([each.correctness for each in gold])),
    }


def study(out: Path, seeds: Sequence[int], size: Size) -> dict[str, list[dict[str, float]]]:
    """Numbers of every policy, by seed; also in FOLDER/steerlm.json."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        place = out / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        loop = trained(place, seed, size)
        world = load_world(place / "world")
        numbers = {"plain SFT": plain_numbers(world, place / "plain.jsonl")}
        for number in (1, 2):
            numbers[f"round {number}"] = measured(world, loop / f"round-{number}" / "asked-answers.jsonl")
        for name, own in numbers.items():
            found.setdefault(name, []).append(own)
            print(f"seed {seed}, {name}: " + "; ".join(f"{key} {value:.3f}" for key, value in own.items()), flush=True)
    (out / "steerlm.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, runs in found.items():
        cells = [
            "{} {:.2f} +- {:.2f}".format(key, *over_seeds([run.get(key, np.nan) for run in runs])) for key in runs[0]
        ]
        print(f"{name}: {'; '.join(cells)}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="minutes: whether it runs, not what it finds")
    given = parser.parse_args()
    quiet_transformers()
    study(given.out, given.seeds, QUICK if given.quick else Size())


if __name__ == "__main__":
    main()
