"""States that are alike."""

from __future__ import annotations

import pytest
import torch


def assert_alike(one: object, two: object) -> None:
    """The same structure, and the same numbers but for rounding."""
    if isinstance(one, dict):
        assert isinstance(two, dict) and one.keys() == two.keys()
        for key, value in one.items():
            assert_alike(value, two[key])
    elif isinstance(one, list):
        assert isinstance(two, list) and len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_alike(a, b)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=0, equal_nan=True)
    else:
        assert two == pytest.approx(one, abs=1e-5)
