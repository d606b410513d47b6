"""What is learnt from rated answers: pure functions from an example with ratings to one with pairs, single answers, or
the ratings that count; and the stage that writes a file of them."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from assent.config.choosing import PAIRED, ChooseConfig
from assent.data.conversions import best_answers, comparisons, overall_ratings
from assent.data.formats import to_row
from assent.data.formats.fields import same_answer
from assent.data.formats.load import moved
from assent.data.jsonl import write_rows
from assent.data.records import Binary, Example, Pair, Ranking, Rating
from assent.distributed import on_main
from assent.errors import DataError
from assent.loops.labelled import read_answers
from assent.loops.loop import Loop, seed_of
from assent.rewards.reading import REWARD
from assent.rollout.answering import FINISHED, TOKENS

log = logging.getLogger(__name__)

FEWER = "fewer usable answers than were sampled"
NONE = "no usable answer"
SAME = "all usable answers are the same"
TIED = "all rewards are equal"
GAP = "no two rewards differ enough (--choose.gap)"
CUT = "what was preferred or not was cut off"
BELOW = "no reward reaches the threshold (--choose.threshold)"
REASONS: Mapping[str, str] = {
    "fewer": FEWER, "none": NONE, "same": SAME, "tied": TIED, "close": GAP, "below": BELOW,
    "cut": CUT,
}  # fmt: skip
"""Number of the stage -> why a prompt gives nothing."""


class Usable(NamedTuple):
    """An answer that may be learnt from: its place in the example, and its reward less what its length costs."""

    place: int
    score: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """What became of an example: `examples` to learn from (several of single answers), or `reason`, why there are none.
    `left_out` counts answers that could not be used, by why."""

    examples: tuple[Example, ...]
    reason: str | None
    left_out: Mapping[str, int]


def choose(example: Example, config: ChooseConfig, *, answers: int, threshold: float | None, seed: int) -> Chosen:
    """What `config` takes of an example with ratings, of which `answers` responses were sampled; `seed` draws where
    something is by chance, the same for the same prompt wherever it stands. Yes/no labels count as rewards of 1 and 0.
    Where the feedback compares answers (people's pairs and rankings), these comparisons are what is taken, or the
    answer that wins most of them."""
    if any(isinstance(item, Pair | Ranking) for item in example.feedback):
        return _compared(example, config)
    usable, left_out = usable_answers(example, config)
    count = len(usable) + left_out["duplicates"]
    if count < answers and config.fewer == "skip":
        return Chosen((), FEWER, left_out)
    if not usable:
        return Chosen((), NONE, left_out)
    if config.take in ("best", "above"):
        kept = [one for one in usable if threshold is None or one.score >= threshold]
        if not kept:
            return Chosen((), BELOW, left_out)
        taken = [max(kept, key=lambda one: one.score)] if config.take == "best" else kept
        return Chosen(tuple(_alone(example, one) for one in taken), None, left_out)
    if len(usable) < 2:
        return Chosen((), SAME, left_out)
    if len({one.score for one in usable}) == 1:
        return Chosen((), TIED, left_out)
    if config.take == "ratings":
        return Chosen((_with_ratings(example, usable),), None, left_out)
    pairs = [(better, worse) for better, worse in paired(usable, config, seed) if _gap(better, worse) >= config.gap]
    if not pairs:
        return Chosen((), GAP, left_out)
    return Chosen((_with_pairs(example, pairs),), None, left_out)


def usable_answers(example: Example, config: ChooseConfig) -> tuple[list[Usable], Counter[str]]:
    """The answers that can be learnt from, each text once with the mean of its rewards, and why others cannot."""
    rewards = _rewards(example)
    tokens = example.meta.get(TOKENS)
    left_out: Counter[str] = Counter(unscored=0, unfinished=0, duplicates=0)
    kept: list[list[int]] = []
    for place, response in enumerate(example.responses):
        if not response.finished and config.unfinished == "drop":
            left_out["unfinished"] += 1
        elif twins := next((own for own in kept if same_answer(example.responses[own[0]], response)), None):
            left_out["duplicates"] += 1
            twins += [place] if place in rewards else []
        elif place not in rewards:
            left_out["unscored"] += 1
        else:
            kept.append([place])
    found = []
    for own in kept:
        score = math.fsum(rewards[place] for place in own) / len(own)
        if config.length_penalty:
            if not isinstance(tokens, list) or len(tokens) != len(example.responses):
                raise DataError(
                    f"{example.origin}: --choose.length_penalty needs the column '{TOKENS}' of the answers."
                )
            score -= config.length_penalty * tokens[own[0]]
        found.append(Usable(own[0], score))
    return found, left_out


def _rewards(example: Example) -> Mapping[int, float]:
    """What each answer is worth: its overall rating, or the share of yes among its yes/no labels."""
    labels: dict[int, list[bool]] = {}
    for item in example.feedback:
        if isinstance(item, Binary):
            labels.setdefault(item.response, []).append(item.label)
    return overall_ratings(example) or {index: sum(own) / len(own) for index, own in labels.items()}


def _compared(example: Example, config: ChooseConfig) -> Chosen:
    """What the comparisons of answers say, one vote each."""
    if config.take not in (*PAIRED, "best") or config.threshold is not None or config.gap or config.length_penalty:
        raise DataError(
            f"{example.origin}: its answers are compared, not rated: --choose.take best or pairs, without a threshold, "
            "a gap or a length penalty."
        )
    cut = [not response.finished and config.unfinished == "drop" for response in example.responses]
    left_out = Counter(unscored=0, unfinished=sum(cut), duplicates=0)
    votes = Counter((pair.chosen, pair.rejected) for pair in comparisons(example)[0])
    won = [two for two, count in sorted(votes.items()) if count > votes[two[1], two[0]]]
    if not won:
        return Chosen((), TIED, left_out)
    if config.take == "best":
        best = best_answers(example)[0]
        alone = replace(reduced(example, [best]), feedback=())
        return Chosen((), CUT, left_out) if cut[best] else Chosen((alone,), None, left_out)
    kept = [two for two in won if not any(cut[place] for place in two)]
    if not kept:
        return Chosen((), CUT, left_out)
    return Chosen((_paired_up(example, [Pair(*two) for two in kept]),), None, left_out)


def paired(usable: Sequence[Usable], config: ChooseConfig, seed: int) -> list[tuple[Usable, Usable]]:
    """(better, worse) of answers whose scores are not all equal; of equal ones the first counts."""
    if config.take == "all-pairs":
        ordered = sorted(usable, key=lambda one: (-one.score, one.place))
        return [(better, worse) for better, worse in combinations(ordered, 2) if better.score > worse.score]
    best = max(usable, key=lambda one: one.score)
    worse = [one for one in usable if one.score < best.score]
    match config.take:
        case "best-worst":
            other = min(worse, key=lambda one: one.score)
        case "best-random":
            other = random.Random(seed).choice(worse)
        case "best-margin":
            other = min(worse, key=lambda one: abs(_gap(best, one) - config.margin))
        case _:
            raise AssertionError(config.take)
    return [(best, other)]


def _gap(better: Usable, worse: Usable) -> float:
    return better.score - worse.score


def _alone(example: Example, one: Usable) -> Example:
    return replace(reduced(example, [one.place]), feedback=(Rating(0, {REWARD: one.score}),))


def _with_ratings(example: Example, usable: Sequence[Usable]) -> Example:
    ratings = tuple(Rating(index, {REWARD: one.score}) for index, one in enumerate(usable))
    return replace(reduced(example, [one.place for one in usable]), feedback=ratings)


def _with_pairs(example: Example, pairs: Sequence[tuple[Usable, Usable]]) -> Example:
    return _paired_up(example, [Pair(better.place, worse.place, _gap(better, worse)) for better, worse in pairs])


def _paired_up(example: Example, pairs: Sequence[Pair]) -> Example:
    """The example with these pairs, and the responses that stand in them."""
    used = sorted({place for pair in pairs for place in (pair.chosen, pair.rejected)})
    return replace(reduced(example, used), feedback=tuple(moved(pair, used.index) for pair in pairs))


def reduced(example: Example, places: Sequence[int]) -> Example:
    """The example with these responses alone, and their part of the columns that have one entry for each."""
    size = len(example.responses)
    meta = {
        name: [value[place] for place in places]
        if name in (TOKENS, FINISHED) and isinstance(value, list) and len(value) == size
        else value
        for name, value in example.meta.items()
    }
    return replace(example, responses=tuple(example.responses[place] for place in places), meta=meta)


# ---- the stage


def choose_from(
    loop: Loop, name: str, labelled: str | Path, config: ChooseConfig, *, answers: int, round: int = 1, seed: int = 0
) -> Path:
    """A file of what is learnt from the rows of `labelled`.

    Numbers of the stage: `prompts`, `kept` (prompts that give something), `rows`, `pairs`, prompts that give nothing by
    reason (`REASONS`), and answers that are not used: `unscored`, `unfinished`, `duplicates`. Raises DataError where
    no prompt gives anything."""

    def make(path: Path) -> Mapping[str, float]:
        return on_main(lambda: _write(path, Path(labelled), config, answers, round, seed))

    return loop.stage(name, make, reads=(labelled,), about=f"what is learnt from: {config.take}")


def threshold_of(config: ChooseConfig, round: int) -> float | None:
    """The threshold of a round, counted from 1."""
    return None if config.threshold is None else config.threshold + (round - 1) * config.threshold_step


def _write(
    path: Path, labelled: Path, config: ChooseConfig, answers: int, round: int, seed: int
) -> Mapping[str, float]:
    examples = read_answers(labelled)
    threshold = threshold_of(config, round)
    found = []
    for example in examples:
        own = seed_of(seed, *(turn.content for turn in example.prompt))
        found.append(choose(example, config, answers=answers, threshold=threshold, seed=own))
    rows = [row for each in found for row in each.examples]
    reasons = Counter(each.reason for each in found if each.reason is not None)
    left_out = sum((Counter(each.left_out) for each in found), Counter())
    said = [f"{count:,} of {len(examples):,} prompts: {reason}" for reason, count in reasons.most_common()]
    said += [f"{count:,} answers {why}" for why, count in left_out.most_common()]
    for sentence in said:
        log.warning(f"not learnt from: {sentence}")
    if not rows:
        raise DataError(_nothing(labelled, config, reasons, said))
    write_rows(map(to_row, rows), str(path))
    return {
        "prompts": len(examples),
        "kept": len(examples) - reasons.total(),
        "rows": len(rows),
        "pairs": sum(isinstance(item, Pair) for row in rows for item in row.feedback),
        **{name: reasons[reason] for name, reason in REASONS.items()},
        **{why: left_out[why] for why in ("unscored", "unfinished", "duplicates")},
    }


def _nothing(labelled: Path, config: ChooseConfig, reasons: Counter[str], said: Sequence[str]) -> str:
    what = "a pair" if config.take in PAIRED else "an answer to learn from"
    most = reasons.most_common(1)[0][0]
    advice = {
        FEWER: "Use what there is (--choose.fewer use), or longer answers (--sampling.max_new_tokens).",
        NONE: "Longer answers (--sampling.max_new_tokens), or another labeller.",
        SAME: "The policy says one thing alone: a higher --sampling.temperature, or an earlier start.",
        TIED: "What labels prefers none of the answers: another labeller, or answers that differ more.",
        GAP: "A smaller --choose.gap.",
        CUT: "Longer answers (--sampling.max_new_tokens), or --choose.unfinished keep.",
        BELOW: "A lower --choose.threshold or --choose.threshold_step.",
    }[most]
    return f"{labelled}: no prompt gives {what}. {'; '.join(said)}. {advice}"
