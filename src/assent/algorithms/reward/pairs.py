"""Reward models from pairs: Bradley-Terry at the last token, or at every token of the response; with votes, ties and
strengths where the data have them, and beside golden answers against a policy's own where they are given."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assent.algorithms.preference.feedback import require_strengths
from assent.algorithms.reward.adversarial import OLD, golden_trees, with_old_rewards
from assent.algorithms.reward.language import RegularisedScoreModel, language_of, regulariser
from assent.algorithms.reward.single import single_output
from assent.algorithms.reward.train import EpochTraining, train_on
from assent.config import AdversarialSection, RewardConfig, RewardSection
from assent.data.golden import SHARE
from assent.data.packing import Counts, EpochStream, Mixed, Window
from assent.data.tree import TokenTree, TreeBatch
from assent.data.views import pair_view
from assent.errors import DataError
from assent.losses import bradley_terry, bradley_terry_tokens, centring, choice_kl, davidson, rao_kupper
from assent.models.policy import ScoreModel
from assent.train.loop import Loss
from assent.train.run import RunResult
from assent.train.session import open_session

log = logging.getLogger(__name__)

TIES: Mapping[str, tuple[Callable[..., Tensor], Callable[[float], dict[str, float]]]] = {
    "rao-kupper": (rao_kupper, lambda p: {"theta": (1 + p) / (1 - p)}),
    "davidson": (davidson, lambda p: {"nu": 2 * p / (1 - p)}),
}
"""By the option `reward.ties`: the loss, and its parameter from the probability p that equal answers tie."""


ALONE = AdversarialSection()
"""The pairs without golden answers."""


class RewardModelling(EpochTraining):
    """Negative log-likelihood of the preferences, mean over all pairs of a step, and what is added to it: for one, that
    of golden answers over samples, from a stream of their own."""

    def __init__(
        self,
        scorer: ScoreModel,
        stream: EpochStream,
        section: RewardSection,
        *,
        golden: EpochStream | None = None,
        adversarial: AdversarialSection = ALONE,
        old_coef: float = 0.0,
    ) -> None:
        super().__init__(scorer, stream)
        self.section, self.golden, self.adversarial, self.old_coef = section, golden, adversarial, old_coef

    def windows(self) -> Iterator[Window]:
        for window in self.stream:
            yield window if self.golden is None else replace(window, mixed=self._mixed(self.golden))

    def _mixed(self, golden: EpochStream) -> Mixed:
        extra = next(iter(golden))
        return Mixed(extra.batches, partial(self.golden_loss, number=extra.counts.prompts))

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        section, chosen, rejected = self.section, batch.pairs[:, 0], batch.pairs[:, 1]
        scores, tokens, term = self._read(batch)
        losses = pair_losses(section, batch, scores, tokens)
        pairs, responses = len(batch.pairs), batch.num_responses
        total = self.adversarial.pairs_coef * losses.sum() / max(1, counts.pairs)
        gap = (scores[chosen] - scores[rejected]).detach()
        right, decided = _right(gap, batch)
        metrics: dict[str, tuple[Any, float]] = {
            "nll": (losses.sum(), pairs),
            "accuracy": (right[decided].sum(), len(decided)),
            "margin": (gap[decided].sum(), len(decided)),
            "score": (scores.detach().sum(), responses),
        }
        if term is not None:
            total = (1 - section.regulariser_weight) * total
            total = total + section.regulariser_weight * term.sum() / max(1, counts.pairs)
            metrics["regulariser"] = (term.sum(), pairs)
        if section.centring > 0:
            squares = centring(scores[chosen], scores[rejected])
            total = total + section.centring * squares.sum() / max(1, counts.pairs)
            metrics["centring"] = (squares.sum(), pairs)
        if self.old_coef > 0:
            old = batch.per_response[OLD]
            moved = choice_kl(scores[chosen], scores[rejected], old[chosen], old[rejected])
            total = total + self.old_coef * moved.sum() / max(1, counts.pairs)
            metrics["old_kl"] = (moved.sum(), pairs)
        return Loss(total, metrics, followed=batch.by_tree(right[decided], chosen[decided]))

    def golden_loss(self, batch: TreeBatch, *, number: int) -> Loss:
        """Of golden answers over samples of a policy: the mean over the samples of each, and over the `number` golden
        answers of the step."""
        scores, tokens, _ = self._read(batch, regularised=False)
        share, (golden, sampled) = batch.per_pair[SHARE], batch.pairs.T
        if tokens is None:
            losses = bradley_terry(scores[golden], scores[sampled], weight=share)
        else:
            pairs = batch.pairs, batch.num_responses
            losses = bradley_terry_tokens(tokens, batch.response, *pairs, weight=share)
        right = (scores[golden] > scores[sampled]).float()
        here = len(batch.keys)
        metrics = {"golden_nll": (losses.sum(), here), "golden_accuracy": ((share * right).sum(), here)}
        return Loss(self.adversarial.coef * losses.sum() / number, metrics)

    def _read(self, batch: TreeBatch, *, regularised: bool = True) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores of the responses [S]; with readout mean also those of the trained tokens [N], and with a regulariser
        its losses [M]: from one forward pass."""
        mean = self.section.readout == "mean"
        index = torch.cat([batch.label, batch.last]) if mean else batch.last
        term = None
        if self.section.regulariser == "none" or not regularised:
            found = self.scorer.scalars(batch, index)
        else:
            assert isinstance(self.scorer, RegularisedScoreModel)
            found, term = regulariser(self.section, self.scorer, batch, index)
        if not mean:
            return found, None, term
        tokens, scores = found.split([len(batch.label), batch.num_responses])
        return scores, tokens, term

    def state_dict(self) -> dict[str, Any]:
        own = super().state_dict()
        return own if self.golden is None else {**own, "golden": self.golden.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.golden is not None:
            self.golden.load_state_dict(state["golden"])


def pair_losses(section: RewardSection, batch: TreeBatch, scores: Tensor, tokens: Tensor | None) -> Tensor:
    """The loss of each pair, [M], by the options of the section."""
    chosen, rejected = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
    share, tie = (batch.per_pair.get(name) for name in ("share", "tie"))
    weight = batch.margin.abs() if section.scaled else None
    smoothing = {"label_smoothing": section.label_smoothing}
    if section.ties != "drop":
        assert share is not None and tie is not None, "the view counts ties"
        loss, parameter = TIES[section.ties]
        if weight is not None:
            weight = torch.where(tie < 1, weight, 1.0)  # a tie has no strength
        return loss(chosen, rejected, share, tie, weight, **parameter(section.tie_chance), **smoothing)
    margin = batch.margin if section.margin else None
    if tokens is None:
        return bradley_terry(chosen, rejected, margin, share, weight, **smoothing)
    return bradley_terry_tokens(
        tokens, batch.response, batch.pairs, batch.num_responses, margin, share, weight, **smoothing
    )


def _right(gap: Tensor, batch: TreeBatch) -> tuple[Tensor, Tensor]:
    """Of each pair whether the chosen answer has the higher score, [M]; and which pairs have a chosen one: not those
    with as many votes for either side, or with no vote for one."""
    right = (gap > 0).float()
    if not batch.per_pair:
        return right, torch.arange(len(gap), device=gap.device)
    share, tie = batch.per_pair["share"], batch.per_pair["tie"]
    return right, (share - (1 - share - tie) > 1e-6).nonzero().squeeze(1)


def train_reward(config: RewardConfig) -> RunResult:
    """Trains a reward model on the pairs of `config.data`; `config.out`/model is an
    `AutoModelForSequenceClassification` folder whose one logit at the last token is the reward (or the decoder with
    its head, where transformers has no such class: see models.heads)."""
    session, section = open_session(config), config.reward
    ties = section.ties != "drop"
    data = session.prepare(partial(pair_view, votes=section.votes, ties=ties) if section.votes or ties else pair_view)
    if section.scaled:
        require_strengths(config.data, data, "--reward.scaled", "assent reward, as it is by default")
    if section.votes or ties:
        _check_votes(config.data.train, data.train, section)
    kind: Callable[..., ScoreModel] = ScoreModel
    if section.regulariser != "none":
        language, data = language_of(session, data, section.regulariser)
        kind = partial(RegularisedScoreModel, language=language)
    golden, about = golden_trees(session, config.adversarial) if config.adversarial.golden else ([], None)
    if config.old.coef > 0:
        data = with_old_rewards(session, config, data)
    scorer = single_output(session, section.output, "pairs", readout=section.readout, kind=kind)
    stream = session.stream(data.train, scorer)
    beside = session.stream(golden, scorer, batch_size=config.adversarial.batch_size) if golden else None
    algorithm = RewardModelling(
        scorer, stream, section, golden=beside, adversarial=config.adversarial, old_coef=config.old.coef
    )
    return train_on(session, algorithm, scorer, stream, data, about=[about] if about else [])


def _check_votes(file: str, trees: Sequence[TokenTree], section: RewardSection) -> None:
    """Raises DataError where ties are all there is; says where votes or ties were asked for and there are none."""
    share, tie = (torch.cat([torch.from_numpy(tree.per_pair[name]) for tree in trees]) for name in ("share", "tie"))
    if bool((tie == 1).all()):
        raise DataError(f"{file}: all {len(tie)} pairs are ties, so nothing says which answers are better.")
    if section.votes and bool(((share == 0) | (share == 1)).all()):
        log.warning(
            f"{file}: no two annotators judge the same two answers differently, so --reward.votes makes no soft label."
        )
    if section.ties != "drop" and not bool(tie.any()):
        log.warning(f"{file}: there are no ties, so --reward.ties {section.ties} has nothing to learn them from.")
