"""What the labels of twelve people are worth, in the assistant world, whose gold order is known:

    python -m benchmarks.people_panel --out FOLDER [--seeds 0 1 2] [--quick]

For each seed a real `assent label` server with two projects, and twelve simulated annotators (`assent.lab.labellers`:
three experts, three of ordinary care, two careless, two who go by length, two by the left side) who label through its
HTTP API: pairs, five annotators each, with known answers mixed in and a second pass; and rankings of four answers, five
annotators each. Of the export:

a. the label that `assent aggregate` makes of the first three votes, and of all five, beside gold, by method;
b. whom `assent aggregate`, and the lead's page of the server, find to be careless, or biased;
c. held-out accuracy against gold of reward models trained on the first three votes: each vote a row, majority,
   aggregates (hard, and with the probability as a soft label), and gold itself, as many steps each.

What is there already in FOLDER is kept. The numbers stand in docs/annotators.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from assent.algorithms.reward.pairs import train_reward
from assent.config import AggregateConfig, RewardConfig, RewardSection
from assent.data.records import Example, Feedback, Pair, Ranking
from assent.lab.labellers import CROWD, FAULTS, work
from assent.lab.world import AssistantWorld
from assent.models.loading import quiet_transformers
from assent.outputs import write_text
from assent.people.aggregate import AggregateSummary, aggregate
from assent.statistics import PairedDifference, mean_interval, paired_difference
from benchmarks import people_lab as lab
from benchmarks.reward_ensembles import common, once
from benchmarks.reward_lab import Drawn, measures, over_seeds

SEEDS = tuple(range(12))
METHODS = {
    "pairs": ("majority", "dawid-skene", "mace", "bradley-terry"),
    "rankings": ("majority", "dawid-skene", "mace", "bradley-terry"),
}
REWARDED = ("majority", "dawid-skene", "mace")
"""Methods on whose labels reward models are trained."""
VOTES = (3, 5)
ORDERS = (0, 1)
"""Seeds of each reward model; the mean of them is one number."""
SAID = {"careless": "hardly better than chance", "length": "prefers the longer", "left": "prefers the left"}
"""Fault of a labeller -> what `assent aggregate` says of it."""
NOBODY = "prefers the shorter", "prefers the right"
"""What it may say of somebody, though nobody here is so."""


@dataclass(frozen=True)
class Size:
    """How much of everything. Answers to a prompt are `gap` of gold reward apart; held-out ones 0.8."""

    pairs: int = 1600
    rankings: int = 40
    known: int = 30
    held: int = 1500
    gap: float = 0.4
    steps: int = 600
    scale: float = 1.0
    """Of the demonstrations that the reward models' start has learnt from."""


QUICK = Size(60, 12, 8, 60, 0.4, 4, 0.02)


# ---- labelling


def drawn(root: Path, seed: int, size: Size) -> AssistantWorld:
    """The world, and what is to be labelled, in files."""
    world, rng = AssistantWorld(seed), np.random.default_rng([seed, 16])
    root.mkdir(parents=True, exist_ok=True)
    if (root / "rankings.yaml").exists():
        return world
    held = lab.items(world, size.held, 2, 0.8, rng, frozenset())
    leave = frozenset(example.prompt for example in held)
    known = lab.items(world, size.known, 2, 0.8, rng, leave)
    leave |= {example.prompt for example in known}
    lab.write_examples(root / "held.jsonl", [lab.with_gold(world, example) for example in held])
    lab.write_examples(root / "known.jsonl", [lab.with_gold(world, example) for example in known])
    for name, count, answers in (("pairs", size.pairs, 2), ("rankings", size.rankings, 4)):
        lab.write_examples(root / f"{name}-items.jsonl", lab.items(world, count, answers, size.gap, rng, leave))
    shared = {"question": "Which answer helps more?", "overlap": max(VOTES)}
    lab.write_task(
        root / "pairs.yaml", name="pairs", kind="pair", title="Which answer helps more?",
        items=str(root / "pairs-items.jsonl"), gold=str(root / "known.jsonl"), gold_share=0.05, second_pass=0.05,
        **shared,
    )  # fmt: skip
    lab.write_task(
        root / "rankings.yaml", name="rankings", kind="ranking", title="Order the answers",
        items=str(root / "rankings-items.jsonl"), **shared,
    )  # fmt: skip
    return world


def label(root: Path, world: AssistantWorld, seed: int) -> None:
    """Lets the crowd label both projects through a real server, and exports what it said."""
    tasks = [root / "pairs.yaml", root / "rankings.yaml"]
    db = root / "labels.db"
    db.unlink(missing_ok=True)
    counts = {}
    with lab.LabelServer(tasks, db, root / "server.log") as server:
        for task in tasks:
            tokens = lab.hired(db, task.stem, [labeller.name for labeller in CROWD])
            given = work(server.url, task.stem, tokens, world, seed=seed)
            counts[task.stem] = len(given)
            lab.exported(task, db, root / f"{task.stem}-votes.jsonl")
        (root / "lead.json").write_text(json.dumps(lab.found_by_lead(db, "pairs")))
    (root / "labelled.json").write_text(json.dumps(counts))


def first_votes(example: Example, count: int) -> Example:
    """With the feedback of the first so many annotators."""
    names = list(dict.fromkeys(item.annotator for item in example.feedback))[:count]
    said = {item.annotator: item for item in reversed(example.feedback)}  # the first word of each
    return replace(example, feedback=tuple(said[name] for name in names))


def votes(root: Path, kind: str, count: int) -> list[Example]:
    """The items with their first votes; without the known ones, which the export may have too."""
    asked = {example.prompt for example in lab.read_examples(root / f"{kind}-items.jsonl")}
    rows = [row for row in lab.read_examples(root / f"{kind}-votes.jsonl") if row.prompt in asked]
    found = [first_votes(row, count) for row in rows]
    assert len(found) == len(asked) and all(len(row.feedback) == count for row in found), "every item has its votes"
    return found


# ---- a. what the aggregates are worth


def aggregated(root: Path, kind: str, method: str, count: int) -> tuple[list[Example], AggregateSummary]:
    """`assent aggregate` of the first votes."""
    file, out = root / f"{kind}-first-{count}.jsonl", root / f"{kind}-{method}-{count}.jsonl"
    lab.write_examples(file, votes(root, kind, count))
    out.unlink(missing_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        found = aggregate(AggregateConfig(str(file), str(out), method=method))  # type: ignore[arg-type]
    return lab.read_examples(out), found


def orders(said: Sequence[Feedback]) -> dict[tuple[int, int], float]:
    """Of two answers (the lower index first): 1 where the first is said to be better, 0 the second, 0.5 neither."""
    found: dict[tuple[int, int], float] = {}
    for item in said:
        if isinstance(item, Pair):
            two = min(item.chosen, item.rejected), max(item.chosen, item.rejected)
            found[two] = float(item.chosen == two[0])
        elif isinstance(item, Ranking):
            assert len(item.levels) == 1, "aggregates have rankings only for ties"
            found |= dict.fromkeys(combinations(sorted(item.levels[0]), 2), 0.5)
    return found


def right(world: AssistantWorld, items: Sequence[Example], made: Sequence[Example]) -> tuple[np.ndarray, list[int]]:
    """For every two answers of every item 1 where the label is gold's, 0 where it is not, 0.5 where there is none (a
    tie of votes: a coin would be right half of the time), and which item it is of."""
    labels = {row.prompt: orders(row.feedback) for row in made}
    found, where = [], []
    for number, item in enumerate(items):
        gold = lab.gold_of(world, item)
        own = labels.get(item.prompt, {})
        for two in combinations(range(len(gold)), 2):
            first = own.get(two, 0.5)
            found.append(first if gold[two[0]] > gold[two[1]] else 1 - first)
            where.append(number)
    return np.array(found), where


# ---- b. who is found


def found_by_aggregate(summary: AggregateSummary) -> dict[str, list[str]]:
    """Fault -> who is said to have it; "other": a taste that nobody has."""
    said = {name: each.warnings for name, each in summary.annotators.items()}
    listed = {fault: [name for name, own in said.items() if words in own] for fault, words in SAID.items()}
    listed["other"] = [name for name, own in said.items() if set(own) & set(NOBODY)]
    return listed


def rates(found: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, tuple[int, int, int, int, int]]:
    """By what is said, over seeds: how many have the fault, how many of them it is said of, of how many it is said at
    all, how many of these have another fault, and how many have none."""
    faulty = {labeller.name: labeller.fault for labeller in CROWD if labeller.fault}
    rows = {}
    for fault in (*FAULTS, "other", "anything"):
        named = [
            name
            for seed in found
            for name in (set().union(*map(set, seed.values())) if fault == "anything" else set(seed.get(fault, ())))
        ]
        having = [name for name in faulty if fault in (faulty[name], "anything")]
        hits = sum(name in having for name in named)
        sound = sum(name not in faulty for name in named)
        rows[fault] = (len(having) * len(found), hits, len(named), len(named) - hits - sound, sound)
    return rows


# ---- c. reward models


def rewarded(root: Path, world: AssistantWorld, seed: int, size: Size) -> dict[str, float]:
    """Held-out accuracy of a reward model on each kind of labels, the mean over `ORDERS`."""
    least = min(VOTES)
    asked, held = lab.read_examples(root / "pairs-items.jsonl"), lab.read_examples(root / "held.jsonl")
    raw = root / "pairs-raw.jsonl"
    alone = [replace(row, feedback=(pair,)) for row in votes(root, "pairs", least) for pair in row.feedback]
    lab.write_examples(raw, alone)
    lab.write_examples(root / "pairs-gold.jsonl", [lab.with_gold(world, example) for example in asked])
    made = {method: root / f"pairs-{method}-{least}.jsonl" for method in REWARDED}
    arms = {"raw votes, a row each": (raw, False)}
    arms |= {method: (file, False) for method, file in made.items()}
    arms["dawid-skene, soft"] = (made["dawid-skene"], True)
    arms["gold"] = (root / "pairs-gold.jsonl", False)
    examples = [Drawn(example, tuple(lab.gold_of(world, example))) for example in held]
    found: dict[str, float] = {}
    base = lab.start(root, seed, size.scale)
    for name, (file, soft) in arms.items():
        accuracy = []
        for order in ORDERS:
            run = root / f"reward-{name.replace(', ', '-').replace(' ', '-')}-{order}"
            given = common(base, file, run, 1e-3, 10 * seed + order, batch_size=16, epochs=1000, max_steps=size.steps)
            once(run / "summary.json", lambda: _quietly(RewardConfig(**given, reward=RewardSection(votes=soft))))  # noqa: B023
            accuracy.append(measures(run, examples)["accuracy"])
        found[name] = float(np.mean(accuracy))
    return found


def _quietly(config: RewardConfig) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        train_reward(config)


# ---- the study


def one_seed(root: Path, seed: int, size: Size) -> dict[str, Any]:
    """All numbers of a seed."""
    world = drawn(root, seed, size)
    once(root / "labelled.json", lambda: label(root, world, seed))
    numbers: dict[str, Any] = {"labels": json.loads((root / "labelled.json").read_text())}
    for kind, methods in METHODS.items():
        asked = lab.read_examples(root / f"{kind}-items.jsonl")
        for count in VOTES:
            for method in methods:
                made, summary = aggregated(root, kind, method, count)
                marks, where = right(world, asked, made)
                key = f"{kind}, {count} votes, {method}"
                numbers[key] = {"right": marks.tolist(), "item": where, "found": found_by_aggregate(summary)}
    numbers["lead"] = json.loads((root / "lead.json").read_text())
    numbers["reward"] = rewarded(root, world, seed, size)
    return numbers


def study(out: Path, seeds: Sequence[int], size: Size) -> None:
    """Every seed, and the tables."""
    numbers = []
    for seed in seeds:
        path = out / f"seed-{seed}.json"
        once(path, lambda: write_text(path, json.dumps(one_seed(out / str(seed), seed, size))))  # noqa: B023
        numbers.append(json.loads(path.read_text()))
    print("\n".join(tables(numbers)))


def tables(numbers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown."""
    lines = ["| | votes | method | right [95 %] | less majority [95 %] | by seed |", "|---|---|---|---|---|---|"]
    for kind, methods in METHODS.items():
        for count in VOTES:
            base, _ = _pooled(numbers, f"{kind}, {count} votes, majority")
            for method in methods:
                own, clusters = _pooled(numbers, f"{kind}, {count} votes, {method}")
                mean = mean_interval(own, clusters)
                gap = "" if method == "majority" else _gap(paired_difference(own, base, clusters))
                each = [100 * np.mean(seed[f"{kind}, {count} votes, {method}"]["right"]) for seed in numbers]
                share = f"{mean.mean:.1%} [{mean.low:.1%}, {mean.high:.1%}]"
                lines.append(
                    f"| {kind} | {count} | {method} | {share} | {gap} | {', '.join(f'{x:.1f}' for x in each)} |"
                )
    lines += ["", "| who says so | fault | found | named | with another fault | without any | precision |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for count in VOTES:
        said = [seed[f"pairs, {count} votes, dawid-skene"]["found"] for seed in numbers]
        lines += _found(f"assent aggregate, {count} votes", rates(said))
    lines += _found("the lead's page", rates([seed["lead"] for seed in numbers]))
    lines += ["", "| reward model on | held-out accuracy | less raw votes | less majority |", "|---|---|---|---|"]
    for name in numbers[0]["reward"]:
        own = np.array([seed["reward"][name] for seed in numbers])
        gaps = [own - [seed["reward"][other] for seed in numbers] for other in ("raw votes, a row each", "majority")]
        cells = ["{:+.3f} ± {:.3f}".format(*over_seeds(gap)) if gap.any() else "" for gap in gaps]
        lines.append(f"| {name} | {'{:.3f} ± {:.3f}'.format(*over_seeds(own))} | {' | '.join(cells)} |")
    lines += ["", f"labels given through the API, by seed: {[seed['labels'] for seed in numbers]}"]
    return lines


def _pooled(numbers: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Of all seeds, with the item of each."""
    own = np.concatenate([seed[key]["right"] for seed in numbers])
    return own, [(number, item) for number, seed in enumerate(numbers) for item in seed[key]["item"]]


def _gap(found: PairedDifference) -> str:
    gap = found.difference
    return f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _found(who: str, found: Mapping[str, tuple[int, int, int, int, int]]) -> list[str]:
    lines = []
    for fault, (there, hits, named, otherwise, sound) in found.items():
        precise = f"{(named - sound) / named:.2f}" if named else ""
        lines.append(f"| {who} | {fault} | {hits} of {there} | {named} | {otherwise} | {sound} | {precise} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="a minute: whether it runs, not what it finds")
    given = parser.parse_args()
    quiet_transformers()
    given.out.mkdir(parents=True, exist_ok=True)
    study(given.out, given.seeds, QUICK if given.quick else Size())


if __name__ == "__main__":
    main()
