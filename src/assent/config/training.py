"""The commands that train a policy: one table, from which the command line and `assent compare` call them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from assent.config.base import PolicyRunConfig, SFTConfig
from assent.config.methods import METHODS
from assent.config.objectives import CUSTOM, OBJECTIVES
from assent.config.online import OnlineConfig
from assent.config.preference import CustomConfig
from assent.config.reward import REWARD_MODELS
from assent.config.tools import CompareConfig
from assent.names import suggestion


@dataclass(frozen=True, slots=True)
class Trainer:
    """A command: the class of its options, and the function that takes these, as "module:function"."""

    config: type[PolicyRunConfig]
    target: str

    @property
    def is_online(self) -> bool:
        """Whether it learns from rewards of answers that it samples."""
        return issubclass(self.config, OnlineConfig)


DIRECTLY = "assent.algorithms.preference.train:train_preference"
TRAINERS: dict[str, Trainer] = {
    "sft": Trainer(SFTConfig, "assent.algorithms.sft:train_sft"),
    **{name: Trainer(row.config, DIRECTLY) for name, row in OBJECTIVES.items()},
    CUSTOM: Trainer(CustomConfig, DIRECTLY),
    **{name: Trainer(row.config, "assent.algorithms.online.train:train_online") for name, row in METHODS.items()},
}
"""Every command that trains a policy."""

START = "start"
"""The name of the policy that all compared methods begin with."""
TAKEN = (START, "cache", "model_outputs", "annotations", "rehearsal")
"""Names in the folder of a comparison that are not of its runs."""
NAME = re.compile(r"[\w+-]+")


def named_methods(config: CompareConfig) -> dict[str, str]:
    """The runs of a comparison: name -> command; a word without a name is named by its command."""
    parts = [word.rpartition("=") for word in config.methods]
    return {name or method: method for name, _, method in parts}


def compared(config: CompareConfig) -> str | None:
    """What is wrong with the methods of a comparison, in a sentence; None where nothing is."""
    runs = named_methods(config)
    for name, method in runs.items():
        if method in REWARD_MODELS:
            return f"--methods {method} trains a reward model, which gives no answers. assent trust tells these apart."
        if method not in TRAINERS:
            return (
                f"--methods: '{method}' trains no policy.{suggestion(method, TRAINERS)} Known: {', '.join(TRAINERS)}."
            )
        if not NAME.fullmatch(name) or name in TAKEN:
            return (
                f"--methods: '{name}' is no name of a run: letters, digits, _, + and -, but none of {', '.join(TAKEN)}."
            )
    if len(runs) < len(config.methods):
        return f"--methods: two have one name. Got {' '.join(config.methods)}. Give names: NAME=METHOD."
    if config.scorer is None and config.reward_model is None:
        return "assent compare needs something that scores answers. Give --scorer FILE.py:function or --reward_model."
    for option in config.options:
        if option.partition(".")[0] not in runs:
            return f"--options {option}: begins with none of --methods ({', '.join(runs)})."
    for name, method in runs.items():
        given = any(option.startswith(f"{name}.rewards.") for option in config.options)
        if TRAINERS[method].is_online and config.reward_model is None and not given:
            return (
                f"--methods {name}: it learns from rewards, and --scorer is what no method may see. Give "
                f"--reward_model FOLDER, or --options {name}.rewards.functions:FILE.py:function (or a model, rule ...)."
            )
    return None
