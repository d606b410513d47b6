"""What rewards and feedback on the same answers have in common."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from assent.data.conversions import comparisons, overall_ratings
from assent.data.records import Binary, Example, Ranking, Rating, RowError
from assent.statistics import Interval, mean_interval, win_rate

QUANTILES = (5, 25, 50, 75, 95)
OVERALL = "overall"
"""What the one number that stands for all ratings of an answer is called."""
TIED = "two answers that the labels call equal"


@dataclass(frozen=True, slots=True)
class Spread:
    """Numbers of answers: their mean with its interval (answers to one prompt are drawn together), standard deviation
    and quantiles, by percent."""

    mean: Interval
    std: float
    quantiles: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Choices:
    """Comparisons of two answers to one prompt. `accuracy` is the share in which the better one has the higher reward:
    a tie is not right. Its interval is Wilson's, of the effective number of comparisons where prompts have several.
    Those with an unscored answer are left out and counted as missing."""

    accuracy: Interval
    right: int
    ties: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation of n values, with the interval of Bonett and Wright (2000):
    tanh(atanh(rho) +- 1.96 sqrt((1 + rho^2 / 2) / (n - 3))). NaN where one side is constant."""

    rho: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a source or output adds to the reward: `mean`, and the part of the rewards' variance that it explains,
    `cov(share, reward) / var(reward)`, which sums to 1 over all of them. NaN where rewards are constant."""

    mean: float
    variance: float


@dataclass(slots=True)
class Collected:
    """The numbers of the answers so far, and what feedback says of them: lists of plain numbers, no texts.

    gaps     reward(better) - reward(worse), NaN where one is unscored; the difference in length, likewise; the prompt
    shares   what sources and outputs add to the rewards, by name
    rated    by attribute, and `OVERALL`: (reward, rating)
    unread   feedback that says of no two answers which is better, by reason; noted: what sources say about the whole
    """

    rewards: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    prompts: list[Hashable] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    gaps: list[tuple[float, float, Hashable]] = field(default_factory=list)
    taus: list[float] = field(default_factory=list)
    rated: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    labels: list[tuple[float, bool]] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    noted: dict[str, list[float]] = field(default_factory=dict)

    def take(
        self,
        example: Example,
        prompt: Hashable,
        rewards: Sequence[float],
        lengths: Sequence[float],
        parts: Mapping[str, Sequence[float]],
        shares: Mapping[str, Sequence[float]] = {},
    ) -> None:
        """All answers of an example; `parts` are what the rewards were made from, `shares` what each adds to them, by
        name. NaN: unscored, or of unknown length."""
        nothing = [math.nan] * len(rewards)
        for table, new in ((self.parts, parts), (self.shares, shares)):
            for name in {**table, **new}:
                table.setdefault(name, [math.nan] * len(self.rewards)).extend(new.get(name, nothing))
        self.rewards += rewards
        self.lengths += lengths
        self.prompts += [prompt] * len(rewards)
        self._take_comparisons(example, prompt, rewards, lengths)
        outputs = {name.rpartition("/")[2]: values for name, values in parts.items()}
        for item in example.feedback:
            match item:
                case Ranking():
                    self.taus += _kendall(item, rewards)
                case Binary():
                    self.labels.append((rewards[item.response], item.label))
                case Rating():
                    for name, value in item.scores.items():
                        self.rated[name].append((outputs.get(name, rewards)[item.response], value))
        self._take_overall(example, rewards)

    def note(self, metrics: Mapping[str, Sequence[float]]) -> None:
        """What the sources say about a portion of the answers."""
        for name, values in metrics.items():
            self.noted.setdefault(name, []).extend(values)

    def _take_comparisons(
        self, example: Example, prompt: Hashable, rewards: Sequence[float], lengths: Sequence[float]
    ) -> None:
        try:
            pairs, ties = comparisons(example)
        except RowError as error:
            self.unread[error.reason] = self.unread.get(error.reason, 0) + 1
            return
        if ties:
            self.unread[TIED] = self.unread.get(TIED, 0) + len(ties)
        for pair in pairs:
            better, worse = pair.chosen, pair.rejected
            self.gaps.append((rewards[better] - rewards[worse], lengths[better] - lengths[worse], prompt))

    def _take_overall(self, example: Example, rewards: Sequence[float]) -> None:
        if any(isinstance(item, Rating) for item in example.feedback):
            try:
                overall = overall_ratings(example)
            except RowError:
                return  # said already
            self.rated[OVERALL] += [(rewards[index], value) for index, value in overall.items()]


def _kendall(ranking: Ranking, rewards: Sequence[float]) -> list[float]:
    """Kendall's tau-b of a ranking of three levels or more (of two it is no more than a comparison); NaN where an
    answer is unscored or all rewards are the same."""
    if len(ranking.levels) < 3:
        return []
    placed = [(-level, rewards[index]) for level, indices in enumerate(ranking.levels) for index in indices]
    levels, values = np.array(placed).T
    if np.isnan(values).any() or np.ptp(values) == 0:
        return [math.nan]
    return [float(stats.kendalltau(levels, values).statistic)]


# ---- of all answers


def spread(values: Sequence[float], clusters: Sequence[Hashable]) -> Spread:
    """Of numbers, NaN where there is none."""
    numbers = np.asarray(values, np.float64)
    known = numbers[~np.isnan(numbers)]
    quantiles = np.percentile(known, QUANTILES) if len(known) else [math.nan] * len(QUANTILES)
    return Spread(
        mean_interval(numbers, clusters),
        float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        dict(zip(QUANTILES, map(float, quantiles), strict=True)),
    )


def explained(shares: Mapping[str, Sequence[float]], rewards: Sequence[float]) -> dict[str, Share]:
    """Of what each source or output adds to the same answers' rewards; unscored answers are left out."""
    values = np.asarray(rewards, np.float64)
    known = ~np.isnan(values)
    values = values[known]
    if not len(values):
        return {}
    spread = float(np.ptp(values) and values.var()) or math.nan
    found = {}
    for name, own in shares.items():
        share = np.asarray(own, np.float64)[known]
        found[name] = Share(
            float(share.mean()), float(np.mean((share - share.mean()) * (values - values.mean()))) / spread
        )
    return found


def choices(gaps: Iterable[tuple[float, Hashable]]) -> Choices | None:
    """Of reward(better) - reward(worse) and the prompt that both answer; None without any comparison."""
    listed = list(gaps)
    if not listed:
        return None
    gap = np.array([one for one, _ in listed], np.float64)
    right = np.where(np.isnan(gap), np.nan, gap > 0)
    share = win_rate(right, np.full(len(gap), 0.5), [prompt for _, prompt in listed]).rate
    return Choices(share, int((gap > 0).sum()), int((gap == 0).sum()), int((gap < 0).sum()))


def spearman(pairs: Sequence[tuple[float, float]]) -> Correlation:
    """Of pairs of numbers; those with a NaN are left out."""
    both = np.array(pairs, np.float64).reshape(-1, 2)
    both = both[~np.isnan(both).any(axis=1)]
    n = len(both)
    if n < 2 or np.ptp(both[:, 0]) == 0 or np.ptp(both[:, 1]) == 0:
        return Correlation(math.nan, math.nan, math.nan, n)
    rho = float(stats.spearmanr(both[:, 0], both[:, 1]).statistic)
    if n < 4 or abs(rho) >= 1:
        return Correlation(rho, math.nan if n < 4 else rho, math.nan if n < 4 else rho, n)
    half = float(stats.norm.ppf(0.975)) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    return Correlation(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), n)


def auc(labels: Sequence[tuple[float, bool]]) -> float | None:
    """The chance that a desirable answer has a higher reward than another, a tie counting half: the area under the ROC
    curve. None unless there are answers of both kinds."""
    known = [(reward, label) for reward, label in labels if not math.isnan(reward)]
    yes = sum(label for _, label in known)
    if not 0 < yes < len(known):
        return None
    ranks = stats.rankdata([reward for reward, _ in known])
    total = sum(rank for rank, (_, label) in zip(ranks, known, strict=True) if label)
    return float((total - yes * (yes + 1) / 2) / (yes * (len(known) - yes)))
