"""A judge that is run here: a tiny model, whose own words are garbage, and whose letters have probabilities."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from assent.cli import main
from assent.config import JudgeConfig, RemoteConfig
from assent.data.records import Example, Message, Origin
from assent.errors import ConfigError, ModelError
from assent.rewards.group import Group
from assent.rewards.judge.ask import CUT, STOPPED, Answer, Question
from assent.rewards.judge.build import judge_reward
from assent.rewards.judge.folder import REFUSED, TOO_LONG, FolderJudge, Place
from assent.rewards.judge.prompt import Form

PLACE = Place(torch.device("cpu"), precision="fp32", max_batch=2, micro_tokens=200)
FORM = Form("[[", "]]")


def questions(*texts: str, seed: int = 0) -> list[Question]:
    return [Question((Message("system", "Judge."), Message("user", text)), seed) for text in texts]


def no_keep(number: int, answer: Answer) -> None:
    pass


@pytest.fixture(scope="module")
def writer(tiny_model_dir: Path) -> FolderJudge:
    return FolderJudge("judge", str(tiny_model_dir), PLACE, max_tokens=6)


def test_what_it_writes_is_the_likeliest(writer: FolderJudge, tiny_model_dir: Path) -> None:
    asked = questions("red?", "What is the capital of France?", "12 + 30")
    kept: dict[int, Answer] = {}
    answers = writer.ask(asked, kept.__setitem__, math.inf)
    assert [kept[number] for number in range(3)] == answers
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for question, answer in zip(asked, answers, strict=True):
        ids = writer.chat.prompt_ids(question.messages).tolist()
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in writer.chat.eos_ids:
                break
        prompt, made = ids[:-6], ids[-6:]
        finished = made[-1] in writer.chat.eos_ids
        assert answer == Answer(writer.chat.decode(made, prompt, finished=finished), STOPPED if finished else CUT)


def test_what_is_drawn_depends_on_the_question_alone(tiny_model_dir: Path) -> None:
    judge = FolderJudge("judge", str(tiny_model_dir), PLACE, temperature=1.0, max_tokens=6)
    one, two, three = judge.ask(questions("red?", "green?", "blue?"), no_keep, math.inf)
    assert judge.ask(questions("blue?", "red?"), no_keep, math.inf) == [three, one]
    assert judge.ask(questions("red?", "green?", seed=1), no_keep, math.inf) != [one, two]


def test_what_is_too_long_or_refused(writer: FolderJudge) -> None:
    assert writer._limit == 512
    odd = Question((Message("assistant", "I am first."), Message("user", "x")), 0)
    found = writer.ask([*questions("red? " * 600), odd, *questions("red?")], no_keep, math.inf)
    assert found[0] == TOO_LONG and isinstance(found[2], Answer)
    assert found[1] == REFUSED or isinstance(found[1], Answer)  # as the template has it
    assert writer.ask([], no_keep, math.inf) == []


def test_its_identity_is_its_content(writer: FolderJudge, tiny_model_dir: Path) -> None:
    same = FolderJudge("other", str(tiny_model_dir), replace(PLACE, max_batch=7), max_tokens=6)
    assert same.identity == writer.identity
    assert writer.identity["model"].keys() == {"weights", "configuration", "tokenizer"}  # type: ignore[attr-defined]
    hot = FolderJudge("judge", str(tiny_model_dir), PLACE, max_tokens=6, temperature=0.5)
    assert hot.identity != writer.identity


def test_letters_against_float64(tiny_model_dir: Path, tmp_path: Path) -> None:
    """P(A) / (P(A) + P(B)) of the whole answers "[[A]]" and "[[B]]", with the end of the turn, each order alone."""
    judge = FolderJudge("judge", str(tiny_model_dir), PLACE, form=FORM, letters="AB")
    asked = questions("red or green?", "What is the capital of France?", "12 + 30", "boil an egg")
    answers = judge.ask(asked, no_keep, math.inf)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).double()
    shares = []
    for question, answer in zip(asked, answers, strict=True):
        assert isinstance(answer, Answer) and answer.chances is not None
        prompt = judge.chat.prompt_ids(question.messages).tolist()
        for letter in "AB":
            text = judge.chat.tokenizer.encode(f"[[{letter}]]", add_special_tokens=False)
            whole = [*prompt, *text, min(judge.chat.eos_ids)]
            with torch.no_grad():
                logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            want = sum(float(logs[place - 1, whole[place]]) for place in range(len(prompt), len(whole)))
            assert answer.chances[letter] == pytest.approx(want, abs=1e-4)
        shares.append(1 / (1 + math.exp(answer.chances["B"] - answer.chances["A"])))
    assert len(set(shares)) == 4
    assert judge.ask(questions("red " * 600), no_keep, math.inf) == [TOO_LONG]
    example = Example((Message("user", "red?"),), origin=Origin("rows.jsonl", 1))
    group = Group(example, ("green", "blue", "red"), (True,) * 3, (1,) * 3)
    config = JudgeConfig(prompt="pairwise-letter", soft=True, cache=str(tmp_path))
    source = judge_reward(f"model={tiny_model_dir}", "judge", config, RemoteConfig(), PLACE)
    scores = source.score([group])
    assert not scores.failures and scores.values.sum() == pytest.approx(1.5) and np.ptp(scores.values) > 0
    assert all(abs(scores.values - 0.5) < 0.5) and len(scores.metrics["consistency"]) == 3


def test_places_that_cannot_be(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"reads at most 512 tokens. Got --judge.max_tokens 512, which leaves no room"
    ):
        FolderJudge("judge", str(tiny_model_dir), PLACE, max_tokens=512)
    for spec, error, words in (
        ("http://me:word@host", ConfigError, "--rewards.judges: expected openai=URL or model=FOLDER"),
        ("openai=", ConfigError, "--rewards.judges: expected openai=URL or model=FOLDER"),
        ("opnai=http://host", ConfigError, "there is no kind of judge 'opnai'. Perhaps you meant 'openai'"),
        ("openai=ftp://host", ConfigError, "--rewards.judges: judge: the judge must be http://HOST:PORT"),
        (f"model={tmp_path / 'none'}", ModelError, "there is no such folder"),
    ):
        with pytest.raises(error) as raised:
            judge_reward(spec, "judge", JudgeConfig(), RemoteConfig(), PLACE)
        assert words in str(raised.value) and "word@" not in str(raised.value)
    with pytest.raises(ConfigError, match="--judge.key_env: the environment variable NO_SUCH_KEY is not set"):
        judge_reward("openai=http://h", "judge", JudgeConfig(key_env="NO_SUCH_KEY"), RemoteConfig(), PLACE)


def test_a_run_whose_judge_says_nothing_that_can_be_read(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    """Not one verdict is guessed: the run stops, says why, and saves."""
    (tmp_path / "short.yaml").write_text(
        "mode: rating\nscale: [1, 10]\nform: '[[{verdict}]]'\nuser: |\n  <q {{ fence }}>\n  {{ prompt }}\n  </q>\n"
        "  <answer {{ fence }}>\n  {{ answer }}\n  </answer>\n"
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "red?"}\n{"prompt": "green?"}\n')
    flags = {
        "model.path": tiny_model_dir,
        "model.precision": "fp32",
        "data.train": tmp_path / "prompts.jsonl",
        "data.max_length": 64,
        "out": tmp_path / "run",
        "train.batch_size": 2,
        "train.max_steps": 1,
        "train.threads": 1,
        "rollout.responses": 2,
        "sampling.max_new_tokens": 4,
        "rewards.judges": f"model={tiny_model_dir}",
        "judge.prompt": tmp_path / "short.yaml",
        "judge.max_tokens": 4,
        "judge.cache": tmp_path / "cache",
    }
    assert main(["grpo", *(text for name, value in flags.items() for text in (f"--{name}", str(value)))]) == 2
    said = capsys.readouterr().err
    # what it wrote is garbage, and has not even an end after four tokens
    assert "rollout 1: not one of 4 answers could be scored (judge: what it wrote was cut off: 4)." in said
    assert "Traceback" not in said
    assert "--resume auto" in said and not (tmp_path / "run" / "model").exists()
