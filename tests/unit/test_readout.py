"""The last layer computed only for the tokens that are read: the same states and gradients, and less work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from assent.data.packing import idle
from assent.data.tree import Branch, TokenTree, collate
from assent.models.attention import install
from assent.models.policy import ScoreModel
from assent.models.readout import ReadAttend
from assent.models.verify import Sample, choose_layout, choose_short

SIZES = {"vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1}  # fmt: skip
KINDS: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "phi3": {},  # queries, keys and values are one product
    "gpt_neox": {"use_parallel_residual": True},  # the MLP beside the attention
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def trees() -> list[TokenTree]:
    draw = np.random.default_rng(3)

    def tree(prompt: int, *answers: int) -> TokenTree:
        branches = tuple(Branch(draw.integers(3, 60, size), np.ones(size, bool)) for size in answers)
        return TokenTree(draw.integers(3, 60, prompt), branches)

    return [tree(9, 12, 4), tree(5, 7), tree(8, 3, 11, 6)]


def scorer(kind: str = "llama", **options: object) -> ScoreModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **options})
    model = AutoModelForSequenceClassification.from_config(config)
    made = ScoreModel(model.train(), precision="fp32", tree=False)
    sample = Sample.of(made)
    choose_layout(made, sample, "m", "tree", 64)
    choose_short(made, sample)
    return made


def rows_of(layer: nn.Module) -> list[int]:
    """How many tokens the linear layers behind its attention see, call by call."""
    seen: list[int] = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("down_proj", "dense_4h_to_h", "o_proj", "attention.dense")):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel() // inputs[0].shape[-1]))
    return seen


def with_gradients(model: ScoreModel, read: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    states = read()
    (states * torch.linspace(-1, 2, states.numel(), dtype=states.dtype).view_as(states)).sum().backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return states.detach(), found


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_the_whole_layer(kind: str) -> None:
    model, batch = scorer(kind), collate(trees())
    assert model.short
    for index in (batch.last, torch.tensor([41, 8, 20, 41, 0, 64])):  # in any order, also twice, also of prompts
        whole, wanted = with_gradients(model, lambda index=index: model.hidden(batch).index_select(0, index))
        few, found = with_gradients(model, lambda index=index: model.hidden_at(batch, index))
        assert few.shape == (len(index), 32)
        torch.testing.assert_close(few, whole, rtol=0, atol=1e-5)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max() + 1))


def test_rewards_in_fp32_are_the_same_to_rounding() -> None:
    model, batch = scorer(), collate(trees())
    with torch.no_grad():
        found = model(batch, batch.last)
        model.short = False
        whole = model(batch, batch.last)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_the_work_behind_the_attention_is_that_of_the_tokens_that_are_read(kind: str) -> None:
    model, batch = scorer(kind), collate(trees())
    first, last = (rows_of(block) for block in (model.blocks[0], model.blocks[-1]))
    model(batch, batch.last)
    assert set(first) == {batch.num_tokens} and set(last) == {batch.num_responses} and len(last) == len(first)
    last.clear()
    model(batch, batch.label)  # most of all tokens
    assert set(last) == {batch.num_tokens}


def test_queries_see_the_prompt_and_their_own_answer() -> None:
    batch, draw = collate(trees()), np.random.default_rng(0)
    index = torch.tensor([64, 3, 20, 24, 25, 9, 41, 45, 3])
    query, key, value = (draw.normal(size=(1, heads, size, 6)) for heads, size in ((4, 9), (2, 65), (2, 65)))
    found = ReadAttend(batch, index).read(*map(torch.from_numpy, (query, key, value)), 0.3)
    assert found.shape == (1, 9, 4, 6)
    for row, token in enumerate(index.tolist()):
        tree = next(segment for segment in batch.segments if segment.start <= token < segment.end)
        own = next((range(start, token + 1) for start, end in tree.branches if start <= token < end), [])
        seen = [*range(tree.start, min(token + 1, tree.prompt_end)), *own]
        for head in range(4):
            weights = np.exp(0.3 * key[0, head // 2, seen] @ query[0, head, row])
            wanted = weights @ value[0, head // 2, seen] / weights.sum()
            np.testing.assert_allclose(found[0, row, head].numpy(), wanted, atol=1e-12)


def test_with_activation_checkpointing_the_gradients_are_the_same() -> None:
    model, batch = scorer(), collate(trees())
    plain, wanted = with_gradients(model, lambda: model.hidden_at(batch, batch.last))
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    states, found = with_gradients(model, lambda: model.hidden_at(batch, batch.last))
    assert torch.equal(states, plain)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * float(gradient.abs().max() + 1))


def test_a_layer_that_mixes_tokens_behind_its_attention_is_computed_whole() -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("llama", **SIZES))
    mlp = model.model.layers[-1].mlp
    mlp.register_forward_hook(lambda _, __, out: out + 0.1 * out.mean(1, keepdim=True))
    made = ScoreModel(model, precision="fp32", tree=True)
    sample = Sample.of(ScoreModel(scorer().model, precision="fp32", tree=True))
    install(model)
    choose_short(made, sample)
    assert not made.short and "forward" not in vars(model.model.layers[-1])
    batch = collate(trees())
    assert torch.equal(made.hidden_at(batch, batch.last), made.hidden(batch)[batch.last])


def test_a_batch_without_responses_has_gradients_for_every_weight() -> None:
    # Sharded, all ranks must reduce the same weights.
    model, batch = scorer(), idle(trees()[0])
    states = model.hidden_at(batch, batch.last)
    assert states.shape == (0, 32)
    states.sum().backward()
    assert all(weight.grad is not None for weight in model.model.model.layers.parameters())


def test_padded_rows_are_computed_whole() -> None:
    model = scorer()
    made = ScoreModel(model.model, precision="fp32", tree=False)
    choose_short(made, Sample.of(made))
    assert not made.short
