"""What WARP (arXiv 2406.16768) gains over single runs at the same number of sampled answers, and what each of its parts
does: the average that the KL is measured from, the merge on the sphere, the rounds.

    python -m benchmarks.loops_warp enumerable --out FOLDER --seeds 0 1 2 3 4 5 6 7 [--figure docs/warp.svg]
    python -m benchmarks.loops_warp assistant --out FOLDER [--figure docs/warp-assistant.svg]
    python -m benchmarks.loops_warp enumerable --out FOLDER --quick

`enumerable`: a world of so few answers that KL and reward of a model, and the best reward at any KL, are exact.
`assistant`: the gold reward of answers to held-out prompts, of runs that learn from a reward model. In both, every arm
samples as many answers: a single run takes as many steps as all runs of all rounds of WARP together, at each weight of
the KL. What an arm can reach is its front: its models (of a single run also its checkpoints, and the models between the
start and its end, as WARP's are) of which no other has more reward at less KL. What is there already in FOLDER is kept.
The numbers and figures stand in docs/warp.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

from assent import distributed
from assent.algorithms.merge import merge
from assent.algorithms.online.train import train_online
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.sft import train_sft
from assent.config import (
    EvalConfig,
    MergeConfig,
    ModelConfig,
    RewardConfig,
    SamplingConfig,
    SFTConfig,
    WarpConfig,
)
from assent.config.composed import composed
from assent.evaluate.evaluation import evaluate
from assent.evaluate.plots import COLORS
from assent.evaluate.results import EVALUATION, PolicyTable
from assent.lab.artifacts import WorldPaths, build_world
from assent.lab.enumerable import EnumerableWorld, build_enumerable, make_enumerable, optimum
from assent.loops.warp import warp
from assent.models.loading import load_policy, quiet_transformers
from benchmarks.overoptimisation import SCORER, common
from benchmarks.reward_ensembles import once, write_base

ETAS = (0.25, 0.5, 0.75, 1.0)
TABLE_REWARD = '''"""The reward of an answer, from a table of all."""

import json
from pathlib import Path

TABLE = json.loads(Path(__file__).with_name("table.json").read_text())


def table(prompts, completions):
    asked = [prompt[-1]["content"] for prompt in prompts]
    return [TABLE[text][said[0]["content"]] for text, said in zip(asked, completions)]
'''


@dataclass(frozen=True)
class Plan:
    """The budget: `rounds` of `runs` of `steps`; single runs take as many steps as these together. `betas` are the
    weights of the KL of single runs, `beta` those of WARP's, which moves with its anchor by `rate` a step."""

    rounds: int
    runs: int
    steps: int
    betas: tuple[float, ...]
    ema_betas: tuple[float, ...]
    beta: float
    rate: float
    lr: float
    batch: int
    answers: int

    @property
    def total(self) -> int:
        return self.rounds * self.runs * self.steps


PLANS = {
    "enumerable": Plan(3, 2, 40, (0.5, 1.0, 2.0, 4.0), (1.0, 2.0), 1.0, 0.05, 3e-3, 6, 8),
    "assistant": Plan(3, 2, 30, (0.02, 0.05, 0.1, 0.3), (0.05, 0.1), 0.1, 0.05, 4e-4, 16, 4),
}


@dataclass(frozen=True)
class Point:
    """A model: its KL from the start in nats an answer, and its reward."""

    kl: float
    reward: float


Measure = Callable[[Mapping[str, Path]], dict[str, Point]]


@dataclass(frozen=True)
class World:
    """Where a seed's runs learn: their start, what every run is given, and how models are measured. `best`: the most
    reward at a KL, where that is known."""

    start: Path
    sections: dict[str, Any]
    options: dict[str, str]
    sampling: SamplingConfig
    measure: Measure
    best: Callable[[np.ndarray], np.ndarray] | None = None


# ---- the worlds


def enumerable(root: Path, seed: int) -> World:
    kind: dict[str, Any] = {"seed": seed, "num_prompts": 12, "letters": "abcdef"}
    once(root / "world", lambda: build_enumerable(root / "world", **kind))
    made = make_enumerable(**kind)
    world = replace(made, root=root / "world", rewards=4.0 * made.rewards)
    rows = {
        world.text(prompt): {world.text(y): float(r) for y, r in zip(world.responses, rewards, strict=True)}
        for prompt, rewards in zip(world.prompts, world.rewards, strict=True)
    }
    (root / "table.json").write_text(json.dumps(rows))
    (root / "rewards.py").write_text(TABLE_REWARD)
    exact = Exact(world)
    sections = {
        "data": {"train": str(world.prompts_file), "max_length": 16},
        "rewards": {"functions": (f"{root / 'rewards.py'}:table",)},
    }
    sampling = SamplingConfig(max_new_tokens=world.max_new_tokens, max_batch=512)
    return World(world.model, sections, {}, sampling, exact.measure, exact.best)


@dataclass(frozen=True)
class Exact:
    """KL and reward by the whole list of answers."""

    world: EnumerableWorld

    @cached_property
    def start(self) -> torch.Tensor:
        return self._logprobs(self.world.model)

    def _logprobs(self, model: Path) -> torch.Tensor:
        policy = load_policy(ModelConfig(str(model), precision="fp32"), max_length=16, trainable=False)
        return self.world.logprobs(lambda batch: policy(batch).logprobs)

    def _point(self, logp: torch.Tensor) -> Point:
        kl = (logp.exp() * (logp - self.start)).sum(dim=1).mean()
        return Point(float(kl), float((logp.exp() * self.world.rewards).sum(dim=1).mean()))

    def measure(self, models: Mapping[str, Path]) -> dict[str, Point]:
        return {name: self._point(self._logprobs(model)) for name, model in models.items()}

    def best(self, kl: np.ndarray) -> np.ndarray:
        """The reward of the optimum pi_ref exp(r / beta) / Z at the beta that has this KL."""
        points = [self._point(optimum(self.start, self.world.rewards, beta)) for beta in np.geomspace(0.05, 100, 200)]
        return np.interp(kl, [p.kl for p in points[::-1]], [p.reward for p in points[::-1]])


LONGEST = SamplingConfig(max_new_tokens=48, max_batch=256)


def assistant(root: Path, seed: int) -> World:
    world = WorldPaths(root / "world")
    once(world.world, lambda: build_world(world.root, seed=seed, scale=0.4))
    base = once(root / "base", lambda: write_base(world, root / "base", seed))
    sft = SFTConfig(**common(base, world.sft, root / "start", 4e-3, seed, batch_size=32, epochs=5))
    once(root / "start" / "summary.json", partial(train_sft, sft))
    learned = common(root / "start", world.preferences, root / "proxy", 1e-3, seed, batch_size=32, epochs=2)
    once(root / "proxy" / "summary.json", partial(train_reward, RewardConfig(**learned)))
    (root / "gold.py").write_text(SCORER)
    sections = {
        "data": {"train": str(world.prompts), "max_length": 192},
        "rewards": {"model": (str(root / "proxy"),)},
    }
    start = root / "start" / "model"
    return World(start, sections, {"shaping.missing_eos_penalty": "1.0"}, LONGEST, partial(by_gold, root, world, seed))


def by_gold(root: Path, world: WorldPaths, seed: int, models: Mapping[str, Path]) -> dict[str, Point]:
    """Gold reward and KL of answers to the held-out prompts."""
    out = root / "evaluation"
    config = EvalConfig(
        tuple(f"{name}={model}" for name, model in models.items()),
        str(world.prompts_eval),
        str(out),
        reference=str(root / "start"),
        scorer=f"{root / 'gold.py'}:score",
        resume=(out / "cache").exists(),
        seed=seed,
        measures=("reward", "kl"),
        answers=2,
        sampling=LONGEST,
        precision="fp32",
    )
    table = PolicyTable.load(once(out / EVALUATION, partial(evaluate, config)))
    return {one.name: Point(one.kl.mean, one.scores["gold"].mean) for one in table.policies}


WORLDS = {"enumerable": enumerable, "assistant": assistant}


# ---- the arms


def single(root: Path, name: str, world: World, plan: Plan, seed: int, kl: Mapping[str, str]) -> dict[str, Path]:
    """A run of the whole budget, saved six times on the way, and the models between the start and its end."""
    out = root / "runs" / name
    shared: dict[str, Any] = {
        "model": {"path": str(world.start), "precision": "fp32"},
        "out": str(out),
        "optim": {"lr": plan.lr, "schedule": "constant"},
        "train": {
            "seed": seed, "threads": 1, "log_every": 20, "batch_size": plan.batch, "max_steps": plan.total,
            "save_every": max(1, plan.total // 6), "keep": 6,
        },
        "sampling": vars(world.sampling),
        **world.sections,
    }  # fmt: skip
    config = composed("rloo", shared, {"rollout.responses": str(plan.answers), **world.options, **kl})
    once(out / "summary.json", lambda: train_online(config))
    checkpoints = sorted((out / "checkpoints").glob("step-*"))[:-1]
    models = {f"{name}@{number}": path for number, path in enumerate(checkpoints, 1)}
    return models | between(root, name, world.start, out / "model")


def looped(root: Path, name: str, world: World, plan: Plan, seed: int, **options: Any) -> dict[str, Path]:
    """WARP, and after each round the models between the first start and what was merged."""
    out = root / "runs" / name
    kl = {"kl.coef": str(plan.beta), "kl.anchor": "ema", "kl.anchor_rate": str(plan.rate)} | options.pop("kl", {})
    config = WarpConfig(
        model={"path": str(world.start), "precision": "fp32"},
        out=str(out),
        policy="rloo",
        rounds=plan.rounds,
        runs=plan.runs,
        steps=(plan.steps,),
        front=(),
        optim={"lr": plan.lr, "schedule": "constant"},
        train={"seed": seed, "threads": 1, "log_every": 20, "batch_size": plan.batch},
        sampling=world.sampling,
        options={"rollout.responses": str(plan.answers), **world.options, **kl},
        resume="auto",
        **world.sections,
        **options,
    )
    last = out / f"round-{plan.rounds}" / "merged"
    once(last, lambda: warp(config))
    models: dict[str, Path] = {}
    for number in range(1, plan.rounds + 1):
        models |= between(root, f"{name}.{number}", world.start, out / f"round-{number}" / "merged")
    return models


def between(root: Path, name: str, start: Path, end: Path) -> dict[str, Path]:
    """(1 - eta) start + eta end."""
    found = {}
    for eta in ETAS:
        place = root / "fronts" / f"{name}-{eta:g}"
        once(
            place, lambda eta=eta, place=place: merge(MergeConfig((str(end),), "liti", str(place), str(start), eta=eta))
        )
        found[f"{name}-{eta:g}"] = place
    return found


def arms(root: Path, world: World, plan: Plan, seed: int) -> dict[str, dict[str, Path]]:
    """Arm -> its models."""
    rate = str(plan.rate)
    made = {}
    for beta in plan.betas:
        kl = {"kl.coef": str(beta)}
        made[f"fixed-{beta:g}"] = single(root, f"fixed-{beta:g}", world, plan, seed, kl)
    for beta in plan.ema_betas:
        kl = {"kl.coef": str(beta), "kl.anchor": "ema", "kl.anchor_rate": rate}
        made[f"ema-{beta:g}"] = single(root, f"ema-{beta:g}", world, plan, seed, kl)
    loops = {
        "warp": looped(root, "warp", world, plan, seed),
        "warp-lerp": looped(root, "warp-lerp", world, plan, seed, merge="linear"),
        "warp-fixed": looped(
            root, "warp-fixed", world, plan, seed, kl={"kl.anchor": "fixed", "kl.anchor_rate": "0.01"}
        ),
    }
    return made | loops


GROUPS = {
    "single runs, fixed anchor": "fixed",
    "single runs, moving anchor": "ema",
    "WARP": "warp",
    "WARP, LERP": "warp-lerp",
    "WARP, fixed anchor": "warp-fixed",
}
"""What is compared: the models of an arm, or of all single runs of a kind. Each single run has the whole budget, so a
front of several of them has as many times that of WARP; in the table each also stands by itself."""


def measured(root: Path, name: str, plan: Plan, seed: int) -> tuple[World, dict[str, dict[str, Point]]]:
    """Arm -> the points of its models, for a seed."""
    root.mkdir(parents=True, exist_ok=True)
    world = WORLDS[name](root, seed)
    models = arms(root, world, plan, seed)
    flat = {"start": world.start} | {one: path for arm in models.values() for one, path in arm.items()}
    file = root / "points.json"
    if not file.exists():
        file.write_text(json.dumps({key: [p.kl, p.reward] for key, p in world.measure(flat).items()}))
    points = {key: Point(*values) for key, values in json.loads(file.read_text()).items()}
    return world, {arm: {one: points[one] for one in ("start", *own)} for arm, own in models.items()}


# ---- what they show


def front(points: Sequence[Point]) -> list[Point]:
    """Those of which no other has more reward at less KL, by rising KL."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.kl, -p.reward)):
        if not kept or point.reward > kept[-1].reward:
            kept.append(point)
    return kept


def reward_at(points: Sequence[Point], kl: np.ndarray) -> np.ndarray:
    """The reward of the front at these KLs, between its models in a straight line; NaN beyond them."""
    kept = front(points)
    return np.interp(kl, [p.kl for p in kept], [p.reward for p in kept], right=np.nan)


def group(found: Mapping[str, Mapping[str, Point]], name: str) -> list[Point]:
    kind = GROUPS.get(name, name)
    own = [arm for arm in found if arm == kind or (kind in ("fixed", "ema") and arm.startswith(f"{kind}-"))]
    return [point for arm in own for point in found[arm].values()]


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval over seeds, by Student's t."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return f"{values.mean():.3f}" if len(values) else "-"
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} ± {half:.3f}"


def table(seeds: Sequence[tuple[World, Mapping[str, Mapping[str, Point]]]], grid: np.ndarray) -> str:
    """Markdown: the reward of each front by KL, and what WARP has over it on the same seeds."""
    alone = [arm for arm in seeds[0][1] if not arm.startswith("warp")]
    names = {**{kind: kind for kind in GROUPS}, **{arm: f"one run of the whole budget, {arm}" for arm in alone}}
    at = {shown: np.array([reward_at(group(found, name), grid) for _, found in seeds]) for name, shown in names.items()}
    lines = ["| front | " + " | ".join(f"KL {kl:.2g}" for kl in grid) + " |", "|" + " --- |" * (len(grid) + 1)]
    if seeds[0][0].best is not None:
        best = np.array([world.best(grid) for world, _ in seeds if world.best is not None])
        lines.append("| the best there is | " + " | ".join(interval(best[:, k]) for k in range(len(grid))) + " |")
    for name, values in at.items():
        lines.append(f"| {name} | " + " | ".join(interval(values[:, k]) for k in range(len(grid))) + " |")
    for name, values in at.items():
        if name != "WARP":
            less = at["WARP"] - values
            lines.append(f"| WARP less {name} | " + " | ".join(interval(less[:, k]) for k in range(len(grid))) + " |")
    return "\n".join(lines)


def draw(seeds: Sequence[tuple[World, Mapping[str, Mapping[str, Point]]]], out: Path, what: str) -> None:
    """The fronts, means over seeds: anchors of single runs; LERP and SLERP; rounds of WARP beside single runs."""
    most = min(max(p.kl for p in group(found, "WARP")) for _, found in seeds)
    grid = np.linspace(0, 1.5 * most, 61)
    panels: dict[str, Mapping[str, Callable[[Mapping[str, Mapping[str, Point]]], list[Point]]]] = {
        "the anchor of the KL": {
            name: partial(group, name=name) for name in ("single runs, fixed anchor", "single runs, moving anchor")
        },
        "how runs are merged": {"SLERP": partial(group, name="WARP"), "LERP": partial(group, name="WARP, LERP")},
        "rounds": {
            **{
                f"WARP, round {number}": partial(after, number=number)
                for number in range(1, 1 + max(int(m.split(".")[1][0]) for m in seeds[0][1]["warp"] if "." in m[:6]))
            },
            "single runs": partial(group, name="single runs, fixed anchor"),
        },
    }
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assent", "font.size": 8}):
        drawing = Figure(figsize=(9.6, 3.0), layout="constrained")
        for axes, (title, lines) in zip(drawing.subplots(1, 3, sharey=True), panels.items(), strict=True):
            _panel(axes, seeds, lines, grid)
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlabel("KL from the start, nats per answer")
        drawing.axes[0].set_ylabel(what)
        drawing.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def after(found: Mapping[str, Mapping[str, Point]], number: int) -> list[Point]:
    """WARP's front when it ends with this round."""
    return [p for name, p in found["warp"].items() if name == "start" or name.startswith(f"warp.{number}-")]


def _panel(axes: Axes, seeds: Any, lines: Mapping[str, Callable[[Any], list[Point]]], grid: np.ndarray) -> None:
    if seeds[0][0].best is not None:
        best = np.mean([world.best(grid) for world, _ in seeds], axis=0)
        axes.plot(grid, best, color="#7B828C", linewidth=1, linestyle=(0, (4, 2)), label="the best there is")
    for (name, points), color in zip(lines.items(), COLORS, strict=False):
        values = np.array([reward_at(points(found), grid) for _, found in seeds])
        there = ~np.isnan(values).any(axis=0)
        mean = values[:, there].mean(axis=0)
        axes.plot(grid[there], mean, color=color, linewidth=1.5, label=name)
        if len(seeds) > 1:
            half = t.ppf(0.975, len(seeds) - 1) * values[:, there].std(axis=0, ddof=1) / len(seeds) ** 0.5
            axes.fill_between(grid[there], mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", type=Path, help="SVG to write")
    parser.add_argument("--quick", action="store_true", help="one seed and a tenth of the steps: a trial")
    given = parser.parse_args()
    quiet_transformers()
    distributed.init(1)
    plan = PLANS[given.world]
    if given.quick:
        plan = replace(
            plan, rounds=2, steps=max(2, plan.steps // 10), betas=plan.betas[1:3], ema_betas=plan.ema_betas[:1]
        )
    numbers = given.seeds[:1] if given.quick else given.seeds
    seeds = [measured(given.out / f"seed-{seed}", given.world, plan, seed) for seed in numbers]
    reach = min(max(p.kl for p in front(group(found, "WARP"))) for _, found in seeds)
    text = table(seeds, np.array([0.1, 0.25, 0.5, 0.75, 1.0]) * reach)
    (given.out / "table.md").write_text(text + "\n")
    print(text)
    if given.figure is not None:
        draw(seeds, given.figure, "reward" if given.world == "enumerable" else "gold reward")


if __name__ == "__main__":
    main()
