"""What is loaded is checked against the model's own logits, in the mode that trains; what is not exact falls back with
the reason, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from assent.config import ModelConfig, SamplingConfig
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.errors import ModelError
from assent.models import attention, head
from assent.models.attention import TreeAttend
from assent.models.folders import longest
from assent.models.heads import load_score_model
from assent.models.loading import load_policy
from assent.models.policy import Backbone, Policy
from assent.models.quiet import quieten
from assent.models.verify import Sample, choose_layout, own_outputs
from assent.models.vocabulary import check_vocabulary, unused_ids
from assent.rollout.check import check_sampling
from assent.rollout.torch_engine import TorchEngine

SIZES = {"vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def tiny(kind: str = "llama", **options) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **options}))


def folder(tmp_path: Path, kind: str = "llama", **options) -> str:
    tiny(kind, **options).save_pretrained(tmp_path)
    return str(tmp_path)


def fp32(path: str, **options) -> ModelConfig:
    return ModelConfig(path, precision="fp32", **options)


def batch(flat: bool = False) -> TreeBatch:
    rng = np.random.default_rng(3)
    answers = tuple(Branch(rng.integers(3, 60, size), np.ones(size, bool)) for size in (4, 7))
    return collate([TokenTree(rng.integers(3, 60, 6), answers)], flat=flat)


def settled(model: nn.Module, layout: str = "auto") -> Policy:
    policy = Policy(model.train(), precision="fp32", tree=False)
    sample = Sample.of(policy)
    quieten(policy.plain)
    choose_layout(policy, sample, "m", layout, 64)
    return policy


# ---- the layout


def test_an_inexact_tree_falls_back_to_rows_and_says_by_how_much(monkeypatch, capsys) -> None:
    real = TreeAttend._run
    monkeypatch.setattr(TreeAttend, "_run", lambda self, q, k, v, s: real(self, q, k, v, s * 1.05))
    assert not settled(tiny()).tree
    out = capsys.readouterr().err
    assert out.startswith("warning: m: prompts are not shared, because sharing prompts changes its log-probs by ")
    with pytest.raises(ModelError, match=r"cannot share prompts exactly: sharing .* nats .* Use --model.layout flat"):
        settled(tiny(), "tree")


def test_one_token_too_many_is_seen(monkeypatch) -> None:
    """A later answer that sees the last token of the one before."""
    real = TreeAttend.__init__

    def shifted(self, segments, num_tokens) -> None:
        real(self, segments, num_tokens)
        self.segments = tuple(type(s)(s.start, s.prompt_end + 1, s.branches) for s in segments)

    monkeypatch.setattr(TreeAttend, "__init__", shifted)
    assert not settled(tiny()).tree


def test_code_that_fails_on_trees_falls_back(capsys) -> None:
    model = tiny()
    layer = model.model.layers[1].self_attn
    real = layer.forward
    layer.forward = lambda *args, attend=None, **options: real(*args, **options)
    assert not settled(model).tree
    assert "its layers do not pass on what the attention over shared prompts needs" in capsys.readouterr().err
    layer.forward = lambda *args, attend=None, **options: real(*args, **options)[5]
    with pytest.raises(ModelError, match="its own code fails on a few tokens: IndexError"):
        settled(model)


def test_rows_that_are_inexact_too_are_refused() -> None:
    model = tiny()
    real = model.model.forward

    def shifted(input_ids, **options):
        """Another result where there is more than one row."""
        out = real(input_ids=input_ids, **options)
        out.last_hidden_state = out.last_hidden_state + 0.1 * torch.arange(32) * (len(input_ids) > 1)
        return out

    model.model.forward = shifted
    with pytest.raises(ModelError, match=r"m \(LlamaForCausalLM\) cannot be trained exactly: padded rows change its"):
        settled(model, "flat")


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, "bert", is_decoder=False, num_key_value_heads=None)
    with pytest.raises(ModelError, match="no causal language model: it sees later tokens"):
        load_policy(fp32(path), max_length=32)


def test_reward_models_are_checked_by_their_hidden_states(tokenizer, tmp_path, monkeypatch, capsys) -> None:
    real = TreeAttend._run
    monkeypatch.setattr(TreeAttend, "_run", lambda self, q, k, v, s: real(self, q, k, v, s * 1.05))
    assert not load_score_model(fp32(folder(tmp_path, vocab_size=len(tokenizer))), tokenizer, max_length=32).tree
    assert "sharing prompts changes its hidden states by" in capsys.readouterr().err


def test_the_check_leaves_no_trace(tmp_path: Path) -> None:
    """Modes, attention, random numbers and configuration are as before."""
    model = tiny(attention_dropout=0.25)
    model.model.layers[0].eval()
    before, random = model.config.to_json_string(), torch.random.get_rng_state()
    modes = [module.training for module in model.modules()]
    own_outputs(model, [np.arange(3, 9)], with_logits=True)
    assert [module.training for module in model.modules()] == modes
    policy = settled(model)
    assert policy.tree and attention.attention_of(model) == attention.NAME
    assert model.config.to_json_string() == before
    assert torch.equal(torch.random.get_rng_state(), random)


# ---- chance


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.4}),
        ("gpt_bigcode", {"n_inner": 48, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
        ("seed_oss", {"attention_dropout": 0.3, "residual_dropout": 0.3, "head_dim": 8}),
        ("biogpt", {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "activation_dropout": 0.2}),
        ("phimoe", {"router_jitter_noise": 0.2, "input_jitter_noise": 0.2, "num_local_experts": 4}),
    ],
)
def test_nothing_is_left_to_chance(kind: str, options: dict, tmp_path: Path) -> None:
    """In training mode: the numbers of evaluation mode, and the configuration untouched."""
    path = folder(tmp_path, kind, **options)
    policy = load_policy(fp32(path), max_length=32)
    assert policy.model.training
    rows = batch(flat=not policy.tree)
    assert torch.equal(policy(rows).logprobs, policy(rows).logprobs)
    quiet = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    quiet.set_attn_implementation("eager")
    tree = batch()
    segment = tree.segments[0]
    for start, end in segment.branches:
        row = torch.cat([tree.tokens[segment.start : segment.prompt_end], tree.tokens[start:end]])
        logp = torch.log_softmax(quiet(input_ids=row[None]).logits[0], -1)
        want = logp[:-1].gather(1, row[1:, None])[segment.prompt_end - 1 :, 0]
        got = (
            policy(rows).logprobs[: end - start]
            if start == segment.prompt_end
            else policy(rows).logprobs[start - end :]
        )
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    policy.plain.save_pretrained(tmp_path / "saved")
    saved, config = (json.loads((at / "config.json").read_text()) for at in (tmp_path / "saved", tmp_path))
    assert {name: saved.get(name) for name in options} == {name: config.get(name) for name in options}


def test_rates_that_are_read_in_each_call_are_off() -> None:
    """Through a view of the configuration that shares all else with it."""

    class Noisy(nn.Module):
        def __init__(self, config) -> None:
            super().__init__()
            self.config = config

        def forward(self, x):
            return nn.functional.dropout(x, p=self.config.attention_dropout, training=self.training)

    model = tiny(attention_dropout=0.5)
    model.model.layers[0].post_attention_layernorm = nn.Sequential(
        model.model.layers[0].post_attention_layernorm, Noisy(model.config)
    )
    policy = settled(model)
    view = model.model.layers[0].post_attention_layernorm[1].config
    assert policy.tree and view.attention_dropout == 0.0 and model.config.attention_dropout == 0.5
    assert isinstance(view, LlamaConfig) and view.hidden_size == 32
    attention.use_attention(model, "eager")
    assert view._attn_implementation == "eager"


def test_noise_that_remains_is_refused_by_its_name() -> None:
    class Sampled(nn.Module):
        def forward(self, x):
            return x + 0.1 * torch.randn_like(x) if self.training else x

    model = tiny()
    model.model.norm = nn.Sequential(model.model.norm, Sampled())
    with pytest.raises(
        ModelError, match="in training mode two passes over the same tokens differ: Sampled draws random numbers"
    ):
        settled(model)


# ---- heads


class Odd(LlamaForCausalLM):
    """A head that is no product: what no transform describes."""

    def forward(self, input_ids=None, **options):
        hidden = self.model(input_ids=input_ids, **{k: v for k, v in options.items() if k != "logits_to_keep"})[0]
        out = torch.tanh(hidden @ self.mix) @ self.lm_head.weight.T
        return type("Out", (), {"logits": 3.0 * out + self.shift})()


def odd(vocab: int = 70) -> Odd:
    torch.manual_seed(0)
    model = Odd(LlamaConfig(**{**SIZES, "vocab_size": vocab}))
    model.mix = nn.Parameter(0.5 * torch.randn(32, 32))
    model.shift = nn.Parameter(torch.randn(vocab))
    return model


def dense(model: nn.Module, rows: TreeBatch) -> torch.Tensor:
    """log p of the trained tokens [N, V], each answer alone, with gradients."""
    segment = rows.segments[0]
    out = []
    for start, end in segment.branches:
        row = torch.cat([rows.tokens[segment.start : segment.prompt_end], rows.tokens[start:end]])
        out.append(torch.log_softmax(model(input_ids=row[None]).logits[0], -1)[segment.prompt_end - 1 : -1])
    return torch.cat(out)


def test_an_odd_head_runs_in_chunks_with_its_gradients(monkeypatch) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 3 * 70)
    seen: list[int] = []
    real = head.own_logits
    monkeypatch.setattr(head, "own_logits", lambda m, h, w=None: (seen.append(len(h)), real(m, h, w))[1])
    policy = settled(odd())
    assert policy.tree and policy.transform is None
    rows = batch()
    seen.clear()
    scores = policy(rows, 0.7, entropy=True, collision=True)
    assert max(seen) == 3 and sum(seen) == len(rows.targets)
    own = odd()
    own.set_attn_implementation("eager")
    logp = torch.log_softmax(dense(own, rows) / 0.7, -1)
    want = logp.gather(1, rows.targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    torch.testing.assert_close(scores.logprobs, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.entropy, entropy, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.collision, logp.exp().square().sum(-1).log(), atol=1e-5, rtol=0)
    (scores.logprobs.sum() + 2 * scores.entropy.sum()).backward()
    (want.sum() + 2 * entropy.sum()).backward()
    theirs = dict(own.named_parameters())
    for name, weight in policy.plain.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_an_odd_head_against_any_other(direction: str) -> None:
    rows = batch()
    strange, plain = settled(odd()), settled(tiny(num_hidden_layers=1))
    for one, other in ((strange, plain), (plain, strange), (strange, settled(odd()))):
        got = one(rows, anchor=other.anchor(rows), direction=direction).kl
        got.sum().backward()
        assert any(weight.grad is not None and weight.grad.any() for weight in one.parameters())
        for policy in (one, other):
            attention.use_attention(policy.plain, "eager")
        logp, logq = dense(one.plain, rows), dense(other.plain, rows)
        for policy in (one, other):
            attention.install(policy.plain)
        true, guess = (logq, logp) if direction == "forward" else (logp, logq)
        torch.testing.assert_close(got, (true.exp() * (true - guess)).sum(-1), atol=1e-5, rtol=1e-4)


def test_a_transform_that_is_forgotten_is_seen(monkeypatch) -> None:
    """The check is of log-probs end to end, so it needs no list of transforms."""
    model = tiny("granite", logits_scaling=4.0)
    monkeypatch.setattr("assent.models.policy.measure", lambda _: head.Transform())
    with pytest.raises(ModelError, match="cannot be trained exactly: padded rows change its log-probs by"):
        settled(model)


def test_adapters_on_the_head_take_part(tmp_path: Path) -> None:
    from assent.config import LoraConfig

    lora = LoraConfig(rank=2, targets=("lm_head", "q_proj"))
    policy = load_policy(fp32(folder(tmp_path), lora=lora), max_length=32)
    before = policy(batch()).logprobs
    before.sum().backward()
    layer = policy.model.get_output_embeddings()
    assert layer.lora_B["default"].weight.grad.any()
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    assert (policy(batch()).logprobs - before).abs().max() > 1e-2


# ---- latent attention


def test_narrow_values_in_the_tree(tmp_path: Path) -> None:
    """Values narrower than keys: the tree equals rows, gradients too."""
    options = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 12,
               "qk_rope_head_dim": 4, "v_head_dim": 8, "num_local_experts": 4, "first_k_dense_replace": 2}  # fmt: skip
    path = folder(tmp_path, "deepseek_v3", **options)
    tree, rows = (load_policy(fp32(path, layout=layout), max_length=32) for layout in ("tree", "flat"))
    assert tree.tree and not rows.tree
    for policy in (tree, rows):
        policy(batch(flat=not policy.tree)).logprobs.sum().backward()
    for (name, one), (_, other) in zip(tree.named_parameters(), rows.named_parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3, msg=name)


# ---- the engine


def test_an_engine_that_would_be_wrong_is_refused() -> None:
    check_sampling(tiny().eval(), 64)
    model = tiny()
    for layer in model.model.layers:  # two layers that write into one place of the cache
        layer.self_attn.layer_idx = 0
    with pytest.raises(ModelError, match=r"cannot be sampled by the torch engine: the log-probs of its first tokens"):
        check_sampling(model, 64)
    del model.model.layers[0].self_attn.layer_idx
    with pytest.raises(ModelError, match="cannot be sampled by the torch engine: its code fails: AttributeError"):
        check_sampling(model, 64)
    with pytest.raises(ModelError, match="torch engine: its attention window of 16 tokens is shorter"):
        check_sampling(tiny("mistral", sliding_window=16), 64)
    with pytest.raises(ModelError, match="torch engine: its layers do not pass on what the attention"):
        check_sampling(tiny("nemotron"), 64)


def twice_in_one_place(folder: Path, tokenizer) -> str:
    """A model that the engine samples wrongly, though its prompts are shared exactly."""
    tiny("diffllama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rows(path: Path, row: dict) -> str:
    path.write_text((json.dumps(row) + "\n") * 4)
    return str(path)


def test_online_training_does_not_begin_with_a_wrong_engine(tokenizer, tmp_path: Path) -> None:
    from assent.algorithms.online.train import train_online
    from assent.config import DataConfig, RewardsConfig, online_config

    config = online_config(
        "grpo",
        model=fp32(twice_in_one_place(tmp_path / "m", tokenizer)),
        data=DataConfig(rows(tmp_path / "p.jsonl", {"prompt": "What is red?"}), max_length=64),
        out=str(tmp_path / "run"),
        rewards=RewardsConfig(rules=("regex=red",)),
        sampling=SamplingConfig(max_new_tokens=8),
    )
    with pytest.raises(ModelError, match="DiffLlamaForCausalLM cannot be sampled by the torch engine: the log-probs"):
        train_online(config)
    assert not (tmp_path / "run" / "model").exists()


def test_generate_refuses_a_wrong_engine(tokenizer, tmp_path: Path) -> None:
    from assent.config import GenerateConfig
    from assent.rollout.chat import generate

    path = twice_in_one_place(tmp_path / "m", tokenizer)
    prompts = rows(tmp_path / "p.jsonl", {"prompt": "What is red?"})
    with pytest.raises(ModelError, match="cannot be sampled by the torch engine"):
        generate(GenerateConfig(model=path, prompts=prompts, out=str(tmp_path / "a.jsonl"), precision="fp32"))
    assert not (tmp_path / "a.jsonl").exists()


def test_a_probe_with_a_wrong_engine_finds_nothing_and_says_why(tokenizer, tmp_path: Path, caplog) -> None:
    from assent.algorithms.probe import Probe
    from assent.config import ProbeConfig
    from assent.data.chat import Chat
    from assent.data.records import Example, Message

    path = twice_in_one_place(tmp_path, tokenizer)
    config = SimpleNamespace(data=SimpleNamespace(max_length=64))
    session = SimpleNamespace(
        config=config, chat=Chat(tokenizer), tokenizer=tokenizer, world=SimpleNamespace(is_main=True)
    )
    prompts = [Example(prompt=(Message("user", "What is red?"),))]
    policy = load_policy(fp32(path), max_length=64)
    assert policy.tree
    caplog.clear()
    probe = Probe(session, policy, None, prompts, ProbeConfig(max_new_tokens=8))
    assert probe().metrics == {}
    assert caplog.messages[0].startswith(
        "No answers are sampled at evaluations: DiffLlamaForCausalLM cannot be sampled"
    )


# ---- vocabularies


def test_ids_without_a_token_are_never_drawn(tokenizer) -> None:
    """A padded vocabulary: their logits are the largest, the log-probs stay those of the whole distribution."""
    model = tiny(vocab_size=len(tokenizer) + 24)
    unused = unused_ids(model, tokenizer)
    assert unused == list(range(len(tokenizer), len(tokenizer) + 24))
    with torch.no_grad():
        model.lm_head.weight[unused] = 0.0
        model.lm_head.weight[: len(tokenizer)] *= 0.1
    prompt = np.arange(3, 9)
    for sampling in (SamplingConfig(max_new_tokens=40), SamplingConfig(max_new_tokens=5, temperature=0.0)):
        free, kept = (TorchEngine(model, (), unused=ids).generate([prompt], 4, sampling, 0)[0] for ids in ((), unused))
        if sampling.temperature:
            assert max(one.ids.max() for one in free) >= len(tokenizer)
        assert max(one.ids.max() for one in kept) < len(tokenizer)
        for one in kept:
            row = torch.from_numpy(np.concatenate([prompt, one.ids]))[None]
            logp = torch.log_softmax(model.eval()(input_ids=row).logits[0, len(prompt) - 1 : -1], -1)
            want = logp.gather(1, torch.from_numpy(one.ids)[:, None])[:, 0].detach().numpy()
            assert one.logprobs == pytest.approx(want, abs=1e-4)


def test_a_tokenizer_with_more_tokens_than_the_embedding(tokenizer, tiny_model_dir) -> None:
    from transformers import AutoTokenizer

    model = tiny(vocab_size=len(tokenizer))
    check_vocabulary(model, tokenizer, "m")
    grown = AutoTokenizer.from_pretrained(tiny_model_dir)
    grown.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_vocabulary(model, grown, "m")  # which nothing writes
    grown.chat_template = grown.chat_template.replace("<|im_start|>", "<image>")
    size = len(tokenizer)
    said = rf"m: its tokenizer has ids up to {size}, its embedding {size} rows, so 1 tokens, first '<image>' .*resize_"
    with pytest.raises(ModelError, match=said):
        check_vocabulary(model, grown, "m")
    words = AutoTokenizer.from_pretrained(tiny_model_dir)
    words.add_tokens(["wonderful"])
    with pytest.raises(ModelError, match="first 'wonderful'"):
        check_vocabulary(model, words, "m")


# ---- folders


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4"])
def test_stored_quantised_weights_are_refused_before_they_are_read(method: str, tmp_path: Path, tokenizer) -> None:
    path = folder(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": method}}))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"weights are stored quantised \({method}\)\. Give the folder with whole"):
        load_policy(fp32(path), max_length=32)
    with pytest.raises(ModelError, match="stored quantised"):
        load_score_model(fp32(path), tokenizer, max_length=32)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("t5", r"is an encoder-decoder model \(t5\)"),
        ("bart", r"is an encoder-decoder model \(bart\)"),
        ("qwen2_5_vl", r"is a model of images or sound and text \(qwen2_5_vl\)"),
        ("llava", r"is a model of images or sound and text \(llava\)"),
        ("mistral3", r"is a model of images or sound and text \(mistral3\)"),
        ("vit", r"\(vit\) is no model that transformers can load as a causal language model"),
    ],
)
def test_other_kinds_of_models_are_named(kind: str, words: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=words):
        load_policy(fp32(str(tmp_path)), max_length=32)


def test_a_batch_that_straddles_longropes_window_cannot_be(tmp_path: Path) -> None:
    factors = {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 16, "rope_theta": 1e4, **factors}
    path = folder(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=16)
    with pytest.raises(ModelError, match=r"more than 16 tokens.* Got --data.max_length 32; it can be 16 at most"):
        load_policy(fp32(path), max_length=32)
    policy = load_policy(fp32(path), max_length=16)
    assert policy.tree and longest(policy.plain.config) == 16
    with pytest.raises(ModelError, match="longest sequence of a batch beyond 16 tokens"):
        TorchEngine(policy.model, ()).generate([np.arange(3, 9)], 1, SamplingConfig(max_new_tokens=11), 0)


VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
}


def test_of_a_composite_model_the_language_model_is_trained(tmp_path: Path) -> None:
    """Blocks are the decoder's, towers are frozen and saved."""
    text = {**SIZES, "head_dim": 8, "vocab_size": 300}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config={**VISION, "patch_size": 14},
                                  image_token_index=299, boi_token_index=298, eoi_token_index=297)  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy = load_policy(fp32(str(tmp_path)), max_length=32)
    assert policy.tree and len(policy.blocks) == 2
    assert all(
        "language_model" in name or "lm_head" in name for name, p in policy.named_parameters() if p.requires_grad
    )
    assert {type(block).__name__ for block in policy.blocks} == {"Gemma3DecoderLayer"}
    policy(batch()).logprobs.sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    policy.plain.save_pretrained(tmp_path / "saved")
    assert any(
        "vision_tower" in name for name in load_policy(fp32(str(tmp_path / "saved")), max_length=32).state_dict()
    )


def test_what_is_left_out_of_a_composite_model_is_said(tmp_path: Path, capsys) -> None:
    config = AutoConfig.for_model(
        "qwen3_5", text_config={**SIZES, "head_dim": 16, "layer_types": ["full_attention"] * 2}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    load_policy(fp32(str(tmp_path)), max_length=32)
    assert "composite model (qwen3_5): its language model alone is trained and saved (qwen3_5_text)" in (
        capsys.readouterr().err
    )


def test_a_backbone_finds_the_decoder_of_any_class(tmp_path: Path) -> None:
    """Also where the base model is the model itself."""
    policy = load_policy(fp32(folder(tmp_path, "llama4_text", head_dim=8, num_local_experts=2)), max_length=32)
    assert isinstance(policy, Backbone) and len(policy.blocks) == 2
    assert policy(batch(flat=True)).logprobs.isfinite().all()
