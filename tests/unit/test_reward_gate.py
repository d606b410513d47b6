"""`assent reward-gate`: linear heads from ratings or a trained head, length taken out, a gate trained on pairs; the
folder that comes of it, and what reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification

from assent.algorithms.reward import gate as gating
from assent.algorithms.reward import gate_outputs
from assent.cli import main
from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.records import Example, Message, Response
from assent.data.tree import collate
from assent.losses.linear import ALPHAS
from assent.models.gated import GatedScoreModel
from assent.models.heads import WantedHead, load_score_model, save_reward_model
from assent.models.loading import load_tokenizer, quiet_transformers
from assent.models.policy import ScoreModel
from assent.models.reward_head import HeadRule

quiet_transformers()

NAMES = ("helpfulness", "courtesy", "verbosity")
SMALL = "--gate.width 16 --gate.layers 1 --train.max_steps 30 --train.batch_size 16 --train.threads 1"
GOOD, KIND, LONG = "yes it is so", "thank you dear friend", "and then and then some more"


def answer(rng: np.random.Generator) -> tuple[str, dict[str, float]]:
    """A text, and what it holds of each attribute."""
    counts = rng.integers(0, 4, 3)
    parts = [part for part, n in zip((GOOD, KIND, LONG), counts, strict=True) for _ in range(n)]
    rng.shuffle(parts)
    return " ".join(["well", *parts]), dict(zip(NAMES, map(float, counts), strict=True))


def rating_row(prompt: str, text: str, scores: dict[str, float]) -> dict[str, Any]:
    """In assent's own shape."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "responses": [{"messages": [{"role": "assistant", "content": text}]}],
        "feedback": [{"kind": "rating", "response": 0, "scores": scores}] if scores else [],
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """ratings.jsonl and pairs.jsonl: to questions that begin with "facts" help counts, to others courtesy."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rated = []
    for i in range(60):
        text, scores = answer(rng)
        rated.append(rating_row(f"question {i}", text, scores))
    write(folder / "ratings.jsonl", rated)
    pairs = []
    for i in range(80):
        kind = i % 2
        first, second = answer(rng), answer(rng)
        while first[1][NAMES[kind]] == second[1][NAMES[kind]]:
            second = answer(rng)
        chosen, rejected = sorted((first, second), key=lambda found: -found[1][NAMES[kind]])
        prompt = f"{('facts only please tell me', 'be kind to me now')[kind]} {i}"
        pairs.append({"prompt": prompt, "chosen": chosen[0], "rejected": rejected[0]})
    write(folder / "pairs.jsonl", pairs)
    return folder


@pytest.fixture(scope="module")
def attributes(tiny_model_dir: Path, tokenizer, tmp_path_factory) -> Path:
    """A model of three outputs on the tiny backbone."""
    config = ModelConfig(str(tiny_model_dir), precision="fp32")
    scorer = load_score_model(
        config, tokenizer, max_length=128, head=WantedHead(HeadRule(NAMES, (1.0, 1.0, 1.0))), seed=3
    )
    with torch.no_grad():
        scorer.head.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "attributes"
    save_reward_model(scorer, Chat(tokenizer), folder)
    return folder


def command(model: Path, pairs: Path, out: Path, *more: str) -> list[str]:
    words = f"reward-gate --model.path {model} --model.precision fp32 --data.train {pairs} --out {out} {SMALL}"
    return [*words.split(), "--data.max_length", "128", *more]


@pytest.fixture(scope="module")
def run(attributes: Path, data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "gated"
    assert main(command(attributes, data / "pairs.jsonl", out, "--data.eval_fraction", "0.2")) == 0
    return out


def load(folder: Path, **options: Any) -> ScoreModel:
    config = ModelConfig(str(folder), precision="fp32", **options)
    return load_score_model(config, load_tokenizer(config), max_length=128, trainable=False, new_head=False)


def examples() -> list[Example]:
    return [
        Example(
            (Message("user", f"{start} {i}"),),
            tuple(Response((Message("assistant", text),)) for text in (f"{GOOD} {LONG}", KIND, f"{KIND} {GOOD} {i}")),
        )
        for i, start in enumerate(("facts only please", "be kind to me now"))
    ]


def trees_for(folder: Path) -> list:
    chat = Chat(load_tokenizer(ModelConfig(str(folder))))
    return [chat.tree(example, 128) for example in examples()]


def test_a_run_says_what_it_weighs_and_how_it_compares(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    end = rows[-1]
    for name in ("accuracy", "accuracy_fixed", "accuracy_uniform", "nll", "length_relation"):
        assert f"eval/{name}" in end, name
    weights = [end[f"eval/weight/{name}"] for name in NAMES]
    assert all(weight > 0 for weight in weights)
    trained = [row["nll"] for row in rows if "nll" in row]
    assert np.mean(trained[-5:]) < np.mean(trained[:5])
    summary = json.loads((run / "summary.json").read_text())
    assert "accuracy_fixed" in json.dumps(summary)


@torch.no_grad()
def by_hand(folder: Path, read_at) -> list[float]:
    """The rewards of `examples`, one conversation at a time: transformers' states, and numpy float64 from there on.
    `read_at` gives the place of the prompt's state from all ids and the number of those of the prompt."""
    from safetensors.numpy import load_file

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    gate = load_file(folder / "gate" / "gate.safetensors")
    section = json.loads((folder / "config.json").read_text())["assent_gate"]
    matrix, rewards = np.array(section["transform"]), []
    for tree in trees_for(folder):
        for branch in tree.branches:
            ids = [*tree.prompt.tolist(), *branch.ids.tolist()]
            states = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
            outputs = states[-1] @ model.score.weight.double().numpy().T
            x = states[read_at(ids, len(tree.prompt))]
            layers = len(section["hidden"])
            for i in range(layers + 1):
                x = x @ gate[f"layers.{i}.weight"].T.astype(float) + gate[f"layers.{i}.bias"]
                x = np.maximum(x, 0) if i < layers else x / section["temperature"]
            weights = np.exp(x - x.max()) / np.exp(x - x.max()).sum() * gate["logit_scale"][0]
            rewards.append(float(weights @ (outputs @ matrix)))
    return rewards


@pytest.mark.parametrize("layout", ["tree", "flat"])
def test_rewards_of_the_folder_are_those_by_hand(run: Path, layout: str) -> None:
    scorer = load(run / "model", layout=layout)
    batch = collate(trees_for(run / "model"), flat=layout == "flat")
    with torch.no_grad():
        found = scorer.rewards(batch)
    want = by_hand(run / "model", lambda ids, prompt: prompt - 1)
    np.testing.assert_allclose(found.reward.numpy(), want, atol=2e-5)
    assert np.std(want) > 1e-2 and found.shares.shape == found.outputs.shape == (6, 3)
    torch.testing.assert_close(found.shares.sum(1), found.reward)
    assert scorer.gate_rule is not None and scorer.gate_rule.verbosity == "verbosity"


@torch.no_grad()
def test_others_read_the_raw_outputs(run: Path, attributes: Path) -> None:
    """transformers alone: the same weights and outputs as those of the model that was gated."""
    scorer = load(run / "model")
    batch = collate(trees_for(run / "model"))
    model = AutoModelForSequenceClassification.from_pretrained(run / "model", dtype=torch.float32).eval()
    assert model.config.num_labels == 3 and model.config.problem_type == "regression"
    assert tuple(model.config.id2label.values()) == NAMES
    plain = AutoModelForSequenceClassification.from_pretrained(attributes, dtype=torch.float32)
    assert all(torch.equal(x, plain.state_dict()[name]) for name, x in model.state_dict().items())
    rows = [[*t.prompt.tolist(), *b.ids.tolist()] for t in trees_for(run / "model") for b in t.branches]
    theirs = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in rows])
    torch.testing.assert_close(scorer.rewards(batch).outputs, theirs, atol=1e-5, rtol=0)
    assert list((run / "model").glob("*.safetensors")) == [run / "model" / "model.safetensors"], "vLLM reads them all"


def test_weights_of_ones_own_take_the_place_of_the_gate(run: Path) -> None:
    scorer = load(run / "model")
    batch = collate(trees_for(run / "model"))
    with torch.no_grad():
        gated = scorer.rewards(batch)
        scorer.reweigh({"courtesy": 2.0})
        alone = scorer.rewards(batch)
    torch.testing.assert_close(alone.reward, 2 * gated.outputs[:, 1])
    assert not torch.allclose(alone.reward, gated.reward)


def test_a_critic_of_several_outputs_is_refused(run: Path, attributes: Path, tiny_model_dir, tmp_path, capsys) -> None:
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}"} for i in range(4)])
    words = f"ppo --model.path {tiny_model_dir} --model.precision fp32 --data.train {data} --data.max_length 64 --out "
    for folder, start in ((run / "model", "reward"), (attributes, "reward"), (attributes, str(attributes))):
        command = f"{words}{tmp_path / 'run'} --rewards.model {folder} --critic.start {start} --train.max_steps 1"
        command += " --sampling.max_new_tokens 8"
        assert main(command.split()) == 2
        said = capsys.readouterr().err
        assert f"--critic.start {start}: {folder} has 3 outputs (helpfulness, courtesy, verbosity)" in said
        assert "Use --critic.start policy" in said and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_gate_for_another_backbone_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(run / "model", other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    from assent.errors import ModelError

    with pytest.raises(ModelError, match="its gate was trained on another backbone"):
        load(other)


def test_export_takes_the_gate_along(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "bf16"), "--dtype", "bf16"]) == 0
    scorer, before = load(tmp_path / "bf16"), load(run / "model")
    batch = collate(trees_for(run / "model"))
    with torch.no_grad():
        gap = (scorer.rewards(batch).reward - before.rewards(batch).reward).abs().max()
    assert isinstance(scorer, GatedScoreModel) and 0 < gap < 0.05
    sections = [
        json.loads((folder / "config.json").read_text())["assent_gate"] for folder in (tmp_path / "bf16", run / "model")
    ]
    assert sections[0].pop("backbone") != sections[1].pop("backbone") and sections[0] == sections[1]


def test_training_on_a_gated_model_leaves_the_gate_behind_and_says_so(run: Path, capsys) -> None:
    config = ModelConfig(str(run / "model"), precision="fp32")
    scorer = load_score_model(config, load_tokenizer(config), max_length=128, head=WantedHead(only="courtesy"))
    assert not isinstance(scorer, GatedScoreModel) and "its gate is left behind" in capsys.readouterr().err
    assert not hasattr(scorer.plain.config, "assent_gate")


def files(run: Path) -> dict[str, bytes]:
    names = ("model/gate/gate.safetensors", "model/model.safetensors", "model/config.json")
    return {name: (run / name).read_bytes() for name in names}


def test_the_same_seed_gives_the_same_bytes_also_resumed_and_in_other_micro_batches(
    run: Path, attributes: Path, data: Path, tmp_path: Path
) -> None:
    words = command(attributes, data / "pairs.jsonl", tmp_path / "again", "--data.eval_fraction", "0.2")
    assert main([*words, "--train.micro_tokens", "150", "--train.save_every", "10", "--train.keep", "5"]) == 0
    again = files(tmp_path / "again")
    whole = files(run)
    assert again["model/model.safetensors"] == whole["model/model.safetensors"]
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "again", resumed)
    for folder in sorted((resumed / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    words[words.index(str(tmp_path / "again"))] = str(resumed)
    more = ["--train.micro_tokens", "150", "--train.save_every", "10", "--train.keep", "5", "--resume", "auto"]
    assert main([*words, *more]) == 0
    assert files(resumed) == again

    words[words.index(str(resumed))] = str(tmp_path / "twin")
    assert main(words) == 0
    assert files(tmp_path / "twin") == whole
    assert main([*words[: words.index("--out")], "--out", str(tmp_path / "seed"), *words[words.index("--out") + 2 :],
                 "--train.seed", "1"]) == 0  # fmt: skip
    assert files(tmp_path / "seed")["model/gate/gate.safetensors"] != whole["model/gate/gate.safetensors"]


# ---- stage 1


@pytest.fixture(scope="module")
def ridge_run(tiny_model_dir: Path, data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "ridge"
    more = ["--gate.ratings", str(data / "ratings.jsonl"), "--data.eval_fraction", "0.2"]
    assert main(command(tiny_model_dir, data / "pairs.jsonl", out, *more)) == 0
    return out


def test_linear_heads_are_fitted_to_ratings_where_there_are_none(ridge_run: Path, data: Path) -> None:
    """Each head is the ridge solution on the frozen states, computed here with transformers and least squares, for one
    of the penalties."""
    folder = ridge_run / "model"
    scorer = load(folder)
    assert scorer.rule.names == NAMES
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    chat = Chat(load_tokenizer(ModelConfig(str(folder))))
    states, ratings = [], []
    for line in (data / "ratings.jsonl").read_text().splitlines():
        row = json.loads(line)
        question, text = row["prompt"][0]["content"], row["responses"][0]["messages"][0]["content"]
        tree = chat.tree(Example((Message("user", question),), (Response((Message("assistant", text),)),)), 128)
        ids = torch.tensor([[*tree.prompt.tolist(), *tree.branches[0].ids.tolist()]])
        with torch.no_grad():
            states.append(model.model(input_ids=ids).last_hidden_state[0, -1].double().numpy())
        ratings.append([row["feedback"][0]["scores"][name] for name in NAMES])
    x, y = np.array(states), np.array(ratings)
    weight = model.score.weight.detach().double().numpy()
    for k in range(3):
        gaps = []
        for alpha in ALPHAS:
            stacked, target = np.vstack([x, np.sqrt(alpha) * np.eye(32)]), np.concatenate([y[:, k], np.zeros(32)])
            gaps.append(np.abs(np.linalg.lstsq(stacked, target, rcond=None)[0] - weight[k]).max())
        assert min(gaps) < 0.02 * np.abs(weight[k]).max(), gaps
    correlations = [spearmanr(x @ weight[k], y[:, k]).statistic for k in range(3)]
    assert min(correlations) > 0.5, correlations


def test_a_scalar_reward_model_is_a_backbone_too(scorer_dir: Path, data: Path, tmp_path: Path) -> None:
    more = ["--gate.ratings", str(data / "ratings.jsonl")]
    assert main(command(scorer_dir, data / "pairs.jsonl", tmp_path / "run", *more)) == 0
    assert load(tmp_path / "run" / "model").rule.names == NAMES


# ---- the target


def test_the_gate_is_trained_on_what_is_left_without_length(
    attributes: Path, data: Path, run: Path, tmp_path: Path, monkeypatch
) -> None:
    """The public ArmoRM script computes outputs without length and trains on those with it. Here the loss of every
    step is that of the rewards which the folder gives."""
    seen: list[tuple[torch.Tensor, ...]] = []
    original = gating.bradley_terry

    def spy(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        seen.append((chosen.detach(), rejected.detach()))
        return original(chosen, rejected)

    def shift(outputs: np.ndarray, verbosity: int, *, limit: float):
        found = real(outputs, verbosity, limit=limit)
        found.matrix[verbosity, 0] = -0.5
        return found

    real = gate_outputs.decorrelate
    monkeypatch.setattr(gating, "bradley_terry", spy)
    monkeypatch.setattr(gate_outputs, "decorrelate", shift)
    quick = ["--train.max_steps", "1", "--gate.dropout", "0"]
    for name, more in (("out", ()), ("in", ("--gate.no_decorrelate",))):
        assert main(command(attributes, data / "pairs.jsonl", tmp_path / name, *quick, *more)) == 0
    first, second = seen[0], seen[-1]
    assert not torch.allclose(first[0] - first[1], second[0] - second[1], atol=1e-3), "the target changes"
    matrices = [
        np.array(json.loads((tmp_path / name / "model" / "config.json").read_text())["assent_gate"]["transform"])
        for name in ("out", "in")
    ]
    assert matrices[0][2, 0] == -0.5 and matrices[0][2, 2] == 0 and np.array_equal(matrices[1], np.eye(3))


# ---- bad input


def refused(capsys, words: list[str]) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


def test_what_cannot_be_weighed_is_refused(
    tiny_model_dir: Path, scorer_dir: Path, attributes: Path, data: Path, tmp_path: Path, capsys
) -> None:
    pairs, ratings = data / "pairs.jsonl", ["--gate.ratings", str(data / "ratings.jsonl")]

    def said(model: Path, *more: str, file: Path = pairs) -> str:
        said.number = getattr(said, "number", 0) + 1
        return refused(capsys, command(model, file, tmp_path / f"run{said.number}", *more))

    assert "has no reward head, so there are no outputs to weigh" in said(tiny_model_dir)
    assert "has one output (reward): nothing to weigh" in said(scorer_dir)
    assert "3 outputs (helpfulness, courtesy, verbosity), which --gate.ratings would replace" in said(
        attributes, *ratings
    )
    assert "--gate.verbosity length: no output is called so" in said(attributes, "--gate.verbosity", "length")
    assert "--model.lora.rank is for models that are trained" in said(attributes, "--model.lora.rank", "4")
    few = write(tmp_path / "few.jsonl", [json.loads(line) for line in pairs.read_text().splitlines()[:4]])
    assert "a gate needs at least 10 pairs to be trained on. Got 4" in said(attributes, file=few)


def test_ratings_that_say_nothing_are_refused(tiny_model_dir: Path, data: Path, tmp_path: Path, capsys) -> None:
    rows = [json.loads(line) for line in (data / "ratings.jsonl").read_text().splitlines()]

    def said(rows: list[dict[str, Any]]) -> str:
        said.number = getattr(said, "number", 0) + 1
        file = write(tmp_path / f"ratings{said.number}.jsonl", rows)
        out = tmp_path / f"run{said.number}"
        return refused(capsys, command(tiny_model_dir, data / "pairs.jsonl", out, "--gate.ratings", str(file)))

    def changed(change) -> list[dict[str, Any]]:
        found = [json.loads(json.dumps(row)) for row in rows]
        for row in found:
            change(row["feedback"][0]["scores"])
        return found

    constant = said(changed(lambda scores: scores.update(courtesy=2.0)))
    assert "'courtesy' is 2 in all 60 ratings, so there is nothing to learn of it" in constant
    assert "has 6 ratings; 10 are needed" in said(rows[:6])
    assert "rates one attribute (verbosity): nothing to weigh" in said(
        changed(lambda scores: [scores.pop(name) for name in NAMES[:2]])
    )
    assert "ratings are needed" in said([{**row, "feedback": []} for row in rows])
    strange = said([{"prompt": "a", "response": "b", "politeness": 3}])
    assert "--gate.ratings: " in strange and "assent's own shape" in strange


# ---- what uses the folder


def test_the_score_command_explains_and_weighs(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    file, out = data / "pairs.jsonl", tmp_path / "scores.jsonl"
    words = f"score {run} {file} --limit 3 --precision fp32 --max_length 128 --out"
    assert main([*words.split(), str(out), "--explain"]) == 0
    gated = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(name in json.dumps(gated[0]) for name in NAMES)
    out.unlink()
    assert main([*words.split(), str(out), "--weights", "courtesy:1"]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] != gated
