"""Responses of the policy, from its own weights or from an engine that has a copy of them; at once, or while training
goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from assent import distributed, interrupt
from assent.config import SamplingConfig
from assent.distributed import World
from assent.models.adapters import merged_weights
from assent.models.policy import Policy
from assent.rollout.engine import Completion, Engine
from assent.rollout.rollout import Rollout, rollout_of

PATIENCE = 2.0
"""Seconds that a run which was asked to stop waits for answers that are being sampled."""
LOOK = 0.1

Answers = list[list[Completion]]


@dataclass(frozen=True, slots=True)
class Ask:
    """`n` responses to each of these prompts (token ids), which are rows `rows` of the data; at another temperature
    than that of `SamplingConfig` where one is given; by the opponent in place of the policy where there is one."""

    prompts: Sequence[np.ndarray]
    rows: np.ndarray
    n: int
    seed: int
    temperature: float | None = None
    opponent: bool = False


class Sampler:
    """Every rank samples its share of the prompts and gets all responses. `owns_weights` says that the engine has a
    copy of the policy's weights, which it is sent before it samples; without it they are the very same tensors.
    `opponent` samples from the very tensors of the policy and of `reference` (None: the policy has them all)."""

    def __init__(
        self,
        world: World,
        policy: Policy,
        engine: Engine,
        sampling: SamplingConfig,
        *,
        owns_weights: bool = False,
        opponent: Engine | None = None,
        reference: Policy | None = None,
    ) -> None:
        assert opponent is None or not owns_weights, "an opponent is sampled from while nobody trains"
        self.world, self.policy, self.engine, self.sampling = world, policy, engine, sampling
        self.owns_weights, self.opponent, self.reference = owns_weights, opponent, reference
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._under_way: tuple[Sequence[Ask], Future[list[Answers]]] | None = None

    def sample(self, asks: Sequence[Ask]) -> list[Rollout]:
        """What each of `asks` asks for, by the policy as it is now."""
        assert self._under_way is None, "the engine is busy"
        if not self.owns_weights:
            other = self.reference if any(ask.opponent for ask in asks) else None
            with distributed.unsharded(self.policy), nullcontext() if other is None else distributed.unsharded(other):
                return self._gather(asks, lambda: self._generate(asks))
        self.engine.update_weights(weights_of(self.policy))
        return self._gather(asks, lambda: self._generate(asks))

    def begin(self, asks: Sequence[Ask]) -> None:
        """Starts to sample by the policy as it is now, and returns at once."""
        assert self.owns_weights and self._under_way is None
        self.engine.update_weights(weights_of(self.policy))
        self._under_way = (asks, self._thread.submit(self._generate, asks))

    @property
    def busy(self) -> bool:
        """Whether something was begun and not fetched yet."""
        return self._under_way is not None

    def finish(self) -> list[Rollout]:
        """What was begun, as `sample` gives it."""
        assert self._under_way is not None, "nothing was begun"
        asks, future = self._under_way
        try:
            found = self._gather(asks, future.result)
        except Exception:
            self._under_way = None
            raise
        self._under_way = None  # not before: whoever is interrupted in here may still wait for it
        return found

    def finish_in_time(self) -> list[Rollout] | None:
        """What was begun, waited for in full unless the run was asked to stop, and then for `PATIENCE` seconds more;
        None where it did not come, or failed, on any rank."""
        if self._under_way is None:
            return None
        (asks, future), self._under_way = self._under_way, None
        patience = PATIENCE
        while not future.done() and patience > 0:
            wait([future], LOOK)
            patience -= LOOK if interrupt.requested() else 0.0
        lost = not future.done() or future.exception() is not None
        return None if distributed.any_true(lost) else self._gather(asks, future.result)

    def _generate(self, asks: Sequence[Ask]) -> list[Answers]:
        """This rank's share. No collectives in here: it may run beside the training."""
        found = []
        for ask in asks:
            mine = share(len(ask.prompts), self.world)
            sampling = self.sampling
            if ask.temperature is not None:
                sampling = replace(sampling, temperature=ask.temperature)
            engine = self.opponent if ask.opponent else self.engine
            assert engine is not None, "there is no opponent"
            found.append(engine.generate(ask.prompts[mine], ask.n, sampling, ask.seed, mine.start))
        return found

    def _gather(self, asks: Sequence[Ask], generate: Callable[[], list[Answers]]) -> list[Rollout]:
        parts = distributed.gathered(generate)
        return [
            rollout_of(
                ask.prompts, ask.rows, [group for part in parts for group in part[number]], demonstrations=ask.opponent
            )
            for number, ask in enumerate(asks)
        ]


def share(number: int, world: World) -> slice:
    """Which of `number` things this rank does, in equal shares."""
    size = -(-number // world.size)
    return slice(world.rank * size, min(number, (world.rank + 1) * size))


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """The policy's weights as those of a plain Hugging Face model, whole, on every rank; adapters are merged in."""
    state = distributed.full_state_dict(policy.model, everywhere=True)
    return merged_weights(policy.model, state) if hasattr(policy.model, "peft_config") else state
