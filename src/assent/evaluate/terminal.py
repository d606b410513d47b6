"""An evaluation on the terminal: a row for each number, a column for each policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assent.evaluate.frontier import front_sentence, law_sentences, track_sentences
from assent.evaluate.headings import first, headed
from assent.evaluate.results import EVALUATION, FEWEST, PolicyResult, PolicyTable, as_interval
from assent.measures.aggregate import half_width
from assent.measures.shapes import Measured
from assent.statistics import Interval

SURE = 0.05
"""Holm-corrected p-value below which a number is marked."""
_LISTED = 6
_ROWS = 16
"""Most numbers in the table."""
_PLAIN = 8
"""Numbers that need no headings."""
FRONT = "on the front of KL and score"
CONSISTENCY = "consistency"
PROBES = {
    CONSISTENCY: "verdicts that agree in both orders",
    "first-shown-wins": "verdicts for the answer shown first",
    "unreadable": "verdicts that could not be read",
    "null-answer": "wins of an answer that says nothing over the baseline's (should be none)",
    "longer": "wins of the baseline's answer with a sentence repeated over itself (should be at most half)",
}
"""What is known of a judge -> in words."""


def plus_minus(value: Interval, digits: int) -> str:
    """mean ± half the interval; a dash without a mean."""
    if math.isnan(value.mean):
        return "–"
    return f"{value.mean:.{digits}f}" + ("" if math.isnan(value.low) else f" ±{value.half_width:.{digits}f}")


def percent(value: Interval) -> str:
    """Share as percent, ± half the interval."""
    return plus_minus(replace(value, mean=100 * value.mean, low=100 * value.low, high=100 * value.high), 0) + (
        "" if math.isnan(value.mean) else " %"
    )


def render(table: PolicyTable, console: Console) -> None:
    """Print the table: mean ± half the 95 % interval, and a star where the difference from the baseline is beyond
    chance. Of more than `_ROWS` numbers those that most people look at first, and how many more there are. Where it is
    wider than the terminal its lines wrap; no number is cut."""
    keys = first(table, _ROWS)
    shown = Table(
        title=f"{len(table.policies)} policies on {table.prompts} prompts" if table.prompts else "Policies",
        caption=f"± is half the 95 % interval; differences, wins and * (p < {SURE} after Holm) are against "
        f"{table.baseline}",
        box=SIMPLE_HEAD,
    )
    shown.add_column("measure", no_wrap=True)
    for policy in table.policies:
        shown.add_column(Text(policy.name), justify="right", no_wrap=True)
    for heading, own in headed(table).items():
        if not (chosen := [key for key in own if key in keys]):
            continue
        shown.add_section()
        if len(keys) > _PLAIN:
            shown.add_row(Text(heading, style="bold"))
        for key in chosen:
            shown.add_row(Text(_label(table, key)), *(_cell(table, policy, key) for policy in table.policies))
    if len(on_front := {point.name: point.on_front for point in table.frontier}) > 1:
        shown.add_row(FRONT, *("yes" if on_front.get(policy.name) else "" for policy in table.policies))
    whole = console.measure(shown, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, whole)
    console.print(shown)
    if more := len(table.keys) - len(keys):
        console.print(Text(f"{more} more numbers are in {EVALUATION}; assent report shows them all."))
    for line in _lines(table):
        console.print(Text(line))


def inconsistent(found: Measured) -> str:
    """How often a judge decides otherwise in the other order, in words."""
    value = found.number.value
    return "its consistency is not known" if value is None else f"{1 - value:.0%} inconsistent"


def _label(table: PolicyTable, key: str) -> str:
    unit = table.measures[key.partition("/")[0]].unit if key.partition("/")[0] in table.measures else ""
    return key if unit in ("", "share", key) else f"{key} ({unit})"


def _cell(table: PolicyTable, policy: PolicyResult, key: str) -> Text:
    measure, _, source = key.partition("/")
    value = policy.interval(key)
    known = table.measures.get(measure)
    text = Text(
        percent(value)
        if known is not None and known.unit == "share"
        else plus_minus(value, 0 if abs(value.mean) >= 100 else 2)
    )
    if (counts := policy.outcomes.get(source)) is not None and measure == "win-rate" and value.n and counts.ties:
        text.append(f" ({counts.ties / value.n:.0%} ties)")
    if (
        policy.name == table.baseline
        and key not in policy.numbers
        and any(source in p.outcomes for p in table.policies)
    ):
        return Text("baseline")
    against = policy.differences.get(key)
    if against is not None and against.p_holm < SURE and against.difference.n >= FEWEST:
        text.append("*")
    return text


def _lines(table: PolicyTable) -> list[str]:
    """Verdicts, failures, what is left out, and notes."""
    lines = []
    agrees = table.probes.get(f"{table.by}/{CONSISTENCY}")
    for policy in table.policies:
        if policy.name != table.baseline and (verdict := table.verdict(policy)):
            few = verdict.startswith("too few")
            words = f"{policy.name}: {verdict}" if few else f"{policy.name} is {verdict}"
            beside = "" if agrees is None else f" ({inconsistent(agrees)})"
            lines.append(f"{words} {table.baseline} by {table.by}{beside}.{_precision(table, policy)}")
    lines += [each for each in (front_sentence(table), *law_sentences(table), *track_sentences(table)) if each]
    for key, found in table.probes.items():
        judge, _, probe = key.partition("/")
        beside = f", so {inconsistent(found)}" if probe == CONSISTENCY and found.number.value is not None else ""
        lines.append(f"{judge}, {PROBES.get(probe, probe)}: {percent(as_interval(found))} of {found.number.n}{beside}")
    for judge, count in table.unanswered.items():
        lines.append(f"{judge}: its server did not answer {count} questions. --resume asks them again.")
    lines += [f"{note}." for note in table.notes]
    lines += [f"{policy.name}: {note}" for policy in table.policies for note in policy.notes]
    failed: dict[tuple[str, str, int], list[str]] = {}
    for policy in table.policies:
        for key, found in policy.numbers.items():
            for reason, count in found.failures.items():
                failed.setdefault((policy.name, reason, count), []).append(key)
    shown = list(failed.items())[:_LISTED]
    lines += [f"{name}: {count} left out of {_some(keys)}: {reason}" for (name, reason, count), keys in shown]
    if len(failed) > _LISTED:
        lines.append(f"{len(failed) - _LISTED} more kinds of failures are in {EVALUATION}.")
    if table.left_out:
        lines.append(f"Left out for what they need (said in {EVALUATION}): {', '.join(table.left_out)}.")
    absent: dict[tuple[str, str], list[str]] = {}
    for policy in table.policies:
        for measure, reason in policy.absent.items():
            absent.setdefault((policy.name, reason), []).append(measure)
    lines += [f"{name}: without {', '.join(names)}; needs {reason}." for (name, reason), names in absent.items()]
    return lines


def _precision(table: PolicyTable, policy: PolicyResult) -> str:
    """How narrow the interval of what decides is, and what a narrower one would take."""
    gain, more = table.gain(policy), table.gain_needed(policy)
    if gain is None or more is None:
        return ""
    half = half_width(gain.difference)
    need = f"; ±{more.within:g} needs about {more.prompts:,} prompts" if half > more.within else ""
    return f" The difference is known to ±{half:.2g} now{need}."


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys) if len(keys) <= 4 else f"{', '.join(keys[:3])} and {len(keys) - 3} more"
