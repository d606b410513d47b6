"""Reward models of several outputs: the rule that makes one reward of them, folders, and who reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GraniteConfig

from assent import cli
from assent.config import LoraConfig, ModelConfig
from assent.data.chat import Chat
from assent.data.packing import idle, window
from assent.data.records import Example, Message, Response
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.distributed import World
from assent.errors import ConfigError, ModelError
from assent.models.annotate import BatchColumns, columns_of
from assent.models.heads import WantedHead, load_score_model, save_reward_model, usage_of
from assent.models.policy import ScoreModel
from assent.models.recipe import others_scores, probes
from assent.models.reward_head import SCALAR, HeadRule, rule_of
from assent.models.stored_heads import write_rule
from assent.rewards.build import reweight
from assent.rewards.group import Group
from assent.rewards.model import ModelReward

ALONE = World(0, 1, 0, torch.device("cpu"))
RULE = HeadRule(("helpfulness", "verbosity", "tone"), (0.5, -1.25, 2.0), ((0, 4), (0, 4), (1, 5)))


def fp32(folder: Path, **options: Any) -> ModelConfig:
    return ModelConfig(str(folder), precision="fp32", **options)


def rows(flat: bool = False) -> TreeBatch:
    draw = np.random.default_rng(4)
    trees = [
        TokenTree(
            draw.integers(3, 260, width),
            tuple(Branch(draw.integers(3, 260, size), np.ones(size, bool)) for size in sizes),
        )
        for width, sizes in ((6, (3, 7)), (1, (5,)), (9, (20, 2)))
    ]
    return collate(trees, flat=flat)


@pytest.fixture(scope="module")
def granite(tokenizer, tmp_path_factory) -> Path:
    """A tiny model of a type for which transformers has no sequence-classification class."""
    folder = tmp_path_factory.mktemp("granite")
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tiny_model_dir: Path, granite: Path, tokenizer, tmp_path_factory) -> Callable[[str], Path]:
    """Folders of reward models with three outputs."""
    found: dict[str, Path] = {}

    def make(kind: str = "llama") -> Path:
        if kind not in found:
            base = {"llama": tiny_model_dir, "granite": granite}[kind]
            scorer = load_score_model(fp32(base), tokenizer, max_length=64, seed=7, head=WantedHead(RULE))
            with torch.no_grad():
                scorer.head.weight.mul_(20)
            found[kind] = tmp_path_factory.mktemp("made") / kind
            save_reward_model(scorer.eval(), Chat(tokenizer), found[kind])
        return found[kind]

    return make


def loaded(folder: Path, tokenizer, **options: Any) -> ScoreModel:
    return load_score_model(fp32(folder), tokenizer, max_length=64, trainable=False, new_head=False, **options)


# ---- the rule


def test_the_rule_in_float64() -> None:
    outputs = torch.tensor([[1.0, 2.0, 3.0], [0.5, -4.0, 0.25]])
    want = outputs.double().numpy() @ np.array([0.5, -1.25, 2.0])
    np.testing.assert_allclose(RULE.reward(outputs).numpy(), want, rtol=1e-6)
    np.testing.assert_allclose(RULE.shares(outputs).numpy(), outputs.numpy() * [0.5, -1.25, 2.0], rtol=1e-6)
    assert torch.equal(SCALAR.reward(outputs[:, :1]), outputs[:, 0]), "one output is the reward, to the bit"


def test_another_rule() -> None:
    assert RULE.reweighted({"tone": 3, "helpfulness": 1}).weights == (1.0, 0.0, 3.0)
    with pytest.raises(ConfigError, match="no output is called 'helpfulnes'. Perhaps you meant 'helpfulness'"):
        RULE.reweighted({"helpfulnes": 1})
    with pytest.raises(ConfigError, match="all weights are 0"):
        RULE.reweighted({"tone": 0.0})
    with pytest.raises(ConfigError, match="expected a finite number"):
        RULE.reweighted({"tone": float("nan")})
    with pytest.raises(ModelError, match="3 outputs .* does not say how they become one reward.*output_weights"):
        replace(RULE, weights=()).reward(torch.zeros(1, 3))


def test_the_rule_is_written_and_read() -> None:
    for rule in (RULE, SCALAR, replace(RULE, weights=()), replace(RULE, offset=(1.0, 2.0, -3.5))):
        assert rule_of(json.loads(json.dumps(rule.section())), "here") == rule
    for broken in ({}, {"outputs": []}, {"outputs": ["a", "a"]}, {"outputs": ["a"], "weights": [1, 2]}):
        with pytest.raises(ModelError, match="^here: what it says of its reward head"):
            rule_of(broken, "here")
    with pytest.raises(ModelError, match="cannot be read"):
        rule_of({"outputs": ["a"], "weights": ["much"]}, "here")


# ---- folders


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_transformers_reads_the_same_outputs(kind: str, made, tokenizer) -> None:
    folder = made(kind)
    scorer = loaded(folder, tokenizer)
    batch = rows(flat=not scorer.tree)
    with torch.no_grad():
        outputs, scored = scorer(batch, batch.last), scorer.rewards(batch)
    assert outputs.shape == (5, 3) and outputs.std(0).min() > 1e-2 and scorer.rule == RULE
    assert torch.equal(scored.outputs, outputs)
    np.testing.assert_allclose(scored.reward, outputs.double().numpy() @ np.array(RULE.weights), atol=1e-5)
    torch.testing.assert_close(scored.shares.sum(-1), scored.reward, atol=1e-6, rtol=0)

    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == list(RULE.names) and config["problem_type"] == "regression"
    assert config["assent_head"]["class"] == ("transformers" if kind == "llama" else "assent")
    assert config["assent_head"]["weights"] == [0.5, -1.25, 2.0] and config["assent_head"]["scale"][2] == [1, 5]
    if kind == "llama":
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        assert model.config.num_labels == 3
        ids = batch.tokens[: batch.segments[0].branches[0][1]][None]
        torch.testing.assert_close(model(input_ids=ids).logits, outputs[:1], atol=1e-5, rtol=0)
    chat = Chat(AutoTokenizer.from_pretrained(folder))
    usage = usage_of(scorer.plain, chat, folder, fp32(folder))
    assert usage.notes == () and usage.rule == RULE
    examples = list(probes(Chat(tokenizer), 256).values())
    own = collate([Chat(tokenizer).tree(example, 256) for example in examples], flat=not scorer.tree)
    for theirs in others_scores(folder, usage, examples).values():
        torch.testing.assert_close(theirs, scorer(own, own.last), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_what_is_saved_gives_the_same_outputs(
    kind: str, rank: int, tied: bool, dtype: str, tiny_model_dir: Path, granite: Path, tokenizer, tmp_path: Path
) -> None:
    """Trained for a step, saved, loaded again: by the whole folder, and by the adapters on their base."""
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(
        {"llama": tiny_model_dir, "granite": granite}[kind],
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype],
        tie_word_embeddings=tied,
    )
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    scorer = load_score_model(
        fp32(base, lora=LoraConfig(rank=rank)), tokenizer, max_length=64, seed=3, head=WantedHead(RULE)
    )
    batch = rows(flat=not scorer.tree)
    scorer.rewards(batch).reward.square().sum().backward()
    torch.optim.SGD([p for p in scorer.parameters() if p.requires_grad], lr=0.02).step()
    with torch.no_grad():
        want = scorer.eval()(batch, batch.last)
    save_reward_model(scorer, Chat(tokenizer), tmp_path / "out")
    places = [tmp_path / "out", *([tmp_path / "out" / "adapter"] if rank else [])]
    for place in places:
        again = loaded(place, tokenizer)
        assert again.rule == RULE
        with torch.no_grad():
            gap = (again(batch, batch.last) - want).abs().max().item()
        # a head is kept in fp32 always; weights (and in adapters/, their factors) are rounded to what came in
        assert gap < (1e-5 if dtype == "fp32" else 3e-2), place


def test_a_head_of_other_outputs_is_refused(made, tokenizer, capsys) -> None:
    three = made()
    with pytest.raises(ModelError, match=r"has 3 outputs \(helpfulness, verbosity, tone\); asked for are one output"):
        loaded(three, tokenizer, head=WantedHead(HeadRule(("quality",))))
    with pytest.raises(ModelError, match="asked for are 3 outputs .a, b, c."):
        loaded(three, tokenizer, head=WantedHead(HeadRule(("a", "b", "c"), (1.0, 1.0, 1.0))))
    other = replace(RULE, weights=(1.0, 0.0, 0.0))
    assert loaded(three, tokenizer, head=WantedHead(other)).rule == other, "the same outputs by another rule"


def test_a_new_head_is_said(tiny_model_dir: Path, tokenizer, capsys) -> None:
    load_score_model(fp32(tiny_model_dir), tokenizer, max_length=64, head=WantedHead(RULE))
    words = capsys.readouterr().err
    assert "its head of 3 outputs (helpfulness, verbosity, tone) (score.weight) is new and untrained" in words


def test_one_output_of_several(made, tokenizer, tmp_path: Path) -> None:
    """Its values, in a folder of a single output."""
    folder = made()
    one, all_of_them = loaded(folder, tokenizer, head=WantedHead(only="verbosity")), loaded(folder, tokenizer)
    batch = rows()
    with torch.no_grad():
        torch.testing.assert_close(one(batch, batch.last)[:, 0], all_of_them(batch, batch.last)[:, 1])
    assert torch.equal(one.head.weight[0], all_of_them.head.weight[1])
    assert one.rule == HeadRule(("verbosity",), (1.0,), ((0, 4),))
    save_reward_model(one, Chat(tokenizer), tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.num_labels == 1 and model.config.id2label == {0: "verbosity"}
    with pytest.raises(ModelError, match="--reward.output honesty: .* has 3 outputs .helpfulness, verbosity, tone."):
        loaded(folder, tokenizer, head=WantedHead(only="honesty"))


def test_a_classifier_of_others(tiny_model_dir: Path, tokenizer, tmp_path: Path) -> None:
    """Its outputs have their labels' names, and no rule until one is given."""
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_dir, num_labels=3, id2label={0: "good", 1: "bad", 2: "ugly"}, dtype=torch.float32
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = loaded(tmp_path, tokenizer)
    assert scorer.rule == HeadRule(("good", "bad", "ugly"), ())
    with pytest.raises(ModelError, match=r"'judge' has 3 outputs \(good, bad, ugly\).*--rewards.output_weights"):
        reward("judge", scorer, tokenizer)
    reweight(scorer, {"good": 1, "bad": -1}, "here")
    batch = rows()
    with torch.no_grad():
        outputs = scorer(batch, batch.last)
        torch.testing.assert_close(scorer.rewards(batch).reward, outputs[:, 0] - outputs[:, 1])
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=2, dtype=torch.float32)
    plain.save_pretrained(tmp_path)
    assert loaded(tmp_path, tokenizer).rule.names == ("LABEL_0", "LABEL_1"), "transformers' default is not written"


def test_a_rule_that_does_not_fit_the_weights(made, tokenizer, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["assent_head"]["outputs"] = ["a", "b"]
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not fit together"):
        loaded(tmp_path / "model", tokenizer)
    config["assent_head"] |= {"weights": [1, 1], "scale": [[0, 1], [0, 1]]}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="id2label has 3 labels, and assent_head 2 outputs"):
        loaded(tmp_path / "model", tokenizer)
    write_rule(tmp_path, RULE)
    assert json.loads((tmp_path / "reward_head.json").read_text())["outputs"] == list(RULE.names)


def test_export_keeps_the_outputs(made, tokenizer, tmp_path: Path) -> None:
    assert cli.main(["export", str(made()), "--out", str(tmp_path / "out")]) == 0
    batch = rows()
    with torch.no_grad():
        want = loaded(made(), tokenizer)(batch, batch.last)
        assert torch.equal(loaded(tmp_path / "out", tokenizer)(batch, batch.last), want)
    assert loaded(tmp_path / "out", tokenizer).rule == RULE


# ---- who reads them


def reward(name: str, scorer: ScoreModel, tokenizer) -> ModelReward:
    chat = Chat(tokenizer)
    return ModelReward(name, scorer, chat, chat, max_length=64, micro_tokens=40, world=ALONE)


def test_rewards_with_their_parts(made, tokenizer) -> None:
    scorer = loaded(made(), tokenizer)
    groups, trees = [], []
    for question, answers in (("What?", ("red", "green blue")), ("Who?", ("me",))):
        example = Example((Message("user", question),))
        responses = tuple(Response((Message("assistant", text),)) for text in answers)
        tree = Chat(tokenizer).tree(replace(example, responses=responses), 64)
        ids = tuple(branch.ids for branch in tree.branches)
        groups.append(Group(example, answers, (True,) * len(ids), tuple(map(len, ids)), ids, tree.prompt))
        trees.append(tree)
    found = reward("judge", scorer, tokenizer).score(groups)
    with torch.no_grad():
        batch = collate(trees)
        outputs = scorer(batch, batch.last).double().numpy()
    assert list(found.parts) == list(RULE.names) and found.failures == {}
    np.testing.assert_allclose(np.stack(list(found.parts.values()), 1), outputs, atol=1e-5)
    np.testing.assert_allclose(found.values, outputs @ np.array(RULE.weights), atol=1e-5)
    reweight(scorer, {"tone": 2.0}, "here")
    np.testing.assert_allclose(reward("judge", scorer, tokenizer).score(groups).values, 2 * outputs[:, 2], atol=1e-5)


def test_weights_of_a_single_output_are_refused(scorer_dir: Path, tokenizer) -> None:
    scorer = loaded(scorer_dir, tokenizer)
    with pytest.raises(ConfigError, match="has a single output"):
        reweight(scorer, {"reward": 1}, str(scorer_dir))


@pytest.mark.parametrize(
    "weights, words",
    [
        ("helpfulnes:1", "no output is called 'helpfulnes'. Perhaps you meant 'helpfulness'"),
        ("tone:0", "all are 0"),
    ],
)
def test_the_command_says_what_is_wrong(
    weights: str, words: str, made, tiny_model_dir: Path, tmp_path: Path, capsys
) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(4)))
    command = (
        f"grpo --model.path {tiny_model_dir} --data.train {data} --data.max_length 64 --out {tmp_path / 'run'} "
        f"--sampling.max_new_tokens 8 --rewards.model {made()} --rewards.output_weights {weights} --train.max_steps 1"
    )
    assert cli.main(command.split()) == 2 and words in capsys.readouterr().err


def test_columns_and_batches_with_several_numbers() -> None:
    """Packing, an idle micro-batch and a selection keep [S, K]."""
    draw = np.random.default_rng(0)
    trees = [
        TokenTree(
            np.arange(3),
            tuple(Branch(np.arange(size), np.ones(size, bool)) for size in sizes),
            per_response={"ratings": draw.random((len(sizes), 2), np.float32)},
        )
        for sizes in ((2, 3), (4,), (1, 1, 6))
    ]
    everything = np.concatenate([tree.per_response["ratings"] for tree in trees])
    batch = collate(trees)
    np.testing.assert_array_equal(batch.per_response["ratings"], everything)
    keep = torch.tensor([True, False, False, True, False, True])
    np.testing.assert_array_equal(batch.select(keep).per_response["ratings"], everything[keep.numpy()])
    assert idle(trees[0]).per_response["ratings"].shape == (0, 2)
    made = window(trees, micro_tokens=12, ranks=4, rank=3)
    assert all(each.per_response["ratings"].shape[1] == 2 for each in made.batches)
    found = columns_of(
        trees, lambda b: BatchColumns(per_response={"x": b.per_response["ratings"]}), micro_tokens=12, flat=False,
        world=ALONE,
    )  # fmt: skip
    np.testing.assert_array_equal(found.per_response["x"], everything)
