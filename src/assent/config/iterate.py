"""Options of `assent iterate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from assent.config.choosing import PAIRED, ChooseConfig, Way
from assent.config.judge import JudgeConfig
from assent.config.loops import LoopConfig
from assent.config.objectives import OBJECTIVES
from assent.config.online import RemoteConfig
from assent.config.online_relations import engine_is_asked, judge_is_asked, remote_weights
from assent.config.ranges import BelowOne, Count, Named, Names, NonzeroShare
from assent.config.reward import REWARD_MODELS
from assent.config.scoring import SourceConfig
from assent.config.sections import Sections
from assent.names import suggestion

PEOPLE, POLICY = "people", "judge=policy"
"""Words for labellers that are no source of `assent score`."""


@dataclass(frozen=True)
class LabelsConfig(SourceConfig):
    """What labels the answers of each round."""

    source: Names
    """What scores answers, as SOURCE of assent score: reward models, a rule, FILE.py:function, a server, openai=URL or
    judge=FOLDER; judge=policy, the policy of the round itself; or people: the loop then ends where answers are to be
    labelled, and goes on with their labels."""


@dataclass(frozen=True)
class RefreshConfig(Sections):
    """A reward model that is trained again in every round, on answers of the policy as it is now."""

    labels: tuple[str, ...] = ()
    """What labels these answers, instead of the reward model: as --labels.source. Default: the reward model stays as it
    is."""
    budget: Count = 256
    """Most answers that are labelled in a round."""
    answers: Count = 2
    """Answers of one prompt that are labelled."""
    method: Named = "reward"
    """Command that trains the reward model."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of it, for example optim.lr:1e-5 train.epochs:2."""
    begin: Literal["last", "first"] = "last"
    """Where its training begins: the reward model of the round before, or the first."""
    data: Named | None = None
    """Old labels that are mixed in: the pairs that the first reward model was trained on."""
    share: BelowOne = 0.5
    """data: share of old labels in the mixture."""
    held_out: NonzeroShare = 0.2
    """Share of the new labels, by prompt, that it is not trained on: its accuracy on them is measured before and
    after."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass(frozen=True)
class IterateConfig(LoopConfig):
    """Rounds of sampling, labelling, choosing what is learnt from, training and evaluating."""

    labels: LabelsConfig = field(kw_only=True)
    method: Named = "dpo"
    """Command that trains: an objective (dpo, sppo, simpo, kto, ...), or sft."""
    answers: Count = 4
    """Answers sampled to each prompt."""
    each_round: Literal["new", "all"] = "new"
    """Prompts of a round: others than those of the rounds before, as long as there are, or all in every round."""
    per_round: Count | None = None
    """new: prompts of a round; default: all, divided by the rounds."""
    begin: Literal["last", "start"] = "last"
    """Where the training of a round begins: the policy of the round before, or the start."""
    reference: Literal["round", "start"] = "round"
    """Objectives with a reference: what the training of the round begins with, or the start of the loop."""
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    scorer: Named | None = None
    """Function score(prompt messages, answer) -> number, as FILE.py:function or module:function: the gold reward of the
    evaluations, which nothing is trained by."""
    measures: tuple[str, ...] = ()
    """Further measures of the evaluations, by name (docs/evaluation.md): beside rewards, win rate against the start, KL
    from it, length, and unfinished answers."""
    eval_answers: Count = 1
    """Answers to each held-out prompt (--data.eval or --data.eval_fraction)."""


FITTING: dict[str, tuple[Way, ...]] = {
    "sft": ("best", "above"),
    "pairs": (*PAIRED, "ratings"),
    "binary": PAIRED,
    "ranking": ("all-pairs", "ratings"),
    "rating": ("ratings",),
}
"""What is learnt from -> what may be taken for it."""


def feedback_of(method: str) -> str:
    """What a command learns from: a key of `FITTING`."""
    return "sft" if method == "sft" else OBJECTIVES[method].feedback


def _trains(config: IterateConfig) -> str | None:
    known = ("sft", *OBJECTIVES)
    if config.method not in known:
        return (
            f"--method {config.method} does not learn from answers that were labelled before."
            f"{suggestion(config.method, known)} Known: {', '.join(known)}."
        )
    feedback, take = feedback_of(config.method), config.choose.take
    if take not in FITTING[feedback]:
        return (
            f"--choose.take {take} gives nothing that {config.method} learns from. Expected: "
            f"{', '.join(FITTING[feedback])}."
        )
    if config.answers < 2 and feedback != "sft":
        return f"--answers {config.answers}: {config.method} compares answers to one prompt. Give at least 2."
    return None


def choice_fits(config: Any) -> str | None:
    """What is wrong with the section `choose` of a loop, in a sentence."""
    choose = config.choose
    if choose.take == "above" and choose.threshold is None:
        return "--choose.take above takes what reaches --choose.threshold. None is given."
    if choose.threshold is not None and choose.take not in ("best", "above"):
        return f"--choose.threshold is about --choose.take best and above. Got --choose.take {choose.take}."
    if choose.threshold_step and choose.threshold is None:
        return "--choose.threshold_step is by how much --choose.threshold grows. None is given."
    if choose.gap and choose.take not in PAIRED:
        return f"--choose.gap is about pairs ({', '.join(PAIRED)}). Got --choose.take {choose.take}."
    return None


def _labelled(config: IterateConfig) -> str | None:
    for flag, words, section in (
        ("--labels.source", config.labels.source, config.labels),
        ("--refresh.labels", config.refresh.labels, config.refresh),
    ):
        if PEOPLE in words and len(words) > 1:
            return f"{flag} {' '.join(words)}: people are asked alone."
        if (problem := judge_is_asked(section)) is not None:
            return problem.replace("--judge.", f"{flag.rpartition('.')[0]}.judge.")
    if POLICY in config.refresh.labels:
        return f"--refresh.labels {POLICY}: what the policy says of itself is nothing to train a reward model on."
    if (problem := remote_weights(config.labels)) is not None:
        return problem.replace("--remote.", "--labels.remote.")
    return None


def _refreshed(config: IterateConfig) -> str | None:
    refresh = config.refresh
    if not refresh.labels:
        given = [name for name in ("options", "data") if getattr(refresh, name)]
        return f"--refresh.{given[0]} is about a reward model that --refresh.labels trains again." if given else None
    if len(config.labels.source) != 1:
        return "--refresh.labels trains the one reward model of --labels.source again. Got " + " ".join(
            config.labels.source
        )
    if refresh.method not in REWARD_MODELS:
        return (
            f"--refresh.method {refresh.method} trains no reward model.{suggestion(refresh.method, REWARD_MODELS)} "
            f"Known: {', '.join(REWARD_MODELS)}."
        )
    if not 2 <= refresh.answers <= config.answers:
        return f"--refresh.answers {refresh.answers}: at least 2, and at most all of the --answers ({config.answers})."
    if refresh.budget < 2 * refresh.answers:
        return f"--refresh.budget {refresh.budget} must hold two prompts with {refresh.answers} answers each."
    return None


def _held_out(config: LoopConfig) -> str | None:
    if config.data.eval is not None and config.data.eval_fraction > 0:
        return "--data.eval and --data.eval_fraction exclude each other. Give one of them."
    return None


def _share(config: IterateConfig) -> str | None:
    if config.per_round is not None and config.each_round == "all":
        return "--per_round is about --each_round new. Got --each_round all."
    return None


ITERATE = tuple(
    (IterateConfig, relation)
    for relation in (_trains, choice_fits, _labelled, _refreshed, _held_out, _share, engine_is_asked)
)
"""Relations between its options (`assent.config.relations`)."""
