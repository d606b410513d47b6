"""From final hidden states to logits as an architecture does it. What stands after the decoder is measured: numbers go
through the model's own code with the decoder left out. Where that is a product with the head's weight, scaled or
capped, the product is computed in chunks (`assent.models.logprobs`); else the model's own code runs, in chunks too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from assent.models.divergences import Divergence, divergence_of, token_divergence
from assent.models.logprobs import CHUNK_ELEMENTS, Direction, token_kl, token_logprobs
from assent.models.parts import decoder_of

_SIZES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""The largest logit before the transform, of the rows that it is measured on."""
_TOLERANCE = 1e-4
"""Of a row's largest logit."""


@dataclass(frozen=True, slots=True)
class Transform:
    """z = scale * cap(hidden @ weight.T + bias) with cap(x) = softcap * tanh(x / softcap), or the identity."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * (x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap))


@dataclass(frozen=True, slots=True)
class Linear:
    """A head that is a product: weight [V, h], bias [V], and what follows."""

    weight: Tensor
    bias: Tensor | None
    transform: Transform

    def options(self, temperature: float) -> dict[str, Any]:
        transform = self.transform
        return {"bias": self.bias, "scale": transform.scale / temperature, "softcap": transform.softcap}

    @property
    def vocab(self) -> int:
        return self.weight.shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.transform(nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias))


@dataclass(frozen=True, slots=True)
class Own:
    """A head that is the model's own code, with `weights` in place of its own where they are given, and its matrix
    products in `dtype`."""

    model: PreTrainedModel
    weights: Mapping[str, Tensor] | None
    dtype: torch.dtype

    @property
    def vocab(self) -> int:
        size: int = self.model.get_input_embeddings().weight.shape[0]
        return size

    def __call__(self, hidden: Tensor) -> Tensor:
        low = self.dtype != next(self.model.parameters()).dtype
        with torch.autocast(hidden.device.type, self.dtype) if low else nullcontext():
            return own_logits(self.model, hidden, self.weights)


Head = Linear | Own
"""Hidden states [n, h] -> logits [n, V]."""


def head_of(model: PreTrainedModel, transform: Transform | None, dtype: torch.dtype, *, constant: bool = False) -> Head:
    """The head with this measured transform (None: the model's own code); `constant`: as it is now, with whole weights,
    for use outside of the sharded model's forward."""
    head = model.get_output_embeddings()
    if transform is None or hasattr(head, "lora_A"):  # adapters on the head are in its code
        return Own(model, head_weights(model) if constant else None, dtype)
    weight, bias = head.weight, getattr(head, "bias", None)
    if constant:
        weight, bias = whole(weight), None if bias is None else whole(bias)
    return Linear(weight, bias, transform)


def own_logits(model: PreTrainedModel, hidden: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """What the model's own code makes of final hidden states: [n, h] -> [n, V]; with `weights` in place of its own."""
    ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    arguments = {"input_ids": ids, "use_cache": False}
    with _replaced(decoder_of(model), hidden[None]):
        if weights is None:
            out = model(**arguments)
        else:
            out = torch.func.functional_call(model, dict(weights), kwargs=arguments)
    logits: Tensor = out.logits[0]
    return logits


def head_weights(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """The weights after the decoder, whole, where FSDP shards them outside of `forward`; else None."""
    inside = {id(weight) for weight in decoder_of(model).parameters()}
    output = model.get_output_embeddings()
    tied = set() if output is None else {id(weight) for weight in output.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    weights = {name: weight for name, weight in named if id(weight) not in inside - tied}
    if not any(isinstance(weight, DTensor) for weight in weights.values()):
        return None
    return {name: whole(weight) for name, weight in weights.items()}


def whole(weight: Tensor) -> Tensor:
    """All of a weight, on every rank, also where FSDP shards it outside of `forward`."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()


class _Output:
    """The decoder's output, however a model reads it."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]


@contextmanager
def _replaced(decoder: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Inside, the decoder gives these hidden states whatever it is called with."""
    before = vars(decoder).get("forward")
    decoder.forward = lambda *_, **__: _Output(hidden)
    try:
        yield
    finally:
        if before is None:
            del decoder.forward
        else:
            decoder.forward = before


# ---- measuring


@torch.no_grad()
def measure(model: PreTrainedModel) -> Transform | None:
    """The transform after the product with the output head's weight, or None where there is no such product or
    something else is done to it."""
    head = model.get_output_embeddings()
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(_SIZES), weight.shape[1], generator=draw).to(weight)
    product = nn.functional.linear(hidden, weight)
    hidden *= torch.tensor(_SIZES).to(weight)[:, None] / product.abs().amax(1, keepdim=True).clamp(min=1e-12)
    before = nn.functional.linear(hidden, weight, bias)
    try:
        after = own_logits(model, hidden)
    except Exception:  # its weight does not read hidden states, or its code needs more than them
        return None
    if after.shape != before.shape:
        return None
    return fit(before.double(), after.double())


def fit(before: Tensor, after: Tensor) -> Transform | None:
    """The transform that makes `after` [n, V] of `before`, whose rows have very different sizes; None where none
    does."""

    def fits(found: Transform) -> bool:
        error = (found(before) - after).abs().amax(1)
        return bool((error <= _TOLERANCE * after.abs().amax(1).clamp(min=1e-6)).all())

    scale = ((before * after).sum() / before.square().sum()).item()
    simple = (Transform(), Transform(_short(scale)), Transform(scale))
    if (found := next(filter(fits, simple), None)) is not None:
        return found
    capped = _fit_cap(before, after)
    rounded = (_short(capped[0]), _short(capped[1]))
    return next(filter(fits, (Transform(*rounded), Transform(*capped))), None)


def _fit_cap(before: Tensor, after: Tensor) -> tuple[float, float]:
    """(scale, softcap) by Gauss-Newton on the logarithms of slope a and limit L of L * tanh(a x / L); rows count
    alike."""
    size = after.abs().amax(1, keepdim=True).clamp(min=1e-12)
    slope = ((before[0] * after[0]).sum() / before[0].square().sum()).clamp(min=1e-12).log()
    limit = (1.01 * after.abs().max()).clamp(min=1e-12).log()
    for _ in range(50):
        a, cap = slope.exp(), limit.exp()
        x = a * before / cap
        value = torch.tanh(x)
        by_slope = cap * (1 - value**2) * x
        by_limit = cap * value - by_slope
        table = torch.stack([(by_slope / size).flatten(), (by_limit / size).flatten()], 1)
        rest = ((after - cap * value) / size).flatten()
        gram = table.T @ table + 1e-12 * torch.eye(2, dtype=table.dtype, device=table.device)
        step = torch.linalg.solve(gram, table.T @ rest).clamp(-1, 1)
        slope, limit = slope + step[0], limit + step[1]
    return slope.exp().item(), (limit - slope).exp().item()


def _short(value: float) -> float:
    """The number of few digits that was meant, where there is one this close."""
    short = float(f"{value:.5g}")
    inverse = 1.0 / float(f"{1.0 / value:.5g}") if value else short
    return next((x for x in (short, inverse) if abs(x - value) <= 2e-6 * abs(value)), value)


# ---- scores through any head


def head_logprobs(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    dtype: torch.dtype,
    *,
    entropy: bool = False,
    collision: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`token_logprobs` under softmax(logits / temperature). Through the model's own code it costs a third product more
    for the backward pass, and [N, V] does not exist either."""
    if isinstance(head, Linear):
        options = head.options(temperature)
        return token_logprobs(
            hidden, head.weight, targets, **options, dtype=dtype, entropy=entropy, collision=collision
        )

    def scores(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logp = _log_softmax(head(states), temperature)
        own = logp.gather(1, ids[:, None]).squeeze(1)
        return (
            own,
            -(logp.exp() * logp).sum(-1) if entropy else torch.zeros_like(own),
            (2 * logp.detach()).logsumexp(-1) if collision else torch.zeros_like(own),
        )

    logprobs, entropies, collisions = _chunked(scores, head.vocab, hidden, targets)
    return logprobs, entropies, collisions.detach()


def head_kl(
    head: Head,
    hidden: Tensor,
    other: Head,
    other_hidden: Tensor,
    temperature: float,
    other_temperature: float,
    dtype: torch.dtype,
    direction: Direction,
) -> Tensor:
    """`token_kl` of the predictions of two heads; those of `other` are constants."""
    if isinstance(head, Linear) and isinstance(other, Linear):
        theirs = {f"other_{name}": value for name, value in other.options(other_temperature).items()}
        options = {**head.options(temperature), **theirs}
        return token_kl(hidden, head.weight, other_hidden, other.weight, **options, direction=direction, dtype=dtype)
    if head.vocab != other.vocab:
        raise ValueError(f"a KL needs one vocabulary. Got {head.vocab} and {other.vocab} tokens")

    def divergence(states: Tensor, others: Tensor) -> tuple[Tensor]:
        logp = _log_softmax(head(states), temperature)
        with torch.no_grad():
            logq = _log_softmax(other(others), other_temperature)
        true, guess = (logq, logp) if direction == "forward" else (logp, logq)
        return (((true - guess) * true.exp()).sum(-1),)

    return _chunked(divergence, 2 * head.vocab, hidden, other_hidden)[0]


def head_divergence(
    head: Head, hidden: Tensor, other: Head, other_hidden: Tensor, temperature: float, dtype: torch.dtype, beta: float
) -> Divergence:
    """`token_divergence` of the predictions of two heads under softmax(logits / temperature); those of `other` are
    constants. Where one vocabulary has been padded further than the other, it is that of the tokens which both have."""
    shared = min(head.vocab, other.vocab)
    if isinstance(head, Linear) and isinstance(other, Linear):
        head, other = _first(head, shared), _first(other, shared)
        theirs = {f"other_{name}": value for name, value in other.options(temperature).items()}
        options = {**head.options(temperature), **theirs}
        return token_divergence(hidden, head.weight, other_hidden, other.weight, **options, beta=beta, dtype=dtype)

    def divergence(states: Tensor, others: Tensor) -> tuple[Tensor, ...]:
        logp = _log_softmax(head(states)[:, :shared], temperature)
        with torch.no_grad():
            logq = _log_softmax(other(others)[:, :shared], temperature)
        return tuple(divergence_of(logp, logq, beta))

    loss, *constants = _chunked(divergence, 2 * head.vocab, hidden, other_hidden)
    return Divergence(loss, *(column.detach() for column in constants))


def _first(head: Linear, tokens: int) -> Linear:
    """The head of the first tokens alone."""
    if tokens == head.vocab:
        return head
    return replace(head, weight=head.weight[:tokens], bias=None if head.bias is None else head.bias[:tokens])


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, -1)


def _chunked(
    function: Callable[..., tuple[Tensor, ...]], width: int, hidden: Tensor, other: Tensor
) -> tuple[Tensor, ...]:
    """`function` of chunks of rows that hold `width` numbers each, computed again in the backward pass."""
    rows = max(1, CHUNK_ELEMENTS // width)
    parts = [
        checkpoint(function, own, rest, use_reentrant=False, preserve_rng_state=False)
        for own, rest in zip(hidden.split(rows), other.split(rows), strict=True)
    ]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))
