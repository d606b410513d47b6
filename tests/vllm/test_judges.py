"""Judges on a real vLLM, on a server as anybody starts it and inside the run: the verdicts and the probabilities of
letters that the torch engine gives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from assent.config import JudgeConfig, RemoteConfig
from assent.data.chat import Chat
from assent.data.records import Example, Message, Origin
from assent.models.init import train_tokenizer
from assent.rewards.group import Group, Scores
from assent.rewards.judge.ask import Answer, Question
from assent.rewards.judge.build import judge_reward
from assent.rewards.judge.folder import FolderJudge, Place
from assent.rewards.judge.openai import OpenAIJudge
from assent.rewards.judge.source import CACHED, JudgeReward

from .conftest import MEMORY, RealServer, policy

TEXT = ("What is the capital of France? Paris. One two three, be brief. <user> <assistant> [1] 42 A B",) * 3
ASKED = [
    Question((Message("system", "Be brief."), Message("user", text)), 0)
    for text in ("What is the capital of France?", "One two three", "42")
]
TOKENS = 6
PROMPT = """\
mode: pairwise
user: |
  <user>
  {{ prompt }}
  </user>
  <1>
  {{ answer_a }}
  </1>
  <2>
  {{ answer_b }}
  </2>
form: "{verdict}"
"""
GROUPS = [
    Group(Example((Message("user", text),), origin=Origin("rows.jsonl", row)), answers, (True,) * 3, (1,) * 3)
    for row, (text, answers) in enumerate(
        [("capital?", ("Paris.", "42", "One two")), ("three?", ("be brief", "two three", "France"))], 1
    )
]


def learnt(model: LlamaForCausalLM, chat: Chat, prompt: str) -> None:
    """Teaches it to answer A or B, and to end there: each with a chance of its own, by the texts' lengths."""
    asked: list[tuple[list[int], float]] = []
    for group in GROUPS:
        for one in group.texts:
            for other in group.texts:
                shown = f"<user>\n{group.example.prompt[0].content}\n</user>\n<1>\n{one}\n</1>\n<2>\n{other}\n</2>"
                ids = chat.prompt_ids((Message("user", shown),)).tolist()
                asked.append((ids, 1 / (1 + np.exp(-(len(one) - len(other)) / 3))))
    a, b = (chat.tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    end, length = chat.tokenizer.eos_token_id, max(len(ids) for ids, _ in asked) + 1
    rows, mask = torch.zeros(2 * len(asked), length, dtype=torch.long), torch.zeros(2 * len(asked), length)
    wants = torch.tensor([share for _, share in asked]).float()
    for place, (ids, _) in enumerate(asked):  # padded on the right: with causal attention nothing sees it
        for half, letter in enumerate((a, b)):
            row = place + half * len(asked)
            rows[row, : len(ids) + 1], mask[row, : len(ids) + 1] = torch.tensor([*ids, letter]), 1
    ends = mask.sum(1).long() - 1
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        logs = model(rows, attention_mask=mask).logits.log_softmax(-1)
        every = torch.arange(len(rows))
        letter, stop = logs[every, ends - 1], logs[every, ends, end]
        first = letter[: len(asked)]
        loss = -(wants * first[:, a] + (1 - wants) * first[:, b]).mean() - stop.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every id of the model is a token: of ids that no token has, only our own engine knows."""
    made, words, model = tmp_path_factory.mktemp("judge"), train_tokenizer(TEXT, 380), policy(5).model
    words.add_tokens([f"<extra {i}>" for i in range(model.config.vocab_size - len(words))])
    (made / "prompt.yaml").write_text(PROMPT)
    model.set_attn_implementation("eager")
    learnt(model, Chat(words), PROMPT)
    model.save_pretrained(made / "model")
    words.save_pretrained(made / "model")
    return made / "model"


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[RealServer]:
    real = RealServer(folder, folder.parent / "log", "--served-model-name judge")
    real.start()
    try:
        real.wait()
        yield real
    finally:
        real.kill()


@pytest.fixture(scope="module")
def inside(folder: Path) -> FolderJudge:
    """vLLM in this process: started once, asked for words and for letters."""
    return FolderJudge("judge", str(folder), place("vllm"), max_tokens=TOKENS)


def place(engine: str) -> Place:
    return Place(torch.device("cpu"), engine, precision="fp32", max_batch=4, memory=MEMORY)


def asked(judge: OpenAIJudge | FolderJudge) -> list[Answer | str]:
    kept: dict[int, Answer] = {}
    answers = judge.ask(ASKED, kept.__setitem__, time.monotonic() + 120)
    assert [kept[number] for number in range(len(ASKED))] == answers
    return answers


def told(answer: Answer | str) -> tuple[str, str]:
    """Without what stands for half a character at the end, which a server keeps back."""
    assert isinstance(answer, Answer)
    return answer.text.rstrip("\ufffd"), answer.ended


def judged(folder: Path, spec: str, cache: Path, engine: str = "torch", **options: Any) -> JudgeReward:
    config = JudgeConfig(
        prompt=str(folder.parent / "prompt.yaml"), model="judge" if spec.startswith("openai") else None,
        max_tokens=TOKENS, engine=engine, cache=str(cache), **options,
    )  # fmt: skip
    return judge_reward(spec, "judge", config, RemoteConfig(retries=1, budget=120.0), place(engine))


def same(one: Scores, other: Scores) -> None:
    np.testing.assert_array_equal(one.values, other.values)
    assert one.columns == other.columns and one.failures == other.failures
    assert {**one.metrics, CACHED: 0} == {**other.metrics, CACHED: 0}


def test_what_is_written(served: RealServer, inside: FolderJudge, folder: Path) -> None:
    own = asked(FolderJudge("judge", str(folder), place("torch"), max_tokens=TOKENS))
    its = asked(OpenAIJudge("judge", served.url, model="judge", max_tokens=TOKENS))
    assert [told(answer) for answer in its] == [told(answer) for answer in own]
    assert asked(inside) == own


def test_verdicts(served: RealServer, inside: FolderJudge, folder: Path, tmp_path: Path) -> None:
    """By every engine the same letters, rewards, and counts of what contradicts itself."""
    here = judged(folder, f"model={folder}", tmp_path / "torch").score(GROUPS)
    same(judged(folder, f"openai={served.url}", tmp_path / "server").score(GROUPS), here)
    within = judged(folder, f"model={folder}", tmp_path / "vllm", "vllm")
    within.judge._engine = inside._writer  # type: ignore[attr-defined]
    same(within.score(GROUPS), here)
    assert not np.isnan(here.values).all() and len(set(here.values[~np.isnan(here.values)])) > 1
    assert here.metrics["unreadable"] == [0.0] * 12


def test_letters(served: RealServer, inside: FolderJudge, folder: Path, tmp_path: Path) -> None:
    """P(A) / (P(A) + P(B)): the server's from the log-probs of the letter that it wrote, the folder's from those of the
    whole answers. Both are those of transformers."""
    torch_judge = judged(folder, f"model={folder}", tmp_path / "torch", soft=True)
    within = judged(folder, f"model={folder}", tmp_path / "vllm", "vllm", soft=True)
    within.judge._engine = inside._writer  # type: ignore[attr-defined]
    there = judged(folder, f"openai={served.url}", tmp_path / "server", soft=True)
    questions = [Question(torch_judge._messages(GROUPS[0], shown), 0) for shown in ((0, 1), (1, 0), (1, 2))]
    model, chat = AutoModelForCausalLM.from_pretrained(folder).eval(), Chat(inside.chat.tokenizer)
    a, b = (chat.tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    end = chat.tokenizer.eos_token_id
    for number, question in enumerate(questions):
        ids = chat.prompt_ids(question.messages).tolist()
        with torch.no_grad():
            logs = {x: model(torch.tensor([[*ids, x]])).logits[0].log_softmax(-1) for x in (a, b)}
        first = {"A": float(logs[a][-2, a]), "B": float(logs[b][-2, b])}
        whole = {"A": first["A"] + float(logs[a][-1, end]), "B": first["B"] + float(logs[b][-1, end])}
        for source, want in ((torch_judge, whole), (within, whole), (there, first)):
            (answer,) = source.judge.ask([question], lambda number, answer: None, time.monotonic() + 60)
            assert isinstance(answer, Answer) and answer.chances == pytest.approx(want, abs=2e-4), number
    here = torch_judge.score(GROUPS)
    assert not here.failures and here.values.std() > 0.1 and 0.02 < here.values.min() and here.values.max() < 0.98
    np.testing.assert_allclose(within.score(GROUPS).values, here.values, atol=1e-4)
    np.testing.assert_allclose(there.score(GROUPS).values, here.values, atol=0.02)  # the end of the turn is not sure
