"""Whether a policy is steered: each attribute asked for at every value, and what its answers then were."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assent.config import EngineConfig, SamplingConfig
from assent.data.formats import load_examples
from assent.data.jsonl import plain_json
from assent.data.records import Example, Rating
from assent.data.steering import Steering
from assent.data.views import prompt_view
from assent.distributed import on_main
from assent.errors import DataError
from assent.loops.demonstrations import Labeller, plain, write
from assent.loops.labelled import label, read_answers
from assent.loops.loop import Loop, seed_of
from assent.loops.sampled import sample
from assent.measures.steering import correlation
from assent.outputs import write_text
from assent.statistics import mean_interval

ASKED = "asked"
"""Column of rows that are asked for something: the attribute, its value, and the number of the prompt."""


def steered(
    loop: Loop,
    place: str,
    policy: str,
    *,
    prompts: str,
    limit: int,
    sweep: Sequence[str],
    labeller: Labeller,
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: int,
) -> Path:
    """`place`/steering.json: for each attribute of `sweep` the answers to the first prompts of a file, asked for at
    every value of the scale, with what goes with it in good answers for all others, as the attribute model measures:
    the mean of every attribute at each value, and Pearson's correlation of asked and measured values, both with 95 %
    intervals over prompts. Beside it steering.svg. The correlations are the numbers of the stage."""
    steering = labeller.steering

    def ask(path: Path) -> Mapping[str, float]:
        loaded = load_examples(prompts)
        examples, _ = prompt_view(loaded.examples)
        if not examples:
            raise DataError(f"{prompts}: no prompt to ask at several values.")
        return write(path, asked_at(examples[:limit], sweep, steering))

    asked = loop.stage(f"{place}/asked.jsonl", ask, reads=[prompts], about="prompts at every value of each attribute")
    answers = sample(
        loop,
        f"{place}/asked-answers.jsonl",
        model=policy,
        prompts=asked,
        answers=1,
        sampling=sampling,
        engine=engine,
        seed=seed_of(seed, place, "steered"),
    )
    rated = label(loop, f"{place}/asked-rated.jsonl", bare(loop, f"{place}/asked-bare.jsonl", answers, steering),
                  labeller.source)  # fmt: skip

    def measure(path: Path) -> Mapping[str, float | None]:
        found = on_main(lambda: summarised(read_answers(rated), sweep, labeller))
        on_main(lambda: write_text(path, json.dumps(plain_json(found), indent=1, allow_nan=False) + "\n"))
        return {f"correlation/{name}": one["correlation"].mean for name, one in found["attributes"].items()}

    measured = loop.stage(f"{place}/steering.json", measure, reads=[rated], about="asked against measured values")
    loop.stage(f"{place}/steering.svg", lambda path: draw(json.loads(measured.read_text()), steering, path),
               reads=[measured])  # fmt: skip
    return measured


def bare(loop: Loop, name: str, answers: Path, steering: Steering) -> Path:
    """The same answers without what was asked for, which those who score them are not told."""
    return loop.stage(
        name,
        lambda path: write(path, [plain(example, steering) for example in read_answers(answers)]),
        reads=[answers],
        about="answers as they are scored",
    )


def asked_at(examples: Sequence[Example], sweep: Sequence[str], steering: Steering) -> list[Example]:
    """Every prompt at every value of each attribute."""
    return [
        replace(
            plain(example, steering),
            template_kwargs={**plain(example, steering).template_kwargs, **steering.completed({name: value})},
            meta={ASKED: [name, value, number]},
        )
        for name in sweep
        for value in range(steering.lowest, steering.highest + 1)
        for number, example in enumerate(examples)
    ]


def summarised(examples: Sequence[Example], sweep: Sequence[str], labeller: Labeller) -> dict[str, Any]:
    """The content of steering.json, with `Interval`s."""
    names = labeller.steering.names
    rows = [(*_asked(example), _measured(example, labeller)) for example in examples]
    found: dict[str, Any] = {}
    for name in sweep:
        own = [row for row in rows if row[0] == name]
        asked, prompt = np.array([row[1] for row in own]), np.array([row[2] for row in own])
        measured = np.array([row[3] for row in own]).reshape(len(own), len(names))
        found[name] = {
            "correlation": correlation(asked, measured[:, names.index(name)], prompt),
            "measured": {
                str(value): {other: mean_interval(measured[asked == value, k]) for k, other in enumerate(names)}
                for value in sorted(set(asked.tolist()))
            },
        }
    unscored = sum(math.isnan(row[3][0]) for row in rows)
    return {"answers": len(rows), "unscored": unscored, "attributes": found}


def _asked(example: Example) -> tuple[str, int, int]:
    asked: Any = example.meta[ASKED]
    return asked[0], asked[1], asked[2]


def _measured(example: Example, labeller: Labeller) -> list[float]:
    """What was measured of the one answer; NaN where there is none, or it could not be scored."""
    rating = next((item for item in example.feedback if isinstance(item, Rating)), None)
    values = None if rating is None else labeller.measured(rating)
    return [math.nan] * len(labeller.steering.names) if values is None else values


def draw(found: Mapping[str, Any], steering: Steering, path: Path) -> None:
    """A panel for each attribute: its measured mean, with its interval, by what was asked for."""
    sweep = found["attributes"]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assent", "font.size": 8}):
        figure = Figure(figsize=(1.9 * len(sweep) + 0.4, 2.2), layout="constrained")
        for axes, (name, one) in zip(figure.subplots(1, len(sweep), squeeze=False)[0], sweep.items(), strict=True):
            there = {int(v): means[name] for v, means in one["measured"].items() if means[name]["mean"] is not None}
            middle = [each["mean"] for each in there.values()]
            ends = [[mean if each[end] is None else each[end] for each, mean in zip(there.values(), middle)]
                    for end in ("low", "high")]  # fmt: skip
            axes.plot([steering.lowest, steering.highest], [steering.lowest, steering.highest], color="#BBBBBB", lw=0.8)
            axes.fill_between([*there], *ends, color="#0072B2", alpha=0.2, linewidth=0)
            axes.plot([*there], middle, "o-", color="#0072B2", markersize=3, linewidth=1.2)
            r = one["correlation"]["mean"]
            axes.set_title(name if r is None else f"{name}, r = {r:.2f}", fontsize=8)
            axes.set_xlabel("asked")
            axes.set_xticks(range(steering.lowest, steering.highest + 1))
        figure.axes[0].set_ylabel("measured")
        with_place = path.with_name(path.name + ".part")

        def save() -> None:
            figure.savefig(with_place, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
            with_place.replace(path)

        on_main(save)


def render(found: Mapping[str, Any], console: Console) -> None:
    """The table: a row for each attribute, its measured mean by the value that was asked for."""
    values = list(dict.fromkeys(value for one in found["attributes"].values() for value in one["measured"]))
    table = Table(box=SIMPLE_HEAD, title="measured, by the value that was asked for", title_justify="left")
    table.add_column("")
    for name in (*values, "correlation", "95 %"):
        table.add_column(name, justify="right")
    for name, one in found["attributes"].items():
        means = [one["measured"].get(value, {}).get(name) for value in values]
        r = one["correlation"]
        table.add_row(
            Text(name),
            *(_short(None if each is None else each["mean"]) for each in means),
            _short(r["mean"]),
            "" if r["low"] is None else f"{r['low']:.2f} to {r['high']:.2f}",
        )
    console.print(table)
    if found["unscored"]:
        console.print(f"{found['unscored']:,} of {found['answers']:,} answers are unscored and left out.")


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
