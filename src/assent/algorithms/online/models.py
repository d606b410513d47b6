"""The models of an online method, and the forward passes of theirs that one step can use again."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from assent.algorithms.online.method import Distilled
from assent.data.packing import plan
from assent.data.tree import TreeBatch
from assent.models.logprobs import Direction
from assent.models.policy import Anchor, Policy, ScoreModel, Teacher, TokenScores
from assent.models.references import FollowingReference, Reference
from assent.rollout.rollout import Rollout


@dataclass(frozen=True, slots=True)
class Models:
    """`critic` None: the method has none, or it is a value head of the policy. `reference` None: no KL. `average` is
    the policy's own, where the KL that counts is measured from that; the KL to the reference is then only logged.
    `teacher` None: nothing is distilled."""

    policy: Policy
    critic: ScoreModel | None
    reference: Reference | None
    average: FollowingReference | None = None
    teacher: Policy | None = None

    @property
    def tree(self) -> bool:
        """Whether all models can share prompts."""
        models = (self.policy, self.critic, self.reference, self.average, self.teacher)
        return all(model.tree for model in models if model is not None)

    @property
    def anchor(self) -> Reference | None:
        """What the KL that counts is measured from."""
        return self.average or self.reference

    @property
    def has_critic(self) -> bool:
        return self.critic is not None or self.policy.value_head is not None

    def values(self, batch: TreeBatch, scores: TokenScores) -> Tensor:
        """Values of the states before the trained tokens, [N]; `scores` are the policy's of the same batch."""
        if self.critic is not None:
            return self.critic.scalars(batch, batch.source)
        assert scores.values is not None
        return scores.values

    def teacher_of(self, batch: TreeBatch, distilled: Distilled | None) -> Teacher | None:
        """The teacher's predictions of the trained tokens, to be compared with the policy's as `distilled` says."""
        if self.teacher is None or distilled is None:
            return None
        return Teacher(self.teacher.anchor(batch, distilled.temperature), distilled.beta)

    def forward(
        self,
        batch: TreeBatch,
        temperature: float,
        *,
        entropy: bool,
        anchor: Anchor | None,
        direction: Direction = "reverse",
        collision: bool = False,
        teacher: Teacher | None = None,
        head_only: bool = False,
    ) -> TokenScores:
        """The policy's scores; with `anchor` KL(policy || anchor) over the whole vocabulary, or the other way round
        where `direction` is forward; with `teacher` the divergence from it. With `head_only`, gradients reach its value
        head alone."""
        return self.policy(
            batch,
            temperature,
            entropy=entropy,
            collision=collision,
            anchor=anchor,
            direction=direction,
            teacher=teacher,
            head_only=head_only,
        )


@dataclass(frozen=True, slots=True)
class Forward:
    """One micro-batch as the models see it, with gradients: the policy's scores, and the critic's values [N]."""

    scores: TokenScores
    values: Tensor | None


@dataclass(slots=True)
class ForwardCache:
    """Forward passes over a rollout, with their graphs, for the one step that is to follow: by the keys of the
    micro-batch. `keeps` decides whether there are any."""

    passes: dict[tuple[int, ...], Forward] = field(default_factory=dict)

    def take(self, batch: TreeBatch) -> Forward | None:
        """The pass over this micro-batch, which is then no longer here."""
        return self.passes.pop(batch.keys, None)


def keeps(rollout: Rollout, *, steps: int, warming: bool, micro_tokens: int, flat: bool, ranks: int) -> bool:
    """Whether the passes over a rollout are kept for its steps: where there is one step, by the same weights on the
    same micro-batches, and each rank has but one of these, so that its graph fits by itself."""
    if steps > 1 or warming:
        return False
    sizes = rollout.packed_sizes(flat).tolist()
    return len(plan(sizes, micro_tokens=micro_tokens, ranks=ranks)[0]) == 1
