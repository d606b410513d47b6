"""Simulated annotators: Bradley-Terry choices on the gold reward, with noise, disagreement and biases.

An annotator shown `first` and `second` prefers the first with probability

    P = careless / 2 + (1 - careless) * sigmoid((u_first - u_second) / temperature + position_bias)
    u = worth + length_bias * words

where the worth of an answer is its gold reward or, for prompts of a kind that the annotator has a taste of their own
for, the sum of its gold attributes with the weights of that taste.

(Bradley and Terry 1952; the form used by arXiv 2203.02155). Without biases, an annotator agrees with the gold order of
a pair whose rewards differ by `gap` with probability careless / 2 + (1 - careless) * sigmoid(gap / temperature). The
default `PANEL` agrees with gold on 93 to 95 % of the pairs that `assent.lab.artifacts` draws, from 0.99 (ada) down to
0.9 (eve); the exact share of a built world stands in its world.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from assent.data.records import Example, Pair, Rating
from assent.lab.rubric import GoldScore
from assent.lab.world import AssistantWorld


@dataclass(frozen=True, slots=True)
class Annotator:
    """`temperature` is the lack of skill, in gold reward: a gap of that size is seen 73 % of the time. `length_bias` is
    what one more word is worth, in gold reward; `position_bias` is added to the logit of the answer shown first;
    `careless` is the share of labels given at random. `tastes` are weights of gold attributes by kind of prompt
    (`AssistantWorld.kind`), for those kinds that are not judged by the gold reward."""

    name: str
    temperature: float = 0.5
    length_bias: float = 0.0
    position_bias: float = 0.0
    careless: float = 0.0
    tastes: Mapping[str, Mapping[str, float]] | None = None

    def worth(self, gold: GoldScore, kind: str = "") -> float:
        """What an answer to a prompt of this kind is worth to the annotator, without biases."""
        taste = (self.tastes or {}).get(kind)
        if taste is None:
            return gold.reward
        return sum(weight * getattr(gold, name) for name, weight in taste.items())


PANEL = (
    Annotator("ada", temperature=0.3, length_bias=0.02),
    Annotator("bo", temperature=0.4, length_bias=0.03, position_bias=0.1, careless=0.02),
    Annotator("cleo", temperature=0.5, length_bias=0.03, careless=0.04),
    Annotator("dan", temperature=0.6, length_bias=0.04, position_bias=0.2, careless=0.04),
    Annotator("eve", temperature=0.8, length_bias=0.05, position_bias=-0.1, careless=0.06),
)
"""Five annotators from skilled to hasty, all with a mild taste for length: something a reward model can learn and a
policy can exploit."""


def preference_logit(annotator: Annotator, texts: Sequence[str], golds: Sequence[GoldScore], kind: str = "") -> float:
    """The logit with which the first of two texts is preferred to the second by an annotator who is not careless, as
    answers to a prompt of this kind."""
    first, second = (
        annotator.worth(gold, kind) + annotator.length_bias * len(text.split())
        for text, gold in zip(texts, golds, strict=True)
    )
    return (first - second) / annotator.temperature + annotator.position_bias


def judge(
    annotator: Annotator, texts: Sequence[str], golds: Sequence[GoldScore], rng: np.random.Generator, kind: str = ""
) -> tuple[bool, int]:
    """Whether the annotator prefers the first of two texts, shown in this order, and how clearly: 1 slightly,
    2 plainly, 3 strongly (HelpSteer2's scale)."""
    # logistic noise on the logit makes the choice Bradley-Terry; how far from 0 it ends is how sure the annotator feels
    felt = preference_logit(annotator, texts, golds, kind) + rng.logistic()
    if rng.random() < annotator.careless:
        return bool(rng.integers(2)), int(rng.integers(1, 4))
    return bool(felt > 0), 1 + int(np.searchsorted((1.5, 5.0), abs(felt)))


def rate(annotator: Annotator, text: str, gold: GoldScore, rng: np.random.Generator) -> dict[str, float]:
    """HelpSteer ratings, whole numbers from 0 to 4: the gold attributes with normal noise of standard deviation
    `temperature`; words add to helpfulness by `length_bias`. A careless rating is random."""
    true = np.array(list(gold.attributes().values()))
    noisy = true + annotator.temperature * rng.standard_normal(len(true))
    noisy[0] += annotator.length_bias * len(text.split())
    guess = rng.integers(0, 5, len(true)).astype(float)
    scores = guess if rng.random() < annotator.careless else np.clip(np.round(noisy), 0, 4)
    return dict(zip(gold.attributes(), scores.tolist(), strict=True))


def labelled(
    world: AssistantWorld,
    example: Example,
    annotators: Sequence[Annotator],
    rng: np.random.Generator,
    ratings: bool = False,
) -> Example:
    """The example with every annotator's `Pair` for every two of its responses, shown in random order, and with
    `ratings` also a `Rating` of each response."""
    texts = [response.text for response in example.responses]
    golds = [world.gold(example.prompt, text) for text in texts]
    kind = world.kind(example.prompt)
    feedback: list[Pair | Rating] = []
    for annotator in annotators:
        for shown in combinations(range(len(texts)), 2):
            first, second = shown if rng.random() < 0.5 else shown[::-1]
            prefers_first, strength = judge(
                annotator, (texts[first], texts[second]), (golds[first], golds[second]), rng, kind
            )
            chosen, rejected = (first, second) if prefers_first else (second, first)
            feedback.append(Pair(chosen, rejected, float(strength), annotator.name))
        if ratings:
            feedback += [
                Rating(i, rate(annotator, text, golds[i], rng), annotator.name) for i, text in enumerate(texts)
            ]
    return replace(example, feedback=(*example.feedback, *feedback))
