"""TRL's trainers as an oracle: on the same model and rows, their loss and its gradient for every weight equal ours,
computed from a plain padded forward pass. Rows have unequal lengths, so padding, EOS and reduction all count."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from assent.losses import bradley_terry, cross_entropy, dpo

pytest.importorskip("trl", reason="TRL is the oracle of these tests (extra: oracle)")

import datasets
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

WORDS = [f"w{i}" for i in range(30)]
ROWS = [
    {"prompt": "w1 w2 w3", "chosen": " w4 w5 w6 w7", "rejected": " w8"},
    {"prompt": "w9", "chosen": " w10 w11", "rejected": " w12 w13 w14 w15 w16"},
    {"prompt": "w17 w18 w19 w20 w21", "chosen": " w22", "rejected": " w23 w24"},
]
MARGINS = [0.5, 0.0, 2.0]


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


def model(kind: type[PreTrainedModel], seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(WORDS) + 3, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    # wide weights: at the usual 0.02 every policy is nearly uniform and the losses say little
    return kind(LlamaConfig(**sizes, **ids, num_labels=1, initializer_range=0.5))


def arguments(folder: Path) -> dict[str, Any]:
    return {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "max_length": 64}


def trl_loss(trainer) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of TRL over all rows as one batch, and its gradients."""
    trainer.model.eval()
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_equal_to_trl(loss: Tensor, ours: PreTrainedModel, trainer) -> None:
    expected, gradients = trl_loss(trainer)
    torch.testing.assert_close(loss.detach(), expected, atol=1e-6, rtol=1e-6)
    loss.backward()
    parameters = dict(ours.named_parameters())
    assert gradients.keys() == {name for name, p in parameters.items() if p.grad is not None}
    for name, gradient in gradients.items():
        torch.testing.assert_close(parameters[name].grad, gradient, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: n + m)
    assert sum(float(gradient.norm()) for gradient in gradients.values()) > 0.1


def encode(tokenizer: PreTrainedTokenizerFast, answer: str) -> tuple[list[list[int]], list[int]]:
    """Prompt, answer and EOS of every row, and how many of those ids are prompt."""
    rows = [tokenizer(row["prompt"] + row[answer])["input_ids"] + [tokenizer.eos_token_id] for row in ROWS]
    return rows, [len(tokenizer(row["prompt"])["input_ids"]) for row in ROWS]


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def answer_logprobs(policy: PreTrainedModel, rows: list[list[int]], prompt_lengths: list[int]) -> list[Tensor]:
    logprobs = policy(**padded(rows)).logits.log_softmax(-1)
    out = []
    for i, (row, prompt) in enumerate(zip(rows, prompt_lengths, strict=True)):
        positions = torch.arange(prompt, len(row))
        out.append(logprobs[i, positions - 1, torch.tensor(row)[positions]])
    return out


def test_sft(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    policy = model(LlamaForCausalLM, seed=1)
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    trainer = SFTTrainer(
        model=copy.deepcopy(policy),
        args=SFTConfig(**arguments(tmp_path)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    loss = cross_entropy(torch.cat(answer_logprobs(policy, *encode(tokenizer, "chosen"))))
    assert len(loss) == 4 + 2 + 1 + 3  # every answer token, and EOS
    assert_equal_to_trl(loss.mean(), policy, trainer)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, beta: float):
    policy, reference = model(LlamaForCausalLM, seed=1), model(LlamaForCausalLM, seed=2)
    trainer = DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=DPOConfig(**arguments(tmp_path), beta=beta),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )

    def sums(network: PreTrainedModel, answer: str) -> Tensor:
        return torch.stack([part.sum() for part in answer_logprobs(network, *encode(tokenizer, answer))])

    with torch.no_grad():
        reference_sums = sums(reference, "chosen"), sums(reference, "rejected")
    loss = dpo(sums(policy, "chosen"), sums(policy, "rejected"), *reference_sums, beta=beta)
    assert loss.std() > 0.1
    assert_equal_to_trl(loss.mean(), policy, trainer)


@pytest.mark.parametrize("with_margin", [False, True])
def test_reward(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, with_margin: bool):
    scorer = model(LlamaForSequenceClassification, seed=3)
    rows = [{**row, "margin": gap} if with_margin else row for row, gap in zip(ROWS, MARGINS, strict=True)]
    trainer = RewardTrainer(
        model=copy.deepcopy(scorer),
        args=RewardConfig(**arguments(tmp_path)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    chosen, rejected = (scorer(**padded(encode(tokenizer, name)[0])).logits[:, 0] for name in ("chosen", "rejected"))
    loss = bradley_terry(chosen, rejected, torch.tensor(MARGINS) if with_margin else None)
    assert_equal_to_trl(loss.mean(), scorer, trainer)
