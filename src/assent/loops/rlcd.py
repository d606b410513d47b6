"""`assent rlcd`: reinforcement learning from contrastive distillation (RLCD, arXiv 2307.12950).

prompts.jsonl               what is asked
round-1/contrasts.jsonl     pairs that contrasting prompts have made (`assent contrast`)
round-1/pairs.jsonl         the same, with comparisons by people, where such are given
round-1/reward/             a reward model of them (`assent reward`)
round-1/METHOD/             the policy (`assent grpo`, ...), with which the next round begins
round-1/eval/               what it answers to held-out prompts (`assent eval`), where `data.eval` gives some
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from assent.config import ContrastConfig
from assent.config.rlaif import RLCDConfig
from assent.loops.loop import Loop, here, opened, seed_of
from assent.loops.rlaif import again, cached, check_runs, learnt, pairs, prompts
from assent.people.contrast import BUILT_IN, contrast, read_templates


def rlcd(config: RLCDConfig) -> Path:
    """Goes through all stages and gives the run folder of the last policy. With `resume` finished stages are kept, and
    the one that was interrupted goes on. Raises as `assent.loops.constitution.constitution`."""
    read_templates(config.templates)
    check_runs(config)
    with opened("rlcd", config) as loop:
        policy: str | Path = config.model.path
        asked = prompts(loop, config)
        for number in range(1, config.rounds + 1):
            place = f"round-{number}"
            loop.say(f"[round {number} of {config.rounds}]")
            made = _contrasted(config, loop, f"{place}/contrasts.jsonl", policy, asked)
            file = pairs(loop, f"{place}/pairs.jsonl", made, config.comparisons)
            policy = learnt(config, loop, number, file, policy, votes=False)
    return Path(policy)


def _contrasted(config: RLCDConfig, loop: Loop, name: str, policy: str | Path, asked: Path) -> Path:
    model = config.contrasted or str(policy)

    def make(path: Path) -> Mapping[str, float]:
        done = contrast(
            ContrastConfig(
                model=model,
                prompts=str(asked),
                out=str(path),
                templates=config.templates,
                seed=seed_of(config.train.seed, name),
                resume=again(path),
                precision=config.model.precision,
                sampling=config.sampling,
                engine=config.engine,
                judge=replace(config.judge, cache=cached(loop, config.judge.cache)),
                remote=config.remote,
            )
        )
        return {"prompts": done.prompts, "pairs": done.rows}

    named = here(None if config.templates in BUILT_IN else config.templates, model)
    return loop.stage(name, make, reads=[asked, *named], about="pairs by contrasting prompts")
