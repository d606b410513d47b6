"""How far a reward model can be trusted that has just been trained: the measures of `assent trust` on its held-out
data, made smaller."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from assent.data.dataset import Prepared
from assent.data.records import Example
from assent.errors import UserError
from assent.measures.trust import as_json, measure
from assent.measures.verdicts import findings, summary
from assent.models.policy import ScoreModel
from assent.rewards.group import Scores
from assent.rewards.judged import RATINGS, failures, judged, sensitivities
from assent.rewards.model import ModelReward
from assent.rewards.scoring import score_examples
from assent.train.closing import Appraisal
from assent.train.session import Session

log = logging.getLogger(__name__)

MOST = 2000
"""Held-out prompts that are looked at; of more, so many drawn by chance."""
PROBES = 32
"""Prompts whose answers are edited."""
RESAMPLES = 200


def appraise(session: Session, scorer: ScoreModel, data: Prepared) -> Appraisal | None:
    """The measures of the weights as they are, on held-out examples; None where there are none, or where nobody has
    said how several outputs become one reward. Every rank must call it."""
    chosen = _drawn(len(data.eval), session.config.train.seed)
    if not chosen:
        return None
    examples, config, trained = [data.eval_examples[index] for index in chosen], session.config, scorer.training
    scorer.eval()
    try:
        source = ModelReward(
            "model",
            scorer,
            session.chat,
            session.chat,
            max_length=config.data.max_length,
            micro_tokens=config.train.micro_tokens,
            world=session.world,
        )

        def score(asked: Sequence[Example]) -> Scores:
            return score_examples(source, asked, session.chat, max_length=config.data.max_length)

        scores = source.of_trees([data.eval[index] for index in chosen])
        probes = sensitivities(examples, scores, score, rows=PROBES, seed=config.train.seed, resamples=RESAMPLES)
    except UserError as error:
        log.warning(f"How far the model can be trusted was not measured: {error}")
        return None
    finally:
        scorer.train(trained)
    found, _ = judged(examples, scores, members=source.members)
    trust = measure(found, failures=failures(scores), sensitivity=probes, gold=RATINGS, resamples=RESAMPLES)
    worries = [finding for finding in findings(trust) if finding.tone == "bad"]
    numbers = {"held_out": len(data.eval_examples), **as_json(trust)}
    return Appraisal(tuple(summary(trust)), tuple(worry.text for worry in worries), numbers)


def _drawn(number: int, seed: int) -> list[int]:
    return np.sort(np.random.default_rng(seed).permutation(number)[:MOST]).tolist()
