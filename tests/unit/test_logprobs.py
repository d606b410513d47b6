"""Log-probabilities and entropies straight from hidden states: values, gradients, and what is never in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from assent.models import logprobs
from assent.models.logprobs import token_logprobs

N, WIDTH, VOCAB = 13, 6, 11
CASES = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 1.7},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "scale": 0.6, "softcap": 2.0},
}


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias, targets."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((N, WIDTH), (VOCAB, WIDTH), (VOCAB,)))
    targets = torch.randint(VOCAB, (N,), generator=draw)
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, bias=None, scale=1.0, softcap=None) -> tuple[Tensor, Tensor]:
    """The same by torch's own log_softmax over whole logits."""
    z = hidden @ weight.T + (0 if bias is None else bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    logp = torch.log_softmax(scale * z, -1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


@pytest.fixture(params=[1, 3 * VOCAB, 1 << 22], ids=["row by row", "three rows", "one chunk"])
def chunk(request, monkeypatch) -> int:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", request.param)
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_log_softmax(case: str, chunk: int) -> None:
    options = dict(CASES[case])
    hidden, weight, bias, targets = inputs()
    leaves = [hidden, weight]
    if options.pop("bias", False):
        options["bias"] = bias
        leaves.append(bias)
    got = token_logprobs(hidden, weight, targets, **options)
    want = plain(hidden, weight, targets, **options)
    ahead = torch.linspace(-1, 2, N, dtype=torch.float64)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    for mix in ((1.0, 0.0), (0.0, 1.0), (0.7, -0.3)):  # log-probs alone, entropy alone, both

        def scalar(pair, mix=mix):
            return mix[0] * (ahead * pair[0]).sum() + mix[1] * (ahead * pair[1]).sum()

        ours = torch.autograd.grad(scalar(token_logprobs(hidden, weight, targets, **options)), leaves)
        theirs = torch.autograd.grad(scalar(plain(hidden, weight, targets, **options)), leaves)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_gradcheck(monkeypatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 5 * VOCAB)
    hidden, weight, bias, targets = inputs()

    def both(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(hidden, weight, targets, bias=bias, scale=1.3, softcap=3.0)

    assert torch.autograd.gradcheck(both, (hidden, weight, bias))


def test_only_the_gradients_that_are_asked_for() -> None:
    hidden, weight, _, targets = inputs()
    frozen = weight.detach()
    token_logprobs(hidden, frozen, targets)[0].sum().backward()
    want = torch.autograd.grad(plain(hidden, weight, targets)[0].sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, want)
    assert frozen.grad is None


def test_without_entropy_the_rest_is_the_same(chunk: int) -> None:
    hidden, weight, _, targets = inputs()
    found = []
    for entropy in (True, False):
        logp, told = token_logprobs(hidden, weight, targets, scale=1.3, softcap=2.0, entropy=entropy)
        assert told.any() == entropy
        found.append((logp, *torch.autograd.grad(logp.sum(), (hidden, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nothing_trained_keeps_the_graph() -> None:
    """A rank without a token still takes part in the backward pass, with zeros."""
    hidden, weight, _, targets = inputs(torch.float32)
    logp, entropy = token_logprobs(hidden[:0], weight, targets[:0])
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_bf16_products_keep_fp32_statistics_and_gradients() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    logp, entropy = token_logprobs(hidden, weight, targets, dtype=torch.bfloat16)
    assert logp.dtype == entropy.dtype == torch.float32
    (logp.sum() + entropy.sum()).backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    want = plain(hidden.double(), weight.double(), targets)
    assert 0 < (logp - want[0]).abs().max() < 0.05
    assert (entropy - want[1]).abs().max() < 0.05


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    logp, entropy = token_logprobs(hidden, weight, targets, scale=1e4)
    (logp.sum() + entropy.sum()).backward()
    for tensor in (logp, entropy, hidden.grad, weight.grad):
        assert torch.isfinite(tensor).all()
    assert entropy.abs().max() < 1e-3


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0) if sizes else self.elements
        return out


def test_the_whole_logits_never_exist(monkeypatch) -> None:
    rows, width, vocab = 200, 4, 300
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 5 * vocab)
    hidden, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocab, width, requires_grad=True)
    targets = torch.randint(vocab, (rows,))
    with Largest() as ours:
        logp, entropy = token_logprobs(hidden, weight, targets)
        (logp.sum() + entropy.sum()).backward()
    assert ours.elements == 5 * vocab  # one chunk; the weight has fewer
    with Largest() as theirs:
        plain(hidden, weight, targets)
    assert theirs.elements == rows * vocab  # the instrument sees what it is meant to see


@pytest.mark.parametrize(
    ("hidden", "weight", "targets", "message"),
    [
        ((N, 5), (VOCAB, WIDTH), (N,), r"hidden \(13, 5\) does not fit weight \(11, 6\)"),
        ((N, WIDTH), (VOCAB, WIDTH), (N + 1,), r"targets must be \[13\]. Got \(14,\)"),
    ],
)
def test_shapes_are_checked(hidden, weight, targets, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_logprobs(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.int64))
