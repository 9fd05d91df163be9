"""Streams for tests: generators whose steps can be followed, and who consumes what they make."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import itertools
import threading
from typing import TYPE_CHECKING, Any

from eager_async import BackgroundLoop, EagerStream, eager_stream, shared_loop
from gates import Gate
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]


END: Any = "the end"

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


class StumbledError(Exception):
    """What a generator raises."""


class Source:
    """An async generator function whose steps a test can follow."""

    def __init__(self, last: float = float("inf"), *, pausing: bool = False) -> None:
        self.last = last
        self.pausing = pausing  # whether it lets the loop turn before each item
        self.made: list[int] = []
        self.begun = threading.Event()
        self.cleaned = threading.Event()
        self.cleaned_in: list[threading.Thread] = []

    async def __call__(self) -> AsyncIterator[int]:
        """Count from 1 on."""
        self.begun.set()
        try:
            for number in itertools.count(1):
                if number > self.last:
                    return
                if self.pausing:
                    await asyncio.sleep(0)
                self.made.append(number)
                yield number
        finally:
            await asyncio.sleep(0)
            self.cleaned_in.append(threading.current_thread())
            self.cleaned.set()

    def check_cleaned_once(self) -> None:
        """Its `finally` has run, once, or is about to."""
        assert self.cleaned.wait(PATIENCE)
        settle()
        assert len(self.cleaned_in) == 1


class Cleanup:
    """An async generator function that yields one item, and waits; its cleanup lasts until a gate opens."""

    def __init__(self) -> None:
        self.begun, self.gate = threading.Event(), Gate()
        self.steps: list[str] = []

    async def __call__(self) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(PATIENCE)
        finally:
            self.begun.set()
            try:
                await self.gate.passed()
                self.steps.append("cleaned")
            except asyncio.CancelledError:
                self.steps.append("interrupted")
                raise


async def some_turns() -> None:
    """Let other tasks of the loop go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def settle(loop: BackgroundLoop | None = None) -> None:
    """Let the background loop turn until a generator that awaits nothing is at rest."""
    (loop or shared_loop()).create_task(some_turns()).result(PATIENCE)


async def collect(stream: EagerStream[Any]) -> list[Any]:
    """Return all items."""
    return [item async for item in stream]


async def next_of(stream: EagerStream[Any]) -> Any:
    """Return the next item, or END."""
    return await anext(stream, END)


async def leave(stream: EagerStream[Any]) -> None:
    """Close."""
    await stream.aclose()


def run_in_thread(function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    """Call a function in a thread of its own."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future


@eager_stream
async def numbers(last: int) -> AsyncIterator[int]:
    """Count to the last number."""
    for number in range(1, last + 1):
        yield number


@eager_stream
async def numbers_slowly(last: int) -> AsyncIterator[int]:
    """Count, and let the loop turn each time."""
    for number in range(1, last + 1):
        await asyncio.sleep(0)
        yield number


@eager_stream
async def stumble(last: int) -> AsyncIterator[int]:
    """Count, and raise."""
    for number in range(1, last + 1):
        yield number
    raise StumbledError("no")


@eager_stream
async def gated(gate: Gate) -> AsyncIterator[int]:
    """Make two items when the gate is open."""
    await gate.passed()
    yield 1
    yield 2


@eager_stream
async def never() -> AsyncIterator[int]:
    """Make nothing until the end."""
    await asyncio.sleep(PATIENCE)
    yield 1


class Consumer:
    """How a stream is consumed: in plain code, or by tasks of an event loop."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any] | None) -> None:
        self._run = run  # None: in plain code

    def call(
        self, plain: Callable[..., Any], in_task: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any
    ) -> Any:
        """Call the one or the other."""
        return plain(*arguments) if self._run is None else self._run(in_task(*arguments))

    def all(self, stream: EagerStream[Any]) -> list[Any]:
        return list(stream) if self._run is None else self._run(collect(stream))

    def next(self, stream: EagerStream[Any]) -> Any:
        """Return the next item, or END."""
        return next(stream, END) if self._run is None else self._run(next_of(stream))

    def close(self, stream: EagerStream[Any]) -> None:
        if self._run is None:
            stream.close()
        else:
            self._run(leave(stream))
