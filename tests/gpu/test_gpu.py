"""What only an accelerator can show: FlexAttention is the CPU's tree attention, bf16 is near fp32, the rollout engine
samples there what training scores, and a whole run works."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from assent.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RewardsConfig,
    RolloutConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
)
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.models.attention import TreeAttend
from assent.models.loading import load_policy
from assent.models.policy import Policy
from assent.rollout.torch_engine import TorchEngine
from assent.train.log import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def trees(seed: int = 1) -> list[TokenTree]:
    """Some longer than a block of FlexAttention, some of one token."""
    draw = np.random.default_rng(seed)

    def branch(size: int) -> Branch:
        return Branch(draw.integers(3, 260, size), np.ones(size, bool))

    shapes = ((150, (40, 1, 133)), (1, (3,)), (20, (60, 2)))
    return [TokenTree(draw.integers(3, 260, width), tuple(map(branch, sizes))) for width, sizes in shapes]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 1)])
def test_flex_tree_attention_is_the_cpus(heads: int, kv_heads: int) -> None:
    batch = collate(trees())
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, h, batch.num_tokens, 32) for h in (heads, kv_heads, kv_heads)]
    inputs = [torch.randn(*shape, generator=draw) for shape in shapes]
    ahead = torch.randn(1, batch.num_tokens, heads, 32, generator=draw)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device).requires_grad_() for x in inputs]
        attend = TreeAttend(batch.segments, batch.num_tokens)
        out = attend(torch.nn.Identity(), *leaves, 0.2)
        (out * ahead.to(device)).sum().backward()
        found.append([out.detach().cpu(), *(x.grad.cpu() for x in leaves)])
    for cpu, cuda in zip(*found, strict=True):
        torch.testing.assert_close(cuda, cpu, atol=2e-4, rtol=2e-4)


def scores(folder: Path, device: str, precision: str, layout: str = "tree") -> tuple[torch.Tensor, list[torch.Tensor]]:
    policy = load_policy(ModelConfig(str(folder), precision=precision, layout=layout), max_length=512, device=device)
    batch: TreeBatch = collate(trees(), flat=layout == "flat").to(device)
    logprobs = policy(batch).logprobs
    logprobs.mean().backward()
    return logprobs.detach().cpu(), [p.grad.cpu() for p in policy.parameters()]


@pytest.mark.parametrize("layout", ["tree", "flat"])
def test_policy_is_the_cpus(layout: str, tiny_model_dir: Path) -> None:
    cpu, cpu_grads = scores(tiny_model_dir, "cpu", "fp32")
    cuda, cuda_grads = scores(tiny_model_dir, "cuda", "fp32", layout)
    torch.testing.assert_close(cuda, cpu, atol=1e-4, rtol=0)
    for a, b in zip(cuda_grads, cpu_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_bf16_is_near_fp32(tiny_model_dir: Path) -> None:
    exact, exact_grads = scores(tiny_model_dir, "cuda", "fp32")
    near, near_grads = scores(tiny_model_dir, "cuda", "bf16")
    assert 0 < (near - exact).abs().max() < 0.1 and abs((near - exact).mean()) < 0.01
    for a, b in zip(near_grads, exact_grads, strict=True):
        assert a.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_engine_logprobs_are_training_logprobs(
    precision: str, tolerance: float, compiled: bool, tiny_model_dir: Path
) -> None:
    policy = load_policy(ModelConfig(str(tiny_model_dir), precision=precision), max_length=512, device="cuda")
    prompts = [tree.prompt for tree in trees()]
    sampling = SamplingConfig(max_new_tokens=40, max_batch=4, temperature=0.9)
    engine = TorchEngine(policy.model, eos_ids=(2,), precision=precision, compiled=compiled)
    answers = engine.generate(prompts, 3, sampling, seed=3)
    sampled = [
        TokenTree(prompt, tuple(Branch(c.ids, np.ones(len(c), bool)) for c in group))
        for prompt, group in zip(prompts, answers, strict=True)
    ]
    with torch.no_grad():
        trained = policy(collate(sampled).to("cuda"), 0.9).logprobs.cpu().numpy()
    drawn = np.concatenate([c.logprobs for group in answers for c in group])
    np.testing.assert_allclose(trained, drawn, atol=tolerance)
    if precision == "fp32":
        cpu = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=512)
        there = TorchEngine(cpu.model, eos_ids=(2,)).generate(prompts, 3, sampling, seed=3)
        same = [np.array_equal(a.ids, b.ids) for g, h in zip(answers, there, strict=True) for a, b in zip(g, h)]
        assert np.mean(same) > 0.8, "the same uniforms draw the same tokens, but for ties in rounding"


def test_reward_and_ppo_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    from assent.algorithms.online.train import train_online
    from assent.algorithms.reward.pairs import train_reward

    rows = [{"prompt": f"Question {i}?", "chosen": "yes " * (i % 3 + 1), "rejected": "no"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "model": ModelConfig(str(tiny_model_dir), activation_checkpointing=True),
        "data": DataConfig(str(tmp_path / "pairs.jsonl"), max_length=128),
        "optim": OptimConfig(lr=1e-3),
        "train": TrainConfig(batch_size=4, max_steps=4),
    }
    train_reward(RewardConfig(**shared, out=str(tmp_path / "reward")))
    config = online_config(
        "ppo",
        **shared,
        out=str(tmp_path / "ppo"),
        rewards=RewardsConfig((str(tmp_path / "reward"),)),
        rollout=vars(RolloutConfig(responses=2, epochs=2, minibatches=2)),
        sampling=SamplingConfig(max_new_tokens=16),
    )
    train_online(config)
    last = read_metrics(tmp_path / "ppo" / "metrics.jsonl")[-1]
    assert np.isfinite([last["loss"], last["ratio"]]).all()
    frozen = Policy(load_policy(ModelConfig(str(tmp_path / "ppo")), max_length=64).model, precision="fp32", tree=True)
    with torch.no_grad():
        assert torch.isfinite(frozen(collate(trees())).logprobs).all()
