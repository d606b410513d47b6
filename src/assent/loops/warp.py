"""`assent warp`: WARP, weight averaged rewarded policies (arXiv 2406.16768).

    theta_m = a run of RL from theta_start, its KL from its own moving average     m = 1 ... M
    theta_merged = theta_start + slerp of the task vectors theta_m - theta_start   one angle for each layer
    theta_start <- (1 - eta) theta_start + eta theta_merged                        for the next round

and at the end the front (1 - eta) theta_first + eta theta_merged by KL from the first start and reward.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from assent import distributed
from assent.algorithms.merge import merge
from assent.config import MergeConfig, OnlineConfig
from assent.config.training import START
from assent.config.warp import WarpConfig, evaluation_of, run_of
from assent.config.words import command_of
from assent.errors import AssentError, ConfigError, ShutdownRequested
from assent.evaluate.results import EVALUATION, PolicyTable
from assent.loops.children import Child, RunFailed, devices, stopped, together
from assent.loops.evaluated import evaluate_round
from assent.loops.front import CSV, FIGURE, TABLE, front_of
from assent.loops.loop import Loop, opened, outcome, seed_of
from assent.models.saving import stored_dtype
from assent.models.sources import resolve
from assent.models.stored import configuration
from assent.outputs import write_text

Dtype = Literal["auto", "fp32", "bf16", "fp16"]


def warp(config: WarpConfig) -> Path:
    """Runs the rounds in `config.out`, and writes the front; returns the merged model of the last round. With `resume`
    it goes on where it was interrupted; finished runs and models are not made again.

    A run that does not come to its end (a number that is not finite, the drift alarm with --alarm.stop) ends the loop
    with its own exit code; all that was made is kept, and the same command with --resume auto goes on with that run.

    Raises ConfigError and RunFolderError as `opened`, and what runs, merges and evaluations raise."""
    with opened("warp", config) as loop:
        at_once = _at_once(config, loop)
        known = None
        if config.front:  # what could fail at the end fails now
            known = _evaluated(loop, config, "start/eval", {START: config.model.path})
        start = merged = config.model.path
        for number in range(1, config.rounds + 1):
            if number > 1:
                about = f"{config.eta:g} of the way from the last start to what was merged"
                start = _merged(loop, f"round-{number}/start", _towards(start, merged, config.eta), about)
            runs = _runs(loop, config, number, start, at_once)
            merged = _merged(loop, f"round-{number}/merged", _merge_of(config, start, runs), f"of {len(runs)} runs")
            if config.front:
                models = {START: config.model.path, f"round-{number}": merged}
                known = _evaluated(loop, config, f"round-{number}/eval", models, known)
        if config.front:
            _front(loop, config, merged, known)
        return Path(merged)


def _at_once(config: WarpConfig, loop: Loop) -> int:
    """Processes for the runs of a round; 0: none but this one."""
    if config.parallel and loop.world.size > 1:
        raise ConfigError(
            f"--parallel {config.parallel} is for one process: here {loop.world.size} ranks share the work of one run "
            "after the other. Leave it away."
        )
    there = devices()
    if there and config.parallel > len(there):
        raise ConfigError(
            f"--parallel {config.parallel}: each run has a CUDA device of its own, and there are {len(there)}."
        )
    return min(config.parallel, config.runs)


# ---- the runs of a round


def _runs(loop: Loop, config: WarpConfig, number: int, start: str, at_once: int) -> list[str]:
    """The run folders of a round."""
    place = f"round-{number}"
    planned: dict[str, OnlineConfig] = {}
    for run in range(1, config.runs + 1):
        name, seed = f"{place}/run-{run}", seed_of(config.train.seed, "round", number, "run", run)
        planned[name] = replace(run_of(config, start, str(loop.folder / name), number, seed), resume="auto")
    left = [name for name in planned if name not in loop.done]
    if left:
        shown = f"{len(planned)} runs of {config.policy} from {start}"
        again = "" if len(left) == len(planned) else f", {len(left)} of them not finished yet"
        loop.say(f"round {number} of {config.rounds}: {shown}{again}")
    if at_once and left:
        children = [Child(name, tuple(shlex.split(command_of(config.policy, planned[name]))[1:])) for name in left]
        try:
            together(children, at_once, devices())
        except RunFailed as error:
            loop.say(stopped(error.name, loop.folder))
            raise
    return [str(_run(loop, name, run, [start, *_read_by(run)], trained=at_once > 0)) for name, run in planned.items()]


def _run(loop: Loop, name: str, run: OnlineConfig, reads: Sequence[str], *, trained: bool) -> Path:
    """A run as a stage; `trained`: by a process of its own, where it was not finished before."""
    if trained:
        return loop.stage(name, outcome, reads=reads)
    try:
        return loop.train(name, run, reads=reads)
    except ShutdownRequested:
        raise
    except AssentError:
        loop.say(stopped(name, loop.folder))
        raise


def _read_by(run: OnlineConfig) -> list[str]:
    """What all runs read beside their start, as far as it lies here: none of it may change between rounds."""
    rewards = run.rewards
    files = (run.data.train, *(word.rpartition(":")[0] for word in rewards.functions))
    return [*rewards.model, *(file for file in files if Path(file).is_file())]


# ---- merged models


def _merge_of(config: WarpConfig, start: str, runs: Sequence[str]) -> MergeConfig:
    """How the runs of a round become one model."""
    if config.merge == "linear":
        return MergeConfig(tuple(runs), "linear", "", dtype="fp32")
    weights = (1 - config.weight, config.weight) if len(runs) == 2 else (1.0,) * len(runs)  # λ of the m-th: 1 / m
    return MergeConfig(tuple(runs), "slerp", "", base=start, weights=weights, dtype="fp32")


def _towards(start: str, merged: str, eta: float, dtype: Dtype = "fp32") -> MergeConfig:
    """(1 - eta) start + eta merged."""
    return MergeConfig((merged,), "liti", "", base=start, eta=eta, dtype=dtype)


def _merged(loop: Loop, name: str, config: MergeConfig, about: str) -> str:
    """A merged model as a stage."""

    def make(path: Path) -> None:
        def written() -> None:
            shutil.rmtree(path, ignore_errors=True)  # whole, but nobody has noted it down
            merge(replace(config, out=str(path)))

        distributed.on_main(written)

    reads = [*config.models, *([config.base] if config.base is not None else [])]
    return str(loop.stage(name, make, reads=reads, about=about))


# ---- the front


def _front(loop: Loop, config: WarpConfig, merged: str, known: Path | None) -> None:
    """The models on the way from the first start to the merged one, evaluated; the table and its figure."""
    place, first = f"round-{config.rounds}", config.model.path
    dtype = distributed.on_main(partial(_dtype, config))
    models, etas = {START: first}, {START: 0.0}
    for eta in sorted(config.front):
        if eta > 0:
            name = f"eta-{eta:g}"
            about = f"{eta:g} of the way from {first} to the merged model"
            models[name] = _merged(loop, f"{place}/front/{name}", _towards(first, merged, eta, dtype), about)
            etas[name] = eta
    found = _evaluated(loop, config, f"{place}/front/eval", models, known)
    front = front_of(PolicyTable.load(found / EVALUATION), etas)
    for file, text in ((TABLE, front.json()), (CSV, front.csv()), (FIGURE, front.svg())):
        loop.stage(f"{place}/{file}", partial(_written, text), reads=[found / EVALUATION])
    for line in front.lines():
        loop.say(line)


def _evaluated(loop: Loop, config: WarpConfig, name: str, models: Mapping[str, str], known: Path | None = None) -> Path:
    """The answers of these models to the held-out prompts, scored, as a stage; those in the evaluation `known` are not
    sampled again."""
    return evaluate_round(loop, name, evaluation_of(config, models, str(loop.folder / name)), known=known)


def _written(text: str, path: Path) -> None:
    distributed.on_main(lambda: write_text(path, text))


def _dtype(config: WarpConfig) -> Dtype:
    """The number format of the models of the front: the one asked for, or that of the first start. (On the way there
    all is fp32: a step may be smaller than the rounding of bf16.)"""
    if config.model.save_dtype != "auto":
        return config.model.save_dtype
    source = resolve(config.model.path, config.model.revision)
    below = configuration(source.base, source.revision, config.model.trust_remote_code)
    stored = stored_dtype(source.base, source.revision, below)
    names: dict[torch.dtype, Dtype] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names.get(stored, "fp32")
