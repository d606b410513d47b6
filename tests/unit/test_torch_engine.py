from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assent.config import SamplingConfig
from assent.errors import ModelError, NonFiniteError
from assent.rollout.torch_engine import TorchEngine

VOCAB = 50


def llama(seed: int = 0, **options) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        **options,
    )
    return LlamaForCausalLM(config)


def prompts(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length) for length in lengths]


def test_greedy_takes_the_argmax_of_the_models_own_forward() -> None:
    model = llama()
    out = TorchEngine(model, ()).generate(prompts(5, 9), 1, SamplingConfig(max_new_tokens=6, temperature=0.0), 0)
    model.set_attn_implementation("eager")
    for prompt, (completion,) in zip(prompts(5, 9), out, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, completion.ids]))[None]
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == completion.ids.tolist()


def test_eos_ends_a_response_and_belongs_to_it() -> None:
    sampling = SamplingConfig(max_new_tokens=20, max_batch=3)
    free = TorchEngine(llama(), ()).generate(prompts(4, 7, 2), 4, sampling, seed=1)
    stopped = TorchEngine(llama(), (3, 11, 20)).generate(prompts(4, 7, 2), 4, sampling, seed=1)
    ended = 0
    for whole, cut in zip(sum(free, []), sum(stopped, []), strict=True):
        hits = np.flatnonzero(np.isin(whole.ids, (3, 11, 20)))
        assert not whole.finished and len(whole) == 20
        size = hits[0] + 1 if len(hits) else 20
        assert cut.ids.tolist() == whole.ids[:size].tolist()
        assert cut.logprobs == pytest.approx(whole.logprobs[:size], abs=1e-4)
        assert cut.finished == (len(hits) > 0)
        ended += cut.finished
    assert ended > 0


def test_eos_at_the_first_token() -> None:
    engine = TorchEngine(llama(), range(VOCAB))
    out = engine.generate(prompts(3, 8), 3, SamplingConfig(max_new_tokens=5, max_batch=2), seed=0)
    assert [len(c) for group in out for c in group] == [1] * 6
    assert all(c.finished for group in out for c in group)


def test_a_response_of_one_token() -> None:
    out = TorchEngine(llama(), ()).generate(prompts(3, 8), 2, SamplingConfig(max_new_tokens=1), seed=0)
    assert [len(c) for group in out for c in group] == [1] * 4
    assert not any(c.finished for group in out for c in group)


@pytest.mark.parametrize("max_batch", [1, 3, 8, 64])
def test_batching_and_order_do_not_change_what_is_sampled(max_batch: int) -> None:
    sampling = SamplingConfig(max_new_tokens=30, max_batch=max_batch, top_p=0.95, temperature=0.9)
    lengths = (3, 60, 11, 1, 25)
    out = TorchEngine(llama(), (0, 1)).generate(prompts(*lengths), 3, sampling, seed=7)
    whole = SamplingConfig(max_new_tokens=30, max_batch=15, top_p=0.95, temperature=0.9)
    want = TorchEngine(llama(), (0, 1)).generate(prompts(*lengths), 3, whole, seed=7)
    assert [[c.ids.tolist() for c in group] for group in out] == [[c.ids.tolist() for c in group] for group in want]
    for got, expected in zip(sum(out, []), sum(want, []), strict=True):
        assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert len({tuple(c.ids) for c in out[0]}) == 3, "responses of one prompt must differ"


def test_the_cache_is_shifted_and_grown_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(max_new_tokens=50, max_batch=2)
    want = TorchEngine(llama(), (0, 1, 2)).generate(prompts(9, 4, 6), 4, sampling, seed=3)
    monkeypatch.setattr("assent.rollout.torch_engine._FIRST_COLUMNS", 2)
    monkeypatch.setattr("assent.rollout.cache._EXTRA", 1)
    out = TorchEngine(llama(), (0, 1, 2)).generate(prompts(9, 4, 6), 4, sampling, seed=3)
    assert [c.ids.tolist() for c in sum(out, [])] == [c.ids.tolist() for c in sum(want, [])]


def test_free_slots_in_a_step_disturb_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # as many positions as the longest sequence can have: a free slot must not run past them
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=52))
    sampling = SamplingConfig(max_new_tokens=12, max_batch=6)
    lengths = (40, 40, 2, 40, 39, 40, 40, 38)
    want = TorchEngine(model, (0, 1, 2, 3)).generate(prompts(*lengths), 3, sampling, seed=3)
    monkeypatch.setattr("assent.rollout.torch_engine._FULL", 0.0)
    out = TorchEngine(model, (0, 1, 2, 3)).generate(prompts(*lengths), 3, sampling, seed=3)
    assert [c.ids.tolist() for c in sum(out, [])] == [c.ids.tolist() for c in sum(want, [])]
    assert len({len(c) for c in sum(out, [])}) > 3


def test_prompts_that_do_not_fit_one_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(max_new_tokens=8, max_batch=4)
    want = TorchEngine(llama(), ()).generate(prompts(9, 4, 6, 2), 2, sampling, seed=3)
    monkeypatch.setattr("assent.rollout.torch_engine._PREFILL_TOKENS", 7)
    out = TorchEngine(llama(), ()).generate(prompts(9, 4, 6, 2), 2, sampling, seed=3)
    assert [c.ids.tolist() for c in sum(out, [])] == [c.ids.tolist() for c in sum(want, [])]


def test_a_prompt_is_computed_once_for_its_group() -> None:
    model, widths = llama(), []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: widths.append(tuple(args[0].shape)))
    TorchEngine(model, ()).generate(prompts(9, 4), 8, SamplingConfig(max_new_tokens=3), seed=0)
    assert widths == [(1, 13), (16, 1), (16, 1)]


def test_weights_changed_in_place_are_used_and_the_model_is_left_as_it_was() -> None:
    model = llama().train()
    engine = TorchEngine(model, ())
    sampling = SamplingConfig(max_new_tokens=12)
    before = engine.generate(prompts(6), 2, sampling, seed=0)
    assert model.training and all("forward" not in vars(module) for module in model.modules())
    assert all(not parameter.is_inference() for parameter in model.parameters())
    engine.update_weights(llama(seed=1).state_dict())
    after = engine.generate(prompts(6), 2, sampling, seed=0)
    want = TorchEngine(llama(seed=1), ()).generate(prompts(6), 2, sampling, seed=0)
    assert [c.ids.tolist() for c in after[0]] == [c.ids.tolist() for c in want[0]]
    assert [c.ids.tolist() for c in after[0]] != [c.ids.tolist() for c in before[0]]


def test_adapters_take_part() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(llama(), config)
    sampling = SamplingConfig(max_new_tokens=10)
    got = TorchEngine(model, ()).generate(prompts(6, 3), 2, sampling, seed=0)
    want = TorchEngine(model.merge_and_unload(), ()).generate(prompts(6, 3), 2, sampling, seed=0)
    plain = TorchEngine(llama(), ()).generate(prompts(6, 3), 2, sampling, seed=0)
    for mine, merged in zip(sum(got, []), sum(want, []), strict=True):
        assert mine.ids.tolist() == merged.ids.tolist()
        assert mine.logprobs == pytest.approx(merged.logprobs, abs=1e-4)
    assert [c.ids.tolist() for c in got[0]] != [c.ids.tolist() for c in plain[0]]


def test_a_share_of_the_prompts_gives_a_share_of_the_responses() -> None:
    sampling = SamplingConfig(max_new_tokens=10)
    engine = TorchEngine(llama(), (0, 1))
    whole = engine.generate(prompts(6, 3, 9), 2, sampling, seed=4)
    share = engine.generate(prompts(6, 3, 9)[1:], 2, sampling, seed=4, first=1)
    assert [c.ids.tolist() for c in sum(share, [])] == [c.ids.tolist() for c in sum(whole[1:], [])]


def test_double_precision_models_run_in_double_precision() -> None:
    sampling = SamplingConfig(max_new_tokens=10)
    got = TorchEngine(llama().double(), ()).generate(prompts(6, 3), 2, sampling, seed=0)
    want = TorchEngine(llama(), ()).generate(prompts(6, 3), 2, sampling, seed=0)
    assert [c.ids.tolist() for c in sum(got, [])] == [c.ids.tolist() for c in sum(want, [])]


def test_dropout_is_off_while_sampling() -> None:
    sampling = SamplingConfig(max_new_tokens=10)
    engine = TorchEngine(llama(attention_dropout=0.5).train(), ())
    first, second = (engine.generate(prompts(6), 1, sampling, seed=0)[0][0] for _ in range(2))
    assert first.logprobs.tolist() == second.logprobs.tolist()


def test_progress_is_reported_to_the_last_response() -> None:
    seen: list[tuple[int, int]] = []
    engine = TorchEngine(llama(), (), on_progress=lambda done, total: seen.append((done, total)))
    engine.generate(prompts(2, 3), 2, SamplingConfig(max_new_tokens=3, max_batch=3), seed=0)
    assert [total for _, total in seen] == [4] * 4 and [done for done, _ in seen] == [1, 2, 3, 4]


def test_nothing_asked_nothing_given() -> None:
    assert TorchEngine(llama(), ()).generate([], 2, SamplingConfig(), seed=0) == []


def test_a_sequence_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"256 positions.*at most 246"):
        TorchEngine(llama(), ()).generate(prompts(3, 10), 1, SamplingConfig(max_new_tokens=247), seed=0)


def test_a_window_shorter_than_the_sequence_is_refused() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=16,
        )
    )
    with pytest.raises(ModelError, match="window of 16"):
        TorchEngine(model, ()).generate(prompts(3), 1, SamplingConfig(max_new_tokens=20), seed=0)


def test_a_diverged_model_stops_the_rollout() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        TorchEngine(model, ()).generate(prompts(3), 1, SamplingConfig(max_new_tokens=4), seed=0)
    assert all("forward" not in vars(module) for module in model.modules())
