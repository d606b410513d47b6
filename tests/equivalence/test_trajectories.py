"""The comparison of two revisions (trajectories.py), of this checkout with itself: the same bytes, and a difference of
one unit in the last place is seen."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import trajectories
from trajectories import Ended
from trajectory_cases import CASES, CHEAP, RESUMED

DONE = Ended(0, "")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """The folder of two processes that ran the cheap cases side by side."""
    folder = tmp_path_factory.mktemp("both")
    trajectories.make(folder / "made")
    verdicts = trajectories.run_both(folder, trajectories.ROOT, trajectories.ROOT, CHEAP)
    assert {name: state for name, (state, _) in verdicts.items()} == dict.fromkeys(CHEAP, "equal"), verdicts
    return folder


@pytest.fixture
def there(both: Path, tmp_path: Path) -> Path:
    """A copy of the second process's run folder of a case, to be changed."""
    return Path(shutil.copytree(both / "there" / CHEAP[0], tmp_path / "there"))


def compare(both: Path, there: Path) -> tuple[str, str]:
    return trajectories.verdict(CHEAP[0], both / "here" / CHEAP[0], there, DONE, DONE)


@pytest.mark.slow
def test_one_checkout_is_the_same_twice(both: Path, there: Path) -> None:
    state, details = compare(both, there)
    assert state == "equal" and details == "7 rows of metrics, 9 samples, 20 tensors"


@pytest.mark.slow
def test_a_metric_that_is_one_unit_off_is_seen(both: Path, there: Path) -> None:
    lines = [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in lines if row["step"] == 3)
    before, row["loss"] = row["loss"], float(np.nextafter(row["loss"], 1.0))
    (there / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare(both, there) == (
        "DIFFERENT",
        f"metrics.jsonl, step 3, loss: {before!r} here, {row['loss']!r} there",
    )


@pytest.mark.slow
def test_a_metric_or_a_row_that_is_missing_is_seen(both: Path, there: Path) -> None:
    file = there / "metrics.jsonl"
    *lines, last = file.read_text().splitlines(keepends=True)
    row = json.loads(lines[1])
    gone = row.pop("grad_norm")
    file.write_text("".join([lines[0], json.dumps(row) + "\n", *lines[2:], last]))
    assert compare(both, there)[1] == f"metrics.jsonl, step 1, grad_norm: {gone!r} here, None there"
    file.write_text("".join(lines))
    assert compare(both, there) == ("DIFFERENT", "metrics.jsonl: 7 rows here, 6 there")


@pytest.mark.slow
def test_a_sample_that_is_another_is_seen(both: Path, there: Path) -> None:
    file = there / "samples.jsonl"
    file.write_text(file.read_text().replace('"step": 4', '"step": 5', 1))
    assert compare(both, there) == ("DIFFERENT", "samples.jsonl, step 4, step: 4 here, 5 there")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["one unit", "sign of zero"])
def test_a_weight_that_is_one_bit_off_is_seen(both: Path, there: Path, change: str) -> None:
    file, ours = there / "model" / "model.safetensors", both / "here" / CHEAP[0] / "model" / "model.safetensors"
    name = "model.norm.weight"
    tensors = load_file(file)
    if change == "sign of zero":
        zero = load_file(ours)
        zero[name][3], tensors[name][3] = 0.0, -0.0
        here = Path(shutil.copytree(both / "here" / CHEAP[0], there.parent / "here"))
        save_file(zero, here / "model" / "model.safetensors", {"format": "pt"})
    else:
        here = both / "here" / CHEAP[0]
        tensors[name][3] = np.nextafter(tensors[name][3], np.float32(9))
    save_file(tensors, file, {"format": "pt"})
    state, details = trajectories.verdict(CHEAP[0], here, there, DONE, DONE)
    assert state == "DIFFERENT"
    assert details.startswith(f"model/model.safetensors:{name}: 1 of 32 numbers differ, by up to ")


def test_a_case_that_does_not_run_is_no_equal_one(tmp_path: Path) -> None:
    unknown, broken = Ended(2, "error: Unknown option '--x'."), Ended(1, "Traceback\nKeyError: 3\n")

    def of(ours: Ended, theirs: Ended) -> tuple[str, str]:
        return trajectories.verdict("x", tmp_path, tmp_path, ours, theirs)

    assert of(DONE, unknown) == ("not compared", "there, exit code 2: error: Unknown option '--x'.")
    assert of(DONE, broken) == ("FAILED", "there, exit code 1: KeyError: 3")
    assert of(unknown, DONE)[0] == of(unknown, unknown)[0] == of(broken, broken)[0] == "FAILED"
    assert of(DONE, DONE)[0] == "FAILED", "two empty folders are equal, and show nothing"


def test_older_spellings_are_read(tmp_path: Path, monkeypatch) -> None:
    for side, key in (("here", "skipped"), ("there", "resting")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "metrics.jsonl").write_text(json.dumps({"step": 1, key: 0.5, "time/step": side}) + "\n")
    here, there = tmp_path / "here", tmp_path / "there"
    assert trajectories.first_difference(here, there) == "metrics.jsonl, step 1, skipped: 0.5 here, None there"
    monkeypatch.setattr(trajectories, "SPELLINGS", {"skipped": "resting"})
    assert trajectories.first_difference(here, there) is None


def test_cases_are_chosen_by_name() -> None:
    assert trajectories.chosen(None, cheap=False) == [*CASES, *RESUMED]
    assert trajectories.chosen("dpo, ppo shared", cheap=False) == ["dpo", "ppo shared"]
    with pytest.raises(SystemExit, match="--only dqo: there is no such case"):
        trajectories.chosen("dqo", cheap=False)
    assert not [name for name in (*CASES, *RESUMED) if "," in name], "--only is split there"
