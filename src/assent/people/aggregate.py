"""`assent aggregate`: the votes of several annotators as one label each, what was dropped and why, and whom to
trust."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table as Grid
from rich.text import Text

from assent.config import AggregateConfig
from assent.data.records import Binary, Example, Feedback, Pair, Ranking, Rating
from assent.errors import ConfigError, DataError
from assent.measures import annotators as models
from assent.measures.annotators import Consensus, Labels
from assent.measures.closest import averaged, helpsteer2
from assent.measures.habits import Habits, careless, habits
from assent.measures.tastes import Comparisons, Taste, stand_out
from assent.names import suggestion
from assent.people import asked
from assent.people.votes import (
    UNNAMED,
    One,
    Table,
    Votes,
    one_row_each,
    sides_known,
    table_of,
    votes_of,
    warn_of_soft,
    without_own,
)

log = logging.getLogger(__name__)

TIE = 2
UNDECIDED = "as many, or as probable, for one as for the other"
Made = dict[int, list[Feedback]]
"""Row -> its feedback after aggregation."""


@dataclass(frozen=True)
class Annotator:
    """What one annotator gave, how often they are right by the model (of MACE: how often they look at all), and what
    else they go by."""

    comparisons: int = 0
    labels: int = 0
    ratings: int = 0
    right: float | None = None
    habits: Habits | None = None
    warnings: tuple[str, ...] = ()
    """What to know before their labels are used."""


@dataclass(frozen=True)
class AggregateSummary:
    """Rows and labels written, labels dropped by why, votes that the same annotator changed later, and annotators."""

    file: str
    method: str
    rows: int
    joined: int
    """Rows that were put into another of the same prompt, with which they share an answer."""
    written: Mapping[str, int]
    dropped: Mapping[str, int]
    repeated: Mapping[str, int]
    left_out: Mapping[str, int]
    annotators: Mapping[str, Annotator] = field(default_factory=dict)


def aggregate(config: AggregateConfig) -> AggregateSummary:
    """Writes the rows of `config.file` with one label in place of all votes on the same answers: a `Pair` with its
    probability as `share` (a tie is a `Ranking` of one level), a `Binary`, a `Rating`. Rows without a label that could
    be written are left out and counted.

    Raises ConfigError, DataError for a file without feedback of annotators; RunFolderError where `config.out` exists.
    """
    asked.check_places(config.out, False, config.summary, [config.file])
    read, left_out = asked.read_rows(
        config.file, format=config.format, columns=config.columns, split=config.split, limit=config.limit,
        annotator=config.annotator,
    )  # fmt: skip
    examples = one_row_each(read)
    votes = votes_of(examples)
    if not votes.annotators:
        raise DataError(
            f"{config.file}: no comparison, label or rating. assent data {config.file} shows what is there."
        )
    _check_named(config, votes)
    if config.method != "bradley-terry":
        warn_of_soft(examples, "aggregate")
    made: Made = defaultdict(list)
    dropped: Counter[str] = Counter()
    judged = {thing[0] for thing, _ in (*votes.comparisons, *votes.labels, *votes.ratings)}
    if silent := len(examples) - len(judged):
        dropped["rows: no comparison, label or rating"] = silent
    right = _comparisons(config, votes, made, dropped) | _labels(config, votes, made, dropped)
    _ratings(config, votes, made, dropped)
    written = Counter(type(item).__name__.lower() for items in made.values() for item in items)
    found = [replace(examples[row], feedback=tuple(made[row])) for row in sorted(made)]
    summary = AggregateSummary(
        config.file, config.method, len(found), len(read) - len(examples), dict(written), dict(dropped),
        dict(votes.repeated), dict(left_out), _annotators(examples, votes, right),
    )  # fmt: skip
    if not found:
        reasons = ", ".join(f"{why} ({count})" for why, count in dropped.most_common(3))
        raise DataError(f"{config.file}: no label is left to write: {reasons}. Lower --least or --sure.")
    asked.write_examples(found, config.out)
    asked.write_summary(config.summary, summary)
    render(summary, config.out)
    return summary


def _check_named(config: AggregateConfig, votes: Votes) -> None:
    """Raises DataError where a model of annotators is asked for, and nobody says who they are."""
    unnamed = sum(name.startswith(UNNAMED) for _, name in (*votes.comparisons, *votes.labels))
    if unnamed and config.method != "majority":
        raise DataError(
            f"{config.file}: {unnamed} votes do not name their annotator, whose errors --method {config.method} "
            "learns. Give --method majority, which counts votes, or --annotator COLUMN, where a column names them."
        )
    if config.method == "bradley-terry" and votes.labels:
        raise ConfigError("--method bradley-terry reads comparisons, and the file has yes/no labels. Give mace.")


# ---- comparisons and labels


def _comparisons(config: AggregateConfig, votes: Votes, made: Made, dropped: Counter[str]) -> dict[str, float]:
    """Adds one pair (or tie) for every two answers that were compared; how often each annotator is right."""
    if not votes.comparisons:
        return {}
    table = table_of(votes)
    shares, right = _bradley_terry(table) if config.method == "bradley-terry" else _by_class(config, table)
    counts = np.bincount(table.item, minlength=len(table.items))
    strengths = _strengths(votes)
    for two, share, count in zip(table.items, shares, counts, strict=True):
        label = int(models.decided(share[None])[0])
        if why := _problem(config, label, share, int(count)):
            dropped[f"comparisons: {why}"] += 1
            continue
        row, low, high = two
        if label == TIE:
            made[row].append(Ranking(((low, high),), config.method))
            continue
        chosen, rejected = (low, high) if label == 0 else (high, low)
        strength = strengths.get(two)
        toward = None if strength is None else strength if label == 0 else -strength
        made[row].append(
            Pair(chosen, rejected, None if toward is None or toward < 0 else toward, config.method,
                 float(share[label]), float(share[TIE]))
        )  # fmt: skip
    return dict(zip(table.annotators, map(float, right), strict=True))


def _by_class(config: AggregateConfig, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """([I, 3] probabilities of first, second and tie; how often each annotator is right)."""
    label = table.label
    classes = 3 if (label == TIE).any() else 2
    seen = np.where((table.left_is_first == 0) & (label != TIE), 1 - label, label) if sides_known(table) else None
    labels = Labels(
        table.item, table.annotator, label, len(table.items), len(table.annotators), classes, mirrored=True, seen=seen
    )
    found = consensus(config, labels)
    shares = np.zeros((len(table.items), 3))
    shares[:, :classes] = found.posterior
    return shares, found.accuracy


def _bradley_terry(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The same by strengths of answers."""
    swapped = table.left_is_first == 0
    things = {thing: place for place, thing in enumerate(dict.fromkeys(t for two in table.items for t in _things(two)))}
    low, high = np.array([[things[thing] for thing in _things(two)] for two in table.items]).T
    left, right = (np.where(swapped, b[table.item], a[table.item]) for a, b in ((low, high), (high, low)))
    outcome = np.where(swapped, 1 - table.first, table.first)
    choices = models.Choices(left, right, table.annotator, outcome, len(things), len(table.annotators))
    found = models.skilled_bradley_terry(choices, sides_known=sides_known(table))
    better = found.prefers(low, high)
    return np.column_stack([better, 1 - better, np.zeros(len(better))]), found.accuracy


def _things(two: tuple[int, int, int]) -> tuple[One, One]:
    row, low, high = two
    return (row, low), (row, high)


def consensus(config: AggregateConfig, labels: Labels) -> Consensus:
    """By the method of the options."""
    match config.method:
        case "dawid-skene":
            return models.dawid_skene(labels)
        case "mace":
            return models.mace(labels, config.seed)
        case _:
            return models.majority(labels)


def _problem(config: AggregateConfig, label: int, share: np.ndarray, votes: int) -> str:
    if votes < config.least:
        return f"fewer than {config.least} votes"
    if label < 0:
        return UNDECIDED
    return f"less probable than {config.sure:g}" if share[label] < config.sure else ""


def _strengths(votes: Votes) -> dict[tuple[int, int, int], float]:
    """The mean strength of two answers where every vote but ties has one, positive for the lower index."""
    found: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    missing = set()
    for (two, _), vote in votes.comparisons.items():
        if vote.first == 0.5:
            found[two].append(0.0)
        elif vote.strength is None:
            missing.add(two)
        else:
            found[two].append(vote.strength)
    return {two: float(np.mean(values)) for two, values in found.items() if two not in missing}


def _labels(config: AggregateConfig, votes: Votes, made: Made, dropped: Counter[str]) -> dict[str, float]:
    """Adds one yes/no label for each answer that has any."""
    if not votes.labels:
        return {}
    items = list(dict.fromkeys(item for item, _ in votes.labels))
    names = list(dict.fromkeys(name for _, name in votes.labels))
    at, who = {item: n for n, item in enumerate(items)}, {name: n for n, name in enumerate(names)}
    labels = Labels(
        np.array([at[item] for item, _ in votes.labels]), np.array([who[name] for _, name in votes.labels]),
        np.array([int(label) for label in votes.labels.values()]), len(items), len(names), 2,
    )  # fmt: skip
    found = consensus(config, labels)
    counts = np.bincount(labels.item, minlength=len(items))
    for (row, response), share, count in zip(items, found.posterior, counts, strict=True):
        label = int(models.decided(share[None])[0])
        if why := _problem(config, label, share, int(count)):
            dropped[f"yes/no labels: {why}"] += 1
        else:
            made[row].append(Binary(response, label == 1, config.method))
    return dict(zip(names, map(float, found.accuracy), strict=True))


# ---- ratings


def _ratings(config: AggregateConfig, votes: Votes, made: Made, dropped: Counter[str]) -> None:
    by_answer: dict[One, list[dict[str, float]]] = defaultdict(list)
    for (item, _), scores in votes.ratings.items():
        by_answer[item].append(scores)
    by = _attribute(config, list(by_answer.values())) if config.ratings == "helpsteer2" and by_answer else ""
    for (row, response), given in by_answer.items():
        if len(given) < config.least:
            dropped[f"ratings: fewer than {config.least} votes"] += 1
            continue
        if config.ratings != "helpsteer2":
            scores = averaged(given, median=config.ratings == "median")
            made[row].append(Rating(response, scores, config.ratings))
            continue
        having = [rating for rating in given if by in rating]
        found = helpsteer2(having, by)
        if found.scores is None:
            dropped[f"ratings: {found.why}"] += 1
        else:
            made[row].append(Rating(response, found.scores, config.ratings))


def _attribute(config: AggregateConfig, rated: Sequence[Sequence[Mapping[str, float]]]) -> str:
    names = list(dict.fromkeys(name for ratings in rated for rating in ratings for name in rating))
    wanted = config.by or ("helpfulness" if "helpfulness" in names else names[0] if len(names) == 1 else None)
    if wanted is None:
        raise ConfigError(f"--ratings helpsteer2: which attribute must be close? --by {' or '.join(names)}.")
    if wanted not in names:
        hint = suggestion(wanted, names)
        raise ConfigError(f"--by {wanted}: nobody rated that.{hint} There are: {', '.join(names)}.")
    return wanted


# ---- annotators


def _annotators(examples: Sequence[Example], votes: Votes, right: Mapping[str, float]) -> dict[str, Annotator]:
    """Everybody with a name."""
    words = {
        (row, index): len(response.text.split())
        for row, example in enumerate(examples)
        for index, response in enumerate(example.responses)
    }
    known = habits_of(votes, words)
    counts = {
        kind: Counter(name for _, name in table)
        for kind, table in (("comparisons", votes.comparisons), ("labels", votes.labels), ("ratings", votes.ratings))
    }
    warned = _warnings({name: each for name, each in known.items() if not name.startswith(UNNAMED)})
    return {
        name: Annotator(
            **{kind: count[name] for kind, count in counts.items()},
            right=right.get(name),
            habits=known.get(name),
            warnings=warned.get(name, ()),
        )
        for name in sorted(votes.annotators)
        if not name.startswith(UNNAMED)
    }


def _warnings(known: Mapping[str, Habits]) -> dict[str, tuple[str, ...]]:
    """Who is careless, and whose taste for a side or a length sets them apart."""
    coins = careless({name: each.agreement for name, each in known.items()})
    left = stand_out({name: each.side for name, each in known.items()})
    longer = stand_out({name: each.length for name, each in known.items()})
    return {
        name: (
            *(["hardly better than chance"] if name in coins else []),
            *([f"prefers the {'left' if left[name].value > 0 else 'right'}"] if name in left else []),
            *([f"prefers the {'longer' if longer[name].value > 0 else 'shorter'}"] if name in longer else []),
        )
        for name in known
    }


def habits_of(votes: Votes, words: Mapping[One, int]) -> dict[str, Habits]:
    """The habits of everybody who compared; `words` is how long each answer is."""
    if not votes.comparisons:
        return {}
    table = table_of(votes)
    logs = {answer: np.log(count + 1) for answer, count in words.items()}
    longer = np.array([logs[low] - logs[high] for low, high in map(_things, table.items)])[table.item]
    swapped = table.left_is_first == 0
    others = without_own(table)
    tied = table.first == 0.5
    choices = Comparisons(
        table.item[~tied],
        table.annotator[~tied],
        (np.where(swapped, 1 - table.first, table.first) > 0.5)[~tied],
        swapped[~tied],
        np.where(swapped, -longer, longer)[~tied],
        len(table.annotators),
        sides_known(table),
    )
    ties = np.bincount(table.annotator[tied], minlength=len(table.annotators))
    found = habits(choices, ties, np.where(swapped, 1 - others, others)[~tied])
    return dict(zip(table.annotators, found, strict=True))


def render(found: AggregateSummary, out: str) -> None:
    """The table of annotators, what was dropped, and what was written."""
    console = asked.console()
    grid = Grid(box=SIMPLE_HEAD)
    skill = "looks" if found.method == "mace" else "right"
    for name, how in (("annotator", "left"), ("votes", "right"), (skill, "right"), ("agrees with others", "right")):
        grid.add_column(name, justify=how)  # type: ignore[arg-type]
    for name in ("left side", "length"):
        grid.add_column(name, justify="right")
    grid.add_column("")
    for name, each in found.annotators.items():
        known = each.habits
        agreed = "" if known is None or not known.agreement.n else (
            f"{known.agreement.mean:.0%} ({known.agreement.low:.0%} to {known.agreement.high:.0%})"
        )  # fmt: skip
        tastes = ("", "") if known is None else (_taste(known.side), _taste(known.length))
        grid.add_row(
            Text(name), f"{each.comparisons + each.labels + each.ratings:,}",
            "" if each.right is None or np.isnan(each.right) else f"{each.right:.0%}", agreed, *tastes,
            Text(", ".join(each.warnings), style="bold red"),
        )  # fmt: skip
    if found.annotators:
        console.print(grid)
    for line in (*asked.reason_lines("left out", found.left_out), *asked.reason_lines("dropped", found.dropped)):
        console.print(line, markup=False)
    if found.joined:
        console.print(f"rows put into another that has the same prompt and an answer of theirs: {found.joined:,}")
    for kind, count in found.repeated.items():
        console.print(f"{kind} that the same annotator gave again, of which the last counts: {count:,}")
    written = ", ".join(f"{count:,} {kind}" for kind, count in found.written.items())
    console.print(f"{found.rows:,} rows ({written}) in {out}", markup=False, highlight=False)


def _taste(taste: Taste) -> str:
    return "" if np.isnan(taste.value) else f"{taste.value:+.2f}"
