"""Attributes at the head of an answer: the line as templates write it, labels of answers, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from assent import cli
from assent.config import ExportConfig
from assent.data.chat import Chat
from assent.data.formats import to_row
from assent.data.records import Example, Message, Response, RowError
from assent.data.steerable import asked_for, best_values, companions_of, make_steerable
from assent.data.steering import NEMO, Steering, read_attributes, steered, steering_of
from assent.data.template import FOLDER
from assent.errors import ConfigError, ModelError
from assent.models.recipe import original_template, reward_tokenizer

TWO = Steering(("helpfulness", "verbosity"), (4, 1))
ASKED = Message("user", "2+2?")


def answer(text: str, *values: float, names: tuple[str, ...] = TWO.names) -> Message:
    return Message("assistant", text, attributes=tuple(zip(names, map(float, values), strict=False)))


@pytest.fixture
def chat(tokenizer) -> Chat:
    return make_steerable(copy.deepcopy(tokenizer), TWO)


def spelled(chat: Chat, *turns: Message) -> tuple[str, str]:
    """What is read and what is trained of one answer, or of several turns."""
    tree = chat.tree(Example((ASKED,), (Response(turns),)), 1000)
    (branch,) = tree.branches
    return chat.spell(tree.prompt), chat.spell(branch.ids[branch.trained])


def test_an_answer_follows_the_line_of_its_own_values_which_is_not_trained(chat):
    head = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert spelled(chat, answer("4", 3, 0)) == (head + "helpfulness:3,verbosity:0\n", "4<|im_end|>")
    assert spelled(chat, answer("4", 0, 3)) == (head + "helpfulness:0,verbosity:3\n", "4<|im_end|>")
    assert spelled(chat, Message("assistant", "4")) == (head + "helpfulness:4,verbosity:1\n", "4<|im_end|>")
    assert chat.prompt_text((ASKED,)) == head + "helpfulness:4,verbosity:1\n"


def test_every_turn_has_its_own_values(chat):
    turns = (answer("4", 3, 0), Message("user", "Why?"), answer("So.", 1, 4))
    example = Example((ASKED,), (Response(turns),))
    (branch,) = chat.tree(example, 1000).branches
    assert chat.spell(branch.ids) == (
        "4<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nhelpfulness:1,verbosity:4\nSo.<|im_end|>"
    )
    assert chat.spell(branch.ids[branch.trained]) == "4<|im_end|>So.<|im_end|>"
    prompt = Example((ASKED, *turns[:2]), template_kwargs={"verbosity": 2})
    assert "helpfulness:3,verbosity:0\n4" in chat.prompt_text(prompt)
    assert chat.prompt_text(prompt).endswith("helpfulness:4,verbosity:2\n")


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (answer("4", 3), "lacks verbosity"),
        (answer("4", 3, 2.5), "verbosity must be a whole number. Got 2.5"),
        (answer("4", 3, 5), "verbosity must be from 0 to 4. Got 5"),
        (answer("4", 3, 1, names=("helpfulness", "verbositi")), "Perhaps you meant 'verbosity'"),
    ],
)
def test_labels_that_do_not_fit_are_problems_of_their_rows(chat, turn, words):
    trees, problems = chat.trees([Example((ASKED,), (Response((turn,)),)), Example((ASKED,), ())], 1000)
    assert [tree.key for tree in trees] == [1] and words in str(problems[0])
    assert problems[0].column == "messages[1].attributes"


def test_labels_need_a_template_that_writes_them(tokenizer):
    with pytest.raises(RowError, match="writes no attributes"):
        Chat(copy.deepcopy(tokenizer)).tree(Example((ASKED,), (Response((answer("4", 3, 0),)),)), 1000)


def test_answers_of_one_row_have_one_prompt(chat):
    same = Example((ASKED,), tuple(Response((answer(text, 3, 0),)) for text in ("4", "four")))
    assert len(chat.tree(same, 1000).branches) == 2
    other = Example((ASKED,), (Response((answer("4", 3, 0),)), Response((answer("5", 0, 0),))))
    with pytest.raises(RowError, match="different attributes"):
        chat.tree(other, 1000)


def test_the_defaults_can_be_others(chat, tmp_path):
    chat.tokenizer.save_pretrained(tmp_path)
    again = Chat(AutoTokenizer.from_pretrained(tmp_path), variables={"verbosity": 3})
    assert again.prompt_text((ASKED,)).endswith("helpfulness:4,verbosity:3\n")
    assert steering_of(again.tokenizer.chat_template) == TWO
    row = Example((ASKED,), template_kwargs={"verbosity": 0})
    assert again.prompt_text(row).endswith("helpfulness:4,verbosity:0\n")
    for wrong in ({"verbosity": 9}, {"verbositi": 1}, {"verbosity": 1.5}, {"verbosity": True}):
        with pytest.raises(ConfigError, match="verbosity"):
            Chat(AutoTokenizer.from_pretrained(tmp_path), variables=wrong)
        with pytest.raises(RowError, match="verbosity"):
            again.prompt_text(Example((ASKED,), template_kwargs=wrong))
    by_others = again.tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+2?"}], add_generation_prompt=True, tokenize=False, verbosity=2
    )
    assert by_others.endswith("helpfulness:4,verbosity:2\n")


BUILT_IN = [path.stem for path in sorted(FOLDER.glob("*.jinja"))]


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(
    "line", [NEMO, "[how helpful: {helpfulness}; how long: {verbosity}] ", "{attributes} | \"'%}\n"]
)
def test_every_template_writes_the_line_or_is_refused(tokenizer, name, line):
    text = (FOLDER / f"{name}.jinja").read_text()
    own = copy.deepcopy(tokenizer)
    own.add_tokens(
        [t for t in ("<|User|>", "<｜User｜>", "<｜Assistant｜>", "<|eot_id|>", "<end_of_turn>") if t in text]
    )
    own.chat_template = text
    steering = Steering(TWO.names, TWO.defaults, line=line)
    if name == "deepseek":  # its generation prompt opens a thought, behind which an answer without one does not begin
        with pytest.raises(ModelError, match="thinking:false would do"):
            make_steerable(own, steering)
        own.chat_template = "{%- if thinking is not defined %}{%- set thinking = false %}{%- endif %}{{- '' }}" + text
    chat = make_steerable(own, steering)
    written = line.replace("{attributes}", "helpfulness:3,verbosity:0")
    for attribute, value in (("helpfulness", "3"), ("verbosity", "0")):
        written = written.replace("{" + attribute + "}", value)
    prompt, trained = spelled(chat, answer("four", 3, 0))
    assert prompt.endswith(written) and trained.startswith("four")


@pytest.mark.parametrize(
    ("steering", "error", "words"),
    [
        (Steering(("not",), (1,)), ConfigError, "the chat template of .* uses the name"),
        (Steering(("messages",), (1,)), ConfigError, "uses the name"),
        (Steering(("how long",), (1,)), ConfigError, "letters, digits and _"),
        (Steering((), ()), ConfigError, "at least one"),
        (Steering(("a", "b"), (1, 1), line="{a}\n"), ConfigError, "nothing else in braces.*: b"),
        (Steering(("a",), (1,), line="{a} {c}\n"), ConfigError, ": c"),
        (Steering(("a",), (1,), line="none\n"), ConfigError, "must hold"),
    ],
)
def test_names_and_lines_that_cannot_be(tokenizer, steering, error, words):
    with pytest.raises(error, match=words):
        make_steerable(copy.deepcopy(tokenizer), steering)


def test_a_model_that_knows_attributes_keeps_them(chat):
    again = make_steerable(chat.tokenizer, Steering(TWO.names, (2, 2)))
    assert again.prompt_text((ASKED,)).endswith("helpfulness:2,verbosity:2\n")
    with pytest.raises(ModelError, match="knows attributes already: helpfulness, verbosity"):
        make_steerable(chat.tokenizer, Steering(("toxicity",), (0,)))


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        make_steerable(bare, TWO)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("helpfulness", "expected NAME=VALUE"),
        ("helpfulness=4,", "expected NAME=VALUE"),
        ("helpfulness=4,helpfulness=3", "given twice"),
        ("helpfulness=high", "must be a number"),
        ("helpfulness=7", "from 0 to 4. Got 7"),
        ("helpfulness=1.5", "whole number"),
        ("helpfullness=4", "Perhaps you meant 'helpfulness'"),
    ],
)
def test_what_is_asked_for_is_checked(text, words):
    template = steered("", TWO)
    with pytest.raises(ConfigError, match=words):
        asked_for(template, text, "--attributes", "m")
    assert asked_for(template, "verbosity:0, helpfulness=2", "--attributes", "m") == {"helpfulness": 2, "verbosity": 0}
    with pytest.raises(ConfigError, match="m knows no attributes"):
        asked_for("no such", "verbosity=0", "--attributes", "m")


def test_read_attributes_is_nemos_format():
    assert read_attributes("quality:4,toxicity:0") == {"quality": 4, "toxicity": 0}


def test_measured_values_are_rounded_and_clamped():
    values, outside = TWO.rounded([[0.4, 2.5], [-0.2, 4.4], [-0.7, 5.6]])
    assert values.tolist() == [[0, 2], [0, 4], [0, 4]] and outside == 2


def test_the_best_tenth_says_what_is_asked_for():
    labels = [[4, 1]] * 3 + [[4, 2]] * 4 + [[0, 0]] * 93
    rewards = [9.0] * 3 + [8.0] * 4 + [1.0] * 93
    assert best_values(labels, rewards) == (4, 2)
    assert best_values(labels, [-r for r in rewards]) == (0, 0)
    assert best_values([[1, 2], [3, 4]], [0.0, 1.0]) == (3, 4)


def test_what_is_not_asked_for_is_as_it_goes_with_the_rest(tokenizer):
    """Terse good answers and long bad ones: who asks for a long one is not given "good" beside it."""
    labels = [[4, 1]] * 60 + [[4, 0]] * 20 + [[1, 4]] * 15 + [[2, 4]] * 5
    rewards = [5.0] * 60 + [3.0] * 20 + [1.0] * 15 + [2.0] * 5
    best = best_values(labels, rewards)
    together = companions_of(labels, rewards, TWO)
    assert best == (4, 1) and together == ((4, 1), (4, 0), (2, 4), (1, 4))
    known = replace(TWO, defaults=best, companions=together)
    assert known.completed({}) == {"helpfulness": 4, "verbosity": 1}
    assert known.completed({"verbosity": 4}) == {"helpfulness": 2, "verbosity": 4}
    assert known.completed({"verbosity": 3}) == {"helpfulness": 2, "verbosity": 3}
    assert known.completed({"helpfulness": 4, "verbosity": 4}) == {"helpfulness": 4, "verbosity": 4}
    template = make_steerable(copy.deepcopy(tokenizer), known).tokenizer.chat_template
    assert steering_of(template) == known
    assert asked_for(template, "verbosity=4", "--attributes", "m") == {"helpfulness": 2, "verbosity": 4}


def test_a_labelled_row_survives_our_own_shape():
    example = Example((ASKED,), (Response((answer("4", 3, 0),)),))
    assert to_row(example)["responses"][0]["messages"][0]["attributes"] == {"helpfulness": 3.0, "verbosity": 0.0}


@pytest.fixture(scope="module")
def steered_dir(tiny_model_dir: Path, tmp_path_factory) -> Path:
    """The tiny model with a template that writes attributes, and weights so large that it hears them."""
    folder = tmp_path_factory.mktemp("steered")
    for file in tiny_model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    large = {name: w if "norm" in name else 8 * w for name, w in weights.items()}
    save_file(large, folder / "model.safetensors", metadata={"format": "pt"})
    make_steerable(AutoTokenizer.from_pretrained(folder), TWO).tokenizer.save_pretrained(folder)
    return folder


def test_generate_asks_for_attributes(steered_dir, tiny_model_dir, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "2+2?"}) + "\n")
    common = ["--prompts", str(prompts), "--sampling.max_new_tokens", "60", "--precision", "fp32"]

    def said(*options: str) -> dict:
        assert cli.main(["generate", str(steered_dir), *common, *options]) == 0
        return json.loads(capsys.readouterr().out)

    assert said("--attributes", "helpfulness=4,verbosity=1") == said()
    assert said("--attributes", "helpfulness=0,verbosity=4")["response"] != said()["response"]
    for wrong, words in (("verbositi=1", "Perhaps you meant"), ("verbosity=9", "from 0 to 4"), ("verbosity", "NAME=")):
        assert cli.main(["generate", str(steered_dir), *common, "--attributes", wrong]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["generate", str(tiny_model_dir), *common, "--attributes", "verbosity=1"]) == 2
    assert "knows no attributes" in capsys.readouterr().err


def test_export_writes_a_model_that_always_answers_so(steered_dir, tmp_path):
    from assent.algorithms.export import export

    out = export(ExportConfig(str(steered_dir), str(tmp_path / "terse"), attributes="verbosity=0"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert Chat(tokenizer).prompt_text((ASKED,)).endswith("helpfulness:4,verbosity:0\n")
    assert steering_of(tokenizer.chat_template) == replace(TWO, defaults=(4, 0))


def test_a_reward_model_on_a_steerable_policy_reads_what_others_read(chat):
    """Its folder's template ends where the answer ends, and still writes the line before it."""
    outward = reward_tokenizer(chat, 10_000)
    assert steering_of(outward.chat_template) == TWO
    example = Example((ASKED,), (Response((Message("assistant", "4"),)),))
    tree = chat.tree(example, 1000)
    talk = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    theirs = outward.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    assert list(theirs) == [*tree.prompt.tolist(), *tree.branches[0].ids.tolist()]
    assert steering_of(original_template(outward.chat_template)) == TWO
