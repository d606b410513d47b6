"""A policy's answers to the prompts, with their distance from a reference; and how likely it finds the answers that the
prompt file gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from assent.algorithms.answers import answers_of
from assent.algorithms.online.evaluation import answered
from assent.algorithms.online.models import Models
from assent.algorithms.online.stages import Annotation
from assent.config import EvalConfig, ModelConfig
from assent.data.chat import Chat
from assent.data.records import RowError
from assent.data.tree import TreeBatch
from assent.distributed import World
from assent.errors import ModelError
from assent.evaluate.policies import PolicySource
from assent.evaluate.prompts import PromptSet
from assent.measures.answers import Answers, Given
from assent.models.annotate import BatchColumns, columns_of
from assent.models.folders import longest
from assent.models.loading import load_policy, load_tokenizer, stored_config
from assent.models.policy import Policy
from assent.models.references import Reference
from assent.models.shared_ids import check_shared_ids
from assent.rewards.outside import MOST
from assent.rewards.reading import readable
from assent.rollout.build import torch_engine
from assent.rollout.check import check_sampling
from assent.rollout.sampler import Sampler

BIASED = "an estimate of KL is unbiased for answers that are sampled from the policy itself: no top_k or top_p, and a \
temperature above 0"
NO_REFERENCE = "a reference (--reference)"


@dataclass(frozen=True, slots=True)
class Sampled:
    """A policy's answers. Of those that were sampled here the tokens are kept, `ids` of each answer and `prompt_ids` by
    prompt, so that reward models read them as they are; `without` says why a need of measures is not met."""

    answers: Answers
    ids: tuple[np.ndarray, ...] = ()
    prompt_ids: Mapping[int, np.ndarray] = field(default_factory=dict)
    given: Given | None = None
    without: Mapping[str, str] = field(default_factory=dict)


class Asking:
    """How policies are asked: the same for all. The reference is loaded once, when the first policy needs it."""

    def __init__(self, config: EvalConfig, prompts: PromptSet, world: World) -> None:
        self.config, self.prompts, self.world = config, prompts, world

    def sample(self, source: PolicySource) -> Sampled:
        """The answers of one model, and its log-probs of the file's own. The work is shared by all ranks, each with the
        models whole on its device; every rank gets all answers, and they do not depend on the number of ranks.

        Raises ModelError where the folder is not a model that fits."""
        config, limit = self.config, self.limit(source.path)
        policy, chat = self._load(source.path, limit)
        anchor, without = self._anchor(chat, limit)
        ids, unanswered = self._encoded(chat, limit)
        given = self._given(source.name, policy, anchor, chat, limit)
        if not self._unbiased:
            without = {"reference": BIASED} if anchor is not None else without
        if not ids:
            empty = Answers(source.name, self.prompts.columns, np.zeros(0, np.int64), (), unanswered=unanswered)
            return Sampled(empty, given=given, without=without)
        check_sampling(policy.model, config.sampling.max_new_tokens)
        measured = anchor if self._unbiased else None
        rollout = answered(
            Sampler(self.world, policy, torch_engine(policy, chat), config.sampling),
            Models(policy, None, None if measured is None else Reference(policy, measured)),
            [*ids.values()],
            Annotation(config.sampling.temperature or 1.0, config.micro_tokens),
            n=config.answers,
            seed=config.seed,
        )
        made = answers_of(rollout, chat, source.name, self.prompts.columns, [*ids], unanswered)
        return Sampled(made, tuple(rollout.answers), ids, given, without)

    def limit(self, path: str) -> int:
        """The longest prompt with its answer, in tokens."""
        if self.config.max_length is not None:
            return self.config.max_length
        return min(longest(stored_config(self._model(path))) or MOST, MOST)

    @property
    def _unbiased(self) -> bool:
        sampling = self.config.sampling
        return sampling.temperature > 0 and sampling.top_k == 0 and sampling.top_p == 1

    def _model(self, path: str) -> ModelConfig:
        config = self.config
        return ModelConfig(path, precision=config.precision, trust_remote_code=config.trust_remote_code)

    def _load(self, path: str, limit: int) -> tuple[Policy, Chat]:
        model = self._model(path)
        chat = Chat(load_tokenizer(model))
        return load_policy(model, max_length=limit, device=self.world.device, trainable=False).eval(), chat

    def _anchor(self, chat: Chat, limit: int) -> tuple[Policy | None, dict[str, str]]:
        """The reference, or why this policy has none."""
        path = self.config.reference
        if path is None:
            return None, {}
        trust = self.config.trust_remote_code
        try:
            check_shared_ids("--reference", path, chat.tokenizer, revision=None, trust_remote_code=trust)
        except ModelError as error:
            if "vocabulary" not in str(error):
                raise
            return None, {"reference": str(error).partition(": ")[2] or str(error)}
        return self._reference, {}

    @cached_property
    def _reference(self) -> Policy:
        assert self.config.reference is not None
        return self._load(self.config.reference, self.limit(self.config.reference))[0]

    def _encoded(self, chat: Chat, limit: int) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """Prompts as tokens by their place, and why others cannot be."""
        room = limit - self.config.sampling.max_new_tokens
        ids: dict[int, np.ndarray] = {}
        unanswered: dict[int, str] = {}
        for place, example in enumerate(self.prompts.examples):
            try:
                own = chat.prompt_ids(example)
            except RowError as error:
                unanswered[place] = f"its chat template refuses the prompt: {error}"
                continue
            if len(own) > room:
                unanswered[place] = f"the prompt leaves no room for {self.config.sampling.max_new_tokens} tokens"
            else:
                ids[place] = own
        return ids, unanswered

    def _given(self, name: str, policy: Policy, anchor: Policy | None, chat: Chat, limit: int) -> Given | None:
        """The log-probs of the file's own answers; None where it has none."""
        rows = self.prompts.given
        if not rows:
            return None
        read = [readable(chat, row.example, limit) for row in rows]
        trees = [one.tree for one in read if one.tree is not None]

        def sums(batch: TreeBatch) -> BatchColumns:
            found = {"own": policy(batch).logprobs}
            if anchor is not None:
                found["reference"] = anchor(batch).logprobs
            made = {name: batch.sum_by_response(values) for name, values in found.items()}
            return BatchColumns(per_response=made | {"tokens": batch.tokens_by_response()})

        flat = not (policy.tree and (anchor is None or anchor.tree))
        found: Mapping[str, np.ndarray] = {}
        if trees:
            micro = self.config.micro_tokens
            found = columns_of(trees, sums, micro_tokens=micro, flat=flat, world=self.world).per_response
        why = [reason for one in read for reason in one.why]
        there = np.array([reason is None for reason in why], bool)

        def spread(column: str) -> np.ndarray:
            whole = np.full(len(why), np.nan)
            whole[there] = found.get(column, np.zeros(0))
            return whole

        return Given(
            policy=name,
            tokens=np.nan_to_num(spread("tokens"), nan=1).astype(np.int64),
            log_prob=spread("own"),
            unread=tuple(reason or "" for reason in why),
            reference_log_prob=spread("reference") if anchor is not None else None,
            **_layout(self.prompts),
        )


def _layout(prompts: PromptSet) -> dict[str, Any]:
    """What the file says of its own answers, as columns of `Given`."""
    prompt: list[int] = []
    pairs: list[tuple[int, int]] = []
    right: list[float] = []
    one: list[int] = []
    some: list[int] = []
    for question, row in enumerate(prompts.given):
        size, before = len(row.example.responses), len(prompt)
        prompt += [row.prompt] * size
        pairs += [(better + before, worse + before) for better, worse in row.pairs]
        right += [np.nan if label is None else label for label in row.right or (None,) * size]
        one += [question if row.one else -1] * size
        some += [question if row.some else -1] * size
    asked = any(row.one or row.some for row in prompts.given)
    return {
        "prompt": np.array(prompt, np.int64),
        "pairs": np.array(pairs, np.int64).reshape(-1, 2),
        "right": np.array(right) if not np.isnan(right).all() else None,
        "one_of": np.array(one, np.int64) if asked else None,
        "some_of": np.array(some, np.int64) if asked else None,
    }
