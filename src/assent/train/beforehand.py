"""Before a long run, all that could fail at its end is tried: places, room, the final model folders, the rewards."""

from __future__ import annotations

import logging
import random
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from assent import distributed
from assent.config import OnlineConfig, RunConfig
from assent.data.records import Example
from assent.errors import ModelError, OutputError, UserError
from assent.foreign import named
from assent.models.adapters import merged_weights
from assent.models.heads import outward
from assent.models.policy import Backbone, ScoreModel
from assent.models.quantize import quantised_layers
from assent.models.readback import LIMIT, reading_class, shell_of
from assent.models.saving import cast, origin_of, stop_ids, stored_as, write_folder
from assent.outputs import free_bytes, try_file, writing
from assent.rewards.build import afresh
from assent.rewards.group import GroupReward, Progress
from assent.rewards.groups import groups_of
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, rollout_of
from assent.train import checkpoint
from assent.train.card import model_card
from assent.train.closing import FILE, Summary
from assent.train.final import write_final
from assent.train.session import Session

log = logging.getLogger(__name__)

WHOLE = 20_000_000
"""Parameters up to which a model's folder is written and read back as at the end; of larger ones all but weights."""
TRIAL = ".trial"
"""The folder for it, inside the run folder."""
ANSWER = "I do not know."
"""The answer that rewards are asked about."""
KINDS = 4
"""Kinds of rows that they are asked about, at most."""


@contextmanager
def same_random_state() -> Iterator[None]:
    """What is drawn in here changes nothing that is drawn afterwards."""
    ours, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


# ---- what the run writes


def try_outputs(
    session: Session, modules: Sequence[nn.Module], final: Mapping[str, Backbone], *, total: int, keeps_best: bool
) -> None:
    """Writes, and removes again, a file in every place that the run will write to, and the final model folders; and
    looks whether there is room. `modules` are what each checkpoint holds, `final` the models by folder, `total` the
    steps of the whole run. Every rank must call it.

    Raises OutputError for a place that cannot be written or has no room for one checkpoint with the final models,
    ModelError where a model could not be saved."""
    distributed.on_main(lambda: _try_places(session, tuple(final)))
    with same_random_state():
        sizes = [_try_final(session, backbone, name) for name, backbone in final.items()]
    distributed.on_main(lambda: _check_room(session, checkpoint_bytes(modules), sum(sizes), total, keeps_best))
    distributed.on_main(lambda: _check_engine_room(session, final["model"]))


def _try_places(session: Session, models: Sequence[str]) -> None:
    folder, config = session.folder, session.config
    places = [folder.metrics, folder.samples, folder.path / "data.json", folder.path / FILE]
    places += [checkpoint.unfinished(folder.checkpoints, 0) / "optimizer.safetensors"]
    places += [folder.path / f"{name}.unfinished" / "README.md" for name in models]
    places += [folder.path / name / "README.md" for name in models]
    places += [folder.path / tracker / "events" for tracker in config.report_to]
    for place in places:
        try_file(place, f"--out {config.out}: {place}")
    if (engine := _engine_folder(session)) is not None:
        try_file(engine / "weights" / "model.safetensors", f"--engine.weights: {engine}")


def _engine_folder(session: Session) -> Path | None:
    """Where weights are left for an engine that has its own copy."""
    if not isinstance(session.config, OnlineConfig) or (engine := session.config.engine).name == "torch":
        return None
    return Path(engine.weights) if engine.weights else session.folder.path / "engine"


# ---- the final model


def _try_final(session: Session, backbone: Backbone, name: str) -> int:
    """Bytes that the model's folder will take."""
    trial = session.folder.path / TRIAL
    card = partial(model_card, Summary(session.config))
    try:
        with _adapters_that_show(backbone):
            if sum(weight.numel() for weight in backbone.plain.parameters()) <= WHOLE:
                write_final(session, backbone, trial / name, card, compared=name == "model")
                return distributed.on_main(lambda: _size(trial))
        return distributed.on_main(lambda: _write_without_weights(session, backbone, trial / name) + _size(trial))
    finally:
        if session.world.is_main:
            shutil.rmtree(trial, ignore_errors=True)


@contextmanager
def _adapters_that_show(backbone: Backbone) -> Iterator[None]:
    """Adapters begin as nothing, which any merge gets right; in here they hold numbers."""
    named = [(name, distributed.local_part(weight)) for name, weight in backbone.model.named_parameters()]
    zero = [weight for name, weight in named if ".lora_" in name and not weight.any()]
    with torch.no_grad():
        for weight in zero:
            weight.normal_(0, 0.1)
        try:
            yield
        finally:
            for weight in zero:
                weight.zero_()


def _write_without_weights(session: Session, backbone: Backbone, folder: Path) -> int:
    """Configuration, tokenizer, template and card of a large model, read back; and what its weights will take."""
    plain, trust = backbone.plain, session.config.model.trust_remote_code
    dtype, auto = stored_as(plain, session.config.model.save_dtype), AutoModelForCausalLM
    tokenizer, stops = (
        session.tokenizer,
        stop_ids(session.chat, plain.generation_config) if plain.can_generate() else (),
    )
    if isinstance(backbone, ScoreModel):
        tokenizer, stops, auto = outward(plain, session.chat, backbone.rule), (), reading_class(plain)
    if dtype == torch.float16:
        for name, weight in plain.state_dict().items():
            cast(plain, {name: distributed.local_part(weight)}, dtype)
    with writing(folder):
        write_folder(plain, tokenizer, folder, {}, dtype=dtype, stops=stops)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    ours = {name: torch.empty(x.shape, dtype=x.dtype, device="meta") for name, x in backbone.model.state_dict().items()}
    if type(plain).__module__.startswith("transformers_modules") or quantised_layers(plain):
        return sum(x.numel() for x in ours.values()) * dtype.itemsize
    adapters = 0
    if hasattr(backbone.model, "peft_config"):
        if origin_of(plain).plain:
            backbone.model.peft_config["default"].save_pretrained(folder / "adapter")
            adapters = sum(x.numel() for name, x in ours.items() if ".lora_" in name or ".modules_to_save." in name)
        ours = merged_weights(backbone.model, ours)
    return (adapters + _compare(session.config.model.path, ours, auto, folder)) * dtype.itemsize


def _compare(path: str, ours: Mapping[str, Tensor], auto: Any, folder: Path) -> int:
    """Numbers in the weights that the written configuration asks for, which must be `ours`."""
    whole = sum(x.numel() for x in ours.values())
    try:
        asked = shell_of(auto, folder).state_dict(keep_vars=True)
    except Exception as error:
        if whole <= LIMIT:  # the folder will be read with its weights
            return whole
        raise ModelError(f"{path}: transformers would not load this model as it is saved: {named(error)}") from error
    names = sorted(asked.keys() | ours.keys())
    if odd := [name for name in names if getattr(asked.get(name), "shape", 0) != getattr(ours.get(name), "shape", 0)]:
        raise ModelError(
            f"{path}: transformers would not load this model as it is saved: of its weights {len(odd)} would be "
            f"missing, surplus or of another shape ({', '.join(odd[:3])})."
        )
    return sum({id(x): x.numel() for x in asked.values()}.values())


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ---- room


def checkpoint_bytes(modules: Sequence[nn.Module]) -> int:
    """What a checkpoint takes that holds these models and AdamW's two moments of all that is trained in them."""
    total = 16_384  # manifest, random state, position in the data
    for module in modules:
        weights = {id(x): (name, x) for name, x in module.state_dict(keep_vars=True).items()}
        for name, x in weights.values():
            size = x.numel() * x.element_size() + 3 * len(name) + 90  # what the two indices say of it
            total += 3 * size if x.requires_grad else size
    return total


def _check_room(session: Session, one: int, final: int, total: int, keeps_best: bool) -> None:
    """`one` checkpoint and the `final` models, in bytes. Raises OutputError where these do not fit; says so where all
    that are to be kept do not."""
    out, train = session.config.out, session.config.train
    done = checkpoint.read_manifest(session.folder.checkpoint)["step"] if session.folder.checkpoint else 0
    there = sum(1 for _ in session.folder.checkpoints.glob("step-*"))
    saves = _saves(session.config, total - done, keeps_best)
    most = min(there + saves, train.keep + keeps_best + 1)  # the next is written before the oldest goes
    more = max(most - there, min(saves, 1))
    free = free_bytes(session.folder.path)
    needs = f"a checkpoint takes {size_of(one)}, and what is left at the end {size_of(final)}"
    if free < min(saves, 1) * one + final:
        raise OutputError(f"--out {out}: {size_of(free)} are free there; {needs}. {_smaller(session.config)}")
    if free < more * one + final:
        log.warning(
            f"--out {out}: {size_of(free)} are free there; {needs}. Up to {more} checkpoints will be added "
            f"(--train.keep {train.keep}{', the best' if keeps_best else ''}, and the next while it is written): they "
            f"take {size_of(more * one)}, and the run will stop where there is no more room. Lower --train.keep, or "
            "make room."
        )
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < one:
        log.warning(
            f"--out {out}: files may be {size_of(limit)} long here (ulimit -f), and a checkpoint takes {size_of(one)}."
        )


def _check_engine_room(session: Session, policy: Backbone) -> None:
    if (folder := _engine_folder(session)) is None:
        return
    one = sum(weight.numel() for weight in policy.plain.parameters()) * (2 if policy.precision == "bf16" else 4)
    if (free := free_bytes(folder)) < 2 * one:
        raise OutputError(
            f"--engine.weights {folder}: {size_of(free)} are free there, and the weights for the engine take "
            f"{size_of(one)}, twice that while they change. Make room there, or give another folder."
        )


def _saves(config: RunConfig, left: int, keeps_best: bool) -> int:
    """Most checkpoints that `left` steps write."""
    due = [every for every in (config.train.save_every, config.train.eval_every * keeps_best) if every]
    return min(left, 1 + sum(left // every for every in due))


def _smaller(config: RunConfig) -> str:
    """What helps where there is no room."""
    hints = ["Make room there, or choose another --out."]
    if config.model.lora.rank == 0:
        hints.append("Adapters (--model.lora.rank 16) need almost no optimiser state in checkpoints.")
    if config.model.save_dtype in ("auto", "fp32"):
        hints.append("--model.save_dtype bf16 halves a final model that is stored in fp32.")
    return " ".join(hints)


def size_of(count: int) -> str:
    """Bytes for people: "1.2 GB"."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


# ---- rewards


def try_rewards(
    session: Session, source: GroupReward, examples: Sequence[Example], progress: Progress, answers: int
) -> None:
    """Asks every source of rewards about made-up answers, `answers` to the first prompt of each kind, half of them cut
    off. A function of the user's is loaded anew for it, so that it begins the run as it was. Every rank must call it.

    Raises what the source raises."""
    groups = groups_of(*_made_up(session, examples, answers), session.chat, progress)
    if isinstance(session.config, OnlineConfig) and session.config.rewards.servers:
        log.info("Asking for the rewards of made-up answers; a server that is not up is waited for as in training.")
    try:
        with same_random_state():
            afresh(source).score(groups)
    except UserError as error:
        error.args = (f"{error}\n(Tried before training, on the made-up answer {ANSWER!r}.)",)
        raise


def _made_up(session: Session, examples: Sequence[Example], answers: int) -> tuple[Rollout, list[Example]]:
    firsts: dict[Any, Example] = {}
    for example in examples:
        firsts.setdefault(_kind(example), example)
    chosen = list(firsts.values())[:KINDS]
    if len(chosen) * answers < 2:  # of one answer, a single number would be right
        chosen += [example for example in examples if example is not chosen[0]][:1]
    assert isinstance(session.config, OnlineConfig)
    room = session.config.sampling.max_new_tokens
    text = session.tokenizer.encode(ANSWER, add_special_tokens=False)
    whole, cut = np.array([*text[: room - 1], session.tokenizer.eos_token_id]), np.array(text[:room])
    both = [Completion(whole, np.zeros(len(whole)), True), Completion(cut, np.zeros(len(cut)), False)]
    prompts = [session.chat.prompt_ids(example) for example in chosen]
    return rollout_of(prompts, np.arange(len(chosen)), [(both * answers)[:answers]] * len(chosen)), chosen


def _kind(example: Example) -> tuple[object, ...]:
    """What rewards may treat differently: text or messages, tools, columns."""
    present = frozenset(name for name, value in example.meta.items() if value is not None)
    return example.prompt_text is None, example.tools is None, present
