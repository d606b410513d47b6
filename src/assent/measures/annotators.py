"""Labels of several annotators on the same items: what is true, and how good each annotator is.

A table of labels is three columns of equal length n: item [n], annotator [n] and label [n], whole numbers from 0; two
annotators need not have seen the same items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import digamma, expit, log_expit, logsumexp

TOLERANCE = 1e-9
"""EM ends where the likelihood, a label, grows by less."""
ITERATIONS = 1000
EVEN = 1e-4
"""Probabilities closer to one another are equal."""
SMOOTHING = 0.01
"""Pseudo-count of each cell of a confusion matrix: what an annotator has not done yet is not impossible."""
PRIOR = 0.5
"""MACE: both parameters of the Beta prior of an annotator's reliability, and of the Dirichlet prior of guesses."""
RESTARTS = 10
RIDGE = 0.1
"""Bradley-Terry with annotators: weight of half the squared strengths."""
HABIT = 0.5
"""The same of half the squared distance of skills from 1, and of tastes for a side."""


@dataclass(frozen=True, slots=True)
class Labels:
    """A table of labels. Example: annotator 2 gave item 0 the label 1: item [0], annotator [2], label [1].

    `mirrored`: labels 0 and 1 are two answers that might as well stand the other way round, so no model may learn from
    which is which. `seen` is then the label by sides, 0 the left answer, where the sides are known; annotators may have
    a taste for one."""

    item: np.ndarray
    annotator: np.ndarray
    label: np.ndarray
    items: int
    annotators: int
    classes: int
    mirrored: bool = False
    seen: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.mirrored or self.seen is None, "only comparisons have sides"
        columns = ((self.item, self.items), (self.annotator, self.annotators), (self.label, self.classes))
        for column, size in (*columns, *([] if self.seen is None else [(self.seen, self.classes)])):
            assert column.shape == self.label.shape, "one entry each"
            assert len(column) == 0 or (column.min() >= 0 and column.max() < size), "whole numbers from 0"

    @property
    def votes(self) -> np.ndarray:
        """[I, C]: how many gave each label."""
        found = np.zeros((self.items, self.classes))
        np.add.at(found, (self.item, self.label), 1.0)
        return found

    @property
    def wrote(self) -> np.ndarray:
        """[n]: labels as their annotators saw them."""
        return self.label if self.seen is None else self.seen

    def turned(self, shares: np.ndarray) -> np.ndarray:
        """[n, C] probabilities of labels as they are -> as they were seen by each annotator; the same back. With a tie
        nobody says on which side they saw what: both are as probable."""
        if self.seen is None:
            return shares
        found = np.where((self.seen != self.label)[:, None], shares[:, mirror(self.classes)], shares)
        ties = self.label > 1
        found[ties, :2] = found[ties, :2].mean(axis=1, keepdims=True)
        return found

    def levelled(self, counts: np.ndarray) -> np.ndarray:
        """Counts of labels [..., C], the same for 0 and 1 where nobody knows which was seen where."""
        return (
            counts if not self.mirrored or self.seen is not None else (counts + counts[..., mirror(self.classes)]) / 2
        )


def mirror(classes: int) -> list[int]:
    """The labels with 0 and 1 in each other's place."""
    return [1, 0, *range(2, classes)]


@dataclass(frozen=True, slots=True)
class Consensus:
    """`posterior` [I, C]: how probable each label is the true one, rows of an item without any label NaN. `accuracy`
    [A]: how often an annotator gives the true label, by the model. `confusion` [A, C, C]: P(gives l | true t) at
    [a, t, l], where the model has it."""

    posterior: np.ndarray
    accuracy: np.ndarray
    confusion: np.ndarray | None = None

    @property
    def label(self) -> np.ndarray:
        """[I]: the most probable label, -1 where nothing is known, or two are equally probable."""
        return decided(self.posterior)


def decided(shares: np.ndarray) -> np.ndarray:
    """[I] the largest of each row of shares [I, C]; -1 for a row of NaN, and where two are largest."""
    filled = np.nan_to_num(shares, nan=-1.0)
    most = filled.max(axis=1, keepdims=True)
    single = (filled >= most - EVEN).sum(axis=1) == 1
    return np.where(single & (most[:, 0] > 0), filled.argmax(axis=1), -1)


def majority(labels: Labels) -> Consensus:
    """Shares of votes: posterior[i, c] = votes[i, c] / Σ_c votes[i, c]. An annotator's accuracy is the mean share of
    the *others* that voted as they did."""
    votes = labels.votes
    total = votes.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        posterior = votes / total
        agreed = (votes[labels.item, labels.label] - 1) / (total[labels.item, 0] - 1)
    known = np.isfinite(agreed)
    weight = np.bincount(labels.annotator[known], minlength=labels.annotators)
    found = np.bincount(labels.annotator[known], agreed[known], minlength=labels.annotators)
    with np.errstate(invalid="ignore"):
        return Consensus(posterior, found / weight)


def dawid_skene(labels: Labels, smoothing: float = SMOOTHING) -> Consensus:
    """The model of Dawid & Skene (1979), fitted by EM from the shares of votes: true labels T_i ~ π, and annotator a
    writes l with probability K_a[T_i, l].

        E   posterior[i, t] ∝ π_t Π_{(a, l) on i} K_a[t, l]
        M   π_t = mean_i posterior[i, t],  K_a[t, l] ∝ s + Σ_{i: a wrote l} posterior[i, t],  s the smoothing

    Of comparisons t and l are sides where these are known, else K is the same for both answers; and so is π."""
    posterior, other = _started(labels), mirror(labels.classes)
    before = -math.inf
    for _ in range(ITERATIONS):
        counts = np.full((labels.annotators, labels.classes, labels.classes), smoothing)
        np.add.at(counts.transpose(0, 2, 1), (labels.annotator, labels.wrote), labels.turned(posterior[labels.item]))
        if labels.mirrored and labels.seen is None:
            counts = (counts + counts[:, other][:, :, other]) / 2
        confusion = counts / counts.sum(axis=2, keepdims=True)
        prior = posterior.mean(axis=0)
        prior = (prior + prior[other]) / 2 if labels.mirrored else prior
        with np.errstate(divide="ignore"):
            joint = np.tile(np.log(prior), (labels.items, 1))
            np.add.at(joint, labels.item, np.log(labels.turned(confusion[labels.annotator, :, labels.wrote])))
        evidence = logsumexp(joint, axis=1)
        posterior = np.exp(joint - evidence[:, None])
        # What EM climbs: the likelihood with the smoothing's Dirichlet prior.
        now = float(evidence.sum() + (smoothing * np.log(confusion).sum() if smoothing else 0.0))
        if now - before < TOLERANCE * max(1, len(labels.item)):
            break
        before = now
    accuracy = np.einsum("t,att->a", prior, confusion)
    return Consensus(_unlabelled(labels, posterior), accuracy, confusion)


def mace(labels: Labels, seed: int = 0) -> Consensus:
    """MACE (Hovy et al. 2013), by variational EM with the best of several random starts: annotator a knows the true
    label with probability θ_a, and otherwise writes l with probability ξ_a[l], whatever is true.

        P(a writes l | true t) = θ_a 1[l = t] + (1 - θ_a) ξ_a[l],  T_i uniform,  θ_a ~ Beta(½, ½),  ξ_a ~ Dir(½, ...)

    What is guessed is a label as it was seen, so that a taste for a side is found. `accuracy` is θ_a: how often the
    annotator does not guess."""
    rng, best, found = np.random.default_rng(seed), -math.inf, None
    for _ in range(RESTARTS):
        knows = np.column_stack([rng.uniform(1, 2, labels.annotators), rng.uniform(1, 2, labels.annotators)])
        guesses = labels.levelled(rng.uniform(1, 2, (labels.annotators, labels.classes)))
        one = _mace_from(labels, knows / knows.sum(1, keepdims=True), guesses / guesses.sum(1, keepdims=True))
        if one[0] > best:
            best, found = one[0], one[1]
    assert found is not None
    return found


def _mace_from(labels: Labels, knows: np.ndarray, guesses: np.ndarray) -> tuple[float, Consensus]:
    """One run of variational EM: (log evidence at its end, consensus). `knows` [A, 2] are weights of knowing and of
    guessing, `guesses` [A, C] of what is guessed; after the first step they need not sum to 1."""
    who, wrote = labels.annotator, labels.wrote
    exact = np.eye(labels.classes)[labels.label]
    before, evidence = -math.inf, -math.inf
    posterior = np.full((labels.items, labels.classes), 1 / labels.classes)
    for _ in range(ITERATIONS):
        guessed = (knows[who, 1] * guesses[who, wrote])[:, None]
        each = knows[who, 0][:, None] * exact + guessed
        joint = np.full((labels.items, labels.classes), -math.log(labels.classes))
        np.add.at(joint, labels.item, np.log(each))
        total = logsumexp(joint, axis=1)
        evidence, posterior = float(total.sum()), np.exp(joint - total[:, None])
        spam = (posterior[labels.item] * guessed / each).sum(axis=1)
        counts = np.zeros((labels.annotators, 2))
        np.add.at(counts, who, np.column_stack([1 - spam, spam]))
        written = np.zeros((labels.annotators, labels.classes))
        np.add.at(written, (who, wrote), spam)
        mean = (counts[:, 0] + PRIOR) / (counts.sum(1) + 2 * PRIOR)
        knows, guesses = _variational(counts), _variational(labels.levelled(written))
        if abs(evidence - before) < TOLERANCE * max(1, len(wrote)):
            break
        before = evidence
    return evidence, Consensus(_unlabelled(labels, posterior), mean)


def _variational(counts: np.ndarray) -> np.ndarray:
    """exp E[log p] of rows p ~ Dir(counts + ½)."""
    weights = counts + PRIOR
    return np.exp(digamma(weights) - digamma(weights.sum(axis=1, keepdims=True)))


def _started(labels: Labels) -> np.ndarray:
    """Shares of votes to begin with; the same for every class where there is none."""
    votes = labels.votes + 1e-6
    shares: np.ndarray = votes / votes.sum(axis=1, keepdims=True)
    return shares


def _unlabelled(labels: Labels, posterior: np.ndarray) -> np.ndarray:
    """NaN for items without a label: the prior alone says nothing of them."""
    there = np.bincount(labels.item, minlength=labels.items) > 0
    return np.where(there[:, None], posterior, np.nan)


# ---- comparisons


@dataclass(frozen=True, slots=True)
class Choices:
    """Comparisons of two things by annotators: `left` and `right` [n] are the things as they were shown, `annotator`
    [n], `outcome` [n] 1 where the left one was preferred, 0 the right one, 0.5 neither."""

    left: np.ndarray
    right: np.ndarray
    annotator: np.ndarray
    outcome: np.ndarray
    things: int
    annotators: int

    def __post_init__(self) -> None:
        for column in (self.left, self.right, self.annotator):
            assert column.shape == self.outcome.shape, "one entry each"
        assert np.all(self.left != self.right), "nothing is compared with itself"


@dataclass(frozen=True, slots=True)
class Strengths:
    """`strength` [things], nats for an annotator of skill 1, mean 0 within things that comparisons join. `skill` [A]:
    by how much an annotator's choices sharpen with strength; 0 goes by nothing, and below 0 they are upside down.
    `side` [A]: the logit with which the left one of two equals is taken. `accuracy` [A]: how probably an annotator says
    the stronger of the two, on average over what they compared, whatever the side."""

    strength: np.ndarray
    skill: np.ndarray
    side: np.ndarray
    accuracy: np.ndarray

    def prefers(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """P(left is better), σ(s_left - s_right)."""
        chance: np.ndarray = expit(self.strength[left] - self.strength[right])
        return chance


def skilled_bradley_terry(
    choices: Choices, ridge: float = RIDGE, habit: float = HABIT, *, sides_known: bool = True
) -> Strengths:
    """Bradley-Terry with annotators of different skill, and a taste for a side (Birnbaum 1968 has the two parameters
    of a test question):

        P(left preferred by a) = σ(γ_a (s_left - s_right) + q_a)

    at the maximum of the posterior with normal priors: of weight `ridge` on s around 0, of weight `habit` on γ around 1
    and on q around 0. A tie counts half for each side. `sides_known` False: nobody knows what was on the left, and q is
    0."""
    things, crowd, who = choices.things, choices.annotators, choices.annotator
    left, right, outcome = choices.left, choices.right, choices.outcome

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        s, q, skill = x[:things], x[things : things + crowd], x[things + crowd :]
        gap = s[left] - s[right]
        logit = skill[who] * gap + q[who]
        value = -float(outcome @ log_expit(logit) + (1 - outcome) @ log_expit(-logit))
        slope = expit(logit) - outcome
        by_gap = slope * skill[who]
        grad = np.concatenate([
            np.bincount(left, by_gap, things) - np.bincount(right, by_gap, things),
            np.bincount(who, slope, crowd) * sides_known,
            np.bincount(who, slope * gap, crowd),
        ])  # fmt: skip
        away = x - rest
        return value + float(prior @ (away * away)) / 2, grad + prior * away

    rest = np.concatenate([np.zeros(things + crowd), np.ones(crowd)])
    prior = np.repeat([ridge, habit], [things, 2 * crowd])
    found = minimize(loss, rest, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-8})
    s, side, skill = np.split(found.x, [things, things + crowd])
    says = expit(skill[who] * np.abs(s[left] - s[right]))
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(who, says, crowd) / np.bincount(who, minlength=crowd)
    return Strengths(s, skill, side, accuracy)
