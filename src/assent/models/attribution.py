"""Which tokens a reward hangs on: the gradient of a reward model's score by the embeddings of what it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from assent.data.tree import TreeBatch
from assent.errors import ModelError
from assent.models.policy import ScoreModel


def attributed(model: ScoreModel, batch: TreeBatch) -> tuple[Tensor, Tensor]:
    """The reward of each response, [S], and what each trained token adds to it, to first order, [N] fp32:

        a_t = <d reward / d e_t, e_t>       e_t: the embedding of token t as the model looks it up

    (gradient x input, arXiv 1605.01713). No response sees another, so one backward pass of the sum of all rewards gives
    each token the gradient of its own. Raises ModelError where the model's code does not look its tokens up once."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, _arguments: Any, looked_up: Tensor) -> Tensor:
        seen.append(looked_up.detach().requires_grad_())
        return seen[-1]

    handle = model.plain.get_input_embeddings().register_forward_hook(note)
    try:
        with torch.enable_grad():
            reward = model.rewards(batch).reward
            if len(seen) != 1:
                raise ModelError(
                    f"{type(model.plain).__name__} looks the embeddings of its tokens up {len(seen)} times, and "
                    "--rewards.credit needs the gradient by them. Use --rewards.credit last."
                )
            (slope,) = torch.autograd.grad(reward.sum(), seen[0])
    finally:
        handle.remove()
    parts = (slope.float() * seen[0].detach().float()).sum(-1)  # [1, T] of a packed stream, [trees, L] of padded rows
    if not model.tree:
        rows = zip(parts, batch.segments, strict=True)
        parts = torch.cat([row[: segment.end - segment.start] for row, segment in rows])
    return reward.detach(), parts.reshape(-1)[batch.label]
