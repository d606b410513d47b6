"""`assent score` on two ranks writes what one writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import assent
from assent import cli

SOURCE = Path(assent.__file__).parents[1]


def test_two_ranks_share_the_work(scorer_dir: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Egg {i}?", "chosen": "Yes, boil it. " * (i % 3 + 1), "rejected": f"No {i}."} for i in range(5)]
    file, mine = tmp_path / "pairs.jsonl", tmp_path / "mine.py"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine.write_text("def size(completions, **columns):\n    return [float(len(text)) for text in completions]\n")
    words = [*("score", str(scorer_dir), f"{mine}:size", str(file), "--precision", "fp32", "--micro_tokens", "64")]
    assert cli.main([*words, "--out", str(tmp_path / "one.jsonl")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "assent"]
    ended = subprocess.run(
        [*launch, *words, "--out", str(tmp_path / "two.jsonl"), "--summary", str(tmp_path / "two.json")],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("accuracy") == 1, "one rank speaks"
    one, two = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("one", "two")
    )
    np.testing.assert_allclose([row["reward"] for row in two], [row["reward"] for row in one], atol=1e-5)
    assert [{**row, "reward": 0, "parts": 0} for row in two] == [{**row, "reward": 0, "parts": 0} for row in one]
    assert json.loads((tmp_path / "two.json").read_text())["answers"] == 10
