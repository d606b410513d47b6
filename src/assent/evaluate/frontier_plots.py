"""Figures of over-optimisation: gain by distance with its laws, the front of KL and score, and the alignment tax."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from assent.evaluate.frontier import coefficients, law_sentence
from assent.evaluate.harness import HARNESS
from assent.evaluate.laws import FrontierPoint, LawFit
from assent.evaluate.measured import GOLD
from assent.evaluate.plots import (
    GOLD_COLOR,
    INK,
    PROXY_COLOR,
    Chart,
    Key,
    drawn,
    palette,
    plain_ticks,
    short,
)
from assent.evaluate.results import REWARD, PolicyTable
from assent.measures.aggregate import Difference
from assent.measures.estimates import Estimate

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
TASKS = ("exact-match", "plain-match", "numeric-match", "mc1", "mc2", "preference-accuracy", "given-perplexity")
"""Measures of what a policy can do whatever it is rewarded for; with those per token, and whatever the harness has."""
MOST = 12
"""Tasks that are drawn."""
NAMED = 8
"""Most points of a picture that all have their names beside them; else those on the front have."""
STEPS = (1, 2, 5, 10)


# ---- gain by distance


@dataclass(frozen=True)
class Line:
    """One side of a figure of gains."""

    law: LawFit
    color: str
    marker: str
    dashes: object


def over_optimisation_chart(table: PolicyTable) -> list[Chart]:
    """A figure for each run, and for each best-of-n, of gold and each proxy; without gold, of each score."""
    charts = []
    for gold, other in _pairs(table.laws):
        laws = [law for law in (gold, other) if law is not None]
        if any(point.gain.value is not None and not math.isnan(point.distance) for law in laws for point in law.points):
            charts.append(_gains_chart(gold, other))
    return charts


def _pairs(laws: Sequence[LawFit]) -> Iterator[tuple[LawFit | None, LawFit | None]]:
    """Gold and another source along the same points; one of both where the other is not there."""
    for law in laws:
        along = [each for each in laws if (each.method, each.name) == (law.method, law.name)]
        golds = [each for each in along if each.source == GOLD and each.proxy in ("", law.source)]
        if law.source != GOLD:
            yield (golds[0] if golds else None), law
        elif all(each.source == GOLD for each in along):
            yield law, None


def _gains_chart(gold: LawFit | None, other: LawFit | None) -> Chart:
    lines = [Line(gold, GOLD_COLOR, "o", "-")] if gold is not None else []
    lines += [Line(other, PROXY_COLOR, "D", (0, (5, 2)))] if other is not None else []
    first = lines[0].law
    bound = first.method == "best-of-n"

    def draw(axes: Axes) -> None:
        sides = [axes, axes.twinx()][: len(lines)]
        _level(sides, lines)
        for side, line in zip(sides, lines, strict=True):
            _gains(side, line)
        if gold is not None:
            _mark_peak(axes, gold)
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.set_xlim(0, 1.06 * max(_reach(line.law) for line in lines))
        if bound:
            _ticks_of_n(axes, first)
            axes.set_xlabel("best of n (axis: root of the bound on its KL)")
        else:
            axes.set_xlabel("√KL from the reference, along RL (√nats)")
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
            plain_ticks(axes, "x")

    axis = {0: "left axis", 1: "right axis"} if len(lines) > 1 else {0: ""}
    keys = tuple(
        Key(", ".join(filter(None, (f"gain in {line.law.source}", axis[side]))), line.color, ("line", "dashed")[side])
        for side, line in enumerate(lines)
    )
    title = f"Best of n of {first.name}" if bound else f"{first.name}: gain by distance"
    svg = drawn(draw, (4.5, 2.75), f"{title}: gain over {first.start or 'the start'} by distance")
    return Chart(title, _caption([line.law for line in lines]), svg, keys)


def _caption(laws: Sequence[LawFit]) -> str:
    first = laws[0]
    if first.method == "best-of-n":
        axis = (
            f"Gain over {first.start} when of n answers the best by {first.proxy or first.source} is kept. "
            "KL is only bounded, by log n − (n − 1)/n: not to be laid beside KL of RL."
        )
    else:
        axis = f"Gain over {first.start}, on the same prompts, by how far the run has gone from it."
    fits = "; ".join(f"{law.source}: {coefficients(law.fit)}" for law in laws if law.fit.alpha.value is not None)
    form = "d (α − β d)" if first.method == "best-of-n" else "d (α − β log d)"
    lines = f"Lines: the law {form} ({fits}). " if fits else ""
    marked = "Dotted: its highest point, shaded the 95 % interval of that. " if _peak_shown(first) else ""
    return f"{axis} {lines}{marked}Bars: 95 % intervals. {law_sentence(first)}"


def _peak_shown(law: LawFit) -> bool:
    peak = law.fit.peak
    return law.source == GOLD and peak.value is not None and peak.value <= 1.06 * _reach(law)


def _reach(law: LawFit) -> float:
    """The largest distance of its points."""
    return max((point.distance for point in law.points if not math.isnan(point.distance)), default=1.0)


def _gains(axes: Axes, line: Line) -> None:
    law, color = line.law, line.color
    if law.fit.alpha.value is not None:
        d = np.linspace(0, _reach(law), 120)
        axes.plot(d, law.fit(d), color=color, linewidth=1.5, linestyle=line.dashes)
    for point in law.points:
        if point.gain.value is None or math.isnan(point.distance):
            continue
        if point.gain.low is not None:
            axes.plot([point.distance] * 2, [point.gain.low, point.gain.high], color=color, linewidth=2, alpha=0.4)
        if point.kl.low is not None and point.kl.high is not None:
            ends = [math.sqrt(max(0.0, end)) for end in (point.kl.low, point.kl.high)]
            axes.plot(ends, [point.gain.value] * 2, color=color, linewidth=2, alpha=0.4)
        axes.plot(point.distance, point.gain.value, line.marker, color=color, markersize=4)
    axes.set_ylabel(short(f"gain in {law.source}", 30), color=color)
    axes.tick_params(axis="y", labelcolor=color, length=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    plain_ticks(axes, "y")


def _level(sides: Sequence[Axes], lines: Sequence[Line]) -> None:
    """No gain stands at the same height on both axes, and each line has the same share of the picture."""
    extents = [_extent(line.law) for line in lines]
    spans = [(high - low) or 1.0 for low, high in extents]
    down = min(low / span for (low, _), span in zip(extents, spans, strict=True))
    up = max(high / span for (_, high), span in zip(extents, spans, strict=True))
    pad = 0.07 * (up - down) or 0.5
    for side, span in zip(sides, spans, strict=True):
        side.set_ylim((down - pad) * span, (up + pad) * span)
    if len(sides) > 1:
        sides[1].grid(False)


def _extent(law: LawFit) -> tuple[float, float]:
    values = [value for p in law.points for value in (p.gain.value, p.gain.low, p.gain.high) if value is not None]
    if law.fit.alpha.value is not None:
        values += law.fit(np.linspace(0, _reach(law), 40)).tolist()
    return min((0.0, *values)), max((0.0, *values))


def _mark_peak(axes: Axes, law: LawFit) -> None:
    peak = law.fit.peak
    if not _peak_shown(law) or peak.value is None:
        return
    axes.axvline(peak.value, color=GOLD_COLOR, linewidth=1, linestyle=(0, (1, 2)))
    if peak.low is not None and peak.high is not None:
        axes.axvspan(peak.low, min(peak.high, 1.06 * _reach(law)), color=GOLD_COLOR, alpha=0.1, linewidth=0)


def _ticks_of_n(axes: Axes, law: LawFit) -> None:
    sizes = [(int(point.name.rpartition(" ")[2]), point.distance) for point in law.points]
    shown = [(n, d) for n, d in sizes if n & (n - 1) == 0 or n == sizes[-1][0]]
    axes.set_xticks([0.0, *(d for _, d in shown)], ["1", *(str(n) for n, _ in shown)])
    axes.xaxis.set_minor_locator(NullLocator())


# ---- KL and score


def pareto_chart(table: PolicyTable) -> list[Chart]:
    """All policies and checkpoints between KL and the score that decides, with the front; none for a single one."""
    points = [point for point in table.frontier if _known(point.scores.get(table.by))]
    if len(points) < 2:
        return []
    runs = list(dict.fromkeys(point.run for point in points))
    looks = _looks(runs, table)
    label = f"{table.by} reward" if f"{REWARD}{table.by}" in table.keys else f"win rate by {table.by}"

    def draw(axes: Axes) -> None:
        _front_line(axes, [point for point in points if point.on_front], table.by)
        for run in runs:
            own = [point for point in points if point.run == run]
            color, marker = looks[run]
            for point in own:
                score = point.scores[table.by]
                _cross(axes, point.kl, score, color)
                face = color if point.on_front else "none"
                axes.plot(point.kl.value, score.value, marker, color=color, markerfacecolor=face, markersize=6)
            axes.plot([], [], marker, color=color, markersize=6, label=short(run, 30))
        _names(axes, points, table.by)
        axes.set_xlabel("KL from the reference (nats per answer, root scale)")
        axes.set_ylabel(short(label, 30))
        _finish(axes, len(runs))
        _root_scale(axes, max(point.kl.value or 0.0 for point in points))

    caption = (
        "What is had, and how far the policy has gone for it: up and left is better. Filled, and joined: the front, of "
        "which no other policy has as much for less KL, by the means; where intervals overlap, another sample may put "
        "others there. Colour and shape: the run. Bars: 95 % intervals."
    )
    svg = drawn(draw, (4.5, 3.1 + 0.16 * (len(runs) // 3)), f"{label} against KL from the reference")
    return [Chart(f"KL and {label}", caption, svg)]


def _known(score: Estimate | None) -> bool:
    return score is not None and score.value is not None


def _looks(runs: Sequence[str], table: PolicyTable) -> dict[str, tuple[str, str]]:
    """A colour and a shape for each run."""
    colors = palette(runs, table.baseline)
    return {run: (colors[run], marker) for run, marker in zip(runs, cycle(MARKERS), strict=False)}


def _cross(axes: Axes, x: Estimate, y: Estimate, color: str) -> None:
    style = {"color": color, "linewidth": 1.8, "alpha": 0.4}
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [y.value] * 2, **style)
    if y.low is not None and y.high is not None:
        axes.plot([x.value] * 2, [y.low, y.high], **style)


def _front_line(axes: Axes, front: Sequence[FrontierPoint], by: str) -> None:
    ordered = sorted(front, key=lambda point: point.kl.value or 0.0)
    x, y = [p.kl.value for p in ordered], [p.scores[by].value for p in ordered]
    axes.plot(x, y, color=INK, linewidth=0.9, alpha=0.6, drawstyle="steps-post")


def _root_scale(axes: Axes, furthest: float) -> None:
    """Distances as the laws have them, d = √KL, with the KL at the ticks."""
    axes.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x * x))
    ticks = [0.0]
    for tick in (digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)):
        if tick <= 1.05 * furthest and math.sqrt(tick) - math.sqrt(ticks[-1]) > 0.11 * math.sqrt(furthest):
            ticks.append(tick)
    axes.set_xticks(ticks)
    plain_ticks(axes, "x")
    axes.xaxis.set_minor_locator(NullLocator())


def _names(axes: Axes, points: Sequence[FrontierPoint], by: str) -> None:
    """The step of each state of a run, and the name of what is none, beside its cross; of many the last of each run and
    that of the highest score."""
    shown = list(points)
    if len(points) > NAMED:
        runs = [[point for point in points if point.run == run] for run in dict.fromkeys(p.run for p in points)]
        ends = [end for own in runs for end in (max(own, key=_step), max(own, key=lambda p: p.scores[by].value or 0.0))]
        shown = [point for point in points if point in ends]
    for point in shown[: 2 * NAMED]:
        text = short(point.name) if point.step is None else f"step {point.step}"
        at = point.kl.value, point.scores[by].value
        axes.annotate(text, at, (5, 4), textcoords="offset points", fontsize=7)


def _step(point: FrontierPoint) -> int:
    return -1 if point.step is None else point.step


def _finish(axes: Axes, entries: int) -> None:
    axes.margins(x=0.12, y=0.14)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=STEPS))
    plain_ticks(axes)
    if entries > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=3, frameon=False, fontsize=8)


# ---- alignment tax


def tax_chart(table: PolicyTable) -> list[Chart]:
    """For each task that the evaluation holds: its change against the baseline, by the gain of the policy."""
    gains = {policy.name: gain.difference for policy in table.policies if (gain := table.gain(policy)) is not None}
    rows: dict[str, dict[str, Difference]] = {}
    for policy in table.policies:
        for key, difference in policy.differences.items():
            if _is_task(key) and _known(difference.difference) and _known(gains.get(policy.name)):
                rows.setdefault(key, {})[policy.name] = difference
    return [_tax(table, key, found, gains) for key, found in list(rows.items())[:MOST]]


def _is_task(key: str) -> bool:
    measure = key.partition("/")[0]
    return measure == HARNESS or measure.removesuffix("-per-token") in TASKS


def _tax(table: PolicyTable, key: str, found: dict[str, Difference], gains: dict[str, Estimate]) -> Chart:
    of = {point.name: point.run for point in table.frontier}
    last = {point.run: point for point in sorted(table.frontier, key=_step)}
    runs = list(dict.fromkeys(of.get(name, name) for name in found))
    looks = _looks(runs, table)
    known = table.measures.get(key)
    lower = known is not None and known.better == "lower"

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        for name, difference in found.items():
            run = of.get(name, name)
            color, marker = looks[run]
            gain, change = gains[name], difference.difference
            _cross(axes, gain, change, color)
            axes.plot(gain.value, change.value, marker, color=color, markersize=6)
            if run in last and last[run].name == name and last[run].step is not None:
                text = f"step {last[run].step}"
                axes.annotate(text, (gain.value, change.value), (5, 4), textcoords="offset points", fontsize=7)
        for run in runs:
            axes.plot([], [], looks[run][1], color=looks[run][0], markersize=6, label=short(run, 30))
        axes.set_xlabel(short(f"gain by {table.by} over {table.baseline}", 44))
        axes.set_ylabel(short(f"change in {key.removeprefix(f'{HARNESS}/')}", 30))
        _finish(axes, len(runs) + 1)

    worse = "Above" if lower else "Below"
    harness = key.startswith(f"{HARNESS}/")
    caption = (
        f"What the gain by {table.by} has cost elsewhere. {worse} the dashed line the policy is worse at it than "
        f"{table.baseline}. Bars: 95 % intervals"
        + (", as of separate samples." if harness else " of the difference on the same prompts.")
    )
    return Chart(
        f"Alignment tax: {key.removeprefix(f'{HARNESS}/')}",
        caption,
        drawn(draw, (3.5, 2.9), f"Change in {key} by gain in {table.by}"),
    )
