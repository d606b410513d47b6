"""A policy's answers to held-out prompts, with their distance from a reference and a reward model's opinion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from assent.algorithms.online.evaluation import answered
from assent.algorithms.online.models import Models
from assent.algorithms.online.stages import Annotation
from assent.config import ModelConfig, SamplingConfig
from assent.data.chat import Chat
from assent.data.records import Example
from assent.distributed import World
from assent.evaluate.generation import Answer
from assent.models.folders import longest
from assent.models.heads import load_score_model
from assent.models.loading import load_policy, load_tokenizer
from assent.models.policy import Policy
from assent.models.references import Reference
from assent.models.shared_ids import check_shared_ids
from assent.models.stored import configuration
from assent.rewards.groups import groups_of
from assent.rewards.model import ModelReward
from assent.rollout.build import torch_engine
from assent.rollout.check import check_sampling
from assent.rollout.rollout import Rollout
from assent.rollout.sampler import Sampler

MICRO_TOKENS = 4096


def sample_answers(
    model: Path,
    prompts: Sequence[Example],
    *,
    reference: Path,
    reward_model: Path | None,
    sampling: SamplingConfig,
    world: World,
    per_prompt: int = 1,
    seed: int = 0,
    precision: str = "auto",
) -> list[Answer]:
    """`per_prompt` answers of `model` to each prompt. Each carries `kl`, the sum over its tokens of
    log pi(token) - log pi_ref(token) in nats, and the score "proxy" of the reward model where one is given. The work is
    shared by all ranks, each with the models whole on its device; every rank gets all answers, and they do not depend
    on the number of ranks.

    Raises ModelError where a folder is not a model that fits."""
    limit = max_length(model)
    policy, chat = _policy(model, limit, precision, world)
    check_shared_ids("the reference", str(reference), chat.tokenizer, revision=None, trust_remote_code=False)
    anchor, _ = _policy(reference, limit, precision, world)
    check_sampling(policy.model, sampling.max_new_tokens)
    ids = [chat.prompt_ids(example) for example in prompts]
    rollout = answered(
        Sampler(world, policy, torch_engine(policy, chat), sampling),
        Models(policy, None, Reference(policy, anchor)),
        ids,
        Annotation(sampling.temperature or 1.0, MICRO_TOKENS, entropy=False),
        n=per_prompt,
        seed=seed,
    )
    proxy = None
    if reward_model is not None:
        proxy = _judged(rollout, prompts, reward_model, chat, limit, precision, world)
    return _answers(rollout, proxy, chat)


def _judged(
    rollout: Rollout,
    prompts: Sequence[Example],
    reward_model: Path,
    chat: Chat,
    limit: int,
    precision: str,
    world: World,
) -> np.ndarray:
    """The reward model's score of each answer, [S]; NaN where it has none."""
    own = ModelConfig(str(reward_model), precision=precision)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(own)
    scorer = load_score_model(own, tokenizer, max_length=limit, device=world.device, trainable=False, new_head=False)
    judge = ModelReward(
        "proxy", scorer, Chat(tokenizer), chat, max_length=limit, micro_tokens=MICRO_TOKENS, world=world
    )
    return judge.score(groups_of(rollout, prompts, chat)).values


def max_length(model: Path) -> int:
    """The longest sequence that the model's configuration allows (the sampler refuses longer ones by itself)."""
    return longest(configuration(str(model))) or 1 << 20


def _policy(folder: Path, limit: int, precision: str, world: World) -> tuple[Policy, Chat]:
    config = ModelConfig(str(folder), precision=precision)  # type: ignore[arg-type]
    chat = Chat(load_tokenizer(config))
    return load_policy(config, max_length=limit, device=world.device, trainable=False), chat


def _answers(rollout: Rollout, proxy: np.ndarray | None, chat: Chat) -> list[Answer]:
    assert rollout.old is not None and rollout.reference is not None
    kl = rollout.sums(rollout.old - rollout.reference)
    return [
        Answer(
            prompt_index=int(prompt),
            text=chat.decode(ids, rollout.prompts[prompt], finished=bool(rollout.finished[i])),
            num_tokens=len(ids),
            finished=bool(rollout.finished[i]),
            kl=float(kl[i]),
            scores={} if proxy is None or np.isnan(proxy[i]) else {"proxy": float(proxy[i])},
        )
        for i, (prompt, ids) in enumerate(zip(rollout.prompt, rollout.answers, strict=True))
    ]
