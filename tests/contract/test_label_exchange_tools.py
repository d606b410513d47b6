"""What annotation tools themselves write, in each of their ways, read as labels; and Argilla's own reader of what is
written for it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from assent.data.records import Message
from assent.people import exchange
from assent.people.exchange import Labelled
from assent.people.items import Label
from assent.people.task import Item, TaskDefinition
from assent.people.taskfile import load_task

ANN, BOB = "e7d99a30-855b-4840-8df5-a6fe486667c9", "621d3eeb-eaf8-45b5-a3ea-fabd3c649292"


def task(text: str = "kind: pair") -> TaskDefinition:
    return load_task(f"name: p\nitems: x\n{text}\n", "t")


def better(which: int, strength: int | None = 2, **more: Any) -> dict[str, Any]:
    return {"verdict": "better", "better": which, "strength": strength, **more}


def read(tmp_path: Path, rows: Any, of: TaskDefinition, name: str = "rows.jsonl") -> exchange.Imported:
    path = tmp_path / name
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return exchange.read(str(path), of)


def said(found: exchange.Imported) -> list[tuple[str, Any]]:
    return [(label.annotator, label.value) for each in found.labelled for label in each.labels]


# ---- Argilla

FLAT = {
    "id": "0", "status": "completed", "_server_id": "5", "prompt": [{"role": "user", "content": "Q"}],
    "response_1": "a", "response_2": "b", "topic": "x", "lang": None,
    "preference.responses": ["response_1", "response_2", "response_2"],
    "preference.responses.users": [ANN, BOB, "draft-er"],
    "preference.responses.status": ["submitted", "submitted", "draft"],
    "strength.responses": [2, 1], "strength.responses.users": [ANN, BOB],
    "strength.responses.status": ["submitted", "submitted"],
    "comment.responses": ["fine"], "comment.responses.users": [ANN], "comment.responses.status": ["submitted"],
    "preference.suggestion": "response_2", "preference.suggestion.score": 0.7, "preference.suggestion.agent": "gpt-4",
}  # fmt: skip


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_tables_of_argilla(name: str, tmp_path: Path) -> None:
    """As `to_datasets` and the hub have them."""
    found = read(tmp_path, [FLAT], task(), name)
    assert said(found) == [(ANN, better(0, 2, comment="fine")), (BOB, better(1, 1))]
    (each,) = found.labelled
    assert each.item.responses == ("a", "b") and dict(each.item.meta) == {"topic": "x"} and each.item.topic == "x"
    assert dict(found.skipped) == {"draft by draft-er": 1} and not found.unknown
    (problem,) = found.problems
    assert "the label of gpt-4 is left out: The strength must be" in str(problem), "and its item stays"
    assert ("gpt-4", better(1, None)) in said(
        read(tmp_path, [FLAT | {"strength.responses": []}], task("kind: pair\nstrength: 0"))
    )


def test_rows_of_argilla_1(tmp_path: Path) -> None:
    old = {
        "id": "0",
        "prompt": "Q",
        "response_1": "a",
        "response_2": "b",
        "metadata": '{"lang": "en"}',
        "external_id": None,
        "preference": [
            {"user_id": ANN, "value": "response_2", "status": "submitted"},
            {"user_id": BOB, "value": None, "status": "discarded"},
        ],
        "preference-suggestion": "response_1",
        "preference-suggestion-metadata": {"type": "model", "score": None, "agent": "m"},
        "comment": [],
        "comment-suggestion": None,
        "comment-suggestion-metadata": {"type": None, "score": None, "agent": None},
    }
    found = read(tmp_path, [old], task("kind: pair\nstrength: 0"))
    assert said(found) == [(ANN, better(1, None)), ("m", better(0, None))]
    assert dict(found.labelled[0].item.meta) == {"lang": "en"} and dict(found.skipped) == {f"discarded by {BOB}": 1}


def test_argilla_reads_what_is_written_for_it_and_we_what_it_writes(tmp_path: Path) -> None:
    argilla = pytest.importorskip("argilla")
    from argilla.records._io import GenericIO, JsonIO

    item = Item((Message("user", "Q"),), ("a", "b"), ("x", "y"), {"topic": "t"})
    labels = (
        Label(better(1, 3, comment="why"), "ann"),
        Label({"verdict": "tie", "better": None, "strength": None}, "bob"),
    )
    path = tmp_path / "for-argilla.json"
    exchange.export([Labelled(item, labels)], task(), "argilla", str(path))
    (record,) = JsonIO._records_from_json(path)
    assert isinstance(record, argilla.Record) and record.fields["response_2"] == "b"
    assert [(r.question_name, r.value) for r in record.responses if r.question_name == "preference"] == [
        ("preference", "response_2"), ("preference", "tie")
    ]  # fmt: skip
    JsonIO.to_json([record], tmp_path / "again.json")
    again = exchange.read(str(tmp_path / "again.json"), task())
    assert said(again) == [(label.annotator, dict(label.value)) for label in labels]
    assert said(read(tmp_path, GenericIO.to_list([record], flatten=True), task())) == said(again)


# ---- Label Studio

MIN = {
    "prompt": [{"role": "user", "content": "Q"}], "response_1": "a 😀 b", "response_2": "c", "meta": {"topic": "t"},
    "id": 1, "annotator": "ann@x.org", "annotation_id": 7, "created_at": "2027-01-15T08:00:00Z", "updated_at": None,
    "lead_time": 3.5,
}  # fmt: skip


def test_short_exports_of_label_studio(tmp_path: Path) -> None:
    rows = [MIN | {"preference": [{"selected": "right"}], "strength": [{"rating": 3}], "comment": "so"},
            MIN | {"annotator": 2, "verdict": "both_bad"}]  # fmt: skip
    for name in ("result.json", "result.jsonl"):
        found = read(tmp_path, rows, task(), name)
        assert said(found) == [
            ("ann@x.org", better(1, 3, comment="so")), ("2", {"verdict": "both_bad", "better": None, "strength": None})
        ]  # fmt: skip
        assert found.labelled[0].labels[0].seconds == 3.5 and found.labelled[0].labels[0].at == 1_800_000_000.0
        assert dict(found.labelled[0].item.meta) == {"topic": "t"}
    names = sorted({name for row in rows for name in row})
    with (tmp_path / "result.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            cells = {
                name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in row.items()
            }
            writer.writerow(cells)
    assert said(exchange.read(str(tmp_path / "result.csv"), task())) == said(found)


def test_short_exports_of_label_studio_of_other_kinds(tmp_path: Path) -> None:
    ranked = read(
        tmp_path,
        [MIN | {"ranking": [{"ranker": {"rank_1": ["response_2"], "rank_2": ["response_1"]}}]}],
        task("kind: ranking"),
    )
    assert said(ranked) == [("ann@x.org", {"levels": [[1], [0]]})]
    rated = MIN | {f"response_{n}_help": str(n) for n in (1, 2)}
    assert said(read(tmp_path, [rated], task("kind: attributes\nattributes: {help: {}}"))) == [
        ("ann@x.org", {"scores": [{"help": 1}, {"help": 2}]})
    ]
    marked = MIN | {"response_1_spans": [{"start": 5, "end": 6, "text": "b", "labels": ["w"]}], "response_1_note": "?"}
    found = read(tmp_path, [marked], task("kind: spans\nlabels: [w]"))
    assert said(found) == [("ann@x.org", {"spans": [{"answer": 0, "start": 4, "end": 5, "label": "w"}]})], (
        "a browser counts an emoji as two"
    )
    assert found.problems == [] and list(found.unknown) == ["notes of marked passages"]


def test_one_annotation_that_cannot_be_used_leaves_the_others(tmp_path: Path) -> None:
    def by(who: str, **value: Any) -> dict[str, Any]:
        result = [{"from_name": "preference", "to_name": "preference", "type": "pairwise", "value": value}]
        return {"completed_by": {"email": who}, "result": result}

    data = {"prompt": "Q", "response_1": "a", "response_2": "b"}
    rows = [
        {
            "data": data,
            "annotations": [
                by("ann", selected="left"),
                by("bob", selected="up"),
                by("cat", selected="right") | {"lead_time": "x"},
            ],
        }
    ]
    found = read(tmp_path, rows, task("kind: pair\nstrength: 0"), "rows.json")
    assert said(found) == [("ann", better(0, None))]
    assert [str(problem).split("left out: ")[1] for problem in found.problems] == [
        "expected left or right; got the string 'up'", "expected a number of seconds, got the string 'x'"
    ]  # fmt: skip
