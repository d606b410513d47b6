"""HelpSteer2's recipe end to end in the assistant world, and few careful labels beside ten times as many careless ones
for the same money:

    python -m benchmarks.people_helpsteer --out FOLDER [--figure docs/labelling.svg] [--seeds 0 1 2] [--quick]

For each seed a real `assent label` server with three projects of kind attributes, whose prompts are drawn uniformly
over topics, two answers each:

- careful: five careful annotators; three rate each item, up to five where they differ by more than 2 in helpfulness, by
  the queue's own rule; `assent aggregate --ratings helpsteer2` keeps the three closest and drops what still spreads;
- careless: five who rate at random half of the time; one rates each item;
- skimming: five who see most answers and are swayed by length; one rates each item.

A careful label takes three times as long as the others', and an item gets about three and a half of them: for what N
items cost with the careful, 10 N are rated by the others. From what each gives an attribute reward model with as many
steps, and its accuracy against gold on held-out pairs. Beside the careful ones' rule stands the plain mean of all their
ratings. What is there already in FOLDER is kept. The numbers and the figure stand in docs/annotators.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from assent.algorithms.reward.attributes import train_attributes
from assent.config import AggregateConfig, AttributesConfig
from assent.data.records import Example, Rating
from assent.evaluate import plots
from assent.lab.annotators import Annotator
from assent.lab.labellers import Labeller, work
from assent.lab.world import AssistantWorld
from assent.models.loading import quiet_transformers
from assent.outputs import write_text
from assent.people.aggregate import aggregate
from benchmarks import people_lab as lab
from benchmarks.reward_ensembles import common, once
from benchmarks.reward_lab import Drawn, measures, over_seeds

SEEDS = (0, 1, 2)
TIMES = 10
"""Items that the careless and the skimming rate for what one costs with the careful."""
COST = 3.0
"""What a careful label costs, in others'."""
PANELS = {
    "careful": [Labeller(Annotator(f"careful-{n}", temperature=0.7 + 0.05 * n, careless=0.05)) for n in range(5)],
    "careless": [Labeller(Annotator(f"careless-{n}", temperature=1.0, careless=0.5), pace=9.0) for n in range(5)],
    "skimming": [
        Labeller(Annotator(f"skimming-{n}", temperature=0.8, careless=0.2, length_bias=0.15), pace=9.0)
        for n in range(5)
    ],
}
ARMS = {
    "careful, HelpSteer2's rule": "careful",
    "careful, mean": "careful",
    "careless, ten times the items": "careless",
    "skimming, ten times the items": "skimming",
}
"""What a reward model learns from -> who rated it."""


@dataclass(frozen=True)
class Size:
    """How much of everything; `budgets` are items of the careful."""

    budgets: tuple[int, ...] = (24, 48, 96)
    held: int = 1500
    gap: float = 0.4
    steps: int = 150
    scale: float = 1.0
    """Of the demonstrations that the reward models' start has learnt from."""


QUICK = Size((6, 12), 40, 0.4, 3, 0.02)


# ---- labelling


def topic(world: AssistantWorld, example: Example) -> str:
    """What a prompt is about: the relation that it asks for, or harm."""
    fact = world.lookup(example.prompt).fact
    return "harm" if fact is None else fact.relation


def over_topics(world: AssistantWorld, examples: Sequence[Example], count: int) -> list[Example]:
    """So many of them, drawn in turns from each topic as long as it has any."""
    by_topic: dict[str, list[Example]] = {}
    for example in examples:
        by_topic.setdefault(topic(world, example), []).append(example)
    found: list[Example] = []
    while len(found) < count:
        found += [replace(own.pop(), meta={"topic": name}) for name, own in by_topic.items() if own]
    return found[:count]


def drawn(root: Path, seed: int, size: Size) -> AssistantWorld:
    """The world, and what is to be rated, in files: everybody rates the same items, the careful the first ones."""
    world, rng = AssistantWorld(seed), np.random.default_rng([seed, 17])
    root.mkdir(parents=True, exist_ok=True)
    if (root / "skimming.yaml").exists():
        return world
    held = lab.items(world, size.held, 2, 0.8, rng, frozenset())
    lab.write_examples(root / "held.jsonl", [lab.with_gold(world, example) for example in held])
    leave = frozenset(example.prompt for example in held)
    most = TIMES * max(size.budgets)
    asked = over_topics(world, lab.items(world, 2 * most, 2, size.gap, rng, leave), most)
    for name in PANELS:
        lab.write_examples(root / f"{name}-items.jsonl", asked[: max(size.budgets)] if name == "careful" else asked)
        careful = {"overlap": 3, "extra": {"up_to": 5, "when_differ_by": 2, "attribute": "helpfulness"}}
        lab.write_task(
            root / f"{name}.yaml", name=name, kind="attributes", title="Rate the answers",
            items=str(root / f"{name}-items.jsonl"), **(careful if name == "careful" else {"overlap": 1}),
        )  # fmt: skip
    return world


def label(root: Path, world: AssistantWorld, seed: int) -> None:
    """Lets each panel rate its project through a real server, and exports what it said."""
    tasks = {name: root / f"{name}.yaml" for name in PANELS}
    db = root / "labels.db"
    db.unlink(missing_ok=True)
    counts = {}
    with lab.LabelServer(list(tasks.values()), db, root / "server.log") as server:
        for name, panel in PANELS.items():
            tokens = lab.hired(db, name, [labeller.name for labeller in panel])
            counts[name] = len(work(server.url, name, tokens, world, crowd=panel, seed=seed))
            lab.exported(tasks[name], db, root / f"{name}-votes.jsonl")
    (root / "labelled.json").write_text(json.dumps(counts))


# ---- one budget


def rows_of(root: Path, arm: str, budget: int) -> tuple[Path, dict[str, float]]:
    """The file that a reward model learns from, and what went into it."""
    who = ARMS[arm]
    order = [example.prompt for example in lab.read_examples(root / f"{who}-items.jsonl")]
    kept = set(order[: budget if who == "careful" else TIMES * budget])
    rated = [row for row in lab.read_examples(root / f"{who}-votes.jsonl") if row.prompt in kept]
    assert len(rated) == len(kept), "every item was rated"
    labels = sum(len({item.annotator for item in row.feedback}) for row in rated)
    stem = arm.split(",")[0] + ("-mean" if arm.endswith("mean") else "")
    file, out = root / f"{stem}-{budget}-votes.jsonl", root / f"{stem}-{budget}.jsonl"
    lab.write_examples(file, rated)
    rule = "helpsteer2" if "rule" in arm else "mean"
    out.unlink(missing_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        summary = aggregate(AggregateConfig(str(file), str(out), ratings=rule))  # type: ignore[arg-type]
    written = summary.written.get("rating", 0)
    return out, {
        "items": len(rated),
        "labels": labels,
        "cost": labels * (COST if who == "careful" else 1.0),
        "ratings": written,
        "dropped": sum(summary.dropped.values()),
    }


def _right(world: AssistantWorld, file: Path) -> float:
    """How far ratings are from gold: the root of the mean square over all attributes."""
    away = [
        (item.scores[name] - value) ** 2
        for row in lab.read_examples(file)
        for item in row.feedback
        if isinstance(item, Rating)
        for name, value in world.gold(row.prompt, row.responses[item.response].text).attributes().items()
    ]
    return float(np.sqrt(np.mean(away)))


def one_seed(root: Path, seed: int, size: Size) -> dict[str, dict[str, float]]:
    """Numbers of each arm and budget."""
    world = drawn(root, seed, size)
    once(root / "labelled.json", lambda: label(root, world, seed))
    held = lab.read_examples(root / "held.jsonl")
    examples = [Drawn(example, tuple(lab.gold_of(world, example))) for example in held]
    base = lab.start(root, seed, size.scale)
    found = {}
    for budget in size.budgets:
        for arm in ARMS:
            file, about = rows_of(root, arm, budget)
            run = root / f"reward-{file.stem}"
            given = common(base, file, run, 1e-3, seed, batch_size=16, epochs=1000, max_steps=size.steps)
            once(run / "summary.json", lambda: _quietly(given))  # noqa: B023
            found[f"{arm}, {budget}"] = {**measures(run, examples), "away from gold": _right(world, file), **about}
    return found


def _quietly(given: Mapping[str, Any]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        train_attributes(AttributesConfig(**given))


# ---- the study


def study(out: Path, seeds: Sequence[int], size: Size, picture: Path | None) -> None:
    """Every seed, the table, and the figure."""
    numbers = []
    for seed in seeds:
        path = out / f"seed-{seed}.json"
        once(path, lambda: write_text(path, json.dumps(one_seed(out / str(seed), seed, size))))  # noqa: B023
        numbers.append(json.loads(path.read_text()))
    print("\n".join(table(numbers, size.budgets)))
    if picture is not None:
        figure(numbers, size.budgets, picture)


def table(numbers: Sequence[Mapping[str, Mapping[str, float]]], budgets: Sequence[int]) -> list[str]:
    """Markdown."""
    lines = [
        "| cost | learnt from | items | labels | ratings dropped | ratings away from gold | accuracy | less the rule |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for budget in budgets:
        rule = [seed[f"{next(iter(ARMS))}, {budget}"]["accuracy"] for seed in numbers]
        for arm in ARMS:
            own = [seed[f"{arm}, {budget}"] for seed in numbers]
            mean = {key: float(np.mean([seed[key] for seed in own])) for key in own[0]}
            accuracy = np.array([seed["accuracy"] for seed in own])
            gap = "" if arm == next(iter(ARMS)) else "{:+.3f} ± {:.3f}".format(*over_seeds(accuracy - rule))
            lines.append(
                f"| {mean['cost']:,.0f} | {arm} | {mean['items']:,.0f} | {mean['labels']:,.0f} | {mean['dropped']:.0f} "
                f"| {mean['away from gold']:.2f} | {'{:.3f} ± {:.3f}'.format(*over_seeds(accuracy))} | {gap} |"
            )
    return lines


def figure(numbers: Sequence[Mapping[str, Mapping[str, float]]], budgets: Sequence[int], out: Path) -> None:
    """An SVG of its own: accuracy by cost, the mean over seeds, and thin and pale each seed."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assent", "font.size": 8}):
        drawing = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = drawing.subplots()
        for arm, color in zip(ARMS, plots.COLORS, strict=False):
            points = [[seed[f"{arm}, {budget}"] for budget in budgets] for seed in numbers]
            cost = [[one["cost"] for one in seed] for seed in points]
            right = [[one["accuracy"] for one in seed] for seed in points]
            for x, y in zip(cost, right, strict=True):
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.35)
            axes.plot(np.mean(cost, 0), np.mean(right, 0), color=color, linewidth=1.8, marker="o", ms=3, label=arm)
        axes.set_xscale("log")
        axes.set_xlabel("cost of the labels (a careless one costs 1, a careful one 3)")
        axes.set_ylabel("held-out pairs in gold's order")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
        drawing.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--figure", type=Path, help="SVG to write")
    parser.add_argument("--quick", action="store_true", help="minutes: whether it runs, not what it finds")
    given = parser.parse_args()
    quiet_transformers()
    given.out.mkdir(parents=True, exist_ok=True)
    study(given.out, given.seeds, QUICK if given.quick else Size(), given.figure)


if __name__ == "__main__":
    main()
