"""Rounds of sampling and learning in the assistant world, whose gold rubric nothing is trained by:

    python -m benchmarks.loops_iterate rounds --out FOLDER [--seeds 0 1 2] [--quick]
    python -m benchmarks.loops_iterate refresh --out FOLDER [--seeds 0 1 2] [--quick] [--figure docs/loops_iterate.svg]

For each seed in a world of its own, at equal budgets of sampled answers and of labels:

`rounds`, by a reward model of all pairs of the lab's demo: iterative DPO against offline DPO (all answers by the start,
one round) and PPO, as gold of held-out prompts; and PPO from the start against PPO after one round of rejection
sampling: PPO steps until gold is what PPO from the start comes to, less a fifth of its gain.

`refresh`, by a reward model of few pairs: one that learns from labels of each round's answers, against one that was
given as many labels of the world's pairs beforehand and stays: gold and proxy by round. Labels are by one careful
annotator with a taste for length.

Also what the loop itself takes: its wall time less that of its stages. What is there already in FOLDER is kept. The
numbers stand in docs/loops.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from assent import distributed
from assent.algorithms.online.train import train_online
from assent.algorithms.reward.pairs import train_reward
from assent.config import EvalConfig, IterateConfig, RewardConfig, RewardsConfig, online_config
from assent.evaluate.evaluation import evaluate
from assent.evaluate.plots import GOLD_COLOR, PROXY_COLOR
from assent.evaluate.results import EVALUATION, PolicyTable
from assent.lab.artifacts import WorldPaths
from assent.loops.iterate import iterate
from assent.models.loading import quiet_transformers
from assent.outputs import write_text
from benchmarks.reward_ensembles import common, once, write_start
from benchmarks.reward_lab import over_seeds

SAMPLING = {"max_new_tokens": 48, "max_batch": 256}
ANNOTATOR = 1
"""Of the lab's panel: its temperature and taste for length are those of the labels."""
LABELLER = '''"""What an annotator feels that an answer is worth: gold, a taste for length, and noise that makes choices
between two answers Bradley-Terry."""

import hashlib
import math
from pathlib import Path

from assent.data.records import Message
from assent.lab.annotators import PANEL
from assent.lab.world import load_world

WORLD, OWN = load_world(Path(__file__).with_name("world") / "world.json"), PANEL[{annotator}]


def felt(prompts, completions, **columns):
    return [worth(said(prompt, "user"), said(answer, "assistant")) for prompt, answer in zip(prompts, completions)]


def said(turns, role):
    if isinstance(turns, str):
        return (Message(role, turns),)
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def worth(prompt, answer):
    text = answer[-1].content
    digest = hashlib.sha256(repr((prompt, text)).encode()).digest()
    uniform = (int.from_bytes(digest[:6], "big") + 0.5) / 2**48
    noise = -math.log(-math.log(uniform)) * OWN.temperature
    return WORLD.gold(prompt, text).reward + OWN.length_bias * len(text.split()) + noise
'''


@dataclass(frozen=True)
class Size:
    """How much of everything: the world; pairs that the reward models begin with, and labels of each round; rounds,
    prompts of each and answers to each; prompts of a PPO step, of which there are as many as sample as many answers."""

    scale: float = 1.0
    pairs: int | None = None
    labels: int = 0
    epochs: int = 5
    rounds: int = 4
    prompts: int = 200
    answers: int = 8
    betas: tuple[float, ...] = (0.2, 0.5, 1.0)
    dpo_lr: float = 1e-4
    ppo_lr: float = 2e-4
    kl: float = 0.4
    ppo_batch: int = 32
    every: int = 20
    batch: int = 16

    @property
    def ppo_steps(self) -> int:
        return self.rounds * self.prompts * self.answers // self.ppo_batch


SIZES = {"rounds": Size(), "refresh": Size(scale=0.4, pairs=500, labels=200, betas=(0.1,))}
TINY = {"scale": 0.04, "epochs": 1, "rounds": 2, "prompts": 12, "answers": 4, "ppo_batch": 8, "every": 4}
QUICK = {
    "rounds": replace(SIZES["rounds"], **TINY),
    "refresh": replace(SIZES["refresh"], pairs=60, labels=16, **TINY),
}


def started(root: Path, seed: int, size: Size) -> WorldPaths:
    """World, `start`, and reward models: `proxy`, which loops begin with, and where labels follow `proxy-more`, from as
    many more pairs as all rounds label."""
    world = write_start(root, seed, size.scale, size.epochs)
    rows = world.preferences.read_text().splitlines(keepends=True)
    wanted = {"proxy": size.pairs}
    if size.labels:
        wanted["proxy-more"] = (size.pairs or len(rows)) + size.rounds * size.labels // 2
    for name, count in wanted.items():
        pairs = root / f"{name}.jsonl"
        write_text(pairs, "".join(rows[:count]))
        few = {"batch_size": 16, "epochs": 3} if size.pairs else {"batch_size": 32, "epochs": 2}
        asked = common(root / "start", pairs, root / name, 1e-3, seed, **few)
        once(root / name / "summary.json", partial(train_reward, RewardConfig(**asked)))
    write_text(root / "label.py", LABELLER.replace("{annotator}", str(ANNOTATOR)))
    return world


def looped(root: Path, world: WorldPaths, name: str, seed: int, size: Size, **more: Any) -> Path:
    """A loop of the study; what it took stands beside it."""
    options: dict[str, Any] = {
        "model": {"path": str(root / "start"), "precision": "fp32"},
        "data": {"train": str(world.prompts), "eval": str(world.prompts_eval), "max_length": 192},
        "out": str(root / name),
        "labels": {"source": (str(root / "proxy"),), "precision": "fp32"},
        "rounds": size.rounds,
        "per_round": size.prompts,
        "answers": size.answers,
        "scorer": f"{world.gold}:gold",
        "eval_answers": 2,
        "optim": {"lr": size.dpo_lr, "schedule": "constant"},
        "train": {"seed": seed, "threads": 1, "log_every": 10, "batch_size": size.batch, "epochs": 2},
        "choose": {"fewer": "use"},
        "options": {"loss.beta": str(size.betas[0])},
        "sampling": SAMPLING,
        "resume": "auto",
    }

    def run() -> None:
        begun, processor = time.monotonic(), time.process_time()
        iterate(IterateConfig(**(options | more)))
        took = {"wall": time.monotonic() - begun, "cpu": time.process_time() - processor}
        lines = (root / name / "times.jsonl").read_text().splitlines()
        took["stages"] = sum(json.loads(line)["seconds"] for line in lines)
        write_text(root / name / "took.json", json.dumps(took))

    once(root / name / "took.json", run)
    return root / name


def rounds_of(out: Path) -> dict[str, Mapping[str, float]]:
    """Stage -> numbers."""
    rows = map(json.loads, (out / "loop.jsonl").read_text().splitlines())
    return {row["stage"]: row["numbers"] for row in rows}


def ppo(root: Path, world: WorldPaths, name: str, begin: Path, seed: int, size: Size) -> PolicyTable:
    """PPO from `begin` with the start as its reference, and its checkpoints evaluated."""
    kept = {"save_every": size.every, "keep": size.ppo_steps // size.every, "max_steps": size.ppo_steps}
    given = common(begin, world.prompts, root / name, size.ppo_lr, seed, batch_size=size.ppo_batch, **kept)
    config = online_config(
        "ppo",
        **given | {"optim": {"lr": size.ppo_lr, "schedule": "constant"}},
        kl={"coef": size.kl, "reference": str(root / "start")},
        critic={"start": "policy"},
        shaping={"missing_eos_penalty": 1.0},
        rewards=RewardsConfig((str(root / "proxy"),)),
        sampling=SAMPLING,
    )
    once(root / name / "summary.json", partial(train_online, config))
    out = root / f"eval-{name}"
    asked = EvalConfig(
        (f"start={root / 'start'}", f"begin={begin}", f"{name}={root / name}"),
        str(world.prompts_eval),
        str(out),
        reference=str(root / "start"),
        rewards=(f"proxy={root / 'proxy'}",),
        scorer=f"{world.gold}:gold",
        answers=2,
        checkpoints=True,
        resume=(out / "cache").exists(),
        seed=seed,
        measures=("reward", "kl", "length"),
        sampling=SAMPLING,
        precision="fp32",
    )
    return PolicyTable.load(once(out / EVALUATION, partial(evaluate, asked)))


def curve(table: PolicyTable, name: str) -> list[tuple[int, float]]:
    """(step, gold) of a run's checkpoints, what it began from first."""
    start = next(policy for policy in table.policies if policy.name == "begin")
    (track,) = (track for track in table.tracks if track.name == name)
    return [(0, start.interval("reward/gold").mean), *((point.step, point.gold.mean) for point in track.points)]


def steps_to(points: Sequence[tuple[int, float]], target: float) -> float:
    """The step at which the line through the points reaches `target` first; NaN where it never does."""
    for (before, low), (step, gold) in zip([(0, -np.inf), *points], points, strict=False):
        if gold >= target:
            return float(step if low == -np.inf else before + (step - before) * (target - low) / (gold - low))
    return float("nan")


def in_rounds(root: Path, seed: int, size: Size) -> dict[str, Any]:
    """Offline, in rounds and by PPO; and PPO after rejection sampling: all numbers of a seed."""
    world = started(root, seed, size)
    loops = {}
    for beta in size.betas:
        for name, more in (("iterative", {}), ("offline", {"rounds": 1, "per_round": size.rounds * size.prompts})):
            options = {"options": {"loss.beta": str(beta)}} | more
            loops[f"{name}, beta {beta:g}"] = looped(root, world, f"{name}-{beta:g}", seed, size, **options)
    sft = {"method": "sft", "options": {}, "choose": {"take": "best", "fewer": "use"}, "optim": {"lr": 3e-4}}
    rejected = looped(root, world, "rejection", seed, size, rounds=1, **sft)
    plain = curve(ppo(root, world, "ppo", root / "start", seed, size), "ppo")
    after = curve(ppo(root, world, "ppo-after", rejected / "round-1" / "sft", seed, size), "ppo-after")
    first, last = plain[0][1], float(np.mean([gold for _, gold in plain[-3:]]))
    target = last - 0.2 * (last - first)
    return {
        "start": rounds_of(rejected)["start/eval"]["gold"],
        "gain": {name: by_round(rounds_of(out)) for name, out in (loops | {"rejection": rejected}).items()}
        | {"ppo": gained(plain, first), "ppo after rejection": gained(after, first)},
        "steps": {"ppo": steps_to(plain, target), "after rejection": steps_to(after, target)},
        "overhead": overhead(*loops.values(), rejected),
    }


def with_refresh(root: Path, seed: int, size: Size) -> dict[str, Any]:
    """The reward model fixed, and refreshed: all numbers of a seed."""
    world = started(root, seed, size)
    refresh = {
        "labels": (f"{root / 'label.py'}:felt",),
        "budget": size.labels,
        "data": str(root / "proxy.jsonl"),
        "share": 0.5,
        "options": {"optim.lr": "1e-3", "train.epochs": "3"},
    }
    more = {"source": (str(root / "proxy-more"),), "precision": "fp32"}
    fixed = looped(root, world, "iterative", seed, size, labels=more)
    refreshed = looped(root, world, "refreshed", seed, size, refresh=refresh)
    found = rounds_of(refreshed)
    return {
        "rounds": {name: by_round(rounds_of(out)) for name, out in (("fixed", fixed), ("refreshed", refreshed))},
        "accuracy": [
            [found[f"round-{n}/refresh/{name}.json"]["accuracy"] for name in ("before", "after")]
            for n in range(1, size.rounds + 1)
        ],
        "overhead": overhead(fixed, refreshed),
    }


def overhead(*loops: Path) -> float:
    """The share of their wall time that is not that of their stages."""
    took = [json.loads((out / "took.json").read_text()) for out in loops]
    return sum(one["wall"] - one["stages"] for one in took) / sum(one["wall"] for one in took)


def by_round(found: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """Gains over the start, by gold and by what labels, and the KL from it."""
    rounds = [numbers for stage, numbers in found.items() if stage.endswith("/eval") and stage != "start/eval"]
    gained = {name: [0.0, *(numbers[f"{name}_gain"] for numbers in rounds)] for name in ("gold", "reward")}
    return gained | {"kl": [0.0, *(numbers["kl"] for numbers in rounds)]}


def gained(points: Sequence[tuple[int, float]], start: float) -> dict[str, list[float]]:
    """The same of PPO, by gold: its last three checkpoints' mean."""
    return {"gold": [0.0, float(np.mean([gold for _, gold in points[-3:]])) - start]}


def line(what: str, values: Sequence[float]) -> None:
    print("{}: {:.3f} +- {:.3f}   ({})".format(what, *over_seeds(values), ", ".join(f"{v:.3f}" for v in values)))


def told_rounds(results: Sequence[Mapping[str, Any]], size: Size) -> None:
    """The answers, with the 95 % interval of Student's t over the seeds."""
    print(f"\n{size.rounds * size.prompts * size.answers:,} sampled answers each; gold of held-out prompts, gained:")
    line("  start", [each["start"] for each in results])
    for name in results[0]["gain"]:
        line(f"  {name}", [each["gain"][name]["gold"][-1] for each in results])
    for beta in size.betas:
        one, other = ([each["gain"][f"{name}, beta {beta:g}"]["gold"][-1] for each in results] for name in LOOPS)
        line(f"  iterative - offline, beta {beta:g}", np.subtract(one, other).tolist())
        for name in LOOPS:
            line(f"  {name}, beta {beta:g}, KL", [each["gain"][f"{name}, beta {beta:g}"]["kl"][-1] for each in results])
        for number in range(1, size.rounds):
            line(
                f"  iterative, beta {beta:g}, after round {number}",
                [each["gain"][f"iterative, beta {beta:g}"]["gold"][number] for each in results],
            )
    print("PPO steps to the same gold:")
    for name in ("ppo", "after rejection"):
        line(f"  {name}", [each["steps"][name] for each in results])
    line("  saved", [each["steps"]["ppo"] - each["steps"]["after rejection"] for each in results])
    print(f"  (the round of rejection sampling took {size.prompts * size.answers:,} answers, which are "
          f"{size.prompts * size.answers / size.ppo_batch:.0f} PPO steps')")  # fmt: skip


def told_refresh(results: Sequence[Mapping[str, Any]], size: Size) -> None:
    print(f"\nreward model fixed or refreshed, {size.rounds * size.labels} labels each: gains after the last round")
    for name in ("fixed", "refreshed"):
        for source in ("gold", "reward"):
            line(f"  {name}, {source}", [each["rounds"][name][source][-1] for each in results])
        line(f"  {name}, gold below its best round", [drop(each["rounds"][name]["gold"]) for each in results])
    gap = [each["rounds"]["refreshed"]["gold"][-1] - each["rounds"]["fixed"]["gold"][-1] for each in results]
    line("  refreshed - fixed, gold", gap)
    for place, name in enumerate(("before", "after")):
        line(f"  accuracy {name}", [float(np.mean([pair[place] for pair in each["accuracy"]])) for each in results])


LOOPS = ("iterative", "offline")
STUDIES = {"rounds": (in_rounds, told_rounds), "refresh": (with_refresh, told_refresh)}


def drop(gains: Sequence[float]) -> float:
    return max(gains) - gains[-1]


def figure(results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Gold and proxy by round: the reward model fixed, and refreshed; a thin line for each seed, a strong one for their
    mean."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assent", "font.size": 8}):
        drawing = Figure(figsize=(6.4, 2.7), layout="constrained")
        panels = drawing.subplots(1, 2, sharey=True)
        for axes, name in zip(panels, ("fixed", "refreshed"), strict=True):
            for source, color, label in (("gold", GOLD_COLOR, "gold"), ("reward", PROXY_COLOR, "reward model")):
                gains = np.array([each["rounds"][name][source] for each in results])
                for own in gains:
                    axes.plot(own, color=color, linewidth=0.7, alpha=0.5)
                axes.plot(gains.mean(0), color=color, linewidth=2, marker="o", markersize=3, label=label)
            axes.axhline(0, color="#111213", linewidth=0.7, linestyle=(0, (1, 3)))
            axes.set_title(f"reward model {name}", fontsize=9, loc="left")
            axes.set_xlabel("round")
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel("gain over the start")
        panels[0].legend(frameon=False, fontsize=7)
        drawing.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a small world and few steps: whether it runs at all")
    parser.add_argument("--figure", type=Path, help="refresh: SVG to write")
    given = parser.parse_args()
    quiet_transformers()
    distributed.init(1)
    size = (QUICK if given.quick else SIZES)[given.study]
    measured, told = STUDIES[given.study]
    results = [measured(given.out / str(seed), seed, size) for seed in given.seeds]
    write_text(given.out / "results.json", json.dumps(results, indent=1) + "\n")
    told(results, size)
    line("the loop's own share of its time", [each["overhead"] for each in results])
    if given.study == "refresh" and given.figure is not None:
        figure(results, given.figure)


if __name__ == "__main__":
    main()
