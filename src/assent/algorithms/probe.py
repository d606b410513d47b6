"""Answers to a few held-out prompts at every evaluation: what training does to their length and KL."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from assent.algorithms.answers import answers_of
from assent.algorithms.drift import drift_series
from assent.algorithms.measured import Measures
from assent.algorithms.online.evaluation import answered
from assent.algorithms.online.models import Models
from assent.algorithms.online.samples import rollout_metrics, rows_of
from assent.algorithms.online.stages import Annotation
from assent.config import PreferenceConfig, ProbeConfig, SamplingConfig, SFTConfig
from assent.data.records import Example
from assent.distributed import unsharded
from assent.errors import ModelError
from assent.measures.shapes import Each, Whole
from assent.models.policy import Policy
from assent.models.references import Reference
from assent.rollout.build import torch_engine
from assent.rollout.check import check_sampling
from assent.rollout.sampler import Sampler
from assent.train.alarm import DriftAlarm, alarm_of
from assent.train.measured import Evaluation
from assent.train.session import Session

log = logging.getLogger(__name__)


def probe_alarm(config: SFTConfig | PreferenceConfig, total: int, examples: Sequence[Example]) -> DriftAlarm | None:
    """The drift alarm of a run of `total` steps whose points are its evaluations; None where they sample no answers."""
    if not examples or not config.probe.prompts:
        return None
    every = config.train.eval_every
    return alarm_of(config, "evaluation", 1 + (-(-total // every) if every else 1))


class Probe:
    """Samples one answer to each of the first `config.prompts` prompts that leave room for one, and measures them by
    `rows`. Without prompts, or with a model that the torch engine cannot sample, it finds nothing.

    Raises ConfigError where a measure needs what is not there."""

    def __init__(
        self,
        session: Session,
        policy: Policy,
        reference: Reference | None,
        prompts: Sequence[Example],
        config: ProbeConfig,
        rows: Sequence[Each | Whole] = (),
        alarm: DriftAlarm | None = None,
    ) -> None:
        self.session, self.policy, self.reference = session, policy, reference
        self.sampling = SamplingConfig(max_new_tokens=config.max_new_tokens)
        room = session.config.data.max_length - config.max_new_tokens
        unique = list({example.prompt: example for example in prompts if example.prompt}.values())
        fitting = [(e, ids) for e in unique[: 4 * config.prompts] if len(ids := session.chat.prompt_ids(e)) <= room]
        if unique and config.prompts and not fitting:
            log.warning(
                "No answers are sampled at evaluations: no held-out prompt leaves room for --probe.max_new_tokens "
                f"{config.max_new_tokens} within --data.max_length."
            )
        self.prompts = fitting[: config.prompts]
        if self.prompts and not (policy.tree and self._samples(policy)):
            self.prompts = []
        self.examples = [example for example, _ in self.prompts]
        self.measures = Measures(rows, self.examples, reference=reference is not None)
        self.needs = {need for row in rows for need in row.needs}
        self.alarm = alarm if self.prompts else None
        """None where there are no answers for it to look at."""
        if alarm is not None and self.alarm is None and (alarm.config.stop or alarm.config.held_out):
            log.warning("--alarm: the drift alarm is off, since it looks at those answers.")
        self.drift = drift_series(session, session.config, self.alarm, self.examples)

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
        world, chat = self.session.world, self.session.chat
        sampler = Sampler(world, self.policy, torch_engine(self.policy, chat), self.sampling)
        annotation = Annotation(
            1.0,
            self.session.config.train.micro_tokens,
            policy=self.reference is not None or bool(self.needs & {"log_prob", "entropy"}),
            entropy="entropy" in self.needs,
        )
        models = Models(self.policy, None, self.reference)
        rollout = answered(sampler, models, [ids for _, ids in self.prompts], annotation)
        described = rollout_metrics(rollout)
        metrics = {f"eval/{name}": described[name] for name in ("length", "unfinished")}
        if rollout.old is not None and rollout.reference is not None:
            metrics["eval/kl"] = float(np.sum(rollout.old - rollout.reference) / len(rollout))
        if self.measures.rows:
            metrics |= self.measures(answers_of(rollout, chat, "policy", self.measures.prompts))
        if self.drift is not None:
            metrics |= {f"eval/{name}": value for name, value in self.drift(rollout, self.examples).items()}
        rows = rows_of(replace(rollout, reference=None), self.examples, chat, demonstrations=False)
        return Evaluation(metrics, rows)
