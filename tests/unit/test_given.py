"""Answers that the policy did not sample: made as sampled ones are, joined where they should be, and left out of all
that speaks about the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from assent.algorithms.credit import credit
from assent.algorithms.experience import Experience
from assent.algorithms.rollouts import GIVEN, as_trees, attach, pack_state, response_field, token_field, unpack_state

from assent.algorithms.online.demonstrations import hinted, row_trees, sampled_only, with_given
from assent.algorithms.online.models import Models
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
from assent.data.tree import Branch, TokenTree, collate
from assent.deferred import resolved
from assent.distributed import World
from assent.errors import ConfigError, DataError
from assent.models.loading import load_policy
from assent.models.references import Reference
from assent.rewards.group import Group, Scores
from assent.rollout.engine import Completion
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
    (tree,) = row_trees(chat, [row], 40)
    assert tree is not None
    ids = np.append(chat.tokenizer("Paris is in France.")["input_ids"], chat.tokenizer.eos_token_id)
    prompt = chat.prompt_ids(row.prompt)
    (sampled,) = as_trees([prompt], [[Completion(ids, np.zeros(len(ids), np.float32), True)]])
    one, other = collate([tree]), collate([sampled])
    for name in ("tokens", "positions", "source", "label", "response", "last"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert tree.per_response["finished"].tolist() == [1.0]
    assert chat.decode(tree.branches[0].ids) == "Paris is in France."


def test_answers_that_do_not_fit_are_left_out(chat: Chat) -> None:
    row = example("red green blue")
    size = len(chat.tokenizer("red green blue")["input_ids"]) + 1
    found = [row_trees(chat, [row], longest)[0] for longest in (size - 1, size, size + 1)]
    assert found[0] is None and all(tree is not None and len(tree.branches[0]) == size for tree in found[1:])


def test_rows_without_a_plain_answer_have_none(chat: Chat) -> None:
    turns = (Message("assistant", "Red."), Message("user", "Sure?"), Message("assistant", "Blue."))
    several = Example((Message("user", "Red or blue?"),), (Response(turns),))
    user = Example((Message("user", "Red or blue?"),), (Response((Message("user", "Red."),)),))
    found = row_trees(chat, [example(None), several, user, example("Blue.")], 60)
    assert [tree is None for tree in found] == [True, True, True, False]


def test_several_turns_are_no_answer_however_long_they_are(chat: Chat) -> None:
    """Also where the number of trained tokens happens to end at another turn's end."""
    turns = [
        (Message("assistant", "Red."), Message("user", "Sure?"), Message("assistant", "red " * length + end))
        for length in range(1, 20)
        for end in ("red", "red!")
    ]
    rows = [Example((Message("user", "Red or blue?"),), (Response(messages),)) for messages in turns]
    assert row_trees(chat, rows, 200) == [None] * len(rows)


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


def sampled_tree(*rewards: float, length: int = 2) -> TokenTree:
    branches = tuple(
        Branch(np.full(length, i), np.ones(length, bool), {"sampler": np.full(length, -1.0 - i, np.float32)})
        for i in range(len(rewards))
    )
    scored = np.array(rewards, np.float32)
    fields = {"finished": np.ones(len(rewards), np.float32), "reward": scored, "reward/rule": scored / 2}
    return TokenTree(np.array([7]), branches, per_response=fields)


def given_tree(reward: float | None, length: int = 3, **fields: float) -> TokenTree:
    scored = {"finished": 1.0, **({} if reward is None else {"reward": reward}), **fields}
    branches = () if reward is None else (Branch(np.full(length, 9, np.int32), np.ones(length, bool)),)
    return TokenTree(np.array([7]), branches, per_response={k: np.array([v], np.float32) for k, v in scored.items()})


@pytest.mark.parametrize(
    ("when", "kept"), [("always", [True, True, True, False, False]), ("better", [True, False, False, False, False])]
)
def test_when_a_given_answer_is_joined(when: str, kept: list[bool]) -> None:
    """Better, equal, worse, none, unscored."""
    trees = [sampled_tree(1.0, 2.0) for _ in range(5)]
    given = [given_tree(2.5), given_tree(2.0), given_tree(0.0), None, given_tree(None)]
    joined, share = with_given(GivenConfig("row", when=when), trees, given)
    assert [len(tree.branches) == 3 for tree in joined] == kept
    assert share == pytest.approx(sum(kept) / 5)


def test_a_joined_answer_stands_last_and_is_marked() -> None:
    (tree, plain), _ = with_given(
        GivenConfig("row", when="always"), [sampled_tree(1.0, 2.0), sampled_tree(1.0)], [given_tree(5.0), None]
    )
    assert [branch.per_token[GIVEN].tolist() for branch in tree.branches] == [[0, 0], [0, 0], [1, 1, 1]]
    assert plain.branches[0].per_token[GIVEN].tolist() == [0, 0]
    assert [branch.per_token["sampler"].tolist() for branch in tree.branches[:2]] == [[-1, -1], [-2, -2]]
    assert np.isnan(tree.branches[2].per_token["sampler"]).all() and tree.branches[2].ids.tolist() == [9, 9, 9]
    assert tree.per_response["reward"].tolist() == [1, 2, 5]
    assert tree.per_response["finished"].tolist() == [1, 1, 1]
    assert np.isnan(tree.per_response["reward/rule"]).tolist() == [False, False, True], "a part that nobody gave"
    (known,), _ = with_given(GivenConfig("row"), [sampled_tree(1.0)], [given_tree(5.0, **{"reward/rule": 4.0})])
    assert known.per_response["reward/rule"].tolist() == [0.5, 4.0]


def test_without_given_answers_the_sampled_ones_are_left() -> None:
    trees = [sampled_tree(1.0, 2.0), sampled_tree(3.0)]
    joined, _ = with_given(GivenConfig("row", when="always"), trees, [given_tree(5.0), given_tree(1.0)])
    left = sampled_only(joined)
    for name in ("reward", "reward/rule", "finished"):
        assert response_field(left, name).tolist() == response_field(trees, name).tolist()
    assert token_field(left, "sampler").tolist() == token_field(trees, "sampler").tolist()
    assert sampled_only(trees) is trees


def test_a_rollout_with_given_answers_is_stored_and_loaded() -> None:
    joined, _ = with_given(
        GivenConfig("row", when="always"), [sampled_tree(1.0, 2.0), sampled_tree(3.0)], [given_tree(5.0), None]
    )
    loaded = unpack_state(pack_state(joined))
    for name in ("sampler", GIVEN):
        np.testing.assert_array_equal(token_field(loaded, name), token_field(joined, name))
    assert [len(tree.branches) for tree in loaded] == [3, 1]
    np.testing.assert_array_equal(response_field(loaded, "reward/rule"), response_field(joined, "reward/rule"))


# ---- credit


@pytest.mark.parametrize("estimator", ["k1", "k2", "full"])
def test_the_kl_in_the_reward_is_that_of_sampled_answers(estimator: Any) -> None:
    """A given answer's tokens are not charged for being unlikely; those of the others as if it were not there."""
    joined, _ = with_given(GivenConfig("row", when="always"), [sampled_tree(1.0, 2.0)], [given_tree(5.0)])
    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=7).astype(np.float32) for name in ("old", "reference", "kl")}
    config = online_config(
        "reinforce",
        model=ModelConfig("unused"),
        data=DataConfig("unused"),
        out="unused",
        kl=vars(KLConfig(estimator=estimator)),
    )

    def advantages(trees: Sequence[TokenTree], count: int) -> np.ndarray:
        trees = [attach(tree, {name: values[:count] for name, values in numbers.items()}, {}) for tree in trees]
        trees = [attach(tree, {}, {"shaped": tree.per_response["reward"]}) for tree in trees]
        return token_field(credit(trees, config, 0.3)[0], "advantages")

    found = advantages(joined, 7)
    assert found[4:].tolist() == [5.0, 5.0, 5.0]
    np.testing.assert_array_equal(found[:4], advantages(sampled_only(joined), 4))
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
def experience(tiny_model_dir: Path, chat: Chat) -> Any:
    """Of three prompts; the second's answer in the row is longer than sampled ones may be."""
    policy = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=96)
    frozen = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=96, trainable=False)
    with torch.no_grad():
        frozen.model.get_input_embeddings().weight.mul_(2.0)
    rows = [example("red", "Red?"), example("red green blue " * 9, "Blue?"), example("red green blue", "All?")]

    def make(method: str = "rloo", **options: Any) -> Experience:
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
        return assemble(session, models, Lengths(), rows, config).experience

    return make


SPEAK_OF_THE_POLICY = (
    "reward", "reward_std", "reward/half", "kl", "entropy", "length", "unfinished",
)  # fmt: skip


def test_what_is_reported_of_the_policy_leaves_given_answers_out(experience) -> None:
    plain = experience().make(0.1)
    with_row = experience(given=GivenConfig("row", when="always")).make(0.1)
    for name in SPEAK_OF_THE_POLICY:
        assert with_row.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-4, abs=1e-5), name
        assert math.isfinite(with_row.metrics[name])
    assert with_row.metrics["given"] == pytest.approx(2 / 3), "the answer that is too long is not given"
    np.testing.assert_allclose(
        token_field(sampled_only(with_row.trees), "old"), token_field(plain.trees, "old"), atol=1e-5
    )
    assert [sample["given"] for sample in with_row.samples].count(True) == 2
    assert {sample["response"] for sample in with_row.samples if sample["given"]} == {"red", "red green blue"}
    assert abs(plain.metrics["kl"]) > 1e-2 and "given" not in plain.samples[0]


def test_better_looks_at_the_sampled_rewards(experience) -> None:
    rollout = experience(given=GivenConfig("row")).make(0.1)
    expected = 0
    for tree in rollout.trees:
        rewards = tree.per_response["reward"]
        joined = tree.branches[-1].per_token[GIVEN][0] == 1
        expected += joined
        assert not joined or rewards[-1] > rewards[:-1].max()
    assert rollout.metrics["given"] == pytest.approx(expected / 3)


def test_a_hinted_answer_is_an_answer_to_the_prompt_alone(experience, chat: Chat) -> None:
    """What was sampled below the hint is scored and trained on without it."""
    made = experience(given=GivenConfig("hint", "Say red", when="always"))
    asked: list[Any] = []
    sample = made.sampler.sample
    made.sampler.sample = lambda asks: asked.append((asks, sample(asks))) or asked[-1][1]
    rollout = made.make(0.1)
    ((main, hints), (_, answers)) = asked[0]
    assert made.source.shown == [prompt.tolist() for prompt in main.prompts] * 2
    assert hints.n == 1 and main.seed != hints.seed
    assert rollout.metrics["given"] == 1.0
    for tree, prompt, told, answer in zip(rollout.trees, main.prompts, hints.prompts, answers, strict=True):
        text = chat.tokenizer.decode(told)
        assert "Say red" in text and len(told) > len(prompt)
        assert tree.prompt.tolist() == prompt.tolist()
        assert tree.branches[-1].ids.tolist() == answer.branches[0].ids.tolist()
        assert tree.branches[-1].per_token[GIVEN][0] == 1 and len(tree.branches) == 3
        assert tree.per_response["finished"][-1] == answer.per_response["finished"][0]


def test_a_prompt_that_is_too_long_with_its_hint_gets_none(experience, caplog) -> None:
    made = experience(given=GivenConfig("hint", "Say {answer} {answer}", when="always"))
    assert [hint is None for hint in made.hints] == [False, True, False]
    assert caplog.messages == ["unused: 1 of 3 prompts have more than 87 tokens with --given.hint and get no hint"]
    state = resolved(made.state_dict())
    rollout = made.make(0.1)
    assert rollout.metrics["given"] == pytest.approx(2 / 3)
    assert sorted(len(tree.branches) for tree in rollout.trees) == [2, 3, 3]
    made.hints = [None] * 3
    made.load_state_dict(state)
    assert made.make(0.1).metrics["given"] == 0.0
    with pytest.raises(
        DataError, match=r"3 of 3 prompts have more than 87 tokens with --given.hint \(--data.max_length less"
    ):
        experience(given=GivenConfig("hint", "Say {answer} " + "red " * 90))
