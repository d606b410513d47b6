"""The rows of a trust report's table on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from assent.evaluate.benchmark import Result
from assent.measures.trust import LENGTH, Trust
from assent.measures.verdicts import plain, share

Row = tuple[str, str, str, str]
"""Measure, value, of how many, what it says."""


def table_rows(trust: Trust, result: Result | None = None) -> list[Row]:
    """All rows that there are numbers for."""
    return [
        *_accuracy(trust),
        *_calibration(trust),
        *_bias(trust),
        *_edits(trust),
        *_further(trust),
        *_benchmark(result),
    ]


def _accuracy(trust: Trust) -> Iterator[Row]:
    if trust.accuracy is None:
        return
    right, ties = trust.accuracy.right, trust.accuracy.ties
    said = f"{ties:,} ties, which are wrong" if ties else "no ties"
    yield "accuracy", share(right), f"{right.n:,} pairs", said if right.n else "no pair scored"
    for name, part in trust.parts.get(LENGTH, {}).items():
        yield f"  better is {name}", share(part.right), f"{part.right.n:,}", ""
    for by, parts in trust.parts.items():
        if by != LENGTH:
            yield from ((f"  {by} {name}", share(part.right), f"{part.right.n:,}", "") for name, part in parts.items())
    if trust.tied is not None:
        yield "tells ties apart", plain(trust.tied), f"{trust.tied.n:,}", trust.tied.problem or "AUROC; 0.5: not at all"


def _calibration(trust: Trust) -> Iterator[Row]:
    found = trust.calibration
    if found is None:
        return
    heat, error = found.temperature, found.ece
    yield "temperature", plain(heat), f"{heat.n:,} pairs", heat.problem or "above 1: too sure of itself"
    yield "calibration error", plain(error, 3), f"{error.n:,}", error.problem or f"by chance {plain(found.chance, 3)}"
    yield "Brier score", plain(found.brier, 3), f"{found.brier.n:,}", "0.25 is guessing"


def _bias(trust: Trust) -> Iterator[Row]:
    longer = trust.bias.longer
    said = longer.reward.problem or f"the labels do in {share(longer.label)}"
    yield "prefers the longer", share(longer.reward), f"{longer.reward.n:,} pairs", said
    for relation in trust.bias.relations:
        if not relation.differs:
            continue
        label = relation.given_label
        yield f"follows {relation.feature}", plain(label, 2, "+"), f"{label.n:,}", label.problem or "labels held fixed"
        if relation.given_gold is not None:
            truth = relation.given_gold
            said = truth.problem or f"{trust.gold} held fixed"
            yield f"follows {relation.feature}", plain(truth, 2, "+"), f"{truth.n:,}", said


def _edits(trust: Trust) -> Iterator[Row]:
    for each in trust.sensitivity:
        kind = "harmless" if each.harmless else "should fall"
        change = "–" if each.change.value is None else f"{each.change.value:+.2f} sd"
        said = each.change.problem or f"{kind}; {share(each.flipped)} of comparisons turn round"
        yield f"edit: {each.name}", change, f"{each.answers:,} answers", said


def _further(trust: Trust) -> Iterator[Row]:
    if (found := trust.disagreement) is not None:
        said = found.auroc.problem or "AUROC of errors; 0.5: says nothing"
        yield "disagreement", plain(found.auroc), f"{found.auroc.n:,} pairs", said
    for point in trust.best_of[1:]:
        said = f"KL at most {point.kl:.2f} nats"
        yield f"best of {point.n}: {trust.gold}", plain(point.gold_gain, 2, "+"), f"{point.prompts:,} prompts", said


def _benchmark(result: Result | None) -> Iterator[Row]:
    if result is None:
        return
    for name, section in result.overall.sections.items():
        missing = f"without {', '.join(section.missing)}" if section.missing else ""
        if section.score is None:
            there = any(subset in result.subsets for subset in section.missing)
            yield f"{result.name}: {name}", "–", "0", "no row of it has a score" if there else "not in this file"
        else:
            yield f"{result.name}: {name}", share(section.score), f"{section.score.n:,}", missing
    overall = result.overall
    if overall.score is None:
        said = f"none: {len(overall.missing)} subsets have no score"
        yield f"{result.name}: overall", "–", "", said
    else:
        yield f"{result.name}: overall", share(overall.score), f"{overall.score.n:,}", ""
    for name, part in result.by_length.items():
        if part.score is not None:
            said = f"without {', '.join(part.missing)}" if part.missing else ""
            yield f"  {name}", share(part.score), f"{part.score.n:,}", said
