"""Learning directly from feedback: every objective of `assent.objectives`, alone or as a weighted sum.

Before a step is trained, `prepare` adds to its batches what a single micro-batch cannot know: KTO's reference point and
BCO's shift are means over the whole step, and AOT sorts all its pairs. So neither micro-batches nor ranks change a
number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.algorithms import diagnostics
from assent.algorithms.about import about_preference
from assent.algorithms.features import Features, inputs_of, weight_by_prompt
from assent.algorithms.probe import Probe
from assent.config import (
    OBJECTIVES,
    BinaryConfig,
    KTOConfig,
    Objective,
    PairConfig,
    PreferenceConfig,
    keywords,
    loss_of,
    objective_of,
    reference_of,
)
from assent.config.objectives import SFT
from assent.data.dataset import Prepared, View
from assent.data.mismatch import with_mismatched
from assent.data.packing import Counts, EpochStream, Window
from assent.data.tree import TokenTree, TreeBatch
from assent.data.views import binary_view, pair_view, ranking_view, rating_view
from assent.distributed import World, all_sum_dict, gather_objects
from assent.errors import DataError
from assent.losses import LOSSES
from assent.models.policy import Policy, TokenScores
from assent.models.references import FIELD, MovingReference, Reference
from assent.train.finite import DIVERGED, require_numbers
from assent.train.held_out import held_out
from assent.train.loop import Loss, add_sums
from assent.train.measured import Evaluation
from assent.train.references import cached_reference, live_reference
from assent.train.run import RunResult, run
from assent.train.session import Session, open_session

SHIFT_DECAY = 0.9
"""Of BCO's moving average."""


@dataclass(frozen=True, slots=True)
class Term:
    """One summand: weight times a loss with its options."""

    name: str
    loss: str
    options: Mapping[str, Any]
    weight: float = 1.0
    whole_step: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return inputs_of(LOSSES[self.loss])

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return LOSSES[self.loss](**{name: tensors[name] for name in self.inputs}, **self.options)


def terms_of(config: PreferenceConfig) -> list[Term]:
    """The objective itself, then what `plus` adds, each at its own defaults."""
    key = objective_of(config)
    row = OBJECTIVES[key]
    terms = [Term(key, row.loss, keywords(loss_of(config)), whole_step=row.whole_step)]
    for name, weight in (config.plus if isinstance(config, PairConfig) else {}).items():
        if name == SFT:
            terms.append(Term(SFT, "chosen_nll", {}, weight))
        else:
            other = OBJECTIVES[name]
            terms.append(Term(name, other.loss, other.options, weight, other.whole_step))
    return terms


class Preference:
    """`reference` is None for objectives without one. KTO's weights must be numbers (see `balanced`)."""

    def __init__(
        self,
        policy: Policy,
        reference: Reference | None,
        stream: EpochStream,
        config: PreferenceConfig,
        world: World,
    ) -> None:
        self.policy, self.reference, self.stream, self.world = policy, reference, stream, world
        self.row, self.terms = OBJECTIVES[objective_of(config)], terms_of(config)
        self.modules = {"policy": policy}
        self.names = frozenset(name for term in self.terms for name in term.inputs)
        self.beta = float(self.terms[0].options.get("beta", 1.0))
        self.shift = 0.0
        self.pending: dict[str, tuple[Any, float]] = {}
        self.watch = diagnostics.Watch()

    # ---- steps

    def windows(self) -> Iterator[Window]:
        for window in self.stream:
            yield self.prepare(window)

    def stepped(self, metrics: Mapping[str, float]) -> None:
        if self.reference is not None:
            self.reference.follow(self.stream.given)
        self._move_shift()

    @torch.no_grad()
    def prepare(self, window: Window) -> Window:
        """The step with the fields that its losses need and only the whole step can give."""
        window = replace(window, batches=tuple(batch.to(self.world.device) for batch in window.batches))
        if "kl" in self.names:
            return self._with_reference_point(window)
        if "shift" in self.names:
            return _with_constant(window, "shift", self.shift)
        for number, term in enumerate(self.terms):
            if term.whole_step:
                window = self._with_gradients(window, term, number)
        return window

    def _with_reference_point(self, window: Window) -> Window:
        """KTO: z0 = max(0, mean of log pi/pi_ref over mismatched answers), from the whole step. The reference has read
        them beside the prompt's own answers; the policy reads them here, without gradients, and is then trained on the
        own answers alone: a backward pass through answers whose gradient is zero would cost more than it saves."""
        own, gap, number = [], torch.zeros((), dtype=torch.float64), 0
        for batch in window.batches:
            batch = self._with_reference(batch)
            foreign = batch.per_response["mismatched"] > 0
            other = batch.select(foreign)
            gap += (self.policy(other).logprobs - other.per_token[FIELD]).double().sum().cpu()
            number += int(foreign.sum())
            own.append(batch.select(~foreign))
        total, count = all_sum_dict({"kl": (gap, number)})["kl"]
        require_numbers("KL of mismatched answers", {"kl": total}, DIVERGED)  # max would take a NaN for 0
        z0 = max(0.0, total / max(1.0, count))
        counts = replace(window.counts, responses=window.counts.responses - window.counts.prompts)
        made = _with_constant(replace(window, batches=tuple(own), counts=counts), "kl", z0)
        return replace(made, metrics={**window.metrics, "reference_point": z0})

    def _with_gradients(self, window: Window, term: Term, number: int) -> Window:
        """A loss that couples all pairs of the step, as its gradient for each response: one pass without gradients
        gives it the log-probs of all ranks, and the training pass then follows gradient * log-prob."""
        batches = [self._with_reference(batch) if self.reference else batch for batch in window.batches]
        mine = [Features(batch, self._score(batch), batch.per_token.get(FIELD)).of(term.inputs) for batch in batches]
        local = {name: torch.cat([part[name] for part in mine]).cpu() for name in term.inputs}
        ranks = gather_objects(local)
        everyone = {name: torch.cat([part[name] for part in ranks]) for name in term.inputs}
        trained = [name for name in term.inputs if name.startswith("policy")]
        with torch.enable_grad():
            for name in trained:
                everyone[name].requires_grad_()
            total = term(everyone).sum() / max(1, window.counts.pairs)
            gradients = torch.autograd.grad(total, [everyone[name] for name in trained])
        start = sum(len(part[trained[0]]) for part in ranks[: self.world.rank])
        made = []
        for batch in batches:
            where = slice(start, start + len(batch.pairs))
            start = where.stop
            gradient = torch.zeros(batch.num_responses, device=batch.tokens.device)
            for name, values in zip(trained, gradients, strict=True):
                side = batch.pairs[:, int(name.endswith("rejected"))]
                gradient.index_add_(0, side, values[where].to(gradient.device))
            value = torch.full_like(gradient, float(total) / max(1, window.counts.responses))
            fields = {f"gradient/{number}": gradient, f"value/{number}": value}
            made.append(replace(batch, per_response={**batch.per_response, **fields}))
        return replace(window, batches=tuple(made))

    def _with_reference(self, batch: TreeBatch) -> TreeBatch:
        assert self.reference is not None
        return replace(batch, per_token={**batch.per_token, FIELD: self.reference.logprobs(batch)})

    # ---- the loss

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        reference = self.reference.logprobs(batch) if self.reference is not None else None
        features = Features(batch, self._score(batch), reference)
        total = torch.zeros((), device=batch.tokens.device)
        for number, term in enumerate(self.terms):
            total = total + term.weight * self._term(features, counts, term, number)
        share = counts.responses if self.row.feedback == "binary" else counts.prompts
        here = batch.num_responses if self.row.feedback == "binary" else len(batch.keys)
        described = diagnostics.describe(features, self.row, self.beta)
        if torch.is_grad_enabled():
            self._record(features)
        return Loss(
            total,
            {"objective": (total.detach() * max(1, share), here), **described.metrics},
            described.items,
            described.accuracy,
        )

    def _term(self, features: Features, counts: Counts, term: Term, number: int) -> Tensor:
        batch = features.batch
        if term.whole_step:
            gradient, value = (batch.per_response[f"{name}/{number}"] for name in ("gradient", "value"))
            return (gradient * (features.policy - features.policy.detach()) + value).sum()
        losses = term(features.of(term.inputs))
        if self.row.feedback == "pairs":
            return (losses * weight_by_prompt(batch)).sum() / max(1, counts.prompts)
        return losses.sum() / max(1, counts.responses if self.row.feedback == "binary" else counts.prompts)

    def _score(self, batch: TreeBatch) -> TokenScores:
        anchor = None
        if "kl_chosen" in self.names:
            assert self.reference is not None
            anchor = self.reference.anchor(batch)
        return self.policy(batch, collision="weight_chosen" in self.names, anchor=anchor)

    # ---- BCO's shift

    def _record(self, features: Features) -> None:
        if "shift" in self.names:
            reward = self.beta * (features.policy - features.reference).detach()
            for name, side in (("yes", features.desirable > 0), ("no", features.desirable == 0)):
                add_sums(self.pending, {name: (reward[side].sum(), int(side.sum()))})

    def _move_shift(self) -> None:
        """BCO: delta is the moving average of (mean desirable + mean undesirable reward) / 2 over the steps so far."""
        if not self.pending:
            return
        means = [total / count for total, count in all_sum_dict(self.pending).values() if count]
        if len(means) == 2:
            self.shift = SHIFT_DECAY * self.shift + (1 - SHIFT_DECAY) * sum(means) / 2
        self.pending = {}

    # ---- state, evaluation

    def state_dict(self) -> dict[str, Any]:
        reference = self.reference.state_dict() if self.reference is not None else {}
        return {
            "stream": self.stream.state_dict(),
            "reference": reference,
            "shift": self.shift,
            "watch": self.watch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        self.shift = float(state["shift"])
        self.watch.load_state_dict(state["watch"])


def _with_constant(window: Window, name: str, value: float) -> Window:
    """The step with a field that is the same number for every response."""
    batches = (
        replace(b, per_response={**b.per_response, name: torch.full_like(b.last, value, dtype=torch.float32)})
        for b in window.batches
    )
    return replace(window, batches=tuple(batches))


@dataclass(frozen=True, slots=True)
class Setup:
    """A run before its first step. `live` is the reference where it is a model."""

    algorithm: Preference
    data: Prepared
    held: list[TokenTree]
    live: Reference | None


def set_up(session: Session, config: PreferenceConfig) -> Setup:
    """Data as the objective needs them, policy and reference."""
    row = OBJECTIVES[objective_of(config)]
    data = session.prepare(_view(row, config))
    parts = [data.train, data.eval]
    _check_data(row, config, data)
    if row.loss == "kto":
        seed, limit = config.train.seed, config.data.max_length
        everything = [*data.eval, *data.train]  # few held-out prompts may all be the same
        parts = [
            with_mismatched(data.train, seed, limit),
            with_mismatched(everything, seed, limit)[: len(data.eval)] if data.eval else [],
        ]
    policy = session.policy()
    section = reference_of(config)
    reference = live = None
    if section is not None and section.mode == "cached":
        parts = cached_reference(session, policy, section, parts)
        reference = Reference(policy, None)
    elif section is not None:
        reference = live = live_reference(session, policy, section)
    train, held = parts
    stream = session.stream(train, policy, *([live] if live is not None else []))
    algorithm = Preference(policy, reference, stream, balanced(config, train), session.world)
    return Setup(algorithm, data, held, live)


def train_preference(config: PreferenceConfig) -> RunResult:
    """Aligns `config.model` with the feedback of `config.data`; the result is `config.out`/model."""
    session = open_session(config)
    setup = set_up(session, config)
    algorithm, stream, feedback = setup.algorithm, setup.algorithm.stream, setup.algorithm.row.feedback
    probe = Probe(session, algorithm.policy, setup.live, setup.data.eval_examples, config.probe)

    def evaluate() -> Evaluation:
        found = held_out(
            algorithm, setup.held, stream, session.world, algorithm.prepare, partial(diagnostics.summary, feedback)
        )
        found = algorithm.watch.check(found, feedback)
        answers = probe()
        return Evaluation({**found.metrics, **answers.metrics}, answers.samples, found.each)

    total = session.total_steps(stream.steps_per_epoch)
    return run(
        session,
        algorithm,
        total=total,
        evaluate=evaluate if setup.held else None,
        final={"model": algorithm.policy},
        averages=[setup.live.model] if isinstance(setup.live, MovingReference) and setup.live.model else [],
        about=about_preference(algorithm, reference_of(config), total),
    )


def balanced(config: PreferenceConfig, trees: Sequence[TokenTree]) -> PreferenceConfig:
    """KTO's configuration with its weights filled in: by default both classes count the same in sum, so the rarer one's
    weight is the ratio of their numbers. Other configurations as they are."""
    if not isinstance(config, KTOConfig):
        return config
    yes, no = _classes(trees)
    desirable, undesirable = config.loss.desirable_weight, config.loss.undesirable_weight
    loss = replace(
        config.loss,
        desirable_weight=max(1.0, no / yes) if desirable is None else desirable,
        undesirable_weight=max(1.0, yes / no) if undesirable is None else undesirable,
    )
    return replace(config, loss=loss)


def _classes(trees: Sequence[TokenTree]) -> tuple[int, int]:
    """How many answers are desirable, how many undesirable."""
    labels = np.concatenate([tree.per_response["label"] for tree in trees])
    return int((labels == 1).sum()), int((labels == 0).sum())


def _view(row: Objective, config: PreferenceConfig) -> View:
    if isinstance(config, BinaryConfig):
        return partial(binary_view, threshold=config.threshold)
    return {"pairs": pair_view, "ranking": ranking_view, "rating": rating_view}[row.feedback]


def _check_data(row: Objective, config: PreferenceConfig, data: Prepared) -> None:
    """Raises DataError for what an objective cannot learn from."""
    if row.feedback == "binary":
        key, file = objective_of(config), config.data.train
        yes, no = _classes(data.train)
        if not (yes and no):
            kind, number = ("desirable", yes) if yes else ("undesirable", no)
            other = " Desirable answers alone are for: assent sft" if yes else ""
            raise DataError(f"{file}: all {number} answers are {kind}; {key} needs both kinds.{other}")
    if any(term.loss == "odpo" for term in terms_of(config)):
        for file, trees in ((config.data.train, data.train), (config.data.eval or config.data.train, data.eval)):
            margins = [margin for tree in trees for _, _, margin in tree.pairs]
            if none := sum(margin <= 0 for margin in margins):
                raise DataError(
                    f"{file}: {none} of {len(margins)} pairs have no strength (a margin, two scores, or ratings), "
                    "which odpo asks for. Without strengths: assent dpo"
                )
