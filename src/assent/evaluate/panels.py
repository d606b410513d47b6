"""What a run's metrics tell: which of them share a figure and how to read it, and what deserves a word of its own."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from assent.evaluate import plots
from assent.evaluate.plots import Chart, Curve, Key
from assent.evaluate.runs import Run, Series

_SHOWN = 4  # curves in one figure


@dataclass(frozen=True)
class Panel:
    """A figure of the training section: the metrics whose name, without "eval/", `pattern` finds."""

    title: str
    pattern: str
    caption: str
    unit: str = ""
    """Of the vertical axis; "" where it has none."""


PANELS = (
    Panel(
        "Loss",
        r"^(loss|nll|objective)$",
        "What is minimised. An evaluated curve that turns up means overfitting.",
        "loss",
    ),
    Panel(
        "Accuracy",
        r"accuracy",
        "Share of pairs whose chosen answer scores higher (0.5 is guessing); of yes/no labels, share judged rightly.",
        "share",
    ),
    Panel(
        "Margin",
        r"margin$",
        "Score of the chosen answer minus the rejected one: growing means telling them apart.",
        "difference of scores",
    ),
    Panel(
        "Margins of all pairs",
        r"margin_p\d+$",
        "Median with the middle half, and where the lowest and the highest 5 % begin. A 5 % line that falls while the "
        "median rises: some pairs are given up.",
        "difference of scores",
    ),
    Panel(
        "Told apart",
        r"^auc$",
        "Chance that a desirable answer has more implicit reward than an undesirable one. 0.5 is guessing.",
        "AUC",
    ),
    Panel("Implicit reward", r"^reward/", "Both may fall; what matters is that they part.", "reward"),
    Panel(
        "Log-probability",
        r"^logprob/",
        "Nats per token. Both falling: the policy moves off all the data.",
        "nats per token",
    ),
    Panel(
        "Agreement",
        r"^agreement$",
        "Share of pairs that implicit reward and likelihood per token order alike. Low: sampling does not follow what "
        "was learnt.",
        "share",
    ),
    Panel(
        "Correlation with length",
        r"^spearman/length_",
        "Of the held-out answers' reward and likelihood per token (Spearman). Far from 0: length is being learnt.",
        "Spearman's ρ",
    ),
    Panel(
        "Reference point",
        r"^reference_point$",
        "KTO: drift of answers to other prompts from the reference, in nats.nats",
    ),
    Panel("Score", r"^score$", "Mean score of the reward model over all answers. Its level is free.", "score"),
    Panel(
        "Reward",
        r"^(reward|gold|first)$",
        "Mean reward of sampled answers: what training sees (reward), and gold.",
        "reward",
    ),
    Panel(
        "Win rate",
        r"^win_rate$",
        "Share of held-out prompts whose answer is better than the start's, a tie counting half.",
        "share",
    ),
    Panel(
        "KL from the reference",
        r"(^|/)kl$",
        "How far the policy has moved from its start, in nats per answer.",
        "nats per answer",
    ),
    Panel(
        "KL from the teacher",
        r"^teacher_kl",
        "How far the policy is from its teacher: KL(policy || teacher), and forward KL(teacher || policy).",
        "nats per token",
    ),
    Panel(
        "Agreement with the teacher", r"^teacher_agreement$", "Share of tokens with the same likeliest one.", "share"
    ),
    Panel("Divergence", r"^distill_loss$", "What distillation minimises, per token.", "nats per token"),
    Panel(
        "Entropy",
        r"entropy",
        "Variety, in nats per token. A fall to 0: all answers have become the same.",
        "nats per token",
    ),
    Panel(
        "Answer length", r"^length$", "In tokens. Growing with the proxy but not with gold: a length bias.", "tokens"
    ),
    Panel("Unfinished answers", r"unfinished", "Share of answers cut off at the length limit.", "share"),
    Panel(
        "Clip fraction",
        r"clip_fraction",
        "Share of tokens whose update was cut off. Above 0.3: steps too large.",
        "share",
    ),
    Panel(
        "KL of one update",
        r"approx_kl",
        "How far one update moved the policy. Should stay small and flat.",
        "nats per token",
    ),
    Panel(
        "Explained variance",
        r"explained_variance",
        "How well the critic foresees rewards: 1 perfectly, 0 not.",
        "share",
    ),
    Panel("Value loss", r"value_loss", "Error of the critic's forecast of the reward.", "loss"),
    Panel(
        "Policy loss",
        r"policy_loss",
        "The clipped objective. Its level says little; steady drift is suspicious.",
        "loss",
    ),
    Panel("Gradient norm", r"grad_norm", "Before clipping. Spikes are steps on unusual batches.", "norm"),
    Panel("Learning rate", r"(^|/)lr$", "The schedule.", "learning rate"),
    Panel("Speed", r"per_second", "Tokens per second.", "tokens per second"),
)


def run_charts(run: Run, color: str, limit: int, over: str = "step") -> list[Chart]:
    """The run's panels, at most `limit` points a curve; `over` is what is counted along them."""
    grouped: dict[str, list[str]] = {panel.title: [] for panel in PANELS}
    for key in sorted(run.metrics, key=lambda key: (key.startswith("eval/"), key)):
        base = key.removeprefix("eval/")
        if base.endswith(("_std", "_low", "_high", "_p25", "_p75")):
            continue
        panel = next((panel for panel in PANELS if re.search(panel.pattern, base)), None)
        if panel is None or len(grouped[panel.title]) == _SHOWN:
            continue
        # The loss of a plain likelihood, or of one objective alone, is logged under two names.
        if not any(_same(run.metrics[key], run.metrics[other]) for other in grouped[panel.title]):
            grouped[panel.title].append(key)
    charts = []
    for panel in PANELS:
        if not grouped[panel.title]:
            continue
        curves = _curves(run, grouped[panel.title], color)
        keys = tuple(
            Key(curve.label, curve.color.replace(plots.INK, "currentColor"), "dashed" if curve.evaluated else "line")
            for curve in curves
        )
        charts.append(
            Chart(panel.title, panel.caption, plots.curves_svg(curves, panel.title, limit, panel.unit, over), keys)
        )
    return charts


def metric_ends(run: Run) -> list[tuple[str, tuple[float, ...]]]:
    """First, last, least and greatest value of everything that was logged."""
    return [(key, _ends(series)) for key, series in sorted(run.metrics.items())]


def lengths(run: Run) -> str:
    """How long sampled answers were before training and after it, where both are known."""
    series = run.metrics.get("eval/length")
    if series is None or len(series.steps) < 2:
        return ""
    return f"Sampled answers: {series.values[0]:.0f} tokens at the start, {series.values[-1]:.0f} at the end."


def _ends(series: Series) -> tuple[float, ...]:
    finite = series.values[~np.isnan(series.values)]
    least, greatest = (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)
    return float(series.values[0]), float(series.values[-1]), least, greatest


def _same(a: Series, b: Series) -> bool:
    return len(a.steps) == len(b.steps) and np.allclose(a.values, b.values, rtol=1e-4, equal_nan=True)


def _curves(run: Run, keys: list[str], color: str) -> list[Curve]:
    shades = {False: iter((color, plots.BASELINE_COLOR, *plots.COLORS)), True: iter((plots.INK, *plots.COLORS))}
    curves = []
    for key in keys:
        evaluated, median = key.startswith("eval/"), key.removesuffix("_p50")
        bounds = (f"{key}_low", f"{key}_high") if median == key else (f"{median}_p25", f"{median}_p75")
        low, high = (run.metrics.get(bound) for bound in bounds)
        shade = plots.GOLD_COLOR if key == "eval/gold" else next(shades[evaluated])
        curves.append(Curve(key, run.metrics[key], shade, evaluated, low, high))
    return curves
