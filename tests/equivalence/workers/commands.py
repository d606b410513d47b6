"""The training commands under torchrun, started from test_ranks.py: one process group, all runs one after the other.

Each argument is COMMAND:FILE, the configuration as YAML.
"""

from __future__ import annotations

import faulthandler
import sys

from assent import settings
from assent.algorithms.dpo import train_dpo
from assent.algorithms.ppo import train_ppo
from assent.algorithms.reward import train_reward
from assent.algorithms.sft import train_sft
from assent.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig

COMMANDS = {
    "sft": (SFTConfig, train_sft),
    "reward": (RewardConfig, train_reward),
    "dpo": (DPOConfig, train_dpo),
    "ppo": (PPOConfig, train_ppo),
}


def main(arguments: list[str]) -> None:
    faulthandler.dump_traceback_later(100, exit=True)  # a rank that hangs says where
    for argument in arguments:
        name, _, file = argument.partition(":")
        cls, train = COMMANDS[name]
        train(settings.read(cls, file))


if __name__ == "__main__":
    main(sys.argv[1:])
