"""Rows from every kind of file, with their numbers, and one clear line for what cannot be read."""

from __future__ import annotations

import csv as csv_module
import gzip
import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assent.data import files
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


# ------------------------------------------------------------------------------------------------ strictly


def csv(tmp_path: Path, content: bytes, name: str = "rows.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@given(
    rows=st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), min_size=2, max_size=2)),
    separator=st.sampled_from([",", "\t"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_csv_gives_back_what_others_write(tmp_path_factory, rows, separator, end):
    path = tmp_path_factory.mktemp("csv") / ("rows.csv" if separator == "," else "rows.tsv")
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv_module.writer(file, delimiter=separator, lineterminator=end)
        writer.writerows([["a", "b"], *rows])
    assert rows_of(path) == [dict(zip("ab", row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('5" wide,x', "a quote stands within a cell that is not quoted: .* \\(line 3\\)"),
        ('he said "hi",x', "a quote stands within a cell that is not quoted: .* \\(line 3\\)"),
        ("x", r"has 1 cells where the header has 2 \(line 3\)"),
        ("x,y,z", r"has 3 cells where the header has 2 \(line 3\)"),
        ("x,\0y", r"holds a NUL byte, which is no text \(line 3\)"),
    ],
)
def test_a_csv_line_that_is_wrong_by_itself_is_a_problem_row(line, reason, tmp_path):
    found = rows_of(csv(tmp_path, f"a,b\n1,2\n{line}\n3,4\n".encode()))
    assert [found[0], found[2]] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert isinstance(found[1], Problem) and re.match(reason, found[1].reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "a,b\n" + "1,2\n" * 49 + '3,"4\n' + "5,6\n" * 50,
            "rows.csv:51: .*within a quoted cell .* goes on to line 101",
        ),
        ('a,b\n1,"2\n3,"4"\n5,6\n', "rows.csv:2: .*',' expected"),
        ("a,b\n1,2\r3,4\n", "rows.csv:2: .*carriage return stands alone"),
        ("a;b\n1;2\n", "the one column 'a;b'; a .csv file is read with commas .* seems to have semicolons"),
        ("a\tb\n1\t2\n", "seems to have tabs"),
        ('a"x,b\n1,2\n', "in its header a quote stands within"),
        ("a,b\n1,é\n".encode("latin-1"), "rows.csv:2: not UTF-8 at byte 3 of the line"),
        ("a,b\n".encode("utf-16"), "not UTF-8 at byte 1; save the file as UTF-8"),
        ("\n\n", "the file is empty"),
    ],
)
def test_a_csv_whose_records_are_in_doubt_is_refused(content, reason, tmp_path):
    path = csv(tmp_path, content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=reason) as caught:
        rows_of(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "garbage", "empty"])
def test_damaged_gzip_is_one_line(kind, damage, tmp_path):
    text = "".join(f'{{"a": "{n * n}"}}\n' for n in range(2000)).encode()
    packed = bytearray(gzip.compress(b"" if damage == "empty" else text))
    if damage == "flipped":
        packed[len(packed) // 2 : len(packed) // 2 + 9] = b"\xff" * 9
    elif damage == "cut":
        del packed[-20:]
    elif damage == "garbage":
        packed += b"garbage"
    path = csv(tmp_path, bytes(packed), f"rows.{kind}.gz")
    if damage == "empty" and kind == "jsonl":
        assert rows_of(path) == []
        return
    with pytest.raises(DataError, match=r"rows\.") as caught:
        rows_of(path)
    assert "\n" not in str(caught.value)


def test_gzip_in_several_members_is_read_and_a_bomb_is_not(tmp_path, monkeypatch):
    lines_of = [json.dumps({"a": n}).encode() + b"\n" for n in range(3)]
    path = csv(tmp_path, b"".join(map(gzip.compress, lines_of)), "rows.jsonl.gz")
    assert rows_of(path) == [{"a": 0}, {"a": 1}, {"a": 2}]
    monkeypatch.setattr(files, "UNPACKED", 2**20)
    for name in ("rows.jsonl.gz", "rows.json.gz", "rows.csv.gz"):
        with pytest.raises(DataError, match="unpacks to more than 500 times"):
            rows_of(csv(tmp_path, gzip.compress(b" " * 2**24), name))


@pytest.mark.parametrize("magic", list(files.KINDS))
def test_files_under_another_name_are_named(magic, tmp_path):
    with pytest.raises(DataError, match="rows.jsonl: holds "):
        rows_of(csv(tmp_path, magic + b"\0" * 20, "rows.jsonl"))


def test_damaged_parquet_names_the_row_group_and_the_row(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pa.table({"a": [f"row {n}" * 50 for n in range(400)]})
    pq.write_table(table, path, row_group_size=100, use_dictionary=False, compression="snappy")
    good = path.read_bytes()
    offset = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    path.write_bytes(good[: offset + 60] + b"\xff" * 900 + good[offset + 960 :])
    with pytest.raises(DataError, match=r"not a readable parquet file, row group 3 of 4: "):
        rows_of(path)
    path.write_bytes(good[:-30])
    with pytest.raises(DataError, match="not a readable parquet file: "):
        rows_of(path)
    raw = pa.array([b"fine", b"caf\xe9", b"good"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"a": text}), path)
    found = rows_of(path)
    assert [found[0], found[2]] == [{"a": "fine"}, {"a": "good"}]
    assert str(found[1]) == f"{path}:2: a: not UTF-8 at byte 4 (unexpected end of data)"


def test_a_row_that_is_too_large_is_a_problem_row_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROW_BYTES", 1000)
    rows = [{"a": "x"}, {"a": "x" * 5000}, {"a": "y"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for path in (csv(tmp_path, lines(rows).encode(), "rows.jsonl"), tmp_path / "rows.parquet"):
        found = rows_of(path)
        assert [found[0], found[2]] == [rows[0], rows[2]] and "has more than 1,000 bytes" in found[1].reason
    with pytest.raises(DataError, match="rows.csv:3: .*more than 1,000 bytes"):
        rows_of(csv(tmp_path, b"a,b\n1,2\n3," + b"x" * 5000 + b"\n"))
    with pytest.raises(DataError, match="rows.csv:2: .*more than 1,000 characters in one record .*to line 50"):
        rows_of(csv(tmp_path, b'a,b\n1,"2\n' + b"xxxxxxxxxxxxxxxxxxxx\n" * 90))


def test_json_has_bounds(tmp_path):
    deep = {"a": json.loads("[" * 103 + "]" * 103)}
    fine = {"a": json.loads("[" * 99 + "]" * 99)}
    wide = {str(n): n for n in range(1001)}
    path = csv(tmp_path, lines([deep, fine, wide]).encode() + b'{"a": ' + b"[" * 100_000 + b"\n", "rows.jsonl")
    found = rows_of(path)
    assert found[1] == fine
    assert [found[n].reason for n in (0, 2, 3)] == [
        "nested too deeply",
        "has 1,001 columns; at most 1,000 are read",
        "not usable JSON: nested too deeply",
    ]
    twice = "{" + ", ".join(f'"{n}": 0' for n in range(200_000)) + ', "0": 1}\n'
    assert rows_of(csv(tmp_path, twice.encode(), "rows.jsonl"))[0].reason.startswith("has 200,000 columns")
    with pytest.raises(DataError, match="two lists, 'rows' and 'data'"):
        rows_of(csv(tmp_path, b'{"rows": [{}], "data": [{}]}', "rows.json"))
    page = {"rows": [{"row_idx": 0, "row": ROWS[0], "truncated_cells": ["prompt"]}]}
    assert "has cut its cells ['prompt']" in rows_of(csv(tmp_path, json.dumps(page).encode(), "rows.json"))[0].reason


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = csv(tmp_path, lines(ROWS).encode(), "rows.jsonl")
    rows = read_rows(path)
    next(rows)
    path.write_bytes(lines(ROWS * 3).encode())
    with pytest.raises(DataError, match="has changed while it was read"):
        list(rows)


def test_a_damaged_dataset_folder_is_refused(tmp_path):
    datasets.Dataset.from_list([{"a": "café " * 20}] * 50).save_to_disk(str(tmp_path))
    (file,) = tmp_path.glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content.replace("é".encode(), b"\xe9\xe9"))
    with pytest.raises(DataError, match="is damaged: "):
        rows_of(tmp_path)
