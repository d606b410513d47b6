"""A served reward model among clients that flood, leave, talk nonsense, and a server that is stopped or killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest

from assent.cli import main
from assent.config import LimitsConfig, ServeConfig
from assent.rewards.remote import RemoteReward
from assent.serve.app import Service
from assent.serve.run import service_of

TEXTS = [f"<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\nIt is {n}.<|im_end|>" for n in range(50)]


JSON = {"Content-Type": "application/json"}
NOISE = (
    b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    b"GET / HTTP/9\r\n\r\n",
    b"POST /get_reward\r\n\r\n",
    b"x" * 100_000 + b"\r\n\r\n",
)


def service(folder: Path, **options: Any) -> Service:
    return service_of(ServeConfig(str(folder), precision="fp32", threads=1, **options))


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never was so"
        time.sleep(0.01)


def raw(url: str, body: bytes, *, length: int | None = None) -> socket.socket:
    """A connection on which that request was sent, and nothing was read."""
    host, port = url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), 10)
    head = ["POST /get_reward HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head += [f"Content-Length: {length or len(body)}", "", ""]
    made.sendall("\r\n".join(head).encode() + body)
    return made


def test_a_flood_of_small_requests(scorer_dir: Path, serving) -> None:
    """2,000 of them from 8 threads: none is lost, none gets another's answer."""
    made = service(scorer_dir)
    with serving(made) as url:
        want = httpx2.post(url + "/get_reward", json={"query": TEXTS}).json()["rewards"]
        wrong: list[Any] = []

        def client(number: int) -> None:
            connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
            for turn in range(250):
                index = (number * 7 + turn) % len(TEXTS)
                body = json.dumps({"query": [TEXTS[index]]})
                connection.request("POST", "/get_reward", body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                text = reply.read()
                if reply.status != 200 or abs(json.loads(text)["rewards"][0] - want[index]) > 1e-5:
                    wrong.append((index, reply.status, text))
            connection.close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client, range(8)))
        assert not wrong
        counted = httpx2.get(url + "/metrics").text
        assert 'assent_requests_total{path="/get_reward",status="200"} 2001.0' in counted
        assert made.queue.requests == made.queue.tokens == made._held == 0
        assert made.queue.passes < 2001


def test_a_full_queue_refuses_and_says_when_to_come_again(scorer_dir: Path, serving) -> None:
    made = service(scorer_dir, limits={"requests": 2})
    values, gate = made.queue._values, threading.Event()
    made.queue._values = lambda trees: (gate.wait(20), values(trees))[1]
    with serving(made) as url, ThreadPoolExecutor(8) as pool:
        ask = lambda n: httpx2.post(url + "/get_reward", json={"query": [TEXTS[n]]}, timeout=30)  # noqa: E731
        first = [pool.submit(ask, n) for n in range(2)]
        until(lambda: made.queue.requests == 2)
        refused = [pool.submit(ask, n).result() for n in range(5)]
        gate.set()
        assert {reply.status_code for reply in refused} == {503}
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert "2 requests are under way" in refused[0].json()["error"]["message"]
        assert [one.result().status_code for one in first] == [200, 200]
        assert ask(1).status_code == 200


def test_clients_that_leave_free_their_place(scorer_dir: Path, serving) -> None:
    made = service(scorer_dir)
    values, gate = made.queue._values, threading.Event()
    made.queue._values = lambda trees: (gate.wait(20), values(trees))[1]
    body = json.dumps({"query": TEXTS[:3]}).encode()
    with serving(made) as url:
        whole = [raw(url, body) for _ in range(6)]
        half = [raw(url, body[:20], length=len(body)) for _ in range(3)]
        until(lambda: made.queue.requests == 9)
        for one in (*whole, *half):
            one.close()
        until(lambda: made.queue.requests == 0)
        assert made.queue.tokens == made._held == 0
        gate.set()
        assert httpx2.post(url + "/get_reward", json={"query": TEXTS[:1]}).status_code == 200
        until(lambda: 'status="499"' in httpx2.get(url + "/metrics").text)


def test_a_huge_request_is_refused_with_the_reason(scorer_dir: Path, serving) -> None:
    """Also to a client that sends it all before it reads, whatever it is refused for; and then the server goes on."""
    made = service_of(
        ServeConfig(str(scorer_dir), precision="fp32", threads=1, limits=LimitsConfig(bytes=20_000)), "s3cret-key"
    )
    huge, key = b'{"query": ["' + b"x" * (8 << 20) + b'"]}', {"Authorization": "Bearer s3cret-key"}
    cases = [
        ("/get_reward", {**JSON, **key}, 413, "bytes; one may have 20,000"),
        ("/get_reward", JSON, 401, "wants its key"),
        ("/score", {**JSON, **key}, 400, "does not support Score API"),
        ("/nowhere", {**JSON, **key}, 404, "is not answered here"),
    ]
    with serving(made) as url:
        for path, headers, status, words in cases * 3:
            connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
            connection.request("POST", path, huge, headers)
            reply = connection.getresponse()
            assert reply.status == status and words in json.load(reply)["error"]["message"]
            connection.close()
        connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("POST", "/get_reward", json.dumps({"query": TEXTS[:1]}), {**JSON, **key})
        assert connection.getresponse().status == 200


def test_what_is_no_http_is_closed(scorer_dir: Path, serving, caplog) -> None:
    made = service(scorer_dir)
    with serving(made) as url:
        host, port = url.removeprefix("http://").split(":")
        for noise in NOISE:
            with socket.create_connection((host, int(port)), 10) as one:
                try:
                    one.sendall(noise)
                    answer = one.recv(100)
                except ConnectionError:
                    continue
                assert not answer or b" 400 " in answer or b" 404 " in answer
        reply = httpx2.post(url + "/get_reward", content=b"{" * 50_000, headers={"Content-Type": "application/json"})
        assert reply.status_code == 400
        assert httpx2.get(url + "/health").status_code == 200
    assert "Traceback" not in caplog.text


# ---- the end


def started(children: Any, log: Path, *options: str) -> tuple[int, str]:
    """`assent serve` as a process of its own, and its URL."""
    pid = children.start(["serve", *options], log)
    until(lambda: re.search(r"^http://\S+$", log.read_text(), re.MULTILINE) or "error:" in log.read_text(), 60)
    found = re.search(r"^(http://\S+)$", log.read_text(), re.MULTILINE)
    assert found, log.read_text()
    return pid, found[1]


def test_a_signal_lets_it_answer_what_it_has_taken(children, scorer_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    # Many forward passes: the signal comes in the middle of them.
    pid, url = started(children, log, str(scorer_dir), "--port", "0", "--micro_tokens", "64", "--threads", "1")
    text = log.read_text()
    assert f"Serving {scorer_dir} at {url}" in text and "/get_reward (OpenRLHF)" in text and "512 tokens a text" in text
    with ThreadPoolExecutor(1) as pool, httpx2.Client(base_url=url) as idle:
        assert idle.get("/health").status_code == 200
        slow = pool.submit(httpx2.post, url + "/get_reward", json={"query": TEXTS * 20}, timeout=60)
        until(lambda: "assent_forward_passes 0.0" not in idle.get("/metrics").text)
        signal_sent = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        reply = slow.result()
    assert reply.status_code == 200 and len(reply.json()["rewards"]) == 1000
    assert children.wait(pid) == 0 and time.monotonic() - signal_sent < 30
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url + "/health")
    text = log.read_text()
    assert "SIGTERM: no more requests are taken; 1 under way" in text
    assert "All requests are answered." in text and "Traceback" not in text


def test_a_second_signal_ends_it_at_once(children, scorer_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    pid, url = started(children, log, str(scorer_dir), "--port", "0", "--micro_tokens", "16", "--threads", "1")
    one = raw(url, json.dumps({"query": TEXTS * 20}).encode())
    until(lambda: "assent_forward_passes 0.0" not in httpx2.get(url + "/metrics").text)
    os.kill(pid, signal.SIGTERM)
    until(lambda: "no more requests are taken" in log.read_text())
    os.kill(pid, signal.SIGTERM)
    assert children.wait(pid) == 143
    assert "SIGTERM: ended with 1 requests unanswered." in log.read_text()
    one.close()


def test_what_takes_longer_than_the_drain_is_cut_and_said(children, scorer_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    options = ("--port", "0", "--micro_tokens", "16", "--threads", "1", "--drain", "0.2")
    pid, url = started(children, log, str(scorer_dir), *options)
    one = raw(url, json.dumps({"query": TEXTS * 20}).encode())
    until(lambda: "assent_forward_passes 0.0" not in httpx2.get(url + "/metrics").text)
    os.kill(pid, signal.SIGINT)
    assert children.wait(pid) == 1
    assert "error: 1 requests were not answered within --drain 0.2 seconds." in log.read_text()
    one.close()


def test_a_run_outlives_its_server(
    children, tiny_model_dir: Path, scorer_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """The server is killed before the second rollout is scored, and started again on its port while the run asks."""
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} red green?"}) + "\n" for n in range(4)))
    log = tmp_path / "log"
    log.touch()
    pid, url = started(children, log, str(scorer_dir), "--port", "0", "--threads", "1", "--precision", "fp32")
    port = url.rpartition(":")[2]
    pids, asked, score = [pid], Counter[str](), RemoteReward.score

    def killing(self: RemoteReward, groups: Any) -> Any:
        asked["rollouts"] += 1
        if asked["rollouts"] == 3 and disturbed:  # the first is the question about made-up answers
            os.kill(pids[-1], signal.SIGKILL)
            assert children.wait(pids[-1]) == -signal.SIGKILL
            again = tmp_path / "again"
            again.touch()
            options = [str(scorer_dir), "--port", port, "--threads", "1", "--precision", "fp32"]
            pids.append(children.start(["serve", *options], again))
        return score(self, groups)

    monkeypatch.setattr(RemoteReward, "score", killing)
    digests = []
    for disturbed in (False, True):
        asked.clear()
        out = tmp_path / f"run{disturbed}"
        code = main(
            f"grpo --model.path {tiny_model_dir} --model.precision fp32 --data.train {rows} --data.max_length 64 "
            f"--rewards.servers vllm={url} --train.batch_size 2 --train.max_steps 3 "
            f"--rollout.responses 2 --sampling.max_new_tokens 4 --kl.coef 0 --train.threads 1 --out {out}".split()
        )
        assert code == 0
        digests.append(hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1] and len(pids) == 2
    os.kill(pids[-1], signal.SIGTERM)
    assert children.wait(pids[-1]) == 0
