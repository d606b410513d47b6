"""`assent agree`: how far annotators agree, by every usual coefficient, and which of them misleads here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from assent.config import AgreeConfig
from assent.errors import ConfigError, DataError
from assent.foreign import brief
from assent.measures import reliability
from assent.measures.estimates import Estimate, estimates, undefined
from assent.measures.reliability import Statistic, Table
from assent.outputs import check_apart, try_file
from assent.people import asked
from assent.people.questions import Asked, Question, questions_of, table_of_labels
from assent.people.votes import warn_of_soft

SKEWED = 0.8
"""Share of the most frequent value from which coefficients that take it for chance mislead."""
GAP = 0.2
"""By how much they must differ from Gwet's to be said to mislead."""
MISLED = "α and κ mislead, for they take agreement on it for chance. Read Gwet's AC beside the observed agreement"
TELLING = 10
"""Items that two annotators must both have rated for a kappa of theirs in a mean over pairs, and from which a question
or topic can be said to mislead."""
ENTRIES = 3_000_000
"""Ratings by pairs of annotators: kappas of more have no interval, which would take minutes."""


@dataclass(frozen=True)
class Agreement:
    """What annotators agree on in one question. `coefficients` by name, each with its interval (whole items are drawn
    anew); `annotators`: agreement of each with all others; `topics`: observed agreement, alpha and AC by topic."""

    question: str
    scale: str
    items: int
    twice: int
    """Items that two annotators or more have rated."""
    ratings: int
    largest_share: float
    coefficients: Mapping[str, Estimate]
    annotators: Mapping[str, Estimate]
    topics: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgreeSummary:
    """Every question; feedback that an annotator gave again, of which the last counts; feedback that names nobody; and
    rows that could not be read."""

    files: tuple[str, ...]
    questions: tuple[Agreement, ...]
    repeated: Mapping[str, int]
    unnamed: int
    left_out: Mapping[str, int]


def agree(config: AgreeConfig) -> AgreeSummary:
    """Measures the agreement of all annotators of `config.files` and prints it. Raises ConfigError for columns that are
    not there, DataError where no two annotators have rated the same item."""
    check_apart({"--summary": config.summary}, config.files)
    if config.summary is not None:
        try_file(config.summary, f"--summary {config.summary}")
    left_out: Counter[str] = Counter()
    if config.labels:
        asked_of = table_of_labels(config)
    else:
        if config.item:
            raise ConfigError("--item names the items of a plain table, whose column of labels --labels must name.")
        examples = []
        for file in config.files:
            rows, problems = asked.read_rows(
                file, format=config.format, columns=config.columns, split=config.split, limit=config.limit,
                annotator=config.annotator,
            )  # fmt: skip
            examples += rows
            left_out += problems
        warn_of_soft(examples, "agree")
        asked_of = questions_of(examples, config)
    found = tuple(
        agreement_of(question, topics=config.topic is not None, seed=config.seed)
        for question in asked_of.questions
        if rated_twice(question.ratings).any()
    )
    if not found:
        raise DataError(f"{' '.join(config.files)}: {_nothing(config, asked_of)}")
    summary = AgreeSummary(config.files, found, asked_of.repeated, asked_of.unnamed, dict(left_out))
    asked.write_summary(config.summary, summary)
    render(summary)
    return summary


def _nothing(config: AgreeConfig, found: Asked) -> str:
    """Why there is nothing to compare."""
    counts = {
        name: int((~np.isnan(question.ratings[:, place])).sum())
        for question in found.questions
        for place, name in enumerate(question.annotators)
    }
    told = ["no two annotators have judged the same answers."]
    if counts:
        names = ", ".join(f"{brief(name, 40)} ({count:,})" for name, count in list(counts.items())[:5])
        told.append(f"Items judged: {names}{', ...' if len(counts) > 5 else ''}.")
        if len(counts) > 1:
            told.append("An item is a prompt with its answers, to the letter.")
    if found.unnamed:
        told.append(f"{found.unnamed:,} judgements name no annotator.")
    if not config.labels and (found.unnamed or len(counts) < 2):
        told.append(
            "Where a column says who judged, give --annotator COLUMN; for a plain table --labels COLUMN COLUMN."
        )
    return " ".join(told)


def _coefficients(
    question: Question, ratings: np.ndarray, values: np.ndarray, crowd: bool, seed: int
) -> dict[str, Estimate]:
    """What can be said of ratings [I, A] of a question, or of a part of it, on its scale: of the items that two
    annotators or more have rated."""
    ratings = ratings[rated_twice(ratings)]
    table, twice = Table.of(ratings, values), len(ratings)
    known: dict[str, Statistic] = {
        "observed agreement": reliability.agreement_of(table),
        f"Krippendorff's α ({question.scale})": reliability.krippendorff_of(table, question.scale),
        "Fleiss' κ": reliability.fleiss_of(table),
        "Gwet's AC1": reliability.gwet_of(table),
    }
    if question.scale != "nominal":
        known["Gwet's AC2"] = reliability.gwet_of(table, quadratic=True)
    problem = "only one value" if twice else "no two annotators have rated the same item"
    found = _bounded(known, ratings, problem, seed)
    return found if crowd or not twice else found | _kappas(question, ratings, seed)


def _kappas(question: Question, ratings: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Cohen's, of two annotators; else the means over the pairs that share enough to tell one."""
    twice, two = len(ratings), ratings.shape[1] == 2
    least = 1 if two else min(TELLING, twice)
    pairs, entries = reliability.pairs_sharing(ratings, least)
    kinds = {"Cohen's κ": False} | ({} if question.scale == "nominal" else {"quadratic-weighted κ": True})
    names = {f"{name}{'' if two else ', mean over pairs'}": quadratic for name, quadratic in kinds.items()}
    if not len(pairs):
        return {name: undefined(f"no two annotators share {least} items", twice) for name in names}
    if entries > ENTRIES:
        return {name: Estimate(reliability.cohen(ratings, quadratic), n=twice) for name, quadratic in names.items()}
    known = {name: reliability.cohen_of(ratings, pairs, quadratic) for name, quadratic in names.items()}
    return _bounded(known, ratings, "only one value", seed)


def _bounded(known: Mapping[str, Statistic], ratings: np.ndarray, problem: str, seed: int) -> dict[str, Estimate]:
    """With the intervals of drawing items anew."""

    def statistics(drawn: np.ndarray) -> np.ndarray:
        return np.array([one(drawn) for one in known.values()])

    return dict(zip(known, estimates(statistics, len(ratings), problem=problem, seed=seed), strict=True))


def agreement_of(question: Question, *, topics: bool = False, crowd: bool = False, seed: int = 0) -> Agreement:
    """Every coefficient of a question. `topics`: also in parts. `crowd`: nothing of single annotators and of pairs of
    them."""
    ratings = question.ratings
    kept, values = ratings[rated_twice(ratings)], np.unique(ratings[~np.isnan(ratings)])
    coefficients = _coefficients(question, ratings, values, crowd, seed)
    if not crowd and question.scale != "nominal" and (w := _concordance(question, seed)) is not None:
        coefficients["Kendall's W, mean over prompts"] = w
    each: list[Estimate] = []
    if not crowd:
        agrees = reliability.with_others(Table.of(kept), ratings.shape[1])
        found = estimates(agrees, len(kept), problem="nobody else has rated the same items", seed=seed)
        shared = (~np.isnan(kept)).sum(axis=0).tolist()
        each = [replace(one, n=count) for one, count in zip(found, shared, strict=True)]
    parts, names = {}, np.array(question.topics)
    for topic in sorted(set(question.topics)) if topics else ():
        parts[topic] = _coefficients(question, ratings[names == topic], values, crowd, seed)
    people = () if crowd else question.annotators
    return Agreement(
        question.name, question.scale, len(ratings), len(kept), int((~np.isnan(ratings)).sum()),
        reliability.most_frequent(ratings)[0], coefficients, dict(zip(people, each, strict=True)), parts,
        tuple(_notes(question, coefficients, parts)),
    )  # fmt: skip


def rated_twice(ratings: np.ndarray) -> np.ndarray:
    """[I]: whether two annotators or more have rated an item."""
    return (~np.isnan(ratings)).sum(axis=1) >= 2


def _concordance(question: Question, seed: int) -> Estimate | None:
    """Kendall's W of the answers to each prompt that the same annotators have rated, where there are three or more; the
    mean over prompts."""
    order = np.argsort(question.groups, kind="stable")
    values = []
    for group in np.split(order, np.flatnonzero(np.diff(question.groups[order])) + 1):
        rows = question.ratings[group]
        there = ~np.isnan(rows).any(axis=0)
        if len(rows) > 2 and there.sum() > 1:
            values.append(reliability.kendall_w(rows[:, there]))
    defined = np.array([value for value in values if not np.isnan(value)])
    if not len(defined):
        return None
    mean = estimates(lambda drawn: np.array([drawn @ defined / len(defined)]), len(defined), seed=seed)
    return mean[0]


def _notes(
    question: Question, coefficients: Mapping[str, Estimate], topics: Mapping[str, Mapping[str, Estimate]]
) -> list[str]:
    """Which coefficients mislead here, why, and what tells who is right: agreement on the values that are rare."""
    found, names = [], np.array(question.topics)
    share, others = reliability.most_frequent(question.ratings)
    if _misled(share, coefficients):
        rest = "" if np.isnan(others) else f"; on the other values annotators agree in {others:.0%}"
        found.append(f"one value makes {share:.0%} of all ratings: {MISLED}{rest}")
    dominated = []
    for topic, parts in topics.items():
        share, others = reliability.most_frequent(question.ratings[names == topic])
        if _misled(share, parts):
            rest = "no other" if np.isnan(others) else f"others agreed in {others:.0%}"
            dominated.append(f"{brief(topic, 60)} ({share:.0%}; {rest})")
    if dominated:
        found.append(f"one value dominates in {', '.join(dominated)}: {MISLED}")
    return found


def _misled(share: float, coefficients: Mapping[str, Estimate]) -> bool:
    """Whether one value is so frequent that alpha and the kappas take for chance what Gwet's AC does not."""
    alpha = next(value for name, value in coefficients.items() if name.startswith("Krippendorff")).value
    gwet = coefficients.get("Gwet's AC2", coefficients["Gwet's AC1"])
    if gwet.n < TELLING or share < SKEWED or gwet.value is None:
        return False
    return alpha is None or gwet.value - alpha >= GAP


# ---- for people


def render(summary: AgreeSummary) -> None:
    console = asked.console()
    for found in summary.questions:
        console.print(
            f"\n{found.question}: {found.twice:,} of {found.items:,} items rated twice or more, {found.ratings:,} "
            f"ratings, {found.scale}",
            style="bold", highlight=False, markup=False,
        )  # fmt: skip
        _print(console, "", found.coefficients)
        _print(console, "agrees with others", found.annotators)
        if found.topics:
            _by_topic(console, found.topics)
        for note in found.notes:
            console.print(f"Note: {note}.", markup=False, highlight=False)
    for kind, count in summary.repeated.items():
        console.print(f"{kind} that the same annotator gave again, of which the last counts: {count:,}")
    if summary.unnamed:
        console.print(f"left out: {summary.unnamed:,}: names no annotator")
    for line in asked.reason_lines("left out", summary.left_out):
        console.print(line, markup=False)


def _print(console: Console, heading: str, values: Mapping[str, Estimate]) -> None:
    grid = Grid(box=SIMPLE_HEAD, show_header=bool(heading))
    grid.add_column("annotator")
    grid.add_column(heading, justify="right")
    for name, value in values.items():
        grid.add_row(Text(name), words(value))
    console.print(grid)


def _by_topic(console: Console, topics: Mapping[str, Mapping[str, Estimate]]) -> None:
    names = [name for name in next(iter(topics.values())) if name.startswith(("observed", "Krippendorff", "Gwet"))]
    grid = Grid(box=SIMPLE_HEAD)
    grid.add_column("topic")
    for name in ("items", *names):
        grid.add_column(name, justify="right")
    for topic, values in topics.items():
        grid.add_row(Text(topic), f"{values[names[0]].n:,}", *(words(values[name]) for name in names))
    console.print(grid)


def words(value: Estimate) -> str:
    """A number with its interval; why there is none."""
    if value.value is None:
        return f"none: {value.problem}"
    bounds = "" if value.low is None or value.high is None else f" ({value.low:.2f} to {value.high:.2f})"
    return f"{round(value.value, 3) + 0.0:.3f}{bounds}"
