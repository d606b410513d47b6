"""By whom answers are sampled: the engine of a run, and an opponent where there is one."""

from __future__ import annotations

from pathlib import Path

from assent import distributed
from assent.algorithms.online.models import Models
from assent.config.online import OnlineConfig
from assent.models.saving import stop_ids
from assent.models.vocabulary import unused_ids
from assent.rollout.build import engine_of, opponent_engine
from assent.rollout.check import check_sampling
from assent.rollout.sampler import Sampler
from assent.train.session import Session


def sampler_of(session: Session, models: Models, config: OnlineConfig, opponent: float | None) -> Sampler:
    """The engine samples from the policy's own weights, or from a copy: in another program, or where it is to sample
    while they are trained. `opponent` is the reference's weight in who else samples; None: nobody does."""
    policy = models.policy
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
    reference = None if models.reference is None else models.reference.model
    length = config.data.max_length
    return Sampler(
        session.world,
        policy,
        engine,
        config.sampling,
        owns_weights=owns_weights,
        opponent=None if opponent is None else opponent_engine(policy, reference, session.chat, opponent, length),
        reference=reference,
    )
