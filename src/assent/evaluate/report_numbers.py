"""What an evaluation found, in the words and cells of the page: the question, a sentence on each policy, every number
of every policy, and who wins against whom."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from assent.evaluate.headings import headed
from assent.evaluate.pages import number
from assent.evaluate.results import FEWEST, REWARD, PolicyResult, PolicyTable
from assent.evaluate.terminal import PROBES, SURE
from assent.measures.estimates import Estimate
from assent.measures.shapes import Measured

Tone = Literal["good", "bad", "unclear"]


# ---- what was asked


def question(table: PolicyTable) -> str:
    """The question that the evaluation answers, as one sentence."""
    others = [policy.name for policy in table.policies if policy.name != table.baseline]
    prompts = f"{table.prompts:,} prompts" if table.prompts else "the same prompts"
    where = f" of {table.file}" if table.file else ""
    if not others:
        return f"How well does {table.baseline} answer {prompts}{where}?"
    which = f"Does {others[0]}" if len(others) == 1 else f"Which of {listed(others)}"
    verb = "answer" if len(others) == 1 else "answers"
    by = f", by {table.by}" if table.by else ""
    return f"{which} {verb} {prompts}{where} better than {table.baseline}{by}?"


def listed(names: list[str], most: int = 6) -> str:
    """a, b and c."""
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def again(command: str, folder: str) -> str:
    """The command that gives the evaluation of `folder` again, in a folder beside it."""
    place = Path(folder) if Path(folder).name else Path(folder).resolve()
    return f"{command} --out {shlex.quote(f'{place}-again')}" if command else ""


# ---- verdicts


@dataclass(frozen=True)
class Verdict:
    """One policy against the baseline. `big` is the number that decides, `words` what it means, `said` the sentence."""

    policy: str
    tone: Tone
    words: str
    big: str
    said: str


def verdicts(table: PolicyTable) -> list[Verdict]:
    """One for each policy that anything compares with the baseline."""
    return [found for policy in table.policies if (found := _verdict(table, policy)) is not None]


def _verdict(table: PolicyTable, policy: PolicyResult) -> Verdict | None:
    gain, words = table.gain(policy), table.verdict(policy)
    failed = _failures(table, policy)
    if policy.name == table.baseline or (gain is None and not failed):
        return None
    if gain is None or not words:
        said = f"{policy.name} cannot be compared with {table.baseline} by {table.by}.{failed}"
        return Verdict(policy.name, "unclear", f"no verdict against {table.baseline}", "–", said)
    tone: Tone = {"better than": "good", "worse than": "bad"}.get(words, "unclear")  # type: ignore[assignment]
    by_score = f"{REWARD}{table.by}" in policy.differences
    found, scale, unit = gain.difference, (1, "") if by_score else (100, " points"), table.by
    factor, points = scale
    digits = 2 if by_score else 0
    low, high = (None if value is None else factor * value for value in (found.low, found.high))
    bounds = "" if low is None else f" (95 % interval {number(low, digits, '+')} to {number(high, digits, '+')})"
    middle = number(None if found.value is None else factor * found.value, digits, "+") + points
    what = f"in mean {unit}" if by_score else f"of win rate over one half, by {unit}"
    verb = ": " if words.startswith("too few") else " is "
    said = f"{policy.name}{verb}{words} {table.baseline} by {table.by}: {middle} {what}{bounds}.{_won(table, policy)}"
    if tone != "unclear" and gain.p_holm >= SURE:
        said += f" Corrected for all tests of the table (Holm) it is not beyond chance: p = {number(gain.p_holm, 2)}."
    return Verdict(policy.name, tone, f"{words} {table.baseline}", middle, said + failed)


def _won(table: PolicyTable, policy: PolicyResult) -> str:
    wins = table.wins(policy)
    if wins is None:
        return ""
    return f" Better on {wins.wins:,} of {wins.rate.n:,} comparisons, worse on {wins.losses:,}, equal on {wins.ties:,}."


def _failures(table: PolicyTable, policy: PolicyResult) -> str:
    for key in (f"{REWARD}{table.by}", f"win-rate/{table.by}"):
        if (found := policy.numbers.get(key)) is not None and found.failures:
            return f" Left out: {_told(found)}."
    return ""


def _told(found: Measured, most: int = 3) -> str:
    reasons = sorted(found.failures.items(), key=lambda item: -item[1])
    shown = [f"{count:,} × {reason}" for reason, count in reasons[:most]]
    return "; ".join(shown + ([f"{len(reasons) - most} more reasons"] if len(reasons) > most else []))


def _counted(found: Measured) -> str:
    count = sum(found.failures.values())
    return f"{count:,} left out" if count else ""


# ---- all numbers


@dataclass(frozen=True)
class Cell:
    """One number. `mark` is a star where the difference from the baseline is beyond chance, `why` says why there is
    none, `failures` what was left out of it."""

    middle: str
    half: str = ""
    bounds: str = ""
    mark: bool = False
    better: bool = False
    worse: bool = False
    best: bool = False
    failures: str = ""
    why: str = ""
    title: str = ""


@dataclass(frozen=True)
class Row:
    """One measure of every policy."""

    key: str
    unit: str
    about: str
    cells: tuple[Cell, ...]


def rows(table: PolicyTable) -> list[tuple[str, list[Row]]]:
    """Every number under the headings of the table of measures."""
    return [(heading, [_row(table, key) for key in keys]) for heading, keys in headed(table).items()]


def _row(table: PolicyTable, key: str) -> Row:
    measure, _, source = key.partition("/")
    known = table.measures.get(measure)
    unit = known.unit if known is not None else ""
    better = {"higher": "; higher is better", "lower": "; lower is better"}.get((known and known.better) or "", "")
    cells = tuple(_cell(table, policy, key, unit) for policy in table.policies)
    return Row(key, unit, (known.about.rstrip(".") + better) if known is not None else "", cells)


def _cell(table: PolicyTable, policy: PolicyResult, key: str, unit: str) -> Cell:
    found = policy.numbers.get(key)
    measure, _, source = key.partition("/")
    if found is None:
        if policy.name == table.baseline and any(key in other.numbers for other in table.policies):
            return (
                Cell("baseline") if measure not in policy.absent else Cell("–", why=f"needs {policy.absent[measure]}")
            )
        why = policy.absent.get(measure, "")
        return Cell("–", why=f"needs {why}" if why else "")
    middle, half, bounds = _written(found.number, unit)
    against, known = policy.differences.get(key), table.measures.get(measure)
    sure = against is not None and against.p_holm < SURE and against.difference.n >= FEWEST
    up = sure and against is not None and (against.difference.value or 0) > 0
    wanted = None if known is None or known.better is None else known.better == "higher"
    title = "" if against is None else f"difference from {table.baseline} {number(against.difference.value, None, '+')}"
    if against is not None:
        title += f", p = {number(against.p_holm, 3)} after Holm, of {against.difference.n:,} prompts"
    return Cell(
        middle,
        half,
        bounds,
        mark=sure,
        better=sure and wanted is not None and up == wanted,
        worse=sure and wanted is not None and up != wanted,
        best=source == table.by
        and measure == "reward"
        and table.best(source) == policy.name
        and len(table.policies) > 1,
        failures=_counted(found),
        why=found.number.problem if found.number.value is None else "",
        title=title,
    )


def _written(found: Estimate, unit: str) -> tuple[str, str, str]:
    """A number, half its interval, and the interval, as people write them."""
    if found.value is None:
        return "–", "", ""
    scale, digits, sign = (100, 1, " %") if unit == "share" else (1, _digits(found.value), "")
    middle = number(scale * found.value, digits) + sign
    if found.low is None or found.high is None:
        return middle, "", "" if found.low is None else f"at least {number(scale * found.low, digits)}"
    low, high = scale * found.low, scale * found.high
    return middle, number((high - low) / 2, digits), f"{number(low, digits)} to {number(high, digits)}"


def _digits(value: float) -> int:
    size = abs(value)
    return 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 0.1 or size == 0 else 3


# ---- who wins against whom


@dataclass(frozen=True)
class Field:
    """How often the row's policy wins against the column's."""

    middle: str
    bounds: str
    counted: str
    failures: str
    tone: Literal["good", "bad", ""]


@dataclass(frozen=True)
class Matrix:
    """Every policy against every policy by one source; None where it does not compare them."""

    source: str
    names: tuple[str, ...]
    fields: tuple[tuple[Field | None, ...], ...]


def matrices(table: PolicyTable) -> list[Matrix]:
    """One for each source, the one that decides first."""
    names = tuple(policy.name for policy in table.policies)
    found: dict[str, dict[tuple[str, str], Field]] = {}
    for match in table.matches:
        for one in (match, match.turned()):
            number_of, counts = one.rate.number, one.outcomes
            middle, _, bounds = _written(number_of, "share")
            low, high = number_of.low, number_of.high
            enough = low is not None and high is not None and table.prompts >= FEWEST
            tone: Literal["good", "bad", ""] = ""
            if enough and low is not None and high is not None:
                tone = "good" if low > 0.5 else "bad" if high < 0.5 else ""
            counted = f"{counts.wins:,} / {counts.ties:,} / {counts.losses:,}"
            field = Field(middle, bounds, counted, _counted(one.rate), tone)
            found.setdefault(one.source, {})[one.ours, one.theirs] = field
    ordered = sorted(found, key=lambda source: source != table.by)
    return [
        Matrix(source, names, tuple(tuple(found[source].get((ours, theirs)) for theirs in names) for ours in names))
        for source in ordered
    ]


# ---- judges, and what is not there


def probes(table: PolicyTable) -> list[tuple[str, str, Cell]]:
    """(judge, what is known of it, number)."""
    made = []
    for key, found in table.probes.items():
        judge, _, probe = key.partition("/")
        middle, half, bounds = _written(found.number, "share")
        made.append((judge, PROBES.get(probe, probe), Cell(middle, half, bounds, failures=_counted(found))))
    return made


def failures(table: PolicyTable) -> list[str]:
    """What was left out of which numbers, and why."""
    found: dict[tuple[str, int, str], list[str]] = {}
    for policy in table.policies:
        for key, one in policy.numbers.items():
            for reason, count in one.failures.items():
                found.setdefault((policy.name, count, reason), []).append(key)
    return [f"{name}: {count:,} × {reason} ({', '.join(keys)})" for (name, count, reason), keys in found.items()]


def left_out(table: PolicyTable) -> list[str]:
    """What is not in the table, and why: of all policies, and of some."""
    found: dict[tuple[str, str], list[str]] = {}
    for measure, reason in table.left_out.items():
        found.setdefault(("", reason), []).append(measure)
    for policy in table.policies:
        for measure, reason in policy.absent.items():
            found.setdefault((policy.name, reason), []).append(measure)
    return [f"{name + ': ' if name else ''}{', '.join(own)} – needs {reason}" for (name, reason), own in found.items()]
