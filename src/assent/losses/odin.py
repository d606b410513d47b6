"""ODIN: a reward in two parts, of which one takes up what length explains (arXiv 2402.07319)."""

from __future__ import annotations

import torch
from torch import Tensor

from assent.losses._shapes import check_shapes


def odin_length(quality: Tensor, verbosity: Tensor, length: Tensor) -> Tensor:
    """What ties one part of the reward to length and frees the other of it, over all responses of an optimiser step
    (arXiv 2402.07319).

        loss = 1 - corr(length, verbosity) + |corr(length, quality)|

    corr is Pearson's; it is 0 where either side does not vary.

    quality    [S]  r_Q of each response, the part that is kept
    verbosity  [S]  r_L of each response, the part that is discarded
    length     [S]  tokens of each response

    Returns [S], the same number for every response. Raises ValueError when the shapes differ.
    """
    check_shapes("odin_length", "S", quality=quality, verbosity=verbosity, length=length)
    loss = 1 - correlation(length, verbosity) + correlation(length, quality).abs()
    return loss.expand(len(quality))


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of two vectors, a scalar; 0 where either does not vary."""
    return (_standard(one) * _standard(other)).sum()


def orthogonality(quality: Tensor, verbosity: Tensor) -> Tensor:
    """What keeps the two heads on different directions of the hidden state (arXiv 2402.07319).

        loss = |W_Q . W_L|

    quality, verbosity  [h]  weights of the two heads

    Returns a scalar. Raises ValueError when the shapes differ.
    """
    check_shapes("orthogonality", "h", quality=quality, verbosity=verbosity)
    return (quality * verbosity).sum().abs()


def _standard(values: Tensor) -> Tensor:
    """Less their mean, at length 1; zeros where they do not vary. A NaN stays one."""
    centred = values - values.mean() if len(values) else values
    square = centred.square().sum()
    return centred / torch.where(square == 0, 1.0, square).sqrt()
