"""Value losses and KL estimators: numbers derived by hand and slow references in float64; and PPO as a whole, equal to
TRL's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from assent.losses import (
    KL_ESTIMATORS,
    clipped_value,
    explained_variance,
    gae,
    kl_estimate,
    ppo_clip,
    ratio_diagnostics,
    whiten,
)

LN2 = math.log(2.0)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


# --- value ------------------------------------------------------------------------------------------------------------


def test_clipped_value_known_numbers_and_gradients():
    # outside the range towards the return, outside away from it, inside
    values = vector(1.0, -1.0, 0.1)
    loss = clipped_value(values, vector(0, 0, 0), vector(2, 2, 2), clip=0.2)
    loss.sum().backward()
    torch.testing.assert_close(loss, vector(0.5 * 1.8**2, 0.5 * 3.0**2, 0.5 * 1.9**2))
    torch.testing.assert_close(values.grad, torch.tensor([0.0, -3.0, -1.9], dtype=torch.float64))


def test_value_clip_zero_is_plain_squared_error():
    values = vector(1.0, -1.0)
    loss = clipped_value(values, vector(0, 0), vector(2, 2), clip=0)
    loss.sum().backward()
    assert loss.tolist() == [0.5, 4.5] and values.grad.tolist() == [-1, -3]


def test_clipped_value_equals_a_loop():
    values, old, returns = torch.randn(3, 60, dtype=torch.float64)
    expected = []
    for value, before, target in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        near = before + min(max(value - before, -0.3), 0.3)
        expected.append(0.5 * max((value - target) ** 2, (near - target) ** 2))
    torch.testing.assert_close(
        clipped_value(values, old, returns, clip=0.3), torch.tensor(expected, dtype=torch.float64)
    )


def test_explained_variance_known_numbers():
    returns = vector(1, 2, 3, 4).detach()
    assert explained_variance(returns, returns).item() == 1
    assert explained_variance(torch.full_like(returns, 7.0), returns).item() == 0
    assert explained_variance(vector(2, 2, 3, 3).detach(), returns).item() == pytest.approx(0.6)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3)
    assert math.isnan(explained_variance(returns, torch.ones_like(returns)).item())
    with pytest.raises(ValueError, match=r"values \[3\], returns \[4\]"):
        explained_variance(returns[:3], returns)


# --- KL ---------------------------------------------------------------------------------------------------------------


def test_kl_known_numbers():
    logprobs, reference = vector(0.0, 0.0), vector(LN2, -LN2)  # r = 2, 1/2
    torch.testing.assert_close(kl_estimate(logprobs, reference, estimator="k1"), vector(-LN2, LN2))
    torch.testing.assert_close(kl_estimate(logprobs, reference, estimator="k2"), vector(LN2**2 / 2, LN2**2 / 2))
    torch.testing.assert_close(kl_estimate(logprobs, reference, estimator="k3"), vector(1 - LN2, LN2 - 0.5))


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_kl_of_the_same_policy_is_zero(estimator: str):
    logprobs = -torch.rand(5)
    assert torch.equal(kl_estimate(logprobs, logprobs.clone(), estimator=estimator), torch.zeros(5))


@pytest.mark.parametrize(("estimator", "gradient_of"), [("k1", None), ("k2", "reverse"), ("k3", "forward")])
def test_kl_expectations_and_gradients_over_a_whole_vocabulary(estimator: str, gradient_of: str | None):
    """Every token weighted by its probability gives the expectations that the module promises, exactly."""
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    policy, reference = logits.log_softmax(-1), torch.randn(9, dtype=torch.float64).log_softmax(-1)
    reverse = (policy.exp() * (policy - reference)).sum()
    forward = (reference.exp() * (reference - policy)).sum()
    estimate = (policy.exp().detach() * kl_estimate(policy, reference, estimator=estimator)).sum()
    if estimator != "k2":
        torch.testing.assert_close(estimate, reverse)
    exact = {"reverse": reverse, "forward": forward, None: 0.0 * logits.sum()}[gradient_of]
    torch.testing.assert_close(
        torch.autograd.grad(estimate, logits, retain_graph=True)[0],
        torch.autograd.grad(exact, logits)[0],
        atol=1e-12,
        rtol=1e-9,
    )


def test_k3_pulls_back_a_token_that_the_policy_lost():
    logprobs = torch.tensor([-1e4, -30.0], requires_grad=True)
    loss = kl_estimate(logprobs, torch.zeros(2), estimator="k3")
    loss.sum().backward()
    assert torch.isfinite(loss).all() and (logprobs.grad < 0).all() and torch.isfinite(logprobs.grad).all()


def test_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="k1, k2, k3; got 'k4'"):
        kl_estimate(torch.zeros(2), torch.zeros(2), estimator="k4")


# --- TRL --------------------------------------------------------------------------------------------------------------

# Three responses of 6, 1 and 3 tokens; every input is a formula of the token's index.
INDEX = torch.arange(10, dtype=torch.float64)
RESPONSE = torch.repeat_interleave(torch.tensor([6, 1, 3]))
LAST = torch.tensor([5, 6, 9])
LOGPROBS, REFERENCE, VALUES = -1.5 + INDEX.sin(), -1.4 + (2 * INDEX).cos(), (1.3 * INDEX).sin()
SCORES = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)

# Values computed with TRL 0.24: PPOTrainer's own lines in float64, kl_coef 0.05, gamma 0.97, lam 0.9, cliprange 0.2,
# cliprange_value 0.2, each score at the last token. New log-probs are LOGPROBS + 0.3 cos(3 i), new values
# VALUES + 0.4 cos(i).
# fmt: off
TRL = {
    "k1": {
        "rewards": [
            0.0550000, -0.0578809, -0.0731471, 0.0459525, 0.0355651,
            1.0109926, -0.4388365, -0.0210125, -0.0923509, 2.0174099,
        ],
        "advantages": [
            0.5539802, -0.4990507, 0.0256037, 1.4677953, 1.8224830,
            0.7958726, -1.4373799, 0.9719687, 2.4227620, 2.7793935,
        ],
        "whitened": [
            -0.2576052, -1.0640745, -0.6622651, 0.4422451, 0.7138845,
            -0.0723505, -1.7826990, 0.0625136, 1.1736115, 1.4467396,
        ],
        "unshifted": [
            0.6327377, -0.1737317, 0.2280777, 1.3325879, 1.6042274,
            0.8179923, -0.8923561, 0.9528565, 2.0639543, 2.3370825,
        ],
    },
    "k3": {
        "rewards": [
            -0.0452083, -0.0235926, -0.0347248, -0.0293929, -0.0162670,
            0.9986980, -0.5587505, -0.0038566, -0.0502362, 1.9965843,
        ],
        "advantages": [
            0.4265176, -0.5302698, -0.0494334, 1.3378303, 1.7599176,
            0.7835780, -1.5572939, 1.0100189, 2.4466959, 2.7585678,
        ],
        "whitened": [
            -0.3093109, -1.0274571, -0.6665506, 0.3747030, 0.6915137,
            -0.0413082, -1.7983217, 0.1286540, 1.2069963, 1.4410814,
        ],
        "unshifted": [
            0.5293021, -0.1888442, 0.1720623, 1.2133159, 1.5301266,
            0.7973047, -0.9597088, 0.9672669, 2.0456092, 2.2796943,
        ],
    },
}
TRL_POLICY_LOSS = [
    0.3477306, 0.8512596, 0.8833461, -0.3364754, -0.8566615,
    0.0578804, 2.1732495, -0.0530410, -1.3328765, -1.3253424,
]
TRL_CLIPPED = [0, 1, 0, 0, 1, 1, 0, 0, 0, 0]
TRL_VALUE_LOSS = [
    0.0626510, 0.2557352, 0.0184440, 1.7368609, 2.1714039,
    0.2328402, 1.6588364, 0.2979679, 3.0775863, 4.9418826,
]
# fmt: on


def trl_advantages(estimator: str) -> tuple[Tensor, Tensor]:
    penalty = 0.05 * kl_estimate(LOGPROBS, REFERENCE, estimator=estimator)
    rewards = (-penalty).index_add(0, LAST, SCORES)
    return rewards, gae(rewards, VALUES, RESPONSE, gamma=0.97, lam=0.9)


def equals_trl(got: Tensor, expected: list[float]) -> None:
    # 7 digits; TRL's own factor N / (N - 1) is float32 even here
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("estimator", TRL)
def test_rewards_and_advantages_are_those_of_trl(estimator: str):
    rewards, advantages = trl_advantages(estimator)
    equals_trl(rewards, TRL[estimator]["rewards"])
    equals_trl(advantages, TRL[estimator]["advantages"])
    # TRL whitens with the sample variance
    statistics = {"mean": advantages.mean(), "var": advantages.var(correction=1)}
    equals_trl(whiten(advantages, **statistics), TRL[estimator]["whitened"])
    equals_trl(whiten(advantages, shift_mean=False, **statistics), TRL[estimator]["unshifted"])


def test_policy_and_value_losses_are_those_of_trl():
    _, advantages = trl_advantages("k1")
    whitened = whiten(advantages, mean=advantages.mean(), var=advantages.var(correction=1))
    logprobs, values = LOGPROBS + 0.3 * (3 * INDEX).cos(), VALUES + 0.4 * INDEX.cos()
    equals_trl(ppo_clip(logprobs, LOGPROBS, whitened, clip=0.2), TRL_POLICY_LOSS)
    assert ratio_diagnostics(logprobs, LOGPROBS, whitened, clip=0.2).clipped.tolist() == TRL_CLIPPED
    equals_trl(clipped_value(values, VALUES, advantages + VALUES, clip=0.2), TRL_VALUE_LOSS)
