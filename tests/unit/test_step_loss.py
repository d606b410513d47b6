"""The loss of an optimiser step against plain loops in float64, over a policy whose log-probs are parameters; and what
reaches which weights, over a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from assent.algorithms.online.method import OnlineMethod, method_with
from assent.algorithms.online.models import Models
from assent.algorithms.online.step_loss import forward, mixed_loss, step_loss
from assent.algorithms.online.train import train_online
from assent.config import (
    CriticConfig,
    DataConfig,
    GivenConfig,
    KLConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    RewardsConfig,
    RolloutConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
)
from assent.data.packing import Counts
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.models.loading import load_policy
from assent.models.policy import TokenScores
from assent.models.references import Reference
from assent.train.loop import Loss

LENGTHS = ((4, 2), (5,), (1, 3, 3))
NUMBER = sum(map(sum, LENGTHS))
COUNTS = Counts(prompts=9, responses=11, pairs=0, tokens=40)
"""Of the whole step: this batch is only a part of it."""
LONGEST = 7
TEMPERATURE = 0.7


class FakePolicy(nn.Module):
    """Log-probs, entropies and KLs are parameters, [N] float64. It notes how it is asked."""

    tree = True
    value_head = None

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.logprobs, self.entropy, self.kl, self.values = (
            nn.Parameter(torch.randn(NUMBER, generator=draw, dtype=torch.float64)) for _ in range(4)
        )
        self.asked: list[dict[str, Any]] = []

    def forward(self, batch: TreeBatch, temperature: float = 1.0, **options: Any) -> TokenScores:
        self.asked.append({"temperature": temperature, **options})
        zero = torch.zeros(NUMBER, dtype=torch.float64)
        return TokenScores(self.logprobs, self.entropy if options.get("entropy") else zero, zero, self.kl, self.values)


class FakeReference:
    """Its anchor is named, so that it can be recognised."""

    tree = True

    def anchor(self, batch: TreeBatch, temperature: float) -> str:
        return f"anchor at {temperature}"


class FakeCritic(nn.Module):
    tree = True

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.linspace(-2, 2, NUMBER, dtype=torch.float64))

    def forward(self, batch: TreeBatch, index: Tensor) -> Tensor:
        assert torch.equal(index, batch.source)
        return self.value

    scalars = forward


def fields(*extra: str, seed: int = 1) -> dict[str, Tensor]:
    """Per-token fields [N] float64 near the fake policy's log-probs, so that some ratios are clipped and some not."""
    draw = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(NUMBER, generator=draw, dtype=torch.float64)

    logprobs = FakePolicy().logprobs.detach()
    found = {"old": logprobs + noise(0.4), "advantages": noise(1.0)}
    found |= {"sampler": found["old"] + noise(0.3), "reference": logprobs + noise(0.5)}
    found |= {"ewma": logprobs + noise(0.4), "values": noise(1.0), "returns": noise(1.0)}
    found["sampled"] = torch.ones(NUMBER, dtype=torch.float64)
    found["sampled"][4:6] = found["sampled"][-3:] = 0
    return {name: value for name, value in found.items() if name in ("old", "advantages", "sampler", *extra)}


def make_batch(per_token: dict[str, Tensor]) -> TreeBatch:
    trees = [
        TokenTree(np.array([1, 2]), tuple(Branch(np.arange(n), np.ones(n, bool)) for n in group)) for group in LENGTHS
    ]
    return replace(collate(trees), per_token=per_token)


def config_of(method: str = "ppo", loss: dict[str, Any] | None = None, **options: Any) -> OnlineConfig:
    shared = {"model": ModelConfig("unused"), "data": DataConfig("unused"), "out": "unused"}
    sampling = SamplingConfig(max_new_tokens=LONGEST, temperature=TEMPERATURE)
    return online_config(method, loss=loss, sampling=sampling, **{"kl": vars(KLConfig(coef=0.0)), **shared, **options})


def models_of(policy: Any, critic: Any = None, reference: Any = None) -> Models:
    return Models(cast("Any", policy), critic, reference)


def loss_of(
    config: OnlineConfig,
    models: Models,
    batch: TreeBatch,
    counts: Counts = COUNTS,
    method: OnlineMethod | None = None,
    **state: Any,
) -> Loss:
    """The loss of a micro-batch, with the coefficients that a run begins with, but for `state`."""
    method = method or method_with(config)
    coefficients = replace(method.start, **state)
    passed = forward(batch, models, method, coefficients, config)
    return step_loss(batch, passed, method, coefficients, config, counts)


def policy_loss(config: OnlineConfig, per_token: dict[str, Tensor], **state: Any) -> tuple[Tensor, FakePolicy, Any]:
    """Loss without a critic's, the policy after the backward pass, and the metrics."""
    policy = FakePolicy()
    models = models_of(policy, reference=FakeReference() if config.kl.coef else None)
    alone = replace(method_with(config), critic=None)
    loss = loss_of(config, models, make_batch(per_token), method=alone, **state)
    loss.total.backward()
    metrics = {name: float(torch.as_tensor(value).detach()) / n for name, (value, n) in loss.metrics.items()}
    return loss.total.detach(), policy, metrics


def token_loss(x: float, old: float, a: float, how: dict[str, Any]) -> float:
    """PPO's loss of one token, by its options."""
    ratio, clip = math.exp(x - old), how["clip"]
    if how["objective"] == "none":
        return -ratio * a
    if how["objective"] == "penalty":
        return -ratio * a + how["penalty"] * (ratio - 1 - (x - old))
    high = clip if how["clip_high"] is None else how["clip_high"]
    loss = -min(ratio * a, min(max(ratio, 1 - clip), 1 + high) * a)
    return min(loss, how["dual_clip"] * abs(a)) if how["dual_clip"] is not None else loss


def by_hand(config: OnlineConfig, per_token: dict[str, Tensor], logprobs: list[float], penalty: float) -> float:
    """The sum over tokens in plain Python. (The weights of a step are float32.)"""
    options = vars(config.loss)
    sizes = [length for group in LENGTHS for length in group for _ in range(length)]
    total = 0.0
    for i, x in enumerate(logprobs):
        old, sampler, a = (float(per_token[name][i]) for name in ("old", "sampler", "advantages"))
        weight = {
            "token": 1 / COUNTS.tokens,
            "response": 1 / (COUNTS.responses * sizes[i]),
            "fixed": 1 / (COUNTS.responses * LONGEST),
        }[options["reduction"]]
        base = float(per_token["ewma"][i]) if "ewma" in per_token else old
        loss = token_loss(x, base, a, options | {"penalty": penalty}) * math.exp(base - old)
        if config.rollout.correction:
            loss *= min(math.exp(old - sampler), config.rollout.correction)
        if config.kl.coef:
            gap = float(per_token["reference"][i]) - x
            loss += config.kl.coef * {"k1": -gap, "k2": gap**2 / 2, "k3": math.exp(gap) - 1 - gap}[config.kl.estimator]
        total += weight * loss
    return total


def slopes(function: Any, at: list[float], step: float = 1e-6) -> list[float]:
    """Central differences."""
    found = []
    for i in range(len(at)):
        up, down = ([x + sign * step * (i == j) for j, x in enumerate(at)] for sign in (1, -1))
        found.append((function(up) - function(down)) / (2 * step))
    return found


OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"clip": 0.2},
    "clip higher": {"clip": 0.1, "clip_high": 0.4, "reduction": "response"},
    "dual clip": {"clip": 0.2, "dual_clip": 1.3, "reduction": "fixed"},
    "none": {"objective": "none"},
    "penalty": {"objective": "penalty", "penalty": 0.9},
}
PLACES: dict[str, dict[str, Any]] = {
    "plain": {"rollout": vars(RolloutConfig(correction=0.0))},
    "corrected": {"rollout": vars(RolloutConfig(correction=1.1))},
    "k1": {"kl": vars(KLConfig(coef=0.3, place="loss", estimator="k1"))},
    "k2": {"kl": vars(KLConfig(coef=0.3, place="loss", estimator="k2"))},
    "k3": {"kl": vars(KLConfig(coef=0.3, place="loss", estimator="k3"))},
}


@pytest.mark.parametrize("averaged", [False, True], ids=["", "ewma"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equals_a_loop(objective: str, place: str, averaged: bool) -> None:
    """Value and gradient. With an averaged policy: min(r A, clip(r) A) pi_ewma / pi_old, where r is the ratio to it."""
    config = config_of(loss=OBJECTIVES[objective], **PLACES[place])
    per_token = fields("reference", *(["ewma"] if averaged else []))
    total, policy, _ = policy_loss(config, per_token)
    penalty = OBJECTIVES[objective].get("penalty", 1.0)
    start = policy.logprobs.tolist()
    assert float(total) == pytest.approx(by_hand(config, per_token, start, penalty), rel=1e-6, abs=1e-7)
    wanted = slopes(lambda at: by_hand(config, per_token, at, penalty), start)
    assert policy.logprobs.grad.tolist() == pytest.approx(wanted, abs=1e-8)
    assert policy.asked == [
        {
            "temperature": TEMPERATURE,
            "entropy": False,
            "collision": False,
            "anchor": None,
            "direction": "reverse",
            "teacher": None,
            "head_only": False,
        }
    ]


def test_the_fields_hold_every_case() -> None:
    """Ratios on both sides of every bound used above, so that the loops say something."""
    per_token = fields("ewma")
    for base in (per_token["old"], per_token["ewma"]):
        ratio, good = (FakePolicy().logprobs.detach() - base).exp(), per_token["advantages"] > 0
        for bound in (0.8, 1.2):
            assert 0 < int((ratio[good] > bound).sum()) < int(good.sum())
            assert 0 < int((ratio[~good] > bound).sum()) < int((~good).sum())
        assert (ratio[~good] > 1.3).any()
    trust = (per_token["old"] - per_token["sampler"]).exp()
    assert (trust > 1.1).any() and (trust < 1).any()


def test_weights_that_controllers_move_are_the_ones_used() -> None:
    config = config_of(loss={"objective": "penalty"}, kl=vars(KLConfig(coef=0.3, place="loss", estimator="k2")))
    per_token = fields("reference")
    total, policy, _ = policy_loss(config, per_token, penalty=4.0, kl=0.8)
    moved = replace(config, kl=replace(config.kl, coef=0.8))
    assert float(total) == pytest.approx(by_hand(moved, per_token, policy.logprobs.tolist(), 4.0), rel=1e-6, abs=1e-7)


def test_kl_in_the_reward_is_not_in_the_loss() -> None:
    plain, _, _ = policy_loss(config_of(), fields("reference"))
    rewarded, policy, metrics = policy_loss(config_of(kl=vars(KLConfig(coef=0.3))), fields("reference"))
    assert rewarded == plain and "kl_loss" not in metrics and policy.asked[0]["anchor"] is None


def test_full_kl_in_the_loss() -> None:
    config = config_of(kl=vars(KLConfig(coef=0.3, place="loss", estimator="full")))
    plain, _, _ = policy_loss(config_of(), fields())
    total, policy, metrics = policy_loss(config, fields())
    assert policy.asked[0]["anchor"] == f"anchor at {TEMPERATURE}" and policy.asked[0]["direction"] == "reverse"
    torch.testing.assert_close(total - plain, 0.3 * policy.kl.detach().sum() / COUNTS.tokens)
    torch.testing.assert_close(policy.kl.grad, torch.full_like(policy.kl, 0.3 / COUNTS.tokens))
    assert metrics["kl_loss"] == pytest.approx(float(policy.kl.detach().mean()))


def test_the_entropy_bonus_is_taken_off_the_loss() -> None:
    plain, _, _ = policy_loss(config_of(), fields())
    total, policy, metrics = policy_loss(config_of(loss={"entropy": 0.2}), fields())
    torch.testing.assert_close(total - plain, -0.2 * policy.entropy.detach().sum() / COUNTS.tokens)
    torch.testing.assert_close(policy.entropy.grad, torch.full_like(policy.entropy, -0.2 / COUNTS.tokens))
    assert metrics["entropy_now"] == pytest.approx(float(policy.entropy.detach().mean()))


def test_metrics_say_how_far_the_policy_moved() -> None:
    """Ratio and KL from the policy that sampled; the clip is around the averaged one where there is one."""
    per_token = fields("ewma")
    _, policy, metrics = policy_loss(config_of(loss={"clip": 0.2}), per_token)
    ratio = (policy.logprobs.detach() - per_token["old"]).exp()
    assert metrics["ratio"] == pytest.approx(float(ratio.mean()))
    assert metrics["approx_kl"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()))
    nearby, a = (policy.logprobs.detach() - per_token["ewma"]).exp(), per_token["advantages"]
    held = ((nearby > 1.2) & (a > 0)) | ((nearby < 0.8) & (a < 0))
    assert metrics["clip_fraction"] == pytest.approx(float(held.double().mean())) and 0 < held.sum() < NUMBER
    assert torch.equal(policy.logprobs.grad == 0, held)


@pytest.mark.parametrize("objective", ["none", "penalty"])
def test_without_a_clip_nothing_is_clipped(objective: str) -> None:
    _, policy, metrics = policy_loss(config_of(loss={"objective": objective}), fields())
    assert metrics["clip_fraction"] == 0 and (policy.logprobs.grad != 0).all()


def test_the_one_step_on_a_rollout_takes_its_own_log_probs_for_the_old_ones() -> None:
    """And tells of the policy what the rollout did not: its entropy, and its KL from the reference in nats a response,
    of what it sampled."""
    config = config_of("grpo", {"reduction": "token"}, kl=vars(KLConfig(coef=0.3, place="loss", estimator="k2")))
    per_token = fields("reference", "sampled")
    sampled = per_token["sampled"] == 1
    known, plain, before = policy_loss(config, per_token | {"old": FakePolicy().logprobs.detach()})
    del per_token["old"]
    total, policy, metrics = policy_loss(config, per_token)
    assert total == known and torch.equal(policy.logprobs.grad, plain.logprobs.grad)
    assert not plain.asked[0]["entropy"] and policy.asked[0]["entropy"]
    assert metrics.pop("entropy") == pytest.approx(float(policy.entropy.detach()[sampled].mean()))
    drift = (policy.logprobs.detach() - per_token["reference"])[sampled].sum()
    assert metrics.pop("kl") == pytest.approx(float(drift) / 4)  # of six responses two are no samples
    assert metrics == before and before["ratio"] == 1 and before["approx_kl"] == 0


# ---- demonstrations


def test_a_demonstration_is_pulled_up_by_its_advantage_alone() -> None:
    """coef * reinforce: no ratio, clip, correction or KL; and the sampled tokens are as they are without it."""
    kl = vars(KLConfig(coef=0.3, place="loss", estimator="k2"))
    config = config_of("grpo", {"reduction": "token"}, kl=kl, given=GivenConfig("row", coef=0.4))
    per_token = fields("reference", "sampled")
    given = per_token["sampled"] == 0
    per_token["sampler"][given] = math.nan
    total, policy, metrics = policy_loss(config, per_token)
    _, plain, _ = policy_loss(replace(config, given=GivenConfig()), fields("reference"))
    torch.testing.assert_close(policy.logprobs.grad[~given], plain.logprobs.grad[~given])
    torch.testing.assert_close(
        policy.logprobs.grad[given],
        -0.4 * per_token["advantages"][given] / COUNTS.tokens,
    )
    assert math.isfinite(float(total)) and all(map(math.isfinite, metrics.values()))
    reference = (per_token["reference"] - policy.logprobs.detach())[~given]
    assert metrics["kl_loss"] == pytest.approx(float((reference**2 / 2).mean()))


def test_metrics_leave_demonstrations_out() -> None:
    per_token = fields("reference", "sampled")
    sampled = per_token["sampled"] == 1
    per_token["sampler"][~sampled] = math.nan
    _, policy, metrics = policy_loss(config_of("dapo", {"clip": 0.2, "clip_high": 0.2}), per_token)
    ratio = (policy.logprobs.detach() - per_token["old"]).exp()
    a, trust = per_token["advantages"], (per_token["old"] - per_token["sampler"]).exp().clamp(max=2.0)
    loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
    held = ((ratio > 1.2) & (a > 0)) | ((ratio < 0.8) & (a < 0))
    for name, values in {
        "ratio": ratio,
        "approx_kl": ratio - 1 - ratio.log(),
        "clip_fraction": held.double(),
        "policy_loss": loss,
        "importance": trust,
    }.items():
        assert metrics[name] == pytest.approx(float(values[sampled].mean())), name


# ---- the critic


def test_the_critics_loss_is_weighted_and_clipped() -> None:
    config, per_token = config_of(critic=CriticConfig("policy", clip=0.3, coef=2.5)), fields("values", "returns")
    policy, critic = FakePolicy(), FakeCritic()
    loss = loss_of(config, models_of(policy, critic), make_batch(per_token))
    loss.total.backward()
    plain, alone, _ = policy_loss(config, per_token)
    rows = zip(critic.value.tolist(), per_token["values"].tolist(), per_token["returns"].tolist(), strict=True)
    wanted = sum(max((v - r) ** 2, (min(max(v, old - 0.3), old + 0.3) - r) ** 2) / 2 for v, old, r in rows)
    assert float(loss.total.detach() - plain) == pytest.approx(2.5 * wanted / COUNTS.tokens)
    value, number = loss.metrics["value_loss"]
    assert float(value) == pytest.approx(wanted) and number == NUMBER
    assert torch.equal(policy.logprobs.grad, alone.logprobs.grad) and critic.value.grad is not None


def test_while_warming_a_critic_of_its_own_the_policy_is_not_asked() -> None:
    config = config_of(critic=CriticConfig("policy"), loss={"entropy": 0.1}, kl=vars(KLConfig(place="loss")))
    policy, critic = FakePolicy(), FakeCritic()
    batch = make_batch(fields("values", "returns", "reference"))
    loss = loss_of(config, models_of(policy, critic, FakeReference()), batch, warming=True)
    loss.total.backward()
    assert not policy.asked and list(loss.metrics) == ["value_loss"]
    assert policy.logprobs.grad is None and critic.value.grad is not None


# ---- over a model


ANSWERS = (3, 5)


@pytest.fixture
def tiny(tiny_model_dir: Path) -> Any:
    return load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=64)


def tiny_batch(policy: Any, **per_token: float) -> TreeBatch:
    rng = np.random.default_rng(0)
    vocab = policy.plain.config.vocab_size
    branches = tuple(Branch(rng.integers(0, vocab, n), np.ones(n, bool)) for n in ANSWERS)
    batch = collate([TokenTree(rng.integers(0, vocab, 4), branches)])
    number = sum(ANSWERS)
    named = {name: torch.full((number,), value) for name, value in per_token.items()}
    with torch.no_grad():
        logprobs = policy(batch, TEMPERATURE).logprobs
    return replace(batch, per_token={"old": logprobs, "sampler": logprobs, **named})


def test_full_kl_in_the_loss_is_that_of_the_whole_distribution(tiny: Any, tiny_model_dir: Path) -> None:
    other = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=64, trainable=False)
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(1.5)
    config = config_of("grpo", kl=vars(KLConfig(coef=0.5, place="loss", estimator="full")))
    batch = tiny_batch(tiny, advantages=0.0)
    counts = Counts(1, len(ANSWERS), 0, sum(ANSWERS))
    loss = loss_of(config, models_of(tiny, reference=Reference(tiny, other)), batch, counts)

    def logits(policy: Any) -> Tensor:
        return policy.model.get_output_embeddings()(policy(batch, states=True)).double() / TEMPERATURE

    with torch.no_grad():
        p, q = logits(tiny).log_softmax(-1), logits(other).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    means = torch.stack([part.mean() for part in kl.split(ANSWERS)])  # grpo: a mean over each answer, then over answers
    torch.testing.assert_close(loss.total.double(), 0.5 * means.mean(), rtol=1e-4, atol=1e-6)
    assert kl.min() > 1e-3


def test_the_bonus_raises_the_entropy_of_a_model(tiny: Any) -> None:
    batch, config = tiny_batch(tiny, advantages=0.0), config_of("grpo", {"entropy": 1.0})
    counts = Counts(1, len(ANSWERS), 0, sum(ANSWERS))
    optimizer = torch.optim.SGD(tiny.parameters(), lr=1.0)
    before = tiny(batch, TEMPERATURE, entropy=True).entropy.mean()
    loss_of(config, models_of(tiny), batch, counts).total.backward()
    optimizer.step()
    assert tiny(batch, TEMPERATURE, entropy=True).entropy.mean() > before + 1e-3


def test_data_mixed_in_are_learned_by_their_likelihood_at_temperature_1(tiny: Any) -> None:
    batch = tiny_batch(tiny)
    loss = mixed_loss(batch, tiny, 0.25)
    nll = -tiny(batch).logprobs.detach().sum()
    torch.testing.assert_close(loss.total, 0.25 * nll)
    value, number = loss.metrics["ptx_nll"]
    assert float(value) == pytest.approx(float(nll)) and number == sum(ANSWERS) and len(loss.metrics) == 1


def test_while_warming_a_shared_critic_gradients_reach_its_head_alone(tiny: Any) -> None:
    tiny.add_value_head()
    config = config_of(critic=CriticConfig(shared=True))
    batch = tiny_batch(tiny, advantages=1.0, values=0.0, returns=1.0)
    counts = Counts(1, len(ANSWERS), 0, sum(ANSWERS))
    loss = loss_of(config, models_of(tiny), batch, counts, warming=True)
    loss.total.backward()
    assert list(loss.metrics) == ["value_loss"] and float(loss.total) == pytest.approx(0.5)
    assert {name for name, p in tiny.named_parameters() if p.grad is not None} == {
        "value_head.weight",
        "value_head.bias",
    }
    assert float(tiny.value_head.bias.grad) == pytest.approx(-1.0)
    assert "policy_loss" in loss_of(config, models_of(tiny), batch, counts).metrics


@pytest.mark.parametrize("shared", [False, True])
def test_warming_runs_leave_the_policy_as_it_was(shared: bool, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Byte by byte, whatever weight decay does to what is trained; and one rollout more moves it."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "red?"}\n{"prompt": "blue?"}\n')
    for steps, same in ((2, True), (3, False)):
        out = tmp_path / f"run-{steps}"
        config = config_of(
            model=ModelConfig(str(tiny_model_dir), precision="fp32"),
            data=DataConfig(str(file), max_length=64),
            out=str(out),
            optim=OptimConfig(lr=1e-2, weight_decay=0.5, warmup=0.0),
            train=TrainConfig(batch_size=2, max_steps=steps, threads=1),
            rewards=RewardsConfig(rules=("length=2,4",)),
            rollout=vars(RolloutConfig(responses=2)),
            critic=CriticConfig("policy", shared=shared, warmup=2),
        )
        train_online(config)
        start, end = load_file(tiny_model_dir / "model.safetensors"), load_file(out / "model" / "model.safetensors")
        assert all(torch.equal(start[name], end[name]) for name in start) == same
        (state,) = (out / "checkpoints").glob("*/policy.safetensors")
        if shared:
            assert load_file(state)["value_head.weight"].abs().max() > 1e-3
        else:
            before = load_file(tiny_model_dir / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
            after = load_file(out / "critic" / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
            assert (before - after).abs().max() > 1e-3
