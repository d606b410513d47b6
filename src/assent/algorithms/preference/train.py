"""Learning directly from feedback: every objective of `assent.config.OBJECTIVES`, alone or as a weighted
sum, and those of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assent.algorithms.measured import wanted
from assent.algorithms.preference import diagnostics, step_wide
from assent.algorithms.preference.about import about
from assent.algorithms.preference.feedback import balanced, read_feedback
from assent.algorithms.preference.objective import objective_with
from assent.algorithms.preference.step_loss import MEANS, Inputs, Requirement, Term, needs_of, step_loss
from assent.algorithms.probe import Probe, probe_alarm
from assent.config import Objective, PreferenceConfig, reference_of
from assent.data.packing import Counts, EpochStream, Window
from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch
from assent.distributed import World
from assent.models.policy import Policy
from assent.models.references import FollowingReference, Reference
from assent.train.held_out import held_out
from assent.train.loop import Loss, run
from assent.train.measured import Evaluation
from assent.train.references import cached_reference, live_reference
from assent.train.run import RunResult
from assent.train.session import Session, open_session


def train_preference(config: PreferenceConfig) -> RunResult:
    """Aligns `config.model` with the feedback of `config.data`; the result is `config.out`/model."""
    rows = wanted(config.eval)
    session = open_session(config)
    setup = set_up(session, config)
    algorithm, stream, live = setup.algorithm, setup.algorithm.stream, setup.live
    total = session.total_steps(stream.steps_per_epoch)
    alarm = probe_alarm(config, total, setup.examples)
    probe = Probe(session, algorithm.policy, live, setup.examples, config.probe, rows, alarm)

    def evaluate() -> Evaluation:
        found = held_out(
            algorithm, setup.held, stream, session.world, algorithm.prepare, diagnostics.evaluation_summary
        )
        found = algorithm.watch.check(found, algorithm.row.feedback)
        answers = probe()
        return Evaluation({**found.metrics, **answers.metrics}, answers.samples, found.each)

    return run(
        session,
        algorithm,
        total=total,
        evaluate=evaluate if setup.held else None,
        final={"model": algorithm.policy},
        averages=[live.model] if isinstance(live, FollowingReference) and live.model else [],
        about=about(algorithm, reference_of(config), total),
        alarm=probe.alarm,
    )


@dataclass(frozen=True, slots=True)
class Setup:
    """A run before its first step: what is held out, as trees and as examples, and the reference where it is a model
    (`live`)."""

    algorithm: Preference
    held: list[TokenTree]
    examples: list[Example]
    live: Reference | None


def set_up(session: Session, config: PreferenceConfig) -> Setup:
    """The data as the objective needs them, policy and reference."""
    row, terms = objective_with(config)
    data = read_feedback(session, config, row, terms)
    train, held = data.train, data.eval
    policy = session.policy()
    section = reference_of(config) if row.needs_reference else None
    reference = live = None
    if section is not None and section.mode == "cached":
        train, held = cached_reference(session, policy, section, (train, held))
        reference = Reference(policy, None)
    elif section is not None:
        reference = live = live_reference(session, policy, section)
    stream = session.stream(train, policy, *([live] if live is not None else []))
    algorithm = Preference(policy, reference, stream, row, balanced(terms, train), session.world)
    return Setup(algorithm, held, data.eval_examples, live)


class Preference:
    """The objective of `row` as a sum of `terms`, its own first. `reference` is None for objectives without one."""

    def __init__(
        self,
        policy: Policy,
        reference: Reference | None,
        stream: EpochStream,
        row: Objective,
        terms: Sequence[Term],
        world: World,
    ) -> None:
        self.policy, self.reference, self.stream, self.world = policy, reference, stream, world
        self.row, self.terms, self.needs = row, terms, needs_of(terms)
        self.modules = {"policy": policy}
        options = terms[0].loss.options
        self.row, beta = self.row.as_trained(options), options.get("beta")
        self.beta = float(beta) if isinstance(beta, int | float) else 1.0
        self.shift = 0.0
        self.watch = diagnostics.Watch()

    # ---- a step: its window, the loss of each micro-batch, what follows from the update

    def windows(self) -> Iterator[Window]:
        return map(self.prepare, self.stream)

    def prepare(self, window: Window) -> Window:
        """The step with the fields that its losses need and only the whole step can give; DPO's need none."""
        window = replace(window, batches=tuple(batch.to(self.world.device) for batch in window.batches))
        if Requirement.MISMATCHED in self.needs:
            assert self.reference is not None
            return step_wide.with_reference_point(window, self.policy, self.reference)
        if Requirement.SHIFT in self.needs:
            return step_wide.with_shift(window, self.shift)
        if any(term.whole_step for term in self.terms):
            return step_wide.with_gradients(window, self.terms, self.read, self.world.rank)
        return window

    def read(self, batch: TreeBatch) -> Inputs:
        """A forward pass of both models."""
        reference = anchor = None
        if self.reference is not None:
            reference = self.reference.logprobs(batch)
            anchor = self.reference.anchor(batch) if Requirement.ANCHOR in self.needs else None
        scores = self.policy(batch, collision=Requirement.COLLISION in self.needs, anchor=anchor)
        return Inputs(batch, scores, reference)

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        inputs, mean = self.read(batch), MEANS[self.row.feedback]
        total = step_loss(inputs, self.terms, mean, counts)
        objective = total.detach() * max(1, mean.step(counts)), mean.batch(batch)
        described = diagnostics.item_metrics(inputs, self.row, self.beta)
        return Loss(total, {"objective": objective, **described.metrics}, described.items, described.accuracy)

    def stepped(self, metrics: Mapping[str, float]) -> None:
        if self.reference is not None:
            self.reference.follow(self.stream.given)
        if Requirement.SHIFT in self.needs:
            self.shift = step_wide.moved_shift(self.shift, metrics)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        return {
            "stream": self.stream.state_dict(),
            "reference": self.reference.state_dict() if self.reference is not None else {},
            "shift": self.shift,
            "watch": self.watch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        self.shift = float(state["shift"])
        self.watch.load_state_dict(state["watch"])
