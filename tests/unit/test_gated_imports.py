"""Gated reward models of others (ArmoRM, QRM), read without the code that comes with them: folders of their shapes made
from scratch, and their numbers by a torch reference that is written out here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from assent.cli import main
from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.records import Example, Message, Response
from assent.data.template import FOLDER
from assent.data.tree import collate
from assent.errors import ModelError
from assent.models.heads import load_score_model
from assent.models.loading import load_tokenizer, quiet_transformers
from assent.models.policy import ScoreModel

quiet_transformers()

K, QUANTILES, HIDDEN, WIDTH = 4, 3, 32, 24
NAMES = [f"attribute-{k}" for k in range(K)]
TURN = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


class Reference(nn.Module):
    """Backbone, regression layer and gate as the papers describe them, one conversation at a time. With `quantiles`
    it is QRM: no bias in hidden layers of the gate, BatchNorm behind their ReLU, the reward a mean of quantiles."""

    def __init__(self, config: LlamaConfig, quantiles: int = 0) -> None:
        super().__init__()
        self.quantiles = quantiles
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(HIDDEN, K * max(1, quantiles), bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(K))
        layers: list[nn.Module] = []
        size = HIDDEN
        for _ in range(3):
            layers.append(nn.Linear(size, WIDTH, bias=not quantiles))
            layers += [nn.ReLU(), nn.BatchNorm1d(WIDTH)] if quantiles else []
            size = WIDTH
        self.gating = nn.Module()
        self.gating.layers = nn.ModuleList([*layers, nn.Linear(size, K)])
        self.gating.logit_scale = nn.Parameter(torch.tensor([1.7]))

    def score(self, ids: list[int], turn: list[int]) -> tuple[float, torch.Tensor]:
        states = self.model(torch.tensor([ids])).last_hidden_state[0]
        rewards = self.regression_layer(states[-1])
        if self.quantiles:
            rewards = rewards.reshape(K, self.quantiles).mean(1)
        starts = [i for i in range(len(ids)) if ids[i : i + len(turn)] == turn]
        x = states[starts[-1]][None]
        for i, layer in enumerate(self.gating.layers):
            x = layer(x)
            if not self.quantiles and i < len(self.gating.layers) - 1:
                x = x.relu()
        weights = (x / 10).softmax(1)[0] * self.gating.logit_scale[0]
        return float(weights @ (rewards @ self.reward_transform_matrix)), rewards


@pytest.fixture(scope="module")
def llama3(tokenizer, tmp_path_factory) -> Path:
    """A tokenizer with Llama 3's control tokens and template."""
    folder = tmp_path_factory.mktemp("llama3")
    tokenizer.save_pretrained(folder)
    made = AutoTokenizer.from_pretrained(folder)
    controls = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    made.add_special_tokens({"additional_special_tokens": controls})
    made.bos_token, made.eos_token = controls[0], controls[3]
    made.chat_template = (FOLDER / "llama3.jinja").read_text()
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shaped(llama3: Path, tmp_path_factory) -> Callable[[str], tuple[Path, Reference]]:
    """A folder of the shape, and the reference that it was written from."""
    made: dict[str, tuple[Path, Reference]] = {}

    def make(shape: str) -> tuple[Path, Reference]:
        if shape in made:
            return made[shape]
        folder = tmp_path_factory.mktemp(shape) / shape
        shutil.copytree(llama3, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )  # fmt: skip
        torch.manual_seed(5)
        reference = Reference(config, QUANTILES if shape == "qrm" else 0).eval()
        with torch.no_grad():
            for name, x in reference.named_parameters():
                if x.ndim > 1 and name != "reward_transform_matrix":
                    x.normal_(0, 0.3)
            reference.reward_transform_matrix[2] -= torch.tensor([0.3, 0.05, 1.0, 0.6])
            for layer in reference.gating.layers:
                if isinstance(layer, nn.BatchNorm1d):
                    layer.running_mean.normal_()
                    layer.running_var.uniform_(0.3, 2)
                    layer.weight.normal_()
                    layer.bias.normal_()
            reference.gating.layers[-1].weight.mul_(20)
        raw = {
            **config.to_dict(),
            "architectures": ["LlamaForRewardModelWithGating"],
            "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
            "num_objectives": K,
            "gating_temperature": 10,
            "gating_hidden_dim": WIDTH,
            "gating_n_hidden": 3,
            **({"id2label": dict(enumerate(NAMES)), "label2id": {n: k for k, n in enumerate(NAMES)}}
               if shape == "armo" else {"num_quantiles": QUANTILES}),
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(raw))
        (folder / "modeling_custom.py").write_text("raise SystemExit('the code of a folder was run')\n")
        save_file(reference.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        made[shape] = folder, reference
        return made[shape]

    return make


def load(folder: Path, **options: Any) -> ScoreModel:
    config = ModelConfig(str(folder), precision="fp32", **options)
    return load_score_model(config, load_tokenizer(config), max_length=128, trainable=False, new_head=False)


def conversations(folder: Path) -> list:
    chat = Chat(load_tokenizer(ModelConfig(str(folder))))
    turns = [(Message("user", "Name three colours."),)]
    turns.append((*turns[0], Message("assistant", "Red and blue."), Message("user", "How do I boil an egg?")))
    return [
        chat.tree(
            Example(
                prompt, tuple(Response((Message("assistant", text),)) for text in ("Put it in.", "No!", "Paris 12"))
            ),
            128,
        )
        for prompt in turns
    ]


@torch.no_grad()
@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("shape", ["armo", "qrm"])
def test_their_numbers(shape: str, layout: str, shaped) -> None:
    folder, reference = shaped(shape)
    scorer, trees = load(folder, layout=layout, trust_remote_code=True), conversations(folder)
    turn = AutoTokenizer.from_pretrained(folder)(TURN, add_special_tokens=False)["input_ids"]
    found = scorer.rewards(collate(trees, flat=layout == "flat"))
    rows = [[*tree.prompt.tolist(), *branch.ids.tolist()] for tree in trees for branch in tree.branches]
    wanted = [reference.score(ids, turn) for ids in rows]
    torch.testing.assert_close(found.reward, torch.tensor([score for score, _ in wanted]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.outputs, torch.stack([rewards for _, rewards in wanted]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.shares.sum(1), found.reward)
    assert found.reward.std() > 0.05
    assert list(scorer.rule.names) == (NAMES if shape == "armo" else [f"objective_{k}" for k in range(K)])


@torch.no_grad()
@pytest.mark.parametrize("shape", ["armo", "qrm"])
def test_exported_they_are_folders_of_our_own(shape: str, shaped, tmp_path: Path) -> None:
    folder, _ = shaped(shape)
    assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    batch = collate(conversations(folder))
    torch.testing.assert_close(load(tmp_path / "out").rewards(batch).reward, load(folder).rewards(batch).reward)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config and config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["assent_gate"]["pattern"] and load_file(tmp_path / "out" / "model.safetensors")[
        "score.weight"
    ].shape == (
        K,
        HIDDEN,
    )


def test_the_score_command_takes_them(shaped, tmp_path: Path) -> None:
    folder, reference = shaped("armo")
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"prompt": "Name three colours.", "completion": "No!"}) + "\n")
    out = tmp_path / "scores.jsonl"
    assert main(f"score {folder} {file} --precision fp32 --explain --out {out}".split()) == 0
    row = json.loads(out.read_text())
    turn = AutoTokenizer.from_pretrained(folder)(TURN, add_special_tokens=False)["input_ids"]
    tree = conversations(folder)[0]
    with torch.no_grad():
        want, _ = reference.score([*tree.prompt.tolist(), *tree.branches[1].ids.tolist()], turn)
    assert row["reward"] == pytest.approx(want, abs=1e-4)
    assert all(name in json.dumps(row) for name in NAMES)


@pytest.fixture
def broken(shaped, tmp_path: Path) -> Callable[..., str]:
    """The error of an ArmoRM-shaped folder whose weights or configuration were changed."""
    number = iter(range(100))

    def change(shape: str = "armo", **changes: Any) -> str:
        folder = tmp_path / f"broken{next(number)}"
        shutil.copytree(shaped(shape)[0], folder)
        raw, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        for name, value in changes.items():
            if name == "weights":
                value(weights)
            else:
                raw[name] = value
        (folder / "config.json").write_text(json.dumps(raw))
        save_file({name: x.contiguous() for name, x in weights.items()}, folder / "model.safetensors")
        with pytest.raises(ModelError) as error:
            load(folder)
        return str(error.value)

    return change


def test_what_does_not_fit_together_is_named(broken) -> None:
    assert "where a gated model of type mistral reads the prompt is not known" in broken(model_type="mistral")

    def narrower(weights: dict[str, torch.Tensor]) -> None:
        weights["regression_layer.weight"] = weights["regression_layer.weight"][:3].clone()

    assert "regression_layer.weight has 3 x 32 numbers, which do not fit a gate over 4 outputs" in broken(
        weights=narrower
    )

    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights["reward_transform_matrix"] = torch.eye(3)

    assert "reward_transform_matrix has [3, 3] numbers, expected [4, 4]" in broken(weights=cut)

    def odd(weights: dict[str, torch.Tensor]) -> None:
        weights["gating.layers.2.weight"] = torch.zeros(WIDTH, 7)

    assert "gating.layers.2 is no layer that follows the one before it" in broken(weights=odd)
    assert "does not end in a linear layer" in broken(
        "qrm", weights=lambda weights: [weights.pop(f"gating.layers.9.{name}") for name in ("weight", "bias")]
    )
    assert "not finite" in broken(weights=lambda weights: weights["gating.logit_scale"].fill_(float("nan")))


def test_a_tokenizer_without_the_turns_tokens_is_named(shaped, tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(shaped("armo")[0], folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"its tokenizer has no <\|eot_id\|>"):
        load(folder)


def test_a_prompt_without_the_turn_is_named(shaped, tmp_path: Path) -> None:
    folder, _ = shaped("armo")
    scorer = load(folder)
    batch = collate(conversations(folder))
    odd = torch.where(batch.tokens == scorer.gate_rule.pattern[0], 5, batch.tokens)
    import dataclasses

    with pytest.raises(ModelError, match=r"reads its prompt where the tokens .* begin"):
        scorer.rewards(dataclasses.replace(batch, tokens=odd))
