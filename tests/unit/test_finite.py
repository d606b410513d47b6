"""Numbers that are not finite are found, named, and end the run before they are saved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assent.errors import NonFiniteError
from assent.models.finite import all_finite, not_finite, too_large
from assent.train.finite import require_answers, require_evaluated, require_numbers, require_saved, require_updated

NAN, INF = math.nan, math.inf


def test_the_first_bad_number_is_named() -> None:
    good, bad = torch.ones(2, 3), torch.tensor([[1.0, 2.0], [NAN, INF]])
    assert not_finite([("a", good), ("n", torch.tensor([1, 2])), ("e", torch.zeros(0))]) is None
    assert not_finite([("a", good), ("b", bad)]) == "b[1, 0] is nan (2 such numbers in 1 of 2 tensors)"
    assert not_finite([("s", torch.tensor(-INF))]) == "s is -inf"
    assert not_finite([("h", torch.tensor([1.0, INF], dtype=torch.bfloat16))]) == "h[1] is inf"


def test_large_numbers_are_finite() -> None:
    """Their norm is not."""
    large = torch.tensor([3e38, -3e38])
    assert not all_finite([large]) and not_finite([("large", large)]) is None
    assert too_large([("a", torch.ones(2)), ("b", large)]) == "b reaches 3e+38, whose square float32 cannot hold"
    assert too_large([("b", large), ("c", torch.tensor(NAN))]) == "c is nan" and too_large([]) is None
    assert not_finite([("half", torch.full((9,), 6e4, dtype=torch.float16))]) is None


def test_numbers_of_a_step() -> None:
    require_numbers("step 3", {"loss": 1.0, "count": 2}, "Why.")
    with pytest.raises(NonFiniteError, match=r"^step 3: loss is nan \(and ratio\)\. Why\.$"):
        require_numbers("step 3", {"accuracy": 0.5, "loss": NAN, "ratio": INF}, "Why.")


def test_an_interval_of_one_value_has_no_bounds() -> None:
    require_evaluated(1, {"eval/reward": 0.0, "eval/reward_low": NAN, "eval/reward_high": NAN})
    with pytest.raises(NonFiniteError, match="step 1: eval/reward is nan"):
        require_evaluated(1, {"eval/reward": NAN})


def test_what_a_model_says() -> None:
    require_answers(2, "policy", torch.ones(3))
    with pytest.raises(NonFiniteError, match="step 2: critic gives inf for a few ordinary tokens"):
        require_answers(2, "critic", torch.tensor([1.0, INF]))


def test_an_update_that_was_too_large() -> None:
    layer = nn.Linear(2, 2)
    require_updated(4, {"policy": layer})
    with torch.no_grad():
        layer.weight[1, 0] = INF
    with pytest.raises(NonFiniteError, match=r"step 4: the update was too large: policy\.weight\[1, 0\] is inf"):
        require_updated(4, {"policy": layer})
    layer.weight.requires_grad_(False)
    require_updated(4, {"policy": layer})  # frozen weights are looked at where they are loaded and saved


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"policy": {"w": torch.tensor([0.0, NAN])}}, r"policy\.w\[1\] is nan"),
        ({"optimizer": {"exp_avg_sq": {"policy.w": torch.tensor([INF])}}}, r"optimizer\.exp_avg_sq\.policy\.w\[0\]"),
        ({"algorithm": {"kl_coef": INF}}, r"algorithm\.kl_coef is inf"),
        ({"algorithm": {"moved": [0.1, NAN]}}, r"algorithm\.moved\[1\] is nan"),
        ({"algorithm": {"reference": {"model": {"w": torch.tensor(NAN)}}}}, r"algorithm\.reference\.model\.w is nan"),
    ],
)
def test_what_is_saved_is_finite(state: dict, words: str) -> None:
    with pytest.raises(NonFiniteError, match=rf"step 7: {words}.*this state is not saved"):
        require_saved(7, state)


def test_what_is_not_known_may_be_saved() -> None:
    require_saved(1, {"algorithm": {"rows": torch.full((2,), NAN).numpy(), "step": 3, "name": "x", "none": None}})
