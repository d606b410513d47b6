"""The mathematics of merging models: which multiples of their task vectors make the merged one.

    theta_0   the base            delta_i = theta_i - theta_0   task vector of model i = 1 ... M

Whatever is a sum of the models' weights needs only M factors. On a sphere these follow from the inner products of the
task vectors alone, `gram` [M, M] in float64: so no function here sees whole vectors, and what does (`elected`,
`dropped`) sees any part of one by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Factors = NDArray[np.float64]
OPPOSITE = 1e-4
"""Radians short of a half turn at which the arc between two vectors counts as undefined: factors would reach 1e4."""
SETTLED, MOST = 1e-12, 1000
"""karcher: step at which the mean counts as found, and the most steps that are made."""


def linear(weights: Sequence[float], normalize: bool = True) -> Factors:
    """sum_i w_i theta_i, over sum_i w_i with `normalize` (arXiv 2203.05482). [M]"""
    factors = np.asarray(weights, np.float64)
    return factors / factors.sum() if normalize else factors


def moving_average(count: int, mu: float) -> Factors:
    """a <- (1 - mu) a + mu theta_i for i = 2 ... M, from a = theta_1: mu (1 - mu)^(M - i), and (1 - mu)^(M - 1) for the
    first. [M]"""
    factors = mu * (1 - mu) ** np.arange(count - 1, -1, -1, dtype=np.float64)
    factors[0] = (1 - mu) ** (count - 1)
    return factors


def cosine(gram: Factors, a: Factors, b: Factors) -> float | None:
    """Of sum_i a_i delta_i and sum_i b_i delta_i; None where one of them is 0."""
    lengths = _length(gram, a) * _length(gram, b)
    return float(np.clip((a @ gram @ b) / lengths, -1, 1)) if lengths > 0 else None


def _length(gram: Factors, a: Factors) -> float:
    return math.sqrt(max(float(a @ gram @ a), 0.0))


def slerp(gram: Factors, weights: Sequence[float]) -> Factors | None:
    """Spherical interpolation of task vectors, of more than two one after the other (arXiv 2406.16768, eq. 26):

        s_1 = delta_1,   s_i = sin((1 - l) O) / sin O  s_{i-1} + sin(l O) / sin O  delta_i
        O = angle of s_{i-1} and delta_i,   l = w_i / (w_1 + ... + w_i), or 1 / i where all weights are 1

    A vector of length 0 has no angle with any other: there the step is linear, (1 - l) s_{i-1} + l delta_i. weights are
    >= 0. Returns [M], or None where two vectors are opposite and l is neither 0 nor 1: no arc between them is the
    shortest."""
    unit = np.eye(len(weights))
    factors, total = unit[0], weights[0]
    for i in range(1, len(weights)):
        total += weights[i]
        share = weights[i] / total if total > 0 else 0.0
        on_arc = _arc(cosine(gram, factors, unit[i]), share)
        if on_arc is None:
            return None
        factors = on_arc[0] * factors + on_arc[1] * unit[i]
    return factors


def _arc(cos: float | None, share: float) -> tuple[float, float] | None:
    if share in (0, 1) or cos is None or cos == 1:
        return 1 - share, share
    angle = math.acos(cos)
    if math.pi - angle < OPPOSITE:
        return None
    return math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)


def karcher(gram: Factors, weights: Sequence[float]) -> Factors | None:
    """The Karcher mean of the directions u_i = delta_i / |delta_i|, as long as the vectors are on average
    (arXiv 2603.04972):

        (sum_i w_i |delta_i|) m,   m the unit vector with the least sum_i w_i angle(m, u_i)^2,   sum_i w_i = 1

    by m <- exp_m(sum_i w_i log_m(u_i)), from the direction of sum_i w_i u_i. Vectors of length 0 have no direction and
    count in the length alone. weights are >= 0. Returns [M], or None where the mean is not one: the directions cancel,
    or the steps do not settle."""
    shares = np.asarray(weights, np.float64) / sum(weights)
    lengths = np.sqrt(np.diag(gram))
    there = (lengths > 0) & (shares > 0)
    factors = np.zeros(len(shares))
    if not there.any():
        return factors
    inner = gram[np.ix_(there, there)] / np.outer(lengths[there], lengths[there])
    mean = _mean_direction(inner, shares[there] / shares[there].sum())
    if mean is None:
        return None
    factors[there] = (shares @ lengths) * mean / lengths[there]
    return factors


def _mean_direction(inner: Factors, shares: Factors) -> Factors | None:
    """m as multiples of unit vectors whose cosines are `inner`."""
    mean = shares.copy()
    length = _length(inner, mean)
    if length < OPPOSITE:
        return None
    mean /= length
    for _ in range(MOST):
        cos = np.clip(inner @ mean, -1, 1)
        angles = np.arccos(cos)
        if (math.pi - angles < OPPOSITE).any():
            return None
        far = angles > 0
        pull = np.where(far, shares * angles / np.where(far, np.sin(angles), 1), shares)
        step = pull - (pull @ cos) * mean
        size = _length(inner, step)
        if size < SETTLED:
            return mean
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean /= _length(inner, mean)
    return mean if size < math.sqrt(SETTLED) else None


# ---- parts of vectors


def inner_products(deltas: Sequence[Tensor]) -> Factors:
    """delta_i . delta_j of any part of the task vectors, which add up over parts. float64 [n] each -> [M, M]"""
    found = np.empty((len(deltas),) * 2)
    for i, one in enumerate(deltas):
        for j in range(i + 1):
            found[i, j] = found[j, i] = torch.dot(one, deltas[j]).item()
    return found


def threshold(parts: Callable[[], Iterable[Tensor]], count: int) -> float:
    """The `count`-th largest magnitude of a vector that comes in parts (float32), exactly: of numbers without sign, the
    order is that of their bits, so one pass counts them by the upper half of their bits, a second by the lower half.
    `parts` is called for each pass."""
    upper, rank = _bin(parts(), count, lambda bits: bits >> 16)
    lower, _ = _bin(parts(), rank, lambda bits: (bits & 0xFFFF)[bits >> 16 == upper])
    return torch.tensor([upper << 16 | lower], dtype=torch.int32).view(torch.float32).item()


def _bin(parts: Iterable[Tensor], rank: int, key: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """In which bin the `rank`-th largest lies, and its rank there."""
    counts = sum((torch.bincount(key(x.abs().view(torch.int32)), minlength=1 << 16) for x in parts), torch.tensor(0))
    above = counts.flip(0).cumsum(0)
    place = int((above < rank).sum())
    found = (1 << 16) - 1 - place
    return found, rank - int(above[place] - counts[found])


def trimmed(delta: Tensor, least: float) -> Tensor:
    """delta where its magnitude is at least `least`, else 0."""
    return torch.where(delta.abs() >= least, delta, 0)


def elected(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of those that have the sign of the weighted sum (TIES, arXiv 2306.01708):

        sum_i w_i t_i [sign t_i = s] / sum_i w_i [sign t_i = s],   s = sign sum_i w_i t_i, + for 0

    and 0 where none has it, or where their weights add up to 0. The sign of a model of negative weight is that of
    w_i t_i. [n] each -> [n]"""
    t, w = torch.stack(tuple(deltas)), torch.tensor(weights, dtype=deltas[0].dtype)[:, None]
    weighted = w * t
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0).to(t.dtype)
    agrees = weighted.sign() == sign
    total = (w * agrees).sum(0)
    return torch.where(total == 0, 0, (weighted * agrees).sum(0) / torch.where(total == 0, 1, total))


class Coins:
    """Draws for DARE, the same on every machine whatever the parts are: `seed`, the place of the model and the name of
    the tensor decide them."""

    def __init__(self, seed: int, model: int, name: str) -> None:
        key = hashlib.sha256(f"{seed} {model} {name}".encode()).digest()[:16]
        self._bits = np.random.Philox(key=int.from_bytes(key, "little"))

    def kept(self, count: int, density: float) -> Tensor:
        """For the next `count` numbers whether each is kept, with the chance `density`. bool [count]"""
        if density == 1:
            return torch.ones(count, dtype=torch.bool)
        drawn = self._bits.random_raw(count)
        return torch.from_numpy(drawn < np.uint64(int(density * 2.0**64)))


def dropped(delta: Tensor, kept: Tensor, density: float) -> Tensor:
    """delta / density where it is kept, else 0: the same on average (DARE, arXiv 2311.03099). [n]"""
    return torch.where(kept, delta / density, 0)
