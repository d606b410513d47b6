"""Sampling from two models at once: their geometric mixture, token by token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from assent.config import SamplingConfig
from assent.models.attention import Attend
from assent.rollout.torch_engine import TorchEngine

_APART = 1 << 20  # added to the numbers of the other model's layers, so that one cache holds both


class MixtureEngine(TorchEngine):
    """Samples each token from p(v) proportional to model(v)^(1 - weight) * other(v)^weight, that is from
    softmax(((1 - weight) * logits + weight * other_logits) / temperature), whose log-probs it gives (arXiv 2312.00886).

    `other` is the second model, None for the first without its adapters, which `plain()` turns off. With weight 0 the
    second model is not asked, with weight 1 the first is not. A smaller vocabulary is padded: what only one of the two
    can say, the mixture cannot.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        other: PreTrainedModel | None,
        weight: float,
        eos_ids: Collection[int],
        precision: str = "fp32",
        *,
        plain: Callable[[], AbstractContextManager[Any]] = nullcontext,
        unused: Collection[int] = (),
    ) -> None:
        assert 0.0 <= weight <= 1.0, weight
        super().__init__(model, eos_ids, precision, unused=unused)
        self.weight, self.plain = weight, plain
        self.other = None if other is None else TorchEngine(other, eos_ids, precision)

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, **options: Any) -> Tensor:
        if self.weight == 0.0:
            return super().forward(ids, positions, attend, **options)
        if self.weight == 1.0:
            return self._other(ids, positions, attend, **options)
        own = super().forward(ids, positions, attend, **options)
        other = self._other(ids, positions, _Apart(attend), **options)
        width = max(own.shape[-1], other.shape[-1])
        first, second = (_padded(logits.float(), width) for logits in (own, other))
        return (1.0 - self.weight) * first + self.weight * second

    def _check(self, prompts: Sequence[np.ndarray], sampling: SamplingConfig) -> None:
        super()._check(prompts, sampling)
        if self.other is not None:
            self.other._check(prompts, sampling)

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        raise AssertionError("both models belong to a trainer")

    def _other(self, ids: Tensor, positions: Tensor, attend: Attend, **options: Any) -> Tensor:
        if self.other is not None:
            return self.other.forward(ids, positions, attend, **options)
        with self.plain():
            return super().forward(ids, positions, attend, **options)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with super()._ready(), nullcontext() if self.other is None else self.other._ready():
            yield


class _Apart:
    """An `attend` object as a second model calls it: its layers are not those of the first."""

    def __init__(self, attend: Attend) -> None:
        self.attend = attend

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        numbered: Any = SimpleNamespace(layer_idx=int(module.layer_idx) + _APART)  # type: ignore[arg-type]
        return self.attend(numbered, query, key, value, scaling)


def _padded(logits: Tensor, width: int) -> Tensor:
    return F.pad(logits, (0, width - logits.shape[-1]), value=float("-inf"))
