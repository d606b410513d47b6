"""The relations between options of commands and loops of AI feedback, for `assent.config.relations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assent.config.judge_relations import verdicts_are_asked, writer_is_asked
from assent.config.online_relations import engine_is_asked
from assent.config.people import ContrastConfig, CritiqueConfig, JudgeFileConfig, is_served
from assent.config.rlaif import ConstitutionConfig, RLAIFConfig, RLCDConfig


def _contrast_is_asked(config: ContrastConfig | RLCDConfig) -> str | None:
    by_loop = isinstance(config, RLCDConfig)
    model = (config.contrasted or config.model.path) if isinstance(config, RLCDConfig) else config.model
    served, word = is_served(model), "--contrasted" if by_loop else "MODEL"
    for option, given, server in (
        ("sampling.top_k", config.sampling.top_k != 0 and not by_loop, False),
        ("sampling.top_p", config.sampling.top_p != 1.0 and not by_loop, False),
        ("engine.name", config.engine.name != "torch" and not by_loop, False),
        ("judge.model", config.judge.model is not None, True),
        ("judge.key_env", config.judge.key_env is not None, True),
        ("judge.body", bool(config.judge.body), True),
    ):
        if given and server != served:
            where = "openai=URL" if server else "a folder"
            return f"--{option} is read only where {word} is {where}. Got {model}."
    return None


def _rounds_are_evaluated(config: RLAIFConfig) -> str | None:
    if config.data.eval is None and (given := "scorer" if config.scorer else "measures" if config.measures else None):
        return f"--{given} is about the evaluation of each round, on held-out prompts. Give --data.eval FILE."
    return None


FEEDBACK: tuple[tuple[type, Callable[[Any], str | None]], ...] = (
    (JudgeFileConfig, verdicts_are_asked),
    (ConstitutionConfig, verdicts_are_asked),
    (CritiqueConfig, writer_is_asked),
    (RLCDConfig, _contrast_is_asked),
    (RLAIFConfig, _rounds_are_evaluated),
    (ContrastConfig, _contrast_is_asked),
    (ConstitutionConfig, engine_is_asked),
    (RLCDConfig, engine_is_asked),
    (ContrastConfig, engine_is_asked),
)
