"""Values that are JSON but cannot be used, quotes that swallow rows, and lines that every reader cuts alike."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal

import pyarrow
import pytest
from pyarrow import parquet

from assent.data.formats import load_examples
from assent.data.jsonl import json_line
from assent.errors import DataError

GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def lines(*bad: str) -> str:
    good = json.dumps(GOOD)
    return "\n".join([good, *bad, good]) + "\n"


@pytest.mark.parametrize(
    ("extra", "column", "reason"),
    [
        ('"id": 1' + "0" * 5000, "id", "a whole number of 5001 digits is too large"),
        ('"deep": {"a": [-1' + "0" * 5000 + "]}", "deep", "a whole number of 5001 digits is too large"),
        ('"margin": 1' + "0" * 400, "margin", "expected a number below 1e+30, got a number of 401 digits"),
        ('"margin": 1e400', "margin", "expected a number, got an infinite number"),
        ('"margin": NaN', "margin", "expected a number, got NaN"),
        ('"margin": 1e39', "margin", "expected a number below 1e+30"),
        ('"score_chosen": 1' + "0" * 309 + ', "score_rejected": 1', "score_chosen", "expected a number below 1e+30"),
        ('"score_chosen": 1, "score_rejected": -1' + "0" * 400, "score_rejected", "expected a number below 1e+30"),
        ('"chosen": "other"', "chosen", "the key 'chosen' stands twice in one object"),
        ('"deep": {"x": 1, "x": 1}', "deep", "the key 'x' stands twice in one object"),
        ('"deep": ' + "[" * 100_000 + "]" * 100_000, None, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_numbers_and_keys_that_cannot_be_used_are_problem_rows(extra, column, reason, kind, tmp_path):
    bad = json.dumps(GOOD)[:-1] + ", " + extra + "}"
    path = tmp_path / f"rows.{kind}"
    if kind == "json" and column is None:
        path.write_text(f"[{json.dumps(GOOD)}, {bad}]")
        with pytest.raises(DataError, match=reason):
            load_examples(path)
        return
    path.write_text(lines(bad) if kind == "jsonl" else f"[{','.join(lines(bad).splitlines())}]")
    loaded = load_examples(path)
    (problem,) = loaded.problems
    assert (problem.origin.row, problem.column) == (2, column) and reason in problem.reason
    assert loaded.rows_used == 2


def test_numbers_of_parquet_files(tmp_path):
    rows = [{**GOOD, "margin": Decimal("1.50"), "day": date(2026, 11, 29), "raw": b"\xff"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (example,) = load_examples(tmp_path / "rows.parquet").examples
    assert example.feedback[0].strength == 1.5
    assert example.meta == {"day": date(2026, 11, 29), "raw": b"\xff"}
    bad = [{**GOOD, "prompt": b"q"}]
    parquet.write_table(pyarrow.Table.from_pylist(bad), tmp_path / "bad.parquet")
    with pytest.raises(DataError):
        load_examples(tmp_path / "bad.parquet", format="messages")
    (problem,) = load_examples(tmp_path / "bad.parquet").problems
    assert (problem.column, problem.reason) == ("prompt", "expected a string, got bytes")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('prompt,completion\n' + "".join(f'q{i},"a{i}"\n' for i in range(3)) + 'q3,"a3\n' + 'q4,a4\n' * 3, 5),
        ('prompt,completion\n' + "".join(f'q{i},"a{i}"\n' for i in range(3)) + 'q3,"a3\n' + 'q4,"a4"\n' * 3, 5),
        ('prompt,completion\nq,"a"b\n', 2),
    ],
)  # fmt: skip
def test_a_quote_that_is_not_closed_swallows_no_rows(text, line, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(
        DataError, match=rf"rows.csv:{line}: not readable as csv: .*Is there a quote that is not closed\?"
    ):
        load_examples(path)


def test_csv_labels_and_numbers(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,label\nq,a,1\nq,a,0\nq,a,True\nq,a,nan\nq,a,0.5\nq,a,1" + "0" * 5000 + "\n")
    loaded = load_examples(path)
    assert [example.feedback[0].label for example in loaded.examples] == [True, False, True]
    assert [problem.reason[:45] for problem in loaded.problems] == [
        "expected true or false, got the string 'nan'",
        "expected true or false, got the number 0.5",
        "expected true or false, got the string '10000",
    ]


def test_lines_of_json_are_cut_in_the_same_places_by_everybody():
    row = {"text": "a\u2028b\u2029c\x85d\x1ce\ud800f\U0001f95a", "n": 1.5}
    line = json_line(row)
    assert len(line.splitlines()) == 1 and line.endswith("\n") and json.loads(line) == row
    line.encode("utf-8")
    assert "\U0001f95a" in line
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"x": float("nan")})
