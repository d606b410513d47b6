"""Answers to a few held-out prompts at every evaluation: what training does to their length and KL."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from assent.algorithms.rollouts import collect, response_field, response_lengths
from assent.config import ProbeConfig, SamplingConfig
from assent.data.formats import message_row
from assent.data.records import Example
from assent.data.tree import TreeBatch
from assent.distributed import unsharded
from assent.errors import ModelError
from assent.models.annotate import Fields, annotate
from assent.models.policy import Policy
from assent.models.references import Reference
from assent.models.saving import stop_ids
from assent.models.vocabulary import unused_ids
from assent.rollout.check import check_sampling
from assent.rollout.torch_engine import TorchEngine
from assent.train.measured import Evaluation
from assent.train.session import Session

log = logging.getLogger(__name__)

SEED = 1 << 40
"""Every probe samples with the same numbers, so that answers differ only as policies do."""


class Probe:
    """Samples one answer to each of the first `config.prompts` prompts that leave room for one. Without prompts, or
    with a model that the torch engine cannot sample, it finds nothing."""

    def __init__(
        self,
        session: Session,
        policy: Policy,
        reference: Reference | None,
        prompts: Sequence[Example],
        config: ProbeConfig,
    ) -> None:
        self.session, self.policy, self.reference = session, policy, reference
        self.sampling = SamplingConfig(max_new_tokens=config.max_new_tokens)
        room = session.config.data.max_length - config.max_new_tokens
        unique = list({example.prompt: example for example in prompts if example.prompt}.values())
        fitting = [(e, ids) for e in unique[: 4 * config.prompts] if len(ids := session.chat.prompt_ids(e)) <= room]
        self.unused = unused_ids(policy.plain, session.tokenizer)
        if unique and config.prompts and not fitting:
            log.warning(
                "No answers are sampled at evaluations: no held-out prompt leaves room for --probe.max_new_tokens "
                f"{config.max_new_tokens} within --data.max_length."
            )
        self.prompts = fitting[: config.prompts] if policy.tree and self._samples(policy) else []

    def _samples(self, policy: Policy) -> bool:
        try:
            with unsharded(policy):
                check_sampling(policy.model, self.session.config.data.max_length)
        except ModelError as error:
            log.warning(f"No answers are sampled at evaluations: {error}")
            return False
        return True

    def __call__(self) -> Evaluation:
        """Length in tokens, share of unfinished answers, KL from the reference (where it is moving: as it is now) in
        nats per answer; the answers."""
        if not self.prompts:
            return Evaluation({})
        ends = stop_ids(self.session.chat, self.policy.plain.generation_config)
        engine = TorchEngine(self.policy.model, ends, self.policy.precision, unused=self.unused)
        with unsharded(self.policy):
            trees = collect(engine, [ids for _, ids in self.prompts], 1, self.sampling, SEED, self.session.world)
        metrics = {
            "eval/length": float(response_lengths(trees).mean()),
            "eval/unfinished": float(1 - response_field(trees, "finished").mean()),
        }
        if self.reference is not None:
            anchor = self.reference

            def drift(batch: TreeBatch) -> Fields:
                return Fields({"drift": self.policy(batch).logprobs - anchor.logprobs(batch)})

            train = self.session.config.train
            found = annotate(
                trees, drift, micro_tokens=train.micro_tokens, flat=not anchor.tree, world=self.session.world
            )
            metrics["eval/kl"] = float(np.sum(found.per_token["drift"]) / len(trees))
        samples = [
            {
                "prompt": [message_row(message) for message in example.prompt],
                "response": self.session.chat.decode(
                    tree.branches[0].ids, tree.prompt, finished=bool(tree.per_response["finished"][0])
                ),
                "length": len(tree.branches[0]),
                "finished": bool(tree.per_response["finished"][0]),
            }
            for (example, _), tree in zip(self.prompts, trees, strict=True)
        ]
        return Evaluation(metrics, samples)
