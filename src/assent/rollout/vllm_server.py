"""vLLM on a server, which is told over HTTP what to sample and where to read its weights.

Token ids go in and come out (/inference/v1/generate, made for this by vLLM), so nothing is tokenised twice. The server
labels every token with the version of the weights that drew it. So a server that was started anew, and has its first
weights again, is found out by its first answer: it is given the right ones, and what it answered is asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from assent.config import SamplingConfig
from assent.errors import ConfigError
from assent.http import Client, Failure, Patience, ServerUnavailable, run, together
from assent.rollout.engine import Completion
from assent.rollout.vllm_shared import (
    Weights,
    WeightsFolder,
    agree,
    check_lengths,
    completion,
    logprobs_mode,
    request,
)
from assent.rollout.vllm_worker import EXTENSION

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRIES = 6
"""How often responses to one prompt are asked again of a server that is up."""
_ORDERS = 2  # how often an order is given again: one that fails usually fails again
_QUESTION = 30.0  # seconds for a question that needs no work
_LOOK = 0.5  # seconds between looks for weights that another rank writes


class Settings(NamedTuple):
    """What a server was started with: the kind of log-probs, the longest sequence, where it runs, and the extension of
    its workers."""

    mode: str
    limit: int
    on_cpu: bool
    extension: str


class VllmServer:
    """Samples from a vLLM server (0.32 or newer) at `url`. With several ranks, each asks for its own share.

    precision  of the weights; what an error advises to start the server with
    timeout    seconds for one request
    patience   seconds to wait for a server that does not answer, for example because it is being started anew
    logprobs   whether log-probs are wanted; they cost time, and vLLM cannot give those of all samplings
    pause      seconds before the first new try; doubled each time, up to 30
    """

    def __init__(
        self,
        url: str,
        source: WeightsFolder | Weights,
        eos_ids: Collection[int],
        sampling: SamplingConfig,
        *,
        precision: str,
        timeout: float,
        patience: float,
        logprobs: bool = True,
        pause: float = 1.0,
    ) -> None:
        """Asks the server for nothing yet. Raises ConfigError for what is no URL, and where vLLM cannot report the
        log-probs of such a sampling."""
        self.eos_ids = sorted(eos_ids)
        self.logprobs = logprobs
        self._timeout, self._patience, self._pause = timeout, patience, pause
        self._client = Client("--engine.url: the vLLM server", url)
        mode = logprobs_mode(sampling) if logprobs else "raw_logprobs"
        dtype = "bfloat16" if precision == "bf16" else "float32"
        self.command = (
            f"VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL --tokens-only "
            f"--logprobs-mode {mode} --dtype {dtype} --host 127.0.0.1 --port PORT"
        )
        self._folder = source if isinstance(source, WeightsFolder) else None
        self._weights = source if isinstance(source, Weights) else None
        self._settings: Settings | None = None  # known once it was asked
        self._lock = asyncio.Lock()

    def generate(
        self, prompts: Sequence[np.ndarray], n: int, sampling: SamplingConfig, seed: int, first: int = 0
    ) -> list[list[Completion]]:
        """As `Engine.generate`; no more than `sampling.max_batch` sequences are under way. Raises ServerUnavailable
        when the server stays away, ServerAnswerError for an answer that trying again would not better, ModelError where
        a sequence is too long, ConfigError for a server that reports another kind of log-probs, NonFiniteError where a
        log-probability is not a number."""
        if not prompts or n == 0:
            return [[] for _ in prompts]
        if sampling.temperature == 0.0 and n > 1:  # vLLM refuses: they are all the same
            return [group * n for group in self.generate(prompts, 1, sampling, seed, first)]
        return run(self._groups(prompts, n, sampling, seed, first))

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Engine.update_weights`. Every rank gives the same weights; one of them passes them on."""
        assert self._folder is not None, "these weights are a folder's"
        self._weights = self._folder.put(state_dict)
        if self._folder.writes:
            run(self._ready())
            self._folder.keep(self._weights)

    # ---- sampling

    async def _groups(
        self, prompts: Sequence[np.ndarray], n: int, sampling: SamplingConfig, seed: int, first: int
    ) -> list[list[Completion]]:
        settings = await self._ready()
        if self.logprobs and not agree(settings.mode, sampling):
            raise ConfigError(
                f"{self._client.who} was started with --logprobs-mode {settings.mode}, but this sampling needs "
                f"{logprobs_mode(sampling)}. Start it with: {self.command}"
            )
        check_lengths(prompts, sampling, settings.limit)
        asks = [partial(self._group, prompt, n, sampling, seed, first + index) for index, prompt in enumerate(prompts)]
        return await together(asks, max(1, sampling.max_batch // n))

    async def _group(
        self, prompt: np.ndarray, n: int, sampling: SamplingConfig, seed: int, number: int
    ) -> list[Completion]:
        """The responses to one prompt, all drawn by the right weights."""
        body = {
            "token_ids": prompt.tolist(),
            "sampling_params": request(sampling, n, seed, number, self.eos_ids, self.logprobs),
        }
        return await self._client.ask(
            f"{self._client.base}/inference/v1/generate",
            body,
            lambda reply: self._read(reply, n, sampling),
            Patience(self._timeout, float("inf"), RETRIES, self._pause),
            expected=f"{n} responses. Start it with: {self.command}",
            failed="gave no responses",
            advice="Its own log says more. If it serves another run as well, give each run its own.",
            on_failure=lambda reason: self._ready(),
        )

    def _read(self, reply: Any, n: int, sampling: SamplingConfig) -> list[Completion]:
        assert self._weights is not None
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        for choice in choices:
            if choice["finish_reason"] not in ("stop", "length"):
                raise Failure(f"ended a response by {choice['finish_reason']}")
            if {span["version"] for span in choice["weight_versions"]} != {self._weights.version}:
                raise Failure("had other weights")
        if [choice["index"] for choice in choices] != list(range(n)):
            raise ValueError("not every response once")
        return [self._completion(choice, sampling) for choice in choices]

    def _completion(self, choice: Any, sampling: SamplingConfig) -> Completion:
        ids = choice["token_ids"]
        if not all(type(token) is int for token in ids):
            raise ValueError("no token ids")
        logprobs = [float(step["logprob"]) for step in choice["logprobs"]["content"]] if self.logprobs else None
        return completion(ids, logprobs, sampling, self.eos_ids)

    # ---- the server and its weights

    async def _ready(self) -> Settings:
        """Returns when the server is up and has the weights that it should have. Where another rank writes them, it
        waits for them."""
        assert self._weights is not None, "an engine needs weights before it samples"
        async with self._lock:
            begun, idle = time.monotonic(), False
            while True:
                patience = Patience(self._timeout, time.monotonic() + self._patience, pause=self._pause)
                has = await self._question("/weight_info", _version, patience)
                if self._settings is None or has != self._weights.version:  # it may be another server by now
                    found = await self._question("/server_info?config_format=json", _read, patience)
                    self._settings = self._checked(found)
                if has == self._weights.version:
                    return self._settings
                if time.monotonic() > begun + self._patience:
                    raise ServerUnavailable(
                        f"{self._client.who} did not get the newest weights within {self._patience:g} s, or had others "
                        "again at once. If it serves another run as well, give each run its own."
                    )
                # Whoever writes the weights has them loaded. Another does only where they lie there and nobody is at
                # it, seen twice: two at once would be in each other's way.
                own = self._folder is None or self._folder.writes
                late = time.monotonic() > begun + self._patience / 2
                there = self._folder is None or self._folder.has(self._weights)
                free = there and (own or late or has != _mark(self._weights))
                if free and (own or idle):
                    await self._load(self._weights, self._settings, patience)
                else:
                    idle = free
                    await asyncio.sleep(_LOOK)

    def _checked(self, settings: Settings) -> Settings:
        if settings.on_cpu and settings.extension != EXTENSION:
            raise ConfigError(
                f"{self._client.who} runs on a CPU, where vLLM cannot take all new weights by itself. Start it with: "
                f"{self.command} --worker-extension-cls {EXTENSION}"
            )
        return settings

    async def _load(self, weights: Weights, settings: Settings, patience: Patience) -> None:
        """Has the server read these weights. What it is doing meanwhile is of no use to anyone and ends; keys and
        values of the old weights are forgotten. The version comes last: whoever sees it can rely on all the rest. Until
        then it is a mark: a server that has lost it was started anew in between, and is not told the version."""
        mark = _mark(weights)
        order = partial(self._order, weights, patience)
        await order("/update_weight_version", {"new_version": mark})
        await order("/pause?mode=abort", {})
        await order("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": weights.path}})
        if settings.on_cpu:
            await order("/collective_rpc", {"method": "refresh_head"})
        await order("/resume", {})

        async def check(_: str = "") -> None:
            if await self._question("/weight_info", _version, patience) not in (mark, weights.version):
                raise _StartedAnew

        try:
            await check()
            await order("/update_weight_version", {"new_version": weights.version}, check)
        except _StartedAnew:
            return

    async def _order(
        self,
        weights: Weights,
        patience: Patience,
        path: str,
        body: object,
        on_failure: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        await self._client.ask(
            self._client.base + path,
            body,
            lambda reply: None,
            replace(patience, retries=_ORDERS),
            expected=f"what vLLM answers in its development mode. Start it with: {self.command}",
            failed="could not be given weights",
            advice=f"It must serve the model that is trained, and see the folder {weights.path}.",
            on_failure=on_failure,
        )

    async def _question(self, path: str, read: Callable[[Any], T], patience: Patience) -> T:
        """An answer that costs the server nothing; waits for a server that is away."""
        told = False

        async def tell(reason: str) -> None:
            nonlocal told
            if not told:
                log.warning(f"waiting: {self._client.who} {reason}")
            told = True

        return await self._client.ask(
            self._client.base + path,
            None,
            read,
            replace(patience, timeout=min(self._timeout, _QUESTION)),
            expected=f"what vLLM answers in its development mode. Start it with: {self.command}",
            failed="did not answer",
            advice=f"Start it with: {self.command}",
            on_failure=tell,
        )


def _mark(weights: Weights) -> str:
    """The version of a server that is being given these weights."""
    return f"loading {weights.version}"


class _StartedAnew(Exception):
    """The server has forgotten what it was told."""


def _version(reply: Any) -> str:
    return str(reply["weight_version"])


def _read(reply: Any) -> Settings:
    config = reply["vllm_config"]
    return Settings(
        mode=str(config["model_config"]["logprobs_mode"]),
        limit=int(config["model_config"]["max_model_len"]),
        on_cpu=config["device_config"]["device"] == "cpu",
        extension=str(config["parallel_config"]["worker_extension_cls"]),
    )
