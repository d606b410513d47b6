"""The data of an objective: read as its kind of feedback, refused where nothing can be learnt from them, completed
where a loss asks for more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from assent.algorithms.preference.step_loss import Requirement, Term, needs_of
from assent.config import BinaryConfig, CustomConfig, DataConfig, Objective, PreferenceConfig, objective_of
from assent.data.dataset import Prepared, View
from assent.data.mismatch import with_mismatched
from assent.data.tree import TokenTree
from assent.data.views import binary_view, pair_view, ranking_view, rating_view
from assent.errors import DataError
from assent.train.session import Session

VIEWS: Mapping[str, View] = {"pairs": pair_view, "ranking": ranking_view, "rating": rating_view}
"""By kind of feedback; yes/no labels are read with a threshold."""
CLASS_WEIGHTS = ("desirable_weight", "undesirable_weight")


def read_feedback(session: Session, config: PreferenceConfig, row: Objective, terms: Sequence[Term]) -> Prepared:
    """The data as trees, with answers to other prompts where a loss needs these. Raises DataError for what the terms
    cannot learn from."""
    data = session.prepare(_view(config, row))
    if row.feedback == "binary":
        _require_both_kinds(config, data.train)
    for term in terms:
        if "margin" in term.inputs:
            require_strengths(config.data, data, term.name, "assent dpo")
    if Requirement.MISMATCHED not in needs_of(terms):
        return data
    seed, limit = config.train.seed, config.data.max_length
    everything = [*data.eval, *data.train]  # few held-out prompts may all be the same
    train = with_mismatched(data.train, seed, limit)
    held = with_mismatched(everything, seed, limit)[: len(data.eval)] if data.eval else []
    return replace(data, train=train, eval=held)


def _view(config: PreferenceConfig, row: Objective) -> View:
    if isinstance(config, BinaryConfig | CustomConfig) and row.feedback == "binary":
        return partial(binary_view, threshold=config.threshold)
    return VIEWS[row.feedback]


def balanced(terms: Sequence[Term], trees: Sequence[TokenTree]) -> list[Term]:
    """The terms with those class weights filled in that are None: by default both kinds of answers count the same in
    sum, so the rarer one's weight is the ratio of their numbers."""
    return [replace(term, loss=replace(term.loss, options=_balanced(term, trees))) for term in terms]


def _balanced(term: Term, trees: Sequence[TokenTree]) -> dict[str, object]:
    options = dict(term.loss.options)
    if "desirable" in term.inputs and any(options.get(name, 1) is None for name in CLASS_WEIGHTS):
        yes, no = _classes(trees)
        weights = dict(zip(CLASS_WEIGHTS, (max(1.0, no / yes), max(1.0, yes / no)), strict=True))
        options |= {name: weight for name, weight in weights.items() if options.get(name, 1) is None}
    return options


def _classes(trees: Sequence[TokenTree]) -> tuple[int, int]:
    """How many answers are desirable, how many undesirable."""
    labels = np.concatenate([tree.per_response["label"] for tree in trees])
    return int((labels == 1).sum()), int((labels == 0).sum())


def _require_both_kinds(config: PreferenceConfig, trees: Sequence[TokenTree]) -> None:
    yes, no = _classes(trees)
    if not (yes and no):
        kind, number = ("desirable", yes) if yes else ("undesirable", no)
        other = " Desirable answers alone are for: assent sft" if yes else ""
        raise DataError(
            f"{config.data.train}: all {number} answers are {kind}; {objective_of(config)} needs both kinds.{other}"
        )


def require_strengths(config: DataConfig, data: Prepared, name: str, instead: str) -> None:
    """Raises DataError where pairs have no strength, for which `name` asks; ties have none."""
    for file, trees in ((config.train, data.train), (config.eval or config.train, data.eval)):
        margins = [
            margin
            for tree in trees
            for (_, _, margin), tie in zip(tree.pairs, tree.per_pair.get("tie", [0] * len(tree.pairs)), strict=True)
            if tie < 1
        ]
        if none := sum(margin <= 0 for margin in margins):
            raise DataError(
                f"{file}: {none} of {len(margins)} pairs have no strength (a margin, two scores, or ratings), "
                f"which {name} asks for. Without strengths: {instead}"
            )
