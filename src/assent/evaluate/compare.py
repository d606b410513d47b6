"""Several objectives on the same data, from the same start, under the same budget: one table and one report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from assent import distributed, lock
from assent.algorithms.preference.train import train_preference
from assent.config import OBJECTIVES, CompareConfig, EvalConfig, PreferenceConfig, ReportConfig, settings
from assent.config.inputs import is_input
from assent.config.words import command_of
from assent.distributed import World
from assent.errors import ConfigError, RunFolderError
from assent.evaluate.cache import CACHE
from assent.evaluate.evaluation import PLACES, answers_of, evaluated, prompts_of, try_places
from assent.evaluate.pages import check_page
from assent.evaluate.prompts import PromptSet
from assent.evaluate.report import write_report
from assent.evaluate.results import EVALUATION, PolicyTable
from assent.evaluate.terminal import render
from assent.models.loading import quiet_transformers
from assent.names import suggestion
from assent.outputs import try_file
from assent.train.runfolder import owned

log = logging.getLogger(__name__)

REPORT = "report.html"
START = "start"
"""The name of the policy that every objective began with."""
SHARED = ("model", "data", "optim", "train", "report_to")


def compare(config: CompareConfig) -> Path:
    """Trains every objective into `config.out`/NAME, samples answers of each and of the start, scores them, and writes
    `config.out`/report.html, which it returns. Ranks share the work, on the devices that they train on. With `resume`
    interrupted runs go on; of finished ones it is made sure that nothing they were made from has changed.

    The start answers, and is scored, before anything is trained: what could fail at the end fails then.

    Raises ConfigError for options that an objective does not have, RunFolderError where `config.out` holds something
    and `resume` is off, OutputError where it cannot be written, RewardError for a scorer that gives no number."""
    quiet_transformers()
    world, out = distributed.init(config.train.threads), Path(config.out)
    with owned(out):
        return _compare(config, world, out)


def _compare(config: CompareConfig, world: World, out: Path) -> Path:
    distributed.on_main(lambda: _check_free(out, config))
    runs = {name: objective_config(config, name) for name in config.objectives}
    prompts = distributed.on_main(partial(_prompts, config))
    distributed.on_main(lambda: try_file(out / REPORT, f"--out {out}: {REPORT}"))
    try_places(out)
    log.info(f"answers of {START} to {len(prompts)} prompts, before anything is trained")
    answers_of(evaluation_config(config, ()), world, prompts)
    for number, (name, run) in enumerate(runs.items(), 1):
        log.info(f"[{number}/{len(runs) + 1}] {name}")
        train_preference(run)
    log.info(f"[{len(runs) + 1}/{len(runs) + 1}] answers of {len(runs) + 1} policies to {len(prompts)} prompts")
    command = command_of("compare", config, leave=PLACES)
    table = evaluated(evaluation_config(config, tuple(runs)), world, prompts, command=command)

    def report() -> Path:
        render(table, Console(width=None if sys.stdout.isatty() else 120))
        title = f"{len(runs)} objectives on {config.data.train}"
        return write_report(ReportConfig((str(out),), str(out / REPORT), title))

    return distributed.on_main(report)


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
    on."""
    names = lock.content(out)
    if names and config.resume is None:
        raise RunFolderError(f"--out {out}: not empty. Continue it with --resume auto, or choose another --out.")
    if names and not names & {*OBJECTIVES, CACHE}:
        raise RunFolderError(f"--resume {config.resume}: no earlier comparison is in {out}. Choose another --out.")
    if (out / REPORT).is_file():
        check_page(out / REPORT)
    if (out / EVALUATION).is_file():
        PolicyTable.load(out / EVALUATION)


def objective_config(config: CompareConfig, name: str) -> PreferenceConfig:
    """The configuration of one run: what all share, and the `options` that begin with its name."""
    cls = OBJECTIVES[name].config
    resume = "auto" if config.resume is not None else None
    run = {field: getattr(config, field) for field in SHARED} | {"out": str(Path(config.out) / name), "resume": resume}
    run["resume_changed"] = tuple(name for name in config.resume_changed if is_input(cls, name))
    plain = yaml.safe_load(settings.dump(cls(**run)))
    for option, value in config.options.items():
        objective, _, key = option.partition(".")
        if objective == name:
            known = [known.name for known in settings.options(cls)]
            if key not in known:
                hint = suggestion(key, known, f"{name}.")
                raise ConfigError(f"--options {option}: {name} has no option '{key}'.{hint}")
            _set(plain, key.split("."), yaml.safe_load(value))
    loaded = settings.load(cls, yaml.safe_dump(plain), f"--options of {name}")
    settings.validate(loaded)
    return loaded


def _set(tree: dict[str, Any], path: list[str], value: object) -> None:
    for part in path[:-1]:
        tree = tree[part]
    tree[path[-1]] = value
