"""The example that researchers begin with: it learns, stays short, and needs nothing of `assent.algorithms`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "grpo_from_scratch.py"
sys.path.insert(0, str(ROOT / "examples"))

import grpo_from_scratch as example  # noqa: E402


def test_it_learns_and_leaves_an_ordinary_model(tmp_path: Path, capsys) -> None:
    rewards = example.main(["--steps", "16", "--out", str(tmp_path / "model")])
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.1, rewards
    assert capsys.readouterr().out.count("step ") == 16
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert example.main(["--steps", "16"]) == rewards, "the same numbers again"


def test_it_reads_as_one_file_on_the_parts_of_assent() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    modules = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    used = {module.split(".")[1] for module in modules if module.startswith("assent.")}
    assert {"data", "models", "losses", "rollout"} <= used and not used & {"algorithms", "train"}
