"""The KL in the reward of single tokens: what the policy gradient of it comes to, by enumeration."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from assent.algorithms.credit import credit
from assent.algorithms.rollouts import token_field
from torch import Tensor

from assent.config import DataConfig, KLConfig, ModelConfig, online_config
from assent.data.tree import Branch, TokenTree

VOCAB, COEF = 3, 0.7
ANSWERS = list(product(range(VOCAB), repeat=2))


class Table:
    """Two tokens, each from its own distribution: of the first [V], of the second given the first [V, V]."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(VOCAB + 1, VOCAB, generator=draw, dtype=torch.float64).requires_grad_()

    @property
    def rows(self) -> Tensor:
        """Log-probs [1 + V, V]: in the empty state, and after each first token."""
        return self.logits.log_softmax(-1)

    def tokens(self) -> Tensor:
        """Of every answer, [V^2, 2]."""
        rows = self.rows
        return torch.stack([torch.stack([rows[0, a], rows[1 + a, b]]) for a, b in ANSWERS])


def advantages(policy: Table, other: Table, rewards: Tensor, method: str, estimator: Any, **loss: Any) -> Tensor:
    """[V^2, 2] as `credit` gives them."""
    config = online_config(
        method,
        loss=loss,
        model=ModelConfig("unused"),
        data=DataConfig("unused"),
        out="unused",
        kl=vars(KLConfig(estimator=estimator)),
    )
    with torch.no_grad():
        full = (policy.rows.exp() * (policy.rows - other.rows)).sum(-1)
        numbers = {
            "old": policy.tokens(),
            "reference": other.tokens(),
            "kl": torch.stack([torch.stack([full[0], full[1 + a]]) for a, _ in ANSWERS]),
            "values": torch.stack([torch.tensor([0.4, 0.1 * a - 0.2]) for a, _ in ANSWERS]),  # of the states alone
        }
    branches = tuple(
        Branch(np.array(y), np.ones(2, bool), {name: v[i].numpy().astype(np.float32) for name, v in numbers.items()})
        for i, y in enumerate(ANSWERS)
    )
    worth = rewards.float().numpy()
    tree = TokenTree(np.array([0]), branches, per_response={"shaped": worth, "reward": worth})
    return torch.from_numpy(token_field(credit([tree], config, COEF)[0], "advantages")).reshape(-1, 2).double()


@pytest.mark.parametrize(
    ("method", "estimator", "loss"),
    [
        ("reinforce", "k1", {}),
        ("reinforce", "full", {}),
        ("ppo", "k1", {"lam": 1.0, "whiten": False}),
        ("ppo", "full", {"lam": 1.0, "whiten": False}),
    ],
)
def test_the_gradient_is_that_of_reward_less_kl(method: str, estimator: str, loss: dict[str, Any]) -> None:
    """sum_y pi(y) sum_t advantage * grad log pi(y_t), over all answers."""
    policy, other = Table(0), Table(1)
    rewards = torch.randn(len(ANSWERS), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tokens = policy.tokens()
    logp = tokens.sum(1)
    objective = (logp.exp() * (rewards - COEF * (logp - other.tokens().detach().sum(1)))).sum()
    exact = torch.autograd.grad(objective, policy.logits, retain_graph=True)[0]
    found = advantages(policy, other, rewards, method, estimator, **loss)
    scored = (logp.detach().exp()[:, None] * found * tokens).sum()
    torch.testing.assert_close(torch.autograd.grad(scored, policy.logits)[0], exact, atol=1e-5, rtol=0)
    assert exact.abs().max() > 0.1


def test_the_full_kl_of_later_states_varies_less() -> None:
    """Why it is worth its cost: the first token's advantage has no noise of the second one's draw."""
    policy, other, none = Table(0), Table(1), torch.zeros(len(ANSWERS))
    k1, full = (advantages(policy, other, none, "reinforce", name)[:, 0] for name in ("k1", "full"))
    for a in range(VOCAB):
        after = torch.tensor([first == a for first, _ in ANSWERS])
        assert full[after].std() < 1e-6 < 1e-2 < k1[after].std()


def test_the_critic_learns_the_full_kl_without_a_tokens_own_part() -> None:
    """Its target is the value of the state, whatever was sampled there."""
    config = online_config(
        "ppo",
        loss={"lam": 1.0, "whiten": False},
        model=ModelConfig("unused"),
        data=DataConfig("unused"),
        out="unused",
        kl=vars(KLConfig(estimator="full")),
    )
    fields = {"old": np.float32([-1, -2]), "reference": np.float32([-3, -1]), "kl": np.float32([0.5, 0.25])}
    branch = Branch(np.array([1, 2]), np.ones(2, bool), {**fields, "values": np.zeros(2, np.float32)})
    scored = {"shaped": np.float32([4.0]), "reward": np.float32([4.0])}
    ((tree,), _) = credit([TokenTree(np.array([0]), (branch,), per_response=scored)], config, 2.0)
    assert tree.branches[0].per_token["returns"].tolist() == [2.5, 3.5]
    # less 2 * (k1 - full), of k1 = 2 and -1
    assert tree.branches[0].per_token["advantages"].tolist() == [2.5 - 3.0, 3.5 + 2.5]


def shaped(*rewards: float) -> list[TokenTree]:
    branches = tuple(Branch(np.array([1, 2]), np.ones(2, bool), {"old": np.zeros(2, np.float32)}) for _ in rewards)
    values = np.array(rewards, np.float32)
    return [TokenTree(np.array([0]), branches, per_response={"reward": values, "shaped": values})]


def config(method: str, **loss: Any) -> Any:
    return online_config(
        method, loss=loss, model=ModelConfig("unused"), data=DataConfig("unused"), out="unused", kl={"coef": 0.0}
    )


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_large_rewards_are_told_apart(scale: str) -> None:
    """The squares of rewards above 1e19 do not fit float32: every advantage was 0."""
    trees, _ = credit(shaped(3e38, -3e38, 3e38, -3e38), config("grpo", scale=scale), 0.0)
    np.testing.assert_allclose(token_field(trees, "advantages")[::2], np.array([1, -1, 1, -1]) * 0.75**0.5, rtol=1e-5)


def test_an_advantage_that_float32_cannot_hold_names_the_row() -> None:
    from assent.algorithms.scored import require_finite

    from assent.data.records import Example, Message, Origin
    from assent.errors import NonFiniteError

    trees, _ = credit(shaped(3e38, -3e38), config("rloo"), 0.0)
    example = Example((Message("user", "a"),), (), origin=Origin("rows.jsonl", 7))
    with pytest.raises(
        NonFiniteError, match=r"rows\.jsonl:7: answer 1 of 2: advantages is inf, made of the reward 3e\+38"
    ):
        require_finite(trees, [example], "shaped", "advantages", "returns")
    trees, _ = credit(shaped(1.0, 2.0), config("rloo"), 0.0)
    require_finite(trees, [example], "shaped", "advantages", "returns")
