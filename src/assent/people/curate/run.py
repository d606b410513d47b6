"""The stages of `assent curate` in their order."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from assent import distributed
from assent.config import CurateConfig
from assent.data.formats import load_examples
from assent.data.jsonl import json_line
from assent.data.records import Example
from assent.data.turns import choose_turns
from assent.distributed import World
from assent.errors import ConfigError, DataError
from assent.models.loading import quiet_transformers
from assent.outputs import whole_file
from assent.people import asked
from assent.people.curate import language
from assent.people.curate.against import Overlap, Sets, overlapping
from assent.people.curate.complexity import Complexity, Rater, by_features, check_complexity
from assent.people.curate.draw import draw, most_complex
from assent.people.curate.duplicates import exact, near, plan
from assent.people.curate.pairs import check_pairs, first_of, only, ranked
from assent.people.curate.report import ComplexityNumbers, CurateSummary, PairNumbers, TopicNumbers, render
from assent.people.curate.sieve import Fate, Sieve
from assent.people.curate.texts import many_turns, user_text
from assent.people.curate.topics import Topics, check_topics, topics_of

log = logging.getLogger(__name__)

NOTES = ("language", "language_confidence", "code", "topic", "complexity", "weight", "disagreement", "margin")
"""What is noted in the meta of rows."""
GIVEN = "_given"
"""Behind the name of a column that the row had before."""
NO_PROMPT, EMPTY, NO_QUESTION = "no prompt", "the prompt is empty", "the prompt does not end with a user's turn"
NOT_DRAWN = "not drawn"


@dataclass
class _Found:
    """What is known so far."""

    files: dict[str, int] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    code: Mapping[str, int] = field(default_factory=dict)
    against: Mapping[str, Overlap] = field(default_factory=dict)
    topics: TopicNumbers | None = None
    complexity: ComplexityNumbers | None = None
    multi_turn: tuple[float | None, float, float] | None = None
    pairs: PairNumbers | None = None


def curate(config: CurateConfig) -> CurateSummary:
    """Writes those rows of `config.prompts` into `config.out` that are worth labelling, as they were, with what was
    found in their meta: `language`, `language_confidence`, `code`, `topic`, `complexity`, `weight` (how many of the
    prompts before the draw it stands for) and, of pairs, `disagreement` or `margin`.

    Raises ConfigError, DataError and ModelError before anything is written; when all is written, Incomplete where a
    server left questions without an answer."""
    quiet_transformers()
    world = distributed.init()
    _check(config, world)
    rater = None if config.complexity.source is None else Rater(config, world)
    found, sieve = _Found(), Sieve([])
    _read(config, sieve, found)
    if config.resume:
        asked.check_same(config.out, sieve.examples)
    sieve.drop("equal prompts", exact(sieve.examples))
    _languages(config, sieve, found)
    _against(config, sieve, found)
    if config.filter.near < 1:
        sieve.drop("near duplicates", near(sieve.examples, config.filter.near))
    if sieve.examples:
        _draw(config, sieve, found, rater, world)
    if sieve.examples and config.choose.pairs != "none":
        _pairs(config, sieve, found, world)
    summary = CurateSummary(
        **vars(found), rows=len(sieve.examples), asked=config.take, stages=tuple(sieve.stages),
        near=plan(config.filter.near) if config.filter.near < 1 else None,
    )  # fmt: skip
    if sieve.examples:
        asked.write_examples(sieve.examples, config.out)
    _write(config, sieve, summary)
    if summary.complexity is not None and summary.complexity.cost is not None:
        asked.check_answered(config.out, {summary.complexity.by: summary.complexity.cost}, summary.rows)
    return summary


def _check(config: CurateConfig, world: World) -> None:
    """Raises ConfigError for options that do not fit or packages that are missing, RunFolderError and OutputError
    where results cannot be written."""
    if world.size > 1:
        raise ConfigError(f"assent curate runs as one process; this is one of {world.size}.")
    read = [*config.prompts, *config.against]
    asked.check_places(config.out, config.resume, config.summary, read, config.dropped)
    check_complexity(config)
    check_topics(config.topics)
    check_pairs(config.choose)
    language.check_languages(config.filter.languages)


def _read(config: CurateConfig, sieve: Sieve, found: _Found) -> None:
    """The prompts of all files, each up to its last question."""
    unread: list[tuple[str, Example | object, Fate]] = []
    for file in dict.fromkeys(config.prompts):
        loaded = load_examples(
            file, format=config.format, columns=config.columns, split=config.split, limit=config.limit
        )
        asked.say_problems(file, loaded.problems)
        found.files[file] = len(loaded.examples) + len(loaded.problems)
        sieve.examples += choose_turns(loaded.examples, "last")
        unread += [("read", problem.origin, Fate(f"unreadable: {problem.reason}")) for problem in loaded.problems]
    sieve.drop("read", [_unfit(example) for example in sieve.examples])
    if unread:
        (stage,) = sieve.stages
        reasons = Counter(fate.reason.partition(", got ")[0] for *_, fate in unread)  # what was got differs by row
        sieve.stages[0] = replace(stage, came=stage.came + len(unread), dropped={**stage.dropped, **reasons})
        sieve.dropped += unread  # type: ignore[arg-type]
    named = Counter(name for example in sieve.examples for name in NOTES if name in example.meta)
    for name, count in named.items():
        log.warning(f"{count:,} rows have a column '{name}' already; it is kept as '{name}{GIVEN}'")
    if named:
        sieve.examples = [_given_aside(example) for example in sieve.examples]


def _unfit(example: Example) -> Fate | None:
    if not example.prompt:
        return Fate(NO_PROMPT)
    if example.prompt[-1].role not in ("user", "tool"):
        return Fate(NO_QUESTION)
    return None if user_text(example).strip() else Fate(EMPTY)


def _given_aside(example: Example) -> Example:
    return replace(example, meta={f"{k}{GIVEN}" if k in NOTES else k: value for k, value in example.meta.items()})


def _noted(examples: Sequence[Example], **columns: Sequence[object]) -> list[Example]:
    rows = zip(*columns.values(), strict=True)
    return [
        replace(example, meta={**example.meta, **dict(zip(columns, row, strict=True))})
        for example, row in zip(examples, rows, strict=True)
    ]


def _languages(config: CurateConfig, sieve: Sieve, found: _Found) -> None:
    told = language.told(sieve.examples, config.filter.sure)
    found.languages = dict(Counter(each.language for each in told))
    found.code = dict(Counter(each.code for each in told if each.code))
    sieve.examples = _noted(
        sieve.examples,
        language=[each.language for each in told],
        language_confidence=[each.confidence for each in told],
        code=[bool(each.code) for each in told],
    )
    if config.filter.languages:
        kept = sieve.drop("languages", language.by_language(told, config.filter.languages))
        told = [told[place] for place in kept]
    if config.filter.code == "drop":
        sieve.drop("code", language.by_code(told))


def _against(config: CurateConfig, sieve: Sieve, found: _Found) -> None:
    if not config.against:
        return
    sets = Sets(config.filter.ngram)
    for file in dict.fromkeys(config.against):
        loaded = load_examples(file, split=config.split)
        asked.say_problems(file, loaded.problems)
        before = len(sets.sizes)
        sets.add(file, choose_turns(loaded.examples, "last"))
        if len(sets.sizes) == before or not sets.sizes[file]["prompts"]:
            raise DataError(f"--against {file}: none of its rows has a prompt.")
    fates, found.against = overlapping(sieve.examples, sets)
    sieve.drop("evaluation sets", fates)


def _draw(config: CurateConfig, sieve: Sieve, found: _Found, rater: Rater | None, world: World) -> None:
    """Topics and complexity of all that is left, and those that are drawn of them."""
    examples = sieve.examples
    texts = [user_text(example) for example in examples]
    opening = {"device": world.device, "precision": config.precision, "trust": config.trust_remote_code}
    topics = topics_of(texts, config.topics, config.seed, **opening)
    rated = by_features(examples) if rater is None else rater.rate(examples)
    top, start = most_complex(rated.values, config.complexity.top)
    several = np.array([many_turns(example) for example in examples])
    weights = np.where(top, config.complexity.weight, 1.0)
    drawn = draw(topics.labels, weights, several, config.take, config.multi_turn, config.seed)
    taken = set(drawn.places)
    chances = drawn.chances.tolist()
    sieve.examples = _noted(
        examples,
        topic=topics.of_rows(),
        complexity=rated.values,
        weight=[round(1 / chance, 6) if chance else None for chance in chances],
    )
    kept = sieve.drop("draw", [None if place in taken else Fate(NOT_DRAWN) for place in range(len(examples))])
    found.topics = _topic_numbers(config, topics, kept)
    found.complexity = _complexity_numbers(config, rated, top, start, kept)
    found.multi_turn = (config.multi_turn, float(several.mean()), float(several[kept].mean()) if kept else 0.0)


def _topic_numbers(config: CurateConfig, topics: Topics, kept: Sequence[int]) -> TopicNumbers:
    sizes = np.bincount(topics.labels, minlength=len(topics.names))
    after = np.bincount(topics.labels[kept], minlength=len(topics.names))
    largest = {topics.names[topic]: int(sizes[topic]) for topic in np.argsort(-sizes, kind="stable")[:8]}
    return TopicNumbers(topics.how, config.topics.number, len(topics.names), _three(sizes), _three(after), largest)


def _three(values: np.ndarray) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def _complexity_numbers(
    config: CurateConfig, rated: Complexity, top: np.ndarray, start: float | None, kept: Sequence[int]
) -> ComplexityNumbers:
    levels = {} if rated.cost is None else Counter(f"{value:g}" for value in rated.values if value is not None)
    return ComplexityNumbers(
        rated.by, config.complexity.weight, start, float(top.mean()), float(top[kept].mean()) if kept else 0.0,
        dict(levels), rated.unrated, rated.cost,
    )  # fmt: skip


def _pairs(config: CurateConfig, sieve: Sieve, found: _Found, world: World) -> None:
    how = config.choose
    made = ranked(sieve.examples, config, world)
    taken, fates = first_of(made, how.budget)
    chosen = [only(sieve.examples[row], made.pairs[row]) for row in taken]  # type: ignore[arg-type]
    sieve.drop("pairs", fates)
    worth = [float(value) for value in np.abs(made.worth[taken])]
    sieve.examples = _noted(chosen, **{how.pairs: [round(value, 6) for value in worth]}) if made.members else chosen
    middle = (min(worth), float(np.median(worth)), max(worth)) if worth else None
    found.pairs = PairNumbers(how.pairs, made.members, len(taken), middle, made.unscored)


def _write(config: CurateConfig, sieve: Sieve, summary: CurateSummary) -> None:
    """Numbers, tables and the list of what was left out. Raises DataError where nothing is left."""
    if config.dropped is not None:
        with (
            whole_file(config.dropped, f"--dropped {config.dropped}") as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            file.writelines(map(json_line, sieve.rows()))
    asked.write_summary(config.summary, summary)
    if not sieve.examples:
        reasons = Counter[str]()
        for stage in summary.stages:
            reasons.update(stage.dropped)
        often = ", ".join(f"{why} ({count:,})" for why, count in reasons.most_common(3))
        raise DataError(f"--out {config.out}: no prompt is left of {sum(summary.files.values()):,}. Mostly: {often}.")
    render(summary, config.out)
