"""Several heads over one model: each on its own bootstrap sample, saved, read by others, one reward by a rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from assent import cli
from assent.algorithms.reward.ensemble import TIMES, HeadEnsemble, rule_for, with_samples
from assent.config import EnsembleSection, ModelConfig
from assent.data.packing import EpochStream
from assent.data.tree import Branch, TokenTree
from assent.errors import ModelError
from assent.models.heads import WantedHead, load_score_model
from assent.models.reward_head import HeadRule, rule_of

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
    made: dict[tuple[str, ...], Path] = {}

    def train(*options: str) -> Path:
        if options not in made:
            made[options] = tmp_path_factory.mktemp("runs") / "ensemble"
            words = [
                *("reward-ensemble", "--model.path", str(tiny_model_dir), "--model.precision", "fp32"),
                *("--data.train", str(pairs), "--data.eval", str(pairs), "--data.max_length", "64"),
                *("--out", str(made[options]), "--optim.lr", "1e-2", "--optim.schedule", "constant"),
                *("--train.batch_size", "4", "--train.max_steps", "4", "--train.threads", "1"),
            ]
            assert cli.main([*words, *options]) == 0
        return made[options]

    return train


def some_trees(number: int = 5) -> list[TokenTree]:
    draw = np.random.default_rng(4)

    def branch(size: int) -> Branch:
        return Branch(draw.integers(3, 260, size), np.ones(size, bool))

    return [
        TokenTree(
            draw.integers(3, 260, 6), (branch(3), branch(7), branch(2)), pairs=((0, 1, 0.5), (2, 0, 0.0)), key=key
        )
        for key in range(number)
    ]


# ---- the rule


@pytest.mark.parametrize("combine", ["mean", "min", "lcb"])
def test_the_rule_and_what_each_head_adds(combine: str) -> None:
    draw = np.random.default_rng(0)
    outputs = draw.normal(size=(7, 4))
    outputs[3] = 1.5  # they agree
    rule = HeadRule(("a", "b", "c", "d"), (0.25,) * 4, ensemble=combine, deviations=0.7)
    mean, std = outputs.mean(1), outputs.std(1)
    want = {"mean": mean, "min": outputs.min(1), "lcb": mean - 0.7 * std}[combine]
    np.testing.assert_allclose(rule.reward(torch.from_numpy(outputs)).numpy(), want, atol=1e-12)
    shares = rule.shares(torch.from_numpy(outputs)).numpy()
    np.testing.assert_allclose(shares.sum(1), want, atol=1e-12)
    if combine == "min":
        assert ((shares != 0).sum(1) == 1).all()
    got = eval(rule.code, {"outputs": torch.from_numpy(outputs), "torch": torch})
    np.testing.assert_allclose(got.numpy(), want, atol=1e-12)
    assert rule_of(rule.section(), "x").section() == rule.section() and rule.section()["ensemble"] == combine
    assert rule.reweighted({"b": 1.0}).reward(torch.from_numpy(outputs)).tolist() == outputs[:, 1].tolist()


@pytest.mark.parametrize("wrong", [{"ensemble": "median"}, {"ensemble": "lcb", "deviations": -1.0}])
def test_a_rule_that_is_none(wrong) -> None:
    with pytest.raises(ModelError, match="mean, min, lcb, with deviations >= 0"):
        rule_of({"outputs": ["a", "b"], "weights": [1, 1], **wrong}, "config.json")


# ---- training


def test_samples_are_bootstraps_of_prompts() -> None:
    trees = with_samples(some_trees(200), 3, seed=1)
    times = np.stack([tree.per_response[TIMES] for tree in trees])  # [prompts, responses, heads]
    assert (times == times[:, :1]).all() and (times[:, 0].sum(0) == 200).all()
    assert 0.3 < (times[:, 0] == 0).mean() < 0.44, "1/e are in no sample"
    assert abs(np.corrcoef(times[:, 0].T)[0, 1]) < 0.25
    again = np.stack([tree.per_response[TIMES] for tree in with_samples(some_trees(200), 3, seed=1)])
    other = np.stack([tree.per_response[TIMES] for tree in with_samples(some_trees(200), 3, seed=2)])
    assert (times == again).all() and (times != other).any()


@pytest.mark.parametrize("margin", [False, True])
def test_each_head_learns_from_its_own_sample(margin: bool, tiny_model_dir, tokenizer) -> None:
    """Loss and gradients against numpy in float64."""
    section = EnsembleSection(heads=3, margin=margin)
    scorer = load_score_model(
        ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, max_length=64, head=WantedHead(rule_for(section))
    )
    trees = with_samples(some_trees(), 3, seed=0)
    stream = EpochStream(trees, batch_size=5, micro_tokens=1000, seed=0, flat=False)
    window = stream.pack(trees)
    (batch,) = window.batches
    found = HeadEnsemble(scorer, stream, section).loss(batch, window.counts)
    found.total.backward()
    with torch.no_grad():
        states = scorer.hidden(batch).index_select(0, batch.last).double().numpy()
    weight = scorer.head.weight.detach().double().numpy()
    outputs, total, gradient = states @ weight.T, 0.0, np.zeros_like(weight)
    for m, (chosen, rejected) in enumerate(batch.pairs.tolist()):
        for head in range(3):
            gap = outputs[chosen, head] - outputs[rejected, head] - (batch.margin[m].item() if margin else 0.0)
            times = trees[chosen // 3].per_response[TIMES][0, head]
            total += times * np.log1p(np.exp(-gap)) / (3 * len(batch.pairs))
            gradient[head] += -times / (1 + np.exp(gap)) * (states[chosen] - states[rejected]) / (3 * len(batch.pairs))
    assert found.total.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(scorer.head.weight.grad.numpy(), gradient, atol=1e-6)


@pytest.mark.parametrize("options", [("--ensemble.frozen", "--ensemble.heads", "3"), ("--ensemble.combine", "lcb")])
def test_the_folder_is_read_alike_by_others_and_scored_by_its_rule(options, trained, pairs, tiny_model_dir, capsys):
    run = trained(*options)
    folder = run / "model"
    heads = 3 if "--ensemble.heads" in options else 5
    told = json.loads((folder / "config.json").read_text())
    assert told["assent_head"]["ensemble"] == ("lcb" if "lcb" in options else "mean")
    assert list(told["id2label"].values()) == [f"head-{n}" for n in range(1, heads + 1)]
    before, after = (load_file(each / "model.safetensors") for each in (tiny_model_dir, folder))
    same = torch.equal(before["model.layers.0.mlp.down_proj.weight"], after["model.layers.0.mlp.down_proj.weight"])
    assert same == ("--ensemble.frozen" in options) and after["score.weight"].shape == (heads, 32)

    capsys.readouterr()
    assert cli.main(["score", str(run), str(pairs), "--precision", "fp32", "--explain"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = []
    for row in ROWS:
        for side in ("chosen", "rejected"):
            talk = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
            with torch.no_grad():
                logits.append(model(input_ids=ids).logits[0].numpy())
    logits = np.stack(logits)
    got = np.array([[row["parts"][f"model/head-{n}"] for n in range(1, heads + 1)] for row in rows])
    np.testing.assert_allclose(got, logits, atol=3e-5)
    std = logits.std(1)
    assert std.min() > 1e-3, "the heads differ"
    want = logits.mean(1) - (std if "lcb" in options else 0)
    np.testing.assert_allclose([row["reward"] for row in rows], want, atol=3e-5)
    np.testing.assert_allclose([row["columns"]["model/std"] for row in rows], std, atol=3e-5)
    np.testing.assert_allclose([sum(row["shares"].values()) for row in rows], want, atol=3e-5)
    card = (folder / "README.md").read_text()
    assert "rewards = outputs.mean(-1)" in card

    capsys.readouterr()
    assert cli.main(["score", str(run), str(pairs), "--precision", "fp32", "--weights", "head-2:2"]) == 0
    alone = [json.loads(line)["reward"] for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(alone, 2 * logits[:, 1], atol=6e-5)
    assert cli.main(["score", str(run), str(pairs), "--weights", "head-9:1"]) == 2
    assert "no output is called 'head-9'" in capsys.readouterr().err


def test_their_disagreement_is_in_the_trust_report(trained, pairs, tmp_path, capsys) -> None:
    """Each head's accuracy, the share of pairs on which they are divided, and how their spread points at errors: of
    the same numbers that `assent score` writes."""
    run = trained("--ensemble.combine", "lcb")
    words = ["trust", str(run), str(pairs), "--precision", "fp32", "--out", str(tmp_path / "out"), "--probes", "0"]
    assert cli.main(words) == 0
    assert "disagreement" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "trust.json").read_text())["files"][0]["disagreement"]
    assert cli.main(["score", str(run), str(pairs), "--precision", "fp32"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    outputs = np.array([[row["parts"][f"model/head-{n}"] for n in range(1, 6)] for row in rows])
    gaps = outputs[0::2] - outputs[1::2]
    np.testing.assert_allclose([head["mean"] for head in found["members"]], (gaps > 0).mean(0))
    assert found["split"]["mean"] == pytest.approx(np.mean([len({*np.sign(gap)}) > 1 for gap in gaps]))
    end = json.loads((run / "trust.json").read_text())["disagreement"]
    assert len(end["members"]) == 5, "the report at the end of training has them too"
    np.testing.assert_allclose([head["mean"] for head in end["members"]], (gaps > 0).mean(0))


def test_frozen_heads_and_adapters_exclude_each_other(tiny_model_dir, pairs, tmp_path, capsys) -> None:
    words = ["reward-ensemble", "--model.path", str(tiny_model_dir), "--data.train", str(pairs), "--out", str(tmp_path)]
    assert cli.main([*words, "--ensemble.frozen", "--model.lora.rank", "4"]) == 2
    assert "--ensemble.frozen trains the heads alone" in capsys.readouterr().err
    assert cli.main([*words, "--ensemble.heads", "1"]) == 2
    assert "--ensemble.heads must be at least 2. Got 1." in capsys.readouterr().err
