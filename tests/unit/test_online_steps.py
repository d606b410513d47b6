"""The steps that are taken on a rollout, when it is left, and the weights that controllers move: driven by scripted
KLs, without a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch

from assent.algorithms.online.method import method_with
from assent.algorithms.online.models import ForwardCache, Models, keeps
from assent.algorithms.online.rollouts import Made
from assent.algorithms.online.train import Online
from assent.config import (
    CriticConfig,
    DataConfig,
    KLConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    PtxConfig,
    RolloutConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
)
from assent.data.packing import EpochStream, Window
from assent.data.tree import Branch, TokenTree, TreeBatch
from assent.deferred import resolved
from assent.distributed import World
from assent.models.policy import TokenScores
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, rollout_of
from assent.train.session import Session

PROMPTS = 6


class FakePolicy(torch.nn.Module):
    """Every token has the same log-prob."""

    tree = True
    value_head = None
    NLL = 1.5

    def __init__(self) -> None:
        super().__init__()
        self.nll = torch.nn.Parameter(torch.tensor(self.NLL))

    def forward(self, batch: TreeBatch) -> TokenScores:
        nothing = torch.zeros(len(batch.label))
        return TokenScores(-self.nll.expand(len(batch.label)), nothing, nothing, nothing)


def rollout_with(number: int, prompts: int, answers: int) -> Rollout:
    """Prompts of two tokens, `number` and their own number; answers of one token."""
    answer = Completion(np.array([9]), np.zeros(1, np.float32), True)
    ids = [np.array([number, prompt]) for prompt in range(prompts)]
    return rollout_of(ids, np.arange(prompts), [[answer] * answers] * prompts)


class FakeRollouts:
    """Rollouts of `PROMPTS` prompts, whose first token says which rollout they belong to."""

    def __init__(self, kl: float = 1.0, answers: int = 1, prompts: int = PROMPTS) -> None:
        self.kl, self.answers, self.size = kl, answers, prompts
        self.number = self.step = 0
        self.coefficients: list[float] = []
        self.looked: list[int] = []
        self.kept: list[bool] = []

    def make(self, kl_coef: float, *, steps: int, warming: bool, cache: ForwardCache) -> Made:
        self.number += 1
        self.coefficients.append(kl_coef)
        made = rollout_with(self.number, self.size, self.answers)
        self.kept.append(keeps(made, steps=steps, warming=warming, micro_tokens=4096, flat=False, ranks=1))
        return Made(made, {"rollout": float(self.number), "kl": self.kl}, ({"prompt": "?"},))

    def sample(self) -> None:
        pass

    def look_ahead(self) -> None:
        self.looked.append(self.number)

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def config_of(**options: Any) -> OnlineConfig:
    shared: dict[str, Any] = {"model": ModelConfig("unused"), "data": DataConfig("unused"), "out": "unused"}
    return online_config("ppo", **shared, **options)


def online(rollouts: FakeRollouts, rollout: RolloutConfig, **options: Any) -> Online:
    config = config_of(rollout=vars(rollout), **{"train": TrainConfig(batch_size=PROMPTS), **options})
    session = Session(config, World(0, 1, 0, torch.device("cpu")), *cast("Any", (None, None, None)))
    models = Models(cast("Any", FakePolicy()), None, None)
    made: Any = rollouts
    made.method = method_with(config)
    return Online(session, models, made, config)


class Driven:
    """Takes steps as the train loop does, with the KLs that it is told: None where the policy is not trained."""

    def __init__(self, algorithm: Online) -> None:
        self.algorithm = algorithm
        self.windows: Iterator[Window | None] = algorithm.windows()

    def step(self, kl: float | None = None) -> Window:
        window = next(made for made in self.windows if made is not None)
        self.algorithm.stepped({} if kl is None else {"approx_kl": kl, "mismatch": 0.0})
        return window


def prompts_of(window: Window) -> list[int]:
    """Which of the rollout's they are; each with its one answer is three tokens."""
    return [prompt for batch in window.batches for prompt in batch.tokens[1::3].tolist()]


def number_of(window: Window) -> int:
    """Which rollout it is of."""
    return int(window.batches[0].tokens[0])


# ---- steps


def test_every_pass_takes_every_tree_once_in_an_order_of_its_own() -> None:
    rollouts = FakeRollouts()
    driven = Driven(online(rollouts, RolloutConfig(epochs=2, minibatches=3)))
    orders = []
    for rollout in (1, 2):
        for _ in range(2):
            windows = [driven.step() for _ in range(3)]
            assert [number_of(window) for window in windows] == [rollout] * 3
            assert [window.counts.prompts for window in windows] == [2] * 3
            seen = [prompt for window in windows for prompt in prompts_of(window)]
            assert sorted(seen) == list(range(PROMPTS))
            orders.append(tuple(frozenset(prompts_of(window)) for window in windows))
    assert len(set(orders)) == 4
    assert rollouts.looked == [1, 2], "the next rollout is begun once for each"


def test_what_a_rollout_tells_is_logged_with_its_first_step() -> None:
    driven = Driven(online(FakeRollouts(), RolloutConfig(minibatches=2)))
    told = [driven.step() for _ in range(4)]
    assert [window.metrics.get("rollout") for window in told] == [1, None, 2, None]
    assert [len(window.samples) for window in told] == [1, 0, 1, 0]


def test_minibatches_without_an_answer_are_no_steps() -> None:
    rollouts = FakeRollouts(prompts=2)
    driven = Driven(online(rollouts, RolloutConfig(minibatches=4)))
    assert [number_of(driven.step()) for _ in range(5)] == [1, 1, 2, 2, 3]


# ---- leaving a rollout early


def test_the_rest_of_a_rollout_is_left_once_the_kl_is_above_the_target() -> None:
    driven = Driven(online(FakeRollouts(), RolloutConfig(epochs=2, minibatches=2, target_kl=0.1)))
    kls = (0.05, 0.11, 0.0, 0.1, 0.1, 0.1, 0.3, 0.0)
    assert [number_of(driven.step(kl)) for kl in kls] == [1, 1, 2, 2, 2, 2, 3, 4]


def test_without_a_target_no_kl_ends_a_rollout() -> None:
    driven = Driven(online(FakeRollouts(), RolloutConfig(minibatches=2)))
    assert [number_of(driven.step(9.0)) for _ in range(4)] == [1, 1, 2, 2]


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_state_saved_after_any_step_goes_on_alike(stop: int) -> None:
    """Also right after the step that ends a rollout early, and whether or not the run itself goes on."""
    kls = (0.05, 0.2, 0.0, 0.0, 0.01, 0.1, 0.0, 0.0, 0.0)
    options = {
        "loss": {"objective": "penalty", "penalty_target": 0.05},
        "kl": KLConfig(target=0.5, horizon=60),
        "rollout": RolloutConfig(epochs=2, minibatches=2, target_kl=0.1),
    }

    def take(driven: Driven, part: tuple[float, ...]) -> list[tuple[int, list[int], float, float]]:
        taken = []
        for kl in part:
            window = driven.step(kl)
            now = driven.algorithm.coefficients
            taken.append((number_of(window), prompts_of(window), now.penalty, now.kl))
        return taken

    straight = take(Driven(online(FakeRollouts(), **options)), kls)
    going = Driven(online(FakeRollouts(), **options))
    first = take(going, kls[:stop])
    state = copy.deepcopy(resolved(going.algorithm.state_dict()))
    resumed = Driven(online(FakeRollouts(), **options))
    resumed.algorithm.load_state_dict(state)
    assert first + take(resumed, kls[stop:]) == straight
    assert first + take(going, kls[stop:]) == straight, "saving changes nothing"
    assert [rollout for rollout, *_ in straight] == [1, 1, 2, 2, 2, 2, 3, 3, 3]


# ---- controllers


def test_the_penalty_halves_and_doubles_by_the_last_pass_over_a_rollout() -> None:
    options = {"loss": {"objective": "penalty", "penalty": 3.0, "penalty_target": 0.1}}
    driven = Driven(online(FakeRollouts(), RolloutConfig(epochs=2, minibatches=2), **options))
    passes = [(9.0, 9.0, 0.1, 0.0), (0.0, 0.0, 0.3, 0.02), (0.0, 9.0, 0.1, 0.1), (0.1, 0.1, 0.0, 0.0)]
    shown = []
    for kls in passes:
        shown.append(driven.step(kls[0]).metrics["penalty"])
        for kl in kls[1:]:
            assert driven.algorithm.coefficients.penalty == shown[-1], "it moves between rollouts only"
            driven.step(kl)
    driven.step()
    assert [*shown, driven.algorithm.coefficients.penalty] == [3.0, 1.5, 3.0, 3.0, 1.5]


def test_the_penalty_stays_without_a_target() -> None:
    driven = Driven(online(FakeRollouts(), RolloutConfig(), loss={"objective": "penalty", "penalty": 3.0}))
    assert [driven.step(9.0).metrics["penalty"] for _ in range(3)] == [3.0] * 3


def test_the_kl_coefficient_follows_its_rule() -> None:
    """coef *= 1 + clamp(kl / target - 1, -0.2, 0.2) * answers / horizon (arXiv 1909.08593)."""
    rollouts = FakeRollouts(answers=2)
    driven = Driven(online(rollouts, RolloutConfig(), kl=KLConfig(coef=0.1, target=4.0, horizon=100)))
    kls, expected = (4.4, 100.0, 0.0, 4.0), [0.1]
    shown = []
    for kl in kls:
        rollouts.kl = kl
        shown.append(driven.step().metrics["kl_coef"])
        error = max(-0.2, min(0.2, kl / 4.0 - 1))
        expected.append(expected[-1] * (1 + error * 2 * PROMPTS / 100))
    assert shown == pytest.approx(expected[:-1])
    assert rollouts.coefficients == pytest.approx(expected[:-1]), "what rewards were made with"
    assert driven.algorithm.coefficients.kl == pytest.approx(expected[-1])


def test_the_kl_coefficient_stays_without_a_target() -> None:
    rollouts = FakeRollouts()
    driven = Driven(online(rollouts, RolloutConfig(), kl=KLConfig(coef=0.1)))
    assert all("kl_coef" not in driven.step().metrics for _ in range(3)) and rollouts.coefficients == [0.1] * 3


def test_the_critic_learns_alone_for_as_many_rollouts_as_asked() -> None:
    options = {"critic": CriticConfig("policy", warmup=2)}
    driven = Driven(online(FakeRollouts(), RolloutConfig(minibatches=2), **options))
    warming = []
    for _ in range(6):
        driven.step()
        warming.append(driven.algorithm.coefficients.warming)
    assert warming == [True] * 4 + [False] * 2


def test_the_passes_over_a_rollout_are_kept_where_one_step_is_to_follow_and_trains_the_policy() -> None:
    rollouts = FakeRollouts()
    driven = Driven(online(rollouts, RolloutConfig(), critic=CriticConfig("policy", warmup=2)))
    for _ in range(4):
        driven.step()
    assert rollouts.kept == [False, False, True, True]
    for rollout in (RolloutConfig(epochs=2), RolloutConfig(minibatches=2)):
        rollouts = FakeRollouts()
        driven = Driven(online(rollouts, rollout))
        for _ in range(4):
            driven.step()
        assert rollouts.kept == [False, False]


def test_passes_are_kept_only_where_each_rank_has_one_micro_batch() -> None:
    def kept(answers: int, micro_tokens: int, *, flat: bool = False, ranks: int = 1) -> bool:
        made = rollout_with(1, PROMPTS, answers)
        return keeps(made, steps=1, warming=False, micro_tokens=micro_tokens, flat=flat, ranks=ranks)

    assert kept(1, 3 * PROMPTS) and not kept(1, 3 * PROMPTS - 1)
    assert kept(1, 3 * PROMPTS // 2, ranks=2)
    assert kept(2, 4 * PROMPTS) and not kept(2, 4 * PROMPTS, flat=True) and kept(2, 6 * PROMPTS, flat=True)


# ---- an averaged policy


class FakeAverage:
    """Its log-probs tell how many steps it has followed."""

    def __init__(self) -> None:
        self.followed = 0

    def follow(self) -> None:
        self.followed += 1

    def logprobs(self, batch: TreeBatch, temperature: float) -> torch.Tensor:
        assert temperature == 0.7
        return torch.full(batch.label.shape, float(self.followed))

    def state_dict(self) -> dict[str, Any]:
        return {"followed": self.followed}


def test_the_average_follows_every_step_once_before_the_next() -> None:
    algorithm = online(FakeRollouts(), RolloutConfig(minibatches=2), sampling=SamplingConfig(temperature=0.7))
    algorithm.ewma = fake = cast("Any", FakeAverage())
    driven = Driven(algorithm)
    for step in range(5):
        window = driven.step(0.0)
        assert fake.followed == step + 1
        for batch in window.batches:
            assert batch.per_token["ewma"].tolist() == [float(step)] * len(batch.label)
        assert algorithm.state_dict()["ewma"] == {"followed": step + 1}


# ---- data mixed in


def test_mixed_in_data_weigh_as_a_mean_over_their_tokens() -> None:
    """Whatever the micro-batches; their number of tokens is not among the counts of the step."""
    trees = [
        TokenTree(np.array([7]), (Branch(np.arange(size), np.ones(size, bool)),), key=100 + size) for size in (2, 5, 9)
    ]
    algorithm = online(FakeRollouts(), RolloutConfig(), ptx=PtxConfig("unused", coef=0.3))
    algorithm.mixed = EpochStream(trees, batch_size=3, micro_tokens=9, seed=0, flat=False)
    window = Driven(algorithm).step()
    assert window.mixed is not None
    mixed, policy = window.mixed.batches, cast("FakePolicy", algorithm.models.policy)
    assert sorted(key for batch in mixed for key in batch.keys) == [102, 105, 109] and len(mixed) > 1
    losses = [window.mixed.loss(batch) for batch in mixed]
    for batch, loss in zip(mixed, losses, strict=True):
        assert float(loss.total.detach()) == pytest.approx(0.3 / 16 * len(batch.label) * policy.NLL)
    assert sum(len(batch.label) for batch in mixed) == 16
    sum(loss.total for loss in losses).backward()
    assert float(policy.nll.grad) == pytest.approx(0.3)
    assert window.counts.tokens == sum(len(batch.label) for batch in window.batches) == PROMPTS
    assert window.num_tokens == 3 * PROMPTS + 16 + 3


def test_nothing_is_mixed_in_while_the_critic_learns_alone() -> None:
    trees = [TokenTree(np.array([7]), (Branch(np.arange(3), np.ones(3, bool)),))]
    algorithm = online(FakeRollouts(), RolloutConfig(), critic=CriticConfig("policy", warmup=1))
    algorithm.mixed = EpochStream(trees, batch_size=1, micro_tokens=9, seed=0, flat=False)
    driven = Driven(algorithm)
    found = [driven.step().mixed is not None for _ in range(3)]
    assert found == [False, True, True] and algorithm.mixed.given == 2


# ---- learning rates


@pytest.mark.parametrize(("batch", "ratio"), [(64, 1.0), (256, 4.0), (16, 0.25)])
def test_learning_rates_are_rescaled_to_the_batch(batch: int, ratio: float) -> None:
    def rates(**loss: Any) -> tuple[float, float | None]:
        train, optim = TrainConfig(batch_size=batch), OptimConfig(lr=1e-3)
        method = method_with(config_of(loss=loss, optim=optim, train=train))
        return method.learning_rate, method.ewma

    lr, decay = rates(tuned_batch=64, ewma=0.9)
    assert lr == pytest.approx(1e-3 * math.sqrt(ratio)) and decay is not None
    assert decay / (1 - decay) == pytest.approx(9 / ratio)
    assert rates(tuned_batch=64) == (pytest.approx(lr), None)
    assert rates(ewma=0.9) == (1e-3, 0.9)
