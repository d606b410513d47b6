"""Rules that move hyperparameters: the weight of a KL penalty towards a target, rates with the size of the batch."""

from __future__ import annotations

import math

MOST_ERROR = 0.2
"""The largest relative error that `adaptive_kl` answers to."""


def adaptive_kl(coefficient: float, kl: float, *, target: float, horizon: float, responses: int) -> float:
    """Raises or lowers the coefficient by a share of the relative error, which is bounded (arXiv 1909.08593).

        error       = clamp(kl / target - 1, -0.2, 0.2)
        coefficient = coefficient * (1 + error * responses / horizon)

    coefficient  weight of the KL penalty so far
    kl           measured KL from the reference per response, in nats
    target       where it should be
    horizon      responses in which an error of 0.2 moves the coefficient by about a fifth
    responses    how many of them `kl` was measured on

    Returns the next coefficient. Raises ValueError when `kl` is not finite.
    """
    _check("adaptive_kl", kl)
    error = min(max(kl / target - 1.0, -MOST_ERROR), MOST_ERROR)
    return coefficient * (1.0 + error * responses / horizon)


def adaptive_penalty(beta: float, kl: float, *, target: float) -> float:
    """PPO's rule for its penalty on KL(old || new), the alternative to the clip (arXiv 1707.06347, section 4).

        beta = beta / 2   where kl < target / 1.5
        beta = 2 * beta   where kl > 1.5 * target

    beta    weight of the penalty so far
    kl      measured KL of the step, in nats
    target  where it should be

    Returns the next beta. Raises ValueError when `kl` is not finite.
    """
    _check("adaptive_penalty", kl)
    if kl < target / 1.5:
        return beta / 2.0
    return 2.0 * beta if kl > 1.5 * target else beta


def rescaled(lr: float, decay: float | None, *, ratio: float) -> tuple[float, float | None]:
    """What keeps training the same when the batch grows `ratio` times: Adam's learning rate, and the decay of an
    average of weights, whose centre of mass stays at the same number of samples (arXiv 2110.00641).

        lr    = lr * sqrt(ratio)
        mass  = decay / (1 - decay) / ratio
        decay = mass / (1 + mass)

    lr     learning rate that was tuned
    decay  decay per step that was tuned; None: no average
    ratio  new batch size / tuned batch size

    Returns (learning rate, decay). Raises ValueError when `ratio` is not above 0.
    """
    if not ratio > 0:
        raise ValueError(f"rescaled: expected a ratio > 0; got {ratio}.")
    mass = None if decay is None else decay / (1.0 - decay) / ratio
    return lr * math.sqrt(ratio), None if mass is None else mass / (1.0 + mass)


def _check(function: str, kl: float) -> None:
    if not math.isfinite(kl):
        raise ValueError(f"{function}: expected a finite KL; got {kl}. The policy has diverged or was never measured.")
