"""The example of HelpSteer2's comparison, at a scale at which nothing is learnt: stages run, budgets are counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from helpsteer import run  # noqa: E402

from assent import cli  # noqa: E402
from assent.errors import UserError  # noqa: E402

COMMANDS = {
    "sft": ["sft"],
    "attributes": ["reward-attributes"],
    "dpo": ["iterate", "--labels.source", "m"],
    "iterative-dpo": ["iterate", "--labels.source", "m"],
    "ppo": ["ppo", "--rewards.model", "m"],
    "steerlm": ["steerlm", "--steering.model", "m"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_are_those_of_their_commands(name: str, capsys):
    given = ["--model.path", "m", "--data.train", "d", "--out", "o", "--dry_run"]
    file = str(run.HERE / f"{name}.yaml")
    assert cli.main([*COMMANDS[name], "--config", file, *given]) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_stages_run_and_budgets_are_equal(tmp_path):
    methods = ["iterative-dpo", "steerlm"]
    assert run.main(["--out", str(tmp_path / "out"), "--scale", "0.005", "--methods", *methods]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == ["sft", *methods]
    sampled, labels = ([int(row[place].replace(",", "")) for row in rows[3:]] for place in (6, 7))
    assert max(labels) <= 1.35 * min(labels) and sampled[0] == labels[0] and sampled[1] < labels[1]


def test_another_scale_needs_another_folder(tmp_path):
    (tmp_path / "options.json").write_text(json.dumps({"seed": 0, "scale": 1.0}))
    with pytest.raises(UserError, match="give those, or another folder"):
        run.files(tmp_path, 1, 1.0)
