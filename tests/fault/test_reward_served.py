"""What a vLLM server is asked before training, played by one that answers as it is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.records import Example, Message
from assent.errors import ConfigError
from assent.http import ServerAnswerError
from assent.models.loading import load_tokenizer
from assent.rewards.reading import Reading
from assent.rewards.remote import Server
from assent.rewards.served import ServedModel

from .servers import FakeServer, Handler

EXAMPLES = [Example((Message("user", "1 what?"),))]


class Vllm(FakeServer):
    """A server with that tokenizer; `outputs` are the numbers for each text, `activated` those with activation."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.requests: list[tuple[str, Any]] = []
        self.names, self.longest = ["rm"], 512
        self.outputs, self.activated = [[-0.5], [1.5]], [[0.38], [0.82]]
        self.missing: set[str] = set()
        self.has_template = True
        super().__init__()

    def respond(self, handler: Handler) -> None:
        self.requests.append((handler.path, handler.body))
        reply = None if handler.path in self.missing else self.reply(handler.path, handler.body)
        handler.say(reply or {"error": "no"}, 200 if reply else 404)

    def reply(self, path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": name, "max_model_len": self.longest} for name in self.names]}
        if path == "/tokenize" and "messages" in body:
            if not self.has_template:
                return None
            ids = self.chat.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=True)
            return {"tokens": list(ids["input_ids"])}
        if path == "/tokenize":
            return {"tokens": self.chat.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        if path == "/v1/embeddings":
            return {"data": [{"index": i, "embedding": numbers} for i, numbers in enumerate(self.outputs)]}
        probs = self.activated if body["use_activation"] else self.outputs
        return {"data": [{"index": i, "probs": numbers} for i, numbers in enumerate(probs)]}


@pytest.fixture
def chat(tokenizer) -> Chat:
    return Chat(tokenizer)


@pytest.fixture
def vllm(chat: Chat) -> Iterator[Vllm]:
    server = Vllm(chat)
    yield server
    server.stop()


def served(vllm: Vllm, chat: Chat, own: Chat | None = None, **options: Any) -> ServedModel:
    server = Server(vllm.url, **({"shape": "vllm", "retries": 0, "budget": 20.0} | options))
    return ServedModel("vllm", server, Reading(own or chat, chat, 64))


def test_what_is_asked(vllm: Vllm, chat: Chat, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        served(vllm, chat, model="rm").check(EXAMPLES)
    assert not caplog.records
    paths = [path for path, _ in vllm.requests]
    assert paths == ["/v1/models", "/tokenize", "/tokenize", "/classify", "/classify"]
    _, text, talk, raw, activated = (body for _, body in vllm.requests)
    assert text["add_special_tokens"] is talk["add_special_tokens"] is False
    assert text["model"] == talk["model"] == "rm"
    spelt = chat.tokenizer.decode(raw["input"][0], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert text["prompt"] == spelt and spelt.endswith(chat.tokenizer.eos_token)
    assert [m["role"] for m in talk["messages"]] == ["user", "assistant", "user"] and talk["add_generation_prompt"]
    assert raw == {"model": "rm", "input": raw["input"], "use_activation": False}
    assert activated == raw | {"use_activation": True}
    served(vllm, chat).check(EXAMPLES)
    assert "model" not in vllm.requests[-1][1]


def test_a_server_without_a_chat_template_reads_the_policys_tokens(vllm: Vllm, chat: Chat) -> None:
    vllm.has_template = False
    served(vllm, chat).check(EXAMPLES)


def test_a_head_of_several_numbers_is_none(vllm: Vllm, chat: Chat) -> None:
    vllm.outputs = vllm.activated = [[0.1, 0.2, 0.7]] * 2
    with pytest.raises(ConfigError, match=r"gives 3 numbers for a text \(num_labels 3\), of which none is the reward"):
        served(vllm, chat).check(EXAMPLES)


@pytest.mark.parametrize("shape", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "outputs",
    [
        [["good"], ["bad"]],
        [[None], [None]],
        [[True], [False]],
        [[0.5]],
        [[0.5]] * 3,
        [[0.5], [0.5, 1.0]],
        [0.5, 1.0],
        [],
    ],
)
def test_what_is_no_list_of_numbers_is_refused(vllm: Vllm, chat: Chat, shape: str, outputs: list[Any]) -> None:
    vllm.outputs = vllm.activated = outputs
    with pytest.raises(ServerAnswerError, match=r"answered .*; expected .* \(a sequence classifier\) must be served"):
        served(vllm, chat, shape=shape).check(EXAMPLES)


def test_a_length_that_is_no_number_is_refused(vllm: Vllm, chat: Chat) -> None:
    vllm.longest = "512"  # type: ignore[assignment]
    with pytest.raises(ServerAnswerError, match="/v1/models answered"):
        served(vllm, chat).check(EXAMPLES)


@pytest.mark.parametrize("shape", ["vllm", "sglang"])
def test_a_head_of_several_numbers_needs_a_weight_for_each(vllm: Vllm, chat: Chat, shape: str) -> None:
    vllm.outputs = vllm.activated = [[0.1, 0.2, 0.7]] * 2
    served(vllm, chat, shape=shape, weights=(1.0, 0.5, -1.0)).check(EXAMPLES)
    with pytest.raises(ConfigError, match="--remote.weights has 2; give one weight for each"):
        served(vllm, chat, shape=shape, weights=(1.0, 0.5)).check(EXAMPLES)
    with pytest.raises(ConfigError, match="gives 3 numbers for a text .* Give --remote.weights, one for each"):
        served(vllm, chat, shape=shape).check(EXAMPLES)


def test_what_sglang_is_asked(vllm: Vllm, chat: Chat, caplog) -> None:
    vllm.outputs = [[0.25], [0.75]]
    with caplog.at_level(logging.WARNING):
        served(vllm, chat, shape="sglang", model="rm").check(EXAMPLES)
    assert not caplog.records
    assert [path for path, _ in vllm.requests] == ["/v1/models", "/tokenize", "/tokenize", "/v1/embeddings"]
    body = vllm.requests[-1][1]
    assert set(body) == {"model", "input"} and body["model"] == "rm" and all(type(t) is int for t in body["input"][0])
    vllm.missing = {"/tokenize"}  # of older versions
    with caplog.at_level(logging.WARNING):
        served(vllm, chat, shape="sglang").check(EXAMPLES)
    assert "its tokenizer could not be compared" in caplog.text
    vllm.missing = {"/v1/embeddings"}
    with pytest.raises(ServerAnswerError, match="/v1/embeddings answered 404"):
        served(vllm, chat, shape="sglang").check(EXAMPLES)


@pytest.mark.parametrize(("outputs", "told"), [([[0.4], [0.9]], True), ([[-0.4], [0.9]], False)])
def test_a_server_that_may_not_know_the_option_is_told(vllm: Vllm, chat: Chat, outputs, told: bool, caplog) -> None:
    vllm.outputs = vllm.activated = outputs
    with caplog.at_level(logging.WARNING):
        served(vllm, chat).check(EXAMPLES)
    assert ('does not know "use_activation"' in caplog.text) == told


def test_no_reward_model_is_named(vllm: Vllm, chat: Chat) -> None:
    vllm.missing = {"/classify"}
    with pytest.raises(ServerAnswerError, match=r"/classify answered 404 .*a reward model .* must be served"):
        served(vllm, chat).check(EXAMPLES)


def test_the_wrong_name_and_too_short_sequences(vllm: Vllm, chat: Chat) -> None:
    with pytest.raises(ConfigError, match=r"has no model 'judge' \(--remote.model\). It has: rm."):
        served(vllm, chat, model="judge").check(EXAMPLES)
    vllm.longest = 32
    with pytest.raises(ConfigError, match="reads at most 32 tokens; --data.max_length allows 64. .*--max-model-len 64"):
        served(vllm, chat).check(EXAMPLES)


def test_another_tokenizer_or_template(vllm: Vllm, chat: Chat, tiny_model_dir: Path) -> None:
    other = load_tokenizer(ModelConfig(str(tiny_model_dir)))
    other.add_tokens(["hat is"])
    vllm.chat = Chat(other)
    with pytest.raises(ConfigError, match="another tokenizer: it makes [0-9]+ tokens .* --remote.tokenizer"):
        served(vllm, chat).check(EXAMPLES)
    served(vllm, chat, own=Chat(other)).check(EXAMPLES)
    again = load_tokenizer(ModelConfig(str(tiny_model_dir)))
    again.chat_template = "{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}"
    vllm.chat = Chat(again, None)
    with pytest.raises(ConfigError, match="another chat template: it makes [0-9]+ tokens .* --remote.tokenizer"):
        served(vllm, chat).check(EXAMPLES)
