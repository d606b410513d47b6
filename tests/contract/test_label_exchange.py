"""Labels out to every shape, and back: every field the same, or it is said beforehand that it is lost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assent.data.formats import load_examples
from assent.data.records import Binary, Message, Pair, Rating, Response, ToolCall
from assent.data.views import binary_view, pair_view, ranking_view, sft_view
from assent.errors import ConfigError, DataError, RunFolderError
from assent.people.exchange import SHAPES, Imported, Labelled, export, planned, read
from assent.people.exchange import shape as lost_words
from assent.people.items import Label, example_of
from assent.people.kinds import KINDS
from assent.people.sources import file_items
from assent.people.task import HELPSTEER, Attribute, Item, TaskDefinition
from tests.contract.test_label_kinds import VALID, asked, item_with, task_of

EXACT = ("assent", "argilla", "labelstudio")
FIT = [(name, kind) for name, shape in SHAPES.items() for kind in shape.kinds]
PAIR = task_of("pair")


def round_trip(
    labelled: list[Labelled], task: TaskDefinition, name: str, folder: Path
) -> tuple[Imported, dict[str, int]]:
    out = folder / f"{name}.{'json' if SHAPES[name].array else 'jsonl'}"
    for file in folder.glob(f"{out.name}*"):
        file.unlink()
    lost = export(labelled, task, name, str(out)).lost
    return read(str(out), task), dict(lost)


def plain(label: Label) -> Label:
    """Without keys that say nothing."""
    value = {name: each for name, each in label.value.items() if each not in (None, "")}
    spans = [{k: v for k, v in span.items() if v not in (None, "")} for span in value.get("spans", [])]
    return replace(label, value=value | ({"spans": sorted(spans, key=json.dumps)} if "spans" in value else {}))


def comparable(labelled: list[Labelled], lost: dict[str, int]) -> list:
    """Items and labels without what is said to be lost."""
    found = []
    for each in labelled:
        item = each.item
        if lost_words.PLAIN_PROMPT in lost:
            item = replace(item, prompt_text=None)
        if lost_words.COLUMNS in lost:
            item = replace(
                item, meta={k: v for k, v in item.meta.items() if isinstance(v, str | int) and not isinstance(v, bool)}
            )
        labels = [plain(label) for label in each.labels]
        if lost_words.SIDES in lost:
            labels = [replace(label, shown=()) for label in labels]
        if lost_words.TIMES in lost:
            labels = [replace(label, seconds=None, at=None) for label in labels]
        if "comments on spans" in lost:
            labels = [
                replace(
                    label,
                    value=label.value
                    | {"spans": [{k: v for k, v in s.items() if k != "comment"} for s in label.value["spans"]]},
                )
                for label in labels
            ]
        if "that nothing was marked" in lost:
            labels = [label for label in labels if label.value.get("spans") or "comment" in label.value]
        if "that it cannot be judged" in lost:
            labels = [
                label for label in labels if set(label.value.get("labels", [0])) != {None} or "comment" in label.value
            ]
        found.append((item, sorted(labels, key=lambda label: label.annotator)))
    return found


@st.composite
def labelled_items(draw, kind: str) -> list[Labelled]:
    items = []
    for number in range(draw(st.integers(1, 3))):
        item, value = draw(asked(kind))
        turns = (Message("system", "Be kind."), Message("user", "hi"), Message("assistant", "hello")) if number else ()
        item = replace(
            item, prompt=(*turns, Message("user", f"{number} + {number}?\n\nreally")),
            meta={"topic": "sums", "n": number, "nested": {"a": [1]}} if number else {},
            topic="sums" if number else None,
        )  # fmt: skip
        values = [value] + [draw(asked(kind, len(item.responses)))[1] for _ in range(draw(st.integers(0, 2)))]
        shown = tuple(draw(st.permutations(range(len(item.responses)))))
        comment = draw(st.sampled_from([{}, {"comment": 'because\nof "it"'}]))
        labels = tuple(
            Label({**each, **comment}, f"annotator {n}", shown, 2.5 + n, 1.8e9 + n) for n, each in enumerate(values)
        )
        items.append(Labelled(item, labels))
    return items


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in FIT if name in EXACT])
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_not_lost_comes_back_the_same(name: str, kind: str, data, tmp_path: Path):
    labelled, task = data.draw(labelled_items(kind)), task_of(kind)
    found, lost = round_trip(labelled, task, name, tmp_path)
    assert not found.problems and not found.unknown
    assert comparable(found.labelled, lost) == comparable(labelled, lost)
    if name == "assent":
        assert not lost


def votes(labelled: list[Labelled], task: TaskDefinition) -> Counter:
    """What was said of texts, whatever the order of answers in an item."""
    said: Counter = Counter()
    for each in labelled:
        texts = each.item.responses
        for label in each.labels:
            comment = (label.value.get("comment") or "").strip()
            for one in KINDS[task.kind].feedback(label.value, each.item, label.annotator, label.shown):
                match one:
                    case Pair():
                        if task.kind == "edit":
                            continue
                        said[
                            each.item.prompt,
                            texts[one.chosen],
                            texts[one.rejected],
                            one.strength,
                            one.first,
                            label.annotator,
                            comment,
                        ] += 1
                    case Binary() if task.kind == "yesno":
                        said[each.item.prompt, texts[one.response], one.label, label.annotator, comment] += 1
                    case Rating():
                        said[
                            each.item.prompt,
                            texts[one.response],
                            tuple(sorted(one.scores.items())),
                            label.annotator,
                            comment,
                        ] += 1
            if task.kind == "edit":
                said[each.item.prompt, label.value["text"], label.annotator, comment] += 1
            if task.kind == "ranking":
                levels = [[texts[answer] for answer in level] for level in label.value["levels"]]
                for high, level in enumerate(levels):
                    for low in levels[high + 1 :]:
                        for a in level:
                            for b in low:
                                order = [texts[answer] for answer in label.shown]
                                first = (
                                    None if not order else "chosen" if order.index(a) < order.index(b) else "rejected"
                                )
                                said[each.item.prompt, a, b, None, first, label.annotator, comment] += 1
    return said


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in FIT if name in ("trl", "sharegpt")])
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_for_trainers_keep_every_vote_with_its_annotator_strength_and_side(
    name: str, kind: str, data, tmp_path: Path
):
    labelled, task = data.draw(labelled_items(kind)), task_of(kind)
    if not planned(labelled, task, name).rows:
        with pytest.raises(DataError, match="nothing that it could carry|has no such labels yet"):
            round_trip(labelled, task, name, tmp_path)
        return
    found, lost = round_trip(labelled, task, name, tmp_path)
    assert not found.problems and not found.unknown
    assert votes(found.labelled, task) == votes(labelled, task)
    meta = {tuple(sorted((k, str(v)) for k, v in each.item.meta.items())) for each in found.labelled}
    assert meta <= {tuple(sorted((k, str(v)) for k, v in each.item.meta.items())) for each in labelled}


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_helpsteer_keeps_strengths_ties_sides_and_comments(data, tmp_path: Path):
    labelled = [
        replace(each, item=replace(each.item, prompt=each.item.prompt[-3:]))
        for each in data.draw(labelled_items("pair"))
    ]
    if not planned(labelled, PAIR, "helpsteer").rows:
        return
    found, lost = round_trip(labelled, PAIR, "helpsteer", tmp_path)
    assert not found.problems
    kept = [
        (each.item.prompt, each.item.responses, plain(label).value, label.annotator, label.shown)
        for each in labelled for label in each.labels if label.value["verdict"] in ("better", "tie")
    ]  # fmt: skip
    assert sorted(map(repr, kept)) == sorted(
        repr((each.item.prompt, each.item.responses, plain(label).value, label.annotator, label.shown))
        for each in found.labelled for label in each.labels
    )  # fmt: skip
    said = {label.value["verdict"] for each in labelled for label in each.labels}
    assert ("that both are bad, or none is good" in lost) == ("both_bad" in said)


def test_helpsteer_rows_of_attributes(tmp_path: Path):
    task = task_of("attributes")
    item = replace(item_with(2), prompt=(Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    other = replace(item, prompt=(Message("user", "d"),))
    values = [{"scores": [{name: (n + k) % 5 for n, name in enumerate(HELPSTEER)} for _ in range(2)]} for k in (0, 1)]
    alone = [Labelled(item, (Label(values[0], "ann"),)), Labelled(other, (Label(values[1] | {"comment": "x"}, "bob"),))]
    found, lost = round_trip(alone, task, "helpsteer", tmp_path)
    assert [(each.item.prompt, each.labels) for each in found.labelled] == [
        (each.item.prompt, each.labels) for each in alone
    ]
    assert set(lost) == {lost_words.SOURCES}
    row = planned(alone, task, "helpsteer").rows[0]
    assert row["prompt"] == "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc"
    both = planned([Labelled(item, (Label(values[0], "ann"), Label(values[1], "bob")))], task, "helpsteer")
    assert both.rows[0]["helpfulness"] == 0.5 and both.rows[0]["verbosity"] == 2 and "annotator" not in both.rows[0]
    assert both.lost["ratings of several annotators: their mean is written"] == 1
    system = Labelled(replace(item, prompt=(Message("system", "s"), Message("user", "u"))), (Label(values[0], "ann"),))
    assert planned([system], task, "helpsteer").rows == []
    with pytest.raises(ConfigError, match="this task has other attributes. These fit: assent, argilla, labelstudio"):
        planned(alone, task_of("attributes", attributes={"a": Attribute()}), "helpsteer")
    with pytest.raises(ConfigError, match="this task asks for none"):
        planned([], task_of("pair", strength=0), "helpsteer")


# ---- what is lost is said


def lost_of(name: str, kind: str, value: dict, count: int = 2, **fields) -> set[str]:
    item = replace(item_with(count), sources=(), **fields)
    return set(planned([Labelled(item, (Label(value, "ann"),))], task_of(kind), name).lost)


@pytest.mark.parametrize(
    ("name", "kind", "value", "words"),
    [
        ("trl", "pair", {"verdict": "tie"}, "ties"),
        ("trl", "pair", {"verdict": "both_bad"}, "that both are bad, or none is good"),
        ("sharegpt", "pair", {"verdict": "cannot_judge"}, "that it cannot be judged"),
        ("trl", "best", {"best": None}, "that both are bad, or none is good"),
        ("trl", "ranking", {"levels": [[0, 1]]}, "ties"),
        ("trl", "yesno", {"labels": [None, True]}, "that it cannot be judged"),
        ("trl", "edit", VALID["edit"], "which answer it was made from"),
        ("argilla", "spans", {"spans": [{**VALID["spans"]["spans"][0], "comment": "x"}]}, "comments on spans"),
        ("helpsteer", "pair", {"verdict": "better", "better": 0, "strength": None}, "verdicts without a strength"),
    ],
)
def test_what_a_shape_has_no_place_for_is_said(name: str, kind: str, value: dict, words: str):
    assert words in lost_of(name, kind, value)
    assert words not in lost_of(name, kind, VALID[kind] if kind != "edit" else {**VALID["edit"], "from": None})


def test_what_is_lost_of_items_is_said():
    thought = (Response((Message("assistant", "a", reasoning="hm"),)), Response((Message("assistant", "b"),)))
    item = replace(
        item_with(2), responses=("a", "b"), answers=thought, tools="[]", prompt_text="x", meta={"label": 3, "a": [{}]}
    )
    labels = (Label(VALID["pair"], "ann", (0, 1), 3.0),)
    lost = {
        name: set(planned([Labelled(item, labels)], PAIR, name).lost)
        for name in ("assent", "trl", "argilla", "labelstudio")
    }
    assert lost["assent"] == set()
    common = {lost_words.THOUGHTS, lost_words.PLAIN_PROMPT}
    assert lost["trl"] == common | {lost_words.SOURCES, lost_words.COLUMNS, lost_words.TIMES}
    assert lost["argilla"] == common | {lost_words.COLUMNS, lost_words.TIMES, lost_words.SIDES, lost_words.TOOLS}
    assert lost["labelstudio"] == common | {lost_words.SIDES, lost_words.TOOLS}
    called = replace(
        item, prompt=(*item.prompt, Message("assistant", "", tool_calls=(ToolCall("f", "{}"),)), Message("tool", "3"))
    )
    share = planned([Labelled(called, labels)], PAIR, "sharegpt")
    assert share.rows == [] and share.lost["prompts with calls of tools: left out"] == 1


def test_the_loss_is_counted_and_said_before_anything_is_written(tmp_path: Path, caplog):
    ties = [
        Labelled(item_with(2), (Label({"verdict": "tie"}, "ann"), Label({"verdict": "tie"}, "bob"))),
        Labelled(item_with(2), (Label(VALID["pair"], "ann"),)),
    ]
    export(ties, PAIR, "trl", str(tmp_path / "x.jsonl"))
    assert "--format trl does not carry ties (of 1 of 2 items)" in caplog.text
    with pytest.raises(RunFolderError, match="exists already"):
        export(ties, PAIR, "trl", str(tmp_path / "x.jsonl"))
    with pytest.raises(ConfigError, match=r"there is no such shape. Perhaps you meant 'argilla'. Known: assent, trl"):
        export(ties, PAIR, "argila", str(tmp_path / "y.jsonl"))
    with pytest.raises(
        ConfigError, match="no place for a task of kind spans. These have: assent, argilla, labelstudio"
    ):
        export([], task_of("spans"), "trl", str(tmp_path / "y.jsonl"))
    with pytest.raises(ConfigError, match="Argilla's ratings are from 0 to 10, and a is from -3 to 3"):
        planned([], task_of("attributes", attributes={"a": Attribute(-3, 3)}), "argilla")
    assert not (tmp_path / "y.jsonl").exists()


# ---- every trainer reads them


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in FIT if n in ("assent", "trl", "sharegpt", "helpsteer")])
def test_rows_are_a_shape_that_every_command_knows(name: str, kind: str, tmp_path: Path):
    labelled = [
        Labelled(replace(item_with(2), prompt=(Message("user", f"{n}?"),)), (Label(VALID[kind], "ann", (1, 0)),))
        for n in range(3)
    ]
    out = tmp_path / "x.jsonl"
    export(labelled, task_of(kind), name, str(out))
    loaded = load_examples(out)
    assert not loaded.problems and (loaded.format == "assent") == (name == "assent")
    if name == "assent":
        assert [
            replace(e, origin=o.origin)
            for e, o in zip((example_of(x.item, x.labels, task_of(kind)) for x in labelled), loaded.examples)
        ] == loaded.examples


@pytest.mark.parametrize("view", [sft_view, pair_view, binary_view, ranking_view])
def test_what_annotators_could_not_judge_is_no_bad_row(view):
    good, silent = ({"verdict": "better", "better": 0, "strength": 1}, {"verdict": "cannot_judge"})
    rows = [example_of(item_with(2), [Label(value, "ann")], PAIR) for value in (good, silent)]
    found, problems = view(rows)
    assert len(found) == 1 and [problem.fault for problem in problems] == [False]
    bare = replace(rows[1], meta={})
    assert view([rows[0], bare])[1][0].fault  # of a row that nobody has seen it is one


def test_bad_answers_are_no_demonstrations_and_undesirable():
    good, bad = VALID["pair"], {"verdict": "both_bad"}
    rows = [example_of(item_with(2), [Label(value, "ann")], PAIR) for value in (good, bad)]
    found, problems = sft_view(rows)
    assert [each.responses[0].text for each in found] == [item_with(2).responses[1]]
    assert [(problem.fault, problem.reason) for problem in problems] == [
        (False, "the best answer is labelled undesirable")
    ]
    labels, _ = binary_view(rows)
    assert [each.feedback for each in labels][1] == (Binary(0, False), Binary(1, False))
    assert [problem.reason for problem in pair_view(rows)[1]] == ["tie"]


def test_written_answers_are_demonstrations_and_better_than_what_they_were_made_from():
    rows = [
        example_of(item_with(1), [Label({"text": "mine", "from": origin}, "ann")], task_of("edit"))
        for origin in (0, None)
    ]
    assert [each.responses[0].text for each in sft_view(rows)[0]] == ["mine", "mine"]
    found, problems = pair_view(rows)
    assert [each.text for each in found[0].responses] == [item_with(1).responses[0], "mine"] and found[0].feedback[
        0
    ].chosen == 1
    assert not problems[0].fault


def test_items_of_labelled_rows_are_as_if_nobody_had_seen_them(tmp_path: Path):
    export([Labelled(item_with(2), (Label(VALID["pair"], "ann"),))], PAIR, "assent", str(tmp_path / "x.jsonl"))
    task = replace(task_of("ranking"), items=str(tmp_path / "x.jsonl"))
    (item,) = file_items(task)
    assert item == item_with(2)


# ---- others' files


def imported(tmp_path: Path, rows, kind: str = "pair", name: str = "x.json", **options) -> Imported:
    file = tmp_path / name
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text)
    return read(str(file), task_of(kind, **options))


def test_argilla_records_of_the_server_statuses_suggestions_and_unknown_questions(tmp_path: Path, caplog):
    user = "6b1f3c1e-0000-4000-8000-000000000001"
    row = {
        "id": "1", "status": "completed",
        "fields": {"prompt": "2+2?", "response_1": "4", "response_2": "5", "context": "x"},
        "metadata": {"topic": "sums"}, "vectors": {},
        "responses": [
            {
                "user_id": user, "status": "submitted",
                "values": {"preference": {"value": "response_1"}, "strength": {"value": 3}, "tone": {"value": "kind"}},
            },
            {"user_id": "b", "status": "discarded", "values": {}},
            {"user_id": "c", "status": "draft", "values": {"preference": {"value": "tie"}}},
        ],
        "suggestions": {"preference": {"value": "tie", "agent": "judge", "score": 0.7}},
    }  # fmt: skip
    found = imported(tmp_path, [row])
    assert not found.problems
    (each,) = found.labelled
    assert each.item.prompt == (Message("user", "2+2?"),) and each.item.topic == "sums"
    assert [(label.annotator, label.value["verdict"], label.value["strength"]) for label in each.labels] == [
        (user, "better", 3),
        ("judge", "tie", None),
    ]
    assert found.unknown == {"fields.context": 1, "question tone": 1} and found.skipped == {"draft by c": 1}
    assert "not read: question tone (1 rows)" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": {"prompt": "?", "response_1": "4"}}, "x.json:1: responses: 1 answer; a task of kind pair shows 2"),
        ({"fields": {"response_1": "4", "response_2": "5"}}, "x.json:1: fields.prompt: expected a list, got None"),
        ({"fields": "x"}, "x.json:1: fields: expected an object"),
        ({"responses": {"preference": [{"value": "A", "user_id": "a"}]}}, "response_1, response_2; got the string 'A'"),
        ({"responses": {"preference": [{"value": "response_1", "user_id": "a"}]}}, "of a is left out: The strength"),
        ({"responses": {"preference": ["response_1"]}}, "x.json:1: is not as argilla writes it"),
        ({"responses": {"which": [{"value": "x", "user_id": "a"}]}}, "a is left out: expected one of"),
        ({"metadata": {"annotators": "x"}}, "metadata.annotators: expected a list of texts"),
    ],
)  # fmt: skip
def test_argilla_rows_that_cannot_be_used_are_named(change: dict, words: str, tmp_path: Path):
    good = {"fields": {"prompt": "2+2?", "response_1": "4", "response_2": "5"}, "responses": {}}
    found = imported(tmp_path, [good | change, good])
    assert sum(len(each.labels) for each in found.labelled) == 0 and words in str(found.problems[0])


def test_argilla_ranks_may_tie(tmp_path: Path):
    ranks = [{"value": "response_2", "rank": 1}, {"value": "response_1", "rank": 2}, {"value": "response_3", "rank": 2}]
    row = {"fields": {"prompt": "?", "response_1": "a", "response_2": "b", "response_3": "c"},
           "responses": {"ranking": [{"value": ranks, "user_id": "u"}]}}  # fmt: skip
    (each,) = imported(tmp_path, [row], "ranking").labelled
    assert each.labels[0].value == {"levels": [[1], [0, 2]]}


MADE = "2021-03-09T21:52:49.513742Z"


def studio(result: list, data: dict | None = None, **more) -> dict:
    return {"id": 7, "data": data or {"prompt": "2+2?", "response_1": "4", "response_2": "5"},
            "annotations": [{"completed_by": 3, "result": result, "lead_time": 4.5, "created_at": MADE, **more}],
            "predictions": [], "project": 83}  # fmt: skip


def test_label_studio_tasks_with_users_predictions_and_skips(tmp_path: Path):
    left = {
        "id": "a",
        "from_name": "preference",
        "to_name": "preference",
        "type": "pairwise",
        "value": {"selected": "left"},
    }
    stars = {"id": "b", "from_name": "strength", "to_name": "prompt", "type": "rating", "value": {"rating": 2}}
    row = studio([left, stars], extra=1)
    row["predictions"] = [{"model_version": "m1", "result": [left, stars]}]
    row["annotations"].append({"completed_by": {"id": 4, "email": "x@y.z"}, "was_cancelled": True, "result": []})
    row["data"]["url"] = "u"
    found = imported(tmp_path, [row])
    (each,) = found.labelled
    assert [label.annotator for label in each.labels] == ["3", "m1"] and each.labels[0].seconds == 4.5
    assert each.labels[0].at == pytest.approx(1615326769.513742)
    assert all(label.value == {"verdict": "better", "better": 0, "strength": 2} for label in each.labels)
    assert found.skipped == {"skipped by x@y.z": 1} and found.unknown == {"data.url": 1}


@pytest.mark.parametrize("took", ["4.5", -1, float("inf"), True, 1e300])
def test_a_time_that_is_none_is_named(took: object, tmp_path: Path):
    found = imported(tmp_path, [studio([], lead_time=took)])
    (problem,) = found.problems
    assert "annotations[0].lead_time" in str(problem) and "expected a number of seconds" in str(problem)


def test_label_studio_order_without_buckets_and_foreign_results(tmp_path: Path):
    data = {
        "prompt": "?",
        "responses": [{"id": f"response_{n}", "body": text} for n, text in ((1, "a"), (2, "b"), (3, "c"))],
    }
    ranker = {
        "from_name": "rank",
        "to_name": "list",
        "type": "ranker",
        "value": {"ranker": {"rank": ["response_3", "response_1", "response_2"]}},
    }
    box = {"from_name": "x", "to_name": "y", "type": "rectanglelabels", "value": {}}
    found = imported(tmp_path, [studio([ranker, box], data)], "ranking")
    assert found.labelled[0].labels[0].value == {"levels": [[2], [0], [1]]}
    assert found.unknown == {"results of type rectanglelabels": 1}
    ranker["value"] = {"ranker": {"good": ["response_1"], "bad": ["response_2", "response_3"]}}
    found = imported(tmp_path, [studio([ranker], data)], "ranking")
    assert "expected buckets rank_1, rank_2, ...; got 'good'" in str(found.problems[0])


def test_label_studio_marks_must_stand_where_they_say(tmp_path: Path):
    data = {"prompt": "?", "response_1": "🙂 Paris it is"}

    def mark(start: int, end: int) -> dict:
        value = {"start": start, "end": end, "text": "Paris", "labels": ["wrong"]}
        return {"id": "r", "from_name": "response_1_spans", "to_name": "response_1", "type": "labels", "value": value}

    note = {
        "id": "r",
        "from_name": "response_1_note",
        "to_name": "response_1",
        "type": "textarea",
        "value": {"start": 2, "end": 7, "text": ["no"]},
    }
    found = imported(tmp_path, [studio([note, mark(2, 7)], data)], "spans")
    assert found.labelled[0].labels[0].value == {
        "spans": [{"answer": 0, "start": 2, "end": 7, "label": "wrong", "comment": "no"}]
    }
    found = imported(tmp_path, [studio([mark(3, 8)], data)], "spans")
    assert found.labelled[0].labels[0].value["spans"][0]["start"] == 2, "as a browser counts, in UTF-16"
    found = imported(tmp_path, [studio([mark(4, 9)], data)], "spans")
    assert found.labelled[0].labels == () and "characters 4 to 9 of the answer are not 'Paris'" in str(
        found.problems[0]
    )


def test_rows_of_public_shapes_become_labels(tmp_path: Path):
    rows = [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 2, "source": "x"},
        {"prompt": "2+2?", "chosen": "5", "rejected": "4", "margin": 1},
        {"prompt": "3+3?", "chosen": "6", "rejected": "6"},
        {"prompt": "4+4?", "chosen": "8", "rejected": "9"},
    ]
    found = imported(tmp_path, rows, name="x.jsonl")
    (each,) = found.labelled
    assert each.item.responses == ("4", "5") and each.item.meta == {"source": "x"}
    assert [label.value for label in each.labels] == [
        {"verdict": "better", "better": 0, "strength": 2}, {"verdict": "better", "better": 1, "strength": 1},
    ]  # fmt: skip
    assert ["x.jsonl:3" in str(p) for p in found.problems] == [True, False]
    assert "x.jsonl:4: feedback: imported: The strength must be a whole number from 1 to 3" in str(found.problems[1])
    assert len(imported(tmp_path, rows, name="x.jsonl", strength=0).labelled) == 2


def test_prompts_without_labels_are_items(tmp_path: Path):
    found = imported(
        tmp_path,
        [
            {
                "prompt": [{"role": "user", "content": "?"}],
                "responses": [{"messages": [{"role": "assistant", "content": t}]} for t in "ab"],
                "feedback": [],
            }
        ],
        name="x.jsonl",
    )
    assert len(found.labelled) == 1 and found.labelled[0].labels == ()


@pytest.mark.parametrize(("entry", "words"), [
    ({"value": {"verdict": "tie"}}, "annotated[0].annotator: expected a name"),
    ({"annotator": "a", "value": "tie"}, "annotated[0]: expected an object with annotator, value"),
    ({"annotator": "a", "value": {"verdict": "tie"}, "sides": []}, "has no field 'sides'"),
    ({"annotator": "a", "value": {"verdict": "tie"}, "shown": [0]}, "annotated[0].shown: expected every answer once"),
    ({"annotator": "a", "value": {"verdict": "tie"}, "seconds": -1}, "annotated[0].seconds: expected a number"),
    ({"annotator": "a", "value": {"verdict": "tied"}}, "a: The verdict must be one of"),
])  # fmt: skip
def test_labels_in_own_rows_are_checked(entry: dict, words: str, tmp_path: Path):
    row = {
        "prompt": [{"role": "user", "content": "?"}],
        "responses": [{"messages": [{"role": "assistant", "content": t}]} for t in "ab"],
        "feedback": [],
        "meta": {"annotated": [entry]},
    }
    found = imported(tmp_path, [row], name="x.jsonl")
    assert found.labelled == [] and words in str(found.problems[0])


@pytest.mark.parametrize(
    ("text", "words"), [("[", "not valid JSON"), ("{}", "expected a list of objects"), ("[]", "expected a list")]
)
def test_a_file_that_is_no_list_is_named(text: str, words: str, tmp_path: Path):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DataError, match=words):
        read(str(file), PAIR, "argilla")
    with pytest.raises(DataError, match="no such file"):
        read(str(tmp_path / "none.json"), PAIR, "labelstudio")


def test_the_item_type_is_what_all_agree_on():
    assert (
        Item((Message("user", "x"),), ("a",)).digest == Item((Message("user", "x"),), ("a",), ("who",), {"m": 1}).digest
    )
    assert Item((Message("user", "x"),), ("a",)).digest != Item((Message("user", "x"),), ("b",)).digest
