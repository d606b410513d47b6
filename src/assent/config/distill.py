"""Options of distillation: a teacher whose predictions the policy learns, on answers of its own."""

from __future__ import annotations

from dataclasses import dataclass

from assent.config.ranges import Named, Positive, Share


@dataclass(frozen=True)
class DistillConfig:
    """A teacher in the reward (`assent gkd` has it in the loss)."""

    teacher: Named | None = None
    """Folder or hub id of a model with the policy's tokenizer (frozen); default: there is none. `coef` x (log-prob
    under the policy - log-prob under the teacher) is subtracted from the reward of each sampled token; in gkd `coef` x
    the divergence of their predictions, over the whole vocabulary, is added to its loss. Other rewards may be left
    out."""
    coef: Positive = 1.0
    """Weight of the teacher's part; rewards that are named beside it have those of rewards.weights."""


@dataclass(frozen=True)
class GKDDistill(DistillConfig):
    """A teacher in the loss (arXiv 2306.13649)."""

    beta: Share = 1.0
    """Which divergence. 0: KL(teacher || policy), forward; 1: KL(policy || teacher), reverse; between the two the
    generalised Jensen-Shannon divergence, from their mixture beta x teacher + (1 - beta) x policy."""
    temperature: Positive | None = None
    """What divides the logits of both models in the divergence; default: sampling.temperature."""
    on_policy: Share = 1.0
    """Share of the prompts that the policy answers (the paper's lambda). To the others, drawn anew in each rollout, the
    row's own answer is learnt from; at 0 to all, which is supervised distillation."""
