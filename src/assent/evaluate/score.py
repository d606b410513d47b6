"""`assent score`: the rewards of all answers of a file, one by one and in a table."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assent import distributed
from assent.config import ScoreConfig, ScoredFileConfig
from assent.data.dataset import count_reasons, prompt_id
from assent.data.formats import load_examples
from assent.data.jsonl import check_new_file, json_line, plain_json, write_rows
from assent.data.records import Example
from assent.data.views import answers_view
from assent.evaluate.agreement import (
    OVERALL,
    Choices,
    Collected,
    Correlation,
    Share,
    Spread,
    auc,
    choices,
    explained,
    spearman,
    spread,
)
from assent.models.loading import quiet_transformers
from assent.outputs import check_apart, try_file, write_text
from assent.rewards.group import Scores
from assent.rewards.outside import Outside, open_source, rewards_of
from assent.rewards.pool import end_workers
from assent.rewards.scoring import CHARACTERS, TOKENS, scored_chunks
from assent.statistics import Interval, mean_interval
from assent.train.progress import ProgressDisplay

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What the rewards of a file say together. A part is None, or empty, where the file cannot have it.

    left_out       rows without an answer that could be scored, by reason
    unscored       answers without a reward, by reason
    comparisons    of pairs, rankings, and ratings of answers to one prompt; `shorter` and `longer` are those in which
                   the better answer is the shorter, and the longer one
    kendall        mean of Kendall's tau-b over rankings of three levels or more
    ratings        rank correlation with the overall rating, and with each attribute: of the model's output of that
                   name where it has one, else of the reward
    auc            of yes/no labels
    length         rank correlation of reward and length
    unread         feedback that says of no two answers which is better, by reason: rows of it, or pairs of answers
    shares         with --explain: what each source or output adds to the rewards
    metrics        means of the numbers that sources give about the whole: how much an ensemble disagrees, for example
    """

    sources: tuple[str, ...]
    file: str
    answers: int
    prompts: int
    unit: str
    left_out: Mapping[str, int]
    unscored: Mapping[str, int]
    reward: Spread
    parts: Mapping[str, Spread]
    length: Correlation
    comparisons: Choices | None = None
    shorter: Choices | None = None
    longer: Choices | None = None
    kendall: Interval | None = None
    ratings: Mapping[str, Correlation] = field(default_factory=dict)
    auc: float | None = None
    unread: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, Share] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """All numbers; null where there is none."""
        return json.dumps(plain_json(self), indent=2, allow_nan=False) + "\n"


def score(config: ScoreConfig) -> Summary:
    """Scores every answer of `config.file` by `config.source`. A line of JSON for each answer goes into `config.out`,
    or onto standard output where that is no terminal; the table of all goes to standard output, or, behind lines that
    go there, to standard error.

    A line holds `file` and `row` (where the answer comes from), `prompt` (16 digits that stand for its text),
    `response` (its number in the row, from 0), `tokens` or `characters`, `reward`, for an unscored answer null and
    `reason`; `parts` (the sources' and outputs' own numbers), `columns` (what sources write down) and, with
    `config.explain`, `shares` (what each adds to the reward). Rows without answers are named and counted.

    Raises ConfigError for what is no source, ModelError, DataError, RewardError; RunFolderError where `config.out`
    exists already, OutputError where it cannot be written."""
    quiet_transformers()
    world = distributed.init()
    distributed.on_main(lambda: _check_places(config))
    rewards_of(config)
    examples, left_out = distributed.on_main(lambda: answered(config))
    outside = open_source(config, world)
    outside.check(examples)
    collected, failures = Collected(), Counter[str]()
    rows = scored_rows(config, outside, examples, collected, failures)
    piped = config.out is None and not sys.stdout.isatty()
    try:
        if not world.is_main:
            deque(rows, maxlen=0)
        elif config.out is not None:
            log.info(f"{write_rows(rows, config.out)} answers in {config.out}")
        else:
            for row in rows:
                if piped:
                    sys.stdout.write(json_line(row))
    finally:
        end_workers()
    found = summarised(config, outside, collected, failures, left_out)
    if world.is_main:
        if config.summary is not None:
            write_text(config.summary, found.to_json(), f"--summary {config.summary}")
        sys.stdout.flush()
        stream = sys.stderr if piped else sys.stdout
        render(found, Console(file=stream, width=None if stream.isatty() else 120))
    return found


def _check_places(config: ScoreConfig) -> None:
    """Before any work, whether the results can be written."""
    check_apart({"--out": config.out, "--summary": config.summary}, [config.file])
    if config.out is not None:
        check_new_file(config.out)
    if config.summary is not None:
        try_file(config.summary, f"--summary {config.summary}")


def answered(config: ScoredFileConfig) -> tuple[list[Example], dict[str, int]]:
    """The rows of the file that have answers, and why others are left out, which is said."""
    loaded = load_examples(
        config.file, format=config.format, columns=config.columns, split=config.split, limit=config.limit
    )
    examples, unfit = answers_view(loaded.examples)
    reasons = count_reasons([*loaded.problems, *unfit])
    for problem in [*loaded.problems, *unfit][:_LISTED]:
        log.warning(f"left out: {problem}")
    if len(loaded.problems) + len(unfit) > _LISTED:
        log.warning(f"left out: {len(loaded.problems) + len(unfit) - _LISTED} more rows (assent data {config.file})")
    return examples, reasons


_LISTED = 10


def scored_rows(
    config: ScoreConfig,
    outside: Outside,
    examples: Sequence[Example],
    collected: Collected,
    failures: Counter[str],
) -> Iterator[dict[str, object]]:
    """A row for each answer; the numbers of all go into `collected` and `failures` meanwhile."""
    done, total = 0, sum(len(example.responses) for example in examples)
    unit = CHARACTERS if outside.chat is None else TOKENS
    with ProgressDisplay(total=total, label="score") as progress:
        for portion, scores in scored_chunks(outside.source, examples, outside.chat, max_length=outside.max_length):
            collected.note(scores.metrics)
            reasons, start = scores.reasons(), 0
            failures.update(reason for reason in reasons if reason is not None)
            for example in portion:
                end = start + len(example.responses)
                prompt = prompt_id(example)
                collected.take(
                    example,
                    prompt,
                    scores.values[start:end].tolist(),
                    [float(size) if isinstance(size, int) else math.nan for size in scores.columns[unit][start:end]],
                    {name: own[start:end].tolist() for name, own in scores.parts.items()},
                    {name: own[start:end].tolist() for name, own in scores.shares.items()} if config.explain else {},
                )
                for index in range(start, end):
                    at = {"prompt": prompt, "response": index - start, unit: scores.columns[unit][index]}
                    yield _row(example, at, index, scores, reasons[index], config.explain)
                start = end
            done += start
            progress.update(done, _shown(collected))


def _row(
    example: Example, at: Mapping[str, object], index: int, scores: Scores, reason: str | None, explain: bool
) -> dict[str, object]:
    origin, value = example.origin, _number(scores.values[index])
    row: dict[str, object] = {"file": origin.file, "row": origin.row, **at, "reward": value}
    if value is None:
        row["reason"] = reason
    row["parts"] = {name: _number(own[index]) for name, own in scores.parts.items()}
    if explain:
        row["shares"] = {name: _number(own[index]) for name, own in scores.shares.items()}
    columns = {name: own[index] for name, own in scores.columns.items() if name not in (TOKENS, CHARACTERS)}
    return row | ({"columns": columns} if columns else {})


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _shown(collected: Collected) -> str:
    rewards = np.array(collected.rewards)
    known = rewards[~np.isnan(rewards)]
    return f"reward {known.mean():.4g}" if len(known) else "nothing scored"


def summarised(
    config: ScoreConfig,
    outside: Outside,
    collected: Collected,
    failures: Mapping[str, int],
    left_out: Mapping[str, int],
) -> Summary:
    """All numbers together."""
    gaps = collected.gaps
    return Summary(
        sources=tuple(word.partition("=")[0] if "://" in word else word for word in config.source),
        file=config.file,
        answers=len(collected.rewards),
        prompts=len(set(collected.prompts)),
        unit=CHARACTERS if outside.chat is None else TOKENS,
        left_out=dict(left_out),
        unscored=dict(failures),
        reward=spread(collected.rewards, collected.prompts),
        parts={name: spread(own, collected.prompts) for name, own in collected.parts.items()},
        length=spearman([*zip(collected.rewards, collected.lengths, strict=True)]),
        comparisons=choices((gap, prompt) for gap, _, prompt in gaps),
        shorter=choices((gap, prompt) for gap, size, prompt in gaps if size < 0),
        longer=choices((gap, prompt) for gap, size, prompt in gaps if size > 0),
        kendall=mean_interval(collected.taus) if collected.taus else None,
        ratings={name: spearman(both) for name, both in collected.rated.items()},
        auc=auc(collected.labels),
        unread=dict(collected.unread),
        shares=explained(collected.shares, collected.rewards),
        metrics={name: float(np.mean(values)) for name, values in collected.noted.items() if values},
    )


# ---- what is printed


def render(summary: Summary, console: Console) -> None:
    """The table."""
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    head.add_row("source", Text(" + ".join(summary.sources)))
    unscored = sum(summary.unscored.values())
    counts = Text(f"{summary.answers:,} to {summary.prompts:,} prompts of {summary.file}, ")
    counts.append(f"{unscored:,} unscored" if unscored else "all scored", style="bold red" if unscored else "green")
    head.add_row("answers", counts)
    left = {"unscored": summary.unscored, "rows left out": summary.left_out, "not compared": summary.unread}
    for name, reasons in left.items():
        often = Counter(reasons).most_common()
        for reason, count in often[:_LISTED]:
            head.add_row(name, Text(f"{count:,}: {reason}"))
        if rest := sum(count for _, count in often[_LISTED:]):
            head.add_row(name, Text(f"{rest:,}: {len(often) - _LISTED:,} other reasons"))
    for name, mean in summary.metrics.items():
        head.add_row(Text(name), f"{_short(mean)} on average")
    console.print(head)
    console.print(_spreads(summary))
    if summary.shares:
        console.print(_shares(summary))
    if (table := _agreements(summary)).row_count:
        console.print(table)


def _spreads(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for name in ("mean", "95 %", "std", *(f"p{percent}" for percent in summary.reward.quantiles)):
        table.add_column(name, justify="right")
    for name, own in {"reward": summary.reward, **summary.parts}.items():
        if name != "reward" and own == summary.reward:
            continue  # the one source is the reward
        bounds = _bounds(own.mean.low, own.mean.high)
        table.add_row(
            Text(name), _short(own.mean.mean), bounds, _short(own.std), *(_short(x) for x in own.quantiles.values())
        )
    return table


def _shares(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for name in ("adds on average", "of the differences in reward"):
        table.add_column(name, justify="right")
    for name, own in summary.shares.items():
        part = _NONE if math.isnan(own.variance) else f"{100 * own.variance:.0f} %"
        table.add_row(Text(name), _short(own.mean), part)
    return table


def _agreements(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for name in ("value", "95 %", "of", "note"):
        table.add_column(name, justify="left" if name == "note" else "right")
    shares = {
        "accuracy": summary.comparisons,
        "where the better answer is shorter": summary.shorter,
        "where it is longer": summary.longer,
    }
    for name, own in shares.items():
        if own is not None:
            share = own.accuracy
            notes = [f"{own.right:,} right, {own.ties:,} ties, {own.wrong:,} wrong" if share.n else "no pair scored"]
            notes += [f"{share.missing:,} unscored"] if share.missing else []
            value = f"{100 * share.mean:.1f} %" if share.n else _NONE
            bounds = _bounds(100 * share.low, 100 * share.high)
            table.add_row(name, value, bounds, f"{share.n:,} pairs", ", ".join(notes))
    if (tau := summary.kendall) is not None:
        note = f"{tau.missing:,} without an order" if tau.missing else ""
        table.add_row("Kendall's tau of rankings", _short(tau.mean), _bounds(tau.low, tau.high), f"{tau.n:,}", note)
    if summary.auc is not None:
        table.add_row("area under ROC, yes/no labels", _short(summary.auc), "", "", "")
    relations = {
        **{f"Spearman with {name} rating": own for name, own in summary.ratings.items() if name == OVERALL},
        **{f"Spearman with {name}": own for name, own in summary.ratings.items() if name != OVERALL},
        f"Spearman with length in {summary.unit}": summary.length,
    }
    for name, relation in relations.items():
        note = "" if not math.isnan(relation.rho) else "constant" if relation.n > 1 else "too few are scored"
        table.add_row(
            Text(name), _short(relation.rho), _bounds(relation.low, relation.high), f"{relation.n:,} answers", note
        )
    return table


_NONE = "–"
"""In place of a number that there is not."""


def _short(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.4g}"


def _bounds(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"{low:.4g} to {high:.4g}"
