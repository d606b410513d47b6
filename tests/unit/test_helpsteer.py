"""The example of HelpSteer2's comparison, at a scale at which nothing is learnt: every stage runs, the table is whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from helpsteer import run  # noqa: E402

from assent.errors import UserError  # noqa: E402


@pytest.mark.slow
def test_every_stage_runs_and_the_budgets_are_equal(tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--scale", "0.005"]
    assert run.main(words) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == ["sft", *run.METHODS]
    sampled, labels = ([int(row[place].replace(",", "")) for row in rows[3:]] for place in (6, 7))
    assert max(labels) <= 1.35 * min(labels) and sampled[:3] == labels[:3] and sampled[3] < labels[3]
    done = (tmp_path / "out" / "steerlm" / "loop.jsonl").read_bytes()
    capsys.readouterr()
    assert run.main(words) == 0  # all is done, and only looked at
    assert capsys.readouterr().out.endswith(table)
    assert (tmp_path / "out" / "steerlm" / "loop.jsonl").read_bytes() == done


def test_another_scale_needs_another_folder(tmp_path):
    (tmp_path / "options.json").write_text(json.dumps({"seed": 0, "scale": 1.0}))
    with pytest.raises(UserError, match="give those, or another folder"):
        run.files(tmp_path, 1, 1.0)
