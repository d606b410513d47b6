"""Learning from rewards of sampled answers: every method of `assent.online`, with or without a critic.

One rollout of `train.batch_size` prompts is scored, given advantages, and then trained on for `rollout.epochs` passes
of `rollout.minibatches` optimiser steps each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assent import distributed
from assent.algorithms.about import about_online
from assent.algorithms.experience import Experience
from assent.algorithms.given import sampled_only
from assent.algorithms.models import Models
from assent.algorithms.proximal import Proximal
from assent.algorithms.rollouts import annotated, pack_state, unpack_state
from assent.algorithms.sampling import Sampler
from assent.algorithms.surrogate import PROXIMAL, PTX, Surrogate
from assent.data.dataset import Prepared, prepare, summary
from assent.data.packing import Counts, EpochStream, Window, order, window
from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch
from assent.data.views import answered_view, prompt_view, sft_view
from assent.deferred import Deferred
from assent.losses import adaptive_kl, adaptive_penalty, rescaled
from assent.models.annotate import Fields, annotate
from assent.models.policy import Policy, ScoreModel
from assent.models.saving import stop_ids
from assent.models.vocabulary import unused_ids
from assent.online import CriticConfig, OnlineConfig, PtxConfig
from assent.rewards.build import reward_source
from assent.rewards.group import GroupReward
from assent.rewards.pool import end_workers
from assent.rollout.check import check_sampling
from assent.rollout.engines import engine_of
from assent.train.beforehand import try_rewards
from assent.train.loop import Loss, add_sums, run
from assent.train.progress import say
from assent.train.references import frozen_reference
from assent.train.run import RunResult
from assent.train.session import Session, open_session

MISMATCH = 0.1
"""Mean distance of the sampler's log-probs from the trainer's, with the same weights, from which a person is told."""


class Online:
    """The state between optimiser steps is: that of the experience, the rollout that is trained on, how many of its
    minibatches are done, the number of steps taken, and the weights that controllers move."""

    def __init__(
        self,
        session: Session,
        models: Models,
        experience: Experience,
        config: OnlineConfig,
        *,
        proximal: Proximal | None = None,
        mixed: EpochStream | None = None,
    ) -> None:
        self.session, self.models, self.experience, self.config = session, models, experience, config
        self.proximal, self.mixed = proximal, mixed
        self.surrogate = Surrogate(models, config)
        self.options: Mapping[str, Any] = vars(config.loss)  # type: ignore[attr-defined]
        self.modules: dict[str, torch.nn.Module] = {"policy": models.policy}
        if models.critic is not None:
            self.modules["critic"] = models.critic
        self.rollout = 0
        self.done = 0
        self.buffer: list[TokenTree] = []
        self.left = False
        self.pending: dict[str, tuple[Any, float]] = {}
        self.moved: list[float] = []
        self.told_mismatch = False
        self.taken = 0

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
            self.surrogate.warming = self.rollout < self._critic_warmup
            if self.done == 0:
                self.experience.sample()
                yield None
                once = self.steps_per_rollout == 1 and not self.surrogate.warming
                made = self.experience.make(self.surrogate.kl_coef, keep=once)
                self.buffer, samples = made.trees, made.samples
                metrics = made.metrics | self._coefficients(made.metrics)
                self.experience.look_ahead()
            trees = self._minibatch(self.done)
            self.done += 1
            if trees:  # there may be fewer answers than minibatches
                yield replace(self._window(trees), metrics=metrics, samples=samples)
                metrics, samples = {}, ()

    @property
    def _used_up(self) -> bool:
        """Whether the rollout has been trained on as long as it should be."""
        return self.left or self.done >= self.steps_per_rollout

    @property
    def _critic_warmup(self) -> int:
        section: CriticConfig | None = getattr(self.config, "critic", None)
        return section.warmup if section is not None else 0

    def _minibatch(self, number: int) -> list[TokenTree]:
        if self.config.rollout.minibatches == 1:
            return self.buffer
        epoch, part = divmod(number, self.config.rollout.minibatches)
        shuffled = order(
            len(self.buffer),
            seed=self.config.train.seed,
            epoch=self.rollout * self.config.rollout.epochs + epoch,
            stream=1,
        )
        return [self.buffer[i] for i in np.array_split(shuffled, self.config.rollout.minibatches)[part]]

    def _window(self, trees: list[TokenTree]) -> Window:
        """The minibatch for this rank, and behind it the data that are mixed in."""
        train, world, flat = self.config.train, self.session.world, not self.models.tree
        if (proximal := self.proximal) is not None:
            temperature = self.config.sampling.temperature
            columns = annotate(
                trees,
                lambda batch: Fields({PROXIMAL: proximal.logprobs(batch, temperature)}),
                micro_tokens=train.micro_tokens,
                world=world,
                flat=flat,
            )
            trees = annotated(trees, columns)
        made = window(trees, micro_tokens=train.micro_tokens, flat=flat, rank=world.rank, ranks=world.size)
        if self.mixed is None or self.surrogate.warming:
            return made
        extra = next(iter(self.mixed))
        weight = self.config.ptx.coef / extra.counts.tokens
        batches = (replace(b, per_token={PTX: torch.full(b.label.shape, weight)}) for b in extra.batches)
        return replace(made, batches=(*made.batches, *batches))

    # ---- which loss

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        loss = self.surrogate(batch, counts)
        if "approx_kl" in loss.metrics:
            add_sums(self.pending, {name: loss.metrics[name] for name in ("approx_kl", "mismatch")})
        return loss

    # ---- after a step, after a rollout

    def stepped(self, metrics: Mapping[str, float]) -> None:
        self.taken += 1
        self.experience.step = self.taken
        if self.pending:
            self._follow()
        if self._used_up:
            self._next_rollout()

    def _follow(self) -> None:
        """What follows from how far the step has moved the policy."""
        self._watch(self.pending.get("mismatch", (0.0, 0.0)))
        if self.config.rollout.target_kl is not None or self.options.get("penalty_target") is not None:
            total, number = distributed.all_sum_dict(self.pending)["approx_kl"]
            self.moved.append(total / max(1.0, number))
            target = self.config.rollout.target_kl
            self.left = target is not None and self.moved[-1] > target
        self.pending = {}
        if self.proximal is not None:
            self.proximal.follow()

    def _watch(self, mismatch: tuple[Any, float]) -> None:
        """Tells a person, once, where sampler and trainer have the same weights and yet differ much."""
        mean = float(mismatch[0]) / max(1.0, mismatch[1])
        if mean > MISMATCH and not self.config.rollout.ahead and not self.told_mismatch and self.session.world.is_main:
            self.told_mismatch = True
            say(
                f"rollout {self.rollout + 1}: sampler and trainer differ by {mean:.2g} nats a token (expected below "
                f"{MISMATCH:g}) although their weights are the same. Do they run the same model, in like precision? "
                "--rollout.correction bounds what it does to the gradient."
            )

    def _next_rollout(self) -> None:
        target = self.options.get("penalty_target")
        if target is not None and self.moved:
            last = self.moved[-self.config.rollout.minibatches :]
            self.surrogate.penalty = adaptive_penalty(self.surrogate.penalty, float(np.mean(last)), target=target)
        self.rollout, self.done, self.left = self.rollout + 1, 0, False
        self.buffer, self.moved = [], []

    def _coefficients(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The weights of KL and penalty, for the logs; that of the KL moves on by what this rollout tells."""
        shown: dict[str, float] = {}
        if self.surrogate.loss_name == "ppo_penalty":
            shown["penalty"] = self.surrogate.penalty
        if (target := self.config.kl.target) is not None:
            shown["kl_coef"] = self.surrogate.kl_coef
            answers = sum(len(tree.branches) for tree in sampled_only(self.buffer))
            self.surrogate.kl_coef = adaptive_kl(
                self.surrogate.kl_coef, metrics["kl"], target=target, horizon=self.config.kl.horizon, responses=answers
            )
        return shown

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        buffer = self.buffer
        return {
            "experience": self.experience.state_dict(),
            "rollout": self.rollout,
            "done": self.done,
            "taken": self.taken,
            "buffer": Deferred(lambda: pack_state(buffer)) if self.done else None,
            "moved": list(self.moved),
            "kl_coef": self.surrogate.kl_coef,
            "penalty": self.surrogate.penalty,
            "proximal": self.proximal.state_dict() if self.proximal is not None else None,
            "mixed": self.mixed.state_dict() if self.mixed is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.experience.load_state_dict(state["experience"])
        self.rollout, self.done, self.taken = int(state["rollout"]), int(state["done"]), int(state["taken"])
        self.experience.step = self.taken
        self.buffer = unpack_state(state["buffer"]) if state["buffer"] is not None else []
        self.moved = [float(value) for value in state["moved"]]
        self.surrogate.kl_coef, self.surrogate.penalty = float(state["kl_coef"]), float(state["penalty"])
        if self.proximal is not None:
            self.proximal.load_state_dict(state["proximal"])
        if self.mixed is not None:
            self.mixed.load_state_dict(state["mixed"])


def set_up(session: Session, config: OnlineConfig) -> tuple[Online, Prepared]:
    """The algorithm as its command makes it, and its data."""
    wants_rows = config.given.source != "none" or config.shaping.baseline == "row"
    data = session.prepare(answered_view if wants_rows else prompt_view, reserve=config.sampling.max_new_tokens)
    source = reward_source(session, config)
    source.check([*data.train_examples, *data.eval_examples])
    section: CriticConfig | None = getattr(config, "critic", None)
    policy = session.policy(value_head=section is not None and section.shared)
    models = Models(
        policy=policy,
        critic=None if section is None or section.shared else _critic(session, config, section),
        reference=frozen_reference(session, policy, config.kl.reference) if config.kl.coef > 0 else None,
    )
    return assemble(session, models, source, data.train_examples, config), data


def train_online(config: OnlineConfig) -> RunResult:
    """Optimises `config.model` against the rewards that `config.rewards` names on the prompts of `config.data`; the
    result is `config.out`/model, and where there is a critic of its own `config.out`/critic."""
    session = open_session(config)
    algorithm, data = set_up(session, config)
    rollouts = -(-len(data.train_examples) // config.train.batch_size)
    lr, decay = _rates(config)
    if lr != config.optim.lr and session.world.is_main:
        average = "" if decay is None else f", ewma {decay:.4g}"
        say(f"For batches of {config.train.batch_size}: learning rate {lr:.3g}{average}.")
    own = getattr(config, "critic", CriticConfig()).lr
    experience = algorithm.experience
    policy, critic = algorithm.models.policy, algorithm.models.critic
    total = session.total_steps(rollouts * algorithm.steps_per_rollout)
    try:
        try_rewards(session, experience.source, data.train_examples, experience.progress, config.rollout.responses)
        return run(
            session,
            algorithm,
            total=total,
            evaluate=(lambda: experience.evaluate(data.eval_examples)) if data.eval_examples else None,
            about=about_online(algorithm, total),
            final={"model": policy} if critic is None else {"model": policy, "critic": critic},
            averages=[algorithm.proximal.model] if algorithm.proximal is not None else [],
            learning_rates={"policy": lr, "critic": own or lr},
        )
    finally:
        end_workers()


def assemble(
    session: Session, models: Models, source: GroupReward, examples: Sequence[Example], config: OnlineConfig
) -> Online:
    """The algorithm over these models, rewards and prompts, with what else `config` asks for."""
    experience = Experience(session, models, source, _sampler(session, models.policy, config), examples, config)
    _, decay = _rates(config)
    return Online(
        session,
        models,
        experience,
        config,
        proximal=None if decay is None else Proximal(_twin(session, config), models.policy, decay),
        mixed=None if config.ptx.data is None else _mixed(session, models, config.ptx),
    )


def _critic(session: Session, config: OnlineConfig, section: CriticConfig) -> ScoreModel:
    if section.start == "reward":
        return session.score_model(config.rewards.model[0], trainable=True, new_head=False)
    return session.score_model(None if section.start == "policy" else section.start, trainable=True, new_head=True)


def _twin(session: Session, config: OnlineConfig) -> Policy:
    """Another load of the policy, not trained by itself."""
    return session.reference(None, adapters=config.model.lora.rank > 0)


def _sampler(session: Session, policy: Policy, config: OnlineConfig) -> Sampler:
    """The engine samples from the policy's own weights, or from a copy: in another program, or where it is to sample
    while they are trained."""
    owns_weights = config.rollout.ahead or config.engine.name != "torch"
    copies = owns_weights and config.engine.name == "torch"
    if config.engine.name == "torch":
        with distributed.unsharded(policy):
            check_sampling(policy.model, config.data.max_length)
    engine = engine_of(
        session.plain_policy() if copies else policy,
        config.engine,
        stop_ids(session.chat, policy.plain.generation_config),
        config.sampling,
        max_length=config.data.max_length,
        folder=session.folder.path / "engine" if owns_weights and not copies else Path(),
        unused=unused_ids(policy.plain, session.tokenizer),
        rank=session.world.rank,
        ranks=session.world.size,
    )
    return Sampler(session, policy, engine, config.sampling, owns_weights=owns_weights)


def _mixed(session: Session, models: Models, config: PtxConfig) -> EpochStream:
    """Windows of the rows that are mixed in."""
    assert config.data is not None
    rows = replace(session.config.data, train=config.data, eval=None, eval_fraction=0.0, columns={}, format="auto")
    data = distributed.on_main(lambda: prepare(rows, session.chat, sft_view))
    if session.world.is_main:
        say(f"Mixed in: {summary(data.report)}")
    return session.stream(data.train, models, batch_size=config.batch_size)


def _rates(config: OnlineConfig) -> tuple[float, float | None]:
    """Learning rate and decay of the averaged policy, for this run's batch."""
    options = vars(config.loss)  # type: ignore[attr-defined]
    lr, decay, tuned = config.optim.lr, options.get("ewma"), options.get("tuned_batch")
    if tuned is None or tuned == config.train.batch_size:
        return lr, decay
    return rescaled(lr, decay, ratio=config.train.batch_size / tuned)
