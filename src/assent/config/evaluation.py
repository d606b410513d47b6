"""Options of `assent eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.judge import JudgeConfig
from assent.config.online import RemoteConfig
from assent.config.ranges import Count, Length, Named, Names, Positive, Seed
from assent.config.sampling import SamplingConfig
from assent.config.scoring import SourceConfig
from assent.config.sections import Sections


@dataclass(frozen=True)
class EvalJudgeConfig(JudgeConfig):
    """What judges are asked. A comparison that a judge decides otherwise in the other order is a tie here, as in
    MT-Bench; how often it agrees with itself stands beside its verdicts."""

    contradiction: Literal["leave_out", "tie", "mean"] = "tie"
    """What a comparison is worth that the judge decides otherwise when the answers are shown in another order: a tie,
    nothing (it is left out and counted), or the mean over the orders."""


@dataclass(frozen=True)
class EvalConfig(Sections):
    """Policies on the same prompts: every number with its interval, its failures, and a test against the baseline."""

    policies: Names
    """What is evaluated: model folders, runs, hub ids, or files of answers made elsewhere ({prompt, response}, or
    alpaca_eval's {instruction, output, generator}); NAME=... gives one a name."""
    prompts: Named
    """File, folder or hub id of prompts to answer; its columns reference, references, answer or solution are right
    answers, its own answers are read for their likelihood."""
    out: Named
    """Folder for evaluation.json, evaluation.csv, answers.jsonl and the cache."""
    baseline: Named | None = None
    """Name of the policy that the others are compared with; default: the first."""
    reference: Named | None = None
    """Model folder or hub id that KL is measured from."""
    rewards: tuple[str, ...] = ()
    """What scores answers, each by itself: reward models, rules, functions, servers, implicit=FOLDER, as SOURCE of
    assent score; openai=URL or judge=FOLDER, which rates answers or compares them with the baseline's."""
    scorer: Named | None = None
    """Function score(prompt messages, answer) -> number, as FILE.py:function or module:function: the gold reward."""
    labels: Named | None = None
    """File of verdicts on pairs of these answers, in alpaca_eval's shape {instruction, output_1, output_2,
    preference}: 1, 2, or between them."""
    gamed: Named | None = None
    """AlpacaEval's df_gamed.csv, with its prompts: verdicts then have its length-controlled win rate beside the
    length-adjusted one."""
    results: tuple[str, ...] = ()
    """Results that other tools have written, NAME=FILE: of lm-evaluation-harness (a file or its folder) about a policy;
    of RewardBench, as assent trust writes them too, about a policy or one of `rewards`."""
    toxicity: Named | None = None
    """Model (folder or hub id) of text classification: the probability that an answer, read alone, is toxic."""
    toxicity_label: Named | None = None
    """toxicity: its label that means toxic; default: the one called toxic or toxicity, or else hate, hateful,
    hate_speech or offensive."""
    consistency: Named | None = None
    """What checks the claims of answers against the prompt's context: a model (folder or hub id) of natural language
    inference, which reads each sentence; or openai=URL or judge=FOLDER, which names the claims itself."""
    context: Named | None = None
    """consistency: column of the prompts that claims are checked against; default: context, contexts, documents or
    document, and without them the right answers."""
    measures: tuple[str, ...] = ()
    """Measures of the table, by name (docs/evaluation.md); default: all whose needs are met."""
    form: tuple[str, ...] = ()
    """Forms that answers should have, NAME=REGEX: the share in which the pattern of Python's re is found, as the
    measure NAME."""
    json_keys: tuple[str, ...] = ()
    """Keys of the JSON object that answers should be: the measure json asks for them."""
    within: Positive | None = None
    """How narrow intervals are wished, as ± WITHIN: the results say how many prompts that needs; default: half of what
    they are."""
    checkpoints: bool = False
    """Also every checkpoint of the policies that are runs: with --reference, and the reference among the policies, laws
    of gain by KL (docs/evaluation.md)."""
    answers: Count = 1
    """Answers to each prompt; several give, with a gold source, the best-of-n curve of every other source."""
    format: str = "auto"
    """Shape of the rows; auto detects it."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column map, expected name to the file's name."""
    kind: Named | None = None
    """Column with the kind of each prompt; default: kind, category or type."""
    split: str = "train"
    """Split of a hub id."""
    limit: Count | None = None
    """Use only the first rows."""
    seed: Seed = 0
    """Seed of sampling, and of what is shown."""
    resume: bool = False
    """Continue an evaluation in `out`: answers that are in its cache are not sampled again."""
    tokenizer: Named | None = None
    """Folder or hub id whose tokenizer and chat template write answers of files for servers."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute precision."""
    max_length: Length | None = None
    """Longest prompt plus answer, in tokens; default: what each model reads, at most 8,192."""
    micro_tokens: Count = 4096
    """Most packed tokens in one forward pass."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    judge: EvalJudgeConfig = field(default_factory=EvalJudgeConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    def source(self, word: str, tokenizer: str | None) -> SourceConfig:
        """The options of one of `rewards`, for answers that the tokenizer of a folder wrote. Those of judges are only
        for judges."""
        return SourceConfig(
            (word,),
            tokenizer=tokenizer,
            max_length=self.max_length,
            precision=self.precision,
            micro_tokens=self.micro_tokens,
            trust_remote_code=self.trust_remote_code,
            remote=self.remote,
            judge=JudgeConfig(**vars(self.judge)) if kind_of(word) in JUDGES else JudgeConfig(),
        )

    @property
    def judges(self) -> tuple[str, ...]:
        """The words that name judges, openai=URL or judge=FOLDER, without the names given to them."""
        words = (*self.rewards, *filter(None, [self.consistency]))
        parts = [word if kind_of(word) in JUDGES else word.partition("=")[2] for word in words]
        return tuple(part for part in parts if kind_of(part) in JUDGES)


JUDGES = ("openai", "judge")
"""What stands before "=" in a judge's word."""


def kind_of(word: str) -> str:
    """What stands before "=" in a word; "" where there is no "="."""
    kind, given, _ = word.partition("=")
    return kind if given else ""
