"""The reward models' part of a reward, spread over the tokens that it hangs on (`assent.models.attribution`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assent.config import RewardsConfig
from assent.data.tree import TokenTree
from assent.errors import ConfigError
from assent.rewards.ensemble import Ensemble
from assent.rewards.group import GroupReward, NonFiniteReward, WeightedSum
from assent.rewards.model import ModelReward

FLAG = "--rewards.credit"


@dataclass(frozen=True, slots=True)
class Credit:
    """Of an answer that the models reward with m = weight * reward, token t is credited with

        gradient   share * a_t,                           a_t = weight * <d reward / d e_t, e_t>
        absolute   share * m * |a_t| / sum_t |a_t|        nothing where all a_t are 0

    and its last token with what is then left of the whole reward, so that the sum over the answer stays the reward.
    The prompt's tokens are left out: they are the same for all answers. Of several models d reward is that of the rule
    that makes them one."""

    members: tuple[ModelReward, ...]
    ensemble: Ensemble | None
    weight: float
    share: float
    absolute: bool

    def __call__(self, trees: Sequence[TokenTree]) -> np.ndarray:
        """What each token of the trees is credited with beside what is left at the last, [N] float32. Every rank must
        call it. Raises NonFiniteReward where a gradient is not finite."""
        found = [member.attributed(trees) for member in self.members]
        own = np.stack([reward for reward, _ in found]).astype(np.float64)
        lengths = [int(branch.trained.sum()) for tree in trees for branch in tree.branches]
        slopes = np.ones_like(own) if self.ensemble is None else self.ensemble.slopes(own)
        parts = np.stack([part for _, part in found]).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            whole = self.weight * (np.repeat(slopes, lengths, axis=1) * parts).sum(0)
            if self.absolute:
                reward = self.weight * (own[0] if self.ensemble is None else self.ensemble.combine(own))
                whole = np.repeat(reward, lengths) * _shares(np.abs(whole), lengths)
            made = (self.share * whole).astype(np.float32)
        if not np.isfinite(made).all():
            raise NonFiniteReward(
                f"{FLAG}: the gradient of the reward by the embedding of a token is {made[~np.isfinite(made)][0]}; "
                "expected a number within float32. Use --rewards.credit last."
            )
        return made


def _shares(size: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Each token's share in its answer's sum, [N]; 0 where the sum is."""
    starts = np.cumsum([0, *lengths])[:-1]
    total = np.repeat(np.add.reduceat(size, starts), lengths) if len(size) else size
    return np.divide(size, total, out=np.zeros_like(size), where=total > 0)


def credit_of(source: GroupReward, config: RewardsConfig) -> Credit | None:
    """How rewards are spread over tokens; None where all stand at the last. Raises ConfigError where a reward model
    does not read the policy's own tokens."""
    if config.credit == "last":
        return None
    assert isinstance(source, WeightedSum)
    every = zip(source.sources, source.weights, strict=True)
    ((model, weight),) = [(one, weight) for one, weight in every if isinstance(one, ModelReward | Ensemble)]
    ensemble = model if isinstance(model, Ensemble) else None
    members = tuple(one for one in (ensemble.members if ensemble else (model,)) if isinstance(one, ModelReward))
    for member, path in zip(members, config.model, strict=True):
        if not member.reading.same_tokens:
            raise ConfigError(
                f"{FLAG} {config.credit}: {path} reads answers in the words of its own tokenizer or chat template, so "
                "its score does not hang on the policy's tokens. Give a reward model of the policy's family (assent "
                "reward --model.path POLICY), or use --rewards.credit last."
            )
    return Credit(members, ensemble, weight, config.credit_share, config.credit == "absolute")
