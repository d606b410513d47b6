"""What a run says before its first step, and leaves in opening.json: the data, what is trained by what, for how long,
on what, and where it goes. All of it is read off the objects that will do the work."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from assent.config import RunConfig
from assent.data.dataset import left_out, summary
from assent.data.mismatch import MISMATCHED
from assent.data.packing import EpochStream
from assent.data.tree import TokenTree
from assent.models.policy import Backbone
from assent.outputs import write_text
from assent.train.commands import TrainingCommand
from assent.train.facts import Line, number, percent, plural, rounded
from assent.train.session import Session

FILE = "opening.json"
NAMES = 4
"""Kinds of layers that are named; of more, the first ones and a number."""


def opening(
    session: Session,
    command: TrainingCommand,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    about: Sequence[Line],
    *,
    step: int,
    total: int,
) -> list[Line]:
    """What stands above the progress of a run that begins after `step`; `about` is what only its algorithm knows."""
    facts = [Line("Method", f"{command.name[:1].upper()}{command.name[1:]}: {command.summary}"), *_data(session)]
    facts += [_model(name, module, session.config) for name, module in modules.items() if isinstance(module, Backbone)]
    facts += about
    if step:
        facts.append(Line("Resumes", f"after step {step:,} of {total:,}"))
    return [
        *facts,
        _optimizer(session.config, optimizer, total),
        _machine(session, modules),
        *_folder(session, command),
    ]


def write_opening(facts: Sequence[Line], folder: Path, *, step: int, total: int) -> None:
    """Writes opening.json into the run folder, for who watches the run or reads of it later: the same lines, the step
    that it begins after and the last one. Raises OutputError where it cannot."""
    found = {"begins_after": step, "steps": total, "lines": [[fact.label, fact.text] for fact in facts]}
    write_text(folder / FILE, json.dumps(found, indent=1, ensure_ascii=False))


def _data(session: Session) -> list[Line]:
    report = session.folder.data()
    if not report:
        return []
    listed = [Line("", command, command=True) for command in left_out(report)]
    return [Line("Data", summary(report)), *([Line("", "To see what is left out or cut:")] if listed else []), *listed]


# ---- models


def _model(name: str, module: Backbone, config: RunConfig) -> Line:
    options: Any = config
    path, label = config.model.path, "Model"
    if name == "critic":
        start, label = options.critic.start, "Critic"
        path = {"reward": options.rewards.model[:1], "policy": (path,)}.get(start, (start,))[0]
    total, trained = _parameters(module)
    how = f"all {rounded(total)} parameters trained"
    if trained < total:
        how = f"{rounded(trained)} of {rounded(total)} parameters trained ({percent(trained / total)})"
    parts = [how, *_adapters(module)]
    if getattr(module, "value_head", None) is not None:
        parts.append("its critic a head on the same layers")
    return Line(label, f"{path} ({module.plain.config.model_type}), {', '.join(parts)}")


def _parameters(module: nn.Module) -> tuple[int, int]:
    """How many there are, of all ranks together, and how many are trained."""
    sizes = [(_size(parameter), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _size(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # several weights in a byte
    return parameter.numel() if packed is None else math.prod(packed.shape)


def _adapters(module: Backbone) -> list[str]:
    found: Any = getattr(module.model, "peft_config", None)
    if not found:
        return []
    layers = Counter(name.rpartition(".")[2] for name, part in module.model.named_modules() if hasattr(part, "lora_A"))
    kinds, more = list(layers)[:NAMES], len(layers) - NAMES
    names = ", ".join(kinds) + (f" and {more} more kinds" if more > 0 else "")
    return [f"LoRA of rank {found['default'].r} on {sum(layers.values()):,} layers ({names})"]


# ---- what only an algorithm knows


def about_stream(stream: EpochStream, total: int) -> Line:
    """Steps over given examples."""
    size, per_epoch = min(stream.batch_size, len(stream.trees)), stream.steps_per_epoch
    pairs = sum(len(tree.pairs) for tree in stream.trees)
    tokens = sum(map(_trained_tokens, stream.trees))
    of = plural(size, "example") + (f" with {rounded(pairs / per_epoch)} pairs" if pairs > len(stream.trees) else "")
    each = f", about {rounded(tokens / per_epoch)} trained tokens each ({rounded(tokens)} an epoch)" if tokens else ""
    return Line("Steps", f"{total:,} ({epochs(total, per_epoch)}) of {of}{each}")


def _trained_tokens(tree: TokenTree) -> int:
    """Those of its own answers; others are only read."""
    foreign = tree.per_response.get(MISMATCHED, np.zeros(len(tree.branches)))
    return sum(int(branch.trained.sum()) for branch, other in zip(tree.branches, foreign, strict=True) if not other)


def epochs(total: int, per_epoch: int) -> str:
    epochs = total / per_epoch
    words = f"{epochs:,.0f}" if total % per_epoch == 0 else f"{epochs:.2g}"
    return f"{words} {'epoch' if words == '1' else 'epochs'} of {plural(per_epoch, 'step')}"


# ---- optimiser, machine, folder


def _optimizer(config: RunConfig, optimizer: torch.optim.Optimizer, total: int) -> Line:
    rates = dict.fromkeys(group["peak_lr"] for group in optimizer.param_groups)
    warmup = round(config.optim.warmup * total)
    rise = f" after {plural(warmup, 'step')} of warm-up" if warmup else ""
    kind = type(optimizer).__name__
    return Line("Optimiser", f"{kind}, learning rate {' and '.join(map(number, rates))}, {config.optim.schedule}{rise}")


def _machine(session: Session, modules: Mapping[str, nn.Module]) -> Line:
    world, threads = session.world, torch.get_num_threads()
    device = world.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(world.device)
    precision = " and ".join(dict.fromkeys(module.precision for module in modules.values()))  # type: ignore[misc]
    ranks = f"{world.size} ranks with " if world.size > 1 else ""
    each = " each" if world.size > 1 else ""
    return Line("Machine", f"{device}, {ranks}{plural(threads, 'thread')}{each}, {precision}")


def _folder(session: Session, command: TrainingCommand) -> list[Line]:
    train, held = session.config.train, session.folder.data().get("eval", {}).get("examples", 0)
    when = _every(train.save_every) if train.save_every else "at the end"
    better = " and where held-out is best" if held else ""
    facts = [Line("Run folder", f"{shlex.quote(str(session.folder.path))}; a checkpoint {when}{better}")]
    if not held:
        return [*facts, Line("Held out", "nothing (--data.eval_fraction or --data.eval shows what is learnt)")]
    every = _every(train.eval_every) if train.eval_every else "at the start and at the end"
    kept = f"the step with the best {command.followed.best}" if train.final == "best" else "the last step"
    return [*facts, Line("Held out", f"{plural(held, 'example')}, {every}; model/ will be {kept}")]


def _every(interval: int) -> str:
    return "every step" if interval == 1 else f"every {interval:,} steps"
