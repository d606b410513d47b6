"""Two ranks whose gathered weights are given back between forward and backward give the gradient of one process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from assent import distributed as d

WORKER = Path(__file__).parent / "workers" / "resharded.py"
_spec = importlib.util.spec_from_file_location("resharded_worker", WORKER)
worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)

ONE = d.World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def double(program_ranks, tiny_model_dir: Path, tmp_path_factory) -> Path:
    """Two ranks, every way after the other."""
    out = tmp_path_factory.mktemp("resharded")
    program_ranks(out, [str(WORKER), str(tiny_model_dir), str(out)]).join()
    return out


@pytest.mark.parametrize("way", worker.WAYS)
def test_the_gradient_does_not_depend_on_when_weights_are_given_back(way: str, double: Path, tiny_model_dir: Path):
    single = worker.gradients(tiny_model_dir, way, ONE, [worker.batch(0), worker.batch(1)])
    got = torch.load(double / f"{way}.pt")
    assert got.keys() == single.keys() and "value_head.weight" in got
    assert ("model.model.embed_tokens.weight" in got) == (way != "value head alone")
    for name, wanted in single.items():
        torch.testing.assert_close(got[name], wanted, atol=2e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
