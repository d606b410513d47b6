"""Drawing next tokens: inverse-CDF sampling with one uniform per row.

The uniform for token t of response i of prompt p depends on (seed, p, i, t) alone, so what is sampled does not depend
on how sequences were batched.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 128  # tokens summed at once in the search
_LIKELY = 256  # tokens among which top-p looks first; sorting a whole vocabulary is far slower
_BELOW_ONE = 1.0 - 2.0**-52  # times x is below x for every x > 0, after rounding


def uniforms(seed: int, prompt: int, response: int, count: int) -> np.ndarray:
    """The first `count` uniforms of one response, [count] float64 in [0, 1), from a Philox stream of its own. A longer
    request begins with the same numbers."""
    key = np.array([seed & (2**64 - 1), (prompt << 32) | response], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def sample(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    unused: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws one token per row.

        p = softmax(logits / temperature),  id = first j with sum_{k <= j} q_k > uniform * sum_k q_k

    where q is p on the tokens that top-k and then top-p keep, and 0 elsewhere. Equal probabilities are kept lowest id
    first, so exactly k tokens remain, and the fewest whose probability (of the k) reaches top_p. A token of zero
    probability is never drawn, nor one of `unused` (ids [U] that no token has, where a vocabulary is padded).
    Temperature 0 takes the most likely token.

    logits [B, V], uniform [B] float64 in [0, 1) -> ids [B] int64, log p of the ids [B] float32. Log-probabilities are
    those of the policy, as training sees them: after the temperature, before top-k and top-p (temperature 0: at
    temperature 1), and of the whole vocabulary, `unused` included.
    """
    assert logits.ndim == 2 and uniform.shape == logits.shape[:1], (logits.shape, uniform.shape)
    z = logits.float()  # first: softmax(dtype=...) of bf16 takes several times as long on a CPU
    p = torch.softmax(z if temperature in (0.0, 1.0) else z / temperature, dim=-1)
    if temperature == 0.0:
        ids = (logits if unused is None else logits.index_fill(-1, unused, float("-inf"))).argmax(-1)
    else:
        if unused is not None:
            p.index_fill_(-1, unused, 0.0)
        q = _keep_top_k(p, top_k) if 0 < top_k < p.shape[-1] else p
        ids = _invert(_keep_top_p(q, top_p) if top_p < 1.0 else q, uniform)
    return ids, p.gather(-1, ids[:, None]).squeeze(-1).log()


def _invert(weight: Tensor, uniform: Tensor) -> Tensor:
    """First index whose running sum of `weight` exceeds uniform * sum. Two levels, blocks then tokens, in float64: one
    pass over the vocabulary, and no rounding trouble in long sums. Every comparison is strict and every target is
    below the last sum, so the index has positive weight."""
    if weight.shape[-1] % _BLOCK:
        weight = F.pad(weight, (0, -weight.shape[-1] % _BLOCK))
    blocks = weight.view(weight.shape[0], -1, _BLOCK)
    sums = blocks.sum(-1, dtype=torch.float32).double().cumsum(-1)
    target = uniform.clamp(max=_BELOW_ONE) * sums[:, -1]
    block = (sums <= target[:, None]).sum(-1, keepdim=True)
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp(min=0)), 0.0)
    share = (target[:, None] - before) / (sums.gather(-1, block) - before)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK)).squeeze(1).double().cumsum(-1)
    offset = (inside <= share.clamp(0.0, _BELOW_ONE) * inside[:, -1:]).sum(-1)
    return block.squeeze(-1) * _BLOCK + offset


def _keep_top_k(weight: Tensor, k: int) -> Tensor:
    count = torch.full((weight.shape[0], 1), k, device=weight.device)
    return _keep(weight, weight.topk(k, dim=-1).values[:, -1:], count)


def _keep_top_p(weight: Tensor, p: float) -> Tensor:
    mass = p * weight.sum(-1, keepdim=True, dtype=torch.float64)
    ordered = weight.topk(min(_LIKELY, weight.shape[-1]), dim=-1).values
    if (ordered.sum(-1, keepdim=True, dtype=torch.float64) < mass).any():
        ordered = weight.sort(dim=-1, descending=True).values
    before = ordered.double().cumsum(-1) - ordered
    count = (before < mass).sum(-1, keepdim=True).clamp(min=1)
    return _keep(weight, ordered.gather(-1, count - 1), count)


def _keep(weight: Tensor, least: Tensor, count: Tensor) -> Tensor:
    """The `count` largest weights of each row, the least of which is `least` [B, 1]; ties lowest id first; rest 0."""
    above = weight > least
    tied = weight == least
    room = count - above.sum(-1, keepdim=True)
    return torch.where(above | (tied & (tied.cumsum(-1) <= room)), weight, 0.0)
