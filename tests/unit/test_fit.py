"""Rows that are longer than the limit: dropped, refused, or without their first turns; counted and said."""

from __future__ import annotations

import io
import json
import shlex
import time
import unicodedata

import pytest
from rich.console import Console

from assent import cli
from assent.config import DataConfig, InspectConfig
from assent.data import dataset, extent
from assent.data.chat import Chat
from assent.data.dataset import prepare, prompt_hash, see_all, summary
from assent.data.fit import fitted
from assent.data.formats import load_examples
from assent.data.inspect import inspect, render
from assent.data.records import Example, Message, Origin, Response, RowError
from assent.data.views import pair_view, prompt_view, sft_view
from assent.errors import DataError


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer)


@pytest.fixture
def write(tmp_path):
    def make(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return make


def conversation(exchanges: int, system: bool = True, tool: bool = False) -> tuple[Message, ...]:
    turns = [Message("system", "Be brief.")] if system else []
    for number in range(exchanges):
        turns += [Message("user", f"Egg {number}? " + "egg " * 20), Message("assistant", f"Yes {number}.")]
    return (*turns, Message("user", "And the last egg?"))


def example(prompt, answer="In seven minutes.") -> Example:
    return Example(prompt, (Response((Message("assistant", answer),)),), origin=Origin("f", 1))


def test_first_turns_are_taken_off_whole_until_the_row_fits(chat):
    whole = example(conversation(4))
    size = chat.tree(whole, 10_000).num_tokens
    for limit in range(40, size + 1):
        fit = fitted(chat, [whole], limit, "truncate_prompt_left")
        (tree,), (kept,) = fit.trees, fit.examples
        cut = [n for n in range(5) if kept.prompt == (whole.prompt[0], *whole.prompt[1 + 2 * n :])]
        assert len(cut) == 1  # the system message, then whole exchanges
        assert kept.responses == whole.responses and tree.num_tokens <= limit
        assert tree.prompt.tolist() == chat.prompt_ids(kept.prompt).tolist()
        assert fit.shortened == (cut[0] > 0) == (limit < size)
        if cut[0] > 0:  # one turn more would not have fitted
            longer = example((whole.prompt[0], *whole.prompt[1 + 2 * (cut[0] - 1) :]))
            assert chat.tree(longer, 10_000).num_tokens > limit


def test_what_stays_too_long_is_dropped_and_answers_are_cut_only_then(chat):
    single = example((Message("user", "egg " * 300),))
    long_answer = example(conversation(2), "egg " * 200)
    fit = fitted(chat, [single, long_answer, example(conversation(0))], 150, "truncate_prompt_left")
    assert [tree.key for tree in fit.trees] == [1, 2] and fit.long == 1 and fit.shortened == 1
    assert fit.examples[0].prompt == conversation(0) and int(fit.trees[0].branches[0].ids[-1]) not in chat.eos_ids
    (problem,) = fit.problems
    assert "no room for an answer within 150" in problem.reason and not problem.fault
    assert fit.sizes[0][0] > 300 < len(chat.tree(long_answer, 10_000).prompt) + fit.sizes[1][1][0] + 100


@pytest.mark.parametrize(("long", "fault"), [("drop", False), ("refuse", True)])
def test_drop_and_refuse(chat, long, fault):
    rows = [example(conversation(8)), example(conversation(0))]
    fit = fitted(chat, rows, 100, long)
    assert [tree.key for tree in fit.trees] == [1] and fit.examples == rows[1:]
    assert [problem.fault for problem in fit.problems] == [fault] and (fit.long, fit.shortened) == (1, 0)


def rows():
    short = [{"prompt": f"Is egg {i} red?", "chosen": "No, it is not.", "rejected": "Yes."} for i in range(18)]
    long = {"prompt": "egg " * 200, "chosen": "a", "rejected": "b"}
    return [*short, long, {**short[0], "chosen": ""}, {**short[1], "prompt": "Why?", "rejected": "egg " * 200}]


def test_a_run_says_in_one_line_what_it_uses(chat, write):
    file = write(rows())
    report = prepare(DataConfig(file, max_length=100, max_bad=0.1, eval_fraction=0.2), chat, pair_view).report
    train, held = report["train"]["examples"], report["eval"]["examples"]
    assert train + held == 19 and held > 0
    assert summary(report) == (
        f"{file}: 19 of 21 rows used, 1 bad, 1 too long; 1 answer cut at 100 tokens. "
        f"{train} examples to train on, {held} held out."
    )
    refused = prepare(DataConfig(file, max_length=100, max_bad=0.1, long="refuse"), chat, pair_view).report
    assert "19 of 21 rows used, 1 bad, 1 too long;" in summary(refused)
    ties = [{"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": i % 2} for i in range(4)]
    assert "2 of 4 rows used, 2 of no use here." in summary(prepare(DataConfig(write(ties)), chat, pair_view).report)


def test_the_command_that_shows_all_problems_repeats_every_option(chat, write, capsys):
    file = write([{"q": row["prompt"], **row} for row in rows()], "my rows.jsonl")
    config = DataConfig(
        file, max_length=99, long="refuse", limit=19, split="test", format="preference", columns={"prompt": "q"}
    )
    with pytest.raises(DataError) as error:
        prepare(config, chat, pair_view)
    command = str(error.value).rpartition("See all of them: ")[2]
    assert "--data.long drop" in str(error.value)
    words = shlex.split(command)
    assert words[:3] == ["assent", "data", file] and command == see_all(config, file, chat)
    options = {word: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}
    assert options == {
        "--problems": "0",
        "--model": "MODEL",
        "--format": "preference",
        "--split": "test",
        "--max_length": "99",
        "--long": "refuse",
        "--limit": "19",
        "--columns": "prompt:q",
    }
    at = words.index("--model")
    cli.main([*words[1:at], *words[at + 2 :]])
    assert "19 rows" in capsys.readouterr().out


def test_assent_data_tells_what_training_will_do(write, tiny_model_dir, chat):
    file = write(rows())
    for long in ("drop", "truncate_prompt_left"):
        found = inspect(InspectConfig(file, model=str(tiny_model_dir), max_length=100, long=long))
        trained = prepare(DataConfig(file, max_length=100, long=long, max_bad=0.1), chat, pair_view)
        (use,) = [use for use in found.uses if use.commands == "reward, dpo"]
        assert (use.examples, use.of) == (len(trained.train), 20) == (19, 20)
        out = io.StringIO()
        render(found, Console(file=out, width=120))
        assert "19 of 20 examples" in out.getvalue()
    assert inspect(InspectConfig(file, limit=5)).rows == 5
    shortened = write([{"prompt": [{"role": t.role, "content": t.content} for t in conversation(4)]}], "long.jsonl")
    found = inspect(InspectConfig(shortened, model=str(tiny_model_dir), max_length=100, long="truncate_prompt_left"))
    assert found.shortened == 1 and "Be brief." in found.previews[0][1][0].text


def test_assent_data_names_the_columns_that_are_kept(write):
    found = inspect(InspectConfig(write([{"prompt": "q", "source": "web", "answer": "4"}])))
    assert found.kept == ("source", "answer")
    out = io.StringIO()
    render(found, Console(file=out, width=120))
    assert "source, answer (columns for rewards, rules and the curriculum)" in out.getvalue()


# Prompts that are both trained on and held out.


def test_overlap_counts_prompts_that_differ_only_in_writing(chat, write, caplog):
    train = write([{"prompt": text} for text in ("How is egg 1?", "Caf\u00e9?", "Egg 3?", "Egg 4?")], "train.jsonl")
    held = write([{"prompt": text} for text in ("How  is\negg 1? ", "CAFE\u0301?", "Egg 3?", "Egg 5?")], "eval.jsonl")
    report = prepare(DataConfig(train, eval=held), chat, prompt_view).report
    assert (report["overlap"], report["overlap_near"]) == (1, 2)
    assert f"1 prompts of {held} are also trained on, and 2 more but for white space" in caplog.text


def test_prompts_that_differ_in_tools_are_two_and_plain_ones_keep_their_hash():
    plain = Example((Message("user", "Hi"),))
    assert prompt_hash(plain) == pytest.approx(0.84164496037, abs=1e-9)
    same = Example((Message("user", "Hi"),), template_kwargs={"enable_thinking": True}, meta={"a": 1})
    assert prompt_hash(same) == prompt_hash(plain)
    others = [
        Example((Message("user", "Hi"),), tools="[{}]"),
        Example((Message("user", "Hi", name="Ann"),)),
        Example((Message("user", "Hi"), Message("assistant", "a"), Message("user", "b"))),
        Example((Message("user", "Hi"), Message("assistant", "a", "why"), Message("user", "b"))),
    ]
    assert len({prompt_hash(each) for each in [plain, *others]}) == 5


def test_prompts_as_messages_for_methods_that_sample(chat, write):
    turns = [
        {"role": "user", "content": "Egg?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    file = write([{"messages": turns, "ground_truth": "4"}])
    assert prepare(DataConfig(file), chat, prompt_view).train_examples[0].meta == {"ground_truth": "4"}
    with pytest.raises(DataError, match="The first row: no answer: the row ends with a user turn"):
        prepare(DataConfig(file), chat, sft_view)
    assert load_examples(file).problems == []


# ---------------------------------------------------------------------------------------------------- characters


def test_a_row_that_is_too_long_by_its_characters_is_never_tokenised(chat, monkeypatch):
    limit = extent.SLACK * max(map(len, chat.tokenizer.get_vocab())) * 100
    exact = example((Message("user", "egg "),), "x" * (limit - 4))
    over = example((Message("user", "egg "),), "x" * (limit - 3))
    long_prompt = example((*conversation(3, system=False)[:-1], Message("user", "y" * limit)))
    monkeypatch.setattr(chat, "_longest_token", max(map(len, chat.tokenizer.get_vocab())), raising=False)
    for policy in ("drop", "refuse", "truncate_prompt_left"):
        fit = fitted(chat, [over, exact, long_prompt, example(conversation(0))], 100, policy)
        assert [tree.key for tree in fit.trees] == [1, 3] and fit.long == 2
        assert all(problem.fault == (policy == "refuse") for problem in fit.problems)
        assert fit.problems[0].reason.startswith(f"has {limit + 1:,} characters: 100 tokens (--data.max_length) hold")
    with pytest.raises(RowError, match="characters: 100 tokens"):
        chat.tree(over, 100)


def test_turns_are_taken_off_a_row_that_is_too_long_by_its_characters_as_if_it_were_tokenised(chat, monkeypatch):
    first = (Message("user", "egg " * 5000), Message("assistant", "Yes."))
    whole = example((*first, *conversation(3, system=False)))
    bounded = fitted(chat, [whole], 100, "truncate_prompt_left")
    monkeypatch.setattr(Chat, "too_long", lambda *_: None)
    unbounded = fitted(chat, [whole], 100, "truncate_prompt_left")
    assert bounded.examples == unbounded.examples and bounded.shortened == unbounded.shortened == 1
    assert bounded.trees[0].prompt.tolist() == unbounded.trees[0].prompt.tolist()


def test_too_many_turns_are_a_problem_row(chat):
    turns = (Message("user", "a"), Message("assistant", "b")) * 3000
    fit = fitted(chat, [example((*turns, Message("user", "a")))], 10**6, "refuse")
    assert "has 6,002 turns; at most 4,096 are read" in fit.problems[0].reason


def test_large_rows_are_encoded_a_few_at_a_time(chat, monkeypatch):
    from assent.data import chat as module

    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 500)
    rows = [example((Message("user", "egg " * n),)) for n in range(1, 60)]
    assert max(end - start for start, end in module._chunks(rows)) < 20
    assert [tree.key for tree in chat.trees(rows, 500)[0]] == list(range(59))


def test_accents_without_end_are_compared_in_no_time():
    long = (("user", "a" + "\u0301\u0327" * 100_000 + " É b"),)
    start = time.process_time()
    assert dataset._loosely(long)[0][1].endswith(" é b")
    assert time.process_time() - start < 5
    assert dataset._composed("e\u0301 \ufb01" * 900) == unicodedata.normalize("NFKC", "e\u0301 \ufb01" * 900)
