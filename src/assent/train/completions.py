"""The newest answers of the policy as a table for a terminal: prompt, answer, reward and its parts, advantage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

ROWS = 8
"""Most answers in the table: it stands above the progress bar and must fit on the screen."""
SHORT = 160
"""Characters of a prompt or an answer that are shown."""


def table(samples: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of samples.jsonl as a table; a prompt stands at the first of its answers."""
    shown = samples[:ROWS]
    numbers = [name for name in shown[0] if name == "reward" or name.startswith("reward/")]
    numbers += [name for name in ("advantage", "kl", "length") if name in shown[0]]
    made = Table(show_edge=False, pad_edge=False, header_style="dim", expand=True)
    made.add_column("prompt", ratio=2, overflow="fold")
    made.add_column("answer", ratio=3, overflow="fold")
    for name in numbers:
        made.add_column(name.removeprefix("reward/"), justify="right", no_wrap=True)
    before: object = None
    for sample in shown:
        prompt = sample["prompt"]
        cells = [_short(prompt[-1]["content"]) if prompt != before else Text(), _short(sample["response"])]
        cells += [_number(sample.get(name)) for name in numbers]
        style = "" if sample.get("finished", True) else "dim"
        made.add_row(*cells, style=style, end_section=False)
        before = prompt
    return made


def _short(text: str) -> Text:
    flat = " ".join(text.split())
    return Text(flat if len(flat) <= SHORT else flat[: SHORT - 1] + "…")


def _number(value: float | None) -> Text:
    if value is None or value != value:
        return Text("-")
    return Text(f"{value:.4g}" if isinstance(value, int) else f"{value:.3f}")
