"""What a policy gained: gold and proxy reward, KL, length, unfinished answers and win rate, from its answers.

Generation happens elsewhere; this file is pure given the answers. A gold scorer is the truth (a rubric, people), a
proxy is what training could see (a reward model); the gap between them is reward over-optimisation.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from assent.data.records import Message, ToolCall
from assent.errors import DataError, UserError
from assent.foreign import named
from assent.outputs import write_text
from assent.rewards.group import reward
from assent.statistics import (
    Interval,
    PairedDifference,
    WinRate,
    mean_interval,
    paired_difference,
    proportion_interval,
    win_rate,
)

Prompt = Sequence[Message]
Scorer = Callable[[Prompt, str], float | None]


@dataclass(frozen=True)
class Answer:
    """One answer of one policy to `prompts[prompt_index]`."""

    prompt_index: int
    text: str
    num_tokens: int
    finished: bool
    """Whether it ended by itself (EOS) rather than at the length limit."""
    kl: float | None = None
    """Sum over its tokens of log pi(token) - log pi_ref(token); None where no reference was asked."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Scores by scorer; None is unscored."""


@dataclass(frozen=True)
class PolicyResult:
    """One policy's row. `win_rate` and `gain` compare its gold scores with the baseline's on the same prompts; both
    are None for the baseline itself."""

    name: str
    scores: Mapping[str, Interval]
    kl: Interval
    length: Interval
    unfinished: Interval
    win_rate: WinRate | None = None
    gain: PairedDifference | None = None


@dataclass(frozen=True)
class Comparison:
    """One prompt and every policy's first answer to it."""

    prompt: tuple[Message, ...]
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class TrackPoint:
    """One evaluation of a policy during training. `kl` is from the reference, nats per answer."""

    step: int
    kl: float | None
    gold: Interval
    proxy: Interval


@dataclass(frozen=True)
class Track:
    """Gold and proxy reward of one policy over training."""

    name: str
    points: tuple[TrackPoint, ...]


@dataclass(frozen=True)
class PolicyTable:
    """Every policy's numbers, a few prompts with all their answers, and gold against proxy over training."""

    baseline: str
    gold: str
    policies: tuple[PolicyResult, ...]
    comparisons: tuple[Comparison, ...] = ()
    tracks: tuple[Track, ...] = ()

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names of the scorers, gold first."""
        return tuple(self.policies[0].scores) if self.policies else ()

    def rows(self) -> list[dict[str, object]]:
        """One flat dict a policy: `NAME`, `NAME_low`, `NAME_high`, `NAME_n` and `NAME_missing` of every number."""
        rows = []
        for policy in self.policies:
            row: dict[str, object] = {"policy": policy.name}
            named = {**policy.scores, "kl": policy.kl, "length": policy.length, "unfinished": policy.unfinished}
            if policy.win_rate is not None and policy.gain is not None:
                named |= {"win_rate": policy.win_rate.rate, "gain": policy.gain.difference}
                row |= {"wins": policy.win_rate.wins, "ties": policy.win_rate.ties, "losses": policy.win_rate.losses}
                row |= {"p_permutation": policy.gain.p_permutation, "p_sign": policy.gain.p_sign}
            for name, value in named.items():
                row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
                row |= {f"{name}_n": value.n, f"{name}_missing": value.missing}
            rows.append(row)
        return rows

    def render(self, console: Console) -> None:
        """Print the table: mean ± half the 95 % interval. Where it is wider than the terminal its lines wrap; no number
        is cut."""
        table = Table(
            title="Policies",
            caption=f"± is half the 95 % interval; wins are against {escape(self.baseline)}",
            box=SIMPLE_HEAD,
        )
        table.add_column("policy", no_wrap=True)
        for heading in (*self.scorers, "KL", "tokens", "unfinished", "wins (ties)"):
            table.add_column(escape(heading), justify="right", no_wrap=True)
        best = self.best(self.gold)
        for policy in self.policies:
            cells = [plus_minus(policy.scores[name], 2) for name in self.scorers]
            if policy.name == best:
                cells[self.scorers.index(self.gold)] = f"[bold green]{cells[self.scorers.index(self.gold)]}[/]"
            cells += [plus_minus(policy.kl, 2), plus_minus(policy.length, 1), percent(policy.unfinished)]
            wins = policy.win_rate
            ties = f" ({wins.ties / wins.rate.n:.0%})" if wins is not None and wins.rate.n else ""
            cells.append(percent(wins.rate) + ties if wins is not None else "baseline")
            table.add_row(escape(policy.name), *cells)
        whole = console.measure(table, options=console.options.update(max_width=1000)).maximum
        console.width = max(console.width, whole)
        console.print(table)
        unscored = {name: sum(policy.scores[name].missing for policy in self.policies) for name in self.scorers}
        for name, count in unscored.items():
            if count:
                console.print(f"{count} answers had no {name} score; they are left out.")

    def best(self, scorer: str) -> str | None:
        """The policy with the highest mean of `scorer`; None when nothing was scored."""
        scored = [policy for policy in self.policies if not math.isnan(policy.scores[scorer].mean)]
        return max(scored, key=lambda policy: policy.scores[scorer].mean).name if scored else None

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all; NaN becomes null. Raises `OutputError` when it cannot be written."""
        write_text(path, json.dumps(_without_nan(asdict(self)), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> PolicyTable:
        """Read what `save` wrote. Raises `DataError` when the file is something else."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                baseline=raw["baseline"],
                gold=raw["gold"],
                policies=tuple(_load_policy(policy) for policy in raw["policies"]),
                comparisons=tuple(
                    Comparison(
                        tuple(_load_message(turn) for turn in entry["prompt"]),
                        {name: Answer(**answer) for name, answer in entry["answers"].items()},
                    )
                    for entry in raw["comparisons"]
                ),
                tracks=tuple(_load_track(track) for track in raw["tracks"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not an evaluation table written by assent ({named(error)})") from error


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


def evaluate_policies(
    policies: Mapping[str, Sequence[Answer]],
    prompts: Sequence[Prompt],
    scorers: Mapping[str, Scorer],
    baseline: str,
    *,
    gold: str = "gold",
    show: int = 8,
    seed: int = 0,
) -> PolicyTable:
    """The table of `policies` (name to answers), compared with `policies[baseline]` by the scorer named `gold`.

    A scorer maps (prompt messages, answer text) to a number, or None where it has none; it is asked for the answers
    that do not carry its score yet, so batched scores can be put into `Answer.scores` beforehand. Intervals resample
    prompts, not answers. Win rate compares every answer with every baseline answer to the same prompt; `gain` pairs
    the prompts' mean gold scores. `show` prompts, drawn by chance and not by result, go into `comparisons`. Raises
    `UserError` for an unknown baseline or gold, a policy without answers, an index outside `prompts`, or a score that
    is no number, `NonFiniteReward` for one that is not finite.
    """
    _check(policies, prompts, scorers, baseline, gold)
    judged = {name: scored(answers, prompts, scorers) for name, answers in policies.items()}
    names = dict.fromkeys((gold, *scorers, *(name for a in judged.values() for answer in a for name in answer.scores)))
    reference = judged[baseline]
    results = tuple(
        _result(name, answers, tuple(names), None if name == baseline else reference, gold, seed)
        for name, answers in judged.items()
    )
    return PolicyTable(baseline, gold, results, _comparisons(judged, prompts, show, seed))


def _check(
    policies: Mapping[str, Sequence[Answer]],
    prompts: Sequence[Prompt],
    scorers: Mapping[str, Scorer],
    baseline: str,
    gold: str,
) -> None:
    if baseline not in policies:
        raise UserError(f"The baseline must be one of the policies. Got {baseline!r}, expected one of {list(policies)}")
    for name, answers in policies.items():
        if not answers:
            raise UserError(f"Policy {name!r} has no answers to evaluate")
        for answer in answers:
            if not 0 <= answer.prompt_index < len(prompts):
                index = answer.prompt_index
                raise UserError(f"Policy {name!r} answers prompt {index}, but there are {len(prompts)} prompts")
        if gold not in scorers and not any(gold in answer.scores for answer in answers):
            raise UserError(f"No scorer is named {gold!r} and the answers of {name!r} do not carry its scores")


def scored(answers: Sequence[Answer], prompts: Sequence[Prompt], scorers: Mapping[str, Scorer]) -> list[Answer]:
    """The answers with the scores that they do not carry yet."""
    return [_scored(answer, prompts[answer.prompt_index], scorers) for answer in answers]


def _scored(answer: Answer, prompt: Prompt, scorers: Mapping[str, Scorer]) -> Answer:
    new = {name: score(prompt, answer.text) for name, score in scorers.items() if name not in answer.scores}
    prompt_name = f"prompt {answer.prompt_index + 1}"
    scores = {
        name: None if value is None else reward(f"The scorer '{name}'", answer.text, prompt_name, value)
        for name, value in new.items()
    }
    return replace(answer, scores={**answer.scores, **scores})


def _result(
    name: str,
    answers: Sequence[Answer],
    scorers: tuple[str, ...],
    baseline: Sequence[Answer] | None,
    gold: str,
    seed: int,
) -> PolicyResult:
    clusters = [answer.prompt_index for answer in answers]

    def mean(values: Sequence[float | None]) -> Interval:
        return mean_interval(values, clusters, seed=seed)

    result = PolicyResult(
        name=name,
        scores={scorer: mean([answer.scores.get(scorer) for answer in answers]) for scorer in scorers},
        kl=mean([answer.kl for answer in answers]),
        length=mean([answer.num_tokens for answer in answers]),
        unfinished=proportion_interval(sum(not answer.finished for answer in answers), len(answers)),
    )
    if baseline is None:
        return result
    ours, theirs = _by_prompt(answers, gold), _by_prompt(baseline, gold)
    shared = [index for index in ours if index in theirs]
    duels = [(a, b, index) for index in shared for a in ours[index] for b in theirs[index]]
    return replace(
        result,
        win_rate=win_rate([a for a, _, _ in duels], [b for _, b, _ in duels], [index for _, _, index in duels]),
        gain=paired_difference([_mean(ours[i]) for i in shared], [_mean(theirs[i]) for i in shared], seed=seed),
    )


def _by_prompt(answers: Sequence[Answer], scorer: str) -> dict[int, list[float | None]]:
    grouped: dict[int, list[float | None]] = defaultdict(list)
    for answer in answers:
        grouped[answer.prompt_index].append(answer.scores.get(scorer))
    return dict(grouped)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None and not math.isnan(value)]
    return sum(present) / len(present) if present else None


def _comparisons(
    policies: Mapping[str, Sequence[Answer]], prompts: Sequence[Prompt], show: int, seed: int
) -> tuple[Comparison, ...]:
    first: dict[str, dict[int, Answer]] = {}
    for name, answers in policies.items():
        first[name] = {}
        for answer in answers:
            first[name].setdefault(answer.prompt_index, answer)
    shared = [index for index in range(len(prompts)) if all(index in answers for answers in first.values())]
    chosen = sorted(np.random.default_rng(seed).choice(shared, min(show, len(shared)), replace=False).tolist())
    return tuple(
        Comparison(tuple(prompts[index]), {name: answers[index] for name, answers in first.items()}) for index in chosen
    )


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _load_interval(raw: Mapping[str, Any]) -> Interval:
    mean, low, high = (math.nan if raw[key] is None else float(raw[key]) for key in ("mean", "low", "high"))
    return Interval(mean, low, high, int(raw["n"]), int(raw["missing"]))


def _load_message(raw: Mapping[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in raw.get("tool_calls", ()))
    return Message(**{**raw, "tool_calls": calls})


def _load_policy(raw: Mapping[str, Any]) -> PolicyResult:
    wins, gain = raw["win_rate"], raw["gain"]

    def p_value(key: str) -> float:
        return math.nan if gain[key] is None else float(gain[key])

    return PolicyResult(
        name=raw["name"],
        scores={name: _load_interval(value) for name, value in raw["scores"].items()},
        kl=_load_interval(raw["kl"]),
        length=_load_interval(raw["length"]),
        unfinished=_load_interval(raw["unfinished"]),
        win_rate=wins and WinRate(_load_interval(wins["rate"]), wins["wins"], wins["ties"], wins["losses"]),
        gain=gain and PairedDifference(_load_interval(gain["difference"]), p_value("p_permutation"), p_value("p_sign")),
    )


def _load_track(raw: Mapping[str, Any]) -> Track:
    points = (
        TrackPoint(point["step"], point["kl"], _load_interval(point["gold"]), _load_interval(point["proxy"]))
        for point in raw["points"]
    )
    return Track(raw["name"], tuple(points))
