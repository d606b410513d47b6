"""What a run says before its first step: the data, what is trained by what, for how long, on what, and where it goes.
All of it is read off the objects that will do the work."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from assent.algorithms.commands import Command
from assent.algorithms.job import Job
from assent.algorithms.references import MovingReference, Reference
from assent.config import ReferenceConfig, RunConfig
from assent.data.dataset import left_out, summary
from assent.data.packing import EpochStream
from assent.data.tree import TokenTree
from assent.models.policy import Backbone
from assent.train.facts import Fact, number, percent, plural, rounded

if TYPE_CHECKING:
    from assent.algorithms.online import Online
    from assent.algorithms.preference import Preference

NAMES = 4
"""Kinds of layers that are named; of more, the first ones and a number."""


def opening(
    job: Job,
    command: Command,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    about: Sequence[Fact],
    *,
    step: int,
    total: int,
) -> list[Fact]:
    """What stands above the progress of a run that begins after `step`; `about` is what only its algorithm knows."""
    facts = [Fact("Method", f"{command.name[:1].upper()}{command.name[1:]}: {command.summary}"), *_data(job)]
    facts += [_model(name, module, job.config) for name, module in modules.items()]
    facts += about
    if step:
        facts.append(Fact("Resumes", f"after step {step:,} of {total:,}"))
    return [*facts, _optimizer(job.config, optimizer, total), _machine(job, modules), *_folder(job, command)]


def _data(job: Job) -> list[Fact]:
    report = job.folder.data()
    if not report:
        return []
    listed = [Fact("", command, command=True) for command in left_out(report)]
    return [Fact("Data", summary(report)), *([Fact("", "To see what is left out or cut:")] if listed else []), *listed]


# ---- models


def _model(name: str, module: nn.Module, config: RunConfig) -> Fact:
    assert isinstance(module, Backbone)
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
    return Fact(label, f"{path} ({module.plain.config.model_type}), {', '.join(parts)}")


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


def about_stream(stream: EpochStream, total: int) -> Fact:
    """Steps over given examples."""
    size, per_epoch = min(stream.batch_size, len(stream.trees)), stream.steps_per_epoch
    pairs = sum(len(tree.pairs) for tree in stream.trees)
    tokens = sum(map(_trained_tokens, stream.trees))
    of = plural(size, "example") + (f" with {rounded(pairs / per_epoch)} pairs" if pairs > len(stream.trees) else "")
    each = f"about {rounded(tokens / per_epoch)} trained tokens each ({rounded(tokens)} an epoch)"
    return Fact("Steps", f"{total:,} ({_epochs(total, per_epoch)}) of {of}, {each}")


def _trained_tokens(tree: TokenTree) -> int:
    """Those of its own answers; others are only read."""
    foreign = tree.per_response.get("mismatched", np.zeros(len(tree.branches)))
    return sum(int(branch.trained.sum()) for branch, other in zip(tree.branches, foreign, strict=True) if not other)


def _epochs(total: int, per_epoch: int) -> str:
    epochs = total / per_epoch
    words = f"{epochs:,.0f}" if total % per_epoch == 0 else f"{epochs:.2g}"
    return f"{words} {'epoch' if words == '1' else 'epochs'} of {plural(per_epoch, 'step')}"


def about_preference(algorithm: Preference, section: ReferenceConfig | None, total: int) -> list[Fact]:
    """What an objective learns from, and what it compares with."""
    terms = [f"{number(term.weight)} x {term.name}" for term in algorithm.terms[1:]]
    return [
        *([Fact("Plus", ", ".join(terms))] if terms else []),
        Fact("Reference", _reference(algorithm.reference, section)),
        about_stream(algorithm.stream, total),
    ]


def _reference(reference: Reference | None, section: ReferenceConfig | None) -> str:
    if reference is None:
        return "none"
    path = section.path if section is not None else None
    of = path or "the start"
    if section is not None and section.mode == "cached":
        return f"log-probs of {of}, computed once"
    if isinstance(reference, MovingReference):
        return f"a copy of {of} that moves by {number(reference.rate)} to the policy every {reference.every:,} steps"
    return "the model without its adapters" if reference.model is None else f"{path or 'the start'}, frozen"


def about_online(algorithm: Online, total: int) -> list[Fact]:
    """Where answers come from, what they are worth, what holds the policy."""
    config, rollout, sampling = algorithm.config, algorithm.config.rollout, algorithm.config.sampling
    prompts = len(algorithm.experience.examples)
    size, steps = min(config.train.batch_size, prompts), algorithm.steps_per_rollout
    per_epoch = -(-prompts // config.train.batch_size) * steps
    answers = f"{plural(size, 'prompt')} x {plural(rollout.responses, 'answer')}"
    most = rounded(size * rollout.responses * sampling.max_new_tokens)
    return [
        Fact("Reference", _online_reference(algorithm)),
        Fact("Rewards", _rewards(algorithm)),
        Fact("Engine", _engine(algorithm)),
        Fact(
            "Steps",
            f"{total:,} ({_epochs(total, per_epoch)}), {steps:,} on each rollout of {answers}, at most {most} tokens",
        ),
    ]


def _online_reference(algorithm: Online) -> str:
    kl, reference = algorithm.config.kl, algorithm.models.reference
    if reference is None:
        return "none, nothing holds the policy near its start (--kl.coef 0)"
    what = "the model without its adapters" if reference.model is None else f"{kl.reference or 'the start'}, frozen"
    return f"{what}; {number(kl.coef)} x KL in the {kl.place}"


def _rewards(algorithm: Online) -> str:
    source: Any = algorithm.experience.source
    models = algorithm.config.rewards.model
    parts = []
    for one, weight in zip(getattr(source, "sources", [source]), getattr(source, "weights", [1.0]), strict=True):
        name = f"model {', '.join(models)}" if one.name == "model" and models else one.name
        parts.append(name if weight == 1 else f"{number(weight)} x {name}")
    return " + ".join(parts)


def _engine(algorithm: Online) -> str:
    engine, sampler = algorithm.config.engine, algorithm.experience.sampler
    where = engine.name if engine.url is None else f"{engine.name} server"
    weights = "from a copy of the policy" if sampler.owns_weights else "from the policy itself"
    ahead = ", one rollout ahead" if algorithm.config.rollout.ahead else ""
    sampling = algorithm.config.sampling
    how = f"temperature {sampling.temperature:g}, at most {sampling.max_new_tokens:,} tokens"
    return f"{where}, {weights}{ahead}; {how}"


# ---- optimiser, machine, folder


def _optimizer(config: RunConfig, optimizer: torch.optim.Optimizer, total: int) -> Fact:
    rates = dict.fromkeys(group["peak_lr"] for group in optimizer.param_groups)
    warmup = round(config.optim.warmup * total)
    rise = f" after {plural(warmup, 'step')} of warm-up" if warmup else ""
    kind = type(optimizer).__name__
    return Fact("Optimiser", f"{kind}, learning rate {' and '.join(map(number, rates))}, {config.optim.schedule}{rise}")


def _machine(job: Job, modules: Mapping[str, nn.Module]) -> Fact:
    world, threads = job.world, torch.get_num_threads()
    device = world.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(world.device)
    precision = " and ".join(dict.fromkeys(module.precision for module in modules.values()))  # type: ignore[misc]
    ranks = f"{world.size} ranks with " if world.size > 1 else ""
    each = " each" if world.size > 1 else ""
    return Fact("Machine", f"{device}, {ranks}{plural(threads, 'thread')}{each}, {precision}")


def _folder(job: Job, command: Command) -> list[Fact]:
    train, held = job.config.train, job.folder.data().get("eval", {}).get("examples", 0)
    when = _every(train.save_every) if train.save_every else "at the end"
    better = " and where held-out is best" if held else ""
    facts = [Fact("Run folder", f"{shlex.quote(str(job.folder.path))}; a checkpoint {when}{better}")]
    if not held:
        return [*facts, Fact("Held out", "nothing (--data.eval_fraction or --data.eval shows what is learnt)")]
    every = _every(train.eval_every) if train.eval_every else "at the start and at the end"
    kept = f"the step with the best {command.followed.best}" if train.final == "best" else "the last step"
    return [*facts, Fact("Held out", f"{plural(held, 'example')}, {every}; model/ will be {kept}")]


def _every(interval: int) -> str:
    return "every step" if interval == 1 else f"every {interval:,} steps"
