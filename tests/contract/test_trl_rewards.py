"""Reward functions are called as TRL's trainer calls them: the same function under both gets the same arguments."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from assent.data.formats import load_examples
from assent.rewards.function import FunctionReward
from assent.rewards.group import Group, Progress, WeightedSum

grpo = pytest.importorskip("trl.trainer.grpo_trainer")
from accelerate import PartialState  # noqa: E402
from transformers import TrainerState  # noqa: E402

STANDARD = [
    {"prompt": "2+2?", "solution": "$4$", "level": 1},
    {"prompt": "3+3? Think.", "solution": "$6$", "level": None},
]
CONVERSATIONAL = [
    {"prompt": [{"role": "user", "content": "2+2?"}], "solution": "$4$", "level": 1},
    {
        "prompt": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "3+3?"},
        ],
        "solution": "$6$",
        "level": None,
    },
]
TEXTS = [
    "<think>\nTwo and two.\n</think>\n\\boxed{4}",
    "four four four four",
    "<think>a</think>\\boxed{7}",
    "\\boxed{6}",
]
IDS = [[5, 6, 7, 2], [9, 9, 9, 9, 9, 9], [5, 8, 2], [4, 2]]
RECORDER = """
seen = {}
def f(prompts, completions, **kwargs):
    seen.clear()
    seen.update(locals())
    return [1.0, None, 0.25, len(kwargs["completion_ids"][3])]
async def later(completions, trainer_state, log_metric, **kwargs):
    log_metric("steps", trainer_state.global_step)
    return [0.5 * trainer_state.global_step, None, None, trainer_state.max_steps]
"""


def trl(functions: list[Any], rows: list[dict[str, Any]]) -> tuple[torch.Tensor, Any]:
    """TRL's rewards of `TEXTS`, two to each row, [4, functions], and the trainer that asked."""
    PartialState(cpu=True)
    trainer = object.__new__(grpo.GRPOTrainer)
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), is_main_process=True)
    trainer.args = SimpleNamespace(report_to=[])
    trainer.reward_funcs = functions
    trainer.reward_func_names = [getattr(f, "__name__", "f") for f in functions]
    trainer.reward_processing_classes = [None] * len(functions)
    trainer.state = TrainerState(global_step=3, max_steps=12, num_train_epochs=2, epoch=0.5)
    trainer.environments = None
    trainer._pending_extra_logs = grpo.defaultdict(list)
    trainer._pending_metrics = grpo.defaultdict(list)
    thread, trainer.async_loop, ready = grpo.start_event_loop_in_daemon(name="test")
    ready.wait()
    inputs = [row for row in rows for _ in range(2)]
    prompts = [row["prompt"] for row in inputs]
    talks = grpo.is_conversational(rows[0])
    completions = [[{"role": "assistant", "content": text}] if talks else text for text in TEXTS]
    try:
        return trainer._calculate_rewards(inputs, prompts, completions, IDS), trainer
    finally:
        grpo.shutdown_event_loop_in_daemon(thread, trainer.async_loop)


def groups(rows: list[dict[str, Any]], folder: Path) -> list[Group]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        Group(
            example,
            tuple(TEXTS[2 * i : 2 * i + 2]),
            (True, True),
            tuple(map(len, IDS[2 * i : 2 * i + 2])),
            tuple(np.array(ids) for ids in IDS[2 * i : 2 * i + 2]),
            progress=Progress(3, 12, 6),
        )
        for i, example in enumerate(load_examples(file).examples)
    ]


@pytest.fixture(params=["standard", "conversational"])
def rows(request) -> list[dict[str, Any]]:
    return STANDARD if request.param == "standard" else CONVERSATIONAL


@pytest.fixture
def recorder(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(RECORDER)
    return str(file)


def test_equal_arguments_and_rewards(rows, recorder: str, tmp_path: Path) -> None:
    source = FunctionReward(f"{recorder}:f", "--rewards.functions")
    mine = groups(rows, tmp_path)
    source.check([group.example for group in mine])
    scores = source.score(mine)
    seen = source.function.__globals__["seen"]
    given = dict(seen)
    theirs, _ = trl([source.function], rows)
    np.testing.assert_array_equal(scores.values, theirs[:, 0].numpy())
    assert given["prompts"] == seen["prompts"] and given["completions"] == seen["completions"]
    ours, its = given["kwargs"], dict(seen["kwargs"])
    assert set(ours) == set(its)
    for name in ("completion_ids", "solution", "level"):
        assert ours[name] == its[name], name
    for name in ("global_step", "max_steps", "num_train_epochs", "epoch"):
        assert getattr(ours["trainer_state"], name) == getattr(its["trainer_state"], name), name


def test_several_functions_of_which_some_return_none(rows, recorder: str, tmp_path: Path) -> None:
    flag = "--rewards.functions"
    sources = [FunctionReward(f"{recorder}:f", flag), FunctionReward(f"{recorder}:later", flag)]
    scores = WeightedSum("sum", sources, [1.0, 2.0]).score(groups(rows, tmp_path))
    theirs, trainer = trl([source.function for source in sources], rows)
    want = (theirs * torch.tensor([1.0, 2.0])).nansum(dim=1)
    want[theirs.isnan().all(dim=1)] = torch.nan  # what the trainer does with them
    np.testing.assert_allclose(scores.values, want.numpy())
    assert np.isnan(scores.values).tolist() == [False, True, False, False]
    assert scores.failures == {"f: returned None": 1, "later: returned None": 2}
    assert trainer._pending_metrics["steps"] == [3.0] and scores.metrics == {"later/steps": [3.0]}


MADE = """
from trl.rewards import (accuracy_reward, get_cosine_scaled_reward, get_repetition_penalty_reward,
    get_soft_overlong_punishment, reasoning_accuracy_reward, think_format_reward)
overlong = get_soft_overlong_punishment(max_completion_len=5, soft_punish_cache=3)
repetition = get_repetition_penalty_reward(ngram_size=2)
cosine = get_cosine_scaled_reward(max_len=8)
"""


@pytest.mark.parametrize(
    "name",
    [
        "think_format_reward",
        "overlong",
        "repetition",
        "accuracy_reward",
        "reasoning_accuracy_reward",
        "cosine",
    ],
)
def test_rewards_that_trl_ships_run_unchanged(name: str, rows, tmp_path: Path) -> None:
    if "accuracy" in name or name == "cosine":
        pytest.importorskip("math_verify")
    file = tmp_path / "made.py"
    file.write_text(MADE)
    source = FunctionReward(f"{file}:{name}", "--rewards.functions")
    mine = groups(rows, tmp_path)
    source.check([group.example for group in mine])
    if rows is STANDARD and name not in ("overlong", "repetition"):  # written for messages: an error in TRL as well
        with pytest.raises(TypeError):
            trl([source.function], rows)
        with pytest.raises(Exception, match="prompts of the rows are text, so each of the completions is text"):
            source.score(mine)
        return
    theirs, trainer = trl([source.function], rows)
    scores = source.score(mine)
    np.testing.assert_allclose(scores.values, theirs[:, 0].numpy(), rtol=1e-6)
    assert scores.columns == dict(trainer._pending_extra_logs)
    assert len(set(scores.values.tolist())) > 1
