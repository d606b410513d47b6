"""The enumerable world: a complete list of answers, an exact optimum, and preference data that has the same one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from assent.data.chat import Chat
from assent.data.records import Example, Message, Response
from assent.data.tree import TreeBatch, collate
from assent.lab.enumerable import (
    EnumerableWorld,
    TableReward,
    build_enumerable,
    make_enumerable,
    objective,
    optimum,
    regret_closed,
)

BETA = 0.2


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> EnumerableWorld:
    return build_enumerable(tmp_path_factory.mktemp("lab") / "enumerable", seed=0)


@pytest.fixture(scope="module")
def model(world: EnumerableWorld):
    return AutoModelForCausalLM.from_pretrained(world.model).eval()


def padless_score(model):
    """Log-probs of a tree batch, one plain forward pass per response."""

    def score(batch: TreeBatch) -> torch.Tensor:
        out = []
        for segment in batch.segments:
            prompt = batch.tokens[segment.start : segment.prompt_end]
            for start, end in segment.branches:
                ids = torch.cat([prompt, batch.tokens[start:end]])
                logp = model(ids[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
                out.append(logp.gather(1, ids[len(prompt) :, None])[:, 0])
        return torch.cat(out)

    return score


@pytest.fixture(scope="module")
def ref(world: EnumerableWorld, model) -> torch.Tensor:
    return world.logprobs(padless_score(model))


def test_the_list_of_responses_is_everything_that_can_be_sampled(world: EnumerableWorld):
    assert len(world.prompts) == len(set(world.prompts)) == 8
    assert len(world.responses) == len(set(world.responses)) == 1 + 7 + 49
    for response in world.responses:
        assert len(response) <= 2 and 0 not in response[:-1]
        assert response[-1] == 0 or len(response) == 2
    assert len(make_enumerable(letters="abc", max_new_tokens=3).responses) == 1 + 3 + 9 + 27


def test_probabilities_add_up_without_normalising(world: EnumerableWorld, model, ref):
    raw = torch.stack([collate([t]).sum_by_response(padless_score(model)(collate([t]))) for t in world.trees()])
    torch.testing.assert_close(raw.logsumexp(1).detach(), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(ref, raw.detach().double(), atol=1e-4, rtol=1e-5)
    with pytest.raises(AssertionError, match="add up"):
        world.logprobs(lambda batch: padless_score(model)(batch) * 0.5)


def test_the_reference_is_neither_uniform_nor_blind_to_the_prompt(ref):
    entropy = -(ref.exp() * ref).sum(1)
    assert 2.0 < entropy.min() and entropy.max() < 3.5
    assert (ref.exp()[0] - ref.exp()[1]).abs().sum() > 0.3
    assert ref.exp().min() > 1e-4


def test_sampling_stays_inside_the_list_and_follows_the_probabilities(world: EnumerableWorld, model, ref):
    torch.manual_seed(0)
    prompt = torch.tensor([world.prompts[0]]).repeat(3000, 1)
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2, do_sample=True, top_k=0, top_p=1.0
    )[:, 2:]
    counts = np.zeros(len(world.responses))
    for row in made.tolist():
        answer = row[:1] if row[0] == 0 else row  # after EOS there is only padding
        counts[world.index(world.prompts[0], answer)[1]] += 1
    assert np.abs(counts / 3000 - ref[0].exp().numpy()).sum() < 0.15


def test_tokenizer_and_template_give_the_prompts_and_the_cut_answers(world: EnumerableWorld):
    tokenizer = AutoTokenizer.from_pretrained(world.model)
    chat = Chat(tokenizer)
    assert chat.eos_ids == {0} and tokenizer.pad_token_id == 0
    rows = [json.loads(line) for line in world.prompts_file.read_text().splitlines()]
    for row, prompt in zip(rows, world.prompts, strict=True):
        question = (Message("user", row["prompt"][0]["content"]),)
        assert tuple(chat.prompt_ids(question)) == prompt
        answers = tuple(Response((Message("assistant", world.text(y)),)) for y in world.responses[1:])
        tree = chat.tree(Example(question, answers), max_length=len(prompt) + 2)
        assert [tuple(branch.ids) for branch in tree.branches] == list(world.responses[1:])


def test_rewards_are_a_table_in_both_views(world: EnumerableWorld):
    assert world.rewards.shape == (8, 57) and world.rewards.abs().max() <= 1.0
    assert world.rewards.std(dim=1).min() > 0.2
    assert world.reward(np.array(world.prompts[2]), np.array(world.responses[5])) == world.rewards[2, 5]
    with pytest.raises(KeyError):
        world.reward(world.prompts[2], (0, 0))
    for flat in (False, True):
        scores = TableReward(world).score(collate(world.trees(), flat=flat))
        torch.testing.assert_close(scores, world.rewards.flatten().float())


def test_optimum_beats_random_policies(world: EnumerableWorld, ref):
    best = optimum(ref, world.rewards, BETA)
    top = objective(best, ref, world.rewards, BETA)
    generator = torch.Generator().manual_seed(0)
    for spread in (0.01, 0.1, 0.5, 2.0):
        for base in (best, ref):
            for _ in range(125):
                noise = spread * torch.randn(ref.shape, generator=generator, dtype=torch.float64)
                assert objective((base + noise).log_softmax(1), ref, world.rewards, BETA) < top
    # its value is beta log Z
    log_z = (ref + world.rewards / BETA).logsumexp(1)
    torch.testing.assert_close(top, BETA * log_z.mean())


def test_gradient_is_zero_at_the_optimum_and_nowhere_near_it_elsewhere(world: EnumerableWorld, ref):
    def gradient(logits: torch.Tensor) -> float:
        logits = logits.clone().requires_grad_()
        objective(logits.log_softmax(1), ref, world.rewards, BETA).backward()
        return float(logits.grad.abs().max())

    assert gradient(optimum(ref, world.rewards, BETA)) < 1e-15
    assert gradient(ref) > 1e-3
    assert gradient(optimum(ref, world.rewards, 2 * BETA)) > 1e-3


def test_regret_closed_has_its_fixed_points(world: EnumerableWorld, ref):
    best = optimum(ref, world.rewards, BETA)
    assert regret_closed(ref, ref, world.rewards, BETA) == 0.0
    assert regret_closed(best, ref, world.rewards, BETA) == pytest.approx(1.0, abs=1e-12)
    between = regret_closed(optimum(ref, world.rewards, 2 * BETA), ref, world.rewards, BETA)
    assert 0.3 < between < 0.999
    assert regret_closed(optimum(ref, -world.rewards, BETA), ref, world.rewards, BETA) < 0
    # optimising reward without the KL goes too far
    greedy = torch.log_softmax(ref + world.rewards / 0.01, dim=1)
    assert regret_closed(greedy, ref, world.rewards, BETA) < 0.8


def expected_dpo_loss(logp: torch.Tensor, ref: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """DPO's loss over all pairs of independent draws from pi_ref with Bradley-Terry labels, exactly."""
    implicit = beta * (logp - ref)
    margin = implicit[:, :, None] - implicit[:, None, :]
    truth = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    weight = ref.exp()[:, :, None] * ref.exp()[:, None, :]
    return -(weight * 2 * truth * torch.nn.functional.logsigmoid(margin)).sum((1, 2)).mean()


@pytest.mark.parametrize("beta", [0.05, 0.2, 1.0])
def test_dpo_has_the_same_optimum(world: EnumerableWorld, ref, beta: float):
    best = optimum(ref, world.rewards, beta).requires_grad_()
    loss = expected_dpo_loss(best, ref, world.rewards, beta)
    loss.backward()
    assert best.grad.abs().max() < 1e-15
    for other in (ref, optimum(ref, world.rewards, 1.5 * beta)):
        assert expected_dpo_loss(other, ref, world.rewards, beta) > loss


def test_preference_trees_follow_bradley_terry(world: EnumerableWorld, ref):
    trees = world.preference_trees(ref, 4000, np.random.default_rng(0))
    assert len(trees) == 4000 and all(tree.pairs == ((0, 1, 0.0),) for tree in trees)
    counts = np.zeros((8, 57))
    log_loss, expected = 0.0, 0.0
    for tree in trees:
        (x, i), (_, j) = (world.index(tree.prompt, branch.ids) for branch in tree.branches)
        assert i != j and tree.key == x
        counts[x, i] += 1
        counts[x, j] += 1
        win = float(torch.sigmoid(world.rewards[x, i] - world.rewards[x, j]))
        log_loss -= np.log(win)
        expected -= win * np.log(win) + (1 - win) * np.log(1 - win)
    # calibrated labels: their log-loss under the true probabilities is the entropy of those
    assert log_loss / 4000 == pytest.approx(expected / 4000, abs=0.02)
    assert (counts.sum(1) == 1000).all()
    assert np.corrcoef(counts[0], ref[0].exp().numpy())[0, 1] > 0.95


def test_votes_share_a_pair_in_the_right_proportion(world: EnumerableWorld, ref):
    trees = world.preference_trees(ref, 50, np.random.default_rng(0), votes=100)
    assert len(trees) == 5000
    for start in range(0, 5000, 100):
        group = trees[start : start + 100]
        x, i = world.index(group[0].prompt, group[0].branches[0].ids)
        _, j = world.index(group[0].prompt, group[0].branches[1].ids)
        wins = sum(world.index(tree.prompt, tree.branches[0].ids)[1] == i for tree in group)
        assert abs(wins - 100 * float(torch.sigmoid(world.rewards[x, i] - world.rewards[x, j]))) <= 1


def test_same_seed_same_world(world: EnumerableWorld, tmp_path, ref):
    again = build_enumerable(tmp_path / "again", seed=0)
    assert torch.equal(again.rewards, world.rewards) and again.prompts == world.prompts
    for path in (world.root or tmp_path).rglob("*"):
        if path.is_file():
            assert path.read_bytes() == ((tmp_path / "again") / path.relative_to(world.root or tmp_path)).read_bytes()
    other = make_enumerable(seed=1)
    assert other.prompts != world.prompts and not torch.equal(other.rewards, world.rewards)
    first, second = (world.preference_trees(ref, 40, np.random.default_rng(5)) for _ in range(2))
    assert all(np.array_equal(a.branches[0].ids, b.branches[0].ids) for a, b in zip(first, second, strict=True))
