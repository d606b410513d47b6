from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest

from assent.config import DataConfig
from assent.data.chat import Chat
from assent.data.dataset import count_reasons, fingerprint, lengths, prepare, prompt_hash
from assent.data.records import Example, Message, Origin, Problem, Response
from assent.data.tree import Branch, TokenTree
from assent.data.views import binary_view, pair_view, prompt_view, ranking_view, rating_view, sft_view
from assent.errors import DataError


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer)


@pytest.fixture
def write(tmp_path):
    def make(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return make


def pair(i, chosen="Yes, it is.", rejected="No."):
    return {"prompt": f"Is egg {i} boiled?", "chosen": chosen, "rejected": rejected}


def demo(i, completion="In seven minutes."):
    return {"prompt": f"When is egg {i} boiled?", "completion": completion}


def test_trees_and_their_examples(chat, write):
    rows = [pair(0), pair(1, "a", "a"), pair(2), "{broken", pair(4)]
    data = prepare(DataConfig(write(rows), max_bad=0.5), chat, pair_view)
    assert [tree.key for tree in data.train] == [0, 1, 2]
    assert [example.origin.row for example in data.train_examples] == [1, 3, 5]
    for tree, example in zip(data.train, data.train_examples, strict=True):
        assert [chat.decode(branch.ids) for branch in tree.branches] == ["Yes, it is.", "No."]
        assert example.prompt[0].content in chat.tokenizer.decode(tree.prompt)
        assert tree.pairs == ((0, 1, 0.0),)
    assert data.eval == data.eval_examples == []


def test_every_row_is_accounted_for(chat, write):
    rows = [demo(i) for i in range(20)] + ["{broken", demo(21, ""), demo(22, None), demo(23, "egg " * 300)]
    rows.append({"prompt": "egg " * 300, "completion": "long"})
    data = prepare(DataConfig(write(rows), max_bad=0.5, max_length=80, long="refuse"), chat, sft_view)
    [file] = data.report["files"]
    assert (file["format"], file["rows"], file["rows_used"], file["rows_skipped"]) == ("completion", 25, 21, 4)
    assert sum(file["skipped"].values()) == 4 == len(file["problems"])
    assert [problem.split(":")[1] for problem in file["problems"]] == ["21", "22", "23", "25"]
    assert any(re.match(r"prompt: has \d+ tokens: no room", reason) for reason in file["skipped"])
    train = data.report["train"]
    assert (train["examples"], train["responses"], train["prompts"]) == (21, 21, 21)
    assert train["responses_cut"] == 1
    assert train["tokens"] == sum(tree.num_tokens for tree in data.train)
    assert train["tokens_trained"] == sum(int(tree.branches[0].trained.sum()) for tree in data.train)
    assert train["prompt_tokens"]["total"] + train["response_tokens"]["total"] == train["tokens"]
    assert train["response_tokens"]["p100"] == max(len(tree.branches[0]) for tree in data.train)
    assert data.report == json.loads(json.dumps(data.report))


def test_too_many_problem_rows_stop_the_run_with_their_places(chat, write):
    rows = [pair(i) for i in range(18)] + [pair(18, ""), pair(19, "same", "same")]
    path = write(rows)
    assert len(prepare(DataConfig(path, max_bad=0.1), chat, pair_view).train) == 18
    with pytest.raises(DataError) as error:
        prepare(DataConfig(path, max_bad=0.09), chat, pair_view)
    text = str(error.value)
    assert "2 of 20 rows cannot be used; --data.max_bad 0.09 allows 1" in text
    assert f"{path}:19: chosen" in text and f"{path}:20:" in text
    assert f"assent data {path}" in text


def test_strict_stops_at_the_first_problem_row(chat, write):
    path = write([pair(0), pair(1, "egg " * 300, "x"), pair(2, "")])
    with pytest.raises(DataError, match=r":3: chosen.*\nStopped at the first problem row \(--data.strict\)"):
        prepare(DataConfig(path, strict=True), chat, pair_view)
    path = write([pair(0), {**pair(1), "prompt": "egg " * 300}])
    with pytest.raises(DataError, match=":2: prompt: has"):
        prepare(DataConfig(path, strict=True, max_length=100, long="refuse"), chat, pair_view)


def test_rows_without_use_are_no_fault(chat, write):
    rows = [{**demo(i), "label": i % 2 == 0} for i in range(10)]
    data = prepare(DataConfig(write(rows), strict=True, max_bad=0.0), chat, sft_view)
    [file] = data.report["files"]
    assert (len(data.train), file["rows_used"], file["rows_unused"], file["rows_skipped"]) == (5, 5, 5, 0)
    assert sum(file["unused"].values()) == 5


@pytest.mark.parametrize(
    "rows, config, match",
    [
        (
            [pair(i) for i in range(3)],
            {"max_length": 8, "max_bad": 1.0},
            "none of 3 rows can be trained on: prompt: has",
        ),
        ([pair(i) for i in range(3)], {"eval_fraction": 1e-6}, "holds out none of the 3 examples"),
        ([pair(i) for i in range(3)], {"eval_fraction": 0.999999}, "none of 3 rows can be trained on"),
        ([], {}, "is empty"),
    ],
)
def test_nothing_left_is_an_error(chat, write, rows, config, match):
    with pytest.raises(DataError, match=match):
        prepare(DataConfig(write(rows), **config), chat, pair_view)


def test_held_out_prompts_do_not_depend_on_order_or_company(chat, write):
    rows = [demo(i, f"In {k} minutes.") for i in range(60) for k in (3, 7)]
    data = prepare(DataConfig(write(rows), eval_fraction=0.3), chat, sft_view)
    held = {example.prompt[0].content for example in data.eval_examples}
    trained = {example.prompt[0].content for example in data.train_examples}
    assert len(held) + len(trained) == 60 and not held & trained
    assert len(data.train) + len(data.eval) == 120 and len(data.eval) == 2 * len(held)
    assert 8 <= len(held) <= 28
    assert data.report["overlap"] == 0
    assert [tree.key for tree in data.eval] == list(range(len(data.eval)))
    assert [file["rows_used"] for file in data.report["files"]] == [120]
    again = prepare(DataConfig(write(rows[::-1][:80], "b.jsonl"), eval_fraction=0.3), chat, sft_view)
    assert {example.prompt[0].content for example in again.eval_examples} <= held
    assert not {example.prompt[0].content for example in again.train_examples} & held
    more = prepare(DataConfig(write(rows), eval_fraction=0.5), chat, sft_view)
    assert held < {example.prompt[0].content for example in more.eval_examples}


def test_prompt_hash_is_a_fixed_uniform_number():
    example = Example(prompt=(Message("user", "Hi"),))
    assert prompt_hash(example) == pytest.approx(0.84164496037, abs=1e-9)  # a change would move rows between the sides
    texts = [Example((), (Response((Message("text", str(i)),)),)) for i in range(400)]
    values = sorted(prompt_hash(text) for text in texts)
    assert np.max(np.abs(values - (np.arange(400) + 0.5) / 400)) < 0.08
    assert prompt_hash(Example((Message("user", "a"), Message("user", "b")))) != prompt_hash(
        Example((Message("user", "ab"),))
    )


def test_an_evaluation_file_and_its_overlap(chat, write, caplog):
    config = DataConfig(write([demo(i) for i in range(8)]), eval=write([demo(i) for i in range(6, 11)], "held.jsonl"))
    with caplog.at_level(logging.WARNING):
        data = prepare(config, chat, sft_view)
    assert (len(data.train), len(data.eval)) == (8, 5)
    assert [file["rows"] for file in data.report["files"]] == [8, 5]
    assert data.report["overlap"] == 2 and "2 prompts of" in caplog.text
    assert data.report["eval"]["examples"] == 5
    bad = write([demo(0), demo(1, "")], "bad.jsonl")
    with pytest.raises(DataError, match="bad.jsonl: 1 of 2 rows cannot be used"):
        prepare(DataConfig(config.train, eval=bad), chat, sft_view)


def test_prompts_alone(chat, write):
    data = prepare(DataConfig(write([{"prompt": f"Egg {i}?"} for i in range(3)])), chat, prompt_view)
    assert [len(tree.branches) for tree in data.train] == [0, 0, 0]
    assert data.report["train"]["response_tokens"] == {}
    assert data.train[1].prompt.tolist() == chat.prompt_ids(data.train_examples[1].prompt).tolist()


def test_fingerprint_follows_what_is_trained(chat, write):
    def of(rows, **config):
        return fingerprint(prepare(DataConfig(write(rows), **config), chat, pair_view).train)

    base = of([pair(0), pair(1)])
    assert base == of([pair(0), pair(1)]) and len(base) == 64
    assert base != of([pair(1), pair(0)])
    assert base != of([pair(0), pair(1, "Yes, it was.")])
    assert base != of([pair(0), {**pair(1), "margin": 2}])
    prompt = prepare(DataConfig(write([pair(0)])), chat, pair_view).train[0].prompt
    assert base != of([pair(0), pair(1)], max_length=len(prompt) + 3)
    ids = np.arange(3, dtype=np.int32)
    one = TokenTree(ids, (Branch(ids, np.array([True, True, True])),))
    assert fingerprint([one]) != fingerprint([TokenTree(ids, (Branch(ids, np.array([True, False, True])),))])
    assert fingerprint([one]) != fingerprint([TokenTree(ids[:2], (Branch(ids, np.ones(3, bool)),))])


def test_fingerprint_of_runs_begun_before_stays():
    ids = np.arange(3, dtype=np.int32)
    branches = (Branch(ids, np.array([True, False, True])), Branch(ids[:2], np.ones(2, bool)))
    tree = TokenTree(ids, branches, ((0, 1, 1.5),), key=4)
    assert fingerprint([tree]) == "be8ea2c7c7584c94bcdaeb48758b4e20f9b68d3e967eb6a388b96fabf75cb700"
    fields = [
        {},
        {"label": np.array([0.0, 1.0], np.float32)},
        {"label": np.array([1.0, 0.0], np.float32)},
        {"level": np.array([0.0, 1.0], np.float32)},
        {"level": np.array([0.0, np.nan], np.float32)},
        {"label": np.array([0.0, 1.0], np.float32), "level": np.array([0.0, 1.0], np.float32)},
    ]
    assert len({fingerprint([replace(tree, per_response=each)]) for each in fields}) == len(fields)
    assert fingerprint([replace(tree, per_response=dict(reversed(fields[-1].items())))]) == fingerprint(
        [replace(tree, per_response=fields[-1])]
    )


@pytest.mark.parametrize(
    "view, name, values",
    [(binary_view, "label", [1, 0]), (ranking_view, "level", [0, 1]), (rating_view, "rating", [0, -np.inf])],
)
def test_feedback_stands_at_the_responses(chat, write, view, name, values):
    data = prepare(DataConfig(write([pair(i) for i in range(3)])), chat, view)
    assert len(data.train) == 3
    for tree in data.train:
        assert tree.pairs == () and {key: list(field) for key, field in tree.per_response.items()} == {name: values}
        assert [chat.decode(branch.ids) for branch in tree.branches] == ["Yes, it is.", "No."]


def test_lengths_and_reasons():
    assert lengths([]) == {}
    spread = lengths(list(range(1, 102)))
    assert spread == {"total": 5151, "mean": 51.0, "p0": 1, "p10": 11, "p50": 51, "p90": 91, "p99": 100, "p100": 101}
    where = Origin("f", 1)
    problems = [Problem(where, "a", "has 7 tokens"), Problem(where, "a", "has 12 tokens"), Problem(where, None, "x")]
    assert count_reasons(problems) == {"a: has N tokens": 2, "x": 1}
    same = [Problem(where, "label", "got the number 0.5"), Problem(Origin("f", 2), "label", "got the number 0.5")]
    assert count_reasons(same) == {"label: got the number 0.5": 2}


def test_real_preference_rows(chat, real_data):
    path = str(real_data / "dpo_en_demo.json")
    data = prepare(DataConfig(path, max_length=20_000, eval_fraction=0.1), chat, pair_view)
    assert len(data.train) + len(data.eval) == 300 and data.report["files"][0]["rows_used"] == 300
    assert 10 <= len(data.eval) <= 50
    for tree, example in zip(data.train, data.train_examples, strict=True):
        for branch, response in zip(tree.branches, example.responses, strict=True):
            assert chat.decode(branch.ids[branch.trained]) == response.text
            assert branch.ids[-1] in chat.eos_ids
