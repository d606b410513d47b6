"""A small world in which rewards are hacked: answers of a few words whose gold reward is known, and reward models
of words and pairs of words, fitted to few noisy preferences.

A prompt asks for two things. A word is worth something of its own, and more or less for what is asked, once an answer;
after each word there are some that may follow, and each other transition costs `SLIP`. Demonstrations slip rarely, so
preferences hardly tell what slips are worth: a reward model learns the words' worth, and of slips its own noise. A
policy that is held loosely first learns the words (gold rises), then the slips that its reward model happens to like
(gold falls, the reward still rises). A second reward model, of other preferences, has other noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize

WORDS = "ba ce di fo gu ha ke li mo nu pa re so ta vu we".split()
FOLLOWERS, SLIPS, SLIP = 5, 0.08, 1.5
"""Words that may follow one, share of transitions of demonstrations that slip, what a slip costs."""
REPEAT = 0.5
"""What a word costs that was said before."""
WORTH, ASKED, SKILL = 0.25, 0.5, 0.1
"""Mean worth of words; its deviation by what is asked; how much better words are preferred in demonstrations."""
SHORTEST, LONGEST = 3, 7
TEMPERATURE = 1.0
"""Of preferences: a gap of this size in gold is seen 73 % of the time."""


@dataclass(frozen=True)
class WordWorld:
    """The world of a seed; no state beyond it."""

    seed: int

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        rng, size = np.random.default_rng([self.seed, 7]), len(WORDS)
        worth = rng.normal(0, 1, size) + rng.normal(0, ASKED, (size, size))
        worth += WORTH - worth.mean()
        follows = np.zeros((size, size), bool)
        for word in range(size):
            follows[word, rng.choice(np.delete(np.arange(size), word), FOLLOWERS, replace=False)] = True
        return worth, follows

    def prompts(self) -> list[str]:
        """All of them."""
        return [f"{one} {other}" for one in WORDS for other in WORDS if one != other]

    def gold(self, prompt: str, answer: str) -> float:
        """What an answer is worth."""
        worth, follows = self._tables
        asked, said = ids(prompt), ids(answer)
        slips = sum(not follows[a, b] for a, b in zip(said, said[1:], strict=False))
        again = len(said) - len(set(said))
        return float(sum(worth[asked, word].mean() for word in set(said)) - SLIP * slips - REPEAT * again)

    def answer(self, prompt: str, rng: np.random.Generator) -> str:
        """A demonstration."""
        worth, follows = self._tables
        liked = np.exp(SKILL * worth[ids(prompt)].mean(0))
        said = [int(rng.choice(len(WORDS), p=liked / liked.sum()))]
        for _ in range(int(rng.integers(SHORTEST, LONGEST + 1)) - 1):
            may = ~follows[said[-1]] if rng.random() < SLIPS else follows[said[-1]]
            said.append(int(rng.choice(len(WORDS), p=liked * may / (liked * may).sum())))
        return " ".join(WORDS[word] for word in said)

    def preferences(self, number: int, rng: np.random.Generator) -> list[tuple[str, str, str]]:
        """Prompt, chosen and rejected answer, by Bradley-Terry on the gold reward."""
        asked, rows = self.prompts(), []
        for _ in range(number):
            prompt = asked[rng.integers(len(asked))]
            first, second = self.answer(prompt, rng), self.answer(prompt, rng)
            gap = self.gold(prompt, first) - self.gold(prompt, second)
            if rng.random() > 1 / (1 + np.exp(-gap / TEMPERATURE)):
                first, second = second, first
            rows.append((prompt, first, second))
        return rows


def ids(text: str) -> list[int]:
    """The words of a text that are words of the world, as numbers."""
    return [WORDS.index(word) for word in text.split() if word in WORDS]


def features(answer: str) -> np.ndarray:
    """How often each word and each pair of neighbours is in an answer, and how many words it has."""
    said, size = ids(answer), len(WORDS)
    counts = np.zeros(size + size * size + 1)
    np.add.at(counts, said, 1)
    np.add.at(counts, [size + size * a + b for a, b in zip(said, said[1:], strict=False)], 1)
    counts[-1] = len(said)
    return counts


def fitted(pairs: Sequence[tuple[str, str, str]], ridge: float) -> np.ndarray:
    """The weights of a linear reward by penalised maximum likelihood of Bradley-Terry."""
    gaps = np.array([features(chosen) - features(rejected) for _, chosen, rejected in pairs])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = gaps @ weights
        slope = -1 / (1 + np.exp(margins))
        return float(np.logaddexp(0, -margins).sum() + ridge / 2 * weights @ weights), gaps.T @ slope + ridge * weights

    found = minimize(loss, np.zeros(gaps.shape[1]), jac=True, method="L-BFGS-B")
    return np.asarray(found.x)
