"""Judges on a real vLLM, on a server as anybody starts it and inside the run: both write what the torch engine does."""

from __future__ import annotations

import json
import math
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from assent.data.records import Message
from assent.models.init import train_tokenizer
from assent.rewards.judge.ask import Answer, Question
from assent.rewards.judge.folder import FolderJudge, Place
from assent.rewards.judge.openai import OpenAIJudge
from assent.rewards.judge.prompt import Form

from .conftest import MEMORY, RealServer, policy

TEXT = ("What is the capital of France? Paris. One two three, be brief. <user> <assistant> [1] 42",) * 3
ASKED = [
    Question((Message("system", "Be brief."), Message("user", text)), 0)
    for text in ("What is the capital of France?", "One two three", "42")
]
TOKENS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every id of the model is a token: of ids that no token has, only our own engine knows."""
    made, words, model = tmp_path_factory.mktemp("judge"), train_tokenizer(TEXT, 380), policy(5).model
    words.add_tokens([f"<extra {i}>" for i in range(model.config.vocab_size - len(words))])
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


def place(engine: str) -> Place:
    return Place(torch.device("cpu"), engine, precision="fp32", max_batch=4, memory=MEMORY)


def asked(judge: OpenAIJudge | FolderJudge) -> list[Answer | str]:
    kept: dict[int, Answer] = {}
    answers = judge.ask(ASKED, kept.__setitem__, time.monotonic() + 120)
    assert [kept[number] for number in range(len(ASKED))] == answers
    return answers


def told(answer: Answer | str) -> tuple[str, str]:
    """Without what stands for half a character at the end, which vLLM keeps back."""
    assert isinstance(answer, Answer)
    return answer.text.rstrip("\ufffd"), answer.ended


def test_a_server_writes_what_the_torch_engine_writes(served: RealServer, folder: Path) -> None:
    own = asked(FolderJudge("judge", str(folder), place("torch"), max_tokens=TOKENS))
    its = asked(OpenAIJudge("judge", served.url, model="judge", max_tokens=TOKENS))
    assert [told(answer) for answer in its] == [told(answer) for answer in own]
    assert len(set(map(told, own))) == len(ASKED)


def test_the_letters_of_a_server(served: RealServer, folder: Path) -> None:
    """What the model would write first, and what is the next likeliest, as the letters of a verdict."""
    body = {
        "model": "judge",
        "messages": [{"role": m.role, "content": m.content} for m in ASKED[0].messages],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    request = urllib.request.Request(
        f"{served.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        place_of = json.load(reply)["choices"][0]["logprobs"]["content"][0]
    words = [other["token"] for other in place_of["top_logprobs"] if other["token"].strip() == other["token"] != ""]
    assert place_of["token"] == words[0], "the seed gives a token without spaces"
    judge = OpenAIJudge("judge", served.url, model="judge", max_tokens=1, form=Form(), letters=words[:2])
    (answer,) = judge.ask(ASKED[:1], lambda number, answer: None, time.monotonic() + 60)
    assert isinstance(answer, Answer) and answer.chances is not None
    torch_judge = FolderJudge("judge", str(folder), place("torch"), max_tokens=1)
    ids = torch.tensor([torch_judge.chat.prompt_ids(ASKED[0].messages).tolist()])
    with torch.no_grad():
        logs = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0, -1].log_softmax(-1)
    best = logs.topk(20)
    for word, chance in answer.chances.items():
        texts = [torch_judge.chat.tokenizer.decode([int(token)]) for token in best.indices]
        assert chance == pytest.approx(float(best.values[texts.index(word)]), abs=1e-4)
    assert len(answer.chances) == 2 and all(math.isfinite(chance) for chance in answer.chances.values())


def test_vllm_inside_the_run_writes_the_same(folder: Path) -> None:
    own = asked(FolderJudge("judge", str(folder), place("torch"), max_tokens=TOKENS))
    assert asked(FolderJudge("judge", str(folder), place("vllm"), max_tokens=TOKENS)) == own
