"""vLLM inside a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from assent.config import EngineConfig, SamplingConfig
from assent.errors import ConfigError, ModelError
from assent.models.policy import Policy
from assent.rollout.build import engine_of
from assent.rollout.vllm_engine import VllmEngine

from .conftest import EOS, LONGEST, MEMORY, policy, prompts, same, sampled_logprobs, training_logprobs

SAMPLING = SamplingConfig(max_new_tokens=24, temperature=0.8, max_batch=16)


def started(model: Policy, folder: Path) -> VllmEngine:
    config = EngineConfig("vllm", memory=MEMORY)
    engine = engine_of(model, config, EOS, SAMPLING, max_length=LONGEST, folder=folder)
    assert isinstance(engine, VllmEngine)
    engine.update_weights(model.model.state_dict())
    return engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    made = started(policy(0), tmp_path_factory.mktemp("weights"))
    yield made
    made.close()


def test_what_is_sampled(engine: VllmEngine) -> None:
    groups = engine.generate(prompts(), 4, SAMPLING, seed=5)
    assert [len(group) for group in groups] == [4] * 5
    flat = [c for group in groups for c in group]
    assert {c.finished for c in flat} == {True, False}
    for c in flat:
        ends = np.isin(c.ids, EOS)
        assert ends.any() == c.finished and not ends[:-1].any() and (c.finished or len(c) == 24)
    assert len({tuple(c.ids) for c in flat}) > 10

    assert same(groups, engine.generate(prompts(), 4, SAMPLING, seed=5))
    assert same(groups[2:], engine.generate(prompts()[2:], 4, SAMPLING, seed=5, first=2))
    assert same([group[:1] for group in groups], engine.generate(prompts(), 1, SAMPLING, seed=5))
    assert not same(groups, engine.generate(prompts(), 4, SAMPLING, seed=6))
    assert engine.generate([], 4, SAMPLING, seed=5) == []


@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_logprobs_are_those_of_training_also_after_an_update(engine: VllmEngine, temperature: float) -> None:
    sampling = SamplingConfig(max_new_tokens=24, temperature=temperature)
    found = []
    for seed in (1, 0):
        model = policy(seed)
        engine.update_weights(model.model.state_dict())
        groups = engine.generate(prompts(), 4, sampling, seed=5)
        got = sampled_logprobs(groups)
        assert got == pytest.approx(training_logprobs(model, groups, temperature or 1.0), abs=2e-4)
        assert got.std() > 0.1
        found.append(groups)
    assert not same(*found)


def test_it_samples_in_a_thread_beside_training(engine: VllmEngine) -> None:
    with ThreadPoolExecutor(1) as thread:
        beside = thread.submit(engine.generate, prompts(), 2, SAMPLING, 5).result()
    assert same(beside, engine.generate(prompts(), 2, SAMPLING, 5))


def test_only_the_newest_weights_are_kept(engine: VllmEngine) -> None:
    assert engine._folder is not None
    for seed in (3, 4, 4):
        engine.update_weights(policy(seed).model.state_dict())
        (kept,) = engine._folder.folder.iterdir()
        assert kept.name == f"weights-{engine._version}" and (kept / "model.safetensors").is_file()


def test_what_it_cannot_do(engine: VllmEngine) -> None:
    with pytest.raises(ModelError, match="max_new_tokens 100 that is 140, more than the 128"):
        engine.generate(prompts(), 1, SamplingConfig(max_new_tokens=100, temperature=0.8), 0)
    with pytest.raises(ConfigError, match="started with --logprobs-mode processed_logprobs; .* needs raw_logprobs"):
        engine.generate(prompts(), 1, SamplingConfig(max_new_tokens=4, top_k=5), 0)


def test_ctrl_c_reaches_none_of_its_processes(engine: VllmEngine) -> None:
    found = psutil.Process().children(recursive=True)
    children = [p for p in found if "resource_tracker" not in " ".join(p.cmdline())]
    assert len(children) >= 2  # its core and its worker
    for child in children:
        status = Path(f"/proc/{child.pid}/status").read_text()
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        assert blocked >> (signal.SIGINT - 1) & 1


def test_bf16_and_a_head_tied_to_the_embedding(tmp_path: Path) -> None:
    model = policy(0, "bf16", tied=True)
    engine = started(model, tmp_path)
    try:
        worst = []
        for seed in (0, 1):
            model = policy(seed, "bf16", tied=True)
            engine.update_weights(model.model.state_dict())
            groups = engine.generate(prompts(), 8, SAMPLING, seed=5)
            gap = np.abs(sampled_logprobs(groups) - training_logprobs(model, groups, 0.8))
            worst.append((gap.max(), gap.mean()))
        print("bf16: largest and mean gap", worst)
        assert max(gap for gap, _ in worst) < 0.2 and max(mean for _, mean in worst) < 0.03
    finally:
        engine.close()
