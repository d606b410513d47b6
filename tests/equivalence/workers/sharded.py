"""A small training run for one rank or several; started on two ranks by test_distributed.py, or called in process.

The model has what makes sharding hard: tied weights, a frozen weight, sizes that two ranks cannot halve.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from assent import distributed as d
from assent.config import OptimConfig
from assent.train import checkpoint
from assent.train.optim import build_optimizer, lr_at, set_lr
from assent.train.state import gather_state, load_state

VOCAB, WIDTH, STEPS, SAVE_AT = 37, 15, 4, 2
LENGTHS = (9, 4, 7, 3, 12, 2)
CONFIG = OptimConfig(lr=0.01, weight_decay=0.1, warmup=0.25, max_grad_norm=0.3)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 41)
        self.down = nn.Linear(41, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.full((VOCAB,), 0.5))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x) + self.offset


def sequences(step: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    return [torch.randint(VOCAB, (n + 1,), generator=draw) for n in LENGTHS]


def train(world: d.World, folder: Path, resume: Path | None = None) -> dict[str, object]:
    """Steps up to STEPS, a checkpoint after SAVE_AT of them; returns what happened (whole tensors on rank 0)."""
    torch.manual_seed(0)
    model = Model()
    d.shard(model, world, blocks=list(model.blocks))
    optimizer = build_optimizer([(model, CONFIG.lr)], CONFIG)
    modules = {"policy": model}
    start = 0
    if resume is not None:
        state = checkpoint.load(resume)
        load_state(state, modules, optimizer)
        start = state["loop"]["step"]
    result: dict[str, object] = {"norms": [], "losses": [], "gradient": {}}
    for step in range(start, STEPS):
        total = torch.zeros(())
        count = sum(LENGTHS)
        for ids in sequences(step)[world.rank :: world.size]:
            loss = nn.functional.cross_entropy(model(ids[:-1]), ids[1:], reduction="sum") / count
            loss.backward()
            total += loss.detach()
        if step == start:
            named = model.state_dict(keep_vars=True)
            grads = [(name, value.grad) for name, value in named.items() if getattr(value, "grad", None) is not None]
            result["gradient"] = {name: whole.clone() for name, whole in d.whole_tensors(grads)}  # clipping is in place
        result["norms"].append(d.clip_grad_norm(model.parameters(), CONFIG.max_grad_norm).item())
        result["losses"].append(d.all_sum_dict({"loss": (total, 1)})["loss"][0])
        set_lr(optimizer, lr_at(step, STEPS, CONFIG))
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == SAVE_AT:
            with torch.no_grad():
                model(sequences(step)[0])  # as after an evaluation: FSDP has left the root's weights gathered
            save(world, folder, modules, optimizer)
    result["weights"] = d.full_state_dict(model)
    return result


def save(world: d.World, folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    state = gather_state(modules, optimizer) | {"loop": {"step": SAVE_AT}}
    d.on_main(lambda: checkpoint.save(folder, SAVE_AT, state, meta={"world_size": world.size}))


def collectives(world: d.World) -> dict[str, object]:
    """What the small collectives answer on every rank."""
    mine = world.rank + 1

    def fail() -> None:
        raise ValueError("told to all")

    try:
        d.on_main(fail)
        told = ""
    except ValueError as error:
        told = str(error)
    return {
        "all_sum_dict": d.all_sum_dict({"b": (torch.tensor(2.0), mine), "a": (0.5 * mine, 1)}),
        "any": [d.any_true(world.rank == 1), d.any_true(False)],
        "broadcast": d.broadcast_object(f"from {world.rank}"),
        "gather": d.gather_objects(world.rank),
        "told": told,
        "threads": torch.get_num_threads(),
    }


def sample(world: d.World) -> list[float]:
    """Forward passes of inner parts, a different number on each rank, then a training step that must still work."""
    torch.manual_seed(0)
    model = Model()
    d.shard(model, world, blocks=list(model.blocks))
    ids = sequences(0)[0]
    sums = []
    with torch.no_grad(), d.unsharded(model):
        for _ in range(2 + 3 * world.rank):
            x = model.embed(ids)
            for block in model.blocks:
                x = block(x)
            sums.append(model.head(x).sum().item())
    assert len(set(sums)) == 1
    nn.functional.cross_entropy(model(ids[:-1]), ids[1:]).backward()
    norm = d.clip_grad_norm(model.parameters(), 0.0).item()
    return [sums[0], norm / world.size]  # every rank gave the same gradient


def main(out: Path, single_checkpoint: Path) -> None:
    world = d.init()
    straight = train(world, out / "checkpoints")
    resumed = train(world, out / "unused", resume=single_checkpoint)
    answers = d.gather_objects({"collectives": collectives(world), "sample": sample(world)})
    if world.is_main:
        for name, result in (("straight", straight), ("resumed", resumed)):
            checkpoint.save(out / name, 0, {"result": result})
        (out / "answers.json").write_text(json.dumps(answers))
    d.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
