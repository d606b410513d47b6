"""Two gloo ranks give what one process gives: gradients, norms, course of training, checkpoints both ways."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from assent import distributed as d
from assent.errors import CheckpointError
from assent.train import checkpoint
from assent.train.optim import build_optimizer
from assent.train.state import load_state

WORKER = Path(__file__).parent / "workers" / "sharded.py"
_spec = importlib.util.spec_from_file_location("sharded_worker", WORKER)
worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)

ONE = d.World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(program_ranks, tmp_path_factory):
    """One process, then two ranks that do everything the tests below look at."""
    out = tmp_path_factory.mktemp("ranks")
    single = worker.train(ONE, out / "single")
    program_ranks(out, [str(WORKER), str(out), str(out / "single" / "step-000002")]).join()
    double = checkpoint.load(out / "straight" / "step-000000")["result"]
    resumed = checkpoint.load(out / "resumed" / "step-000000")["result"]
    return out, single, double, resumed, json.loads((out / "answers.json").read_text())


def assert_close(got: dict, wanted: dict, tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_gradient_norm_and_loss_of_two_ranks(runs):
    """Ranks hold 28 and 9 of the 37 tokens, so an average over ranks would be wrong."""
    _, single, double, _, _ = runs
    assert_close(double["gradient"], single["gradient"], 1e-6)
    assert double["losses"] == pytest.approx(single["losses"], rel=1e-6)
    assert double["norms"] == pytest.approx(single["norms"], rel=1e-6)
    assert min(single["norms"]) > worker.CONFIG.max_grad_norm  # clipping was at work


def test_course_of_two_ranks(runs):
    _, single, double, _, _ = runs
    assert_close(double["weights"], single["weights"], 1e-5)


def test_checkpoint_of_one_rank_continues_on_two(runs):
    _, single, double, resumed, _ = runs
    assert resumed["losses"] == pytest.approx(single["losses"][2:], rel=1e-6)
    assert_close(resumed["weights"], single["weights"], 1e-5)


def test_checkpoint_of_two_ranks_continues_on_one(runs, tmp_path):
    out, single, double, _, _ = runs
    path = checkpoint.newest_complete(out / "checkpoints")
    assert checkpoint.read_manifest(path)["meta"] == {"world_size": 2}
    resumed = worker.train(ONE, tmp_path, resume=path)
    assert resumed["losses"] == pytest.approx(double["losses"][2:], rel=1e-6)
    assert_close(resumed["weights"], double["weights"], 1e-5)


def test_checkpoint_on_one_rank_is_exact(runs, tmp_path):
    out, single, _, _, _ = runs
    resumed = worker.train(ONE, tmp_path, resume=out / "single" / "step-000002")
    assert resumed["losses"] == single["losses"][2:]
    assert all(torch.equal(resumed["weights"][name], single["weights"][name]) for name in single["weights"])


def test_collectives(runs):
    for rank, answer in enumerate(runs[4]):
        got = answer["collectives"]
        assert got["all_sum_dict"] == {"a": [1.5, 2.0], "b": [4.0, 3.0]}
        assert got["any"] == [True, False]
        assert got["broadcast"] == "from 0" and got["gather"] == [0, 1]
        assert got["told"] == "told to all", f"rank {rank} did not hear of rank 0's error"
        assert got["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)


def test_unsharded_forward_needs_no_company(runs):
    alone = worker.sample(ONE)
    for answer in runs[4]:
        assert answer["sample"] == pytest.approx(alone, rel=1e-5)


def test_one_process_collectives_are_identities():
    assert d.all_sum_dict({"a": (torch.tensor(1.5), 2)}) == {"a": (1.5, 2.0)}
    assert d.all_sum_dict({}) == {}
    assert d.any_true(True) and not d.any_true(False)
    assert d.broadcast_object("x") == "x" and d.gather_objects(3) == [3] and d.on_main(lambda: 4) == 4


def test_wrong_weights_are_named():
    model = worker.Model()
    state = d.full_state_dict(model)
    with pytest.raises(CheckpointError, match=r"lacks 1 of .* 'head.weight'"):
        d.load_full_state_dict(model, {name: t for name, t in state.items() if name != "head.weight"})
    with pytest.raises(CheckpointError, match=r"1 weights the model lacks, first 'odd'"):
        d.load_full_state_dict(model, state | {"odd": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'offset' has shape \(3,\) in the checkpoint, \(37,\) here"):
        d.load_full_state_dict(model, state | {"offset": torch.zeros(3)})


def test_wrong_optimizer_state_is_named():
    model = torch.nn.Linear(2, 3)
    optimizer = build_optimizer([(model, 0.1)], worker.CONFIG)

    def load(name: str) -> None:
        state = {"policy": model.state_dict(), "optimizer": {"exp_avg": {name: torch.zeros(1)}}}
        load_state(state, {"policy": model}, optimizer)

    with pytest.raises(CheckpointError, match="'policy.other'"):
        load("policy.other")
    with pytest.raises(CheckpointError, match=r"'policy.weight' has shape \(1,\)"):
        load("policy.weight")
