"""A reward server that refuses, fails, hangs or talks nonsense, played by a real one with a script of faults."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest

from assent import http
from assent.data.records import Example, Message, Origin
from assent.errors import ConfigError, NonFiniteError
from assent.http import ServerAnswerError, ServerUnavailable
from assent.rewards.group import Group, RewardError
from assent.rewards.remote import RemoteReward, Server, WrittenAnswer

from .servers import FakeServer, Handler, drip, drop, hang

PATHS = {
    "openrlhf": "/get_reward",
    "llamafactory": "/v1/score/evaluation",
    "vllm": "/classify",
    "sglang": "/v1/embeddings",
    "vllm-score": "/score",
}
Act = Callable[[Handler], None]


def honest(body: dict) -> dict:
    """The answer's number of characters as its reward, in the shape of the request."""
    if "query" in body:
        pairs = zip(body["query"], body["prompts"], strict=True)
        return {"rewards": [float(len(query) - len(prompt)) for query, prompt in pairs], "scores": [], "extra_logs": {}}
    if "messages" in body:
        return {"object": "score.evaluation", "scores": [len(text.partition("|")[2]) for text in body["messages"]]}
    if "queries" in body:
        assert body["use_activation"] is False and len(body["queries"]) == len(body["documents"])
        scores = [float(len(document)) for document in body["documents"]]
        return {"object": "list", "data": [{"index": i, "score": score} for i, score in enumerate(scores)][::-1]}
    if "use_activation" not in body:
        found = [float(sum(token > 0 for token in ids)) for ids in body["input"]]
        return {"object": "list", "data": [{"index": i, "embedding": [one]} for i, one in enumerate(found)][::-1]}
    assert body["use_activation"] is False
    data = [{"index": i, "probs": [float(sum(token > 0 for token in ids))]} for i, ids in enumerate(body["input"])]
    return {"object": "list", "data": data[::-1]}


class Scripted(FakeServer):
    """Does what its script says, one act for each request, and answers honestly once that is done."""

    def __init__(self, port: int = 0) -> None:
        self.script: list[Act] = []
        self.requests: list[tuple[str, dict, dict, float]] = []
        super().__init__(port)

    def respond(self, handler: Handler) -> None:
        with self.lock:
            self.requests.append((handler.path, dict(handler.headers), handler.body, time.monotonic()))
            act = self.script.pop(0) if self.script else say()
        act(handler)


@pytest.fixture
def fake() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.stop()


def say(text: str | None = None, status: int = 200, delay: float = 0.0, **headers: str) -> Act:
    """Answers with that text; without one, honestly."""

    def act(handler: Handler) -> None:
        time.sleep(delay)
        handler.say(honest(handler.body) if text is None else text, status, **headers)

    return act


def rewards(*values: object) -> Act:
    return say(json.dumps({"rewards": values}))


def drip_header(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.released.wait(0.05):
        handler.wfile.write(b"x")


def break_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"rewards": [1')


def groups(*sizes: int) -> list[Group]:
    """The answers of group g have 1, 2, ... characters more than those of the group before."""
    made, length = [], 0
    for row, size in enumerate(sizes, 1):
        texts = tuple("a" * (length + i + 1) for i in range(size))
        length += size
        example = Example(
            (Message("system", "s"), Message("user", f"q{row}")), origin=Origin("rows.jsonl", row), meta={"gold": row}
        )
        made.append(Group(example, texts, (True,) * size, (1,) * size))
    return made


def render(messages: tuple[Message, ...]) -> str:
    return "/".join(f"{message.role}:{message.content}" for message in messages) + "|"


def write(group: Group) -> list[WrittenAnswer | None]:
    prompt = render(group.example.prompt)
    return [WrittenAnswer(prompt, prompt + text) for text in group.texts]


def write_ids(group: Group) -> list[WrittenAnswer | None]:
    """A prompt of zeros, and a one for each letter."""
    return [WrittenAnswer("", [0] * 5 + [1] * len(text)) for text in group.texts]


def write_two(group: Group) -> list[WrittenAnswer | None]:
    return [WrittenAnswer(render(group.example.prompt), text) for text in group.texts]


def source(url: str, shape: str = "openrlhf", **options: object) -> RemoteReward:
    quick = {"pause": 0.01, "budget": 20.0, "timeout": 5.0}
    how = {"vllm": write_ids, "sglang": write_ids, "vllm-score": write_two}.get(shape, write)
    return RemoteReward("judge", Server(url, shape, **{**quick, **options}), how)


# ---------------------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize("shape", PATHS)
def test_each_shape_on_the_wire(fake: Scripted, shape: str):
    scores = source(fake.url, shape, model="rm", label="gold").score(groups(2, 1))
    assert scores.values.tolist() == [1.0, 2.0, 3.0] and scores.values.dtype == np.float64
    assert not scores.failures and not scores.parts
    ((path, headers, body, _),) = fake.requests
    assert path == PATHS[shape] and headers["Content-Type"] == "application/json" and "Authorization" not in headers
    prompts = ["system:s/user:q1|", "system:s/user:q1|", "system:s/user:q2|"]
    texts = ["a", "aa", "aaa"]
    whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    assert (
        body
        == {
            "openrlhf": {"query": whole, "prompts": prompts, "labels": [1, 1, 2]},
            "llamafactory": {"model": "rm", "messages": whole},
            "vllm": {
                "model": "rm",
                "input": [[0] * 5 + [1] * length for length in (1, 2, 3)],
                "use_activation": False,
            },
            "sglang": {"model": "rm", "input": [[0] * 5 + [1] * length for length in (1, 2, 3)]},
            "vllm-score": {"model": "rm", "queries": prompts, "documents": texts, "use_activation": False},
        }[shape]
    )


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("/", "openrlhf", "/get_reward"),
        ("/get_reward", "openrlhf", "/get_reward"),
        ("/behind/proxy/", "openrlhf", "/behind/proxy/get_reward"),
        ("", "vllm", "/classify"),
        ("/classify", "vllm", "/classify"),
        ("/v1/", "vllm", "/classify"),
        ("/behind/proxy/v1", "vllm", "/behind/proxy/classify"),
        ("/v1/", "sglang", "/v1/embeddings"),
        ("/v1/embeddings", "sglang", "/v1/embeddings"),
        ("/v1", "vllm-score", "/score"),
        ("/v1", "llamafactory", "/v1/v1/score/evaluation"),
    ],
)
def test_urls_with_and_without_the_path(fake: Scripted, path: str, shape: str, expected: str):
    source(fake.url + path, shape).score(groups(1))
    assert fake.requests[0][0] == expected


@pytest.mark.parametrize("shape", PATHS)
def test_many_requests_keep_the_order_of_the_answers(fake: Scripted, shape: str):
    fake.script = [say(delay=0.2), say(delay=0.1), say()]
    scores = source(fake.url, shape, batch=2, concurrency=3).score(groups(3, 1, 3))
    assert scores.values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert len(fake.requests) == 4


def test_concurrency_is_limited(fake: Scripted):
    gate = threading.Event()

    def held(handler: Handler) -> None:
        gate.wait(10)
        say()(handler)

    fake.script = [held] * 6
    with ThreadPoolExecutor(1) as pool:
        scores = pool.submit(source(fake.url, batch=1, concurrency=2).score, groups(6))
        deadline = time.monotonic() + 5
        while len(fake.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # a third request would arrive by now
        waiting = len(fake.requests)
        gate.set()
        assert len(scores.result().values) == 6
    assert waiting == 2


def test_no_answers_need_no_server():
    assert source("http://127.0.0.1:9").score([]).values.shape == (0,)


def test_the_key_is_sent_and_never_shown(fake: Scripted):
    fake.script = [say("no", 401)]
    judge = source(fake.url, key="s3cret")
    with pytest.raises(ServerAnswerError) as caught:
        judge.score(groups(1))
    assert fake.requests[0][1]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value) + repr(judge.server)


# ---------------------------------------------------------------------------------------------------- what may pass


@pytest.mark.parametrize(
    "faults",
    [
        [say("overloaded", 500)],
        [say("", 502), say("", 503), say("", 504)],
        [say("", 429)],
        [say("", 408)],
        [drop],
        [break_off],
        [hang],
        [drip],
        [drip_header],
        [say("", 500), drop, hang, say("", 429)],
    ],
    ids=["500", "502-504", "429", "408", "drop", "break off", "hang", "drip", "drip header", "all"],
)
def test_what_may_pass_is_tried_again(fake: Scripted, faults: list[Act]):
    fake.script = list(faults)
    assert source(fake.url, timeout=0.3).score(groups(2)).values.tolist() == [1.0, 2.0]
    assert len(fake.requests) == len(faults) + 1
    assert all(request[2] == fake.requests[0][2] for request in fake.requests)


def test_a_server_that_is_refused_until_it_is_up():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[Scripted] = []
    timer = threading.Timer(0.4, lambda: started.append(Scripted(port)))
    timer.start()
    try:
        assert source(f"http://127.0.0.1:{port}", pause=0.1).score(groups(2)).values.tolist() == [1.0, 2.0]
    finally:
        timer.join()
        started[0].stop()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (say("", 500), "answered 500"),
        (say("", 429), "answered 429"),
        (drop, "broke off the connection"),
        (break_off, "broke off its answer"),
        (hang, "timed out after 0.2 s"),
        (drip, "timed out after 0.2 s"),
    ],
)
def test_retries_are_counted_and_the_error_says_what_was_tried(fake: Scripted, fault: Act, reason: str):
    fake.script = [fault] * 3
    begun = time.monotonic()
    with pytest.raises(ServerUnavailable) as caught:
        source(fake.url, retries=2, timeout=0.2).score(groups(1))
    assert time.monotonic() - begun < 3.0
    assert len(fake.requests) == 3 and caught.value.exit_code == 2
    assert f"judge: the reward server {fake.url}/get_reward gave no rewards in 3 attempts" in str(caught.value)
    assert f": {reason} (3x)." in str(caught.value)


def test_a_refused_connection_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServerUnavailable, match=r"refused the connection \(2x\)"):
        source(url, retries=1).score(groups(1))


@pytest.mark.parametrize("fault", [say("", 500), hang, drip])
def test_the_budget_ends_everything(fake: Scripted, fault: Act):
    fake.script = [fault] * 10_000
    begun = time.monotonic()
    with pytest.raises(ServerUnavailable):
        source(fake.url, retries=1_000_000, budget=0.6, batch=1, concurrency=2).score(groups(5))
    assert 0.25 < time.monotonic() - begun < 2.5


def test_retry_after_is_honoured(fake: Scripted):
    fake.script = [say("", 429, Retry_After="1")]
    source(fake.url).score(groups(1))
    first, second = (request[3] for request in fake.requests)
    assert 1.0 <= second - first < 2.5


def test_a_server_that_wants_more_time_than_there_is_ends_the_run_at_once(fake: Scripted):
    fake.script = [say("", 503, Retry_After="3600")]
    begun = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"in 1 attempts .*answered 503 \(1x\)"):
        source(fake.url).score(groups(1))
    assert time.monotonic() - begun < 2.0


@pytest.mark.parametrize("header", ["", "soon", "-3", "nan", "Fri, 99 Nov 2026"])
def test_retry_after_that_says_nothing(header: str):
    assert http.retry_after(header) == 0.0


def test_retry_after_as_a_date():
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert 85.0 < http.retry_after(format_datetime(later, usegmt=True)) <= 90.0
    assert http.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_pauses_grow_and_leave_the_random_state_alone(fake: Scripted):
    fake.script = [say("", 500)] * 3
    before = random.getstate(), np.random.get_state()[1].tolist()
    source(fake.url, pause=0.2).score(groups(1))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    times = [request[3] for request in fake.requests]
    for least, (first, second) in zip((0.1, 0.2, 0.4), zip(times, times[1:], strict=False), strict=True):
        assert least <= second - first < 2 * least + 1.0


# ---------------------------------------------------------------------------------------------------- what will not


NOT_REWARDS = [
    ("openrlhf", say("bad model", 400), "answered 400 Bad Request: 'bad model'"),
    ("openrlhf", say("", 404), "the shape 'openrlhf'"),
    ("openrlhf", say("", 302, Location="http://127.0.0.1:9/"), "answered 302"),
    ("openrlhf", say("<html>502</html>"), "answered '<html>502</html>'; expected {\"rewards\": [numbers]}"),
    ("openrlhf", say(""), "answered ''; expected"),
    ("openrlhf", say('{"rewards": [1, 2'), 'expected {"rewards": [numbers]}'),
    ("openrlhf", say("[1, 2]"), "answered '[1, 2]'"),
    ("openrlhf", say('"rewards"'), "answered"),
    ("openrlhf", say('{"rewards": {"0": 1, "1": 2}}'), "answered"),
    ("openrlhf", say('{"rewards": 1}'), "answered"),
    ("openrlhf", say('{"scores": [1, 2]}'), "answered"),
    ("openrlhf", say("\x00"), "answered"),
    ("openrlhf", say("[" * 100_000), "answered '[["),
    ("openrlhf", rewards(1.0), "gave 1 rewards for 2 answers"),
    ("openrlhf", rewards(1.0, 2.0, 3.0), "gave 3 rewards for 2 answers"),
    ("openrlhf", rewards(), "gave 0 rewards for 2 answers"),
    ("openrlhf", rewards(1.0, None), "gave None as a reward"),
    ("openrlhf", rewards(1.0, "2"), "gave '2' as a reward"),
    ("openrlhf", rewards(1.0, True), "gave True as a reward"),
    ("openrlhf", rewards([1.0], [2.0]), "gave [1.0] as a reward"),
    ("llamafactory", say('{"rewards": [1, 2]}'), 'expected {"scores": [numbers]}'),
    ("llamafactory", say('{"scores": [1]}'), "gave 1 rewards for 2 answers"),
    ("vllm", say('{"data": [{"index": 0, "probs": [1]}]}'), "gave 1 rewards for 2 answers"),
    ("vllm", say('{"data": [{"index": 0, "probs": [1]}, {"index": 2, "probs": [1]}]}'), "answered"),
    ("vllm", say('{"data": [{"index": 0, "probs": [1]}, {"index": 0, "probs": [1]}]}'), "answered"),
    ("vllm", say('{"data": [{"index": 0, "probs": [1, 2]}, {"index": 1, "probs": [1, 2]}]}'), "answered"),
    ("vllm", say('{"data": [{"index": 0, "probs": []}, {"index": 1, "probs": []}]}'), "answered"),
    ("vllm", say('{"data": [{"index": 0, "score": 1}, {"index": 1, "score": 1}]}'), "answered"),
    ("vllm", say('{"data": [{"index": 0}, {"index": 1}]}'), "answered"),
    ("vllm", say('{"data": [1, 2]}'), "answered"),
    ("vllm", say('{"data": null}'), "answered"),
    ("sglang", say('{"data": [{"index": 0, "embedding": [1, 2]}, {"index": 1, "embedding": [1, 2]}]}'), "answered"),
    ("sglang", say('{"data": [{"index": 0, "embedding": ["1"]}, {"index": 1, "embedding": [1]}]}'), "gave '1' as a"),
    ("sglang", say('{"data": [{"index": 0, "probs": [1]}, {"index": 1, "probs": [1]}]}'), "answered"),
    ("sglang", say('{"data": [{"index": 0, "embedding": [1]}]}'), "gave 1 rewards for 2 answers"),
    ("vllm-score", say('{"data": [{"index": 0, "score": [1]}, {"index": 1, "score": 2}]}'), "gave [1] as a reward"),
    ("vllm-score", say('{"data": [{"index": 0, "score": 1}]}'), "gave 1 rewards for 2 answers"),
    ("vllm-score", say('{"error": "The model does not support Score API"}', 400), "does not support Score API"),
]


@pytest.mark.parametrize(("shape", "answer", "words"), NOT_REWARDS)
def test_what_will_not_pass_ends_the_run_after_one_request(fake: Scripted, shape: str, answer: Act, words: str):
    fake.script = [answer]
    with pytest.raises(ServerAnswerError) as caught:
        source(fake.url, shape).score(groups(2))
    assert words in str(caught.value) and f"{fake.url}{PATHS[shape]}" in str(caught.value)
    assert len(str(caught.value)) < 600 and caught.value.exit_code == 2
    assert len(fake.requests) == 1


WEIGHTED = '{"data": [{"index": 1, "NAME": [0.5, 1, 4]}, {"index": 0, "NAME": [1, 2, 3]}]}'


@pytest.mark.parametrize(("shape", "name"), [("vllm", "probs"), ("sglang", "embedding")])
def test_several_outputs_are_one_reward_by_their_weights(fake: FakeServer, shape: str, name: str):
    fake.script = [say(WEIGHTED.replace("NAME", name))]
    scores = source(fake.url, shape, weights=(0.3, 0.7, -0.5)).score(groups(2))
    np.testing.assert_allclose(scores.values, [0.3 + 1.4 - 1.5, 0.15 + 0.7 - 2.0], rtol=1e-15)
    fake.script = [say(WEIGHTED.replace("NAME", name))]
    with pytest.raises(ServerAnswerError, match="gave 3 numbers for an answer; expected 2"):
        source(fake.url, shape, weights=(0.3, 0.7)).score(groups(2))
    fake.script = [say(WEIGHTED.replace("NAME", name).replace("0.5,", "null,"))]
    with pytest.raises(ServerAnswerError, match="gave None as a reward"):
        source(fake.url, shape, weights=(0.3, 0.7, 1.0)).score(groups(2))


@pytest.mark.parametrize(
    ("value", "shown"), [("NaN", "nan"), ("Infinity", "inf"), ("-Infinity", "-inf"), ("1e999", "inf")]
)
def test_rewards_that_are_not_finite_name_the_row_and_the_answer(fake: Scripted, value: str, shown: str):
    fake.script = [say(f'{{"rewards": [1.0, 2.0, {value}]}}')]
    with pytest.raises(NonFiniteError, match=rf"gave {shown} for the answer 'aaa' to rows\.jsonl:2"):
        source(fake.url).score(groups(2, 1))
    assert len(fake.requests) == 1


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1" + "0" * 4000, "1e39", "-4e38"])
def test_a_number_beyond_floats_is_no_reward(fake: Scripted, number: str):
    fake.script = [say(f'{{"rewards": [1.0, {number}]}}')]
    with pytest.raises(RewardError, match="gave .* for the answer 'aa' to rows.jsonl:1; expected a finite number"):
        source(fake.url).score(groups(2))


def test_answers_that_cannot_be_written_are_unscored(fake: Scripted):
    judge = source(fake.url)
    judge.write = lambda group: [None if text == "aa" else own for text, own in zip(group.texts, write(group))]
    scores = judge.score(groups(2, 1))
    np.testing.assert_array_equal(scores.values, [1.0, np.nan, 3.0])
    assert scores.failures == {"its chat template cannot write the answer": 1}
    assert len(fake.requests[0][2]["query"]) == 2


def test_one_wrong_answer_stops_the_other_requests(fake: Scripted):
    fake.script = [say("no", 400), *([say(delay=0.1)] * 40)]
    with pytest.raises(ServerAnswerError):
        source(fake.url, batch=1, concurrency=2).score(groups(40))
    assert len(fake.requests) < 10


def test_an_endless_answer_is_not_read(fake: Scripted, monkeypatch):
    monkeypatch.setattr(http, "LARGEST_ANSWER", 1000)
    fake.script = [rewards(*[0.5] * 1000)]
    with pytest.raises(ServerAnswerError, match="answered more than"):
        source(fake.url).score(groups(2))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:5000",
        "ftp://host/",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://[::1",
        "http://host/a b",
        "http://host/?key=1",
        "http://host\n",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_url_of_a_server(url: str):
    with pytest.raises(ConfigError, match="judge: the reward server must be http://HOST:PORT or https://HOST"):
        source(url)


def test_other_wrong_options():
    with pytest.raises(ConfigError, match="no server shape 'vlm'. Perhaps you meant 'vllm'. Known: openrlhf, llamaf"):
        source("http://host", "vlm")
    with pytest.raises(ConfigError, match="such as a line end"):
        source("http://host", key="s3cret\n")
    with pytest.raises(ConfigError, match="Got one with a user name") as caught:
        source("http://me:s3cret@host")
    assert "s3cret" not in str(caught.value)
