"""Losses of reward models: known numbers, and references written with numpy in float64."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from assent.losses import (
    best_of_k,
    bradley_terry,
    bradley_terry_tokens,
    centring,
    choice_kl,
    correlation,
    davidson,
    k_wise,
    likelihood_regulariser,
    odin_length,
    ordered_pairs,
    orthogonality,
    plackett_luce,
    plackett_luce_scores,
    rao_kupper,
)

LN2, LN3 = math.log(2.0), math.log(3.0)
RNG = np.random.default_rng(0)
CHOSEN, REJECTED, MARGIN = RNG.normal(size=(3, 9))
SHARE, TIE, WEIGHT = RNG.uniform(0, 0.5, (3, 9))


def tensor(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def close(loss: Tensor, expected) -> None:
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


# ---- pairs


def test_every_option_of_bradley_terry_by_its_formula():
    p = SHARE * 0.8 + (1 - SHARE) * 0.2
    gap = CHOSEN - REJECTED
    expected = WEIGHT * (-p * np.log(sigmoid(gap - MARGIN)) - (1 - p) * np.log(sigmoid(-gap - MARGIN)))
    close(bradley_terry(*map(tensor, (CHOSEN, REJECTED, MARGIN, SHARE, WEIGHT)), label_smoothing=0.2), expected)
    close(bradley_terry(tensor(CHOSEN), tensor(REJECTED), weight=tensor(WEIGHT)), -WEIGHT * np.log(sigmoid(gap)))


def test_the_defaults_are_the_plain_formula_to_the_bit():
    chosen, rejected, margin = (torch.tensor(x, dtype=torch.float32) for x in (CHOSEN, REJECTED, MARGIN))
    assert torch.equal(bradley_terry(chosen, rejected), -torch.nn.functional.logsigmoid(chosen - rejected))
    plain = -torch.nn.functional.logsigmoid(chosen - rejected - margin)
    assert torch.equal(bradley_terry(chosen, rejected, margin), plain)


def test_scaled_by_strength_known_numbers():
    # gap ln 3: -log(3/4); strength 0 trains nothing
    loss = bradley_terry(tensor([LN3] * 3), tensor([0.0] * 3), weight=tensor([3.0, 1.0, 0.0]))
    close(loss, [3 * math.log(4 / 3), math.log(4 / 3), 0.0])


def test_votes_on_one_pair_cost_the_mean_of_their_own_pairs():
    """Two for the first answer, one for the second: the soft label is their mean, with a margin as well."""
    for margin in (None, tensor([0.3])):
        chosen, rejected = tensor([0.7]), tensor([-0.4])
        soft = bradley_terry(chosen, rejected, margin, tensor([2 / 3]))
        votes = 2 * bradley_terry(chosen, rejected, margin) + bradley_terry(rejected, chosen, margin)
        close(soft, (votes / 3).detach().numpy())


def test_a_soft_label_is_least_where_the_model_gives_its_share():
    gap = torch.tensor([math.log(0.7 / 0.3)], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bradley_terry(gap, tensor([0.0]), share=tensor([0.7])), gap)
    assert abs(slope.item()) < 1e-12
    (slope,) = torch.autograd.grad(bradley_terry(gap, tensor([0.0]), share=tensor([0.8])), gap)
    assert slope.item() < 0


def test_swapping_the_sides_and_the_share_changes_nothing():
    one = bradley_terry(*map(tensor, (CHOSEN, REJECTED, MARGIN, SHARE)), label_smoothing=0.1)
    close(one, bradley_terry(*map(tensor, (REJECTED, CHOSEN, MARGIN, 1 - SHARE)), label_smoothing=0.1).detach().numpy())


def test_token_form_with_shares_and_weights_equals_a_loop():
    lengths, pairs = [3, 1, 4], torch.tensor([[0, 1], [2, 0]])
    scores = RNG.normal(size=sum(lengths))
    parts = np.split(scores, np.cumsum(lengths)[:-1])
    margin, share, weight = np.array([0.2, 0.0]), np.array([0.75, 0.5]), np.array([2.0, 0.5])
    expected = []
    for m, (c, r) in enumerate(pairs.tolist()):
        span = max(lengths[c], lengths[r])
        gaps = np.array([parts[c][min(t, lengths[c] - 1)] - parts[r][min(t, lengths[r] - 1)] for t in range(span)])
        p = share[m] * 0.9 + (1 - share[m]) * 0.1
        terms = -p * np.log(sigmoid(gaps - margin[m])) - (1 - p) * np.log(sigmoid(-gaps - margin[m]))
        expected.append(weight[m] * terms.mean())
    response = torch.repeat_interleave(torch.tensor(lengths))
    options = {"margin": tensor(margin), "share": tensor(share), "weight": tensor(weight), "label_smoothing": 0.1}
    close(bradley_terry_tokens(tensor(scores), response, pairs, 3, **options), expected)


def test_token_form_beside_that_of_llama_factory():
    """Theirs, on padded rows of scores from where the answers part to the end of the longer one: the same where the
    answers are equally long and part at once. Where one is shorter, theirs goes on with the scores of its padding."""

    def theirs(chosen: list[int], rejected: list[int], score) -> float:
        prompt, pad = [1, 2], 0
        width = 2 + max(len(chosen), len(rejected))
        rows = [(prompt + answer + [pad] * width)[:width] for answer in (chosen, rejected)]
        scores = [[score(row[: t + 1]) for t in range(width)] for row in rows]
        ends = [max(t for t in range(width) if row[t] != pad) + 1 for row in rows]
        start = next(t for t in range(width) if rows[0][t] != rows[1][t])
        gaps = np.array(scores[0][start : max(ends)]) - np.array(scores[1][start : max(ends)])
        return float(-np.log(sigmoid(gaps)).mean())

    def ours(chosen: list[int], rejected: list[int], score) -> float:
        scores = [score([1, 2, *answer[: t + 1]]) for answer in (chosen, rejected) for t in range(len(answer))]
        response = torch.repeat_interleave(torch.tensor([len(chosen), len(rejected)]))
        return bradley_terry_tokens(tensor(scores), response, torch.tensor([[0, 1]]), 2).item()

    def score(ids: list[int]) -> float:
        return math.sin(sum((place + 1) * (token + 1) for place, token in enumerate(ids)))

    assert ours([5, 6, 9], [7, 8, 9], score) == pytest.approx(theirs([5, 6, 9], [7, 8, 9], score), rel=1e-12)
    # a common beginning: in our mean with log 2 each, not in theirs
    common = (2 * LN2 + 1 * theirs([3, 4, 6], [3, 4, 7], score)) / 3
    assert ours([3, 4, 6], [3, 4, 7], score) == pytest.approx(common, rel=1e-12)
    assert ours([5], [7, 8, 9], score) != pytest.approx(theirs([5], [7, 8, 9], score), rel=1e-3)


# ---- ties


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_rao_kupper_by_strengths(weight):
    """In the authors' form, of positive strengths pi and a threshold theta."""
    theta, other = 2.5, 1 - SHARE - TIE
    c, r = np.exp(CHOSEN), np.exp(REJECTED)
    wins, loses = c / (c + theta * r), r / (theta * c + r)
    ties = (theta**2 - 1) * c * r / ((c + theta * r) * (theta * c + r))
    np.testing.assert_allclose(wins + loses + ties, 1)
    ours, theirs = SHARE * 0.9 + other * 0.1, other * 0.9 + SHARE * 0.1
    expected = -(ours * np.log(wins) + theirs * np.log(loses) + TIE * np.log(ties)) * (1 if weight is None else weight)
    more = () if weight is None else (tensor(weight),)
    given = map(tensor, (CHOSEN, REJECTED, SHARE, TIE))
    close(rao_kupper(*given, *more, theta=theta, label_smoothing=0.1), expected)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_davidson_by_strengths(weight):
    nu, other = 0.8, 1 - SHARE - TIE
    c, r = np.exp(CHOSEN), np.exp(REJECTED)
    whole = c + r + nu * np.sqrt(c * r)
    wins, loses, ties = c / whole, r / whole, nu * np.sqrt(c * r) / whole
    ours, theirs = SHARE * 0.9 + other * 0.1, other * 0.9 + SHARE * 0.1
    expected = -(ours * np.log(wins) + theirs * np.log(loses) + TIE * np.log(ties)) * (1 if weight is None else weight)
    more = () if weight is None else (tensor(weight),)
    close(davidson(*map(tensor, (CHOSEN, REJECTED, SHARE, TIE)), *more, nu=nu, label_smoothing=0.1), expected)


def test_ties_known_numbers():
    zero, one = tensor([0.0]), tensor([1.0])
    # equal answers: theta 3 ties half the time, and nu 2 as well; a preference is a quarter
    close(rao_kupper(zero, zero, zero, one, theta=3.0), [LN2])
    close(davidson(zero, zero, zero, one, nu=2.0), [LN2])
    close(rao_kupper(zero, zero, one, zero, theta=3.0), [2 * LN2])
    close(davidson(zero, zero, one, zero, nu=2.0), [2 * LN2])


@pytest.mark.parametrize("loss", [lambda *x: rao_kupper(*x, theta=2.0), lambda *x: davidson(*x, nu=0.7)])
def test_a_tie_pulls_scores_together_and_a_preference_apart(loss):
    for tie, sign in ((1.0, 1.0), (0.0, -1.0)):
        gap = tensor([0.6])
        (slope,) = torch.autograd.grad(loss(gap, tensor([0.0]), tensor([1 - tie]), tensor([tie])), gap)
        assert math.copysign(1.0, slope.item()) == sign


def test_almost_without_ties_both_are_bradley_terry():
    sides, one, none = (tensor(CHOSEN), tensor(REJECTED)), tensor(np.ones(9)), tensor(np.zeros(9))
    plain = bradley_terry(*sides)
    torch.testing.assert_close(rao_kupper(*sides, one, none, theta=1 + 1e-9), plain, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(davidson(*sides, one, none, nu=1e-9), plain, atol=1e-8, rtol=1e-8)


def test_what_the_parameters_of_ties_may_be():
    given = [tensor([0.0])] * 4
    with pytest.raises(ValueError, match="expected theta > 1"):
        rao_kupper(*given, theta=1.0)
    with pytest.raises(ValueError, match="expected nu > 0"):
        davidson(*given, nu=0.0)


# ---- what is added


def test_centring_and_the_likelihood_term():
    close(centring(tensor([1.0, -2.0]), tensor([0.5, 2.0])), [2.25, 0.0])
    close(likelihood_regulariser(tensor([-LN3 / 0.5, 0.0]), beta=0.5), [math.log(4), LN2])


def test_the_kl_of_choices_by_its_definition():
    old_chosen, old_rejected = RNG.normal(size=(2, 9))
    p, q = sigmoid(old_chosen - old_rejected), sigmoid(CHOSEN - REJECTED)
    chosen = tensor(CHOSEN)
    losses = choice_kl(chosen, tensor(REJECTED), tensor(old_chosen), tensor(old_rejected))
    close(losses, p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    losses.sum().backward()
    np.testing.assert_allclose(chosen.grad, q - p, rtol=1e-9)
    close(choice_kl(*map(tensor, (CHOSEN, REJECTED, CHOSEN + 3, REJECTED + 3))), np.zeros(9))  # gaps alone count
    close(choice_kl(*map(tensor, ([LN3], [0.0], [0.0], [0.0]))), [0.5 * math.log(4 / 3)])
    far = choice_kl(*map(tensor, ([-800.0], [0.0], [800.0], [0.0])))
    close(far, [800.0])


# ---- rankings


def rankings(seed: int):
    """Scores, levels and prompts of 12 rankings of 1 to 5 responses, some of them tied."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 12)
    level = np.concatenate([rng.integers(0, size, size) for size in sizes]).astype(float)
    return rng.normal(size=sizes.sum()), level, np.repeat(np.arange(12) * 3, sizes)


def by_prompt(scores, level, prompt):
    for number in np.unique(prompt):
        here = prompt == number
        yield scores[here], level[here]


def summed(loss: Tensor, prompt) -> list[float]:
    return [loss.detach().numpy()[prompt == number].sum() for number in np.unique(prompt)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rankings_equal_loops(seed: int):
    scores, level, prompt = rankings(seed)
    given = tensor(scores), torch.tensor(level), torch.tensor(prompt)
    choice, pairs, product = [], [], []
    for s, lv in by_prompt(scores, level, prompt):
        best, rest = np.flatnonzero(lv == lv.min()), np.flatnonzero(lv > lv.min())
        choice.append(np.mean([-np.log(np.exp(s[b]) / (np.exp(s[b]) + np.exp(s[rest]).sum())) for b in best]))
        compared = [(i, j) for i in range(len(s)) for j in range(len(s)) if lv[i] < lv[j]]
        pairs.append(np.mean([-np.log(sigmoid(s[i] - s[j])) for i, j in compared]) if compared else 0.0)
        stages = [(s[i], [s[j] for j in range(len(s)) if lv[j] > lv[i]]) for i in range(len(s))]
        product.append(sum(-np.log(np.exp(x) / (np.exp(x) + np.exp(below).sum())) for x, below in stages if below))
    np.testing.assert_allclose(summed(best_of_k(*given), prompt), choice, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(summed(k_wise(*given), prompt), pairs, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(summed(plackett_luce_scores(*given), prompt), product, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [best_of_k, k_wise, plackett_luce_scores])
def test_a_ranking_of_two_is_bradley_terry(loss):
    scores, level = tensor(np.stack([CHOSEN, REJECTED], 1).ravel()), torch.tensor([0.0, 1.0]).repeat(9)
    prompt = torch.arange(9).repeat_interleave(2)
    expected = bradley_terry(scores[0::2], scores[1::2])
    torch.testing.assert_close(loss(scores, level, prompt).view(9, 2).sum(1), expected)
    gradients = [torch.autograd.grad(x.sum(), scores)[0] for x in (loss(scores, level, prompt), expected)]
    torch.testing.assert_close(*gradients)


def test_known_numbers_of_four_answers():
    scores, level, prompt = tensor([LN2, 0.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.zeros(4)
    close(best_of_k(scores, level, prompt).sum(), math.log(5 / 2))  # 2 of 2 + 1 + 1 + 1
    close(plackett_luce_scores(scores, level, prompt), [math.log(5 / 2), LN3, LN2, 0.0])
    close(k_wise(scores, level, prompt), [3 * math.log(3 / 2) / 6, 2 * LN2 / 6, LN2 / 6, 0.0])  # six pairs


def test_k_wise_is_the_mean_of_a_prompts_pairs():
    scores, level = tensor(RNG.normal(size=4)), torch.tensor([2.0, 0.0, 3.0, 1.0])
    pairs = [(i, j) if level[i] < level[j] else (j, i) for i, j in combinations(range(4), 2)]
    each = torch.cat([bradley_terry(scores[[i]], scores[[j]]) for i, j in pairs])
    assert len(each) == 6
    torch.testing.assert_close(k_wise(scores, level, torch.zeros(4)).sum(), each.mean())


def test_ordered_pairs_are_those_that_k_wise_compares():
    scores, level, prompt = rankings(7)
    pairs = ordered_pairs(torch.tensor(level), torch.tensor(prompt))
    alike = [(i, j) for i in range(len(level)) for j in range(len(level)) if prompt[i] == prompt[j]]
    assert pairs.tolist() == [[i, j] for i, j in alike if level[i] < level[j]]
    number = np.bincount(prompt[pairs[:, 0].numpy()], minlength=prompt.max() + 1)[prompt[pairs[:, 0].numpy()]]
    losses = bradley_terry(*tensor(scores)[pairs.T]).detach().numpy()
    given = tensor(scores), torch.tensor(level), torch.tensor(prompt)
    assert k_wise(*given).sum().item() == pytest.approx((losses / number).sum(), rel=1e-12)
    assert ordered_pairs(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize("loss", [best_of_k, k_wise, plackett_luce_scores])
def test_one_level_says_nothing(loss):
    scores = tensor([3.0, -1.0, 0.5])
    result = loss(scores, torch.zeros(3), torch.zeros(3))
    assert result.tolist() == [0.0] * 3
    assert torch.autograd.grad(result.sum(), scores)[0].tolist() == [0.0] * 3


def test_plackett_luce_of_scores_is_that_of_dpo_on_implicit_rewards():
    scores, level, prompt = rankings(5)
    given = torch.tensor(level), torch.tensor(prompt)
    policy, reference = tensor(scores), tensor(RNG.normal(size=len(scores)))
    expected = plackett_luce_scores(0.3 * (policy - reference), *given)
    torch.testing.assert_close(plackett_luce(policy, reference, *given, beta=0.3), expected)


@pytest.mark.parametrize("loss", [best_of_k, k_wise, plackett_luce_scores])
def test_responses_of_a_prompt_stand_side_by_side(loss):
    with pytest.raises(ValueError, match="`prompt` must not decrease"):
        loss(tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([1, 0]))


# ---- ODIN


def test_odin_by_numpy():
    quality, verbosity = RNG.normal(size=(2, 30))
    length = RNG.integers(1, 50, 30).astype(float)
    expected = 1 - np.corrcoef(length, verbosity)[0, 1] + abs(np.corrcoef(length, quality)[0, 1])
    loss = odin_length(tensor(quality), tensor(verbosity), tensor(length))
    close(loss, np.full(30, expected))
    close(correlation(tensor(length), tensor(quality)), np.corrcoef(length, quality)[0, 1])
    close(orthogonality(tensor([1.0, 2.0]), tensor([3.0, -4.0])), 5.0)


def test_odin_frees_quality_of_length_and_ties_verbosity_to_it():
    length = tensor([1.0, 2.0, 3.0, 4.0])
    quality, verbosity = tensor([0.0, 1.0, 0.5, 2.0]), tensor([1.0, 0.2, 0.1, 0.3])
    slopes = torch.autograd.grad(odin_length(quality, verbosity, length).mean(), [quality, verbosity])
    after = odin_length(quality - 0.1 * slopes[0], verbosity - 0.1 * slopes[1], length)
    before = correlation(length, quality), correlation(length, verbosity)
    assert after[0] < odin_length(quality, verbosity, length)[0]
    assert correlation(length, quality - 0.1 * slopes[0]).abs() < before[0].abs()
    assert correlation(length, verbosity - 0.1 * slopes[1]) > before[1]


def test_odin_where_nothing_varies():
    values, same = tensor([1.0, 2.0]), tensor([3.0, 3.0])
    loss = odin_length(same, same, values)
    assert loss.tolist() == [1.0, 1.0]
    assert torch.autograd.grad(loss.sum(), same)[0].isfinite().all()
    assert odin_length(values, values, same).tolist() == [1.0, 1.0]
