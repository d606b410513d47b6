"""What a run says of its objective before the first step: what it adds, and what it compares the policy with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assent.algorithms.own import OwnFunction
from assent.algorithms.preference.objective import described
from assent.config import ReferenceConfig
from assent.models.references import FollowingReference, Reference
from assent.train.facts import Line, number
from assent.train.opening import about_stream

if TYPE_CHECKING:
    from assent.algorithms.preference.train import Preference


def about(algorithm: Preference, section: ReferenceConfig | None, total: int) -> list[Line]:
    """`section` says where the reference is from, where there is one."""
    row, terms = algorithm.row, algorithm.terms
    own = isinstance(terms[0].loss.call, OwnFunction)
    more = [f"{number(term.weight)} x {term.name}" for term in terms[1:]]
    return [
        *([Line("Objective", described(terms[0], row))] if own else []),
        *([Line("Plus", ", ".join(more))] if more else []),
        Line("Reference", _reference(algorithm.reference, section)),
        about_stream(algorithm.stream, total),
    ]


def _reference(reference: Reference | None, section: ReferenceConfig | None) -> str:
    if reference is None or section is None:
        return "none"
    of = section.path or "the start"
    if section.mode == "cached":
        return f"log-probs of {of}, computed once"
    if isinstance(reference, FollowingReference):
        return f"a copy of {of} that moves by {number(reference.rate)} to the policy every {reference.every:,} steps"
    return "the model without its adapters" if reference.model is None else f"{of}, frozen"
