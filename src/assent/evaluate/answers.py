"""A policy's answers to held-out prompts, with their distance from a reference and a reward model's opinion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from assent.algorithms.rollouts import annotated, attach, collect
from assent.config import ModelConfig, SamplingConfig
from assent.data.chat import Chat
from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch
from assent.distributed import World
from assent.evaluate.generation import Answer
from assent.models.annotate import Fields, annotate
from assent.models.folders import longest
from assent.models.heads import load_score_model
from assent.models.loading import load_policy, load_tokenizer
from assent.models.policy import Policy
from assent.models.saving import stop_ids
from assent.models.shared_ids import check_shared_ids
from assent.models.stored import configuration
from assent.models.vocabulary import unused_ids
from assent.rewards.groups import groups_of
from assent.rewards.model import ModelReward
from assent.rollout.check import check_sampling
from assent.rollout.torch_engine import TorchEngine

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
    ends, unused = stop_ids(chat, policy.plain.generation_config), unused_ids(policy.plain, chat.tokenizer)
    engine = TorchEngine(policy.model, ends, policy.precision, unused=unused)
    ids = [chat.prompt_ids(example) for example in prompts]
    trees = collect(engine, ids, per_prompt, sampling, seed, world)

    def drift(batch: TreeBatch) -> Fields:
        temperature = sampling.temperature or 1.0
        gap = policy(batch, temperature).logprobs - anchor(batch, temperature).logprobs
        return Fields(per_response={"kl": batch.sum_by_response(gap)})

    flat = not (policy.tree and anchor.tree)
    trees = annotated(trees, annotate(trees, drift, micro_tokens=MICRO_TOKENS, flat=flat, world=world))
    if reward_model is not None:
        trees = _judged(trees, prompts, reward_model, chat, limit, precision, world)
    return [_answer(index, tree, i, chat) for index, tree in enumerate(trees) for i in range(per_prompt)]


def _judged(
    trees: list[TokenTree],
    prompts: Sequence[Example],
    reward_model: Path,
    chat: Chat,
    limit: int,
    precision: str,
    world: World,
) -> list[TokenTree]:
    """The trees with the reward model's score of each answer as `proxy`."""
    own = ModelConfig(str(reward_model), precision=precision)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(own)
    scorer = load_score_model(own, tokenizer, max_length=limit, device=world.device, trainable=False, new_head=False)
    judge = ModelReward(
        "proxy", scorer, Chat(tokenizer), chat, max_length=limit, micro_tokens=MICRO_TOKENS, world=world
    )
    proxy = judge.score(groups_of(trees, prompts, chat)).values
    cuts = np.cumsum([len(tree.branches) for tree in trees])[:-1]
    return [attach(tree, {}, {"proxy": own}) for tree, own in zip(trees, np.split(proxy, cuts), strict=True)]


def max_length(model: Path) -> int:
    """The longest sequence that the model's configuration allows (the sampler refuses longer ones by itself)."""
    return longest(configuration(str(model))) or 1 << 20


def _policy(folder: Path, limit: int, precision: str, world: World) -> tuple[Policy, Chat]:
    config = ModelConfig(str(folder), precision=precision)  # type: ignore[arg-type]
    chat = Chat(load_tokenizer(config))
    return load_policy(config, max_length=limit, device=world.device, trainable=False), chat


def _answer(index: int, tree: TokenTree, i: int, chat: Chat) -> Answer:
    branch, proxy = tree.branches[i], tree.per_response.get("proxy")
    return Answer(
        prompt_index=index,
        text=chat.decode(branch.ids, tree.prompt, finished=bool(tree.per_response["finished"][i])),
        num_tokens=len(branch),
        finished=bool(tree.per_response["finished"][i]),
        kl=float(tree.per_response["kl"][i]),
        scores={} if proxy is None or np.isnan(proxy[i]) else {"proxy": float(proxy[i])},
    )
