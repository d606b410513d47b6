"""Which pairs of answers are worth labelling: where reward models disagree, or cannot tell two answers apart."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from assent.config import SourceConfig
from assent.config.curate import CurateConfig, PairsConfig
from assent.data.formats.fields import same_answer
from assent.data.formats.load import moved
from assent.data.records import Binary, Critique, Example, Feedback, Pair, Ranking, Rating
from assent.distributed import World
from assent.errors import ConfigError
from assent.people.curate.sieve import Fate
from assent.rewards.group import Scores
from assent.rewards.model import ModelReward
from assent.rewards.outside import Outside, open_source
from assent.rewards.pool import end_workers
from assent.rewards.scoring import scored_chunks
from assent.train.progress import ProgressDisplay

log = logging.getLogger(__name__)

ALONE = "fewer than two different answers"
UNSCORED = "no two different answers were scored by all sources"
OTHERS = "other pairs say more"
BY_CHANCE = "not drawn"


@dataclass(frozen=True)
class Ranked:
    """For each row its pair and what it is worth, more is sooner; or why it has none. `members` are opinions."""

    pairs: list[tuple[int, int] | None]
    worth: np.ndarray
    fates: list[Fate | None]
    members: int = 0
    unscored: Mapping[str, int] = field(default_factory=dict)


def check_pairs(config: PairsConfig) -> None:
    """Raises ConfigError for options that do not fit."""
    asks = config.pairs in ("disagreement", "margin")
    if asks and not config.source:
        raise ConfigError(f"--choose.pairs {config.pairs} asks reward models. Give --choose.source FOLDER...")
    if not asks and config.source:
        raise ConfigError("--choose.source is read only with --choose.pairs disagreement or margin.")
    if twice := [word for word, count in Counter(config.source).items() if count > 1]:
        raise ConfigError(f"--choose.source: {twice[0]} is there twice, and would be no second opinion.")
    if config.pairs == "none" and config.budget is not None:
        raise ConfigError("--choose.budget is about pairs. Give --choose.pairs disagreement, margin or random.")


def ranked(examples: Sequence[Example], config: CurateConfig, world: World) -> Ranked:
    """The pair of each row, by `config.choose`. Raises as sources do, ConfigError where there is one opinion alone for
    a disagreement."""
    how = config.choose
    rng = np.random.default_rng([config.seed, 1])
    options = [_different(example) for example in examples]
    if how.pairs == "random":
        picked = [pairs[int(rng.integers(len(pairs)))] if pairs else None for pairs in options]
        fates = [None if pairs else Fate(ALONE) for pairs in options]
        return Ranked(picked, rng.permutation(len(examples)).astype(float), fates)
    scores, unscored = _scores(examples, how, config, world)
    ends = np.cumsum([len(example.responses) for example in examples])
    found: list[tuple[int, int] | None] = []
    worth = np.full(len(examples), -np.inf)
    fates = []
    for row, (pairs, end) in enumerate(zip(options, ends, strict=True)):
        own = scores[:, end - len(examples[row].responses) : end]
        values = [worth_of(how.pairs, own[:, first] - own[:, second]) for first, second in pairs]
        known = [place for place, value in enumerate(values) if not np.isnan(value)]
        best = max(known, key=values.__getitem__) if known else None
        found.append(None if best is None else pairs[best])
        worth[row] = -np.inf if best is None else values[best]
        fates.append(None if best is not None else Fate(UNSCORED if pairs else ALONE))
    return Ranked(found, worth, fates, len(scores), unscored)


def worth_of(how: str, gaps: np.ndarray) -> float:
    """What a label of two answers is worth whose rewards differ by `gaps` [K] in the K opinions: the standard deviation
    of sigmoid(gap), the probability that the first is better (Bradley and Terry 1952), or minus the size of the mean
    gap. NaN where an opinion is missing."""
    if how == "margin":
        return -abs(float(gaps.mean()))
    return float((0.5 * (1 + np.tanh(gaps / 2))).std())


def _different(example: Example) -> list[tuple[int, int]]:
    answers = example.responses
    return [(i, j) for i, j in combinations(range(len(answers)), 2) if not same_answer(answers[i], answers[j])]


def first_of(found: Ranked, budget: int | None) -> tuple[list[int], list[Fate | None]]:
    """Places of the rows whose pair comes first, at most `budget`, in that order; and why others do not."""
    order = [row for row in np.argsort(-found.worth, kind="stable").tolist() if found.pairs[row] is not None]
    taken = order[: budget or len(order)]
    if budget is not None and len(taken) < budget:
        log.warning(f"--choose.budget {budget}: there are only {len(taken)} pairs; all of them are taken")
    fates = list(found.fates)
    for row in order[len(taken) :]:
        fates[row] = Fate(OTHERS if found.members else BY_CHANCE)
    return taken, fates


def only(example: Example, pair: tuple[int, int]) -> Example:
    """The example with these two answers, and what its feedback says of them."""
    places = sorted(pair)

    def kept(item: Feedback) -> Feedback | None:
        match item:
            case Pair():
                there = {item.chosen, item.rejected} == set(places)
            case Ranking():
                levels = tuple(left for level in item.levels if (left := tuple(x for x in level if x in places)))
                item, there = replace(item, levels=levels), sum(map(len, levels)) == 2
            case Rating() | Binary() | Critique():
                there = item.response in places
        return moved(item, places.index) if there else None

    feedback = tuple(item for item in map(kept, example.feedback) if item is not None)
    return replace(example, responses=tuple(example.responses[place] for place in places), feedback=feedback)


# ---- what sources say


def _scores(
    examples: Sequence[Example], how: PairsConfig, config: CurateConfig, world: World
) -> tuple[np.ndarray, Mapping[str, int]]:
    """The rewards of all answers, [K, S], and why some have none. Sources are asked one after the other, so that one
    model is in memory at once."""
    opinions: list[np.ndarray] = []
    unscored = Counter[str]()
    bare = [replace(example, feedback=()) for example in examples]
    try:
        for word in how.source:
            source = open_source(
                SourceConfig((word,), precision=config.precision, trust_remote_code=config.trust_remote_code), world
            )
            heads = _heads(source)
            if how.pairs == "disagreement" and len(how.source) == 1 and len(heads) < 2:
                raise ConfigError(
                    "--choose.pairs disagreement needs two opinions or more. Got one: give several to --choose.source, "
                    "or a reward model with --ensemble.heads; or --choose.pairs margin."
                )
            source.check(bare)
            own = _asked(word, source, heads, bare, unscored)
            del source
            opinions += own
    finally:
        end_workers()
    return np.stack(opinions), dict(unscored)


def _heads(source: Outside) -> list[str]:
    """Of reward models with several heads for the same reward, what their parts are called."""
    return [f"{s.name}/{m}" for s in source.source.sources if isinstance(s, ModelReward) for m in s.members]


def _asked(
    word: str, source: Outside, heads: Sequence[str], examples: Sequence[Example], unscored: Counter[str]
) -> list[np.ndarray]:
    """[S] of a source; of a reward model with `heads`, of each."""
    found: list[list[np.ndarray]] = []
    done = 0
    with ProgressDisplay(total=len(examples), label=f"score: {word.partition('=')[0]}") as progress:
        for portion, scores in scored_chunks(source.source, examples, source.chat, max_length=source.max_length):
            found.append(_opinions(scores, heads))
            unscored.update(why for why in scores.reasons() if why is not None)
            done += len(portion)
            progress.update(done, f"{done:,} rows")
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _opinions(scores: Scores, heads: Sequence[str]) -> list[np.ndarray]:
    missing = np.full(len(scores.values), np.nan)
    return [scores.parts.get(head, missing) for head in heads] or [scores.values]
