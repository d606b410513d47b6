"""The feedback of rows as tables of votes: who said what of which answers."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from assent.data.formats.load import moved
from assent.data.records import Binary, Example, Feedback, Pair, Ranking, Rating, Response

log = logging.getLogger(__name__)

UNNAMED = "(no name)"
"""The annotator of feedback that names none."""

Two = tuple[int, int, int]
"""Row, and two of its answers, the lower index first."""
One = tuple[int, int]
"""Row and answer."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One annotator's view of two answers: `first` is how much of the vote is for the lower index (1, 0, 0.5 a tie),
    `strength` how clearly, positive for the lower index; `left` is the index that was shown first."""

    two: Two
    annotator: str
    first: float
    strength: float | None = None
    left: int | None = None


@dataclass(slots=True)
class Votes:
    """All votes of a file, the last word of each annotator on each thing; `repeated` counts earlier ones that were
    left out."""

    comparisons: dict[tuple[Two, str], Comparison] = field(default_factory=dict)
    labels: dict[tuple[One, str], bool] = field(default_factory=dict)
    ratings: dict[tuple[One, str], dict[str, float]] = field(default_factory=dict)
    repeated: Counter[str] = field(default_factory=Counter)

    @property
    def annotators(self) -> list[str]:
        """Everybody who said anything, in the order of their first word."""
        return list(dict.fromkeys(who for _, who in (*self.comparisons, *self.labels, *self.ratings)))

    @property
    def unnamed(self) -> int:
        """How many name nobody."""
        keys = (*self.comparisons, *self.labels, *self.ratings)
        return sum(who.startswith(UNNAMED) for _, who in keys)


def one_row_each(examples: Sequence[Example]) -> list[Example]:
    """The rows, with those of the same prompt that share an answer put into one, so that all votes on the same answers
    stand together. Of columns the first row's are kept."""
    prompts = [
        (example.prompt, example.tools, repr(sorted(example.template_kwargs.items())), example.prompt_text)
        for example in examples
    ]
    keys: dict[Hashable, int] = defaultdict(lambda: len(keys))
    held = [(row, keys[prompts[row], each.messages]) for row, e in enumerate(examples) for each in e.responses]
    row, key = np.array(held, np.int64).reshape(-1, 2).T
    shared = coo_array((np.ones(len(row)), (row, len(examples) + key)), (len(examples) + len(keys),) * 2)
    _, group = connected_components(shared, directed=False)
    groups: dict[int, list[Example]] = defaultdict(list)
    for example, place in zip(examples, group.tolist(), strict=False):
        groups[place].append(example)
    return [_joined(rows) if len(rows) > 1 else rows[0] for rows in groups.values()]


def _joined(rows: Sequence[Example]) -> Example:
    responses: dict[Hashable, Response] = {}
    feedback: list[Feedback] = []
    for row in rows:
        times: Counter[Hashable] = Counter()
        places = []
        for response in row.responses:
            times[response.messages] += 1  # the same answer twice in a row is two answers
            responses.setdefault((response.messages, times[response.messages]), response)
            places.append([*responses].index((response.messages, times[response.messages])))
        feedback += [moved(item, places.__getitem__) for item in row.feedback]
    return replace(rows[0], responses=tuple(responses.values()), feedback=tuple(feedback))


def votes_of(examples: Sequence[Example]) -> Votes:
    """What all annotators said: pairs and rankings as comparisons of two, yes/no labels, ratings. An annotator without
    a name is another one for each piece of feedback."""
    found = Votes()
    for row, example in enumerate(examples):
        unnamed = 0
        for item in example.feedback:
            unnamed += item.annotator is None
            who = item.annotator if item.annotator is not None else f"{UNNAMED} {unnamed}"
            match item:
                case Pair():
                    _compare(found, _comparison(row, item, who))
                case Ranking():
                    for each in _of_ranking(row, item, who):
                        _compare(found, each)
                case Binary():
                    found.repeated["yes/no labels"] += ((row, item.response), who) in found.labels
                    found.labels[(row, item.response), who] = item.label
                case Rating():
                    found.repeated["ratings"] += ((row, item.response), who) in found.ratings
                    found.ratings[(row, item.response), who] = dict(item.scores)
    found.repeated = +found.repeated
    return found


def _compare(found: Votes, said: Comparison) -> None:
    found.repeated["comparisons"] += (said.two, said.annotator) in found.comparisons
    found.comparisons[said.two, said.annotator] = said


def warn_of_soft(examples: Sequence[Example], command: str) -> None:
    """Says where annotators gave probabilities, which count as whole votes."""
    pairs = [item for example in examples for item in example.feedback if isinstance(item, Pair)]
    soft = Counter(pair.annotator or UNNAMED for pair in pairs if pair.share is not None and 0 < pair.share < 1)
    if soft:
        names = ", ".join(f"{name} {count:,}" for name, count in soft.most_common(3))
        log.warning(f"{command}: soft labels of pairs count as whole votes ({names}); --reward.votes keeps them")


def _comparison(row: int, pair: Pair, who: str) -> Comparison:
    low, high = sorted((pair.chosen, pair.rejected))
    for_chosen = (1.0 - pair.tie if pair.share is None else pair.share) + pair.tie / 2
    is_low = pair.chosen == low
    left = {"chosen": pair.chosen, "rejected": pair.rejected, None: None}[pair.first]
    strength = None if pair.strength is None else pair.strength if is_low else -pair.strength
    return Comparison((row, low, high), who, for_chosen if is_low else 1 - for_chosen, strength, left)


def _of_ranking(row: int, ranking: Ranking, who: str) -> list[Comparison]:
    made = []
    for better, worse in combinations(ranking.levels, 2):
        for one, other in product(better, worse):
            made.append(Comparison((row, *sorted((one, other))), who, float(one < other)))  # type: ignore[arg-type]
    for level in ranking.levels:
        made += [Comparison((row, *sorted(two)), who, 0.5) for two in combinations(level, 2)]  # type: ignore[arg-type]
    return made


@dataclass(frozen=True, slots=True)
class Table:
    """Comparisons as columns [n]: `item` and `annotator` are places in `items` and `annotators`."""

    items: tuple[Two, ...]
    annotators: tuple[str, ...]
    item: np.ndarray
    annotator: np.ndarray
    first: np.ndarray
    left_is_first: np.ndarray
    """1 where the lower index was shown first, 0 where the other was, NaN where that is not known."""

    @property
    def label(self) -> np.ndarray:
        """0 the lower index is better, 1 the higher one, 2 a tie."""
        return np.where(self.first == 0.5, 2, (self.first < 0.5).astype(int))


def table_of(votes: Votes) -> Table:
    said = list(votes.comparisons.values())
    items, annotators = tuple(dict.fromkeys(c.two for c in said)), tuple(dict.fromkeys(c.annotator for c in said))
    at = {two: place for place, two in enumerate(items)}
    who = {name: place for place, name in enumerate(annotators)}
    return Table(
        items,
        annotators,
        np.array([at[c.two] for c in said], np.int64),
        np.array([who[c.annotator] for c in said], np.int64),
        np.array([c.first for c in said], np.float64),
        np.array([np.nan if c.left is None else float(c.left == c.two[1]) for c in said], np.float64),
    )


def sides_known(table: Table) -> bool:
    """Whether every vote says what was on the left; of a tie nothing depends on it."""
    return bool(np.isfinite(table.left_is_first[table.first != 0.5]).all())


def without_own(table: Table) -> np.ndarray:
    """[n]: the mean vote of the others on the same two answers; NaN where nobody else looked."""
    total = np.bincount(table.item, table.first, len(table.items))[table.item] - table.first
    count = np.bincount(table.item, minlength=len(table.items))[table.item] - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)
