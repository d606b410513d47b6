"""What a rollout engine is: prompts in; token ids, their log-probabilities and why they stopped out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from assent.config import SamplingConfig


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response.

    ids       [n] int64    its tokens; the last is an EOS where `finished`
    logprobs  [n] float32  log-probability of each token under softmax(logits / temperature) of the whole vocabulary,
                           that is before top-k and top-p (at temperature 1 where the temperature is 0)
    finished  whether it ended with an EOS (otherwise it reached `max_new_tokens`)
    """

    ids: np.ndarray
    logprobs: np.ndarray
    finished: bool

    def __len__(self) -> int:
        return len(self.ids)


class Engine(Protocol):
    """Samples responses. The same prompts, sampling and seed give the same responses."""

    def generate(
        self, prompts: Sequence[np.ndarray], n: int, sampling: SamplingConfig, seed: int, first: int = 0
    ) -> list[list[Completion]]:
        """`n` responses to each of P prompts (token ids): P lists of n. `first` is the number of the first prompt
        where these are one rank's share of a longer list."""
        ...

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes over new weights, named as in the Hugging Face model."""
        ...
