"""The stage that samples: K answers to each prompt, by any engine."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from assent.config import EngineConfig, ModelConfig, SamplingConfig
from assent.data.formats import load_examples, to_row
from assent.data.views import prompt_view
from assent.distributed import on_main
from assent.errors import DataError
from assent.loops.loop import Loop, here
from assent.loops.parts import Parts, clear
from assent.models.digests import file_digest, model_digests
from assent.rollout.answering import FINISHED, TOKENS, Counts, answered, asked, close, opened, room_of, sampled_parts

log = logging.getLogger(__name__)


def sample(
    loop: Loop,
    name: str,
    *,
    model: str | ModelConfig,
    prompts: str | Path,
    answers: int,
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: int,
    source: str = "policy",
) -> Path:
    """A file of assent's own rows: each prompt of `prompts` (a file of any shape) with `answers` responses of the
    model, said to be of `source`. `meta` has the row's own columns, and for each response `tokens` (how many) and
    `finished` (whether it ended by itself). Answers without any text are left out.

    Numbers of the stage: `prompts`, `unasked` (prompts that the model cannot be asked), `answers`, and `empty`,
    `unfinished`, `reread`, `tokens` of `rollout.answering.Counts`. The work is done in parts: one that is killed goes
    on with the next; ranks share it, and do not change it. Raises ModelError and DataError."""
    config = ModelConfig(path=model) if isinstance(model, str) else model

    def make(path: Path) -> Mapping[str, float]:
        return _sampled(path, config, Path(prompts), answers, sampling, engine, seed, source, loop)

    reads = (prompts, *here(config.path))
    path = loop.stage(name, make, reads=reads, about=f"{answers} answers to each prompt of {Path(prompts).name}")
    on_main(lambda: clear(path))
    return path


def _sampled(
    path: Path,
    config: ModelConfig,
    prompts: Path,
    answers: int,
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: int,
    source: str,
    loop: Loop,
) -> Mapping[str, float]:
    loaded = load_examples(prompts)
    examples, unusable = prompt_view(loaded.examples)
    for name in (TOKENS, FINISHED):
        if taken := next((example for example in examples if name in example.meta), None):
            raise DataError(f"{taken.origin}: a column of prompts may not be called '{name}'; answers have it.")

    def begin() -> tuple[Parts, frozenset[int]]:
        made_by: dict[str, Any] = {
            "model": model_digests(config.path, config.revision),
            "options": [asdict(config), asdict(sampling), asdict(engine), answers, seed, source],
            "prompts": file_digest(prompts),
        }
        parts = Parts(path, made_by)
        return parts, parts.done

    parts, done = on_main(begin)
    chat, made = opened(config, engine, sampling, loop.world)
    ready, refused = asked(chat, examples, room_of(config, sampling))
    problems = [*loaded.problems, *unusable, *refused]
    for problem in problems[:10]:
        log.warning(f"left out: {problem}")
    if not ready:
        raise DataError(f"{prompts}: none of the prompts can be answered. The first: {problems[0]}")
    for number, own, groups in sampled_parts(made, ready, answers, sampling, seed, loop.world, done):
        rows, counts = answered(chat, own, groups, source)
        about = {"prompts": len(own), **asdict(counts)}
        on_main(lambda: parts.put(number, map(to_row, rows), about))  # noqa: B023
    close(made)
    del made
    gc.collect()  # before the next stage loads its models
    total = on_main(parts.join)
    for sentence in Counts(**{name: int(total[name]) for name in Counts.__slots__}).sentences():
        log.warning(sentence)
    return total | {"unasked": len(problems)}
