"""Figures of a trust report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from assent.evaluate import plots
from assent.evaluate.plots import GOLD_COLOR, INK, PROXY_COLOR, Chart, Key
from assent.measures.accuracy import Accuracy
from assent.measures.best_of import Point
from assent.measures.bias import Bias
from assent.measures.calibration import Calibration
from assent.measures.edits import Sensitivity
from assent.measures.estimates import Estimate
from assent.measures.trust import Trust
from assent.statistics import Interval

BLUE, ORANGE = plots.COLORS[:2]
MOST = 24
"""Parts in one figure."""


def interval(found: Estimate) -> Interval:
    """An estimate as the figures take it."""
    value, low, high = (math.nan if number is None else number for number in (found.value, found.low, found.high))
    return Interval(value, low, high, found.n)


def accuracy_chart(trust: Trust, by: str) -> Chart:
    """The accuracy of each part, and of all pairs."""
    assert trust.accuracy is not None
    parts: dict[str, Accuracy] = {"all": trust.accuracy, **trust.parts[by]}
    rows = [(name, part.right, BLUE if name == "all" else ORANGE) for name, part in list(parts.items())[:MOST]]
    more = f" The first {MOST} of {len(parts)}." if len(parts) > MOST else ""
    return Chart(
        f"By {by}",
        f"The dot is the share of pairs that are right, the bar its 95 % interval; dashed is guessing.{more}",
        plots.intervals_svg(rows, "accuracy", reference=0.5),
    )


def calibration_chart(found: Calibration) -> Chart:
    """The reliability diagram."""

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        for each in found.bins:
            axes.plot([each.confidence] * 2, [each.right.low, each.right.high], color=BLUE, linewidth=2, alpha=0.5)
        axes.plot([b.confidence for b in found.bins], [b.right.mean for b in found.bins], "o-", color=BLUE, linewidth=1)
        axes.set_xlabel("how sure the reward is of its order")
        axes.set_ylabel("share that is right")
        axes.set_xlim(0.48, 1.02)
        plots.plain_ticks(axes)

    caption = (
        "Pairs in bins of equal number, by sigmoid of the gap in reward. On the dashed line confidence is deserved; "
        "below it the reward is too sure of itself. Bars: 95 % intervals."
    )
    return Chart("Reliability", caption, plots.drawn(draw, (3.5, 2.6), "Reliability diagram"))


def bias_chart(found: Bias, gold: str) -> Chart | None:
    """Rank correlations of the rewards with each feature, labels and gold held fixed."""
    rows = []
    for relation in found.relations:
        shown = [(relation.feature, relation.reward, plots.BASELINE_COLOR)]
        shown.append(("labels fixed", relation.given_label, BLUE))
        if relation.given_gold is not None:
            shown.append(("gold fixed", relation.given_gold, GOLD_COLOR))
        rows += [(name, interval(value), color) for name, value, color in shown if value.value is not None]
    if not rows:
        return None
    keys = [Key("plain", plots.BASELINE_COLOR, "dot"), Key("labels held fixed", BLUE, "dot")]
    keys += [Key(f"{gold} held fixed", GOLD_COLOR, "dot")] if gold else []
    return Chart(
        "What the reward follows",
        "Rank correlation of the difference in reward with the difference in each feature, over pairs. Right of the "
        "dashed line: more of it is rewarded. Coloured dots should be near 0.",
        plots.intervals_svg(rows, "rank correlation", reference=0.0),
        tuple(keys),
    )


def edits_chart(found: Sequence[Sensitivity]) -> Chart | None:
    """The mean change in reward by each edit."""
    rows = [
        (each.name, interval(each.change), BLUE if each.harmless else ORANGE)
        for each in found
        if each.change.value is not None
    ]
    if not rows:
        return None
    return Chart(
        "Change in reward",
        "In standard deviations of the rewards. Harmless edits (blue) should stay at 0; answers made worse (orange) "
        "should lose.",
        plots.intervals_svg(rows, "change in reward", reference=0.0),
        (Key("harmless", BLUE, "dot"), Key("makes the answer worse", ORANGE, "dot")),
    )


def best_of_chart(points: Sequence[Point], gold: str) -> Chart:
    """Gains in reward and in gold by the root of the bound on KL, each on its own scale."""
    x = [point.distance for point in points]

    def draw(axes: Axes) -> None:
        right = axes.twinx()
        for side, values, color, label, marker in (
            (axes, [p.gold_gain for p in points], GOLD_COLOR, f"gain in {gold}", "o"),
            (right, [p.reward_gain for p in points], PROXY_COLOR, "gain in reward", "D"),
        ):
            side.fill_between(
                x, [v.low for v in values], [v.high for v in values], color=color, alpha=0.16, linewidth=0
            )
            side.plot(x, [v.mean for v in values], color=color, linewidth=1.6, marker=marker, markersize=4)
            side.set_ylabel(label, color=color)
            side.tick_params(axis="y", labelcolor=color, length=0)
            side.yaxis.set_major_locator(MaxNLocator(5))
            plots.plain_ticks(side, "y")
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        right.grid(False)
        axes.set_xticks(x, [str(point.n) for point in points])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("n, spaced by the root of the bound on KL")

    return Chart(
        "Best of n",
        "What is gained over one answer when the one with the highest reward of n is kept. Where the reward climbs and "
        "gold does not, the reward is over-optimised. Shaded: 95 % intervals.",
        plots.drawn(draw, (4.2, 2.6), "Best-of-n curve"),
        (Key(f"{gold}, left axis", GOLD_COLOR), Key("reward, right axis", PROXY_COLOR)),
    )
