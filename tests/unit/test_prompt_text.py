"""Rows remember whether their prompt is text or messages: reward functions are shown what the row has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assent.data.formats import load_examples, to_row
from assent.data.records import Example
from assent.data.views import prompt_view

USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}
OTHER = {"role": "assistant", "content": "No."}


def load(folder: Path, row: dict) -> Example:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (example,) = load_examples(file).examples
    return example


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": " Hi?\n"}, " Hi?\n"),
        ({"prompt": "Hi?", "completion": "Yes."}, "Hi?"),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}, "Hi?"),
        ({"prompt": "\n\nHuman: Hi?\n\nAssistant:"}, "\n\nHuman: Hi?\n\nAssistant:"),
        ({"prompt": "Hi?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "Hi?"),
        ({"question": "2+2?", "answer": "Four.\n#### 4"}, "2+2?"),
        ({"instruction": "Add.", "input": "2, 2", "output": "4"}, "Add.\n2, 2"),
        ({"instruction": "Add.", "output": "4", "system": "Be kind."}, "Be kind.\n\nAdd."),
        ({"context": "Hi?", "completions": [{"rank": 0, "completion": "Y"}, {"rank": 1, "completion": "N"}]}, "Hi?"),
        (
            {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
            "\n\nHuman: Hi?\n\nAssistant:",
        ),
        ({"prompt": [USER]}, None),
        ({"prompt": [USER], "completion": [ANSWER]}, None),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, None),
        ({"messages": [USER, ANSWER], "prompt": "Hi?"}, None),
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]}, None),
        ({"text": "Hi."}, None),
    ],
)
def test_text_or_messages(row: dict, text: str | None, tmp_path: Path) -> None:
    example = load(tmp_path, row)
    assert example.prompt_text == text
    again = load(tmp_path, to_row(example))
    assert (again.prompt_text, again.prompt) == (example.prompt_text, example.prompt)
    if example.prompt:
        (only,), _ = prompt_view([example])
        assert only.prompt_text == text
