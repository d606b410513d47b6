"""`assent trust`: how far a source of rewards can be trusted on files of judged answers."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from assent import distributed
from assent.config import TrustConfig
from assent.data.records import Example
from assent.errors import OutputError
from assent.evaluate.benchmark import SPLIT, Benchmark, Name, detect, evaluate, read_benchmark, write_results
from assent.evaluate.pages import check_page
from assent.evaluate.score import answered
from assent.evaluate.scores import gold as gold_function
from assent.evaluate.trust_page import trust_page
from assent.evaluate.trust_table import table_rows
from assent.evaluate.trusted import KIND, FileTrust, Report, shown
from assent.measures.rewardbench import TIES
from assent.measures.trust import measure
from assent.models.loading import quiet_transformers
from assent.outputs import try_file, write_text
from assent.rewards.ensemble import Ensemble
from assent.rewards.group import GroupReward, Scores, WeightedSum
from assent.rewards.judged import RATINGS, Scorer, failures, judged, sensitivities
from assent.rewards.model import ModelReward
from assent.rewards.outside import open_source
from assent.rewards.pool import end_workers

log = logging.getLogger(__name__)

JSON, PAGE = "trust.json", "trust.html"


@dataclass(frozen=True, slots=True)
class Read:
    """A file: its examples, the benchmark that it is a copy of, if any, and why rows of it are not used."""

    file: str
    examples: Sequence[Example]
    benchmark: Benchmark | None
    unused: dict[str, int]


def trust(config: TrustConfig) -> Report:
    """`assent trust SOURCE FILE`: measures, prints a table, and with `config.out` writes trust.json, trust.html and the
    result files of benchmarks. Raises DataError for a file without answers, ConfigError and ModelError for a source
    that is none, OutputError where the folder holds something else under these names."""
    quiet_transformers()
    world = distributed.init()
    out = None if config.out is None else Path(config.out)
    if out is not None:
        distributed.on_main(partial(_try, out))
    files = [distributed.on_main(partial(_read, config, file)) for file in (config.file, *config.also)]
    outside = open_source(config, world)
    for each in files:
        outside.check(each.examples)
    try:
        found = tuple(_measured(config, each, outside.score, members_of(outside.source)) for each in files)
    finally:
        end_workers()
    report = Report(shown(config.source), found)
    if world.is_main:
        render(report, Console(width=None if sys.stdout.isatty() else 120))
    if out is not None:
        distributed.on_main(partial(save, report, out))
    return report


def save(report: Report, out: Path) -> None:
    """Writes trust.json and trust.html, each whole or not at all."""
    _try(out)
    write_text(out / JSON, json.dumps(report.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(out / PAGE, trust_page(report))
    log.info(f"Report: {out / PAGE}; all numbers: {out / JSON}")


def _try(out: Path) -> None:
    """Raises OutputError or RunFolderError where the results could not be written: before work is spent."""
    path = out / JSON
    if path.is_file():
        try:
            kind = json.loads(path.read_text(encoding="utf-8")).get("kind")
        except (OSError, ValueError, AttributeError):
            kind = None
        if kind != KIND:
            raise OutputError(f"--out {out}: {path} is there and no trust report, so it stays. Choose another folder.")
    check_page(out / PAGE)
    for name in (JSON, PAGE):
        try_file(out / name, f"--out {out}: {name}")


def _read(config: TrustConfig, file: str) -> Read:
    name: Name | None = None
    if config.benchmark == "auto":
        name = detect(file, config.split)
    elif config.benchmark != "none":
        name = config.benchmark
    if name is not None:
        split = SPLIT[name] if config.split == "train" else config.split  # a benchmark has no such split
        benchmark = read_benchmark(file, name, split, config.limit)
        reasons = Counter(f"{problem.column}: {problem.reason}" for problem in benchmark.problems)
        return Read(file, [item.example for item in benchmark.items], benchmark, dict(reasons))
    examples, unused = answered(replace(config, file=file))
    return Read(file, examples, None, unused)


def _measured(config: TrustConfig, read: Read, score: Scorer, members: Sequence[str]) -> FileTrust:
    log.info(f"{read.file}: {sum(len(e.responses) for e in read.examples):,} answers to {len(read.examples):,} prompts")
    scores = score(read.examples)
    result = None
    if read.benchmark is not None:
        result = evaluate(read.benchmark, scores)
        if config.out is not None:
            name = config.name or model_name(shown(config.source))
            write = partial(write_results, Path(config.out), read.benchmark, result, scores, name)
            distributed.on_main(lambda: write() and None)
    examples, scores = without_ties(read, scores)
    worth, about = None, RATINGS
    if config.scorer is not None:
        worth, about = distributed.on_main(partial(_gold, config.scorer, examples)), "gold reward"
    found, unused = judged(examples, scores, gold=worth, members=members, columns=config.by)
    probes = sensitivities(examples, scores, score, rows=config.probes, seed=config.seed) if config.probes else ()
    measured = measure(found, failures=failures(scores), sensitivity=probes, gold=about, seed=config.seed)
    return FileTrust(read.file, measured, result, read.unused | unused)


def without_ties(read: Read, scores: Scores) -> tuple[Sequence[Example], Scores]:
    """Without RewardBench 2's ties: a prompt of these has a hundred pairs, and they would outweigh all others."""
    if read.benchmark is None or read.benchmark.name != "rewardbench-2":
        return read.examples, scores
    kept = np.array([item.subset != TIES for item in read.benchmark.items], bool)
    if kept.all() or not kept.any():
        return read.examples, scores
    there = np.repeat(kept, [len(example.responses) for example in read.examples])
    why = [reason for reason, keep in zip(scores.reasons(), there, strict=True) if keep]
    examples = [example for example, keep in zip(read.examples, kept, strict=True) if keep]
    reasons = Counter(reason for reason in why if reason is not None)
    parts = {name: values[there] for name, values in scores.parts.items()}
    return examples, replace(Scores(scores.values[there], parts, dict(reasons)), why=why)


def _gold(spec: str, examples: Sequence[Example]) -> np.ndarray:
    """[S]: what the user's function says of each answer, NaN for None."""
    value: Callable[..., float | None] = gold_function(spec, examples)
    found = [value(example.prompt, response.text) for example in examples for response in example.responses]
    return np.array([np.nan if number is None else number for number in found], np.float64)


def members_of(source: GroupReward) -> tuple[str, ...]:
    """The names in `Scores.parts` of the members of the one ensemble in a source, several models or the heads of one;
    none where it has none."""
    match source:
        case Ensemble():
            return tuple(member.name for member in source.members)
        case ModelReward():
            return source.members
        case WeightedSum():
            return tuple(f"{part.name}/{name}" for part in source.sources for name in members_of(part))
    return ()


def model_name(source: Sequence[str]) -> str:
    """What a source is called in file names: the id of the hub, or the last part of a folder; several joined by "+"."""
    names = [word if re.fullmatch(r"[\w.-]+/[\w.-]+", word) and not Path(word).exists() else PurePath(word).name
             for word in source]  # fmt: skip
    return re.sub(r"[^\w./+-]+", "_", "+".join(name or "reward" for name in names)).replace("..", "_")


def render(report: Report, console: Console) -> None:
    """Prints a table for each file, and what is worrying."""
    for each in report.files:
        counts = each.trust.counts
        table = Table(
            title=escape(f"{' '.join(report.source)} on {each.file}"),
            caption=f"{counts.answers:,} answers to {counts.prompts:,} prompts, {counts.unscored:,} unscored; "
            f"{counts.pairs_scored:,} of {counts.pairs:,} pairs. Ranges are 95 % intervals.",
            box=SIMPLE_HEAD,
        )
        table.add_column("measure", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("of", justify="right")
        table.add_column("what it says")
        for row in table_rows(each.trust, each.result):
            table.add_row(*map(escape, row))
        console.print(table)
        for reason, count in {**counts.failures, **each.unused}.items():
            console.print(escape(f"left out: {count:,} x {reason}"))
        for note in (*each.trust.notes, *(each.result.notes if each.result else ())):
            console.print(escape(f"note: {note}"))
        for finding in each.findings:
            if finding.tone == "bad":
                console.print(f"[bold red]worry[/]: {escape(finding.text)}")
