"""Options of every command that trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from assent.config.ranges import BelowOne, Count, CountOrZero, Length, Named, Names, NotNegative, Positive, Seed, Share
from assent.config.sections import Sections


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft)."""

    rank: CountOrZero = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: Positive = 32.0
    """Adapter scale is alpha / rank."""
    targets: Names = ("all-linear",)
    """Names of the linear layers that get an adapter."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """Store the frozen weights in 4 or 8 bits (bitsandbytes): QLoRA (arXiv 2305.14314)."""


@dataclass(frozen=True)
class ModelConfig(Sections):
    """The model that is trained."""

    path: Named
    """Hugging Face model folder or hub id; a run, checkpoint or adapter folder stands for its model (adapters are
    merged into their base)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    chat_template: str | None = None
    """Chat template to use instead of the tokenizer's own: a Jinja file, or a built-in one (chatml, deepseek, gemma,
    llama3, mistral, plain)."""
    template_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Variables of the chat template, for example enable_thinking:false. They are saved with the model as the
    template's defaults; a row's own chat_template_kwargs win."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute precision; master weights are always fp32. auto: bf16 where the hardware has it natively."""
    layout: Literal["auto", "tree", "flat"] = "auto"
    """tree computes a prompt once for all its responses; flat repeats it. auto: tree where it is exact."""
    activation_checkpointing: bool = False
    """Recompute layer activations in the backward pass: less memory, about a third more time."""
    save_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of saved model folders; auto: that of the model which was loaded. (Checkpoints are fp32.)"""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: only architectures that transformers itself has."""
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True)
class DataConfig:
    """Where rows come from and how they become tokens."""

    train: Named
    """File (jsonl, json, parquet, csv), folder, or hub id."""
    eval: Named | None = None
    """Held-out file, folder or hub id, evaluated during training."""
    eval_fraction: BelowOne = 0.0
    """Share of the training prompts to hold out when `eval` is not given; chosen by a hash of the prompt."""
    split: str = "train"
    """Split of a hub id or of a folder that has several."""
    format: str = "auto"
    """Shape of the rows; auto detects it (`assent data FILE` shows what it found)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column map, expected name to the file's name, for example prompt:question."""
    max_length: Length = 2048
    """Longest prompt plus response, in tokens. A longer response is cut, without EOS; for prompts see `long`."""
    long: Literal["drop", "refuse", "truncate_prompt_left"] = "drop"
    """What becomes of a row whose prompt leaves no room for an answer. drop: it is left out and counted. refuse: it is
    a problem row. truncate_prompt_left: from every row that is longer than `max_length`, the first turns of the
    conversation are taken, whole ones, until it fits; a system message and the last question stay, and what is still
    too long is dropped."""
    strict: bool = False
    """Stop at the first problem row."""
    max_bad: Share = 0.01
    """Share of problem rows that may be skipped before the run stops."""
    limit: Count | None = None
    """Use only the first rows."""
    turns: Literal["all", "last", "each"] = "all"
    """Assistant turns that are trained: all of a response; its last alone, exactly; or each, in a row of its own (for
    sft)."""
    rendered: bool = False
    """Rows are text that a chat template has written already: their control tokens are read as such, and no template is
    applied."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    lr: Positive = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning-rate schedule after warm-up."""
    warmup: Share = 0.03
    """Share of all steps over which the learning rate rises from 0."""
    min_lr: Share = 0.0
    """Where cosine and linear end, as a share of `lr`."""
    beta1: BelowOne = 0.9
    """Decay of the first moment, the running mean of the gradient."""
    beta2: BelowOne = 0.999
    """Decay of the second moment, the running mean of its square."""
    eps: Positive = 1e-8
    """Added to the root of the second moment, in the denominator."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of matrices; biases and norms are left alone."""
    max_grad_norm: NotNegative = 1.0
    """Gradient norm above which gradients are scaled down; 0 turns clipping off."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop: how much per step, how long, what is kept."""

    batch_size: Count = 16
    """Examples (prompts with all their responses) in one optimiser step, over all ranks; online, the prompts of one
    rollout, which `rollout.minibatches` divides into steps."""
    micro_tokens: Count = 4096
    """Most packed tokens in one forward pass of one rank. Changes memory and speed, never the result."""
    epochs: Count = 1
    """Passes over the training data."""
    max_steps: Count | None = None
    """Stop after this many optimiser steps instead."""
    seed: Seed = 0
    """Seed of the order of examples and of all sampling."""
    eval_every: CountOrZero = 0
    """Steps between evaluations; 0: only at the end. The best checkpoint is kept."""
    save_every: CountOrZero = 0
    """Steps between checkpoints; 0: only at the end and when interrupted."""
    keep: Count = 2
    """Newest checkpoints to keep beside the best."""
    final: Literal["last", "best"] = "last"
    """Which step is written to model/ (and critic/) at the end: the last, or the one that was best held out."""
    log_every: Count = 1
    """Steps between rows of metrics.jsonl."""
    threads: Annotated[int, Interval(ge=0, le=1024)] = 0
    """CPU threads of each rank; 0: its share of the cores that this machine or container grants. A resumed run keeps
    the number that it began with."""


@dataclass(frozen=True)
class RunConfig(Sections):
    """What every training command shares."""

    model: ModelConfig
    data: DataConfig
    out: Named
    """Run folder: configuration, metrics, samples, checkpoints, final model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resume: Named | None = None
    """auto continues the newest complete checkpoint in `out` (or starts); a checkpoint folder continues that one."""
    resume_changed: tuple[str, ...] = ()
    """Options of which the content (rows, weights, code) may be another than the run has read so far, for example
    data.train; the run's history keeps it."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers beside metrics.jsonl."""


@dataclass(frozen=True)
class MeasuresConfig:
    """What is measured of the answers to held-out prompts at every evaluation, beside what is logged anyway."""

    measures: tuple[str, ...] = ()
    """Measures of docs/evaluation.md, for example rouge-l numeric-match distinct-2."""
    best: Named | None = None
    """The one of them that decides which checkpoint is the best; default: the command's own."""


@dataclass(frozen=True)
class AlarmConfig:
    """The drift alarm: what says, while a policy trains, that it moves away from what it was (docs/evaluation.md)."""

    rate: Annotated[float, Interval(ge=0, le=0.5)] = 0.05
    """Share of healthy runs in which it may raise an alarm; 0 turns it off."""
    held_out: Named | None = None
    """A source of rewards that nothing is trained by, as SOURCE of assent score: whether what is gained is real. It
    scores every rollout; without rollouts, the answers at every evaluation."""
    start: Annotated[int, Ge(5)] = 10
    """Rollouts (without them, evaluations) at the start that count as healthy, which later ones are compared with."""
    stop: bool = False
    """Stop the run at an alarm, with a checkpoint. When it is continued, what has raised it does not stop it again."""


@dataclass(frozen=True)
class ProbeConfig:
    """Answers sampled at every evaluation, to see what training does to them."""

    prompts: CountOrZero = 16
    """Held-out prompts to answer; 0: none."""
    max_new_tokens: Count = 128
    """Longest answer."""


@dataclass(frozen=True)
class NoProbe(ProbeConfig):
    """The same, of no prompts unless asked."""

    prompts: CountOrZero = 0


@dataclass(frozen=True)
class PolicyRunConfig(RunConfig):
    """What every command that trains a policy shares."""

    eval: MeasuresConfig = field(default_factory=MeasuresConfig)
    alarm: AlarmConfig = field(default_factory=AlarmConfig)


@dataclass(frozen=True)
class SFTConfig(PolicyRunConfig):
    """Supervised fine-tuning on the answers of the data."""

    probe: NoProbe = field(default_factory=NoProbe)


@dataclass(frozen=True)
class LossConfig:
    """Options of a loss. Every method and objective has its own."""
