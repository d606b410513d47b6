"""The training commands on two ranks, started by test_ranks.py: one process group, all runs one after the other.

Each argument is COMMAND:FILE, the configuration as YAML.
"""

from __future__ import annotations

import faulthandler
import sys

from assent.algorithms.online.train import train_online
from assent.algorithms.preference.train import train_preference
from assent.algorithms.reward.attributes import train_attributes
from assent.algorithms.reward.gate import train_gate
from assent.algorithms.reward.odin import train_reward_odin
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.sft import train_sft
from assent.config import (
    METHODS,
    OBJECTIVES,
    AttributesConfig,
    CompareConfig,
    EvalConfig,
    RewardConfig,
    RewardGateConfig,
    RewardOdinConfig,
    ScoreConfig,
    SFTConfig,
    settings,
)
from assent.evaluate.compare import compare
from assent.evaluate.evaluation import evaluate
from assent.evaluate.score import score

COMMANDS = {
    "sft": (SFTConfig, train_sft),
    "reward": (RewardConfig, train_reward),
    "reward-odin": (RewardOdinConfig, train_reward_odin),
    "reward-gate": (RewardGateConfig, train_gate),
    "reward-attributes": (AttributesConfig, train_attributes),
    "compare": (CompareConfig, compare),
    "eval": (EvalConfig, evaluate),
    "score": (ScoreConfig, score),
    **{name: (row.config, train_preference) for name, row in OBJECTIVES.items()},
    **{name: (row.config, train_online) for name, row in METHODS.items()},
}


def main(arguments: list[str]) -> None:
    for argument in arguments:
        faulthandler.dump_traceback_later(120, exit=True)  # a rank that hangs says where
        name, _, file = argument.partition(":")
        cls, train = COMMANDS[name]
        train(settings.read(cls, file))


if __name__ == "__main__":
    main(sys.argv[1:])
