"""`assent judge`: language models as annotators: their verdicts on the answers of a file, as people would give them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from assent import distributed
from assent.config import JudgeConfig, JudgeFileConfig
from assent.config.online_relations import unread
from assent.config.sections import keywords
from assent.data.conversions import comparisons
from assent.data.formats.fields import same_answer
from assent.data.records import Example, Feedback, Pair, Problem, Ranking, Rating, RowError
from assent.data.views import answers_view
from assent.distributed import World
from assent.errors import ConfigError, DataError
from assent.models.loading import quiet_transformers
from assent.people import asked
from assent.people.asked import Cost
from assent.people.principles import read_principles
from assent.rewards.group import Group, Scores
from assent.rewards.judge.build import judge_reward
from assent.rewards.judge.openai import OpenAIJudge, tried
from assent.rewards.judge.prompt import Prompt, read_prompt
from assent.rewards.judge.source import JudgeReward, check_no_reference
from assent.rewards.scoring import scored_chunks
from assent.rewards.shared import Shared
from assent.statistics import Interval, share_interval
from assent.train.progress import ProgressDisplay

log = logging.getLogger(__name__)

PRINCIPLE = "principle"
"""The column in which a judge is shown the principle that was drawn for a row."""
MADE_UP = ("Two and two are four.", "I do not know.")
SAME = "all answers are the same"
NO_VERDICT = "no judge gave a verdict"
EVEN = 1e-9


@dataclass(frozen=True)
class JudgeNumbers:
    """What one judge gave.

    verdicts     comparisons with an outcome, or answers with a rating; `failures`: those without, by why
    ties         comparisons that put no answer first
    consistency  share of comparisons that are decided alike in every order; `first_shown`: of verdicts for what was
                 shown first
    agreement    with the comparisons that the file had already, a tie counting half; None where it had none
    """

    verdicts: int
    ties: int
    failures: Mapping[str, int]
    cost: Cost
    consistency: Interval | None = None
    first_shown: Interval | None = None
    agreement: Interval | None = None


@dataclass(frozen=True)
class JudgeSummary:
    """Rows written, why rows are left out, and each judge."""

    file: str
    rows: int
    left_out: Mapping[str, int]
    judges: Mapping[str, JudgeNumbers] = field(default_factory=dict)


def judge(config: JudgeFileConfig) -> JudgeSummary:
    """Asks every judge of `config.source` about the answers of each row, in every order, and writes the rows with its
    feedback beside what they had: of a pairwise prompt a `Pair` for each comparison (a tie is a `Ranking` of one level;
    with `judge.soft` its `share` is the probability, averaged over the orders), of a prompt that chooses among several
    a `Ranking`, of one that rates `Rating`s. Rows that got no verdict are left out.

    Raises ConfigError, DataError and ModelError before anything is asked; when all is written, Incomplete where a
    server left questions without an answer."""
    quiet_transformers()
    world = distributed.init()
    sources = asked.named(config.source, config.judge, "--source")
    judged_by = JudgeConfig(**keywords(config.judge))
    prompt = check_judge(config)
    read = [config.file, config.principles]
    distributed.on_main(partial(asked.check_places, config.out, config.resume, config.summary, read))
    examples, left_out = distributed.on_main(partial(_rows, config, prompt, frozenset(sources)))
    distributed.on_main(partial(asked.check_same, config.out, examples) if config.resume else lambda: None)
    judges = _opened(config, judged_by, sources, examples, world)
    found, numbers = examples, {}
    for name, shared in judges.items():
        added, numbers[name] = _asked(name, shared, prompt, judged_by, examples)
        found = [replace(e, feedback=(*e.feedback, *own)) for e, own in zip(found, added, strict=True)]
    judged = [row for row, before in zip(found, examples, strict=True) if row.feedback != before.feedback]
    if silent := len(found) - len(judged):
        left_out = {**left_out, NO_VERDICT: silent}
    summary = JudgeSummary(config.file, len(judged), left_out, numbers)
    if world.is_main:
        if judged:
            asked.write_examples(judged, config.out)
        asked.write_summary(config.summary, summary)
        render(summary, config.out)
    asked.check_answered(config.out, {name: each.cost for name, each in numbers.items()}, len(judged))
    if not judged:
        why = sum((Counter(each.failures) for each in numbers.values()), Counter[str]())
        raise DataError(f"--out {config.out}: no verdict on any of {len(found)} rows. {_mostly(why)}")
    return summary


def _mostly(why: Counter[str]) -> str:
    return f"Mostly: {why.most_common(1)[0][0]}." if why else ""


def check_judge(config: JudgeFileConfig) -> Prompt:
    """The prompt file. Raises ConfigError, before any work, for options that do not fit."""
    sources = asked.named(config.source, config.judge, "--source")
    if problem := unread(config.judge, [*sources.values()], "--source openai=URL", "--source judge=FOLDER"):
        raise ConfigError(problem)
    prompt = read_prompt(config.judge.prompt)
    check_no_reference(prompt, config.judge.prompt)
    shows = PRINCIPLE in prompt.columns
    if config.principles is not None and not shows:
        raise ConfigError(
            f"--principles: --judge.prompt {config.judge.prompt} does not show the principle to the judge, as "
            f"{{{{ row.{PRINCIPLE} }}}}. Give --judge.prompt principle (with --judge.soft for soft labels)."
        )
    if config.judge.prompt == PRINCIPLE and config.principles is None:
        raise ConfigError("--judge.prompt principle asks for a choice by a principle. Give --principles FILE.")
    return prompt


def _rows(config: JudgeFileConfig, prompt: Prompt, names: frozenset[str]) -> tuple[list[Example], Mapping[str, int]]:
    """The rows that can be judged, each with the principle that is drawn for it, and why others are left out. Raises
    DataError where there are none, and where one has feedback by an annotator of these names."""
    shape = {name: getattr(config, name) for name in ("format", "columns", "split", "limit")}
    loaded, reasons = asked.read_rows(config.file, **shape)
    examples, unfit = answers_view(loaded)
    constitution = None if config.principles is None else read_principles(config.principles, "choice")
    kept: list[Example] = []
    problems: list[Problem] = list(unfit)
    for example in examples:
        for item in example.feedback:
            if item.annotator in names:
                raise DataError(
                    f"{example.origin}: has feedback by '{item.annotator}' already, which would count twice. Give the "
                    "judge another name: --source NAME=openai=URL."
                )
        if (reason := _unfit(prompt, example)) is not None:
            problems.append(Problem(example.origin, "responses", reason, fault=reason != SAME))
            continue
        if constitution is not None:
            drawn = constitution.drawn(config.seed, example.origin.row).choice
            example = replace(example, meta={**example.meta, PRINCIPLE: drawn})
        kept.append(example)
    asked.say_problems(config.file, problems)
    if not kept:
        raise DataError(
            f"{config.file}: none of its rows can be judged by --judge.prompt {config.judge.prompt}. "
            f"{f'The first: {problems[0]}.' if problems else _mostly(reasons)}"
        )
    return kept, dict(reasons + Counter(problem.reason for problem in problems))


def _unfit(prompt: Prompt, example: Example) -> str | None:
    """Why the answers of a row cannot be shown as the prompt shows them."""
    count = len(example.responses)
    if prompt.mode == "pairwise" and count < 2:
        return "one answer, which cannot be compared: give two or more, or a --judge.prompt that rates single answers"
    if prompt.mode == "choice" and count != len(prompt.letters):
        return f"{count} answers; the judge's prompt shows {len(prompt.letters)}"
    if prompt.mode == "pairwise" and all(same_answer(example.responses[0], each) for each in example.responses[1:]):
        return SAME
    return None


def _opened(
    config: JudgeFileConfig, judge: JudgeConfig, sources: Mapping[str, str], examples: Sequence[Example], world: World
) -> dict[str, Shared]:
    """Every judge, checked against the rows; one on a server was asked something. Raises before the first question."""
    place = asked.place_of(config, config.judge.engine, world)
    found = {}
    for name, spec in sources.items():
        made = judge_reward(spec, name, judge, config.remote, place, "--source", forgiving=True)
        made.check(examples)
        if isinstance(made.judge, OpenAIJudge):
            meta = dict.fromkeys(made.prompt.columns, "")
            shown = MADE_UP[: 1 if not made.prompt.compares else 2] + MADE_UP[:1] * (len(made.prompt.letters) - 2)
            size = len(shown)
            group = Group(replace(examples[0], meta=meta, feedback=()), shown, (True,) * size, (0,) * size)
            distributed.on_main(partial(tried, f"--source {name}", made.judge, partial(made.score, [group])))
        found[name] = Shared(made, world)
    return found


def _asked(
    name: str, shared: Shared, prompt: Prompt, config: JudgeConfig, examples: Sequence[Example]
) -> tuple[list[list[Feedback]], JudgeNumbers]:
    """The feedback of one judge on each example."""
    source = shared.source
    assert isinstance(source, JudgeReward)
    given: list[list[Feedback]] = []
    noted: dict[str, list[float]] = {}
    failures, agreed, ties = Counter[str](), list[float](), 0
    with ProgressDisplay(total=len(examples), label=f"judge: {name}") as progress:
        for portion, scores in scored_chunks(shared, examples, None, max_length=1):
            for metric, values in scores.metrics.items():
                noted.setdefault(metric, []).extend(values)
            for example, start in _starts(portion):
                own, lost = feedback_of(prompt, config, name, len(example.responses), scores, start)
                given.append(own)
                failures.update(lost)
                ties += sum(isinstance(item, Ranking) and len(item.levels) == 1 for item in own)
                agreed += agreement(example, own)
            progress.update(len(given), f"{sum(map(len, given)):,} verdicts")
    intervals = {key: share_interval(noted[key]) for key in ("consistency", "first_shown_wins") if noted.get(key)}
    numbers = JudgeNumbers(
        verdicts=sum(map(len, given)),
        ties=ties,
        failures=dict(failures),
        cost=asked.cost_of(source.judge, noted),
        consistency=intervals.get("consistency"),
        first_shown=intervals.get("first_shown_wins"),
        agreement=share_interval(agreed) if agreed else None,
    )
    return given, numbers


def _starts(portion: Sequence[Example]) -> Iterator[tuple[Example, int]]:
    start = 0
    for example in portion:
        yield example, start
        start += len(example.responses)


def feedback_of(
    prompt: Prompt, config: JudgeConfig, name: str, size: int, scores: Scores, start: int
) -> tuple[list[Feedback], list[str]]:
    """What a judge said about the `size` answers of a row, which are those from `start` on in `scores`; and for each
    comparison, or rating, that it did not give, why."""
    if prompt.mode == "pairwise":
        return _pairs(prompt, config, name, size, scores, start)
    if prompt.mode == "choice":
        said = [entry["outcome"] for each in range(size) for entry in scores.columns["verdicts"][start + each]]  # type: ignore[attr-defined]
        shares = [share for share in said if not isinstance(share, str)]
        if len(shares) < size:
            return [], [next((why for why in said if isinstance(why, str)), "no verdict")]
        levels = {share: [i for i, own in enumerate(shares) if own == share] for share in sorted(set(shares))[::-1]}
        return [Ranking(tuple(map(tuple, levels.values())), name)], []
    made: list[Feedback] = []
    lost = []
    reasons = scores.reasons()
    for index in range(size):
        why = reasons[start + index]
        if why is not None:
            lost.append(why)
            continue
        parts = {part: float(own[start + index]) for part, own in scores.parts.items()}
        made.append(Rating(index, parts or {"rating": float(scores.values[start + index])}, name))
    return made, lost


def _pairs(
    prompt: Prompt, config: JudgeConfig, name: str, size: int, scores: Scores, start: int
) -> tuple[list[Feedback], list[str]]:
    """A `Pair` for each comparison that puts one answer first, a `Ranking` of one level for each tie. Where verdicts
    are finer than a letter and not probabilities, its strength is 2 share - 1."""
    made: list[Feedback] = []
    lost: list[str] = []
    graded = bool(prompt.verdicts) or config.contradiction == "mean"
    for first in range(size):
        for entry in scores.columns["verdicts"][start + first]:  # type: ignore[attr-defined]
            (second,), outcome = entry["against"], entry["outcome"]
            if second < first:
                continue
            if isinstance(outcome, str):
                lost.append(outcome)
            elif abs(outcome - 0.5) <= EVEN:
                made.append(Ranking(((first, second),), name))
            else:
                chosen, rejected = (first, second) if outcome > 0.5 else (second, first)
                share = max(outcome, 1 - outcome)
                strength = 2 * share - 1 if graded and not config.soft else None
                made.append(Pair(chosen, rejected, strength, name, share if config.soft else None))
    return made, lost


def agreement(example: Example, own: Sequence[Feedback]) -> list[float]:
    """For each comparison that the row had already, whether `own` feedback says the same of the two: 1, 0, or 0.5 for a
    tie; nothing where it says nothing of them."""
    try:
        stated, _ = comparisons(example)
        mine, tied = comparisons(replace(example, feedback=tuple(own)))
    except RowError:
        return []
    says = {(pair.chosen, pair.rejected): 1.0 for pair in mine} | {(p.rejected, p.chosen): 0.0 for p in mine}
    says |= {pair: 0.5 for one, other in tied for pair in ((one, other), (other, one))}
    return [says[pair.chosen, pair.rejected] for pair in stated if (pair.chosen, pair.rejected) in says]


def render(summary: JudgeSummary, out: str) -> None:
    """The tables."""
    console = asked.console()
    console.print(Text(f"{summary.rows:,} rows of {summary.file}{f' in {out}' if summary.rows else ''}"))
    for line in asked.reason_lines("left out", summary.left_out):
        console.print(Text(line))
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for name in ("verdicts", "ties", "without", "consistency", "first shown wins", "agreement with the file"):
        table.add_column(name, justify="right")
    for name, each in summary.judges.items():
        shares = (each.consistency, each.first_shown, each.agreement)
        failed = f"{sum(each.failures.values()):,}"
        table.add_row(Text(name), f"{each.verdicts:,}", f"{each.ties:,}", failed, *map(_share, shares))
    console.print(table)
    for name, each in summary.judges.items():
        for line in asked.reason_lines(f"{name}, no verdict", each.failures):
            console.print(Text(line))
    asked.show_costs(console, {name: each.cost for name, each in summary.judges.items()})


def _share(found: Interval | None) -> str:
    if found is None or math.isnan(found.mean):
        return "–"
    return f"{found.mean:.3f} ({found.low:.2f} to {found.high:.2f})"
