"""What tests of reward servers compare: sampled answers, and a source of rewards as a run would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from assent.config import DataConfig, ModelConfig, RemoteConfig, RewardsConfig, online_config
from assent.data.chat import Chat
from assent.data.records import Example, Message, Origin
from assent.distributed import World
from assent.models.loading import load_tokenizer
from assent.rewards.build import reward_source
from assent.rewards.group import Group, WeightedSum
from assent.train.session import Session

TALKS = (
    (Message("user", "What is the capital of France?"),),
    (Message("system", "Be brief."), Message("user", "One"), Message("assistant", "two"), Message("user", "three?")),
)
TEXTS = (("Paris.", "two", "One two three, One two", "Paris", "Rome."), ("three", "be brief"))


def source(policy: Path, remote: RemoteConfig | None = None, length: int = 100, **rewards: Any) -> WeightedSum:
    """What the options of `--rewards` name, for answers in the tokens of that policy."""
    words = load_tokenizer(ModelConfig(str(policy)))
    config = online_config(
        "grpo",
        model=ModelConfig(str(policy), precision="fp32"),
        data=DataConfig("unused", max_length=length),
        out="unused",
        rewards=RewardsConfig(**rewards),
        remote=remote or RemoteConfig(retries=1, budget=120.0),
    )
    return reward_source(Session(config, World(0, 1, 0, torch.device("cpu")), None, words, Chat(words)), config)


def groups(policy: Path) -> list[Group]:
    """Sampled answers; of each prompt the last was cut."""
    chat = Chat(load_tokenizer(ModelConfig(str(policy))))
    made = []
    for row, (talk, texts) in enumerate(zip(TALKS, TEXTS, strict=True), 1):
        ends = [[chat.tokenizer.eos_token_id]] * (len(texts) - 1) + [[]]
        ids = [
            np.array(chat.tokenizer(text, add_special_tokens=False)["input_ids"] + end)
            for text, end in zip(texts, ends, strict=True)
        ]
        prompt = chat.tree(Example(talk), 100).prompt
        finished = tuple(bool(end) for end in ends)
        example = Example(talk, origin=Origin("rows.jsonl", row))
        made.append(Group(example, texts, finished, tuple(map(len, ids)), tuple(ids), prompt))
    return made
