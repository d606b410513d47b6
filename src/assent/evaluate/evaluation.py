"""`assent eval`: the one way from policies and prompts to numbers. `assent compare` and the demo go it too."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from assent import distributed, lock
from assent.config import EvalConfig
from assent.config.evaluation import JUDGES, kind_of
from assent.config.words import command_of
from assent.data.formats import message_row
from assent.data.jsonl import json_line
from assent.distributed import World
from assent.errors import ConfigError, Incomplete, RunFolderError
from assent.evaluate.alpaca_eval import with_gamed, write_annotations, write_model_outputs
from assent.evaluate.answer_files import read_answers
from assent.evaluate.answers import NO_REFERENCE, Asking, Sampled
from assent.evaluate.cache import CACHE, Cache
from assent.evaluate.duels import LABELS, consistency, judged, probes, read_labels
from assent.evaluate.elsewhere import NOTHING, Elsewhere, read_results
from assent.evaluate.frontier import with_frontier
from assent.evaluate.measured import Evaluated, evaluate_policies
from assent.evaluate.others import CONSISTENCY, TOXICITY, Others
from assent.evaluate.policies import PolicySource, policies_of
from assent.evaluate.prompts import PromptSet, overlap, read_prompts
from assent.evaluate.results import ANSWERS, EVALUATION, PolicyTable, plain
from assent.evaluate.scores import Scorer, Sources
from assent.evaluate.terminal import render
from assent.foreign import without_keys
from assent.measures.answers import Answers
from assent.measures.shapes import NEEDS, Column, Duels, Measured, Need
from assent.measures.table import own_rows, required
from assent.models.loading import quiet_transformers
from assent.models.sources import check_there
from assent.outputs import try_file, write_text
from assent.rewards.pool import end_workers
from assent.train.runfolder import owned

log = logging.getLogger(__name__)

CSV = "evaluation.csv"
PLACES = ("out", "resume", "resume_changed")
"""Options that say where results go, and not what they are."""


def evaluate(config: EvalConfig) -> PolicyTable:
    """Answers of every policy to every prompt, scored, compared and measured: `config.out`/evaluation.json has every
    number with its interval and failures, evaluation.csv the same as rows, answers.jsonl every answer, model_outputs/
    and annotations/ the answers and the comparisons for alpaca_eval; the table goes to standard output. Ranks share the
    work.

    Raises ConfigError and DataError before work is spent for what cannot be done, ModelError for a policy that is none,
    RunFolderError where `config.out` holds something and `resume` is off, OutputError where it cannot be written; and,
    when all is written, Incomplete where a judge's server left questions without an answer."""
    quiet_transformers()
    world, out = distributed.init(), Path(config.out)
    with owned(out):
        distributed.on_main(partial(_check_free, out, config.resume))
        prompts = distributed.on_main(partial(prompts_of, config))
        distributed.on_main(partial(check_prompts, out, prompts))
        table = evaluated(config, world, prompts)
        if world.is_main:
            render(table, Console(width=None if sys.stdout.isatty() else 120))
    if table.unanswered:
        counts = ", ".join(f"{name} {count}" for name, count in table.unanswered.items())
        raise Incomplete(
            f"--out {out}: written, but judges' servers left questions without an answer ({counts}), failures in "
            "the table. The same command with --resume asks them alone."
        )
    return table


def prompts_of(config: EvalConfig) -> PromptSet:
    """The prompts that the options name."""
    shape: dict[str, Any] = {name: getattr(config, name) for name in ("format", "columns", "split", "limit", "kind")}
    context = None if config.consistency is None else config.context or ""
    prompts = read_prompts(config.prompts, **shape, context=context)
    return prompts if config.gamed is None else with_gamed(prompts, config.gamed, config.limit)


def check_prompts(out: Path, prompts: PromptSet) -> None:
    """Raises RunFolderError where the evaluation in a folder is of other prompts."""
    if not (out / EVALUATION).is_file():
        return
    there = PolicyTable.load(out / EVALUATION)
    if there.digest and there.digest != prompts.digest:
        raise RunFolderError(
            f"--resume: the evaluation in {out} is of other prompts ({there.prompts} of {there.file}) than the "
            f"{len(prompts)} of {prompts.file}. Give the same, or choose another --out."
        )


def evaluated(
    config: EvalConfig,
    world: World,
    prompts: PromptSet,
    functions: Mapping[str, Scorer] | None = None,
    beside: Elsewhere = NOTHING,
    command: str | None = None,
) -> PolicyTable:
    """The same in a folder that the caller owns; `functions` score answers beside what the options name, the numbers
    `beside` stand in the table, too, and `command` is what gives it again where `assent eval` alone would not. Every
    rank must call it; each gets the table, and rank 0 writes the files."""
    out = Path(config.out)
    policies = policies_of(config)
    own_rows(config.form, config.json_keys)  # what is wrong with them is said at once
    try_places(out)
    sources = Sources(config, prompts, world, functions)
    rewards = (*sources.names, *sources.judges)
    elsewhere = distributed.on_main(partial(read_results, config.results, policies, rewards)).plus(beside)
    for policy in policies:
        if policy.is_file:
            distributed.on_main(partial(read_answers, policy, prompts))  # what is wrong with it is said at once
    _check_measures(config, prompts, policies, sources)
    _check_models(config)
    try:
        others = Others(config, prompts, world)
        sources.check(policies)
        sampled = _all(config, world, prompts, policies)
        scored = [
            replace(each, answers=others.added(sources.scored(policy, each)))
            for policy, each in zip(policies, sampled, strict=True)
        ]
        verdicts = _verdicts(config, policies, scored, sources, prompts)
        lost = sources.unanswered | others.unanswered
    finally:
        end_workers()
    told = command_of("eval", config, ("policies",), PLACES) if command is None else command
    known = Known(elsewhere, others.notes, {name: counted.total() for name, counted in lost.items()}, told)
    return distributed.on_main(partial(_finish, config, policies, scored, verdicts, prompts, known))


@dataclass(frozen=True)
class Known:
    """What else is known: numbers from elsewhere, how other models were asked, judge -> how many questions its server
    did not answer, and the command that gives all of it again."""

    elsewhere: Elsewhere
    notes: tuple[str, ...]
    unanswered: Mapping[str, int]
    command: str


def answers_of(
    config: EvalConfig, world: World, prompts: PromptSet, functions: Mapping[str, Scorer] | None = None
) -> list[Answers]:
    """The answers of every policy, scored; those of models stay in the cache. Every rank must call it."""
    policies, sources = policies_of(config), Sources(config, prompts, world, functions)
    try:
        sources.check(policies)
        return [
            sources.scored(policy, each)
            for policy, each in zip(policies, _all(config, world, prompts, policies), strict=True)
        ]
    finally:
        end_workers()


def _all(config: EvalConfig, world: World, prompts: PromptSet, policies: Sequence[PolicySource]) -> list[Sampled]:
    """The answers of every policy: read, from the cache, or sampled."""
    asking, cache = Asking(config, prompts, world), Cache(Path(config.out), config, prompts)
    return [
        Sampled(distributed.on_main(partial(read_answers, policy, prompts)))
        if policy.is_file
        else _sampled(policy, number, len(policies), asking, cache)
        for number, policy in enumerate(policies, 1)
    ]


def try_places(out: Path) -> None:
    """Raises OutputError where the results could not be written: before work is spent."""

    def tried() -> None:
        for name in (EVALUATION, CSV, ANSWERS):
            try_file(out / name, f"--out {out}: {name}")

    distributed.on_main(tried)


def _check_free(out: Path, resume: bool) -> None:
    names = lock.content(out)
    if names and not resume:
        raise RunFolderError(f"--out {out}: not empty. Continue an evaluation with --resume, or choose another --out.")
    if names and not names & {CACHE, EVALUATION}:
        raise RunFolderError(f"--resume: no earlier evaluation is in {out}. Choose another --out.")
    if (out / EVALUATION).is_file():
        PolicyTable.load(out / EVALUATION)


def _check_measures(config: EvalConfig, prompts: PromptSet, policies: Sequence[PolicySource], sources: Sources) -> None:
    """Raises ConfigError for a measure that is none, or that this evaluation cannot have."""
    asked = any(not policy.is_file for policy in policies)
    given = prompts.given
    verdicts = bool(sources.names or sources.judges or config.labels)
    met: dict[Need, bool] = {
        "references": any(prompts.columns.references),
        "kinds": any(prompts.columns.kinds),
        "log_prob": asked,
        "entropy": asked,
        "reference": config.reference is not None,
        "several": config.answers > 1 or not asked,
        "given": asked and bool(given),
        "pairs": asked and any(row.pairs for row in given),
        "labels": asked and any(row.one or row.some for row in given),
        "scores": bool(sources.names),
        "baseline": len(policies) > 1 and verdicts,
        "gamed": config.gamed is not None,
        "toxicity": config.toxicity is not None,
        "claims": config.consistency is not None,
    }
    for name in config.measures:
        row = required(name, "--measures")
        if lack := next((need for need in row.needs if not met.get(need, True)), None):
            raise ConfigError(f"--measures {name} needs {NEEDS[lack]}. {config.prompts} and the options give none.")
    if config.reference is not None and not asked:
        raise ConfigError("--reference is what sampled answers are compared with. All policies are files of answers.")


def _check_models(config: EvalConfig) -> None:
    """Raises ModelError, with the option, for a model that is named and not there."""
    consistency = config.consistency if config.consistency and kind_of(config.consistency) not in JUDGES else None
    for flag, path in {"--reference": config.reference, TOXICITY: config.toxicity, CONSISTENCY: consistency}.items():
        if path is not None:
            check_there(flag, path)


def _sampled(policy: PolicySource, number: int, count: int, asking: Asking, cache: Cache) -> Sampled:
    """The answers of a model, from the cache where they are there."""
    key = distributed.on_main(partial(cache.key, policy))
    found = distributed.on_main(partial(cache.get, policy, key))
    if found is not None:
        log.info(f"[{number}/{count}] answers of {policy.name} are in the cache")
        return found
    log.info(f"[{number}/{count}] answers of {policy.name} to {len(asking.prompts)} prompts")
    made = asking.sample(policy)
    distributed.on_main(partial(cache.put, key, made))
    return made


@dataclass(frozen=True)
class Verdicts:
    """Policy -> source -> its comparisons with the baseline, what is known of the judges, and sentences."""

    duels: Mapping[str, Mapping[str, Duels]]
    probes: Mapping[str, Measured]
    notes: tuple[str, ...]


def _baseline(config: EvalConfig, policies: Sequence[PolicySource]) -> str:
    return config.baseline or policies[0].name


def _verdicts(
    config: EvalConfig,
    policies: Sequence[PolicySource],
    scored: Sequence[Sampled],
    sources: Sources,
    prompts: PromptSet,
) -> Verdicts:
    """What judges and labels say. Every rank must call it."""
    place = [policy.name for policy in policies].index(_baseline(config, policies))
    baseline = scored[place].answers
    duels: dict[str, dict[str, Duels]] = {policy.name: {} for policy in policies}
    found: dict[str, Measured] = {}
    notes: tuple[str, ...] = ()
    for name in sources.judges:
        noted: dict[str, list[float]] = {}
        for policy, each in zip(policies, scored, strict=True):
            if each.answers is baseline or not len(each.answers):
                continue
            own, metrics = judged(name, sources.judge(name, policy), prompts, each.answers, baseline)
            duels[policy.name][name] = own
            for metric, values in metrics.items():
                noted.setdefault(metric, []).extend(values)
        if len(baseline):
            found |= consistency(name, noted) | probes(name, sources.judge(name, policies[place]), prompts, baseline)
    if config.labels is not None:
        everyone = [each.answers for each in scored]
        labelled, notes = distributed.on_main(partial(read_labels, config.labels, prompts, everyone, baseline))
        for labelled_name, verdicts in labelled.items():
            duels[labelled_name][LABELS] = verdicts
    return Verdicts(duels, found, notes)


def _finish(
    config: EvalConfig,
    policies: Sequence[PolicySource],
    scored: Sequence[Sampled],
    verdicts: Verdicts,
    prompts: PromptSet,
    known: Known,
) -> PolicyTable:
    """Measures, and writes the files."""
    log.info(f"measuring {sum(len(each.answers) for each in scored):,} answers of {len(scored)} policies")
    everyone = [
        Evaluated(
            each.answers,
            each.given,
            verdicts.duels[policy.name],
            policy.path,
            _notes(policy, prompts, each.answers),
            {"reference": NO_REFERENCE} | dict(each.without) if config.reference else {},
            known.elsewhere.policies.get(policy.name, {}),
            policy.series,
            policy.step,
        )
        for policy, each in zip(policies, scored, strict=True)
    ]
    found = evaluate_policies(
        everyone,
        prompts.messages,
        _baseline(config, policies),
        measures=config.measures,
        own=own_rows(config.form, config.json_keys),
        within=config.within,
        file=prompts.file,
        seed=config.seed,
    )
    elsewhere = known.elsewhere
    table = replace(
        found.table,
        probes={**verdicts.probes, **elsewhere.sources},
        measures={**found.table.measures, **elsewhere.described()},
        digest=prompts.digest,
        notes=(*elsewhere.notes, *verdicts.notes, *known.notes),
        unanswered=known.unanswered,
        command=without_keys(known.command),
    )
    table = with_frontier(table, everyone)
    out = Path(config.out)
    write_text(out / ANSWERS, "".join(map(json_line, answer_rows(everyone, prompts, found.columns))))
    for policy in everyone:
        write_model_outputs(policy.answers, prompts, out)
        write_annotations(found.duels.get(policy.name, {}), prompts, out)
    write_text(out / CSV, table.csv())
    table.save(out / EVALUATION)
    return table


def _notes(policy: PolicySource, prompts: PromptSet, answers: Answers) -> tuple[str, ...]:
    notes = [] if policy.run is None else [overlap(prompts, policy.run)]
    if answers.unanswered:
        notes.append(f"{len(answers.unanswered)} of {len(prompts)} prompts have no answer")
    return tuple(filter(None, notes))


def answer_rows(
    policies: Sequence[Evaluated], prompts: PromptSet, measured: Mapping[str, Mapping[str, Column]]
) -> list[dict[str, object]]:
    """A row for each answer: every column, and the number of every measure that is one of each answer."""
    rows = []
    for policy in policies:
        answers = policy.answers
        known = {name: getattr(answers, name) for name in ("tokens", "finished", "log_prob", "reference_log_prob")}
        columns = {name: values.tolist() for name, values in known.items() if values is not None}
        for index, (place, text) in enumerate(zip(answers.prompt.tolist(), answers.texts, strict=True)):
            row: dict[str, Any] = {
                "policy": policy.name,
                "prompt_index": place,
                "prompt": [message_row(message) for message in prompts.examples[place].prompt],
                "response": text,
            }
            row |= {"kind": kind} if (kind := answers.kind(index)) else {}
            row |= {name: values[index] for name, values in columns.items()}
            row["measures"] = {name: column.values[index] for name, column in measured[policy.name].items()}
            row["scores"] = {name: float(values[index]) for name, values in answers.scores.items()}
            told = {name: reasons[index] for name, reasons in answers.unscored.items() if reasons[index]}
            row |= {"unscored": told} if told else {}
            verdicts = {
                name: duels.outcome[duels.pairs[:, 0] == index].tolist() for name, duels in policy.duels.items()
            }
            row |= {"wins": verdicts} if verdicts else {}
            if answers.claims is not None:
                row["claims"] = [claim._asdict() for claim in answers.claims.found[index]]
            rows.append(plain(row))
    return rows  # type: ignore[return-value]
