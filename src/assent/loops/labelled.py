"""The stage that labels: what answers are worth, by any source of `assent score`."""

from __future__ import annotations

import gc
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath

from assent.config import SourceConfig
from assent.data.formats import load_examples, to_row
from assent.data.records import Example, Rating
from assent.distributed import gathered, on_main
from assent.errors import DataError, Incomplete
from assent.http import ServerUnavailable
from assent.loops.loop import Loop, here
from assent.loops.parts import Parts, clear
from assent.models.digests import file_digest, model_digests
from assent.rewards.group import GroupReward, RewardError, Scores
from assent.rewards.judge.openai import OpenAIJudge
from assent.rewards.judge.source import JudgeReward
from assent.rewards.outside import open_source, rewards_of
from assent.rewards.pool import end_workers
from assent.rewards.reading import REWARD
from assent.rewards.rules import counts_tokens
from assent.rewards.scoring import portions
from assent.rewards.shared import Shared

log = logging.getLogger(__name__)

READ, ASKED = 512, 64
"""Answers in a part: that models here read, and that others are asked about."""


def label(loop: Loop, name: str, answers: str | Path, source: SourceConfig) -> Path:
    """The rows of `answers` with a `Rating` of each answer: {"reward": r}, and beside it the source's parts (outputs of
    a reward model, members of a sum) where it has several. An answer that could not be scored has no rating.

    Numbers of the stage: `answers`, `unscored`, and the mean `reward`. The work is done in parts: one that is killed
    goes on with the next. Raises ConfigError and ModelError for what is no source, RewardError where no answer at all
    could be scored; and Incomplete, with every answered part kept, where a server stopped answering."""

    def make(path: Path) -> Mapping[str, float]:
        return _labelled(path, Path(answers), source, loop)

    words = annotator_of(source)
    path = loop.stage(name, make, reads=(answers, *inputs_of(source)), about=f"rewards by {words}")
    on_main(lambda: clear(path))
    return path


def annotator_of(source: SourceConfig) -> str:
    """What a source is called in the rows: its words without addresses and folders."""
    return " + ".join(
        word.partition("=")[0] if "://" in word else PurePath(word.rpartition("=")[2]).name or word
        for word in source.source
    )


def inputs_of(source: SourceConfig) -> tuple[str, ...]:
    """The folders and files that a source is made of."""
    rewards = rewards_of(source)
    files = (word.rpartition(":")[0] for word in rewards.functions)
    named = (*rewards.model, *rewards.implicit, *files, *(word.partition("=")[2] for word in rewards.judges))
    return tuple(map(str, here(*named)))


def spoken(source: SourceConfig, policy: str) -> SourceConfig:
    """The source, with the tokenizer of `policy` where servers or rules need one and nothing else names it."""
    rewards = rewards_of(source)
    named = source.tokenizer or source.remote.tokenizer or rewards.model or rewards.implicit
    if named or not (rewards.servers or any(map(counts_tokens, rewards.rules))):
        return source
    return replace(source, tokenizer=policy)


def _labelled(path: Path, answers: Path, source: SourceConfig, loop: Loop) -> Mapping[str, float]:
    examples = on_main(lambda: read_answers(answers))

    def begin() -> tuple[Parts, frozenset[int]]:
        rewards = rewards_of(source)
        models = [model_digests(folder) for folder in (*rewards.model, *rewards.implicit)]
        files = [file_digest(Path(place)) for place in inputs_of(source) if Path(place).is_file()]
        parts = Parts(path, {"answers": file_digest(answers), "source": asdict(source), "is": [models, files]})
        return parts, parts.done

    parts, done = on_main(begin)
    outside = open_source(source, loop.world, forgiving=True)
    _check(outside.check, examples)
    asked = rewards_of(source)
    size = ASKED if asked.judges or asked.servers or asked.functions else READ
    missing: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    try:
        for number, (start, end) in enumerate(portions(examples, size)):
            if number in done:
                continue
            before = unanswered_by(outside.source)
            portion = examples[start:end]
            try:
                scores = outside.score([example for example in portion if example.responses])
            except ServerUnavailable as error:
                missing[str(error)] += sum(len(example.responses) for example in portion)
                break
            if lost := unanswered_by(outside.source) - before:
                missing.update(lost)
                continue
            reasons.update(reason for reason in scores.reasons() if reason is not None)
            rows = rated(portion, scores, annotator_of(source))
            on_main(lambda: parts.put(number, map(to_row, rows), _about(scores)))  # noqa: B023
    finally:
        end_workers()
    del outside
    gc.collect()
    for reason, count in reasons.most_common(10):
        log.warning(f"unscored: {count:,}: {reason}")
    if missing:
        said = "; ".join(f"{count:,}: {reason}" for reason, count in missing.most_common(3))
        raise Incomplete(
            f"{path}: a server left answers without a reward ({said}). All others are kept: the same command with "
            "--resume auto asks for the missing ones alone."
        )
    total = on_main(parts.join)
    if total["answers"] == total["unscored"]:
        on_main(lambda: path.unlink())
        on_main(lambda: clear(path))
        why = "; ".join(f"{count:,}: {reason}" for reason, count in reasons.most_common(3))
        raise RewardError(f"{answers}: not one of {total['answers']:,.0f} answers could be scored ({why}).")
    scored = total["answers"] - total["unscored"]
    return {"answers": total["answers"], "unscored": total["unscored"], "reward": total["sum"] / scored}


def read_answers(file: Path) -> list[Example]:
    """The rows of a file of answers, as they are. Raises DataError where one cannot be read."""
    loaded = load_examples(file)
    if loaded.problems:
        raise DataError(f"{loaded.problems[0]}. Every row of {file} must be readable.")
    return loaded.examples


def _check(check: object, examples: Sequence[Example]) -> None:
    """Prompts of which answers were left out may have too few for a judge; those are unscored."""
    most = max(len(example.responses) for example in examples)
    assert callable(check)
    check([example for example in examples if len(example.responses) == most])


def rated(examples: Sequence[Example], scores: Scores, annotator: str) -> list[Example]:
    """The examples with what `scores`, those of all their responses in order, say as ratings."""
    parts = {name: own for name, own in scores.parts.items() if name != REWARD} if len(scores.parts) > 1 else {}
    made, start = [], 0
    for example in examples:
        ratings = []
        for index in range(len(example.responses)):
            place = start + index
            if not math.isnan(value := float(scores.values[place])):
                own = {name: float(values[place]) for name, values in parts.items()}
                known = {name: number for name, number in own.items() if not math.isnan(number)}
                ratings.append(Rating(index, {REWARD: value, **known}, annotator))
        made.append(replace(example, feedback=tuple(ratings)))
        start += len(example.responses)
    return made


def _about(scores: Scores) -> dict[str, float]:
    known = [float(value) for value in scores.values if not math.isnan(value)]
    return {"answers": len(scores.values), "unscored": len(scores.values) - len(known), "sum": math.fsum(known)}


def unanswered_by(source: GroupReward) -> Counter[str]:
    """The questions that judges' servers have left without an answer, by why, of all ranks. Every rank must call it."""

    def own() -> Counter[str]:
        found: Counter[str] = Counter()
        for part in getattr(source, "sources", ()):
            inner = part.source if isinstance(part, Shared) else part
            if isinstance(inner, JudgeReward) and isinstance(inner.judge, OpenAIJudge):
                found.update(inner.judge.unanswered)
        return found

    total: Counter[str] = Counter()
    for each in gathered(own):
        total.update(each)
    return total
