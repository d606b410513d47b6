"""Golden answers against a policy's own, and the choices of an older reward model, in the training of a reward model:
which pairs there are, what is computed, from the command line and from Python, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from assent.algorithms.reward.adversarial import OLD
from assent.algorithms.reward.pairs import RewardModelling, train_reward
from assent.cli import main
from assent.config import (
    AdversarialSection,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OldRewardSection,
    OptimConfig,
    RewardConfig,
    RewardSection,
    TrainConfig,
)
from assent.data.dataset import prompt_hash
from assent.data.formats import load_examples
from assent.data.golden import CUT, SHARE, GoldenView, by_prompt, samples_view, with_share
from assent.data.packing import EpochStream, count, window
from assent.data.records import Example, Message, Origin, Pair, Response
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.errors import DataError
from assent.models.heads import WantedHead, load_score_model
from assent.models.reward_head import HeadRule
from assent.models.saving import save_model
from assent.train.log import read_metrics


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- which pairs there are


def example(prompt: str, *answers: str, **meta: object) -> Example:
    responses = tuple(Response((Message("assistant", text),)) for text in answers)
    return Example((Message("user", prompt),), responses, origin=Origin("x.jsonl", 1), meta=meta)


def texts(found: Example) -> list[str]:
    return [each.text for each in found.responses]


def test_each_golden_answer_is_told_from_the_samples_of_its_prompt():
    rows = [example("a", "one", "two", "gold "), example("b", "three"), example("c", "x"), example("a", "two")]
    samples, problems = samples_view(rows)
    assert len(samples) == 6 and not problems
    view = GoldenView(by_prompt(samples))
    golden = [example("a", "gold"), example("b", "other"), example("a", "two"), example("d", "d"), example("c", "x")]
    kept, problems = view(golden)
    assert list(map(texts, kept)) == [["gold", "one"], ["other", "three"], ["two", "one"]], "golden ones are no samples"
    assert kept[0].feedback == (Pair(0, 1),)
    assert [p.reason for p in problems] == ["its prompt has no sample", "all samples are golden answers"]
    assert not any(p.fault for p in problems) and view.same == 4, "gold, two, two and x"


def test_a_golden_answer_counts_once_however_many_samples_it_has():
    kept, _ = GoldenView(by_prompt([example("a", "one", "two", "three")]))([example("a", "gold")])
    assert kept[0].feedback == (Pair(0, 1), Pair(0, 2), Pair(0, 3))
    tree = TokenTree(np.array([5]), (), ((0, 1, 0.0), (0, 2, 0.0), (0, 3, 0.0)))
    assert with_share([tree])[0].per_pair[SHARE].tolist() == pytest.approx([1 / 3] * 3)


def test_what_did_not_come_to_an_end_is_no_sample():
    rows = [example("a", "one", "two", finished=[True, False]), example("b", "x", finished=False), example("c", "y")]
    samples, problems = samples_view(rows)
    assert list(map(texts, samples)) == [["one"], ["y"]]
    assert [(p.reason, p.fault) for p in problems] == [(CUT, False)] * 2
    with pytest.raises(DataError, match=r"x.jsonl: no answer came to an end .*max_new_tokens"):
        samples_view([example("a", "one", "two", finished=[False, False])])
    samples, problems = samples_view(
        [example("a", "one", "two", finished=[True]), example("c", "y", finished="yes"), rows[2]]
    )
    assert len(samples) == 1 and [p.fault for p in problems] == [True, True] and "2 answers" in problems[0].reason


def test_prompts_that_are_held_out_are_not_trained_on():
    rows = [example(f"prompt {i}", "sample") for i in range(40)]
    golden = [example(f"prompt {i}", "gold") for i in range(40)]
    kept, problems = GoldenView(by_prompt(rows), 0.5)(golden)
    assert 0 < len(kept) < 40 and len(problems) == 40 - len(kept)
    assert all(prompt_hash(each) >= 0.5 for each in kept)
    assert {p.reason for p in problems} == {"its prompt is held out"}


def test_that_nothing_is_left_says_why():
    golden = [example("a", "gold"), example("b", "b"), example("c", "c")]
    with pytest.raises(
        DataError, match=r"none of 3 golden answers .*no sample \(2\).*all samples are golden answers \(1\)"
    ):
        GoldenView(by_prompt([example("b", "b"), example("z", "z")]))(golden)


# ---- the loss, by numpy


def tree(*lengths: int, pairs=(), key: int = 0, old=None) -> TokenTree:
    branches = tuple(Branch(np.arange(3, 3 + n), np.ones(n, bool)) for n in lengths)
    fields = {} if old is None else {OLD: np.array(old, np.float32)}
    return TokenTree(np.array([5, 6]), branches, tuple((a, b, 0.0) for a, b in pairs), fields, key)


GOLDEN = with_share([tree(2, 3, 1, pairs=[(0, 1), (0, 2)]), tree(1, 4, pairs=[(0, 1)], key=1)])


class Scores:
    """A scorer whose rewards are given: by the token that is read."""

    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor(values, dtype=torch.float64, requires_grad=True)

    def scalars(self, batch: TreeBatch, index: Tensor) -> Tensor:
        return self.values[: len(index)]


def modelling(values, section: RewardSection | None = None, **more) -> RewardModelling:
    return RewardModelling(Scores(values), None, section or RewardSection(), **more)


def test_golden_answers_by_their_formula():
    values = [0.3, -0.5, 1.2, 0.9, -0.1]
    algorithm = modelling(values, adversarial=AdversarialSection("g", "s", coef=0.25))
    loss = algorithm.golden_loss(collate(GOLDEN), number=2)
    first = -(np.log(sigmoid(0.3 + 0.5)) + np.log(sigmoid(0.3 - 1.2))) / 2
    second = -np.log(sigmoid(0.9 + 0.1))
    assert loss.total.item() == pytest.approx(0.25 * (first + second) / 2, rel=1e-6)
    assert [float(x) for x in map(torch.as_tensor, loss.metrics["golden_nll"])] == [
        pytest.approx(first + second, rel=1e-6),
        2,
    ]
    assert [float(x) for x in loss.metrics["golden_accuracy"]] == [1.5, 2]
    loss.total.backward()
    gradient = algorithm.scorer.values.grad
    assert gradient[0] < 0 and gradient[3] < 0 and (gradient[[1, 2, 4]] > 0).all(), "golden up, samples down"
    wanted = 0.25 / 2 * np.array([sigmoid(-0.8) / 2, sigmoid(0.9) / 2, sigmoid(-1.0)])
    np.testing.assert_allclose(gradient[[1, 2, 4]], wanted, rtol=1e-6)


def test_golden_answers_are_read_where_pairs_are():
    """Token by token with readout mean: here two tokens against three, the shorter one keeps its last score."""
    values = [0.3, -0.5, 1.2, 0.9, -0.1, 0.0, 0.0]
    trees = with_share([tree(2, 3, pairs=[(0, 1)])])
    section = RewardSection(readout="mean")
    loss = modelling(values, section, adversarial=AdversarialSection("g", "s", coef=1.0)).golden_loss(
        collate(trees), number=1
    )
    gaps = np.array([0.3 - 1.2, -0.5 - 0.9, -0.5 + 0.1])
    assert loss.total.item() == pytest.approx(-np.log(sigmoid(gaps)).mean(), rel=1e-6)


@pytest.mark.parametrize("pairs_coef", [1.0, 0.0, 0.5])
def test_pairs_and_the_older_model_by_their_formulas(pairs_coef: float):
    values = [0.3, -0.5, 1.2, 0.9]
    trees = [tree(2, 3, pairs=[(0, 1)], old=[1.0, 0.5]), tree(1, 4, pairs=[(1, 0)], key=1, old=[0.0, 2.0])]
    algorithm = modelling(values, adversarial=AdversarialSection(pairs_coef=pairs_coef), old_coef=0.7)
    loss = algorithm.loss(collate(trees), count(trees))
    p, q = sigmoid(np.array([0.5, 2.0])), sigmoid(np.array([0.8, -0.3]))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert loss.total.item() == pytest.approx((pairs_coef * -np.log(q) + 0.7 * kl).mean(), rel=1e-6)
    assert [float(x) for x in loss.metrics["old_kl"]] == [pytest.approx(kl.sum(), rel=1e-6), 2]
    assert float(loss.metrics["nll"][0]) == pytest.approx(-np.log(q).sum(), rel=1e-6), "it is logged as it is"


@pytest.mark.parametrize("flat", [False, True], ids=["tree", "flat"])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_cutting_packing_and_ranks_change_nothing(readout: str, flat: bool, tiny_model_dir: Path, tokenizer):
    draw = np.random.default_rng(3)
    sizes = [(2, 9, 4), (5, 3), (1, 7, 2, 6), (3, 3), (8, 1)]
    golden = [
        TokenTree(
            draw.integers(3, 260, 4 + key),
            tuple(Branch(draw.integers(3, 260, n), np.ones(n, bool)) for n in lengths),
            tuple((0, k, 0.0) for k in range(1, len(lengths))),
            key=key,
        )
        for key, lengths in enumerate(sizes)
    ]
    config = ModelConfig(str(tiny_model_dir), precision="fp32")
    scorer = load_score_model(config, tokenizer, max_length=64)
    section = AdversarialSection("g", "s", coef=0.5)
    algorithm = RewardModelling(scorer, None, RewardSection(readout=readout), adversarial=section)

    def gradient(micro_tokens: int, flat: bool, ranks: int) -> tuple[float, Tensor]:
        scorer.zero_grad()
        total = 0.0
        for rank in range(ranks):
            made = window(with_share(golden), micro_tokens=micro_tokens, flat=flat, rank=rank, ranks=ranks)
            for batch in made.batches:
                loss = algorithm.golden_loss(batch, number=made.counts.prompts)
                loss.total.backward()
                total += loss.total.item()
        return total, torch.cat([p.grad.flatten() for p in scorer.parameters() if p.grad is not None])

    value, wanted = gradient(4096, False, 1)
    assert wanted.abs().max() > 1e-4
    for micro_tokens, ranks in ((4096, 1), (20, 1), (20, 2), (4096, 3)):
        got, grads = gradient(micro_tokens, flat, ranks)
        assert got == pytest.approx(value, rel=1e-6)
        torch.testing.assert_close(grads, wanted, atol=1e-6, rtol=0)


def test_the_state_is_both_places():
    trees = [tree(2, 3, pairs=[(0, 1)], key=key) for key in range(3)]
    options = {"batch_size": 2, "micro_tokens": 64, "seed": 1, "flat": False}

    def made() -> RewardModelling:
        golden = EpochStream(with_share(trees), **options)
        return RewardModelling(Scores([0.0]), EpochStream(trees, **options), RewardSection(), golden=golden)

    one, other = made(), made()
    windows = one.windows()
    for _ in range(2):
        next(windows)
    assert one.state_dict() == {"given": 2, "golden": {"given": 2}}
    other.load_state_dict(one.state_dict())
    again = other.windows()
    for _ in range(2):
        theirs, ours = next(windows), next(again)
        assert [b.keys for b in theirs.batches] == [b.keys for b in ours.batches]
        assert [b.keys for b in theirs.mixed.batches] == [b.keys for b in ours.mixed.batches]


# ---- commands


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Pairs; golden answers as demonstrations; samples as native rows and one a row, some unfinished, some golden."""
    folder = tmp_path_factory.mktemp("golden")

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def turns(text: str, role: str = "assistant") -> list[dict]:
        return [{"role": role, "content": text}]

    def native(index: int, *answers: str, **meta) -> dict:
        responses = [{"messages": turns(text), "source": "policy"} for text in answers]
        return {"prompt": turns(f"Question {index}?", "user"), "responses": responses, "feedback": [], "meta": meta}

    prompts = [f"Question {i}?" for i in range(10)]
    write("pairs.jsonl", [{"prompt": p, "chosen": f"yes {p}", "rejected": f"no {p} no"} for p in prompts])
    write("golden.jsonl", [{"prompt": p, "completion": f"The answer, {i}"} for i, p in enumerate(prompts)])
    write(
        "samples.jsonl",
        [native(i, f"no {i}", f"The answer, {i}", "hm", "cut", finished=[True, True, True, False]) for i in range(8)],
    )
    write("single.jsonl", [{"prompt": p, "completion": "hm"} for p in prompts])
    write("golden-pairs.jsonl", [{"prompt": p, "chosen": f"It is {p}", "rejected": "no"} for p in prompts])
    write("same.jsonl", [{"prompt": p, "completion": f"The answer, {i}"} for i, p in enumerate(prompts)])
    write("others.jsonl", [{"prompt": "Another?", "completion": "hm"}])
    write("cut.jsonl", [native(i, "no", "hm", finished=[False, False]) for i in range(4)])
    write("prompts.jsonl", [{"prompt": p} for p in prompts])
    return folder


def run(out: Path, model: Path, files: Path, *more: str) -> int:
    words = f"--model.path {model} --model.precision fp32 --data.train {files / 'pairs.jsonl'} --data.max_length 64 "
    words += f"--out {out} --optim.lr 1e-2 --optim.warmup 0 --train.batch_size 4 --train.max_steps 3 --train.threads 1"
    named = [word.replace("FILES", str(files)) for word in " ".join(more).split()]
    return main(["reward", *words.split(), *named])


AGAINST = "--adversarial.golden FILES/golden.jsonl --adversarial.samples FILES/samples.jsonl --adversarial.batch_size 3"


def config(out: Path, model: Path, files: Path, **train) -> RewardConfig:
    """What `run` is asked with `AGAINST --old.coef 0.5 --adversarial.coef 1`, from Python."""
    return RewardConfig(
        model=ModelConfig(str(model), precision="fp32"),
        data=DataConfig(str(files / "pairs.jsonl"), max_length=64),
        out=str(out),
        optim=OptimConfig(lr=1e-2, warmup=0.0),
        train=TrainConfig(**{"batch_size": 4, "max_steps": 3, "threads": 1} | train),
        adversarial=AdversarialSection(
            str(files / "golden.jsonl"), str(files / "samples.jsonl"), coef=1.0, batch_size=3
        ),
        old=OldRewardSection(0.5),
    )


@pytest.fixture(scope="module")
def trained(files: Path, scorer_dir: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "reward"
    assert run(out, scorer_dir, files, AGAINST, "--adversarial.coef 1 --old.coef 0.5") == 0
    return out


def same(one: Path, two: Path) -> None:
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_what_a_run_reports(trained: Path):
    rows = [row for row in read_metrics(trained / "metrics.jsonl", times=False) if "loss" in row]
    assert rows[0]["old_kl"] == pytest.approx(0, abs=1e-9) and rows[1]["old_kl"] > 1e-6, "it starts as the older one"
    for row in rows:
        parts = row["nll"] + 1.0 * row["golden_nll"] + 0.5 * row["old_kl"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
    lines = dict(json.loads((trained / "opening.json").read_text())["lines"])
    assert lines["Adversary"].startswith("8 golden answers against 16 samples, weight 1; 8 samples are equal")


def test_python_and_the_command_line_are_the_same(trained: Path, files: Path, scorer_dir: Path, tmp_path: Path):
    train_reward(config(tmp_path / "run", scorer_dir, files))
    same(trained, tmp_path / "run")


def test_a_resumed_run_is_the_straight_one(trained: Path, files: Path, scorer_dir: Path, tmp_path: Path):
    """Its place among the golden answers is in the checkpoint."""
    made = config(tmp_path / "run", scorer_dir, files, save_every=2)
    train_reward(made)
    last = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    shutil.rmtree(last)
    assert train_reward(replace(made, resume="auto")).steps == 3
    same(trained, tmp_path / "run")


def test_golden_answers_pull_where_they_should(files: Path, scorer_dir: Path, tokenizer, tmp_path: Path):
    """With nothing else to learn (pairs_coef 0), golden answers rise above the samples, and the pairs do not."""
    more = "--adversarial.pairs_coef 0 --adversarial.coef 1 --train.max_steps 12 --model.lora.rank 2"
    more += " --adversarial.golden FILES/golden-pairs.jsonl --adversarial.samples FILES/single.jsonl"
    assert run(tmp_path / "run", scorer_dir, files, more) == 0
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl", times=False) if "loss" in row]
    assert rows[-1]["golden_accuracy"] == 1 and rows[-1]["golden_nll"] < rows[0]["golden_nll"] / 2
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["golden_nll"], rel=1e-5)
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert weights["score.weight"].shape[0] == 1


def test_an_older_model_elsewhere_holds_the_choices(files: Path, trained: Path, scorer_dir: Path, tmp_path: Path):
    """Of a strong KL the new model's choices are those of the older one, which the pairs alone would change."""
    options = f"--adversarial.pairs_coef 1 --old.path {scorer_dir} --train.max_steps 6"
    assert run(tmp_path / "free", trained, files, "--train.max_steps 6") == 0
    assert run(tmp_path / "held", trained, files, options, "--old.coef 50") == 0
    kl = [row["old_kl"] for row in read_metrics(tmp_path / "held" / "metrics.jsonl", times=False) if "old_kl" in row]
    nll = {
        name: [row["nll"] for row in read_metrics(tmp_path / name / "metrics.jsonl", times=False) if "nll" in row]
        for name in ("free", "held")
    }
    assert kl[0] > 1e-4 and kl[-1] < kl[0] and nll["held"][-1] > nll["free"][-1]


# ---- what is refused


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--adversarial.golden FILES/golden.jsonl", "--adversarial.samples is needed as well"),
        ("--adversarial.samples FILES/samples.jsonl", "--adversarial.golden is needed as well"),
        ("--adversarial.coef 2", "--adversarial.coef is read only with"),
        ("--adversarial.pairs_coef 0", "--adversarial.pairs_coef is read only with"),
        ("--adversarial.batch_size 2", "--adversarial.batch_size is read only with"),
        ("--old.path FILES", "--old.path FILES is read only with --old.coef above 0"),
        ("--old.coef 1 --reward.ties davidson", "a tie is a third one"),
        ("--old.coef 1", "needs a trained reward model"),
        ("--adversarial.golden FILES/nothing.jsonl --adversarial.samples FILES/samples.jsonl", "nothing.jsonl"),
        ("--adversarial.golden FILES/prompts.jsonl --adversarial.samples FILES/samples.jsonl", "needs answers"),
        ("--adversarial.golden FILES/golden.jsonl --adversarial.samples FILES/prompts.jsonl", "answers to prompts are"),
        ("--adversarial.golden FILES/golden.jsonl --adversarial.samples FILES/cut.jsonl", "no answer came to an end"),
        ("--adversarial.golden FILES/golden.jsonl --adversarial.samples FILES/same.jsonl", "golden answers (10)"),
        ("--adversarial.golden FILES/golden.jsonl --adversarial.samples FILES/others.jsonl", "has no sample (10)"),
    ],
)
def test_mistakes_are_told_before_work_is_spent(more, words, files, tiny_model_dir, tmp_path, caplog):
    assert run(tmp_path / "run", tiny_model_dir, files, more) == 2
    assert words.replace("FILES", str(files)) in caplog.text and "Traceback" not in caplog.text
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_older_model_must_read_the_same_tokens(files: Path, scorer_dir: Path, tmp_path: Path, caplog):
    shutil.copytree(scorer_dir, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    text = json.loads(file.read_text())
    vocabulary = text["model"]["vocab"]
    one, two = list(vocabulary)[40:42]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(text))
    assert run(tmp_path / "run", scorer_dir, files, f"--old.coef 1 --old.path {tmp_path / 'other'}") == 2
    assert "--old.path" in caplog.text and "another vocabulary" in caplog.text


def test_an_older_model_has_one_output(files: Path, tiny_model_dir: Path, scorer_dir, tokenizer, tmp_path, caplog):
    rule = HeadRule(("clear", "right"), (0.5, 0.5))
    options = {"max_length": 64, "head": WantedHead(rule, renewed=True)}
    scorer = load_score_model(ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, **options)
    scorer.plain.config.id2label = dict(enumerate(rule.names))
    save_model(scorer, tokenizer, tmp_path / "two")
    assert run(tmp_path / "run", scorer_dir, files, f"--old.coef 1 --old.path {tmp_path / 'two'}") == 2
    assert "has 2 outputs (clear, right)" in caplog.text


def test_the_files_are_what_the_tests_say(files: Path):
    loaded = load_examples(str(files / "samples.jsonl"))
    assert loaded.examples[0].meta["finished"] == [True, True, True, False]
    assert LoraConfig().rank == 0
