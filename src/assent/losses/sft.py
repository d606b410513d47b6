"""Supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from assent.losses._shapes import check_shapes


def cross_entropy(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of each trained token, in nats.

        loss = -logprobs

    logprobs  [N]  log pi(token | its prefix)

    Returns [N]. Raises ValueError when `logprobs` is not a vector.
    """
    check_shapes("cross_entropy", "N", logprobs=logprobs)
    return -logprobs
