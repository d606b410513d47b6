"""Reward models from pairs with votes, ties and a regulariser, from rankings, and ODIN: what is computed, from
the command line and from Python, and what is refused before work is spent."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from assent.algorithms.reward.language import RegularisedScoreModel
from assent.algorithms.reward.odin import Odin, length_relations, train_reward_odin
from assent.algorithms.reward.pairs import RewardModelling
from assent.algorithms.reward.ranking import RewardRanking
from assent.cli import main
from assent.config import (
    DataConfig,
    ModelConfig,
    OdinSection,
    OptimConfig,
    RewardOdinConfig,
    RewardSection,
    TrainConfig,
)
from assent.data.packing import Counts, count, window
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.distributed import World
from assent.losses import bradley_terry
from assent.models.head import head_of
from assent.models.heads import WantedHead, load_score_model
from assent.models.loading import load_policy
from assent.train.log import read_metrics

ONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- the loss of a batch, by numpy


def tree(*lengths: int, pairs=(), key: int = 0, **fields) -> TokenTree:
    branches = tuple(Branch(np.arange(3, 3 + n), np.ones(n, bool)) for n in lengths)
    per_pair = {name: np.array(values, np.float32) for name, values in fields.items() if name in ("share", "tie")}
    per_response = {name: np.array(values, np.float32) for name, values in fields.items() if name == "level"}
    return TokenTree(np.array([5, 6]), branches, tuple(pairs), per_response, key, per_pair)


class Scores:
    """A scorer whose rewards are given."""

    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor(values, requires_grad=True)

    def scalars(self, batch: TreeBatch, index: Tensor) -> Tensor:
        return self.values[: len(index)]

    def rewards(self, batch: TreeBatch) -> SimpleNamespace:
        return SimpleNamespace(reward=self.values)


VALUES = [0.3, -0.5, 1.2, 0.9, -0.1, 0.4]
TREES = [
    tree(2, 3, pairs=[(0, 1, 3.0)], share=[0.75], tie=[0.0]),
    tree(1, 4, pairs=[(1, 0, 1.0)], share=[1.0], tie=[0.0]),
    tree(2, 2, pairs=[(0, 1, 0.0)], share=[0.0], tie=[1.0]),
]
GAPS, MARGINS = np.array([0.8, -0.3, -0.5]), np.array([3.0, 1.0, 0.0])
SHARES, TIES = np.array([0.75, 1, 0]), np.array([0, 0, 1.0])
SUMS = np.array([-0.2, 2.1, 0.3])


def cross(p, gap, margin=0.0):
    return -p * np.log(sigmoid(gap - margin)) - (1 - p) * np.log(sigmoid(-gap - margin))


def rao_kupper(theta: float):
    c, r = np.log(sigmoid(GAPS - np.log(theta))), np.log(sigmoid(-GAPS - np.log(theta)))
    return -(SHARES * c + (1 - SHARES - TIES) * r + TIES * (np.log(theta**2 - 1) + c + r))


def davidson(nu: float):
    half = GAPS / 2
    z = np.log(np.exp(half) + np.exp(-half) + nu)
    return -(SHARES * (half - z) + (1 - SHARES - TIES) * (-half - z) + TIES * (np.log(nu) - z))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scaled": True, "votes": True}, MARGINS * cross(SHARES, GAPS)),
        ({"margin": True, "votes": True}, cross(SHARES, GAPS, MARGINS)),
        ({"votes": True, "label_smoothing": 0.1}, cross(SHARES * 0.9 + (1 - SHARES) * 0.1, GAPS)),
        ({"votes": True, "centring": 0.5}, cross(SHARES, GAPS) + 0.5 * SUMS**2),
        ({"ties": "rao-kupper"}, rao_kupper(1.3 / 0.7)),
        ({"ties": "rao-kupper", "tie_chance": 0.5}, rao_kupper(3.0)),
        ({"ties": "davidson", "tie_chance": 0.5}, davidson(2.0)),
        ({"ties": "davidson", "scaled": True}, np.array([3, 1, 1]) * davidson(0.6 / 0.7)),  # a tie has no strength
    ],
)
def test_options_of_pairs_by_their_formulas(options, expected):
    algorithm = RewardModelling(Scores(VALUES), None, RewardSection(**options))
    loss = algorithm.loss(collate(TREES), count(TREES))
    assert loss.total.item() == pytest.approx(expected.mean(), rel=1e-5)
    # accuracy and margin are of the pairs that most votes decide: not of the tie
    assert [float(x) for x in loss.metrics["accuracy"]] == [1.0, 2.0]
    assert float(loss.metrics["margin"][0]) == pytest.approx(0.5) and loss.metrics["margin"][1] == 2
    assert loss.followed[1].tolist() == [1, 1, 0]


def test_the_defaults_are_the_plain_loss_to_the_bit():
    plain = [tree(2, 3, pairs=[(0, 1, 3.0)]), tree(1, 4, pairs=[(1, 0, 1.0)]), tree(2, 2, pairs=[(0, 1, 0.0)])]
    batch, scores = collate(plain), torch.tensor(VALUES)
    loss = RewardModelling(Scores(VALUES), None, RewardSection()).loss(batch, count(plain))
    expected = bradley_terry(scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]).sum() / 3
    assert torch.equal(loss.total, expected) and loss.metrics.keys() == {"nll", "accuracy", "margin", "score"}
    assert loss.metrics["accuracy"][1] == 3


def test_a_pair_that_nobody_decides_has_no_right_answer():
    even = [tree(1, 1, pairs=[(0, 1, 0.0)], share=[0.5], tie=[0.0]), TREES[0]]
    loss = RewardModelling(Scores(VALUES), None, RewardSection(votes=True)).loss(collate(even), count(even))
    assert loss.metrics["accuracy"][1] == 1 and loss.metrics["nll"][1] == 2
    assert loss.followed[1].tolist() == [0, 1]


RANKED = [tree(2, 1, 3, level=[1, 0, 1]), tree(1, 2, level=[0, 1]), tree(1, level=[0])]


def test_rankings_by_their_formulas():
    s = np.array(VALUES)
    per_prompt = {
        "choice": [np.log(np.exp(s[:3]).sum()) - s[1], np.log(1 + np.exp(s[4] - s[3])), 0],
        "kwise": [(cross(1, s[1] - s[0]) + cross(1, s[1] - s[2])) / 2, cross(1, s[3] - s[4]), 0],
        "plackett-luce": [np.log(np.exp(s[:3]).sum()) - s[1], np.log(1 + np.exp(s[4] - s[3])), 0],
    }
    for name, expected in per_prompt.items():
        loss = RewardRanking(Scores(VALUES), None, name).loss(collate(RANKED), count(RANKED))
        assert loss.total.item() == pytest.approx(np.mean(expected), rel=1e-5), name
        metrics = {key: (total.item(), number) for key, (total, number) in loss.metrics.items()}
        assert metrics["accuracy"] == (1.0, 3) and metrics["best"] == (2.0, 3)  # -0.5 is the best and scores lowest
        assert loss.followed[1].tolist() == [2, 1, 0]


# ---- a language head beside the reward head


def test_log_probs_of_the_same_pass_are_those_of_the_model(tiny_model_dir: Path, tokenizer):
    config = ModelConfig(str(tiny_model_dir), precision="fp32")
    policy = load_policy(config, max_length=64, trainable=False)
    language = head_of(policy.plain, policy.transform, policy.dtype, constant=True)
    head = WantedHead(kind=partial(RegularisedScoreModel, language=language))
    scorer = load_score_model(config, tokenizer, max_length=64, head=head)
    batch = collate(TREES)
    rewards, logprobs = scorer.with_logprobs(batch, batch.last, torch.tensor([1, 4, 5]))
    with torch.no_grad():
        torch.testing.assert_close(logprobs, policy(batch).logprobs[[1, 4, 5]])
        torch.testing.assert_close(rewards, scorer.rewards(batch).reward)
    assert not any("language" in name for name in scorer.state_dict())
    logprobs.sum().backward()
    assert scorer.model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_regulariser_is_its_share_of_the_loss(kind: str, tiny_model_dir: Path, tokenizer):
    config = ModelConfig(str(tiny_model_dir), precision="fp32")
    policy = load_policy(config, max_length=64, trainable=False)
    language = head_of(policy.plain, policy.transform, policy.dtype, constant=True)
    head = WantedHead(kind=partial(RegularisedScoreModel, language=language))
    scorer = load_score_model(config, tokenizer, max_length=64, head=head)
    plain = [tree(2, 3, pairs=[(0, 1, 3.0)]), tree(1, 4, pairs=[(1, 0, 1.0)])]
    batch = collate(plain)
    with torch.no_grad():
        tokens = policy(batch).logprobs
    reference = 1.1 * tokens
    batch = TreeBatch(
        **{n: getattr(batch, n) for n in batch.__dataclass_fields__} | {"per_token": {"reference": reference}}
    )
    section = RewardSection(regulariser=kind, regulariser_weight=0.25, regulariser_beta=0.2)
    loss = RewardModelling(scorer, None, section).loss(batch, count(plain))
    bt = RewardModelling(scorer, None, RewardSection()).loss(batch, count(plain)).total.item()
    whole, start = batch.sum_by_response(tokens).numpy(), batch.sum_by_response(reference).numpy()
    c, r = batch.pairs.T.numpy()
    if kind == "sft":
        term = -np.log(sigmoid(0.2 * whole[c]))
    else:
        term = -np.log(sigmoid(0.2 * ((whole[c] - start[c]) - (whole[r] - start[r]))))
    assert loss.total.item() == pytest.approx(0.75 * bt + 0.25 * term.mean(), rel=1e-5)
    assert loss.metrics["regulariser"][0].item() == pytest.approx(term.sum(), rel=1e-5)


# ---- ODIN


class TwoParts:
    """A scorer of two given parts, each a product of states and its head's weight."""

    def __init__(self, states: Tensor, weights: Tensor) -> None:
        self.states, self.weights = states, weights.requires_grad_()

    def two_parts(self, batch: TreeBatch) -> tuple[Tensor, Tensor, Tensor]:
        here = self.states[list(batch.keys)].flatten(0, 1)
        return here @ self.weights[0], here @ self.weights[1], self.weights[0] @ self.weights[1]


def odin_trees() -> list[TokenTree]:
    draw = np.random.default_rng(3)
    return [tree(*draw.integers(1, 9, 2), pairs=[(0, 1, 0.0)], key=key) for key in range(6)]


def odin_step(micro_tokens: int, section: OdinSection) -> tuple[float, Tensor, dict]:
    """Value and gradient of a step of ODIN."""
    draw = torch.Generator().manual_seed(5)
    states, weights = torch.randn(6, 2, 4, generator=draw), torch.randn(2, 4, generator=draw)
    scorer, trees = TwoParts(states, weights), odin_trees()
    algorithm = Odin(scorer, None, section, ONE)
    made = algorithm.prepare(window(trees, micro_tokens=micro_tokens))
    total = sum(algorithm.loss(batch, made.counts).total for batch in made.batches)
    total.backward()
    return total.item(), scorer.weights.grad, dict(made.metrics)


def test_odin_by_autograd_over_the_whole_step():
    """The coupled passes give value and gradient of the plain formula in float64, with every response at once."""
    draw = torch.Generator().manual_seed(5)
    states = torch.randn(6, 2, 4, generator=draw).double()
    weights = torch.randn(2, 4, generator=draw).double().requires_grad_()
    length = torch.tensor([[len(branch) for branch in tree.branches] for tree in odin_trees()]).double()
    quality, verbosity = states @ weights[0], states @ weights[1]

    def corr(x: Tensor, y: Tensor) -> Tensor:
        return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]

    both = quality + verbosity
    nll = -torch.nn.functional.logsigmoid(both[:, 0] - both[:, 1]).mean()
    expected = nll + 0.7 * (1 - corr(length, verbosity) + corr(length, quality).abs())
    expected = expected + 0.3 * (weights[0] @ weights[1]).abs()
    (gradient,) = torch.autograd.grad(expected, weights)
    for micro_tokens in (1, 12, 1 << 20):
        value, found, seen = odin_step(micro_tokens, OdinSection(0.7, 0.3))
        assert value == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(found.double(), gradient, atol=1e-5, rtol=1e-5)
        assert seen["correlation/quality"] == pytest.approx(corr(length, quality).item(), abs=1e-6)
        assert seen["correlation/verbosity"] == pytest.approx(corr(length, verbosity).item(), abs=1e-6)


def test_correlations_of_single_micro_batches_would_be_another_number():
    """The usual mistake: a correlation within each micro-batch."""
    whole, _, _ = odin_step(1 << 20, OdinSection(1.0, 0.0))
    draw = torch.Generator().manual_seed(5)
    scorer = TwoParts(torch.randn(6, 2, 4, generator=draw), torch.randn(2, 4, generator=draw))
    algorithm = Odin(scorer, None, OdinSection(1.0, 0.0), ONE)
    parts = [algorithm.prepare(window([each], micro_tokens=1 << 20)) for each in odin_trees()]
    wrong = sum(algorithm.loss(part.batches[0], Counts(6, 12, 6, 1)).total.item() for part in parts)
    assert abs(wrong - whole) > 0.1


def test_what_length_has_to_do_with_both_parts():
    length, quality = np.array([1.0, 5, 2, 9]), np.array([0.1, 0.0, 0.3, -0.2])
    found = length_relations({"length": length, "quality": quality, "verbosity": np.zeros(4)})
    assert found == {"correlation/quality": pytest.approx(np.corrcoef(length, quality)[0, 1])}


# ---- commands

WORDS = "red green blue paris egg water seven minutes boil cool answer question sentence thank welcome".split()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """pairs (with strengths), native rows with votes and ties, and rankings of two to four answers."""
    folder, draw = tmp_path_factory.mktemp("kinds"), np.random.default_rng(2)

    def say() -> str:
        return " ".join(draw.choice(WORDS, int(draw.integers(1, 7))))

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def native(index: int, feedback: list[dict], answers: int = 2) -> dict:
        turns = [[{"role": "assistant", "content": f"{say()} {number}"}] for number in range(answers)]
        prompt = [{"role": "user", "content": f"Question {index}?"}]
        return {"prompt": prompt, "responses": [{"messages": turn} for turn in turns], "feedback": feedback}

    def vote(chosen: int, by: str) -> dict:
        return {"kind": "pair", "chosen": chosen, "rejected": 1 - chosen, "annotator": by}

    tie = {"kind": "ranking", "levels": [[0, 1]], "annotator": "z"}
    prompts = [f"Question {i}?" for i in range(12)]
    pairs = [
        {"prompt": p, "chosen": say() + " yes", "rejected": say() + " no", "margin": 1 + i % 3}
        for i, p in enumerate(prompts)
    ]
    write("pairs.jsonl", pairs)
    write("unstated.jsonl", [{k: v for k, v in row.items() if k != "margin"} for row in pairs])
    write("same.jsonl", [{"prompt": p, "chosen": "yes", "rejected": "red"} for p in prompts])
    kinds = [[vote(0, "x"), vote(0, "y"), vote(1, "z")], [vote(1, "x"), tie], [tie], [vote(0, "x")]]
    write("votes.jsonl", [native(i, kinds[i % 4]) for i in range(12)])
    write("alone.jsonl", [native(i, [vote(i % 2, "x")]) for i in range(12)])
    write("ties.jsonl", [native(i, [tie]) for i in range(12)])
    orders = [[[2], [0], [1]], [[1, 0], [3, 2]], [[0], [1]], [[3], [1, 2], [0]]]
    rankings = [[{"kind": "ranking", "levels": orders[i % 4]}] for i in range(12)]
    write("rankings.jsonl", [native(i, rankings[i], sum(map(len, orders[i % 4]))) for i in range(12)])
    return folder


def run(command: str, out: Path, model: Path, data: Path, *more: str) -> int:
    words = f"--model.path {model} --model.precision fp32 --data.train {data} --data.max_length 64 --out {out} "
    words += "--optim.lr 1e-2 --optim.warmup 0 --train.batch_size 4 --train.max_steps 3 --train.threads 1"
    return main([command, *words.split(), *" ".join(more).split()])


COMMANDS = {
    "scaled": ("reward", "pairs.jsonl", "--reward.scaled --reward.label_smoothing 0.1 --reward.centring 0.01"),
    "votes": ("reward", "votes.jsonl", "--reward.votes --data.eval_fraction 0.3"),
    "ties": ("reward", "votes.jsonl", "--reward.votes --reward.ties davidson --data.eval_fraction 0.3"),
    "sft": ("reward", "pairs.jsonl", "--reward.regulariser sft --reward.regulariser_weight 0.5"),
    "dpo": ("reward", "pairs.jsonl", "--reward.regulariser dpo --data.eval_fraction 0.3 --model.lora.rank 2"),
    "ranking": ("reward-ranking", "rankings.jsonl", "--data.eval_fraction 0.3"),
    "choice": ("reward-ranking", "rankings.jsonl", "--reward.loss choice"),
    "odin": ("reward-odin", "pairs.jsonl", "--data.eval_fraction 0.3 --train.micro_tokens 40"),
}


@pytest.fixture(scope="module")
def trained(files: Path, tiny_model_dir: Path, tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, (command, data, more) in COMMANDS.items():
        folders[name] = tmp_path_factory.mktemp("runs") / name
        assert run(command, folders[name], tiny_model_dir, files / data, more) == 0
    return folders


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_leaves_a_plain_reward_model(name: str, trained, tokenizer):
    folder = trained[name] / "model"
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    assert weights["score.weight"].shape[0] == 1 and "lm_head.weight" not in weights
    assert not any("second" in key or "language" in key for key in weights)
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["problem_type"] == "regression"
    assert config["id2label"] == {"0": "reward"}
    load_score_model(ModelConfig(str(folder)), tokenizer, max_length=64, trainable=False, new_head=False)


def test_what_runs_report(trained):
    steps, held = {}, {}
    for name, folder in trained.items():
        rows = read_metrics(folder / "metrics.jsonl", times=False)
        steps[name] = [row for row in rows if "loss" in row]
        held[name] = [row for row in rows if "eval/accuracy" in row]
    assert steps["scaled"][-1]["centring"] > 0
    assert steps["sft"][-1]["regulariser"] > 0
    assert steps["dpo"][0]["regulariser"] == pytest.approx(math.log(2), abs=1e-6)  # the model is its reference still
    assert {"eval/best", "eval/accuracy_low", "eval/nll"} <= held["ranking"][-1].keys()
    assert {"correlation/quality", "correlation/verbosity", "overlap"} <= steps["odin"][-1].keys()
    assert {"eval/correlation/quality", "eval/correlation/verbosity"} <= held["odin"][-1].keys()


def odin_config(files: Path, model: Path, out: Path, **train) -> RewardOdinConfig:
    return RewardOdinConfig(
        model=ModelConfig(str(model), precision="fp32"),
        data=DataConfig(str(files / "pairs.jsonl"), eval_fraction=0.3, max_length=64),
        out=str(out),
        optim=OptimConfig(lr=1e-2, warmup=0.0),
        train=TrainConfig(**{"batch_size": 4, "max_steps": 3, "threads": 1, "micro_tokens": 40} | train),
    )


def same(one: Path, two: Path) -> None:
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_python_and_the_command_line_are_the_same(files, trained, tiny_model_dir, tmp_path):
    train_reward_odin(odin_config(files, tiny_model_dir, tmp_path / "run"))
    same(trained["odin"], tmp_path / "run")


def test_a_resumed_run_is_the_straight_one(files, tiny_model_dir, tmp_path):
    """Both heads and the place in the data are in the checkpoint."""
    straight = odin_config(files, tiny_model_dir, tmp_path / "straight", max_steps=4, save_every=2)
    train_reward_odin(straight)
    checkpoints = sorted((tmp_path / "straight" / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    import shutil

    shutil.copytree(tmp_path / "straight", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / checkpoints[-1].name)
    more = odin_config(files, tiny_model_dir, tmp_path / "again", max_steps=4, save_every=2)
    result = train_reward_odin(RewardOdinConfig(**{**vars(more), "resume": "auto"}))
    assert result.steps == 4
    same(tmp_path / "straight", tmp_path / "again")


# ---- what is refused


@pytest.mark.parametrize(
    ("command", "data", "more", "words"),
    [
        ("reward", "pairs.jsonl", "--reward.margin --reward.scaled", "Give one of them"),
        ("reward", "pairs.jsonl", "--reward.ties davidson --reward.readout mean", "single tokens nobody has said"),
        ("reward", "pairs.jsonl", "--reward.ties davidson --reward.margin", "compares scores without a margin"),
        ("reward", "pairs.jsonl", "--reward.tie_chance 0.5", "is read only with --reward.ties"),
        ("reward", "pairs.jsonl", "--reward.regulariser_beta 1", "is read only with --reward.regulariser"),
        ("reward", "pairs.jsonl", "--reward.regulariser_weight 0.5", "is read only with --reward.regulariser"),
        ("reward", "pairs.jsonl", "--reward.regulariser sft --reward.votes", "a pair need not have one"),
        ("reward", "pairs.jsonl", "--reward.label_smoothing 0.5", "at least 0 and below 0.5"),
        ("reward", "unstated.jsonl", "--reward.scaled", "12 of 12 pairs have no strength"),
        ("reward", "ties.jsonl", "", "all 12 comparisons are ties"),
        ("reward", "ties.jsonl", "--reward.votes", "all 12 comparisons are ties"),
        ("reward", "ties.jsonl", "--reward.ties rao-kupper", "all 12 pairs are ties"),
        ("reward-ranking", "ties.jsonl", "", "all 12 comparisons are ties"),
        ("reward-odin", "same.jsonl", "", "no relation with length to take out"),
    ],
)
def test_mistakes_are_told_before_work_is_spent(command, data, more, words, files, tiny_model_dir, tmp_path, caplog):
    assert run(command, tmp_path / "run", tiny_model_dir, files / data, more) == 2
    assert words in caplog.text and "Traceback" not in caplog.text
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_single_annotator_is_told_that_there_are_no_soft_labels(files, tiny_model_dir, tmp_path, caplog):
    assert (
        run("reward", tmp_path / "run", tiny_model_dir, files / "alone.jsonl", "--reward.votes --reward.ties davidson")
        == 0
    )
    assert "--reward.votes makes no soft label" in caplog.text
    assert "--reward.ties davidson has nothing to learn them from" in caplog.text


def test_a_reward_model_has_no_language_to_keep(files, trained, tmp_path, caplog):
    base = trained["scaled"] / "model"
    assert run("reward", tmp_path / "run", base, files / "pairs.jsonl", "--reward.regulariser sft") == 2
    assert str(base) in caplog.text and "--reward.regulariser" in caplog.text
