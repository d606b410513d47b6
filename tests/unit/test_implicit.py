"""The implicit reward of a policy: the run's own margin, transformers' numbers, and what it needs to know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from assent import cli

ROWS = [
    {"prompt": f"Question {i}?", "chosen": "yes, " * (i % 3 + 1), "rejected": "no " * (i % 4 + 1)} for i in range(6)
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, pairs: Path, tmp_path_factory) -> Callable[..., Path]:
    """Runs of objectives, each made once, with the training data held out too."""
    made: dict[tuple[str, ...], Path] = {}

    def train(objective: str, *options: str) -> Path:
        if (key := (objective, *options)) not in made:
            made[key] = tmp_path_factory.mktemp("runs") / objective
            words = [
                *(objective, "--model.path", str(tiny_model_dir), "--model.precision", "fp32"),
                *("--data.train", str(pairs), "--data.eval", str(pairs), "--data.max_length", "64"),
                *("--out", str(made[key]), "--optim.lr", "1e-2", "--optim.schedule", "constant"),
                *("--train.batch_size", "3", "--train.max_steps", "3", "--train.threads", "1", "--probe.prompts", "0"),
            ]
            assert cli.main([*words, *options]) == 0
        return made[key]

    return train


def scored(capsys, *words: object) -> np.ndarray:
    """The rewards, [pair, (chosen, rejected)]."""
    capsys.readouterr()
    code = cli.main(["score", *map(str, words), "--precision", "fp32"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return np.array([json.loads(line)["reward"] for line in out.splitlines()]).reshape(-1, 2)


def logprobs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """log pi(y | x) by transformers alone in float64, and the tokens of y, [pair, (chosen, rejected)]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sums, lengths = [], []
    for row in ROWS:
        for side in ("chosen", "rejected"):
            ask = [{"role": "user", "content": row["prompt"]}]
            start = tokenizer.apply_chat_template(ask, add_generation_prompt=True, return_dict=True)["input_ids"]
            text = tokenizer.apply_chat_template([*ask, {"role": "assistant", "content": row[side]}], tokenize=False)
            ids = tokenizer(text.rstrip("\n"), add_special_tokens=False)["input_ids"]
            assert ids[: len(start)] == list(start)
            with torch.no_grad():
                told = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            own = told[torch.arange(len(start) - 1, len(ids) - 1), torch.tensor(ids[len(start) :])]
            sums.append(own.sum().item())
            lengths.append(len(own))
    return np.array(sums).reshape(-1, 2), np.array(lengths).reshape(-1, 2)


def last_margin(run: Path) -> float:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["eval/margin"] for row in rows if "eval/margin" in row][-1]


@pytest.mark.parametrize(
    ("objective", "options", "beta", "reference", "per_token"),
    [
        ("dpo", ["--loss.beta", "0.3"], 0.3, True, False),
        ("dpo", ["--model.lora.rank", "2", "--loss.beta", "0.3"], 0.3, True, False),
        ("ln-dpo", ["--loss.beta", "5"], 5.0, True, True),
        ("simpo", [], 2.0, False, True),
        ("simpo", ["--loss.no_length_normalised", "--loss.gamma", "0"], 2.0, False, False),
        ("ipo", ["--loss.length_normalised", "--loss.beta", "0.1"], 0.1, True, True),
        ("slic", [], 1.0, False, False),
    ],
)
def test_it_is_the_margin_of_the_run_and_what_transformers_gives(
    objective: str, options: list[str], beta, reference: bool, per_token: bool, trained, pairs, tiny_model_dir, capsys
) -> None:
    run = trained(objective, *options)
    rewards = scored(capsys, f"implicit={run}", pairs)
    assert (rewards[:, 0] - rewards[:, 1]).mean() == pytest.approx(last_margin(run), abs=2e-5)
    own, lengths = logprobs(run / "model")
    want = own - logprobs(tiny_model_dir)[0] if reference else own
    want = want / lengths if per_token else want
    np.testing.assert_allclose(rewards, beta * want, atol=3e-5)
    assert np.abs(rewards).max() > 1e-3
    # Its model folder says the same, and an own beta wins.
    np.testing.assert_array_equal(scored(capsys, f"implicit={run / 'model'}", pairs), rewards)
    np.testing.assert_allclose(scored(capsys, f"implicit={run}", pairs, "--beta", 2 * beta), 2 * rewards, rtol=1e-4)


def test_a_plain_folder_with_an_own_reference(trained, pairs, tiny_model_dir, tmp_path, capsys) -> None:
    run = trained("dpo", "--loss.beta", "0.3")
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in (run / "model").iterdir():
        if file.is_file():
            (plain / file.name).write_bytes(file.read_bytes())
    words = (f"implicit={plain}", pairs, "--reference", tiny_model_dir, "--beta", "0.3")
    np.testing.assert_array_equal(scored(capsys, *words), scored(capsys, f"implicit={run}", pairs))
    assert cli.main(["score", f"implicit={plain}", str(pairs)]) == 2
    assert "Give --reference and --beta" in capsys.readouterr().err


def test_what_is_not_known_is_asked_for(trained, pairs, tiny_model_dir, tmp_path, capsys) -> None:
    def refused(*words: object) -> str:
        assert cli.main(["score", *map(str, words)]) == 2
        return " ".join(capsys.readouterr().err.split())

    moved = trained("tr-dpo")
    said = refused(f"implicit={moved}", pairs)
    assert "followed the policy (--reference.mode moving, as in tr-dpo), and was not kept" in said
    assert f"the one that the run began with: --reference {tiny_model_dir}" in said
    simpo = trained("simpo")
    said = refused(f"implicit={simpo}", pairs, "--reference", tiny_model_dir)
    assert "a policy of simpo is compared with no reference" in said
    gone = tmp_path / "gone"
    gone.mkdir()
    run = trained("dpo", "--loss.beta", "0.3")
    for name in ("resolved.yaml", "environment.json"):
        text = (run / name).read_text().replace(str(tiny_model_dir), "/not/there")
        (gone / name).write_text(text)
    assert "the reference of its run, /not/there, is not there. Give it: --reference" in refused(
        f"implicit={gone}", pairs
    )
    (gone / "environment.json").write_text(json.dumps({"command": "sft"}))
    assert "is of a run of assent sft: only what was trained directly from feedback" in refused(
        f"implicit={gone}", pairs
    )


def test_training_against_it(trained, pairs, tiny_model_dir, tmp_path, capsys) -> None:
    """The policy's own answers, against the policy that DPO made; what is logged is the implicit reward."""
    run = trained("dpo", "--loss.beta", "0.3")
    words = [
        *("rloo", "--model.path", str(tiny_model_dir), "--model.precision", "fp32", "--data.train", str(pairs)),
        *("--data.max_length", "64", "--out", str(tmp_path / "rl"), "--rewards.implicit", str(run)),
        *("--train.max_steps", "1", "--train.batch_size", "2", "--train.threads", "1"),
        *("--rollout.responses", "2", "--sampling.max_new_tokens", "6"),
    ]
    logged = ("--rewards.rules", "length=1,99", "--rewards.weights", "length:0")
    assert cli.main([*words, *logged]) == 0
    first = json.loads((tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["reward/implicit"] == pytest.approx(first["reward"]) and first["reward"] != 0
    capsys.readouterr()
    without = [word for word in words if word not in ("--rewards.implicit", str(run))]
    assert cli.main([*without, *logged[:2], "--rewards.implicit_beta", "0.1"]) == 2
    assert "--rewards.implicit_beta is about the policies of --rewards.implicit" in capsys.readouterr().err


def test_a_resumed_run_notices_another_reference_of_that_run(trained, pairs, tiny_model_dir, tmp_path, capsys) -> None:
    """It is found in the other run's options, and named in none of this one's."""
    shutil.copytree(tiny_model_dir, tmp_path / "start")
    words = [
        *("--model.path", str(tmp_path / "start"), "--model.precision", "fp32", "--data.train", str(pairs)),
        *("--data.max_length", "64", "--train.batch_size", "2", "--train.threads", "1", "--train.max_steps", "1"),
    ]
    aligned, run = tmp_path / "aligned", tmp_path / "rl"
    assert cli.main(["dpo", *words, "--out", str(aligned), "--probe.prompts", "0"]) == 0
    words[1] = str(tiny_model_dir)
    words += ["--rollout.responses", "2", "--sampling.max_new_tokens", "6", "--rewards.implicit", str(aligned)]
    words += ["--out", str(run), "--train.save_every", "1"]
    assert cli.main(["rloo", *words]) == 0
    weights = load_file(tmp_path / "start" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    words[words.index("--train.max_steps") + 1] = "2"
    assert cli.main(["rloo", *words, "--resume", "auto"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rewards.implicit" in said and "reference's weights" in said
