"""TRL's GRPO and RLOO trainers as oracles: on the same model, tokens and rewards, their advantages, their loss and its
gradient for every weight equal ours. Answers have unequal lengths, and one of them could not be scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from assent.losses import (
    LOSSES,
    cpi,
    group_advantages,
    kl_estimate,
    leave_one_out,
    mismatch_weights,
    ppo_clip,
    ratio_diagnostics,
    token_weights,
)

pytest.importorskip("trl", reason="TRL is the oracle of these tests (extra: oracle)")

import datasets
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

WORDS = [f"w{i}" for i in range(30)]
PROMPTS = [[4, 5, 6], [7]]
ANSWERS = [[8, 9, 10, 11, 1], [12, 1], [13, 14, 15], [16, 17, 18, 1], [19, 1], [20, 21, 22, 23, 24, 1]]
REWARDS = [1.0, -0.5, 0.25, None, 2.0, 0.5]
GENERATIONS = 3
LONGEST = 7
OLD, ENGINE = 33, 3
"""Seeds of the policies that sampled: with OLD every bound below is met."""

LENGTHS = torch.tensor([len(answer) for answer in ANSWERS])
RESPONSE = torch.repeat_interleave(LENGTHS)
PROMPT = torch.tensor([0, 0, 0, 1, 1, 1])
SCORES = torch.tensor([math.nan if reward is None else reward for reward in REWARDS])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(WORDS) + 3, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**sizes, **ids, initializer_range=0.3))


def near(seed: int) -> LlamaForCausalLM:
    """The policy of seed 1 a few steps away: ratios inside and outside every clip."""
    moved, noise = model(1), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += 0.06 * torch.randn(weight.shape, generator=noise)
    return moved


def logprobs(network: LlamaForCausalLM) -> Tensor:
    """Of every answer token, [N]: one forward pass for each answer, without padding."""
    parts = []
    for answer, prompt in zip(ANSWERS, PROMPT.tolist(), strict=True):
        ids = torch.tensor([PROMPTS[prompt] + answer])
        every = network(ids).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
        parts.append(every.gather(1, torch.tensor(answer)[:, None])[:, 0])
    return torch.cat(parts)


def padded(values: Tensor) -> Tensor:
    """[N] as rows of answers, the way TRL holds them."""
    return torch.nn.utils.rnn.pad_sequence(list(values.split(LENGTHS.tolist())), batch_first=True)


def trainer(kind: str, tokenizer: PreTrainedTokenizerFast, folder: Path, **options: Any) -> GRPOTrainer | RLOOTrainer:
    """A TRL trainer of the policy whose "generation" gives ANSWERS and whose reward function gives REWARDS."""
    made, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[kind]
    arguments = config(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=6,
        per_device_eval_batch_size=6,
        num_generations=GENERATIONS,
        max_completion_length=LONGEST,
        **options,
    )
    result = made(
        model=model(1),
        reward_funcs=lambda completions, **_: REWARDS,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"prompt": "w1 w2 w3"}, {"prompt": "w4"}]),
        processing_class=tokenizer,
    )
    prompts, texts = [PROMPTS[i] for i in PROMPT.tolist()], tokenizer.batch_decode(ANSWERS)
    sampled = [part.tolist() for part in (logprobs(near(ENGINE)).detach()).split(LENGTHS.tolist())]
    outcome = (prompts, ANSWERS, texts) if kind == "rloo" else (prompts, ANSWERS, None, texts, sampled, {}, None, [])
    result._generate = lambda _: outcome
    result.model.eval()  # no division by the number of micro-batches
    return result


def rollout(made: GRPOTrainer | RLOOTrainer) -> dict[str, Any]:
    rows = [{"prompt": " ".join(f"w{i - 3}" for i in PROMPTS[i])} for i in PROMPT.tolist()]
    return made._generate_and_score_completions(rows)


def assert_equal_to_trl(loss: Tensor, ours: LlamaForCausalLM, made: GRPOTrainer | RLOOTrainer, batch: dict) -> None:
    expected = made._compute_loss(made.model, batch)
    torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-6, rtol=1e-6)
    expected.backward()
    loss.backward()
    theirs = {name: weight.grad for name, weight in made.model.named_parameters()}
    assert sum(float(gradient.norm()) for gradient in theirs.values()) > 0.1
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name], atol=2e-6, rtol=1e-4, msg=lambda m, n=name: n + m)


# What TRL is told, our loss and what it is told, and how tokens are weighted.
GRPO: dict[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    "grpo": ({}, "ppo_clip", {}, "response"),
    "bnpo": ({}, "ppo_clip", {}, "token"),
    "dapo": ({"epsilon_high": 0.28}, "ppo_clip", {"clip_high": 0.28}, "token"),
    "dr_grpo": ({}, "ppo_clip", {}, "fixed"),
    "grpo two-sided": ({"delta": 1.5}, "ppo_clip", {"dual_clip": 1.5}, "response"),
    "grpo by sequence": (
        {"importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
        "gspo",
        {"clip": 0.03, "clip_high": 0.04},
        "response",
    ),
    # TRL is told the bound itself, ours how far above 1 it lies
    "cispo": ({"epsilon_high": 1.3}, "cispo", {"clip_high": 0.3}, "token"),
}


def weights(reduction: str) -> Tensor:
    return token_weights(
        LENGTHS, RESPONSE, reduction=reduction, num_tokens=len(RESPONSE), num_responses=6, max_length=LONGEST
    )


@pytest.mark.parametrize("kind", GRPO)
def test_grpo(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str):
    told, name, options, reduction = GRPO[kind]
    scale = "none" if kind == "dr_grpo" else "group"
    made = trainer("grpo", tokenizer, tmp_path, loss_type=kind.split()[0], scale_rewards=scale, beta=0.0, **told)
    policy, old = model(1), logprobs(near(OLD)).detach()
    batch = {**rollout(made), "old_per_token_logps": padded(old)}
    options = options if name == "cispo" else {"clip": 0.2, **options}
    advantages = group_advantages(SCORES, PROMPT, scale=scale)[RESPONSE]
    inputs = [logprobs(policy), old, advantages, *([RESPONSE] if name == "gspo" else [])]
    losses = LOSSES[name](*inputs, **options)
    # every bound of the row is met
    for option, far in {"clip": 100.0, "clip_high": 100.0, "dual_clip": 100.0}.items():
        if option in options:
            assert (LOSSES[name](*inputs, **{**options, option: far}) - losses).abs().max() > 0.01, option
    assert_equal_to_trl((weights(reduction) * losses).sum(), policy, made, batch)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, scale: str):
    made = trainer("grpo", tokenizer, tmp_path, scale_rewards=scale, beta=0.0)
    expected = rollout(made)["advantages"]
    assert expected.abs().max() > 0.5 and expected[3] == 0
    torch.testing.assert_close(group_advantages(SCORES, PROMPT, scale=scale), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("corrected", [False, True])
def test_grpo_with_kl_in_the_loss(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, corrected: bool):
    made = trainer("grpo", tokenizer, tmp_path, loss_type="grpo", use_bias_correction_kl=corrected, beta=0.0)
    policy, old, reference = model(1), *(logprobs(near(seed)).detach() for seed in (OLD, 4))
    batch = {**rollout(made), "old_per_token_logps": padded(old), "ref_per_token_logps": padded(reference)}
    made.beta = 0.7
    now, advantages = logprobs(policy), group_advantages(SCORES, PROMPT, scale="group")[RESPONSE]
    kl = kl_estimate(now, reference, estimator="k3")
    # TRL's correction weighs each estimate with the ratio, and differentiates both
    losses = ppo_clip(now, old, advantages, clip=0.2) + 0.7 * (-cpi(now, old, kl) if corrected else kl)
    assert_equal_to_trl((weights("response") * losses).sum(), policy, made, batch)


def test_grpo_with_an_engine_that_samples_otherwise(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    modes = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.2}
    made = trainer("grpo", tokenizer, tmp_path, loss_type="dapo", beta=0.0, **modes)
    made.use_vllm = True
    policy, batch = model(1), rollout(made)
    old = logprobs(policy).detach()
    factors = mismatch_weights(old, logprobs(near(ENGINE)).detach(), limit=1.2)
    assert (factors == 1.2).any() and (factors < 0.9).any()
    advantages = group_advantages(SCORES, PROMPT, scale="group")[RESPONSE]
    losses = factors * ppo_clip(logprobs(policy), old, advantages, clip=0.2)
    assert_equal_to_trl((weights("token") * losses).sum(), policy, made, batch)


def test_rloo(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    """RLOO clips one ratio for each whole answer: the sum of its tokens' log-probs."""
    made = trainer("rloo", tokenizer, tmp_path, beta=0.0)
    advantages, batch = leave_one_out(SCORES, PROMPT), rollout(made)
    assert batch["advantages"].abs().max() > 0.5 and batch["advantages"][3] == 0
    torch.testing.assert_close(advantages, batch["advantages"], atol=1e-6, rtol=1e-6)
    policy = model(1)
    now, old = (padded(logprobs(network)).sum(1) for network in (policy, near(OLD)))
    losses = ppo_clip(now, old.detach(), advantages, clip=0.2)
    assert 0 < ratio_diagnostics(now, old, advantages, clip=0.2).clipped.sum() < 5
    assert_equal_to_trl(losses.mean(), policy, made, {**batch, "old_logps": old.detach()})
