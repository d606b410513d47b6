"""What is odd about an annotator's labels, and why: tests against the others', corrected for there being many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from assent.measures.habits import Habits
from assent.measures.tastes import LEVEL, NOTHING, Taste, stand_out
from assent.people.task import TaskDefinition
from assent.statistics import Interval, holm, proportion_interval, share_interval

FEWEST = 20
"""Labels below which nothing is said of agreement, haste and sides."""
LATE = 50
"""Labels that are late ones; the first half is early."""
GAP = 0.1
"""Shares that are closer differ too little to act on, however sure the difference is."""
HASTE = 0.1
"""Share of labels given too fast to have been read from which it is said."""
PACE = 25.0
"""Words a second that nobody reads: fast readers manage 8, and skim at 15."""
OUTLIER = 3.5
"""Robust standard deviations of log seconds from an annotator's own median: they went away, or did not look."""

NONE = Interval(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """`name` in a word or three, `why` in numbers, as what follows the annotator's name."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Drift:
    """Early against late labels: known answers, or agreement with others; `p` of there being no fall."""

    of: str
    early: Interval
    late: Interval
    p: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one annotator gave, in the order given: of each label [L] how many of the others agree (NaN: nobody else
    looked), its item, seconds, and how many words there were to read; known answers right [G]; second looks that say
    the same [S]; screening right [C]."""

    agreed: np.ndarray
    items: np.ndarray
    seconds: np.ndarray
    reading: np.ndarray
    gold: np.ndarray
    again: np.ndarray
    screening: np.ndarray


@dataclass(frozen=True, slots=True)
class Report:
    """One annotator. `seconds` is the median of a label, `pauses` labels whose time is an outlier among their own."""

    agreement: Interval = NONE
    gold: Interval = NONE
    screening: Interval = NONE
    again: Interval = NONE
    hurried: Interval = NONE
    seconds: float = math.nan
    pauses: int = 0
    side: Taste = NOTHING
    length: Taste = NOTHING
    drift: Drift | None = None
    odd: tuple[Finding, ...] = ()


def reports(
    task: TaskDefinition,
    work: Mapping[str, Work],
    habits: Mapping[str, Habits],
    machines: frozenset[str] = frozenset(),
) -> dict[str, Report]:
    """Of everybody. `machines` may read as fast as they like."""
    found = {name: _measured(one, habits.get(name), name in machines) for name, one in work.items()}
    agreed = {name: one.agreed[~np.isnan(one.agreed)] for name, one in work.items()}
    again = {name: one.again for name, one in work.items()}
    below = _holm({name: _below_others(name, agreed) for name in found})
    fickle = _holm({name: _below_others(name, again) for name in found})
    drifts = _holm({name: one.drift.p if one.drift else math.nan for name, one in found.items()})
    left = stand_out({name: one.side for name, one in found.items()})
    longer = stand_out({name: one.length for name, one in found.items()})
    made = {}
    for name, one in found.items():
        odd: list[Finding] = [*_low_gold(one.gold, task), *_hurries(one.hurried)]
        if below[name] < LEVEL:
            odd += _apart("disagrees", "agrees with others on", one.agreement, _mean_of_others(name, agreed))
        if fickle[name] < LEVEL:
            odd += _apart(
                "contradicts themselves", "says the same at a second look on", one.again, _mean_of_others(name, again)
            )
        if one.drift is not None and drifts[name] < LEVEL:
            odd += _falls(one.drift)
        if name in left:
            odd += _takes(left[name], ("left", "right"), "the one on the {}")
        if name in longer:
            odd += _takes(
                longer[name], ("longer", "shorter"), "the {} of two answers, a standard deviation apart in length,"
            )
        made[name] = replace(one, odd=tuple(odd))
    return made


def _measured(work: Work, habits: Habits | None, machine: bool) -> Report:
    timed = ~np.isnan(work.seconds)
    seconds, reading = work.seconds[timed], work.reading[timed]
    logs = np.log(np.maximum(seconds, 0.05))
    middle = float(np.median(logs)) if len(logs) else math.nan
    spread = 1.4826 * float(np.median(np.abs(logs - middle))) if len(logs) else 0.0
    known = ~np.isnan(work.agreed)
    return Report(
        agreement=share_interval(work.agreed[known], work.items[known]),
        gold=_share(work.gold),
        screening=_share(work.screening),
        again=_share(work.again),
        hurried=NONE if machine else _share(seconds < reading / PACE),
        seconds=math.exp(middle) if len(logs) else math.nan,
        pauses=int((np.abs(logs - middle) > OUTLIER * spread).sum()) if spread > 0 else 0,
        side=habits.side if habits else NOTHING,
        length=habits.length if habits else NOTHING,
        drift=_drift(work),
    )


def _share(values: np.ndarray) -> Interval:
    return proportion_interval(float(values.sum()), len(values))


def _drift(work: Work) -> Drift | None:
    """Of known answers where there are enough, since all annotators may drift together; else of agreement."""
    agreed = work.agreed[~np.isnan(work.agreed)]
    of, values = (
        ("known answers right", work.gold) if len(work.gold) >= 2 * FEWEST else ("agreement with others", agreed)
    )
    if len(values) < 2 * FEWEST:
        return None
    early, late = values[: len(values) // 2], values[-min(LATE, len(values) // 2) :]
    binary = bool(np.isin(values, (0, 1)).all())
    if np.ptp(values) == 0:
        p = 1.0
    elif binary:
        table = [[late.sum(), (1 - late).sum()], [early.sum(), (1 - early).sum()]]
        p = float(stats.fisher_exact(np.array(table, int), alternative="less").pvalue)
    else:
        p = float(stats.mannwhitneyu(late, early, alternative="less").pvalue)
    return Drift(of, share_interval(early), share_interval(late), p)


def _holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted; 1 where there was nothing to test."""
    adjusted = holm(list(p.values()))
    return {name: 1.0 if math.isnan(value) else value for name, value in zip(p, adjusted, strict=True)}


def _below_others(name: str, values: Mapping[str, np.ndarray]) -> float:
    """p of an annotator's mean not being below that of all others together (Welch); NaN where there are too few."""
    mine = values[name]
    others = _others(name, values)
    if len(mine) < FEWEST or len(others) < FEWEST:
        return math.nan
    if mine.std() == 0 and others.std() == 0:
        return float(mine[0] >= others[0])
    sides = ((mine.mean(), max(mine.std(ddof=1), 1e-3), len(mine)), (others.mean(), others.std(ddof=1), len(others)))
    (m, s, n), (om, os, on) = sides
    return float(stats.ttest_ind_from_stats(m, s, n, om, os, on, equal_var=False, alternative="less").pvalue)


def _others(name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0), *(each for other, each in values.items() if other != name)])


def _mean_of_others(name: str, values: Mapping[str, np.ndarray]) -> float:
    return float(_others(name, values).mean())


# ---- in words


def _apart(name: str, what: str, mine: Interval, others: float) -> list[Finding]:
    if others - mine.mean < GAP:
        return []
    return [Finding(name, f"{what} {percent(mine)}, the rest on {100 * others:.0f} %")]


def _low_gold(gold: Interval, task: TaskDefinition) -> list[Finding]:
    least = task.thresholds.gold
    if least is None or gold.n < task.thresholds.at_least or gold.mean >= least:
        return []
    return [
        Finding(
            "known answers",
            f"has {percent(gold)} of {gold.n} known answers right, where at least {100 * least:.0f} % are wanted",
        )
    ]


def _falls(drift: Drift) -> list[Finding]:
    if drift.early.mean - drift.late.mean < GAP:
        return []
    return [
        Finding(
            "drifts",
            f"fell in {drift.of} from {percent(drift.early)} in the first half to {percent(drift.late)} in the last "
            f"{drift.late.n} labels (p = {drift.p:.1g})",
        )
    ]


def _takes(taste: Taste, names: Sequence[str], words: str) -> list[Finding]:
    side = names[0] if taste.value > 0 else names[1]
    share = 1 / (1 + math.exp(-abs(taste.value)))
    rest = "of the time where neither is better"
    return [Finding(f"prefers the {side}", f"takes {words.format(side)} {100 * share:.0f} % {rest}")]


def _hurries(hurried: Interval) -> list[Finding]:
    if hurried.n < FEWEST or not hurried.low > HASTE:
        return []
    return [
        Finding("hurries", f"gave {percent(hurried)} of labels faster than anybody reads ({PACE:g} words a second)")
    ]


def percent(share: Interval) -> str:
    """A share with its interval."""
    return f"{100 * share.mean:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
