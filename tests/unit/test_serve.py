"""A reward model over HTTP: every shape as its own clients ask it, against transformers alone; what is refused, and
with which words."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from assent import __version__
from assent.cli import main
from assent.config import LimitsConfig, ModelConfig, ServeConfig
from assent.data.chat import Chat
from assent.errors import ConfigError
from assent.models.heads import WantedHead, load_score_model, save_reward_model
from assent.models.loading import load_tokenizer
from assent.models.reward_head import HeadRule
from assent.serve import app as app_module
from assent.serve.app import Service
from assent.serve.asgi import Rates
from assent.serve.run import listener, service_of, url_of
from assent.serve.scorer import Reader, Values
from assent.serve.shapes import Ids, Refusal, Text, activation_of

START, END = "<|im_start|>", "<|im_end|>"
PROMPT = f"{START}user\nWhat is the capital of France?{END}\n{START}assistant\n"
TEXTS = [PROMPT + f"Paris.{END}", PROMPT + f"Red, green and blue.{END}", PROMPT + "Boil an"]
TALK = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "Paris."}]
JSON = {"Content-Type": "application/json"}
Reply = httpx2.Response


def ask(service: Service, path: str, body: Any = None, *, client: str = "1.2.3.4", **headers: str) -> Reply:
    """One request, in this process; a body that is bytes is sent as it is."""

    async def work() -> Reply:
        transport = httpx2.ASGITransport(service.app, client=(client, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            if body is None:
                return await http.get(path, headers=headers)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.post(path, content=content, headers=JSON | headers)

    return asyncio.run(work())


def service(folder: Path, **options: Any) -> Service:
    return service_of(ServeConfig(str(folder), precision="fp32", threads=1, **options))


@pytest.fixture(scope="module")
def served(scorer_dir: Path) -> Iterator[Service]:
    made = service(scorer_dir, name="rm", limits={"tokens": 64, "texts": 8, "bytes": 20_000})
    yield made
    made.close()


@pytest.fixture(scope="module")
def words(scorer_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(scorer_dir)


@pytest.fixture(scope="module")
def want(scorer_dir: Path, words: Any) -> list[float]:
    """The rewards by transformers alone, of one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(scorer_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = [torch.tensor([words(text, add_special_tokens=False)["input_ids"]]) for text in TEXTS]
        return [model(input_ids=one).logits.item() for one in ids]


def close(got: Any, want: Any) -> bool:
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.ptp(want) > 0.01 or len(want) == 1
    return True


# ---- shapes


def test_openrlhf(served: Service, want: list[float]) -> None:
    body = {"query": TEXTS, "prompts": [PROMPT] * 3, "labels": [None, "x", 1]}
    reply = ask(served, "/get_reward", body)
    assert reply.status_code == 200
    assert close(reply.json()["rewards"], want)
    assert reply.json() == {"rewards": reply.json()["rewards"], "scores": reply.json()["rewards"], "extra_logs": {}}
    assert ask(served, "/get_reward", {"query": TEXTS}).json() == reply.json()  # of older clients
    assert close(ask(served, "/get_reward", {"query": TEXTS[0], "prompts": PROMPT}).json()["rewards"], want[:1])


def test_llama_factory(served: Service, want: list[float]) -> None:
    reply = ask(served, "/v1/score/evaluation", {"model": "whatever", "messages": TEXTS}).json()
    assert close(reply["scores"], want) and reply["id"].startswith("scoreeval-")
    assert {**reply, "id": "", "scores": []} == {
        "id": "", "object": "score.evaluation", "model": "whatever", "scores": [],
    }  # fmt: skip


def test_vllm_classify(served: Service, want: list[float], words: Any) -> None:
    ids = [words(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    reply = ask(served, "/classify", {"model": "rm", "input": TEXTS, "use_activation": False}).json()
    assert close([entry["probs"][0] for entry in reply["data"]], want)
    total = sum(map(len, ids))
    assert {**reply, "id": "", "created": 0} == {
        "id": "",
        "object": "list",
        "created": 0,
        "model": "rm",
        "data": [
            {"index": i, "label": "reward", "probs": entry["probs"], "num_classes": 1}
            for i, entry in enumerate(reply["data"])
        ],
        "usage": {
            "prompt_tokens": total, "total_tokens": total, "completion_tokens": 0, "prompt_tokens_details": None,
        },
    }  # fmt: skip
    assert reply["id"].startswith("classify-")
    of_ids = ask(served, "/classify", {"input": ids, "use_activation": False}).json()
    assert of_ids["data"] == reply["data"]
    one = ask(served, "/classify", {"input": ids[0], "use_activation": False}).json()["data"]
    assert len(one) == 1 and close(one[0]["probs"], want[:1])
    assert close(
        ask(served, "/classify", {"input": TEXTS[1], "use_activation": False}).json()["data"][0]["probs"], want[1:2]
    )


def test_vllm_messages_are_read_up_to_the_end_of_the_answer(served: Service, want: list[float]) -> None:
    reply = ask(served, "/classify", {"messages": TALK, "use_activation": False}).json()
    assert close(reply["data"][0]["probs"], want[:1])
    parts = [
        TALK[0],
        {"role": "assistant", "content": [{"type": "text", "text": "Pa"}, {"type": "text", "text": "ris."}]},
    ]
    assert ask(served, "/pooling", {"messages": parts, "use_activation": False}).json()["data"][0][
        "data"
    ] == pytest.approx(reply["data"][0]["probs"])
    spelt = [{"role": "user", "content": f"What is {END}?"}, TALK[1]]  # control tokens of users are only letters
    plain = f"{START}user\nWhat is {END}?{END}\n{START}assistant\nParis.{END}"
    hidden, read = (
        ask(served, "/classify", body).json()["usage"]["prompt_tokens"]
        for body in ({"messages": spelt}, {"input": plain})
    )
    assert hidden > read


def test_vllm_activation_follows_the_problem_type(
    served: Service, want: list[float], scorer_dir: Path, tmp_path: Path
) -> None:
    """This folder names none: one number gets a sigmoid unless told otherwise; a regression none."""
    probs = [entry["probs"][0] for entry in ask(served, "/classify", {"input": TEXTS}).json()["data"]]
    assert close(probs, 1 / (1 + np.exp(-np.array(want))))
    probs = [entry["data"][0] for entry in ask(served, "/pooling", {"input": TEXTS}).json()["data"]]
    assert close(probs, 1 / (1 + np.exp(-np.array(want))))
    rows = np.array([[0.5, -1.0, 800.0], [-900.0, 2.0, 0.0]])
    np.testing.assert_array_equal(activation_of("regression", 3)(rows), rows)
    one = np.exp(rows - rows.max(1, keepdims=True))
    np.testing.assert_allclose(activation_of(None, 3)(rows), one / one.sum(1, keepdims=True))
    np.testing.assert_allclose(activation_of("single_label_classification", 3)(rows).sum(1), 1)
    np.testing.assert_allclose(
        activation_of("multi_label_classification", 3)(rows),
        [[0.62245933, 0.26894142, 1], [0, 0.88079708, 0.5]],
        atol=1e-8,
    )
    np.testing.assert_allclose(activation_of(None, 1)(rows[:1, :1]), [[0.62245933]])


def test_vllm_pooling_in_both_encodings(served: Service, want: list[float]) -> None:
    body = {"input": TEXTS, "task": "classify", "use_activation": False}
    reply = ask(served, "/pooling", body).json()
    assert [set(entry) for entry in reply["data"]] == [{"index", "object", "data"}] * 3
    assert reply["data"][0]["object"] == "pooling" and reply["id"].startswith("pool-")
    assert close([entry["data"][0] for entry in reply["data"]], want)
    packed = ask(served, "/pooling", body | {"encoding_format": "base64"}).json()["data"]
    numbers = [struct.unpack("<f", base64.b64decode(entry["data"]))[0] for entry in packed]
    assert numbers == [entry["data"][0] for entry in reply["data"]]


def test_sglang(served: Service, want: list[float]) -> None:
    reply = ask(served, "/v1/embeddings", {"input": TEXTS}).json()
    assert close([entry["embedding"][-1] for entry in reply["data"]], want)
    assert reply["object"] == "list" and reply["model"] == "rm" and reply["usage"]["prompt_tokens"] > 20
    assert [{**entry, "embedding": 0} for entry in reply["data"]] == [
        {"object": "embedding", "embedding": 0, "index": i} for i in range(3)
    ]


def test_what_else_is_asked(served: Service, words: Any, scorer_dir: Path) -> None:
    (card,) = ask(served, "/v1/models").json()["data"]
    assert (card["id"], card["root"], card["max_model_len"], card["object"]) == ("rm", str(scorer_dir), 64, "model")
    assert ask(served, "/health").json() == {"status": "ok"}
    assert ask(served, "/version").json() == {"version": __version__}
    ids = words(TEXTS[0], add_special_tokens=False)["input_ids"]
    reply = ask(served, "/tokenize", {"model": str(scorer_dir), "prompt": TEXTS[0], "add_special_tokens": False}).json()
    assert reply == {"count": len(ids), "max_model_len": 64, "tokens": ids, "token_strs": None}
    talk = ask(served, "/tokenize", {"messages": TALK[:1], "add_generation_prompt": True}).json()["tokens"]
    assert talk == words(PROMPT, add_special_tokens=False)["input_ids"]
    assert ask(served, "/tokenize", {"messages": TALK, "add_generation_prompt": False}).json()["tokens"] == ids
    text = ask(served, "/metrics").text
    assert 'assent_requests_total{path="/health",status="200"}' in text and "assent_tokens_under_way 0.0" in text
    assert 'assent_request_seconds_count{path="/tokenize"} 3.0' in text


def test_the_tokens_that_the_tokenizer_adds_are_there_once(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(str(tiny_model_dir)))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    reader = Reader(Chat(tokenizer), vocabulary=400, longest=64, micro_tokens=100, flat=False)
    without, once = reader.text_ids("Hello", adds=False), reader.text_ids("Hello", adds=True)
    assert once.tolist() == [tokenizer.bos_token_id, *without.tolist()] == tokenizer("Hello")["input_ids"]
    assert reader.text_ids("<s>Hello", adds=True).tolist() == once.tolist()
    assert reader.text_ids("<s>Hello", adds=False).tolist() == once.tolist()  # OpenRLHF's texts have theirs already


# ---- several outputs

RULE = HeadRule(("helpfulness", "verbosity", "tone"), (0.5, -1.25, 2.0))


@pytest.fixture(scope="module")
def attributes(tiny_model_dir: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of three outputs."""
    scorer = load_score_model(
        ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, max_length=64, seed=7, head=WantedHead(RULE)
    )
    with torch.no_grad():
        scorer.head.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "attributes"
    save_reward_model(scorer.eval(), Chat(tokenizer), folder)
    return folder


def logits(folder: Path) -> np.ndarray:
    """[S, K] by transformers alone."""
    words = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = [torch.tensor([words(text, add_special_tokens=False)["input_ids"]]) for text in TEXTS]
        return np.stack([model(input_ids=one).logits[0].numpy() for one in ids])


def test_a_model_of_several_outputs(attributes: Path) -> None:
    """All raw numbers by the shapes that have room for them, the rule's reward by the others."""
    made, raw = service(attributes), logits(attributes)
    reward = raw @ np.array(RULE.weights)
    for options in ({}, {"use_activation": False}):  # a regression has no activation
        data = ask(made, "/classify", {"input": TEXTS} | options).json()["data"]
        assert close([entry["probs"] for entry in data], raw)
        assert [entry["label"] for entry in data] == [RULE.names[k] for k in raw.argmax(1)]
        assert {entry["num_classes"] for entry in data} == {3}
        assert close([entry["data"] for entry in ask(made, "/pooling", {"input": TEXTS} | options).json()["data"]], raw)
    reply = ask(made, "/get_reward", {"query": TEXTS}).json()
    assert close(reply["rewards"], reward) and reply["scores"] == reply["rewards"]
    assert list(reply["extra_logs"]) == list(RULE.names)
    assert close(np.array(list(reply["extra_logs"].values())).T, raw)
    assert close(ask(made, "/v1/score/evaluation", {"messages": TEXTS}).json()["scores"], reward)
    data = ask(made, "/v1/embeddings", {"input": TEXTS}).json()["data"]
    assert close([entry["embedding"] for entry in data], reward[:, None])
    made.close()


def test_weights_of_the_persons_own(attributes: Path, scorer_dir: Path) -> None:
    made = service(attributes, weights={"tone": 2.0, "helpfulness": -1.0})
    raw = logits(attributes)
    assert close(ask(made, "/get_reward", {"query": TEXTS}).json()["rewards"], 2 * raw[:, 2] - raw[:, 0])
    assert close([entry["probs"] for entry in ask(made, "/classify", {"input": TEXTS}).json()["data"]], raw)
    made.close()
    with pytest.raises(ConfigError, match="--weights: no output is called 'tune'. Perhaps you meant 'tone'"):
        service(attributes, weights={"tune": 1.0})
    with pytest.raises(ConfigError, match="--weights reward: .* has a single output"):
        service(scorer_dir, weights={"reward": 1.0})


def test_outputs_that_nobody_made_a_reward_of(attributes: Path, tmp_path: Path, caplog) -> None:
    """A classifier's folder of somebody else: the numbers themselves, and no guess at a reward."""
    model = AutoModelForSequenceClassification.from_pretrained(attributes, dtype=torch.float32)
    del model.config.assent_head
    model.config.problem_type = None
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(attributes).save_pretrained(tmp_path)
    made, raw = service(tmp_path), logits(attributes)
    for path, body in (("/get_reward", {"query": TEXTS}), ("/v1/embeddings", {"input": TEXTS})):
        reply = ask(made, path, body)
        assert reply.status_code == 400 and "does not say how they become one reward" in reply.text
        assert "--weights" in reply.text
    data = ask(made, "/classify", {"input": TEXTS, "use_activation": False}).json()["data"]
    assert close([entry["probs"] for entry in data], raw)
    softmax = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    assert close([entry["probs"] for entry in ask(made, "/classify", {"input": TEXTS}).json()["data"]], softmax)
    made.close()
    told = service(tmp_path, weights={"tone": 1.0})
    assert close(ask(told, "/get_reward", {"query": TEXTS}).json()["rewards"], raw[:, 2])
    told.close()


def test_a_gated_model_must_know_where_prompts_end(scorer_dir: Path) -> None:
    read = reader(scorer_dir, gated=True)
    assert read.work([Text(TEXTS[0])]).trees[0].prompt.tolist() == read.text_ids(PROMPT, adds=False).tolist()
    read.work([Text("no template at all", prompt="no template")])
    with pytest.raises(Refusal, match="Text 2: where its prompt ends cannot be told"):
        read.work([Text(TEXTS[0]), Text("no template at all")])


# ---- trees


def reader(folder: Path, **options: Any) -> Reader:
    chat = Chat(load_tokenizer(ModelConfig(str(folder))))
    return Reader(chat, **({"vocabulary": 400, "longest": 64, "micro_tokens": 100, "flat": False} | options))


def test_equal_prompts_stand_once_and_answers_keep_their_order(scorer_dir: Path) -> None:
    read = reader(scorer_dir)
    other = PROMPT.replace("France", "Spain")
    texts = [TEXTS[0], other + "Madrid.", TEXTS[1], "no template at all", other + "Rome." + END, TEXTS[2]]
    work = read.work([Text(text) for text in texts])
    assert [len(tree.branches) for tree in work.trees] == [3, 2, 1]
    flat = [np.concatenate([tree.prompt, branch.ids]).tolist() for tree in work.trees for branch in tree.branches]
    want = [read.text_ids(text, adds=False).tolist() for text in texts]
    assert [flat[index] for index in work.order] == want
    assert work.tokens == [len(one) for one in want] and work.size < sum(work.tokens)
    assert read.text_ids(PROMPT, adds=False).tolist() == work.trees[0].prompt.tolist()
    ids = read.work([Ids(one) for one in want])
    assert all(np.array_equal(a.prompt, b.prompt) for a, b in zip(ids.trees, work.trees, strict=True))
    told = read.work([Text(text, prompt="no template") for text in ("no template at all", "no template here")])
    assert [tree.prompt.tolist() for tree in told.trees] == [read.text_ids("no template", adds=False).tolist()]
    wrong = read.work([Text("no template at all", prompt="other")])
    assert len(wrong.trees[0].prompt) == 1


def test_a_tree_stays_within_a_forward_pass(scorer_dir: Path) -> None:
    work = reader(scorer_dir, micro_tokens=60).work([Text(TEXTS[0])] * 9)
    assert len(work.trees) > 1 and all(tree.num_tokens <= 60 for tree in work.trees)
    assert [index for which in work.passes for index in which] == list(range(len(work.trees)))
    flat = reader(scorer_dir, micro_tokens=60, flat=True).work([Text(TEXTS[0])] * 9)
    assert flat.size == sum(flat.tokens)


# ---- refusals

WRONG: list[tuple[str, Any, int, str]] = [
    ("/get_reward", b"{", 400, "The request is no JSON"),
    ("/get_reward", b"", 400, "The request is no JSON"),
    ("/get_reward", b"\xff\xfe", 400, "The request is no JSON"),
    ("/get_reward", b'{"query": ["a"], "labels": [NaN]}', 400, "NaN is no JSON number"),
    ("/get_reward", b'{"query": ["a"], "labels": [-Infinity]}', 400, "-Infinity is no JSON number"),
    ("/get_reward", b'{"query": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400, "nested too deeply"),
    ("/get_reward", b'{"query": ' + b"1" * 5000 + b"}", 400, "The request is no JSON"),
    ("/get_reward", [1], 400, "no JSON object"),
    ("/get_reward", {}, 400, "query: Field required"),
    ("/get_reward", {"query": [1]}, 400, "query"),
    ("/get_reward", {"query": [None]}, 400, "query"),
    ("/get_reward", {"query": {"a": "b"}}, 400, "query"),
    ("/get_reward", {"query": []}, 400, "no text to score"),
    ("/get_reward", {"query": [""]}, 400, "Text 1 has 0 tokens"),
    ("/get_reward", {"query": ["ab", "\ud800 x"]}, 400, "Text 2 has half of a surrogate pair"),
    ("/get_reward", {"query": ["a b"], "prompts": []}, 400, "query has 1 texts and prompts has 0"),
    ("/get_reward", {"query": ["a b"] * 9}, 400, "9 texts; one request may have 8"),
    ("/get_reward", {"query": ["x" * 30_000]}, 413, "20,000"),
    ("/get_reward", {"query": ["a b", "@ " * 200]}, 400, "Text 2 has 400 tokens; the longest that is read has 64."),
    ("/v1/score/evaluation", {"messages": ["a b c d e"], "max_length": 3}, 400, "the longest that is read has 3."),
    ("/v1/score/evaluation", {"messages": "a"}, 400, "messages: Input should be a valid list"),
    ("/classify", {}, 400, "Expected either input or messages"),
    ("/classify", {"input": "a", "messages": TALK}, 400, "Expected either input or messages"),
    ("/classify", {"model": "gpt", "input": "a b"}, 404, "There is no model 'gpt' here. There is: rm."),
    ("/classify", {"input": []}, 400, "input: expected a text"),
    ("/classify", {"input": [[]]}, 400, "none of them empty"),
    ("/classify", {"input": ["a", 1]}, 400, "Got ['a', 1]."),
    ("/classify", {"input": [[1, True]]}, 400, "input: expected"),
    ("/classify", {"input": [[1, 2.0]]}, 400, "input: expected"),
    ("/classify", {"input": [1, 399_999]}, 400, "399999 is no token id; those of this model are 0 to"),
    ("/classify", {"input": [1, -1]}, 400, "-1 is no token id"),
    ("/classify", {"input": [5]}, 400, "Text 1 has 1 tokens; a prompt with an answer has at least 2."),
    ("/classify", {"input": "a b", "use_activation": "no"}, 400, "use_activation: Input should be a valid boolean"),
    ("/classify", {"input": "a b", "truncate_prompt_tokens": 3}, 400, "truncate_prompt_tokens is not offered"),
    ("/classify", {"messages": TALK, "chat_template": "{{ 1 }}"}, 400, "chat_template is not offered"),
    ("/classify", {"messages": TALK, "add_generation_prompt": True}, 400, "add_generation_prompt is not offered"),
    ("/classify", {"messages": TALK[:1]}, 400, "messages: must end with the assistant's answer"),
    ("/classify", {"messages": TALK[1:]}, 400, "messages: must end with the assistant's answer"),
    ("/classify", {"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role: unknown role 'robot'"),
    ("/classify", {"messages": [{"role": "user", "content": 3}, TALK[1]]}, 400, "messages[0].content"),
    ("/classify", {"messages": [TALK[0], {"role": "assistant", "content": ""}]}, 400, "messages[1].content"),
    ("/classify", {"messages": "hello"}, 400, "messages"),
    ("/classify", {"messages": [TALK[0] | {"content": "a " * 300}, TALK[1]]}, 400, "tokens"),
    ("/classify", {"messages": TALK, "chat_template_kwargs": {"tokenize": True}}, 400, "tokenize"),
    ("/pooling", {"input": "a b", "task": "embed"}, 400, "Unsupported task: 'embed'. Supported tasks: 'classify'"),
    ("/pooling", {"input": "a b", "encoding_format": "bytes"}, 400, "expected float or base64"),
    ("/pooling", {"input": "a b", "dimensions": 3}, 400, "dimensions is not offered"),
    ("/v1/embeddings", {"input": {"text": "a"}}, 400, "input: expected a text"),
    ("/v1/embeddings", {"input": "a b", "dimensions": 1}, 400, "dimensions"),
    ("/score", {"queries": "a", "documents": ["b"]}, 400, "does not support Score API"),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}, 400, "does not support Score API"),
    ("/tokenize", {"prompt": 1}, 400, "prompt: Input should be a valid string"),
    ("/tokenize", {}, 400, "Expected either prompt or messages"),
    ("/v1/chat/completions", {}, 404, "is not answered here. There is: /health"),
    ("/health", {}, 405, "POST /health is not answered here"),
    ("/get_reward", None, 405, "GET /get_reward is not answered here"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "words"), WRONG)
def test_a_wrong_request_is_answered_in_words(served: Service, path: str, body: Any, status: int, words: str) -> None:
    reply = ask(served, path, body)
    error = reply.json()["error"]
    assert reply.status_code == error["code"] == status and words in error["message"]
    assert len(error["message"]) < 700 and "Traceback" not in reply.text
    assert ask(served, "/get_reward", {"query": TEXTS[:1]}).status_code == 200
    assert served.queue.requests == served.queue.tokens == served._held == 0


def test_only_json_is_read(served: Service) -> None:
    """Also so that no page of a browser can ask: it may send any other type without being asked first."""
    reply = ask(served, "/get_reward", {"query": TEXTS}, **{"Content-Type": "text/plain"})
    assert reply.status_code == 415 and "Content-Type: application/json" in reply.json()["error"]["message"]


def test_a_request_that_says_it_is_too_large_is_not_read(served: Service) -> None:
    reply = ask(served, "/get_reward", b"{}", **{"Content-Length": "9" * 30})
    assert reply.status_code == 413


def test_the_key(scorer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = service_of(ServeConfig(str(scorer_dir), precision="fp32", threads=1), "s3cret-key")
    for header in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "s3cret-key"},
        {"Authorization": "Bearer "},
    ):
        for path, body in (
            ("/get_reward", {"query": TEXTS}),
            ("/metrics", None),
            ("/v1/models", None),
            ("/nothing", None),
        ):
            reply = ask(made, path, body, **header)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
    assert ask(made, "/health").status_code == 200
    assert ask(made, "/get_reward", {"query": TEXTS}, Authorization="Bearer s3cret-key").status_code == 200
    made.close()


def test_the_rate_of_each_address() -> None:
    rates = Rates(2.0)
    assert [rates.take("a", 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rates.take("b", 0.0) == 0
    assert rates.take("a", 0.25) == pytest.approx(0.25)
    assert rates.take("a", 0.5) == 0 and rates.take("a", 0.5) > 0
    assert Rates(0.0).take("a", 0.0) == 0
    slow = Rates(0.1)
    assert [slow.take("a", 0.0), slow.take("a", 5.0), slow.take("a", 10.0)] == [0, pytest.approx(5), 0]
    for number in range(20_000):
        rates.take(str(number), 1.0)
    assert len(rates._buckets) <= 10_000


def test_too_many_requests_from_one_address(scorer_dir: Path) -> None:
    made = service(scorer_dir, limits={"rate": 1})
    status = [ask(made, "/v1/models").status_code for _ in range(4)]
    assert status == [200, 200, 429, 429]
    reply = ask(made, "/v1/models")
    assert reply.headers["retry-after"] == "1" and "Too many requests" in reply.text
    assert ask(made, "/v1/models", client="5.6.7.8").status_code == 200 and ask(made, "/health").status_code == 200
    made.close()


def test_a_text_without_a_number_is_an_error_and_no_zero(scorer_dir: Path) -> None:
    made = service(scorer_dir)
    values = made.queue._values

    def broken(trees: Any) -> Values:
        right = values(trees)
        right.rewards[1] = right.outputs[1] = np.nan
        return right

    made.queue._values = broken
    reply = ask(made, "/get_reward", {"query": TEXTS})
    assert reply.status_code == 500 and "gives nan for text 2: 1 texts have no reward" in reply.text
    made.queue._values = lambda trees: 1 / 0
    reply = ask(made, "/get_reward", {"query": TEXTS})
    assert reply.status_code == 500 and "ZeroDivisionError" in reply.text and "Traceback" not in reply.text
    made.queue._values = values
    assert ask(made, "/get_reward", {"query": TEXTS}).status_code == 200
    made.close()


def test_a_fault_of_the_server_is_an_answer_too(served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.reader, "work", lambda *_: [][0])
    reply = ask(served, "/get_reward", {"query": TEXTS})
    assert (
        reply.status_code == 500 and "The server failed on this request: IndexError" in reply.json()["error"]["message"]
    )


def test_a_body_that_never_comes(served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.1)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(5)
        return {"type": "http.request", "body": b"", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/get_reward", "raw_path": b"/get_reward", "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "client": ("1.1.1.1", 1), "root_path": ""}
    scope |= {"scheme": "http", "server": ("test", 80), "http_version": "1.1", "asgi": {"version": "3.0"}}
    asyncio.run(served.app(scope, receive, send))
    assert sent[0]["status"] == 408 and served.queue.requests == served._held == 0


# ---- options


def test_answers_do_not_depend_on_who_else_asks(scorer_dir: Path) -> None:
    """A request that needs several forward passes has the same bits whoever asks beside it; one that shares a pass with
    others, the same numbers up to the rounding of fp32."""
    made = service(scorer_dir, micro_tokens=120, wait_ms=50.0)
    large = [PROMPT + "word " * n + END for n in range(1, 9)]

    async def beside(others: int) -> list[Any]:
        transport = httpx2.ASGITransport(made.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            bodies = [{"query": TEXTS[:1]}, {"query": large}, *({"query": [PROMPT + f"{n} x"]} for n in range(others))]
            replies = await asyncio.gather(*(http.post("/get_reward", json=body) for body in bodies))
            return [reply.json()["rewards"] for reply in replies]

    before = made.queue.passes
    alone, crowded = asyncio.run(beside(0)), asyncio.run(beside(12))
    assert alone[1] == crowded[1]
    np.testing.assert_allclose(crowded[0], alone[0], atol=1e-6)
    assert made.queue.passes - before < 2 * 9 + 14
    made.close()


def test_mistakes_in_options(scorer_dir: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def said(*options: str) -> str:
        caplog.clear()
        assert main(["serve", *options]) == 2
        return caplog.text

    folder = str(scorer_dir)
    assert "--host 0.0.0.0 is reached by other machines" in said(folder, "--host", "0.0.0.0")
    assert "the environment variable NO_SUCH_KEY is not set" in said(folder, "--key_env", "NO_SUCH_KEY")
    monkeypatch.setenv("BAD_KEY", "two\nlines")
    assert "no header can carry" in said(folder, "--key_env", "BAD_KEY")
    assert "--limits.tokens 9999" in said(folder, "--port", "0", "--limits.tokens", "9999")
    assert "port" in said(folder, "--port", "70000")
    assert "has no trained reward head" in said(str(tiny_model_dir), "--port", "0")
    assert "no.such.host.invalid" in said(folder, "--host", "no.such.host.invalid", "--without_key")
    place = listener("127.0.0.1", 0)
    place.listen()
    port = url_of(place).rpartition(":")[2]
    assert f"--port {port} cannot be listened on" in said(folder, "--port", port)
    place.close()
    monkeypatch.setattr("assent.serve.run.NEEDED", ("fastapi", "no_such_package"))
    assert "Install it with: pip install 'assent[serve]'" in said(folder, "--port", "0")


def test_what_holds_of_limits() -> None:
    assert LimitsConfig().tokens is None
    assert str(Refusal(400, "why")) == "why"
