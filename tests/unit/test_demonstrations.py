"""Demonstrations: made as sampled responses are, joined where they should be, and left out of all that speaks about the
policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from assent.algorithms.online.demonstrations import hinted, of_rows, row_answers, with_demonstrations
from assent.algorithms.online.method import method_with
from assent.algorithms.online.models import ForwardCache, Models
from assent.algorithms.online.rollouts import Made, Rollouts
from assent.algorithms.online.stages import advantages, score
from assent.algorithms.online.train import assemble
from assent.config import (
    DataConfig,
    GivenConfig,
    KLConfig,
    ModelConfig,
    RewardsConfig,
    RolloutConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
)
from assent.data.chat import Chat
from assent.data.records import Example, Message, Origin, Response
from assent.data.tree import collate
from assent.deferred import resolved
from assent.distributed import World
from assent.errors import ConfigError, DataError
from assent.models.loading import load_policy
from assent.models.references import Reference
from assent.rewards.group import Group, Progress, Scores
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, rollout_of
from assent.train.session import Session


@pytest.fixture(scope="module")
def chat(tokenizer) -> Chat:
    return Chat(tokenizer)


def example(text: str | None, question: str = "Red or blue?", number: int = 1, **meta: object) -> Example:
    responses = () if text is None else (Response((Message("assistant", text),)),)
    messages = (Message("system", "Be brief."), Message("user", question))
    return Example(messages, responses, origin=Origin("rows.jsonl", number), meta=meta)


# ---- the answer in the row


def test_a_rows_answer_is_what_sampling_it_would_have_given(chat: Chat) -> None:
    row = example("Paris is in France.")
    (found,) = row_answers(chat, [row], 40)
    assert found is not None
    ids = np.append(chat.tokenizer("Paris is in France.")["input_ids"], chat.tokenizer.eos_token_id)
    prompt = chat.prompt_ids(row.prompt)
    made = of_rows([prompt], [0], {0: found})
    sampled = rollout_of([prompt], np.zeros(1), [[Completion(ids, np.zeros(len(ids), np.float32), True)]])
    one, other = collate(made.trees()), collate(sampled.trees())
    for name in ("tokens", "positions", "source", "label", "response", "last"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert made.finished.tolist() == [True]
    assert chat.decode(found) == "Paris is in France."


def test_answers_that_do_not_fit_are_left_out(chat: Chat) -> None:
    row = example("red green blue")
    size = len(chat.tokenizer("red green blue")["input_ids"]) + 1
    found = [row_answers(chat, [row], longest)[0] for longest in (size - 1, size, size + 1)]
    assert found[0] is None and all(ids is not None and len(ids) == size for ids in found[1:])


def test_rows_without_a_plain_answer_have_none(chat: Chat) -> None:
    turns = (Message("assistant", "Red."), Message("user", "Sure?"), Message("assistant", "Blue."))
    several = Example((Message("user", "Red or blue?"),), (Response(turns),))
    user = Example((Message("user", "Red or blue?"),), (Response((Message("user", "Red."),)),))
    found = row_answers(chat, [example(None), several, user, example("Blue.")], 60)
    assert [ids is None for ids in found] == [True, True, True, False]


def test_several_turns_are_no_answer_however_long_they_are(chat: Chat) -> None:
    """Also where the number of trained tokens happens to end at another turn's end."""
    turns = [
        (Message("assistant", "Red."), Message("user", "Sure?"), Message("assistant", "red " * length + end))
        for length in range(1, 20)
        for end in ("red", "red!")
    ]
    rows = [Example((Message("user", "Red or blue?"),), (Response(messages),)) for messages in turns]
    assert row_answers(chat, rows, 200) == [None] * len(rows)


# ---- hints


def test_the_hint_stands_below_the_prompt(chat: Chat) -> None:
    rows = [example("Blue.", level=3, a={"b": 1}), example(None, "2 + 2?", answer="4", level="easy", a={"b": 1})]
    found = hinted(chat, rows, "Say {answer} ({level}) in {{braces}} {a.b}", 96)
    wanted = [("Red or blue?", "Blue.", "3"), ("2 + 2?", "4", "easy")]
    for ids, row, (question, answer, level) in zip(found, rows, wanted, strict=True):
        told = f"{question}\n\nSay {answer} ({level}) in {{braces}} 1"
        assert ids.tolist() == chat.prompt_ids((row.prompt[0], Message("user", told))).tolist()


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        ("Say {answer}", r"'Say \{answer\}': rows.jsonl:2 has no answer. It can name: answer, level."),
        ("Say {gold}", r"rows.jsonl:1 has no gold. It can name: answer, level."),
        ("Say {answer", r"'Say \{answer': expected '}' before end of string. A brace itself is written twice"),
    ],
)
def test_a_hint_that_cannot_be_filled_says_so(hint: str, words: str, chat: Chat) -> None:
    with pytest.raises(ConfigError, match="^--given.hint .*" + words):
        hinted(chat, [example("Blue.", level=1), example(None, number=2, level=2)], hint, 96)


# ---- joining


PROMPT = np.array([7])


def sampled(*groups: Sequence[float], length: int = 2) -> Rollout:
    """Scored responses, one group for each prompt: the nth of a group is all n."""
    made = rollout_of(
        [PROMPT] * len(groups),
        np.arange(len(groups)),
        [
            [Completion(np.full(length, i), np.full(length, -1.0 - i, np.float32), True) for i in range(len(group))]
            for group in groups
        ],
    )
    rewards = np.array([reward for group in groups for reward in group], np.float32)
    return replace(made, reward=rewards, parts={"rule": rewards / 2})


def given(*rewards: float | None, length: int = 3) -> Rollout:
    """A scored demonstration to each prompt; to some there is none."""
    answers = {row: np.full(length, 9, np.int32) for row, reward in enumerate(rewards) if reward is not None}
    made = of_rows([PROMPT] * len(rewards), range(len(rewards)), answers)
    return replace(made, reward=np.array([reward for reward in rewards if reward is not None], np.float32))


ALWAYS = GivenConfig("row", when="always")


class Scripted:
    """These rewards, in order."""

    name = "scripted"

    def __init__(self, *rewards: float) -> None:
        self.rewards = rewards

    def check(self, examples: Sequence[Example]) -> None:
        pass

    def score(self, groups: Sequence[Group]) -> Scores:
        assert sum(map(len, groups)) == len(self.rewards)
        return Scores(np.array(self.rewards))


@pytest.mark.parametrize(
    ("when", "kept"), [("always", [True, True, True, False, False]), ("better", [True, False, False, False, False])]
)
def test_when_a_demonstration_is_joined(when: str, kept: list[bool], chat: Chat) -> None:
    """Better, equal, worse, none, unscored."""
    rows = [example("Blue.", number=number) for number in range(5)]
    prompts = [chat.prompt_ids(row.prompt) for row in rows]
    demonstrations = of_rows(prompts, range(5), {row: np.array([9, 9]) for row in (0, 1, 2, 4)})
    scored = score(demonstrations, Scripted(2.5, 2.0, 0.0, math.nan), rows, chat, Progress())
    assert scored.failures == {"no reason given": 1}
    joined, share = with_demonstrations(
        GivenConfig("row", when=when), sampled(*[(1.0, 2.0)] * 5), replace(scored.rollout, parts={})
    )
    assert (joined.sizes == 3).tolist() == kept
    assert share == pytest.approx(sum(kept) / 5)


def test_a_joined_demonstration_stands_last_and_is_marked() -> None:
    joined, _ = with_demonstrations(ALWAYS, sampled((1.0, 2.0), (1.0,)), given(5.0, None))
    tree, plain = joined.trees("sampled", "sampler")
    assert [branch.per_token["sampled"].tolist() for branch in tree.branches] == [[1, 1], [1, 1], [0, 0, 0]]
    assert plain.branches[0].per_token["sampled"].tolist() == [1, 1]
    assert [branch.per_token["sampler"].tolist() for branch in tree.branches[:2]] == [[-1, -1], [-2, -2]]
    assert np.isnan(tree.branches[2].per_token["sampler"]).all() and tree.branches[2].ids.tolist() == [9, 9, 9]
    assert joined.demonstration.tolist() == [False, False, True, False]
    assert joined.reward.tolist() == [1, 2, 5, 1]
    assert joined.finished.tolist() == [True] * 4
    assert np.isnan(joined.parts["rule"]).tolist() == [False, False, True, False], "a part that nobody gave"
    other = replace(given(5.0), parts={"rule": np.array([4.0], np.float32)})
    known, _ = with_demonstrations(GivenConfig("row"), sampled((1.0,)), other)
    assert known.parts["rule"].tolist() == [0.5, 4.0]


def test_without_demonstrations_the_sampled_ones_are_left() -> None:
    before = sampled((1.0, 2.0), (3.0,))
    joined, _ = with_demonstrations(ALWAYS, before, given(5.0, 1.0))
    left = joined.sampled()
    assert len(joined) == 5 and len(left) == 3
    for name in ("reward", "finished", "sampler", "ids", "lengths", "prompt", "demonstration"):
        assert getattr(left, name).tolist() == getattr(before, name).tolist(), name
    assert left.parts["rule"].tolist() == before.parts["rule"].tolist()
    assert before.sampled() is before


def test_a_rollout_with_demonstrations_is_stored_and_loaded() -> None:
    joined, _ = with_demonstrations(ALWAYS, sampled((1.0, 2.0), (3.0,)), given(5.0, None))
    loaded = Rollout.from_state(joined.state_dict())
    for name in ("sampler", "demonstration"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(joined, name))
    assert loaded.sizes.tolist() == [3, 1]
    np.testing.assert_array_equal(loaded.parts["rule"], joined.parts["rule"])


# ---- advantages


@pytest.mark.parametrize("estimator", ["k1", "k2", "full"])
def test_the_kl_in_the_reward_is_that_of_sampled_answers(estimator: Any) -> None:
    """A demonstration's tokens are not charged for being unlikely; those of the others as if it were not there."""
    joined, _ = with_demonstrations(ALWAYS, sampled((1.0, 2.0)), given(5.0))
    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=7).astype(np.float32) for name in ("old", "reference", "kl")}
    config = online_config(
        "reinforce",
        model=ModelConfig("unused"),
        data=DataConfig("unused"),
        out="unused",
        kl=vars(KLConfig(estimator=estimator)),
    )

    def advantages_of(rollout: Rollout) -> np.ndarray:
        made, _ = advantages(rollout, method_with(config), config.kl, 0.3)
        assert made.advantages is not None
        return made.advantages

    annotated = replace(joined, shaped=joined.reward, **numbers)
    found = advantages_of(annotated)
    assert found[4:].tolist() == [5.0, 5.0, 5.0]
    np.testing.assert_array_equal(found[:4], advantages_of(annotated.sampled()))
    assert np.abs(found[:4] - [1, 1, 2, 2]).min() > 1e-3


# ---- a whole rollout


class Lengths:
    """Rewards an answer for its tokens, in two parts; notes the prompts that it is shown."""

    name = "lengths"

    def __init__(self) -> None:
        self.shown: list[list[int]] = []

    def check(self, examples: Sequence[Example]) -> None:
        pass

    def score(self, groups: Sequence[Group]) -> Scores:
        self.shown += [list(group.prompt_ids) for group in groups]
        values = np.array([float(length) for group in groups for length in group.lengths])
        return Scores(values, {"half": values / 2, "other": values / 2})


@pytest.fixture
def make(tiny_model_dir: Path, chat: Chat) -> Any:
    """Of three prompts; the second's answer in the row is longer than sampled ones may be."""
    policy = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=96)
    frozen = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=96, trainable=False)
    with torch.no_grad():
        frozen.model.get_input_embeddings().weight.mul_(2.0)
    rows = [example("red", "Red?"), example("red green blue " * 9, "Blue?"), example("red green blue", "All?")]

    def build(method: str = "rloo", **options: Any) -> Rollouts:
        config = online_config(
            method,
            model=ModelConfig(str(tiny_model_dir)),
            data=DataConfig("unused", max_length=96),
            out="unused",
            train=TrainConfig(batch_size=3),
            rewards=RewardsConfig(("lengths",)),
            sampling=SamplingConfig(max_new_tokens=9),
            rollout=vars(RolloutConfig(responses=2, epochs=2, show=3)),
            **options,
        )
        session = Session(config, World(0, 1, 0, torch.device("cpu")), cast("Any", None), chat.tokenizer, chat)
        models = Models(policy, None, Reference(policy, frozen))
        return assemble(session, models, Lengths(), rows, config).rollouts

    return build


def next_of(rollouts: Rollouts) -> Made:
    return rollouts.make(0.1, steps=2, warming=False, cache=ForwardCache())


SPEAK_OF_THE_POLICY = (
    "reward", "reward_std", "reward/half", "kl", "entropy", "length", "unfinished",
)  # fmt: skip


def test_what_is_reported_of_the_policy_leaves_demonstrations_out(make) -> None:
    plain = next_of(make())
    with_row = next_of(make(given=ALWAYS))
    for name in SPEAK_OF_THE_POLICY:
        assert with_row.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-4, abs=1e-5), name
        assert math.isfinite(with_row.metrics[name])
    assert with_row.metrics["given"] == pytest.approx(2 / 3), "the answer that is too long is not given"
    np.testing.assert_allclose(with_row.rollout.sampled().old, plain.rollout.old, atol=1e-5)
    assert [sample["given"] for sample in with_row.samples].count(True) == 2
    assert {sample["response"] for sample in with_row.samples if sample["given"]} == {"red", "red green blue"}
    assert abs(plain.metrics["kl"]) > 1e-2 and "given" not in plain.samples[0]


def test_better_looks_at_the_sampled_rewards(make) -> None:
    made = next_of(make(given=GivenConfig("row")))
    rollout, expected = made.rollout, 0
    for rewards, marks in zip(rollout.by_prompt(rollout.reward), rollout.by_prompt(rollout.demonstration), strict=True):
        expected += marks[-1]
        assert not marks[:-1].any() and (not marks[-1] or rewards[-1] > rewards[:-1].max())
    assert made.metrics["given"] == pytest.approx(expected / 3)


def test_a_hinted_answer_is_an_answer_to_the_prompt_alone(make, chat: Chat) -> None:
    """What was sampled below the hint is scored and trained on without it."""
    rollouts = make(given=GivenConfig("hint", "Say red", when="always"))
    asked: list[Any] = []
    sample = rollouts.sampler.sample
    rollouts.sampler.sample = lambda asks: asked.append((asks, sample(asks))) or asked[-1][1]
    made = next_of(rollouts)
    ((main, hints), (_, below)) = asked[0]
    assert rollouts.source.shown == [prompt.tolist() for prompt in main.prompts] * 2
    assert hints.n == 1 and main.seed != hints.seed
    assert made.metrics["given"] == 1.0
    assert [prompt.tolist() for prompt in made.rollout.prompts] == [prompt.tolist() for prompt in main.prompts]
    for prompt, told in zip(main.prompts, hints.prompts, strict=True):
        assert "Say red" in chat.tokenizer.decode(told) and len(told) > len(prompt)
    assert made.rollout.demonstration.tolist() == [False, False, True] * 3
    assert [ids.tolist() for ids in made.rollout.answers[2::3]] == [ids.tolist() for ids in below.answers]
    assert made.rollout.finished[2::3].tolist() == below.finished.tolist()


def test_a_prompt_that_is_too_long_with_its_hint_gets_none(make, caplog) -> None:
    rollouts = make(given=GivenConfig("hint", "Say {answer} {answer}", when="always"))
    assert [hint is None for hint in rollouts.hints] == [False, True, False]
    assert caplog.messages == ["unused: 1 of 3 prompts have more than 87 tokens with --given.hint and get no hint"]
    state = resolved(rollouts.state_dict())
    made = next_of(rollouts)
    assert made.metrics["given"] == pytest.approx(2 / 3)
    assert sorted(made.rollout.sizes) == [2, 3, 3]
    rollouts.hints = [None] * 3
    rollouts.load_state_dict(state)
    assert next_of(rollouts).metrics["given"] == 0.0
    with pytest.raises(
        DataError, match=r"3 of 3 prompts have more than 87 tokens with --given.hint \(--data.max_length less"
    ):
        make(given=GivenConfig("hint", "Say {answer} " + "red " * 90))
