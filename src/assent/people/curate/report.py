"""What `assent curate` found, as numbers and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from assent.people import asked
from assent.people.asked import Cost
from assent.people.curate.against import Overlap
from assent.people.curate.duplicates import Near
from assent.people.curate.sieve import Stage

LISTED = 12
"""Languages and reasons that a table shows."""


@dataclass(frozen=True)
class TopicNumbers:
    """`asked` is None by default; `found` topics have these sizes before and after the draw: least, median, most."""

    how: str
    asked: int | None
    found: int
    sizes: tuple[int, int, int]
    drawn: tuple[int, int, int]
    largest: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ComplexityNumbers:
    """`start` is the value from which a prompt is among the most complex (None: all are alike), `before` and `after`
    are their shares around the draw, `weight` how many times as often they are drawn."""

    by: str
    weight: float
    start: float | None
    before: float
    after: float
    levels: Mapping[str, int] = field(default_factory=dict)
    unrated: Mapping[str, int] = field(default_factory=dict)
    cost: Cost | None = None


@dataclass(frozen=True)
class PairNumbers:
    """How pairs were chosen, by how many opinions; `worth` of those taken: least, median, most."""

    how: str
    members: int
    taken: int
    worth: tuple[float, float, float] | None
    unscored: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CurateSummary:
    """Rows of each file, what each stage left out and why, and what was found about the others.

    languages   of all prompts that came so far, by code; und: not told, zxx: no words
    multi_turn  share of prompts with several turns: asked, before and after the draw
    """

    files: Mapping[str, int]
    rows: int
    asked: int | None
    stages: tuple[Stage, ...]
    near: Near | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    code: Mapping[str, int] = field(default_factory=dict)
    against: Mapping[str, Overlap] = field(default_factory=dict)
    topics: TopicNumbers | None = None
    complexity: ComplexityNumbers | None = None
    multi_turn: tuple[float | None, float, float] | None = None
    pairs: PairNumbers | None = None


def render(found: CurateSummary, out: str) -> None:
    """The tables."""
    console = asked.console()
    wanted = "" if found.asked is None or found.asked == found.rows else f" of {found.asked:,} asked for"
    console.print(Text(f"{found.rows:,} rows{wanted} in {out}, of {sum(found.files.values()):,} in {_files(found)}"))
    console.print(_stages(found))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, line in _lines(found):
        grid.add_row(name, Text(line))
    console.print(grid)
    if found.complexity is not None and found.complexity.cost is not None:
        asked.show_costs(console, {found.complexity.by: found.complexity.cost})


def _files(found: CurateSummary) -> str:
    names = list(found.files)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _stages(found: CurateSummary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("stage")
    for name in ("came", "left out", "left"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for stage in found.stages:
        out = sum(stage.dropped.values())
        often = sorted(stage.dropped.items(), key=lambda item: (-item[1], item[0]))
        why = [f"{count:,}: {reason}" for reason, count in often[:LISTED]]
        if rest := often[LISTED:]:
            why.append(f"{sum(count for _, count in rest):,}: {len(rest)} other reasons")
        table.add_row(stage.name, f"{stage.came:,}", f"{out:,}", f"{stage.left:,}", Text("\n".join(why)))
    return table


def _lines(found: CurateSummary) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if (near := found.near) is not None:
        how = f"{near.letters} letters, MinHash in {near.bands} bands of {near.rows}"
        what = f"Jaccard {near.threshold:g} or more of runs of {how}"
        lines.append(("near duplicates", f"{what}; {near.found:.1%} of pairs just as alike are found"))
    if found.languages:
        lines.append(("languages", _counts(found.languages)))
    if found.code:
        lines.append(("code", _counts(found.code)))
    for file, own in found.against.items():
        text = f"{own.found:,} of its {own.prompts:,} prompts were found, in {own.dropped:,} rows"
        notes = [f"{own.whole:,} shorter than the run are looked for whole"] if own.whole else []
        notes += [f"{own.equal:,} of fewer than 8 words only where a prompt is the same"] if own.equal else []
        lines.append(("against", f"{file}: {text}" + "".join(f"; {note}" for note in notes)))
    if (topics := found.topics) is not None:
        sizes = f"{_three(topics.sizes)} prompts each (least, median, most), {_three(topics.drawn)} drawn"
        lines.append(("topics", f"{topics.found:,} by {topics.how}; {sizes}"))
        lines.append(("largest topics", _counts(topics.largest)))
    lines += _complexity(found.complexity)
    if found.multi_turn is not None:
        asked_for, before, after = found.multi_turn
        wanted = "" if asked_for is None else f" (asked: {asked_for:.1%})"
        lines.append(("several turns", f"{before:.1%} before the draw, {after:.1%} after{wanted}"))
    if (pairs := found.pairs) is not None:
        text = f"{pairs.taken:,} by {pairs.how}" + (f" of {pairs.members} opinions" if pairs.members else "")
        if pairs.worth is not None and pairs.members:
            text += "; " + " / ".join(f"{value:.3g}" for value in pairs.worth) + " (least, median, most)"
        lines.append(("pairs", text))
        lines += [("unscored", line) for line in asked.reason_lines("answers", pairs.unscored)]
    return lines


def _complexity(own: ComplexityNumbers | None) -> list[tuple[str, str]]:
    if own is None:
        return []
    if own.start is None:
        text = "all prompts are equally complex"
    else:
        text = (
            f"the most complex ({own.start:g} or more) are drawn {own.weight:g} times as often: {own.before:.1%} before"
        )
        text += f" the draw, {own.after:.1%} after"
    lines = [("complexity", f"by {own.by}; {text}")]
    if own.levels:
        lines.append(("ratings", _counts(own.levels)))
    return lines + [("not rated", line) for line in asked.reason_lines("prompts", own.unrated)]


def _counts(counts: Mapping[str, int]) -> str:
    often = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = f", {len(often) - LISTED} more" if len(often) > LISTED else ""
    return ", ".join(f"{name} {count:,}" for name, count in often[:LISTED]) + rest


def _three(values: tuple[int, int, int]) -> str:
    return " / ".join(f"{value:,}" for value in values)
