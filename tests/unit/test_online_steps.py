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

from assent.algorithms.experience import Rollout
from assent.algorithms.models import Models
from assent.algorithms.online import Online, _rates
from assent.algorithms.surrogate import PROXIMAL, PTX
from assent.config import DataConfig, ModelConfig, OptimConfig, SamplingConfig, TrainConfig
from assent.data.packing import EpochStream, Window
from assent.data.tree import Branch, TokenTree, TreeBatch
from assent.deferred import resolved
from assent.distributed import World
from assent.online import CriticConfig, KLConfig, PtxConfig, RolloutConfig, online_config
from assent.train.session import Session

PROMPTS = 6


class FakePolicy(torch.nn.Module):
    tree = True
    value_head = None


class FakeExperience:
    """Rollouts of `PROMPTS` trees, whose first token says which rollout they belong to."""

    def __init__(self, kl: float = 1.0, answers: int = 1) -> None:
        self.kl, self.answers = kl, answers
        self.number = 0
        self.coefficients: list[float] = []
        self.looked: list[int] = []
        self.keeps: list[bool] = []

    def make(self, kl_coef: float, *, keep: bool) -> Rollout:
        self.number += 1
        self.keeps.append(keep)
        self.coefficients.append(kl_coef)
        fields = {"sampler": np.zeros(1, np.float32)}
        branches = tuple(Branch(np.array([9]), np.ones(1, bool), fields) for _ in range(self.answers))
        trees = [TokenTree(np.array([self.number, prompt]), branches, key=prompt) for prompt in range(PROMPTS)]
        return Rollout(trees, {"rollout": float(self.number), "kl": self.kl}, ({"prompt": "?"},))

    def sample(self) -> None:
        pass

    def look_ahead(self) -> None:
        self.looked.append(self.number)

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def online(experience: FakeExperience, rollout: RolloutConfig, **options: Any) -> Online:
    config = online_config(
        "ppo",
        model=ModelConfig("unused"),
        data=DataConfig("unused"),
        out="unused",
        rollout=vars(rollout),
        **{"train": TrainConfig(batch_size=PROMPTS), **options},
    )
    session = Session(config, World(0, 1, 0, torch.device("cpu")), *cast("Any", (None, None, None)))
    models = Models(cast("Any", FakePolicy()), None, None)
    return Online(session, models, cast("Any", experience), config)


class Driven:
    """Takes steps as the train loop does, with the KLs that it is told."""

    def __init__(self, algorithm: Online) -> None:
        self.algorithm = algorithm
        self.windows: Iterator[Window | None] = algorithm.windows()

    def step(self, kl: float | None = None) -> Window:
        window = next(made for made in self.windows if made is not None)
        if kl is not None:  # as two micro-batches
            self.algorithm.pending = {"approx_kl": (kl * 8, 8.0)}
        self.algorithm.stepped({})
        return window


def prompts_of(window: Window) -> list[int]:
    return [key for batch in window.batches for key in batch.keys]


def rollout_of(window: Window) -> int:
    return int(window.batches[0].tokens[0])


# ---- steps


def test_every_pass_takes_every_tree_once_in_an_order_of_its_own() -> None:
    experience = FakeExperience()
    driven = Driven(online(experience, RolloutConfig(epochs=2, minibatches=3)))
    orders = []
    for rollout in (1, 2):
        for _ in range(2):
            windows = [driven.step() for _ in range(3)]
            assert [rollout_of(window) for window in windows] == [rollout] * 3
            assert [window.counts.prompts for window in windows] == [2] * 3
            seen = [prompt for window in windows for prompt in prompts_of(window)]
            assert sorted(seen) == list(range(PROMPTS))
            orders.append(tuple(frozenset(prompts_of(window)) for window in windows))
    assert len(set(orders)) == 4
    assert experience.looked == [1, 2], "the next rollout is begun once for each"


def test_what_a_rollout_tells_is_logged_with_its_first_step() -> None:
    driven = Driven(online(FakeExperience(), RolloutConfig(minibatches=2)))
    told = [driven.step() for _ in range(4)]
    assert [window.metrics.get("rollout") for window in told] == [1, None, 2, None]
    assert [len(window.samples) for window in told] == [1, 0, 1, 0]


def test_minibatches_without_an_answer_are_no_steps() -> None:
    experience = FakeExperience()
    make = experience.make

    def few(kl_coef: float, *, keep: bool) -> Rollout:
        made = make(kl_coef, keep=keep)
        return Rollout(made.trees[:2], made.metrics, made.samples)

    experience.make = few
    driven = Driven(online(experience, RolloutConfig(minibatches=4)))
    assert [rollout_of(driven.step()) for _ in range(5)] == [1, 1, 2, 2, 3]


# ---- leaving a rollout early


def test_the_rest_of_a_rollout_is_left_once_the_kl_is_above_the_target() -> None:
    driven = Driven(online(FakeExperience(), RolloutConfig(epochs=2, minibatches=2, target_kl=0.1)))
    kls = (0.05, 0.11, 0.0, 0.1, 0.1, 0.1, 0.3, 0.0)
    assert [rollout_of(driven.step(kl)) for kl in kls] == [1, 1, 2, 2, 2, 2, 3, 4]


def test_without_a_target_no_kl_ends_a_rollout() -> None:
    driven = Driven(online(FakeExperience(), RolloutConfig(minibatches=2)))
    assert [rollout_of(driven.step(9.0)) for _ in range(4)] == [1, 1, 2, 2]


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
            surrogate = driven.algorithm.surrogate
            taken.append((rollout_of(window), prompts_of(window), surrogate.penalty, surrogate.kl_coef))
        return taken

    straight = take(Driven(online(FakeExperience(), **options)), kls)
    going = Driven(online(FakeExperience(), **options))
    first = take(going, kls[:stop])
    state = copy.deepcopy(resolved(going.algorithm.state_dict()))
    resumed = Driven(online(FakeExperience(), **options))
    resumed.algorithm.load_state_dict(state)
    assert first + take(resumed, kls[stop:]) == straight
    assert first + take(going, kls[stop:]) == straight, "saving changes nothing"
    assert [rollout for rollout, *_ in straight] == [1, 1, 2, 2, 2, 2, 3, 3, 3]


# ---- controllers


def test_the_penalty_halves_and_doubles_by_the_last_pass_over_a_rollout() -> None:
    options = {"loss": {"objective": "penalty", "penalty": 3.0, "penalty_target": 0.1}}
    driven = Driven(online(FakeExperience(), RolloutConfig(epochs=2, minibatches=2), **options))
    passes = [(9.0, 9.0, 0.1, 0.0), (0.0, 0.0, 0.3, 0.02), (0.0, 9.0, 0.1, 0.1), (0.1, 0.1, 0.0, 0.0)]
    shown = []
    for kls in passes:
        shown.append(driven.step(kls[0]).metrics["penalty"])
        for kl in kls[1:]:
            assert driven.algorithm.surrogate.penalty == shown[-1], "it moves between rollouts only"
            driven.step(kl)
    driven.step()
    assert [*shown, driven.algorithm.surrogate.penalty] == [3.0, 1.5, 3.0, 3.0, 1.5]


def test_the_penalty_stays_without_a_target() -> None:
    driven = Driven(online(FakeExperience(), RolloutConfig(), loss={"objective": "penalty", "penalty": 3.0}))
    assert [driven.step(9.0).metrics["penalty"] for _ in range(3)] == [3.0] * 3


def test_the_kl_coefficient_follows_its_rule() -> None:
    """coef *= 1 + clamp(kl / target - 1, -0.2, 0.2) * answers / horizon (arXiv 1909.08593)."""
    experience = FakeExperience(answers=2)
    driven = Driven(online(experience, RolloutConfig(), kl=KLConfig(coef=0.1, target=4.0, horizon=100)))
    kls, expected = (4.4, 100.0, 0.0, 4.0), [0.1]
    shown = []
    for kl in kls:
        experience.kl = kl
        shown.append(driven.step().metrics["kl_coef"])
        error = max(-0.2, min(0.2, kl / 4.0 - 1))
        expected.append(expected[-1] * (1 + error * 2 * PROMPTS / 100))
    assert shown == pytest.approx(expected[:-1])
    assert experience.coefficients == pytest.approx(expected[:-1]), "what rewards were made with"
    assert driven.algorithm.surrogate.kl_coef == pytest.approx(expected[-1])


def test_the_kl_coefficient_stays_without_a_target() -> None:
    experience = FakeExperience()
    driven = Driven(online(experience, RolloutConfig(), kl=KLConfig(coef=0.1)))
    assert all("kl_coef" not in driven.step().metrics for _ in range(3)) and experience.coefficients == [0.1] * 3


def test_the_critic_learns_alone_for_as_many_rollouts_as_asked() -> None:
    options = {"critic": CriticConfig("policy", warmup=2)}
    driven = Driven(online(FakeExperience(), RolloutConfig(minibatches=2), **options))
    warming = []
    for _ in range(6):
        driven.step()
        warming.append(driven.algorithm.surrogate.warming)
    assert warming == [True] * 4 + [False] * 2


def test_a_rollout_is_read_for_its_step_where_that_is_the_only_one_and_trains_the_policy() -> None:
    experience = FakeExperience()
    driven = Driven(online(experience, RolloutConfig(), critic=CriticConfig("policy", warmup=2)))
    for _ in range(4):
        driven.step()
    assert experience.keeps == [False, False, True, True]
    for rollout in (RolloutConfig(epochs=2), RolloutConfig(minibatches=2)):
        experience = FakeExperience()
        driven = Driven(online(experience, rollout))
        for _ in range(4):
            driven.step()
        assert experience.keeps == [False, False]


# ---- an averaged policy


class FakeProximal:
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
    algorithm = online(FakeExperience(), RolloutConfig(minibatches=2), sampling=SamplingConfig(temperature=0.7))
    algorithm.proximal = fake = cast("Any", FakeProximal())
    driven = Driven(algorithm)
    for step in range(5):
        window = driven.step(0.0)
        assert fake.followed == step + 1
        for batch in window.batches:
            assert batch.per_token[PROXIMAL].tolist() == [float(step)] * len(batch.label)
        assert algorithm.state_dict()["proximal"] == {"followed": step + 1}


# ---- data mixed in


def test_mixed_in_data_weigh_as_a_mean_over_their_tokens() -> None:
    """Whatever the micro-batches; their number of tokens is not among the counts of the step."""
    trees = [
        TokenTree(np.array([7]), (Branch(np.arange(size), np.ones(size, bool)),), key=100 + size) for size in (2, 5, 9)
    ]
    algorithm = online(FakeExperience(), RolloutConfig(), ptx=PtxConfig("unused", coef=0.3))
    algorithm.mixed = EpochStream(trees, batch_size=3, micro_tokens=9, seed=0, flat=False)
    window = Driven(algorithm).step()
    plain = [batch for batch in window.batches if PTX not in batch.per_token]
    mixed = [batch for batch in window.batches if PTX in batch.per_token]
    assert sorted(key for batch in mixed for key in batch.keys) == [102, 105, 109] and len(mixed) > 1
    weights = torch.cat([batch.per_token[PTX] for batch in mixed])
    assert weights.tolist() == pytest.approx([0.3 / 16] * 16)
    assert window.counts.tokens == sum(len(batch.label) for batch in plain) == PROMPTS


def test_nothing_is_mixed_in_while_the_critic_learns_alone() -> None:
    trees = [TokenTree(np.array([7]), (Branch(np.arange(3), np.ones(3, bool)),))]
    algorithm = online(FakeExperience(), RolloutConfig(), critic=CriticConfig("policy", warmup=1))
    algorithm.mixed = EpochStream(trees, batch_size=1, micro_tokens=9, seed=0, flat=False)
    driven = Driven(algorithm)
    found = [any(PTX in batch.per_token for batch in driven.step().batches) for _ in range(3)]
    assert found == [False, True, True] and algorithm.mixed.given == 2


# ---- rates


@pytest.mark.parametrize(("batch", "ratio"), [(64, 1.0), (256, 4.0), (16, 0.25)])
def test_rates_are_rescaled_to_the_batch(batch: int, ratio: float) -> None:
    def config(**loss: Any) -> Any:
        shared: dict[str, Any] = {"model": ModelConfig("unused"), "data": DataConfig("unused"), "out": "unused"}
        return online_config(
            "ppo", loss=loss, optim=OptimConfig(lr=1e-3), train=TrainConfig(batch_size=batch), **shared
        )

    lr, decay = _rates(config(tuned_batch=64, ewma=0.9))
    assert lr == pytest.approx(1e-3 * math.sqrt(ratio)) and decay is not None
    assert decay / (1 - decay) == pytest.approx(9 / ratio)
    assert _rates(config(tuned_batch=64)) == (pytest.approx(lr), None)
    assert _rates(config(ewma=0.9)) == (1e-3, 0.9)
