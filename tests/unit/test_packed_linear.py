from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from assent.rollout.packed_linear import PackedLinears

Product = Callable[..., Tensor]


class Block(nn.Module):
    """Three layers of one input, a fourth of another; `route` leaves layers out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 10, bias=False), Conv1D(4, 8)
        self.out = nn.Linear(6, 8)
        with torch.no_grad():
            self.c.bias.normal_()

    def forward(self, x: Tensor, route: str = "abc") -> dict[str, Tensor]:
        parts = {name: getattr(self, name)(x) for name in route}
        return parts | ({"out": self.out(parts["a"])} if "a" in parts else {})


def inputs(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 1, 8, generator=generator) for _ in range(count)]


def agree(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of the products that are computed."""
    widths: list[int] = []
    from assent.rollout.packed_linear import _Product

    multiply = _Product._multiply

    def counted(self: _Product, x: Tensor) -> Tensor:
        widths.append(sum(self.widths))
        return multiply(self, x)

    monkeypatch.setattr(_Product, "_multiply", counted)
    return widths


@torch.no_grad()
def test_layers_of_the_same_input_become_one_product(products: list[int]) -> None:
    block = Block()
    want = [block(x) for x in inputs(3)]
    with PackedLinears(block, torch.float32):
        for x, expected in zip(inputs(3), want, strict=True):
            agree(block(x), expected)
    assert products == [20, 8, 20, 8]  # the first pass only looks


@torch.no_grad()
def test_layers_called_otherwise_than_at_first_are_still_right(products: list[int]) -> None:
    block = Block()
    routes = ("abc", "abc", "cba", "b", "bb", "ac")
    want = [block(x, route) for x, route in zip(inputs(6), routes, strict=True)]
    with PackedLinears(block, torch.float32):
        for x, route, expected in zip(inputs(6), routes, want, strict=True):
            agree(block(x, route), expected)


@torch.no_grad()
def test_an_input_or_a_part_changed_in_place_is_not_taken_for_the_old_one() -> None:
    block = Block()
    with PackedLinears(block, torch.float32):
        for x in inputs(2):
            block(x)
        x = inputs(1)[0]
        block.a(x).zero_()
        again = block.a(x).clone()
        x.mul_(2.0)
        after = block.b(x)
    torch.testing.assert_close(again, block.a(inputs(1)[0]))
    torch.testing.assert_close(after, 2.0 * block.b(inputs(1)[0]))


@torch.no_grad()
def test_a_layer_without_a_call_in_the_first_pass_joins_later(products: list[int]) -> None:
    block = Block()
    routes = ("a", "a", "abc", "abc")
    want = [block(x, route) for x, route in zip(inputs(4), routes, strict=True)]
    with PackedLinears(block, torch.float32):
        for x, route, expected in zip(inputs(4), routes, want, strict=True):
            agree(block(x, route), expected)
    assert products[-3:] == [6, 14, 8]


@torch.no_grad()
def test_products_are_made_in_the_precision_asked_for() -> None:
    block = Block()
    x = inputs(1)[0]
    with PackedLinears(block, torch.bfloat16):
        for _ in range(2):
            got = block(x)
            assert {part.dtype for part in got.values()} == {torch.bfloat16}
            torch.testing.assert_close(
                got["b"].float(), block.b.weight.mul(1.0).matmul(x[..., None])[..., 0], rtol=0.02, atol=0.02
            )


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    block = Block()
    with pytest.raises(ZeroDivisionError), PackedLinears(block, torch.float32):
        assert all("forward" in vars(layer) for layer in block.children())
        raise ZeroDivisionError
    assert all("forward" not in vars(layer) for layer in block.children())
