"""From the rewards of a rollout to an advantage for each of its tokens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.algorithms.rollouts import GIVEN, attach, response_field, response_lengths, token_field
from assent.config import METHODS, OnlineConfig, keywords, method_of
from assent.data.tree import TokenTree
from assent.losses import (
    discounted_returns,
    explained_variance,
    gae,
    group_advantages,
    kl_estimate,
    leave_one_out,
    whiten,
)


def credit(trees: list[TokenTree], config: OnlineConfig, kl_coef: float) -> tuple[list[TokenTree], dict[str, float]]:
    """Adds per-token `advantages` (and `returns` for the critic) by the method's rule; gives the rollout's metrics.

    With the KL in the reward, every token that the policy sampled has a reward of its own, -kl_coef * KL. The answer's
    reward (`shaped`) stands at its last token, or is compared as a whole, its KL included, with other answers to the
    prompt. Of a token's own KL only k1 has a policy gradient that holds it: the full KL is the same whatever was
    sampled, and the gradients of k2 and k3 vanish near the reference. So to that token's advantage, and to no other,
    -kl_coef * (k1 - estimate) is added (arXiv 2504.10637)."""
    row, options = METHODS[method_of(config)], keywords(config.loss)
    lengths = torch.from_numpy(response_lengths(trees))
    response = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    reward = torch.from_numpy(response_field(trees, "shaped")).double()  # float32 could not hold the squares of many
    tokens = own = torch.zeros(len(response), dtype=torch.float64)
    if kl_coef > 0 and config.kl.place == "reward":
        tokens = -kl_coef * _kl(trees, config.kl.estimator)
        if config.kl.estimator != "k1":
            own = -kl_coef * _kl(trees, "k1") - tokens
    metrics: dict[str, float] = {}
    fields: dict[str, Tensor] = {}
    if row.advantage in ("gae", "return"):
        tokens = tokens.index_add(0, lengths.cumsum(0) - 1, reward)
        if row.advantage == "gae":
            values = torch.from_numpy(token_field(trees, "values")).double()
            advantages = gae(tokens, values, response, **_of(gae, options))
            fields["returns"] = advantages + values
            explained = float(explained_variance(values, fields["returns"]))
            if not math.isnan(explained):  # the returns vary
                metrics["explained_variance"] = explained
        else:
            advantages = discounted_returns(tokens, response, **_of(discounted_returns, options))
    else:
        whole = reward + tokens.new_zeros(len(lengths)).index_add(0, response, tokens)
        advantages = _compared(trees, whole, row.advantage, options)[response]
    advantages = advantages + own
    if options.get("whiten"):
        advantages = whiten(advantages)
    fields["advantages"] = advantages
    return _attach_all(trees, fields), metrics | _signal(trees)


def no_signal(trees: Sequence[TokenTree]) -> np.ndarray:
    """Which prompts have only answers of one and the same reward, [P] bool."""
    rewards = (tree.per_response["reward"] for tree in trees)
    return np.array([values.min() == values.max() for values in rewards])


def _kl(trees: Sequence[TokenTree], estimator: str) -> Tensor:
    """KL from the reference at each token, [N]."""
    if estimator == "full":
        kl = torch.from_numpy(token_field(trees, "kl")).double()
    else:
        old, reference = (torch.from_numpy(token_field(trees, name)).double() for name in ("old", "reference"))
        kl = kl_estimate(old, reference, estimator=estimator)
    if GIVEN in trees[0].branches[0].per_token:
        kl = kl * (1 - torch.from_numpy(token_field(trees, GIVEN)))
    return kl


def _compared(trees: Sequence[TokenTree], rewards: Tensor, advantage: str, options: Mapping[str, Any]) -> Tensor:
    """The advantage of each answer, [S]."""
    prompt = torch.repeat_interleave(torch.tensor([len(tree.branches) for tree in trees]))
    if advantage == "greedy":
        return rewards - torch.from_numpy(response_field(trees, "baseline"))
    if advantage == "leave_one_out":
        return leave_one_out(rewards, prompt)
    return group_advantages(rewards, prompt, **_of(group_advantages, options))


def _signal(trees: Sequence[TokenTree]) -> dict[str, float]:
    """The share of groups without signal, where there are groups."""
    if all(len(tree.branches) == 1 for tree in trees):
        return {}
    return {"no_signal": float(no_signal(trees).mean())}


def _of(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that a function has."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


def _attach_all(trees: Sequence[TokenTree], per_token: Mapping[str, Tensor]) -> list[TokenTree]:
    cuts = np.cumsum([tree.num_trained for tree in trees])[:-1]
    split = {name: np.split(values.float().numpy(), cuts) for name, values in per_token.items()}
    return [attach(tree, {name: parts[i] for name, parts in split.items()}, {}) for i, tree in enumerate(trees)]
