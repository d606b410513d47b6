"""What the value of each option must satisfy, in one table; `assent.relations` has what holds between options.
`assent.settings.validate` applies both."""

from __future__ import annotations

from assent import config as c
from assent import online
from assent.objectives import OPTIONS, SECTIONS
from assent.rules import (
    BELOW_ONE,
    COUNT,
    FINITE,
    LENGTH,
    NAMED,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    THREADS,
    UP_TO_ONE,
    Rule,
)
from assent.sections import section_rules

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
        "threads": THREADS,
    },
    c.RunConfig: {"out": NAMED, "resume": NAMED},
    c.ReferenceConfig: {"path": NAMED, "cache": NAMED, "rate": UP_TO_ONE, "every": COUNT},
    c.ProbeConfig: {"prompts": NOT_NEGATIVE, "max_new_tokens": COUNT},
    c.BinaryConfig: {"threshold": FINITE},
    c.CompareConfig: {"objectives": NAMED, "scorer": NAMED, "reward_model": NAMED, "prompts": NAMED, "answers": COUNT},
    c.SamplingConfig: {
        "max_new_tokens": COUNT,
        "temperature": NOT_NEGATIVE,
        "top_k": NOT_NEGATIVE,
        "top_p": UP_TO_ONE,
        "max_batch": COUNT,
    },
    c.EngineConfig: {
        "url": NAMED,
        "weights": NAMED,
        "memory": UP_TO_ONE,
        "timeout": POSITIVE,
        "patience": POSITIVE,
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
        "limit": COUNT,
        "show": NOT_NEGATIVE,
        "problems": NOT_NEGATIVE,
    },
    c.GenerateConfig: {"model": NAMED, "prompts": NAMED, "out": NAMED, "limit": COUNT, "seed": SEED},
    c.ExportConfig: {"model": NAMED, "out": NAMED},
    c.ReportConfig: {"runs": NAMED, "out": NAMED},
    c.DemoConfig: {"out": NAMED, "seed": SEED, "scale": POSITIVE},
}
"""Section -> option -> its range. An option that may be None is checked where it is given."""
RULES |= {section: section_rules(section, OPTIONS) for section in SECTIONS.values()} | online.RULES
