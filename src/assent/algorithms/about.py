"""What only an algorithm knows of a run that begins: what it learns from, and what it compares with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assent.config import ReferenceConfig
from assent.models.references import MovingReference, Reference
from assent.train.facts import Fact, number
from assent.train.opening import about_stream

if TYPE_CHECKING:
    from assent.algorithms.preference import Preference


def about_preference(algorithm: Preference, section: ReferenceConfig | None, total: int) -> list[Fact]:
    """What an objective learns from, and what it compares with."""
    terms = [f"{number(term.weight)} x {term.name}" for term in algorithm.terms[1:]]
    return [
        *([Fact("Plus", ", ".join(terms))] if terms else []),
        Fact("Reference", _reference(algorithm.reference, section)),
        about_stream(algorithm.stream, total),
    ]


def _reference(reference: Reference | None, section: ReferenceConfig | None) -> str:
    if reference is None:
        return "none"
    path = section.path if section is not None else None
    of = path or "the start"
    if section is not None and section.mode == "cached":
        return f"log-probs of {of}, computed once"
    if isinstance(reference, MovingReference):
        return f"a copy of {of} that moves by {number(reference.rate)} to the policy every {reference.every:,} steps"
    return "the model without its adapters" if reference.model is None else f"{path or 'the start'}, frozen"
