"""The steps of a gated mixture, each against an independent numpy version: ridge heads, length taken out, the gate's
forward pass, loss and gradient step, the score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import spearmanr

from assent.algorithms.reward.gate import dropped
from assent.data.tree import Branch, TokenTree, collate
from assent.errors import ModelError
from assent.losses import bradley_terry
from assent.losses.decorrelate import PENALTIES, decorrelate
from assent.losses.linear import ALPHAS, pair_weights, ridge, ridge_heads
from assent.models.gate import Gate, GateRule, load_gate, prompt_positions, save_gate, shares, weights_digest

RNG = np.random.default_rng


def padded_least_squares(x: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    """Ridge as ordinary least squares with sqrt(alpha) I stacked below: no eigendecomposition in it."""
    rows = np.vstack([x, np.sqrt(alpha) * np.eye(x.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0]


# ---- stage 1: ratings


@pytest.mark.parametrize("rows", [200, 5], ids=["tall", "wide"])
def test_ridge_is_least_squares_with_a_penalty(rows: int) -> None:
    rng = RNG(0)
    x, y = rng.normal(size=(rows, 8)), rng.normal(size=rows)
    got = ridge(x.astype(np.float32), y, ALPHAS)
    for weight, alpha in zip(got, ALPHAS, strict=True):
        np.testing.assert_allclose(weight, padded_least_squares(x.astype(np.float32), y, alpha), rtol=1e-5, atol=1e-8)


def test_ridge_of_one_number_by_hand() -> None:
    # w = sum xy / (sum x² + alpha) = (2 + 6) / (5 + 3)
    assert ridge(np.array([[1.0], [2.0]]), np.array([2.0, 3.0]), [3.0]).tolist() == [[1.0]]


def ratings_of(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """One attribute that all states explain, one with noise and gaps, one of few responses."""
    true = rng.normal(size=(x.shape[1], 3))
    y = x @ true + rng.normal(size=(len(x), 3)) * [0.0, 3.0, 0.3]
    y[rng.random(len(x)) < 0.4, 1] = np.nan
    y[20:, 2] = np.nan
    return y


def test_each_head_is_fitted_to_its_own_ratings_with_the_penalty_that_was_best_held_out() -> None:
    rng = RNG(1)
    x, groups = rng.normal(size=(120, 12)), np.repeat(np.arange(60), 2)
    y = ratings_of(rng, x)
    found = ridge_heads(x, y, groups, seed=3)
    place = RNG(3).permutation(60)[groups]
    for k in range(3):
        rated = ~np.isnan(y[:, k])
        own = sorted(set(place[rated].tolist()))
        held = rated & np.isin(place, own[: max(1, round(0.2 * len(own)))])
        train = rated & ~held
        errors = [
            np.mean((y[held, k] - x[held] @ padded_least_squares(x[train], y[train, k], alpha)) ** 2)
            for alpha in ALPHAS
        ]
        assert found.alpha[k] == ALPHAS[int(np.argmin(errors))]
        want = padded_least_squares(x[rated], y[rated, k], found.alpha[k])
        np.testing.assert_allclose(found.weight[k], want, rtol=1e-6, atol=1e-8)
        assert found.r2[k] == pytest.approx(1 - min(errors) / y[held, k].var(), rel=1e-6)
        assert (found.count[k], found.held[k]) == (rated.sum(), held.sum())
        assert not set(groups[held]) & set(groups[train]), "answers to one prompt stay together"
    assert found.alpha[0] < found.alpha[1], "noise asks for more shrinking"


def test_ratings_that_are_missing_change_nothing() -> None:
    rng = RNG(2)
    x, groups = rng.normal(size=(80, 6)), np.arange(80)
    y = ratings_of(rng, x)
    odd = x.copy()
    odd[20:] += 100.0  # nobody rated these for the third attribute
    assert np.array_equal(ridge_heads(x, y, groups).weight[2], ridge_heads(odd, y, groups).weight[2])


def test_ridge_heads_are_those_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = RNG(4)
    x = rng.normal(size=(90, 7))
    y = ratings_of(rng, x)
    found = ridge_heads(x, y, np.arange(90))
    for k in range(3):
        rated = ~np.isnan(y[:, k])
        model = linear_model.Ridge(alpha=found.alpha[k], fit_intercept=False).fit(x[rated], y[rated, k])
        np.testing.assert_allclose(found.weight[k], model.coef_, rtol=1e-8)


def test_ridge_says_what_it_cannot_use() -> None:
    x, y = np.ones((4, 2)), np.array([[1.0], [2.0], [np.nan], [np.nan]])
    with pytest.raises(ValueError, match="attribute 0 has ratings in 1 groups"):
        ridge_heads(x, y, np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="finite"):
        ridge_heads(x * np.nan, y, np.arange(4))
    with pytest.raises(ValueError, match=r"states \[n, h\] and ratings \[n, K\]"):
        ridge_heads(x, y[:3], np.arange(4))
    with pytest.raises(ValueError, match="penalties > 0"):
        ridge(x, y[:2].repeat(2, 0)[:, 0], [0.0])


# ---- length taken out


def naive_penalties(r: np.ndarray, v: int, limit: float) -> tuple[list[float], list[int]]:
    found, unmet = [], []
    for k in range(r.shape[1]):
        ok = [p for p in PENALTIES if spearmanr(r[:, k] - p * r[:, v], r[:, v])[0] <= limit]
        found.append(1.0 if k == v or not ok else ok[0])
        if k != v and not ok and spearmanr(r[:, k] - r[:, v], r[:, v])[0] > limit:
            unmet.append(k)
    return found, unmet


def lengthy(rng: np.random.Generator, rows: int = 400) -> np.ndarray:
    """Outputs with no, some, much, far too much and a negative taste for verbosity, which is column 2."""
    v = rng.normal(size=rows)
    noise = rng.normal(size=(rows, 5))
    return np.stack([noise[:, 0], 0.3 * v + noise[:, 1], v, 3 * v + 0.2 * noise[:, 3], noise[:, 4] - v], 1)


@pytest.mark.parametrize("limit", [0.03, 0.2])
def test_the_smallest_penalty_that_is_enough(limit: float) -> None:
    r = lengthy(RNG(5))
    found = decorrelate(r, 2, limit=limit)
    penalties, unmet = naive_penalties(r, 2, limit)
    assert found.penalty.tolist() == penalties and list(found.unmet) == unmet == [3]
    matrix = np.eye(5)
    matrix[2] -= penalties
    assert np.array_equal(found.matrix, matrix) and found.matrix[2, 2] == 0
    without = r @ found.matrix
    for k in (0, 1, 3, 4):
        assert found.before[k] == pytest.approx(spearmanr(r[:, k], r[:, 2])[0])
        assert found.after[k] == pytest.approx(spearmanr(without[:, k], r[:, 2])[0])
        assert found.after[k] <= limit or k == 3
    assert found.penalty[4] == 0 and found.after[4] < -0.3, "a taste for short answers is no taste for length"
    assert 0 < found.penalty[1] < 0.5


def test_ranks_decide_not_numbers_and_ties_share_theirs() -> None:
    r = np.round(lengthy(RNG(6)), 1)
    found = decorrelate(r, 2)
    assert found.before[1] == pytest.approx(spearmanr(r[:, 1], r[:, 2])[0])
    stretched = r.copy()
    stretched[:, 0] = np.exp(r[:, 0])
    assert decorrelate(stretched, 2).before[0] == pytest.approx(found.before[0])


def test_decorrelation_refuses_what_has_no_ranks() -> None:
    r = lengthy(RNG(7))
    constant = r.copy()
    constant[:, 1] = 2.0
    for bad, column in ((constant, 2), (r[:2], 2), (r, 5), (np.where(r > 2, np.nan, r), 2)):
        with pytest.raises(ValueError, match="decorrelate: "):
            decorrelate(bad, column)


# ---- fixed weights


def test_fixed_weights_minimise_the_pairs_loss() -> None:
    rng = RNG(8)
    gaps = rng.normal(size=(300, 4)) + [1.0, 0.3, 0.0, -0.5]

    def loss(w: np.ndarray) -> float:
        return np.log1p(np.exp(-gaps @ w)).mean() + 5e-7 * w @ w

    want = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(pair_weights(gaps), want, atol=1e-4)
    assert np.all(np.sign(pair_weights(gaps)) == np.sign(want)) and pair_weights(gaps)[0] > 0
    apart = pair_weights(np.abs(gaps))  # told apart by every weight: the penalty keeps them finite
    assert np.isfinite(apart).all() and (np.abs(gaps) @ apart > 0).all()
    with pytest.raises(ValueError, match="pair_weights"):
        pair_weights(gaps[:, 0])


# ---- the gate


class NumpyGate:
    """The same perceptron in numpy float64, with its gradients by hand."""

    def __init__(self, gate: Gate) -> None:
        self.layers = [
            (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()) for layer in gate.layers
        ]
        self.scale, self.temperature = float(gate.logit_scale.detach()), gate.temperature

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        inputs = [x]
        for weight, bias in self.layers[:-1]:
            inputs.append(np.maximum(inputs[-1] @ weight.T + bias, 0.0))
        weight, bias = self.layers[-1]
        z = (inputs[-1] @ weight.T + bias) / self.temperature
        e = np.exp(z - z.max(1, keepdims=True))
        return self.scale * e / e.sum(1, keepdims=True), inputs

    def gradients(self, x: np.ndarray, gaps: np.ndarray) -> tuple[float, list[tuple[np.ndarray, np.ndarray]], float]:
        """Of mean -log sigmoid(g . gaps): the loss, by layer (weight, bias), and of the scale."""
        g, inputs = self.forward(x)
        delta = (g * gaps).sum(1)
        loss = np.log1p(np.exp(-delta)).mean()
        d_g = (-1 / (1 + np.exp(delta)) / len(x))[:, None] * gaps
        d_scale = (d_g * g / self.scale).sum()
        soft = g / self.scale
        d = self.scale * soft * (d_g - (d_g * soft).sum(1, keepdims=True)) / self.temperature
        found = []
        for index in range(len(self.layers) - 1, -1, -1):
            found.append((d.T @ inputs[index], d.sum(0)))
            d = d @ self.layers[index][0] * (inputs[index] > 0)
        return loss, found[::-1], d_scale


def small_gate(seed: int = 0, **options) -> Gate:
    torch.manual_seed(seed)
    return Gate(6, 4, (8, 5), **{"temperature": 2.0, "scale": 1.5, **options}).double()


def test_the_gate_forward_and_one_gradient_step_as_in_numpy() -> None:
    gate, rng = small_gate(), RNG(9)
    x, gaps = rng.normal(size=(20, 6)), rng.normal(size=(20, 4)) + 0.5
    reference = NumpyGate(gate)
    single = Gate(6, 4, (8, 5), temperature=2.0, scale=1.5)
    single.load_state_dict({name: value.float() for name, value in gate.state_dict().items()})
    single.eval()
    got = single(torch.tensor(x))
    assert got.dtype == torch.float32, "computed in fp32 whatever the states are"
    np.testing.assert_allclose(got.detach().numpy(), reference.forward(x)[0], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(got.sum(1).detach().numpy(), 1.5, rtol=1e-6)

    delta = (got * torch.tensor(gaps)).sum(1)
    loss = bradley_terry(delta, torch.zeros_like(delta)).mean()
    loss.backward()
    want, layers, scale = reference.gradients(x, gaps)
    assert loss.item() == pytest.approx(want, rel=1e-5)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(delta, torch.ones_like(delta))
    assert loss.item() == pytest.approx(bce.item(), rel=1e-6), "BCE(gap, 1)"
    for layer, (weight, bias) in zip(single.layers, layers, strict=True):
        np.testing.assert_allclose(layer.weight.grad.numpy(), weight, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(layer.bias.grad.numpy(), bias, rtol=1e-3, atol=1e-6)
    assert single.logit_scale.grad.item() == pytest.approx(scale, rel=1e-4)
    before = single.layers[0].weight.detach().clone()
    torch.optim.SGD(single.parameters(), lr=0.1).step()
    moved = (single.layers[0].weight.detach() - before).numpy()
    np.testing.assert_allclose(moved, -0.1 * layers[0][0], rtol=1e-3, atol=1e-6)


def test_dropout_multiplies_the_hidden_units() -> None:
    gate, rng = small_gate(), RNG(11)
    x, factors = rng.normal(size=(20, 6)), dropped(20, 8 + 5, 0.25, seed=1, step=2)
    layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in gate.layers]
    first = np.maximum(x @ layers[0][0].T + layers[0][1], 0) * factors[:, :8]
    second = np.maximum(first @ layers[1][0].T + layers[1][1], 0) * factors[:, 8:]
    logits = (second @ layers[2][0].T + layers[2][1]) / 2.0
    want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) * 1.5
    single = gate.float()
    got = single(torch.tensor(x), torch.from_numpy(factors)).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    assert np.abs(got - single(torch.tensor(x)).detach().numpy()).max() > 1e-3


def test_dropout_is_a_function_of_seed_and_step() -> None:
    many = dropped(4000, 50, 0.2, seed=1, step=2)
    assert set(np.unique(many)) == {np.float32(0), np.float32(1.25)}
    assert (many == 0).mean() == pytest.approx(0.2, abs=0.005) and many.mean() == pytest.approx(1, abs=0.005)
    assert np.array_equal(many, dropped(4000, 50, 0.2, seed=1, step=2))
    for other in (dropped(4000, 50, 0.2, seed=2, step=2), dropped(4000, 50, 0.2, seed=1, step=3)):
        assert (many == other).mean() == pytest.approx(0.8**2 + 0.2**2, abs=0.01), "independent draws"


def test_shares_add_up_to_the_gated_score() -> None:
    rng = RNG(10)
    r, g, m = rng.normal(size=(7, 4)), rng.random((7, 4)), np.eye(4)
    m[1] -= [0.3, 1.0, 0.0, 0.7]
    parts = shares(*(torch.tensor(x) for x in (r, g, m))).numpy()
    for s in range(7):
        for j in range(4):
            assert parts[s, j] == pytest.approx(r[s, j] * sum(g[s, k] * m[j, k] for k in range(4)))
    np.testing.assert_allclose(parts.sum(1), (g * (r @ m)).sum(1))
    assert not np.allclose(parts.sum(1), (g * r).sum(1)), "length out or in are two different rewards"


# ---- where the prompt is read


def trees() -> list[TokenTree]:
    def branch(*ids: int) -> Branch:
        return Branch(np.array(ids), np.ones(len(ids), bool))

    return [
        TokenTree(np.array([5, 9, 8, 1, 9, 8, 7]), (branch(1, 2), branch(3, 9, 8, 7))),
        TokenTree(np.array([4, 9, 8]), (branch(7, 2, 9, 8),)),
    ]


@pytest.mark.parametrize("flat", [False, True])
def test_where_prompts_are_read(flat: bool) -> None:
    batch = collate(trees(), flat=flat)
    ends = prompt_positions(batch)
    assert batch.tokens[ends].tolist() == [7, 7, 8] and batch.positions[ends].tolist() == [6, 6, 2]
    starts = prompt_positions(batch, (9, 8))
    assert batch.tokens[starts].tolist() == [9, 9, 9]
    assert batch.positions[starts].tolist() == [4, 8, 5], "the last place, in the prompt or the answer"
    across = prompt_positions(batch, (9, 8, 7))
    assert batch.positions[across].tolist() == [4, 8, 1], "and across the border of the two"
    with pytest.raises(ModelError, match="no such place"):
        prompt_positions(batch, (6, 6))


# ---- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3).bfloat16()}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_gate_comes_back_as_it_was_and_belongs_to_its_weights(folder: Path) -> None:
    import json

    from safetensors.torch import save_file

    gate = Gate(6, 2, (8,), temperature=3.0, scale=2.0).eval()
    rule = save_gate(gate.state_dict(), GateRule((8,), 3.0, ((1.0, 0.0), (-0.15, 0.0)), "length", (1, 2)), folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama" and not list(folder.glob("gate*.safetensors")), (
        "vLLM would read it as weights"
    )
    again, read = load_gate(folder, config["assent_gate"], 6, 2)
    assert read == rule and read.transform[1] == (-0.15, 0.0)
    x = torch.randn(5, 6)
    assert torch.equal(again(x), gate(x)) and not any(p.requires_grad for p in again.parameters())

    digest = weights_digest(folder)
    stored = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3).bfloat16()}
    save_file({"b": stored["b"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"a": stored["a"]}, folder / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"b": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert weights_digest(folder) == digest, "the same weights, spread over two files"
    stored["b"][1, 2] += 1e-3
    save_file({"b": stored["b"]}, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match="gate was trained on another backbone.*assent reward-gate"):
        load_gate(folder, config["assent_gate"], 6, 2)


def test_damaged_gates_are_refused(folder: Path) -> None:
    import json

    from safetensors.torch import save_file

    gate = Gate(6, 2, (8,)).eval()
    save_gate(gate.state_dict(), GateRule((8,), 10.0, ((1.0, 0.0), (0.0, 1.0))), folder)
    section = json.loads((folder / "config.json").read_text())["assent_gate"]
    with pytest.raises(ModelError, match="transform of 3 times 3 numbers"):
        load_gate(folder, section, 6, 3)
    with pytest.raises(ModelError, match="says nothing of a gate"):
        load_gate(folder, {**section, "transform": "eye"}, 6, 2)
    with pytest.raises(ModelError, match="temperature > 0"):
        load_gate(folder, {**section, "temperature": 0}, 6, 2)
    with pytest.raises(ModelError, match="its weights are not those of the gate"):
        load_gate(folder, {**section, "hidden": [4]}, 6, 2)
    weights = {name: x.clone() for name, x in gate.state_dict().items()}
    weights["layers.1.bias"][0] = float("nan")
    save_file(weights, folder / "gate" / "gate.safetensors")
    with pytest.raises(ModelError, match=r"layers.1.bias has numbers that are not finite"):
        load_gate(folder, section, 6, 2)
    (folder / "gate" / "gate.safetensors").unlink()
    with pytest.raises(ModelError, match="not readable"):
        load_gate(folder, section, 6, 2)
