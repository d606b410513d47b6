"""The references of training commands: loaded beside the policy, or read off a file of log-probs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from assent import distributed
from assent.config import ModelConfig, ReferenceConfig
from assent.data.dataset import fingerprint
from assent.data.tree import TokenTree, with_token_field
from assent.errors import ModelError, NonFiniteError
from assent.files import not_a_file
from assent.foreign import brief
from assent.models.annotate import BatchColumns, columns_of
from assent.models.loading import resolve_precision
from assent.models.policy import Policy
from assent.models.references import FIELD, FollowingReference, Reference
from assent.models.sources import resolve
from assent.outputs import cache_folder, try_file, whole_file
from assent.train.digests import numbers_digest
from assent.train.session import Session

log = logging.getLogger(__name__)


def live_reference(session: Session, policy: Policy, config: ReferenceConfig) -> Reference:
    """The reference as a model."""
    lora = session.config.model.lora.rank > 0
    if config.mode == "moving":
        return FollowingReference(policy, session.reference(config.path, adapters=lora), config.rate, config.every)
    return frozen_reference(session, policy, config.path)


def frozen_reference(session: Session, policy: Policy, path: str | None) -> Reference:
    """The model at `path`, or the policy's start: with LoRA the policy without its adapters."""
    own_start = session.config.model.lora.rank > 0 and path is None
    return Reference(policy, None if own_start else session.reference(path))


def cached_reference(
    session: Session, policy: Policy, config: ReferenceConfig, parts: Sequence[list[TokenTree]]
) -> list[list[TokenTree]]:
    """The trees of `parts` (training, held-out) with the reference's log-probs as the per-token field "reference". They
    come from the cache; where it has none, from the reference model, which is loaded for that alone.

    Raises ModelError where the cache file is of another model, other data, or broken, OutputError where it cannot be
    written: before anything is computed."""
    trees = [tree for part in parts for tree in part]
    model = session.config.model
    identity = {
        "model": distributed.on_main(lambda: model_digest(model, config.path)),
        "data": fingerprint(trees),
        "precision": resolve_precision(model.precision, session.world.device),
        "quantize": model.lora.quantize if config.path is None else "none",
        "format": "1",
    }
    file = Path(config.cache) if config.cache else cache_folder("reference") / f"{_digest(identity)}.safetensors"
    known = distributed.on_main(lambda: _read(file, identity, trees) if file.exists() else None)
    if known is None:
        distributed.on_main(lambda: try_file(file, f"--reference.cache {file}"))
        log.info(f"Computing the reference's log-probs of {len(trees)} examples for {file}")
        known = reference_logprobs(session, live_reference(session, policy, config), trees)
        values = known
        distributed.on_main(lambda: _write(file, identity, values))
    else:
        log.info(f"Reference log-probs from {file}")
    digest = {"reference.cache": {"log-probs": numbers_digest(known)}}
    distributed.on_main(lambda: session.folder.record_more(digest))
    done = iter(with_token_field(trees, FIELD, known))
    return [[next(done) for _ in part] for part in parts]


def model_digest(config: ModelConfig, path: str | None = None) -> str:
    """sha256 of a model's weights and configuration files."""
    digest = hashlib.sha256()
    for file in resolve(path or config.path, config.revision).files():
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _digest(identity: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def reference_logprobs(session: Session, reference: Reference, trees: list[TokenTree]) -> np.ndarray:
    """The reference's log-probs of all trained tokens of the trees, [N]. Raises NonFiniteError."""
    found = columns_of(
        trees,
        lambda batch: BatchColumns({FIELD: reference.logprobs(batch)}),
        micro_tokens=session.config.train.micro_tokens,
        flat=not reference.tree,
        world=session.world,
    )
    values = found.per_token[FIELD]
    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"The reference gives {values[~np.isfinite(values)][0]} as the log-prob of a token of the data."
        )
    return values


def _read(file: Path, identity: Mapping[str, str], trees: Sequence[TokenTree]) -> np.ndarray:
    if (kind := not_a_file(file)) is not None:
        raise ModelError(f"--reference.cache {file} is {kind}; expected a file.")
    try:
        with safe_open(file, "numpy") as stored:
            found, values = stored.metadata() or {}, stored.get_tensor(FIELD)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file}: not readable as cached log-probs ({brief(error)}). Delete it to compute them again."
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
    if not np.isfinite(values).all():
        raise ModelError(
            f"--reference.cache {file}: {int((~np.isfinite(values)).sum())} of its {len(values)} log-probs "
            "are not finite numbers. Delete it to compute them again."
        )
    return values


def _write(file: Path, identity: Mapping[str, str], values: np.ndarray) -> None:
    with whole_file(file, f"--reference.cache {file}") as temporary:
        save_file({FIELD: values.astype(np.float32)}, temporary, metadata=dict(identity))
