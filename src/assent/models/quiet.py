"""A model without chance in it: it trains the function that it computes in evaluation mode. Its configuration, which is
saved with it, stays as it came."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig, PreTrainedModel

_RATE = re.compile("drop")


def quieten(model: PreTrainedModel) -> None:
    """Switches off every dropout (of modules, of numbers that a module took from its configuration when it was made,
    and of those that it reads there in each call), and keeps routers with jitter in evaluation mode."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        numbers = {name: value for name, value in vars(module).items() if isinstance(value, float) and value}
        for name in filter(_RATE.search, numbers):
            setattr(module, name, 0.0)
        if any("jitter" in name for name in numbers):  # may also be a threshold that evaluation knows
            _keep_in_evaluation(module)
        if isinstance(vars(module).get("config"), PreTrainedConfig) and module is not model:
            module.config = _quiet_view(module.config)


def _keep_in_evaluation(module: nn.Module) -> None:
    module.eval()
    module.train = MethodType(lambda self, mode=True: self, module)  # type: ignore[method-assign]


def _quiet_view(config: Any) -> Any:
    """`config` as a module is to see it: the same object in all but its rates, which read 0."""
    rates = [name for name, value in vars(config).items() if isinstance(value, float) and value and _RATE.search(name)]
    if not rates:
        return config
    kind = type(config)
    view: Any = object.__new__(type(kind.__name__, (kind,), {name: property(lambda _: 0.0) for name in rates}))
    object.__setattr__(view, "__dict__", vars(config))
    return view


def noisy_part(model: nn.Module, is_noisy: Callable[[], bool]) -> str:
    """The kind of module whose evaluation mode makes `is_noisy()` false, for a message; "its code" where none does."""
    for kind in {type(module): None for module in model.modules() if module.training and module is not model}:
        changed = [module for module in model.modules() if type(module) is kind]
        for module in changed:
            module.training = False
        still = is_noisy()
        for module in changed:
            module.training = True
        if not still:
            return kind.__name__
    return "its code"
