"""What every loss promises, checked over the whole table: items are independent (any order, subset or split gives the
same numbers and gradients), gradients are right and finite, dtypes are kept, inputs are left alone, wrong shapes are
named."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assent.losses import LOSSES, gae, ratio_diagnostics, whiten

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One loss with one set of options. `vectors` are its float arguments, one number per item."""

    function: Callable[..., Tensor]
    vectors: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, items: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(items, generator=generator, dtype=dtype) for name in self.vectors}

    def take(self, inputs: Inputs, index: Tensor) -> Inputs:
        """The same inputs with only the items of `index`."""
        return {name: value[index] for name, value in inputs.items()}

    def __call__(self, inputs: Inputs) -> Tensor:
        return self.function(**inputs, **self.options)


class TokenPairs(Case):
    """`bradley_terry_tokens`: an item is a pair. Pair m has responses 2m (chosen) and 2m + 1, and `take` packs the
    tokens of the kept pairs anew."""

    def make(self, items: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 6, (2 * items,), generator=generator)
        return {
            "token_scores": torch.randn(int(lengths.sum()), generator=generator, dtype=dtype),
            "response": torch.repeat_interleave(lengths),
            "pairs": torch.arange(2 * items).reshape(items, 2),
            "num_responses": 2 * items,
            "margin": torch.randn(items, generator=generator, dtype=dtype),
        }

    def take(self, inputs: Inputs, index: Tensor) -> Inputs:
        kept = [(inputs["response"] == i).nonzero().flatten() for i in inputs["pairs"][index].flatten().tolist()]
        tokens = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.int64)
        return {
            "token_scores": inputs["token_scores"][tokens],
            "response": torch.repeat_interleave(torch.tensor([len(part) for part in kept], dtype=torch.int64)),
            "pairs": torch.arange(len(kept)).reshape(-1, 2),
            "num_responses": len(kept),
            "margin": inputs["margin"][index],
        }


LOGPROB_PAIRS = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
CASES: dict[str, Case] = {
    "cross_entropy": Case(LOSSES["cross_entropy"], ("logprobs",)),
    "bradley_terry": Case(LOSSES["bradley_terry"], ("chosen", "rejected")),
    "bradley_terry:margin": Case(LOSSES["bradley_terry"], ("chosen", "rejected", "margin")),
    "bradley_terry_tokens": TokenPairs(LOSSES["bradley_terry_tokens"], ("token_scores", "margin")),
    "dpo": Case(LOSSES["dpo"], LOGPROB_PAIRS, {"beta": 0.3}),
    "ppo_clip": Case(LOSSES["ppo_clip"], ("logprobs", "old_logprobs", "advantages"), {"clip": 0.2}),
    "clipped_value": Case(LOSSES["clipped_value"], ("values", "old_values", "returns"), {"clip": 0.2}),
    "clipped_value:plain": Case(LOSSES["clipped_value"], ("values", "old_values", "returns"), {"clip": 0}),
    "kl_estimate:k1": Case(LOSSES["kl_estimate"], ("logprobs", "reference_logprobs"), {"estimator": "k1"}),
    "kl_estimate:k2": Case(LOSSES["kl_estimate"], ("logprobs", "reference_logprobs"), {"estimator": "k2"}),
    "kl_estimate:k3": Case(LOSSES["kl_estimate"], ("logprobs", "reference_logprobs"), {"estimator": "k3"}),
}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def leaves(case: Case, inputs: Inputs) -> list[Tensor]:
    return [inputs[name].requires_grad_() for name in case.vectors]


def gradients(case: Case, loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))


def test_every_loss_of_the_table_is_covered():
    assert {name.split(":")[0] for name in CASES} == set(LOSSES)


@every_loss
@settings(max_examples=15, deadline=None)
@given(items=st.integers(0, 17), seed=st.integers(0, 10_000), data=st.data())
def test_items_are_independent(case: Case, items: int, seed: int, data: st.DataObject):
    """Any order and any subset of the items gives the same numbers, and the gradient that a mask would give."""
    inputs = case.make(items, seed)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=items, max_size=items)), dtype=torch.bool)
    order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
    index = order[keep]

    wanted = leaves(case, inputs)
    whole = case(inputs)
    assert whole.shape == (items,)
    part = case(case.take(inputs, index))
    torch.testing.assert_close(part, whole[index])

    mask = torch.zeros(items, dtype=whole.dtype).index_fill(0, index, 1.0)
    masked = gradients(case, (whole * mask).sum(), wanted)
    torch.testing.assert_close(gradients(case, part.sum(), wanted), masked)


@every_loss
@settings(max_examples=15, deadline=None)
@given(items=st.integers(1, 17), seed=st.integers(0, 10_000), data=st.data())
def test_split_equals_whole(case: Case, items: int, seed: int, data: st.DataObject):
    inputs = case.make(items, seed)
    cut = data.draw(st.integers(0, items))
    parts = [case(case.take(inputs, index)) for index in (torch.arange(cut), torch.arange(cut, items))]
    torch.testing.assert_close(torch.cat(parts), case(inputs))


@every_loss
def test_gradients_are_those_of_the_formula(case: Case):
    inputs = case.make(6, seed=3)
    wanted = leaves(case, inputs)

    def function(*vectors: Tensor) -> Tensor:
        return case({**inputs, **dict(zip(case.vectors, vectors, strict=True))})

    assert torch.autograd.gradcheck(function, wanted)


@every_loss
@pytest.mark.parametrize("scale", [1e4, 100.0, 0.0])
def test_finite_at_extremes(case: Case, scale: float):
    inputs = case.make(40, seed=5, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    for name in case.vectors:
        signs = torch.randint(-1, 2, inputs[name].shape, generator=generator)
        inputs[name] = scale * signs.to(torch.float32)
    wanted = leaves(case, inputs)
    loss = case(inputs)
    assert torch.isfinite(loss).all()
    for name, gradient in zip(case.vectors, gradients(case, loss.sum(), wanted), strict=True):
        assert torch.isfinite(gradient).all(), name


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(case: Case, dtype: torch.dtype):
    assert case(case.make(4, dtype=dtype)).dtype == dtype


@every_loss
def test_float32_is_close_to_float64(case: Case):
    inputs = case.make(50, seed=11)
    single = {name: value.float() if name in case.vectors else value for name, value in inputs.items()}
    torch.testing.assert_close(case(single), case(inputs).float(), atol=1e-5, rtol=1e-5)


@every_loss
def test_inputs_are_left_alone(case: Case):
    inputs = case.make(6)
    before = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    versions = {name: value._version for name, value in inputs.items() if isinstance(value, Tensor)}
    case(inputs)
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)
    assert versions == {name: value._version for name, value in inputs.items() if isinstance(value, Tensor)}


@every_loss
def test_wrong_shapes_are_named(case: Case):
    good = case.make(4)
    for name in case.vectors:
        size = len(good[name])
        longer = torch.cat([good[name], good[name][:1]])
        if len(case.vectors) > 1:
            with pytest.raises(ValueError, match=re.escape(f"{name} [{size + 1}]")):
                case({**good, name: longer})
        with pytest.raises(ValueError, match=re.escape(f"{name} [{size}, 1]")):
            case({**good, name: good[name][:, None]})


def test_pairs_must_be_two_columns():
    inputs = CASES["bradley_terry_tokens"].make(3)
    with pytest.raises(ValueError, match=re.escape("pairs [6]")):
        CASES["bradley_terry_tokens"]({**inputs, "pairs": inputs["pairs"].flatten()})
    with pytest.raises(ValueError, match=re.escape("response [1]")):
        CASES["bradley_terry_tokens"]({**inputs, "response": inputs["response"][:1]})


@every_loss
def test_docstring_says_what_the_caller_needs(case: Case):
    doc = inspect.getdoc(case.function) or ""
    words = " ".join(doc.split())
    assert "Returns [" in words and "Raises ValueError" in words and " = " in words
    for name in inspect.signature(case.function).parameters:
        assert name in doc or name.split("_")[0] + "_*" in doc, name


# --- advantages: the item is a response -------------------------------------------------------------------------------

LENGTHS = [5, 1, 8, 3]


def rollout(order: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rewards, values = torch.randn(2, sum(LENGTHS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    response = torch.repeat_interleave(torch.tensor([LENGTHS[i] for i in order], dtype=torch.int64))
    parts = rewards.split(LENGTHS), values.split(LENGTHS)
    return torch.cat([parts[0][i] for i in order]), torch.cat([parts[1][i] for i in order]), response


def by_response(order: list[int]) -> dict[int, Tensor]:
    advantages = gae(*rollout(order), gamma=0.97, lam=0.9)
    return dict(zip(order, advantages.split([LENGTHS[i] for i in order]), strict=True))


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 0], [1], [0, 1, 2]])
def test_gae_of_any_order_or_subset_of_responses(order: list[int]):
    whole, part = by_response([0, 1, 2, 3]), by_response(order)
    for i in order:
        torch.testing.assert_close(part[i], whole[i])


def test_gae_is_differentiable_keeps_dtype_and_leaves_inputs_alone():
    rewards, values, response = rollout([0, 1, 2, 3])
    before = rewards.clone(), values.clone(), response.clone()
    assert gae(rewards.float(), values.float(), response, gamma=0.97, lam=0.9).dtype == torch.float32
    assert torch.autograd.gradcheck(
        lambda r, v: gae(r, v, response, gamma=0.97, lam=0.9), [rewards.requires_grad_(), values.requires_grad_()]
    )
    torch.testing.assert_close((rewards.detach(), values.detach(), response), before, rtol=0, atol=0)


def test_gae_names_wrong_shapes_and_mixed_responses():
    rewards, values, response = rollout([0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"rewards \[16\], values \[17\], response \[17\]"):
        gae(rewards[1:], values, response, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match="must not decrease"):
        gae(rewards, values, response.flip(0), gamma=1.0, lam=1.0)


def test_whiten_with_shared_statistics_is_the_same_on_every_part():
    x = torch.randn(20, dtype=torch.float64)
    statistics = {"mean": x.mean(), "var": x.var(correction=0)}
    for shift_mean in (True, False):
        parts = [whiten(part, shift_mean=shift_mean, **statistics) for part in x.split(7)]
        torch.testing.assert_close(torch.cat(parts), whiten(x, shift_mean=shift_mean))
    assert whiten(x.float(), mean=x.mean().float(), var=x.var().float()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"x \[20, 1\]"):
        whiten(x[:, None])


def test_empty_rollouts_pass_through():
    empty = torch.zeros(0)
    assert gae(empty, empty, torch.zeros(0, dtype=torch.int64), gamma=1.0, lam=1.0).shape == (0,)
    assert whiten(empty, mean=torch.tensor(0.0), var=torch.tensor(1.0)).shape == (0,)
    assert ratio_diagnostics(empty, empty, empty, clip=0.2).approx_kl.shape == (0,)
