"""Every trap in a data file: the row, the column and the reason are named, the other rows are used, nothing is guessed.

Each case is one bad row between two good ones; its shape is detected from the file, not given.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assent.data.formats import Loaded, load_examples
from assent.data.views import pair_view

PREFERENCE = {"prompt": "q", "chosen": "good", "rejected": "bad"}
ASK = [{"role": "user", "content": "q"}]


def say(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


IMPLICIT = {"chosen": ASK + say("good"), "rejected": ASK + say("bad")}
CHAT = {"prompt": ASK, "chosen": say("good"), "rejected": say("bad")}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "q"}],
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}
KTO = {"messages": ASK + say("a"), "label": True}
SFT = {"messages": ASK + say("a")}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}
SCORED = {**PREFERENCE, "score_chosen": 4.0, "score_rejected": 2.0}
HELPSTEER = {
    "prompt": "q",
    "response": "a",
    **dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 2),
}
STRENGTH = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 2}
REPEATED = {"prompt": "Why?", "chosen": "Why? Because.", "rejected": "Why? Dunno."}
ULTRA = {"prompt": "q", **IMPLICIT}
NAN = float("nan")

TRAPS = [
    ("chosen missing", PREFERENCE, {"prompt": "q", "rejected": "bad"}, "chosen", "missing"),
    ("chosen empty", PREFERENCE, {"chosen": ""}, "chosen", "expected text, got an empty string"),
    ("chosen None", PREFERENCE, {"chosen": None}, "chosen", "expected a string, got None"),
    ("rejected None", PREFERENCE, {"rejected": None}, "rejected", "expected a string, got None"),
    ("chosen blank", PREFERENCE, {"chosen": " \n"}, "chosen", "expected text, got only white space"),
    ("chosen NaN", PREFERENCE, {"chosen": NAN}, "chosen", "expected a string, got NaN"),
    ("chosen number", PREFERENCE, {"chosen": 4}, "chosen", "expected a string, got the number 4"),
    ("chosen empty list", PREFERENCE, {"chosen": []}, "chosen", "expected a string, got an empty list"),
    ("prompt empty", PREFERENCE, {"prompt": ""}, "prompt", "expected text, got an empty string"),
    ("prompt None", PREFERENCE, {"prompt": None}, "prompt", "expected a string, got None"),
    ("equal pair", PREFERENCE, {"chosen": "same", "rejected": "same"}, "rejected", "equal to chosen"),
    ("equal pair but for blanks", PREFERENCE, {"chosen": "same", "rejected": "same\n"}, "rejected", "equal to chosen"),
    (
        "mixed types",
        PREFERENCE,
        {"rejected": say("bad")},
        "rejected",
        "mixed types: a list where prompt is a string; write both as messages",
    ),
    (
        "mixed types in messages",
        CHAT,
        {"chosen": "good"},
        "chosen",
        "mixed types: a string where prompt is a list; write both as messages",
    ),
    (
        "mixed types in transcripts",
        IMPLICIT,
        {"rejected": "bad"},
        "rejected",
        "mixed types: expected a list of messages, got the string 'bad'",
    ),
    (
        "lone surrogate",
        PREFERENCE,
        {"chosen": "x\ud800"},
        "chosen",
        "half of a surrogate pair at character 2: broken Unicode",
    ),
    (
        "transcripts among answers",
        PREFERENCE,
        {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"},
        "chosen",
        "chosen and rejected both begin with the prompt, unlike the other rows of the file",
    ),
    (
        "answer among transcripts",
        REPEATED,
        {"rejected": "Dunno."},
        "rejected",
        "does not begin with the prompt, unlike the other rows of the file",
    ),
    ("transcript without answer", REPEATED, {"chosen": "Why?"}, "chosen", "expected text, got an empty string"),
    ("score NaN", SCORED, {"score_chosen": NAN}, "score_chosen", "expected a number, got NaN"),
    ("score text", SCORED, {"score_rejected": "2"}, "score_rejected", "expected a number, got the string '2'"),
    ("one score missing", SCORED, {"score_rejected": None}, "score_rejected", "expected a number, got None"),
    (
        "scores against the pair",
        SCORED,
        {"score_chosen": 1},
        "score_chosen",
        "1 is below score_rejected 2: the scores contradict the pair",
    ),
    ("margin infinite", PREFERENCE, {"margin": float("inf")}, "margin", "expected a number, got an infinite number"),
    ("margin negative", PREFERENCE, {"margin": -1}, "margin", "expected a number from 0 to inf, got -1"),
    ("no messages", CHAT, {"prompt": []}, "prompt", "expected a list with entries, got an empty list"),
    ("empty answer list", CHAT, {"chosen": []}, "chosen", "expected a list with entries, got an empty list"),
    ("empty answer message", CHAT, {"chosen": say("")}, "chosen[0].content", "expected text, got an empty string"),
    (
        "prompt ends with an answer",
        CHAT,
        {"prompt": ASK + say("a")},
        "prompt",
        "the prompt ends with role 'assistant'; expected user",
    ),
    (
        "answer to another prompt",
        CHAT,
        {"chosen": [{"role": "user", "content": "other"}, *say("good")]},
        "chosen",
        "begins with a user turn but not with the prompt",
    ),
    (
        "different prompts",
        IMPLICIT,
        {"rejected": [{"role": "user", "content": "other"}, *say("bad")]},
        "chosen[0]",
        "the prompts differ in this user turn",
    ),
    (
        "one conversation begins the other",
        IMPLICIT,
        {"rejected": ASK + say("good") + ASK + say("bad")},
        "chosen",
        "is the beginning of the other conversation: the prompts differ",
    ),
    ("equal conversations", IMPLICIT, {"rejected": IMPLICIT["chosen"]}, "rejected", "equal to chosen"),
    (
        "no answer in transcript",
        IMPLICIT,
        {"chosen": ASK},
        "chosen",
        "the conversation ends with a user turn; expected the answer",
    ),
    (
        "no prompt in transcript",
        IMPLICIT,
        {"chosen": say("good"), "rejected": say("bad")},
        "chosen",
        "no prompt: nothing comes before the answer",
    ),
    (
        "unknown role",
        SFT,
        {"messages": [{"role": "bot", "content": "q"}]},
        "messages[0].role",
        "unknown role 'bot'; known: system, developer, user, human, assistant, gpt, model, function_call, tool, ",
    ),
    (
        "role missing",
        SFT,
        {"messages": [{"content": "q"}]},
        "messages[0].role",
        "expected a role, got None; known: system, developer, user",
    ),
    (
        "message is text",
        SFT,
        {"messages": ["q", "a"]},
        "messages[0]",
        "expected a message with role and content, got the string 'q'",
    ),
    (
        "two questions",
        SFT,
        {"messages": ASK + ASK + say("a")},
        "messages[1]",
        "role 'user' after 'user'; expected assistant",
    ),
    (
        "late system",
        SFT,
        {"messages": [*ASK, {"role": "system", "content": "s"}, *say("a")]},
        "messages[1]",
        "role 'system' after 'user'; expected assistant",
    ),
    (
        "answer first",
        SFT,
        {"messages": say("a")},
        "messages[0]",
        "role 'assistant' at the start; expected developer or system or user",
    ),
    ("empty conversation", SFT, {"messages": []}, "messages", "expected a list with entries, got an empty list"),
    (
        "content None",
        SFT,
        {"messages": [*ASK, {"role": "assistant", "content": None}]},
        "messages[1].content",
        "got None",
    ),
    (
        "tool call without name",
        SFT,
        {"messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        "messages[1].tool_calls[0].name",
        "expected a string, got None",
    ),
    (
        "image",
        SFT,
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "messages[0].content[0]",
        "parts of type 'image' cannot be read; only text parts can",
    ),
    ("label a number", KTO, {"label": 0.5}, "label", "expected true or false, got the number 0.5"),
    ("label another number", KTO, {"label": 2}, "label", "expected true or false, got the number 2"),
    ("label a word", KTO, {"label": "true"}, "label", "expected true or false, got the string 'true'"),
    ("label None", KTO, {"label": None}, "label", "expected true or false, got None"),
    (
        "sharegpt empty chosen",
        SHAREGPT,
        {"chosen": {"from": "gpt", "value": ""}},
        "chosen.value",
        "got an empty string",
    ),
    ("sharegpt chosen text", SHAREGPT, {"chosen": "good"}, "chosen", "expected a message with role and content"),
    (
        "sharegpt no question",
        SHAREGPT,
        {"conversations": [*SHAREGPT["conversations"], {"from": "gpt", "value": "x"}]},
        "conversations",
        "the prompt ends with role 'assistant'; expected user",
    ),
    (
        "sharegpt answer by the user",
        SHAREGPT,
        {"chosen": {"from": "human", "value": "good"}},
        "chosen[0]",
        "role 'user' after 'user'; expected assistant",
    ),
    (
        "two system prompts",
        SHAREGPT,
        {"conversations": [{"from": "system", "value": "s"}, *SHAREGPT["conversations"]], "system": "t"},
        "system",
        "there is a system turn in the conversation as well",
    ),
    (
        "hh empty answer",
        HH,
        {"chosen": "\n\nHuman: q\n\nAssistant: "},
        "chosen",
        "the answer is empty: nothing stands behind the last Assistant:",
    ),
    ("hh no dialogue", HH, {"rejected": "bad"}, "rejected", 'expected a dialogue that begins with "\\n\\nHuman:"'),
    ("hh empty question", HH, {"chosen": "\n\nHuman: \n\nAssistant: x"}, "chosen", "empty Human turn"),
    (
        "hh other question",
        HH,
        {"rejected": "\n\nHuman: r\n\nAssistant: bad"},
        "chosen[0]",
        "the prompts differ in this user turn",
    ),
    ("rating out of range", HELPSTEER, {"verbosity": 5}, "verbosity", "expected a number from 0 to 4, got 5"),
    ("rating None", HELPSTEER, {"coherence": None}, "coherence", "expected a number, got None"),
    ("strength", STRENGTH, {"preference_strength": 4}, "preference_strength", "expected a number from -3 to 3, got 4"),
    ("equal responses", STRENGTH, {"response_2": "a"}, "response_2", "equal to response_1"),
    ("prompt not in transcripts", ULTRA, {"prompt": "other"}, "prompt", "is none of the user turns"),
]


def load(folder: Path, *rows: object) -> Loaded:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(path)


@pytest.mark.parametrize(
    ("good", "change", "column", "reason"), [trap[1:] for trap in TRAPS], ids=[t[0] for t in TRAPS]
)
def test_trap_is_one_problem_row(good, change, column, reason, tmp_path):
    bad = change if "chosen" not in change and reason == "missing" else {**good, **change}
    loaded = load(tmp_path, good, bad, good)
    (problem,) = loaded.problems
    assert (problem.origin.row, problem.column, problem.fault) == (2, column, True)
    assert reason in problem.reason
    assert (loaded.num_rows, loaded.rows_used) == (3, 2)
    used = loaded.examples if not loaded.format == "helpsteer2" else loaded.examples[0].responses
    assert len(used) == 2


def test_one_file_with_every_kind_of_broken_line(tmp_path):
    """Byte order mark, CRLF, blank line, broken JSON, a cut line, wrong bytes, no object, a 10 MB line, a duplicate."""
    good = json.dumps({**PREFERENCE, "id": 1}).encode()
    long = json.dumps({**PREFERENCE, "chosen": "x" * 10_000_000}).encode()
    path = tmp_path / "rows.jsonl"
    lines = [good, b"", b'{"prompt": q}', good[:30], b'{"prompt": "\xff"}', b"7", long, good, b"nul", b"NaN", good]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    loaded = load_examples(path)
    assert [item.origin.row for item in loaded.examples] == [1, 7, 8, 11]
    assert len(loaded.examples[1].responses[0].text) == 10_000_000
    assert (loaded.num_rows, loaded.rows_used) == (10, 4)
    assert [str(problem) for problem in loaded.problems] == [
        f"{path}:3: not valid JSON: Expecting value at column 12",
        f"{path}:4: not valid JSON: Unterminated string starting at column 27",
        f"{path}:5: not UTF-8 at byte 13 of the line (invalid start byte)",
        f"{path}:6: expected an object {{...}}, got int",
        f"{path}:9: not valid JSON: Expecting value at column 1",
        f"{path}:10: expected an object {{...}}, got float",
    ]


def test_rows_of_another_schema_are_named(tmp_path):
    other = {"instruction": "q", "output": "a"}
    loaded = load(tmp_path, PREFERENCE, other, PREFERENCE)
    assert [str(problem)[-len("prompt: missing") :] for problem in loaded.problems] == ["prompt: missing"]


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        # equal first words stay in the answers
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: Yes", "rejected": "\n\nHuman: q\n\nAssistant: Yes it is"},
            "q",
            "Yes|Yes it is",
        ),
        # the first characters differ and chosen ends in a blank: no character of rejected is lost
        ({"chosen": "\n\nHuman: q\n\nAssistant: good ", "rejected": "\n\nHuman: q\n\nAssistant: bye"}, "q", "good|bye"),
        # a string prompt with full transcripts is not doubled
        ({"prompt": "2+2?", "chosen": "2+2? 4", "rejected": "2+2? 5"}, "2+2?", "4|5"),
        ({"prompt": "q", **IMPLICIT}, "q", "good|bad"),
        # one answer that happens to begin like the prompt is an answer
        ({"prompt": "Hi", "chosen": "Hi there", "rejected": "Go"}, "Hi", "Hi there|Go"),
        # markup in the text stays text
        ({"prompt": "<eos>", "chosen": "<|im_start|>system", "rejected": "x"}, "<eos>", "<|im_start|>system|x"),
    ],
)
def test_traps_that_corrupt_silently_elsewhere_are_read_right(row, prompt, answers, tmp_path):
    loaded = load(tmp_path, row)
    assert loaded.problems == []
    (example,) = loaded.examples
    assert [turn.content for turn in example.prompt] == [prompt]
    assert "|".join(response.text for response in example.responses).replace("<||", "<|") == answers


def test_duplicate_rows_are_data(tmp_path):
    loaded = load(tmp_path, {**PREFERENCE, "id": 1}, {**PREFERENCE, "id": 1})
    assert len(loaded.examples) == 2 and loaded.problems == []


def test_a_tie_is_kept_on_import_and_left_out_of_pairs_without_fault(tmp_path):
    loaded = load(tmp_path, STRENGTH, {**STRENGTH, "preference_strength": 0})
    assert len(loaded.examples) == 2 and loaded.problems == []
    kept, problems = pair_view(loaded.examples)
    assert len(kept) == 1
    assert [(problem.origin.row, problem.reason, problem.fault) for problem in problems] == [(2, "tie", False)]
