"""vLLM on a server: a real one, started, killed and started again."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from assent.config import EngineConfig, GenerateConfig, LoraConfig, SamplingConfig
from assent.errors import ConfigError
from assent.models.adapters import add_lora, merged_weights
from assent.models.init import train_tokenizer
from assent.models.policy import Policy
from assent.rollout import chat
from assent.rollout.build import engine_of
from assent.rollout.torch_engine import TorchEngine
from assent.rollout.vllm_server import VllmServer

from . import conftest
from .conftest import EOS, LONGEST, RealServer, prompts, same, sampled_logprobs, training_logprobs

policy = partial(conftest.policy, tied=True)
SAMPLING = SamplingConfig(max_new_tokens=24, max_batch=16)


def connected(server: RealServer, model: Policy, folder: Path, rank: int = 0) -> VllmServer:
    config = EngineConfig("vllm", url=server.url, patience=240.0)
    engine = engine_of(model, config, EOS, SAMPLING, max_length=LONGEST, folder=folder, rank=rank, ranks=2)
    assert isinstance(engine, VllmServer)
    return engine


@pytest.mark.parametrize("top_k", [0, 20])
def test_logprobs_are_those_of_training_also_after_an_update(server: RealServer, tmp_path: Path, top_k: int) -> None:
    sampling = SamplingConfig(max_new_tokens=24, top_k=top_k)
    engine = connected(server, policy(0), tmp_path)
    found = []
    for seed in (0, 1):
        model = policy(seed)
        engine.update_weights(model.model.state_dict())
        groups = engine.generate(prompts(), 4, sampling, seed=5)
        got = sampled_logprobs(groups)
        assert got == pytest.approx(training_logprobs(model, groups, 1.0), abs=2e-4)
        assert got.std() > 0.1
        found.append(groups)
    assert not same(*found)
    assert same(groups, engine.generate(prompts(), 4, sampling, seed=5))
    assert same(groups[2:], engine.generate(prompts()[2:], 4, sampling, seed=5, first=2))


def test_greedy_is_the_torch_engines(server: RealServer, tmp_path: Path) -> None:
    model = policy(2)
    engine = connected(server, model, tmp_path)
    engine.update_weights(model.model.state_dict())
    greedy = SamplingConfig(max_new_tokens=24, temperature=0.0)
    ours = TorchEngine(model.model, EOS).generate(prompts(), 2, greedy, seed=0)
    assert same(ours, engine.generate(prompts(), 2, greedy, seed=0))


def test_merged_adapters(server: RealServer, tmp_path: Path) -> None:
    model = policy(0)
    model.model = add_lora(model.model, LoraConfig(rank=4), "CAUSAL_LM")
    for name, weight in model.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    engine = connected(server, model, tmp_path)
    engine.update_weights(merged_weights(model.model, model.model.state_dict()))
    groups = engine.generate(prompts(), 4, SAMPLING, seed=5)
    assert sampled_logprobs(groups) == pytest.approx(training_logprobs(model, groups, 1.0), abs=2e-4)
    plain = training_logprobs(policy(0), groups, 1.0)
    assert np.abs(sampled_logprobs(groups) - plain).max() > 0.1


def test_another_rank_asks_without_writing(server: RealServer, tmp_path: Path) -> None:
    model = policy(1)
    first, second = connected(server, model, tmp_path), connected(server, model, tmp_path, rank=1)
    second.update_weights(model.model.state_dict())
    assert not list(tmp_path.iterdir())
    found = []
    asking = threading.Thread(target=lambda: found.append(second.generate(prompts()[3:], 2, SAMPLING, 5, first=3)))
    asking.start()  # before the weights are there
    first.update_weights(model.model.state_dict())
    asking.join()
    assert same(found[0], first.generate(prompts(), 2, SAMPLING, 5)[3:])


def test_a_server_that_reports_another_kind_of_logprobs(server: RealServer, tmp_path: Path) -> None:
    model = policy(1)
    engine = connected(server, model, tmp_path)
    engine.update_weights(model.model.state_dict())
    with pytest.raises(ConfigError, match="--logprobs-mode raw_logprobs, but this sampling needs processed_logprobs"):
        engine.generate(prompts(), 1, SamplingConfig(max_new_tokens=4, temperature=0.8), 0)


def test_a_server_that_is_killed_and_started_again_samples_from_the_current_weights(
    server: RealServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = policy(1)
    engine = connected(server, model, tmp_path)
    engine.update_weights(model.model.state_dict())
    long = SamplingConfig(max_new_tokens=80, max_batch=4)
    want = engine.generate(prompts(), 4, long, seed=5)

    begun = threading.Event()
    generate, found = engine._group, []

    def group(*args: object) -> object:
        begun.set()
        return generate(*args)  # type: ignore[arg-type]

    engine._group = group  # type: ignore[method-assign, assignment]
    asking = threading.Thread(target=lambda: found.append(engine.generate(prompts(), 4, long, 5)))
    asking.start()
    begun.wait()
    server.kill()
    server.start()
    asking.join()
    assert same(found[0], want)
    assert sampled_logprobs(found[0]) == pytest.approx(training_logprobs(model, want, 1.0), abs=2e-4)
    assert "waiting: --engine.url: the vLLM server http://127.0.0.1:" in capfd.readouterr().err


def test_answers_of_a_model_folder(server: RealServer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tokenizer = train_tokenizer(("What is the capital of France? Paris. One two three.",) * 3, 400)
    model = policy(3).model
    # every id of the model is a token: of ids that no token has, only our own engine knows
    tokenizer.add_tokens([f"<extra {i}>" for i in range(model.config.vocab_size - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "One"}\n{"prompt": "two three"}\n')
    rows = []
    for engine in (EngineConfig("vllm", url=server.url), EngineConfig()):
        out = tmp_path / f"{engine.name}.jsonl"
        config = GenerateConfig(
            str(folder),
            prompts=str(tmp_path / "prompts.jsonl"),
            out=str(out),
            precision="fp32",
            sampling=SamplingConfig(max_new_tokens=12, temperature=0.0),
            engine=engine,
        )
        chat.generate(config)
        rows.append([json.loads(line) for line in out.read_text().splitlines()])
    assert rows[0] == rows[1] and len(rows[0]) == 2
