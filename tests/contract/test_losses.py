"""What every loss promises, checked over the whole table: items are independent (any order, subset or split gives the
same numbers and gradients; an item is a token, a response, a pair or a prompt), gradients are right and finite, dtypes
are kept, inputs are left alone, wrong shapes are named."""

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

from assent.losses import LOSSES

Inputs = dict[str, Any]
Domain = Callable[[Tensor], Tensor]


def count(x: Tensor) -> Tensor:
    return x.abs().ceil().clamp(min=1.0)


def label(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


# How any numbers become what a parameter of that name can be.
DOMAINS: dict[str, Domain] = {
    "length_chosen": count,
    "length_rejected": count,
    "weight_chosen": lambda x: torch.exp(-x.abs()),
    "weight_rejected": lambda x: torch.exp(-x.abs()),
    "kl_chosen": torch.abs,
    "kl_rejected": torch.abs,
    "kl": torch.abs,
    "desirable": label,
    "level": lambda x: (2 * x).abs().floor(),
    "share": lambda x: torch.sigmoid(x) / 2,
    "tie": lambda x: torch.sigmoid(x) / 2,
    "weight": torch.abs,
}
# Labels, and what is held constant on purpose: nobody asks for their gradient.
CONSTANTS = {"desirable", "level", "rating", "prompt", "response", "kl_chosen"}


@dataclass(frozen=True)
class Case:
    """One loss with one set of options. `vectors` are its tensor arguments, one number per item; `domains` go before
    `DOMAINS`. With `whole_step` the items depend on one another, with `surrogate` the gradient is not the value's."""

    function: Callable[..., Tensor]
    vectors: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    whole_step: bool = False
    surrogate: bool = False

    def fit(self, name: str, values: Tensor) -> Tensor:
        """Any numbers, moved to where this argument can be."""
        domain = self.domains.get(name) or DOMAINS.get(name)
        return domain(values) if domain else values

    def make(self, items: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        values = {name: torch.randn(items, generator=generator, dtype=dtype) for name in self.vectors}
        return {name: self.fit(name, value) for name, value in values.items()}

    def take(self, inputs: Inputs, index: Tensor) -> Inputs:
        """The same inputs with only the items of `index`."""
        return {name: value[index] for name, value in inputs.items()}

    def outputs(self, inputs: Inputs, index: Tensor) -> Tensor:
        """Where in the result the numbers of these items are."""
        return index

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


class Groups(Case):
    """An item is a group of 1 to 5 entries: the responses to a prompt, or the tokens of a response."""

    @property
    def group(self) -> str:
        return self.vectors[-1]

    def make(self, items: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
        sizes = torch.randint(1, 6, (items,), generator=torch.Generator().manual_seed(seed))
        inputs = super().make(int(sizes.sum()), seed, dtype)
        return {**inputs, self.group: 3 * torch.repeat_interleave(sizes)}

    def take(self, inputs: Inputs, index: Tensor) -> Inputs:
        kept = super().take(inputs, self.outputs(inputs, index))
        return {**kept, self.group: torch.unique_consecutive(kept[self.group], return_inverse=True)[1]}

    def outputs(self, inputs: Inputs, index: Tensor) -> Tensor:
        rows = [(inputs[self.group] == 3 * i).nonzero().flatten() for i in index.tolist()]
        return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)


def of(name: str, kind: type[Case] = Case, domains: dict[str, Domain] | None = None, **options: Any) -> Case:
    """The case of a loss whose positional parameters are all tensors."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    vectors = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    return kind(
        LOSSES[name],
        vectors,
        options,
        domains or {},
        whole_step=name.startswith(("aot", "odin")),
        surrogate=name == "cispo",
    )


def below_zero(x: Tensor) -> Tensor:
    return -x.abs()


CASES: dict[str, Case] = {
    "cross_entropy": of("cross_entropy"),
    "bradley_terry": Case(LOSSES["bradley_terry"], ("chosen", "rejected")),
    "bradley_terry:all": of("bradley_terry", label_smoothing=0.1),
    "bradley_terry_tokens": TokenPairs(LOSSES["bradley_terry_tokens"], ("token_scores", "margin")),
    "bradley_terry_tokens:smoothed": TokenPairs(
        LOSSES["bradley_terry_tokens"], ("token_scores", "margin"), {"label_smoothing": 0.1}
    ),
    "rao_kupper": of("rao_kupper", theta=2.0, label_smoothing=0.1),
    "davidson": of("davidson", nu=0.7, label_smoothing=0.1),
    "centring": of("centring"),
    "choice_kl": of("choice_kl"),
    "likelihood_regulariser": of("likelihood_regulariser", beta=0.3),
    "best_of_k": of("best_of_k", Groups),
    "k_wise": of("k_wise", Groups),
    "plackett_luce_scores": of("plackett_luce_scores", Groups),
    "odin_length": of("odin_length", domains={"length": lambda x: 10 * x.abs() + 1}),
    "attribute_regression": of("attribute_regression"),
    "dpo": of("dpo", beta=0.3),
    "dpo:smoothed": of("dpo", beta=0.3, label_smoothing=0.2),
    "robust_dpo": of("robust_dpo", beta=0.3, label_smoothing=0.2),
    "asymmetric_dpo": of("asymmetric_dpo", beta=0.3, beta_rejected=0.1),
    "dpop": of("dpop", beta=0.3, penalty=5.0),
    "rpo": of("rpo", beta=0.3, sft_weight=0.7),
    "odpo:log": of("odpo", domains={"margin": lambda x: x.abs() + 0.1}, beta=0.3, offset="log", offset_scale=0.8),
    "odpo:linear": of("odpo", domains={"margin": lambda x: x.abs() + 0.1}, beta=0.3, offset="linear", offset_scale=0.8),
    "f_dpo:reverse_kl": of("f_dpo", beta=0.3, divergence="reverse_kl", divergence_alpha=0.4),
    "f_dpo:forward_kl": of("f_dpo", beta=0.3, divergence="forward_kl", divergence_alpha=0.4),
    "f_dpo:js": of("f_dpo", beta=0.3, divergence="js", divergence_alpha=0.4),
    "f_dpo:alpha": of("f_dpo", beta=0.3, divergence="alpha", divergence_alpha=0.4),
    "tdpo": of("tdpo", beta=0.3, kl_weight=0.5),
    "wpo": of("wpo", beta=0.3),
    "normalised_dpo": of("normalised_dpo", beta=3.0),
    "r_dpo": of("r_dpo", beta=0.3, length_penalty=0.1),
    "ld_dpo": of("ld_dpo", beta=0.3, tail_weight=0.4),
    "ipo": of("ipo", beta=0.3, length_normalised=False),
    "ipo:normalised": of("ipo", beta=0.3, length_normalised=True),
    "hinge": of("hinge", beta=0.3),
    "exo": of("exo", beta=0.3, label_smoothing=0.01),
    "sppo": of("sppo", beta=0.3),
    "apo_zero": of("apo_zero", beta=0.3),
    "apo_down": of("apo_down", beta=0.3),
    "discopop": of("discopop", beta=0.3, temperature=0.05),
    "discopop:soft": of("discopop", beta=0.3, temperature=2.0),
    "aot": of("aot", beta=0.3),
    "aot:smoothed": of("aot", beta=0.3, label_smoothing=0.2),
    "aot_unpaired": of("aot_unpaired", beta=0.3),
    "aot_unpaired:smoothed": of("aot_unpaired", beta=0.3, label_smoothing=0.2),
    "reference_free_dpo": of("reference_free_dpo", beta=0.3),
    "slic": of("slic", delta=0.8, sft_weight=0.2),
    "rrhf": of("rrhf", sft_weight=0.7),
    "cpo": of("cpo", beta=0.3, sft_weight=0.7),
    "cpo:smoothed": of("cpo", beta=0.3, sft_weight=0.7, label_smoothing=0.2),
    "orpo": of("orpo", domains={"policy_chosen": below_zero, "policy_rejected": below_zero}, odds_weight=0.4),
    "simpo": of("simpo", beta=2.0, gamma=0.7),
    "simpo:whole": of("simpo", beta=2.0, gamma=0.7, length_normalised=False),
    "chosen_nll": of("chosen_nll"),
    "kto": of("kto", beta=0.3, desirable_weight=1.3, undesirable_weight=0.8),
    "bco": of("bco", beta=0.3),
    "apo_zero_unpaired": of("apo_zero_unpaired", beta=0.3),
    "plackett_luce": of("plackett_luce", Groups, beta=0.3),
    "nca": of("nca", Groups, beta=0.3, temperature=0.7),
    "infonca": of("infonca", Groups, beta=0.3, temperature=0.7),
    "reinforce": of("reinforce"),
    "cpi": of("cpi"),
    "ppo_clip": of("ppo_clip", clip=0.2),
    "ppo_clip:higher": of("ppo_clip", clip=0.2, clip_high=0.5),
    "ppo_clip:dual": of("ppo_clip", clip=0.2, dual_clip=1.7),
    "ppo_penalty": of("ppo_penalty", penalty=0.7),
    "gspo": of("gspo", Groups, clip=0.2, clip_high=0.3),
    "cispo": of("cispo", clip_high=0.5),
    "clipped_value": of("clipped_value", clip=0.2),
    "clipped_value:plain": of("clipped_value", clip=0),
    "kl_estimate:k1": of("kl_estimate", estimator="k1"),
    "kl_estimate:k2": of("kl_estimate", estimator="k2"),
    "kl_estimate:k3": of("kl_estimate", estimator="k3"),
}


def cases(**chosen: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


every_loss = cases(**CASES)
independent = cases(**{name: case for name, case in CASES.items() if not case.whole_step})
whole_step = cases(**{name: case for name, case in CASES.items() if case.whole_step})
by_group = cases(**{name: case for name, case in CASES.items() if isinstance(case, Groups)})
differentiable = cases(**{name: case for name, case in CASES.items() if not case.surrogate})


def leaves(case: Case, inputs: Inputs) -> list[Tensor]:
    return [inputs[name].requires_grad_() for name in case.vectors if name not in CONSTANTS]


def gradients(case: Case, loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))


def test_every_loss_of_the_table_is_covered():
    assert {name.split(":")[0] for name in CASES} == set(LOSSES)


@independent
@settings(max_examples=8, deadline=None)
@given(items=st.integers(0, 17), seed=st.integers(0, 10_000), data=st.data())
def test_items_are_independent(case: Case, items: int, seed: int, data: st.DataObject):
    """Any order and any subset of the items gives the same numbers, and the gradient that a mask would give."""
    inputs = case.make(items, seed)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=items, max_size=items)), dtype=torch.bool)
    order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
    index = order[keep]

    wanted = leaves(case, inputs)
    whole = case(inputs)
    assert whole.shape == case.outputs(inputs, torch.arange(items)).shape
    part, places = case(case.take(inputs, index)), case.outputs(inputs, index)
    torch.testing.assert_close(part, whole[places])

    mask = torch.zeros(whole.shape, dtype=whole.dtype).index_fill(0, places, 1.0)
    masked = gradients(case, (whole * mask).sum(), wanted)
    torch.testing.assert_close(gradients(case, part.sum(), wanted), masked)


@independent
@settings(max_examples=8, deadline=None)
@given(items=st.integers(1, 17), seed=st.integers(0, 10_000), data=st.data())
def test_split_equals_whole(case: Case, items: int, seed: int, data: st.DataObject):
    inputs = case.make(items, seed)
    cut = data.draw(st.integers(0, items))
    parts = [case(case.take(inputs, index)) for index in (torch.arange(cut), torch.arange(cut, items))]
    torch.testing.assert_close(torch.cat(parts), case(inputs))


@by_group
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_order_within_a_group_does_not_matter(case: Groups, seed: int):
    """Members of one group may stand in any order: their numbers and gradients go with them."""
    inputs = case.make(8, seed)
    group = inputs[case.group]
    shuffled = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))
    order = shuffled[group[shuffled].argsort(stable=True)]
    wanted = leaves(case, inputs)
    moved = case({name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(moved, case(inputs)[order])
    weights = torch.rand(len(order), dtype=torch.float64)
    torch.testing.assert_close(
        gradients(case, (moved * weights[order]).sum(), wanted), gradients(case, (case(inputs) * weights).sum(), wanted)
    )


@whole_step
@pytest.mark.parametrize("items", [0, 1, 9])
def test_order_of_the_pairs_of_a_step_does_not_matter(case: Case, items: int):
    inputs = case.make(items, seed=4)
    order = torch.randperm(items, generator=torch.Generator().manual_seed(4))
    wanted = leaves(case, inputs)
    whole, moved = case(inputs), case(case.take(inputs, order))
    assert whole.shape == (items,)
    torch.testing.assert_close(moved, whole)
    torch.testing.assert_close(gradients(case, moved.sum(), wanted), gradients(case, whole.sum(), wanted))


@differentiable
def test_gradients_are_those_of_the_formula(case: Case):
    inputs = case.make(6, seed=3)
    names = [name for name in case.vectors if name not in CONSTANTS]
    wanted = leaves(case, inputs)

    def function(*vectors: Tensor) -> Tensor:
        return case({**inputs, **dict(zip(names, vectors, strict=True))})

    assert torch.autograd.gradcheck(function, wanted)


@every_loss
@pytest.mark.parametrize("scale", [1e4, 100.0, 0.0])
def test_finite_at_extremes(case: Case, scale: float):
    inputs = case.make(40, seed=5, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    for name in case.vectors:
        if name not in ("prompt", "response"):
            signs = torch.randint(-1, 2, inputs[name].shape, generator=generator)
            inputs[name] = case.fit(name, scale * signs.to(torch.float32))
    wanted = leaves(case, inputs)
    loss = case(inputs)
    assert torch.isfinite(loss).all()
    for gradient in gradients(case, loss.sum(), wanted):
        assert torch.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(case: Case, dtype: torch.dtype):
    assert case(case.make(4, dtype=dtype)).dtype == dtype


@every_loss
def test_float32_is_close_to_float64(case: Case):
    inputs = case.make(50, seed=11)
    floats = {name for name in case.vectors if inputs[name].is_floating_point()}
    single = {name: value.float() if name in floats else value for name, value in inputs.items()}
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


@every_loss
def test_a_nan_is_never_swallowed(case: Case) -> None:
    """A model that has diverged must show in the loss: no maximum, clamp or choice may turn its NaN into a number."""
    inputs = case.make(4)
    for name, value in inputs.items():
        used = (name, case.options.get("clip")) != ("old_values", 0)
        said_by_models = name not in CONSTANTS | {"margin"} and "length" not in name and "kl" not in name
        if isinstance(value, Tensor) and value.is_floating_point() and said_by_models and used:
            spoilt = {**inputs, name: torch.full_like(value, torch.nan)}
            assert bool(case(spoilt).isnan().any()), f"{name} is NaN, and the loss a number"
