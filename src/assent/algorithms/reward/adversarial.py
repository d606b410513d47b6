"""What adversarial preference optimisation adds to the training of a reward model (arXiv 2311.08045): golden answers
preferred to a policy's own, and the choices of an older reward model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from assent import distributed
from assent.config import AdversarialSection, RewardConfig
from assent.data.dataset import Prepared, prepare, summary
from assent.data.golden import GoldenView, by_prompt, samples_view, with_share
from assent.data.tree import TokenTree
from assent.errors import ConfigError, ModelError, NonFiniteError
from assent.models.annotate import BatchColumns, columns_of
from assent.models.heads import WantedHead
from assent.models.policy import ScoreModel
from assent.models.reward_head import shown
from assent.models.shared_ids import check_shared_ids
from assent.train.facts import Line, plural
from assent.train.session import Session

log = logging.getLogger(__name__)

OLD = "old"
"""The field [S] with what the older reward model says."""


def golden_trees(session: Session, section: AdversarialSection) -> tuple[list[TokenTree], Line]:
    """Golden answers with the samples of their prompts, as trees of pairs, and what is to be said of them. The prompts
    that the run holds out are not among them. Raises DataError where no golden answer has a sample to be told from."""
    assert section.golden is not None and section.samples is not None
    own, golden, samples = session.config.data, section.golden, section.samples
    rows = replace(own, eval=None, eval_fraction=0.0, columns={}, format="auto", turns="all")

    def read() -> tuple[list[TokenTree], Line]:
        sampled = prepare(replace(rows, train=samples), session.chat, samples_view)
        log.info(f"Samples: {_counted(sampled.report)}")
        view = GoldenView(by_prompt(sampled.train_examples), own.eval_fraction if own.eval is None else 0.0)
        data = prepare(replace(rows, train=golden), session.chat, view)
        log.info(f"Golden answers: {summary(data.report)}")
        trees = with_share(data.train)
        pairs = sum(len(tree.pairs) for tree in trees)
        same = f"; {plural(view.same, 'sample is', 'samples are')} equal to a golden answer and left out"
        text = f"{plural(len(trees), 'golden answer')} against {plural(pairs, 'sample')}, weight {section.coef:g}"
        return trees, Line("Adversary", text + (same if view.same else ""))

    return distributed.on_main(read)


def _counted(report: Mapping[str, Any]) -> str:
    """What became of single answers, of which a row has several."""
    (file,), read = report["files"], report["train"]
    left = [
        f"{count:,} of its answers or rows left out ({why})"
        for why, count in {**file["skipped"], **file["unused"]}.items()
    ]
    return "; ".join([f"{file['file']}: {read['responses']:,} answers to {read['prompts']:,} prompts", *left])


def with_old_rewards(session: Session, config: RewardConfig, data: Prepared) -> Prepared:
    """The data with what the older reward model says of each response (`OLD`). The model itself is not kept. Raises
    ModelError where it has no trained head, or reads other tokens; ConfigError where it has several outputs."""
    path, model = config.old.path, config.model
    if path is not None:
        distributed.on_main(
            lambda: check_shared_ids(
                "--old.path",
                path,
                session.tokenizer,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
            )
        )
    only = config.reward.output if path is None else None
    try:
        scorer = session.score_model(path, trainable=False, new_head=False, head=WantedHead(only=only))
    except ModelError as error:
        raise ModelError(f"--old.coef {config.old.coef:g} needs a trained reward model. {error}") from error
    if len(scorer.rule) > 1:
        raise ConfigError(
            f"--old.path {path or model.path} has {len(scorer.rule)} outputs ({shown(scorer.rule.names)}), and choices "
            "between two answers are compared by one. Give a reward model of one output."
        )
    return replace(data, train=_annotated(session, scorer, data.train), eval=_annotated(session, scorer, data.eval))


def _annotated(session: Session, scorer: ScoreModel, trees: list[TokenTree]) -> list[TokenTree]:
    if not trees:
        return trees
    found = columns_of(
        trees,
        lambda batch: BatchColumns(per_response={OLD: scorer.rewards(batch).reward}),
        micro_tokens=session.config.train.micro_tokens,
        flat=not scorer.tree,
        world=session.world,
    ).per_response[OLD]
    if not np.isfinite(found).all():
        raise NonFiniteError(f"The older reward model gives {found[~np.isfinite(found)][0]} for an answer of the data.")
    parts = np.split(found, np.cumsum([len(tree.branches) for tree in trees])[:-1])
    return [replace(tree, per_response={**tree.per_response, OLD: own}) for tree, own in zip(trees, parts, strict=True)]
