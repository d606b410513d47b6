"""Supervised fine-tuning: maximise the likelihood of the answers' tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from assent.algorithms.measured import wanted
from assent.algorithms.probe import Probe, probe_alarm
from assent.config import SFTConfig
from assent.data.packing import Counts, EpochStream, Window
from assent.data.tree import TreeBatch
from assent.data.views import sft_view
from assent.losses import cross_entropy
from assent.models.policy import Policy
from assent.train.held_out import held_out
from assent.train.loop import Loss, run
from assent.train.measured import Evaluation
from assent.train.opening import about_stream
from assent.train.run import RunResult
from assent.train.session import open_session


class SFT:
    """Mean cross-entropy over all trained tokens of a step."""

    def __init__(self, policy: Policy, stream: EpochStream) -> None:
        self.policy = policy
        self.stream = stream
        self.modules = {"policy": policy}

    def windows(self) -> Iterator[Window]:
        return iter(self.stream)

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        scores = self.policy(batch)
        losses = cross_entropy(scores.logprobs)
        nll = losses.sum()
        followed = batch.by_tree(losses.detach(), batch.response)
        return Loss(nll / counts.tokens, {"nll": (nll, len(losses))}, followed=followed)

    def stepped(self, metrics: Mapping[str, float]) -> None:
        """Nothing follows from an update."""

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def train_sft(config: SFTConfig) -> RunResult:
    """Fine-tunes `config.model` on the answers of `config.data`; the result is `config.out`/model."""
    rows = wanted(config.eval)
    session = open_session(config)
    data = session.prepare(sft_view)
    policy = session.policy()
    stream = session.stream(data.train, policy)
    algorithm = SFT(policy, stream)
    total = session.total_steps(stream.steps_per_epoch)
    alarm = probe_alarm(config, total, data.eval_examples)
    probe = Probe(session, policy, None, data.eval_examples, config.probe, rows, alarm)

    def evaluate() -> Evaluation:
        found, answers = held_out(algorithm, data.eval, stream, session.world), probe()
        return Evaluation({**found.metrics, **answers.metrics}, answers.samples, found.each)

    return run(
        session,
        algorithm,
        total=total,
        evaluate=evaluate if data.eval else None,
        final={"model": policy},
        about=[about_stream(stream, total)],
        alarm=probe.alarm,
    )
