"""What streams keep alive, and what they let go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING

import pytest

from eager_async import BackgroundLoop, EagerStream, eager_stream
from gates import Gate
from gone import Gone, Thing, without_the_collector
from streams import Consumer, StumbledError, numbers, settle, stumble
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def _without_the_collector() -> Iterator[None]:
    with without_the_collector():
        yield


@pytest.mark.usefixtures("_without_the_collector")
def test_a_closed_stream_keeps_nothing_of_its_generator(consumer: Consumer) -> None:
    """Whoever holds on to the stream holds no argument, nor local variable."""

    async def generate(argument: Thing) -> AsyncIterator[int]:
        yield id(argument)
        await asyncio.sleep(PATIENCE)

    thing = Thing()
    gone = Gone(thing)
    stream = eager_stream(generate)(thing)
    assert consumer.next(stream) == id(thing)
    del thing
    consumer.close(stream)
    assert gone
    assert consumer.all(stream) == []


@pytest.mark.parametrize("end", ["read", "failed", "left", "closed", "cleanup failed", "unread"])
@pytest.mark.usefixtures("_without_the_collector")
def test_nothing_outlives_a_stream(consumer: Consumer, end: str) -> None:  # noqa: C901  one branch an end
    """However a stream ends, stream, generator and items go with the last reference: there is no cycle."""

    async def generate(argument: Thing) -> AsyncIterator[Thing]:
        try:
            for _ in range(2):
                yield argument
            if end == "failed":
                raise StumbledError
            while end != "read":
                await asyncio.sleep(0)
                yield argument
        finally:
            if end == "cleanup failed":
                raise StumbledError

    async def use_in_task(streams: list[EagerStream[Thing]]) -> None:
        with contextlib.suppress(StumbledError):
            if end in {"read", "failed", "left"}:
                async for _ in streams.pop():
                    if end == "left":
                        break
            elif end in {"closed", "cleanup failed"}:
                await streams.pop().aclose()

    def use(streams: list[EagerStream[Thing]]) -> None:
        with contextlib.suppress(StumbledError):
            if end in {"read", "failed", "left"}:
                for _ in streams.pop():
                    if end == "left":
                        break
            elif end in {"closed", "cleanup failed"}:
                streams.pop().close()

    streams = [eager_stream(generate)(thing := Thing())]
    gone = Gone(thing, streams[0])
    del thing
    consumer.call(use, use_in_task, streams)
    streams.clear()
    assert gone


@pytest.mark.usefixtures("loop", "_without_the_collector")
def test_nothing_outlives_a_stream_that_cancelled_itself() -> None:
    """An exception that comes of the generator's own cancellation makes no cycle either."""

    @eager_stream(buffer=1)
    async def generate(argument: Thing) -> AsyncIterator[Thing]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        del task
        try:
            yield argument
        except asyncio.CancelledError as exc:
            raise StumbledError from exc

    streams = [generate(thing := Thing())]
    gone = Gone(thing, streams[0])
    del thing
    settle()
    with contextlib.suppress(StumbledError):
        list(streams.pop())
    assert gone


@pytest.mark.usefixtures("_without_the_collector")
def test_an_item_that_was_taken_is_its_takers(consumer: Consumer) -> None:
    """A stream keeps no item that was taken, nor one in its buffer once it is closed."""

    @eager_stream(buffer=2)
    async def things() -> AsyncIterator[Thing]:
        while True:
            yield Thing()

    stream = things()
    taken = Gone(consumer.next(stream))
    consumer.next(stream)
    assert taken
    settle()
    buffered = Gone(*stream._channel.items)
    consumer.close(stream)
    assert buffered


def test_a_stream_that_nobody_refers_to_but_its_consumer_goes_on(consumer: Consumer) -> None:
    """A `for` over a fresh call keeps its stream, whatever the collector does."""
    gate = Gate()

    @eager_stream
    async def collected() -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(0)
            gc.collect()
            yield number
        await gate.passed()
        gc.collect()
        yield 5

    gate.open()
    assert consumer.all(collected()) == list(range(6))


def test_ten_thousand_streams_leave_nothing(loop: BackgroundLoop) -> None:
    """Streams one after the other, read to their end or left, cost no memory that stays."""

    def use() -> None:
        for number in numbers(3):
            assert number
        for _ in numbers(3):
            break
        with numbers(40) as stream:
            next(stream)
        with contextlib.suppress(StumbledError):
            list(stumble(1))

    def use_many(times: int) -> int:
        for _ in range(times):
            use()
        settle(loop)
        settle(loop)
        return len(gc.get_objects())

    use_many(100)
    gc.collect()
    gc.disable()
    try:
        before = use_many(0)
        assert use_many(2500) - before < 1000
    finally:
        gc.enable()
    assert not loop.tasks()
    loop_thread = loop._loop_thread
    assert loop_thread is not None
    assert not loop_thread.resting
