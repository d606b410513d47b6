"""Reward models that others trained, on folders made here in their shapes: LLaMA-Factory's value heads, GRM's, and
nine-output heads of Nemotron's kind, each beside what plain torch makes of the same tensors."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from assent import cli
from assent.algorithms.reward.pairs import train_reward
from assent.config import DataConfig, LoraConfig, ModelConfig, OptimConfig, RewardConfig, TrainConfig
from assent.data.chat import Chat
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.errors import ModelError
from assent.models.heads import WantedHead, load_score_model, save_reward_model, usage_of
from assent.models.stored_heads import NEMOTRON

HIDDEN = 32


def config_of(folder: Path, **options: Any) -> ModelConfig:
    return ModelConfig(str(folder), precision="fp32", **options)


def loaded(folder: Path, tokenizer, **options: Any):
    return load_score_model(config_of(folder), tokenizer, max_length=64, trainable=False, new_head=False, **options)


def rows() -> TreeBatch:
    draw = np.random.default_rng(4)
    trees = [
        TokenTree(draw.integers(3, 260, width), (Branch(draw.integers(3, 260, size), np.ones(size, bool)),))
        for width, size in ((6, 3), (1, 5), (9, 20))
    ]
    return collate(trees)


def rewards(folder: Path, tokenizer) -> Tensor:
    scorer, batch = loaded(folder, tokenizer), rows()
    with torch.no_grad():
        return scorer.rewards(batch).reward


@torch.no_grad()
def expected(model: Any, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Of each row by itself: the head's layers, ReLU between them, on the last of the hidden states, in float64."""
    found = []
    for segment in rows().segments:
        out = model(input_ids=rows().tokens[segment.start : segment.end][None], output_hidden_states=True)
        x = out.hidden_states[-1][0, -1].double()
        for index, (weight, bias) in enumerate(layers):
            x = weight.double() @ (x.relu() if index else x) + bias.double()
        found.append(x)
    return torch.stack(found).float()


def drawn(widths: tuple[int, ...], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(b, a, generator=generator), torch.randn(b, generator=generator))
        for a, b in zip(widths, widths[1:], strict=False)
    ]


def causal(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def plain_folder(base: Path, tokenizer, out: Path, extra: Mapping[str, Tensor] = {}) -> Path:
    """The causal model, with more tensors among its own."""
    causal(base).save_pretrained(out)
    tokenizer.save_pretrained(out)
    file = out / "model.safetensors"
    save_file({**load_file(file), **{name: x.contiguous() for name, x in extra.items()}}, file, {"format": "pt"})
    return out


def write_head(folder: Path, layers: list[tuple[Tensor, Tensor]], kind: str = "safetensors") -> None:
    """As LLaMA-Factory does."""
    ((weight, bias),) = layers
    tensors = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    if kind == "bin":
        torch.save(tensors, folder / "value_head.bin")
    else:
        save_file(tensors, folder / "value_head.safetensors")


@pytest.fixture(scope="module")
def folders(tiny_model_dir: Path, tokenizer, tmp_path_factory) -> Callable[[str], tuple[Path, Tensor]]:
    """By kind: a folder, and the rewards that plain torch gives."""
    made: dict[str, tuple[Path, Tensor]] = {}
    linear = drawn((HIDDEN, 1))
    mlp = {"grm": drawn((HIDDEN, 24, 1)), "grm deep": drawn((HIDDEN, 16, 16, 1)), "grm linear": drawn((HIDDEN, 1), 3)}

    def adapters(out: Path) -> Tensor:
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(
            causal(tiny_model_dir),
            PeftConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
        )
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        return expected(model.eval(), linear)

    def make(kind: str) -> tuple[Path, Tensor]:
        if kind in made:
            return made[kind]
        out = tmp_path_factory.mktemp("others") / kind.replace(" ", "-")
        if kind == "adapters":
            want = adapters(out)
            write_head(out, linear)
        elif kind in mlp:
            layers = mlp[kind]
            parts = ("weight", "bias")
            extra = {
                f"v_head.summary.{2 * i}.{part}" if len(layers) > 1 else f"v_head.summary.{part}": tensor
                for i, layer in enumerate(layers)
                for part, tensor in zip(parts, layer, strict=True)
            }
            plain_folder(tiny_model_dir, tokenizer, out, extra)
            file = out / "config.json"
            own = {"vhead_layer_type": "mlp", "vhead_num_neurons": 24, "vhead_num_layers": 1}
            file.write_text(json.dumps(json.loads(file.read_text()) | own))
            want = expected(causal(tiny_model_dir), layers)
        else:
            plain_folder(tiny_model_dir, tokenizer, out)
            write_head(out, linear, kind)
            want = expected(causal(tiny_model_dir), linear)
        made[kind] = out, want[:, 0]
        return made[kind]

    return make


KINDS = ("safetensors", "bin", "adapters", "grm", "grm deep", "grm linear")


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_those_of_the_value_head(kind: str, folders, tokenizer, caplog) -> None:
    folder, want = folders(kind)
    with caplog.at_level("INFO"):
        got = rewards(folder, tokenizer)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    assert "its reward head is the value head in" in caplog.text and "not loaded" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_value_head_gives_the_same(kind: str, folders, tokenizer, tmp_path: Path, capsys) -> None:
    """Where it is linear, transformers' own class reads it, without the bias: a constant, which is said."""
    folder, want = folders(kind)
    assert cli.main(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    torch.testing.assert_close(rewards(tmp_path / "out", tokenizer), want, atol=2e-4, rtol=1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert not any("v_head" in name or "lm_head" in name for name in names)
    if kind in ("grm", "grm deep"):
        assert config["assent_head"]["class"] == "assent" and "score.0.bias" in names
        return
    assert "others read the logits alone, to which assent adds" in capsys.readouterr().err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    segment = rows().segments[0]
    logit = model(input_ids=rows().tokens[: segment.end][None]).logits.item()
    assert logit + config["assent_head"]["offset"][0] == pytest.approx(want[0].item(), abs=1e-3)


def test_the_language_model_alone(folders, tmp_path: Path) -> None:
    folder, _ = folders("safetensors")
    assert cli.main(["export", str(folder), "--part", "policy", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
@pytest.mark.parametrize("kind", ["safetensors", "grm"])
def test_training_goes_on_from_it(kind: str, rank: int, folders, tokenizer, tmp_path: Path) -> None:
    """`assent reward` begins at the value head, and its folder and its checkpoint keep what was learnt."""
    folder, want = folders(kind)
    data = tmp_path / "pairs.jsonl"
    texts = [{"prompt": f"Question {i}?", "chosen": "yes, " * (i % 3 + 1), "rejected": "no"} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in texts))
    train_reward(
        RewardConfig(
            model=config_of(folder, lora=LoraConfig(rank=rank)),
            data=DataConfig(str(data), max_length=64),
            out=str(tmp_path / "run"),
            optim=OptimConfig(lr=1e-3, warmup=0.0, schedule="constant"),
            train=TrainConfig(batch_size=2, max_steps=2, save_every=2, threads=1),
        )
    )
    after = rewards(tmp_path / "run" / "model", tokenizer)
    name = "score.weight" if kind == "safetensors" else "score.0.weight"
    begun, learnt = (
        loaded(folder, tokenizer).plain.state_dict()[name],
        load_file(tmp_path / "run/model/model.safetensors"),
    )
    assert 1e-4 < (learnt[name] - begun).abs().max() < 3e-3, "it began at the value head, and was trained"
    assert (after - want).abs().max() > 1e-3
    (step,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    torch.testing.assert_close(rewards(step, tokenizer), after, atol=1e-4, rtol=1e-4)
    assert cli.main(["export", str(step), "--out", str(tmp_path / "out")]) == 0
    torch.testing.assert_close(rewards(tmp_path / "out", tokenizer), after, atol=1e-4, rtol=1e-4)


def test_answers_are_rewarded_by_it(folders, tiny_model_dir: Path, tmp_path: Path) -> None:
    folder, _ = folders("grm")
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(4)))
    command = (
        f"ppo --model.path {tiny_model_dir} --data.train {data} --data.max_length 64 --out {tmp_path / 'run'} "
        f"--sampling.max_new_tokens 8 --rewards.model {folder} --train.max_steps 1 --train.batch_size 2 "
        "--model.precision fp32 --train.threads 1"
    )
    assert cli.main(command.split()) == 0
    written = json.loads((tmp_path / "run" / "critic" / "config.json").read_text())
    assert written["assent_head"]["layers"] == [24], "the critic begins as its copy"


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({"v_head.summary.weight": torch.ones(1, 8), "v_head.summary.bias": torch.zeros(1)}, "is for another model"),
        ({"v_head.dense.weight": torch.ones(1, HIDDEN)}, "a value head of another kind, with v_head.dense.weight"),
        ({"v_head.summary.bias": torch.zeros(1)}, "lacks the weight of a layer"),
        (
            {"v_head.summary.weight": torch.full((1, HIDDEN), torch.nan), "v_head.summary.bias": torch.zeros(1)},
            "numbers that are not finite",
        ),
        (
            {"v_head.summary.0.weight": torch.ones(4, HIDDEN), "v_head.summary.2.weight": torch.ones(1, 5)},
            "do not fit together",
        ),
    ],
)
def test_a_value_head_that_does_not_fit(
    tensors: dict[str, Tensor], words: str, tiny_model_dir: Path, tokenizer, tmp_path: Path
) -> None:
    plain_folder(tiny_model_dir, tokenizer, tmp_path)
    save_file(tensors, tmp_path / "value_head.safetensors")
    with pytest.raises(ModelError, match=words) as refused:
        loaded(tmp_path, tokenizer)
    assert "value_head.safetensors" in str(refused.value)


def test_no_code_is_run(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    """A pickle may hold any code: torch reads tensors alone, and all else is refused."""

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    plain_folder(tiny_model_dir, tokenizer, tmp_path)
    for content in (pickle.dumps(Harm()), b"no pickle", b""):
        (tmp_path / "value_head.bin").write_bytes(content)
        with pytest.raises(ModelError, match="value_head.bin: not a readable value head"):
            loaded(tmp_path, tokenizer)
    torch.save(Harm(), tmp_path / "value_head.bin")
    with pytest.raises(ModelError, match="not a readable value head"):
        loaded(tmp_path, tokenizer)
    torch.save([torch.ones(1)], tmp_path / "value_head.bin")
    with pytest.raises(ModelError, match="expected named tensors"):
        loaded(tmp_path, tokenizer)
    assert not (tmp_path / "harm").exists()


# ---- nine outputs


@pytest.mark.parametrize("named", [True, False])
def test_nine_outputs(named: bool, tiny_model_dir: Path, tokenizer, tmp_path: Path, caplog) -> None:
    """The last five make the reward; the preference stage reads the one with index 4."""
    torch.manual_seed(2)
    labels = {"id2label": dict(enumerate(NEMOTRON))} if named else {}
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_dir, num_labels=9, problem_type="regression", dtype=torch.float32, **labels
    ).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    logits = []
    for segment in rows().segments:
        states = model.model(input_ids=rows().tokens[segment.start : segment.end][None]).last_hidden_state[0, -1]
        logits.append((model.score.weight.double() @ states.double()).detach().numpy())
    want = np.stack(logits)
    weighed = want[:, 4:] @ np.array([0.3, 0.74, 0.46, 0.47, -0.33])
    np.testing.assert_allclose(rewards(tmp_path, tokenizer), weighed, atol=1e-4)
    assert ("nine outputs without names" in caplog.text) == (not named)
    batch = rows()
    with torch.no_grad():
        one = loaded(tmp_path, tokenizer, head=WantedHead(only="helpfulness")).rewards(batch).reward
    np.testing.assert_allclose(one, want[:, 4], atol=1e-4)
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    np.testing.assert_allclose(rewards(tmp_path / "out", tokenizer), weighed, atol=1e-4)


def test_nine_labels_of_a_classifier_are_no_attributes(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=9, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert loaded(tmp_path, tokenizer).rule.weights == ()


def test_how_an_mlp_is_read_elsewhere(folders, tokenizer, tmp_path: Path) -> None:
    """What is written of it is compared with plain torch, as of every reward model."""
    scorer = loaded(folders("grm")[0], tokenizer)
    save_reward_model(scorer, Chat(tokenizer), tmp_path)
    assert usage_of(scorer.plain, Chat(tokenizer), tmp_path, config_of(tmp_path)).notes == ()


@pytest.mark.parametrize("kind", ["grm", "safetensors"])
def test_the_cards_code_runs_as_it_stands(kind: str, folders, tokenizer, tmp_path: Path, monkeypatch) -> None:
    from assent.data.records import Example, Message, Response
    from assent.models.loading import load_tokenizer
    from assent.train.card import reward_usage

    scorer = loaded(folders(kind)[0], tokenizer)
    chat = Chat(tokenizer)
    save_reward_model(scorer, chat, tmp_path / "FOLDER")
    text = reward_usage(usage_of(scorer.plain, chat, tmp_path / "FOLDER"))
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], found)
    answers = tuple(Response((Message("assistant", words),)) for words in found["answers"])
    chat = Chat(load_tokenizer(config_of(tmp_path / "FOLDER")))
    batch = collate([chat.tree(Example((Message("user", found["question"]["content"]),), answers), 64)])
    with torch.no_grad():
        want = scorer.rewards(batch).reward - sum(scorer.rule.offset)
    torch.testing.assert_close(found["rewards"], want, atol=2e-4, rtol=1e-4)
    assert ("assent adds" in text) == (kind == "safetensors")


# ---- heads among the model's own weights, and on the hub


def own_head(kind: str) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]], dict[str, str]]:
    """By who saved it: the head's tensors as they are called in model.safetensors, the same as layers, and what
    config.json says."""
    ((weight, bias),) = drawn((HIDDEN, 1), 5)
    if kind == "TRL":
        return {"v_head.summary.weight": weight, "v_head.summary.bias": bias}, [(weight, bias)], {}
    layers = [(weight, torch.zeros(1))]
    if kind == "OpenRLHF":
        return {"value_head.weight": weight}, layers, {}
    return {"critic_head.weight": weight}, layers, {"value_head_prefix": "critic_head"}


def folder_with(kind: str, base: Path, tokenizer, out: Path) -> tuple[Path, Tensor]:
    tensors, layers, words = own_head(kind)
    plain_folder(base, tokenizer, out, tensors)
    file = out / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | words))
    return out, expected(causal(base), layers)[:, 0]


@pytest.mark.parametrize("kind", ["TRL", "OpenRLHF", "OpenRLHF by a name of its own"])
def test_a_head_among_the_models_weights(kind: str, tiny_model_dir: Path, tokenizer, tmp_path: Path, caplog) -> None:
    folder, want = folder_with(kind, tiny_model_dir, tokenizer, tmp_path / "model")
    with caplog.at_level("INFO"):
        got = rewards(folder, tokenizer)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    assert "its reward head is the value head in" in caplog.text and "not loaded" not in caplog.text
    assert "is new and untrained" not in caplog.text


@pytest.mark.parametrize("kind", ["TRL", "OpenRLHF"])
def test_a_head_on_the_hub(kind: str, tiny_model_dir: Path, tokenizer, tmp_path: Path, monkeypatch, caplog) -> None:
    """Its weights are there before it is decided whether a head is new."""
    from huggingface_hub import constants

    cache = tmp_path / "models--others--rm"
    _, want = folder_with(kind, tiny_model_dir, tokenizer, cache / "snapshots" / "0a1b")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0a1b")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level("INFO"):
        scorer = load_score_model(ModelConfig("others/rm", precision="fp32"), tokenizer, max_length=64)
    batch = rows()
    with torch.no_grad():
        torch.testing.assert_close(scorer.rewards(batch).reward, want, atol=2e-4, rtol=1e-4)
    assert "is new and untrained" not in caplog.text


def test_a_head_beside_adapters_as_trl_writes_it(folders, tokenizer, tmp_path: Path) -> None:
    import shutil

    folder, want = folders("adapters")
    shutil.copytree(folder, tmp_path / "trl", ignore=shutil.ignore_patterns("value_head*"))
    torch.save(load_file(folder / "value_head.safetensors"), tmp_path / "trl" / "pytorch_model.bin")
    torch.testing.assert_close(rewards(tmp_path / "trl", tokenizer), want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["v_head.weight", "value_head.dense.weight"])
def test_a_head_of_another_kind_is_refused_by_name(name: str, tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    """Also where a new head would be made."""
    plain_folder(tiny_model_dir, tokenizer, tmp_path / "model", {name: torch.ones(1, HIDDEN)})
    with pytest.raises(ModelError, match=f"a value head of another kind, with {name}"):
        load_score_model(config_of(tmp_path / "model"), tokenizer, max_length=64)
