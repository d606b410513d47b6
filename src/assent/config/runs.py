"""Options of the commands that train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.sections import Sections


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft)."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: float = 32.0
    """Adapter scale is alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """Store the frozen weights in 4 or 8 bits (bitsandbytes): QLoRA (arXiv 2305.14314)."""


@dataclass(frozen=True)
class ModelConfig(Sections):
    """The model that is trained."""

    path: str
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

    train: str
    """File (jsonl, json, parquet, csv), folder, or hub id."""
    eval: str | None = None
    """Held-out file, folder or hub id, evaluated during training."""
    eval_fraction: float = 0.0
    """Share of the training prompts to hold out when `eval` is not given; chosen by a hash of the prompt."""
    split: str = "train"
    """Split of a hub id or of a folder that has several."""
    format: str = "auto"
    """Shape of the rows; auto detects it (`assent data FILE` shows what it found)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column map, expected name to the file's name, for example prompt:question."""
    max_length: int = 2048
    """Longest prompt plus response, in tokens. A longer response is cut, without EOS; for prompts see `long`."""
    long: Literal["drop", "refuse", "truncate_prompt_left"] = "drop"
    """What becomes of a row whose prompt leaves no room for an answer. drop: it is left out and counted. refuse: it is
    a problem row. truncate_prompt_left: from every row that is longer than `max_length`, the first turns of the
    conversation are taken, whole ones, until it fits; a system message and the last question stay, and what is still
    too long is dropped."""
    strict: bool = False
    """Stop at the first problem row."""
    max_bad: float = 0.01
    """Share of problem rows that may be skipped before the run stops."""
    limit: int | None = None
    """Use only the first rows."""
    turns: Literal["all", "last", "each"] = "all"
    """Assistant turns that are trained: all of a response; its last alone, exactly; or each, in a row of its own (for
    sft)."""
    rendered: bool = False
    """Rows are text that a chat template has written already: their control tokens are read as such, and no template is
    applied."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the rate after warm-up."""
    warmup: float = 0.03
    """Share of all steps over which the rate rises from 0."""
    min_lr: float = 0.0
    """Where cosine and linear end, as a share of `lr`."""
    beta1: float = 0.9
    """Decay of the gradient's average."""
    beta2: float = 0.999
    """Decay of the squared gradient's average."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; biases and norms are left alone."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down; 0 turns clipping off."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop: how much per step, how long, what is kept."""

    batch_size: int = 16
    """Examples (prompts with all their responses) in one optimiser step, over all ranks."""
    micro_tokens: int = 4096
    """Most packed tokens in one forward pass of one rank. Changes memory and speed, never the result."""
    epochs: int = 1
    """Passes over the training data."""
    max_steps: int | None = None
    """Stop after this many optimiser steps instead."""
    seed: int = 0
    """Seed of the order of examples and of all sampling."""
    eval_every: int = 0
    """Steps between evaluations; 0: only at the end. The best checkpoint is kept."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end and when interrupted."""
    keep: int = 2
    """Newest checkpoints to keep beside the best."""
    final: Literal["last", "best"] = "last"
    """Which step is written to model/ (and critic/) at the end: the last, or the one that was best held out."""
    log_every: int = 1
    """Steps between rows of metrics.jsonl."""
    threads: int = 0
    """CPU threads of each rank; 0: its share of the cores that this machine or container grants. A resumed run keeps
    the number that it began with."""


@dataclass(frozen=True)
class RunConfig(Sections):
    """What every training command shares."""

    model: ModelConfig
    data: DataConfig
    out: str
    """Run folder: configuration, metrics, samples, checkpoints, final model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resume: str | None = None
    """auto continues the newest complete checkpoint in `out` (or starts); a checkpoint folder continues that one."""
    resume_changed: tuple[str, ...] = ()
    """Options of which the content (rows, weights, code) may be another than the run has read so far, for example
    data.train; the run's history keeps it."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers beside metrics.jsonl."""


@dataclass(frozen=True)
class SFTConfig(RunConfig):
    """Supervised fine-tuning on the answers of the data."""


@dataclass(frozen=True)
class RewardSection:
    """How the reward model reads and compares answers."""

    readout: Literal["last", "mean"] = "last"
    """last compares the scores at the last tokens; mean compares token by token over the whole response."""
    margin: bool = False
    """Ask for a score gap of at least the pair's strength."""


@dataclass(frozen=True)
class RewardConfig(RunConfig):
    """Reward model from pairs (Bradley-Terry)."""

    reward: RewardSection = field(default_factory=RewardSection)


@dataclass(frozen=True)
class ReferenceConfig:
    """The model that the policy is compared with."""

    path: str | None = None
    """Reference model; default: the start of the policy (with LoRA: the policy without its adapters)."""
    mode: Literal["frozen", "cached", "moving"] = "frozen"
    """frozen runs it beside the policy; cached computes its log-probs once, keeps them on disk and needs no second
    model from then on; moving lets it follow the policy (arXiv 2404.09656)."""
    cache: str | None = None
    """cached: the file of log-probs; default: in ~/.cache/assent (or ASSENT_CACHE), named by data and model."""
    rate: float = 0.6
    """moving: share of the policy in the new reference; 1 makes it a copy."""
    every: int = 512
    """moving: optimiser steps from one update to the next."""


@dataclass(frozen=True)
class ProbeConfig:
    """Answers sampled at every evaluation, to see what training does to their length."""

    prompts: int = 16
    """Held-out prompts to answer; 0: none."""
    max_new_tokens: int = 128
    """Longest answer."""


@dataclass(frozen=True)
class PreferenceConfig(RunConfig):
    """Learning directly from feedback. `assent.objectives.CONFIGS` has one subclass for each objective, with its
    options as `loss`."""

    probe: ProbeConfig = field(default_factory=ProbeConfig)


@dataclass(frozen=True)
class PairConfig(PreferenceConfig):
    """Learning from pairs."""

    plus: dict[str, float] = field(default_factory=dict)
    """Further pairwise objectives (or sft) to add, each at its own defaults, for example sft:0.2 ipo:0.5."""


@dataclass(frozen=True)
class BinaryConfig(PreferenceConfig):
    """Learning from yes/no labels."""

    threshold: float | None = None
    """Rated answers: the rating from which an answer counts as desirable."""
