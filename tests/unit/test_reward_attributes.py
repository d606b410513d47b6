"""Reward models from ratings: the loss, what is rated and how, and the command from a file to a folder that others
read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from assent import cli
from assent.algorithms.reward.attributes import AttributeRegression, begin_at, correlations, rule_for, train_attributes
from assent.config import AttributesConfig, AttributesSection, DataConfig, LoraConfig, ModelConfig, TrainConfig
from assent.data.attributes import AttributeView, Spread, deciding, names_of, spread_of, with_ratings_field
from assent.data.packing import EpochStream, count, window
from assent.data.records import Example, Message, Origin, Pair, Rating, Response
from assent.data.tree import Branch, TokenTree
from assent.errors import ConfigError, DataError
from assent.losses import attribute_regression, rated
from assent.models.heads import WantedHead, load_score_model
from assent.models.reward_head import HeadRule
from assent.train.log import read_jsonl

NAN = math.nan
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def example(*ratings: Rating, responses: int = 2, row: int = 1, extra: Sequence[Any] = ()) -> Example:
    answers = tuple(Response((Message("assistant", f"answer {i}"),)) for i in range(responses))
    return Example((Message("user", f"Question {row}?"),), answers, (*ratings, *extra), Origin("rows.jsonl", row))


# ---- the loss


def test_the_loss_in_float64() -> None:
    draw = np.random.default_rng(0)
    outputs, ratings = draw.normal(size=(7, 3)), draw.integers(0, 5, (7, 3)).astype(float)
    ratings[0, 1] = ratings[3] = NAN
    ratings[5, 2] = -100.0
    given = ~(np.isnan(ratings) | (ratings == -100))
    want = np.where(given, (outputs - np.where(given, ratings, 0)) ** 2, 0.0)
    x = torch.from_numpy(outputs).requires_grad_()
    loss = attribute_regression(x.flatten(), torch.from_numpy(ratings).flatten())
    np.testing.assert_allclose(loss.detach().view(7, 3), want)
    assert torch.equal(rated(torch.from_numpy(ratings)), torch.from_numpy(given))
    (loss.sum() / given.sum()).backward()
    gradient = np.where(given, 2 * (outputs - np.where(given, ratings, 0)), 0.0) / given.sum()
    np.testing.assert_allclose(x.grad, gradient)
    with pytest.raises(ValueError, match=r"expected the same shape \[E\]"):
        attribute_regression(torch.zeros(2), torch.zeros(3))


@pytest.fixture
def scored_trees(tiny_model_dir: Path, tokenizer):
    """A model of two outputs, and trees of which the third has no rating of the second attribute."""
    rule = HeadRule(("a", "b"), (1.0, 1.0))
    config = ModelConfig(str(tiny_model_dir), precision="fp32")
    scorer = load_score_model(config, tokenizer, max_length=64, seed=3, head=WantedHead(rule))
    draw = np.random.default_rng(1)
    trees = []
    for key, sizes in enumerate(((3, 9), (4,), (2, 2, 11), (6,))):
        branches = tuple(Branch(draw.integers(3, 260, size), np.ones(size, bool)) for size in sizes)
        ratings = draw.integers(0, 5, (len(sizes), 2)).astype(np.float32)
        if key == 2:
            ratings[:, 1] = NAN
        trees.append(TokenTree(draw.integers(3, 260, 5), branches, per_response={"ratings": ratings}, key=key))
    return scorer, trees


def test_the_mean_is_over_all_ratings_of_a_step(scored_trees) -> None:
    """Not over those of a micro-batch: any packing gives the same loss and gradient."""
    scorer, trees = scored_trees
    assert count(trees).ratings == 2 + 2 + 2 + 3 + 2
    ratings = np.concatenate([tree.per_response["ratings"] for tree in trees]).astype(np.float64)
    found = []
    for micro_tokens in (1000, 20):
        algorithm = AttributeRegression(scorer, EpochStream(trees, batch_size=4, micro_tokens=20, seed=0, flat=False))
        made = window(trees, micro_tokens=micro_tokens)
        scorer.zero_grad()
        total, outputs = 0.0, {}
        sums: dict[str, list[float]] = {}
        for batch in made.batches:
            loss = algorithm.loss(batch, made.counts)
            loss.total.backward()
            total += float(loss.total.detach())
            for name, (value, number) in loss.metrics.items():
                old = sums.setdefault(name, [0.0, 0.0])
                old[0] += float(value.detach())
                old[1] += number
            rows = torch.stack([loss.items["output/a"], loss.items["output/b"]], 1)
            outputs |= {(batch.keys[p], i): row for i, (p, row) in enumerate(zip(batch.prompt.tolist(), rows))}
        found.append((len(made.batches), total, scorer.head.weight.grad.clone(), sums))
    assert found[0][0] == 1 < found[1][0]
    batch = window(trees, micro_tokens=1000).batches[0]
    with torch.no_grad():
        errors = (scorer(batch, batch.last).double().numpy() - ratings) ** 2
    for _, total, _, sums in found:
        assert total == pytest.approx(np.nanmean(errors), rel=1e-5)
        assert sums["mse"][0] / sums["mse"][1] == pytest.approx(np.nanmean(errors), rel=1e-5)
        for k, name in enumerate("ab"):
            assert sums[f"mse/{name}"][0] / sums[f"mse/{name}"][1] == pytest.approx(np.nanmean(errors[:, k]), rel=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-6, rtol=1e-4)


def test_evaluations_are_compared_by_tree(scored_trees) -> None:
    scorer, trees = scored_trees
    algorithm = AttributeRegression(scorer, EpochStream(trees, batch_size=4, micro_tokens=20, seed=0, flat=False))
    made = window(trees, micro_tokens=1000)
    loss = algorithm.loss(made.batches[0], made.counts)
    assert loss.followed is not None and loss.followed[1].tolist() == [4, 2, 3, 2]
    assert float(loss.followed[0].sum() / 11) == pytest.approx(float(loss.total.detach()), rel=1e-5)


def test_correlations() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 20))
    y[4] = NAN
    kept = ~np.isnan(y)
    items = {"output/a": x, "rating/a": y, "output/b": x, "rating/b": np.full(20, 2.0)}
    found = correlations(items)
    assert found["correlation/a"] == pytest.approx(np.corrcoef(x[kept], y[kept])[0, 1]) == found["correlation"]
    assert "correlation/b" not in found, "a constant has none"
    assert correlations({"output/a": -x, "rating/a": x}) == {"correlation": pytest.approx(-1.0)}


def test_a_new_head_begins_at_the_mean_ratings(scored_trees) -> None:
    scorer, trees = scored_trees
    begin_at(scorer, trees, [2.5, -1.0], 1000)
    batch = window(trees, micro_tokens=1000).batches[0]
    with torch.no_grad():
        np.testing.assert_allclose(scorer(batch, batch.last).mean(0), [2.5, -1.0], atol=1e-4)


# ---- what is rated


def test_ratings_of_several_annotators_and_attributes() -> None:
    """The mean of those who gave an attribute; NaN where nobody did; responses without any are left out."""
    rows = [
        example(Rating(0, {"x": 1, "y": 4}, "ada"), Rating(0, {"x": 2}, "bo"), Rating(2, {"y": 3}), responses=3),
        example(Rating(1, {"z": 5, "x": -100.0}), row=2),
        example(Rating(0, {"y": -100.0, "x": NAN}), row=3),
        example(row=4, extra=(Pair(0, 1),)),
    ]
    kept, problems = AttributeView()(rows)
    assert names_of(kept) == ("x", "y", "z")
    found = [list(item.scores.values()) for item in kept[0].feedback if isinstance(item, Rating)]
    np.testing.assert_array_equal(found, [[1.5, 4, NAN], [NAN, 3, NAN]])
    assert [response.text for response in kept[0].responses] == ["answer 0", "answer 2"]
    assert kept[1].feedback[0].response == 0 and kept[1].responses[0].text == "answer 1"
    assert [(str(p), p.fault) for p in problems] == [
        ("rows.jsonl:3: feedback: rated by none of the attributes", False),
        ("rows.jsonl:4: feedback: no ratings", True),
    ]


def test_the_training_data_decide_which_attributes_there_are() -> None:
    view = deciding(AttributeView())
    train, _ = view([example(Rating(0, {"b": 1, "a": 2}))])
    rows = [Rating(0, {"a": 3, "c": 9}), Rating(0, {"c": 1}), Rating(0, {"b": 1})]
    held, problems = view([example(rating, row=i) for i, rating in enumerate(rows)])
    assert names_of(train) == names_of(held) == ("b", "a")
    assert len(held) == 2 and not problems[0].fault
    with pytest.raises(DataError, match="has no ratings called 'b'"):
        view([example(Rating(0, {"c": 1}))])


def test_what_cannot_be_rated() -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: ratings are needed.*This file has none"):
        AttributeView()([example(extra=(Pair(0, 1),))])
    with pytest.raises(
        DataError, match="no ratings called 'hlpfulness'. Perhaps you meant 'helpfulness'. There are: helpf"
    ):
        AttributeView(("hlpfulness",))([example(Rating(0, {"helpfulness": 1}))])
    _, problems = AttributeView(scale=(0, 4))([example(Rating(0, {"x": 5})), example(Rating(0, {"x": 4}), row=2)])
    ends = "0 (--attributes.lowest) to 4 (--attributes.highest)"
    assert str(problems[0]) == f"rows.jsonl:1: x: expected a rating from {ends}, got 5"
    assert len(problems) == 1 and problems[0].fault
    _, (problem,) = AttributeView()([example(Rating(0, {"x": math.inf})), example(Rating(0, {"x": 1}), row=2)])
    assert "expected a finite number" in str(problem)


def test_an_attribute_may_be_called_rating(tokenizer) -> None:
    from assent.data.chat import Chat

    kept, _ = AttributeView()([example(Rating(0, {"rating": 3}), Rating(1, {"rating": 1}))])
    (tree,) = with_ratings_field([Chat(tokenizer).tree(kept[0], 64)])
    assert tree.per_response.keys() == {"ratings"}
    np.testing.assert_array_equal(tree.per_response["ratings"], [[3], [1]])


def test_the_rule(caplog) -> None:
    five = {name: Spread(10, 0.0, 4.0, 2.0) for name in HELPSTEER}
    assert rule_for(AttributesSection(), five).weights == (0.3, 0.74, 0.46, 0.47, -0.33)
    swapped = dict(reversed(five.items()))
    assert rule_for(AttributesSection(), swapped).weights == (-0.33, 0.47, 0.46, 0.74, 0.3), "by name, not by place"
    two = {"x": Spread(3, 1.0, 5.0, 2.0), "y": Spread(3, 0.0, 1.0, 0.5)}
    assert rule_for(AttributesSection(), two) == HeadRule(("x", "y"), (0.5, 0.5), ((1.0, 5.0), (0.0, 1.0)))
    assert rule_for(AttributesSection(lowest=0, highest=9), two).scale == ((0, 9), (0, 9))
    assert rule_for(AttributesSection(weights={"y": 2.0}), two).weights == (0.0, 2.0)
    with pytest.raises(ConfigError, match="--attributes.weights: no output is called 'z'"):
        rule_for(AttributesSection(weights={"z": 2.0}), two)
    assert not caplog.records
    flat = two | {"y": Spread(3, 1.0, 1.0, 1.0)}
    rule_for(AttributesSection(), flat)
    assert "the attribute y is 1 in all 3 ratings: nothing to learn" in caplog.text
    with pytest.raises(DataError, match="All ratings of y are equal"):
        rule_for(AttributesSection(), {"y": flat["y"]})
    with pytest.raises(DataError, match="No rating to train on of x"):
        rule_for(AttributesSection(), two | {"x": Spread(0, NAN, NAN, NAN)})


# ---- the command


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """HelpSteer2's columns: helpfulness rises with "good" words, verbosity with length."""
    draw = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("ratings") / "helpsteer.jsonl"
    rows = []
    for i in range(10):
        for _ in range(2):
            good, words = int(draw.integers(0, 5)), int(draw.integers(0, 5))
            answer = " ".join(["good"] * good + ["word"] * (2 * words) + ["end"])
            scores = dict(zip(HELPSTEER, (good, good, 3, words, words), strict=True))
            rows.append({"prompt": f"Question {i}?", "response": answer, **scores})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def configured(model: Path, data: Path, out: Path, rank: int = 0, **section: Any) -> AttributesConfig:
    return AttributesConfig(
        model=ModelConfig(str(model), precision="fp32", lora=LoraConfig(rank=rank)),
        data=DataConfig(str(data), max_length=64, eval_fraction=0.3),
        out=str(out),
        train=TrainConfig(batch_size=4, max_steps=3, eval_every=3, save_every=3, threads=1),
        attributes=AttributesSection(**section),
    )


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, data: Path, tmp_path_factory) -> Callable[[int], Path]:
    made: dict[int, Path] = {}

    def train(rank: int = 0) -> Path:
        if rank not in made:
            made[rank] = tmp_path_factory.mktemp("attributes") / f"rank-{rank}"
            train_attributes(configured(tiny_model_dir, data, made[rank], rank))
        return made[rank]

    return train


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


def test_the_folder_and_what_was_measured(trained, tokenizer) -> None:
    run = trained()
    config = json.loads((run / "model" / "config.json").read_text())
    assert [config["id2label"][str(k)] for k in range(5)] == list(HELPSTEER)
    assert config["assent_head"]["weights"] == [0.3, 0.74, 0.46, 0.47, -0.33]
    assert config["assent_head"]["scale"][0] == [0, 4] and config["problem_type"] == "regression"
    held = [row for row in read_jsonl(run / "metrics.jsonl") if "eval/mse" in row][-1]
    names = {f"eval/mse/{name}" for name in HELPSTEER} | {
        f"eval/correlation/{n}" for n in HELPSTEER if n != "coherence"
    }
    assert names <= held.keys() and "eval/correlation/coherence" not in held
    assert held["eval/mse"] < 4.0, "it begins at the mean ratings"
    assert json.loads((run / "reward_head.json").read_text())["outputs"] == list(HELPSTEER)
    card = (run / "model" / "README.md").read_text()
    assert "outputs = model" in card and "rewards = outputs @ torch.tensor([0.3, 0.74, 0.46, 0.47, -0.33])" in card


def test_python_and_the_command_line_are_the_same(trained, tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    command = (
        f"reward-attributes --model.path {tiny_model_dir} --model.precision fp32 --data.train {data} "
        f"--data.max_length 64 --data.eval_fraction 0.3 --train.batch_size 4 --train.max_steps 3 --train.eval_every 3 "
        f"--train.save_every 3 --train.threads 1 --out {tmp_path / 'run'}"
    )
    assert cli.main(command.split()) == 0
    ours, theirs = weights_of(trained() / "model"), weights_of(tmp_path / "run" / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
def test_a_checkpoint_is_exported_with_its_outputs(rank: int, trained, tokenizer, tmp_path: Path) -> None:
    (step,) = (trained(rank) / "checkpoints").glob("step-*")
    assert cli.main(["export", str(step), "--out", str(tmp_path / "out")]) == 0
    want, got = weights_of(trained(rank) / "model"), weights_of(tmp_path / "out")
    assert all(torch.allclose(want[name], got[name], atol=1e-6) for name in want)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["assent_head"]["outputs"] == list(HELPSTEER)
    assert config["assent_head"]["weights"] == [0.3, 0.74, 0.46, 0.47, -0.33]


def test_regress_then_bradley_terry(trained, tokenizer, tmp_path: Path, capsys) -> None:
    """HelpSteer2-Preference's recipe: pairs go on from the helpfulness output, which becomes the only one."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Question {i}?", "chosen": "good " * (i + 1), "rejected": "word"} for i in range(4)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = (
        f"reward --model.path {trained()} --model.precision fp32 --data.train {pairs} --data.max_length 64 "
        f"--optim.lr 1e-4 --train.batch_size 2 --train.max_steps 2 --train.save_every 2 --train.threads 1 --out "
    )
    assert cli.main(f"{command} {tmp_path / 'none'}".split()) == 2
    assert "has 5 outputs (helpfulness, correctness" in capsys.readouterr().err
    assert cli.main(f"{command} {tmp_path / 'odd'} --reward.output honesty".split()) == 2
    assert "--reward.output honesty: " in capsys.readouterr().err
    assert cli.main(f"{command} {tmp_path / 'run'} --reward.output helpfulness".split()) == 0
    head = weights_of(tmp_path / "run" / "model")["score.weight"]
    begun = weights_of(trained() / "model")["score.weight"][:1]
    assert head.shape == (1, 32) and 1e-6 < (head - begun).abs().max() < 5e-4
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "helpfulness"} and config["assent_head"]["weights"] == [1.0]
    (step,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert cli.main(["export", str(step), "--out", str(tmp_path / "out")]) == 0
    again = weights_of(tmp_path / "out")
    assert torch.equal(again["score.weight"], head)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "helpfulness"}
    resumed = command.replace("--train.max_steps 2", "--train.max_steps 3")
    assert cli.main(f"{resumed} {tmp_path / 'run'} --reward.output helpfulness --resume auto".split()) == 0


def test_training_goes_on_from_attributes(trained, data: Path, tmp_path: Path, capsys) -> None:
    """The same outputs in the same order; others are refused."""
    run = trained()
    result = train_attributes(configured(run, data, tmp_path / "on"))
    assert np.isfinite(result.metrics["mse"]) and "new and untrained" not in capsys.readouterr().err
    from assent.errors import ModelError

    with pytest.raises(ModelError, match=r"has 5 outputs .*; asked for are 2 outputs \(helpfulness, verbosity\)"):
        train_attributes(configured(run, data, tmp_path / "other", outputs=("helpfulness", "verbosity")))


def test_one_attribute_by_one_annotator(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    result = train_attributes(configured(tiny_model_dir, data, tmp_path / "run", outputs=("helpfulness",)))
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "helpfulness"} and config["assent_head"]["weights"] == [1.0]
    assert "mse" in result.metrics and not any(name.startswith("mse/") for name in result.metrics)


@pytest.mark.parametrize(
    "options, words",
    [
        ("--attributes.outputs helpfulnes", "has no ratings called 'helpfulnes'. Perhaps you meant 'helpfulness'"),
        ("--attributes.outputs coherence", "All ratings of coherence are equal, so there is nothing to learn"),
        (
            "--attributes.lowest 0 --attributes.highest 1",
            "expected a rating from 0 (--attributes.lowest) to 1 (--attributes.highest), got",
        ),
        ("--attributes.lowest 4 --attributes.highest 0", "--attributes.lowest must be below --attributes.highest."),
        ("--attributes.lowest 4", "Give both, or neither"),
        ("--attributes.weights helpful:1", "--attributes.weights: no output is called 'helpful'"),
        ("--attributes.outputs verbosity --attributes.weights helpfulness:1", "is none of --attributes.outputs"),
        ("--attributes.weights helpfulness:0", "all are 0"),
        ("--attributes.outputs verbosity verbosity", "there twice"),
    ],
)
def test_mistakes_are_said(options: str, words: str, tiny_model_dir: Path, data: Path, tmp_path: Path, capsys) -> None:
    command = f"reward-attributes --model.path {tiny_model_dir} --data.train {data} --out {tmp_path / 'run'} {options}"
    assert cli.main(command.split()) == 2
    assert words in capsys.readouterr().err


def test_spreads() -> None:
    tree = TokenTree(
        np.arange(2),
        (Branch(np.arange(1), np.ones(1, bool)),) * 3,
        per_response={"ratings": np.array([[1, NAN], [4, NAN], [NAN, NAN]], np.float32)},
    )
    found = spread_of([tree, replace(tree, key=1)], ("a", "b"))
    assert found["a"] == Spread(4, 1.0, 4.0, 2.5)
    assert found["b"].count == 0 and math.isnan(found["b"].mean)
