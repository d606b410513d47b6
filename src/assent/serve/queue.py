"""Requests of all clients before one model: what waits is bounded, and what goes through the model together is packed.

A request that fits into one forward pass shares it with others that wait. A larger one goes through alone, pass by pass
as if nobody else were there, and takes turns with the others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np

from assent.data.tree import TokenTree
from assent.foreign import named
from assent.serve.scorer import Values, Work
from assent.serve.shapes import Answers, Refusal

log = logging.getLogger(__name__)

FIRST_SPEED = 10_000.0
"""Tokens a second, before any were measured."""
LONGEST_WAIT = 60


@dataclass(eq=False)
class _Job:
    """A request on its way. `values` are those of its trees so far."""

    work: Work
    arrived: float
    future: Future[Answers] = field(default_factory=Future)
    done: int = 0
    left: bool = False
    values: list[Values | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = [None] * len(self.work.trees)

    @property
    def small(self) -> bool:
        return len(self.work.passes) == 1

    def take(self, which: Sequence[int], values: Values) -> None:
        """The values of those of its trees."""
        cuts = np.cumsum([len(self.work.trees[index].branches) for index in which])[:-1]
        rewards, outputs = np.split(values.rewards, cuts), np.split(values.outputs, cuts)
        for index, reward, output in zip(which, rewards, outputs, strict=True):
            self.values[index] = Values(reward, output)
        self.done += 1

    def finish(self) -> None:
        found = [values for values in self.values if values is not None]
        rewards = np.concatenate([values.rewards for values in found])[self.work.order]
        outputs = np.concatenate([values.outputs for values in found])[self.work.order]
        self.settle(Answers(rewards, outputs, self.work.tokens))

    def settle(self, answers: Answers | Exception) -> None:
        with suppress(InvalidStateError):  # its client left
            if isinstance(answers, Exception):
                self.future.set_exception(answers)
            else:
                self.future.set_result(answers)


class Queue:
    """Requests that wait for the model, and the thread that asks it. `values` is the model."""

    def __init__(
        self,
        values: Callable[[Sequence[TokenTree]], Values],
        *,
        micro_tokens: int,
        wait: float,
        requests: int,
        tokens: int,
    ) -> None:
        """`micro_tokens` is the most of one forward pass, `wait` the seconds that a request waits for others,
        `requests` and `tokens` the most that may be under way."""
        self._values = values
        self._micro_tokens, self._wait = micro_tokens, wait
        self._most_requests, self._most_tokens = requests, tokens
        self._jobs: OrderedDict[_Job, None] = OrderedDict()
        self._change = threading.Condition()
        self._closing = self._ended = False
        self._speed = FIRST_SPEED
        self.requests = 0
        """Requests under way: being read, waiting, or in the model."""
        self.tokens = 0
        """Tokens that wait or are in the model."""
        self.passes = 0
        """Forward passes so far."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # ---- in the thread of the server

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests under way. Raises Refusal where there is none."""
        if self._closing:
            raise Refusal(503, "The server is stopping; it takes no more requests.", wait=1)
        if self.requests >= self._most_requests:
            raise Refusal(503, f"{self.requests:,} requests are under way; no more are taken now.", wait=self.wait())
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def wait(self) -> int:
        """Seconds in which what is under way should be done."""
        return min(LONGEST_WAIT, 1 + int(self.tokens / self._speed))

    async def answers(self, work: Work) -> Answers:
        """What the model says. Raises Refusal where too much waits already; where it is cancelled, the request goes."""
        size = work.size
        with self._change:
            if self.tokens and self.tokens + size > self._most_tokens:
                raise Refusal(
                    503,
                    f"{self.tokens:,} tokens are under way; with the {size:,} of this request they would be more than "
                    f"{self._most_tokens:,}.",
                    wait=self.wait(),
                )
            job = _Job(work, time.monotonic())
            self.tokens += size
            self._jobs[job] = None
            self._change.notify()
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            with self._change:
                self.tokens -= size
                job.left = True
                self._jobs.pop(job, None)  # it is not there while it is in the model

    def close(self) -> None:
        """Takes no more requests; those under way are answered."""
        with self._change:
            self._closing = True
            self._change.notify()

    def end(self, timeout: float) -> bool:
        """No request is under way any more: waits for the thread to end. Whether it did."""
        with self._change:
            self._closing = self._ended = True
            self._change.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def closing(self) -> bool:
        return self._closing

    # ---- in the thread of the model

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            first = jobs[0]
            self._pass(jobs, None if first.small else first.work.passes[first.done])
            if not first.small and not first.future.done():
                with self._change:
                    if not first.left:
                        self._jobs[first] = None

    def _next(self) -> list[_Job] | None:
        """The requests of the next forward pass: one that needs several, or as many small ones as fit. None at the
        end."""
        with self._change:
            while True:
                if not self._jobs:
                    if self._ended:
                        return None
                    self._change.wait()
                    continue
                first = next(iter(self._jobs))
                left = first.arrived + self._wait - time.monotonic()
                if left <= 0 or not first.small or self._closing or self._waiting() >= self._micro_tokens:
                    return self._taken()
                self._change.wait(left)

    def _taken(self) -> list[_Job]:
        taken = [self._jobs.popitem(last=False)[0]]
        room = self._micro_tokens - taken[0].work.size
        for job in [job for job in self._jobs if job.small] if taken[0].small else ():
            if job.work.size <= room:
                room -= job.work.size
                del self._jobs[job]
                taken.append(job)
        return taken

    def _waiting(self) -> int:
        return sum(job.work.size for job in self._jobs if job.small)

    def _pass(self, jobs: Sequence[_Job], which: Sequence[int] | None) -> None:
        """One forward pass of the trees `which` of one job, or of all trees of several. Where it fails for several,
        each is tried alone: no client is to suffer from another."""
        chosen = [range(len(job.work.trees)) if which is None else which for job in jobs]
        trees = [job.work.trees[index] for job, indices in zip(jobs, chosen, strict=True) for index in indices]
        begun = time.monotonic()
        try:
            values = self._values(trees)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._pass([job], None)
                return
            log.error("a request failed in the model: %s", named(error))
            jobs[0].settle(Refusal(500, f"The model failed on this request: {named(error)}."))
            return
        self.passes += 1
        seconds = max(time.monotonic() - begun, 1e-6)
        self._speed += 0.2 * (sum(tree.num_tokens for tree in trees) / seconds - self._speed)
        counts = np.cumsum([sum(len(job.work.trees[i].branches) for i in c) for job, c in zip(jobs, chosen)])[:-1]
        parts = zip(np.split(values.rewards, counts), np.split(values.outputs, counts), strict=True)
        for job, indices, (rewards, outputs) in zip(jobs, chosen, parts, strict=True):
            job.take(indices, Values(rewards, outputs))
            if job.done == len(job.work.passes):
                job.finish()
