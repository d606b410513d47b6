"""Whether the torch engine samples from the model: its first steps on a few prompts, before any work is spent."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from assent.config import SamplingConfig
from assent.errors import ModelError, NonFiniteError
from assent.foreign import named
from assent.models.attention import inexact_reason
from assent.models.parts import plain_of
from assent.models.quantize import quantised_layers
from assent.models.verify import allowed, ordinary_ids, own_outputs
from assent.rollout.torch_engine import TorchEngine

_LENGTHS = (5, 3, 7)
_SAMPLING = SamplingConfig(max_new_tokens=4, max_batch=4)
"""Fewer slots than responses, so that some are used again."""


def check_sampling(model: PreTrainedModel, max_length: int) -> None:
    """Compares the log-probs of a few sampled tokens, in fp32, with the model's own logits on each sequence alone.
    Raises ModelError where they differ, or where sequences of `max_length` tokens cannot be sampled exactly."""
    plain = plain_of(model)
    name = type(plain).__name__
    if (reason := inexact_reason(plain, max_length)) is not None:
        raise ModelError(f"{name} cannot be sampled by the torch engine: {reason}.")
    ids = ordinary_ids(plain, sum(_LENGTHS), seed=1)
    prompts = np.split(ids, np.cumsum(_LENGTHS)[:-1])
    try:
        drawn = TorchEngine(model, ()).generate(prompts, 2, _SAMPLING, seed=0)
    except NonFiniteError:
        raise
    except ModelError as error:
        raise ModelError(f"{name} cannot be sampled by the torch engine: {error}.") from error
    except Exception as error:
        raise ModelError(f"{name} cannot be sampled by the torch engine: its code fails: {named(error)}.") from error
    rows = [np.concatenate([prompt, one.ids]) for prompt, many in zip(prompts, drawn, strict=True) for one in many]
    _, logits = own_outputs(plain, rows, with_logits=True)
    worst = 0.0
    for own, row, one in zip(logits, rows, (one for many in drawn for one in many), strict=True):
        answer = torch.from_numpy(one.ids).to(own.device)
        logp = torch.log_softmax(own[len(row) - len(answer) - 1 : -1], -1).gather(1, answer[:, None])[:, 0]
        worst = max(worst, float(np.abs(logp.cpu().numpy() - one.logprobs).max()))
    if not worst <= allowed(logits, few_bits=bool(quantised_layers(plain))):
        raise ModelError(
            f"{name} cannot be sampled by the torch engine: the log-probs of its first tokens are up to {worst:.2g} "
            "nats off the model's own. It can be trained without sampling (sft, dpo, ...)."
        )
