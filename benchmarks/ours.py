"""Our side of a row of training: assent's own path from rows to updates, as its commands build it.

python -m benchmarks.ours WHAT MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from assent.algorithms.online.train import set_up as set_up_online
from assent.algorithms.preference.step_loss import Requirement
from assent.algorithms.preference.train import Preference, set_up
from assent.algorithms.reward.pairs import RewardModelling
from assent.algorithms.sft import SFT
from assent.config import (
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    PreferenceConfig,
    ReferenceConfig,
    RewardConfig,
    RewardsConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
    preference_config,
)
from assent.data.packing import Window
from assent.data.tree import TokenTree
from assent.data.views import pair_view, sft_view
from assent.models.loading import quiet_transformers
from assent.train.loop import Algorithm, train_steps
from assent.train.optim import build_optimizer
from assent.train.session import Session, open_session
from benchmarks.operations import Weights, multiplied_weights
from benchmarks.plan import (
    ANSWERS,
    BATCH,
    BETA,
    GROUP,
    LORA_ALPHA,
    LORA_RANK,
    MAX_LENGTH,
    NEW_TOKENS,
    ROLLOUTS,
    SEED,
    WHATS,
)
from benchmarks.turns import Turns

STEPS = 10_000  # more than any run takes
Work = dict[str, float]
TOGETHER = 8192
"""Tokens of a micro-batch that hold a whole rollout, as the peers' batches do."""
REWARD = f"{Path(__file__).with_name('reward.py')}:remainder"
PER_TOKEN = {
    "dpo": (8, 8), "kto": (8, 8), "reward": (6, 0), "ppo": (22, 12), "grpo": (10, 10), "rloo": (12, 12),
    "gkd": (10, 10), "online-dpo": (10, 10),
}  # fmt: skip
"""Operations for each counted token and weight of the layers, and of the head; all other training has (6, 6)."""
READ_ONCE = {"ppo": (4, 2), "rloo": (2, 2)}
"""Of these what is not computed: the one step on a rollout gives old log-probs and values with its own forward pass."""


def main() -> None:
    what, name, precision, warmup, folder = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
    turns = Turns(warmup, versions=versions)
    quiet_transformers()
    for work in training(what, name, precision, folder):
        turns.step(**work)


def training(what: str, name: str, precision: str, folder: Path) -> Iterator[Work]:
    """Takes an optimiser step (of what samples: with its rollout) for each item asked for."""
    plain = what.removesuffix("-compiled")
    compiled, what = what != plain, plain
    with tempfile.TemporaryDirectory() as out:
        session = open_session(configuration(what, name, precision, folder, out, compiled))
        algorithm = build(session)
        optim = session.config.optim
        optimizer = build_optimizer([(module, optim.lr) for module in algorithm.modules.values()], optim)
        for result in filter(None, train_steps(algorithm, optimizer, optim, session.world, start=0, total=STEPS)):
            yield train_work(what, algorithm, result.window)


def configuration(what: str, name: str, precision: str, folder: Path, out: str, compiled: bool = False) -> RunConfig:
    """The same work as the peer's script asks for."""
    lora = LoraConfig(rank=LORA_RANK if what == "lora-dpo" else 0, alpha=LORA_ALPHA)
    common = {
        "model": ModelConfig(str(folder / name), precision=precision, lora=lora),  # type: ignore[arg-type]
        "data": DataConfig(str(folder / WHATS[what].data), max_length=MAX_LENGTH, strict=True),
        "optim": OptimConfig(lr=1e-5 if what == "ppo" else 1e-4),
        "train": TrainConfig(batch_size=BATCH, seed=SEED),
        "out": out,
    }
    if WHATS[what].data == ROLLOUTS:
        group = GROUP.get(what, 1)
        common["train"] = TrainConfig(batch_size=ANSWERS // group, micro_tokens=TOGETHER, seed=SEED)
        if what == "gkd":
            common["distill"] = {"teacher": str(folder / name)}
        elif what == "ppo":
            common["rewards"] = RewardsConfig((str(folder / f"{name}-reward"),))
        else:
            common["rewards"] = RewardsConfig(functions=(REWARD,))
            if what == "online-dpo":  # of two answers that are worth the same the peer takes the first for the better
                common["loss"] = {"beta": BETA[what], "ties": "first"}
            else:
                common["kl"] = {"coef": BETA[what]}
        sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, max_batch=ANSWERS)
        rollout = {"responses": group, "epochs": 1, "minibatches": 1}
        return online_config(what, **common, rollout=rollout, sampling=sampling, engine=EngineConfig(compile=compiled))
    if what in ("sft", "reward"):
        return {"sft": SFTConfig, "reward": RewardConfig}[what](**common)  # type: ignore[arg-type]
    if what == "dpo-cached":
        common["reference"] = ReferenceConfig(mode="cached", cache=f"{out}/reference.safetensors")
    return preference_config("dpo" if what in ("dpo-cached", "lora-dpo") else what, **common)


def build(session: Session) -> Algorithm:
    """The algorithm of the configuration, as its command makes it."""
    config = session.config
    if isinstance(config, OnlineConfig):
        algorithm, _ = set_up_online(session, config)
        algorithm.rollouts.sampler.engine.eos_ids = []  # the peer's answers all have full length, too
        return algorithm
    if isinstance(config, PreferenceConfig):
        return set_up(session, config).algorithm
    data = session.prepare(sft_view if isinstance(config, SFTConfig) else pair_view)
    if isinstance(config, RewardConfig):
        scorer = session.score_model(trainable=True, new_head=True)
        return RewardModelling(scorer, session.stream(data.train, scorer), config.reward)
    policy = session.policy()
    return SFT(policy, session.stream(data.train, policy))


def train_work(what: str, algorithm: Algorithm, window: Window) -> Work:
    """Tokens that count, and floating-point operations: of the method, and of what was really computed.

    With B weights of the decoder layers, H of the language-model head, a forward pass of a token is 2 (B + H)
    operations, forward and backward 6 (B + H); attention's own products are left out. The method computes every token
    of every sequence, prompts once for each response. In truth a prompt is computed once for all its responses, and
    the head only at trained tokens.

    sft, simpo, orpo, cpo and dpo-cached 6 (B + H); dpo 8 (B + H), with the reference's forward; kto 8 (B + H), and
    what `mismatched_work` says; reward 6 B (in truth less in the last layer, of tokens that are not read); rloo 12
    (B + H) (sampling, old and reference log-probs 2 each, training 6); grpo 10 (B + H), its one step on a rollout
    being the first to need old log-probs; online-dpo likewise, and gkd, with a teacher of the policy's size for the
    reference; ppo as rloo + 10 B (reward model and old values 2 each, training the critic 6). In truth old log-probs
    and values are by-products of the training.

    lora-dpo 6 (B + H) + 6 A, with A weights of the adapters: frozen weights have no gradient of their own (forward 2,
    backward 2, the reference's forward 2), adapters have one (6) and are off in the reference.
    """
    module = algorithm.modules.get("policy") or algorithm.modules["reward"]
    weights = multiplied_weights(module.plain)  # type: ignore[arg-type]
    per_body, per_head = PER_TOKEN.get(what, (6, 6))
    fewer_body, fewer_head = READ_ONCE.get(what, (0, 0))
    work = window_work(
        window,
        per_body * weights.body + 6 * weights.adapters,
        per_head * weights.head,
        once=(fewer_body * weights.body, fewer_head * weights.head),
    )
    if isinstance(algorithm, Preference) and Requirement.MISMATCHED in algorithm.needs:
        more = mismatched_work(algorithm.stream.trees, window, weights)
        work["flops"], work["computed_flops"] = work["flops"] + more[0], work["computed_flops"] + more[1]
    if what == "reward":
        unread = sum(batch.num_tokens - batch.num_responses for batch in window.batches)
        work["computed_flops"] -= 6 * weights.tail * unread
    if WHATS[what].data == ROLLOUTS:
        work["tokens"] = window.counts.tokens
    return work


def window_work(window: Window, on_body: int, on_head: int, once: tuple[int, int] = (0, 0)) -> Work:
    """Tokens, and operations by these numbers for each token: of the method, and of what was really computed, which is
    less by `once`."""
    lengths = [
        (segment.prompt_end - segment.start, end - start)
        for batch in window.batches
        for segment in batch.segments
        for start, end in segment.branches
    ]
    tokens = sum(prompt + response for prompt, response in lengths)
    packed = sum(batch.num_tokens for batch in window.batches)
    trained = sum(len(batch.label) for batch in window.batches)
    return {
        "tokens": tokens,
        "flops": (on_body + on_head) * tokens,
        "computed_flops": (on_body - once[0]) * packed + (on_head - once[1]) * trained,
    }


def mismatched_work(trees: Sequence[TokenTree], window: Window, weights: Weights) -> tuple[int, int]:
    """Operations that KTO spends on answers to other prompts, the last branch of each tree: of the method 4 (B + H) for
    each token, a forward pass of policy and reference over prompt and answer; and what was really computed: there the
    reference finds the prompt beside the own answer. The tokens themselves do not count, on neither side."""
    used = {key for batch in window.batches for key in batch.keys}
    read = [(len(tree.prompt), tree.branches[-1]) for tree in trees if tree.key in used]
    prompts, answers = sum(prompt for prompt, _ in read), sum(len(answer) for _, answer in read)
    trained = sum(int(answer.trained.sum()) for _, answer in read)
    body, head = weights.body, weights.head
    return 4 * (body + head) * (prompts + answers), body * (2 * prompts + 4 * answers) + 4 * head * trained


if __name__ == "__main__":
    main()
