"""Options of `assent warp`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

from assent.config.evaluation import EvalConfig, EvalJudgeConfig
from assent.config.judge import JudgeConfig
from assent.config.loops import LoopConfig
from assent.config.methods import METHODS, compares_with_reference
from assent.config.online import OnlineConfig, RemoteConfig, RewardsConfig
from assent.config.ranges import Count, CountOrZero, Named, NonzeroShare, Share
from assent.config.sections import default_of
from assent.config.training import START, TRAINERS
from assent.names import suggestion

EMA, KL_COEF, ANCHOR, REFERENCE = "ema", "kl.coef", "kl.anchor", "kl.reference"
TAKEN = ("model.path", "model.save_dtype", "train.seed")
"""Options of a run that the loop gives."""


@dataclass(frozen=True)
class WarpConfig(LoopConfig):
    """WARP: rounds of several runs of reinforcement learning from one start, merged; the front of KL and reward."""

    policy: Named = "grpo"
    """Command of the runs: a method that learns from rewards of sampled answers (ppo, grpo, rloo, ...). Its KL is from
    a moving average of the policy (--kl.anchor ema) unless `options` say otherwise."""
    runs: Annotated[int, Ge(2)] = 2
    """Runs of a round; they differ in their seed alone, by which prompts are ordered and answers sampled."""
    steps: tuple[int, ...] = ()
    """Optimiser steps of a run: one number, or one for each round (the last one holds for all further); default: what
    `train` says. The paper: 9000 7000 5000."""
    merge: Literal["slerp", "linear"] = "slerp"
    """How task vectors of a round are merged: slerp, with one angle for each layer, or their average (LERP)."""
    weight: Share = 0.5
    """slerp of two runs: λ, where 0 is the first run and 1 the second. More than two weigh alike (equation 26)."""
    eta: NonzeroShare = 0.3
    """η: how far the next start goes from the round's start (0) to the merged model (1)."""
    front: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """η of the models between the first start and the merged one that are written and evaluated at the end; none: only
    the merged model is made."""
    prompts: Named | None = None
    """Held-out prompts that the front is evaluated on: file, folder or hub id; default: data.eval."""
    answers: Count = 1
    """Answers to each of these prompts."""
    scorer: Named | None = None
    """Function score(prompt messages, answer) -> number, as FILE.py:function or module:function: the gold reward, which
    no run sees, beside the rewards that the runs learn from."""
    parallel: CountOrZero = 0
    """Runs of a round at a time, each in a process of its own, and where there are CUDA devices on one of its own; 0:
    one after the other, in this process. The numbers are the same."""
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def steps_of(self, number: int) -> int | None:
        """Optimiser steps of a run of this round, counted from 1."""
        return self.steps[min(number, len(self.steps)) - 1] if self.steps else self.train.max_steps


def run_of(config: WarpConfig, start: str, out: str, number: int, seed: int) -> OnlineConfig:
    """The options of a run of round `number` that begins with the model `start`. Raises ConfigError."""
    from assent.config import settings  # which reads the table of relations, and that this module
    from assent.config.composed import composed

    shared = settings.plain(config)
    shared["model"] = {**shared["model"], "path": start, "save_dtype": "fp32"}
    shared["train"] = {**shared["train"], "seed": seed, "max_steps": config.steps_of(number)}
    kl = {} if ANCHOR in config.options else {"anchor": EMA}
    if number > 1 and config.options.get(ANCHOR, EMA) == EMA:
        kl["reference"] = config.model.path  # all rounds log the KL from the first start
    run: OnlineConfig = composed(config.policy, {**shared, "kl": kl, "out": out}, config.options, taken=TAKEN)
    return run


def evaluation_of(config: WarpConfig, models: Mapping[str, str], out: str) -> EvalConfig:
    """The evaluation of the models on the front, by name: what `assent eval` would be told. Answers are sampled and
    scored as the runs do it, whatever their options say."""
    run = run_of(config, config.model.path, config.out, 1, config.train.seed)
    shape: dict[str, Any] = {} if config.prompts else {"format": run.data.format, "columns": run.data.columns}
    return EvalConfig(
        policies=tuple(f"{name}={path}" for name, path in models.items()),
        prompts=config.prompts or run.data.eval or "",
        out=out,
        baseline=START,
        reference=config.model.path,
        rewards=tuple(_sources(run.rewards)),
        scorer=config.scorer,
        answers=config.answers,
        seed=config.train.seed,
        precision=run.model.precision,
        trust_remote_code=run.model.trust_remote_code,
        sampling=run.sampling,
        remote=run.remote,
        judge=EvalJudgeConfig(**vars(run.judge)),
        **shape,
    )


def _sources(rewards: RewardsConfig) -> list[str]:
    """What the runs learn from, each by itself, as the words of `assent eval --rewards`."""
    names = ["reward"] if len(rewards.model) == 1 else [f"reward-{n}" for n in range(1, len(rewards.model) + 1)]
    models = [f"{name}={path}" for name, path in zip(names, rewards.model, strict=True)]
    judges = [word.replace("model=", "judge=", 1) for word in rewards.judges]
    functions = list(rewards.functions)
    implicit = [f"implicit={path}" for path in rewards.implicit]
    return [*models, *rewards.rules, *functions, *rewards.servers, *judges, *implicit]


def warped(config: WarpConfig) -> str | None:
    """What is wrong with the options, in a sentence; None where nothing is. Raises ConfigError for what a run cannot
    take."""
    policy = config.policy
    if policy not in TRAINERS or not TRAINERS[policy].is_online:
        online = [name for name, row in TRAINERS.items() if row.is_online]
        return (
            f"--policy {policy} does not learn from rewards of sampled answers.{suggestion(policy, online)} Known: "
            f"{', '.join(online)}."
        )
    coef = config.options.get(KL_COEF, default_of(TRAINERS[policy].config, "kl").coef)
    if METHODS[policy].objective is None and _is_zero(coef):
        return (
            f"--policy {policy}: {KL_COEF} is 0, and without a KL nothing holds the runs together, so that they would "
            f"not merge. Give --options {KL_COEF}:0.1."
        )
    if any(steps < 1 for steps in config.steps) or len(config.steps) > config.rounds:
        return (
            f"--steps {' '.join(map(str, config.steps))}: expected one number from 1, or one for each of "
            f"{config.rounds} rounds (--rounds)."
        )
    if config.weight != 0.5 and (config.runs > 2 or config.merge != "slerp"):
        return (
            f"--weight {config.weight:g} is λ of slerp between two runs. Got --merge {config.merge}, --runs "
            f"{config.runs}."
        )
    if any(not 0 <= eta <= 1 for eta in config.front) or len(set(config.front)) < len(config.front):
        return f"--front {' '.join(f'{eta:g}' for eta in config.front)}: expected different numbers from 0 to 1."
    run = run_of(config, config.model.path, config.out, 1, config.train.seed)
    if run.kl.coef == 0 and not compares_with_reference(run):
        return f"--policy {policy}: its loss has no reference, and without one nothing holds the runs together."
    if config.front and config.prompts is None and run.data.eval is None:
        return (
            "--front is evaluated on held-out prompts. Give --prompts FILE or --data.eval FILE; --front alone, without "
            "numbers, makes the merged model only."
        )
    if config.front:
        from assent.config import settings

        settings.validate(evaluation_of(config, {START: config.model.path}, config.out))
    return None


def _is_zero(value: object) -> bool:
    try:
        return float(str(value)) == 0
    except ValueError:
        return False  # said where the run's options are read
