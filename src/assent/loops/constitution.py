"""`assent constitution`: Constitutional AI as a whole (arXiv 2212.08073).

prompts.jsonl               what is asked
sl/answers.jsonl            an answer of the start to every prompt
sl/revisions.jsonl          criticised and revised by principles (`assent critique`)
sl/demonstrations.jsonl     the same with demonstrations of others, where such are given
sl/sft/                     what learns them (`assent sft`)
round-1/answers.jsonl       answers of that policy, several to each prompt
round-1/choices.jsonl       which is better by a principle (`assent judge`)
round-1/pairs.jsonl         the same, with comparisons by people, where such are given
round-1/reward/             a reward model of them (`assent reward`)
round-1/METHOD/             the policy (`assent grpo`, ...), with which the next round begins
round-1/eval/               what it answers to held-out prompts (`assent eval`), where `data.eval` gives some
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assent.config import CritiqueConfig, JudgeFileConfig
from assent.config.judge import VerdictConfig, WriterConfig
from assent.config.rlaif import ConstitutionConfig
from assent.config.sections import keywords
from assent.loops.loop import Loop, here, opened, seed_of
from assent.loops.rlaif import (
    PROMPTS,
    REWARD,
    SFT,
    again,
    cached,
    check_runs,
    joined,
    learnt,
    local,
    of_file,
    pairs,
    prompts,
)
from assent.loops.sampled import sample
from assent.people.critique import critique
from assent.people.judge import check_judge, judge
from assent.people.principles import read_principles


def constitution(config: ConstitutionConfig) -> Path:
    """Goes through all stages and gives the run folder of the last policy. With `resume` finished stages are kept, and
    the one that was interrupted goes on.

    Raises ConfigError before any work for options that a run cannot take and principles that are none; RunFolderError
    for a folder of something else; Incomplete where the judge's server left questions without an answer: with `resume`
    these alone are asked."""
    read_principles(config.principles, "critique")
    read_principles(config.choices or config.principles, "choice", "--choices" if config.choices else "--principles")
    check_judge(_choice(config, "answers.jsonl", "choices.jsonl", None))
    check_runs(config, (SFT, REWARD))
    with opened("constitution", config) as loop:
        policy = _supervised(config, loop)
        for number in range(1, config.rounds + 1):
            place = f"round-{number}"
            loop.say(f"[round {number} of {config.rounds}]")
            answers = _sampled(config, loop, f"{place}/answers.jsonl", policy, config.answers)
            choices = _chosen(config, loop, f"{place}/choices.jsonl", answers)
            file = pairs(loop, f"{place}/pairs.jsonl", choices, config.comparisons)
            policy = learnt(config, loop, number, file, policy, votes=config.judge.soft)
    return policy


def _supervised(config: ConstitutionConfig, loop: Loop) -> Path:
    prompts(loop, config)
    answers = _sampled(config, loop, "sl/answers.jsonl", config.model.path, 1)
    file = _revised(config, loop, "sl/revisions.jsonl", answers)
    if config.demonstrations is not None:
        file = joined(loop, "sl/demonstrations.jsonl", [file, config.demonstrations])
    stage = f"sl/{SFT}"
    run = of_file(config, SFT, file, config.model.path, stage)
    return loop.train(stage, run, reads=[file, *here(config.model.path)])


def _sampled(config: ConstitutionConfig, loop: Loop, name: str, model: str | Path, answers: int) -> Path:
    return sample(
        loop,
        name,
        model=config.model if str(model) == config.model.path else str(model),
        prompts=loop.folder / PROMPTS,
        answers=answers,
        sampling=config.sampling,
        engine=config.engine,
        seed=seed_of(config.train.seed, name),
    )


def _critique(config: ConstitutionConfig, file: str, out: str, cache: str | None, **more: Any) -> CritiqueConfig:
    """What the critic is asked."""
    options = keywords(config.judge)
    writer = {key: options[key] for key in keywords(WriterConfig())} | {"cache": cache}
    return CritiqueConfig(
        file,
        out,
        source=config.source,
        principles=config.principles,
        few_shots=config.few_shots,
        revisions=config.revisions,
        keep=config.keep,
        judge=WriterConfig(**writer),
        **_same(config),
        **more,
    )


def _choice(config: ConstitutionConfig, file: str, out: str, cache: str | None, **more: Any) -> JudgeFileConfig:
    """What the judge is asked."""
    return JudgeFileConfig(
        file,
        out,
        source=(config.source,),
        principles=config.choices or config.principles,
        judge=VerdictConfig(**keywords(config.judge) | {"cache": cache}),
        **_same(config),
        **more,
    )


def _same(config: ConstitutionConfig) -> dict[str, Any]:
    model = config.model
    return {"precision": model.precision, "trust_remote_code": model.trust_remote_code, "remote": config.remote}


def _revised(config: ConstitutionConfig, loop: Loop, name: str, answers: Path) -> Path:
    def make(path: Path) -> Mapping[str, float]:
        more = {"seed": seed_of(config.train.seed, name), "resume": again(path)}
        done = critique(_critique(config, str(answers), str(path), cached(loop, config.judge.cache), **more))
        return {"answers": done.answers, "rows": done.rows, "unchanged": done.unchanged}

    named = here(config.principles, config.few_shots, local(config.source))
    return loop.stage(name, make, reads=[answers, *named], about="critiques and revisions")


def _chosen(config: ConstitutionConfig, loop: Loop, name: str, answers: Path) -> Path:
    def make(path: Path) -> Mapping[str, float | None]:
        more = {"seed": seed_of(config.train.seed, name), "resume": again(path)}
        done = judge(_choice(config, str(answers), str(path), cached(loop, config.judge.cache), **more))
        (numbers,) = done.judges.values()
        lost = sum(numbers.failures.values())
        consistent = None if numbers.consistency is None else numbers.consistency.mean
        return {"rows": done.rows, "verdicts": numbers.verdicts, "without": lost, "consistency": consistent}

    named = here(config.choices or config.principles, config.judge.prompt, local(config.source))
    return loop.stage(name, make, reads=[answers, *named], about="choices by principles")
