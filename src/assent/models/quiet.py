"""A model without chance in it: dropout, dropped layers and router jitter are off; its configuration, which is saved
with it, stays as it came."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig, PreTrainedModel

_NOISE = re.compile(r"drop|jitter")


def quieten(model: PreTrainedModel) -> None:
    """Switches off every rate of dropout and jitter: of dropout modules, numbers that a module took from its
    configuration when it was made, and numbers that it reads there in each call."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and _NOISE.search(name):
                setattr(module, name, 0.0)
        if isinstance(vars(module).get("config"), PreTrainedConfig) and module is not model:
            module.config = _quiet_view(module.config)


def _quiet_view(config: Any) -> Any:
    """`config` as a module is to see it: the same object in all but its rates, which read 0."""
    rates = [name for name, value in vars(config).items() if isinstance(value, float) and value and _NOISE.search(name)]
    if not rates:
        return config
    kind = type(config)
    view: Any = object.__new__(type(kind.__name__, (kind,), {name: property(lambda _: 0.0) for name in rates}))
    object.__setattr__(view, "__dict__", vars(config))
    return view


def noisy_part(model: nn.Module, is_noisy: Any) -> str:
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
