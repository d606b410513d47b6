"""LoRA adapters on one base made one set of adapters, exactly: a weighted sum of products is the product of what is
stacked.

    sum_i f_i c_i B_i A_i = [f_1 c_1 B_1 ... f_M c_M B_M] [A_1; ...; A_M],   rank r_1 + ... + r_M, scale 1

with c_i = alpha_i / r_i (or over the root of r_i). Angles between task vectors need no whole products either:
<B_i A_i, B_j A_j> is the sum of the elements of (B_i' B_j) * (A_i A_j').
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from assent.errors import ModelError
from assent.foreign import brief
from assent.models.finite import not_finite
from assent.models.merging import Factors
from assent.models.shards import Reader, StoredTensor
from assent.models.sources import ADAPTER
from assent.models.stored import read_object

WEIGHTS = "adapter_model.safetensors"
_PART = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?([AB])(\.weight)?")
_PLAIN = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules "
    "exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora modules_to_save init_lora_weights "
    "layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_core loftq_config eva_config corda_config "
    "lora_ga_config qalora_group_size ensure_weight_tying bias".split()
)
"""Fields of peft's configuration with which adapters are still products added to weights; others must be off."""
_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)
"""Values of init_lora_weights that leave the base as it is."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """scale * high @ low: `low` is A [r, in], `high` B [out, r], both in fp32; of an embedding, [r, rows] and
    [width, r]."""

    low: Tensor
    high: Tensor
    scale: float
    embedding: bool

    @property
    def rank(self) -> int:
        return len(self.low)


@dataclass(frozen=True, slots=True)
class AdaptedTensor:
    """A weight of the base with adapters on it: W + sum_k scale_k B_k A_k, of an embedding or a layer that stores its
    weight turned (`turned`) + scale_k (B_k A_k)'."""

    stored: StoredTensor
    products: tuple[LowRank, ...]
    turned: bool

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def size(self) -> int:
        return self.stored.size

    def read(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Its numbers from `start` to `stop`, flattened, in float64."""
        found, width = self.stored.read(reader, start, stop).double(), self.shape[1]
        first, last = start // width, -(-stop // width)
        for product in self.products:
            left, right = (product.low.T, product.high.T) if self.turned else (product.high, product.low)
            change = left[first:last].double() @ right.double()
            found += product.scale * change.flatten()[start - first * width : stop - first * width]
        return found


@dataclass(frozen=True, slots=True)
class Adapters:
    """A folder of them: peft's configuration, the products by module, and `whole` weights that were saved with them
    (heads), by their names in the file."""

    path: str
    config: Mapping[str, Any]
    products: Mapping[str, LowRank]
    whole: Mapping[str, Tensor]


def read_adapters(path: str, folder: Path) -> Adapters:
    """The adapters of a folder. Raises ModelError, with the reason, where they are more than products that are added to
    weights, or hold numbers that are not finite."""
    config = read_object(folder / ADAPTER)
    odd = sorted(name for name, value in config.items() if name not in _PLAIN and value)
    if odd or config.get("bias", "none") != "none" or config.get("init_lora_weights") not in _STARTS:
        name = (odd or ["bias" if config.get("bias", "none") != "none" else "init_lora_weights"])[0]
        raise ModelError(f"{path}: adapters with {name} {config[name]!r} are not products that are added to weights")
    found = _loaded(path, folder)
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    embeddings = set()
    for name, x in found.items():
        if (match := _PART.fullmatch(name)) is None:
            if ".lora_" in name:
                raise ModelError(f"{path}: {name} is no part of a product of two matrices")
            whole[name] = x
            continue
        parts.setdefault(match[1], {})[match[3]] = x.float()
        if match[2]:
            embeddings.add(match[1])
    products = {module: _product(path, config, module, pair, module in embeddings) for module, pair in parts.items()}
    if not products:
        raise ModelError(f"{path}: no adapter weights there in {WEIGHTS}.")
    return Adapters(path, config, products, whole)


def _loaded(path: str, folder: Path) -> dict[str, Tensor]:
    try:
        found = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {brief(error)}") from error
    if (words := not_finite(found.items())) is not None:
        raise ModelError(f"{path}: {words}. Such weights are not merged.")
    return found


def _product(path: str, config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor], embedding: bool) -> LowRank:
    if pair.keys() != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2 or len(pair["A"]) != pair["B"].shape[1]:
        raise ModelError(f"{path}: its adapters on {module} are no product of two matrices")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), config.get("r", 8))
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.get("lora_alpha", 8))
    if rank != len(pair["A"]):
        raise ModelError(f"{path}: {ADAPTER} gives {module} the rank {rank}; its weights have {len(pair['A'])}.")
    return LowRank(pair["A"], pair["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), embedding)


def adapted(
    tensors: Mapping[str, StoredTensor], layers: Sequence[Adapters], tied: Collection[str]
) -> Mapping[str, StoredTensor | AdaptedTensor] | None:
    """The weights of a base with these adapters on it, which are multiplied out when they are read; None where they do
    not lie on its weights by their names (or on tied ones, of which they would change one)."""
    found: dict[str, StoredTensor | AdaptedTensor] = dict(tensors)
    for layer in layers:
        for module, product in layer.products.items():
            name = f"{module}.weight"
            below = found.get(name)
            turned = product.embedding or bool(layer.config.get("fan_in_fan_out"))
            shape = (len(product.high), product.low.shape[1])
            if layer.whole or below is None or name in tied or below.shape != (shape[::-1] if turned else shape):
                return None
            if isinstance(below, StoredTensor):
                found[name] = AdaptedTensor(below, (product,), turned)
            elif below.turned == turned:
                found[name] = AdaptedTensor(below.stored, (*below.products, product), turned)
            else:
                return None
    return found


def check_alike(adapters: Sequence[Adapters]) -> None:
    """Raises ModelError where their products have other shapes, or lie on weights of other layouts."""
    first = adapters[0]
    for other in adapters[1:]:
        for name in ("task_type", "fan_in_fan_out"):
            a, b = first.config.get(name), other.config.get(name)
            if a != b:
                raise ModelError(f"{ADAPTER}: {name} is {a!r} in {first.path}, {b!r} in {other.path}.")
        for module in first.products.keys() & other.products.keys():
            one, two = first.products[module], other.products[module]
            if (one.low.shape[1], len(one.high)) != (two.low.shape[1], len(two.high)):
                raise ModelError(f"the adapters of {first.path} and {other.path} on {module} have other shapes.")
        if {n: x.shape for n, x in first.whole.items()} != {n: x.shape for n, x in other.whole.items()}:
            raise ModelError(f"{first.path} and {other.path} hold other weights beside their adapters.")


def gram(adapters: Sequence[Adapters], modules: Iterable[str]) -> Factors:
    """The inner products of the changes that the adapters make to these modules. [M, M]"""
    found = np.zeros((len(adapters),) * 2)
    for module in modules:
        there = {i: one.products[module] for i, one in enumerate(adapters) if module in one.products}
        for i, a in there.items():
            for j, b in there.items():
                inner = (a.high.double().T @ b.high.double()) * (a.low.double() @ b.low.double().T)
                found[i, j] += a.scale * b.scale * inner.sum().item()
    return found


def modules_of(adapters: Sequence[Adapters]) -> list[str]:
    """All that any of them changes."""
    return list(dict.fromkeys(module for one in adapters for module in one.products))


def write_adapters(
    adapters: Sequence[Adapters], factors: Callable[[str], Factors], folder: Path, dtype: torch.dtype
) -> None:
    """Writes the sum of the adapters, by `factors` [M] of a module; what was saved whole with them is summed by the
    factors of its name. Raises ModelError where a number cannot be held in `dtype`."""
    first = adapters[0]
    written: dict[str, Tensor] = {}
    ranks = {}
    for module in modules_of(adapters):
        of_module = factors(module).tolist()
        there = [
            (f, one.products[module]) for f, one in zip(of_module, adapters, strict=True) if module in one.products
        ]
        low = torch.cat([x.low for _, x in there])
        high = torch.cat([(f * x.scale * x.high.double()).float() for f, x in there], dim=1)
        ranks[module] = len(low)
        kind, end = ("embedding_", "") if there[0][1].embedding else ("", ".weight")
        written[f"base_model.model.{module}.lora_{kind}A{end}"] = low
        written[f"base_model.model.{module}.lora_{kind}B{end}"] = high
    exact = {name: first.whole[name].dtype for name in first.whole}
    for name in first.whole:
        of_name = factors(name.removeprefix("base_model.model.")).tolist()
        total = sum((f * one.whole[name].double() for f, one in zip(of_name, adapters, strict=True)), torch.tensor(0.0))
        written[name] = total.float()
    cast = {name: x.to(exact.get(name, dtype)).contiguous() for name, x in written.items()}
    if (words := not_finite(cast.items())) is not None:
        raise ModelError(f"{words}: {str(dtype).removeprefix('torch.')} cannot hold the merged adapters.")
    save_file(cast, folder / WEIGHTS, {"format": "pt"})
    text = json.dumps(_config(adapters, ranks), indent=2, ensure_ascii=False)
    (folder / ADAPTER).write_text(text + "\n", encoding="utf-8")


def _config(adapters: Sequence[Adapters], ranks: Mapping[str, int]) -> dict[str, Any]:
    """peft's configuration of the sum: every module by its name, with its own rank and the scale 1."""
    most = max(ranks.values())
    own = {module: rank for module, rank in ranks.items() if rank != most}
    return {
        **adapters[0].config,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": own,
        "alpha_pattern": own,
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
