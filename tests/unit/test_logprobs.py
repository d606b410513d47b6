"""Log-probabilities, entropies, collisions and divergences straight from hidden states: values, gradients, and what is
never in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from assent.models import logprobs
from assent.models.logprobs import token_kl, token_logprobs

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


def dense(hidden: Tensor, weight: Tensor, bias=None, scale=1.0, softcap=None) -> Tensor:
    """Log-probabilities of all tokens, by torch's own log_softmax over whole logits."""
    z = hidden @ weight.T + (0 if bias is None else bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return torch.log_softmax(scale * z, -1)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, **options) -> tuple[Tensor, Tensor]:
    logp = dense(hidden, weight, **options)
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
    got = token_logprobs(hidden, weight, targets, **options)[:2]
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
        return token_logprobs(hidden, weight, targets, bias=bias, scale=1.3, softcap=3.0)[:2]

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
        logp, told, _ = token_logprobs(hidden, weight, targets, scale=1.3, softcap=2.0, entropy=entropy)
        assert told.any() == entropy
        found.append((logp, *torch.autograd.grad(logp.sum(), (hidden, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_collision_is_a_constant(case: str, chunk: int) -> None:
    options = dict(CASES[case])
    hidden, weight, bias, targets = inputs()
    if options.pop("bias", False):
        options["bias"] = bias
    *bare, nothing = token_logprobs(hidden, weight, targets, **options)
    *rest, collision = token_logprobs(hidden, weight, targets, **options, collision=True)
    assert not nothing.any() and not collision.requires_grad
    torch.testing.assert_close(collision, dense(hidden, weight, **options).exp().square().sum(-1).log())
    assert all(torch.equal(a, b) for a, b in zip(bare, rest, strict=True))


def test_nothing_trained_keeps_the_graph() -> None:
    """A rank without a token still takes part in the backward pass, with zeros."""
    hidden, weight, _, targets = inputs(torch.float32)
    logp, entropy, collision = token_logprobs(hidden[:0], weight, targets[:0], collision=True)
    assert logp.shape == entropy.shape == collision.shape == (0,)
    logp.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_bf16_products_keep_fp32_statistics_and_gradients() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    logp, entropy, collision = token_logprobs(hidden, weight, targets, dtype=torch.bfloat16, collision=True)
    assert logp.dtype == entropy.dtype == collision.dtype == torch.float32
    (logp.sum() + entropy.sum()).backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    want = plain(hidden.double(), weight.double(), targets)
    assert 0 < (logp - want[0]).abs().max() < 0.05
    assert (entropy - want[1]).abs().max() < 0.05


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    logp, entropy, collision = token_logprobs(hidden, weight, targets, scale=1e4, collision=True)
    (logp.sum() + entropy.sum()).backward()
    for tensor in (logp, entropy, collision, hidden.grad, weight.grad):
        assert torch.isfinite(tensor).all()
    assert entropy.abs().max() < 1e-3 and collision.abs().max() < 1e-3


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
        logp, entropy, _ = token_logprobs(hidden, weight, targets, collision=True)
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


# ---- divergences


def two_heads(case: str, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor], dict, dict]:
    """Leaves of both models (hidden, weight, and bias where the case has one), of unequal width; their options."""
    options = dict(CASES[case])
    biased = options.pop("bias", False)
    hidden, weight, bias, _ = inputs(dtype)
    draw = torch.Generator().manual_seed(1)
    others = [torch.randn(*s, generator=draw).to(dtype) for s in ((N, 4), (VOCAB, 4), (VOCAB,))]
    others = [x.requires_grad_() for x in others]
    # the other model has its own temperature and cap
    other_options = {name: 1.4 * value for name, value in options.items()}
    return [hidden, weight, bias][: 2 + biased], others[: 2 + biased], options, other_options


def kl(own: list[Tensor], other: list[Tensor], options: dict, other_options: dict, direction: str) -> Tensor:
    options = options | {f"other_{name}": value for name, value in other_options.items()}
    biases = {"bias": own[2], "other_bias": other[2]} if len(own) == 3 else {}
    return token_kl(*own[:2], *other[:2], **biases, **options, direction=direction)


def plain_kl(own: list[Tensor], other: list[Tensor], options: dict, other_options: dict, direction: str) -> Tensor:
    logp, logq = dense(*own, **options), dense(*other, **other_options).detach()
    if direction == "forward":
        return (logq.exp() * (logq - logp)).sum(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("case", CASES)
def test_kl_and_its_gradients_are_the_dense_ones(case: str, direction: str, chunk: int) -> None:
    own, other, *options = two_heads(case)
    ahead = torch.linspace(-1, 2, N, dtype=torch.float64)
    got, want = kl(own, other, *options, direction), plain_kl(own, other, *options, direction)
    assert got.dtype == torch.float64 and got.min() > 1e-2
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    ours = torch.autograd.grad((ahead * got).sum(), own)
    theirs = torch.autograd.grad((ahead * want).sum(), own)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_gradcheck(direction: str, monkeypatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 2 * 5 * VOCAB)
    own, other, *options = two_heads("all")
    assert torch.autograd.gradcheck(lambda *own: kl(list(own), other, *options, direction), own)


def test_kl_by_default_is_that_of_the_other_model() -> None:
    own, other, *options = two_heads("plain")
    torch.testing.assert_close(token_kl(*own, *other), plain_kl(own, other, *options, "forward"))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_gives_the_other_model_no_gradient(direction: str) -> None:
    own, other, *options = two_heads("all")
    kl(own, other, *options, direction).sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in own) and all(x.grad is None for x in other)
    frozen = [x.detach() for x in own]
    hidden = own[0].detach().requires_grad_()
    kl([hidden, *frozen[1:]], other, *options, direction).sum().backward()
    torch.testing.assert_close(hidden.grad, own[0].grad)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_of_equals_is_zero_to_the_bit(direction: str, chunk: int) -> None:
    hidden, weight, _, _ = inputs(torch.float32)
    got = token_kl(hidden, weight, hidden, weight, direction=direction, scale=1.3, other_scale=1.3)
    got.sum().backward()
    for zero in (got, hidden.grad, weight.grad):
        assert not zero.any()


def test_kl_of_nothing_keeps_the_graph() -> None:
    own, other, *_ = two_heads("plain", torch.float32)
    got = token_kl(own[0][:0], own[1], other[0][:0], other[1])
    assert got.shape == (0,)
    got.sum().backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in own)


def test_kl_in_bf16_keeps_fp32_statistics_and_stays_finite() -> None:
    own, other, *options = two_heads("plain", torch.float32)
    got = token_kl(*own, *other, dtype=torch.bfloat16)
    assert got.dtype == torch.float32
    want = plain_kl([x.double() for x in own], [x.double() for x in other], *options, "forward")
    assert 0 < (got - want).abs().max() < 0.1
    for direction in ("forward", "reverse"):
        far = token_kl(*own, *other, direction=direction, scale=1e3, other_scale=1e3)
        far.sum().backward()
        assert all(torch.isfinite(x).all() for x in (far, own[0].grad, own[1].grad))


def test_kl_never_has_the_whole_logits(monkeypatch) -> None:
    rows, width, vocab = 200, 4, 300
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 2 * 5 * vocab)
    own = [torch.randn(*shape, requires_grad=True) for shape in ((rows, width), (vocab, width))]
    other = [torch.randn(*shape) for shape in ((rows, width), (vocab, width))]
    with Largest() as seen:
        token_kl(*own, *other).sum().backward()
    assert seen.elements == 5 * vocab


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((N, 5), (VOCAB, WIDTH), (N, 4), (VOCAB, 4)), r"^hidden \(13, 5\) does not fit weight \(11, 6\)"),
        (
            ((N, WIDTH), (VOCAB, WIDTH), (N, 5), (VOCAB, 4)),
            r"^other_hidden \(13, 5\) does not fit other_weight \(11, 4\)",
        ),
        (((N, WIDTH), (VOCAB, WIDTH), (9, 4), (VOCAB, 4)), "hidden has 13 rows, other_hidden 9"),
        (((N, WIDTH), (VOCAB, WIDTH), (N, 4), (12, 4)), "weight has 11 tokens, other_weight 12; a KL needs one vocab"),
    ],
)
def test_kl_shapes_are_checked(shapes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_kl(*(torch.zeros(shape) for shape in shapes))


def test_kl_directions_are_checked() -> None:
    own, other, *_ = two_heads("plain")
    with pytest.raises(ValueError, match="direction must be 'forward' or 'reverse'. Got 'back'"):
        token_kl(*own, *other, direction="back")
