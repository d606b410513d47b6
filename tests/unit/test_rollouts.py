"""Rollouts over a scripted sampler and source of rewards: baselines, zero-variance groups, and sources that give
up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from assent.algorithms.online.method import method_with
from assent.algorithms.online.models import ForwardCache, Models
from assent.algorithms.online.rollouts import ROUNDS, Made, Rollouts
from assent.config import (
    CurriculumConfig,
    DataConfig,
    GivenConfig,
    KLConfig,
    ModelConfig,
    RewardsConfig,
    RolloutConfig,
    SamplingConfig,
    ShapingConfig,
    TrainConfig,
)
from assent.config import online_config as config_of
from assent.data.chat import Chat
from assent.data.records import Example, Message, Response
from assent.data.tree import TreeBatch
from assent.deferred import resolved
from assent.distributed import World
from assent.models.policy import TokenScores
from assent.rewards.group import Group, RewardError, Scores
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, rollout_of
from assent.rollout.sampler import Ask
from assent.train.session import Session

NUMBER = 4


class FakePolicy(torch.nn.Module):
    tree = True
    value_head = None

    def forward(self, batch: TreeBatch, temperature: float, **options: Any) -> TokenScores:
        zero = torch.zeros(len(batch.label))
        return TokenScores(zero, zero, zero, zero)


class FakeSampler:
    """The nth answer that it ever gives is the token n: nobody else's."""

    busy = False

    def __init__(self) -> None:
        self.asked: list[Sequence[Ask]] = []
        self.answers = 0

    def sample(self, asks: Sequence[Ask]) -> list[Rollout]:
        self.asked.append(asks)
        groups = [[[self._answer() for _ in range(ask.n)] for _ in ask.prompts] for ask in asks]
        return [rollout_of(ask.prompts, ask.rows, group) for ask, group in zip(asks, groups, strict=True)]

    def _answer(self) -> Completion:
        self.answers += 1
        return Completion(np.array([self.answers % 300 + 5]), np.zeros(1, np.float32), True)


class Source:
    """Rewards by a function of the prompt's number and the index of the answer; it can give up at the nth question."""

    name = "source"

    def __init__(self, reward: Callable[[int, int], float]) -> None:
        self.reward = reward
        self.questions: list[list[int]] = []
        self.fails_at: int | None = None

    def check(self, examples: Sequence[Example]) -> None:
        pass

    def score(self, groups: Sequence[Group]) -> Scores:
        numbers = [int(group.example.meta["number"]) for group in groups]
        self.questions.append(numbers)
        if len(self.questions) == self.fails_at:
            raise RewardError("the source gives up")
        return Scores(
            np.array([self.reward(n, i) for n, group in zip(numbers, groups, strict=True) for i in range(len(group))])
        )


@pytest.fixture
def make(tokenizer) -> Callable[..., tuple[Rollouts, Source]]:
    chat = Chat(tokenizer)
    rows = [
        Example(
            (Message("user", f"{number}?"),),
            () if number == 2 else (Response((Message("assistant", "red"),)),),
            meta={"number": number},
        )
        for number in range(NUMBER)
    ]

    def build(method: str, reward: Callable[[int, int], float], **options: Any) -> tuple[Rollouts, Source]:
        shared: dict[str, Any] = {
            "model": ModelConfig("unused"),
            "data": DataConfig("unused"),
            "out": "unused",
            "train": TrainConfig(batch_size=2),
            "rewards": RewardsConfig(("unused",)),
            "sampling": SamplingConfig(max_new_tokens=30),
            "rollout": vars(RolloutConfig(responses=2)),
            "kl": vars(KLConfig(coef=0.0)),
        }
        config = config_of(method, **{**shared, **options})
        session = Session(config, World(0, 1, 0, torch.device("cpu")), cast("Any", None), tokenizer, chat)
        models, source = Models(cast("Any", FakePolicy()), None, None), Source(reward)
        sampler = cast("Any", FakeSampler())
        return Rollouts(session, models, source, sampler, rows, config, method_with(config)), source

    return build


def next_of(rollouts: Rollouts) -> Made:
    """For a rollout of one step, without a critic to be warmed up."""
    return rollouts.make(0.0, steps=1, warming=False, cache=ForwardCache())


def prompts_of(rollouts: Rollouts, rollout: Rollout) -> list[int]:
    """Numbers of the prompts, by their tokens."""
    known = {tuple(ids.tolist()): index for index, ids in enumerate(rollouts.prompt_ids)}
    found = [known[tuple(prompt.tolist())] for prompt in rollout.prompts]
    assert rollout.rows.tolist() == found
    return found


# ---- baselines


def test_the_running_baseline_is_the_mean_before_this_rollout(make) -> None:
    """An answer is not compared with itself; a prompt that was not sampled to yet counts as the others do."""
    rollouts, _ = make("reinforce", lambda n, i: 10.0 * n + i, shaping=vars(ShapingConfig("running")))
    known: dict[int, list[float]] = {}
    for _ in range(6):
        rollout = next_of(rollouts).rollout
        prompts = prompts_of(rollouts, rollout)
        means = {n: float(np.mean(values)) for n, values in known.items()}
        others = float(np.mean(list(means.values()))) if means else 0.0
        wanted = rollout.reward - [means.get(prompts[p], others) for p in rollout.prompt]
        assert rollout.shaped.tolist() == pytest.approx(wanted.tolist())
        assert rollout.advantages.tolist() == pytest.approx(wanted.tolist())
        for n, rewards in zip(prompts, rollout.by_prompt(rollout.reward), strict=True):
            known.setdefault(n, []).extend(rewards.tolist())
    assert len(known) == NUMBER


def test_the_row_baseline_is_the_reward_of_the_rows_answer(make) -> None:
    """Asked for once for each prompt; 0 where the row has no answer."""
    rollouts, source = make("reinforce", lambda n, i: 10.0 * n + i, shaping=vars(ShapingConfig("row")))
    for _ in range(4):
        rollout = next_of(rollouts).rollout
        for n, shaped in zip(prompts_of(rollouts, rollout), rollout.by_prompt(rollout.shaped), strict=True):
            base = 0.0 if n == 2 else 10.0 * n
            assert shaped.tolist() == [10.0 * n - base, 10.0 * n + 1 - base]
    asked = [n for numbers in source.questions for n in numbers]
    assert sorted(asked) == sorted([*range(NUMBER), *range(NUMBER), 0, 1, 3]), "two passes, and each row once"


def test_remax_compares_with_the_greedy_answer_shaped_alike(make) -> None:
    rollouts, _ = make(
        "remax",
        lambda n, i: 3.0 * n + 5.0 * i,
        rollout=vars(RolloutConfig(responses=2)),
        shaping=vars(ShapingConfig(normalise="batch")),
    )
    rollout = next_of(rollouts).rollout
    (main, greedy), *_ = rollouts.sampler.asked
    assert greedy.temperature == 0.0 and greedy.n == 1 and main.temperature is None
    wanted = np.tile([0.0, 5.0], 2) / rollout.reward.std()  # the greedy answer is worth 3 n
    assert rollout.advantages == pytest.approx(wanted, rel=1e-5)


def unscored(*prompts: int) -> Callable[[int, int], float]:
    return lambda n, i: float("nan") if n in prompts else 5.0 * i + n


def test_remax_leaves_a_prompt_out_that_nothing_could_be_scored_for(make) -> None:
    """Its most likely answer is not needed then."""
    rollouts, _ = make("remax", unscored(1), train=TrainConfig(batch_size=NUMBER))
    rollout = next_of(rollouts).rollout
    assert sorted(prompts_of(rollouts, rollout)) == [0, 2, 3] and rollout.advantages.tolist() == [0.0, 5.0] * 3


def test_remax_needs_the_most_likely_answer(make) -> None:
    rollouts, source = make("remax", unscored())
    source.reward = lambda n, i: float("nan") if len(source.questions) == 2 and n == 1 else 1.0
    with pytest.raises(RewardError, match="rollout 1: the most likely answer to a prompt could not be scored"):
        next_of(rollouts), next_of(rollouts)


def test_the_most_likely_answer_is_no_demonstration(make) -> None:
    """Where no prompt of a rollout has a hint, the greedy answers are the last that were sampled."""
    rollouts, _ = make("remax", unscored(), given=GivenConfig("hint", "Say red", when="always"))
    rollouts.hints = [None] * NUMBER
    made = next_of(rollouts)
    assert made.metrics["given"] == 0.0 and not made.rollout.demonstration.any()
    rollouts, _ = make("remax", unscored(), given=GivenConfig("hint", "Say red", when="always"))
    made = next_of(rollouts)
    assert made.metrics["given"] == 1.0 and made.rollout.demonstration.tolist() == [False, False, True] * 2


# ---- zero-variance groups


def signal(n: int, i: int) -> float:
    return float(i) if n in (0, 3) else 1.0


def test_zero_variance_groups_are_replaced_and_rest(make) -> None:
    rollouts, _ = make("dapo", signal, curriculum=CurriculumConfig(rest=3))
    rollout = next_of(rollouts).rollout
    assert set(prompts_of(rollouts, rollout)) == {0, 3}
    seen = [n for n in range(NUMBER) if rollouts.prompts.count[n]]
    assert {0, 3} <= set(seen) and len(seen) > 2, "what was left out was seen too"
    assert all((rollouts.prompts.skipped_until[n] > 0) == (n in (1, 2)) for n in seen)


def test_the_mean_reward_counts_zero_variance_groups(make) -> None:
    rollouts, _ = make("dapo", lambda n, i: float(n) + i * (n in (0, 3)))
    for _ in range(3):
        next_of(rollouts)
    assert rollouts.prompts.means().tolist() == [0.5, 1.0, 2.0, 3.5]


def test_without_any_signal_what_was_seen_is_used(make, capsys) -> None:
    """Even where the last round could not be scored."""
    rollouts, source = make("dapo", lambda n, i: 1.0)
    source.reward = lambda n, i: float("nan") if len(source.questions) == ROUNDS else 1.0
    made = next_of(rollouts)
    assert len(made.rollout.prompts) == 2 and made.metrics["no_signal"] == 1
    assert made.metrics["unscored"] == 1 / ROUNDS
    assert f"no group of {ROUNDS * 2} had answers of different rewards" in capsys.readouterr().err


def test_rounds_of_a_rollout_sample_with_seeds_of_their_own(make) -> None:
    rollouts, _ = make("dapo", lambda n, i: 1.0, given=GivenConfig("hint", "Say red"))
    for _ in range(2):
        next_of(rollouts)
    seeds = [ask.seed for asks in rollouts.sampler.asked for ask in asks]
    hints = {asks[-1].seed for asks in rollouts.sampler.asked}
    mains = {asks[0].seed for asks in rollouts.sampler.asked}
    assert len(seeds) == 2 * 2 * ROUNDS and len(mains) == 2 * ROUNDS and not mains & hints


# ---- sources that give up


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "row baseline": ("reinforce", {"shaping": vars(ShapingConfig("row", "running"))}),
    "running baseline": ("reinforce", {"shaping": vars(ShapingConfig("running", "running"))}),
    "greedy": ("remax", {"shaping": vars(ShapingConfig(normalise="running"))}),
    "given row": ("rloo", {"given": GivenConfig("row", when="always")}),
    "given hint": ("rloo", {"given": GivenConfig("hint", "Say red", when="always")}),
    "dynamic": ("dapo", {"curriculum": CurriculumConfig(rest=1)}),
}


@pytest.mark.parametrize("question", range(1, 5))
@pytest.mark.parametrize("name", METHODS)
def test_a_source_that_gives_up_at_any_question_loses_nothing(name: str, question: int, make) -> None:
    """Its answers are kept and scored when it is there again: in the same run, or in one that loads the state."""
    method, options = METHODS[name]

    def rolls(rollouts: Rollouts, number: int) -> list[Any]:
        made = [next_of(rollouts).rollout for _ in range(number)]
        return [
            (prompts_of(rollouts, one), one.advantages.tolist(), [ids.tolist() for ids in one.answers]) for one in made
        ]

    straight = rolls(make(method, signal, **options)[0], 4)
    rollouts, source = make(method, signal, **options)
    source.fails_at = question
    done: list[Any] = []
    with pytest.raises(RewardError, match="the source gives up"):
        for _ in range(4):
            done += rolls(rollouts, 1)
    state = resolved(rollouts.state_dict())
    resumed, _ = make(method, signal, **options)
    resumed.load_state_dict(state)
    resumed.sampler.answers = rollouts.sampler.answers
    left = 4 - len(done)
    again = rolls(resumed, left)
    for made in (done + again, done + rolls(rollouts, left)):
        assert [row[:2] for row in made] == [row[:2] for row in straight]
        if name != "dynamic":  # there, what a later round had sampled is sampled again
            assert [row[2] for row in made] == [row[2] for row in straight]
