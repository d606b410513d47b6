"""The options about templates, turns and rendered text: read, refused, and what they do to data and saved models."""

from __future__ import annotations

import copy
import io
import json
import logging

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from assent import cli
from assent.config import DataConfig, InspectConfig, ModelConfig, OptimConfig, SFTConfig, TrainConfig, settings
from assent.data.chat import Chat
from assent.data.dataset import prepare
from assent.data.inspect import inspect, render
from assent.data.records import Message
from assent.data.views import sft_view
from assent.errors import ConfigError, DataError, ModelError

SFT = ["sft", "--model.path", "m", "--data.train", "t", "--out", "o"]
SWITCH = """\
{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}
{%- if not (enable_thinking is defined and not enable_thinking) -%}{{- '<think>\n' -}}{%- endif -%}{%- endif -%}"""
CHAT = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Fine."}]
LONG = [*CHAT, {"role": "user", "content": "So?"}, {"role": "assistant", "content": "Well."}]


@pytest.fixture
def write(tmp_path):
    def make(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return make


def test_variables_are_read_as_yaml_reads_them():
    words = ["enable_thinking:false", "budget:12", "date:2026-11-29", "effort:high", "p:0.5", "who:a:b", "none:"]
    wanted = {"enable_thinking": False, "budget": 12, "date": "2026-11-29", "effort": "high", "p": 0.5, "who": "a:b",
              "none": ""}  # fmt: skip
    _, config = cli.parse("sft", [*SFT[1:], "--model.template_kwargs", *words])
    assert config.model.template_kwargs == wanted
    assert [type(value) for value in config.model.template_kwargs.values()] == [bool, int, str, str, float, str, str]
    assert settings.load(SFTConfig, settings.dump(config)) == config
    text = "out: o\nmodel: {path: m, template_kwargs: {a: true, d: 2026-11-29, e: high}}\ndata: {train: t}\n"
    assert settings.load(SFTConfig, text).model.template_kwargs == {"a": True, "d": "2026-11-29", "e": "high"}
    with pytest.raises(ConfigError, match="'model.template_kwargs' must be a mapping from text to values"):
        settings.load(SFTConfig, text.replace("{a: true, d: 2026-11-29, e: high}", "{a: [1]}"))


@pytest.mark.parametrize(
    "args, reason",
    [
        (["dpo", *SFT[1:], "--data.turns", "each"], "--data.turns each makes a row of each turn, which only sft"),
        (["compare", *SFT[1:], "--scorer", "a:b", "--data.rendered"], "compare asks the models by their chat template"),
        (
            [*SFT, "--data.rendered", "--model.template_kwargs", "a:1"],
            "--model.template_kwargs goes to the chat template",
        ),
    ],
)
def test_options_that_contradict_each_other(args, reason):
    with pytest.raises(ConfigError, match=reason):
        cli.parse(args[0], args[1:])
    cli.parse("sft", [*SFT[1:], "--data.turns", "each"])
    cli.parse("dpo", [*SFT[1:], "--data.turns", "last"])


@pytest.mark.parametrize("turns, examples, trained", [("all", 1, 2), ("last", 1, 1), ("each", 2, 2)])
def test_turns_of_a_file(tokenizer, write, turns, examples, trained):
    chat = Chat(tokenizer)
    data = prepare(DataConfig(write({"messages": LONG}), turns=turns), chat, sft_view)
    assert len(data.train) == len(data.train_examples) == examples
    assert [tree.key for tree in data.train] == list(range(examples))
    ends = sum(int((b.ids[b.trained] == tokenizer.eos_token_id).sum()) for t in data.train for b in t.branches)
    assert ends == trained
    assert data.report["files"][0]["rows_used"] == 1


RENDERED = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nFine.<|im_end|>\n"


def test_rendered_rows_are_said_once(tokenizer, write, caplog):
    file = write({"text": RENDERED}, {"text": RENDERED}, {"text": "Plain."})
    with caplog.at_level(logging.WARNING):
        data = prepare(DataConfig(file), Chat(tokenizer), sft_view)
    [record] = [record for record in caplog.records if "--data.rendered" in record.message]
    assert "2 of 3 examples" in record.message and data.report["rendered"] == 2
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        data = prepare(DataConfig(file, rendered=True), Chat(tokenizer, rendered=True), sft_view)
    assert not [record for record in caplog.records if "rendered" in record.message]
    own = tokenizer(RENDERED, add_special_tokens=False)["input_ids"]
    tree = data.train[0]
    assert [*tree.prompt, *tree.branches[0].ids] == own[:-1]


def printed(inspection) -> str:
    out = io.StringIO()
    render(inspection, Console(file=out, width=160))
    return " ".join(out.getvalue().split())


def test_the_preview_tells_letters_from_tokens(write, tiny_model_dir):
    file = write({"text": RENDERED})
    usual = printed(inspect(InspectConfig(file, model=str(tiny_model_dir))))
    assert "1 with text that a template has written already (--rendered takes them as they are)" in usual
    assert "⟪<|im_start|>⟫user" in usual and "⟪…⟫ spells a control token in letters" in usual
    taken = printed(inspect(InspectConfig(file, model=str(tiny_model_dir), rendered=True)))
    assert "⟪" not in taken and "--rendered" not in taken and "<|im_end|>" in taken


def test_inspection_takes_the_options_of_training(write, tiny_model_dir, tmp_path):
    (tmp_path / "t.jinja").write_text(SWITCH)
    file, template = write({"messages": LONG}), str(tmp_path / "t.jinja")
    options = {"model": str(tiny_model_dir), "chat_template": template}
    [problem] = inspect(InspectConfig(file, **options)).problems
    assert "--model.template_kwargs enable_thinking:false would do" in problem.reason
    found = inspect(InspectConfig(file, **options, template_kwargs={"enable_thinking": False}, turns="each"))
    assert not found.problems and found.examples == 2
    with pytest.raises(ConfigError, match="has no variable 'x'"):
        inspect(InspectConfig(file, **options, template_kwargs={"x": 1}))


def test_without_a_template_a_file_of_conversations_stops_with_one_line(write, tokenizer, tiny_model_dir):
    other = AutoTokenizer.from_pretrained(tiny_model_dir)
    other.chat_template = None
    with pytest.raises(ModelError, match="12 of 12 rows are conversations.*chatml, deepseek") as error:
        prepare(DataConfig(write(*[{"messages": LONG}] * 12)), Chat(other), sft_view)
    assert str(error.value).count("--model.chat_template") == 1


def test_a_reason_is_given_once(write, tokenizer):
    ignores = "{%- for m in messages if m.role != 'system' -%}" + SWITCH.split("-%}", 1)[1]
    other = copy.deepcopy(tokenizer)
    other.chat_template = ignores.replace("<think>\n", "")
    rows = [{"messages": [{"role": "system", "content": f"{i}"}, *CHAT]} for i in range(12)]
    with pytest.raises(DataError) as error:
        prepare(DataConfig(write(*rows)), Chat(other), sft_view)
    lines = [line for line in str(error.value).splitlines() if "system turn" in line]
    assert len(lines) == 2 and "12 rows" in lines[0] and "rows.jsonl:1: messages[0]: " in lines[1]


def test_a_saved_model_is_asked_as_it_was_trained(write, tiny_model_dir, tmp_path):
    from assent import train_sft

    (tmp_path / "t.jinja").write_text(SWITCH)
    config = SFTConfig(
        ModelConfig(
            str(tiny_model_dir),
            chat_template=str(tmp_path / "t.jinja"),
            template_kwargs={"enable_thinking": False},
            precision="fp32",
        ),
        DataConfig(write({"messages": CHAT}), max_length=100),
        str(tmp_path / "run"),
        OptimConfig(lr=1e-6),
        TrainConfig(batch_size=1, max_steps=1),
    )
    result = train_sft(config)
    saved = AutoTokenizer.from_pretrained(result.model)
    asked = saved.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False)
    assert asked.endswith("<|im_start|>assistant\n")
    own = Chat(saved)
    assert own.prompt_ids((Message("user", "Hi."),)).tolist() == saved(asked)["input_ids"]
    thinking = saved.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False, enable_thinking=True)
    assert thinking.endswith("<think>\n")


def test_what_a_template_leaves_out_comes_with_a_way_out(write, tokenizer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    file = write(*[{"messages": [CHAT[0], calls]}] * 3)
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(file), Chat(copy.deepcopy(tokenizer)), sft_view)
    text = str(caught.value)
    assert text.count("leaves out or changes 'weather'") == 2, "its count, and the first row"
    assert text.count("--model.chat_template (docs/chat.md)") == 1
