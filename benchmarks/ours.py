"""Our side of a row of training: assent's own path from rows to updates, as its commands build it.

python -m benchmarks.ours WHAT MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from assent.algorithms.dpo import DPO
from assent.algorithms.job import Job, job
from assent.algorithms.ppo import PPO, Models
from assent.algorithms.reward import Reward
from assent.algorithms.sft import SFT
from assent.config import (
    DataConfig,
    DPOConfig,
    ModelConfig,
    OptimConfig,
    PPOConfig,
    PPOSection,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
)
from assent.data.packing import Window
from assent.data.views import pair_view, prompt_view, sft_view
from assent.models.loading import quiet_transformers
from assent.rewards.model import ModelReward
from assent.train.loop import Algorithm, train_steps
from assent.train.optim import build_optimizer
from benchmarks.operations import multiplied_weights
from benchmarks.plan import BATCH, MAX_LENGTH, NEW_TOKENS, PROMPTS, SEED, data_file
from benchmarks.turns import Turns

STEPS = 10_000  # more than any run takes
Work = dict[str, float]


def main() -> None:
    what, name, precision, warmup, folder = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
    turns = Turns(warmup, versions=versions)
    quiet_transformers()
    for work in training(what, name, precision, folder):
        turns.step(**work)


def training(what: str, name: str, precision: str, folder: Path) -> Iterator[Work]:
    """Takes an optimiser step (in PPO: with its rollout) for each item asked for."""
    with tempfile.TemporaryDirectory() as out:
        current = job(configuration(what, name, precision, folder, out))
        algorithm = build(current, folder / f"{name}-reward")
        optim = current.config.optim
        optimizer = build_optimizer([(module, optim.lr) for module in algorithm.modules.values()], optim)
        for result in train_steps(algorithm, optimizer, optim, current.world, start=0, total=STEPS):
            yield train_work(what, algorithm, result.window)


def configuration(what: str, name: str, precision: str, folder: Path, out: str) -> RunConfig:
    """The same work as the peer's script asks for."""
    rollout = what == "ppo"
    common = {
        "model": ModelConfig(str(folder / name), precision=precision),  # type: ignore[arg-type]
        "data": DataConfig(str(folder / data_file(what)), max_length=MAX_LENGTH, strict=True),
        "optim": OptimConfig(lr=1e-5 if rollout else 1e-4),
        "train": TrainConfig(batch_size=PROMPTS if rollout else BATCH, seed=SEED),
        "out": out,
    }
    if rollout:
        section = PPOSection(str(folder / f"{name}-reward"), epochs=1, minibatches=1)
        sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, max_batch=PROMPTS)
        return PPOConfig(**common, ppo=section, sampling=sampling)  # type: ignore[arg-type]
    return {"sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig}[what](**common)  # type: ignore[arg-type]


def build(current: Job, reward_model: Path) -> Algorithm:
    """The algorithm of the configuration, as its command makes it."""
    config = current.config
    if isinstance(config, PPOConfig):
        return build_ppo(current, config, str(reward_model))
    data = current.prepare(sft_view if isinstance(config, SFTConfig) else pair_view)
    if isinstance(config, RewardConfig):
        scorer = current.score_model(trainable=True, new_head=True)
        return Reward(scorer, current.stream(data.train, scorer), config.reward)
    policy = current.policy()
    stream = current.stream(data.train, policy)
    if isinstance(config, DPOConfig):
        return DPO(policy, current.reference(None), stream, config.dpo)
    return SFT(policy, stream)


def build_ppo(current: Job, config: PPOConfig, reward_model: str) -> PPO:
    data = current.prepare(prompt_view, reserve=config.sampling.max_new_tokens)
    scorer = current.score_model(reward_model, trainable=False, new_head=False)
    models = Models(
        policy=current.policy(),
        critic=current.score_model(reward_model, trainable=True, new_head=False),
        reference=current.reference(None),
        reward=ModelReward(scorer, current.chat, current.chat, config.data.max_length),
    )
    algorithm = PPO(current, models, data.train_examples, config)
    algorithm.engine.eos_ids = []  # the peer's answers all have full length, too
    return algorithm


def train_work(what: str, algorithm: Algorithm, window: Window) -> Work:
    """Tokens that count, and floating-point operations: of the method, and of what was really computed.

    With B weights of the decoder layers, H of the language-model head, a forward pass of a token is 2 (B + H)
    operations, forward and backward 6 (B + H); attention's own products are left out. The method computes every token
    of every sequence, prompts once for each response. In truth a prompt is computed once for all its responses, and
    the head only at trained tokens.

    sft 6 (B + H); dpo 8 (B + H), with the reference's forward; reward 6 B; ppo 12 (B + H) (sampling, old and
    reference log-probs 2 each, training 6) + 10 B (reward model and old values 2 each, training the critic 6).
    """
    lengths = [
        (segment.prompt_end - segment.start, end - start)
        for batch in window.batches
        for segment in batch.segments
        for start, end in segment.branches
    ]
    tokens = sum(prompt + response for prompt, response in lengths)
    packed = sum(batch.num_tokens for batch in window.batches)
    trained = sum(len(batch.label) for batch in window.batches)
    module = algorithm.modules.get("policy") or algorithm.modules["reward"]
    body, head = multiplied_weights(module.model)  # type: ignore[arg-type]
    on_head = {"sft": 6, "dpo": 8, "reward": 0, "ppo": 12}[what]
    on_body = {"sft": 6, "dpo": 8, "reward": 6, "ppo": 22}[what]
    return {
        "tokens": trained if what == "ppo" else tokens,
        "flops": (on_body * body + on_head * head) * tokens,
        "computed_flops": on_body * body * packed + on_head * head * trained,
    }


if __name__ == "__main__":
    main()
