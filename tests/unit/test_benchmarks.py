"""The arithmetic behind docs/benchmarks.md, and the turn-taking of its two sides."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from assent.data.packing import window  # noqa: E402
from assent.data.tree import Branch, TokenTree  # noqa: E402
from benchmarks import plan, table  # noqa: E402
from benchmarks.ours import train_work, training  # noqa: E402
from benchmarks.sides import Side, SideFailed  # noqa: E402

WORKER = """
import time
from benchmarks.turns import Turns
turns = Turns(2, versions={"torch": "1"})
print("noise on standard output")
number = 0
while True:
    time.sleep(0.2 if number < 2 else 0.01)
    number += 1
    turns.step(tokens=number)
"""


def steps(*seconds: float, **work: float) -> list[dict[str, float]]:
    return [{"seconds": value, **work} for value in seconds]


def result(ours: list, peer: list, **more: object) -> dict:
    sides = {"ours": {"turns": ours, "peak_rss": 2**30}, "peer": {"turns": peer, "peak_rss": 2**31}}
    return {"what": "dpo", "model": "tiny", "precision": "fp32", "target": 4.5, **sides, **more}


def test_summary_of_known_numbers() -> None:
    work = {"tokens": 100.0, "flops": 40.0, "computed_flops": 30.0}
    ours = [steps(1.0, 1.0, **work), steps(1.0, 9.0, **work)]  # the slow step must not move the median
    peer = [steps(5.0, 5.0, tokens=101.0), steps(5.0, 45.0, tokens=101.0)]
    found = table.summary(result(ours, peer), rate=100.0)
    assert found["ours"] == 100.0 and found["peer"] == 20.0  # our count of tokens for both
    assert found["ratio"] == 5.0 and (found["low"], found["high"]) == (5.0, 5.0)
    assert found["mfu"] == 0.4 and found["mfu_computed"] == 0.3
    assert found["seconds"] == {"ours": 1.0, "peer": 5.0}
    assert found["speed"] == "ratio" and found["memory"]


@pytest.mark.parametrize("what, computed, reached", [("dpo", 65.0, "MFU"), ("dpo", 64.0, "no"), ("ppo", 65.0, "no")])
def test_utilisation_may_stand_in_for_the_ratio_in_training(what: str, computed: float, reached: str) -> None:
    ours = [steps(1.0, tokens=10.0, flops=100.0, computed_flops=computed)]
    found = table.summary(result(ours, [steps(2.0, tokens=10.0)], what=what), rate=100.0)
    assert found["ratio"] == 2.0 and found["speed"] == reached


def test_utilisation_is_of_the_faster_matrix_products() -> None:
    machine = [{"matmul": {"fp32": 1.0, "bf16": 5.0}}, {"matmul": {"fp32": 2.0, "bf16": 4.0}}]
    assert table.rates({"machine": machine}) == {"fp32": 2.0, "bf16": 5.0}


class OneLayer(nn.Module):
    """A stand-in for a language model: 12 weights in its layer (and a norm, which multiplies no matrix), 10 in its
    head, and an embedding that is only looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4))])
        self.embedding, self.head = nn.Embedding(50, 4), nn.Linear(2, 5, bias=False)

    @property
    def base_model(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize(
    "what, tokens, flops, computed",
    [
        ("sft", 11, 6 * 22 * 11, 6 * 12 * 8 + 6 * 10 * 4),
        ("dpo", 11, 8 * 22 * 11, 8 * 12 * 8 + 8 * 10 * 4),
        ("ppo", 4, (22 * 12 + 12 * 10) * 11, 22 * 12 * 8 + 12 * 10 * 4),
    ],
)
def test_work_of_a_step(what: str, tokens: int, flops: int, computed: int) -> None:
    # Prompt of 3, answers of 2 and 3 tokens, of which 4 are trained: 8 packed, 11 with the prompt once per answer.
    answers = (Branch(np.arange(2), np.array([True, True])), Branch(np.arange(3), np.array([False, True, True])))
    packed = window([TokenTree(np.arange(3), answers)], micro_tokens=100)
    policy = nn.Module()
    policy.model = OneLayer()
    algorithm = type("Algorithm", (), {"modules": {"policy": policy}})()
    assert train_work(what, algorithm, packed) == {"tokens": tokens, "flops": flops, "computed_flops": computed}


@pytest.fixture(scope="module")
def prepared(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What benchmarks.prepare writes, as far as our side reads it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tiny").symlink_to(tiny_model_dir)
    options = {"num_labels": 1, "dtype": "float32"}
    AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, **options).save_pretrained(
        folder / "tiny-reward"
    )
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder / "tiny-reward")
    rows = [
        {
            "conversations": [{"from": "human", "value": f"What is {i}?"}],
            "chosen": {"from": "gpt", "value": f"It is {i}."},
            "rejected": {"from": "gpt", "value": "No idea."},
        }
        for i in range(plan.PROMPTS)
    ]
    for name in {plan.data_file(what) for what in plan.WHATS}:
        (folder / name).write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("what", ["sft", "dpo", "reward", "ppo"])
def test_our_side_takes_steps(what: str, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.ours.NEW_TOKENS", 3)
    work = next(training(what, "tiny", "fp32", prepared))
    assert work["tokens"] > 0 and 0 < work["computed_flops"] <= work["flops"]
    if what == "ppo":
        assert work["tokens"] == 3 * plan.PROMPTS  # EOS ends nothing


def test_every_row_has_a_target() -> None:
    rows = plan.rows(list(plan.WHATS), list(plan.MODELS), list(plan.PRECISIONS))
    assert len(rows) == 20 and all(row.target >= 1.4 for row in rows)
    assert plan.Row("dpo", "small", "bf16").target == 3.0 and plan.Row("dpo", "small", "fp32").target == 2.5


def test_a_worker_waits_for_its_turn(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Side([sys.executable, "-c", WORKER], env, tmp_path / "log") as side:
        assert side.read() == {"ready": {"versions": {"torch": "1"}}}
        first, second = side.turn(2), side.turn(1)
    assert [step["tokens"] for step in first["steps"] + second["steps"]] == [3, 4, 5]
    assert all(0.01 <= step["seconds"] < 0.2 for step in first["steps"])
    assert first["peak_rss"] > 2**20
    assert side.process.returncode == 0
    assert "noise" in (tmp_path / "log").read_text()


def test_a_dead_worker_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with Side(command, os.environ, tmp_path / "log") as side, pytest.raises(SideFailed, match="no such model"):
        side.read()


def test_the_table_goes_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    machine = {"cpu": {"model": "C", "memory": "1 GiB", "vector instructions": "V"}, "assent": "0"}
    machine |= {"matmul": {"fp32": 100.0, "bf16": 100.0}}
    row = result([steps(1.0, tokens=9.0, flops=1.0, computed_flops=1.0)], [steps(5.0, tokens=9.0)])
    for side in ("ours", "peer"):
        row[side]["versions"] = {"torch": "2"}
    failed = {"what": "sft", "model": "tiny", "precision": "bf16", "error": "x"}
    report = {"date": "D", "quick": False, "threads": 2, "load": [0.0, 1.0], "machine": [machine] * 2}
    table.rewrite(page, {**report, "rows": [row, failed]})
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "| DPO | tiny | fp32 | 9 | 2 | 5.00 (5.00–5.00) | 4.5 |" in lines[2] and lines[3].endswith("| failed |")


def test_torch_is_not_needed_by_the_driver() -> None:
    code = "import sys, benchmarks.__main__, benchmarks.turns; sys.exit('torch' in sys.modules)"
    assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", code], {"PYTHONPATH": str(ROOT)}) == 0
