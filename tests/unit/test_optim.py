"""AdamW's groups, the learning rate's course, and clipping, against known numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assent.config import OptimConfig
from assent.distributed import clip_grad_norm
from assent.train.optim import build_optimizer, lr_at, set_lr
from assent.train.state import gather_state, load_state

MODEL = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))


def test_decay_touches_matrices_only():
    optimizer = build_optimizer([(MODEL, 0.5)], OptimConfig(weight_decay=0.1))
    decayed = [p for g in optimizer.param_groups if g["weight_decay"] == 0.1 for p in g["params"]]
    spared = [p for g in optimizer.param_groups if g["weight_decay"] == 0.0 for p in g["params"]]
    assert {tuple(p.shape) for p in decayed} == {(5, 4), (3, 4)}
    assert {tuple(p.shape) for p in spared} == {(3,)} and len(spared) == 3


def test_groups_keep_their_own_rate_and_share_no_weight():
    critic = nn.Sequential(MODEL[0], nn.Linear(4, 1))
    critic[1].bias.requires_grad_(False)
    optimizer = build_optimizer([(MODEL, 0.5), (critic, 0.25)], OptimConfig())
    peaks = {id(p): g["peak_lr"] for g in optimizer.param_groups for p in g["params"]}
    assert peaks[id(MODEL[0].weight)] == 0.5
    assert peaks[id(critic[1].weight)] == 0.25
    assert id(critic[1].bias) not in peaks
    set_lr(optimizer, 0.1)
    set_lr(optimizer, 0.5)  # of the peak, not of the rate before
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25, 0.125]


def test_two_steps_equal_adamw_by_hand():
    config = OptimConfig(lr=0.1, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.5)
    weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    module = nn.Module()
    module.weight = weight
    optimizer = build_optimizer([(module, config.lr)], config)
    x, m, v = torch.tensor([[2.0, -1.0]], dtype=torch.float64), 0.0, 0.0
    for step, grad in enumerate((torch.tensor([[1.0, 3.0]]), torch.tensor([[-2.0, 0.5]])), start=1):
        weight.grad = grad.clone()
        optimizer.step()
        g = grad.double()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        x = x * (1 - 0.1 * 0.5)
        x = x - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
    torch.testing.assert_close(weight.detach().double(), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4]),
        ("cosine", [1 / 3, 2 / 3, 1] + [0.2 + 0.4 * (1 + math.cos(math.pi * x)) for x in (0.25, 0.5, 0.75)]),
    ],
)
def test_course_of_the_rate(schedule, expected):
    """Six steps, a third of them warm-up, down to 0.2 of the peak (which the step after the last would reach)."""
    config = OptimConfig(schedule=schedule, warmup=1 / 3, min_lr=0.2)
    assert [lr_at(step, 6, config) for step in range(6)] == pytest.approx(expected)
    assert lr_at(6, 6, config) == pytest.approx(1.0 if schedule == "constant" else 0.2)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 7, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0])
def test_no_step_is_wasted(schedule, total, warmup):
    config = OptimConfig(schedule=schedule, warmup=warmup)
    factors = [lr_at(step, total, config) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1]) and factors[top:] == sorted(factors[top:], reverse=True)


def gradients() -> list[nn.Parameter]:
    """Norm 13 = sqrt(3^2 + 4^2 + 12^2), and one weight without a gradient."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad = torch.tensor([3.0, -4.0])
    parameters[1].grad = torch.tensor([[12.0]])
    return parameters


def test_clipping_scales_to_the_norm():
    parameters = gradients()
    norm = clip_grad_norm(parameters, 6.5)
    assert norm.item() == 13.0 and norm.dtype == torch.float32 and norm.shape == ()
    assert parameters[0].grad.tolist() == [1.5, -2.0] and parameters[1].grad.tolist() == [[6.0]]


@pytest.mark.parametrize("max_norm", [0.0, 13.0, 100.0])
def test_no_clipping_below_the_limit_or_at_zero(max_norm):
    parameters = gradients()
    assert clip_grad_norm(parameters, max_norm).item() == 13.0
    assert parameters[0].grad.tolist() == [3.0, -4.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_reported_not_applied(bad):
    parameters = gradients()
    parameters[1].grad[0, 0] = bad
    assert not torch.isfinite(clip_grad_norm(parameters, 1.0))
    assert parameters[0].grad.tolist() == [3.0, -4.0]


def test_norm_of_half_precision_gradients():
    """A sum of 10000 squares does not fit in bf16."""
    half = nn.Parameter(torch.zeros(10000, dtype=torch.bfloat16))
    half.grad = torch.ones(10000, dtype=torch.bfloat16)
    assert clip_grad_norm([half], 0.0).item() == 100.0
    assert clip_grad_norm([], 1.0).item() == 0.0


def test_optimizer_state_returns_exactly():
    def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        optimizer = build_optimizer([(model, 0.1)], OptimConfig())
        for step in range(steps):
            model(torch.full((1, 4), float(step))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    model, optimizer = trained(3)
    state = gather_state({"policy": model}, optimizer)
    assert state["optimizer"]["step"]["policy.0.weight"] == 3.0
    assert state["optimizer"]["exp_avg"].keys() == {f"policy.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    fresh_model, fresh = trained(0)
    load_state(state, {"policy": fresh_model}, fresh)
    for net, update in ((model, optimizer), (fresh_model, fresh)):
        net(torch.ones(1, 4)).square().sum().backward()
        update.step()
    for one, other in zip(model.parameters(), fresh_model.parameters(), strict=True):
        assert torch.equal(one, other)
