"""What is measured: the rows of the table, how long each takes, and what it has to reach. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

MODELS = ("tiny", "small")
PRECISIONS = ("fp32", "bf16")

BATCH = 4
"""Examples in one optimiser step of what learns from data."""
MAX_LENGTH = 512
"""Longest prompt plus response of those, in tokens."""
ANSWERS = 32
"""Answers in one rollout of what learns from its own answers."""
GROUP = {"grpo": 4, "rloo": 4, "online-dpo": 2}
"""Answers to each prompt; 1 in PPO and GKD."""
BETA = {"grpo": 0.04, "rloo": 0.05, "online-dpo": 0.1}
"""Weight of the KL to the reference: in GRPO's loss (k3), in RLOO's reward (k1); in Online DPO the beta of its loss."""
PROMPT_LIMIT = 200
"""The prompts of rollouts are shorter than this, in tokens."""
NEW_TOKENS = 128
"""Tokens sampled for each prompt; EOS does not end an answer."""
GENERATE_PROMPT = 24
"""Tokens of each prompt of the sampling rows (random ids)."""
SHARE_PROMPT, SHARE_ANSWER, SHARE_ANSWERS = 256, 64, 16
"""Tokens of each prompt and of each answer of the sharing rows (random ids), and answers in a step."""
SCORED, SCORED_TOGETHER = 32, 16
"""Pairs in one step of the scoring rows, and answers in a batch of the peer's."""
CONTEXT = 2048
"""Most tokens that the models read, and so the longest prompt plus answer that is scored."""
LORA_RANK, LORA_ALPHA = 16, 32
"""Of the adapters in all linear layers but the head."""
SEED = 0
"""Of weights, order and sampling."""

SPINS = "300000"
"""How long libgomp's threads look for work before they sleep (GOMP_SPINCOUNT): its own default, for both sides."""
MFU = 0.65
"""The share of the measured matrix-product rate that rows of training from data may reach instead of the ratio."""

Bars = Mapping[tuple[str, str], float | None]


def bars(tiny: tuple[float | None, float | None], small: tuple[float | None, float | None]) -> Bars:
    """Wanted tokens/s relative to the peer, (fp32, bf16), by (model, precision)."""
    return {
        (model, name): bar for model, both in (("tiny", tiny), ("small", small)) for name, bar in zip(PRECISIONS, both)
    }


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of work. `bars` has one entry for each row of it; None: measured without a bar. `ours` and `peer` are the
    workers, `environment` is where the peer's runs, `task` what the peer is told to do where it is not the same. `rest`
    seconds pass before each turn. `or_mfu`: MFU may stand in for the ratio."""

    name: str
    bars: Bars
    data: str = "pairs.json"
    ours: str = "ours"
    peer: str = "peer_trl"
    environment: str = "trl"
    task: str | None = None
    rest: float = 0.0
    or_mfu: bool = True


def sampling(number: int, bars: Bars) -> Kind:
    """Answers to `number` prompts at a time."""
    return Kind(f"sampling {number}", bars, "", "ours_generate", "peer_generate", or_mfu=False)


def compiled(kind: Kind, what: str) -> Kind:
    """The same work with --engine.compile on our side."""
    return replace(kind, name=f"{kind.name}, compiled", task=what)


def scored(name: str, bars: Bars) -> Kind:
    """Against a padded loop over transformers' class: in the order of the file, or sorted by length."""
    return Kind(name, bars, "scored-pairs.json", "ours_score", "peer_score", "ours", or_mfu=False)


def against_vllm(number: int) -> Kind:
    """The same against vLLM, whose worker looks for work for a second before it sleeps."""
    name, bars = f"sampling {number}, vLLM", {("small", "bf16"): 1.0}
    return Kind(name, bars, "", "ours_generate", "peer_vllm", "vllm", rest=1.5, or_mfu=False)


def sharing(group: int) -> Kind:
    """A GRPO step with `group` answers to each prompt: prompts once, against prompts once for each answer."""
    name = f"GRPO step, {group} to a prompt"
    return Kind(name, LARGE, "", "ours_sharing", "ours_sharing", "ours", f"flat-{group}", or_mfu=False)


LARGE: Bars = {("small", "bf16"): None}
NONE = bars((None, None), (None, None))
THREE = bars((3.0, 3.0), (3.0, 3.0))
FOUR = bars((4.0, 4.0), (4.0, 4.0))
ROLLOUTS = "prompts.json"

ONLINE: dict[str, Kind] = {
    "grpo": Kind("GRPO", FOUR, ROLLOUTS, peer="peer_trl_online", or_mfu=False),
    "rloo": Kind("RLOO", FOUR, ROLLOUTS, peer="peer_trl_online", or_mfu=False),
    "ppo": Kind(
        "PPO", bars((5.0, 5.0), (5.0, 5.0)), ROLLOUTS, peer="peer_trl_ppo", environment="trl-ppo", or_mfu=False
    ),
}

WHATS: dict[str, Kind] = {
    "sft": Kind("SFT", bars((3.5, 3.5), (1.8, 2.4))),
    "dpo": Kind("DPO", bars((4.5, 4.5), (2.5, 3.0))),
    "dpo-cached": Kind(
        "DPO, cached reference", bars((1.25, 1.25), (1.25, 1.25)), peer="ours", environment="ours", task="dpo"
    ),
    "lora-dpo": Kind("DPO, LoRA", bars((2.5, 2.5), (2.5, 2.5))),
    "kto": Kind("KTO", bars((3.0, 3.0), (3.0, 3.0)), "labels.json"),
    "simpo": Kind("SimPO", bars((2.5, 2.5), (2.5, 2.5))),
    "orpo": Kind("ORPO", bars((2.5, 2.5), (2.5, 2.5))),
    "cpo": Kind("CPO", bars((2.5, 2.5), (2.5, 2.5))),
    "reward": Kind("reward model", bars((1.4, 1.4), (1.4, 2.0)), "whole-pairs.json"),
    "score": scored("scoring pairs", THREE),
    "score-sorted": scored("scoring pairs, sorted", NONE),
    **ONLINE,
    **{f"{what}-compiled": compiled(kind, what) for what, kind in ONLINE.items()},
    "gkd": Kind("GKD", NONE, ROLLOUTS, peer="peer_trl_online", or_mfu=False),
    "online-dpo": Kind("Online DPO", NONE, ROLLOUTS, peer="peer_trl_online", or_mfu=False),
    "generate-32": sampling(32, bars((2.5, 2.5), (2.5, 2.5))),
    "generate-128": sampling(128, LARGE),
    "generate-256": sampling(256, LARGE),
    "compiled-32": compiled(sampling(32, bars((2.5, 2.5), (2.5, 2.5))), "generate-32"),
    "compiled-128": compiled(sampling(128, LARGE), "generate-128"),
    "compiled-256": compiled(sampling(256, LARGE), "generate-256"),
    "vllm-32": against_vllm(32),
    "vllm-128": against_vllm(128),
    "vllm-256": against_vllm(256),
    "share-1": sharing(1),
    "share-4": sharing(4),
    "share-16": sharing(16),
}
"""All kinds of work, in the table's order. Numbers in names are `size_of` them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    model: str
    precision: str

    def __str__(self) -> str:
        return f"{self.what} {self.model} {self.precision}"

    @property
    def kind(self) -> Kind:
        return WHATS[self.what]

    @property
    def target(self) -> float | None:
        """The wanted ratio, if there is one."""
        return self.kind.bars[self.model, self.precision]

    @property
    def modules(self) -> dict[str, str]:
        """The worker of each side."""
        return {"ours": self.kind.ours, "peer": self.kind.peer}

    @property
    def tasks(self) -> dict[str, str]:
        """What each side does: the same, but for rows that measure one way of ours against another."""
        return {"ours": self.what, "peer": self.kind.task or self.what}


@dataclass(frozen=True, slots=True)
class Length:
    """`warmup` steps are not timed; then each side has `turns` turns of `steps` steps, one side after the other."""

    warmup: int
    turns: int
    steps: int


def size_of(what: str) -> int:
    """Sequences in a batch (sampling), answers to a prompt (sharing)."""
    return int(what.rpartition("-")[2])


def rows(whats: Sequence[str], models: Sequence[str], precisions: Sequence[str]) -> list[Row]:
    """The table's lines of these, in order."""
    return [
        Row(what, model, precision)
        for what, kind in WHATS.items()
        for model, precision in kind.bars
        if what in whats and model in models and precision in precisions
    ]


def length(row: Row, quick: bool) -> Length:
    """Enough steps for a median, few enough that all rows take about two hours on two cores."""
    if row.kind.data == ROLLOUTS:
        return Length(warmup=1, turns=1 if quick else 3, steps=1)
    if quick:
        return Length(warmup=1, turns=2, steps=1)
    if not row.kind.or_mfu:
        return Length(warmup=1, turns=4 if row.what in ("generate-32", "compiled-32", "vllm-32") else 3, steps=1)
    if row.model == "tiny":
        return Length(warmup=3, turns=4, steps=4)
    return Length(warmup=2, turns=3 if row.precision == "bf16" else 2, steps=2)


def random_prompts(number: int, vocabulary: int) -> Iterator[list[list[int]]]:
    """Batches of `number` prompts of random token ids, each batch new: nobody can keep anything from the last. The same
    on all sides."""
    draw = random.Random(SEED)
    while True:
        yield [[draw.randrange(10, vocabulary) for _ in range(GENERATE_PROMPT)] for _ in range(number)]
