"""What a checkpoint holds of a run's modules and their optimiser: gathered, and loaded again. Nothing else in `train`
knows how; a writer of sharded checkpoints takes this file's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from assent.distributed import cut_like, full_state_dict, is_main, load_full_state_dict, whole_tensors
from assent.errors import CheckpointError

OPTIMIZER = "optimizer"
"""The optimiser's place in the state, beside the names of modules."""


def gather_state(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and buffers of each module, whole and on the CPU, and under "optimizer" (see `_optimizer_state`) what the
    optimiser keeps of them. Rank 0 gets it, the others get empty mappings. Every rank must call it."""
    state: dict[str, Any] = {name: full_state_dict(module) for name, module in modules.items()}
    return {**state, OPTIMIZER: _optimizer_state(optimizer, modules)}


def load_state(
    state: Mapping[str, Any], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """The inverse of `gather_state`, for any number of ranks; without an optimiser, of the modules alone. Every rank
    gives the same whole `state`. Raises CheckpointError where it belongs to other weights."""
    for name, module in modules.items():
        load_full_state_dict(module, state[name])
    if optimizer is not None:
        _load_optimizer_state(optimizer, modules, state[OPTIMIZER])


def _optimizer_state(optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]) -> dict[str, dict]:
    """Optimiser state as `{"exp_avg": {"policy.embed.weight": tensor, ...}, "step": {"policy.embed.weight": 3.0}}`:
    whole CPU tensors under the weight's name, prefixed with its module's name in `modules`; scalars as numbers. Rank 0
    gets it, the others {}. Hyperparameters are not in it: the configuration gives them."""
    state: dict[str, dict] = {}
    for name, parameter in _named_parameters(optimizer, modules).items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.ndim > 0:
                for _, whole in whole_tensors([(name, value)]):
                    state.setdefault(kind, {})[name] = whole
            elif is_main():
                state.setdefault(kind, {})[name] = float(value)
    return state


def _load_optimizer_state(
    optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """The inverse of `_optimizer_state`, for any number of ranks. Every rank gives the same `state`.

    Raises `CheckpointError` if it belongs to other weights."""
    names = {parameter: name for name, parameter in _named_parameters(optimizer, modules).items()}
    packed = optimizer.state_dict()
    known = set(names.values())
    for kind, values in state.items():
        if unknown := sorted(values.keys() - known):
            raise CheckpointError(f"The checkpoint's optimiser state {kind!r} is for {unknown[0]!r}, not trained here.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed["state"] = {}
    for index, parameter in enumerate(parameters):
        entry = {kind: values[names[parameter]] for kind, values in state.items() if names[parameter] in values}
        for kind, value in entry.items():
            if isinstance(value, Tensor):
                if value.shape != parameter.shape:
                    raise CheckpointError(
                        f"{kind!r} of {names[parameter]!r} has shape {tuple(value.shape)} in the checkpoint, "
                        f"{tuple(parameter.shape)} here."
                    )
                entry[kind] = cut_like(value, parameter).clone()
            else:
                entry[kind] = torch.tensor(value, dtype=torch.float32)
        if entry:
            packed["state"][index] = entry
    optimizer.load_state_dict(packed)


def _named_parameters(optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Trained parameters by prefixed name; the first name of a tied one. state_dict (unlike named_parameters) gives
    the sharded parameters, which are those that the optimiser holds, also right after a forward pass."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names: dict[str, nn.Parameter] = {}
    for prefix, module in modules.items():
        for name, value in module.state_dict(keep_vars=True).items():
            if id(value) in trained:
                trained.discard(id(value))
                names[f"{prefix}.{name}"] = value
    assert not trained, f"{len(trained)} trained parameters belong to none of {sorted(modules)}"
    return names
