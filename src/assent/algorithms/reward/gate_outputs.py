"""Stage 1 of a gated mixture: outputs for absolute ratings, those of a trained head or linear heads fitted to ratings
in closed form; and length taken out of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from assent import distributed
from assent.algorithms.reward.gate_tables import Tables, columns
from assent.config import DataConfig, GateSection, RewardGateConfig
from assent.data.attributes import AttributeView, names_of, with_ratings_field
from assent.data.dataset import Prepared, prepare, prompt_hash, summary
from assent.data.tree import TreeBatch
from assent.errors import ConfigError, DataError
from assent.losses.decorrelate import Decorrelation, decorrelate
from assent.losses.linear import ridge_heads
from assent.models.annotate import BatchColumns
from assent.models.gated import GatedScoreModel
from assent.models.heads import WantedHead
from assent.models.mixtures import output_names
from assent.models.policy import ScoreModel
from assent.models.reward_head import HeadRule, shown
from assent.models.sources import resolve
from assent.names import suggestion
from assent.train.facts import Line, measured, number, plural, rounded
from assent.train.session import Session

log = logging.getLogger(__name__)

FEWEST = 10
"""Responses that each attribute must be rated for."""


# ---- which outputs


def check_source(config: RewardGateConfig) -> None:
    """Raises ConfigError where there is nothing to weigh, or two heads to choose from."""
    path, gate = config.model.path, config.gate
    names = output_names(resolve(path, config.model.revision))
    if gate.ratings is not None:
        if len(names) > 1:
            raise ConfigError(
                f"{path} has {len(names)} outputs ({shown(names)}), which --gate.ratings would replace. Leave "
                "--gate.ratings out, or give a model without them."
            )
        return
    ways = "Give --gate.ratings FILE (rated answers) to fit linear heads, or a model of assent reward-attributes."
    if not names:
        raise ConfigError(f"{path} has no reward head, so there are no outputs to weigh. {ways}")
    if len(names) == 1:
        raise ConfigError(f"{path} has one output ({names[0]}): nothing to weigh. {ways}")


def outputs_of(
    session: Session, config: RewardGateConfig, kind: Callable[..., GatedScoreModel]
) -> tuple[GatedScoreModel, Line]:
    """The frozen model of this `kind` with the outputs that are weighed, and what is to be said of them. Raises
    ConfigError where the output for verbosity is none of them, DataError as `fit_heads`."""
    path, section = config.model.path, config.gate
    if section.ratings is None:
        scorer = session.score_model(path, trainable=False, new_head=False, head=WantedHead(kind=kind))
        assert isinstance(scorer, GatedScoreModel)
        _check_verbosity(section, scorer.rule.names)
        return scorer, Line("Outputs", f"those of {path}: {shown(scorer.rule.names)}")
    names, rated = _ratings(session, section.ratings)
    _check_verbosity(section, names)
    head = WantedHead(HeadRule(names, ()), renewed=True, kind=kind)
    scorer = session.score_model(path, trainable=False, new_head=True, head=head)
    assert isinstance(scorer, GatedScoreModel)
    return scorer, fit_heads(session, scorer, rated)


def _ratings(session: Session, file: str) -> tuple[tuple[str, ...], Prepared]:
    """The attributes that the file rates, and its rows."""
    own = session.config.data
    limits = {name: getattr(own, name) for name in ("max_length", "long", "strict", "max_bad", "turns", "rendered")}
    config = DataConfig(file, **limits)
    try:
        read = distributed.on_main(lambda: prepare(config, session.chat, AttributeView()))
    except DataError as error:
        raise DataError(
            f"--gate.ratings: {error}\nThe options --data.format, columns, split and limit are about the pairs; "
            "ratings of any attributes can be written in assent's own shape (docs/formats.md)."
        ) from error
    names = names_of(read.train_examples)
    if len(names) < 2:
        raise DataError(f"--gate.ratings {file} rates one attribute ({names[0]}): nothing to weigh.")
    log.info(f"Ratings: {summary(read.report)}")
    return names, replace(read, train=with_ratings_field(read.train))


def _check_verbosity(section: GateSection, names: Sequence[str]) -> None:
    if section.decorrelate and section.verbosity not in names:
        raise ConfigError(
            f"--gate.verbosity {section.verbosity}: no output is called so.{suggestion(section.verbosity, names)} "
            f"There are: {shown(names)}. Name the one that stands for length, or leave length in: "
            "--gate.no_decorrelate"
        )


def fit_heads(session: Session, scorer: ScoreModel, rated: Prepared) -> Line:
    """Puts linear heads, fitted to the ratings, in the place of the scorer's. Raises DataError where an attribute has
    nothing to fit."""
    trees, names = rated.train, scorer.rule.names
    ratings = np.concatenate([tree.per_response["ratings"] for tree in trees])
    groups = np.repeat([prompt_hash(e) for e in rated.train_examples], [len(tree.branches) for tree in trees])
    for k, name in enumerate(names):
        given = ratings[~np.isnan(ratings[:, k]), k]
        if len(given) < FEWEST or len(set(groups[~np.isnan(ratings[:, k])])) < 2:
            raise DataError(
                f"--gate.ratings: '{name}' has {plural(len(given), 'rating')}; {FEWEST} are needed, of answers to at "
                "least two prompts."
            )
        if np.ptp(given) == 0:
            raise DataError(
                f"--gate.ratings: '{name}' is {given[0]:g} in all {len(given):,} ratings, so there is nothing to learn "
                "of it. Leave the attribute out of the rows."
            )

    def states(batch: TreeBatch) -> BatchColumns:
        return BatchColumns(per_response={"states": scorer(batch, batch.last, states=True)[1]})

    found = ridge_heads(
        columns(session, scorer, trees, states)["states"], ratings, groups, seed=session.config.train.seed
    )
    with torch.no_grad():
        head, new = scorer.head, torch.from_numpy(found.weight)
        distributed.local_part(head.weight).copy_(distributed.local_part(distributed.cut_like(new, head.weight)))
        if head.bias is not None:
            distributed.local_part(head.bias).zero_()
    parts = [
        f"{name} (R² {measured(found.r2[k])} held out, penalty {number(found.alpha[k])}, {rounded(found.count[k])} "
        "ratings)"
        for k, name in enumerate(names)
    ]
    return Line("Outputs", f"linear heads on frozen states: {', '.join(parts)}")


# ---- length


def without_length(tables: Tables, rule: HeadRule, section: GateSection) -> tuple[np.ndarray, Line]:
    """The transform that takes verbosity out of the other outputs, measured on the training pairs' answers. Raises
    DataError for an output that is constant on them."""
    outputs = tables.outputs.cpu().numpy()
    for k, name in enumerate(rule.names):
        if np.ptp(outputs[:, k]) == 0:
            raise DataError(
                f"--data.train: the output '{name}' of the reward model is {outputs[0, k]:g} for all answers, so it "
                "tells none apart. Give a model that was trained on it, or leave the attribute out."
            )
    if not section.decorrelate:
        return np.eye(len(rule)), Line("Length", "left in (--gate.no_decorrelate)")
    verbosity = rule.names.index(section.verbosity)
    found = decorrelate(outputs, verbosity, limit=section.limit)
    return found.matrix, _about_length(found, rule, verbosity, section.limit)


def _about_length(found: Decorrelation, rule: HeadRule, verbosity: int, limit: float) -> Line:
    others = [k for k in range(len(rule)) if k != verbosity]
    said = {
        k: f"{rule.names[k]} ({number(found.penalty[k])} of it: rank correlation {found.before[k]:.2f} -> "
        f"{found.after[k]:.2f})"
        for k in others
        if found.penalty[k] > 0
    }
    if found.unmet:
        left = [f"{rule.names[k]} (rank correlation {found.after[k]:.2f})" for k in found.unmet]
        log.warning(f"Length stays in {', '.join(left)}: no penalty brings it to --gate.limit {limit:g}.")
    name = rule.names[verbosity]
    if not said:
        return Line("Length", f"no output rises with {name} (rank correlation at most {limit:g}); {name} is left out")
    return Line("Length", f"{name} is left out, and taken out of {', '.join(said.values())}")
