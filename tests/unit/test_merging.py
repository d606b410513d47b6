"""The mathematics of merging: against formulas written out on whole vectors in numpy, and where it ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from assent.models import merging

RNG = np.random.default_rng(0)


def vectors(count: int, size: int = 50) -> np.ndarray:
    return RNG.standard_normal((count, size)) * RNG.uniform(0.5, 2, (count, 1)) + 0.3


def summed(factors: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    assert factors is not None
    return factors @ x


def slerp_of_vectors(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """The formula of WARP, word for word."""
    omega = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return math.sin((1 - share) * omega) / math.sin(omega) * a + math.sin(share * omega) / math.sin(omega) * b


# ---- sums


def test_linear_is_the_weighted_mean_or_the_weighted_sum() -> None:
    x = vectors(3)
    np.testing.assert_allclose(summed(merging.linear([1, 2, 5]), x), (x[0] + 2 * x[1] + 5 * x[2]) / 8)
    np.testing.assert_allclose(summed(merging.linear([1, -2, 5], False), x), x[0] - 2 * x[1] + 5 * x[2])


@pytest.mark.parametrize("mu", [0.01, 0.3, 1.0])
def test_the_moving_average_is_its_recursion(mu: float) -> None:
    x = vectors(5)
    average = x[0]
    for theta in x[1:]:
        average = (1 - mu) * average + mu * theta
    np.testing.assert_allclose(summed(merging.moving_average(5, mu), x), average, rtol=1e-12)


# ---- on the sphere


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_slerp_of_two_is_the_formula(share: float) -> None:
    x = vectors(2)
    got = summed(merging.slerp(x @ x.T, [1 - share, share]), x)
    np.testing.assert_allclose(got, slerp_of_vectors(x[0], x[1], share), rtol=1e-12)


def test_slerp_of_more_goes_one_after_the_other_with_one_over_the_number_of_models() -> None:
    x = vectors(4)
    want = x[0]
    for i in range(1, 4):
        want = slerp_of_vectors(want, x[i], 1 / (i + 1))
    np.testing.assert_allclose(summed(merging.slerp(x @ x.T, [1] * 4), x), want, rtol=1e-12)
    weighted = slerp_of_vectors(slerp_of_vectors(x[0], x[1], 2 / 3), x[2], 4 / 7)
    np.testing.assert_allclose(summed(merging.slerp(x[:3] @ x[:3].T, [1, 2, 4]), x[:3]), weighted, rtol=1e-12)


def test_slerp_ends_where_it_should() -> None:
    x = vectors(2)
    assert merging.slerp(x @ x.T, [1, 0]).tolist() == [1, 0]
    assert merging.slerp(x @ x.T, [0, 1]).tolist() == [0, 1]


def test_slerp_of_unit_vectors_stays_on_the_sphere_and_linear_does_not() -> None:
    x = vectors(2)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert np.linalg.norm(summed(merging.slerp(x @ x.T, [1, 1]), x)) == pytest.approx(1)
    assert np.linalg.norm(summed(merging.linear([1, 1]), x)) < 0.99


def test_equal_vectors_and_nearly_parallel_ones() -> None:
    x = np.repeat(vectors(1), 3, 0)
    assert merging.slerp(x[:2] @ x[:2].T, [1, 3]).tolist() == [0.25, 0.75]
    np.testing.assert_allclose(summed(merging.slerp(x @ x.T, [1, 2, 3]), x), x[0], rtol=1e-12)
    np.testing.assert_allclose(summed(merging.karcher(x @ x.T, [1, 2, 3]), x), x[0], rtol=1e-12)
    for gap in (1e-3, 1e-6, 1e-9, 1e-12):
        near = np.stack([x[0], x[0] + gap * vectors(1)[0]])
        got = summed(merging.slerp(near @ near.T, [1, 1]), near)
        np.testing.assert_allclose(got, near.mean(0), rtol=gap * gap + 1e-12)


@pytest.mark.parametrize("method", [merging.slerp, merging.karcher])
def test_between_opposite_vectors_there_is_no_arc(method) -> None:
    x = vectors(1)
    opposite = np.concatenate([x, -2 * x])
    assert method(opposite @ opposite.T, [1, 1]) is None
    almost = np.concatenate([x, -x + 1e-6 * vectors(1)])
    assert method(almost @ almost.T, [1, 1]) is None
    assert merging.slerp(opposite @ opposite.T, [1, 0]).tolist() == [1, 0], "nothing is between here"
    obtuse = np.concatenate([x, -x + 0.1 * np.linalg.norm(x) * vectors(1)])
    assert method(obtuse @ obtuse.T, [1, 1]) is not None


def test_a_vector_of_length_0_has_no_direction() -> None:
    x = vectors(3)
    x[1] = 0
    two = x[:2]
    assert merging.slerp(two @ two.T, [1, 3]).tolist() == [0.25, 0.75], "a linear step"
    assert merging.slerp(np.zeros((2, 2)), [1, 1]) @ np.zeros((2, 4)) == pytest.approx(np.zeros(4))
    lengths = np.linalg.norm(x, axis=1)
    others = x[[0, 2]]
    got = summed(merging.karcher(x @ x.T, [1, 1, 1]), x)
    of_two = summed(merging.karcher(others @ others.T, [1, 1]), others)
    np.testing.assert_allclose(got, of_two * lengths.mean() / lengths[[0, 2]].mean(), rtol=1e-9)
    assert merging.karcher(np.zeros((3, 3)), [1, 1, 1]).tolist() == [0, 0, 0]


def test_the_karcher_mean_is_where_the_pulls_are_in_balance() -> None:
    x, shares = vectors(4), np.array([1, 2, 3, 4]) / 10
    got = summed(merging.karcher(x @ x.T, [1, 2, 3, 4]), x)
    lengths = np.linalg.norm(x, axis=1)
    assert np.linalg.norm(got) == pytest.approx(shares @ lengths)
    mean, units = got / np.linalg.norm(got), x / lengths[:, None]
    angles = np.arccos(units @ mean)
    pull = sum(w * a / math.sin(a) * (u - math.cos(a) * mean) for w, a, u in zip(shares, angles, units, strict=True))
    assert np.linalg.norm(pull) < 1e-9
    for _ in range(20):
        other = mean + 0.05 * RNG.standard_normal(50)
        assert shares @ np.arccos(units @ other / np.linalg.norm(other)) ** 2 > shares @ angles**2


def test_of_two_the_karcher_mean_has_the_direction_of_slerp() -> None:
    x = vectors(2)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for share in (0.2, 0.5):
        weights = [1 - share, share]
        slerp, mean = merging.slerp(x @ x.T, weights), merging.karcher(x @ x.T, weights)
        np.testing.assert_allclose(mean, slerp, rtol=1e-9)


# ---- parts of vectors


def test_inner_products_add_up_over_parts() -> None:
    x = vectors(3, 64)
    parts = [merging.inner_products([torch.from_numpy(row[a : a + 16]) for row in x]) for a in range(0, 64, 16)]
    np.testing.assert_allclose(sum(parts), x @ x.T)


@pytest.mark.parametrize("count", [1, 2, 37, 99, 100])
def test_the_threshold_is_exact_in_any_parts(count: int) -> None:
    torch.manual_seed(count)
    x = torch.randn(100) * 10.0 ** torch.randint(-20, 20, (100,))
    x[::7] = x[3]  # equal ones
    want = x.abs().sort(descending=True).values[count - 1].item()
    assert merging.threshold(lambda: x.split(9), count) == want
    assert merging.threshold(lambda: [torch.zeros(5), -x], count) == want
    kept = merging.trimmed(x, want)
    assert int((kept != 0).sum()) >= count and set(kept.tolist()) <= {0.0, *x.tolist()}


def test_ties_elects_signs_and_averages_those_that_have_them() -> None:
    deltas = [torch.tensor(row) for row in ([1.0, -1, 2, 0, 0], [-3.0, -2, 0, 0, 1], [1.0, 4, 1, 0, -1])]
    assert merging.elected(deltas, [1, 1, 1]).tolist() == [-3, 4, 1.5, 0, 1], "for 0 the sign is +"
    assert merging.elected(deltas, [2, 1, 4]).tolist() == pytest.approx([1, 4, (2 * 2 + 4 * 1) / 6, 0, -1])


def test_coins_are_those_of_the_name_and_the_seed_in_any_parts() -> None:
    whole = merging.Coins(3, 1, "a.weight").kept(1000, 0.3)
    coins = merging.Coins(3, 1, "a.weight")
    assert torch.equal(torch.cat([coins.kept(n, 0.3) for n in (1, 499, 500)]), whole)
    assert abs(whole.double().mean().item() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1000)
    assert whole[:12].int().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0], "the same for ever"
    for other in (merging.Coins(4, 1, "a.weight"), merging.Coins(3, 2, "a.weight"), merging.Coins(3, 1, "b.weight")):
        assert not torch.equal(other.kept(1000, 0.3), whole)
    assert bool(coins.kept(10, 1.0).all())
    more = merging.Coins(3, 1, "a.weight").kept(1000, 0.6)
    assert bool(more[whole].all()), "a higher density keeps more of the same draws"


def test_dare_keeps_the_mean() -> None:
    delta = torch.full((100_000,), 2.0)
    kept = merging.Coins(0, 0, "x").kept(100_000, 0.1)
    got = merging.dropped(delta, kept, 0.1)
    assert set(got.tolist()) == {0.0, 20.0} and abs(got.mean().item() - 2) < 0.1
