"""What an evaluation found: every policy's numbers, with intervals, failures and tests against the baseline; on disk as
evaluation.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from assent.data.records import Message, ToolCall
from assent.errors import DataError
from assent.evaluate.laws import FrontierPoint, LawFit, load_law, load_point
from assent.evaluate.matches import Margins, Match, Outcomes, load_margins, load_match, load_measured
from assent.foreign import named
from assent.measures.aggregate import Difference, half_width
from assent.measures.estimates import Estimate
from assent.measures.shapes import Measured
from assent.outputs import write_text
from assent.statistics import Interval, WinRate, prompts_needed

EVALUATION = "evaluation.json"
"""A `PolicyTable`, in the folder of an evaluation, in a run folder, or in the folder above several."""
ANSWERS = "answers.jsonl"
"""Beside it, a row for each answer with its scores."""
FEWEST = 30
"""Prompts below which nothing is called better or worse."""
NO_NUMBER = Interval(math.nan, math.nan, math.nan, 0)
REWARD, WINS, KL, LENGTH, UNFINISHED = "reward/", "win-rate/", "kl", "length", "unfinished"


@dataclass(frozen=True)
class Answer:
    """One answer as it is shown. `num_tokens` and `finished` are None where nobody knows."""

    text: str
    num_tokens: int | None = None
    finished: bool | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Scores by source; None is unscored."""


@dataclass(frozen=True)
class Comparison:
    """One prompt and every policy's first answer to it."""

    prompt: tuple[Message, ...]
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class TrackPoint:
    """One evaluation of a policy during training. `kl` is from the reference, nats per answer. `gold_after` and
    `proxy_after` are what the last point of the track has over this one on the same prompts, where that is known."""

    step: int
    kl: float | None
    gold: Interval
    proxy: Interval
    gold_after: Difference | None = None
    proxy_after: Difference | None = None


@dataclass(frozen=True)
class Track:
    """Gold and proxy reward of one policy over training."""

    name: str
    points: tuple[TrackPoint, ...]


@dataclass(frozen=True)
class Needed:
    """About how many prompts would make an interval ± `within`."""

    within: float
    prompts: int


def needed(found: Estimate, prompts: int, within: float | None = None) -> Needed | None:
    """For an interval from so many prompts; `within` is by default half of what it is now, to one digit. None where
    nothing is known of it."""
    half = half_width(found)
    if not half > 0:
        return None
    within = float(f"{half / 2:.1g}") if within is None else within
    count = prompts_needed(half, prompts, within)
    return None if count is None else Needed(within, count)


@dataclass(frozen=True)
class PolicyResult:
    """One policy's numbers, by measure; where a measure asks several sources, by measure/source.

    differences  against the baseline, of the measures that have a better direction
    outcomes     source of verdicts -> how the comparisons with the baseline went
    absent       measure -> why this policy has no such number
    notes        what else is to be known of it, in sentences
    needed       measure -> how many prompts would make its interval how narrow
    """

    name: str
    path: str = ""
    numbers: Mapping[str, Measured] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    needed: Mapping[str, Needed] = field(default_factory=dict)

    def interval(self, key: str) -> Interval:
        """A number with NaN for what is not known; `missing` counts its failures."""
        found = self.numbers.get(key)
        return NO_NUMBER if found is None else as_interval(found)

    @property
    def scores(self) -> dict[str, Interval]:
        """Mean score by source."""
        keys = [key for key in self.numbers if key.startswith(REWARD)]
        return {key.removeprefix(REWARD): self.interval(key) for key in keys}

    @property
    def kl(self) -> Interval:
        return self.interval(KL)

    @property
    def length(self) -> Interval:
        return self.interval(LENGTH)

    @property
    def unfinished(self) -> Interval:
        return self.interval(UNFINISHED)


@dataclass(frozen=True)
class Described:
    """What a measure of the table is, for whoever reads the file without the code."""

    about: str
    unit: str
    better: str | None


@dataclass(frozen=True)
class PolicyTable:
    """Every policy's numbers, a few prompts with all their answers, and gold against proxy over training.

    by        the source that policies are compared by: gold where there is one, else the first; "" without any
    prompts   how many were asked, of `file`; `digest` is of all that was asked
    measures  measure -> what it is
    left_out  measure -> why no policy has it
    probes    judge/probe -> what is known of the judge itself
    notes     what else is to be known of all of it, in sentences
    command   what gives it again, but for --out; "" where nobody said
    matches   every two policies by each source of verdicts, as far as it compares them
    margins   of the prompt file's own pairs
    within    the half width that was asked for of intervals (`PolicyResult.needed`)
    frontier  every policy whose KL and score are known
    laws      gain by distance along runs and along best-of-n
    unanswered  judge -> how many questions its server did not answer: the evaluation is not whole
    """

    baseline: str
    by: str
    policies: tuple[PolicyResult, ...]
    prompts: int = 0
    file: str = ""
    measures: Mapping[str, Described] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, Measured] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    tracks: tuple[Track, ...] = ()
    digest: str = ""
    notes: tuple[str, ...] = ()
    command: str = ""
    matches: tuple[Match, ...] = ()
    margins: tuple[Margins, ...] = ()
    within: float | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    laws: tuple[LawFit, ...] = ()
    unanswered: Mapping[str, int] = field(default_factory=dict)

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names of the sources of scores, the one that decides first."""
        names = dict.fromkeys(name for policy in self.policies for name in policy.scores)
        return tuple(sorted(names, key=lambda name: name != self.by))

    @property
    def keys(self) -> tuple[str, ...]:
        """All numbers that any policy has."""
        return tuple(dict.fromkeys(key for policy in self.policies for key in policy.numbers))

    def score(self, policy: PolicyResult) -> Interval:
        """Its mean score by the source that decides."""
        return policy.interval(f"{REWARD}{self.by}")

    def wins(self, policy: PolicyResult) -> WinRate | None:
        """Its win rate by the source that decides; None for the baseline, and without verdicts."""
        found = policy.outcomes.get(self.by)
        rate = policy.interval(f"{WINS}{self.by}")
        return None if found is None else WinRate(rate, found.wins, found.ties, found.losses)

    def gain(self, policy: PolicyResult) -> Difference | None:
        """Its difference from the baseline by the source that decides: of scores, or of the win rate from one half."""
        keys = (f"{REWARD}{self.by}", f"{WINS}{self.by}")
        return next((policy.differences[key] for key in keys if key in policy.differences), None)

    def gain_needed(self, policy: PolicyResult) -> Needed | None:
        """How many prompts would make the interval of its `gain` how narrow."""
        gain = self.gain(policy)
        return None if gain is None else needed(gain.difference, gain.difference.n, self.within)

    def verdict(self, policy: PolicyResult) -> str:
        """ "better than", "worse than", "not clearly different from", or, below `FEWEST` prompts, "too few prompts to
        tell from" the baseline; "" where nothing decides."""
        gain = self.gain(policy)
        if gain is None or gain.difference.value is None:
            return ""
        low, high = gain.difference.low, gain.difference.high
        if gain.difference.n < FEWEST or low is None or high is None:
            return f"too few prompts ({gain.difference.n}) to tell from"
        return "better than" if low > 0 else "worse than" if high < 0 else "not clearly different from"

    def best(self, scorer: str) -> str | None:
        """The policy with the highest mean of `scorer`; None when nothing was scored, or on too few prompts."""
        scored = [policy for policy in self.policies if not math.isnan(policy.interval(f"{REWARD}{scorer}").mean)]
        if not scored or 0 < self.prompts < FEWEST:
            return None
        return max(scored, key=lambda policy: policy.interval(f"{REWARD}{scorer}").mean).name

    def rows(self) -> list[dict[str, object]]:
        """One flat dict for each policy and number: value, bounds, n, failures, the test against the baseline, prompts
        needed, and whether the policy is on the front of KL and score."""
        rows: list[dict[str, object]] = []
        on_front = {point.name: point.on_front for point in self.frontier}
        for policy in self.policies:
            for key, found in policy.numbers.items():
                measure, _, source = key.partition("/")
                number = found.number
                row: dict[str, object] = {"policy": policy.name, "measure": measure, "source": source}
                row |= {"value": number.value, "low": number.low, "high": number.high, "n": number.n}
                row |= {"failures": sum(found.failures.values()), "difference": None, "p": None, "p_holm": None}
                if (against := policy.differences.get(key)) is not None:
                    row |= {"difference": against.difference.value, "p": _number(against.p)}
                    row["p_holm"] = _number(against.p_holm)
                more = policy.needed.get(key)
                row |= {"prompts": found.prompts or None, "within": more and more.within}
                row |= {"prompts_needed": more and more.prompts, "on_front": on_front.get(policy.name)}
                rows.append(row)
        return rows

    def csv(self) -> str:
        """`rows` as CSV."""
        rows, file = self.rows(), io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["policy"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all; NaN becomes null. Raises `OutputError` when it cannot be written."""
        write_text(path, json.dumps(plain(asdict(self)), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> PolicyTable:
        """Read what `save` wrote. Raises `DataError` when the file is something else."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            comparisons = tuple(
                Comparison(
                    tuple(_load_message(turn) for turn in entry["prompt"]),
                    {name: Answer(**answer) for name, answer in entry["answers"].items()},
                )
                for entry in raw.pop("comparisons", ())
            )
            return cls(
                policies=tuple(_load_policy(policy) for policy in raw.pop("policies")),
                measures={name: Described(**known) for name, known in raw.pop("measures", {}).items()},
                probes=_load_numbers(raw.pop("probes", {})),
                comparisons=comparisons,
                notes=tuple(raw.pop("notes", ())),
                tracks=tuple(_load_track(track) for track in raw.pop("tracks", ())),
                matches=tuple(load_match(match) for match in raw.pop("matches", ())),
                margins=tuple(load_margins(one) for one in raw.pop("margins", ())),
                frontier=tuple(load_point(point) for point in raw.pop("frontier", ())),
                laws=tuple(load_law(law) for law in raw.pop("laws", ())),
                **raw,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not an evaluation table written by assent ({named(error)})") from error


def as_interval(found: Measured) -> Interval:
    """A number as an interval: NaN for what is not known, failures as missing values."""
    number, missing = found.number, sum(found.failures.values())
    return Interval(_nan(number.value), _nan(number.low), _nan(number.high), number.n, missing)


def plain(value: object) -> object:
    """As JSON has it: NaN is null."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return _number(value) if isinstance(value, float) else value


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _load_interval(raw: Mapping[str, Any]) -> Interval:
    mean, low, high = (_nan(raw[key]) for key in ("mean", "low", "high"))
    return Interval(mean, low, high, int(raw["n"]), int(raw["missing"]))


def _load_message(raw: Mapping[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in raw.get("tool_calls", ()))
    return Message(**{**raw, "tool_calls": calls})


def _load_numbers(raw: Mapping[str, Any]) -> dict[str, Measured]:
    return {key: load_measured(found) for key, found in raw.items()}


def _load_policy(raw: Mapping[str, Any]) -> PolicyResult:
    return PolicyResult(
        name=raw["name"],
        path=raw["path"],
        numbers=_load_numbers(raw["numbers"]),
        differences={key: _load_difference(found) for key, found in raw["differences"].items()},
        outcomes={name: Outcomes(**counts) for name, counts in raw["outcomes"].items()},
        absent=dict(raw["absent"]),
        notes=tuple(raw["notes"]),
        needed={key: Needed(**found) for key, found in raw.get("needed", {}).items()},
    )


def _load_difference(raw: Mapping[str, Any]) -> Difference:
    return Difference(Estimate(**raw["difference"]), _nan(raw["p"]), _nan(raw["p_sign"]), _nan(raw["p_holm"]))


def _load_track(raw: Mapping[str, Any]) -> Track:
    points = (
        TrackPoint(
            point["step"],
            point["kl"],
            *(_load_interval(point[key]) for key in ("gold", "proxy")),
            *(found and _load_difference(found) for found in map(point.get, ("gold_after", "proxy_after"))),
        )
        for point in raw["points"]
    )
    return Track(raw["name"], tuple(points))
