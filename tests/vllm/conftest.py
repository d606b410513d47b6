"""A small model with random but not degenerate weights, and a real vLLM server. Run by `make test-vllm`, in an
environment that has vLLM; elsewhere nothing in here is collected."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from assent.data.tree import Branch, TokenTree, collate
from assent.models.attention import install
from assent.models.policy import Policy
from assent.rollout.engine import Completion
from assent.rollout.vllm_worker import EXTENSION

if importlib.util.find_spec("vllm"):
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # vLLM compiles one function of its sampler: half a minute for nothing here
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    collect_ignore_glob = []
else:
    collect_ignore_glob = ["test_*.py"]

VOCAB, LONGEST = 400, 128
EOS = (3, 11, 20, 50)
MEMORY = 0.08
LENGTHS = (3, 40, 11, 1, 24)


def policy(seed: int, precision: str = "fp32", tied: bool = False) -> Policy:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the least that vLLM's attention for CPUs can do
        max_position_embeddings=256,
        initializer_range=0.15,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).float()
    install(model)
    return Policy(model, precision=precision, tree=True)


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(51, VOCAB, length) for length in LENGTHS]


def training_logprobs(model: Policy, groups: list[list[Completion]], temperature: float) -> np.ndarray:
    trees = [
        TokenTree(prompt, tuple(Branch(c.ids, np.ones(len(c), bool)) for c in group))
        for prompt, group in zip(prompts(), groups, strict=True)
    ]
    with torch.no_grad():
        return model(collate(trees), temperature).logprobs.float().numpy()


def sampled_logprobs(groups: list[list[Completion]]) -> np.ndarray:
    return np.concatenate([c.logprobs for group in groups for c in group])


def same(one: list[list[Completion]], other: list[list[Completion]]) -> bool:
    return [[c.ids.tolist() for c in group] for group in one] == [[c.ids.tolist() for c in group] for group in other]


class RealServer:
    """A vLLM server, as a person would start it: for rollouts, or with the given flags."""

    def __init__(self, model: Path, log: Path, flags: str | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.model, self.log, self.flags = model, log, flags
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        flags = "--dtype float32 --enforce-eager --host 127.0.0.1 " + (
            "--tokens-only --logprobs-mode raw_logprobs" if self.flags is None else self.flags
        )
        options: dict[str, object] = {
            "model": self.model,
            "port": self.port,
            "max-model-len": LONGEST,
            "gpu-memory-utilization": MEMORY,
            "max-num-seqs": 16,
            "worker-extension-cls": EXTENSION,
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags.split()]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(self.url + "/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self) -> None:
        """SIGKILL for the server and all that it started, as when the machine's memory runs out."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """It serves weights that no test wants: those of seed 9. Its output head is tied to its embedding."""
    folder = tmp_path_factory.mktemp("server")
    model = policy(9, tied=True).model
    model.generation_config.update(do_sample=True, repetition_penalty=1.8, top_k=2)  # defaults that no answer may get
    model.save_pretrained(folder / "model")
    real = RealServer(folder / "model", folder / "log")
    real.start()
    try:
        real.wait()
        yield real
    finally:
        real.kill()
