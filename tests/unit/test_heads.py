"""The head of a reward model or critic: on any decoder, computed in fp32, and in transformers' own class only where
that reads the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
)

from assent.algorithms.online.train import train_online
from assent.algorithms.reward.pairs import train_reward
from assent.config import (
    CriticConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RewardsConfig,
    RewardSection,
    SamplingConfig,
    TrainConfig,
    online_config,
)
from assent.data.chat import Chat
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.errors import ModelError
from assent.models import heads
from assent.models.heads import last_token_head, load_score_model, save_reward_model, usage_of
from assent.models.loading import load_policy, load_tokenizer, quiet_transformers
from assent.models.policy import ScoreModel
from assent.models.recipe import others_scores, probes

quiet_transformers()

SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "olmoe": {},
    "glm4_moe": {"tie_word_embeddings": True},
    "apertus": {},
    "ernie4_5": {},
    "internlm3": {},
    "minimax_m2": {"rotary_dim": 8},
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400, "global_head_dim": 8},
    "llama4_text": {"intermediate_size_mlp": 48},
}
"""Types for which transformers has no sequence-classification class."""


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> Callable[[str], Path]:
    """Tiny random causal models by type."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = made[kind] = tmp_path_factory.mktemp("base") / kind
            if kind not in CONFIG_MAPPING:
                pytest.skip(f"this transformers has no {kind}")
            known = {field.name for field in dataclasses.fields(type(AutoConfig.for_model(kind)))}
            sizes = {name: value for name, value in SIZES.items() if name in known}
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **OWN.get(kind, {})}))
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.ndim > 1:
                        weight.normal_(0.0, 0.15)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return made[kind]

    return make


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"Question {i}?", "chosen": "yes, " * (i % 3 + 1), "rejected": "no " * 2} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def reward_run(base: Path, pairs: Path, out: Path, rank: int = 0, precision: str = "fp32", readout="last") -> Path:
    train_reward(
        RewardConfig(
            model=ModelConfig(str(base), precision=precision, lora=LoraConfig(rank=rank)),
            data=DataConfig(str(pairs), max_length=64),
            out=str(out),
            optim=OptimConfig(lr=1e-2, warmup=0.0, schedule="constant"),
            train=TrainConfig(batch_size=2, max_steps=2, threads=1),
            reward=RewardSection(readout=readout),
        )
    )
    return out / "model"


def rows(flat: bool = False) -> TreeBatch:
    draw = np.random.default_rng(4)
    trees = [
        TokenTree(draw.integers(3, 260, width), (Branch(draw.integers(3, 260, size), np.ones(size, bool)),))
        for width, size in ((6, 3), (1, 5), (9, 20))
    ]
    return collate(trees, flat=flat)


def scores(scorer: ScoreModel) -> torch.Tensor:
    batch = rows(flat=not scorer.tree)
    with torch.no_grad():
        return scorer(batch, batch.last)


def config_of(folder: Path, precision: str = "fp32", **options: Any) -> ModelConfig:
    return ModelConfig(str(folder), precision=precision, **options)


# ---- any decoder


@pytest.mark.parametrize("kind", OWN)
def test_a_head_of_our_own(kind: str, base, tokenizer, tmp_path: Path, capsys) -> None:
    """Trained, saved, loaded by assent and by plain torch: the same scores."""
    folder = base(kind)
    assert type(AutoConfig.for_model(kind)) not in AutoModelForSequenceClassification._model_mapping
    scorer = load_score_model(config_of(folder), tokenizer, max_length=64)
    assert "its head of one output (score.weight) is new and untrained" in capsys.readouterr().err
    batch = rows(flat=not scorer.tree)
    start = scorer.head.weight.detach().clone()
    scorer(batch, batch.last).sum().backward()
    torch.optim.SGD(scorer.parameters(), lr=0.1).step()
    assert not torch.equal(scorer.head.weight, start)
    want = scores(scorer.eval())
    assert want.std() > 1e-2
    names = {name for name, _ in scorer.plain.named_parameters()}
    assert not any("lm_head" in name for name in names), "what predicts tokens is gone"

    chat = Chat(tokenizer)
    save_reward_model(scorer, chat, tmp_path)
    usage = usage_of(scorer.plain, chat, tmp_path, config_of(tmp_path))
    assert usage.own and usage.head == "score.weight" and usage.notes == ()
    again = load_score_model(config_of(tmp_path), tokenizer, max_length=64, trainable=False, new_head=False)
    torch.testing.assert_close(scores(again), want, atol=1e-6, rtol=0)
    assert "new and untrained" not in capsys.readouterr().err
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["assent_head"]["class"] == "assent" and written["problem_type"] == "regression"
    by_itself = type(again.plain).from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = batch.tokens[: batch.segments[0].end][None]
    torch.testing.assert_close(by_itself(input_ids=ids).logits, want[:1], atol=1e-5, rtol=0)
    examples = list(probes(chat, 256).values())
    own = collate([chat.tree(example, 256) for example in examples], flat=not again.tree)
    for its in others_scores(tmp_path, usage, examples).values():
        torch.testing.assert_close(its, again(own, own.last), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
def test_own_heads_through_the_command(rank: int, precision: str, base, pairs, tokenizer, tmp_path: Path) -> None:
    """Granite: adapters are merged, the head is kept, and a second training starts from it."""
    model = reward_run(base("granite"), pairs, tmp_path / "run", rank, precision)
    tensors = load_file(model / "model.safetensors")
    assert tensors["score.weight"].dtype == torch.float32 and not any("lora_" in name for name in tensors)
    fresh = load_score_model(config_of(base("granite")), tokenizer, max_length=64)
    assert (tensors["score.weight"] - fresh.head.weight).abs().max() > 1e-3
    again = load_score_model(config_of(model), tokenizer, max_length=64, seed=5)
    assert torch.equal(again.head.weight.detach(), tensors["score.weight"])
    assert not torch.equal(scores(again), scores(fresh))
    if rank:
        from peft import PeftModel

        adapted = ScoreModel(
            PeftModel.from_pretrained(fresh.model, model / "adapter").eval(), precision="fp32", tree=fresh.tree
        )
        torch.testing.assert_close(scores(adapted), scores(again), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["cohere", "olmoe"])
def test_reward_and_ppo_where_transformers_has_no_class(kind: str, base, pairs, tmp_path: Path) -> None:
    """The reward model scores, the critic begins as its copy, and both are written."""
    model = reward_run(base(kind), pairs, tmp_path / "reward")
    for start in ("reward", "policy"):
        result = train_online(
            online_config(
                "ppo",
                model=ModelConfig(str(base(kind)), precision="fp32"),
                data=DataConfig(str(pairs), max_length=64),
                out=str(tmp_path / f"ppo-{start}"),
                rewards=RewardsConfig((str(model),)),
                sampling=SamplingConfig(max_new_tokens=4),
                rollout={"epochs": 1, "minibatches": 1},
                train=TrainConfig(batch_size=2, max_steps=1, threads=1),
                critic=CriticConfig(start=start),
            )
        )
        assert np.isfinite(result.metrics["loss"])
        critic = json.loads((Path(result.out) / "critic" / "config.json").read_text())
        assert critic["assent_head"]["class"] == "assent"


def test_an_own_head_is_a_reward_model_and_no_policy(base, pairs, tokenizer, tmp_path: Path) -> None:
    model = reward_run(base("granite"), pairs, tmp_path / "run")
    with pytest.raises(ModelError, match="is a reward model's folder"):
        load_policy(config_of(model), max_length=64)
    with pytest.raises(ModelError, match="has no trained reward head .score.weight."):
        load_score_model(config_of(base("granite")), tokenizer, max_length=64, new_head=False)


# ---- which class reads it


def llama(base: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)


def test_classes_that_read_something_else_are_found_out(tiny_model_dir: Path) -> None:
    """By measuring, not by name."""
    assert last_token_head(llama(tiny_model_dir)) == "score"

    class First(LlamaForSequenceClassification):
        def forward(self, *args: Any, **options: Any) -> Any:
            out = super().forward(*args, **options)
            ids = options["input_ids"][:, :1]
            return out.__class__(logits=super().forward(input_ids=ids).logits)

    class Squashed(LlamaForSequenceClassification):
        def forward(self, *args: Any, **options: Any) -> Any:
            out = super().forward(*args, **options)
            return out.__class__(logits=out.logits.tanh())

    class Needy(LlamaForSequenceClassification):
        def forward(self, *args: Any, **options: Any) -> Any:
            raise TypeError("pixel_values")

    for kind in (First, Squashed, Needy):
        model = llama(tiny_model_dir)
        head = model.score.weight.detach().clone()
        model.__class__ = kind
        assert last_token_head(model) is None, kind
        assert torch.equal(model.score.weight, head) and model.training is False
    model = llama(tiny_model_dir)
    model.score = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    assert last_token_head(model) is None


def test_a_head_under_another_name_is_transformers_own(base, tokenizer, tmp_path: Path) -> None:
    """CTRL's is called `classifier`: it is found, trained, saved and read by transformers."""
    from transformers import CTRLConfig

    torch.manual_seed(0)
    config = CTRLConfig(vocab_size=400, n_positions=256, n_embd=32, dff=48, n_layer=2, n_head=4, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    layout = {"layout": "flat"}
    scorer = load_score_model(config_of(tmp_path / "base", **layout), tokenizer, max_length=64)
    assert scorer.head_name == "classifier"
    nn.init.normal_(scorer.head.weight, generator=torch.Generator().manual_seed(1))
    save_reward_model(scorer, Chat(tokenizer), tmp_path / "model")
    usage = usage_of(scorer.plain, Chat(tokenizer), tmp_path / "model", config_of(tmp_path / "model"))
    assert not usage.own and usage.head == "classifier.weight"
    again = load_score_model(config_of(tmp_path / "model", **layout), tokenizer, max_length=64, new_head=False)
    torch.testing.assert_close(scores(again), scores(scorer), atol=1e-5, rtol=0)


def test_a_class_that_reads_otherwise_is_replaced(tiny_model_dir: Path, tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(heads, "last_token_head", lambda model: None)
    scorer = load_score_model(config_of(tiny_model_dir), tokenizer, max_length=64)
    assert scorer.plain.config.assent_head["class"] == "assent"
    assert isinstance(scorer.plain, AutoModelForCausalLM._model_mapping[type(scorer.plain.config)])


# ---- fp32


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_the_head_is_computed_in_fp32(kind: str, base, tokenizer) -> None:
    """Also where the decoder runs in bf16: exactly the fp32 product of its states."""
    scorer = load_score_model(config_of(base(kind), precision="bf16"), tokenizer, max_length=64)
    scorer.eval()
    batch = rows(flat=not scorer.tree)
    with torch.no_grad():
        hidden = scorer.hidden_at(batch, batch.last)
        exact = hidden.double() @ scorer.head.weight.double().T
        coarse = (hidden.bfloat16() @ scorer.head.weight.bfloat16().T).double()
        got = scorer(batch, batch.last)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=0)
    assert (coarse - exact).abs().max() > 1e-4


def test_the_value_head_is_computed_in_fp32(base) -> None:
    policy = load_policy(config_of(base("llama"), precision="bf16"), max_length=64)
    policy.add_value_head()
    nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    batch = rows()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        hidden = policy(batch, states=True)
        exact = (hidden.double() @ policy.value_head.weight.double().T).squeeze(-1)
        torch.testing.assert_close(policy(batch).values.double(), exact, atol=1e-5, rtol=0)


def test_heads_are_gathered_in_fp32(base, tokenizer, monkeypatch) -> None:
    """Where sharding gathers the decoder in bf16."""
    from assent import distributed

    precision: dict[nn.Module, Any] = {}

    class Sharded:
        def set_gradient_divide_factor(self, factor: float) -> None: ...
        def set_force_sum_reduction_for_comms(self, on: bool) -> None: ...

    def fully_shard(part: nn.Module, *, mesh: Any, mp_policy: Any) -> Sharded:
        precision[part] = mp_policy.param_dtype
        return Sharded()

    monkeypatch.setattr(distributed, "fully_shard", fully_shard)
    monkeypatch.setattr(distributed, "init_device_mesh", lambda *_: None)
    world = distributed.World(0, 2, 0, torch.device("cuda"))
    scorer = load_score_model(config_of(base("llama")), tokenizer, max_length=64)
    policy = load_policy(config_of(base("llama")), max_length=64)
    policy.add_value_head()
    for model, head in ((scorer, scorer.head), (policy, policy.value_head)):
        assert model.heads == [head]
        distributed.shard(model, world, blocks=model.blocks, heads=model.heads, precision="bf16")
        assert precision[head] is None and precision[model] == precision[model.blocks[0]] == torch.bfloat16


def test_the_end_token_is_trained_where_it_is_what_pads(base, tokenizer, tmp_path: Path) -> None:
    """Embeddings drop the gradient of the padding token."""
    model = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=torch.float32)
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    scorer = load_score_model(config_of(tmp_path), tokenizer, max_length=64)
    tree = TokenTree(np.array([5, 6, 7]), (Branch(np.array([9, tokenizer.eos_token_id]), np.ones(2, bool)),))
    batch = collate([tree], flat=not scorer.tree)
    scorer(batch, batch.last).sum().backward()
    assert scorer.plain.get_input_embeddings().weight.grad[tokenizer.eos_token_id].abs().max() > 1e-6


# ---- what the folder says


@pytest.mark.parametrize("readout", ["last", "mean"])
def test_config_says_how_it_is_read(readout: str, base, pairs, tmp_path: Path) -> None:
    model = reward_run(base("llama"), pairs, tmp_path / "run", readout=readout)
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "reward"}
    assert config["assent_head"] == {
        "weight": "score.weight",
        "class": "transformers",
        "read_at": "the end token of the answer",
        "trained_at": readout,
        "outputs": ["reward"],
        "weights": [1.0],
    }
    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    assert loaded.config.num_labels == 1
    ids = torch.arange(3, 13)[None]
    out = loaded(input_ids=ids, labels=torch.tensor([0.5]))
    assert out.loss.item() == pytest.approx((out.logits.item() - 0.5) ** 2, abs=1e-6), "it trains on as a regression"


def test_the_pipeline_gives_the_logit_itself(base, pairs, tmp_path: Path) -> None:
    from transformers import pipeline

    model = reward_run(base("llama"), pairs, tmp_path / "run")
    made = pipeline("text-classification", model=str(model), dtype=torch.float32, device="cpu")
    tokenizer = load_tokenizer(config_of(model))
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    logit = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)(input_ids=ids).logits.item()
    (found,) = made("hello")
    assert found["label"] == "reward" and found["score"] == pytest.approx(logit, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_the_cards_code_runs_as_it_stands(kind: str, base, pairs, tokenizer, tmp_path: Path, monkeypatch) -> None:
    model = reward_run(base(kind), pairs, tmp_path / "run")
    card = (model / "README.md").read_text()
    assert ("no sequence-classification class" in card) == (kind == "granite") and "Not exact" not in card
    code = card.split("```python\n")[1].split("```")[0]
    (tmp_path / "FOLDER").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    scorer = load_score_model(config_of(model), tokenizer, max_length=64, trainable=False, new_head=False)
    chat = Chat(load_tokenizer(config_of(model)))
    from assent.data.records import Example, Message, Response

    answers = tuple(Response((Message("assistant", text),)) for text in found["answers"])
    tree = chat.tree(Example((Message("user", found["question"]["content"]),), answers), 64)
    batch = collate([tree], flat=not scorer.tree)
    torch.testing.assert_close(found["rewards"], scorer.rewards(batch).reward, atol=1e-4, rtol=0)
