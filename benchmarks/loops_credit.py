"""Which token does a reward belong to? The reward at an answer's last token, the same spread by the gradient of the
reward model's score (--rewards.credit gradient and absolute), and PPO's critic, on the assistant world of `assent.lab`,
whose gold reward is known.

    python -m benchmarks.loops_credit --out credit
    python -m benchmarks.loops_credit --out credit-quick --quick

All arms have the same start, reward model, KL, sampled answers, steps on them, and learning rates. All but the last are
REINFORCE++ (PPO's clipped loss on whitened returns, without a critic). For each arm and rate: gold of held-out answers
at the end, with its interval over prompts, that of each seed, and how many sampled answers it took until the mean over
seeds had come half the way from the start to the best arm's end (LEVEL). Runs that are done are not made again."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assent import messages
from assent.algorithms.online.train import train_online
from assent.config import DataConfig, ModelConfig, OnlineConfig, OptimConfig, RewardsConfig, TrainConfig, online_config
from assent.data.records import Message
from assent.lab.demo import SAMPLING
from assent.lab.world import AssistantWorld, load_world
from assent.models.loading import quiet_transformers
from assent.statistics import mean_interval
from assent.train.log import read_jsonl
from benchmarks.online_plan import ANSWERS, KL, MISSING_EOS, Base
from benchmarks.online_world import make_base

log = logging.getLogger("assent.benchmarks")

ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "last token": ("reinforce++", {}),
    "gradient": ("reinforce++", {"credit": "gradient"}),
    "gradient, half": ("reinforce++", {"credit": "gradient", "credit_share": 0.5}),
    "absolute": ("reinforce++", {"credit": "absolute"}),
    "critic": ("ppo", {}),
}
"""Method, and options of its rewards."""
LEVEL = 0.5
TIMES = "took.json"


@dataclass(frozen=True, slots=True)
class Run:
    arm: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.replace(', ', '-').replace(' ', '-')}-{self.rate:g}-seed{self.seed}"


def main() -> int:
    messages.show()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loops_credit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the world, the runs and the table")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4, 3e-4], help="learning rates, of every arm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the runs (the world's is 0)")
    parser.add_argument("--rollouts", type=int, default=48, help="of 64 answers each")
    parser.add_argument("--every", type=int, default=4, help="rollouts between evaluations")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the world; below 1 only for a trial")
    parser.add_argument("--quick", action="store_true", help="a trial: one seed and rate, few rollouts, a small world")
    args = parser.parse_args()
    if args.quick:
        args.rates, args.seeds, args.rollouts, args.every, args.scale = args.rates[:1], [0], 4, 2, 0.05
    quiet_transformers()
    base = make_base(args.out, args.scale)
    runs = [Run(arm, rate, seed) for seed in args.seeds for rate in args.rates for arm in args.arms]
    for number, run in enumerate(runs):
        folder = args.out / "runs" / run.name
        if not (folder / TIMES).is_file():
            log.info(f"[{number + 1}/{len(runs)}] {run.name}")
            begun = time.process_time()
            train_online(configuration(run, base, folder, args.rollouts, args.every))
            (folder / TIMES).write_text(json.dumps({"seconds": time.process_time() - begun}), encoding="utf-8")
    text = table(args.out, runs, load_world(base.world.world))
    (args.out / "credit.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def configuration(run: Run, base: Base, out: Path, rollouts: int, every: int) -> OnlineConfig:
    """All that arms do not differ in stands here."""
    method, rewards = ARMS[run.arm]
    steps = 4  # two epochs of two minibatches, PPO's own
    return online_config(
        method,
        model=ModelConfig(str(base.sft), precision="fp32"),
        data=DataConfig(str(base.world.prompts), eval=str(base.world.prompts_eval), max_length=256),
        out=str(out),
        resume="auto",
        optim=OptimConfig(lr=run.rate, schedule="constant", warmup=0.0),
        train=TrainConfig(batch_size=ANSWERS, seed=run.seed, max_steps=steps * rollouts, eval_every=steps * every),
        rewards=RewardsConfig((str(base.reward),), **rewards),
        rollout={"responses": 1, "epochs": 2, "minibatches": 2},
        shaping={"missing_eos_penalty": MISSING_EOS},
        kl={"coef": KL},
        sampling=SAMPLING,
    )


# ---- table


@dataclass(frozen=True, slots=True)
class Graded:
    """Gold rewards of a run's held-out answers: by step, by prompt."""

    gold: Mapping[int, Mapping[str, float]]
    kl: float
    seconds: float

    @classmethod
    def of(cls, folder: Path, world: AssistantWorld) -> Graded:
        gold: dict[int, dict[str, float]] = {}
        kl: dict[int, list[float]] = {}
        for row in read_jsonl(folder / "samples.jsonl"):
            if row.get("held_out"):
                prompt = [Message(**message) for message in row["prompt"]]
                gold.setdefault(row["step"], {})[json.dumps(row["prompt"])] = world.gold(prompt, row["response"]).reward
                kl.setdefault(row["step"], []).append(row["kl"])
        seconds = json.loads((folder / TIMES).read_text(encoding="utf-8"))["seconds"]
        return cls(gold, float(np.mean(kl[max(kl)])), seconds)

    def mean(self, step: int) -> float:
        return float(np.mean([*self.gold[step].values()]))

    @property
    def last(self) -> int:
        return max(self.gold)


def table(out: Path, runs: Sequence[Run], world: AssistantWorld) -> str:
    """A line for each arm at each rate, best first."""
    by: dict[tuple[str, float], list[Graded]] = {}
    for run in runs:
        by.setdefault((run.arm, run.rate), []).append(Graded.of(out / "runs" / run.name, world))
    ends = {key: float(np.mean([one.mean(one.last) for one in some])) for key, some in by.items()}
    first = next(iter(by.values()))
    start = float(np.mean([one.mean(0) for one in first]))
    level = start + LEVEL * (max(ends.values()) - start)
    lines = [
        f"Gold at the start {start:.2f}; half the way to the best is {level:.2f}.",
        "",
        "| reward at | rate | gold [95 %] | of each seed | answers to half the way | KL | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (arm, rate), some in sorted(by.items(), key=lambda item: -ends[item[0]]):
        values = [value for one in some for value in one.gold[one.last].values()]
        prompts = [prompt for one in some for prompt in one.gold[one.last]]
        whole = mean_interval(values, prompts)
        curve = {step: np.mean([one.mean(step) for one in some]) for step in sorted(some[0].gold)}
        there = next((step for step, value in curve.items() if value >= level), None)
        cells = [
            arm,
            f"{rate:g}",
            f"{whole.mean:.2f} [{whole.low:.2f}, {whole.high:.2f}]",
            ", ".join(f"{one.mean(one.last):.2f}" for one in some),
            "not reached" if there is None else f"{there // 4 * ANSWERS:,}",
            f"{np.mean([one.kl for one in some]):.2f}",
            f"{np.mean([one.seconds for one in some]):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
