"""Rollout trees with what sources of rewards say about their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from assent.algorithms.rollouts import attach, keep
from assent.data.chat import Chat
from assent.data.records import Example
from assent.data.tree import Branch, TokenTree
from assent.rewards.group import GroupReward, NonFiniteReward, Progress
from assent.rewards.groups import groups_of

Notes = Mapping[tuple[bytes, bytes], Mapping[str, object]]
"""What is to be written down about answers, by prompt and answer (token ids)."""


class Rewarded(NamedTuple):
    """`trees` have `reward` and its parts for each answer that has a reward; the others are left out, and `failures`
    says why. `metrics` are numbers about the whole, `notes` about single answers."""

    trees: list[TokenTree]
    failures: Mapping[str, int]
    metrics: Mapping[str, Sequence[float]]
    notes: Notes


def rewarded(
    source: GroupReward, trees: Sequence[TokenTree], examples: Sequence[Example], chat: Chat, progress: Progress
) -> Rewarded:
    """The trees as `source` scores them."""
    scores = source.score(groups_of(trees, examples, chat, progress))
    cuts = np.cumsum([len(tree.branches) for tree in trees])[:-1]
    fields = {"reward": scores.values}
    if len(scores.parts) > 1:
        fields |= {f"reward/{name}": values for name, values in scores.parts.items()}
    split: dict[str, list[np.ndarray]] = {
        name: np.split(np.asarray(values, np.float32), cuts) for name, values in fields.items()
    }
    made = [attach(tree, {}, {name: parts[i] for name, parts in split.items()}) for i, tree in enumerate(trees)]
    made = [keep(tree, ~np.isnan(tree.per_response["reward"])) for tree in made]  # NaN: unscored, and counted below
    unexplained = int(np.isnan(scores.values).sum()) - sum(scores.failures.values())
    failures = {**scores.failures, **({"no reason given": unexplained} if unexplained > 0 else {})}
    answers = [(tree, branch) for tree in trees for branch in tree.branches] if scores.columns else []
    notes = {
        _place(tree, branch): {name: values[i] for name, values in scores.columns.items()}
        for i, (tree, branch) in enumerate(answers)
    }
    return Rewarded(made, failures, scores.metrics, notes)


def require_finite(trees: Sequence[TokenTree], examples: Sequence[Example], *names: str) -> None:
    """Raises NonFiniteReward where one of these numbers, of an answer or of its tokens, is not finite: float32 cannot
    hold what was made of its reward."""
    for tree, example in zip(trees, examples, strict=True):
        for index, branch in enumerate(tree.branches):
            for name in names:
                of_answer = tree.per_response[name][index : index + 1] if name in tree.per_response else ()
                values = np.asarray(branch.per_token.get(name, of_answer))
                if not np.isfinite(values).all():
                    bad, own = values[~np.isfinite(values)][0], tree.per_response["reward"][index]
                    raise NonFiniteReward(
                        f"{example.origin}: answer {index + 1} of {len(tree.branches)}: {name} is {bad}, made of the "
                        f"reward {own:.6g}; expected a number within float32. Rewards, --shaping, --kl.coef and the "
                        "critic's values are what it is made of."
                    )


def means(metrics: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The mean of each metric over all that was said, for the logs."""
    names = dict.fromkeys(name for said in metrics for name in said)
    return {
        f"reward/{name}": float(np.mean([value for said in metrics for value in said.get(name, ())])) for name in names
    }


def note(notes: Notes, tree: TokenTree, branch: Branch) -> Mapping[str, object]:
    """What is to be written down about this answer."""
    return notes.get(_place(tree, branch), {}) if notes else {}


def _place(tree: TokenTree, branch: Branch) -> tuple[bytes, bytes]:
    return np.asarray(tree.prompt, np.int64).tobytes(), np.asarray(branch.ids, np.int64).tobytes()
