"""Reward models: the folder is transformers' own, the head is never lost, a model without one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from assent.algorithms.online.train import train_online
from assent.algorithms.reward.pairs import train_reward
from assent.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RewardsConfig,
    RewardSection,
    TrainConfig,
    online_config,
)
from assent.data.tree import Branch, TokenTree, collate
from assent.errors import ModelError
from assent.models.heads import load_score_model
from assent.models.loading import load_policy
from assent.models.policy import ScoreModel

ROWS = [
    {"prompt": f"Question {i}?", "chosen": "yes, " * (i % 3 + 1), "rejected": "no " * (i % 4 + 1)} for i in range(8)
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, pairs: Path, tmp_path_factory) -> Callable[..., Path]:
    """Run folders of reward models, each trained once for four steps."""
    made: dict[tuple, Path] = {}

    def train(rank: int = 0, readout: str = "last", base: str | None = None) -> Path:
        key = (rank, readout, base)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("runs") / "reward"
            train_reward(
                RewardConfig(
                    model=ModelConfig(base or str(tiny_model_dir), precision="fp32", lora=LoraConfig(rank=rank)),
                    data=DataConfig(str(pairs), max_length=64),
                    out=str(made[key]),
                    optim=OptimConfig(lr=1e-2, warmup=0.0, schedule="constant"),
                    train=TrainConfig(batch_size=4, max_steps=4, threads=1),
                    reward=RewardSection(readout=readout),
                )
            )
        return made[key]

    return train


def some_trees() -> list[TokenTree]:
    draw = np.random.default_rng(4)

    def branch(size: int) -> Branch:
        return Branch(draw.integers(3, 260, size), np.ones(size, bool))

    return [
        TokenTree(draw.integers(3, 260, width), tuple(branch(size) for size in answers))
        for width, answers in ((6, (3, 11)), (1, (1, 2, 5)), (9, (20,)))
    ]


def ours(folder: Path, tokenizer) -> tuple[ScoreModel, Tensor]:
    """A frozen scorer, and its scores of the answers of `some_trees`."""
    config = ModelConfig(str(folder), precision="fp32")
    scorer = load_score_model(config, tokenizer, max_length=64, trainable=False, new_head=False)
    batch = collate(some_trees())
    with torch.no_grad():
        return scorer, scorer.rewards(batch).reward


def transformers_scores(folder: Path, pad_left: bool = False) -> Tensor:
    """One padded batch through a model that transformers loads by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.num_labels == 1
    rows = [np.concatenate([tree.prompt, branch.ids]) for tree in some_trees() for branch in tree.branches]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if pad_left else slice(0, len(tokens))
        ids[row, where] = torch.from_numpy(tokens)
        mask[row, where] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.squeeze(-1)


@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
def test_transformers_gives_the_same_scores(rank: int, pad_left: bool, trained, tokenizer) -> None:
    folder = trained(rank) / "model"
    _, scores = ours(folder, tokenizer)
    assert scores.std() > 1e-2
    torch.testing.assert_close(scores, transformers_scores(folder, pad_left), atol=1e-5, rtol=0)


def test_one_answer_alone_has_the_same_score(trained, tokenizer) -> None:
    """transformers' batch of one needs no padding token at all."""
    folder = trained() / "model"
    _, scores = ours(folder, tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tree = some_trees()[0]
    ids = torch.from_numpy(np.concatenate([tree.prompt, tree.branches[0].ids]))[None]
    assert model(input_ids=ids).logits.item() == pytest.approx(scores[0].item(), abs=1e-5)


def test_the_folder_holds_safetensors_and_a_tokenizer(trained) -> None:
    folder = trained() / "model"
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["pad_token_id"] == tokenizer.pad_token_id and tokenizer.chat_template
    assert "score.weight" in load_file(folder / "model.safetensors")


def test_a_new_head_depends_on_the_seed_alone(tiny_model_dir: Path, tokenizer) -> None:
    config = ModelConfig(str(tiny_model_dir), precision="fp32")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    heads = [load_score_model(config, tokenizer, max_length=64, seed=s).model.score.weight for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
def test_a_reward_model_as_base_keeps_its_head(rank: int, trained, tokenizer) -> None:
    folder = trained() / "model"
    head = load_file(folder / "model.safetensors")["score.weight"]
    config = ModelConfig(str(folder), precision="fp32", lora=LoraConfig(rank=rank))
    again = load_score_model(config, tokenizer, max_length=64, seed=12)
    assert torch.equal(again.model.score.weight.detach(), head)
    batch = collate(some_trees())
    torch.testing.assert_close(again.rewards(batch).reward.detach(), ours(folder, tokenizer)[1], atol=1e-6, rtol=0)
    further = trained(rank, "last", str(trained())) / "model"  # the run folder stands for its model
    moved = load_file(further / "model.safetensors")["score.weight"]
    assert not torch.equal(moved, head)
    assert torch.nn.functional.cosine_similarity(moved, head).item() > 0.7, "it began at the trained head"


def test_a_causal_folder_is_no_reward_model(tiny_model_dir: Path, pairs: Path, tokenizer, tmp_path: Path) -> None:
    command = f"assent reward --model.path {tiny_model_dir} --data.train PAIRS --out FOLDER"
    with pytest.raises(ModelError, match="has no trained reward head") as refused:
        load_score_model(ModelConfig(str(tiny_model_dir)), tokenizer, max_length=64, new_head=False)
    assert command in str(refused.value)
    with pytest.raises(ModelError, match="has no trained reward head") as refused:
        train_online(
            online_config(
                "ppo",
                model=ModelConfig(str(tiny_model_dir), precision="fp32"),
                data=DataConfig(str(pairs), max_length=200),
                out=str(tmp_path / "ppo"),
                rewards=RewardsConfig((str(tiny_model_dir),)),
                train=TrainConfig(threads=1),
            )
        )
    assert command in str(refused.value) and refused.value.exit_code == 2


def test_a_reward_model_is_no_policy(trained) -> None:
    with pytest.raises(ModelError, match="is a reward model's folder .*not a causal language model's"):
        load_policy(ModelConfig(str(trained() / "model")), max_length=64)


# ---- LoRA


def test_lora_reward_model_keeps_its_trained_head(trained, tiny_model_dir: Path, tokenizer) -> None:
    """In the merged folder, and in the adapter beside it."""
    from peft import PeftModel

    folder = trained(4) / "model"
    fresh = load_score_model(ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, max_length=64)
    merged = load_file(folder / "model.safetensors")
    assert not any("lora_" in name or "base_layer" in name or "modules_to_save" in name for name in merged)
    assert (merged["score.weight"] - fresh.model.score.weight).abs().max() > 1e-3, "the head was trained"
    body = dict(fresh.model.named_parameters())
    name = "model.layers.0.mlp.down_proj.weight"
    assert (merged[name] - body[name]).abs().max() > 1e-4, "adapters are merged"
    assert torch.equal(merged["model.embed_tokens.weight"], body["model.embed_tokens.weight"])

    adapted = PeftModel.from_pretrained(fresh.model, folder / "adapter")
    assert torch.equal(
        adapted.base_model.model.score.modules_to_save["default"].weight.detach(), merged["score.weight"]
    )
    scorer = ScoreModel(adapted.eval(), precision="fp32", tree=True)
    batch = collate(some_trees())
    with torch.no_grad():
        torch.testing.assert_close(scorer.rewards(batch).reward, ours(folder, tokenizer)[1], atol=1e-5, rtol=0)


def test_mean_readout_is_read_at_the_last_token_too(trained, tokenizer) -> None:
    folder = trained(0, "mean") / "model"
    torch.testing.assert_close(ours(folder, tokenizer)[1], transformers_scores(folder), atol=1e-5, rtol=0)
