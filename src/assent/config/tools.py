"""Options of the commands that train nothing by themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.base import RunConfig
from assent.config.ranges import Count, CountOrZero, Length, Named, Names, Positive, Seed
from assent.config.sampling import EngineConfig, SamplingConfig
from assent.config.sections import Sections


@dataclass(frozen=True)
class InitConfig:
    """A byte-level BPE tokenizer trained on the data, and a small random model with a ChatML template."""

    data: Named
    """File, folder or hub id whose text trains the tokenizer."""
    out: Named
    """Model folder to write."""
    format: str = "auto"
    """Shape of the rows."""
    vocab_size: Count = 4096
    """Tokens in the vocabulary."""
    hidden_size: Count = 128
    """Width."""
    layers: Count = 4
    """Depth."""
    heads: Count = 4
    """Attention heads."""
    kv_heads: Count = 2
    """Key and value heads."""
    context: Length = 2048
    """Longest sequence."""
    seed: Seed = 0
    """Seed of the random weights."""


@dataclass(frozen=True)
class InspectConfig:
    """What a data file holds and what would be trained."""

    file: Named
    """File, folder or hub id."""
    model: Named | None = None
    """Model folder whose tokenizer and chat template are used; without it, no token counts."""
    chat_template: str | None = None
    """Chat template to use instead, as in training."""
    template_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Variables of the chat template, as in training."""
    turns: Literal["all", "last", "each"] = "all"
    """Assistant turns that are trained, as in training."""
    rendered: bool = False
    """Rows are text that a chat template has written already, as in training."""
    format: str = "auto"
    """Shape of the rows; auto detects it."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column map, expected name to the file's name."""
    split: str = "train"
    """Split of a hub id."""
    max_length: Length = 2048
    """Length limit, as in training."""
    long: Literal["drop", "refuse", "truncate_prompt_left"] = "drop"
    """What becomes of longer rows, as in training."""
    limit: Count | None = None
    """Use only the first rows."""
    show: CountOrZero = 2
    """Examples to preview."""
    problems: CountOrZero = 20
    """Problem rows to list (0: all)."""


@dataclass(frozen=True)
class GenerateConfig(Sections):
    """Answers from a model, for a file of prompts or in an interactive chat."""

    model: Named
    """Model or run folder."""
    prompts: Named | None = None
    """File of prompts in any known shape; without it: interactive chat."""
    out: Named | None = None
    """jsonl file to write; default: standard output."""
    answers: Count = 1
    """Answers to each prompt; several stand in one row (docs/formats.md)."""
    system: str | None = None
    """System message of the chat."""
    attributes: Named | None = None
    """What answers are to be, of a model that is steered by attributes (assent steerlm), for example
    helpfulness=4,verbosity=0; what is not named has the model's default."""
    limit: Count | None = None
    """Use only the first prompts."""
    seed: Seed = 0
    """Seed of the sampling."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute precision."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True)
class ExportConfig:
    """A plain model folder, as transformers loads it, of a run, a checkpoint, or adapters and their base."""

    model: Named
    """Run, checkpoint, adapter or model folder, or hub id."""
    out: Named
    """Model folder to write."""
    checkpoint: str | None = None
    """Of a run: best, last, or the number of a step; default: its final model."""
    part: Literal["model", "critic", "policy"] = "model"
    """model: what was trained; critic: of a run or checkpoint, the critic beside it; policy: the language model alone,
    where a value head (of LLaMA-Factory, TRL, OpenRLHF or GRM) makes a reward model of it."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the weights; auto: that of the model which was loaded."""
    attributes: Named | None = None
    """What answers of the exported model are to be by default, if it is steered by attributes, for example
    helpfulness=4,verbosity=0."""
    adapters: Literal["merge", "keep"] = "merge"
    """merge: into the weights; keep: merged, and also by themselves in `adapter/`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@dataclass(frozen=True)
class ReportConfig:
    """One self-contained HTML page from run folders."""

    runs: Names
    """Run folders."""
    out: Named = "report.html"
    """File to write."""
    title: str = "assent report"
    """Heading."""


@dataclass(frozen=True)
class WatchConfig:
    """A live view of runs from their files: how far they are, curves, newest answers, alarms. It writes nothing."""

    runs: Names
    """Run folders, or folders of several runs; the details are those of the run that logged last."""
    every: Positive = 2.0
    """Seconds between two looks."""
    samples: CountOrZero = 6
    """Newest answers to show."""
    once: bool = False
    """Look once and end; so it is also where the output is no terminal."""


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """Several methods on the same data, from the same start, under the same budget, and one report."""

    methods: Names = ("dpo", "ipo", "kto", "simpo", "orpo", "cpo")
    """Commands that train a policy (sft, dpo, kto, ppo, grpo, ...), each in a run folder of its name; NAME=METHOD names
    one, so that a method can run twice with different options. Those that sample take the prompts of the data."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of single methods, by name, for example simpo.loss.beta:2.5 ppo.optim.lr:1e-6 ppo.kl.coef:0.1."""
    scorer: Named | None = None
    """Function score(prompt messages, answer) -> number, as FILE.py:function or module:function: the gold reward, which
    no method sees."""
    reward_model: Named | None = None
    """Reward model folder or hub id that scores the answers as well, and that methods which learn from rewards learn
    from."""
    prompts: Named | None = None
    """File of prompts to answer; default: the prompts of the held-out data."""
    answers: Count = 1
    """Answers to each prompt."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True)
class CheckConfig:
    """A loss, objective or estimator of advantages of your own, trained where the exact optimum is known."""

    function: Named
    """FILE.py:function or module:function."""
    options: dict[str, float] = field(default_factory=dict)
    """Its options (keyword-only parameters), for example beta:0.1; others keep their defaults."""
    seeds: Count = 3
    """Worlds, each with another model, other prompts and other rewards."""
    steps: Count = 60
    """Optimiser steps of each training."""
    out: Named | None = None
    """JSON file for the numbers."""


@dataclass(frozen=True)
class DemoConfig:
    """The whole job on the embedded lab: world, SFT, reward model, PPO, DPO, evaluation, report."""

    out: Named = "runs/demo"
    """Folder for the world, the runs and the report."""
    seed: Seed = 0
    """Seed of world and training."""
    scale: Positive = 1.0
    """Multiplies data and steps; 0.1 is a quick look."""
    resume: bool = False
    """Continue an interrupted demo in `out`."""


@dataclass(frozen=True)
class EnvConfig:
    """Versions, hardware and extras of this machine."""

    matmul: bool = True
    """Measure the rate of matrix products (about two seconds)."""
