"""Options of `assent constitution` and `assent rlcd`: loops from AI feedback to a reward model to a policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.judge import EndpointConfig, VerdictConfig
from assent.config.loops import LoopConfig
from assent.config.online import PatienceConfig
from assent.config.people import ContrastSampling
from assent.config.ranges import Count, Named


@dataclass(frozen=True)
class RLAIFConfig(LoopConfig):
    """A reward model from AI feedback, and a policy from the reward model: base of both loops. `data.train` are the
    prompts."""

    rounds: Count = field(default=1, kw_only=True)
    """Rounds of feedback, reward model and policy, each on answers of the policy before it."""
    options: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Options of single runs, by `reward` or the name of `method`, for example reward.train.epochs:2
    grpo.kl.coef:0.05."""
    method: Named = field(default="grpo", kw_only=True)
    """Command that trains the policy from the rewards: ppo, grpo, rloo, ..."""
    comparisons: Named | None = field(default=None, kw_only=True)
    """File of comparisons by people that the reward model learns from as well, such as of helpfulness."""
    scorer: Named | None = field(default=None, kw_only=True)
    """Function score(prompt messages, answer) -> number, as FILE.py:function or module:function: the gold reward of the
    evaluations of each round on `data.eval`, which nothing is trained by."""
    measures: tuple[str, ...] = field(default=(), kw_only=True)
    """Measures of the evaluations, by name (docs/evaluation.md); default: all whose needs are met."""
    eval_answers: Count = field(default=1, kw_only=True)
    """Answers to each prompt of `data.eval`."""
    remote: PatienceConfig = field(default_factory=PatienceConfig, kw_only=True)


@dataclass(frozen=True)
class PrincipleJudge(VerdictConfig):
    """What the judge is asked."""

    prompt: Named = "principle"
    """What the judge is asked about two answers: a prompt that shows {{ row.principle }} (docs/judges.md)."""
    soft: bool = True
    """Choices are the probabilities of the letters, P(A) / (P(A) + P(B)), averaged over the orders, and the soft labels
    of the reward model; --no-judge.soft takes the letter that is written."""


@dataclass(frozen=True)
class ConstitutionConfig(RLAIFConfig):
    """Constitutional AI: revisions are learnt, then rewards of choices, all by principles (arXiv 2212.08073)."""

    options: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Options of single runs, by `sft`, `reward` or the name of `method`, for example sft.optim.lr:1e-5
    grpo.kl.coef:0.05."""
    source: Named = field(kw_only=True)
    """Who criticises, revises and chooses: openai=URL or judge=FOLDER."""
    principles: Named = field(kw_only=True)
    """YAML or JSON file of principles for critiques and revisions (docs/feedback.md)."""
    choices: Named | None = field(default=None, kw_only=True)
    """File of principles to choose by; default: those of `principles`."""
    few_shots: Named | None = field(default=None, kw_only=True)
    """File of example conversations that the critic is shown first; default: those of `principles`, if any."""
    revisions: Count = field(default=1, kw_only=True)
    """How often each answer is criticised and revised."""
    keep: Literal["last", "all"] = field(default="last", kw_only=True)
    """What is learnt: the last revision of each answer, or every one."""
    demonstrations: Named | None = field(default=None, kw_only=True)
    """File of demonstrations that are learnt together with the revisions, such as helpful answers."""
    answers: Count = field(default=2, kw_only=True)
    """Answers to each prompt that are compared with one another."""
    judge: PrincipleJudge = field(default_factory=PrincipleJudge, kw_only=True)


@dataclass(frozen=True)
class RLCDConfig(RLAIFConfig):
    """RLCD: a reward model from pairs of contrasting prompts, and a policy from it (arXiv 2307.12950)."""

    templates: Named = field(default="harmlessness", kw_only=True)
    """Contrasting prompts: harmlessness, helpfulness, or a YAML file (docs/feedback.md)."""
    contrasted: Named | None = field(default=None, kw_only=True)
    """Who answers the contrasting prompts: a model or run folder, or openai=URL; default: the policy itself."""
    sampling: ContrastSampling = field(default_factory=ContrastSampling, kw_only=True)
    judge: EndpointConfig = field(default_factory=EndpointConfig, kw_only=True)
