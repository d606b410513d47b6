"""Whether adversarial preference optimisation keeps a reward model right about the policy that learns from it, in the
assistant world, whose gold reward is known:

    python -m benchmarks.loops_apo --out FOLDER [--seeds 0 1 2] [--figure docs/apo.svg] [--quick]

For each seed a policy (SFT) and a reward model from few noisy pairs. Then the same rounds of rejection sampling, with
as many prompts, answers and steps each: by the reward model as it is (fixed), by one that goes on with the pairs
alone (pairs), and by `assent apo`, which also sees golden answers to those prompts, with the paper's weight of 0.1
and with 1 (apo-strong). Beside them a policy that imitates the golden answers, with as many steps as all rounds
together. What is there already in FOLDER is kept, and loops go on where they were. All numbers are those of held-out
prompts; the table and the figure stand in docs/apo.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from assent import distributed
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.sft import train_sft
from assent.config import (
    AdversarialSection,
    ApoConfig,
    ModelConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
)
from assent.data.formats import load_examples, message_row
from assent.data.jsonl import json_line
from assent.evaluate import plots
from assent.lab.annotators import Annotator
from assent.lab.artifacts import WorldPaths, build_world
from assent.lab.world import load_world
from assent.loops.apo import Turns
from assent.loops.loop import STATE, opened
from assent.models.loading import quiet_transformers
from assent.outputs import write_text
from benchmarks.reward_ensembles import LONGEST, common, once, write_base
from benchmarks.reward_lab import SEEDS, over_seeds

ANNOTATOR = Annotator("hasty", temperature=0.8, careless=0.3)
"""Four labels in five are those of gold."""
STYLES = ("full", "rich")
"""Styles that golden answers are the best of."""
HELD_OUT = 0.25


@dataclass(frozen=True)
class Size:
    """How much is spent on each loop."""

    scale: float = 0.4
    pairs: int = 400
    prompts: int = 400
    rounds: int = 4
    answers: int = 4
    steps: int = 30


QUICK = Size(scale=0.1, pairs=200, prompts=60, rounds=2, steps=6)


class Fixed(Turns):
    """The reward model stays as it is."""

    def refresh(self, number: int, reward: str, answers: Path) -> str:
        return reward


class Pairs(Turns):
    """The reward model goes on with the pairs alone."""

    def reward_run(self, number: int, reward: str | Path, answers: Path) -> RunConfig:
        run = super().reward_run(number, reward, answers)
        assert isinstance(run, RewardConfig)
        return replace(run, adversarial=AdversarialSection())


class Strong(Turns):
    """Golden answers count ten times as much."""

    def reward_run(self, number: int, reward: str | Path, answers: Path) -> RunConfig:
        run = super().reward_run(number, reward, answers)
        assert isinstance(run, RewardConfig)
        return replace(run, adversarial=replace(run.adversarial, coef=10 * run.adversarial.coef))


ARMS: Mapping[str, type[Turns]] = {"fixed": Fixed, "pairs": Pairs, "apo": Turns, "apo-strong": Strong}
IMITATED = "sft on golden answers"
MEASURED = {
    "policy/gold": "gold reward of the policy",
    "samples/accuracy": "accuracy on the policy's answers",
    "samples/ece": "calibration error there",
    "pairs/accuracy": "accuracy on held-out pairs",
    "pairs/ece": "calibration error there, of pairs",
    "golden/accuracy": "golden answers told from the policy's",
}
"""Numbers of a loop's stages -> what they are called."""


def write_golden(world: WorldPaths, out: Path, prompts: int, seed: int) -> None:
    """The better of two good answers to each of the first prompts, by the rubric."""
    truth, rng = load_world(world.world), np.random.default_rng([seed, 7])
    rows = []
    for example in load_examples(str(world.prompts)).examples[:prompts]:
        texts = [truth.respond(example.prompt, style, rng) for style in STYLES]
        best = max(texts, key=lambda text: truth.gold(example.prompt, text).reward)
        turns = [message_row(turn) for turn in example.prompt]
        rows.append({"prompt": turns, "completion": [{"role": "assistant", "content": best}]})
    write_text(out, "".join(map(json_line, rows)))


def set_up(root: Path, seed: int, size: Size) -> WorldPaths:
    """World, golden answers, pairs, `policy` and `reward`."""
    world = WorldPaths(root / "world")
    once(world.world, lambda: build_world(world.root, seed=seed, scale=size.scale, annotators=[ANNOTATOR]))
    base = once(root / "base", lambda: write_base(world, root / "base", seed))
    once(root / "golden.jsonl", lambda: write_golden(world, root / "golden.jsonl", size.prompts, seed))
    rows = world.preferences.read_text().splitlines(keepends=True)[: size.pairs]
    once(root / "pairs.jsonl", lambda: write_text(root / "pairs.jsonl", "".join(rows)))
    sft = SFTConfig(**common(base, world.sft, root / "policy", 4e-3, seed, batch_size=32, epochs=5))
    once(root / "policy" / "summary.json", partial(train_sft, sft))
    given = common(root / "policy", root / "pairs.jsonl", root / "reward", 1e-3, seed, batch_size=16, epochs=3)
    once(root / "reward" / "summary.json", partial(train_reward, RewardConfig(**given)))
    return world


def configured(root: Path, world: WorldPaths, arm: str, seed: int, size: Size, policy: str = "policy") -> ApoConfig:
    return ApoConfig(
        model=ModelConfig(str(root / policy), precision="fp32"),
        data={"train": str(root / "golden.jsonl"), "max_length": LONGEST, "eval_fraction": HELD_OUT},
        out=str(root / arm),
        rounds=size.rounds,
        reward_model=str(root / "reward"),
        pairs=str(root / "pairs.jsonl"),
        pairs_eval=str(world.preferences_eval),
        answers=size.answers,
        options={"optim.lr": "5e-4"},
        reward_options={"optim.lr": "3e-4"},
        scorer=f"{world.gold}:gold",
        stop=False,
        train=TrainConfig(seed=seed, threads=1, batch_size=16, max_steps=size.steps, log_every=10),
        sampling=SamplingConfig(max_new_tokens=48, max_batch=256),
        resume="auto",
    )


def looped(root: Path, world: WorldPaths, arm: str, seed: int, size: Size) -> dict[str, list[float]]:
    """Each number of `MEASURED` by rounds: of the reward model that has just learnt, and of the policy that it learnt
    from; at last those of the policy at the end."""
    config = configured(root, world, arm, seed, size)
    with opened("apo", config) as loop:
        turns = ARMS[arm](config, loop)
        turns.check()
        turns.take()
    rows = {row["stage"]: row["numbers"] for row in map(json.loads, (root / arm / STATE).read_text().splitlines())}
    names = [f"round-{number}/after.json" for number in range(1, size.rounds + 1)]
    last = rows[f"round-{size.rounds + 1}/before.json"]
    return {key: [rows[name][key] for name in names] + [last[key]] for key in MEASURED}


def imitated(root: Path, world: WorldPaths, seed: int, size: Size) -> float:
    """Gold reward of the policy that has learnt the golden answers, on the same held-out prompts."""
    golden = root / "apo" / "data" / "golden.jsonl"
    given = common(
        root / "policy", golden, root / "imitator", 5e-4, seed, batch_size=16, max_steps=size.rounds * size.steps
    )
    once(root / "imitator" / "summary.json", partial(train_sft, SFTConfig(**given)))
    config = configured(root, world, "imitated", seed, size, policy="imitator")
    with opened("apo", config) as loop:
        turns = Turns(config, loop)
        turns.prepare()
        turns.look(1, config.model.path, config.reward_model)
        found = loop.numbers("round-1/before.json")["policy/gold"]
    assert found is not None
    return found


def studied(root: Path, seed: int, size: Size) -> dict[str, Any]:
    """What a seed gives; kept in the folder."""
    root.mkdir(parents=True, exist_ok=True)

    def make() -> None:
        world = set_up(root, seed, size)
        found: dict[str, Any] = {arm: looped(root, world, arm, seed, size) for arm in ARMS}
        found[IMITATED] = imitated(root, world, seed, size)
        write_text(root / "found.json", json.dumps(found))

    return json.loads(once(root / "found.json", make).read_text())


def table(found: Sequence[Mapping[str, Any]], rounds: int) -> str:
    """Markdown: for each number a row of each arm, by rounds, as the mean over seeds with its interval; below it the
    differences from "fixed" of the same seed."""
    header = [*(f"round {number}" for number in range(1, rounds + 1)), "at the end"]
    lines = [f"| | | {' | '.join(header)} |", "|---" * (len(header) + 2) + "|"]
    for key, words in MEASURED.items():
        for arm in ARMS:
            runs = np.array([seed[arm][key] for seed in found], float)
            lines.append(
                f"| {words} | {arm} | {' | '.join('{:.3f} ± {:.3f}'.format(*over_seeds(x)) for x in runs.T)} |"
            )
            if arm != "fixed":
                gaps = runs - np.array([seed["fixed"][key] for seed in found], float)
                cells = " | ".join("{:+.3f} ± {:.3f}".format(*over_seeds(x)) for x in gaps.T)
                lines.append(f"| | less fixed | {cells} |")
    end = "{:.3f} ± {:.3f}".format(*over_seeds([seed[IMITATED] for seed in found]))
    lines.append(f"| gold reward of the policy | {IMITATED} | {'| ' * rounds}{end} |")
    return "\n".join(lines)


def figure(found: Sequence[Mapping[str, Any]], out: Path) -> None:
    """An SVG of its own: gold of the policy, and the reward model's accuracy on its answers, by rounds; thin and pale
    each seed."""
    colors = {"fixed": plots.BASELINE_COLOR, **dict(zip(("pairs", "apo", "apo-strong"), plots.COLORS, strict=False))}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assent", "font.size": 8}):
        drawing = Figure(figsize=(7.2, 2.9), layout="constrained")
        panels = drawing.subplots(1, 2)
        for axes, key in zip(panels, ("policy/gold", "samples/accuracy"), strict=True):
            for arm, color in colors.items():
                runs = np.array([seed[arm][key] for seed in found], float)
                x = np.arange(runs.shape[1])
                for run in runs:
                    axes.plot(x, run, color=color, linewidth=0.6, alpha=0.35)
                axes.plot(x, runs.mean(0), color=color, linewidth=1.8, label=arm)
            axes.set_xticks(x)
            axes.set_xlabel("rounds that the policy has learnt")
            axes.set_ylabel(MEASURED[key])
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].axhline(
            np.mean([seed[IMITATED] for seed in found]),
            color="#111213",
            linewidth=0.8,
            linestyle=(0, (1, 3)),
            label=IMITATED,
        )
        panels[0].legend(frameon=False, fontsize=7)
        drawing.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--figure", type=Path, help="SVG to write")
    parser.add_argument("--quick", action="store_true", help="a trial: fewer of everything")
    given = parser.parse_args()
    quiet_transformers()
    distributed.init()
    os.makedirs(given.out, exist_ok=True)
    size = QUICK if given.quick else Size()
    found = [studied(given.out / str(seed), seed, size) for seed in given.seeds]
    print(table(found, size.rounds))
    if given.figure is not None:
        figure(found, given.figure)


if __name__ == "__main__":
    main()
