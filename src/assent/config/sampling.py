"""Options of whatever samples answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from assent.config.ranges import Count, CountOrZero, Named, NonzeroShare, NotNegative, Positive


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are sampled."""

    max_new_tokens: Count = 128
    """Longest answer."""
    temperature: NotNegative = 1.0
    """Divides the logits, in sampling and in training alike; 0 takes the most likely token."""
    top_k: CountOrZero = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: NonzeroShare = 1.0
    """Sample among the most likely tokens that together have this probability."""
    max_batch: Count = 64
    """Sequences decoded side by side."""


@dataclass(frozen=True)
class EngineConfig:
    """What computes sampled answers."""

    name: Literal["torch", "vllm"] = "torch"
    """torch samples from the policy's own weights, on any machine; vllm (an extra) from a copy of them, which it is
    sent before each rollout."""
    compile: bool = False
    """torch, one process: compile the decoding step, which takes 10 to 60 seconds before the first answer (less in a
    later run) and, without a GPU, a C++ compiler; sampling is then up to twice as fast."""
    url: Named | None = None
    """vllm: server to ask, http://HOST:PORT; default: vLLM is started inside the run."""
    weights: Named | None = None
    """vllm: folder that weights go through, which a server must see (on one machine /dev/shm/NAME is fastest); default:
    `engine` in the run folder."""
    memory: NonzeroShare = 0.4
    """vllm inside the run: share of the GPU's memory (without one, of the machine's) for its weights and cache."""
    timeout: Positive = 600.0
    """Most seconds for one request to the server."""
    patience: Positive = 600.0
    """Seconds to wait for a server that does not answer, for example because it is being started anew."""
