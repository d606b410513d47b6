"""What any sampled answers can be measured by: rewards, length, how they ended, distance from a reference, likelihood
and variety."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assent.measures.answers import Answers
from assent.measures.shapes import Column, Each, Measure, PerScore, Statistic, Whole

UNKNOWN = "not known of this answer"


def reward(answers: Answers, source: str) -> Column:
    """The score of each answer."""
    values = answers.scores[source]
    return Column(values, answers.unscored.get(source) or ("",) * len(values))


def length(answers: Answers) -> Column:
    """Tokens of each answer."""
    assert answers.tokens is not None
    return Column.of(answers.tokens.astype(np.float64), UNKNOWN)


def characters(answers: Answers) -> Column:
    """Characters, which exist for every tokenizer and for answers from files."""
    return Column.of([float(len(text)) for text in answers.texts])


def unfinished(answers: Answers) -> Column:
    """1 where an answer was cut off at the length limit."""
    assert answers.finished is not None
    return Column.of(1.0 - answers.finished.astype(np.float64))


def kl(answers: Answers) -> Column:
    """log pi(y) - log pi_ref(y) of each answer y: unbiased for KL(pi || pi_ref) where y was sampled from pi at
    temperature 1. It may be below 0; its interval is the estimator's error."""
    assert answers.log_prob is not None and answers.reference_log_prob is not None
    return Column.of(answers.log_prob - answers.reference_log_prob, UNKNOWN)


def per_token(top: Callable[[Answers], np.ndarray], after: Callable[[float], float] = float) -> Callable:
    """after(sum of `top` / sum of tokens) over a set of answers: a mean over tokens, not over answers."""

    def prepare(answers: Answers) -> Statistic:
        assert answers.tokens is not None
        sums, tokens = top(answers), answers.tokens.astype(np.float64)
        reasons = tuple(UNKNOWN if bad else "" for bad in np.isnan(sums) | np.isnan(tokens))
        return Statistic(lambda rows: after(sums[rows].sum() / tokens[rows].sum()), answers.prompt, reasons)

    return prepare


def _known(column: np.ndarray | None) -> np.ndarray:
    assert column is not None
    return column


ROWS: tuple[Measure, ...] = (
    PerScore(name="reward", about="Mean score of the answers, by each source.", better="higher", needs=("scores",),
             of=reward),
    Each(name="length", about="Tokens of the policy's own tokenizer, the end of the answer among them.", unit="tokens",
         needs=("tokens",), of=length),
    Each(name="characters", about="Characters of the answer.", unit="characters", of=characters),
    Each(name="unfinished", about="Share of answers cut off at the length limit.", unit="share", better="lower",
         needs=("finished",), of=unfinished),
    Each(name="kl", about="Mean of log pi(y) - log pi_ref(y) over sampled answers y: KL from the reference, in nats "
         "per answer; the interval is the estimator's error.", unit="nats", needs=("log_prob", "reference"), of=kl),
    Whole(name="kl-per-token", about="The same, divided by the tokens of all answers.", unit="nats",
          needs=("log_prob", "reference"),
          prepare=per_token(lambda a: _known(a.log_prob) - _known(a.reference_log_prob))),
    Whole(name="entropy", about="Entropy of the next token, in nats, averaged over the tokens of all answers.",
          unit="nats", needs=("entropy",), prepare=per_token(lambda a: _known(a.entropy))),
    Whole(name="perplexity", about="exp(-sum log pi / tokens) of the policy's own answers.", needs=("log_prob",),
          prepare=per_token(lambda a: -_known(a.log_prob), lambda mean: float(np.exp(mean)))),
)  # fmt: skip
