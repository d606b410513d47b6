"""Whether tensors hold finite numbers, and which does not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def too_large(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """As `not_finite`; and numbers so large that float32 cannot hold the sum of their squares: of these, products give
    infinity and norms 0."""
    tensors = [(name, _local(x)) for name, x in named if x.is_floating_point() and x.numel()]
    if not tensors or all_finite([x for _, x in tensors]):
        return None
    if (words := not_finite(tensors)) is not None:
        return words
    name, x = next((name, x) for name, x in tensors if not all_finite([x]))
    return f"{name} reaches {x.abs().max().item():.3g}, whose square float32 cannot hold"


def not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first number that is NaN or infinite, as "NAME[3, 7] is nan (5 such numbers in 2 of 20 tensors)", or None.
    One pass over memory where all are finite. Of sharded tensors this rank's part is looked at."""
    floats = [(name, _local(x)) for name, x in named if x.is_floating_point() and x.numel()]
    if not floats or all_finite([x for _, x in floats]):
        return None
    bad = [(name, x) for name, x in floats if not bool(x.isfinite().all())]
    if not bad:  # only a norm was beyond float32
        return None
    name, x = bad[0]
    index = tuple((~x.isfinite()).nonzero()[0].tolist())
    count = sum(int((~other.isfinite()).sum()) for _, other in bad)
    where = f"[{', '.join(map(str, index))}]" if index else ""
    more = f" ({count:,} such numbers in {len(bad)} of {len(floats)} tensors)" if count > 1 else ""
    return f"{name}{where} is {x[index].item()}{more}"


@torch.no_grad()
def all_finite(tensors: list[Tensor]) -> bool:
    """Whether the norms of all tensors are finite: then all their numbers are. (Finite numbers beyond 1e19 may have an
    infinite norm.)"""
    norms = torch._foreach_norm([x.detach() for x in tensors])
    return all(bool(group.isfinite().all()) for group in _by_device(norms))


def _by_device(norms: Iterable[Tensor]) -> list[Tensor]:
    groups: dict[torch.device, list[Tensor]] = {}
    for norm in norms:
        groups.setdefault(norm.device, []).append(norm.float())
    return [torch.stack(group) for group in groups.values()]


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x
