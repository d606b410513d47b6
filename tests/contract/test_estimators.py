"""The table of estimators: what a row says is what its function asks for, and each goes from a rollout's rewards to the
advantages that plain loops give."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from assent.algorithms.online.method import OnlineMethod, method_with
from assent.algorithms.online.stages import advantages
from assent.config import METHODS, DataConfig, KLConfig, ModelConfig, online_config
from assent.config.estimators import ESTIMATORS
from assent.config.sections import default_of
from assent.losses import ADVANTAGES
from assent.losses.functions import inputs_of, with_options
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, rollout_of

NEEDS = {"values": "critic", "greedy": "greedy", "prompt": "groups"}
"""What a method has to have for a tensor to be there."""
TENSORS = {"token_rewards", "rewards", "response", *NEEDS}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_row_says_what_its_function_asks_for(name: str) -> None:
    row = ESTIMATORS[name]
    inputs = inputs_of(ADVANTAGES[row.function])
    assert set(inputs) <= TENSORS and row.words
    assert row.needs == {NEEDS[one] for one in inputs if one in NEEDS}
    assert ("token_rewards" in inputs) != ("rewards" in inputs), "rewards of tokens, or of responses"
    assert ("response" in inputs) == ("token_rewards" in inputs)


def test_every_function_has_a_row_and_every_row_a_method() -> None:
    assert sorted(row.function for row in ESTIMATORS.values()) == sorted(ADVANTAGES)
    assert {row.estimator for row in METHODS.values()} == set(ESTIMATORS)


def made(method: str) -> OnlineMethod:
    unused: dict[str, Any] = {"model": ModelConfig("m"), "data": DataConfig("d"), "out": "run"}
    return method_with(online_config(method, **unused))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_what_its_estimator_needs(name: str) -> None:
    row, method = METHODS[name], made(name)
    needs = ESTIMATORS[row.estimator].needs
    assert (method.critic is not None) == row.has_critic == ("critic" in needs)
    assert method.needs_greedy == ("greedy" in needs)
    assert row.has_groups == ("groups" in needs)
    assert default_of(row.config, "rollout").responses > 1 or not row.has_groups


# ---- numbers

LENGTHS = ((2, 1), (3, 2, 1))
SIZES = [size for group in LENGTHS for size in group]
PROMPT = [0, 0, 1, 1, 1]
GAMMA, LAM, COEF = 0.9, 0.8, 0.5
OPTIONS = {"gamma": GAMMA, "lam": LAM, "scale": "none"}


def rollout() -> Rollout:
    draw = np.random.default_rng(0)

    def column(size: int) -> np.ndarray:
        return draw.normal(size=size).astype(np.float32)

    groups = [[Completion(np.arange(n), column(n), True) for n in group] for group in LENGTHS]
    bare = rollout_of([np.arange(3), np.arange(2)], np.array([4, 7]), groups)
    responses, tokens = len(SIZES), sum(SIZES)
    return replace(
        bare,
        reward=column(responses),
        shaped=column(responses),
        greedy=column(responses),
        old=column(tokens),
        reference=column(tokens),
        values=column(tokens),
    )


def by_response(column: np.ndarray) -> list[list[float]]:
    """A list for each response."""
    return [part.tolist() for part in np.split(column, np.cumsum(SIZES)[:-1])]


def rewards_of(made: Rollout) -> list[list[float]]:
    """Of each token: -coef * (old - reference), and the shaped reward at the last one."""
    assert made.old is not None and made.reference is not None and made.shaped is not None
    rewards = [[-COEF * gap for gap in part] for part in by_response(made.old - made.reference)]
    for part, shaped in zip(rewards, made.shaped.tolist(), strict=True):
        part[-1] += shaped
    return rewards


def by_loops(name: str, made: Rollout) -> list[list[float]]:
    """The advantage of each token."""
    rewards = rewards_of(made)
    whole = [sum(part) for part in rewards]
    found = []
    for i, part in enumerate(rewards):
        values = by_response(made.values)[i] + [0.0]  # type: ignore[arg-type]
        others = [whole[j] for j in range(len(whole)) if PROMPT[j] == PROMPT[i] and j != i]
        delta = [r + GAMMA * values[t + 1] - values[t] for t, r in enumerate(part)]
        found.append(
            {
                "gae": [sum((GAMMA * LAM) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(part))],
                "return": [sum(GAMMA**k * r for k, r in enumerate(part[t:])) for t in range(len(part))],
                "group": [whole[i] - (whole[i] + sum(others)) / (1 + len(others))] * len(part),
                "leave_one_out": [whole[i] - sum(others) / len(others)] * len(part),
                "greedy": [whole[i] - float(made.greedy[i])] * len(part),  # type: ignore[index]
                "pair": [float(whole[i] > max(others)) - float(whole[i] < min(others))] * len(part),
                "label": [1.0 if whole[i] > sum(others) / len(others) else -1.0] * len(part),
            }[name]
        )
    return found


@pytest.mark.parametrize("name", ESTIMATORS)
def test_advantages_equal_loops(name: str) -> None:
    row, whole = ESTIMATORS[name], rollout()
    given = whole if "critic" in row.needs else replace(whole, values=None)
    given = given if "greedy" in row.needs else replace(given, greedy=None)
    method = replace(made("grpo"), estimator=with_options(ADVANTAGES[row.function], OPTIONS), whiten=False)
    found, metrics = advantages(given, method, KLConfig(coef=9.0, estimator="k1"), COEF)
    wanted = [a for part in by_loops(name, whole) for a in part]
    assert found.advantages is not None and found.advantages.dtype == np.float32
    assert found.advantages.tolist() == pytest.approx(wanted, abs=1e-6)
    assert (found.returns is None) == ("critic" not in row.needs) == ("explained_variance" not in metrics)
    if found.returns is not None:
        assert found.returns.tolist() == pytest.approx([a + v for a, v in zip(wanted, whole.values)], abs=1e-6)
    white, _ = advantages(given, replace(method, whiten=True), KLConfig(coef=9.0, estimator="k1"), COEF)
    mean = sum(wanted) / len(wanted)
    spread = math.sqrt(sum((a - mean) ** 2 for a in wanted) / len(wanted))
    assert white.advantages.tolist() == pytest.approx([(a - mean) / spread for a in wanted], abs=1e-5)
