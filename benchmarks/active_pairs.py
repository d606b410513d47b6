"""Whether pairs that `assent curate` chooses teach a reward model more than as many by chance, in the assistant world:

    python -m benchmarks.active_pairs --out FOLDER [--seeds 0 1 2] [--start 300] [--budgets 300 900]

For each seed a pool of prompts with two answers, a few of them labelled by chance, and three reward models of these.
Then a budget more is labelled: by chance, where the three disagree most, or where their mean margin is nearest to 0
(`--choose.pairs`). Each label is one vote of one of the lab's annotators, the same whoever chooses it. A new model
learns from the first labels and the new ones, and is asked which of two answers gold prefers: of held-out pairs as they
come, and of those that gold tells well apart. Means over the seeds with 95 % intervals, and of the differences from
chance; they stand in docs/curate.md. What is there already in FOLDER is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from assent.algorithms.reward.pairs import train_reward
from assent.config import CurateConfig, RewardConfig
from assent.config.curate import FilterConfig, PairsConfig, TopicsConfig
from assent.data.formats import load_examples, to_row
from assent.data.records import Example
from assent.lab.annotators import PANEL, labelled
from assent.lab.world import AssistantWorld
from assent.models.loading import quiet_transformers
from assent.people.curate.run import curate
from benchmarks.reward_lab import Drawn, base_model, chosen, draw, measures, options, over_seeds, pair_row, write_rows

HOW = ("random", "disagreement", "margin")
MEMBERS = 3
CLOSE, CLEAR = 0.05, 0.8
"""Least gap of gold between the answers of a pair, in the pool and where gold tells them well apart."""
HELD = 800
TRAINED = {"batch_size": 32, "epochs": 4, "micro_tokens": 8192}


def key(example: Example) -> tuple[object, ...]:
    return example.prompt, *(response.text for response in example.responses)


def learnt(out: Path, base: Path, rows: Sequence[Example], seed: int) -> Path:
    """A reward model of these labelled pairs; kept where it is there."""
    if not (out / "model").is_dir():
        data = write_rows(out.with_suffix(".jsonl"), [pair_row(example, *chosen(example)) for example in rows])
        train_reward(RewardConfig(**options(base, data, out, seed, **TRAINED)))
    return out


def picked(out: Path, pool: Path, how: str, budget: int, members: Sequence[Path], seed: int) -> list[Example]:
    """The rows that the command chooses, in its order."""
    if not out.is_file():
        asks = () if how == "random" else tuple(map(str, members))
        curate(
            CurateConfig(
                (str(pool),),
                str(out),
                seed=seed,
                precision="fp32",
                filter=FilterConfig(near=1.0),
                topics=TopicsConfig(method="none"),
                choose=PairsConfig(pairs=how, budget=budget, source=asks),  # type: ignore[arg-type]
            )
        )
    return load_examples(str(out)).examples


def one_seed(root: Path, seed: int, start: int, budgets: Sequence[int], size: int) -> dict[str, dict[str, float]]:
    """Number by name, by how the pairs are chosen and how many."""
    world, rng = AssistantWorld(seed), np.random.default_rng([seed, 9])
    root.mkdir(parents=True, exist_ok=True)
    drawn = [draw(world, rng, 2, CLOSE) for _ in range(size)]
    held = {gap: [draw(world, rng, 2, gap) for _ in range(HELD)] for gap in (CLOSE, CLEAR)}
    votes = [labelled(world, one.example, [PANEL[int(rng.integers(len(PANEL)))]], rng) for one in drawn]
    label = {key(example): example for example in votes}
    gold = {key(one.example): int(np.argmax(one.gold)) for one in drawn}
    bases = [base_model(root / f"base-{member}", drawn, 100 * seed + member) for member in range(MEMBERS)]
    members = [learnt(root / f"start-{n}", base, votes[:start], seed + 10 * n) for n, base in enumerate(bases)]
    pool = root / "pool.jsonl"
    write_rows(pool, [to_row(one.example) for one in drawn[start:]])
    found = {f"{start} by chance": told(members[0], held)}
    most = max(budgets)
    for how in HOW:
        rows = picked(root / f"{how}-{most}.jsonl", pool, how, most, members, seed)
        for budget in budgets:  # the first ones come first in the file
            new = [label[key(example)] for example in rows[:budget]]
            run = learnt(root / f"model-{how}-{budget}", bases[0], [*votes[:start], *new], seed)
            right = float(np.mean([chosen(example)[0] == gold[key(example)] for example in new]))
            found[f"{start} + {budget} by {how}"] = {**told(run, held), "labels that are gold's": right}
    return found


def told(run: Path, held: Mapping[float, Sequence[Drawn]]) -> dict[str, float]:
    """Accuracy against gold; kept where it is there."""
    file = run / "told.json"
    if not file.is_file():
        names = {CLOSE: "accuracy, as they come", CLEAR: "accuracy, clear"}
        file.write_text(json.dumps({name: measures(run, held[gap])["accuracy"] for gap, name in names.items()}))
    return dict(json.loads(file.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start", type=int, default=300)
    parser.add_argument("--budgets", type=int, nargs="+", default=[300, 900])
    parser.add_argument("--pool", type=int, default=4000)
    given = parser.parse_args()
    quiet_transformers()
    found = []
    for seed in given.seeds:
        found.append(one_seed(given.out / f"seed-{seed}", seed, given.start, given.budgets, given.pool))
        print(seed, json.dumps(found[-1], indent=1), flush=True)
    for name, numbers in found[0].items():
        cells = [f"{key} {show([each[name][key] for each in found])}" for key in numbers]
        print(f"{name}: {'; '.join(cells)}", flush=True)
    for budget in given.budgets:
        chance = f"{given.start} + {budget} by random"
        for how in HOW[1:]:
            name = f"{given.start} + {budget} by {how}"
            gains = {key: [each[name][key] - each[chance][key] for each in found] for key in found[0][chance]}
            print(
                f"{name}, less by chance: {'; '.join(f'{key} {show(own)}' for key, own in gains.items())}", flush=True
            )


def show(values: Sequence[float]) -> str:
    return "{:.3f} +- {:.3f}".format(*over_seeds(values))


if __name__ == "__main__":
    main()
