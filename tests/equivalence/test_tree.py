"""A packed tree, flat rows and the model's own padded forward are the same numbers, and the same gradients; where a
tree cannot be exact, it is not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from assent.config import ModelConfig
from assent.data.packing import idle
from assent.data.tree import Branch, Segment, TokenTree, TreeBatch, collate
from assent.errors import ModelError
from assent.models import attention
from assent.models.attention import TreeAttend, block_mask, install
from assent.models.loading import load_policy
from assent.models.policy import Policy
from assent.models.verify import Sample, choose_layout

VOCAB = 70
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON),
    "gemma": lambda: GemmaConfig(**COMMON),
    "gemma3": lambda: Gemma3TextConfig(**COMMON, sliding_window=64),
    "mistral": lambda: MistralConfig(**COMMON),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    ),
}
INEXACT = {
    "window": (lambda: MistralConfig(**COMMON, sliding_window=4), "window of 4 tokens is shorter"),
    "softcap": (lambda: Gemma2Config(**COMMON, sliding_window=64), "caps its attention logits"),
    "sinks": (
        lambda: GptOssConfig(**COMMON, num_local_experts=2, num_experts_per_tok=1, sliding_window=64),
        "sinks",
    ),
    "recurrent": (
        lambda: MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
        "no attention interface|layers of kind",
    ),
}
SEGMENTS = (
    Segment(0, 5, ((5, 9), (9, 17))),
    Segment(17, 20, ((20, 27),)),
    Segment(27, 28, ((28, 30), (30, 31), (31, 32))),
    Segment(32, 34, ()),
)
TOKENS = 34


def build(config) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float()


@pytest.fixture(params=[0, 170 * 32, 1 << 40], ids=["rectangles", "both", "side by side"])
def kernel(request, monkeypatch) -> None:
    """The two ways to compute a tree on the CPU, and a stream where some trees go one way and some the other."""
    monkeypatch.setattr(attention, "SHORT", request.param)


def trees(seed: int = 1) -> list[TokenTree]:
    """Prompts and answers of many lengths; some tokens are not trained, one answer is one token long."""
    draw = np.random.default_rng(seed)
    made = []
    for prompt, answers in ((7, (4, 1, 9)), (1, (3,)), (5, (6, 2))):
        branches = []
        for size in answers:
            trained = draw.random(size) < 0.7
            trained[-1] = True
            branches.append(Branch(draw.integers(1, VOCAB, size), trained))
        made.append(TokenTree(draw.integers(1, VOCAB, prompt), tuple(branches)))
    return made


def padded(model: PreTrainedModel, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the trained tokens from one right-padded batch and transformers' eager attention."""
    rows = [(tree.prompt, branch) for tree in trees() for branch in tree.branches]
    width = max(len(prompt) + len(branch) for prompt, branch in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (prompt, branch) in enumerate(rows):
        ids[row, : len(prompt) + len(branch)] = torch.from_numpy(np.concatenate([prompt, branch.ids]))
        mask[row, : len(prompt) + len(branch)] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits / temperature
    logp = torch.log_softmax(logits.float(), -1)
    row = torch.cat([torch.full((int(b.trained.sum()),), r) for r, (_, b) in enumerate(rows)])
    column = torch.cat([torch.from_numpy(np.flatnonzero(b.trained)) + len(p) for p, b in rows])
    predicted = logp[row, column - 1]
    return predicted.gather(1, ids[row, column][:, None]).squeeze(1), -(predicted.exp() * predicted).sum(-1)


def policy_scores(model: PreTrainedModel, temperature: float, tree: bool) -> tuple[Tensor, Tensor]:
    if tree:
        install(model)
    else:
        model.set_attn_implementation("eager")
    scores = Policy(model, precision="fp32", tree=tree)(collate(trees(), flat=not tree), temperature, entropy=True)
    return scores.logprobs, scores.entropy


def gradients(model: PreTrainedModel, scores: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Of a combination that no symmetry hides."""
    model.zero_grad()
    weights = torch.linspace(-1, 1.5, len(scores[0]))
    (weights * scores[0] + 0.3 * weights.flip(0) * scores[1]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        scale = max(1.0, want[name].abs().max().item())
        torch.testing.assert_close(
            got[name], want[name], atol=1e-5 * scale, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_tree_is_flat_is_padded(name: str, kernel: None) -> None:
    model = build(CONFIGS[name]())
    model.set_attn_implementation("eager")
    want = padded(model, 0.7)
    want_grads = gradients(model, want)
    assert want[0].std() > 0.3 and want[1].std() > 0.02, "a model that says something"
    for tree in (True, False):
        got = policy_scores(model, 0.7, tree)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert_same_gradients(gradients(model, got), want_grads)


def test_neighbours_do_not_matter(kernel: None) -> None:
    """An answer's numbers do not change with the other answers, the other trees, or the order of packing."""
    model = build(CONFIGS["llama"]())
    install(model)
    policy = Policy(model, precision="fp32", tree=True)

    def by_answer(packed: list[TokenTree]) -> dict[bytes, Tensor]:
        batch = collate(packed)
        parts = policy(batch).logprobs.detach().split(torch.bincount(batch.response).tolist())
        return {
            tree.prompt.tobytes() + branch.ids.tobytes(): part
            for (tree, branch), part in zip([(t, b) for t in packed for b in t.branches], parts, strict=True)
        }

    together = by_answer(trees())
    alone: dict[bytes, Tensor] = {}
    for tree in reversed(trees()):
        for branch in tree.branches:
            alone |= by_answer([TokenTree(tree.prompt, (branch,))])
    assert together.keys() == alone.keys()
    for key, part in together.items():
        torch.testing.assert_close(part, alone[key], atol=1e-5, rtol=0)


def test_every_prompt_token_matters_and_no_later_token_does(kernel: None) -> None:
    model = build(CONFIGS["llama"]())
    install(model)
    policy = Policy(model, precision="fp32", tree=True)
    tree = trees()[0]
    before = policy(collate([tree])).logprobs.detach()
    for position in range(len(tree.prompt)):
        prompt = tree.prompt.copy()
        prompt[position] = prompt[position] % (VOCAB - 1) + 1
        assert (policy(collate([TokenTree(prompt, tree.branches)])).logprobs - before).abs().min() > 0
    first = tree.branches[0]
    changed = Branch(np.append(first.ids[:-1], first.ids[-1] % (VOCAB - 1) + 1), first.trained)
    after = policy(collate([TokenTree(tree.prompt, (changed, *tree.branches[1:]))])).logprobs
    last = int(first.trained.sum()) - 1
    same = torch.arange(len(before)) != last
    torch.testing.assert_close(after[same], before[same], atol=1e-6, rtol=0)
    assert abs(after[last] - before[last]) > 1e-4


# ---- architectures that a tree cannot express


def saved(config, folder: Path) -> str:
    build(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", INEXACT)
def test_inexact_architectures_run_flat_and_exact(name: str, tmp_path: Path, capsys) -> None:
    config, reason = INEXACT[name]
    path = saved(config(), tmp_path)
    policy = load_policy(ModelConfig(path, precision="fp32"), max_length=16)
    assert not policy.tree
    assert "prompts are not shared, because" in capsys.readouterr().err
    scores = policy(collate(trees(), flat=True), 0.7)
    torch.testing.assert_close(scores.logprobs, padded(policy.model, 0.7)[0], atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match=f"cannot share prompts exactly.*({reason})(.|\n)*--model.layout flat"):
        load_policy(ModelConfig(path, precision="fp32", layout="tree"), max_length=16)


def test_a_window_as_long_as_every_sequence_is_no_window(tmp_path: Path) -> None:
    path = saved(MistralConfig(**COMMON, sliding_window=16), tmp_path)
    assert load_policy(ModelConfig(path, precision="fp32"), max_length=16).tree
    assert not load_policy(ModelConfig(path, precision="fp32"), max_length=17).tree


def test_flat_on_demand(tiny_model_dir: Path) -> None:
    assert load_policy(ModelConfig(str(tiny_model_dir)), max_length=64).tree
    assert not load_policy(ModelConfig(str(tiny_model_dir), layout="flat"), max_length=64).tree


def test_the_check_accepts_what_is_exact_and_catches_what_is_not(capsys) -> None:
    model = build(CONFIGS["llama"]())
    policy = Policy(model, precision="fp32", tree=False)
    choose_layout(policy, Sample.of(policy), "m", "auto", 64)
    assert policy.tree and model.config._attn_implementation == attention.NAME

    def shift(module, args, kwargs):  # mixes each token with its neighbour in the stream, as a convolution would
        x = args[0] if args else kwargs["hidden_states"]
        mixed = x + 0.5 * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return ((mixed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": mixed})

    model.model.layers[0].register_forward_pre_hook(shift, with_kwargs=True)
    attention.use_attention(model, "sdpa")
    policy.tree = False
    sample = Sample.of(policy)
    with pytest.raises(ModelError, match=r"m cannot share prompts exactly: sharing .* nats .*--model.layout flat"):
        choose_layout(policy, sample, "m", "tree", 64)
    choose_layout(policy, sample, "m", "auto", 64)
    assert not policy.tree and "prompts are not shared, because sharing prompts changes" in capsys.readouterr().err


def test_activation_checkpointing_changes_no_gradient(tiny_model_dir: Path) -> None:
    found = []
    for recompute in (False, True):
        config = ModelConfig(str(tiny_model_dir), precision="fp32", activation_checkpointing=recompute)
        policy = load_policy(config, max_length=64)
        scores = policy(collate(trees()), entropy=True)
        found.append(gradients(policy.model, (scores.logprobs, scores.entropy)))
        assert policy.model.is_gradient_checkpointing == recompute
    assert_same_gradients(found[1], found[0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# ---- some of the responses


def assert_same_batch(got: TreeBatch, want: TreeBatch) -> None:
    def compare(name: str, one, other) -> None:
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype and one.shape == other.shape, name
            assert torch.equal(one, other), name
        elif isinstance(one, dict):
            assert one.keys() == other.keys(), name
            for key in one:
                compare(f"{name}[{key}]", one[key], other[key])
        else:
            assert one == other, name

    for field in fields(TreeBatch):
        compare(field.name, getattr(got, field.name), getattr(want, field.name))


def forest(draw: np.random.Generator, answers: list[int]) -> list[TokenTree]:
    """Trees with so many answers each, with pairs in both directions and numbers that tell tokens and answers apart."""
    made = []
    for key, size in enumerate(answers):
        branches = []
        for length in draw.integers(1, 5, size):
            trained = draw.random(length) < 0.7
            branches.append(
                Branch(draw.integers(1, VOCAB, length), trained, {"old": draw.random(trained.sum(), np.float32)})
            )
        two = [(i, j, float(draw.random())) for i in range(size) for j in range(size) if i != j and draw.random() < 0.6]
        prompt = draw.integers(1, VOCAB, draw.integers(1, 6))
        made.append(TokenTree(prompt, tuple(branches), tuple(two), {"reward": draw.random(size, np.float32)}, 10 + key))
    return made


def reduced(tree: TokenTree, keep: list[bool]) -> TokenTree:
    """The tree with only those branches, written out."""
    place = {old: new for new, old in enumerate(index for index, stays in enumerate(keep) if stays)}
    return replace(
        tree,
        branches=tuple(tree.branches[old] for old in place),
        pairs=tuple((place[a], place[b], gap) for a, b, gap in tree.pairs if a in place and b in place),
        per_response={name: values[list(place)] for name, values in tree.per_response.items()},
    )


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_a_selection_is_the_batch_of_the_selected(seed: int, answers: list[int], flat: bool) -> None:
    draw = np.random.default_rng(seed)
    packed = forest(draw, answers)
    keep = [[bool(draw.random() < 0.6) for _ in tree.branches] for tree in packed]
    got = collate(packed, flat).select(torch.tensor(sum(keep, [])))
    left = [reduced(tree, stays) for tree, stays in zip(packed, keep, strict=True) if any(stays)]
    assert_same_batch(got, collate(left, flat) if left else idle(packed[0]))


@pytest.mark.parametrize("flat", [False, True])
def test_a_selection_of_all_of_none_and_of_nothing(flat: bool) -> None:
    packed = forest(np.random.default_rng(5), [2, 3])
    batch = collate(packed, flat)
    assert_same_batch(batch.select(torch.ones(5, dtype=torch.bool)), batch)
    assert_same_batch(batch.select(torch.zeros(5, dtype=torch.bool)), idle(packed[0]))
    empty = idle(packed[0])
    assert empty.select(torch.zeros(0, dtype=torch.bool)) is empty
    with pytest.raises(AssertionError, match="one bool for each response"):
        batch.select(torch.ones(4, dtype=torch.bool))


def test_a_policy_reads_a_selection_as_it_read_the_whole(kernel: None) -> None:
    model = build(CONFIGS["llama"]())
    install(model)
    policy = Policy(model, precision="fp32", tree=True)
    batch = collate(trees())
    keep = torch.tensor([True, False, True, False, False, True])
    want = policy(batch).logprobs[keep[batch.response]]
    torch.testing.assert_close(policy(batch.select(keep)).logprobs, want, atol=1e-5, rtol=0)


# ---- the attention itself


def qkv(heads: int = 4, kv_heads: int = 2, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = ((1, heads, TOKENS, 8), (1, kv_heads, TOKENS, 8), (1, kv_heads, TOKENS, 8))
    return tuple(torch.randn(*shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes)


def tree_mask(segments: Sequence[Segment], num_tokens: int) -> Tensor:
    """Which token q sees which token k [T, T], from the definition: its prompt, and its own branch so far."""
    mask = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for segment in segments:
        for start, end in ((segment.start, segment.prompt_end), *segment.branches):
            mask[start:end, segment.start : segment.prompt_end] = True
            mask[start:end, start:end] = True
    return mask.tril()


def dense(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Softmax under the dense mask, [1, T, H, D]."""
    mask = tree_mask(SEGMENTS, TOKENS) if mask is None else mask
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = scaling * query @ key.transpose(-1, -2)
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def test_tree_mask_by_hand() -> None:
    """Prompt of 2, answers of 2 and 1, then another tree of 1 + 1."""
    mask = tree_mask((Segment(0, 2, ((2, 4), (4, 5))), Segment(5, 6, ((6, 7),))), 7)
    want = ["#......", "##.....", "###....", "####...", "##..#..", ".....#.", ".....##"]
    assert ["".join(".#"[int(v)] for v in row) for row in mask] == want


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cpu_attention_is_dense_attention(kv_heads: int, kernel: None) -> None:
    inputs = qkv(4, kv_heads)
    got = TreeAttend(SEGMENTS, TOKENS)(torch.nn.Identity(), *inputs, 0.4)
    want = dense(*inputs, 0.4)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    ahead = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    ours = torch.autograd.grad((got * ahead).sum(), inputs)
    theirs = torch.autograd.grad((want * ahead).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_cpu_attention_gradcheck(kernel: None) -> None:
    inputs = qkv(2, 1)
    assert torch.autograd.gradcheck(
        partial(TreeAttend(SEGMENTS, TOKENS), torch.nn.Identity()), (*inputs, 0.4), fast_mode=True
    )


def test_cpu_attention_with_large_scores(kernel: None) -> None:
    """Log-sum-exps of the two rectangles are far apart: neither may overflow nor vanish."""
    inputs = tuple(30 * x for x in qkv())
    got = TreeAttend(SEGMENTS, TOKENS)(torch.nn.Identity(), *inputs, 1.0)
    torch.testing.assert_close(got, dense(*inputs, 1.0), atol=1e-9, rtol=0)


def test_flex_attention_sees_the_same_tokens(monkeypatch) -> None:
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    mask = create_mask(block_mask(SEGMENTS, TOKENS, "cpu").mask_mod, 1, 1, TOKENS, TOKENS, device="cpu")
    assert torch.equal(mask[0, 0], tree_mask(SEGMENTS, TOKENS))
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    inputs = tuple(x.detach() for x in qkv(dtype=torch.float32))
    got = TreeAttend(SEGMENTS, TOKENS)._flex(*inputs, 0.4)
    torch.testing.assert_close(got, dense(*inputs, 0.4), atol=1e-5, rtol=0)
