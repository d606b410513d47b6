"""The weights of several models made one, part by part: in memory is a part of one tensor of each model, whatever their
size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assent.config import MERGES, MergeConfig
from assent.errors import ModelError
from assent.models import merging
from assent.models.finite import all_finite
from assent.models.merged_adapters import AdaptedTensor
from assent.models.merging import Coins, Factors
from assent.models.shards import Reader, StoredTensor, write_weights

PART = 1 << 20
"""Numbers of one part."""
_LAYER = re.compile(r"(.*?\.\d+)\.")

Tensors = Mapping[str, StoredTensor | AdaptedTensor]


@dataclass(frozen=True, slots=True)
class Sphere:
    """What the task vectors are to each other: by group of tensors their inner products `gram`, and the groups in which
    no arc is defined, so that they were averaged."""

    grams: Mapping[str, Factors]
    averaged: tuple[str, ...] = ()

    def angles(self) -> list[float]:
        """Between any two task vectors of a group, in degrees."""
        found = []
        for gram in self.grams.values():
            unit = np.eye(len(gram))
            pairs = [merging.cosine(gram, unit[i], unit[j]) for i in range(len(gram)) for j in range(i)]
            found += [math.degrees(math.acos(cos)) for cos in pairs if cos is not None]
        return found


def factors_of(
    config: MergeConfig, count: int, grams: Callable[[], Mapping[str, Factors]]
) -> tuple[Sphere | None, Callable[[str], Factors] | None]:
    """By name of a tensor what its task vectors (without a base, its weights) are multiplied by, eta included; None for
    methods that look at single numbers. `grams` gives inner products by group, where they are needed."""
    weights = weights_of(config)
    fixed: Mapping[str, Callable[[], Factors]] = {
        "linear": lambda: merging.linear(weights, config.normalize),
        "ema": lambda: merging.moving_average(count, config.mu or 0.0),
        "liti": lambda: np.ones(1),
        "task-arithmetic": lambda: merging.linear(weights, normalize=False),
    }
    if config.method in fixed:
        found = eta_of(config) * fixed[config.method]()
        return None, lambda name: found
    if "granularity" not in MERGES[config.method].options:
        return None, None
    on_sphere = {"slerp": merging.slerp, "karcher": merging.karcher}[config.method]
    sphere, factors, averaged = grams(), {}, []
    for group, gram in sphere.items():
        of_group = on_sphere(gram, weights)
        if of_group is None:
            averaged.append(group)
            of_group = merging.linear(weights)
        factors[group] = eta_of(config) * of_group
    return Sphere(sphere, tuple(averaged)), lambda name: factors[group_of(name, config.granularity)]


def weights_of(config: MergeConfig) -> Sequence[float]:
    return config.weights or (1.0,) * len(config.models)


def eta_of(config: MergeConfig) -> float:
    return 1.0 if config.eta is None else config.eta


def group_of(name: str, granularity: str | None) -> str:
    """What a tensor shares its angle with: its layer, or outside of layers its module."""
    match granularity:
        case "model":
            return "the model"
        case "tensor":
            return name
    found = _LAYER.match(name)
    return found[1] if found else name.rpartition(".")[0] or name


@dataclass(frozen=True, slots=True)
class Merge:
    """The models' weights, all of the same names and shapes, as `config` merges them. `base` where task vectors are
    merged; `dtypes` what is written; `copied` names what must be the same in all models and stays so, `buffers`
    what does where it is; `tell` hears how many tensors are done, of `steps`."""

    config: MergeConfig
    names: Sequence[str]
    models: Sequence[Tensors]
    base: Tensors | None
    dtypes: Mapping[str, torch.dtype]
    copied: frozenset[str]
    buffers: frozenset[str]
    tell: Callable[[int], None]
    reader: Reader
    done: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> Sphere | None:
        """Writes the merged weights. Raises ModelError where a weight is not finite, or would not be as it is
        written."""
        sphere, factors = self._factors()
        shapes = {name: (self.dtypes[name], self.models[0][name].shape) for name in self.names}
        write_weights(folder, shapes, partial(self._merged, factors=factors))
        return sphere

    def _factors(self) -> tuple[Sphere | None, Callable[[str], Factors] | None]:
        return factors_of(self.config, len(self.models), self._grams)

    def _grams(self) -> dict[str, Factors]:
        """The inner products of the task vectors by group: the first pass over all weights."""
        grams: dict[str, Factors] = {}
        for name in self.names:
            if name not in self.copied:
                group = group_of(name, self.config.granularity)
                gram = grams.setdefault(group, np.zeros((len(self.models),) * 2))
                for start, stop in self._parts(name):
                    base, found = self._read(name, start, stop)
                    gram += merging.inner_products([x - base for x in found])
            self._is_done(name)
        return grams

    # ---- parts

    def _merged(self, name: str, factors: Callable[[str], Factors] | None) -> Iterator[Tensor]:
        if name in self.copied or (name in self.buffers and self._differs(name) is None):
            yield from self._same(name)
        elif factors is None:
            yield from self._by_numbers(name)
        else:
            yield from self._summed(name, factors(name))
        self._is_done(name)

    def _summed(self, name: str, factors: Factors) -> Iterator[Tensor]:
        """theta_0 + sum_i f_i delta_i as (1 - sum_i f_i) theta_0 + sum_i f_i theta_i: exact where factors are 0 or 1.
        Without a base sum_i f_i theta_i."""
        for start, stop in self._parts(name):
            base, found = self._read(name, start, stop)
            rest = 1 - factors.sum()
            merged = torch.zeros_like(found[0]) if self.base is None or rest == 0 else rest * base
            for factor, x in zip(factors.tolist(), found, strict=True):
                if factor:
                    merged.add_(x, alpha=factor)
            yield self._cast(name, merged)

    def _by_numbers(self, name: str) -> Iterator[Tensor]:
        """TIES, DARE, and both."""
        config = self.config
        density, weights = config.density or 1.0, weights_of(config)
        coins = [Coins(config.seed or 0, i, name) for i in range(len(self.models))]
        least = [self._least(name, i, density) if config.method == "ties" else 0.0 for i in range(len(self.models))]
        for start, stop in self._parts(name):
            base, found = self._read(name, start, stop)
            deltas = [(x - base).float() for x in found]
            if config.method == "ties":
                deltas = [merging.trimmed(x, limit) for x, limit in zip(deltas, least, strict=True)]
            else:
                kept = [coin.kept(stop - start, density) for coin in coins]
                deltas = [merging.dropped(x, keep, density) for x, keep in zip(deltas, kept, strict=True)]
            if config.method == "dare":
                change = torch.stack([w * x for w, x in zip(weights, deltas, strict=True)]).sum(0)
            else:
                change = merging.elected(deltas, weights)
            yield self._cast(name, base + eta_of(config) * change.double())

    def _least(self, name: str, model: int, density: float) -> float:
        """The magnitude down to which TIES keeps a model's task vector in this tensor."""
        size = self.models[model][name].size
        if density == 1 or not size:
            return 0.0

        def magnitudes() -> Iterator[Tensor]:
            for start, stop in self._parts(name):
                base, found = self._read(name, start, stop, [model])
                yield (found[0] - base).float()

        return merging.threshold(magnitudes, max(1, int(density * size)))

    def _same(self, name: str) -> Iterator[Tensor]:
        """What is no weight, as it is. Raises ModelError where it differs from model to model."""
        if (other := self._differs(name)) is not None:
            files = f"{self.models[0][name].file} and {other}"
            raise ModelError(f"{name}, which is no weight to be merged, differs between {files}.")
        for start, stop in self._parts(name):
            yield self.models[0][name].read(self.reader, start, stop).to(self.dtypes[name])

    def _differs(self, name: str) -> Path | None:
        """The file in which a tensor is not as in the first model."""
        first, *others = (tensors[name] for tensors in (*self.models, *([] if self.base is None else [self.base])))
        for other in others:
            for start, stop in self._parts(name):
                one, two = (x.read(self.reader, start, stop) for x in (first, other))
                if not torch.equal(one, two.to(one.dtype)):
                    return other.file
        return None

    def _parts(self, name: str) -> Iterator[tuple[int, int]]:
        size = self.models[0][name].size
        return ((start, min(start + PART, size)) for start in range(0, size, PART))

    def _read(
        self, name: str, start: int, stop: int, which: Sequence[int] | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """A part of the base (without one: of the first model) and of the models `which`, in float64. Raises ModelError
        for a number that is not finite."""
        chosen = [self.models[i][name] for i in (range(len(self.models)) if which is None else which)]
        found = []
        for tensor in [*([] if self.base is None else [self.base[name]]), *chosen]:
            x = tensor.read(self.reader, start, stop)
            if not all_finite([x]) and not (finite := x.isfinite()).all():
                place = start + int((~finite).nonzero()[0])
                index = ", ".join(str(i) for i in np.unravel_index(place, tensor.shape))
                raise ModelError(
                    f"{tensor.file}: {name}[{index}] is {x[place - start].item()}. Such weights are not merged."
                )
            found.append(x.double())
        return found[0], found if self.base is None else found[1:]

    def _cast(self, name: str, merged: Tensor) -> Tensor:
        written = merged.to(self.dtypes[name])
        if not bool(written.isfinite().all()):
            most = merged.abs().max().item()
            kind = str(self.dtypes[name]).removeprefix("torch.")
            raise ModelError(
                f"{name}: its merged weights reach {most:.3g}, which {kind} cannot hold. Give another --dtype."
            )
        return written

    def _is_done(self, name: str) -> None:
        self.done.append(name)
        self.tell(len(self.done))


def steps(config: MergeConfig, names: Sequence[str]) -> int:
    """What `Merge.tell` counts to."""
    return len(names) * (2 if "granularity" in MERGES[config.method].options else 1)
