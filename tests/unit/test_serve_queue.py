"""Requests before one model: who shares a forward pass with whom, who waits, who is refused, and who is never
answered."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from assent.data.packing import plan
from assent.data.tree import Branch, TokenTree
from assent.serve.queue import Queue
from assent.serve.scorer import Values, Work
from assent.serve.shapes import Answers, Refusal

MICRO = 100


class Model:
    """Gives each response the number of its first token, and twice that; keeps which tokens came together. `gate` may
    hold it back, `broken` are tokens on which it fails."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()
        self.broken: set[int] = set()

    def __call__(self, trees: Sequence[TokenTree]) -> Values:
        self.inside.set()
        assert self.gate.wait(10)
        numbers = [int(branch.ids[0]) for tree in trees for branch in tree.branches]
        self.passes.append(numbers)
        if self.broken & set(numbers):
            raise RuntimeError("no memory")
        rewards = np.array(numbers, np.float32)
        return Values(rewards, np.stack([rewards, 2 * rewards], 1))


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def queue(model: Model) -> Iterator[Queue]:
    made = Queue(model, micro_tokens=MICRO, wait=0.02, requests=5, tokens=1000)
    yield made
    model.gate.set()
    made.close()
    assert made.end(10)


def work(*numbers: int, size: int = 20) -> Work:
    """A tree of `size` tokens for each number."""
    trees = [TokenTree(np.zeros(1, int), (Branch(np.full(size - 1, n), np.ones(size - 1, bool)),)) for n in numbers]
    passes = plan([size] * len(trees), micro_tokens=MICRO, ranks=1)[0]
    return Work(trees, np.arange(len(trees)), passes, size * len(trees), [size] * len(trees))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


async def together(queue: Queue, *works: Work) -> list[Answers | BaseException]:
    return await asyncio.gather(*(queue.answers(one) for one in works), return_exceptions=True)


def test_small_requests_share_a_pass_up_to_its_size(model: Model, queue: Queue) -> None:
    answers = asyncio.run(together(queue, *(work(n) for n in range(7))))
    assert [answer.rewards.tolist() for answer in answers] == [[float(n)] for n in range(7)]
    assert [answer.outputs.tolist() for answer in answers] == [[[n, 2.0 * n]] for n in range(7)]
    assert model.passes == [[0, 1, 2, 3, 4], [5, 6]] and queue.tokens == 0 and queue.passes == 2


def test_a_full_pass_does_not_wait_and_a_lone_request_waits_as_told(model: Model) -> None:
    slow = Queue(model, micro_tokens=MICRO, wait=0.3, requests=9, tokens=1000)
    begun = time.monotonic()
    asyncio.run(together(slow, *(work(n) for n in range(5))))
    assert time.monotonic() - begun < 0.25
    asyncio.run(together(slow, work(1)))
    assert time.monotonic() - begun > 0.3
    slow.close()
    assert slow.end(5)


def test_a_large_request_goes_alone_and_takes_turns(model: Model, queue: Queue) -> None:
    model.gate.clear()

    async def run() -> list[Answers]:
        first = asyncio.ensure_future(queue.answers(work(50)))
        await asyncio.to_thread(model.inside.wait, 10)
        rest = [asyncio.ensure_future(queue.answers(one)) for one in (work(*range(12)), work(60), work(61))]
        await asyncio.sleep(0)
        model.gate.set()
        return await asyncio.gather(first, *rest)

    answers = asyncio.run(run())
    assert answers[1].rewards.tolist() == [float(n) for n in range(12)] and answers[1].tokens == [20] * 12
    large = [numbers for numbers in model.passes if max(numbers) < 12]
    assert sorted(sum(large, [])) == list(range(12)) and len(large) == 3
    assert model.passes[0] == [50] and model.passes[2] == [60, 61]  # behind its first pass, before its second


def test_one_that_fails_alone_does_not_touch_others(model: Model, queue: Queue, caplog) -> None:
    model.broken = {2}
    answers = asyncio.run(together(queue, *(work(n) for n in range(4))))
    assert isinstance(answers[2], Refusal) and answers[2].status == 500 and "RuntimeError: no memory" in answers[2].why
    assert [answers[n].rewards.tolist() for n in (0, 1, 3)] == [[0.0], [1.0], [3.0]]
    assert queue.tokens == 0 and "a request failed in the model" in caplog.text
    assert asyncio.run(together(queue, work(7)))[0].rewards.tolist() == [7.0]


def test_a_large_request_that_fails_is_not_tried_further(model: Model, queue: Queue) -> None:
    model.broken = set(range(20))
    (answer,) = asyncio.run(together(queue, work(*range(12))))
    assert isinstance(answer, Refusal) and len(model.passes) == 1 and queue.tokens == 0


def test_who_leaves_frees_the_place(model: Model, queue: Queue) -> None:
    model.gate.clear()

    async def run() -> None:
        first = asyncio.ensure_future(queue.answers(work(1)))
        await asyncio.to_thread(model.inside.wait, 10)
        waiting = asyncio.ensure_future(queue.answers(work(2, 3)))
        large = asyncio.ensure_future(queue.answers(work(*range(20, 32))))
        await asyncio.sleep(0.01)
        assert queue.tokens == 20 + 40 + 240
        waiting.cancel()
        large.cancel()
        await asyncio.sleep(0.01)
        assert queue.tokens == 20
        first.cancel()
        await asyncio.gather(first, waiting, large, return_exceptions=True)
        model.gate.set()

    asyncio.run(run())
    assert asyncio.run(together(queue, work(4)))[0].rewards.tolist() == [4.0]
    assert model.passes == [[1], [4]] and queue.tokens == 0


def test_a_large_request_whose_client_leaves_between_passes_ends(model: Model, queue: Queue) -> None:
    model.gate.clear()

    async def run() -> None:
        large = asyncio.ensure_future(queue.answers(work(*range(12))))
        await asyncio.to_thread(model.inside.wait, 10)
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        model.gate.set()

    asyncio.run(run())
    assert asyncio.run(together(queue, work(40)))[0].rewards.tolist() == [40.0]
    assert len(model.passes) == 2


def test_it_refuses_before_it_drowns(model: Model, queue: Queue) -> None:
    model.gate.clear()

    async def run() -> None:
        first = asyncio.ensure_future(queue.answers(work(*range(49))))  # alone it may be as large as it likes
        await asyncio.sleep(0.01)
        with pytest.raises(Refusal, match="980 tokens are under way; with the 40 .* more than 1,000") as refused:
            await queue.answers(work(1, 2))
        assert refused.value.status == 503 and 1 <= int(refused.value.headers["retry-after"]) <= 60
        model.gate.set()
        await first

    asyncio.run(run())
    model.gate.clear()
    places = [queue.place() for _ in range(6)]
    for place in places[:5]:
        place.__enter__()
    with pytest.raises(Refusal, match="5 requests are under way") as refused:
        places[5].__enter__()
    assert refused.value.status == 503 and refused.value.wait == 1
    for place in places[:5]:
        place.__exit__(None, None, None)
    with queue.place():
        assert queue.requests == 1


def test_what_was_taken_is_answered_after_the_close(model: Model, queue: Queue) -> None:
    async def run() -> Answers:
        with queue.place():
            queue.close()
            with pytest.raises(Refusal, match="stopping"):
                queue.place().__enter__()
            await asyncio.sleep(0.05)  # it is still being read
            return await queue.answers(work(3))

    assert asyncio.run(run()).rewards.tolist() == [3.0]


def test_it_says_when_to_come_again(model: Model, queue: Queue) -> None:
    queue.tokens, queue._speed = 5000, 1000.0
    assert queue.wait() == 6
    queue.tokens = 10**9
    assert queue.wait() == 60
    queue.tokens = 0
