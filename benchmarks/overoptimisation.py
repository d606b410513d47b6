"""Whether gold rises and then falls while the proxy rises, and whether a tight KL prevents it, in the assistant world,
whose gold reward is known; as `assent eval --checkpoints` shows it:

    python -m benchmarks.overoptimisation --out FOLDER [--seeds 0 1 2] [--figure docs/overoptimisation.svg]

For each seed a policy (SFT), a reward model from the labels of the lab's annotators, and two PPO runs that differ in
the weight of KL alone. Then every checkpoint of both, and the best of 16 answers of the start, by `assent eval`. What
is there already in FOLDER is kept. Numbers and figure stand in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assent import distributed
from assent.algorithms.online.train import train_online
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.sft import train_sft
from assent.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RewardsConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
)
from assent.evaluate.evaluation import evaluate
from assent.evaluate.frontier import coefficients, law_sentences, track_sentences
from assent.evaluate.laws import LawFit
from assent.evaluate.plots import GOLD_COLOR, PROXY_COLOR
from assent.evaluate.results import EVALUATION, PolicyTable
from assent.lab.artifacts import WorldPaths, build_world
from assent.measures.overoptimisation import Fit, fit
from assent.measures.verdicts import plain
from assent.models.loading import quiet_transformers
from benchmarks.reward_ensembles import once, write_base

SAMPLING = SamplingConfig(max_new_tokens=48, max_batch=256)
KL = {"loose": 0.01, "tight": 0.5}
"""Weight of KL."""
STEPS, EVERY, BATCH, LR = 140, 14, 32, 4e-4
ANSWERS = 2
BEST_OF = 16
SCORER = '''"""The gold reward of an answer."""

from pathlib import Path

from assent.lab.world import load_world

WORLD = load_world(Path(__file__).with_name("world") / "world.json")


def score(prompt, answer):
    return WORLD.gold(prompt, answer).reward
'''


def common(model: Path, data: Path, out: Path, lr: float, seed: int, **train: Any) -> dict[str, Any]:
    """Options of every run."""
    return {
        "model": ModelConfig(str(model), precision="fp32"),
        "data": DataConfig(str(data), max_length=192),
        "out": str(out),
        "optim": OptimConfig(lr=lr, schedule="constant"),
        "train": TrainConfig(seed=seed, threads=1, log_every=10, **train),
    }


def trained(root: Path, seed: int) -> WorldPaths:
    """World, `start`, `proxy` and the two runs in a folder, made where they are not there yet."""
    world = WorldPaths(root / "world")
    once(world.world, lambda: build_world(world.root, seed=seed, scale=0.4))
    base = once(root / "base", lambda: write_base(world, root / "base", seed))
    sft = SFTConfig(**common(base, world.sft, root / "start", 4e-3, seed, batch_size=32, epochs=5))
    once(root / "start" / "summary.json", partial(train_sft, sft))
    trained_on = common(root / "start", world.preferences, root / "proxy", 1e-3, seed, batch_size=32, epochs=2)
    reward = RewardConfig(**trained_on)
    once(root / "proxy" / "summary.json", partial(train_reward, reward))
    for name, coef in KL.items():
        kept = {"save_every": EVERY, "keep": STEPS // EVERY, "max_steps": STEPS, "batch_size": BATCH}
        given: dict[str, Any] = common(root / "start", world.prompts, root / name, LR, seed, **kept)
        config = online_config(
            "ppo",
            **given,
            kl={"coef": coef},
            critic={"start": "policy"},
            shaping={"missing_eos_penalty": 1.0},
            rewards=RewardsConfig((str(root / "proxy"),)),
            sampling=SAMPLING,
        )
        once(root / name / "summary.json", partial(train_online, config))
    return world


def evaluated(root: Path, seed: int) -> tuple[PolicyTable, PolicyTable]:
    """The runs with their checkpoints, and best-of-n of the start."""
    world = trained(root, seed)
    (root / "gold.py").write_text(SCORER)

    def asked(out: str, policies: Sequence[str], **options: Any) -> PolicyTable:
        config = EvalConfig(
            tuple(f"{name}={root / name}" for name in policies),
            str(world.prompts_eval),
            str(root / out),
            reference=str(root / "start"),
            rewards=(f"proxy={root / 'proxy'}",),
            scorer=f"{root / 'gold.py'}:score",
            resume=(root / out / "cache").exists(),
            seed=seed,
            measures=("reward", "kl"),
            sampling=SAMPLING,
            precision="fp32",
            **options,
        )
        return PolicyTable.load(once(root / out / EVALUATION, partial(evaluate, config)))

    runs = asked("eval-runs", ("start", *KL), checkpoints=True, answers=ANSWERS)
    return runs, asked("eval-best-of", ("start",), answers=BEST_OF)


def over_seeds(laws: Sequence[LawFit]) -> tuple[np.ndarray, np.ndarray, Fit]:
    """Distances and gains of all seeds' points, and the law through all of them."""
    distance = np.array([point.distance for law in laws for point in law.points])
    gain = np.array([np.nan if p.gain.value is None else p.gain.value for law in laws for p in law.points])
    return distance, gain, fit(laws[0].method, distance, gain)


def panel(axes: Axes, laws: Mapping[str, Sequence[LawFit]], title: str) -> None:
    """Gains of gold (left axis) and proxy (right axis) of every seed, no gain at the same height on both."""
    largest = {source: float(np.nanmax(np.abs(over_seeds(own)[1]))) or 1.0 for source, own in laws.items()}
    down = max(0.35, *(-1.1 * float(np.nanmin(over_seeds(own)[1])) / largest[name] for name, own in laws.items()))
    for source, color in (("gold", GOLD_COLOR), ("proxy", PROXY_COLOR)):
        distance, gain, law = over_seeds(laws[source])
        side = axes if source == "gold" else axes.twinx()
        for number, each in enumerate(laws[source]):
            marker = ("o", "s", "^", "D", "v")[number % 5]
            x, y = [p.distance for p in each.points], [p.gain.value for p in each.points]
            side.plot(x, y, marker, color=color, markersize=3.5, alpha=0.7)
        if law.alpha.value is not None:
            grid = np.linspace(0, np.nanmax(distance), 100)
            style = "-" if source == "gold" else (0, (5, 2))
            side.plot(grid, law(grid), color=color, linewidth=1.8, linestyle=style)
        peak = law.peak
        if source == "gold" and peak.value is not None and peak.low is not None and peak.value < law.furthest:
            side.axvline(peak.value, color=color, linewidth=1, linestyle=(0, (1, 2)))
            if peak.low is not None and peak.high is not None:
                side.axvspan(peak.low, min(peak.high, law.furthest), color=color, alpha=0.12, linewidth=0)
        side.set_ylabel(f"gain in {source}", color=color)
        side.tick_params(axis="y", labelcolor=color)
        side.spines[["top"]].set_visible(False)
        side.set_ylim(-down * largest[source], 1.1 * largest[source])
    axes.axhline(0, color="#111213", linewidth=0.7, linestyle=(0, (1, 3)))
    axes.set_title(title, fontsize=9, loc="left")


def figure(runs: Sequence[PolicyTable], best: Sequence[PolicyTable], out: Path) -> None:
    """An SVG of its own: the loose runs, the tight ones, and best-of-n on an axis that is marked as another."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assent", "font.size": 8}):
        drawing = Figure(figsize=(9.6, 2.9), layout="constrained")
        panels = drawing.subplots(1, 3)
        for axes, name in zip(panels, KL, strict=False):
            panel(
                axes, {source: found(runs, name, source) for source in ("gold", "proxy")}, f"PPO, KL weight {KL[name]}"
            )
            axes.set_xlabel("√KL from the start, RL (√nats)")
        panel(
            panels[2], {source: found(best, "start", source) for source in ("gold", "proxy")}, "best of n by the proxy"
        )
        points = found(best, "start", "gold")[0].points
        shown = [p for p in points if int(re.sub(r"\D", "", p.name)).bit_count() == 1]
        panels[2].set_xticks([0, *(p.distance for p in shown)], ["1", *(p.name.rpartition(" ")[2] for p in shown)])
        panels[2].set_xlabel("n, by the root of the bound on its KL")
        drawing.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def found(tables: Sequence[PolicyTable], name: str, source: str) -> list[LawFit]:
    """One law of each seed: of a run, or of best-of-n of the start."""
    method = "rl" if name in KL else "best-of-n"
    wanted = (method, name, source)
    return [law for table in tables for law in table.laws if (law.method, law.name, law.source) == wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", type=Path, help="SVG to write")
    given = parser.parse_args()
    quiet_transformers()
    distributed.init()
    os.makedirs(given.out, exist_ok=True)
    pairs = [evaluated(given.out / str(seed), seed) for seed in given.seeds]
    runs, best = [one for one, _ in pairs], [other for _, other in pairs]
    for seed, table, other in zip(given.seeds, runs, best, strict=True):
        for line in (*law_sentences(table), *track_sentences(table), *law_sentences(other)):
            print(f"seed {seed}: {line}")
    for tables, name in ((runs, "loose"), (runs, "tight"), (best, "start")):
        *_, law = over_seeds(found(tables, name, "gold"))
        print(f"{name}, gold, all seeds: {coefficients(law)}; peak at √KL {plain(law.peak)} {law.peak.problem}")
    if given.figure is not None:
        figure(runs, best, given.figure)


if __name__ == "__main__":
    main()
