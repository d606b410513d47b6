"""What a policy's likelihood of given answers says: perplexity, preference accuracy, multiple choice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assent.measures.answers import Given
from assent.measures.shapes import Likelihood, Measure, Statistic


def perplexity(given: Given) -> Statistic:
    """exp(-sum log pi(y) / tokens) over the given answers that nobody calls worse or wrong, their ends included."""
    worse = np.zeros(len(given), bool)
    worse[given.pairs[:, 1]] = True
    if given.right is not None:
        worse |= given.right == 0
    rows = np.flatnonzero(~worse)
    sums, tokens = given.log_prob[rows], given.tokens[rows].astype(np.float64)
    reasons = tuple(given.unread[row] for row in rows)
    return Statistic(lambda at: float(np.exp(-sums[at].sum() / tokens[at].sum())), given.prompt[rows], reasons)


def accuracy(number: Callable[[Given], np.ndarray]) -> Callable[[Given], Statistic]:
    """The share of pairs in which `number` [S] is higher for the better answer; a tie is against the policy."""

    def prepare(given: Given) -> Statistic:
        better, worse = given.pairs[:, 0], given.pairs[:, 1]
        values = number(given)
        reasons = tuple(given.unread[i] or given.unread[j] for i, j in given.pairs.tolist())
        right = np.where(np.array(reasons, object) == "", (values[better] > values[worse]).astype(np.float64), np.nan)
        return Statistic.mean(right, given.prompt[better], reasons)

    return prepare


def summed(given: Given) -> np.ndarray:
    """log pi(y), [S]."""
    return given.log_prob


def averaged(given: Given) -> np.ndarray:
    """log pi(y) / tokens, [S]."""
    return given.log_prob / given.tokens


def implicit(given: Given) -> np.ndarray:
    """log pi(y) - log pi_ref(y), [S]: the implicit reward but for its positive scale."""
    assert given.reference_log_prob is not None
    return given.log_prob - given.reference_log_prob


def mc1(number: Callable[[Given], np.ndarray]) -> Callable[[Given], Statistic]:
    """Per question with one right choice: 1 where `number` is highest for it alone; a tie is against the policy."""

    def of(values: np.ndarray, right: np.ndarray) -> float:
        return float(values[right].max() > values[~right].max())

    return lambda given: _questions(given, given.one_of, number(given), of)


def mc2(number: Callable[[Given], np.ndarray]) -> Callable[[Given], Statistic]:
    """Per question: sum_right exp(l) / sum_all exp(l) with l = `number`, in log-sum-exp, so that nothing underflows."""

    def of(values: np.ndarray, right: np.ndarray) -> float:
        return float(np.exp(np.logaddexp.reduce(values[right]) - np.logaddexp.reduce(values)))

    return lambda given: _questions(given, given.some_of, number(given), of)


def _questions(
    given: Given, which: np.ndarray | None, values: np.ndarray, of: Callable[[np.ndarray, np.ndarray], float]
) -> Statistic:
    """A number of each question; one with a choice that the policy cannot read is a failure."""
    assert which is not None and given.right is not None
    found, prompts, reasons = [], [], []
    for question in np.unique(which[which >= 0]):
        rows = np.flatnonzero(which == question)
        right = given.right[rows] == 1
        reason = next(filter(None, (given.unread[row] for row in rows)), "")
        if not reason and (right.all() or not right.any()):
            reason = "a question without right or without wrong choices"
        reasons.append(reason)
        found.append(np.nan if reason else of(values[rows], right))
        prompts.append(given.prompt[rows[0]])
    return Statistic.mean(np.array(found, np.float64), np.array(prompts, np.int64), tuple(reasons))


_TRUTHFUL = "TruthfulQA (arXiv 2109.07958)"

ROWS: tuple[Measure, ...] = (
    Likelihood(name="given-perplexity", about="exp(-sum log pi / tokens) of the answers that the prompt file gives and "
               "does not call worse, ends of answers included.", better="lower", needs=("given",), prepare=perplexity),
    Likelihood(name="preference-accuracy", about="Share of pairs whose better answer has the higher log pi(y); ties "
               "are against the policy.", unit="share", better="higher", needs=("pairs",), prepare=accuracy(summed)),
    Likelihood(name="preference-accuracy-per-token", about="The same by log pi(y) / tokens.", unit="share",
               better="higher", needs=("pairs",), prepare=accuracy(averaged)),
    Likelihood(name="implicit-reward-accuracy", about="The same by log pi(y) - log pi_ref(y), the implicit reward of "
               "DPO (arXiv 2305.18290).", unit="share", better="higher", needs=("pairs", "reference"),
               prepare=accuracy(implicit)),
    Likelihood(name="mc1", about=f"Share of questions whose one right choice is the likeliest by log pi(y): {_TRUTHFUL}"
               "; a tie is against the policy.", unit="share", better="higher", needs=("labels",), prepare=mc1(summed)),
    Likelihood(name="mc1-per-token", about="The same by log pi(y) / tokens.", unit="share", better="higher",
               needs=("labels",), prepare=mc1(averaged)),
    Likelihood(name="mc2", about=f"Probability of the right choices among all, by pi(y): {_TRUTHFUL}.", unit="share",
               better="higher", needs=("labels",), prepare=mc2(summed)),
    Likelihood(name="mc2-per-token", about="The same by pi(y) ** (1 / tokens).", unit="share", better="higher",
               needs=("labels",), prepare=mc2(averaged)),
)  # fmt: skip
