"""Rollouts as trees: prompts and sampled responses, gathered over all ranks, with per-token numbers from any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from assent.config import SamplingConfig
from assent.data.tree import Branch, TokenTree
from assent.distributed import World, gathered
from assent.models.annotate import Columns
from assent.rollout.engine import Completion, Engine

GIVEN = "given"
"""Per-token field: 1 in answers that the policy did not sample."""


def share(number: int, world: World) -> slice:
    """Which of `number` things this rank does, in equal shares."""
    size = -(-number // world.size)
    return slice(world.rank * size, min(number, (world.rank + 1) * size))


def as_trees(prompts: Sequence[np.ndarray], groups: Sequence[Sequence[Completion]]) -> list[TokenTree]:
    """Sampled answers as one tree for each prompt. Branches carry the sampler's log-probs (`sampler`), trees whether
    each response ended (`finished`)."""
    return [
        TokenTree(
            prompt=prompt,
            branches=tuple(Branch(c.ids, np.ones(len(c), bool), {"sampler": c.logprobs}) for c in group),
            per_response={"finished": np.array([c.finished for c in group], np.float32)},
            key=key,
        )
        for key, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]


def collect(
    engine: Engine, prompts: Sequence[np.ndarray], n: int, sampling: SamplingConfig, seed: int, world: World
) -> list[TokenTree]:
    """`n` responses to each prompt, sampled in equal shares by all ranks; every rank gets all of them."""
    mine = share(len(prompts), world)
    own = prompts[mine]  # of few prompts, some ranks have none
    parts = gathered(lambda: engine.generate(own, n, sampling, seed, mine.start) if own else [])
    return as_trees(prompts, [group for part in parts for group in part])


def annotated(trees: Sequence[TokenTree], columns: Columns) -> list[TokenTree]:
    """The trees with these columns as fields."""
    tokens = np.cumsum([tree.num_trained for tree in trees])[:-1]
    responses = np.cumsum([len(tree.branches) for tree in trees])[:-1]
    of_tokens = {name: np.split(values, tokens) for name, values in columns.per_token.items()}
    of_responses = {name: np.split(values, responses) for name, values in columns.per_response.items()}
    return [
        attach(
            tree, {n: parts[i] for n, parts in of_tokens.items()}, {n: parts[i] for n, parts in of_responses.items()}
        )
        for i, tree in enumerate(trees)
    ]


def attach(tree: TokenTree, per_token: Mapping[str, np.ndarray], per_response: Mapping[str, np.ndarray]) -> TokenTree:
    """The tree with more fields: per-token ones as one array over all its branches, in order."""
    cuts = np.cumsum([int(branch.trained.sum()) for branch in tree.branches])[:-1]
    parts = {name: np.split(values, cuts) for name, values in per_token.items()}
    branches = tuple(
        replace(branch, per_token={**branch.per_token, **{name: split[i] for name, split in parts.items()}})
        for i, branch in enumerate(tree.branches)
    )
    return replace(tree, branches=branches, per_response={**tree.per_response, **per_response})


def keep(tree: TokenTree, kept: np.ndarray) -> TokenTree:
    """The tree with only those responses where `kept` [S of the tree] bool holds."""
    branches = tuple(branch for branch, stays in zip(tree.branches, kept, strict=True) if stays)
    return replace(
        tree, branches=branches, per_response={name: values[kept] for name, values in tree.per_response.items()}
    )


def token_field(trees: Sequence[TokenTree], name: str) -> np.ndarray:
    """A per-token field over all branches of all trees, [N]."""
    return np.concatenate([branch.per_token[name] for tree in trees for branch in tree.branches])


def response_field(trees: Sequence[TokenTree], name: str) -> np.ndarray:
    """A per-response field over all trees, [S]."""
    return np.concatenate([tree.per_response[name] for tree in trees])


def response_lengths(trees: Sequence[TokenTree]) -> np.ndarray:
    """Trained tokens of each response, [S] int64."""
    return np.array([int(branch.trained.sum()) for tree in trees for branch in tree.branches], np.int64)


def drift(branch: Branch) -> dict[str, float]:
    """The KL of an answer from the reference in nats, where the reference was asked."""
    if "reference" not in branch.per_token or "old" not in branch.per_token:
        return {}
    return {"kl": float((branch.per_token["old"] - branch.per_token["reference"]).sum())}


def describe(trees: Sequence[TokenTree]) -> dict[str, float]:
    """What people look at first: reward, KL from the reference (nats per answer), entropy (nats per token), length."""
    lengths = response_lengths(trees)
    reward = response_field(trees, "reward").astype(np.float64)  # float32 could not hold the sum of large ones
    metrics = {"reward": float(reward.mean()), "reward_std": float(reward.std())}
    for name in trees[0].per_response:
        if name.startswith("reward/") and not np.isnan(part := response_field(trees, name).astype(np.float64)).all():
            metrics[name] = float(np.nanmean(part))  # of a part that abstained from some, the others
    known = trees[0].branches[0].per_token
    if "reference" in known and "old" in known:
        moved = token_field(trees, "old") - token_field(trees, "reference")
        metrics["kl"] = float(np.add.reduceat(moved, np.cumsum(lengths) - lengths).mean())
    if "entropy" in known:
        metrics["entropy"] = float(token_field(trees, "entropy").mean())
    metrics["length"] = float(lengths.mean())
    metrics["unfinished"] = float(1 - response_field(trees, "finished").mean())
    return metrics


def pack_state(trees: Sequence[TokenTree]) -> dict[str, Any]:
    """A rollout buffer as a few arrays, for a checkpoint; every response token of a rollout is trained."""
    branches = [branch for tree in trees for branch in tree.branches]
    return {
        "prompts": np.concatenate([tree.prompt for tree in trees]),
        "prompt_lengths": np.array([len(tree.prompt) for tree in trees]),
        "groups": np.array([len(tree.branches) for tree in trees]),
        "ids": np.concatenate([branch.ids for branch in branches]),
        "lengths": np.array([len(branch) for branch in branches]),
        "keys": np.array([tree.key for tree in trees]),
        "per_token": {name: token_field(trees, name) for name in branches[0].per_token},
        "per_response": {name: response_field(trees, name) for name in trees[0].per_response},
    }


def unpack_state(state: Mapping[str, Any]) -> list[TokenTree]:
    """The inverse of `pack_state`."""
    prompts = np.split(state["prompts"], np.cumsum(state["prompt_lengths"])[:-1])
    cuts = np.cumsum(state["lengths"])[:-1]
    ids = np.split(state["ids"], cuts)
    per_token = {name: np.split(values, cuts) for name, values in state["per_token"].items()}
    trees, start = [], 0
    for prompt, size, key in zip(prompts, state["groups"].tolist(), state["keys"].tolist(), strict=True):
        group = range(start, start + size)
        branches = tuple(
            Branch(ids[i], np.ones(len(ids[i]), bool), {name: parts[i] for name, parts in per_token.items()})
            for i in group
        )
        per_response = {name: values[start : start + size] for name, values in state["per_response"].items()}
        trees.append(TokenTree(prompt, branches, per_response=per_response, key=key))
        start += size
    return trees
