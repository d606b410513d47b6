"""What a run says of its objective before the first step: what it adds, and what it compares the policy with."""

from __future__ import annotations

from collections.abc import Sequence

from assent.algorithms.preference.step_loss import Term
from assent.config import ReferenceConfig
from assent.data.packing import EpochStream
from assent.models.references import FollowingReference, Reference
from assent.train.facts import Line, number
from assent.train.opening import about_stream


def about(
    terms: Sequence[Term], reference: Reference | None, section: ReferenceConfig | None, stream: EpochStream, total: int
) -> list[Line]:
    """`section` says where the reference is from; both are None for an objective without one."""
    more = [f"{number(term.weight)} x {term.name}" for term in terms[1:]]
    return [
        *([Line("Plus", ", ".join(more))] if more else []),
        Line("Reference", _reference(reference, section)),
        about_stream(stream, total),
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
