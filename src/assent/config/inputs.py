"""What a run reads besides its options: the options that name something outside, and what that is. A resumed run must
find the same content there (under whatever path), or be told by --resume_changed that it may differ."""

from __future__ import annotations

from typing import Any, Literal

from assent.config.sections import sections_of

Kind = Literal[
    "model", "aligned", "tokenizer", "template", "rows", "columns", "code", "server", "judge", "prompt", "log-probs",
    "source",
]  # fmt: skip

INPUTS: dict[str, Kind] = {
    "model.path": "model",
    "model.chat_template": "template",
    "data.train": "rows",
    "data.eval": "rows",
    "gate.ratings": "columns",
    "adversarial.golden": "columns",
    "adversarial.samples": "columns",
    "old.path": "model",
    "reference.path": "model",
    "reference.cache": "log-probs",
    "kl.reference": "model",
    "distill.teacher": "model",
    "critic.start": "model",
    "rewards.model": "model",
    "rewards.implicit": "aligned",
    "rewards.implicit_reference": "model",
    "rewards.functions": "code",
    "objective": "code",
    "loss.function": "code",
    "loss.estimator": "code",
    "rewards.servers": "server",
    "rewards.judges": "judge",
    "judge.prompt": "prompt",
    "remote.tokenizer": "tokenizer",
    "ptx.data": "columns",
    "alarm.held_out": "source",
    "engine.url": "server",
}
"""Option -> what it names: of a model weights, configuration and tokenizer count; of an aligned policy also what its
run says that it is read by (reference, beta, per token or not); of rows what is used of them, as text and as tokens; of
columns whole rows; of code the file and what it imports from beside it; of a server only its shape, address and model
name, since its content cannot be seen; of a judge those, or what counts of a model; of a judge's prompt its text; of a
source of rewards what counts of its kind."""
WORDS = {"critic.start": ("reward", "policy")}
"""Values that name nothing outside."""


def is_input(kind: type, option: str) -> bool:
    """Whether configurations of a class have an option of `INPUTS`."""
    *sections, name = option.split(".")
    for section in sections:
        kind = sections_of(kind).get(section, object)
    return option in INPUTS and name in getattr(kind, "__dataclass_fields__", ())


def named(config: Any, option: str) -> tuple[str, ...]:
    """What an option of `INPUTS` names in a configuration; nothing where it is not given, or is no option of it."""
    value = config
    for part in option.split("."):
        value = getattr(value, part, None)
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    return tuple(each for each in values if each not in WORDS.get(option, ()))
