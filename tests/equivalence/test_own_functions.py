"""Functions of the user's own, in a file that nobody imports: a copy of one of the tables' trains to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from assent import train_preference
from assent.cli import main
from assent.config import CustomConfig
from assent.train.log import read_metrics

FILE = """
import torch
import torch.nn.functional as F


def clipped(logprobs, old_logprobs, advantages, *, clip, clip_high=None):
    ratio = (logprobs - old_logprobs).exp()
    bounded = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.minimum(ratio * advantages, bounded * advantages)


def group(rewards, prompt, *, scale="group"):
    assert scale == "group"
    number = torch.bincount(prompt)
    mean = (torch.zeros(len(number), dtype=rewards.dtype).index_add(0, prompt, rewards) / number)[prompt]
    centred = rewards - mean
    squares = torch.zeros(len(number), dtype=rewards.dtype).index_add(0, prompt, centred**2)
    deviation = (squares / (number - 1).clamp(min=1)).sqrt()[prompt]
    return centred / (deviation + 1e-4)


def by_token(token_rewards, values, response, *, gamma, lam):
    advantages = torch.zeros_like(values)
    for t in reversed(range(len(values))):
        last = t + 1 == len(values) or response[t + 1] != response[t]
        delta = token_rewards[t] + (0 if last else gamma * values[t + 1]) - values[t]
        advantages[t] = delta + (0 if last else gamma * lam * advantages[t + 1])
    return advantages


def dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, *, beta=0.1):
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return -F.logsigmoid(margin)


def bco(policy, reference, desirable, shift, *, beta=0.5):
    x = beta * (policy - reference) - shift
    return -F.logsigmoid(torch.where(desirable.bool(), x, -x))


def kto(policy, reference, desirable, kl, *, beta=0.1, desirable_weight=None, undesirable_weight=None):
    gain = beta * (policy - reference - kl)
    yes, no = desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    return torch.where(desirable.bool(), yes, no)


def simpo(policy_chosen, policy_rejected, length_chosen, length_rejected, *, beta=2.0):
    return -F.logsigmoid(beta * (policy_chosen / length_chosen - policy_rejected / length_rejected))


def aot(policy_chosen, policy_rejected, reference_chosen, reference_rejected, *, beta=0.1):
    of_policy = (policy_chosen - policy_rejected).sort().values
    of_reference = (reference_chosen - reference_rejected).sort().values
    return -F.logsigmoid(beta * (of_policy - of_reference))


def reward(prompts, completions, **columns):
    return [float(sum(map(ord, text)) % 7) for text in completions]


def wrong_group(rewards, prompt):
    return -group(rewards, prompt)
"""
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "my.py").write_text(FILE)
    words = "red green blue paris egg water seven minutes boil cool answer question".split()
    pairs = [{"prompt": f"{w} {i}?", "chosen": f"{w} yes", "rejected": f"no, {w} {i}"} for i, w in enumerate(words)]
    labels = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for i, row in enumerate(pairs)
        for side in (("chosen", "rejected") if i % 3 else ("rejected",))
    ]
    for name, rows in {"pairs": pairs, "labels": labels}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(place: Path, tiny_model_dir: Path, tmp_path: Path) -> Run:
    """The run folder of a command, with three steps."""

    def make(words: str, data: str, out: str = "run", steps: int = 3) -> Path:
        shared = (
            f"--model.path {tiny_model_dir} --model.precision fp32 --data.train {place}/{data}.jsonl --optim.lr 3e-3 "
            f"--data.max_length 64 --train.batch_size 4 --train.micro_tokens 100 --train.max_steps {steps} "
            f"--train.threads 1 --out {tmp_path}/{out}"
        )
        assert main([*words.replace("my.py", f"{place}/my.py").split(), *shared.split()]) == 0
        return tmp_path / out

    return make


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def metrics(folder: Path) -> dict[str, list[float]]:
    """Of the steps, but for times and for what the clip of a table's own loss says."""
    found = read_metrics(folder / "metrics.jsonl")
    rows = [{k: v for k, v in row.items() if not k.startswith(("time", "clip"))} for row in found]
    return {"rows": [sorted(row.items()) for row in rows]}


ONLINE = "--rewards.functions my.py:reward --sampling.max_new_tokens 5 --rollout.responses 3 --rollout.epochs 2"
PPO = f"ppo {ONLINE} --critic.start policy --rollout.responses 2"
SAME = {
    "ppo_clip": (f"grpo {ONLINE}", "--loss.function my.py:clipped", "pairs"),
    "group_advantages": (f"grpo {ONLINE}", "--loss.estimator my.py:group", "pairs"),
    "ppo": (PPO, "--loss.function my.py:clipped", "pairs"),
    "dpo": ("dpo", "custom --objective my.py:dpo", "pairs"),
    "bco": ("bco --loss.beta 0.1", "custom --objective my.py:bco --options beta:0.1", "labels"),
    "kto": ("kto", "custom --objective my.py:kto", "labels"),
    "simpo": ("simpo --loss.gamma 0", "custom --objective my.py:simpo", "pairs"),
    "aot": ("aot", "custom --objective my.py:aot --whole_step", "pairs"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_a_copy_trains_to_the_same_bytes(name: str, run: Run) -> None:
    table, own, data = SAME[name]
    if own.startswith("custom"):
        commands = [f"{words} --probe.prompts 0" for words in (table, own)]
    else:
        commands = [table, f"{table} {own}"]
    first, second = (run(words, data, str(number)) for number, words in enumerate(commands))
    assert weights(first) == weights(second)
    if name != "simpo":  # its implicit reward is per token, that of a user's function of the whole response
        assert metrics(first) == metrics(second)


def test_an_estimator_by_token_with_a_critic(run: Run) -> None:
    """GAE written as a loop: not the same order of sums, so not the same bytes."""
    first, second = run(PPO, "pairs", "table"), run(f"{PPO} --loss.estimator my.py:by_token", "pairs", "own")
    for before, after in zip(*(read_metrics(out / "metrics.jsonl") for out in (first, second)), strict=True):
        assert after["value_loss"] == pytest.approx(before["value_loss"], rel=1e-4)
        assert after["policy_loss"] == pytest.approx(before["policy_loss"], rel=1e-3, abs=1e-5)


def test_an_estimator_by_response_with_a_critic(run: Run, place: Path) -> None:
    """The returns of its critic are by token all the same."""
    (place / "flat.py").write_text("def flat(rewards, values, response):\n    return rewards - rewards.mean()\n")
    out = run(f"{PPO} --loss.estimator {place}/flat.py:flat", "pairs")
    assert all(row["value_loss"] > 0 for row in read_metrics(out / "metrics.jsonl"))


def test_another_function_trains_to_others(run: Run) -> None:
    first = run(f"grpo {ONLINE} --kl.coef 0 --loss.estimator my.py:group", "pairs", "a")
    second = run(f"grpo {ONLINE} --kl.coef 0 --loss.estimator my.py:wrong_group", "pairs", "b")
    assert weights(first) != weights(second)


def test_a_custom_run_is_resumed_and_exported(run: Run, place: Path, tmp_path: Path, capsys) -> None:
    words = (
        "custom --objective my.py:dpo --options beta:0.2 --probe.prompts 0 --optim.schedule constant --optim.warmup 0"
    )
    whole = run(f"{words} --train.save_every 1", "pairs", "whole", steps=4)
    run(f"{words} --train.save_every 1", "pairs", "parts", steps=2)
    parts = run(f"{words} --train.save_every 1 --resume auto", "pairs", "parts", steps=4)
    assert weights(whole) == weights(parts)
    environment = json.loads((parts / "environment.json").read_text())
    assert environment["command"] == "custom"
    inputs = json.loads((parts / "data.json").read_text())["inputs"]
    assert set(inputs["objective"]) == {"dpo"}
    assert main(["report", str(parts), "--out", str(tmp_path / "page.html")]) == 0
    assert "Custom" in (tmp_path / "page.html").read_text()
    assert main(["export", str(parts), "--out", str(tmp_path / "plain")]) == 0
    said = capsys.readouterr().err
    assert "Objective" in said and "my.py:dpo (beta 0.2), from pairs" in said


def test_from_python(place: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = CustomConfig(
        model={"path": str(tiny_model_dir), "precision": "fp32"},
        data={"train": str(place / "pairs.jsonl"), "max_length": 64, "eval_fraction": 0.3},
        out=str(tmp_path / "run"),
        train={"batch_size": 4, "max_steps": 2, "threads": 1},
        probe={"prompts": 0},
        objective=f"{place}/my.py:simpo",
    )
    found = train_preference(config).metrics
    assert {"eval/objective", "eval/accuracy", "eval/margin", "eval/reward/chosen"} <= found.keys()


def test_a_changed_function_is_noticed(run: Run, place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "my.py", tmp_path / "mine.py")
    words = f"custom --objective {tmp_path}/mine.py:dpo --probe.prompts 0"
    run(words, "pairs", steps=1)
    (tmp_path / "mine.py").write_text(FILE.replace("-F.logsigmoid(margin)", "F.softplus(-margin)"))
    with pytest.raises(AssertionError):
        run(f"{words} --resume auto", "pairs", steps=2)
    run(f"{words} --resume auto --resume_changed objective", "pairs", steps=2)
