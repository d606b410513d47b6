"""What losses on feedback are given, and what only a whole step can tell them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from assent.algorithms.preference.feedback import balanced
from assent.algorithms.preference.step_loss import LOSS_INPUTS, SHIFT, Inputs, Requirement, needs_of, terms_of
from assent.algorithms.preference.step_wide import SHIFT_DECAY, moved_shift, with_shift
from assent.algorithms.preference.train import Preference
from assent.config import OBJECTIVES, DataConfig, ModelConfig, preference_config
from assent.data.packing import EpochStream, window
from assent.data.tree import Branch, TokenTree
from assent.distributed import World
from assent.losses import LOSSES
from assent.losses.functions import inputs_of
from assent.models.loading import load_policy
from assent.models.policy import TokenScores
from assent.models.references import Reference

EXPENSIVE = {
    "tdpo": Requirement.ANCHOR,
    "wpo": Requirement.COLLISION,
    "kto": Requirement.MISMATCHED,
    "bco": Requirement.SHIFT,
}
"""What an objective needs beside its reference."""


def tree(*lengths: int, pairs=(), **fields) -> TokenTree:
    branches = tuple(Branch(np.arange(3, 3 + n), np.ones(n, bool)) for n in lengths)
    return TokenTree(np.arange(2), branches, pairs, {name: np.float32(values) for name, values in fields.items()})


def inputs(*trees: TokenTree) -> Inputs:
    """Log-probs -1, -2, -3, ... of the policy's tokens, and of the reference's ten times as much."""
    (batch,) = window(trees, micro_tokens=1 << 20).batches
    logprobs = -torch.arange(1.0, 1 + len(batch.label))
    none = torch.zeros_like(logprobs)
    return Inputs(batch, TokenScores(logprobs, none, 2 * logprobs, logprobs / 4), 10 * logprobs)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_needs_follow_from_the_parameters_of_a_loss(name: str):
    row = OBJECTIVES[name]
    terms = terms_of(preference_config(name, model=ModelConfig("m"), data=DataConfig("t"), out="o"))
    reference = {Requirement.REFERENCE} if row.needs_reference else set()
    assert needs_of(terms) == reference | ({EXPENSIVE[name]} if name in EXPENSIVE else set())


def test_needs_of_a_sum_are_those_of_its_terms():
    config = preference_config(
        "dpo", model=ModelConfig("m"), data=DataConfig("t"), out="o", plus={"wpo": 0.5, "tdpo": 0.1}
    )
    assert needs_of(terms_of(config)) == {Requirement.REFERENCE, Requirement.COLLISION, Requirement.ANCHOR}


def test_every_input_is_some_losss():
    asked = {name for row in OBJECTIVES.values() for name in inputs_of(LOSSES[row.loss])}
    assert set(LOSS_INPUTS) == asked


def test_inputs_of_pairs_known_numbers():
    x = inputs(tree(2, 3, pairs=((1, 0, 0.5),)), tree(1, 2, pairs=((0, 1, 0.25),)))
    read = {
        name: LOSS_INPUTS[name].read(x).tolist() for name in LOSS_INPUTS if name.rpartition("_")[0] or name == "margin"
    }
    assert read == {
        "policy_chosen": [-12.0, -6.0],  # -3 -4 -5, and -6
        "policy_rejected": [-3.0, -15.0],  # -1 -2, and -7 -8
        "reference_chosen": [-120.0, -60.0],
        "reference_rejected": [-30.0, -150.0],
        "length_chosen": [3.0, 1.0],
        "length_rejected": [2.0, 2.0],
        "weight_chosen": pytest.approx(np.exp([4.0, 6.0]).tolist()),  # exp of the mean of -x + 2x
        "weight_rejected": pytest.approx(np.exp([1.5, 7.5]).tolist()),
        "kl_chosen": [-3.0, -1.5],
        "kl_rejected": [-0.75, -3.75],
        "policy_chosen_shared": [-7.0, -6.0],  # -3 -4: as many as the other has
        "policy_rejected_shared": [-3.0, -7.0],
        "reference_chosen_shared": [-70.0, -60.0],
        "reference_rejected_shared": [-30.0, -70.0],
        "margin": [0.5, 0.25],
    }


def test_the_shift_follows_the_mean_of_both_kinds():
    both = {"reward/desirable": 3.0, "reward/undesirable": -1.0, "reward/chosen": 9.0}
    assert moved_shift(2.0, both) == pytest.approx(SHIFT_DECAY * 2.0 + (1 - SHIFT_DECAY) * 1.0)
    assert moved_shift(2.0, {"reward/desirable": 3.0}) == 2.0  # of one kind alone nothing is learnt
    made = with_shift(window([tree(2, 3, label=[1, 0])], micro_tokens=100), 0.7)
    assert made.batches[0].per_response[SHIFT].tolist() == pytest.approx([0.7, 0.7])


def test_bco_moves_its_shift_after_the_step(tiny_model_dir: Path, tmp_path: Path):
    """By the step's own rewards, and the checkpoint holds it: what the loss reads is that of the steps before."""
    model = ModelConfig(str(tiny_model_dir), precision="fp32")
    config = preference_config("bco", model=model, data=DataConfig("t"), out="o")
    trees = [tree(2, 3, label=[1, 0]), tree(4, label=[0])]

    def make() -> Preference:
        policy = load_policy(model, max_length=16)
        stream = EpochStream(trees, batch_size=2, micro_tokens=100, seed=0, flat=False)
        terms = balanced(terms_of(config), trees)
        world = World(0, 1, 0, torch.device("cpu"))
        return Preference(policy, Reference(policy, None), stream, OBJECTIVES["bco"], terms, world)

    algorithm = make()
    algorithm.stepped({"reward/desirable": 1.0, "reward/undesirable": 0.0})
    assert algorithm.shift == pytest.approx(0.05)
    state = algorithm.state_dict()
    assert algorithm.state_dict() == state and algorithm.shift == pytest.approx(0.05)
    other = make()
    other.load_state_dict(state)
    (batch,) = other.prepare(other.stream.pack(trees)).batches
    assert batch.per_response[SHIFT].tolist() == pytest.approx([0.05] * 3)
