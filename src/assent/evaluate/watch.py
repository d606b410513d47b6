"""`assent watch`: running jobs in a terminal, from their files alone; also over ssh, and in a narrow window."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from assent import lock
from assent.config import WatchConfig
from assent.errors import RunFolderError
from assent.evaluate.following import Following, View, runs_at
from assent.evaluate.rounds import Rounds, read_rounds
from assent.evaluate.runs import LOOP, Series
from assent.foreign import printable
from assent.train import completions
from assent.train.commands import words
from assent.train.facts import measured
from assent.train.progress import clock

BLOCKS = " ▁▂▃▄▅▆▇█"
LETTERS = " .:-=+*#@"
"""The same where the terminal has no such signs."""
COLORS = {"starting": "yellow", "training": "green", "finishing": "green", "finished": "cyan", "stopped": "red"}
SILENT = 60.0
"""Seconds without a new row after which that is said, or ten steps where these take longer."""
SHOWN = 7
"""Numbers of a loop's evaluations."""
OTHERS = 46
"""Columns that a row of the metrics needs beside its curve."""


def watch(config: WatchConfig) -> None:
    """Shows the runs in `config.runs` every `config.every` seconds, until none of them is at work; once where
    `config.once`, or the output is no terminal. Ctrl-C ends it; the runs do not notice.

    Raises RunFolderError for a folder that is none, or is gone."""
    folders = [Path(folder) for folder in config.runs]
    if not folders:
        raise RunFolderError("assent watch needs at least one run folder, for example: assent watch runs/ppo")
    console, known = Console(highlight=False), dict[Path, Following]()
    if not console.is_terminal:
        console.width = max(console.width, 100)
    views, loops = _look(folders, known), _loops(folders)
    if not config.once and console.is_terminal and _busy(folders, views):
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while _busy(folders, views):
                    live.update(page(views, config.samples, console, loops), refresh=True)
                    time.sleep(config.every)
                    views, loops = _look(folders, known), _loops(folders)
        except KeyboardInterrupt:
            pass
    console.print(page(views, config.samples, console, loops))


def _look(folders: Sequence[Path], known: dict[Path, Following]) -> list[View]:
    found = [path for folder in folders for path in runs_at(folder)]
    return [known.setdefault(path, Following(path)).look() for path in dict.fromkeys(found)]


def _loops(folders: Sequence[Path]) -> list[Rounds]:
    return [read_rounds(folder) for folder in dict.fromkeys(folders) if (folder / LOOP).is_file()]


def _busy(folders: Sequence[Path], views: Sequence[View]) -> bool:
    """Whether a process is at work in any of these; one that makes several runs owns the folder above them."""
    return any(view.runs for view in views) or any(lock.holder(folder) is not None for folder in folders)


# ---- the page


def page(views: Sequence[View], samples: int, console: Console, loops: Sequence[Rounds] = ()) -> RenderableType:
    """Loops by round, all runs, a line each where they are several, and the one that logged last."""
    parts: list[RenderableType] = [part for each in loops for part in (*_rounds(each), Text())]
    if not views:
        return Group(*parts) if parts else Text("starting: nothing is written yet", style="yellow")
    parts += [] if len(views) == 1 else [_list(views), Text()]
    parts += _details(min(views, key=lambda view: (not view.runs, view.silence or 0.0)), samples, console)
    return Group(*parts)


def _rounds(loop: Rounds) -> list[RenderableType]:
    """The evaluations of a loop, a line for each round, and what it has finished last."""
    head = Text.assemble(Text(printable(str(loop.path)), style="bold"), "  ", (loop.command, "dim"))
    if loop.stages:
        of = "" if loop.asked is None else f" of {loop.asked} rounds"
        head.append(f"  {max(loop.numbers, default=0)}{of}; finished last: {loop.stages[-1].path}")
    rows = [row for row in loop.rows() if not row.stage][:SHOWN]
    if not rows:
        return [head]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("round", justify="right")
    for row in rows:
        table.add_column(_words(row.name), justify="right")
    for place, number in enumerate(loop.numbers):
        values = [row.values[place] for row in rows]
        if any(value is not None for value in values):
            name = str(number) if number else "start"
            table.add_row(name, *("" if value is None else measured(value) for value in values))
    return [head, table]


def _list(views: Sequence[View]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", overflow="fold")
    for name in ("", "step", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for view in views:
        left = "" if view.left is None else clock(view.left)
        table.add_row(_name(view), _state(view), _steps(view), left, _followed(view))
    return table


def _name(view: View) -> Text:
    return Text(printable(str(view.path)), style="bold")


def _state(view: View) -> Text:
    return Text(view.state, style=COLORS[view.state])


def _steps(view: View) -> str:
    return f"{view.step:,}" + ("" if view.total is None else f"/{view.total:,}")


def _followed(view: View) -> Text:
    """The metric that says whether the run does well: the held-out one where there is one."""
    if view.command is None:
        return Text()
    followed = view.command.followed
    names = (f"eval/{followed.held_out[0]}", followed.steps[0])
    found = next(((name, value) for name in names if (value := view.now(name)) is not None), None)
    return Text() if found is None else Text(f"{_words(found[0])} {measured(found[1])}")


def _details(view: View, samples: int, console: Console) -> list[RenderableType]:
    head = Text.assemble(_name(view), "  ", _state(view))
    if view.command is not None:
        head.append(f"  {view.command.name}", style="dim")
    parts: list[RenderableType] = [head]
    if view.total:
        parts.append(Columns([ProgressBar(total=view.total, completed=view.step, width=min(60, console.width))]))
    parts.append(Text(_pace(view)))
    parts += [Text(f"{name}: {said}", style="bold red") for name, said in _worries(view)]
    for label in ("Model", "Data"):
        if label in view.lines:
            parts.append(
                Text(f"{label}: {printable(view.lines[label])}", style="dim", overflow="ellipsis", no_wrap=True)
            )
    curves = _curves(view, console)
    if curves.row_count:
        parts += [Text(), curves]
    newest = _newest(view, samples)
    if newest:
        parts += [Text(), Text(f"answers at step {newest[0]['step']:,}", style="dim"), completions.table(newest)]
    return parts


def _pace(view: View) -> str:
    """Step, time, speed."""
    parts = [f"step {_steps(view)}"]
    if view.elapsed is not None:
        parts.append(f"{clock(view.elapsed)} since its start")
    if view.state == "training" and view.left is not None:
        parts.append(f"about {clock(view.left)} left")
    if view.pace is not None and view.runs:
        parts.append(f"{measured(view.pace)} s a step")
    speed = view.now("time/tokens_per_second")
    if speed is not None and view.runs:
        parts.append(f"{speed:,.0f} tokens/s")
    return "  ".join(parts)


def _worries(view: View) -> list[tuple[str, str]]:
    found = [("alarm", said) for said in view.alarms]
    patience = max(SILENT, 10 * (view.pace or 0.0))
    if view.state == "training" and view.silence is not None and view.silence > patience:
        found.append(("silent", f"nothing was logged for {clock(view.silence)}, and {view.owner} is there"))
    if view.state == "stopped":
        key = view.command.key if view.command else "COMMAND"
        again = f"assent {key} --config {view.path / 'resolved.yaml'} --resume auto"
        found.append(("stopped", f"no process is at work, and the run has not finished. To go on: {again}"))
    return found


def _newest(view: View, samples: int) -> list[dict[str, object]]:
    """Those of the last step that has any; held-out ones where there are both."""
    if not samples or not view.answers:
        return []
    last = view.answers[-1]["step"]
    rows = [row for row in view.answers if row["step"] == last]
    rows = [row for row in rows if row.get("held_out")] or rows
    return [{**row, "response": printable(row["response"]), "prompt": _shown(row["prompt"])} for row in rows[:samples]]


def _shown(prompt: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{**turn, "content": printable(str(turn["content"]))} for turn in prompt]


# ---- curves


def _curves(view: View, console: Console) -> Table:
    """The metrics that one follows: how they began, their curve to now, and where they stand."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("")
    table.add_column("first", justify="right", no_wrap=True)
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column(f"steps 0 to {view.total or view.step:,}", no_wrap=True)
    signs = BLOCKS if console.encoding.lower().startswith("utf") else LETTERS
    width = max(8, min(80, console.width - OTHERS))
    for name in _names(view):
        series, now = view.metrics[name], view.now(name)
        known = series.values[~np.isnan(series.values)]
        if now is None or not known.size:
            continue
        first = known[0] if name.startswith("eval/") else known[:3].mean()
        style = "cyan" if name.startswith("eval/") else ""
        curve = Text(sparkline(series, view.total or view.step, width, signs), style=style)
        table.add_row(Text(_words(name)), measured(float(first)), measured(now), curve)
    return table


def _names(view: View) -> list[str]:
    """What the command's own progress shows, else what is there."""
    if view.command is None:
        plain = [name for name in view.metrics if not name.startswith("time/")]
        return plain[:8]
    followed = view.command.followed
    wanted = [*followed.steps, *(f"eval/{name}" for name in dict.fromkeys((*followed.held_out, "gold")))]
    return [name for name in wanted if name in view.metrics]


def _words(metric: str) -> str:
    return f"held-out {words(metric.removeprefix('eval/'))}" if metric.startswith("eval/") else words(metric)


def sparkline(series: Series, last: int, width: int, signs: str = BLOCKS) -> str:
    """At most `width` characters for the steps 0 to `last`, each the mean of the values that fall into it, between the
    least and the greatest of these means. Between two values that are further apart the first one goes on; what is
    still to come is left out."""
    if not len(series.steps) or last < 1:
        return ""
    place = np.minimum(series.steps * width // (last + 1), width - 1)
    known = ~np.isnan(series.values)
    counts = np.bincount(place[known], minlength=width)
    sums = np.bincount(place[known], weights=series.values[known], minlength=width)
    means = np.divide(sums, counts, out=np.full(width, math.nan), where=counts > 0)
    if not known.any():
        return ""
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    spread = (high - low) or 1.0
    levels = len(signs) - 2
    drawn, before = "", " "
    for mean in means[: int(np.flatnonzero(counts)[-1]) + 1]:
        before = before if math.isnan(mean) else signs[1 + round((mean - low) / spread * levels)]
        drawn += before
    return drawn
