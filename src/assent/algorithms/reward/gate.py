"""Gated mixture (ArmoRM, arXiv 2406.12845): a gate on the prompt weighs the outputs of a frozen reward model.

Stage 1 are outputs for absolute ratings: those of a trained head, or linear heads fitted to ratings in closed form.
Length is then taken out of them, and in stage 2 the gate is trained on pairs. The backbone is frozen, so its states are
computed once, packed; what follows works on tables of numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from assent import distributed
from assent.algorithms.reward.train import EpochTraining, train_on
from assent.config import DataConfig, GateSection, RewardGateConfig
from assent.data.attributes import AttributeView, names_of, with_ratings_field
from assent.data.dataset import Prepared, prepare, prompt_hash, summary
from assent.data.packing import Counts, EpochStream, Window, count, idle
from assent.data.tree import Branch, TokenTree, TreeBatch
from assent.data.views import pair_view
from assent.errors import ConfigError, DataError
from assent.losses import bradley_terry
from assent.losses.decorrelate import Decorrelation, decorrelate
from assent.losses.linear import pair_weights, ridge_heads
from assent.models.annotate import BatchColumns, columns_of
from assent.models.gate import LAST, Gate, GateRule, made, prompt_positions, shares
from assent.models.mixtures import find_mixture
from assent.models.policy import ScoreModel
from assent.models.reward_head import HeadRule, shown
from assent.models.sources import resolve
from assent.models.stored_heads import stored_heads
from assent.names import suggestion
from assent.train.facts import Line, measured, number, plural, rounded
from assent.train.loop import Loss
from assent.train.run import RunResult
from assent.train.session import Session, open_session

log = logging.getLogger(__name__)

Fields = Callable[[TreeBatch], BatchColumns]

FEWEST = 10
"""Pairs that a gate is trained on at least, and responses that each attribute must be rated for."""


# ---- tables


@dataclass(frozen=True, slots=True)
class Tables:
    """What the frozen backbone says of P prompts and S responses: states [P, h], outputs [S, K], lengths [S] in
    tokens, fp32. `trees` stand for the trees it was computed of: their tokens are rows of these tables."""

    states: Tensor
    outputs: Tensor
    lengths: Tensor
    trees: tuple[TokenTree, ...]


def tables_of(session: Session, scorer: ScoreModel, trees: Sequence[TokenTree]) -> Tables:
    """One packed pass over the trees, shared by all ranks; each prompt is computed once."""

    def fields(batch: TreeBatch) -> BatchColumns:
        here = batch.num_responses
        outputs, states = scorer(batch, torch.cat([batch.last, prompt_positions(batch)]), states=True)
        return BatchColumns(per_response={"outputs": outputs[:here], "prompt": states[here:]})

    found = _columns(session, scorer, trees, fields)
    starts = np.cumsum([0, *(len(tree.branches) for tree in trees)])
    lengths = [len(branch) for tree in trees for branch in tree.branches]
    rows = tuple(_rows(tree, p, int(start)) for p, (tree, start) in enumerate(zip(trees, starts, strict=False)))
    device = session.world.device
    return Tables(
        torch.from_numpy(found["prompt"][starts[:-1]]).to(device),
        torch.from_numpy(found["outputs"]).to(device),
        torch.tensor(lengths, dtype=torch.float32, device=device),
        rows,
    )


def _columns(
    session: Session, scorer: ScoreModel, trees: Sequence[TokenTree], fields: Fields
) -> Mapping[str, np.ndarray]:
    micro_tokens, flat = session.config.train.micro_tokens, not scorer.tree
    return columns_of(trees, fields, micro_tokens=micro_tokens, flat=flat, world=session.world).per_response


def _rows(tree: TokenTree, prompt: int, first: int) -> TokenTree:
    """The tree with row numbers as its tokens."""
    branches = tuple(Branch(np.array([first + i]), np.zeros(1, bool)) for i in range(len(tree.branches)))
    return TokenTree(np.array([prompt]), branches, tree.pairs, key=tree.key)


def joined(first: Tables, second: Tables) -> tuple[Tables, list[TokenTree]]:
    """One set of tables, and the trees of the second as rows of it; those of the first are unchanged."""
    p, s = len(first.states), len(first.outputs)
    moved = [
        replace(t, prompt=t.prompt + p, branches=tuple(replace(b, ids=b.ids + s) for b in t.branches))
        for t in second.trees
    ]
    both = Tables(
        torch.cat([first.states, second.states]),
        torch.cat([first.outputs, second.outputs]),
        torch.cat([first.lengths, second.lengths]),
        (*first.trees, *moved),
    )
    return both, moved


class RowStream(EpochStream):
    """Windows of trees whose tokens are rows of tables: one micro-batch, first the rows of the prompts, then those of
    the responses. Nothing is packed, since the backbone has read them already."""

    def pack(self, trees: Sequence[TokenTree]) -> Window:
        own = trees[self.rank :: self.ranks]
        if not own:
            return Window((idle(trees[0]),), count(trees))
        sizes = np.array([len(tree.branches) for tree in own])
        starts = np.cumsum(sizes) - sizes
        first = np.array([tree.branches[0].ids[0] for tree in own])
        rows = np.repeat(first - starts, sizes) + np.arange(sizes.sum())
        prompts = np.array([tree.prompt[0] for tree in own])
        pairs = [(a + c, a + r, gap) for a, tree in zip(starts.tolist(), own, strict=True) for c, r, gap in tree.pairs]
        none = torch.zeros(0, dtype=torch.int64)
        tokens = torch.from_numpy(np.concatenate([prompts, rows]))
        batch = TreeBatch(
            tokens=tokens,
            positions=torch.zeros_like(tokens),
            source=none,
            label=none,
            response=none,
            last=len(own) + torch.arange(len(rows)),
            prompt=torch.from_numpy(np.repeat(np.arange(len(own)), sizes)),
            pairs=torch.tensor([pair[:2] for pair in pairs], dtype=torch.int64).reshape(-1, 2),
            margin=torch.tensor([pair[2] for pair in pairs], dtype=torch.float32),
            segments=(),
            keys=tuple(tree.key for tree in own),
        )
        return Window((batch,), count(trees))


def gaps_of(tables: Tables) -> np.ndarray:
    """Outputs of the chosen minus those of the rejected response of all pairs, [M, K]."""
    rows = [(t.branches[c].ids[0], t.branches[r].ids[0]) for t in tables.trees for c, r, _ in t.pairs]
    chosen, rejected = np.array(rows).T
    outputs = tables.outputs.cpu().numpy()
    return outputs[chosen] - outputs[rejected]


# ---- stage 1


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
        _columns(session, scorer, trees, states)["states"], ratings, groups, seed=session.config.train.seed
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


# ---- stage 2


class GateTraining(EpochTraining):
    """The gate alone is trained: -log sigmoid of the gated rewards' gap, mean over all pairs of a step."""

    def __init__(self, scorer: ScoreModel, gate: Gate, stream: EpochStream, tables: Tables, fixed: np.ndarray) -> None:
        """`fixed` [K] are the best weights of the outputs that do not depend on the prompt."""
        super().__init__(scorer, stream)
        self.gate, self.tables = gate, tables
        self.modules = {"gate": gate}
        self.fixed = torch.from_numpy(fixed).to(tables.outputs)

    def loss(self, batch: TreeBatch, counts: Counts) -> Loss:
        rows, prompts = batch.tokens[batch.last], batch.tokens[: len(batch.keys)]
        chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
        outputs, weights = self.tables.outputs[rows], self.gate(self.tables.states[prompts])
        rewards = shares(outputs, weights[batch.prompt], self.gate.transform).sum(1)
        losses = bradley_terry(rewards[chosen], rewards[rejected])
        gap = (rewards[chosen] - rewards[rejected]).detach()
        right, pairs = (gap > 0).float(), len(batch.pairs)
        metrics: dict[str, tuple[Tensor | float, float]] = {
            "nll": (losses.sum(), pairs),
            "accuracy": (right.sum(), pairs),
            "margin": (gap.sum(), pairs),
        }
        others = {"fixed": outputs @ self.fixed, "uniform": (outputs @ self.gate.transform).mean(1)}
        for name, reward in others.items():
            metrics[f"accuracy_{name}"] = ((reward[chosen] > reward[rejected]).float().sum(), pairs)
        for name, column in zip(self.scorer.rule.names, weights.detach().T, strict=True):
            metrics[f"weight/{name}"] = (column.sum(), len(batch.keys))
        return Loss(
            losses.sum() / max(1, counts.pairs),
            metrics,
            items={"reward": rewards.detach(), "length": self.tables.lengths[rows]},
            followed=batch.by_tree(right, chosen),
        )


def length_relation(items: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Rank correlation of the reward with the length of the answer, over all held-out answers."""
    found = spearmanr(items["reward"], items["length"]).statistic if len(items["reward"]) > 2 else np.nan
    return {} if np.isnan(found) else {"length_relation": float(found)}


# ---- the command


def train_gate(config: RewardGateConfig) -> RunResult:
    """Trains a gate over a frozen reward model; `config.out`/model holds both: a plain folder of K outputs for others,
    whose rewards are gated here (`assent.models.gate`)."""
    session = open_session(config)
    _check_source(config)
    data = session.prepare(pair_view)
    if (pairs := sum(len(tree.pairs) for tree in data.train)) < FEWEST:
        raise DataError(f"{config.data.train}: a gate needs at least {FEWEST} pairs to be trained on. Got {pairs}.")
    scorer, about = _scorer(session)
    tables = tables_of(session, scorer, data.train)
    held: list[TokenTree] = []
    both = tables
    if data.eval:
        both, held = joined(tables, tables_of(session, scorer, data.eval))
    matrix, length = without_length(tables, scorer.rule, config.gate)
    fixed = matrix @ pair_weights(gaps_of(tables) @ matrix)
    scorer.rule = replace(scorer.rule, weights=tuple(fixed.tolist()))
    gate = _new_gate(session, scorer, matrix)
    train, world = config.train, session.world
    stream = RowStream(
        tables.trees,
        batch_size=train.batch_size,
        micro_tokens=train.micro_tokens,
        seed=train.seed,
        flat=False,
        rank=world.rank,
        ranks=world.size,
    )
    size = sum(weight.numel() for weight in gate.parameters())
    about += [length, Line("Gate", f"{rounded(size)} parameters, on the state at {LAST}; all else is frozen")]
    algorithm = GateTraining(scorer, gate, stream, both, fixed)
    return train_on(session, algorithm, scorer, stream, data, summary=length_relation, about=about, held=held)


def _check_source(config: RewardGateConfig) -> None:
    """Raises ConfigError where there is nothing to weigh, or two heads to choose from."""
    path, gate = config.model.path, config.gate
    place = resolve(path, config.model.revision)
    stored, mixture = stored_heads(place).rule, find_mixture(place)
    if mixture is not None:
        stored = HeadRule(mixture.names, ())
    if gate.ratings is not None:
        if stored is not None and len(stored) > 1:
            raise ConfigError(
                f"{path} has {len(stored)} outputs ({shown(stored.names)}), which --gate.ratings would replace. Leave "
                "--gate.ratings out, or give a model without them."
            )
        return
    ways = "Give --gate.ratings FILE (rated answers) to fit linear heads, or a model of assent reward-attributes."
    if stored is None:
        raise ConfigError(f"{path} has no reward head, so there are no outputs to weigh. {ways}")
    if len(stored) == 1:
        raise ConfigError(f"{path} has one output ({stored.names[0]}): nothing to weigh. {ways}")


def _scorer(session: Session) -> tuple[ScoreModel, list[Line]]:
    """The frozen model with the outputs that are weighed, and what is to be said of them."""
    config = session.config
    assert isinstance(config, RewardGateConfig)
    if config.gate.ratings is None:
        scorer = session.score_model(config.model.path, trainable=False, new_head=False)
        _check_verbosity(config.gate, scorer.rule.names)
        if scorer.gate is not None:
            scorer.gate = scorer.gate_rule = None
            log.info(f"{config.model.path}: its gate is trained anew")
        return scorer, [Line("Outputs", f"those of {config.model.path}: {shown(scorer.rule.names)}")]
    names, rated = _ratings(session, config.gate.ratings)
    _check_verbosity(config.gate, names)
    scorer = session.score_model(config.model.path, trainable=False, new_head=True, renew=HeadRule(names, ()))
    return scorer, [fit_heads(session, scorer, rated)]


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


def _new_gate(session: Session, scorer: ScoreModel, matrix: np.ndarray) -> Gate:
    """A gate drawn from the run's seed, which becomes the scorer's."""
    config = session.config
    assert isinstance(config, RewardGateConfig)
    section = config.gate
    rule = GateRule(
        hidden=(section.width,) * section.layers,
        temperature=section.temperature,
        transform=tuple(map(tuple, matrix.astype(np.float32).tolist())),
        verbosity=section.verbosity if section.decorrelate else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        width = scorer.plain.config.get_text_config().hidden_size
        gate = made(rule, width, scale=section.scale, dropout=section.dropout).to(session.world.device)
    distributed.shard(gate, session.world, blocks=list(gate.layers))
    scorer.gate, scorer.gate_rule = gate, rule
    return gate
