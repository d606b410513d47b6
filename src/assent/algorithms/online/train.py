"""Learning from rewards of sampled responses: every method of `config.METHODS`, with or without a critic.

One rollout of `train.batch_size` prompts goes through its stages, and is then trained on for `rollout.epochs` passes of
`rollout.minibatches` optimiser steps each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from assent import distributed
from assent.algorithms.drift import drift_series, rollouts_of
from assent.algorithms.measured import Measures, wanted
from assent.algorithms.online.about import about_online
from assent.algorithms.online.coefficients import Coefficients
from assent.algorithms.online.critics import check_critic, critic_model
from assent.algorithms.online.evaluation import evaluate
from assent.algorithms.online.ewma import EwmaPolicy
from assent.algorithms.online.method import OnlineMethod, method_with
from assent.algorithms.online.models import ForwardCache, Models
from assent.algorithms.online.rollouts import Rollouts
from assent.algorithms.online.samples import KL_ANCHOR
from assent.algorithms.online.sampling import sampler_of
from assent.algorithms.online.step_loss import forward, mixed_loss, step_loss
from assent.config import has_reference
from assent.config.online import OnlineConfig, PtxConfig
from assent.data.dataset import Prepared, prepare, summary
from assent.data.packing import Counts, EpochStream, Mixed, Window, order
from assent.data.records import Example
from assent.data.tree import TreeBatch
from assent.data.views import answered_view, prompt_view, sft_view
from assent.deferred import Deferred
from assent.models.annotate import BatchColumns, columns_of
from assent.models.policy import Policy
from assent.models.references import FollowingReference
from assent.rewards.build import needs_answers, reward_source
from assent.rewards.group import GroupReward
from assent.rewards.pool import end_workers
from assent.rollout.rollout import Rollout, pack
from assent.train.alarm import alarm_of
from assent.train.beforehand import try_rewards
from assent.train.loop import Loss, run
from assent.train.references import frozen_reference
from assent.train.run import RunResult
from assent.train.session import Session, open_session

log = logging.getLogger(__name__)

MISMATCH = 0.1
"""Mean distance of the sampler's log-probs from the trainer's, with the same weights, from which a person is warned."""


class Online:
    """The state between optimiser steps is: that of the rollouts, the one that is trained on, how many of its
    minibatches are done, the number of steps taken, and the coefficients."""

    def __init__(
        self,
        session: Session,
        models: Models,
        rollouts: Rollouts,
        config: OnlineConfig,
        *,
        ewma: EwmaPolicy | None = None,
        mixed: EpochStream | None = None,
    ) -> None:
        self.session, self.models, self.rollouts, self.config = session, models, rollouts, config
        self.method = rollouts.method
        self.ewma, self.mixed = ewma, mixed
        self.modules: dict[str, torch.nn.Module] = {"policy": models.policy}
        if models.critic is not None:
            self.modules["critic"] = models.critic
        self.coefficients = self.method.start
        self.cache = ForwardCache()
        self.number = 0
        self.done = 0
        self.buffer: Rollout | None = None
        self.left = False
        self.policy_kls: list[float] = []
        self.warned = False
        self.taken = 0

    @property
    def averages(self) -> list[Policy]:
        """The models that follow the policy."""
        following = (self.ewma, self.models.average)
        return [one.model for one in following if one is not None and one.model is not None]

    @property
    def steps_per_rollout(self) -> int:
        return self.config.rollout.epochs * self.config.rollout.minibatches

    # ---- where windows come from

    def windows(self) -> Iterator[Window | None]:
        metrics: dict[str, float] = {}
        samples: tuple[dict[str, object], ...] = ()
        while True:
            if self._used_up:
                self._next_rollout()
            critic = self.method.critic
            warming = critic is not None and self.number < critic.warmup
            self.coefficients = replace(self.coefficients, warming=warming)
            if self.done == 0:
                self.rollouts.sample()
                yield None
                made = self.rollouts.make(
                    self.coefficients.kl, steps=self.steps_per_rollout, warming=warming, cache=self.cache
                )
                self.buffer, samples = made.rollout, made.samples
                metrics = made.metrics | self._follow_rollout(made.rollout, made.metrics)
                self.rollouts.look_ahead()
                if not len(made.rollout):  # nothing could be compared
                    self._next_rollout()
                    continue
            minibatch = self._minibatch(self.done)
            self.done += 1
            if len(minibatch):  # there may be fewer answers than minibatches
                yield replace(self._window(minibatch), metrics=metrics, samples=samples)
                metrics, samples = {}, ()

    @property
    def _used_up(self) -> bool:
        """Whether the rollout has been trained on as long as it should be."""
        return self.left or self.done >= self.steps_per_rollout

    def _minibatch(self, number: int) -> Rollout:
        assert self.buffer is not None
        minibatches = self.config.rollout.minibatches
        if minibatches == 1:
            return self.buffer
        epoch, part = divmod(number, minibatches)
        shuffled = order(
            len(self.buffer.prompts),
            seed=self.config.train.seed,
            epoch=self.number * self.config.rollout.epochs + epoch,
            stream=1,
        )
        return self.buffer.of_prompts(np.array_split(shuffled, minibatches)[part])

    def _window(self, rollout: Rollout) -> Window:
        """The minibatch for this rank, and beside it the data that are mixed in."""
        micro_tokens, world, flat = self.config.train.micro_tokens, self.session.world, not self.models.tree
        if moving := self._moving():
            temperature = self.config.sampling.temperature
            columns = columns_of(
                rollout.trees(),
                lambda batch: BatchColumns(
                    {name: model.logprobs(batch, temperature) for name, model in moving.items()}
                ),
                micro_tokens=micro_tokens,
                world=world,
                flat=flat,
            )
            known: dict[str, Any] = {**columns.per_token}
            rollout = replace(rollout, **known)
        made = pack(rollout, micro_tokens=micro_tokens, flat=flat, world=world)
        if self.mixed is None or self.coefficients.warming:
            return made
        extra = next(iter(self.mixed))
        weight = self.config.ptx.coef / extra.counts.tokens
        loss = partial(mixed_loss, policy=self.models.policy, weight=weight)
        return replace(made, mixed=Mixed(extra.batches, loss))

    def _moving(self) -> dict[str, EwmaPolicy | FollowingReference]:
        """Whose log-probs a step needs as they are now: column -> model. The rollout's own of the KL's anchor are those
        before its first step, which is what a KL in the reward means; one in the loss, or a loss of comparisons, moves
        on with the anchor."""
        found: dict[str, EwmaPolicy | FollowingReference] = {} if self.ewma is None else {"ewma": self.ewma}
        kl, average = self.config.kl, self.models.average
        in_loss = self.method.comparison is not None or (kl.place == "loss" and kl.estimator != "full")
        if average is not None and in_loss and self.done > 1:
            found["anchor"] = average
        return found

    # ---- which loss

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        passed = self.cache.take(batch)
        if passed is None:
            passed = forward(batch, self.models, self.method, self.coefficients, self.config)
        return step_loss(batch, passed, self.method, self.coefficients, self.config, counts)

    # ---- after a step, after a rollout

    def stepped(self, metrics: Mapping[str, float]) -> None:
        self.taken += 1
        self.rollouts.step = self.taken
        if "approx_kl" in metrics:  # the policy was trained
            self._follow_step(metrics)
        if self._used_up:
            self._next_rollout()

    def _follow_step(self, metrics: Mapping[str, float]) -> None:
        """What follows from the policy KL of the step."""
        self._watch(metrics["mismatch"])
        target = self.config.rollout.target_kl
        self.policy_kls.append(metrics["approx_kl"])
        self.left = target is not None and metrics["approx_kl"] > target
        if self.ewma is not None:
            self.ewma.follow()
        if self.models.average is not None:
            self.models.average.follow(self.taken)

    def _watch(self, mismatch: float) -> None:
        """Warns a person, once, where sampler and trainer have the same weights and yet differ much."""
        if mismatch > MISMATCH and not self.config.rollout.ahead and not self.warned:
            self.warned = True
            log.warning(
                f"rollout {self.number + 1}: sampler and trainer differ by {mismatch:.2g} nats a token (expected below "
                f"{MISMATCH:g}) although their weights are the same. Do they run the same model, in like precision? "
                "--rollout.correction bounds what it does to the gradient."
            )

    def _next_rollout(self) -> None:
        last = self.policy_kls[-self.config.rollout.minibatches :]
        policy_kl = float(np.mean(last)) if last else None
        self.coefficients = self.coefficients.after_steps(self.method.penalty_target, policy_kl)
        self.number, self.done, self.left = self.number + 1, 0, False
        self.buffer, self.policy_kls = None, []

    def _follow_rollout(self, rollout: Rollout, metrics: Mapping[str, float]) -> dict[str, float]:
        """The coefficients as they are, for the logs; that of the KL moves on by what this rollout tells."""
        shown: dict[str, float] = {}
        if self.method.penalised:
            shown["penalty"] = self.coefficients.penalty
        if self.config.kl.target is not None and "kl" in metrics:  # else nothing was sampled
            shown["kl_coef"] = self.coefficients.kl
            responses = len(rollout.sampled())
            kl = metrics.get(KL_ANCHOR, metrics["kl"])
            self.coefficients = self.coefficients.after_rollout(self.config.kl, kl, responses)
        return shown

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        buffer = self.buffer
        return {
            "rollouts": self.rollouts.state_dict(),
            "number": self.number,
            "done": self.done,
            "taken": self.taken,
            "buffer": None if buffer is None else Deferred(buffer.state_dict),
            "moved": list(self.policy_kls),
            "kl_coef": self.coefficients.kl,
            "penalty": self.coefficients.penalty,
            "ewma": self.ewma.state_dict() if self.ewma is not None else None,
            "average": self.models.average.state_dict() if self.models.average is not None else None,
            "mixed": self.mixed.state_dict() if self.mixed is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rollouts.load_state_dict(state["rollouts"])
        self.number, self.done, self.taken = int(state["number"]), int(state["done"]), int(state["taken"])
        self.rollouts.step = self.taken
        self.buffer = None if state["buffer"] is None else Rollout.from_state(state["buffer"])
        self.policy_kls = [float(value) for value in state["moved"]]
        self.coefficients = Coefficients(float(state["kl_coef"]), float(state["penalty"]))
        if self.ewma is not None:
            self.ewma.load_state_dict(state["ewma"])
        if self.models.average is not None:
            self.models.average.load_state_dict(state["average"])
        if self.mixed is not None:
            self.mixed.load_state_dict(state["mixed"])


def set_up(session: Session, config: OnlineConfig) -> tuple[Online, Prepared]:
    """The algorithm as its command makes it, and its data."""
    method = method_with(config)
    distributed.on_main(lambda: check_critic(config, method.critic))
    teacher, distilled = config.distill.teacher, method.distilled
    if teacher is not None:
        session.check_teacher(teacher)
    wants_rows = config.given.source != "none" or config.shaping.baseline == "row" or needs_answers(config)
    wants_rows = wants_rows or (distilled is not None and distilled.on_policy < 1)
    data = session.prepare(answered_view if wants_rows else prompt_view, reserve=config.sampling.max_new_tokens)
    source = reward_source(session, config)
    source.check([*data.train_examples, *data.eval_examples])
    critic = method.critic
    policy = session.policy(value_head=critic is not None and critic.shared)
    models = Models(
        policy=policy,
        critic=None if critic is None or critic.shared else critic_model(session, config, critic),
        reference=frozen_reference(session, policy, config.kl.reference) if has_reference(config) else None,
        teacher=None if teacher is None else session.frozen_policy(teacher),
    )
    return assemble(session, models, source, data.train_examples, config, method), data


def train_online(config: OnlineConfig) -> RunResult:
    """Optimises `config.model` against the rewards that `config.rewards` names on the prompts of `config.data`; the
    result is `config.out`/model, and where there is a critic of its own `config.out`/critic."""
    rows = wanted(config.eval)
    session = open_session(config)
    algorithm, data = set_up(session, config)
    measures = Measures(rows, data.eval_examples, reference=algorithm.models.reference is not None)
    method, rollouts = algorithm.method, algorithm.rollouts
    if method.learning_rate != config.optim.lr:
        average = "" if method.ewma is None else f", ewma {method.ewma:.4g}"
        log.info(f"For batches of {config.train.batch_size}: learning rate {method.learning_rate:.3g}{average}.")
    own = None if method.critic is None else method.critic.lr
    policy, critic = algorithm.models.policy, algorithm.models.critic
    per_epoch = -(-len(data.train_examples) // config.train.batch_size)
    total = session.total_steps(per_epoch * algorithm.steps_per_rollout)
    alarm = alarm_of(config, "rollout", rollouts_of(config, total, algorithm.steps_per_rollout))
    rollouts.drift = drift_series(session, config, alarm, data.train_examples)
    sources = [rollouts.source, *([rollouts.drift.source] if rollouts.drift and rollouts.drift.source else [])]
    try:
        for source in sources:
            try_rewards(session, source, data.train_examples, rollouts.progress, config.rollout.responses)
        return run(
            session,
            algorithm,
            total=total,
            evaluate=(lambda: evaluate(rollouts, data.eval_examples, measures)) if data.eval_examples else None,
            about=about_online(algorithm, total),
            final={"model": policy} if critic is None else {"model": policy, "critic": critic},
            averages=algorithm.averages,
            learning_rates={"policy": method.learning_rate, "critic": own or method.learning_rate},
            alarm=alarm,
        )
    finally:
        end_workers()


def assemble(
    session: Session,
    models: Models,
    source: GroupReward,
    examples: Sequence[Example],
    config: OnlineConfig,
    method: OnlineMethod | None = None,
) -> Online:
    """The algorithm over these models, rewards and prompts, with what else `config` asks for."""
    method = method or method_with(config)
    sampler = sampler_of(session, models, config, method.opponent)
    if config.kl.anchor == "ema":
        twin = _twin(session, config)
        models = replace(models, average=FollowingReference(models.policy, twin, config.kl.anchor_rate, every=1))
    return Online(
        session,
        models,
        Rollouts(session, models, source, sampler, examples, config, method),
        config,
        ewma=None if method.ewma is None else EwmaPolicy(_twin(session, config), models.policy, method.ewma),
        mixed=None if config.ptx.data is None else _mixed(session, models, config.ptx),
    )


def _twin(session: Session, config: OnlineConfig) -> Policy:
    """Another load of the policy, not trained by itself."""
    return session.reference(None, adapters=config.model.lora.rank > 0)


def _mixed(session: Session, models: Models, config: PtxConfig) -> EpochStream:
    """Windows of the rows that are mixed in."""
    assert config.data is not None
    rows = replace(session.config.data, train=config.data, eval=None, eval_fraction=0.0, columns={}, format="auto")
    data = distributed.on_main(lambda: prepare(rows, session.chat, sft_view))
    log.info(f"Mixed in: {summary(data.report)}")
    return session.stream(data.train, models, batch_size=config.batch_size)
