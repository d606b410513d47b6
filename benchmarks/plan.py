"""What is measured: the rows of the table, how long each takes, and what it has to reach. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

WHATS = ("sft", "dpo", "dpo-cached", "lora-dpo", "kto", "simpo", "orpo", "cpo", "reward", "ppo", "generate")
MODELS = ("tiny", "small")
PRECISIONS = ("fp32", "bf16")

BATCH = 4
"""Examples in one optimiser step of everything but PPO."""
MAX_LENGTH = 512
"""Longest prompt plus response of those, in tokens."""
PROMPTS = 32
"""Prompts in one PPO rollout, and in one generation."""
PROMPT_LIMIT = 200
"""PPO's prompts are shorter than this, in tokens."""
NEW_TOKENS = 128
"""Tokens sampled for each prompt; EOS does not end an answer."""
GENERATE_PROMPT = 24
"""Tokens of each prompt of the generation rows (random ids)."""
LORA_RANK, LORA_ALPHA = 16, 32
"""Of the adapters in all linear layers but the head."""
SEED = 0
"""Of weights, order and sampling."""

RATIO = {
    ("sft", "tiny"): (3.5, 3.5),
    ("sft", "small"): (1.8, 2.4),
    ("dpo", "tiny"): (4.5, 4.5),
    ("dpo", "small"): (2.5, 3.0),
    ("dpo-cached", "tiny"): (1.25, 1.25),
    ("dpo-cached", "small"): (1.25, 1.25),
    ("lora-dpo", "tiny"): (2.5, 2.5),
    ("lora-dpo", "small"): (2.5, 2.5),
    ("kto", "tiny"): (3.0, 3.0),
    ("kto", "small"): (3.0, 3.0),
    ("simpo", "tiny"): (2.5, 2.5),
    ("simpo", "small"): (2.5, 2.5),
    ("orpo", "tiny"): (2.5, 2.5),
    ("orpo", "small"): (2.5, 2.5),
    ("cpo", "tiny"): (2.5, 2.5),
    ("cpo", "small"): (2.5, 2.5),
    ("reward", "tiny"): (1.4, 1.4),
    ("reward", "small"): (1.4, 1.4),
    ("ppo", "tiny"): (4.0, 4.0),
    ("ppo", "small"): (4.0, 4.0),
    ("generate", "tiny"): (2.0, 2.0),
    ("generate", "small"): (2.0, 2.0),
}
"""Wanted tokens/s relative to the peer: (fp32, bf16)."""
MFU = 0.65
"""The share of the measured matrix-product rate that rows of training, except PPO, may reach instead."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    model: str
    precision: str

    def __str__(self) -> str:
        return f"{self.what} {self.model} {self.precision}"

    @property
    def target(self) -> float:
        return RATIO[self.what, self.model][PRECISIONS.index(self.precision)]

    @property
    def environment(self) -> str:
        """Where the peer runs: in one of the peers' two environments, or in ours."""
        return {"ppo": "trl-ppo", "dpo-cached": "ours"}.get(self.what, "trl")

    @property
    def modules(self) -> dict[str, str]:
        """The worker of each side."""
        peer = {"ppo": "peer_trl_ppo", "generate": "peer_generate", "dpo-cached": "ours"}.get(self.what, "peer_trl")
        return {"ours": "ours_generate" if self.what == "generate" else "ours", "peer": peer}

    @property
    def tasks(self) -> dict[str, str]:
        """What each side does: the same, but DPO with a cached reference is measured against DPO without."""
        return {"ours": self.what, "peer": "dpo" if self.what == "dpo-cached" else self.what}


@dataclass(frozen=True, slots=True)
class Length:
    """`warmup` steps are not timed; then each side has `turns` turns of `steps` steps, one side after the other."""

    warmup: int
    turns: int
    steps: int


def data_file(what: str) -> str:
    """Which of the prepared files (see benchmarks.prepare) a kind of training reads."""
    return {"ppo": "prompts.json", "reward": "whole-pairs.json", "kto": "labels.json"}.get(what, "pairs.json")


def rows(whats: list[str], models: list[str], precisions: list[str]) -> list[Row]:
    """The table's lines, in order."""
    return [Row(*key) for key in product(whats, models, precisions)]


def length(row: Row, quick: bool) -> Length:
    """Enough steps for a median, few enough that all rows take about an hour on two cores."""
    if quick:
        return Length(warmup=1, turns=2 if row.what != "ppo" else 1, steps=1)
    if row.what == "ppo":
        return Length(warmup=1, turns=3, steps=1)
    if row.what == "generate":
        return Length(warmup=1, turns=4, steps=1)
    if row.model == "tiny":
        return Length(warmup=3, turns=4, steps=4)
    return Length(warmup=2, turns=3 if row.precision == "bf16" else 2, steps=2)
