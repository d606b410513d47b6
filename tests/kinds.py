"""Which objectives have code of their own besides their loss. One of each kind stands for the rest where it is tested
what surrounds a loss; the losses are pure functions, tested one by one in tests/contract and tests/unit."""

from __future__ import annotations

from collections.abc import Hashable

from assent.algorithms.preference.objective import objective_with
from assent.algorithms.preference.step_loss import needs_of
from assent.config import OBJECTIVES, DataConfig, ModelConfig, preference_config


def kind(name: str) -> Hashable:
    """What the algorithm does otherwise for some objectives: the feedback that it reads, the reference, what it makes
    for the losses; and of what sees the whole step, the loss itself."""
    row, terms = objective_with(preference_config(name, model=ModelConfig(""), data=DataConfig(""), out=""))
    whole = row.loss if row.whole_step else None
    return (row.feedback, row.needs_reference, row.reference_mode, row.reward, whole, needs_of(terms))


KINDS = tuple({kind(name): name for name in reversed(OBJECTIVES)}.values())[::-1]
"""The first objective of each kind."""
