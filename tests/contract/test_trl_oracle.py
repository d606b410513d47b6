"""TRL's trainers as an oracle: on the same model and rows, their loss and its gradient for every weight equal ours,
computed from a plain padded forward pass. Rows have unequal lengths, so padding, EOS and reduction all count."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from assent.losses import (
    LOSSES,
    apo_zero_unpaired,
    bco,
    bradley_terry,
    centring,
    cpo,
    cross_entropy,
    dpo,
    hinge,
    ipo,
    kto,
    nca,
    orpo,
    simpo,
)

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
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

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
    size = sum(float(gradient.norm()) for gradient in gradients.values())
    assert size > 1e-3
    tolerance = {"atol": 2e-5 * min(1.0, size), "rtol": 1e-4}
    for name, gradient in gradients.items():
        torch.testing.assert_close(parameters[name].grad, gradient, **tolerance, msg=lambda m, n=name: n + m)


def encode(tokenizer: PreTrainedTokenizerFast, answer: str) -> tuple[list[list[int]], list[int]]:
    """Prompt, answer and EOS of every row, and how many of those ids are prompt."""
    rows = [tokenizer(row["prompt"] + row[answer])["input_ids"] + [tokenizer.eos_token_id] for row in ROWS]
    return rows, [len(tokenizer(row["prompt"])["input_ids"]) for row in ROWS]


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def answer_distributions(
    policy: PreTrainedModel, rows: list[list[int]], prompt_lengths: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each row: log-probs over the vocabulary at every answer position, and the log-probs of the answer's tokens."""
    logprobs = policy(**padded(rows)).logits.log_softmax(-1)
    everywhere, taken = [], []
    for i, (row, prompt) in enumerate(zip(rows, prompt_lengths, strict=True)):
        positions = torch.arange(prompt, len(row))
        everywhere.append(logprobs[i, positions - 1])
        taken.append(logprobs[i, positions - 1, torch.tensor(row)[positions]])
    return everywhere, taken


def answer_logprobs(policy: PreTrainedModel, rows: list[list[int]], prompt_lengths: list[int]) -> list[Tensor]:
    return answer_distributions(policy, rows, prompt_lengths)[1]


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


# Loss types of TRL's DPOTrainer: what TRL is told, our loss, what ours is told. At beta 0.1 and 0.7.
PAIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "sigmoid": ({}, "dpo", {}),
    "hinge": ({}, "hinge", {}),
    "ipo": ({}, "ipo", {"length_normalised": True}),
    "exo_pair": ({"label_smoothing": 0.1}, "exo", {"label_smoothing": 0.1}),
    "robust": ({"label_smoothing": 0.1}, "robust_dpo", {"label_smoothing": 0.1}),
    "sppo_hard": ({}, "sppo", {}),
    "aot": ({}, "aot", {}),
    "aot smoothed": ({"label_smoothing": 0.1}, "aot", {"label_smoothing": 0.1}),
    "aot_unpaired": ({}, "aot_unpaired", {}),
    "aot_unpaired smoothed": ({"label_smoothing": 0.1}, "aot_unpaired", {"label_smoothing": 0.1}),
    "apo_zero": ({}, "apo_zero", {}),
    "apo_down": ({}, "apo_down", {}),
    "discopop": ({"discopop_tau": 0.5}, "discopop", {"temperature": 0.5}),
    "sigmoid_norm": ({}, "normalised_dpo", {}),
    "sigmoid of length": ({"ld_alpha": 0.4}, "ld_dpo", {"tail_weight": 0.4}),
    "sigmoid weighted": ({"use_weighting": True}, "wpo", {}),
    "sigmoid forward_kl": (
        {"f_divergence_type": "forward_kl"},
        "f_dpo",
        {"divergence": "forward_kl", "divergence_alpha": 0.5},
    ),
    "sigmoid js": ({"f_divergence_type": "js_divergence"}, "f_dpo", {"divergence": "js", "divergence_alpha": 0.5}),
    # TRL's coefficient is one minus the paper's alpha
    "sigmoid alpha": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        "f_dpo",
        {"divergence": "alpha", "divergence_alpha": 0.3},
    ),
}


def dpo_trainer(tokenizer: PreTrainedTokenizerFast, folder: Path, **options: Any) -> DPOTrainer:
    return DPOTrainer(
        model=model(LlamaForCausalLM, seed=1),
        ref_model=model(LlamaForCausalLM, seed=2),
        args=DPOConfig(**arguments(folder), **options),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )


def pair_inputs(tokenizer: PreTrainedTokenizerFast, policy: PreTrainedModel) -> dict[str, Tensor]:
    """Every input of the losses of pairs, by the name of the parameter."""
    reference, inputs = model(LlamaForCausalLM, seed=2).requires_grad_(False), {}
    rows = {answer: encode(tokenizer, answer) for answer in ("chosen", "rejected")}
    tokens = {
        (who, answer): answer_logprobs(network, *rows[answer])
        for who, network in (("policy", policy), ("reference", reference))
        for answer in rows
    }
    both = zip(tokens["policy", "chosen"], tokens["policy", "rejected"], strict=True)
    shared = [min(len(chosen), len(rejected)) for chosen, rejected in both]
    for (who, answer), parts in tokens.items():
        inputs[f"{who}_{answer}"] = torch.stack([part.sum() for part in parts])
        firsts = [part[:length].sum() for part, length in zip(parts, shared, strict=True)]
        inputs[f"{who}_{answer}_shared"] = torch.stack(firsts)
        inputs[f"length_{answer}"] = torch.tensor([float(len(part)) for part in parts])
    for answer in rows:
        # WPO's weight: each token beside the probability of meeting it twice, as a geometric mean
        with torch.no_grad():
            pairs = zip(*answer_distributions(policy, *rows[answer]), strict=True)
            weights = [(taken - (2 * every).logsumexp(-1)).mean().exp() for every, taken in pairs]
        inputs[f"weight_{answer}"] = torch.stack(weights)
    return inputs


def of_pairs(name: str, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    parameters = inspect.signature(LOSSES[name]).parameters
    return LOSSES[name](**{key: value for key, value in inputs.items() if key in parameters}, **options)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("kind", PAIRS)
def test_pairs(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str, beta: float):
    trl, name, options = PAIRS[kind]
    trainer = dpo_trainer(tokenizer, tmp_path, loss_type=kind.split()[0], beta=beta, **trl)
    policy = model(LlamaForCausalLM, seed=1)
    loss = of_pairs(name, pair_inputs(tokenizer, policy), beta=beta, **options)
    assert loss.std() > 0.01 * loss.mean()
    assert_equal_to_trl(loss.mean(), policy, trainer)


def test_nca_of_pairs(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    trainer, policy = dpo_trainer(tokenizer, tmp_path, loss_type="nca_pair"), model(LlamaForCausalLM, seed=1)
    inputs = pair_inputs(tokenizer, policy)
    both = [torch.stack([inputs[f"{who}_chosen"], inputs[f"{who}_rejected"]], 1) for who in ("policy", "reference")]
    rating, prompt = torch.tensor([1.0, -torch.inf]).repeat(3), torch.arange(3).repeat_interleave(2)
    loss = nca(both[0].flatten(), both[1].flatten(), rating, prompt, beta=0.1, temperature=1.0)
    assert_equal_to_trl(loss.sum() / 3, policy, trainer)


def test_trl_ignores_label_smoothing_for_sigmoid_and_ours_does_not(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    """TRL's "sigmoid" reads no label smoothing; ours is the paper's: a share of the labels is flipped (cDPO)."""
    trainer = dpo_trainer(tokenizer, tmp_path, loss_type="sigmoid", label_smoothing=0.2)
    policy = model(LlamaForCausalLM, seed=1)
    inputs = pair_inputs(tokenizer, policy)
    smoothed = of_pairs("dpo", inputs, beta=0.1, label_smoothing=0.2)
    names = ("policy_rejected", "policy_chosen", "reference_rejected", "reference_chosen")
    flipped = dpo(*(inputs[name] for name in names), beta=0.1)
    plain = of_pairs("dpo", inputs, beta=0.1)
    torch.testing.assert_close(smoothed, 0.8 * plain + 0.2 * flipped)
    assert (smoothed.mean() - plain.mean()).abs() > 1e-3
    assert_equal_to_trl(plain.mean(), policy, trainer)


SUMS = -40.0 * torch.rand(2, 20, generator=torch.Generator().manual_seed(0))
SIZES = torch.randint(1, 9, (2, 20), generator=torch.Generator().manual_seed(1)).float()


def assert_same(ours: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    """The numbers, and the gradients of both."""
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
        assert mine.norm() > 1e-3


@pytest.mark.parametrize("kind", ["sigmoid", "smoothed", "simpo", "hinge", "ipo"])
def test_pairs_without_a_reference(kind: str):
    pc, pr = (part.clone().requires_grad_() for part in SUMS)
    lc, lr = SIZES
    none = torch.zeros(20)
    smoothing = 0.2 if kind == "smoothed" else 0.0
    # TRL hands averages to its ipo and simpo
    given = (pc / lc, pr / lr) if kind in ("simpo", "ipo") else (pc, pr)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), alpha=0.0, beta=0.6, simpo_gamma=0.4)
    trainer.loss_type, trainer.label_smoothing = "sigmoid" if kind == "smoothed" else kind, smoothing
    expected = CPOTrainer.cpo_loss(trainer, *given)[0]
    if kind == "simpo":
        ours = simpo(pc, pr, lc, lr, beta=0.6, gamma=0.4)
    elif kind == "hinge":
        ours = hinge(pc, pr, none, none, beta=0.6)
    elif kind == "ipo":
        ours = ipo(pc, pr, none, none, lc, lr, beta=0.6, length_normalised=True)
    else:
        ours = cpo(pc, pr, lc, beta=0.6, sft_weight=0.0, label_smoothing=smoothing)
    assert_same(ours, expected, [pc, pr])


def test_orpo():
    pc, pr = (part.clone().requires_grad_() for part in SUMS)
    lc, lr = SIZES
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=0.3)
    expected = -pc / lc - ORPOTrainer.odds_ratio_loss(trainer, pc / lc, pr / lr)[0]
    assert_same(orpo(pc, pr, lc, lr, odds_weight=0.3), expected, [pc, pr])


@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
def test_unpaired(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str):
    policy, reference = model(LlamaForCausalLM, seed=1), model(LlamaForCausalLM, seed=8)
    rows = [
        {"prompt": row["prompt"], "completion": row[answer], "label": answer == "chosen"}
        for row in ROWS
        for answer in ("chosen", "rejected")
    ]
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8} if kind == "kto" else {}
    trainer = KTOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=KTOConfig(**arguments(tmp_path), loss_type=kind, beta=0.3, per_device_train_batch_size=6, **weights),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    ends = [[*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id] for row in rows]
    starts = [len(prompt) for prompt in prompts]

    def sums(network: PreTrainedModel, answers: list[list[int]]) -> Tensor:
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        return torch.stack([part.sum() for part in answer_logprobs(network, texts, starts)])

    with torch.no_grad():
        # the drift is seen on answers to other prompts
        mismatched = [ends[-1], *ends[:-1]]
        kl = (sums(policy, mismatched) - sums(reference, mismatched)).mean().clamp(min=0).expand(6)
        reference_sums = sums(reference, ends)
    desirable = torch.tensor([float(row["label"]) for row in rows])
    if kind == "kto":
        assert kl[0] > 0.1
        loss = kto(sums(policy, ends), reference_sums, desirable, kl, beta=0.3, **weights)
    else:
        loss = apo_zero_unpaired(sums(policy, ends), reference_sums, desirable, beta=0.3)
    assert loss.std() > 0.05
    assert_equal_to_trl(loss.mean(), policy, trainer)


# Values computed with TRL 0.24, the last with a BCO trainer: BCOTrainer.bco_loss in float64, beta 0.7, without matching
# distributions, on responses i = 0 ... 4 and then 5 ... 7: policy -3 + 2 sin(i), reference -3 + 2 cos(2 i), desirable
# unless i mod 3 = 1. Its shift is the mean reward of all responses so far.
TRL_BCO = [1.7089885, 1.8268551, 0.1178477, 1.5065400, 0.3227733, 0.7494359, 1.7131694, 1.1618508]


def test_bco():
    index = torch.arange(8, dtype=torch.float64)
    policy, reference, desirable = -3 + 2 * index.sin(), -3 + 2 * (2 * index).cos(), (index % 3 != 1).double()
    rewards = 0.7 * (policy - reference)
    shift = torch.cat([rewards[:5].mean().expand(5), rewards.mean().expand(3)])
    loss = bco(policy, reference, desirable, shift, beta=0.7)
    torch.testing.assert_close(loss, torch.tensor(TRL_BCO, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("centred", [None, 0.3])
@pytest.mark.parametrize("with_margin", [False, True])
def test_reward(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, with_margin: bool, centred: float | None):
    scorer = model(LlamaForSequenceClassification, seed=3)
    rows = [{**row, "margin": gap} if with_margin else row for row, gap in zip(ROWS, MARGINS, strict=True)]
    trainer = RewardTrainer(
        model=copy.deepcopy(scorer),
        args=RewardConfig(**arguments(tmp_path), center_rewards_coefficient=centred),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    chosen, rejected = (scorer(**padded(encode(tokenizer, name)[0])).logits[:, 0] for name in ("chosen", "rejected"))
    loss = bradley_terry(chosen, rejected, torch.tensor(MARGINS) if with_margin else None)
    if centred is not None:
        assert centring(chosen, rejected).mean() > 0.1
        loss = loss + centred * centring(chosen, rejected)
    assert_equal_to_trl(loss.mean(), scorer, trainer)
