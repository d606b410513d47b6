"""Rows from every kind of file, with their numbers, and one clear line for what cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assent.data.readers import read_rows
from assent.data.records import Origin, Problem
from assent.errors import DataError

ROWS = [{"prompt": "café?", "completion": "oui\n\u2028non"}, {"prompt": "b", "completion": "🙂"}]


def rows_of(path: object, split: str = "train") -> list[object]:
    return [row for _, row in read_rows(path, split)]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(kind: str, path: Path) -> Path:
    path = path / f"rows.{kind}"
    text = lines(ROWS)
    if kind == "jsonl":
        path.write_text(text, encoding="utf-8")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind in ("csv", "tsv"):
        sep = "," if kind == "csv" else "\t"
        cells = [f'"{row["prompt"]}"{sep}"{row["completion"]}"\r\n' for row in ROWS]
        path.write_bytes(f"prompt{sep}completion\r\n{''.join(cells)}".encode())
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "parquet", "csv", "tsv"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    path = write(kind, tmp_path)
    assert list(read_rows(path)) == [(Origin(str(path), 1), ROWS[0]), (Origin(str(path), 2), ROWS[1])]


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.none() | st.booleans() | st.integers()),
        min_size=1,
    )
)
def test_jsonl_gives_back_what_was_written(tmp_path_factory, rows):
    rows = json.loads(json.dumps(rows))
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\r\n" for row in rows), encoding="utf-8-sig", newline="")
    assert rows_of(path) == rows


@pytest.mark.parametrize(
    "content",
    [
        {"rows": ROWS},
        {"version": 1, "data": ROWS},
        {"rows": [{"row_idx": 0, "row": ROWS[0], "truncated_cells": []}, {"row_idx": 1, "row": ROWS[1]}]},
    ],
)
def test_json_object_with_rows(content, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    assert rows_of(path) == ROWS


def test_json_file_that_holds_lines_keeps_line_numbers(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(lines(ROWS[:1]) + "\n{broken\n" + lines(ROWS[1:]), encoding="utf-8-sig")
    found = list(read_rows(path))
    assert [origin.row for origin, _ in found] == [1, 3, 4]
    assert isinstance(found[1][1], Problem)
    assert found[2][1] == ROWS[1]


def test_json_array_that_breaks_names_line_and_column(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1},\n {"a": }]')
    with pytest.raises(DataError, match=r"rows.json:2: not valid JSON: Expecting value at column 8"):
        rows_of(path)


def test_folder_chooses_files_by_split_name_word_and_folder(tmp_path):
    def put(name: str, value: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"prompt": value}))

    put("dpo-train.jsonl", "a")
    put("extra/train-00001-of-00002.jsonl", "b2")
    put("extra/train-00000-of-00002.jsonl", "b1")
    put("train_prefs-00000-of-00001.jsonl", "c")
    put("dev/rows.jsonl", "d")
    put(".cache/train.jsonl", "hidden")
    put("dataset_info.json", "not data")

    def prompts(split: str) -> list[str]:
        return [row["prompt"] for row in rows_of(tmp_path, split)]

    assert prompts("train") == ["b1", "b2"]  # a file named by the split itself wins over a word in a name
    assert prompts("train_prefs") == ["c"]
    assert prompts("validation") == prompts("dev") == ["d"]
    with pytest.raises(DataError, match=r"no split 'test'; splits found: train, validation"):
        prompts("test")


def test_folder_without_split_names_is_one_train_split(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}))
    assert rows_of(tmp_path) == [{"prompt": "a"}, {"prompt": "b"}]
    with pytest.raises(DataError, match=r"no split 'test'; splits found: train \(2 files\)"):
        rows_of(tmp_path, "test")


def test_folder_file_with_two_splits_in_its_name_is_refused(tmp_path):
    (tmp_path / "train_test.jsonl").write_text("{}")
    with pytest.raises(DataError, match="more than one split"):
        rows_of(tmp_path)


def test_saved_dataset_folders(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert rows_of(tmp_path / "one") == ROWS
    assert rows_of(tmp_path / "two", "test") == ROWS[1:]
    with pytest.raises(DataError, match="no split 'dev'; splits found: train, test"):
        rows_of(tmp_path / "two", "dev")


def test_hub_id_gives_owner_name_folder_configuration_and_split(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_rows("owner/name", "test")) == [(Origin("owner/name", i + 1), row) for i, row in enumerate(ROWS)]
    rows_of("owner/name:main")
    rows_of("owner/name/some/folder")
    assert calls == [
        (("owner/name", None), {"split": "test"}),
        (("owner/name", "main"), {"split": "train"}),
        (("owner/name", None), {"split": "train", "data_dir": "some/folder"}),
    ]


def test_hub_failure_is_one_line_that_says_what_to_do(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        read_rows("owner/name")
    message = str(caught.value)
    assert message.startswith("owner/name: no such file or folder here, and not loadable from the hub: Couldn't reach")
    assert "download the files" in message and "\n" not in message


def test_missing_path_fails_at_once_with_a_suggestion(tmp_path, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise AssertionError("a missing local file must not be looked up on the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("{}")
    for name in ("data/trian.jsonl", "data/trian", "./data/trian.jsonl", str(tmp_path / "data/trian.jsonl")):
        with pytest.raises(DataError, match="no such file or folder") as caught:
            read_rows(name)
        assert "data/train.jsonl" in str(caught.value) or not name.endswith(".jsonl")
    with pytest.raises(DataError, match="A hub id is written owner/name"):
        read_rows("gsm")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.txt", b"x", r"cannot read a \.txt"),
        ("rows", b"x", "cannot read a file without suffix"),
        ("rows.jsonl", b"", "the file is empty"),
        ("rows.parquet", b"not parquet at all", "not a readable parquet file"),
        ("rows.jsonl.gz", b"not gzip", "cannot be read"),
        ("rows.json", b'"text"', "expected an array of objects, or an object with 'rows', got str"),
        ("rows.json", b"\xff\xfe[", "not UTF-8 at byte 1; save the file as UTF-8"),
        ("rows.csv", b"a,a\n1,2\n", "names a column twice"),
        ("rows.csv", b"a\n\xff\n", "not UTF-8"),
    ],
)
def test_unreadable_files_are_one_clear_line(name, content, reason, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        rows_of(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="no data files in this folder"):
        read_rows(tmp_path)


def test_reading_is_lazy(tmp_path):
    """A broken end does not keep the first rows from being read: rows come one at a time."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a\nfirst\n" + b"second\n" * 10_000 + b"\xff\n")
    assert next(iter(read_rows(path)))[1] == {"a": "first"}


@pytest.mark.parametrize(
    ("name", "num_rows"),
    [("dpo_en_demo.json", 300), ("kto_en_demo.json", 300), ("alpaca_en_demo.json", 999), ("gsm8k_test.jsonl", 1319)],
)
def test_real_files(real_data, name, num_rows):
    rows = rows_of(real_data / name)
    assert len(rows) == num_rows
    assert all(isinstance(row, dict) for row in rows)
