"""The stage that evaluates: `assent eval` on the policies of a round."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from assent import distributed
from assent.config import EvalConfig
from assent.errors import Incomplete
from assent.evaluate.cache import CACHE
from assent.evaluate.evaluation import evaluated, prompts_of
from assent.evaluate.results import KL, LENGTH, REWARD, UNFINISHED, PolicyTable
from assent.loops.loop import Loop, Numbers, here
from assent.statistics import Interval


def evaluate_round(loop: Loop, name: str, config: EvalConfig, *, known: Path | None = None) -> Path:
    """The evaluation `name` (a folder, with all that `assent eval` writes); of `config` all counts but `out` and
    `resume`. Answers to the prompts that the prompt file gives are not asked about. Answers that are in the cache of
    the evaluation `known` are not sampled again.

    Numbers of the stage, about the last of the policies: of each source of rewards its mean, by the source's name, and
    by NAME_gain its difference from the baseline, `kl`, `length`, `unfinished`, and `win_rate` (against the baseline);
    each with NAME_low and NAME_high. Raises Incomplete where a judge's server left questions without an answer."""

    def make(path: Path) -> Numbers:
        own = replace(config, out=str(path), resume=True)
        distributed.on_main(partial(_take_over, known, path))
        prompts = distributed.on_main(lambda: replace(prompts_of(own), given=()))
        table = evaluated(own, loop.world, prompts)
        if table.unanswered:
            counts = ", ".join(f"{judge} {count}" for judge, count in table.unanswered.items())
            raise Incomplete(
                f"{path}: judges' servers left questions without an answer ({counts}). The same command with --resume "
                "auto asks them alone."
            )
        return numbers_of(table)

    named = [word.partition("=")[2] or word for word in config.policies]
    return loop.stage(
        name, make, reads=here(*named, config.prompts), about=f"answers to {Path(config.prompts).name}, measured"
    )


def numbers_of(table: PolicyTable) -> dict[str, float | None]:
    """What the table says of its last policy, in the words of a loop's state."""
    policy = table.policies[-1]
    found: dict[str, Interval] = dict(policy.scores)
    found |= {key: policy.interval(key) for key in (KL, LENGTH, UNFINISHED) if key in policy.numbers}
    if (wins := table.wins(policy)) is not None:
        found["win_rate"] = wins.rate
    numbers: dict[str, float | None] = {}
    for name, interval in found.items():
        numbers |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    for name in policy.scores:
        if (against := policy.differences.get(f"{REWARD}{name}")) is not None:
            gain = against.difference
            numbers |= {f"{name}_gain": gain.value, f"{name}_gain_low": gain.low, f"{name}_gain_high": gain.high}
    return numbers


def _take_over(known: Path | None, path: Path) -> None:
    """Copies answers that were sampled already; names are digests of all that decides them."""
    if known is None:
        return
    (path / CACHE).mkdir(parents=True, exist_ok=True)
    for file in sorted((known / CACHE).glob("*.json")):
        if not (path / CACHE / file.name).exists():
            shutil.copy2(file, path / CACHE / file.name)
