"""Every online method on the lab's assistant world, at the same number of generated tokens, graded by the gold rubric
that training never sees; and PPO with one of its stabilisers changed at a time.

    python -m benchmarks.online_world --out runs/online                       the methods, each at every rate
    python -m benchmarks.online_world --out runs/online --ablations           PPO's stabilisers
    python -m benchmarks.online_world --out runs/online --methods ppo grpo --seeds 0 1 2 --rates 2e-4

World, SFT and reward model are made once, as `assent demo` makes them. Every answer that the engine gives counts, those
that a method throws away too; a run ends with the rollout in which it has spent its tokens. The best learning rate of a
method is chosen by gold reward on some held-out prompts, and reported on the others. Times are seconds of processor
time. Finished runs are kept in --out: the same command goes on, and more seeds or rates are added to what is there. The
tables go to --out/*.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from assent import distributed, messages
from assent.algorithms.online.train import set_up
from assent.config import METHODS, DemoConfig, EvalConfig, SamplingConfig
from assent.evaluate.evaluation import answers_of, prompts_of
from assent.lab.demo import SAMPLING, make_world, stages
from assent.lab.world import AssistantWorld, load_world
from assent.models.loading import quiet_transformers
from assent.models.saving import save_model
from assent.rollout.engine import Completion, Engine
from assent.statistics import Interval, mean_interval, paired_difference
from assent.train.log import MetricsLog
from assent.train.loop import train_steps
from assent.train.optim import build_optimizer
from assent.train.progress import ProgressDisplay, clock
from assent.train.session import open_session
from benchmarks.online_plan import BASE, VARIANTS, Base, Cell, configuration

log = logging.getLogger("assent.benchmarks")

TOKENS, RATES, BASE_RATE = 16_000, (2e-4, 6e-4), 2e-4
SELECTION = 4
"""Learning rates are chosen by every fourth held-out prompt; all numbers are of the others."""
PER_PROMPT = 2
"""Answers to each held-out prompt."""
LONG = 1 << 30
START = "start"
RESULT, TOOK, ANSWERS = "result.json", "took.json", "answers.jsonl"
GAIN = "gain [95 %]"

REWARDED = [name for name, row in METHODS.items() if not row.needs_teacher]
"""Methods that learn from rewards, not from a teacher."""


def main() -> int:
    messages.show()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.online_world",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the world, the runs and the tables")
    parser.add_argument("--methods", nargs="+", choices=REWARDED, default=REWARDED, metavar="METHOD")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="learning rates to choose from")
    parser.add_argument("--ablations", action="store_true", help="PPO's stabilisers instead of the methods")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT", help="beside the base"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the runs (the world's is 0)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="generated tokens of each run")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the world; below 1 only for a trial")
    args = parser.parse_args()
    quiet_transformers()
    base = make_base(args.out, args.scale)
    if args.ablations:
        cells = [
            Cell("ppo", BASE_RATE, seed, variant)
            for variant in dict.fromkeys([BASE, *args.variants])
            for seed in args.seeds
        ]
    else:
        cells = [Cell(method, rate, seed) for method in args.methods for rate in args.rates for seed in args.seeds]
    grader = Grader(base)
    begun, trained = time.monotonic(), 0
    grader.grade(base.sft, args.out / START)
    for number, cell in enumerate(cells):
        folder = args.out / "runs" / cell.name
        if not (folder / RESULT).is_file():
            each = (time.monotonic() - begun) / max(1, trained)
            left = f", about {clock(each * (len(cells) - number))} left" if trained else ""
            log.info(f"[{number + 1}/{len(cells)}] {cell.name}{left}")
            train(cell, base, folder, args.tokens)
            grader.grade(folder, folder)
            trained += 1
        elif (budget := json.loads((folder / RESULT).read_text(encoding="utf-8"))["budget"]) != args.tokens:
            parser.error(f"{folder} has another --tokens: {budget}, not {args.tokens}. Choose another --out.")
    make = ablation_table if args.ablations else method_table
    text = make(args.out, cells)
    (args.out / ("ablations.md" if args.ablations else "methods.md")).write_text(text, encoding="utf-8")
    print(text)
    return 0


def make_base(out: Path, scale: float) -> Base:
    """World, SFT and reward model, where they are not there yet."""
    config = DemoConfig(out=str(out), scale=scale, resume=True)
    world = make_world(out / "world", config)
    for name, function, stage in stages(out, world, config)[:2]:
        if not (Path(stage.out) / "model" / "README.md").is_file():
            log.info(name)
            function(stage)
    return Base(world, out / "sft", out / "reward")


# ---- a run


class Counted:
    """An engine that counts the tokens it gives."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.tokens = engine, 0

    def generate(
        self, prompts: Sequence[np.ndarray], n: int, sampling: SamplingConfig, seed: int, first: int = 0
    ) -> list[list[Completion]]:
        groups = self.engine.generate(prompts, n, sampling, seed, first)
        self.tokens += sum(len(answer) for group in groups for answer in group)
        return groups

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        self.engine.update_weights(state_dict)


def train(cell: Cell, base: Base, folder: Path, budget: int) -> None:
    """Trains a cell until its tokens are spent, and writes model, metrics.jsonl and what it took. A run that was
    interrupted begins anew."""
    shutil.rmtree(folder, ignore_errors=True)
    config = configuration(cell, base, folder)
    begun = time.process_time()
    session = open_session(config)
    algorithm, _ = set_up(session, config)
    sampler = algorithm.rollouts.sampler
    engine = sampler.engine = Counted(sampler.engine)
    optimizer = build_optimizer([(module, config.optim.lr) for module in algorithm.modules.values()], config.optim)
    log = MetricsLog(folder / "metrics.jsonl")
    steps = 0
    with ProgressDisplay(budget, cell.name) as progress:
        for result in filter(None, train_steps(algorithm, optimizer, config.optim, session.world, start=0, total=LONG)):
            log.write(result.step, result.metrics)
            steps = result.step
            names = [name for name in ("reward", "kl", "length") if name in result.metrics]
            shown = "  ".join(f"{name} {result.metrics[name]:.3g}" for name in names)
            if engine.tokens >= budget and algorithm.state_dict()["done"] == 0:
                break
            progress.update(min(engine.tokens, budget - 1), shown)
        progress.update(budget)
    log.close()
    save_model(algorithm.models.policy, session.tokenizer, folder / "model")
    took = {"seconds": time.process_time() - begun, "budget": budget, "tokens": engine.tokens, "steps": steps}
    took["rollouts"] = algorithm.rollouts.number
    _save(folder / TOOK, {**asdict(cell), **took})


class Grader:
    """Held-out prompts, and what their answers are worth."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.world: AssistantWorld = load_world(base.world.world)

    def grade(self, run: Path, folder: Path) -> None:
        """Writes the answers of the model of `run` with their scores, and then that the cell is done."""
        if (folder / RESULT).is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        config = EvalConfig(
            policies=(f"run={run}",),
            prompts=str(self.base.world.prompts_eval),
            out=str(folder),
            reference=str(self.base.sft),
            rewards=(f"proxy={self.base.reward}",),
            answers=PER_PROMPT,
            precision="fp32",
            sampling=SAMPLING,
        )
        graded = {"gold": lambda prompt, text: self.world.gold(prompt, text).reward}
        (answers,) = answers_of(config, distributed.init(), prompts_of(config), graded)
        assert answers.tokens is not None and answers.finished is not None
        assert answers.log_prob is not None and answers.reference_log_prob is not None
        columns = {
            "prompt_index": answers.prompt,
            "num_tokens": answers.tokens,
            "finished": answers.finished,
            "kl": answers.log_prob - answers.reference_log_prob,
        }
        rows = [
            {name: values[index].item() for name, values in columns.items()}
            | {"text": text, "scores": {name: float(values[index]) for name, values in answers.scores.items()}}
            for index, text in enumerate(answers.texts)
        ]
        (folder / ANSWERS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        took = folder / TOOK
        _save(folder / RESULT, json.loads(took.read_text(encoding="utf-8")) if took.is_file() else {})


def _save(path: Path, content: object) -> None:
    """Complete or absent."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


# ---- tables


@dataclass(frozen=True)
class Graded:
    """Answers of one or more runs (seeds), those that count in tables and those that rates are chosen by."""

    rows: list[dict[str, Any]]
    took: list[dict[str, Any]]

    @classmethod
    def load(cls, *folders: Path) -> Graded:
        lines = [line for folder in folders for line in (folder / ANSWERS).read_text(encoding="utf-8").splitlines()]
        took = [json.loads((folder / RESULT).read_text(encoding="utf-8")) for folder in folders]
        return cls([json.loads(line) for line in lines], took)

    @property
    def reported(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["prompt_index"] % SELECTION]

    @property
    def selection(self) -> float:
        """Mean gold reward on the prompts that rates are chosen by."""
        chosen = [row for row in self.rows if row["prompt_index"] % SELECTION == 0]
        return float(np.mean([row["scores"]["gold"] for row in chosen]))

    def gold(self) -> Interval:
        rows = self.reported
        return mean_interval([row["scores"]["gold"] for row in rows], [row["prompt_index"] for row in rows])

    def by_prompt(self) -> dict[int, float]:
        """Mean gold reward of each reported prompt."""
        found: dict[int, list[float]] = {}
        for row in self.reported:
            found.setdefault(row["prompt_index"], []).append(row["scores"]["gold"])
        return {index: float(np.mean(values)) for index, values in found.items()}

    def against(self, other: Graded) -> str:
        """The difference in gold reward from other runs, with its interval."""
        d = self.difference(other)
        return f"{d.mean:+.2f} [{d.low:.2f}, {d.high:.2f}]"

    def difference(self, other: Graded) -> Interval:
        """The difference in gold reward from other runs, paired over the prompts of both."""
        ours, theirs = self.by_prompt(), other.by_prompt()
        prompts = sorted(ours.keys() & theirs.keys())
        return paired_difference([ours[i] for i in prompts], [theirs[i] for i in prompts]).difference

    def cells(self) -> list[str]:
        """proxy, KL, length, share unfinished."""
        rows = self.reported
        proxy, kl, length = (
            np.mean(values)
            for values in (
                [row["scores"]["proxy"] for row in rows],
                [row["kl"] for row in rows],
                [row["num_tokens"] for row in rows],
            )
        )
        unfinished = np.mean([not row["finished"] for row in rows])
        return [f"{proxy:.2f}", f"{kl:.2f}", f"{length:.1f}", f"{unfinished:.1%}"]

    def mean(self, name: str) -> float:
        return float(np.mean([took[name] for took in self.took]))


def method_table(out: Path, cells: Sequence[Cell]) -> str:
    """The methods, best first, each at its best rate."""
    start = Graded.load(out / START)
    rates: dict[str, dict[float, list[Cell]]] = {}
    for cell in cells:
        rates.setdefault(cell.method, {}).setdefault(cell.rate, []).append(cell)
    rows: list[tuple[float, list[str]]] = []
    for method, by_rate in rates.items():
        found = {rate: Graded.load(*(out / "runs" / cell.name for cell in some)) for rate, some in by_rate.items()}
        rate = max(found, key=lambda rate: found[rate].selection)
        best = found[rate]
        others = ", ".join(f"{r:g}: {found[r].gold().mean:.2f}" for r in found if r != rate)
        took = [f"{best.mean('rollouts'):.0f}", f"{best.mean('steps'):.0f}", f"{best.mean('seconds'):.0f}"]
        line = [METHODS[method].name, _gold(best), best.against(start), *best.cells(), *took, f"{rate:g}", others]
        rows.append((best.gold().mean, line))
    header = ["method", "gold", GAIN, "proxy", "KL", "tokens", "unfinished", "rollouts", "steps", "CPU s", "rate"]
    lines = [[START, _gold(start), "", *start.cells(), *[""] * 5]]
    lines += [line for _, line in sorted(rows, key=lambda row: -row[0])]
    return _markdown([*header, "gold at other rates"], lines)


def ablation_table(out: Path, cells: Sequence[Cell]) -> str:
    """What is changed, and the difference from the base with the same seeds: over all of them with the interval of the
    noise of evaluation, and for each seed, which tells the noise of training. Of the base: what each seed came to."""
    variants: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        variants.setdefault(cell.variant, {})[cell.seed] = cell

    def graded(variant: str, seeds: Iterable[int]) -> Graded:
        return Graded.load(*(out / "runs" / variants[variant][seed].name for seed in seeds))

    lines = []
    for variant, seeds in variants.items():
        found = graded(variant, seeds)
        if variant == BASE:
            gains = ["", ", ".join(f"{graded(BASE, [seed]).gold().mean:.2f}" for seed in seeds)]
        else:
            each = [graded(variant, [seed]).difference(graded(BASE, [seed])).mean for seed in seeds]
            gains = [found.against(graded(BASE, seeds)), ", ".join(f"{gain:+.2f}" for gain in each)]
        lines.append([VARIANTS[variant][0], _gold(found), *gains, *found.cells(), f"{found.mean('seconds'):.0f}"])
    header = ["PPO", "gold", "difference [95 %]", "of each seed", "proxy", "KL", "tokens", "unfinished", "CPU s"]
    return _markdown(header, lines)


def _gold(graded: Graded) -> str:
    interval = graded.gold()
    return f"{interval.mean:.2f} ±{(interval.high - interval.low) / 2:.2f}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
