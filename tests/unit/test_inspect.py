from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from assent.config import InspectConfig
from assent.data.formats import load_examples
from assent.data.inspect import VIEWS, Span, inspect, inspect_file, render
from assent.errors import DataError, ModelError


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"Is egg {i} red?", "chosen": "No, it is not.", "rejected": "Yes."} for i in range(4)]
    rows[2]["chosen"] = ""
    rows.append({"prompt": "egg " * 200, "chosen": "a", "rejected": "b"})
    rows.append({"prompt": "Tell me of the egg.", "chosen": "egg " * 100, "rejected": "b"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def printed(inspection, listed=20, **options) -> str:
    out = io.StringIO()
    render(inspection, Console(file=out, **{"width": 100, **options}), listed)
    return out.getvalue()


def test_with_a_model(pairs, tiny_model_dir, tokenizer):
    found = inspect(InspectConfig(pairs, model=str(tiny_model_dir), max_length=100, show=1))
    assert (found.format, found.rows, found.examples, found.unit) == ("preference", 6, 5, "tokens")
    assert found.contents == {"different prompts": 5, "responses": 10, "pairs": 5}
    assert [use.commands for use in found.uses] == [
        "sft", "reward, dpo", "reward-attributes", "kto", "reward-ranking, pl-dpo", "nca", "ppo",
    ]  # fmt: skip
    # As in training: one is too long; with room for 128 tokens of an answer to be sampled, all are.
    assert [(use.examples, use.of) for use in found.uses] == [(4, 5)] * 2 + [(0, 0)] + [(4, 5)] * 3 + [(0, 5)]
    assert all("prompt: has " in " ".join(use.reasons) for use in found.uses if use.of)
    assert "--sampling.max_new_tokens" in found.uses[-1].readings[-1]
    assert [(problem.origin.row, problem.column) for problem in found.problems] == [(3, "chosen"), (5, "prompt")]
    assert "no room for an answer within 100" in found.problems[1].reason
    assert found.cut == 1
    # Lengths are of the rows as they are: nobody could choose a limit from what a limit has cut.
    assert found.lengths["prompt"]["p100"] > 200 > 100 < found.lengths["response"]["p100"]
    [(origin, spans)] = found.previews
    assert origin.row == 1
    assert spans == (
        Span("prompt", "<|im_start|>user\nIs egg 0 red?<|im_end|>\n<|im_start|>assistant\n", False),
        Span("chosen", "No, it is not.<|im_end|>", True, ended=True),
        Span("rejected", "Yes.<|im_end|>", True, ended=True),
    )


def test_a_cut_answer_shows_no_end(pairs, tiny_model_dir):
    found = inspect(InspectConfig(pairs, model=str(tiny_model_dir), max_length=100, show=9))
    assert [origin.row for origin, _ in found.previews] == [1, 2, 4, 6]
    assert [span.ended for span in found.previews[-1][1]] == [False, False, True]


def test_without_a_model(pairs):
    found = inspect(InspectConfig(pairs, show=1))
    assert (found.unit, found.cut) == ("characters", 0)
    assert found.lengths["prompt"]["p0"] == len("Is egg 0 red?")
    assert found.lengths["response"]["total"] == 3 * len("No, it is not.Yes.") + len("ab") + len("egg " * 100 + "b")
    assert found.previews[0][1][1] == Span("chosen", "No, it is not.", True)
    assert "--model FOLDER" in printed(found)


def test_turns_that_are_only_read(tmp_path, tiny_model_dir):
    turns = [{"role": role, "content": f"egg {i}"} for i, role in enumerate(["user", "assistant", "user", "assistant"])]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    for model in (None, str(tiny_model_dir)):
        [(_, spans)] = inspect(InspectConfig(str(path), model=model)).previews
        assert [span.trained for span in spans] == [False, True, False, True]
        assert "egg 2" in spans[2].text and spans[3].text.startswith("egg 3")


def test_what_is_printed(pairs, tiny_model_dir):
    found = inspect(InspectConfig(pairs, model=str(tiny_model_dir), max_length=100))
    plain = printed(found)
    for text in ("preference: prompt, chosen and rejected", "6 rows, 5 examples, 2 problem rows", "lengths in tokens",
                 "1 responses are cut", "Is egg 1 red?<|im_end|>", "No, it is not.<|im_end|> ■", "assistant↵",
                 "problem rows", "chosen"):  # fmt: skip
        assert text in plain, text
    assert "\x1b" not in plain
    coloured = printed(found, force_terminal=True, color_system="standard")
    assert "\x1b[32mNo, it is not.<|im_end|>" in coloured  # green
    assert "\x1b[2m<|im_start|>user" in coloured  # dim
    assert "1 more: --problems 0 lists all" in printed(found, listed=1)
    assert "lists all" not in printed(found, listed=0)


def test_large_numbers_are_whole_on_a_narrow_terminal(pairs):
    found = inspect(InspectConfig(pairs))
    lengths = {part: {**values, "total": 2_009_531_111} for part, values in found.lengths.items() if values}
    out = printed(replace(found, lengths=lengths, previews=()), width=80)
    assert out.count("2,009,531,111") == len(lengths) > 1 and "…" not in out


def test_data_cannot_write_to_the_terminal(tmp_path):
    path = tmp_path / "rows.jsonl"
    text = "\x1b[2J\x07[bold]{x}[/bold]"
    rows = [{"prompt": text, "completion": "ok"}, {"prompt": "a", "completion": "b"}, {"prompt": [{"role": text}]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    out = printed(inspect(InspectConfig(str(path))), force_terminal=True)
    assert "\x1b[2J" not in out and "\x07" not in out
    assert r"\x1b[2J\x07[bold]{x}[/bold]" in out


def test_uses_of_labels_and_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Egg {i}?", "completion": "Yes.", "label": i > 0} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    uses = {use.commands: use for use in inspect(InspectConfig(str(path))).uses}
    assert {name: use.examples for name, use in uses.items()} == (
        {"sft": 2, "reward, dpo": 0, "reward-attributes": 0, "kto": 3, "reward-ranking, pl-dpo": 0, "nca": 0, "ppo": 3}
    )
    assert list(uses["sft"].reasons.values()) == [1]
    path.write_text('{"text": "An egg."}\n')
    found = inspect(InspectConfig(str(path)))
    assert [use.examples for use in found.uses] == [1, 0, 0, 0, 0, 0, 0]
    assert found.previews[0][1] == (Span("response", "An egg.", True),)


def test_conversions_stand_in_the_table_and_nowhere_else(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    messages = [{"messages": [{"role": "assistant", "content": text}]} for text in "abc"]
    feedback = [{"kind": "rating", "response": i, "scores": {"overall": score}} for i, score in enumerate((3, 1, 1))]
    row = {"prompt": [{"role": "user", "content": "Egg?"}], "responses": messages, "feedback": feedback, "meta": {}}
    path.write_text(json.dumps(row) + "\n")
    found = inspect(InspectConfig(str(path)))
    assert [use.examples for use in found.uses] == [1] * 7
    readings = {use.commands: use.readings for use in found.uses}
    assert readings["nca"] == readings["ppo"] == ()
    for commands, words in {
        "reward, dpo": "as pairs",
        "kto": "reaches --threshold",
        "reward-ranking, pl-dpo": "as rankings",
    }.items():
        (reading,) = readings[commands]
        assert words in reading and words in " ".join(printed(found).split())
    assert caplog.messages == []
    VIEWS["reward, dpo"](load_examples(str(path)).examples)
    assert len(caplog.messages) == 1  # training says it still


def test_errors_name_the_option(pairs, tmp_path):
    with pytest.raises(ModelError, match="--model .*nowhere: no tokenizer can be loaded"):
        inspect(InspectConfig(pairs, model=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="no such file"):
        inspect(InspectConfig(str(tmp_path / "nothing.jsonl")))


def test_a_file_whose_every_row_is_bad_is_shown(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "q", "responses": [1]}\n{"prompt": "", "responses": ["a", "b"]}\n')
    inspect_file(InspectConfig(str(path)))
    out = " ".join(capsys.readouterr().out.split())
    assert "2 rows, 0 examples, 2 problem rows" in out and "median" not in out
    assert "expected text, messages, or an object with messages, got the number 1" in out


def test_the_command_prints(pairs, capsys):
    assert inspect_file(InspectConfig(pairs, problems=1)).rows == 6
    assert "6 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, shape", [("dpo_en_demo.json", "sharegpt-preference"), ("gsm8k_test.jsonl", "gsm8k")]
)  # fmt: skip
def test_real_files(real_data, name, shape):
    found = inspect(InspectConfig(str(real_data / name)))
    assert found.format == shape and not found.problems
    assert shape in printed(found)
