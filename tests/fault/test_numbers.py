"""Options at the ends of their ranges: refused (2), a run of finite numbers (0), or ended with the number (3); never a
checkpoint, a model or a logged number that is not finite."""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from safetensors.torch import load_file

from assent.cli import COMMANDS, main
from assent.config import settings
from assent.errors import ConfigError, NonFiniteError
from assent.train import checkpoint
from assent.train.log import read_metrics

REWARDS = """
def length(completions, **columns):
    return [float(len(str(text))) for text in completions]

def vast(completions, **columns):
    return [3e38 if len(str(text)) % 2 else -3e38 for text in completions]

def vague(completions, log_metric, **columns):
    log_metric("ratio", float("nan"))
    return [1.0 for _ in completions]
"""

# ---- what is refused before any work


def kind_of(hint: Any) -> type | None:
    """float or int, of an option that is a number or None."""
    kinds = set(get_args(hint)) - {types.NoneType} if isinstance(hint, types.UnionType) else {hint}
    return next((kind for kind in (float, int) if kinds == {kind}), None)


def changed(config: Any, name: str, value: object) -> Any:
    first, _, rest = name.partition(".")
    return replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


def complete(command: str) -> Any:
    config = settings.load(COMMANDS[command].config, "", missing="x")
    for option in settings.options(type(config)):
        if settings.value_of(config, option.name) == "x" and str(option.kind).startswith("tuple"):
            config = changed(config, option.name, ("x",))
    return config


@pytest.mark.parametrize(
    "command", "sft reward dpo kto simpo ppo grpo dapo remax generate init data compare demo".split()
)
def test_no_option_takes_what_no_machine_holds(command: str) -> None:
    """NaN, infinities, numbers beyond float32 or int64: refused by the option's name."""
    config, tried = complete(command), 0
    for option in settings.options(type(config)):
        kind = kind_of(option.kind)
        values: tuple[object, ...] = {float: (math.nan, math.inf, -1e300, 1e39, 1e-50), int: (2**63, -(2**70))}.get(
            kind, ()
        )
        for value in values:
            tried += 1
            with pytest.raises(ConfigError, match=rf"--{option.name} .*must be"):
                settings.validate(changed(config, option.name, value))
    assert tried > 4


# ---- what is run


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "sft": [{"prompt": f"{i} red?", "completion": "red " * (i % 3 + 1)} for i in range(4)],
        "dpo": [{"prompt": f"{i} red?", "chosen": "red " * (i % 3 + 1), "rejected": f"no {i}"} for i in range(4)],
        "ppo": [{"prompt": f"{i} red?"} for i in range(4)],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "mine.py").write_text(REWARDS)
    return folder


Run = Callable[..., int]


@pytest.fixture
def run(files: Path, tiny_model_dir: Path, tmp_path: Path) -> Run:
    """Runs a command with these options into tmp_path/run, two steps of two rows."""

    def start(command: str, reward: str = "length", **options: object) -> int:
        name = "dpo" if command == "ipo" else "ppo" if command == "grpo" else command
        given: dict[str, object] = {
            "model.path": tiny_model_dir, "model.precision": "fp32", "data.train": files / f"{name}.jsonl",
            "data.max_length": 64, "out": tmp_path / "run", "optim.lr": 1e-3, "optim.warmup": 0.0,
            "train.batch_size": 2, "train.max_steps": 2, "train.threads": 1,
        }  # fmt: skip
        if name == "ppo":
            given |= {"rollout.responses": 2, "sampling.max_new_tokens": 4}
            given |= {"rewards.functions": f"{files / 'mine.py'}:{reward}"}
        if command == "ppo":
            given |= {"critic.start": "policy", "rollout.epochs": 1, "rollout.minibatches": 1}
        given |= options
        return main([command, *(word for option, value in given.items() for word in (f"--{option}", str(value)))])

    return start


def check(code: int, out: Path, said: str) -> None:
    weights = [x for file in out.rglob("*.safetensors") for x in load_file(file).values() if x.is_floating_point()]
    assert all(bool(x.isfinite().all()) for x in weights)
    metrics = out / "metrics.jsonl"
    logged = [value for row in read_metrics(metrics) for value in row.values()] if metrics.exists() else []
    assert all(math.isfinite(value) for value in logged)
    if code == 0:
        assert weights and logged and (out / "model" / "config.json").is_file()
    else:
        assert code == 3 and not (out / "model").exists()
        assert re.search(r"(is|gives) (nan|-?inf)\b|reaches \d\S*e\+\d+, whose square", said), said


EXTREMES = [
    *(("sft", name, value) for name in ("optim.eps", "optim.max_grad_norm") for value in (1e37, 1e-37)),
    *(("sft", name, value) for name in ("optim.lr", "optim.weight_decay") for value in (3e38, 1e25, 1e-37)),
    ("sft", "optim.beta2", 0.9999999999),
    ("sft", "model.lora.alpha", 1e37),
    ("sft", "train.batch_size", 10**9),
    ("dpo", "loss.beta", 1e37),
    ("dpo", "loss.beta", 1e-37),
    ("ppo", "kl.coef", 1e37),
    ("ppo", "kl.target", 1e-37),
    ("ppo", "shaping.missing_eos_penalty", 1e37),
    ("ppo", "shaping.clip", 1e-37),
    ("ppo", "loss.entropy", 1e37),
    ("ppo", "critic.lr", 1e37),
    ("ppo", "critic.coef", 1e37),
    ("ppo", "sampling.temperature", 1e-37),
    ("ppo", "rollout.correction", 1e37),
    ("grpo", "kl.coef", 1e37),
]


@pytest.mark.parametrize(("command", "option", "value"), EXTREMES)
def test_extremes(command: str, option: str, value: float, run: Run, tmp_path: Path, capsys) -> None:
    extra = {"model.lora.rank": 2} if "lora" in option else {}
    code = run(command, **extra, **{option: value})
    check(code, tmp_path / "run", capsys.readouterr().err)


@pytest.mark.parametrize("option", ["optim.lr", "optim.weight_decay"])
@pytest.mark.parametrize("value", [3e38, 1e37, 1e25])
def test_one_update_that_is_too_large_is_not_saved(option: str, value: float, run: Run, tmp_path: Path, capsys) -> None:
    """After the last step nothing else would compute with the weights."""
    assert run("sft", **{option: value, "train.max_steps": 1}) == 3
    assert checkpoint.newest_complete(tmp_path / "run" / "checkpoints") is None
    said = capsys.readouterr().err
    assert "step 1: " in said and "--optim.lr" in said
    check(3, tmp_path / "run", said)


def test_the_checkpoint_before_stays(run: Run, tmp_path: Path, monkeypatch, capsys) -> None:
    import assent.train.loop as loop

    rates = iter([1e-3, 1e-3, 1e38])

    def jump(optimizer: Any, _: float) -> None:
        rate = next(rates)
        for group in optimizer.param_groups:
            group["lr"] = rate

    monkeypatch.setattr(loop, "set_lr", jump)
    assert run("sft", **{"train.max_steps": 3, "train.save_every": 1}) == 3
    said = capsys.readouterr().err
    newest = checkpoint.newest_complete(tmp_path / "run" / "checkpoints")
    assert newest is not None and checkpoint.read_manifest(newest)["step"] == 2
    assert "step 3: " in said and "Checkpoint of step 2 saved" in said
    monkeypatch.undo()
    assert run("sft", **{"train.max_steps": 3, "train.save_every": 1, "resume": "auto"}) == 0


def test_an_evaluation_that_is_not_finite_ends_the_run(
    run: Run, files: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    import assent.train.run as run_module

    whole, seen = run_module.TrainingRun.measure, []

    def measure(self: Any) -> bool:
        own = self.evaluate
        seen.append(self.step)
        self.evaluate = lambda: replace(own(), metrics={**own().metrics, "eval/nll": math.nan}) if self.step else own()
        return whole(self)

    monkeypatch.setattr(run_module.TrainingRun, "measure", measure)
    assert run("sft", **{"data.eval": files / "sft.jsonl", "train.eval_every": 1}) == 3
    said = capsys.readouterr().err
    assert "step 1: eval/nll is nan" in said and seen == [0, 1]
    check(3, tmp_path / "run", said)


@pytest.mark.parametrize("command", ["ppo", "grpo"])
def test_vast_rewards_are_told_apart(command: str, run: Run, tmp_path: Path, capsys) -> None:
    """float32 could not hold their squares: every advantage would be 0."""
    code = run(command, "vast", **{"train.max_steps": 1, "kl.coef": 0.0, "sampling.max_new_tokens": 12})
    said = capsys.readouterr().err
    check(code, tmp_path / "run", said)
    if command == "grpo":
        (row,) = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "reward_std" in row]
        assert row["reward_std"] == 0 or row["grad_norm"] > 0
        assert code == 0
    else:
        assert code == 3 and "float32" in said or "inf" in said


def test_a_metric_that_is_not_finite_is_named(run: Run, capsys) -> None:
    assert run("grpo", "vague") == 3
    assert "log_metric('ratio') got nan; expected a finite number" in capsys.readouterr().err


def test_a_horizon_that_would_turn_the_kl_round_is_refused(run: Run, capsys) -> None:
    assert run("grpo", **{"kl.target": 6.0, "kl.coef": 0.1, "kl.horizon": 1, "train.batch_size": 4}) == 2
    assert "--kl.horizon must be above 1, a fifth of the 8 answers" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["train.batch_size", "rollout.responses"])
def test_a_rollout_that_no_memory_holds_is_refused(option: str, run: Run, capsys) -> None:
    assert run("grpo", **{option: 10**9}) == 2
    assert "the answers of one rollout" in capsys.readouterr().err


def test_a_rank_wider_than_the_model_is_refused(run: Run, capsys) -> None:
    assert run("sft", **{"model.lora.rank": 10**9}) == 2
    assert "--model.lora.rank 1000000000: no weight of this model is wider than 400" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["vocab_size", "hidden_size", "layers"])
def test_a_new_model_of_no_size_that_memory_holds_is_refused(option: str, tmp_path: Path, capsys) -> None:
    assert main(["init", "--data", "none", "--out", str(tmp_path / "new"), f"--{option}", "1024000000"]) == 2
    assert f"--{option} 1024000000" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_errors_of_numbers_have_one_code() -> None:
    from assent.rewards.group import NonFiniteReward

    assert NonFiniteReward.exit_code == NonFiniteError.exit_code == 3
