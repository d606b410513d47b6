"""Sampled responses and all that becomes known of them, as columns; `pack` makes the trees that are trained on.

A rollout of P prompts with S responses of N tokens in all. Responses of one prompt stand side by side, tokens of one
response likewise, so every column is a flat array and every stage of a rollout fills in further ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from assent.data.packing import Window, window
from assent.data.tree import Branch, TokenTree, TreeBatch
from assent.distributed import World
from assent.rollout.engine import Completion

PER_TOKEN = (
    "sampler", "old", "reference", "anchor", "ewma", "kl", "entropy", "teacher", "teacher_forward", "teacher_reverse",
    "teacher_agrees", "credit", "values", "advantages", "returns",
)  # fmt: skip
PER_RESPONSE = ("finished", "demonstration", "reward", "shaped", "greedy", "side", "reference_point")
Column = np.ndarray | None


@dataclass(frozen=True, slots=True)
class Rollout:
    """Columns that are not known yet are None.

    prompts          P arrays of token ids
    rows             [P] int64    which row of the data each prompt is
    prompt           [S] int64    which of these prompts each response answers, never decreasing
    ids              [N] int64    tokens of the responses
    lengths          [S] int64    how many each response has, at least 1
    sampler          [N] float32  log-probs by who sampled them; NaN in demonstrations of the data
    finished         [S] bool     whether it ended by itself
    demonstration    [S] bool     whether the policy did not sample it: the data's or a hint's, or an opponent's
    reward           [S] float32  what it is worth; those without a reward are left out
    parts            name -> [S]  what the sources of rewards give each, NaN where one abstains
    notes            S mappings   what else is to be written down about each, or nothing at all
    old              [N] float32  log-probs by the policy before the first step on the rollout
    reference        [N] float32  log-probs by the reference
    anchor           [N] float32  log-probs by the average that the KL counts from, where that is not the reference
    ewma             [N] float32  log-probs by the average of the policy's weights (PPO-EWMA)
    kl               [N] float32  KL(policy || what it counts from) over the whole vocabulary
    entropy          [N] float32  of the policy
    teacher          [N] float32  log-probs by the teacher
    teacher_forward  [N] float32  KL(teacher || policy) over the whole vocabulary
    teacher_reverse  [N] float32  KL(policy || teacher)
    teacher_agrees   [N] float32  1 where both find the same token the likeliest, else 0
    credit           [N] float32  what of the reward each token is credited with; the last has the rest
    values           [N] float32  by the critic, of the state before each token
    shaped           [S] float32  reward after baseline, scaling, clipping and penalties
    greedy           [S] float32  shaped reward of the prompt's most likely response
    advantages       [N] float32
    returns          [N] float32  targets of the critic
    side             [S] float32  1 where it is preferred, -1 where it is not, 0 where it is in no comparison
    reference_point  [S] float32  KTO's, the same for all
    """

    prompts: tuple[np.ndarray, ...]
    rows: np.ndarray
    prompt: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    sampler: np.ndarray
    finished: np.ndarray
    demonstration: np.ndarray
    reward: Column = None
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[Mapping[str, object], ...] = ()
    old: Column = None
    reference: Column = None
    anchor: Column = None
    ewma: Column = None
    kl: Column = None
    entropy: Column = None
    teacher: Column = None
    teacher_forward: Column = None
    teacher_reverse: Column = None
    teacher_agrees: Column = None
    credit: Column = None
    values: Column = None
    shaped: Column = None
    greedy: Column = None
    advantages: Column = None
    returns: Column = None
    side: Column = None
    reference_point: Column = None

    def __len__(self) -> int:
        """Responses."""
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """Where each response begins among the tokens, [S]."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def response(self) -> np.ndarray:
        """Which response each token belongs to, [N]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def sizes(self) -> np.ndarray:
        """Responses of each prompt, [P]."""
        return np.bincount(self.prompt, minlength=len(self.prompts))

    @property
    def answers(self) -> list[np.ndarray]:
        """Token ids of each response."""
        return np.split(self.ids, np.cumsum(self.lengths))[: len(self)]

    def packed_sizes(self, flat: bool) -> np.ndarray:
        """Tokens that each prompt with its responses takes in a packed stream, [P]."""
        prompts = np.array([len(prompt) for prompt in self.prompts], np.int64) * (self.sizes if flat else 1)
        return prompts + np.bincount(self.prompt, self.lengths, len(self.prompts)).astype(np.int64)

    @property
    def zero_variance(self) -> np.ndarray:
        """Which prompts have only responses of one and the same reward, [P] bool."""
        assert self.reward is not None
        return np.array([values.min() == values.max() for values in self.by_prompt(self.reward)], bool)

    def by_prompt(self, values: np.ndarray) -> list[np.ndarray]:
        """A per-response column [S], one part for each prompt."""
        return np.split(values, np.cumsum(self.sizes))[: len(self.prompts)]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """A per-token column [N] added up over each response, [S]."""
        return np.add.reduceat(values, self.starts)

    def take(self, responses: np.ndarray) -> Rollout:
        """Only these responses (indices in an order in which `prompt` does not decrease), of the same prompts."""
        size = self.lengths[responses]
        tokens = np.repeat(self.starts[responses] - (np.cumsum(size) - size), size) + np.arange(size.sum())
        return replace(
            self,
            prompt=self.prompt[responses],
            ids=self.ids[tokens],
            lengths=size,
            parts={name: values[responses] for name, values in self.parts.items()},
            notes=tuple(self.notes[i] for i in responses) if self.notes else (),
            **{name: values[tokens] for name in PER_TOKEN if (values := getattr(self, name)) is not None},
            **{name: values[responses] for name in PER_RESPONSE if (values := getattr(self, name)) is not None},
        )

    def of_prompts(self, which: np.ndarray | Sequence[int]) -> Rollout:
        """Only these prompts (indices), in this order, with their responses."""
        which = np.asarray(which, np.int64)
        first = np.cumsum(self.sizes) - self.sizes
        size = self.sizes[which]
        responses = np.repeat(first[which] - (np.cumsum(size) - size), size) + np.arange(size.sum())
        taken = self.take(responses)
        prompts = tuple(self.prompts[i] for i in which)
        return replace(taken, prompts=prompts, rows=self.rows[which], prompt=np.repeat(np.arange(len(which)), size))

    def sampled(self) -> Rollout:
        """Without demonstrations."""
        return self.take(np.flatnonzero(~self.demonstration)) if self.demonstration.any() else self

    def trees(self, *names: str) -> list[TokenTree]:
        """A tree for each prompt, its number as key, with those of these fields (see `Fields`) that are known, and with
        the comparisons of its responses."""
        cuts = np.cumsum(self.lengths)[:-1]
        known = {name: np.split(values, cuts) for name in names if (values := self._field(name)) is not None}
        branches = [
            Branch(ids, np.ones(len(ids), bool), {name: parts[i] for name, parts in known.items()})
            for i, ids in enumerate(self.answers)
        ]
        ends = np.cumsum(self.sizes)
        return [
            TokenTree(prompt, tuple(branches[end - size : end]), key=key, **self._comparisons(slice(end - size, end)))
            for key, (prompt, size, end) in enumerate(zip(self.prompts, self.sizes, ends, strict=True))
        ]

    def _comparisons(self, here: slice) -> dict[str, Any]:
        """Of the responses `here`, those of a prompt: labels (1 preferred, 0 not), and each preferred one with each of
        the others as a pair, as strong as their shaped rewards are apart."""
        if self.side is None or self.shaped is None:
            return {}
        side, worth = self.side[here], self.shaped[here].tolist()
        chosen, rejected = np.flatnonzero(side > 0).tolist(), np.flatnonzero(side < 0).tolist()
        fields = {"label": (side > 0).astype(np.float32)}
        if self.reference_point is not None:
            fields["reference_point"] = self.reference_point[here]
        pairs = tuple((i, j, worth[i] - worth[j]) for i in chosen for j in rejected)
        return {"pairs": pairs, "per_response": fields}

    def _field(self, name: str) -> Column:
        if name != "sampled":
            return getattr(self, name)
        return np.repeat(~self.demonstration, self.lengths).astype(np.float32) if self.demonstration.any() else None

    def state_dict(self) -> dict[str, Any]:
        """The columns, for a checkpoint."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("prompts", "notes")}
        return {name: values for name, values in known.items() if values is not None} | {
            "prompts": np.concatenate(self.prompts) if self.prompts else np.zeros(0, np.int64),
            "prompt_lengths": np.array([len(prompt) for prompt in self.prompts], np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rollout:
        columns = dict(state)
        ends = np.cumsum(columns.pop("prompt_lengths"))
        return cls(**columns | {"prompts": tuple(np.split(columns["prompts"], ends)[: len(ends)])})


class Fields(NamedTuple):
    """What a step reads of the tokens of a batch, [N] each; `sampled` is 0 in demonstrations, else 1. None where the
    rollout does not have it."""

    sampler: Tensor | None
    old: Tensor | None
    reference: Tensor | None
    anchor: Tensor | None
    ewma: Tensor | None
    values: Tensor | None
    advantages: Tensor | None
    returns: Tensor | None
    sampled: Tensor | None

    @classmethod
    def of(cls, batch: TreeBatch) -> Fields:
        return cls(*(batch.per_token.get(name) for name in cls._fields))


def pack(rollout: Rollout, *, micro_tokens: int, flat: bool, world: World) -> Window:
    """The optimiser step over a rollout, for this rank. The keys of its trees are the prompts' numbers."""
    trees = rollout.trees(*Fields._fields)
    return window(trees, micro_tokens=micro_tokens, flat=flat, rank=world.rank, ranks=world.size)


def rollout_of(
    prompts: Sequence[np.ndarray],
    rows: np.ndarray,
    groups: Sequence[Sequence[Completion]],
    *,
    demonstrations: bool = False,
) -> Rollout:
    """The responses of `groups` (one group for each prompt) as columns."""
    responses = [one for group in groups for one in group]
    none = np.zeros(0, np.int64)
    return Rollout(
        prompts=tuple(prompts),
        rows=np.asarray(rows, np.int64),
        prompt=np.repeat(np.arange(len(prompts)), [len(group) for group in groups]),
        ids=np.concatenate([one.ids for one in responses]) if responses else none,
        lengths=np.array([len(one) for one in responses], np.int64),
        sampler=np.concatenate([one.logprobs for one in responses]) if responses else none.astype(np.float32),
        finished=np.array([one.finished for one in responses], bool),
        demonstration=np.full(len(responses), demonstrations),
    )


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Several rollouts of different prompts as one, with the columns that the first has."""
    first, *_ = rollouts
    before = np.cumsum([0, *(len(one.prompts) for one in rollouts)])
    shifted = [replace(one, prompt=one.prompt + number) for one, number in zip(rollouts, before, strict=False)]
    prompts = tuple(prompt for one in rollouts for prompt in one.prompts)
    rows = np.concatenate([one.rows for one in rollouts])
    return replace(first, prompts=prompts, rows=rows, **_stacked(shifted))


def beside(rollout: Rollout, other: Rollout) -> Rollout:
    """The responses of both, which have the same prompts: of each prompt those of `rollout` first."""
    both = replace(rollout, **_stacked([rollout, other]))
    return both.take(np.argsort(both.prompt, kind="stable"))


def _stacked(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """The columns of all responses, one rollout after the other; NaN where one of them has no such part."""
    first = rollouts[0]
    names = [name for name in (*PER_TOKEN, *PER_RESPONSE) if getattr(first, name) is not None]
    names += ["prompt", "ids", "lengths"]
    parts = dict.fromkeys(name for one in rollouts for name in one.parts)
    noted = any(one.notes for one in rollouts)
    return {name: np.concatenate([getattr(one, name) for one in rollouts]) for name in names} | {
        "parts": {name: np.concatenate([_part(one, name) for one in rollouts]) for name in parts},
        "notes": tuple(note for one in rollouts for note in one.notes or [{}] * len(one)) if noted else (),
    }


def _part(rollout: Rollout, name: str) -> np.ndarray:
    return rollout.parts.get(name, np.full(len(rollout), np.nan, np.float32))
