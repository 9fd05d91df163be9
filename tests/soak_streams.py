"""For the soak: streams that know what their generators did, read and left at random."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
from typing import TYPE_CHECKING

from eager_async import EagerStream, eager_stream, shared_loop
from soak_calls import LOOP_FACTORIES, BodyError, Round

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

END = -1


class Flow:
    """One stream: what its generator is to do, what it has done, and what came out."""

    def __init__(self, rng: random.Random) -> None:
        self.number = rng.getrandbits(60)  # what its exception says
        self.length = rng.randrange(60)
        self.fails = rng.random() < 0.2
        self.seed = rng.random()
        self.begun = self.ended = 0
        self.raised = self.seen = False  # its exception
        self.taken: list[int] = []
        self.left = False

    async def __call__(self) -> AsyncIterator[int]:
        """Yield and wait at random, and perhaps fail."""
        rng = random.Random(self.seed)
        self.begun += 1
        try:
            for number in range(self.length):
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.choice([0, 0, 0.0005]))
                yield number
            if self.fails:
                self.raised = True
                raise BodyError(self.number)
        finally:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:  # left while it ends by itself: this takes the place of the error
                self.raised = False
                raise
            finally:
                self.ended += 1

    def __repr__(self) -> str:
        return f"<stream {self.number} of {self.length}: {vars(self)}>"

    def check_end(self, this: Round) -> None:
        """What must be true when all loops have ended."""
        if self.taken != list(range(len(self.taken))):
            this.problems.append(f"items lost or out of order: {self}")
        if not self.left and (len(self.taken) != self.length or self.seen != self.fails):
            this.problems.append(f"ended too early: {self}")
        if not self.begun == self.ended == 1 and not (self.left and self.begun == self.ended == 0):
            this.problems.append(f"did not end well: {self}")


def start(this: Round, rng: random.Random) -> tuple[Flow, EagerStream[int]]:
    """Start a stream."""
    flow = Flow(rng)
    this.flows.append(flow)
    return flow, eager_stream(buffer=rng.choice([1, 2, 16, 1000]))(flow)()


def read_stream(this: Round, rng: random.Random) -> None:
    """Read a stream in plain code, in new loops and on the background loop by turns; perhaps leave it."""
    flow, stream = start(this, rng)
    leaving = rng.choice(["", "", "drop", "close", "with"])
    flow.left = leaving != ""
    try:
        for _ in range(rng.randrange(4) if flow.left else sys.maxsize):
            if _take_some(flow, stream, rng):
                return
        if leaving == "close":
            stream.close()
        elif leaving == "with":
            with stream:
                pass
    except BodyError as exc:
        flow.seen = exc.args == (flow.number,)


def _take_some(flow: Flow, stream: EagerStream[int], rng: random.Random) -> bool:
    """Take a few items in one of the three places; return whether that was the end."""
    count = rng.randrange(1, 20)
    place = rng.randrange(6)
    if place == 0:
        with asyncio.Runner(loop_factory=rng.choice(LOOP_FACTORIES)) as runner:
            return runner.run(_take_some_awaiting(flow, stream, rng, count))
    if place == 1:
        task = shared_loop().create_task(_take_some_awaiting(flow, stream, rng, count))
        return task.result()
    for number in itertools.islice(stream, count):
        flow.taken.append(number)
        count -= 1
    return count > 0


async def _take_some_awaiting(flow: Flow, stream: EagerStream[int], rng: random.Random, count: int) -> bool:
    for _ in range(count):
        with contextlib.suppress(TimeoutError):
            number = await asyncio.wait_for(_next_of(stream), rng.choice([None, None, 0.0001]))
            if number == END:
                return True
            flow.taken.append(number)
    return False


async def _next_of(stream: EagerStream[int]) -> int:
    return await anext(stream, END)


async def read_stream_awaiting(this: Round, rng: random.Random) -> None:
    """Read a stream in a task of this loop; perhaps leave it."""
    flow, stream = start(this, rng)
    leaving = rng.choice(["", "", "drop", "aclose", "async with"])
    flow.left = leaving != ""
    try:
        for _ in range(rng.randrange(4) if flow.left else sys.maxsize):
            if await _take_some_awaiting(flow, stream, rng, rng.randrange(1, 20)):
                return
        if leaving == "aclose":
            await stream.aclose()
        elif leaving == "async with":
            async with stream:
                pass
    except BodyError as exc:
        flow.seen = exc.args == (flow.number,)
