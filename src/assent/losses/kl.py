"""Estimators of the KL divergence to a reference, one number per sampled token.

With r = pi_ref(token) / pi(token) at a token that pi sampled (joschu.net/blog/kl-approx.html):

    k1  -log r           unbiased; a single token can be negative
    k2  (log r)^2 / 2    biased, low variance, never negative
    k3  r - 1 - log r    unbiased, low variance, never negative

As a number (KL in the reward, a metric) each estimates KL(pi || pi_ref). As a *loss* to be differentiated only k2 has
the gradient of that KL in expectation; the gradient of k1 has expectation 0, that of k3 belongs to KL(pi_ref || pi).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from assent.losses._ratio import bounded_exp
from assent.losses._shapes import check_shapes


def _k1(log_r: Tensor) -> Tensor:
    return -log_r


def _k2(log_r: Tensor) -> Tensor:
    return 0.5 * log_r**2


def _k3(log_r: Tensor) -> Tensor:
    return bounded_exp(log_r) - 1.0 - log_r


KL_ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, *, estimator: str) -> Tensor:
    """Estimate of KL(pi || pi_ref) from each token that pi sampled, in nats.

        log r = reference_logprobs - logprobs
        k1 = -log r      k2 = (log r)^2 / 2      k3 = r - 1 - log r

    logprobs            [N]  log pi of the sampled tokens
    reference_logprobs  [N]  log pi_ref of the same tokens
    estimator                a name in `KL_ESTIMATORS`

    Returns [N]. In k3, past r = e^20 the tangent of exp stands in for exp. Raises ValueError when the shapes differ or
    the estimator is unknown.
    """
    check_shapes("kl_estimate", "N", logprobs=logprobs, reference_logprobs=reference_logprobs)
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"kl_estimate: expected an estimator among {', '.join(KL_ESTIMATORS)}; got {estimator!r}.")
    return KL_ESTIMATORS[estimator](reference_logprobs - logprobs)
