"""Several methods on the same data, from the same start, under the same budget: one table and one report."""

from __future__ import annotations

import gc
import importlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from assent import distributed, lock
from assent.config import TRAINERS, CompareConfig, EvalConfig, PolicyRunConfig, ReportConfig, named_methods, settings
from assent.config.composed import composed
from assent.config.inputs import is_input
from assent.config.training import START
from assent.config.words import command_of
from assent.distributed import World
from assent.errors import ConfigError, RunFolderError
from assent.evaluate.budget import budgets
from assent.evaluate.cache import CACHE
from assent.evaluate.evaluation import PLACES, answers_of, check_prompts, evaluated, prompts_of, try_places
from assent.evaluate.pages import check_page
from assent.evaluate.prompts import PromptSet
from assent.evaluate.report import write_report
from assent.evaluate.results import EVALUATION, PolicyTable
from assent.evaluate.terminal import render
from assent.models.loading import quiet_transformers
from assent.outputs import try_file
from assent.train.loop import rehearsal
from assent.train.runfolder import owned

log = logging.getLogger(__name__)

REPORT, REHEARSAL = "report.html", "rehearsal"
SHARED = ("model", "data", "optim", "train", "report_to")
"""The sections that every method is given alike; those that sample are given `sampling`, too."""


def compare(config: CompareConfig) -> Path:
    """Trains every method into `config.out`/NAME, samples answers of each and of the start, scores them, and writes
    `config.out`/report.html, which it returns. Ranks share the work, on the devices that they train on. With `resume`
    interrupted runs go on; of finished ones it is made sure that nothing they were made from has changed.

    Before anything is trained every method reads its data, loads its models and tries its rewards, and the start
    answers and is scored: what could fail later fails then.

    Raises ConfigError for options that a method does not have or cannot take, RunFolderError where `config.out` holds
    something and `resume` is off, OutputError where it cannot be written, RewardError for a scorer that gives no
    number, and what the methods raise before their first step."""
    quiet_transformers()
    settings.validate(config)
    world, out = distributed.init(config.train.threads), Path(config.out)
    with owned(out):
        return _compare(config, world, out)


def _compare(config: CompareConfig, world: World, out: Path) -> Path:
    distributed.on_main(lambda: _check_free(out, config))
    runs = {name: method_config(config, name) for name in named_methods(config)}
    train = {name: _function(TRAINERS[method].target) for name, method in named_methods(config).items()}
    prompts = distributed.on_main(partial(_prompts, config))
    distributed.on_main(partial(check_prompts, out, prompts))
    distributed.on_main(lambda: try_file(out / REPORT, f"--out {out}: {REPORT}"))
    try_places(out)
    for name, run in runs.items():
        if not distributed.on_main(Path(run.out).exists):
            log.info(f"[0/{len(runs) + 1}] {name}: everything before its first step, to see whether it can be trained")
            with _rehearsed(out, run, world) as tried, _about(name):
                train[name](tried)
    log.info(f"answers of {START} to {len(prompts)} prompts, before anything is trained")
    answers_of(evaluation_config(config, ()), world, prompts)
    for number, (name, run) in enumerate(runs.items(), 1):
        log.info(f"[{number}/{len(runs) + 1}] {name}")
        train[name](run)
        gc.collect()  # models and engines, before the next ones are loaded
    log.info(f"[{len(runs) + 1}/{len(runs) + 1}] answers of {len(runs) + 1} policies to {len(prompts)} prompts")
    took = distributed.on_main(partial(budgets, runs))
    command = command_of("compare", config, leave=PLACES)
    table = evaluated(evaluation_config(config, tuple(runs)), world, prompts, beside=took, command=command)

    def report() -> Path:
        render(table, Console(width=None if sys.stdout.isatty() else 120))
        title = f"{len(runs)} methods on {config.data.train}"
        return write_report(ReportConfig((str(out),), str(out / REPORT), title))

    return distributed.on_main(report)


def _function(target: str) -> Callable[[Any], Any]:
    module, _, function = target.partition(":")
    found: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
    return found


@contextmanager
def _rehearsed(out: Path, run: PolicyRunConfig, world: World) -> Iterator[PolicyRunConfig]:
    """The run as one that ends before its first step and leaves nothing. Every rank must enter it."""
    place = out / REHEARSAL / Path(run.out).name
    distributed.on_main(lambda: shutil.rmtree(place.parent, ignore_errors=True))  # of one that was killed
    try:
        with rehearsal():
            yield replace(run, out=str(place), resume=None, resume_changed=())
    finally:
        gc.collect()
        if world.is_main:
            lock.release(place)
            shutil.rmtree(place.parent, ignore_errors=True)


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Names the method in whatever the options cannot do."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error} Options of {name} alone: --options {name}.OPTION:VALUE.") from error


def evaluation_config(config: CompareConfig, runs: Sequence[str]) -> EvalConfig:
    """The evaluation of the start and of these runs: what `assent eval` would be told."""
    file = config.prompts or config.data.eval
    if file is None:
        raise ConfigError("assent compare needs prompts to answer. Give --prompts FILE or --data.eval FILE.")
    shape: dict[str, Any] = {} if config.prompts else {"format": config.data.format, "columns": config.data.columns}
    scored_by = "proxy" if config.scorer else "reward"
    return EvalConfig(
        policies=(f"{START}={config.model.path}", *(f"{name}={Path(config.out) / name}" for name in runs)),
        prompts=file,
        out=config.out,
        baseline=START,
        reference=config.model.path,
        rewards=(f"{scored_by}={config.reward_model}",) if config.reward_model else (),
        scorer=config.scorer,
        answers=config.answers,
        seed=config.train.seed,
        resume=True,
        precision=config.model.precision,
        trust_remote_code=config.model.trust_remote_code,
        sampling=config.sampling,
        **shape,
    )


def _prompts(config: CompareConfig) -> PromptSet:
    """Prompts to answer, each once; answers of the held-out data are not asked about."""
    return replace(prompts_of(evaluation_config(config, ())), given=())


def _check_free(out: Path, config: CompareConfig) -> None:
    """Raises RunFolderError where something else than an earlier comparison is in the folder, or that is not to go
    on. What a rehearsal left that was killed does not count."""
    names = lock.content(out) - {REHEARSAL}
    if names and config.resume is None:
        raise RunFolderError(f"--out {out}: not empty. Continue it with --resume auto, or choose another --out.")
    if names and not names & {*named_methods(config), CACHE}:
        raise RunFolderError(f"--resume {config.resume}: no earlier comparison is in {out}. Choose another --out.")
    if (out / REPORT).is_file():
        check_page(out / REPORT)
    if (out / EVALUATION).is_file():
        PolicyTable.load(out / EVALUATION)


# ---- the configuration of a method


def method_config(config: CompareConfig, name: str) -> PolicyRunConfig:
    """The configuration of one run: what all share, the reward model where it learns from rewards, and the `options`
    that begin with its name. Raises ConfigError for what its method does not have or cannot take."""
    trainer = TRAINERS[named_methods(config)[name]]
    shared = settings.plain(config)
    tree: dict[str, Any] = {section: shared[section] for section in SHARED}
    tree |= {"out": str(Path(config.out) / name), "resume": None if config.resume is None else "auto"}
    tree["resume_changed"] = [option for option in config.resume_changed if is_input(trainer.config, option)]
    own = {
        key: value for option, value in config.options.items() for run, _, key in [option.partition(".")] if run == name
    }
    if trainer.is_online:
        tree["sampling"] = shared["sampling"]
        if config.reward_model and "rewards.model" not in own:
            tree["rewards"] = {"model": [config.reward_model]}
    made: PolicyRunConfig = composed(named_methods(config)[name], tree, own, prefix=f"{name}.")
    return made
