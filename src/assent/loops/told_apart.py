"""What a reward model says of answers that it was not trained on: golden answers against a policy's own, pairs that
people compared, and, where somebody knows what is true, the policy's answers among themselves."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from assent.config import SourceConfig
from assent.data.dataset import prompt_id
from assent.data.formats import load_examples
from assent.data.golden import GoldenView, by_prompt, samples_view
from assent.data.records import Example, Pair
from assent.data.views import pair_view
from assent.distributed import World, on_main
from assent.errors import DataError
from assent.evaluate.scores import gold
from assent.measures.accuracy import accuracy
from assent.measures.calibration import calibration
from assent.outputs import write_text
from assent.rewards.group import Scores
from assent.rewards.outside import open_source
from assent.rewards.pool import end_workers
from assent.statistics import Interval, mean_interval


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Examples that a reward model is measured on. `golden` are golden answers with the samples of their prompts and
    `pairs` what people compared, both with `Pair` feedback; `answers` are all samples, those that are unfinished or
    equal to golden ones as well."""

    golden: tuple[Example, ...]
    pairs: tuple[Example, ...]
    answers: tuple[Example, ...]
    same: int = 0
    """Samples that are equal to a golden answer."""


def held_out(golden: Path, answers: Path, pairs: str | Path | None) -> HeldOut:
    """What these files hold; without `pairs` there are none. Raises DataError where no golden answer has a sample to be
    told from, and where there are no pairs in a file of them."""
    sampled = load_examples(str(answers)).examples
    view = GoldenView(by_prompt(samples_view(sampled)[0]))
    kept, _ = view(load_examples(str(golden)).examples)
    compared = [] if pairs is None else pair_view(load_examples(str(pairs)).examples)[0]
    return HeldOut(tuple(kept), tuple(compared), tuple(each for each in sampled if each.responses), view.same)


def told_apart(
    path: Path, held: HeldOut, reward_model: SourceConfig, scorer: str | None, world: World
) -> Mapping[str, float]:
    """Numbers, also written to `path`:

    golden/X   `accuracy` of the reward model on golden answers against samples, with its interval (`_low`, `_high`);
               `ties`, pairs in all (`n`) and without two rewards (`missing`); `ece`, and what it is by chance alone
               (`ece_chance`); samples that were left out because they are equal to a golden answer (`same`)
    pairs/X    the same on what people compared
    samples/X  the same on samples of one prompt that differ by the scorer
    policy/X   mean of the reward (`reward`) and, by the scorer, `gold` of all samples, each with `_low` and `_high`

    Every rank must call it. Raises as `open_source`; DataError where the reward model gives all the same reward."""
    everything = [*held.golden, *held.pairs, *held.answers]
    scores = _scores(everything, reward_model, world)
    cut = np.cumsum([0, *(len(each.responses) for each in everything)])
    first, second = len(held.golden), len(held.golden) + len(held.pairs)
    parts = [scores.values[cut[a] : cut[b]] for a, b in ((0, first), (first, second), (second, len(everything)))]
    known = scores.values[~np.isnan(scores.values)]
    if len(known) and np.ptp(known) == 0:
        raise DataError(
            f"{reward_model.source[0]} gives all {len(known):,} held-out answers the same reward ({known[0]:g}), so it "
            "prefers nothing. Train another one to begin with, or lower the learning rate."
        )
    found = {
        **_told("golden", *gaps(held.golden, parts[0])),
        "golden/same": float(held.same),
        **_told("pairs", *gaps(held.pairs, parts[1])),
        **_mean("policy/reward", held.answers, parts[2]),
    }
    if scorer is not None:
        truth = on_main(lambda: _gold(held.answers, scorer))
        ordered = by_truth(held.answers, truth)
        found |= _told("samples", *gaps(ordered, parts[2])) | _mean("policy/gold", held.answers, truth)
    on_main(lambda: write_text(path, json.dumps(_plain(found), indent=1) + "\n"))
    return found


def at_chance(numbers: Mapping[str, float | None]) -> bool:
    """Whether the interval of the accuracy on golden answers includes one half."""
    low, high = numbers["golden/accuracy_low"], numbers["golden/accuracy_high"]
    return low is not None and high is not None and low <= 0.5 <= high


def _scores(examples: Sequence[Example], source: SourceConfig, world: World) -> Scores:
    outside = open_source(source, world)
    try:
        outside.check(examples)
        return outside.score(examples)
    finally:
        end_workers()
        del outside
        gc.collect()  # before the next stage loads its models


def _gold(examples: Sequence[Example], scorer: str) -> np.ndarray:
    """[S]: what the user's function says of each answer, NaN where it has no opinion."""
    score = gold(scorer, examples)
    found = [score(example.prompt, response.text) for example in examples for response in example.responses]
    return np.array([np.nan if value is None else value for value in found], np.float64)


def gaps(examples: Sequence[Example], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair reward(chosen) - reward(rejected), NaN where one is unscored, and the prompt: [M] each. `values` are
    the rewards of all responses in order."""
    found, prompts, start = [], [], 0
    for example in examples:
        for item in example.feedback:
            if isinstance(item, Pair):
                found.append(values[start + item.chosen] - values[start + item.rejected])
                prompts.append(prompt_id(example))
        start += len(example.responses)
    return np.array(found, float), np.array(prompts, object)


def by_truth(examples: Sequence[Example], truth: np.ndarray) -> list[Example]:
    """The examples with a pair for every two responses of different `truth` [S]; unscored ones are in none."""
    made, start = [], 0
    for example in examples:
        own = truth[start : start + len(example.responses)]
        start += len(own)
        pairs = [Pair(*((i, j) if own[i] > own[j] else (j, i))) for i, j in _differing(own)]
        made.append(replace(example, feedback=tuple(pairs)))
    return made


def _differing(values: np.ndarray) -> list[tuple[int, int]]:
    known = [index for index, value in enumerate(values) if not np.isnan(value)]
    return [(i, j) for i, j in combinations(known, 2) if values[i] != values[j]]


def _told(name: str, gap: np.ndarray, prompt: np.ndarray) -> dict[str, float]:
    """Accuracy and calibration; nothing where there are no pairs."""
    if not len(gap):
        return {}
    right, calibrated = accuracy(gap, prompt), calibration(gap, prompt)
    numbers: dict[str, float | None] = {
        "accuracy": right.right.mean,
        "accuracy_low": right.right.low,
        "accuracy_high": right.right.high,
        "ties": right.ties,
        "n": len(gap),
        "missing": right.right.missing,
        "ece": calibrated.ece.value,
        "ece_chance": calibrated.chance.value,
        "ece_chance_low": calibrated.chance.low,
        "ece_chance_high": calibrated.chance.high,
    }
    return {f"{name}/{key}": float("nan") if value is None else float(value) for key, value in numbers.items()}


def _mean(name: str, examples: Sequence[Example], values: np.ndarray) -> dict[str, float]:
    labels = [prompt_id(example) for example in examples for _ in example.responses]
    interval: Interval = mean_interval(values, labels)
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}
