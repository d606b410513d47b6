"""Fixtures that every test shares: a tiny model made on the spot, and the folder of real data where there is one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from assent import messages
from assent.config import InitConfig

torch.set_num_threads(1)
# As `messages.show` does in a process of assent's own; pytest's handlers (caplog) get messages too.
logging.getLogger("assent").addHandler(messages.Handler())
logging.getLogger("assent").setLevel(logging.INFO)
# A shell starts what it puts in the background with these ignored, and so would be all that the tests start.
for _signal, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _usual)

TEXTS = (
    "What is the capital of France? The capital of France is Paris.",
    "Name three colours. Red, green and blue are three colours.",
    "How do I boil an egg? Put the egg in boiling water for seven minutes, then cool it.",
    "You are a helpful assistant. Answer the question in one sentence.",
    "user assistant system\n\nThank you! You're welcome. 12 + 30 = 42, isn't it?",
)


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE with a ChatML template, EOS <|im_end|>, pad <|pad|>."""
    from assent.models.init import train_tokenizer

    return train_tokenizer(TEXTS * 3, 400)


@pytest.fixture(scope="session")
def tiny_model_dir(tokenizer, tmp_path_factory) -> Path:
    """A 2-layer, 32-wide random Llama folder with that tokenizer."""
    from assent.models.init import random_model, write_new_model

    config = InitConfig(data="", out="", hidden_size=32, layers=2, heads=4, kv_heads=2, context=512, seed=0)
    return write_new_model(tokenizer, random_model(tokenizer, config), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def scorer_dir(tiny_model_dir: Path, tokenizer, tmp_path_factory) -> Path:
    """A reward model on it, whose scores differ."""
    from assent.config import ModelConfig
    from assent.models.heads import load_score_model
    from assent.models.saving import save_model

    scorer = load_score_model(ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, max_length=64, seed=7)
    with torch.no_grad():
        scorer.model.score.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "scorer"
    save_model(scorer, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def serving():
    """`with serving(service, drain) as url`: what `assent serve` runs, in a thread, on a free port of this machine."""
    from assent.serve.app import Service
    from assent.serve.server import Server

    @contextmanager
    def run(service: Service, drain: float = 10.0) -> Iterator[str]:
        place = socket.socket()
        place.bind(("127.0.0.1", 0))
        url, ready = f"http://127.0.0.1:{place.getsockname()[1]}", threading.Event()
        server = Server(service.app, service.queue, drain, ready.set)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([place])), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(30)
            service.close()
            assert not thread.is_alive()

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of public data files, named by ASSENT_REAL_DATA."""
    folder = os.environ.get("ASSENT_REAL_DATA")
    if not folder:
        pytest.skip("ASSENT_REAL_DATA is not set: tests on real data files are left out")
    return Path(folder)
