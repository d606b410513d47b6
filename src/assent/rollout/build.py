"""The engine that the options name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from assent import distributed
from assent.config import EngineConfig, SamplingConfig
from assent.data.chat import Chat
from assent.errors import ConfigError
from assent.models.policy import Policy
from assent.models.saving import stop_ids, write_model
from assent.models.vocabulary import unused_ids
from assent.rollout.check import check_sampling
from assent.rollout.engine import Engine
from assent.rollout.mixture import MixtureEngine
from assent.rollout.torch_engine import TorchEngine
from assent.rollout.vllm_engine import VllmEngine
from assent.rollout.vllm_server import VllmServer
from assent.rollout.vllm_shared import Weights, WeightsFolder, stored


def torch_engine(policy: Policy, chat: Chat, *, compiled: bool = False) -> TorchEngine:
    """The torch engine on a policy's own weights: answers end where a turn does, and ids that no token has are never
    drawn."""
    ends, unused = stop_ids(chat, policy.plain.generation_config), unused_ids(policy.plain, chat.tokenizer)
    return TorchEngine(policy.model, ends, policy.precision, compiled=compiled, unused=unused)


def opponent_engine(
    policy: Policy, reference: Policy | None, chat: Chat, weight: float, max_length: int
) -> MixtureEngine:
    """Samples from the mixture policy^(1 - weight) * reference^weight by the models' own weights; `reference` None: the
    policy without its adapters. Raises ModelError where the reference cannot be sampled exactly."""
    if reference is not None:
        with distributed.unsharded(reference):
            check_sampling(reference.model, max_length)
    return MixtureEngine(
        policy.model,
        None if reference is None else reference.model,
        weight,
        stop_ids(chat, policy.plain.generation_config),
        policy.precision,
        plain=policy.without_adapters,
        unused=unused_ids(policy.plain, chat.tokenizer),
    )


def engine_of(
    policy: Policy,
    config: EngineConfig,
    eos_ids: Collection[int],
    sampling: SamplingConfig,
    *,
    max_length: int,
    folder: Path,
    unused: Collection[int] = (),
    rank: int = 0,
    ranks: int = 1,
) -> Engine:
    """An engine for a policy that is being trained. `torch` samples from the policy's own weights; `vllm` from a copy,
    so it samples only after `update_weights`, which every rank must call with whole weights. `max_length` is that of
    the longest prompt plus response, `folder` where weights go through by default, `unused` ids that no token has.

    With several ranks vLLM is a server: rank 0 gives it the weights, each rank asks it for its own share. Raises
    ConfigError where vLLM is not installed, cannot report the log-probs of `sampling`, or would run inside a run of
    several ranks, and for a compiled torch engine in such a run."""
    if config.name == "torch":
        if config.compile and ranks > 1:
            raise ConfigError(f"--engine.compile needs a run of one process; this one has {ranks}. Leave it off.")
        return TorchEngine(policy.model, eos_ids, policy.precision, compiled=config.compile, unused=unused)
    if config.url is None and ranks > 1:
        raise ConfigError(
            f"--engine.name vllm inside a run needs a run of one process; this one has {ranks}. Start a vLLM server, "
            "and give it as --engine.url."
        )

    def save(path: Path, state: Mapping[str, Tensor]) -> None:
        dtype = torch.bfloat16 if policy.precision == "bf16" else torch.float32
        write_model(policy.plain, path, state, dtype=dtype)

    source = WeightsFolder(Path(config.weights) if config.weights else folder, save, writes=rank == 0)
    return _vllm(config, source, eos_ids, sampling, policy.precision, max_length, logprobs=True)


def engine_for(
    path: str, config: EngineConfig, eos_ids: Collection[int], sampling: SamplingConfig, precision: str
) -> Engine:
    """vLLM for a model folder or hub id as it is; its completions have no log-probs."""
    return _vllm(config, stored(path), eos_ids, sampling, precision, None, logprobs=False)


def _vllm(
    config: EngineConfig,
    source: WeightsFolder | Weights,
    eos_ids: Collection[int],
    sampling: SamplingConfig,
    precision: str,
    max_length: int | None,
    *,
    logprobs: bool,
) -> Engine:
    if config.url is None:
        return VllmEngine(
            source,
            eos_ids,
            sampling,
            precision=precision,
            max_length=max_length,
            memory=config.memory,
            logprobs=logprobs,
        )
    return VllmServer(
        config.url,
        source,
        eos_ids,
        sampling,
        precision=precision,
        timeout=config.timeout,
        patience=config.patience,
        logprobs=logprobs,
    )
