"""Ranks, collectives and sharding. Under `torchrun` every process is a rank: gloo on CPU, NCCL on CUDA. Without it
there is one rank, and every function here is a no-op that gives the same answer.

Gradients are *summed* over ranks, never averaged: each rank's loss is already its sum divided by the global count, so
the number of ranks cannot change the gradient.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from assent import cpus, messages
from assent.carried import by_all, portable, tried
from assent.errors import CheckpointError, ConfigError
from assent.launch import join, launched

T = TypeVar("T")

SHARDS_INTEGERS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether FSDP2 takes parameters of integers: 2.11 asks for their gradients. Quantised weights need it."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among all. `local_rank` counts within one machine and picks the CUDA device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and prints."""
        return self.rank == 0


def init(threads: int = 0) -> World:
    """Joins the process group when `torchrun` set RANK, until the process ends, and sets the CPU threads: `threads`, or
    with 0 an equal share of the usable cores for each rank of this machine (one process alone keeps torch's own choice
    where it is within a container's quota). Raises ConfigError where the variables of launchers make no sense, and
    where the other ranks are not there in time."""
    place = launched(os.environ)
    messages.show(place.rank)
    if threads or place.local_size > 1:
        torch.set_num_threads(threads or max(1, cpus.usable() // place.local_size))
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cpus.usable()))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if place.local_rank >= (devices := torch.cuda.device_count()):
            raise ConfigError(
                f"LOCAL_RANK is {place.local_rank}, but this machine has {devices} CUDA devices: start one process for "
                "each."
            )
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    if place.size > 1 and not dist.is_initialized():
        join(place, device)
        # Not after each run: ranks that join anew meet the addresses of the group before in torchrun's store, and hang.
        atexit.register(shutdown)
    return World(place.rank, place.size, place.local_rank, device)


def shutdown() -> None:
    """Leaves the process group. Waits for nobody, so that a rank that failed takes the others down with it."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # gloo's threads let go of the last collective's tensors a moment after it returned, and need Python's lock for
        # it. If the interpreter ends first, the process aborts: give them the lock once more.
        time.sleep(0.1)


def all_sum_dict(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[float, float]]:
    """Sums (sum, count) pairs over all ranks, in float64 and in one collective. Numbers or 0-d tensors; every rank
    must give the same names."""
    names = sorted(metrics)
    values = torch.tensor([[float(part) for part in metrics[name]] for name in names], dtype=torch.float64)
    if dist.is_initialized():
        # The last row proves that all ranks sum the same things.
        mark = zlib.crc32("\n".join(names).encode())
        packed = torch.cat([values.reshape(-1, 2), torch.tensor([[mark, 0]], dtype=torch.float64)])
        dist.all_reduce(packed)
        assert packed[-1, 0] == mark * dist.get_world_size(), f"ranks reduce different metrics; here: {names}"
        values = packed[:-1]
    return {name: (total, count) for name, (total, count) in zip(names, values.tolist(), strict=True)}


def any_true(flag: bool) -> bool:
    """Whether `flag` is true on at least one rank; the same answer everywhere."""
    if not dist.is_initialized():
        return flag
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def broadcast_object(value: T) -> T:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: T) -> list[T]:
    """The `value` of every rank, in order of rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def gathered(action: Callable[[], T]) -> list[T]:
    """What `action` gives on each rank, in order, on every rank. Whatever is raised on one rank, a signal's Interrupted
    too, is raised on all of them. No collective may be in `action`."""
    if not dist.is_initialized():
        return [action()]
    own = tried(action, ends=True)
    found = gather_objects((own[0], portable(own[1])))
    for _, error in found:
        if error is not None:
            raise by_all(error) from own[1]
    return [value for value, _ in found]  # type: ignore[misc]


def on_main(action: Callable[[], T]) -> T:
    """Runs `action` on rank 0 and gives its result to every rank. If it raises, every rank raises the same error, so
    none is left waiting."""
    if not dist.is_initialized():
        return action()
    own: tuple[Any, BaseException | None] = tried(action) if dist.get_rank() == 0 else (None, None)
    result, error = broadcast_object((own[0], portable(own[1])))
    if error is not None:
        raise by_all(error) from own[1]
    return result


def shard(
    module: nn.Module,
    world: World,
    *,
    blocks: Sequence[nn.Module],
    heads: Sequence[nn.Module] = (),
    precision: Literal["bf16", "fp32"] = "fp32",
) -> nn.Module:
    """FSDP2 on each of `blocks` (decoder layers), of `heads` and on `module` itself; in place, nothing with one rank.

    Gradients are summed over ranks in fp32. With `precision` bf16 on CUDA the weights are gathered as bf16 (half the
    traffic), those of `heads` as fp32; masters stay fp32. Frozen modules may be sharded too. Raises ConfigError for
    quantised weights where this torch cannot shard them.
    """
    if world.size == 1:
        return module
    if not SHARDS_INTEGERS and not all(weight.is_floating_point() for weight in module.parameters()):
        raise ConfigError(
            f"--model.lora.quantize: torch {torch.__version__} cannot shard quantised weights over {world.size} ranks. "
            "Use torch 2.13 or newer, one rank, or --model.lora.quantize none."
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    gather_bf16 = precision == "bf16" and world.device.type == "cuda"
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = dataclasses.replace(exact, param_dtype=torch.bfloat16) if gather_bf16 else exact
    for part in (*blocks, *heads, module):
        sharded = fully_shard(part, mesh=mesh, mp_policy=exact if part in heads else policy)
        # A factor of 1 means a sum; gloo has no scaled reduction, hence the plain one.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    return module


@contextmanager
def unsharded(module: nn.Module) -> Iterator[nn.Module]:
    """Keeps all weights of `module` (the one given to `shard`) gathered on every rank: inside, forward passes of it or
    of its parts need no collective, so ranks may run different numbers of them (sampling). For inference only. Does
    nothing to a module that is not sharded."""
    if not isinstance(module, FSDPModule):
        yield module
        return
    # Whoever runs forward first becomes FSDP's root; in here that may be an inner module, so settle it now.
    module._get_fsdp_state()._lazy_init()
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    module.set_reshard_after_forward(False)
    for part in parts:
        part.unshard()
    try:
        yield module
    finally:
        for part in parts:
            part.reshard()
        module.set_reshard_after_forward(True)
        # As FSDP does by itself: the root's weights are needed again as soon as the backward pass begins.
        module.set_reshard_after_forward(False, recurse=False)


def reshard(module: nn.Module) -> None:
    """Gives gathered weights back: those of the outermost part stay gathered after a forward pass without gradients."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_state_dict(module: nn.Module, *, everywhere: bool = False) -> dict[str, Tensor]:
    """All weights and buffers by name, whole and on the CPU, on rank 0; empty on the others, or with `everywhere` on
    them too. Every rank must call it. Tied weights come out as one tensor under several names. Tensors may share memory
    with the module."""
    return dict(whole_tensors(module.state_dict(keep_vars=True).items(), everywhere))


def load_full_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies whole CPU tensors into `module`, each rank taking its own shard. Every rank gives the same `state`.

    Raises `CheckpointError` naming the first weight that is missing, unknown, or of another shape."""
    targets = module.state_dict(keep_vars=True)
    if missing := sorted(targets.keys() - state.keys()):
        raise CheckpointError(f"The checkpoint lacks {len(missing)} of the model's weights, first {missing[0]!r}.")
    if unknown := sorted(state.keys() - targets.keys()):
        raise CheckpointError(f"The checkpoint has {len(unknown)} weights the model lacks, first {unknown[0]!r}.")
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != state[name].shape:
                raise CheckpointError(
                    f"{name!r} has shape {tuple(state[name].shape)} in the checkpoint, {tuple(target.shape)} here."
                )
            target.copy_(cut_like(state[name], target))


def whole_tensors(items: Iterable[tuple[str, Tensor]], everywhere: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Whole CPU tensors on rank 0 or `everywhere`, one at a time; tied tensors are gathered once. A collective."""
    done: dict[int, Tensor] = {}
    keeps = everywhere or is_main()
    for name, value in items:
        if id(value) not in done:
            whole = value.detach()
            if isinstance(whole, DTensor):
                whole = whole.full_tensor()
            done[id(value)] = whole.cpu() if keeps else whole.new_empty(0)
        if keeps:
            yield name, done[id(value)]


def cut_like(value: Tensor, target: Tensor) -> Tensor:
    """`value` on `target`'s device, cut into the same shards. Each rank already holds all of it: nothing is sent."""
    value = value.to(device=target.device)
    if not isinstance(target, DTensor):
        return value
    mesh: DeviceMesh = target.device_mesh
    return distribute_tensor(value, mesh, target.placements, src_data_rank=None)


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients by max_norm / norm where the global L2 norm exceeds `max_norm` (0: never), and returns the
    norm before scaling, a plain 0-d tensor that is the same on every rank. Norms of single tensors are computed in fp32
    (beyond 1.8e19 they overflow to inf), their squares added in float64, in a fixed order. A norm that is not finite
    leaves the gradients alone."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return torch.zeros((), dtype=torch.float32)
    local = [local_part(grad) for grad in grads]
    squares = torch.stack(torch._foreach_norm([part.float() for part in local])).double().square()
    split = torch.tensor([_is_split(grad) for grad in grads], device=squares.device)
    shards = squares[split].sum()
    if dist.is_initialized():
        dist.all_reduce(shards)
    norm = (shards + squares[~split].sum()).sqrt()
    if max_norm > 0 and max_norm < norm.item() < float("inf"):
        torch._foreach_mul_(local, max_norm / norm.item())
    return norm.float()


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; changes to it in place change the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_split(grad: Tensor) -> bool:
    """Whether each rank holds another part of `grad`, so that squares add up over ranks."""
    return isinstance(grad, DTensor) and any(placement.is_shard() for placement in grad.placements)


def is_main() -> bool:
    """Whether this is rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0
