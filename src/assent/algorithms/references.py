"""What a policy is compared with: a frozen copy, itself without adapters, log-probs from disk, or a moving copy."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from assent.algorithms.job import Job
from assent.algorithms.rollouts import Fields, annotate, attach, token_field
from assent.config import ModelConfig, ReferenceConfig
from assent.data.dataset import fingerprint
from assent.data.tree import TokenTree, TreeBatch
from assent.errors import ModelError
from assent.models.loading import resolve_precision
from assent.models.policy import Anchor, Policy
from assent.models.sources import resolve
from assent.outputs import try_file, writing
from assent.train import distributed
from assent.train.loop import Deferred
from assent.train.progress import say

FIELD = "reference"
"""The per-token field that holds the reference's log-probs, where they are known already."""


class Reference:
    """A reference that does not change. `model` None means: the policy without its adapters."""

    def __init__(self, policy: Policy, model: Policy | None) -> None:
        self.policy = policy
        self.model = model

    @property
    def tree(self) -> bool:
        """Whether it shares prompts."""
        return self.model is None or self.model.tree

    @torch.no_grad()
    def logprobs(self, batch: TreeBatch, temperature: float = 1.0) -> Tensor:
        """Log-probs of the trained tokens, [N]."""
        if FIELD in batch.per_token:
            return batch.per_token[FIELD]
        with self._active():
            return (self.model or self.policy)(batch, temperature).logprobs

    def anchor(self, batch: TreeBatch, temperature: float = 1.0) -> Anchor:
        """What a KL over the whole vocabulary needs of it."""
        with self._active():
            return (self.model or self.policy).anchor(batch, temperature)

    def _active(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.model is not None else self.policy.without_adapters()

    def follow(self, step: int) -> None:
        """Called after optimiser step `step` (from 1)."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class MovingReference(Reference):
    """theta_ref <- rate * theta + (1 - rate) * theta_ref after every `every`-th step (arXiv 2404.09656)."""

    def __init__(self, policy: Policy, model: Policy, rate: float, every: int) -> None:
        super().__init__(policy, model)
        self.rate, self.every = rate, every
        mix(model, policy, 1.0, "lora_")  # adapters of two loads are drawn independently

    def follow(self, step: int) -> None:
        if step % self.every == 0:
            assert self.model is not None
            mix(self.model, self.policy, self.rate)

    def state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return {"model": deferred_weights(self.model)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert self.model is not None
        distributed.load_full_state_dict(self.model, state["model"])


def deferred_weights(model: Policy) -> Deferred:
    """All weights of a model that changes only with an update, for a state."""

    def gather() -> dict[str, Tensor]:
        distributed.reshard(model)
        return distributed.full_state_dict(model)

    return Deferred(gather)


@torch.no_grad()
def mix(model: Policy, policy: Policy, rate: float, part: str = "") -> None:
    """Moves those parameters of `model` with `part` in their names towards the policy's: all the way at rate 1."""
    distributed.reshard(model)
    distributed.reshard(policy)
    for (name, mine), other in zip(model.model.named_parameters(), policy.model.parameters(), strict=True):
        local, new = distributed.local_part(mine), distributed.local_part(other)
        if part in name and local.is_floating_point():
            local.lerp_(new, rate) if rate < 1 else local.copy_(new)


def live_reference(current: Job, policy: Policy, config: ReferenceConfig) -> Reference:
    """The reference as a model."""
    lora = current.config.model.lora.rank > 0
    if config.mode == "moving":
        return MovingReference(policy, current.reference(config.path, adapters=lora), config.rate, config.every)
    return frozen_reference(current, policy, config.path)


def frozen_reference(current: Job, policy: Policy, path: str | None) -> Reference:
    """The model at `path`, or the policy's start: with LoRA the policy without its adapters."""
    own_start = current.config.model.lora.rank > 0 and path is None
    return Reference(policy, None if own_start else current.reference(path))


def cached_reference(
    current: Job, policy: Policy, config: ReferenceConfig, parts: Sequence[list[TokenTree]]
) -> list[list[TokenTree]]:
    """The trees of `parts` (training, held-out) with the reference's log-probs as the per-token field "reference". They
    come from the cache; where it has none, from the reference model, which is loaded for that alone.

    Raises ModelError where the cache file is of another model, other data, or broken, OutputError where it cannot be
    written: before anything is computed."""
    trees = [tree for part in parts for tree in part]
    model = current.config.model
    identity = {
        "model": distributed.on_main(lambda: model_digest(model, config.path)),
        "data": fingerprint(trees),
        "precision": resolve_precision(model.precision, current.world.device),
        "quantize": model.lora.quantize if config.path is None else "none",
        "format": "1",
    }
    file = Path(config.cache) if config.cache else cache_folder() / f"{_digest(identity)}.safetensors"
    known = distributed.on_main(lambda: _read(file, identity, trees) if file.exists() else None)
    if known is None:
        distributed.on_main(lambda: try_file(file, f"--reference.cache {file}"))
        if current.world.is_main:
            say(f"Computing the reference's log-probs of {len(trees)} examples for {file}")
        known = _compute(current, live_reference(current, policy, config), trees)
        values = known
        distributed.on_main(lambda: _write(file, identity, values))
    elif current.world.is_main:
        say(f"Reference log-probs from {file}")
    cuts = np.cumsum([tree.num_trained for tree in trees])[:-1]
    done = iter(attach(t, {FIELD: v}, {}) for t, v in zip(trees, np.split(known, cuts), strict=True))
    return [[next(done) for _ in part] for part in parts]


def cache_folder() -> Path:
    """Where caches lie: ASSENT_CACHE, or assent in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ASSENT_CACHE") or Path(base) / "assent") / "reference"


def model_digest(config: ModelConfig, path: str | None = None) -> str:
    """sha256 of a model's weights and configuration files."""
    digest = hashlib.sha256()
    for file in resolve(path or config.path, config.revision).files():
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _digest(identity: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _compute(current: Job, reference: Reference, trees: list[TokenTree]) -> np.ndarray:
    scored = annotate(
        trees,
        lambda batch: Fields({FIELD: reference.logprobs(batch)}),
        micro_tokens=current.config.train.micro_tokens,
        flat=not reference.tree,
        world=current.world,
    )
    return token_field(scored, FIELD)


def _read(file: Path, identity: Mapping[str, str], trees: Sequence[TokenTree]) -> np.ndarray:
    try:
        with safe_open(file, "numpy") as stored:
            found, values = stored.metadata() or {}, stored.get_tensor(FIELD)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file}: not readable as cached log-probs ({error}). Delete it to compute them again."
        ) from None
    wrong = [name for name, value in identity.items() if found.get(name) != value]
    if wrong or len(values) != sum(tree.num_trained for tree in trees):
        what = {"model": "another reference model", "data": "other data", "precision": "another precision"}
        what["quantize"] = "weights in another number of bits"
        reason = ", ".join(what.get(name, "another version") for name in wrong) or "another number of tokens"
        raise ModelError(
            f"--reference.cache {file}: these log-probs are of {reason}. Give the file of this run's own reference, "
            "or another name to compute them anew."
        )
    return values


def _write(file: Path, identity: Mapping[str, str], values: np.ndarray) -> None:
    temporary = file.with_name(f".{os.getpid()}.part")
    with writing(file, f"--reference.cache {file}"):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({FIELD: values.astype(np.float32)}, temporary, metadata=dict(identity))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
