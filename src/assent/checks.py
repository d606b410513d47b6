"""What the values of options must satisfy: one table of ranges, and the relations between options.
`assent.settings.validate` applies both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from assent import config as c


class Rule(NamedTuple):
    """`words` completes the sentence "must be ..."."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("> 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = Rule(">= 0", lambda v: 0 <= v < math.inf)
COUNT = Rule("at least 1", lambda v: v >= 1)
SHARE = Rule("from 0 to 1", lambda v: 0 <= v <= 1)
BELOW_ONE = Rule("at least 0 and below 1", lambda v: 0 <= v < 1)
INSIDE = Rule("between 0 and 1, both excluded", lambda v: 0 < v < 1)
UP_TO_ONE = Rule("above 0 and at most 1", lambda v: 0 < v <= 1)
SEED = Rule("from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63)
LENGTH = Rule("at least 2", lambda v: v >= 2)
NAMED = Rule("given, not empty", lambda v: len(v) > 0)

RULES: dict[type, dict[str, Rule]] = {
    c.LoraConfig: {"rank": NOT_NEGATIVE, "alpha": POSITIVE, "targets": NAMED},
    c.ModelConfig: {"path": NAMED},
    c.DataConfig: {
        "train": NAMED,
        "eval": NAMED,
        "eval_fraction": BELOW_ONE,
        "max_length": LENGTH,
        "max_bad": SHARE,
        "limit": COUNT,
    },
    c.OptimConfig: {
        "lr": POSITIVE,
        "warmup": SHARE,
        "min_lr": SHARE,
        "beta1": BELOW_ONE,
        "beta2": BELOW_ONE,
        "eps": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "max_grad_norm": NOT_NEGATIVE,
    },
    c.TrainConfig: {
        "batch_size": COUNT,
        "micro_tokens": COUNT,
        "epochs": COUNT,
        "max_steps": COUNT,
        "seed": SEED,
        "eval_every": NOT_NEGATIVE,
        "save_every": NOT_NEGATIVE,
        "keep": COUNT,
        "log_every": COUNT,
        "threads": NOT_NEGATIVE,
    },
    c.RunConfig: {"out": NAMED, "resume": NAMED},
    c.DPOSection: {"beta": POSITIVE, "reference": NAMED},
    c.SamplingConfig: {
        "max_new_tokens": COUNT,
        "temperature": NOT_NEGATIVE,
        "top_k": NOT_NEGATIVE,
        "top_p": UP_TO_ONE,
        "max_batch": COUNT,
    },
    c.PPOSection: {
        "reward_model": NAMED,
        "reference": NAMED,
        "critic": NAMED,
        "responses": COUNT,
        "epochs": COUNT,
        "minibatches": COUNT,
        "kl_coef": NOT_NEGATIVE,
        "clip": INSIDE,
        "value_clip": NOT_NEGATIVE,
        "value_lr": POSITIVE,
        "gamma": SHARE,
        "lam": SHARE,
        "missing_eos_penalty": NOT_NEGATIVE,
    },
    c.InitConfig: {
        "data": NAMED,
        "out": NAMED,
        "vocab_size": COUNT,
        "hidden_size": COUNT,
        "layers": COUNT,
        "heads": COUNT,
        "kv_heads": COUNT,
        "context": LENGTH,
        "seed": SEED,
    },
    c.InspectConfig: {
        "file": NAMED,
        "model": NAMED,
        "max_length": LENGTH,
        "show": NOT_NEGATIVE,
        "problems": NOT_NEGATIVE,
    },
    c.GenerateConfig: {"model": NAMED, "prompts": NAMED, "out": NAMED, "limit": COUNT, "seed": SEED},
    c.ReportConfig: {"runs": NAMED, "out": NAMED},
    c.DemoConfig: {"out": NAMED, "seed": SEED, "scale": POSITIVE},
}
"""Section -> option -> its range. An option that may be None is checked where it is given."""


# ---- relations: the sentence that says what is wrong, or None


def _one_eval_source(config: c.RunConfig) -> str | None:
    if config.data.eval is not None and config.data.eval_fraction > 0:
        return "--data.eval and --data.eval_fraction exclude each other. Give one of them."
    return None


def _eval_needs_data(config: c.RunConfig) -> str | None:
    if config.train.eval_every > 0 and config.data.eval is None and config.data.eval_fraction == 0:
        return "--train.eval_every needs something to evaluate on. Give --data.eval or --data.eval_fraction."
    return None


def _trackers_once(config: c.RunConfig) -> str | None:
    if len(set(config.report_to)) < len(config.report_to):
        return f"--report_to names a tracker twice. Got {', '.join(config.report_to)}."
    return None


def _ppo_temperature(config: c.PPOConfig) -> str | None:
    if config.sampling.temperature == 0:
        return "--sampling.temperature must be > 0 to train: at 0 every answer has probability 1. Got 0."
    return None


def _ppo_minibatches(config: c.PPOConfig) -> str | None:
    if config.ppo.minibatches > config.train.batch_size:
        return (
            f"--ppo.minibatches must be at most --train.batch_size ({config.train.batch_size}), the prompts of a "
            f"rollout. Got {config.ppo.minibatches}."
        )
    return None


def _heads_divide(config: c.InitConfig) -> str | None:
    if config.heads < 1 or config.kv_heads < 1:
        return None  # reported by the table
    if config.hidden_size % (2 * config.heads):
        return (
            f"--hidden_size must be a multiple of 2 x --heads ({2 * config.heads}): every head needs an even width. "
            f"Got {config.hidden_size}."
        )
    if config.heads % config.kv_heads:
        return f"--heads must be a multiple of --kv_heads ({config.kv_heads}). Got {config.heads}."
    return None


RELATIONS: tuple[tuple[type, Callable[[Any], str | None]], ...] = (
    (c.RunConfig, _one_eval_source),
    (c.RunConfig, _eval_needs_data),
    (c.RunConfig, _trackers_once),
    (c.PPOConfig, _ppo_temperature),
    (c.PPOConfig, _ppo_minibatches),
    (c.InitConfig, _heads_divide),
)
