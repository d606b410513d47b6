"""Options of `assent serve`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from assent.config.ranges import Count, CountOrZero, Length, Named, NotNegative, Positive
from assent.config.sections import Sections


@dataclass(frozen=True)
class LimitsConfig:
    """What a server takes on before it refuses."""

    tokens: Length | None = None
    """Longest text in tokens; default: what the model reads, up to 8,192."""
    texts: Count = 1024
    """Texts in one request."""
    bytes: Count = 16 << 20
    """Size of one request. All that are read at the same time have 16 times that."""
    requests: Count = 256
    """Requests under way, waiting ones included; further ones are refused with 503."""
    queue_tokens: Count = 1 << 20
    """Tokens under way, likewise. A request that is alone is never too large by this."""
    rate: NotNegative = 0.0
    """Requests a second from one address, in bursts of up to two seconds' worth, refused with 429 beyond; 0: any."""


@dataclass(frozen=True)
class ServeConfig(Sections):
    """A reward model over HTTP, in the request shapes of OpenRLHF, LLaMA-Factory, vLLM and SGLang."""

    model: Named
    """Reward model or run folder, or hub id."""
    name: Named | None = None
    """The model's name for clients; default: `model` as it is given. Both are answered to."""
    weights: dict[str, float] = field(default_factory=dict)
    """Of a model with several outputs (attributes): their weights in the reward (0 for those that are not named), for
    example helpfulness:1; default: the model's own."""
    host: Named = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Interval(ge=0, le=65535)] = 8000
    """Port to listen on; 0: any free one, which is printed."""
    key_env: Named | None = None
    """Environment variable with the key that clients must send as "Authorization: Bearer KEY"."""
    without_key: bool = False
    """Listen on an address that other machines reach, without a key."""
    micro_tokens: Count = 16384
    """Most packed tokens in one forward pass."""
    wait_ms: NotNegative = 2.0
    """Longest that a request waits for others to share its forward pass, in milliseconds."""
    drain: Positive = 30.0
    """Seconds for the requests under way once it is asked to stop (SIGTERM, Ctrl-C)."""
    log_every: CountOrZero = 1000
    """Requests between two lines of the log; 0: none."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute precision; auto: bf16 where the hardware has it natively."""
    layout: Literal["auto", "tree", "flat"] = "auto"
    """tree computes a shared prompt once; auto does so where it is exact."""
    threads: CountOrZero = 0
    """CPU threads; 0: torch's choice."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
