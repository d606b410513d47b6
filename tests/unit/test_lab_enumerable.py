"""The enumerable world: a complete list of answers, exact optima, and feedback that has the same ones."""

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
    _draw,
    build_enumerable,
    distance_closed,
    f_optimum,
    make_enumerable,
    normalised,
    objective,
    optimum,
    regret_closed,
    win_rates,
)
from assent.rewards.group import Group

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
    assert all(first != second for first, second in world.prompts)
    assert len(world.responses) == len(set(world.responses)) == 1 + 7 + 49
    for response in world.responses:
        assert len(response) <= 2 and 0 not in response[:-1]
        assert response[-1] == 0 or len(response) == 2
    assert len(make_enumerable(letters="abc", num_prompts=6, max_new_tokens=3).responses) == 1 + 3 + 9 + 27


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


def test_rewards_are_a_table(world: EnumerableWorld):
    assert world.rewards.shape == (8, 57) and world.rewards.abs().max() <= 1.0
    assert world.rewards.std(dim=1).min() > 0.2
    assert world.reward(np.array(world.prompts[2]), np.array(world.responses[5])) == world.rewards[2, 5]
    with pytest.raises(KeyError):
        world.reward(world.prompts[2], (0, 0))
    texts, no = ("",) * 57, (False,) * 57
    groups = [
        Group(Example(()), texts, no, (0,) * 57, tuple(branch.ids for branch in tree.branches), tree.prompt)
        for tree in world.trees()
    ]
    np.testing.assert_array_equal(TableReward(world).score(groups).values, world.rewards.flatten())


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


def expected_square_loss(logp: torch.Tensor, ref: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """IPO's loss over the same pairs, exactly."""
    h = logp - ref
    target = 1 / (2 * beta)
    truth = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    weight = ref.exp()[:, :, None] * ref.exp()[:, None, :]
    return (weight * truth * (h[:, :, None] - h[:, None, :] - target) ** 2).sum((1, 2)).mean()


def test_ipo_has_the_optimum_of_win_rates(world: EnumerableWorld, ref):
    rates = win_rates(world.rewards, ref)
    torch.testing.assert_close((ref.exp() * rates).sum(1), torch.full((8,), 0.5, dtype=torch.float64))
    assert rates[0].argmax() == world.rewards[0].argmax()
    best = optimum(ref, rates, 0.3).requires_grad_()
    expected_square_loss(best, ref, world.rewards, 0.3).backward()
    assert best.grad.abs().max() < 1e-15
    other = optimum(ref, world.rewards, 0.3)
    assert expected_square_loss(other, ref, world.rewards, 0.3) > expected_square_loss(
        best.detach(), ref, world.rewards, 0.3
    )


def test_sppo_comes_to_the_same_policy_but_for_one_percent(world: EnumerableWorld, ref):
    """Its loss is the squared distance of the log-ratio from (win rate - 1/2) / beta; minimised over policies."""
    rates = win_rates(4 * world.rewards, ref)
    logits = ref.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (ref.exp() * (logits.log_softmax(1) - ref - (rates - 0.5) / 0.5) ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert 0.99 < distance_closed(logits.detach().log_softmax(1), ref, optimum(ref, rates, 0.5)) < 0.9999


def test_distance_closed_is_regret_closed_for_the_kl_optimum(world: EnumerableWorld, ref):
    best = optimum(ref, world.rewards, BETA)
    for beta in (0.05, 0.4, 2.0):
        other = optimum(ref, world.rewards, beta)
        regret = regret_closed(other, ref, world.rewards, BETA)
        assert distance_closed(other, ref, best) == pytest.approx(regret, abs=1e-12)
    assert distance_closed(ref, ref, best) == 0.0 and distance_closed(best, ref, best) == 1.0


def test_normalised_finds_the_level(ref):
    """exp(-level) / 57 at 57 places: the level is 0."""
    flat = torch.zeros_like(ref) - np.log(57)
    bounds = torch.full((8, 1), 3.0, dtype=torch.float64)
    torch.testing.assert_close(normalised(lambda level: flat - level, -2 * bounds, bounds), flat)


F = {
    "forward_kl": (lambda u: -u.log(), lambda u: 1 - 1 / u),
    "js": (lambda u: u * u.log() - (1 + u) * ((1 + u) / 2).log(), lambda u: (2 * u / (1 + u)).log()),
    "alpha": (lambda u: 2 * (u - 2 * u.sqrt()), lambda u: 2 - 2 * u.rsqrt()),
}
"""f and f' of each divergence, f up to a multiple of u and a constant, which change no policy's order."""


@pytest.mark.parametrize("divergence", F)
@pytest.mark.parametrize("beta", [0.2, 2.0])
def test_f_optimum_is_the_best_policy(world: EnumerableWorld, ref, divergence: str, beta: float):
    f, slope = F[divergence]
    best = f_optimum(ref, world.rewards, beta, divergence)
    torch.testing.assert_close(best.logsumexp(1), torch.zeros(8, dtype=torch.float64), atol=1e-8, rtol=0)
    level = world.rewards - beta * slope((best - ref).exp())
    assert (level - level.mean(1, keepdim=True)).abs().max() < 1e-6

    def value(logp: torch.Tensor) -> torch.Tensor:
        return (logp.exp() * world.rewards - beta * ref.exp() * f((logp - ref).exp())).sum(1).mean()

    generator = torch.Generator().manual_seed(0)
    for spread in (0.01, 0.1, 1.0):
        for _ in range(50):
            noise = spread * torch.randn(ref.shape, generator=generator, dtype=torch.float64)
            assert value((best + noise).log_softmax(1)) < value(best)
    assert value(optimum(ref, world.rewards, beta)) < value(best)


def test_draws_come_as_often_as_expected_rounded_up_or_down():
    weights = np.array([0.0, 5.0, 1.0, 0.25, 3.75])
    for seed in range(20):
        found = np.bincount(_draw(weights, 33, np.random.default_rng(seed)), minlength=5)
        assert found.sum() == 33 and found[0] == 0
        assert (np.abs(found - 3.3 * weights) < 1).all()
    many = [np.bincount(_draw(weights, 33, np.random.default_rng(s)), minlength=5) for s in range(2000)]
    np.testing.assert_allclose(np.mean(many, axis=0), 3.3 * weights, atol=0.05)


@pytest.mark.parametrize("flipped", [0.0, 0.2])
def test_comparisons_follow_bradley_terry(world: EnumerableWorld, ref, flipped: float):
    trees = world.comparisons(ref, 50_000, np.random.default_rng(0), flipped=flipped)
    assert [tree.key for tree in trees] == list(range(8)) and len(trees[3].branches) == 57
    chosen, rejected, margin = np.array(trees[3].pairs).T
    assert len(chosen) == 50_000
    counts = np.zeros((57, 57))
    np.add.at(counts, (chosen.astype(int), rejected.astype(int)), 1)
    r, share = world.rewards[3].numpy(), ref[3].exp().numpy()
    drawn = 50_000 * np.outer(share, share)
    assert np.abs(counts + counts.T - 2 * drawn).max() < 2  # whatever the labels, as often as drawn
    truth = 1 / (1 + np.exp(r[None, :] - r[:, None]))
    expected = (1 - flipped) * truth + flipped * (1 - truth)
    often = drawn > 100
    np.testing.assert_allclose((counts / (2 * drawn))[often], expected[often], atol=0.01)
    np.testing.assert_allclose(margin, np.abs(r[chosen.astype(int)] - r[rejected.astype(int)]))


def test_rankings_follow_plackett_luce(world: EnumerableWorld, ref):
    """Of two draws the first is above the second with Bradley-Terry's probability; the best of many is a softmax."""
    rng = np.random.default_rng(0)
    right, expected, first = 0, 0.0, np.zeros(57)
    for _ in range(1500):
        tree = world.rankings(ref, 8, rng)[0]
        level = tree.per_response["level"]
        assert sorted(level) == list(range(8))
        rewards = np.array([world.reward(tree.prompt, branch.ids) for branch in tree.branches])
        right += level[0] < level[5]
        expected += 1 / (1 + np.exp(rewards[5] - rewards[0]))
        share = np.exp(rewards) / np.exp(rewards).sum()
        for branch, weight, place in zip(tree.branches, share, level, strict=True):
            first[world.index(tree.prompt, branch.ids)[1]] += (place == 0) - weight
    assert right / 1500 == pytest.approx(expected / 1500, abs=0.04)
    assert np.abs(first).max() / 1500 < 0.03


def test_ratings_and_labels_tell_the_reward(world: EnumerableWorld, ref):
    rated = world.ratings(ref, 64, np.random.default_rng(0))[2]
    rewards = [world.reward(rated.prompt, branch.ids) for branch in rated.branches]
    np.testing.assert_allclose(rated.per_response["rating"], rewards, rtol=1e-6)
    labelled = world.labels(ref, 20_000, np.random.default_rng(0))[2]
    label = labelled.per_response["label"]
    rewards = np.array([world.reward(labelled.prompt, branch.ids) for branch in labelled.branches])
    assert set(label) == {0.0, 1.0} and label.dtype == np.float32
    truth = 1 / (1 + np.exp(rewards.mean() - rewards))
    for low, high in ((0.2, 0.45), (0.45, 0.55), (0.55, 0.8)):
        some = (truth > low) & (truth <= high)
        assert some.sum() > 500 and label[some].mean() == pytest.approx(truth[some].mean(), abs=0.03)


def test_same_seed_same_world(world: EnumerableWorld, tmp_path, ref):
    again = build_enumerable(tmp_path / "again", seed=0)
    assert torch.equal(again.rewards, world.rewards) and again.prompts == world.prompts
    for path in (world.root or tmp_path).rglob("*"):
        if path.is_file():
            assert path.read_bytes() == ((tmp_path / "again") / path.relative_to(world.root or tmp_path)).read_bytes()
    other = make_enumerable(seed=1)
    assert other.prompts != world.prompts and not torch.equal(other.rewards, world.rewards)
    first, second = (world.comparisons(ref, 40, np.random.default_rng(5)) for _ in range(2))
    assert [tree.pairs for tree in first] == [tree.pairs for tree in second]
