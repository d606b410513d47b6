"""Figures of an evaluation: of its table, and of its answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes

from assent.evaluate import plots
from assent.evaluate.frontier_plots import over_optimisation_chart, pareto_chart, tax_chart
from assent.evaluate.plots import Chart, Key
from assent.evaluate.results import PolicyTable
from assent.evaluate.samples import SampleSet
from assent.measures.correlation import spearman
from assent.measures.margins import histograms

_SIZE = (3.5, 2.3)
_DOTS = 900
"""Most dots in one figure."""
_MOST = 6
"""Most policies in a figure of distributions: more would hide each other."""


def colors_of(table: PolicyTable) -> dict[str, str]:
    """The colours of the page."""
    return plots.palette([policy.name for policy in table.policies], table.baseline)


def score_chart(table: PolicyTable) -> list[Chart]:
    """Mean score of each policy by the source that decides."""
    colors, label = colors_of(table), f"{table.by} reward"
    rows = [(policy.name, table.score(policy), colors[policy.name]) for policy in table.policies]
    if all(math.isnan(value.mean) for _, value, _ in rows):
        return []
    caption = "The dot is the mean, the bar its 95 % interval. Bars that do not overlap are a real difference."
    return [Chart(f"Mean {label}", caption, plots.intervals_svg(rows, label))]


def win_chart(table: PolicyTable) -> list[Chart]:
    """Win rate of each policy against the baseline."""
    colors = colors_of(table)
    rows = [(p.name, wins.rate, colors[p.name]) for p in table.policies if (wins := table.wins(p)) is not None]
    if all(math.isnan(value.mean) for _, value, _ in rows):
        return []
    caption = (
        f"Share of comparisons won against {table.baseline} by {table.by}, a tie counting half. Dashed: no better."
    )
    return [Chart("Win rate", caption, plots.intervals_svg(rows, "win rate", reference=0.5))]


def margin_charts(table: PolicyTable) -> list[Chart]:
    """Margins of the pairs that the prompt file gives."""
    charts = []
    for margins in table.margins:
        if not margins.edges:
            continue
        unread = max(margins.unread.values(), default=0)
        caption = (
            f"Better minus worse answer of each pair of the prompt file, by {margins.of}, in nats: right of 0 the "
            "policy agrees with the file. The outermost bars also hold what lies beyond."
            + (f" Up to {unread:,} pairs cannot be read and are left out." if unread else "")
        )
        counts = {name: np.array(own) for name, own in margins.counts.items()}
        charts += _histogram(f"Margins, by {margins.of}", caption, "nats", np.array(margins.edges), counts, table)
    return charts


CHARTS: tuple[Callable[[PolicyTable], list[Chart]], ...] = (
    score_chart,
    win_chart,
    pareto_chart,
    over_optimisation_chart,
    tax_chart,
    margin_charts,
)
"""Figures made of the table alone."""


def difference_chart(table: PolicyTable, samples: SampleSet) -> list[Chart]:
    """How the gains over the baseline are spread over the prompts."""
    by = next((place for place, source in enumerate(samples.sources) if source.name == table.by), None)
    if by is None or samples.sources[by].judged or samples.total > len(samples.rows):
        return []
    gains: dict[str, dict[int, list[float]]] = {}
    for row in samples.rows:
        for column, name in enumerate(samples.columns):
            if (gain := samples.gain(row, column, by)) is not None:
                gains.setdefault(name, {}).setdefault(row.prompt, []).append(gain)
    means = {name: np.array([np.mean(values) for values in own.values()]) for name, own in gains.items()}
    if not means or max(map(len, means.values())) < 10:
        return []
    edges, counts = histograms(means)
    caption = (
        f"Score minus {table.baseline}'s on the same prompt, by {table.by}: whether a gain is many small ones or a few "
        "large ones, and how many prompts lost. The outermost bars also hold what lies beyond."
    )
    return _histogram(
        f"Gains over {table.baseline} by prompt", caption, f"difference of {table.by}", edges, counts, table
    )


def likelihood_chart(table: PolicyTable, samples: SampleSet) -> list[Chart]:
    """Whether long answers are the unlikely ones."""
    colors, found = colors_of(table), dict[str, tuple[np.ndarray, np.ndarray]]()
    for column, name in enumerate(samples.columns):
        own = [row.answers[column] for row in samples.rows]
        pairs = [(s.tokens, s.log_prob / s.tokens) for s in own if s and s.tokens and s.log_prob is not None]
        if len(pairs) >= 10:
            x, y = np.array(pairs, np.float64).T
            found[name] = x, y
    shown = dict(list(found.items())[:_MOST])
    if not shown:
        return []
    keys = tuple(Key(f"{name}{_rho(x, y)}", colors[name], "dot") for name, (x, y) in shown.items())
    caption = (
        "Each dot is a sampled answer: its length, and its log-probability by its own policy per token; lines are "
        f"medians of answers of like length. ρ is Spearman's correlation.{_only(found, shown)}"
    )

    def draw(axes: Axes) -> None:
        rng = np.random.default_rng(0)
        for name, (x, y) in shown.items():
            some = rng.permutation(len(x))[: _DOTS // len(shown)]
            axes.scatter(x[some], y[some], s=3, color=colors[name], alpha=0.3, linewidths=0)
        for name, (x, y) in shown.items():
            order = np.argsort(x, kind="stable")
            groups = [group for group in np.array_split(order, min(8, len(x) // 5)) if len(group)]
            middle = [(np.median(x[group]), np.median(y[group])) for group in groups]
            axes.plot(*zip(*middle, strict=True), color=colors[name], linewidth=1.6, marker="o", markersize=3)
        plots.label(axes, "tokens", "nats per token")

    title = "Likelihood against length"
    return [Chart(title, caption, plots.drawn(draw, _SIZE, title), keys)]


ANSWER_CHARTS: tuple[Callable[[PolicyTable, SampleSet], list[Chart]], ...] = (difference_chart, likelihood_chart)
"""Figures that need the answers themselves."""


def _rho(x: np.ndarray, y: np.ndarray) -> str:
    rho = spearman(x, y)
    return "" if math.isnan(rho) else f" (ρ = {rho:.2f})".replace("-", "\N{MINUS SIGN}")


def _only(found: Mapping[str, object], shown: Mapping[str, object]) -> str:
    return f" The first {len(shown)} of {len(found)} policies." if len(found) > len(shown) else ""


def _histogram(
    title: str, caption: str, unit: str, edges: np.ndarray, counts: Mapping[str, np.ndarray], table: PolicyTable
) -> list[Chart]:
    colors, shown = colors_of(table), dict(list(counts.items())[:_MOST])
    shares = {name: own / max(1, own.sum()) for name, own in shown.items()}
    top = max(float(share.max()) for share in shares.values()) or 1.0

    def draw(axes: Axes) -> None:
        for place, (name, share) in enumerate(shares.items()):
            floor = float(-place)
            heights = floor + 0.85 * share / top
            axes.stairs(heights, edges, baseline=floor, color=colors[name], fill=True, alpha=0.35)
            axes.stairs(heights, edges, baseline=floor, color=colors[name], linewidth=1.2)
        if edges[0] < 0 < edges[-1]:
            axes.axvline(0, color=plots.INK, linewidth=0.8, linestyle=(0, (3, 3)))
        plots.label(axes, unit, "")
        plots.names(axes, [-place for place in range(len(shares))], list(shares))
        axes.set_ylim(0.85 - len(shares), 1)

    size = (3.5, 0.45 * len(shown) + 0.85)
    return [Chart(title, caption + _only(counts, shown), plots.drawn(draw, size, title))]
