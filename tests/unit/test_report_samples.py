"""Answers side by side: what is read from answers.jsonl and samples.jsonl, whatever is in them, what is compared with
what, and what of it goes into the page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from assent.data.records import Message
from assent.evaluate.differences import LEAST, Part, difference
from assent.evaluate.report_samples import LONGEST, PAGE, first_page, fitting, page_data, two_digits
from assent.evaluate.results import Answer, Comparison, PolicyResult, PolicyTable
from assent.evaluate.runs import Run
from assent.evaluate.samples import Asked, Sample, SampleRow, SampleSet, Source, evaluation_samples, run_samples

TABLE = PolicyTable("sft", "gold", (PolicyResult("sft"), PolicyResult("ppo")), prompts=2)


def row(policy: str, place: int, text: str, gold: float | None, **more) -> dict:
    prompt = [{"role": "user", "content": f"question {place}"}]
    base = {"policy": policy, "prompt_index": place, "prompt": prompt, "response": text}
    return base | {"scores": {"proxy": 1.0, "gold": gold}} | more


def read(tmp_path: Path, rows: list[dict] | str, table: PolicyTable = TABLE) -> SampleSet | None:
    file = tmp_path / "answers.jsonl"
    file.write_text(rows if isinstance(rows, str) else "".join(json.dumps(each) + "\n" for each in rows))
    return evaluation_samples(table, file)


def test_answers_of_an_evaluation_side_by_side(tmp_path: Path):
    rows = [
        row("sft", 1, "a", 1.0, tokens=3, finished=False, kind="birds"),
        row("sft", 0, "b", 2.0, log_prob=-2.5),
        row("sft", 0, "b again", 2.5),
        row("ppo", 0, "c", None, unscored={"gold": "no opinion"}, wins={"judge": [1.0, 0.5, None]}),
        row("ppo", 1, "d", 3.0, wins={"judge": [None]}),
    ]
    found = read(tmp_path, rows)
    assert found is not None and found.columns == ("sft", "ppo") and found.baseline == 0
    assert found.sources == (Source("gold"), Source("proxy"), Source("judge", True)), "what decides is first"
    assert [(asked.number, asked.kind) for asked in found.prompts] == [(0, ""), (1, "birds")]
    assert [(r.prompt, r.repeat) for r in found.rows] == [(0, 0), (0, 1), (1, 0)] and found.total == 3
    first, again, second = found.rows
    assert first.answers[0] == Sample("b", None, None, (2.0, 1.0, None), {}, -2.5)
    assert first.answers[1] == Sample("c", None, None, (None, 1.0, 0.75), {0: "no opinion"})
    assert again.answers[1] is None and second.answers[0] == Sample("a", 3, False, (1.0, 1.0, None))
    assert (found.gain(first, 1, 0), found.gain(second, 1, 0), found.gain(second, 0, 0)) == (None, 2.0, None)
    assert (found.gain(first, 1, 2), found.gain(second, 1, 2), found.gain(again, 1, 0)) == (0.25, None, None)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"policy": "sft"}', '{"policy": "sft", "prompt_index": true, "response": "x"}',
     '{"policy": "sft", "prompt_index": 0, "response": ["x"]}', "[" * 5000],
)  # fmt: skip
def test_lines_that_are_no_answers_are_named(tmp_path: Path, line: str):
    found = read(tmp_path, json.dumps(row("sft", 0, "fine", 1.0)) + "\n" + line + "\n")
    assert found is not None and [r.answers[0].text for r in found.rows if r.answers[0]] == ["fine"]
    assert found.problems == ("answers.jsonl: 1 lines are not answers (line 2); left out",)


def test_odd_values_are_unknown_not_fatal(tmp_path: Path):
    odd = row("sft", 0, "x", None, tokens="many", finished="yes", log_prob=[1], kind=3, prompt=7, unscored=[], wins=3)
    odd["scores"] = {"gold": 10**400, "proxy": True}
    found = read(tmp_path, [odd, row("ppo", 0, "y", 1.0, scores="none")])
    assert found is not None
    assert found.rows[0].answers[0] == Sample("x", None, None, (None, None))
    assert found.prompts == (Asked(0, (Message("user", "7"),)),)
    assert json.loads(page_data([found], {}))["sets"][0]["rows"][0][3][0] == ["x", -1, -1, [None, None]]


def test_answers_of_another_evaluation_are_left_out_and_the_tables_own_shown(tmp_path: Path):
    shown = Comparison((Message("user", "q"),), {"sft": Answer("a", 3, True, {"gold": None})})
    table = replace(TABLE, comparisons=(shown,))
    found = read(tmp_path, [row("dpo", 0, "x", 1.0)], table)
    assert found is not None and [r.answers[0].text for r in found.rows if r.answers[0]] == ["a"]
    assert found.problems == ("answers.jsonl has answers of dpo, which is not in the table; left out",)
    assert read(tmp_path, [row("dpo", 0, "x", 1.0)]) is None
    assert evaluation_samples(table, tmp_path / "none.jsonl") is not None


def test_samples_of_a_run_by_step():
    said = [
        {"step": 5, "prompt": "once", "response": "alone"},
        {"step": 0, "prompt": "q", "response": "early", "reward": 1.0, "length": 4, "finished": False},
        {"step": 9, "prompt": "q", "response": "late", "reward": 2.0, "gold": 3, "note": "x"},
        {"step": 9, "prompt": "q", "response": "late", "reward": 2.0, "gold": 3, "note": "x"},
        {"step": 9, "prompt": "q", "response": {"odd": 1}},
    ]
    found = run_samples(Run("ppo", Path("."), samples=tuple(said)))
    assert found is not None and found.columns == ("step 0", "step 5", "step 9") and found.baseline is None
    assert found.sources == (Source("reward"), Source("gold"))
    first, second, once = found.rows
    assert first.answers == (Sample("early", 4, False, (1.0, None)), None, Sample("late", None, None, (2.0, 3.0)))
    assert second.answers[2] == Sample('{"odd": 1}', None, None, (None, None)) and second.repeat == 1
    assert once.prompt == 1 and found.gain(first, 2, 0) == 1.0 and found.gain(second, 2, 0) is None
    assert run_samples(Run("sft", Path("."))) is None


def many(count: int, text: str = "x" * 1000) -> SampleSet:
    asked = tuple(Asked(i, (Message("user", "q"),)) for i in range(count))
    rows = tuple(SampleRow(i, 0, (Sample(text), Sample(text))) for i in range(count))
    return SampleSet("evaluation", "", ("a", "b"), 0, (), asked, rows, count)


def test_what_does_not_fit_is_drawn_by_chance_and_counted():
    whole, limit = many(1000), 500_000
    (some,) = fitting([whole], limit)
    places = [row.prompt for row in some.rows]
    assert 200 < len(some.rows) < 250 and some.total == 1000 and places == sorted(places)
    assert max(places) > 900 and min(places) < 100, "not the first ones"
    data = page_data([some], {})
    assert 0.8 * limit < len(data.encode()) <= limit and json.loads(data)["sets"][0]["total"] == 1000
    numbers = [asked[0] for asked in json.loads(data)["sets"][0]["prompts"]]
    assert numbers == places, "prompts that are not shown are not in the page"
    assert fitting([whole], 10**9) == [whole]
    first, *rest = fitting([many(100), many(100)], 250_000)
    assert len(first.rows) == 100 and len(rest[0].rows) < 30


def test_data_ends_no_script_and_is_read_back():
    text = "</script><!-- \u2028\u2029 & \ud800 \x00 é"
    found = many(1, text)
    data = page_data([replace(found, name=text)], {})
    data.encode("utf-8")
    assert not set("<>&\u2028\u2029") & set(data)
    assert json.loads(data)["sets"][0]["rows"][0][3][0][0] == "</script><!-- \u2028\u2029 & \\ud800 \\x00 é"
    long = json.loads(page_data([many(1, "y" * (LONGEST + 12345))], {}))["sets"][0]["rows"][0][3][0][0]
    assert long == "y" * LONGEST + " … (12,345 more characters)"


def test_the_first_page_has_all_policies_or_of_many_two():
    assert len(first_page(many(30), {})) == PAGE
    answers = tuple(Sample(name, 3, name != "f", (float(place),)) for place, name in enumerate("abcdef"))
    asked = (Asked(4, (Message("user", "q"),), "birds"),)
    wide = SampleSet("evaluation", "", tuple("abcdef"), 2, (Source("gold"),), asked, (SampleRow(0, 0, answers),), 1)
    (card,) = first_page(wide, {"f": "#123456"})
    assert [answer.name for answer in card.answers if answer] == ["c", "f"] and card.tags == ("birds",)
    last = card.answers[1]
    assert last is not None and (last.outcome, last.color, card.title) == ("wins", "#123456", "Prompt 5")
    assert last.chips == (("gold", "5.00", False), ("3 tokens", "", False), ("cut at the length limit", "", True))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.125, "0.13"), (-0.125, "−0.13"), (-0.0, "0.00"), (2.5e-9, "0.00"), (1234567.0, "1234570.00"), (1e21, "1e+21")],
)
def test_numbers_are_written_as_the_browser_writes_them(value: float, text: str):
    assert two_digits(value) == text
    assert math.isfinite(value)


def test_differences_of_words():
    found = difference("The capital of France is Paris.", "The capital of Spain is Madrid, not Paris.")
    assert found.parts == (
        Part("same", "The capital of"),
        Part("removed", " France"),
        Part("same", " "),
        Part("added", "Spain"),
        Part("same", " is "),
        Part("added", "Madrid, not"),
        Part("same", " Paris."),
    )
    assert difference("same", "same").note == "the same answer"
    assert difference("one two three", "four five six").note == "other words throughout"
    assert difference("", "words").note == "other words throughout" and LEAST > 0
    assert difference("word " * 3000, "other " * 3000).note.startswith("too long")
