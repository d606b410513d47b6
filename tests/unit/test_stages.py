"""The stages of a rollout: rewards as they are shaped (reward - baseline, scaled, clipped, less penalties, in that
order), and the advantages of single tokens, whose policy gradient is compared with enumeration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from assent.algorithms.online.method import method_with
from assent.algorithms.online.rollouts import Rollouts
from assent.algorithms.online.samples import require_finite
from assent.algorithms.online.stages import advantages, score, shape
from assent.config import DataConfig, KLConfig, ModelConfig, OnlineConfig, SamplingConfig, ShapingConfig, online_config
from assent.data.chat import Chat
from assent.data.records import Example, Message, Origin
from assent.errors import NonFiniteError
from assent.losses import RunningMoments
from assent.rewards.group import Group, Progress, Scores
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, rollout_of

Given = tuple[float, int, bool]
"""Reward, length, and whether it ended."""


def rollout(*groups: Sequence[Given]) -> Rollout:
    """A prompt for each group of responses."""
    made = rollout_of(
        [np.array([1])] * len(groups),
        np.arange(len(groups)),
        [
            [Completion(np.zeros(length, np.int64), np.zeros(length, np.float32), ended) for _, length, ended in group]
            for group in groups
        ],
    )
    return replace(made, reward=np.array([reward for group in groups for reward, _, _ in group], np.float32))


def config_of(method: str, kl: dict[str, Any], **loss: Any) -> OnlineConfig:
    return online_config(method, loss=loss, model=ModelConfig("unused"), data=DataConfig("unused"), out="unused", kl=kl)


# ---- score


class Source:
    """The nth response is worth n, but for one that is unscored; in two parts, the second of which abstains from the
    first response."""

    name = "source"

    def __init__(self, parts: Sequence[str], failures: dict[str, int]) -> None:
        self.parts, self.failures = parts, failures

    def check(self, examples: Sequence[Example]) -> None:
        pass

    def score(self, groups: Sequence[Group]) -> Scores:
        self.seen = [group.example.origin.row for group in groups]
        values = np.arange(sum(map(len, groups)), dtype=float)
        values[1] = math.nan
        parts = {name: np.where(values == 0, math.nan, values * 2) for name in self.parts}
        words = [f"word {number}" for number in range(len(values))]
        return Scores(values, parts, self.failures, columns={"word": words}, metrics={"seconds": [1.0, 2.0]})


def test_what_is_unscored_is_left_out_and_counted(tokenizer) -> None:
    sampled = replace(
        rollout([(0, 2, True), (0, 1, True)], [(0, 1, False)], [(0, 3, True)]), rows=np.array([2, 0, 1]), reward=None
    )
    examples = [Example((Message("user", "a"),), origin=Origin("rows.jsonl", row)) for row in range(3)]
    source = Source(("one", "two"), {"no": 1})
    made = score(sampled, source, examples, Chat(tokenizer), Progress())
    assert source.seen == [2, 0, 1], "examples are those of the rows"
    assert made.rollout.reward.tolist() == [0, 2, 3] and made.rollout.sizes.tolist() == [1, 1, 1]
    assert made.rollout.lengths.tolist() == [2, 1, 3] and made.rollout.finished.tolist() == [True, False, True]
    for part in ("one", "two"):
        np.testing.assert_array_equal(made.rollout.parts[part], [math.nan, 4, 6])
    assert [note["word"] for note in made.rollout.notes] == ["word 0", "word 2", "word 3"]
    assert made.failures == {"no": 1} and made.metrics == {"seconds": [1.0, 2.0]}
    alone = score(sampled, Source(("one",), {}), examples, Chat(tokenizer), Progress())
    assert not alone.rollout.parts, "one part is the reward itself"
    assert alone.failures == {"no reason given": 1}


# ---- shape


LONGEST = 10
FIRST = rollout([(2.0, 4, True), (-1.0, 10, False), (0.5, 9, True)], [(7.0, 7, True), (3.0, 1, True)])
SECOND = rollout([(-6.0, 8, False)], [(1.0, 6, True), (1.5, 10, True)])
BASELINES = (np.array([0.5, 4.0]), np.array([-2.0, 1.0]))


def by_hand(config: ShapingConfig, rewards: list[list[float]], last: Rollout) -> list[float]:
    """The shaped rewards of the last rollout of `rewards` (baselines taken off), in plain Python."""
    known = [value for one in (rewards if config.normalise == "running" else rewards[-1:]) for value in one]
    mean = sum(known) / len(known)
    spread = math.sqrt(sum((value - mean) ** 2 for value in known) / len(known))
    shaped = []
    for value, length, ended in zip(rewards[-1], last.lengths.tolist(), last.finished.tolist(), strict=True):
        if config.normalise != "none":
            value = (value - mean) / spread
        if config.clip is not None:
            value = max(-config.clip, min(config.clip, value))
        if not ended:
            value -= config.missing_eos_penalty
        over = config.overlong * LONGEST
        if over and length > LONGEST - over:
            value -= min(1.0, (length - (LONGEST - over)) / over)
        shaped.append(value)
    return shaped


OPTIONS = list(product(("none", "running", "batch"), (None, 0.8), (0.0, 0.7), (0.0, 0.4)))


class Shaper:
    """`Rollouts` as far as it shapes rewards."""

    def __init__(self, config: ShapingConfig) -> None:
        self.rollouts = Rollouts.__new__(Rollouts)
        sections = SimpleNamespace(shaping=config, sampling=SamplingConfig(max_new_tokens=LONGEST))
        self.rollouts.config = cast("Any", sections)
        self.rollouts.moments = RunningMoments()

    @property
    def moments(self) -> RunningMoments:
        return self.rollouts.moments

    def __call__(self, made: Rollout, baseline: np.ndarray, greedy: Rollout | None = None) -> Rollout:
        return self.rollouts._shaped(made, baseline, greedy)


@pytest.mark.parametrize(("normalise", "clip", "missing", "overlong"), OPTIONS)
def test_shaping_equals_a_loop(normalise: Any, clip: float | None, missing: float, overlong: float) -> None:
    config = ShapingConfig(normalise=normalise, clip=clip, missing_eos_penalty=missing, overlong=overlong)
    shaper, rewards = Shaper(config), []
    for made, baseline in zip((FIRST, SECOND), BASELINES, strict=True):
        shaped = shaper(made, baseline)
        own = [baseline[prompt] for prompt in made.prompt]
        rewards.append([reward - base for reward, base in zip(made.reward.tolist(), own, strict=True)])
        assert shaped.shaped == pytest.approx(by_hand(config, rewards, made), abs=1e-6)
        assert shaped.reward is made.reward, "the reward itself stays"


def test_penalties_are_not_scaled_or_clipped() -> None:
    shaper = Shaper(ShapingConfig(normalise="batch", clip=1.0, missing_eos_penalty=3.0, overlong=0.2))
    shaped = shaper(rollout([(0.0, 10, False), (10.0, 1, True)]), np.zeros(1)).shaped
    assert shaped.tolist() == [-5.0, 1.0]


def test_a_share_of_less_than_a_token_is_no_penalty() -> None:
    shaper = Shaper(ShapingConfig(overlong=0.04))
    assert shaper(FIRST, np.zeros(2)).shaped.tolist() == [2.0, -1.0, 0.5, 7.0, 3.0]


def test_greedy_answers_are_shaped_alike_and_not_learned_from() -> None:
    config = ShapingConfig(normalise="running", missing_eos_penalty=0.5)
    shaper, alone = Shaper(config), Shaper(config)
    greedy = rollout([(-6.0, 8, False)], [(1.0, 6, True)])
    made, without = shaper(FIRST, BASELINES[0], greedy), alone(FIRST, BASELINES[0])
    assert shaper.moments.state_dict() == alone.moments.state_dict() and shaper.moments.count == 5
    assert made.shaped.tolist() == without.shaped.tolist() and without.greedy is None
    before = shaper.moments.state_dict()
    best = shape(greedy, config, shaper.moments, BASELINES[0], LONGEST).shaped
    assert shaper.moments.state_dict() == before
    scaled = shaper.moments.normalise(torch.tensor([-6.5, -3.0])) - torch.tensor([0.5, 0.0])
    assert best.tolist() == pytest.approx(scaled.tolist())
    assert made.greedy.tolist() == [best[0]] * 3 + [best[1]] * 2
    shaper(SECOND, BASELINES[1])
    assert shaper.moments.count == 8


def test_nothing_is_learned_where_nothing_is_scaled() -> None:
    shaper = Shaper(ShapingConfig())
    shaper(FIRST, BASELINES[0])
    assert shaper.moments.count == 0


def test_a_batch_is_scaled_by_itself_alone() -> None:
    shaper = Shaper(ShapingConfig(normalise="batch"))
    for made in (FIRST, SECOND):
        shaped = shaper(made, np.zeros(2)).shaped.astype(float)
        assert shaped.mean() == pytest.approx(0, abs=1e-6) and shaped.var() == pytest.approx(1, abs=1e-5)


def test_loaded_moments_scale_alike() -> None:
    straight, resumed = Shaper(ShapingConfig(normalise="running")), Shaper(ShapingConfig(normalise="running"))
    straight(FIRST, BASELINES[0])
    resumed.moments.load_state_dict(straight.moments.state_dict())
    one, other = (shaper(SECOND, BASELINES[1]).shaped.tolist() for shaper in (straight, resumed))
    assert one == other


# ---- advantages


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


def table_advantages(policy: Table, other: Table, rewards: Tensor, method: str, estimator: Any, **loss: Any) -> Tensor:
    """[V^2, 2] as `advantages` gives them."""
    config = config_of(method, vars(KLConfig(estimator=estimator)), **loss)
    with torch.no_grad():
        full = (policy.rows.exp() * (policy.rows - other.rows)).sum(-1)
        numbers = {
            "old": policy.tokens(),
            "reference": other.tokens(),
            "kl": torch.stack([torch.stack([full[0], full[1 + a]]) for a, _ in ANSWERS]),
            "values": torch.stack([torch.tensor([0.4, 0.1 * a - 0.2]) for a, _ in ANSWERS]),  # of the states alone
        }
    made = rollout([(float(reward), 2, True) for reward in rewards])
    columns: dict[str, Any] = {name: v.flatten().numpy().astype(np.float32) for name, v in numbers.items()}
    made = replace(made, ids=np.array(ANSWERS).ravel(), shaped=made.reward, **columns)
    found = advantages(made, method_with(config), config.kl, COEF)[0].advantages
    return torch.from_numpy(found).reshape(-1, 2).double()


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
    found = table_advantages(policy, other, rewards, method, estimator, **loss)
    scored = (logp.detach().exp()[:, None] * found * tokens).sum()
    torch.testing.assert_close(torch.autograd.grad(scored, policy.logits)[0], exact, atol=1e-5, rtol=0)
    assert exact.abs().max() > 0.1


def test_the_full_kl_of_later_states_varies_less() -> None:
    """Why it is worth its cost: the first token's advantage has no noise of the second one's draw."""
    policy, other, none = Table(0), Table(1), torch.zeros(len(ANSWERS))
    k1, full = (table_advantages(policy, other, none, "reinforce", name)[:, 0] for name in ("k1", "full"))
    for a in range(VOCAB):
        after = torch.tensor([first == a for first, _ in ANSWERS])
        assert full[after].std() < 1e-6 < 1e-2 < k1[after].std()


def test_the_critic_learns_the_full_kl_without_a_tokens_own_part() -> None:
    """Its target is the value of the state, whatever was sampled there."""
    config = config_of("ppo", vars(KLConfig(estimator="full")), lam=1.0, whiten=False)
    made = replace(
        rollout([(4.0, 2, True)]),
        shaped=np.float32([4.0]),
        old=np.float32([-1, -2]),
        reference=np.float32([-3, -1]),
        kl=np.float32([0.5, 0.25]),
        values=np.zeros(2, np.float32),
    )
    made, _ = advantages(made, method_with(config), config.kl, 2.0)
    assert made.returns.tolist() == [2.5, 3.5]
    # less 2 * (k1 - full), of k1 = 2 and -1
    assert made.advantages.tolist() == [2.5 - 3.0, 3.5 + 2.5]


def compared(method: str, *rewards: float, **loss: Any) -> Rollout:
    """Responses of two tokens to one prompt, with advantages."""
    config = config_of(method, {"coef": 0.0}, **loss)
    made = rollout([(reward, 2, True) for reward in rewards])
    made = replace(made, shaped=made.reward, old=np.zeros(2 * len(rewards), np.float32))
    return advantages(made, method_with(config), config.kl, 0.0)[0]


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_large_rewards_are_told_apart(scale: str) -> None:
    """The squares of rewards above 1e19 do not fit float32: every advantage was 0."""
    made = compared("grpo", 3e38, -3e38, 3e38, -3e38, scale=scale)
    np.testing.assert_allclose(made.advantages[::2], np.array([1, -1, 1, -1]) * 0.75**0.5, rtol=1e-5)


def test_an_advantage_that_float32_cannot_hold_names_the_row() -> None:
    example = Example((Message("user", "a"),), (), origin=Origin("rows.jsonl", 7))
    with pytest.raises(
        NonFiniteError, match=r"rows\.jsonl:7: answer 1 of 2: advantages is inf, made of the reward 3e\+38"
    ):
        require_finite(compared("rloo", 3e38, -3e38), [example])
    require_finite(compared("rloo", 1.0, 2.0), [example])


@pytest.mark.parametrize("name", ["shaped", "advantages", "returns"])
def test_every_number_made_of_a_reward_is_looked_at(name: str) -> None:
    """And the answer that it belongs to is named, of its own prompt."""
    made = rollout([(1.0, 3, True), (2.0, 1, True)], [(3.0, 2, True), (4.0, 2, True)])
    good = replace(made, shaped=np.zeros(4), advantages=np.zeros(8), returns=np.zeros(8))
    values = getattr(good, name).copy()
    values[3 if name == "shaped" else 7] = np.nan
    examples = [Example((Message("user", "a"),), (), origin=Origin("rows.jsonl", row)) for row in (5, 9)]
    require_finite(good, examples)
    with pytest.raises(NonFiniteError, match=rf"rows\.jsonl:9: answer 2 of 2: {name} is nan, made of the reward 4;"):
        require_finite(replace(good, **{name: values}), examples)


def test_the_share_of_zero_variance_groups() -> None:
    """Of all prompts, by their rewards as they are; not said where every prompt has one response."""
    config = config_of("rloo", {"coef": 0.0})
    made = rollout([(1.0, 1, True), (1.0, 2, True)], [(1.0, 1, True), (2.0, 1, True)], [(0.5, 1, True)])
    made = replace(made, shaped=np.arange(5, dtype=np.float32))
    assert advantages(made, method_with(config), config.kl, 0.0)[1] == {"no_signal": pytest.approx(2 / 3)}
    alone = rollout([(1.0, 1, True)], [(1.0, 1, True)])
    assert advantages(replace(alone, shaped=alone.reward), method_with(config), config.kl, 0.0)[1] == {}
