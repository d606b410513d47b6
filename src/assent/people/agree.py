"""`assent agree`: how far annotators agree, by every usual coefficient, and which of them misleads here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from assent.config import AgreeConfig
from assent.errors import ConfigError, DataError
from assent.measures import reliability
from assent.measures.estimates import Estimate, estimate, undefined
from assent.outputs import check_apart, try_file
from assent.people import asked
from assent.people.questions import Question, columns_of_labels, questions_of

SKEWED = 0.8
"""Share of the most frequent value from which coefficients that take it for chance mislead."""
GAP = 0.2
"""By how much they must differ from Gwet's to be said to mislead."""
MISLED = "α and κ take most of the agreement on it for chance. Read Gwet's AC beside the observed agreement"
Coefficient = Callable[[np.ndarray], float]


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
    """Every question, and rows that could not be read."""

    files: tuple[str, ...]
    questions: tuple[Agreement, ...]
    left_out: Mapping[str, int]


def agree(config: AgreeConfig) -> AgreeSummary:
    """Measures the agreement of all annotators of `config.files` and prints it. Raises ConfigError for columns that are
    not there, DataError where no two annotators have rated the same item."""
    check_apart({"--summary": config.summary}, config.files)
    if config.summary is not None:
        try_file(config.summary, f"--summary {config.summary}")
    left_out: Counter[str] = Counter()
    if config.labels:
        if len(config.files) > 1 or len(config.labels) < 2:
            raise ConfigError("--labels names two columns or more of one file, an annotator each.")
        questions = [columns_of_labels(config)]
    else:
        examples = []
        for file in config.files:
            rows, problems = asked.read_rows(
                file, format=config.format, columns=config.columns, split=config.split, limit=config.limit
            )
            examples += rows
            left_out += problems
        questions = questions_of(examples, config)
    found = tuple(
        agreement_of(question, topics=config.topic is not None, seed=config.seed)
        for question in questions
        if rated_twice(question.ratings).any()
    )
    if not found:
        raise DataError(
            f"{' '.join(config.files)}: no two annotators have judged the same answers. Feedback must name its "
            "annotator; for a plain table give --labels COLUMN COLUMN."
        )
    summary = AgreeSummary(config.files, found, dict(left_out))
    asked.write_summary(config.summary, summary)
    render(summary)
    return summary


def coefficients_of(question: Question) -> dict[str, Coefficient]:
    """What can be said of a question of its scale: name -> function of ratings [I, A]."""
    ordered = question.scale != "nominal"
    two = question.ratings.shape[1] == 2
    values = np.unique(question.ratings[~np.isnan(question.ratings)])
    found: dict[str, Coefficient] = {
        "observed agreement": reliability.agreement,
        f"Krippendorff's α ({question.scale})": partial(reliability.krippendorff, scale=question.scale),
        "Cohen's κ" if two else "Cohen's κ, mean over pairs": reliability.cohen,
        "Fleiss' κ": reliability.fleiss,
        "Gwet's AC1": partial(reliability.gwet, values=values),
    }
    if ordered:
        found["quadratic-weighted κ"] = partial(reliability.cohen, quadratic=True)
        found["Gwet's AC2"] = partial(reliability.gwet, quadratic=True, values=values)
    return found


def agreement_of(question: Question, *, topics: bool = False, crowd: bool = False, seed: int = 0) -> Agreement:
    """Every coefficient of a question. `topics`: also in parts. `crowd`: nothing of single annotators and of pairs of
    them, which takes long where there are many."""
    ratings = _squeezed(question.ratings) if crowd else question.ratings
    functions = coefficients_of(question)
    if crowd:
        functions = {name: one for name, one in functions.items() if not name.startswith(("Cohen", "quadratic"))}
    bounded = partial(_estimate, seed=seed)
    coefficients = {name: bounded(ratings, function) for name, function in functions.items()}
    if not crowd and question.scale != "nominal" and (w := _concordance(question, seed)) is not None:
        coefficients["Kendall's W, mean over prompts"] = w
    people = () if crowd else question.annotators
    each = {name: bounded(ratings, partial(_with_others, place)) for place, name in enumerate(people)}
    parts = {}
    for topic in sorted(set(question.topics)) if topics else ():
        part = ratings[np.array([name == topic for name in question.topics])]
        parts[topic] = {name: bounded(part, function) for name, function in functions.items()}
    return Agreement(
        question.name, question.scale, len(ratings), int(rated_twice(ratings).sum()), int((~np.isnan(ratings)).sum()),
        reliability.largest_share(ratings[rated_twice(ratings)]), coefficients, each, parts,
        tuple(_notes(ratings, coefficients, parts)),
    )  # fmt: skip


def _squeezed(ratings: np.ndarray) -> np.ndarray:
    """The ratings of each item in its first columns, whoever gave them: all that most coefficients ask for."""
    ordered = np.sort(ratings, axis=1)  # NaN comes last
    return ordered[:, : max(1, int((~np.isnan(ratings)).sum(axis=1).max(initial=1)))]


def _estimate(ratings: np.ndarray, function: Coefficient, seed: int) -> Estimate:
    """With the interval of drawing items anew."""
    kept = ratings[rated_twice(ratings)]
    if not len(kept):
        return undefined("no two annotators have rated the same item")
    return estimate(lambda rows: function(kept[rows]), np.arange(len(kept)), problem="only one value", seed=seed)


def rated_twice(ratings: np.ndarray) -> np.ndarray:
    """[I]: whether two annotators or more have rated an item."""
    return (~np.isnan(ratings)).sum(axis=1) >= 2


def _with_others(place: int, ratings: np.ndarray) -> float:
    """The mean agreement of one annotator with each other on the items that both have rated."""
    mine = ratings[:, [place]]
    both = ~np.isnan(mine) & ~np.isnan(ratings)
    both[:, place] = False
    return float((mine == ratings)[both].mean()) if both.any() else np.nan


def _concordance(question: Question, seed: int) -> Estimate | None:
    """Kendall's W of the answers to each prompt that the same annotators have rated, where there are three or more; the
    mean over prompts."""
    values = []
    for group in np.unique(question.groups):
        rows = question.ratings[question.groups == group]
        there = ~np.isnan(rows).any(axis=0)
        values.append(reliability.kendall_w(rows[:, there]) if len(rows) > 2 and there.sum() > 1 else np.nan)
    defined = np.array([value for value in values if not np.isnan(value)])
    if not len(defined):
        return None
    return estimate(lambda rows: float(defined[rows].mean()), np.arange(len(defined)), seed=seed)


def _notes(
    ratings: np.ndarray, coefficients: Mapping[str, Estimate], topics: Mapping[str, Mapping[str, Estimate]]
) -> list[str]:
    """Which coefficients mislead here, and why."""
    found = []
    share = reliability.largest_share(ratings[rated_twice(ratings)])
    misled = [topic for topic, parts in topics.items() if _apart(parts)]
    if share >= SKEWED and _apart(coefficients):
        found.append(f"one value makes {share:.0%} of all ratings: {MISLED}")
    if misled:
        found.append(f"in {', '.join(misled)} one value dominates: {MISLED}")
    counts = (~np.isnan(ratings)).sum(axis=1)[rated_twice(ratings)]
    if len(set(counts.tolist())) > 1:
        found.append("items have different numbers of ratings, for which Fleiss' κ is only an approximation")
    return found


def _apart(coefficients: Mapping[str, Estimate]) -> bool:
    alpha = next(value for name, value in coefficients.items() if name.startswith("Krippendorff")).value
    gwet = coefficients.get("Gwet's AC2", coefficients["Gwet's AC1"]).value
    observed = coefficients["observed agreement"].value
    if gwet is None or observed is None:
        return False
    return observed >= SKEWED and (alpha is None or gwet - alpha >= GAP)


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
    return f"{value.value:.3f}{bounds}"
