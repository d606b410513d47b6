"""The whole job on the assistant world: SFT, reward model, PPO and DPO, each policy graded by the gold rubric that no
training step ever saw, and one report."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from assent import distributed, lock
from assent.algorithms.online.train import train_online
from assent.algorithms.preference.train import train_preference
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.sft import train_sft
from assent.config import (
    DataConfig,
    DemoConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ReportConfig,
    RewardConfig,
    RewardsConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
    preference_config,
)
from assent.config.words import command_of
from assent.data.records import Message
from assent.distributed import World
from assent.errors import RunFolderError
from assent.evaluate.evaluation import PLACES, evaluated, prompts_of
from assent.evaluate.pages import check_page
from assent.evaluate.report import write_report
from assent.evaluate.results import EVALUATION, PolicyTable, Track, TrackPoint
from assent.evaluate.terminal import render
from assent.lab.artifacts import WorldPaths, build_world
from assent.lab.world import AssistantWorld, load_world
from assent.models.loading import quiet_transformers
from assent.models.saving import complete_or_absent
from assent.statistics import mean_interval
from assent.train.log import read_jsonl, read_metrics
from assent.train.progress import clock
from assent.train.runfolder import owned

log = logging.getLogger(__name__)

SAMPLING = SamplingConfig(max_new_tokens=48, max_batch=128)
ANSWERS = 4
"""Answers to each held-out prompt in the final evaluation."""


def run_demo(config: DemoConfig) -> Path:
    """Builds the world, trains, evaluates and writes `config.out`/report.html, which it returns.

    Raises RunFolderError where `config.out` holds something and `config.resume` is off."""
    quiet_transformers()
    world, out = distributed.init(), Path(config.out)
    with owned(out):
        return _run(config, world, out)


def _run(config: DemoConfig, world: World, out: Path) -> Path:
    begun = time.monotonic()
    distributed.on_main(lambda: _check_free(out, config))
    paths = distributed.on_main(lambda: make_world(out / "world", config))
    runs = stages(out, paths, config)

    def stage(number: int, text: str) -> None:
        log.info(f"[{number}/{len(runs) + 1}] {text}")

    for number, (name, train, run) in enumerate(runs, 1):
        stage(number, name)
        train(run)
    stage(len(runs) + 1, "evaluation: gold reward, which no training step has seen")
    table = evaluate(out, paths, config.seed, world, command_of("demo", config, leave=PLACES))

    def report() -> Path:
        table.save(out / EVALUATION)
        render(table, Console(width=None if sys.stdout.isatty() else 110))
        print(f"Reward model: {accuracy(out / 'reward')} of held-out noisy labels right")
        page = write_report(ReportConfig((str(out),), str(out / "report.html"), "assent demo: the assistant world"))
        log.info(f"Done in {clock(time.monotonic() - begun)}.")
        return page

    return distributed.on_main(report)


def _check_free(out: Path, config: DemoConfig) -> None:
    """Raises RunFolderError where something else than an earlier demo of the same world is in the folder, or that is
    not to go on."""
    names = {name for name in lock.content(out) if not name.startswith(".world-")}
    world = WorldPaths(out / "world").world
    if not names:
        return
    if not world.is_file():
        raise RunFolderError(f"--out {out}: the folder is not empty and holds no demo. Choose another --out.")
    if not config.resume:
        raise RunFolderError(
            f"--out {out}: an earlier demo is there. Continue it with --resume, or choose another --out."
        )
    made = {"seed": load_world(world).seed, "scale": json.loads(world.read_text(encoding="utf-8")).get("scale")}
    for name, value in made.items():
        if value != getattr(config, name):
            raise RunFolderError(f"--resume: the demo in {out} was made with --{name} {value}. Give the same.")
    check_page(out / "report.html")


def make_world(folder: Path, config: DemoConfig) -> WorldPaths:
    """The assistant world in `folder`, made where it is not there yet."""
    paths = WorldPaths(folder)
    if not folder.is_dir():
        log.info("[0] world: knowledge, demonstrations, labels of simulated annotators, a random model")
        for unfinished in folder.parent.glob(".world-*"):
            shutil.rmtree(unfinished)
        with complete_or_absent(folder) as partial:
            build_world(partial, seed=config.seed, scale=config.scale)
    return paths


def stages(out: Path, paths: WorldPaths, config: DemoConfig) -> list[tuple[str, Callable[[Any], Any], RunConfig]]:
    """Name, function and configuration of each training run, in order."""
    sft, reward = str(out / "sft"), str(out / "reward")

    def model(path: str) -> ModelConfig:
        return ModelConfig(path, precision="fp32")

    def data(train: Path, held_out: Path | None) -> DataConfig:
        return DataConfig(str(train), eval=None if held_out is None else str(held_out), max_length=256)

    def common(name: str, lr: float, **options: Any) -> dict[str, Any]:
        return {
            "out": str(out / name),
            "resume": "auto" if config.resume else None,
            "optim": OptimConfig(lr=lr),
            "train": TrainConfig(seed=config.seed, save_every=50, **options),
        }

    return [
        (
            "SFT: imitate demonstrations of mixed quality",
            train_sft,
            SFTConfig(model(str(paths.base)), data(paths.sft, None), **common("sft", 4e-3, batch_size=32, epochs=5)),
        ),
        (
            "reward model: learn the annotators' noisy preferences",
            train_reward,
            RewardConfig(
                model(sft),
                data(paths.preferences, paths.preferences_eval),
                **common("reward", 1e-3, batch_size=32, epochs=2, eval_every=100),
            ),
        ),
        (
            "PPO: sample, score with the reward model, improve",
            train_online,
            online_config(
                "ppo",
                model=model(sft),
                data=data(paths.prompts, paths.prompts_eval),
                rewards=RewardsConfig((reward,)),
                shaping={"missing_eos_penalty": 1.0},
                kl={"coef": 0.4},
                sampling=SAMPLING,
                **common("ppo", 2e-4, batch_size=64, epochs=1, eval_every=32),
            ),
        ),
        (
            "DPO: learn from the same preferences directly",
            train_preference,
            preference_config(
                "dpo",
                model=model(sft),
                data=data(paths.preferences, paths.preferences_eval),
                loss={"beta": 0.2},
                **common("dpo", 1e-4, batch_size=32, epochs=1, eval_every=50),
            ),
        ),
    ]


def evaluate(out: Path, paths: WorldPaths, seed: int, ranks: World, command: str) -> PolicyTable:
    """SFT, PPO and DPO on the held-out prompts, graded by the rubric, and gold against proxy over PPO's training. Every
    rank must call it."""
    world = load_world(paths.world)
    config = EvalConfig(
        policies=tuple(f"{name}={out / folder}" for name, folder in (("SFT", "sft"), ("PPO", "ppo"), ("DPO", "dpo"))),
        prompts=str(paths.prompts_eval),
        out=str(out),
        reference=str(out / "sft"),
        rewards=(f"proxy={out / 'reward'}",),
        answers=ANSWERS,
        seed=seed,
        resume=True,
        precision="fp32",
        sampling=SAMPLING,
    )
    prompts = distributed.on_main(lambda: prompts_of(config))
    graded = {"gold": lambda prompt, text: world.gold(prompt, text).reward}
    return replace(evaluated(config, ranks, prompts, graded, command=command), tracks=(_track(out / "ppo", world),))


def _track(run: Path, world: AssistantWorld) -> Track:
    """Gold and proxy reward of the answers that PPO's evaluations wrote to samples.jsonl."""
    by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in read_jsonl(run / "samples.jsonl"):
        if row.get("held_out"):
            by_step[row["step"]].append(row)
    points = []
    for step, rows in sorted(by_step.items()):
        gold = [world.gold([Message(**m) for m in row["prompt"]], row["response"]).reward for row in rows]
        kl = sum(row["kl"] for row in rows) / len(rows)
        points.append(TrackPoint(step, kl, mean_interval(gold), mean_interval([row["reward"] for row in rows])))
    return Track("PPO", tuple(points))


def accuracy(run: Path) -> str:
    """The reward model's last held-out accuracy with its interval, in words."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "eval/accuracy" in row]
    if not rows:
        return "unknown: no held-out pair"
    value, low, high = (rows[-1][f"eval/accuracy{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1%} (95 % interval {low:.1%} to {high:.1%})"
