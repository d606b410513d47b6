"""Batch answers and the conversation, with an engine whose answers are known."""

from __future__ import annotations

import dataclasses
import io
import json
import resource

import numpy as np
import pytest
import torch

from assent.config import GenerateConfig, SamplingConfig
from assent.data.chat import Chat
from assent.data.formats import load_examples, to_row
from assent.data.formats.native import native
from assent.data.jsonl import write_rows
from assent.data.records import Example, Message
from assent.distributed import World
from assent.errors import DataError, ModelError, OutputError, RunFolderError
from assent.rollout import chat as module
from assent.rollout.answering import Counts, answered, asked, parts_of, sampled_parts
from assent.rollout.engine import Completion


class Parrot:
    """Answers "ok N", N being the number of prompts seen before; remembers what it was asked."""

    def __init__(self, chat: Chat, limit: int = 10_000):
        self.chat, self.limit, self.asked, self.calls = chat, limit, [], []

    def generate(self, prompts, n, sampling, seed, first=0):
        self.calls.append((len(prompts), n, seed, first))
        if any(len(prompt) > self.limit for prompt in prompts):
            raise ModelError("too long")
        groups = []
        for prompt in prompts:
            text = f"ok {len(self.asked)}"
            self.asked.append(self.chat.tokenizer.decode(prompt))
            ids = np.array([*self.chat.tokenizer.encode(text, add_special_tokens=False), *self.chat.eos_ids])
            groups.append([Completion(ids, np.zeros(len(ids), np.float32), finished=True)] * n)
        return groups

    def update_weights(self, state_dict):
        raise AssertionError


@pytest.fixture
def chat(tokenizer) -> Chat:
    return Chat(tokenizer)


def talk(chat: Chat, lines: str, engine: Parrot | None = None, **options) -> tuple[str, Parrot]:
    engine = engine or Parrot(chat)
    out = io.StringIO()
    module.converse(chat, engine, GenerateConfig(model="m", **options), io.StringIO(lines), out)
    return out.getvalue(), engine


def test_a_conversation_keeps_its_history(chat):
    out, engine = talk(chat, "hello\n\nand now?\n/exit\nnever read\n", system="Be kind.")
    assert out == "ok 0\nok 1\n"
    assert engine.asked[1] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\nok 0<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [call[3] for call in engine.calls] == [0, 1]  # another turn, other random numbers


def test_reset_forgets_and_system_starts_anew(chat):
    _, engine = talk(chat, "one\n/reset\ntwo\n/system Be brief.\nthree\n/reset\nfour\n/system\nfive\n", system="S")
    assert [text.count("<|im_start|>user") for text in engine.asked] == [1] * 5
    assert "system\nS<" in engine.asked[1]
    assert "system\nBe brief.<" in engine.asked[2] and "system\nBe brief.<" in engine.asked[3]
    assert "system" not in engine.asked[4]


def test_unknown_commands_print_help_and_control_tokens_stay_text(chat):
    out, engine = talk(chat, "/what\n<|im_end|>\n")
    assert "/reset" in out and len(engine.asked) == 1
    assert engine.calls == [(1, 1, 0, 0)]
    ids = chat.prompt_ids((Message("user", "<|im_end|>"),))
    assert list(ids).count(next(iter(chat.eos_ids))) == 1  # the template's own


def test_a_turn_that_cannot_be_answered_is_forgotten(chat):
    out, engine = talk(chat, "x " * 200 + "\nhi\n", Parrot(chat, limit=60))
    assert out.splitlines()[0].startswith("error: too long")
    assert "x x" not in engine.asked[0]


ALONE = World(0, 1, 0, torch.device("cpu"))


def questions(chat: Chat, number: int):
    return asked(chat, [Example(prompt=(Message("user", f"q{i}"),)) for i in range(number)], 1000)[0]


def test_rows_of_a_batch(chat):
    config = GenerateConfig(model="m", prompts="p", seed=5, sampling=SamplingConfig(max_batch=2))
    engine = Parrot(chat)
    rows = list(module.answer(chat, engine, questions(chat, 40), config, ALONE))
    assert [row["response"] for row in rows] == [f"ok {i}" for i in range(40)]
    assert rows[3]["prompt"] == [{"role": "user", "content": "q3"}]
    assert rows[0]["finished"] is True and rows[0]["tokens"] == len(chat.tokenizer.encode("ok 0")) + 1
    # the numbers of a prompt do not depend on its part
    assert engine.calls == [(8, 1, 5, start) for start in range(0, 40, 8)]


def test_several_answers_stand_in_one_row_that_is_read_again(chat, tmp_path):
    config = GenerateConfig(model="runs/dpo", prompts="p", answers=3)
    rows = list(module.answer(chat, Parrot(chat), questions(chat, 2), config, ALONE))
    write_rows(rows, str(tmp_path / "a.jsonl"))
    loaded = load_examples(tmp_path / "a.jsonl")
    assert loaded.format == "assent" and not loaded.problems
    first, second = loaded.examples
    assert [response.text for response in second.responses] == ["ok 1"] * 3
    assert {response.source for response in first.responses} == {"dpo"}
    assert first.meta["finished"] == [True] * 3 and first.meta["tokens"] == [rows[0]["meta"]["tokens"][0]] * 3


def test_parts_cover_every_prompt_whatever_the_number_of_ranks():
    for prompts, answers, batch in ((1, 1, 64), (40, 1, 2), (1000, 4, 64), (7, 100, 2), (100_000, 8, 64)):
        parts = parts_of(prompts, answers, batch)
        assert [index for part in parts for index in range(part.start, part.stop)] == list(range(prompts))
        assert all(1 <= part.stop - part.start <= max(1, 16 * batch // answers) for part in parts)


def test_parts_that_are_done_are_not_sampled_again(chat):
    engine = Parrot(chat)
    found = list(sampled_parts(engine, questions(chat, 20), 1, SamplingConfig(max_batch=1), 3, ALONE, {0, 2}))
    assert [number for number, _, _ in found] == [1, 3, 4]
    assert [start for *_, start in engine.calls] == [4, 12, 16]


def test_what_answers_are_not_is_counted(chat):
    """An answer without text, one that was cut off, and one whose text is other tokens when it is read again."""
    encode = chat.tokenizer.encode
    (one,) = questions(chat, 1)
    end = [*chat.eos_ids]
    whole, split = encode("The", add_special_tokens=False), [encode(x, add_special_tokens=False)[0] for x in "The"]
    assert len(whole) < len(split), "the tokenizer must have a token of several letters"
    drawn = [end, whole, [*whole, *end], [*split, *end]]
    group = [Completion(np.array(ids), np.zeros(len(ids), np.float32), ids[-1:] == end) for ids in drawn]
    (example,), counts = answered(chat, [one], [group], "policy")
    assert counts == Counts(answers=3, empty=1, unfinished=1, reread=1, tokens=sum(map(len, drawn)))
    assert [response.finished for response in example.responses] == [False, True, True]
    assert example.meta["tokens"] == [len(ids) for ids in drawn[1:]]
    assert len(counts.sentences()) == 3 and not Counts(answers=3).sentences()
    # what was cut off is trained as it was sampled, without an end
    tree = chat.tree(example, 100)
    assert tree.branches[0].ids.tolist() == whole and tree.branches[0].trained.all()
    assert tree.branches[1].ids.tolist() == [*whole, *end]
    assert native(to_row(example), example.origin) == example


def test_prompts_that_leave_no_room_are_named(chat):
    examples = [Example(prompt=(Message("user", text),)) for text in ("hi", "x " * 200)]
    found, (problem,) = asked(chat, examples, 60)
    assert [one.example for one in found] == examples[:1] and "leave room for an answer" in problem.reason


def test_prompts_from_a_file_to_a_file(tiny_model_dir, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Say hi"}\n' * 2 + '{"prompt": "Bye"}\n')
    out = tmp_path / "new" / "answers.jsonl"
    config = GenerateConfig(
        model=str(tiny_model_dir),
        prompts=str(prompts),
        out=str(out),
        system="Be kind.",
        limit=2,
        precision="fp32",
        sampling=SamplingConfig(max_new_tokens=5),
    )
    module.generate(config)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2
    assert rows[0]["prompt"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say hi"}]
    assert 1 <= rows[0]["tokens"] <= 5 and not (tmp_path / "new" / "answers.jsonl.part").exists()

    module.generate(dataclasses.replace(config, out=None))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows

    with pytest.raises(RunFolderError, match="exists already"):
        module.generate(config)
    with pytest.raises(DataError):
        module.generate(dataclasses.replace(config, out=None, prompts=str(tmp_path / "none.jsonl")))


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("folder", "is a folder. Choose another name."),
        ("file", "exists already. Choose another name."),
        ("dangling", "exists already"),
        ("file/answers.jsonl", "cannot be written: a file is in the way"),
        ("x" * 253, ".part cannot be written: File name too long"),
        ("blocked", "blocked.part cannot be written: it is a folder"),
    ],
)
def test_places_for_answers_are_tried_before_a_model_is_loaded(out: str, reason: str, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "blocked.part").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    config = GenerateConfig(model="no/such/model", prompts="no/such/prompts", out=str(tmp_path / out))
    with pytest.raises(RunFolderError) as caught:
        module.generate(config)
    assert str(caught.value).startswith(f"--out {tmp_path / out}") and reason in str(caught.value)


def test_answers_that_fit_are_kept_where_the_rest_does_not(tmp_path):
    """A file may be so long here; what was written of the row that does not fit is taken back."""
    rows = [{"response": "x" * 100}] * 5
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, before[1]))
    try:
        with pytest.raises(
            OutputError, match=r"a\.jsonl\.part cannot be written: File too large.* 2 answers are in it"
        ):
            write_rows(rows, str(tmp_path / "a.jsonl"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [json.loads(line) for line in (tmp_path / "a.jsonl.part").read_text().splitlines()] == rows[:2]
