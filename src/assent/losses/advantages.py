"""Advantages of the tokens of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from assent.losses._shapes import check_shapes, check_sorted

SCALES = ("group", "batch", "none")
"""What `group_advantages` divides by."""

REDUCTIONS = ("token", "response", "fixed")
"""How `token_weights` makes one number of the losses of a step."""


def gae(
    token_rewards: Tensor, values: Tensor, response: Tensor, *, gamma: float, lam: float, steps: int | None = None
) -> Tensor:
    """Generalised advantage estimation; each response is an episode that ends at its last token (arXiv 1506.02438).

        delta[t]      = token_rewards[t] + gamma * values[t + 1] - values[t]
        advantages[t] = delta[t] + gamma * lam * advantages[t + 1]

    with values and advantages 0 after the last token of a response. The critic's targets are `advantages + values`.
    With lam 0 they are 1-step, with lam 1 all rewards to come less the value. `steps` ends the sum early:

        advantages[t] = sum over k < steps of (gamma * lam)^k * delta[t + k]         with lam 1: n-step returns

    token_rewards  [N]  reward for each token
    values         [N]  the critic's value of the state before each token
    response       [N]  which response each token belongs to, never decreasing
    steps               how many deltas are summed, at least 1; None: all to the end of the response

    Returns [N]. Raises ValueError when shapes differ, `response` decreases or `steps` is below 1.
    """
    check_shapes("gae", "N", token_rewards=token_rewards, values=values, response=response)
    check_sorted("gae", response)
    if steps is not None and steps < 1:
        raise ValueError(f"gae: expected steps of at least 1; got {steps}.")

    delta = token_rewards - values
    if len(values) > 1:
        delta = delta + gamma * _ahead(values, response, 1)
    total = _discounted_sum(delta, response, gamma * lam)
    if steps is None or steps >= len(values):
        return total
    return total - (gamma * lam) ** steps * _ahead(total, response, steps)


def discounted_returns(token_rewards: Tensor, response: Tensor, *, gamma: float) -> Tensor:
    """What is still to come: the advantages of REINFORCE without a baseline. With gamma 1, KL in the rewards and
    `whiten` over the whole step they are REINFORCE++'s (arXiv 2501.03262).

        returns[t] = token_rewards[t] + gamma * returns[t + 1],   0 after the last token of a response

    token_rewards  [N]  reward for each token
    response       [N]  which response each token belongs to, never decreasing
    gamma               how much a reward loses per token

    Returns [N]. Raises ValueError when the shapes differ or `response` decreases.
    """
    check_shapes("discounted_returns", "N", token_rewards=token_rewards, response=response)
    check_sorted("discounted_returns", response)
    return _discounted_sum(token_rewards, response, gamma)


def group_advantages(rewards: Tensor, prompt: Tensor, *, scale: str, epsilon: float = 1e-4) -> Tensor:
    """Each answer against the others to its prompt (arXiv 2402.03300; without a scale 2503.20783).

        centred    = rewards - mean(rewards of the prompt)
        advantages = centred / (std(rewards of the prompt) + epsilon)     scale "group"  GRPO
        advantages = centred / (std(all rewards) + epsilon)               scale "batch"
        advantages = centred                                              scale "none"   Dr. GRPO

    std is the sample's, with n - 1. A NaN reward means unscored: it is left out of every mean and std, and its
    advantage is 0; so is that of an answer whose prompt has no other scored one.

    rewards  [S]  reward of each response; all of the step where scale is "batch"
    prompt   [S]  which prompt each response belongs to, never decreasing
    scale         a name in `SCALES`
    epsilon       keeps prompts whose answers are all alike from being divided by 0

    Returns [S]. Raises ValueError when the shapes differ, `prompt` decreases or the scale is unknown.
    """
    if scale not in SCALES:
        raise ValueError(f"group_advantages: expected a scale among {', '.join(SCALES)}; got {scale!r}.")
    centred, group, count = _centred("group_advantages", rewards, prompt)
    if scale == "none":
        return centred
    if scale == "group":
        variance = count.new_zeros(len(count)).index_add(0, group, centred**2) / (count - 1).clamp(min=1)
        std = variance.sqrt()[group]
    else:
        scored = rewards[~rewards.isnan()]
        std = scored.std() if len(scored) > 1 else rewards.new_zeros(())
    return centred / (std + epsilon)


def leave_one_out(rewards: Tensor, prompt: Tensor) -> Tensor:
    """RLOO: each answer against the mean of the other answers to its prompt (arXiv 2402.14740).

        advantages[i] = rewards[i] - mean of rewards[j] over j != i with prompt[j] = prompt[i]

    A NaN reward means unscored: it is left out of every mean, and its advantage is 0; so is that of an answer whose
    prompt has no other scored one.

    rewards  [S]  reward of each response
    prompt   [S]  which prompt each response belongs to, never decreasing

    Returns [S]. Raises ValueError when the shapes differ or `prompt` decreases.
    """
    centred, group, count = _centred("leave_one_out", rewards, prompt)
    # Of n answers, one less the mean of the others is n / (n - 1) times that one less the mean of all.
    return centred * (count / (count - 1).clamp(min=1))[group]


def greedy_baseline(rewards: Tensor, greedy: Tensor) -> Tensor:
    """ReMax: each response against the prompt's most likely one (arXiv 2310.10505).

        advantages = rewards - greedy

    rewards  [S]  reward of each response
    greedy   [S]  reward of the response to the same prompt at temperature 0

    Returns [S]. Raises ValueError when the shapes differ.
    """
    check_shapes("greedy_baseline", "S", rewards=rewards, greedy=greedy)
    return rewards - greedy


def whiten(
    x: Tensor, *, shift_mean: bool = True, mean: Tensor | None = None, var: Tensor | None = None, eps: float = 1e-8
) -> Tensor:
    """Scales to variance 1 and, with `shift_mean`, to mean 0: PPO's advantages, and REINFORCE++'s (arXiv 2501.03262).

        (x - mean) / sqrt(var + eps)   (+ mean without shift_mean)

    x          [N]
    mean, var  []  statistics over all ranks or micro-batches, so that every part is scaled alike; default: those of
                   `x` (population variance)

    Returns [N]; a constant `x` becomes 0 (or stays `mean`). Raises ValueError when `x` is not a vector or only one of
    `mean` and `var` is given.
    """
    check_shapes("whiten", "N", x=x)
    if (mean is None) != (var is None):
        raise ValueError("whiten: give both `mean` and `var`, or neither.")
    if mean is None or var is None:
        mean, var = x.mean(), x.var(correction=0)
    scaled = (x - mean) * torch.rsqrt(var + eps)
    return scaled if shift_mean else scaled + mean


def token_weights(
    lengths: Tensor,
    response: Tensor,
    *,
    reduction: str,
    num_tokens: int,
    num_responses: int,
    max_length: int | None = None,
) -> Tensor:
    """How much each token counts in the loss of a step, which is the sum of `weights * losses` over its micro-batches.

        weights = 1 / num_tokens                                reduction "token"     DAPO, arXiv 2503.14476
        weights = 1 / (num_responses * lengths[response])       reduction "response"  GRPO, arXiv 2402.03300
        weights = 1 / (num_responses * max_length)              reduction "fixed"     Dr. GRPO, arXiv 2503.20783

    lengths        [S]  tokens of each response here
    response       [N]  which of them each token belongs to, 0 ... S - 1, never decreasing
    reduction           a name in `REDUCTIONS`
    num_tokens          of the whole step, over all micro-batches and ranks
    num_responses       likewise
    max_length          the most tokens that a response can have; for "fixed" only

    Returns [N]. Raises ValueError when a shape is wrong, `response` decreases or names a response without a length,
    the reduction is unknown, or "fixed" has no `max_length`.
    """
    check_shapes("token_weights", "S", lengths=lengths)
    check_shapes("token_weights", "N", response=response)
    check_sorted("token_weights", response)
    if len(response) and response[-1] >= len(lengths):
        raise ValueError(
            f"token_weights: expected responses 0 ... {len(lengths) - 1}, one for each of the lengths; got"
            f" {response[-1].item()}."
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"token_weights: expected a reduction among {', '.join(REDUCTIONS)}; got {reduction!r}.")
    divisor: int | Tensor
    if reduction == "token":
        divisor = num_tokens
    elif reduction == "response":
        divisor = num_responses * lengths
    elif max_length is not None:
        divisor = num_responses * max_length
    else:
        raise ValueError(
            "token_weights: reduction 'fixed' divides by `max_length`; give the longest possible response."
        )
    return (torch.ones_like(lengths) / divisor)[response]


def _ahead(x: Tensor, response: Tensor, steps: int) -> Tensor:
    """x[t + steps] within the same response, else 0, [N]."""
    inside = response[steps:] == response[:-steps]
    return torch.cat([torch.where(inside, x[steps:], 0.0), x.new_zeros(steps)])


def _discounted_sum(x: Tensor, response: Tensor, discount: float) -> Tensor:
    """sum_k discount^k x[t + k] within the response of t, [N]."""
    # Doubling: when `total` holds the first `steps` terms, one addition brings the next `steps`. log2(N) vector
    # operations, no loop over tokens or responses.
    total, steps = x, 1
    while steps < len(x):
        total = total + discount**steps * _ahead(total, response, steps)
        steps *= 2
    return total


def _centred(function: str, rewards: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards less the mean of their prompt's scored ones [S], 0 where unscored; the number of each one's prompt [S];
    how many answers of each prompt are scored [P]."""
    check_shapes(function, "S", rewards=rewards, prompt=prompt)
    if bool(torch.any(prompt[1:] < prompt[:-1])):
        raise ValueError(f"{function}: `prompt` must not decrease: the responses of one prompt stand side by side.")
    distinct, group = torch.unique_consecutive(prompt, return_inverse=True)
    scored = ~rewards.isnan()
    none = rewards.new_zeros(len(distinct))
    count = none.index_add(0, group, scored.to(rewards.dtype))
    mean = none.index_add(0, group, torch.where(scored, rewards, 0.0)) / count.clamp(min=1)
    return torch.where(scored, rewards - mean[group], 0.0), group, count
