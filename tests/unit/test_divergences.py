"""Divergences from a teacher, straight from hidden states: values and gradients against float64 sums over the whole
vocabulary and against TRL, limits, and what heads of other shapes make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from assent.models import logprobs
from assent.models.divergences import Divergence, divergence_of, token_divergence
from assent.models.head import Linear, Transform, head_divergence

N, WIDTH, OTHER, VOCAB = 13, 6, 4, 11
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
OPTIONS = {"scale": 1.3, "softcap": 2.0, "other_scale": 0.8, "other_softcap": 3.0}


def heads(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """hidden, weight, bias of the policy and of the teacher."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((N, WIDTH), (VOCAB, WIDTH), (VOCAB,)), ((N, OTHER), (VOCAB, OTHER), (VOCAB,))
    own, other = ([torch.randn(*s, generator=draw).to(dtype).requires_grad_() for s in each] for each in shapes)
    return own, other


def logits(hidden: Tensor, weight: Tensor, bias: Tensor, scale: float, softcap: float) -> np.ndarray:
    z = hidden.detach().double().numpy() @ weight.detach().double().numpy().T + bias.detach().double().numpy()
    return scale * softcap * np.tanh(z / softcap)


def by_sums(p: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    """The divergence of rows of probabilities, term by term."""

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * np.log(a / b)).sum(1)

    if beta in (0.0, 1.0):
        return kl(p, q) if beta else kl(q, p)
    m = beta * q + (1 - beta) * p
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def ours(own: list[Tensor], other: list[Tensor], beta: float, **options: float) -> Divergence:
    return token_divergence(*own[:2], *other[:2], beta=beta, bias=own[2], other_bias=other[2], **{**OPTIONS, **options})


@pytest.fixture(params=[1, 4 * 3 * VOCAB, 1 << 22], ids=["row by row", "three rows", "one chunk"])
def chunk(request, monkeypatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", request.param)


@pytest.mark.parametrize("beta", BETAS)
def test_values_are_sums_over_the_vocabulary(beta: float, chunk: None) -> None:
    own, other = heads()
    p, q = (softmax(logits(*each, scale, cap)) for each, scale, cap in ((own, 1.3, 2.0), (other, 0.8, 3.0)))
    found = ours(own, other, beta)
    for got, wanted in (
        (found.loss, by_sums(p, q, beta)),
        (found.forward, by_sums(p, q, 0.0)),
        (found.reverse, by_sums(p, q, 1.0)),
        (found.agrees, (p.argmax(1) == q.argmax(1)).astype(float)),
    ):
        assert got.detach().numpy() == pytest.approx(wanted, abs=1e-12)
    assert found.loss.requires_grad and not any(x.requires_grad for x in found[1:])
    assert 0 < found.agrees.sum() < N, "both happen"


@pytest.mark.parametrize("beta", BETAS)
def test_gradients(beta: float, monkeypatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 4 * 5 * VOCAB)
    own, other = heads()
    assert torch.autograd.gradcheck(lambda *own: ours(list(own), other, beta).loss, own)
    ahead = torch.linspace(-1, 2, N, dtype=torch.float64)
    (ahead * ours(own, other, beta).loss).sum().backward()
    assert all(x.grad is None for x in other), "the teacher is a constant"
    z = [x.detach().clone().requires_grad_() for x in own]
    logp, logq = (
        torch.log_softmax(scale * cap * torch.tanh((h @ w.T + b) / cap), 1)
        for (h, w, b), scale, cap in ((z, 1.3, 2.0), ([x.detach() for x in other], 0.8, 3.0))
    )
    (ahead * divergence_of(logp, logq, beta).loss).sum().backward()
    for a, b in zip(own, z, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-11, rtol=0)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_equal_to_trl(beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="TRL is the oracle")
    draw = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(2, N, VOCAB, generator=draw).mul(3).requires_grad_() for _ in range(2))
    labels = torch.where(torch.rand(2, N, generator=draw) < 0.6, 1, -100)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=temperature)
    (slope,) = torch.autograd.grad(theirs, student)
    there = labels != -100
    eye = torch.eye(VOCAB)
    scale = 1 / temperature
    found = token_divergence(student[there], eye, teacher[there], eye, beta=beta, scale=scale, other_scale=scale)
    loss = found.loss.sum() / there.sum()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], slope, atol=1e-6, rtol=0)


def test_the_ends_are_limits_and_the_sides_differ() -> None:
    own, other = heads()
    ends = {beta: ours(own, other, beta) for beta in (0.0, 1.0)}
    torch.testing.assert_close(ours(own, other, 1e-7).loss / 1e-7, ends[0.0].loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(own, other, 1 - 1e-7).loss / 1e-7, ends[1.0].loss, atol=1e-5, rtol=0)
    assert (ends[0.0].loss - ends[1.0].loss).abs().max() > 0.1
    swapped = token_divergence(*other[:2], *own[:2], beta=0.1)
    straight = token_divergence(*own[:2], *other[:2], beta=0.9)
    torch.testing.assert_close(swapped.loss, straight.loss)  # who is whose teacher is what beta says


def test_equal_predictions_are_zero_apart_without_a_slope() -> None:
    (hidden, weight, bias), _ = heads(torch.float32)
    for beta in BETAS:
        found = token_divergence(hidden, weight, hidden, weight, beta=beta, bias=bias, other_bias=bias)
        slopes = torch.autograd.grad(found.loss.sum(), (hidden, weight, bias))
        assert found.loss.abs().max() < 1e-6 and max(x.abs().max() for x in slopes) < 1e-6
        assert found.agrees.all()


def test_low_precision_products_keep_statistics_in_fp32() -> None:
    own, other = heads(torch.float32)
    found, exact = ours(own, other, 0.5, dtype=torch.bfloat16), ours(own, other, 0.5)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, exact.loss, atol=0.05, rtol=0)


def test_the_logits_of_all_rows_never_exist(monkeypatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 4 * VOCAB)
    own, other = heads(torch.float32)

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in tree_leaves(out):
                if isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == VOCAB and len(x) not in (WIDTH, OTHER):
                    self.rows = max(self.rows, len(x))
            return out

    with Largest() as seen:
        ours(own, other, 0.5).loss.sum().backward()
    assert 0 < seen.rows <= 1


def test_a_padded_vocabulary_is_cut_to_what_both_have() -> None:
    own, other = heads(torch.float32)
    more = torch.cat([other[1], torch.full((3, OTHER), 5.0)]).detach()
    short, long = (Linear(weight, None, Transform(1.5)) for weight in (other[1].detach(), more))
    head = Linear(own[1], None, Transform(0.7))
    ask = (own[0], 1.2, torch.float32, 0.3)
    one, two = (head_divergence(head, ask[0], it, other[0].detach(), *ask[1:]) for it in (short, long))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    wide = Linear(torch.cat([own[1], torch.ones(2, WIDTH)]), None, Transform(0.7))
    cut = head_divergence(wide, ask[0], short, other[0].detach(), *ask[1:])
    torch.testing.assert_close(cut.loss, one.loss)
    cut.loss.sum().backward()
    assert own[1].grad is not None and own[1].grad.any()


def test_a_head_of_the_models_own_code() -> None:
    """The same numbers and gradients where the head is no product."""
    own, other = heads(torch.float32)

    class Code:
        vocab = VOCAB

        def __init__(self, weight: Tensor) -> None:
            self.weight = weight

        def __call__(self, hidden: Tensor) -> Tensor:
            return hidden @ self.weight.T

    for beta in BETAS:
        ask = (1.2, torch.float32, beta)
        product = head_divergence(
            Linear(own[1], None, Transform()), own[0], Linear(other[1], None, Transform()), other[0].detach(), *ask
        )
        code = head_divergence(Code(own[1]), own[0], Code(other[1].detach()), other[0].detach(), *ask)  # type: ignore[arg-type]
        for a, b in zip(product, code, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        slopes = [torch.autograd.grad(each.loss.sum(), own[:2]) for each in (product, code)]
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "beta", "words"),
    [
        (((5, 3), (7, 3), (4, 2), (7, 2)), 0.5, "expected the same"),
        (((5, 3), (7, 3), (5, 2), (8, 2)), 0.5, "expected the same"),
        (((5, 3), (7, 4), (5, 2), (7, 2)), 0.5, "does not fit"),
        (((5, 3), (7, 3), (5, 2), (7, 2)), 1.5, r"beta must be in \[0, 1\]"),
        (((5, 3), (7, 3), (5, 2), (7, 2)), float("nan"), r"beta must be in \[0, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, beta: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        token_divergence(*(torch.zeros(shape) for shape in shapes), beta=beta)
