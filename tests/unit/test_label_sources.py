"""Where items come from: rows with answers, rows of known answer, and policies that are asked."""

from __future__ import annotations

import datetime
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assent.config import ModelConfig
from assent.data.records import Example, Message, Response, RowError
from assent.distributed import World
from assent.errors import ConfigError, DataError
from assent.people import sources
from assent.people.items import item_from
from assent.people.sources import assigned, batches, prompt_key, sampled_items
from assent.people.task import LabelSampling, Screening, TaskDefinition
from assent.people.taskfile import load_task
from assent.rollout.answering import opened


def write(tmp_path: Path, *rows: dict, name: str = "items.jsonl") -> str:
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def task_of(kind: str, items: str, **options) -> TaskDefinition:
    return TaskDefinition(**{"name": "t", "kind": kind, "items": items, "source": "task.yaml", **options})


def work(task: TaskDefinition, known=()) -> list:
    return [item for batch in batches(task, known) if batch.purpose == "work" for item in batch.items]


def ranked(*answers: str) -> dict:
    return {"context": "?", "completions": [{"rank": rank, "completion": text} for rank, text in enumerate(answers)]}


PAIRS = (
    {"prompt": "2+2?", "chosen": "4", "rejected": "5", "topic": "sums", "overlap": 3, "id": 7},
    {"prompt": "3+3?", "chosen": "6", "rejected": " 6\n"},
    {"prompt": "4+4?", "chosen": "8", "rejected": "9", "overlap": 0},
    {"prompt": "2+2?", "chosen": "5", "rejected": "4"},
    {"prompt": "2+2?", "chosen": "4", "rejected": "22"},
    {"prompt": "", "chosen": "4", "rejected": "22"},
)


def test_rows_become_items_and_problem_rows_have_their_line(tmp_path: Path, caplog):
    file = write(tmp_path, *PAIRS)
    found = work(task_of("pair", file))
    assert [(item.prompt[0].content, item.responses) for item in found] == [("2+2?", ("4", "5")), ("2+2?", ("4", "22"))]
    assert (found[0].topic, found[0].overlap, found[0].meta["id"]) == ("sums", 3, 7)
    for line, reason in (
        (2, "rejected: equal to chosen"),
        (3, "overlap: expected a whole number of annotators, at least 1; got '0'"),
        (4, f"prompt: the same prompt and answers as {file}:1"),
        (6, "prompt: "),
    ):
        assert f"left out: {file}:{line}: {reason}" in caplog.text


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("pair", {"prompt": "?"}, "responses: 0 answers; a task of kind pair shows 2"),
        ("pair", {"prompt": "?", "completion": "a"}, "responses: 1 answer; a task of kind pair shows 2"),
        ("pair", ranked("a", "b", "c"), "responses: 3 answers"),
        ("ranking", {"prompt": "?", "completion": "a"}, "1 answer; a task of kind ranking shows 2 to 9"),
        ("yesno", {"prompt": "?"}, "0 answers; a task of kind yesno shows 1 to 9"),
        ("yesno", {"text": "once upon a time"}, "prompt: plain text has no prompt"),
        ("ranking", ranked("a", "b", "a "), "answers 1 and 3 are the same"),
    ],
)  # fmt: skip
def test_rows_without_the_answers_of_their_kind(kind: str, row: dict, reason: str, tmp_path: Path):
    with pytest.raises(DataError) as raised:
        work(task_of(kind, write(tmp_path, row)))
    assert str(raised.value).startswith("task.yaml: items: no row of ") and reason in str(raised.value)
    with pytest.raises(DataError, match=r"task.yaml: items: .*none.jsonl"):
        work(task_of(kind, str(tmp_path / "none.jsonl")))


def test_conversations_are_shown_with_all_turns_before_the_last_answer(tmp_path: Path):
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    (item,) = work(task_of("yesno", write(tmp_path, {"messages": turns})))
    assert [turn.content for turn in item.prompt] == ["a", "b", "c"] and item.responses == ("d",)
    calls = [
        *turns[:1],
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    ]
    with pytest.raises(DataError, match="calls tools, which annotators are not shown"):
        work(task_of("yesno", write(tmp_path, {"messages": calls})))


def test_columns_are_what_a_database_can_hold():
    def item(**meta):
        answers = tuple(Response((Message("assistant", text),)) for text in "ab")
        return item_from(Example((Message("user", "?"),), answers, meta=meta), task_of("pair", "x"))

    day = datetime.date(2026, 11, 30)
    assert item(a=math.nan, b=day, c=(1, 2), d={"e": day}).meta == {
        "a": None, "b": "2026-11-30", "c": [1, 2], "d": {"e": "2026-11-30"},
    }  # fmt: skip
    for meta, words in (({"a": {"b": ["x\0"]}}, "a: has a NUL"), ({"image": b"x"}, "image: holds bytes")):
        with pytest.raises(RowError, match=words):
            item(**meta)


def test_a_text_with_a_nul_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="items.jsonl:1: responses: has a NUL character"):
        work(task_of("pair", write(tmp_path, {"prompt": "?", "chosen": "a\0", "rejected": "b"})))


def test_columns_formats_and_limits_are_those_of_the_items_alone(tmp_path: Path):
    rows = [{"question": f"{n}?", "good": "a", "bad": "b", "prompt": "no"} for n in range(5)]
    gold = write(tmp_path, {"prompt": "g?", "chosen": "a", "rejected": "b"}, name="gold.jsonl")
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    task = task_of("pair", write(tmp_path, *rows), columns=columns, limit=2, gold=gold)
    found = list(batches(task))
    assert [batch.purpose for batch in found] == ["gold", "work"]
    assert [item.prompt[0].content for item in found[1].items] == ["0?", "1?"]
    assert found[0].expected == [{"verdict": "better", "better": 0, "strength": None}]


def test_known_answers_are_the_feedback_of_rows(tmp_path: Path, caplog):
    rows = (
        {"prompt": "1?", "response_1": "a", "response_2": "b", "preference_strength": 2},
        {"prompt": "2?", "response_1": "a", "response_2": "b", "preference_strength": 0},
        {"prompt": "3?", "response_1": "a", "response_2": "b", "preference_strength": -3},
    )
    file = write(tmp_path, *rows)
    task = task_of("pair", write(tmp_path, *PAIRS, name="w.jsonl"), screening=Screening(file, at_least=3), gold=file)
    found = list(batches(task))
    assert [batch.purpose for batch in found] == ["screening", "gold", "work"]
    assert [(v["verdict"], v["better"], v["strength"]) for v in found[0].expected] == [
        ("better", 1, 2),
        ("tie", None, None),
        ("better", 0, 3),
    ]
    with pytest.raises(DataError, match="has 3 usable rows, and screening.at_least asks for 4"):
        list(batches(replace(task, screening=Screening(file, at_least=4))))
    bare = write(tmp_path, {"prompt": "?", "completion": "a"}, name="bare.jsonl")
    with pytest.raises(
        DataError,
        match=r"gold: no row of .* has a known answer. The first: .*bare.jsonl:1: feedback: is not one answer to a",
    ):
        list(batches(task_of("yesno", bare, gold=bare)))


# ---- policies


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("prompts")
    return write(folder, *({"prompt": f"What is {n} + {n}?", "answer": str(2 * n), "topic": "sums"} for n in range(8)))


def sampling(tiny: Path, items: str, kind: str = "pair", **options) -> TaskDefinition:
    own = {"policies": (str(tiny),), "sampling": LabelSampling(max_new_tokens=400, max_batch=16), "precision": "fp32"}
    return task_of(kind, items, **(own | options))


@pytest.fixture(scope="module")
def third(tiny_model_dir: Path, tmp_path_factory) -> Path:
    """The first policy under another name."""
    return shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("models") / "third")


@pytest.fixture
def ended(monkeypatch):
    """Answers of a random model hardly end by themselves: here all count as ended."""
    real = sources.answered

    def answered(chat, prompts, groups, source):
        return real(chat, prompts, [[replace(each, finished=True) for each in group] for group in groups], source)

    monkeypatch.setattr(sources, "answered", answered)


def test_answers_are_sampled_with_their_seed_and_again_the_same(tiny_model_dir: Path, prompts: str, ended):
    task = sampling(tiny_model_dir, prompts, sampling=LabelSampling(max_new_tokens=8))
    found = work(task)
    assert len(found) > 5 and all(len(set(item.responses)) == 2 for item in found)
    assert work(task) == found and work(replace(task, seed=1)) != found
    first = found[0]
    assert first.sources == ("tiny", "tiny") and first.topic == "sums" and first.meta["answer"] == "0"
    record = first.meta["sampled"]
    assert record["task_seed"] == 0 and [each["answer"] for each in record["answers"]] == [0, 1]
    assert {each["policy"] for each in record["answers"]} == {str(tiny_model_dir)}


def test_a_recorded_draw_can_be_made_again(tiny_model_dir: Path, prompts: str, ended):
    task = sampling(tiny_model_dir, prompts, "ranking", sampling=LabelSampling(max_new_tokens=8), answers=3)
    item = work(task)[4]
    record = item.meta["sampled"]["answers"]
    alone, model = World(0, 1, 0, torch.device("cpu")), ModelConfig(str(tiny_model_dir), precision="fp32")
    chat, engine = opened(model, task.engine, task.sampling, alone)
    ids = chat.prompt_ids(item.prompt)
    (made,) = engine.generate([ids], 3, task.sampling, record[0]["seed"], record[0]["prompt"])
    assert [chat.decode(one.ids, ids, finished=True) for one in made] == list(item.responses)


def test_what_is_known_is_not_sampled_again_and_changes_nothing(tiny_model_dir: Path, prompts: str, ended, monkeypatch):
    task = sampling(tiny_model_dir, prompts, sampling=LabelSampling(max_new_tokens=8))
    found = work(task)
    known = {prompt_key(item) for item in found[::2]}
    assert work(task, known) == found[1::2]
    monkeypatch.setattr(sources, "BLOCK", 3)
    assert len(list(sampled_items(task))) == 3
    assert work(task) == found and work(task, known) == found[1::2]
    asked: list = []
    monkeypatch.setattr(sources, "opened", lambda *options: asked.append(options))
    assert work(task, {prompt_key(item) for item in found} | _keys(task)) == [] and not asked


def _keys(task: TaskDefinition) -> set[str]:
    alone = replace(task, kind="edit", policies=())
    return {prompt_key(replace(item, responses=())) for item in sources.file_items(alone)}


def test_several_policies_answer_in_turn_and_blind(
    tiny_model_dir: Path, teacher_dir: Path, third: Path, prompts: str, ended
):
    three = tuple(map(str, (tiny_model_dir, teacher_dir, third)))
    task = sampling(tiny_model_dir, prompts, policies=three, sampling=LabelSampling(max_new_tokens=8))
    found = work(task)
    assert len(found) > 5
    assert all(len(set(item.sources)) == 2 for item in found) and {s for item in found for s in item.sources} == {
        "tiny",
        "teacher",
        "third",
    }
    assert len({item.sources for item in found}) > 2  # no policy is always the first
    assert work(task) == found
    four = work(replace(task, kind="best", policies=three[:2]))
    assert all(sorted(item.sources) == ["teacher", "teacher", "tiny", "tiny"] for item in four)
    alone = {item.prompt: item for item in work(replace(task, policies=three[1:2]))}
    assert all(set(item.sources) == {"teacher"} for item in alone.values())


def test_policies_are_drawn_evenly():
    task = task_of("pair", "x", policies=("a", "b", "c"))
    drawn = [tuple(assigned(task, str(n))) for n in range(600)]
    assert all(len(set(two)) == 2 for two in drawn)
    assert all(abs(sum(place in two for two in drawn) - 400) < 60 for place in range(3))
    assert all(abs(sum(two[0] == place for two in drawn) - 200) < 60 for place in range(3))
    assert assigned(replace(task, kind="best", policies=("a",)), "k") == [0, 0, 0, 0]
    assert sorted(assigned(replace(task, kind="best", policies=("a", "b")), "k")) == [0, 0, 1, 1]


def test_answers_that_were_cut_are_no_answers(tiny_model_dir: Path, prompts: str, caplog):
    task = sampling(tiny_model_dir, prompts, sampling=LabelSampling(max_new_tokens=3))
    assert work(task) == []
    assert f"left out: {prompts}:1: {tiny_model_dir}: an answer reached sampling.max_new_tokens" in caplog.text
    assert "none of the first 8 prompts has an item" in caplog.text


def test_prompts_that_cannot_be_answered_are_named(tiny_model_dir: Path, tmp_path: Path, ended, caplog):
    file = write(tmp_path, {"prompt": "word " * 600}, {"prompt": "2+2?"}, {"prompt": "2+2?"})
    task = sampling(tiny_model_dir, file, sampling=LabelSampling(max_new_tokens=8))
    (item,) = work(task)
    assert item.prompt == (Message("user", "2+2?"),)
    assert f"left out: {file}:1: prompt: {tiny_model_dir}: has" in caplog.text
    assert "leave room for an answer" in caplog.text
    assert f"{file}:3: prompt: the same prompt as {file}:2" in caplog.text


def test_one_policy_without_chance_has_one_answer(tiny_model_dir: Path, prompts: str):
    cold = LabelSampling(max_new_tokens=8, temperature=0)
    with pytest.raises(
        ConfigError, match="temperature 0 gives each policy one answer to a prompt, and 2 are asked of 1"
    ):
        work(sampling(tiny_model_dir, prompts, sampling=cold))


def test_overlap_in_tables_of_text_and_with_gaps(tmp_path):
    (tmp_path / "items.csv").write_text("prompt,chosen,rejected,overlap\nq,a,b,3\nr,a,b,\ns,a,b,2.5\n")
    defined = load_task(f"name: p\nkind: pair\nitems: {tmp_path}/items.csv\n", "t")
    (batch,) = batches(defined)
    assert [(item.prompt[0].content, item.overlap) for item in batch.items] == [("q", 3), ("r", None)]
    (tmp_path / "items.jsonl").write_text(
        "".join(
            json.dumps({"prompt": str(n), "chosen": "a", "rejected": "b", "overlap": n}) + "\n"
            for n in (2.0, 4, 0, True)
        )
    )
    (batch,) = batches(load_task(f"name: p\nkind: pair\nitems: {tmp_path}/items.jsonl\n", "t"))
    assert [item.overlap for item in batch.items] == [2, 4]
