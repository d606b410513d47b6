"""What this machine is: versions, hardware, extras, and its rate of matrix products. `assent env` prints it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from assent import __version__, cpus
from assent.config import EnvConfig

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def describe(config: EnvConfig) -> dict[str, Any]:
    """Prints the environment, with the rate of matrix products where `config.matmul` asks for it. Returns it."""
    from rich.console import Console
    from rich.table import Table

    facts = snapshot()
    if config.matmul:
        facts["matmul"] = {
            f"{device} {precision}": f"{rate / 1e9:,.0f} GFLOP/s"
            for (device, precision), rate in matmul_rates().items()
        }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for topic, value in facts.items():
        for name, text in value.items() if isinstance(value, dict) else [("", value)]:
            table.add_row(topic, name, "missing" if text is None else str(text))
            topic = ""
    Console(soft_wrap=True).print(table)
    return facts


def snapshot() -> dict[str, Any]:
    """Everything that may explain a difference between two runs, ready for JSON. A package that is not installed has
    the version None."""
    return {
        "assent": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _installed(name) for name in requirements(None)},
        "extras": {f"{name} [{extra}]": _installed(name) for extra in extras() for name in requirements(extra)},
        "cpu": _cpu(),
        "gpu": _gpus(),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run; torch's with its build, as in 2.13.0+cpu."""
    packages = "torch transformers tokenizers safetensors peft numpy bitsandbytes vllm math-verify".split()
    found = {name: version for name in packages if (version := _installed(name)) is not None}
    return {"assent": __version__, "python": platform.python_version(), **found}


def requirements(extra: str | None) -> list[str]:
    """Names of the packages that assent needs (`extra` None), or that one of its extras needs."""
    found = []
    for line in _metadata("Requires-Dist"):
        requirement, _, marker = line.partition(";")
        of = re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker)
        name = _NAME.match(requirement)
        if name and (of.group(1) if of else None) == extra:
            found.append(name.group())
    return found


def extras() -> list[str]:
    """Names of assent's optional dependencies."""
    return _metadata("Provides-Extra")


def matmul_rates(seconds: float = 0.5, size: int = 2048) -> dict[tuple[str, str], float]:
    """(device, precision) -> floating-point operations per second, 2 size^3 for each product of two square matrices:
    the best of what fits into `seconds`, for fp32 and bf16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.ones(size, size, dtype=dtype, device=device)
        right = torch.ones(size, size, dtype=dtype, device=device)
        left @ right
        wait()
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            left @ right
            wait()
            best = min(best, time.perf_counter() - start)
        rates[device, name] = 2 * size**3 / best
    return rates


def _cpu() -> dict[str, Any]:
    from assent.models.loading import native_precision

    quota = cpus.quota()
    return {
        "model": _cpu_model(),
        "cores": cpus.usable(),
        "quota": "none" if quota is None else f"{quota:g} cores",
        "threads used": torch.get_num_threads(),
        "threads wait": cpus.said(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "native precision": native_precision("cpu"),
        "memory": f"{_memory() / 2**30:.1f} GiB",
    }


def _gpus() -> dict[str, Any]:
    from assent.models.loading import native_precision

    if not torch.cuda.is_available():
        return {"found": "none"}
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        **{f"card {i}": f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for i, card in enumerate(cards)},
        "CUDA": torch.version.cuda,
        "native precision": native_precision("cuda"),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return 0


def _installed(name: str) -> str | None:
    return torch.__version__ if name == "torch" else _recorded(name)  # with the build, as in 2.13.0+cpu


@cache  # each reads a file, and a run asks for all of them several times
def _recorded(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _metadata(field: str) -> list[str]:
    try:
        return importlib.metadata.metadata("assent").get_all(field) or []
    except importlib.metadata.PackageNotFoundError:  # run from the source tree
        return []
