"""A policy's divergence from another model, and WPO's collisions: what the losses get of a batch of trees is what whole
logits of every sequence alone would give."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from assent.config import LoraConfig, ModelConfig
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.models.loading import load_policy
from assent.models.policy import Policy

DIRECTIONS = ("forward", "reverse")


def trees() -> list[TokenTree]:
    draw = np.random.default_rng(0)

    def branch(size: int) -> Branch:
        trained = np.ones(size, bool)
        trained[1 : size - 2] = draw.random(len(trained[1 : size - 2])) < 0.5  # some tokens in between are not
        return Branch(draw.integers(3, 60, size), trained)

    shapes = ((5, (4, 9)), (1, (3, 3, 7)), (8, (6,)))
    return [TokenTree(draw.integers(3, 60, width), tuple(map(branch, sizes))) for width, sizes in shapes]


def fp32(folder: Path, **options) -> ModelConfig:
    return ModelConfig(str(folder), precision="fp32", **options)


@pytest.fixture(scope="module")
def other_dir(tiny_model_dir: Path, tmp_path_factory) -> Path:
    """Another model, with an output head of its own."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight + 0.5 * torch.randn_like(model.lm_head.weight))
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("models") / "other"
    model.save_pretrained(folder)
    return folder


def dense(folder: Path) -> tuple[nn.Module, Tensor]:
    """A model that transformers runs itself, and its log-probs over the vocabulary at every trained token, [N, V]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for tree in trees():
        for branch in tree.branches:
            logp = model(input_ids=torch.from_numpy(np.concatenate([tree.prompt, branch.ids]))[None]).logits[0]
            rows.append(logp.log_softmax(-1)[len(tree.prompt) - 1 :][np.flatnonzero(branch.trained)])
    return model, torch.cat(rows)


def plain_kl(logp: Tensor, logq: Tensor, direction: str) -> Tensor:
    if direction == "forward":
        return (logq.exp() * (logq - logp)).sum(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_kl_to_a_frozen_model(direction: str, layout: str, tiny_model_dir: Path, other_dir: Path) -> None:
    """Values, and the gradient of every weight of the policy; none of the reference's."""
    batch = collate(trees(), flat=layout == "flat")
    policy = load_policy(fp32(tiny_model_dir, layout=layout), max_length=64)
    reference = load_policy(fp32(other_dir, layout=layout), max_length=64)
    got = policy(batch, anchor=reference.anchor(batch), direction=direction).kl
    model, logp = dense(tiny_model_dir)
    want = plain_kl(logp, dense(other_dir)[1].detach(), direction)
    assert want.min() > 1e-2
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    ahead = torch.linspace(-1, 2, len(got))
    (ahead * got).sum().backward()
    (ahead * want).sum().backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_forward_is_the_direction_of_the_reference(tiny_model_dir: Path, other_dir: Path) -> None:
    batch = collate(trees())
    policy, reference = (load_policy(fp32(folder), max_length=64) for folder in (tiny_model_dir, other_dir))
    anchor = reference.anchor(batch)
    assert not anchor.hidden.requires_grad and not anchor.head.weight.requires_grad
    got = policy(batch, anchor=anchor).kl
    want = plain_kl(dense(tiny_model_dir)[1], dense(other_dir)[1], "forward")
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_an_anchor_applies_its_own_logit_transform(tmp_path: Path, tiny_model_dir: Path) -> None:
    from transformers import GraniteConfig

    vocab = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config.vocab_size
    config = GraniteConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, logits_scaling=3.0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy, scaled = (load_policy(fp32(folder), max_length=64) for folder in (tiny_model_dir, tmp_path))
    batch = collate(trees())
    logp, logq = dense(tiny_model_dir)[1], dense(tmp_path)[1]
    torch.testing.assert_close(policy(batch, anchor=scaled.anchor(batch)).kl, plain_kl(logp, logq, "forward"))
    torch.testing.assert_close(scaled(batch, anchor=policy.anchor(batch)).kl, plain_kl(logq, logp, "forward"))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_kl_of_a_lora_policy_to_its_start(direction: str, tiny_model_dir: Path) -> None:
    batch = collate(trees())
    policy = load_policy(fp32(tiny_model_dir, lora=LoraConfig(rank=4)), max_length=64)
    with policy.without_adapters():
        anchor = policy.anchor(batch)
    assert not anchor.hidden.requires_grad and not anchor.head.weight.requires_grad
    start = policy(batch, anchor=anchor, direction=direction).kl
    assert not start.any(), "adapters begin at nothing"
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    moved = policy(batch, anchor=anchor, direction=direction).kl
    assert moved.mean() > 1e-3
    moved.sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in policy.named_parameters() if "lora_" in n)
    with policy.without_adapters():
        again = policy.anchor(batch)
    assert torch.equal(again.hidden, anchor.hidden)


def test_collision_of_the_trained_tokens(tiny_model_dir: Path) -> None:
    policy = load_policy(fp32(tiny_model_dir), max_length=64)
    scores = policy(collate(trees()), collision=True)
    want = dense(tiny_model_dir)[1].exp().square().sum(-1).log()
    torch.testing.assert_close(scores.collision, want.detach(), atol=1e-5, rtol=0)
    assert not scores.collision.requires_grad


def test_what_is_not_asked_for_is_zero(tiny_model_dir: Path) -> None:
    batch = collate(trees())
    policy = load_policy(fp32(tiny_model_dir), max_length=64)
    scores = policy(batch)
    for zeros in (scores.entropy, scores.collision, scores.kl):
        assert zeros.shape == (len(batch.label),) and not zeros.any()
    full = policy(batch, entropy=True, collision=True, anchor=policy.anchor(batch))
    assert torch.equal(full.logprobs, scores.logprobs)


# ---- over ranks


def transformed_head(folder: Path) -> Path:
    """A model that does more after its decoder than a product."""
    config = AutoConfig.for_model(
        "modernbert-decoder", vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, initializer_range=0.2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def sharded_run(model: Path, reference: Path) -> dict[str, Tensor]:
    """KL of a batch and the policy's gradients, on one rank or several; each rank has the same batch."""
    from assent import distributed

    world = distributed.init(threads=1)
    batch: TreeBatch = collate(trees())

    def load(folder: Path) -> Policy:
        policy = load_policy(fp32(folder), max_length=64)
        return distributed.shard(policy, world, blocks=policy.blocks)  # type: ignore[return-value]

    policy, frozen = load(model), load(reference)
    for _ in range(2):  # a second time after a backward pass, which shards the weights again
        policy.zero_grad()
        kl = policy(batch, anchor=frozen.anchor(batch)).kl + policy(batch, anchor=policy.anchor(batch)).kl
        (kl.sum() / world.size).backward()
    grads = {name: p.grad for name, p in policy.named_parameters()}
    whole = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()}
    return {"kl": kl.detach()} | whole


@pytest.mark.parametrize("head", ["product", "own code"])
def test_two_ranks_give_what_one_gives(
    head: str, program_ranks, tiny_model_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    model = tiny_model_dir if head == "product" else transformed_head(tmp_path / "transformed")
    assert (load_policy(fp32(model), max_length=64).transform is None) == (head == "own code")
    program_ranks(tmp_path, [__file__, str(model), str(other_dir), str(tmp_path / "found.pt")]).join()
    got, want = torch.load(tmp_path / "found.pt"), sharded_run(model, other_dir)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


if __name__ == "__main__":
    model, reference, out = map(Path, sys.argv[1:])
    found = sharded_run(model, reference)
    if os.environ["RANK"] == "0":
        torch.save(found, out)
