"""The report's figures, as SVG to be put inside an HTML page: no ids that clash, no namespaces, no fonts of their own.

Ink and grid take the page's colours (`currentColor`, `--grid`), so that figures follow its light or dark theme. Titles
and legends are HTML, beside the figure: they wrap on a phone and never cover data.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from assent.evaluate.results import Track
from assent.evaluate.runs import Series
from assent.foreign import printable
from assent.statistics import Interval

# Okabe and Ito's colours: distinct also to the colour-blind, on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D1F")
BASELINE_COLOR = "#7A828C"
GOLD_COLOR, PROXY_COLOR = "#C08A00", "#7B5EA7"
INK, _GRID = "#111213", "#e1e2e3"  # stand-ins for the page's own colours, which replace them in the SVG
_STEPS = (1, 2, 5, 10)  # between round tick values
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "assent",
    "text.parse_math": False,
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Key:
    """A legend entry: a stroke ("line", "dashed" or "dot") of a colour, and its label."""

    label: str
    color: str
    stroke: str = "line"


@dataclass(frozen=True)
class Chart:
    """A figure of the report: what it shows, how to read it, the drawing."""

    title: str
    caption: str
    svg: str
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One metric to draw. `evaluated` curves are sparse: drawn with markers and not smoothed."""

    label: str
    series: Series
    color: str
    evaluated: bool = False
    low: Series | None = None
    high: Series | None = None
    """Bounds at the same steps."""


def palette(names: Iterable[str], baseline: str | None = None) -> dict[str, str]:
    """One colour for each name, the same in every figure; the baseline is grey. Upper and lower case are one name: the
    policy "PPO" and its run folder "ppo" share their colour."""
    names = list(names)
    colors = {baseline.casefold(): BASELINE_COLOR} if baseline is not None else {}
    cycle = itertools.cycle(COLORS)
    for name in names:
        if name.casefold() not in colors:
            colors[name.casefold()] = next(cycle)
    return {name: colors[name.casefold()] for name in names}


def thin(series: Series, limit: int) -> Series:
    """At most `limit` points: the least and the greatest of each bucket, in order, so that spikes stay. A bucket with
    a gap (NaN) keeps the gap."""
    n = len(series.steps)
    if n <= limit:
        return series
    keep: list[int] = []
    for bucket in np.array_split(np.arange(n), max(1, limit // 2)):
        values = series.values[bucket]
        gaps = np.flatnonzero(np.isnan(values))
        ends = (gaps[0], gaps[-1]) if gaps.size else (int(values.argmin()), int(values.argmax()))
        keep += sorted({int(bucket[end]) for end in ends})
    return Series(series.steps[keep], series.values[keep])


def ema(values: np.ndarray, span: float) -> np.ndarray:
    """Exponential moving average without the start's bias: s_t / w_t, s_t = (1 - a) s_{t-1} + a x_t, w_t likewise for
    x = 1, a = 2 / (span + 1). A gap stays a gap and the average goes on after it."""
    alpha = 2 / (span + 1)
    smooth = np.full(len(values), math.nan)
    total = weight = 0.0
    for index, value in enumerate(values):
        if not math.isnan(value):
            total = (1 - alpha) * total + alpha * value
            weight = (1 - alpha) * weight + alpha
            smooth[index] = total / weight
    return smooth


def curves_svg(curves: Sequence[Curve], title: str, limit: int = 400, unit: str = "", over: str = "step") -> str:
    """Curves over training steps, or what `over` names. Long ones: the raw values thin and pale, their moving average
    over them."""

    def draw(axes: Axes) -> None:
        for curve in curves:
            _draw_curve(axes, curve, limit)
        label(axes, over, unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS, integer=True))
        axes.margins(x=0.02, y=0.08)

    return drawn(draw, (3.5, 2.15), f"{title} over {'training steps' if over == 'step' else f'{over}s'}")


def _draw_curve(axes: Axes, curve: Curve, limit: int) -> None:
    series, color = curve.series, curve.color
    gaps = series.steps[np.isnan(series.values)]
    if curve.evaluated or len(series.steps) < 25:
        style: Any = (0, (4, 2)) if curve.evaluated else "-"
        marker = "o" if len(series.steps) <= 60 else None
        shown = thin(series, limit)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(
                curve.low.steps, curve.low.values, curve.high.values, color=color, alpha=0.13, linewidth=0
            )
        axes.plot(shown.steps, shown.values, color=color, linewidth=1.3, linestyle=style, marker=marker, markersize=3)
    else:
        raw = thin(series, limit)
        smooth = thin(Series(series.steps, ema(series.values, len(series.values) / 25)), limit // 2)
        axes.plot(raw.steps, raw.values, color=color, linewidth=0.7, alpha=0.35)
        axes.plot(smooth.steps, smooth.values, color=color, linewidth=1.6)
    if gaps.size:
        edge = axes.get_xaxis_transform()
        axes.plot(gaps[:50], [0.02] * len(gaps[:50]), "x", color="#C62828", markersize=4, transform=edge, clip_on=False)


def intervals_svg(rows: Sequence[tuple[str, Interval, str]], label: str, reference: float | None = None) -> str:
    """One line a policy: (name, interval, colour) as a dot with its bounds and its number. `reference` is a dashed
    vertical line."""

    def draw(axes: Axes) -> None:
        shown = [row for row in rows if not math.isnan(row[1].mean)]
        for position, (_, value, color) in enumerate(shown):
            if not math.isnan(value.low):
                axes.plot([value.low, value.high], [position] * 2, color=color, linewidth=2.6, alpha=0.55)
            axes.plot(value.mean, position, "o", color=color, markersize=6)
            axes.annotate(
                _two_digits(value.mean),
                (value.mean, position),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        names(axes, range(len(shown)), [name for name, _, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.75)
        axes.set_xlabel(short(label, 40))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.margins(x=0.1)
        plain_ticks(axes, "x")

    return drawn(draw, (3.5, max(1.5, 0.42 * len(rows) + 0.75)), f"{label} of each policy with 95 % intervals")


def track_svg(track: Track) -> str:
    """Gold (left axis) and proxy (right axis) over KL, or over steps where KL is unknown. Both axes put the start at
    the same height and give each line, with its band, the same share of the picture: where the lines part, the proxy
    is being satisfied without the truth."""
    distances = [point.kl for point in track.points if point.kl is not None and math.isfinite(point.kl)]
    by_kl = len(distances) == len(track.points)
    x = distances if by_kl else [float(point.step) for point in track.points]

    def draw(axes: Axes) -> None:
        lines = (
            ("gold reward", [p.gold for p in track.points], GOLD_COLOR, "o", "-"),
            ("proxy reward", [p.proxy for p in track.points], PROXY_COLOR, "D", (0, (5, 2))),
        )
        extents = [_gain_extent(values) for _, values, _, _, _ in lines]
        spans = [(high - low) or 1.0 for low, high in extents]
        down = min(low / span for (low, _), span in zip(extents, spans, strict=True))
        up = max(high / span for (_, high), span in zip(extents, spans, strict=True))
        pad = 0.06 * (up - down) or 0.5
        right = axes.twinx()
        for (label, values, color, marker, dashes), span, side in zip(lines, spans, (axes, right), strict=True):
            means = [value.mean for value in values]
            side.fill_between(
                x, [v.low for v in values], [v.high for v in values], color=color, alpha=0.16, linewidth=0
            )
            side.plot(x, means, color=color, linewidth=1.8, linestyle=dashes, marker=marker, markersize=3.6)
            side.set_ylim(_start(values) + (down - pad) * span, _start(values) + (up + pad) * span)
            side.set_ylabel(label, color=color)
            side.tick_params(axis="y", labelcolor=color, length=0)
            side.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
            plain_ticks(side, "y")
        axes.axhline(_start(lines[0][1]), color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        right.grid(False)
        axes.set_xlabel("KL from the reference (nats per answer)" if by_kl else "step")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=not by_kl))
        axes.margins(x=0.04)
        plain_ticks(axes, "x")

    return drawn(draw, (4.5, 2.65), f"Gold and proxy reward of {track.name} during training")


def _start(values: Sequence[Interval]) -> float:
    return next((value.mean for value in values if not math.isnan(value.mean)), 0.0)


def _gain_extent(values: Sequence[Interval]) -> tuple[float, float]:
    """Lowest and highest value, bands included, relative to the start."""
    numbers = [number - _start(values) for value in values for number in (value.mean, value.low, value.high)]
    finite = [number for number in numbers if math.isfinite(number)]
    return min((0.0, *finite)), max((0.0, *finite))


def short(name: str, limit: int = 22) -> str:
    """At most so many characters, all of them printable."""
    name = printable(name)
    return name if len(name) <= limit else name[: limit - 1] + "…"


def label(axes: Axes, x: str, y: str) -> None:
    """Names of both axes, and few round ticks."""
    axes.set_xlabel(short(x, 40))
    axes.set_ylabel(short(y, 30))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    plain_ticks(axes)


def names(axes: Axes, places: Sequence[int], texts: Sequence[str]) -> None:
    """Names at the left instead of an axis."""
    axes.set_yticks(places, [short(text) for text in texts])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def plain_ticks(axes: Axes, which: str = "both") -> None:
    """Numbers at the ticks as people write them."""

    def text(value: float, _position: int) -> str:
        shown = f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e")
        return shown.replace("-", "\N{MINUS SIGN}")

    for axis in (axes.xaxis,) * (which != "y") + (axes.yaxis,) * (which != "x"):
        axis.set_major_formatter(FuncFormatter(text))


def drawn(draw: Callable[[Axes], None], size: tuple[float, float], label: str) -> str:
    """What `draw` draws, of this size in inches, as an element of a page."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Text is drawn by the reader's browser; that matplotlib's own font lacks a glyph does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """Matplotlib's document as an element of a page, with coordinates of one decimal (tenths of a point)."""
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="([^"]*)"', body)
    assert view is not None
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = body.replace("xlink:href", "href")
    prefix = hashlib.sha1((printable(label) + body).encode()).hexdigest()[:8] + "-"
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", body)
    body = re.sub(
        r'\b(d|x|y|transform)="[^"]*"',
        lambda match: re.sub(r"(\.\d)\d+", r"\1", re.sub(r"\s+", " ", match[0])),
        body,
    )
    body = re.sub(r"font: ?([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"font-family: ?[^;\"]*;? ?", "", body)
    body = body.replace(INK, "currentColor").replace(_GRID, "var(--grid)")
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg class="chart" role="img" aria-label="{escape(printable(label))}" viewBox="{view[1]}">{body}'
