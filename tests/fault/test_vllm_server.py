"""A vLLM server that is away, hangs, forgets its weights or talks nonsense, played by a real one with a script of
faults. The real vLLM is in tests/vllm."""

from __future__ import annotations

import gc
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from assent.config import EngineConfig, GenerateConfig, SamplingConfig
from assent.config.settings import validate
from assent.errors import ConfigError, ModelError, NonFiniteError
from assent.http import ServerAnswerError, ServerUnavailable
from assent.rollout import vllm_server
from assent.rollout.build import engine_for, engine_of
from assent.rollout.vllm_server import VllmServer
from assent.rollout.vllm_shared import WeightsFolder, agree, completion, logprobs_mode, request, stored
from assent.rollout.vllm_worker import EXTENSION

from .servers import FakeServer, Handler, drop, hang

EOS = (7,)
SAMPLING = SamplingConfig(max_new_tokens=4, max_batch=4)
PROMPTS = [np.array([10 + i, 20 + i]) for i in range(5)]
Act = Callable[[Handler], None]


class FakeVllm(FakeServer):
    """Answers as vLLM does: the response i to a prompt is its first token, then i, then the number of its weights'
    letters, then EOS."""

    def __init__(self, port: int = 0, mode: str = "processed_logprobs") -> None:
        self.scripts: dict[str, list[Act]] = {}
        self.requests: list[tuple[str, dict | None]] = []
        self.version, self.weights, self.refreshed, self.paused, self.mode = "default", "old", "old", False, mode
        self.device, self.extension = "cuda", ""
        super().__init__(port)

    def respond(self, handler: Handler) -> None:
        path = handler.path.partition("?")[0]
        with self.lock:
            self.requests.append((path, handler.body))
            script = self.scripts.get(path)
            act = script.pop(0) if script else say()
        act(handler)

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def reply(self, path: str, body: dict) -> object:
        match path.partition("?")[0]:
            case "/weight_info":
                return {"weight_version": self.version}
            case "/server_info":
                return {
                    "vllm_config": {
                        "model_config": {"logprobs_mode": self.mode, "max_model_len": 32},
                        "device_config": {"device": self.device},
                        "parallel_config": {"worker_extension_cls": self.extension},
                    }
                }
            case "/pause":
                assert path.endswith("mode=abort")
                self.paused = True
            case "/resume":
                self.paused = False
            case "/collective_rpc":
                assert self.paused
                if body["method"] == "reload_weights":
                    self.weights = (Path(body["kwargs"]["weights_path"]) / "model").read_text()
                else:
                    assert body == {"method": "refresh_head"}
                    self.refreshed = self.weights
            case "/update_weight_version":
                self.version = body["new_version"]
            case "/inference/v1/generate":
                return {"choices": [self.choice(body, i) for i in range(body["sampling_params"]["n"])][::-1]}
        return {}

    def choice(self, body: dict, i: int) -> dict:
        ids = [body["token_ids"][0], i, 100 + len(self.weights), 7]
        return {
            "index": i,
            "finish_reason": "stop",
            "token_ids": ids,
            "weight_versions": [{"version": self.version, "start": 0, "end": 4}],
            "logprobs": {"content": [{"token_id": token, "logprob": -token / 8} for token in ids]},
        }


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    server = FakeVllm()
    yield server
    server.stop()


def say(text: str | None = None, status: int = 200, change: Callable[[dict], None] | None = None) -> Act:
    """Answers with that text; without one, as vLLM would, but for `change` in each choice."""

    def act(handler: Handler) -> None:
        reply = handler.server.reply(handler.path, handler.body or {}) if text is None else None
        for choice in reply["choices"] if change else ():
            change(choice)
        handler.say(reply if text is None else text, status)

    return act


def forget(handler: Handler) -> None:
    """As if it had been started anew just before it answers."""
    handler.server.version, handler.server.weights = "default", "old"
    say()(handler)


def die(handler: Handler) -> None:
    """As if it had been killed before it answers, and started anew at once."""
    handler.server.version, handler.server.weights = "default", "old"
    drop(handler)


def save(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.mkdir()
    (path / "model").write_text("x" * int(state["w"].sum()))


def weights(letters: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((letters,), 1.0), "v": torch.arange(3)}


def engine(url: str, folder: Path, rank: int = 0, **options: object) -> VllmServer:
    quick = {"precision": "fp32", "timeout": 30.0, "patience": 120.0, "pause": 0.01}
    return VllmServer(url, WeightsFolder(folder, save, rank == 0), EOS, SAMPLING, **{**quick, **options})


def ids(groups: Sequence[Sequence[object]]) -> list[list[list[int]]]:
    return [[c.ids.tolist() for c in group] for group in groups]


def right(letters: int, n: int = 2) -> list[list[list[int]]]:
    return [[[int(prompt[0]), i, 100 + letters, 7] for i in range(n)] for prompt in PROMPTS]


# ---------------------------------------------------------------------------------------------------- what is sent


def test_weights_first_and_then_answers(fake: FakeVllm, tmp_path: Path):
    sampler = engine(fake.url + "/", tmp_path)
    sampler.update_weights(weights(5))
    label = "/update_weight_version"
    loaded = [label, "/pause", "/collective_rpc", "/resume", "/weight_info", label, "/weight_info"]
    assert fake.paths() == ["/weight_info", "/server_info", *loaded]
    groups = sampler.generate(PROMPTS, 2, SAMPLING, seed=3, first=6)
    assert ids(groups) == right(5) and all(c.finished for group in groups for c in group)
    assert groups[0][1].logprobs.tolist() == [-10 / 8, -1 / 8, -105 / 8, -7 / 8]
    asked = [body for path, body in fake.requests if path == "/inference/v1/generate"]
    assert sorted(body["token_ids"] for body in asked) == [prompt.tolist() for prompt in PROMPTS]
    for body in asked:
        assert body["sampling_params"] == request(SAMPLING, 2, 3, 6 + body["token_ids"][0] - 10, EOS, True)

    fake.requests.clear()
    sampler.update_weights(weights(5))  # the same: it has them
    sampler.update_weights(weights(6))
    assert fake.paths() == ["/weight_info", "/weight_info", "/server_info", *loaded]
    assert ids(sampler.generate(PROMPTS, 2, SAMPLING, seed=3)) == right(6)
    (kept,) = tmp_path.iterdir()
    assert kept.name == f"weights-{fake.version}"
    del sampler
    gc.collect()
    assert not tmp_path.exists()


def test_a_run_that_goes_on_sends_nothing_that_the_server_has(fake: FakeVllm, tmp_path: Path):
    engine(fake.url, tmp_path / "one").update_weights(weights(5))
    fake.requests.clear()
    engine(fake.url, tmp_path / "two").update_weights(weights(5))
    assert fake.paths() == ["/weight_info", "/server_info"]


def test_a_server_on_a_cpu_needs_its_head_refreshed(fake: FakeVllm, tmp_path: Path):
    fake.device = "cpu"
    with pytest.raises(ConfigError, match=f"Start it with: .* --worker-extension-cls {EXTENSION}"):
        engine(fake.url, tmp_path).update_weights(weights(5))
    fake.extension = EXTENSION
    engine(fake.url, tmp_path).update_weights(weights(5))
    assert fake.refreshed == fake.weights == "xxxxx"


CORE = """
import os, subprocess, sys, time
worker = "import sys, time; from assent.rollout.vllm_worker import Extension; Extension().end_with(int(sys.argv[1])); "
worker += "print('ready', flush=True); time.sleep(600)"
subprocess.run([sys.executable, "-c", worker, str(os.getppid())])
"""


def test_nothing_is_left_of_a_run_that_was_killed():
    run = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen([sys.executable, "-c", run, CORE], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"  # run, core and worker are there, and all hold the pipe
    process.kill()
    assert process.stdout.read() == b""  # none of them holds it any more
    process.wait()


def test_what_vllm_is_asked():
    sampling = SamplingConfig(max_new_tokens=9, temperature=0.7, top_k=3, top_p=0.5)
    asked = request(sampling, 4, 1, 2, (9, 7), logprobs=True)
    seed = asked.pop("seed")
    assert asked == {
        "n": 4,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_tokens": 0,
        "stop": None,
        "bad_words": None,
        "logit_bias": None,
        "allowed_token_ids": None,
        "watermarking": False,
        "stop_token_ids": [7, 9],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }
    seeds = {request(sampling, 4, s, p, EOS, True)["seed"] for s in (0, 1, 2**63 - 1) for p in range(20)}
    assert len(seeds) == 60 and seed in seeds and all(0 <= s < 2**62 for s in seeds)
    assert request(sampling, 4, 1, 2, EOS, logprobs=False)["logprobs"] is None


def test_greedy_answers_are_asked_for_once(fake: FakeVllm, tmp_path: Path):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    groups = sampler.generate(PROMPTS, 3, SamplingConfig(max_new_tokens=4, temperature=0.0), 0)
    assert ids(groups) == [[[int(p[0]), 0, 105, 7]] * 3 for p in PROMPTS]
    assert all(b["sampling_params"]["n"] == 1 for path, b in fake.requests if "generate" in path)


def test_nothing_to_ask(tmp_path: Path):
    sampler = engine("http://127.0.0.1:9", tmp_path)
    assert sampler.generate([], 2, SAMPLING, 0) == [] and sampler.generate(PROMPTS, 0, SAMPLING, 0) == [[]] * 5


def test_no_more_sequences_are_under_way_than_the_batch(fake: FakeVllm, tmp_path: Path):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    gate, at_once, most = threading.Event(), [0], [0]

    def held(handler: Handler) -> None:
        with fake.lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        if most[0] == 2:
            gate.set()
        gate.wait(10)
        with fake.lock:
            at_once[0] -= 1
        say()(handler)

    fake.scripts["/inference/v1/generate"] = [held] * 5
    assert ids(sampler.generate(PROMPTS, 2, SAMPLING, 0)) == right(5)
    assert most[0] == 2  # of 2 responses each: max_batch 4


def test_a_rank_that_does_not_write_waits_for_the_one_that_does(fake: FakeVllm, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(vllm_server, "_LOOK", 0.05)
    second = engine(fake.url, tmp_path, rank=1)
    second.update_weights(weights(5))
    assert not fake.requests and not list(tmp_path.iterdir())
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(second.generate, PROMPTS, 2, SAMPLING, 0)
        while fake.paths().count("/weight_info") < 3 and not asked.done():
            time.sleep(0.01)
        assert "/inference/v1/generate" not in fake.paths()
        first = engine(fake.url, tmp_path)
        first.update_weights(weights(5))
        assert ids(asked.result()) == right(5)

    fake.scripts["/inference/v1/generate"] = [forget]  # then it may send what the other has written
    assert ids(second.generate(PROMPTS, 2, SAMPLING, 0)) == right(5)
    assert first._folder is not None

    late = engine(fake.url, tmp_path, rank=1, patience=0.1)
    late.update_weights(weights(6))
    with pytest.raises(ServerUnavailable, match="did not get the newest weights within 0.1 s"):
        late.generate(PROMPTS, 2, SAMPLING, 0)


# ---------------------------------------------------------------------------------------------------- what may pass


def aborted(choice: dict) -> None:
    choice["finish_reason"] = "abort"


@pytest.mark.parametrize(
    "faults",
    [
        [say("broken", 500)],
        [say("", 503), say("", 429)],
        [drop],
        [hang],
        [forget],
        [forget, forget],
        [say(change=aborted)],
        [say("", 500), drop, forget, hang],
    ],
    ids=["500", "503-429", "drop", "hang", "forget", "forget twice", "abort", "all"],
)
def test_faults_while_it_samples(fake: FakeVllm, tmp_path: Path, faults: list[Act]):
    sampler = engine(fake.url, tmp_path, timeout=1.0)
    sampler.update_weights(weights(5))
    fake.scripts["/inference/v1/generate"] = list(faults)
    groups = sampler.generate(PROMPTS, 2, SAMPLING, 0)
    assert ids(groups) == right(5)  # never an answer of the old weights


def test_a_server_that_forgot_between_rollouts(fake: FakeVllm, tmp_path: Path):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    fake.version, fake.weights = "default", "old"
    assert ids(sampler.generate(PROMPTS, 2, SAMPLING, 0)) == right(5)


@pytest.mark.parametrize(
    ("path", "faults"),
    [
        ("/resume", [forget]),
        ("/update_weight_version", [say(), die]),
        ("/update_weight_version", [say(), die, say(), die]),
    ],
)
def test_a_server_started_anew_while_it_reads_weights_is_not_told_that_it_has_them(
    fake: FakeVllm, tmp_path: Path, path: str, faults: list[Act]
):
    sampler = engine(fake.url, tmp_path)
    fake.scripts[path] = list(faults)
    sampler.update_weights(weights(5))
    assert (fake.weights, fake.scripts[path]) == ("xxxxx", [])
    assert ids(sampler.generate(PROMPTS, 2, SAMPLING, 0)) == right(5)


@pytest.mark.parametrize("path", ["/weight_info", "/pause", "/collective_rpc", "/resume", "/update_weight_version"])
@pytest.mark.parametrize("fault", [say("", 500), drop, hang], ids=["500", "drop", "hang"])
def test_faults_while_it_is_given_weights(fake: FakeVllm, tmp_path: Path, path: str, fault: Act):
    sampler = engine(fake.url, tmp_path, timeout=1.0)
    fake.scripts[path] = [fault]
    sampler.update_weights(weights(5))
    assert ids(sampler.generate(PROMPTS, 2, SAMPLING, 0)) == right(5)


def test_a_server_that_is_killed_and_started_again(fake: FakeVllm, tmp_path: Path, capsys):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    another: list[FakeVllm] = []

    def die(handler: Handler) -> None:
        handler.connection.close()
        fake.shutdown()
        fake.server_close()
        threading.Timer(0.3, lambda: another.append(FakeVllm(fake.server_port))).start()

    fake.scripts["/inference/v1/generate"] = [say(), die, *[drop] * 50]
    try:
        assert ids(sampler.generate(PROMPTS, 2, SAMPLING, 0)) == right(5)
        assert another[0].weights == "xxxxx"
        assert f"waiting: --engine.url: the vLLM server {fake.url} " in capsys.readouterr().err
    finally:
        another[0].stop()


# ---------------------------------------------------------------------------------------------------- what will not


def test_a_server_that_is_not_there(tmp_path: Path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServerUnavailable) as caught:
        engine(url, tmp_path, patience=0.3).update_weights(weights(5))
    assert caught.value.exit_code == 2
    assert f"--engine.url: the vLLM server {url}/weight_info did not answer in" in str(caught.value)
    assert "refused the connection" in str(caught.value)
    start = "Start it with: VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL"
    assert f"{start} --tokens-only --logprobs-mode processed_logprobs --dtype float32" in str(caught.value)
    assert capsys.readouterr().err.count("waiting") == 1


@pytest.mark.parametrize("fault", [say("", 500), hang], ids=["500", "hang"])
def test_a_server_that_dies_for_good(fake: FakeVllm, tmp_path: Path, fault: Act):
    sampler = engine(fake.url, tmp_path, patience=3.0, timeout=1.0)
    sampler.update_weights(weights(5))
    fake.scripts = {"/inference/v1/generate": [drop] * 100, "/weight_info": [say(), *[fault] * 100]}
    with pytest.raises(ServerUnavailable, match="/weight_info did not answer"):
        sampler.generate(PROMPTS, 1, SAMPLING, 0)


def test_a_server_that_never_gets_it_right(fake: FakeVllm, tmp_path: Path):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    fake.scripts["/inference/v1/generate"] = [say("out of memory", 500)] * 100
    with pytest.raises(ServerUnavailable, match=r"gave no responses in 7 .*500 \(7x\)\. It said 'out of memory'\."):
        sampler.generate(PROMPTS[:1], 2, SAMPLING, 0)
    fake.scripts["/inference/v1/generate"] = [forget] * 100
    with pytest.raises(ServerUnavailable, match=r"had other weights \(7x\).* serves another run as well"):
        sampler.generate(PROMPTS[:1], 2, SAMPLING, 0)


def test_weights_that_it_cannot_load(fake: FakeVllm, tmp_path: Path):
    fake.scripts["/collective_rpc"] = [say('{"error": "size mismatch"}', 500)] * 100
    with pytest.raises(ServerUnavailable) as caught:
        engine(fake.url, tmp_path).update_weights(weights(5))
    assert "could not be given weights in 3 attempts" in str(caught.value) and "size mismatch" in str(caught.value)
    assert f"see the folder {tmp_path}/weights-" in str(caught.value)


def only(**changes: object) -> Act:
    return say(change=lambda choice: choice.update(changes))


@pytest.mark.parametrize(
    "answer",
    [
        say("<html>"),
        say(""),
        say("[]"),
        say("{}"),
        say('{"choices": null}'),
        say('{"choices": []}'),
        say('{"choices": [1, 2]}'),
        say("no such model", 400),
        say("Restart vllm serve with --enable-scale-out", 403),
        only(index=0),
        only(token_ids=None),
        only(token_ids=[1.5, 2, 3, 7]),
        only(token_ids=[]),
        only(token_ids=[1, 2, 7]),
        only(token_ids=[1, 7, 2, 7]),
        only(token_ids=[1, 2, 3, 4, 7]),
        only(logprobs=None),
        only(logprobs={"content": [{"logprob": -1.0}] * 3}),
        only(logprobs={"content": [{"logprob": None}] * 4}),
        only(logprobs={"content": [{"logprob": "x"}] * 4}),
        only(weight_versions=None),
    ],
)
def test_answers_that_are_none(fake: FakeVllm, tmp_path: Path, answer: Act):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    fake.scripts["/inference/v1/generate"] = [answer]
    with pytest.raises(ServerAnswerError, match=r"/inference/v1/generate answered .*; expected 2 responses\."):
        sampler.generate(PROMPTS[:1], 2, SAMPLING, 0)
    assert fake.paths().count("/inference/v1/generate") == 1


@pytest.mark.parametrize("value", [-9999.0, float("nan"), float("-inf")])
def test_logprobs_that_are_not_finite(fake: FakeVllm, tmp_path: Path, value: float):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    fake.scripts["/inference/v1/generate"] = [only(logprobs={"content": [{"logprob": value}] * 4})]
    with pytest.raises(NonFiniteError, match="vLLM gave a log-probability that is not a finite number"):
        sampler.generate(PROMPTS[:1], 2, SAMPLING, 0)


def test_a_server_without_its_development_mode(fake: FakeVllm, tmp_path: Path):
    fake.scripts["/weight_info"] = [say('{"detail":"Not Found"}', 404)]
    with pytest.raises(ServerAnswerError, match="answered 404 .* Start it with: VLLM_SERVER_DEV_MODE=1 python -m vllm"):
        engine(fake.url, tmp_path).update_weights(weights(5))


def test_sequences_that_are_too_long(fake: FakeVllm, tmp_path: Path):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    with pytest.raises(ModelError, match="max_new_tokens 31 that is 33, more than the 32 that vLLM was started for"):
        sampler.generate(PROMPTS, 1, SamplingConfig(max_new_tokens=31), 0)


# ---------------------------------------------------------------------------------------------------- log-probs


RAW, PROCESSED = SamplingConfig(top_k=5), SamplingConfig(temperature=0.7)


def test_which_logprobs_are_right():
    assert logprobs_mode(RAW) == logprobs_mode(SamplingConfig(top_p=0.9)) == "raw_logprobs"
    assert logprobs_mode(PROCESSED) == logprobs_mode(SamplingConfig()) == "processed_logprobs"
    for mode in ("raw_logprobs", "processed_logprobs"):
        assert agree(mode, SamplingConfig()) and agree(mode, SamplingConfig(temperature=0.0))
        assert not agree("raw_logits", SamplingConfig())
    assert agree("raw_logprobs", RAW) and not agree("processed_logprobs", RAW)
    assert agree("processed_logprobs", PROCESSED) and not agree("raw_logprobs", PROCESSED)
    with pytest.raises(ConfigError, match="--sampling.temperature 0.7 together with top-k or top-p"):
        logprobs_mode(SamplingConfig(temperature=0.7, top_p=0.9))
    with pytest.raises(ConfigError, match=r"0 or at least 0\.01 .* Got 0\.001"):
        logprobs_mode(SamplingConfig(temperature=0.001))


def test_a_server_with_the_wrong_kind_of_logprobs(fake: FakeVllm, tmp_path: Path):
    sampler = engine(fake.url, tmp_path)
    sampler.update_weights(weights(5))
    with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs, but this sampling needs raw_logprobs"):
        sampler.generate(PROMPTS, 1, RAW, 0)


def test_answers_without_logprobs(fake: FakeVllm, tmp_path: Path):
    (tmp_path / "model").write_text("xyz")
    (tmp_path / "a.safetensors").write_text("weights")
    sampling = SamplingConfig(max_new_tokens=4, temperature=0.7, top_p=0.9)
    config = EngineConfig("vllm", url=fake.url)
    groups = engine_for(str(tmp_path), config, EOS, sampling, "fp32").generate(PROMPTS, 2, sampling, 0)
    assert ids(groups) == right(3) and all(np.isnan(c.logprobs).all() for group in groups for c in group)
    assert fake.version == stored(str(tmp_path)).version
    (tmp_path / "a.safetensors").write_text("other weights")
    assert fake.version != stored(str(tmp_path)).version
    assert stored("owner/name").path == "owner/name"


def test_a_completion_of_full_length_is_not_finished():
    made = completion([1, 2, 3, 4], [-1.0] * 4, SAMPLING, EOS)
    assert not made.finished and made.ids.dtype == np.int64 and made.logprobs.dtype == np.float32


# ---------------------------------------------------------------------------------------------------- options


def test_wrong_options(tmp_path: Path):
    with pytest.raises(ConfigError, match="--engine.url: the vLLM server must be http://HOST:PORT"):
        engine("localhost:8000", tmp_path)
    with pytest.raises(ConfigError, match="needs a run of one process; this one has 2. Start a vLLM server"):
        engine_of(None, EngineConfig("vllm"), EOS, SAMPLING, max_length=8, folder=tmp_path, ranks=2)
    for wrong, words in [
        (EngineConfig(url="http://h:1"), "--engine.url is read only with --engine.name vllm. Got --engine.name torch."),
        (EngineConfig("vllm", weights="w"), "--engine.weights is read only in training with --engine.name vllm."),
        (EngineConfig("vllm", memory=0.0), "--engine.memory must be above 0 and at most 1"),
        (EngineConfig("vllm", patience=0.0), "--engine.patience must be > 0"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(words)):
            validate(GenerateConfig("m", engine=wrong))


def test_without_vllm_the_error_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"--engine.name vllm needs vLLM.*pip install 'assent\[vllm\]'"):
        engine_for(str(tmp_path), EngineConfig("vllm"), EOS, SAMPLING, "fp32")
