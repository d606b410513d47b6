"""Several objectives on the same data, from the same start, under the same budget: one table and one report."""

from __future__ import annotations

import logging
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from assent import distributed, lock
from assent.algorithms.preference.train import train_preference
from assent.config import OBJECTIVES, CompareConfig, PreferenceConfig, ReportConfig, settings
from assent.config.inputs import is_input
from assent.data.formats import load_examples
from assent.data.records import Example
from assent.distributed import World
from assent.errors import ConfigError, DataError, RunFolderError
from assent.evaluate.answers import sample_answers
from assent.evaluate.generation import Answer, PolicyTable, Prompt, Scorer, evaluate_policies, scored
from assent.evaluate.pages import check_page
from assent.evaluate.report import write_report
from assent.evaluate.runs import EVALUATION
from assent.functions import load_function
from assent.guest import Guest, blamed, ends_programs
from assent.models.loading import quiet_transformers
from assent.models.sources import model_folder
from assent.names import suggestion
from assent.outputs import try_file
from assent.rewards.group import Group, RewardError, checked
from assent.train.beforehand import ANSWER
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
    prompts = _prompts(config)
    scorers: dict[str, Scorer] = {} if config.scorer is None else {"gold": gold(config.scorer, prompts)}
    distributed.on_main(lambda: _try(out, scorers, prompts[0]))
    start = Path(model_folder(config.model.path))

    def answers_of(folder: Path) -> list[Answer]:
        return sample_answers(
            folder,
            prompts,
            reference=start,
            reward_model=Path(config.reward_model) if config.reward_model else None,
            sampling=config.sampling,
            world=world,
            per_prompt=config.answers,
            seed=config.train.seed,
            precision=config.model.precision,
        )

    log.info(f"answers of {START} to {len(prompts)} prompts, before anything is trained")
    first = answers_of(start)
    answers = {START: distributed.on_main(lambda: scored(first, [e.prompt for e in prompts], scorers))}

    def stage(number: int, text: str) -> None:
        log.info(f"[{number}/{len(runs) + 1}] {text}")

    for number, (name, run) in enumerate(runs.items(), 1):
        stage(number, name)
        train_preference(run)
    stage(len(runs) + 1, f"answers of {len(runs) + 1} policies to {len(prompts)} prompts")
    answers |= {name: answers_of(Path(run.out) / "model") for name, run in runs.items()}

    def report() -> Path:
        by = "gold" if scorers else "proxy"
        table = evaluate_policies(answers, [example.prompt for example in prompts], scorers, baseline=START, gold=by)
        table.save(out / EVALUATION)
        table.render(Console(width=None if sys.stdout.isatty() else 120))
        title = f"{len(runs)} objectives on {config.data.train}"
        return write_report(ReportConfig((str(out),), str(out / REPORT), title))

    return distributed.on_main(report)


def gold(spec: str, prompts: Sequence[Example]) -> Scorer:
    """The user's function as a scorer of answers to these prompts. It raises RewardError, with the function's line,
    for what the function raises, and for what is no number and not None."""
    guest, by_prompt = Guest(), {example.prompt: example for example in prompts}
    with guest.turn():
        function = load_function(spec, "--scorer")

    def score(prompt: Prompt, answer: str) -> float | None:
        example = by_prompt[tuple(prompt)]
        with guest.turn():
            try:
                value = function(prompt, answer)
            except BaseException as error:
                if not isinstance(error, Exception) and not ends_programs(error):
                    raise
                raised = blamed(error, spec.rpartition(":")[0])
                to = f"for the answer {reprlib.repr(answer)} to {example.origin}"
                raise RewardError(f"--scorer {spec} raised {raised} {to}.") from error
        if value is None:
            return None
        return float(checked(f"--scorer {spec}", [Group(example, (answer,), (True,), (0,))], [value])[0])

    return score


def _try(out: Path, scorers: Mapping[str, Scorer], example: Example) -> None:
    """What is only needed at the end: the places of the results, and the scorers, on a made-up answer."""
    for place in (EVALUATION, REPORT):
        try_file(out / place, f"--out {out}: {place}")
    for score in scorers.values():
        score(example.prompt, ANSWER)


def _check_free(out: Path, config: CompareConfig) -> None:
    """Raises RunFolderError where something else than an earlier comparison is in the folder, or that is not to go
    on."""
    names = lock.content(out)
    if names and config.resume is None:
        raise RunFolderError(f"--out {out}: not empty. Continue it with --resume auto, or choose another --out.")
    if names and not names & OBJECTIVES.keys():
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


def _prompts(config: CompareConfig) -> list[Example]:
    """Prompts to answer, each once."""
    file = config.prompts or config.data.eval
    if file is None:
        raise ConfigError("assent compare needs prompts to answer. Give --prompts FILE or --data.eval FILE.")
    shape: Mapping[str, Any] = {} if config.prompts else {"format": config.data.format, "columns": config.data.columns}
    examples = load_examples(file, **shape).examples
    unique = list({(example.prompt, example.tools): example for example in examples if example.prompt}.values())
    if not unique:
        raise DataError(f"{file}: no row has a prompt to answer.")
    return unique
