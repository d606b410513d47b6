"""What both ways to vLLM share: how it is asked, what its answers mean, and the folder that weights go through."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from assent.config import SamplingConfig
from assent.errors import ConfigError, ModelError, NonFiniteError
from assent.rollout.engine import Completion

LOGPROBS_MODES = ("processed_logprobs", "raw_logprobs")
_LEAST_TEMPERATURE = 0.01  # vLLM raises smaller ones to this
_OWN = re.compile(r"weights-[0-9a-f]{16}|unfinished-\d+")
_NOT_FINITE = -9999.0  # what its server sends in place of numbers that JSON cannot carry


def logprobs_mode(sampling: SamplingConfig) -> str:
    """vLLM's --logprobs-mode that gives log-probs after the temperature and before top-k and top-p, as `Completion` has
    them: raw ones are before both, processed ones after both. Raises ConfigError where neither will do."""
    cuts = sampling.top_k > 0 or sampling.top_p < 1.0
    if cuts and sampling.temperature not in (0.0, 1.0):
        raise ConfigError(
            f"--engine.name vllm cannot report log-probs at --sampling.temperature {sampling.temperature:g} together "
            "with top-k or top-p. Use temperature 1, or --sampling.top_k 0 --sampling.top_p 1, or --engine.name torch."
        )
    if 0.0 < sampling.temperature < _LEAST_TEMPERATURE:
        raise ConfigError(
            f"--sampling.temperature must be 0 or at least {_LEAST_TEMPERATURE:g} with --engine.name vllm. Got "
            f"{sampling.temperature:g}."
        )
    return "raw_logprobs" if cuts else "processed_logprobs"


def agree(mode: str, sampling: SamplingConfig) -> bool:
    """Whether log-probs in `mode` are those of `logprobs_mode`; without cuts and temperature, all modes are one."""
    plain = sampling.top_k == 0 and sampling.top_p == 1.0 and sampling.temperature in (0.0, 1.0)
    return mode == logprobs_mode(sampling) or (plain and mode in LOGPROBS_MODES)


PLAIN: dict[str, Any] = {
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
}
"""All else that moves what vLLM samples, switched off in so many words: a server may have defaults of its own, of its
flags or the model's generation_config.json."""


def request(
    sampling: SamplingConfig, n: int, seed: int, prompt: int, eos_ids: Collection[int], logprobs: bool
) -> dict[str, Any]:
    """vLLM's SamplingParams for `n` responses to one prompt. It draws response i with its seed + i; the seed is a hash
    of (seed, prompt), so what is sampled depends on neither batching nor ranks, but for rounding."""
    own = int(np.random.SeedSequence((seed, prompt)).generate_state(1, np.uint64)[0] >> 2)
    return {
        "n": n,
        "seed": own,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        **PLAIN,
        "stop_token_ids": sorted(eos_ids),
        "ignore_eos": True,  # only the ids above end a response
        "logprobs": 0 if logprobs else None,  # of the drawn token alone
        "detokenize": False,
    }


def completion(
    ids: Sequence[int], logprobs: Sequence[float] | None, sampling: SamplingConfig, eos_ids: Collection[int]
) -> Completion:
    """A response as vLLM gives it, checked; log-probs that were not asked for are NaN. Raises ValueError where it
    cannot be an answer to what was asked, NonFiniteError where a log-probability is not a number."""
    finished = len(ids) > 0 and ids[-1] in eos_ids
    if not (1 <= len(ids) <= sampling.max_new_tokens and (finished or len(ids) == sampling.max_new_tokens)):
        raise ValueError(f"a response of {len(ids)} tokens")
    if any(token in eos_ids for token in ids[:-1]):
        raise ValueError("a response that goes on after its end")
    if logprobs is None:
        return Completion(np.array(ids, np.int64), np.full(len(ids), np.nan, np.float32), finished)
    values = np.array(logprobs, np.float32)
    if values.shape != (len(ids),):
        raise ValueError(f"{len(values)} log-probs for {len(ids)} tokens")
    if not np.isfinite(values).all() or values.min() <= _NOT_FINITE:
        raise NonFiniteError(
            "vLLM gave a log-probability that is not a finite number: the model's logits are not. Its weights have "
            "probably diverged."
        )
    return Completion(np.array(ids, np.int64), values, finished)


def check_lengths(prompts: Sequence[np.ndarray], sampling: SamplingConfig, limit: int) -> None:
    """Raises ModelError where a sequence cannot fit into `limit` tokens."""
    longest = max((len(prompt) for prompt in prompts), default=0)
    if longest + sampling.max_new_tokens > limit:
        raise ModelError(
            f"The longest prompt has {longest} tokens; with sampling.max_new_tokens {sampling.max_new_tokens} that is "
            f"{longest + sampling.max_new_tokens}, more than the {limit} that vLLM was started for (--max-model-len). "
            f"Shorten the prompts or set sampling.max_new_tokens to at most {max(limit - longest, 0)}."
        )


class Weights(NamedTuple):
    """A model folder (or hub id) that vLLM reads, and the name of the weights in it."""

    path: str
    version: str


def stored(path: str) -> Weights:
    """The weights of a model folder or hub id as they are."""
    files = sorted(Path(path).glob("*.safetensors"))
    marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    where = str(Path(path).resolve()) if files else path
    return Weights(where, hashlib.sha256(repr((where, marks)).encode()).hexdigest()[:16])


class WeightsFolder:
    """Where a policy's weights are left for vLLM: `folder`/weights-VERSION, complete or absent, only the newest kept.

    The version is computed from the weights, so that all ranks know it without asking, and vLLM is told nothing that it
    has. Only the rank that `writes` does; the others need not see the folder. It is emptied when this object goes."""

    def __init__(self, folder: Path, save: Callable[[Path, Mapping[str, Tensor]], None], writes: bool) -> None:
        """`save` writes a Hugging Face folder with these weights."""
        self.folder = folder.resolve()
        self.save = save
        self.writes = writes
        if writes:
            weakref.finalize(self, _clear, self.folder)  # at the latest when Python ends

    def put(self, state: Mapping[str, Tensor]) -> Weights:
        """Leaves these weights there."""
        version = _digest(state)
        path = self.folder / f"weights-{version}"
        if self.writes and not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.folder / f"unfinished-{os.getpid()}"
            shutil.rmtree(unfinished, ignore_errors=True)
            self.save(unfinished, state)
            unfinished.rename(path)
        return Weights(str(path), version)

    def has(self, weights: Weights) -> bool:
        """Whether they are there, complete."""
        return Path(weights.path).is_dir()

    def keep(self, weights: Weights) -> None:
        """Removes all others."""
        if self.writes:
            _clear(self.folder, but=Path(weights.path))


def _clear(folder: Path, but: Path | None = None) -> None:
    for found in folder.glob("*-*"):
        if found != but and _OWN.fullmatch(found.name):  # the folder may be shared with others
            shutil.rmtree(found, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()  # where nothing is left


def _digest(state: Mapping[str, Tensor]) -> str:
    """A fingerprint of weights at the speed of memory."""
    sums = {name: torch.hash_tensor(x.detach()).view(torch.int64) for name, x in sorted(state.items())}
    marks = [(name, tuple(state[name].shape), int(mark)) for name, mark in sums.items()]
    return hashlib.sha256(repr(marks).encode()).hexdigest()[:16]
