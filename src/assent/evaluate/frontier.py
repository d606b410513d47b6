"""Over-optimisation in an evaluation: policies between KL and score, gain by distance along runs and along best-of-n
with the laws of 2210.10760, gold against proxy along a run; and what all that says, in sentences.

The truth is the source called gold (that of --scorer is); every other source is a proxy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from assent.evaluate.laws import FrontierPoint, LawFit, LawPoint
from assent.evaluate.measured import GOLD, Evaluated
from assent.evaluate.pages import number
from assent.evaluate.results import FEWEST, KL, REWARD, WINS, PolicyResult, PolicyTable, Track, TrackPoint
from assent.measures import basic
from assent.measures.aggregate import by_prompt, column_difference, of_interval, with_holm
from assent.measures.best_of import curves, kl_bound, size_at
from assent.measures.estimates import Estimate, undefined
from assent.measures.overoptimisation import Fit, Law, fit, pareto, unfitted
from assent.measures.verdicts import plain
from assent.statistics import mean_interval

SAME = 1e-3
"""Nats by which log-probabilities of one answer by the same weights may differ, of rounding."""
FEWEST_POINTS = 3
"""Points of a track below which nothing is said to be over-optimised."""
LEVEL = 0.05
NO_START = "gain is measured from the reference itself, which is none of the policies"
NAMES: Mapping[Law, str] = {"rl": "the law of RL", "best-of-n": "the law of best-of-n"}


def with_frontier(table: PolicyTable, policies: Sequence[Evaluated]) -> PolicyTable:
    """The table with its `frontier`, `laws` and `tracks`."""
    runs, start = runs_of(policies), start_of(policies)
    sources = [name for name in policies[0].answers.scores if all(name in p.answers.scores for p in policies)]
    kl = {policy.name: policy.numbers[KL].number for policy in table.policies if KL in policy.numbers}
    laws = [
        _along_run(
            run, [(state, kl.get(state.name, undefined("it was not measured"))) for state in states], source, start
        )
        for run, states in runs.items()
        for source in sources
        if any(state.name in kl for state in states)
    ]
    if GOLD in sources:
        laws += [
            law
            for policy in policies
            if policy.name == policy.of
            for proxy in sources
            if proxy != GOLD
            for law in _best_of(policy, proxy)
        ]
    return replace(
        table,
        frontier=_frontier(table, policies),
        laws=tuple(laws),
        tracks=(*table.tracks, *tracks_of(runs, sources, kl)),
    )


def runs_of(policies: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
    """Run -> its states by step, each step once, of the runs with two or more."""
    found: dict[str, dict[int, Evaluated]] = {}
    for policy in policies:
        if policy.step is not None:
            found.setdefault(policy.of, {}).setdefault(policy.step, policy)
    return {run: [states[step] for step in sorted(states)] for run, states in found.items() if len(states) > 1}


def start_of(policies: Sequence[Evaluated]) -> Evaluated | None:
    """The policy that is the reference itself: it finds each of its answers just as likely. None where none does."""
    apart: list[tuple[float, int]] = []
    for place, policy in enumerate(policies):
        ours, theirs = policy.answers.log_prob, policy.answers.reference_log_prob
        if ours is not None and theirs is not None and not np.isnan(ours - theirs).all():
            apart.append((float(np.nanmax(np.abs(ours - theirs))), place))
    least = min(apart, default=(math.inf, 0))
    return policies[least[1]] if least[0] <= SAME else None


# ---- KL and score


def _frontier(table: PolicyTable, policies: Sequence[Evaluated]) -> tuple[FrontierPoint, ...]:
    points = []
    for policy, result in zip(policies, table.policies, strict=True):
        scores = _scores(table, result)
        if scores and KL in result.numbers and result.numbers[KL].number.value is not None:
            points.append(
                FrontierPoint(policy.name, policy.of, policy.step, result.numbers[KL].number, scores, on_front=False)
            )
    kl, score = (
        np.array([math.nan if each is None or each.value is None else each.value for each in column], np.float64)
        for column in ([p.kl for p in points], [p.scores.get(table.by) for p in points])
    )
    return tuple(replace(p, on_front=bool(on)) for p, on in zip(points, pareto(kl, score), strict=True))


def _scores(table: PolicyTable, policy: PolicyResult) -> dict[str, Estimate]:
    """By source: the mean score, or the win rate, which is one half of the baseline."""
    scores = {key.removeprefix(REWARD): found.number for key, found in policy.numbers.items() if key.startswith(REWARD)}
    compared = {key.removeprefix(WINS) for other in table.policies for key in other.numbers if key.startswith(WINS)}
    for source in sorted(compared - scores.keys()):
        if f"{REWARD}{source}" not in table.keys:
            found = policy.numbers.get(f"{WINS}{source}")
            scores |= (
                {source: Estimate(0.5)} if policy.name == table.baseline else {source: found.number} if found else {}
            )
    return scores


# ---- laws


def _along_run(run: str, states: Sequence[tuple[Evaluated, Estimate]], source: str, start: Evaluated | None) -> LawFit:
    """Gain of the states of a run over the reference, on the same prompts."""
    states = [each for each in states if each[0] is not start]
    means = [_prompt_means(state, source) for state, _ in states]
    from_ = {} if start is None else _prompt_means(start, source)
    gains = np.array(
        [[own.get(prompt, math.nan) - value for own in means] for prompt, value in from_.items()], np.float64
    ).reshape(-1, len(states))
    points = tuple(
        LawPoint(
            state.name,
            kl,
            of_interval(mean_interval(list(own.values()))),
            undefined(NO_START) if start is None else of_interval(mean_interval(gains[:, column])),
        )
        for column, ((state, kl), own) in enumerate(zip(states, means, strict=True))
    )
    distance = np.array([point.distance for point in points])
    there = ~np.isnan(distance)
    whole = int((~np.isnan(gains[:, there]).any(axis=1)).sum())
    if start is None:
        found = unfitted("rl", NO_START, len(points), float(np.nanmax(distance, initial=0.0)))
    else:
        found = fit("rl", distance, gains)
    begin = "" if start is None else f"{start.name}, the reference itself"
    return LawFit("rl", run, source, "", begin, points, found, whole, len(gains) - whole)


def _prompt_means(policy: Evaluated, source: str) -> dict[int, float]:
    return by_prompt(policy.answers.scores[source], policy.answers.prompt)


def _best_of(policy: Evaluated, proxy: str) -> list[LawFit]:
    """Gain by both sources of the answer that is best by the proxy, over one answer of the same policy."""
    answers = policy.answers
    found = curves(answers.scores[proxy], answers.scores[GOLD], answers.prompt)
    if len(found.sizes) < 2:
        return []
    bounds = [kl_bound(n) for n in found.sizes]
    laws = []
    for source, values in ((GOLD, found.worth), (proxy, found.reward)):
        gains = values - values[:, :1]
        points = tuple(
            LawPoint(
                f"best of {n}",
                Estimate(bound),
                of_interval(mean_interval(values[:, column])),
                of_interval(mean_interval(gains[:, column])),
            )
            for column, (n, bound) in enumerate(zip(found.sizes, bounds, strict=True))
        )[1:]
        law = fit("best-of-n", np.sqrt(bounds[1:]), gains[:, 1:])
        begin = f"one answer of {policy.name}"
        laws.append(LawFit("best-of-n", policy.name, source, proxy, begin, points, law, len(gains), found.short))
    return laws


# ---- gold against proxy


def tracks_of(
    runs: Mapping[str, Sequence[Evaluated]], sources: Sequence[str], kl: Mapping[str, Estimate]
) -> Iterator[Track]:
    """Of every run by every proxy, where there is gold."""
    proxies = [source for source in sources if source != GOLD] if GOLD in sources else []
    for run, states in runs.items():
        for proxy in proxies:
            yield Track(run if len(proxies) == 1 else f"{run}, {proxy}", tuple(_track(states, proxy, kl)))


def _track(states: Sequence[Evaluated], proxy: str, kl: Mapping[str, Estimate]) -> Iterator[TrackPoint]:
    columns = {source: [basic.reward(state.answers, source) for state in states] for source in (GOLD, proxy)}
    after = {
        source: with_holm(
            [
                column_difference((own[-1], states[-1].answers), (column, state.answers))
                for column, state in zip(own[:-1], states[:-1], strict=True)
            ]
        )
        for source, own in columns.items()
    }
    for place, state in enumerate(states):
        gold, score = (
            mean_interval(own[place].values, state.answers.prompt.tolist()) for own in (columns[GOLD], columns[proxy])
        )
        distance = kl.get(state.name)
        later = [own[place] if place < len(own) else None for own in (after[GOLD], after[proxy])]
        assert state.step is not None
        yield TrackPoint(state.step, None if distance is None else distance.value, gold, score, *later)


def over_optimised(track: Track) -> str:
    """Whether gold has fallen since some earlier point while proxy rose, in a sentence; "" below two points.

    Where the points share prompts, by the paired test of gold, corrected for the number of points (Holm), and the
    paired interval of proxy; else by intervals that do not overlap. Without `FEWEST_POINTS` points and
    `FEWEST` prompts it says what was seen, and no verdict."""
    points = [point for point in track.points if not math.isnan(point.gold.mean)]
    if len(points) < 2:
        return ""
    start, last = points[0], points[-1]
    seen = (
        f"From step {start.step} to {last.step}: gold {number(last.gold.mean - start.gold.mean, 2, '+')}, "
        f"proxy {number(last.proxy.mean - start.proxy.mean, 2, '+')}."
    )
    prompts = min(point.gold.n for point in points)
    if len(points) < FEWEST_POINTS:
        return f"{seen} No verdict from {len(points)} points; it takes {FEWEST_POINTS}."
    if prompts < FEWEST:
        known = f"{prompts} prompts" if prompts else "an unknown number of prompts"
        return f"{seen} No verdict from {known}; it takes {FEWEST}."
    peaks = [point for point in points[:-1] if _fell(point, last)]
    if not peaks:
        return f"{seen} Gold has not clearly fallen while proxy rose."
    peak = max(peaks, key=lambda point: point.gold.mean)
    return (
        f"Over-optimised: gold peaked at {number(peak.gold.mean, 2)} (step {peak.step}) and ended at "
        f"{number(last.gold.mean, 2)} while proxy rose on, from {number(peak.proxy.mean, 2)} to "
        f"{number(last.proxy.mean, 2)}."
    )


def _fell(point: TrackPoint, last: TrackPoint) -> bool:
    """Whether gold is lower and proxy higher at the last point than at this one, beyond chance."""
    gold, proxy = point.gold_after, point.proxy_after
    if gold is None or proxy is None:
        return last.gold.high < point.gold.low and last.proxy.low > point.proxy.high
    fallen = gold.difference.value is not None and gold.difference.value < 0 and gold.p_holm < LEVEL
    return fallen and gold.difference.n >= FEWEST and proxy.difference.low is not None and proxy.difference.low > 0


# ---- in words


def law_sentences(table: PolicyTable) -> list[str]:
    """Where gold, or without gold each score, is highest by its law, and where the last point stands."""
    gold = any(law.source == GOLD for law in table.laws)
    return [law_sentence(law) for law in table.laws if law.source == GOLD or not gold]


def law_sentence(law: LawFit) -> str:
    """What one law says."""
    if not law.points:
        return ""
    last, bound = law.points[-1], law.method == "best-of-n"
    what = "the bound on KL" if bound else "KL"
    subject = f"{law.name}, the best of n by {law.proxy}: {law.source}" if bound else f"{law.name}: {law.source}"
    if law.fit.alpha.value is None:
        gained = f" gains {_plain(last.gain, '+')} over {law.start} by {last.name}" if law.start else ""
        return f"{subject}{gained}; no law is fitted: {law.fit.alpha.problem}."
    stands = f"the last, {last.name}, stands at {_nats(last.kl.value)} and has gained {_plain(last.gain, '+')}"
    peak = law.fit.peak
    if peak.value is None:
        return f"{subject} has no peak by {NAMES[law.method]}: {peak.problem}; {stands}."
    if peak.low is None or peak.high is None:
        return f"{subject}: whether it has a peak is open, by {NAMES[law.method]}; {stands}."
    where = f"{what} {_nats(peak.value**2, '')} ({_nats(peak.low**2, '')} to {_nats(peak.high**2, '')}) nats"
    if peak.value > law.fit.furthest:
        return f"{subject} still rises; by {NAMES[law.method]} up to {where}, beyond all points; {stands}."
    if bound and (n := size_at(peak.value**2, int(last.name.rpartition(" ")[2]))) is not None:
        where += f", about the best of {n}"
    return f"{subject} is highest at {where}, by {NAMES[law.method]}; {stands}."


def _nats(value: float | None, unit: str = " nats") -> str:
    if value is None:
        return "an unknown KL"
    return (f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}").replace("-", "\N{MINUS SIGN}") + unit


def coefficients(found: Fit) -> str:
    """ "α 1.20 (1.05 to 1.35), β 0.15 (0.12 to 0.18)", or why there are none."""
    if found.alpha.value is None:
        return f"no law is fitted: {found.alpha.problem}"
    return f"α {_plain(found.alpha)}, β {_plain(found.beta)}"


def _plain(found: Estimate, sign: str = "") -> str:
    return plain(found, 2, sign).replace("-", "\N{MINUS SIGN}")


def front_sentence(table: PolicyTable) -> str:
    """Who is on the front of KL and score; "" where it is not known of two."""
    if len(table.frontier) < 2:
        return ""
    names = [point.name for point in table.frontier if point.on_front]
    return f"On the front of KL and {table.by} (no other has as much for less KL): {', '.join(names)}."


def track_sentences(table: PolicyTable) -> list[str]:
    """What the tracks say of over-optimisation."""
    return [f"{track.name}: {said[:1].lower()}{said[1:]}" for track in table.tracks if (said := over_optimised(track))]
