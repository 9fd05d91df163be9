"""What `eager_stream` promises: items made ahead, taken anywhere, none lost; a generator that always ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import copy
import functools
import gc
import inspect
import itertools
import logging
import pickle
import random
import re
import selectors
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import (
    BackgroundLoop,
    DeadlockError,
    EagerStream,
    EagerTask,
    LoopClosedError,
    eager,
    eager_stream,
    set_shared_loop,
    shared_loop,
)
from eager_async._channel import Channel
from threads import GIL_ENABLED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

PATIENCE = 30  # seconds, for what comes at once unless it never comes
END: Any = "the end"

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


class StumbledError(Exception):
    """What a generator raises."""


class Gate:
    """Holds coroutines up until a test opens it."""

    def __init__(self) -> None:
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()

    def open(self) -> None:
        self._opened.set_result(None)

    async def passed(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._opened))


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


async def _turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def settle(loop: BackgroundLoop | None = None) -> None:
    """Let the background loop turn until a generator that awaits nothing is at rest."""
    (loop or shared_loop()).create_task(_turn()).result(PATIENCE)


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


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[BackgroundLoop]:
    """Have streams run on a loop of each kind; it ends by itself when the test does."""
    with BackgroundLoop(name="streams", loop_factory=loop_factory) as loop:
        before = set_shared_loop(loop)
        yield loop
        set_shared_loop(before)


@pytest.fixture(params=["plain code", "another loop", "the background loop"])
def consumer(
    request: pytest.FixtureRequest, loop: BackgroundLoop, loop_factory: LoopFactory
) -> Iterator[Consumer]:
    """Consume in each of the three places."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runs: dict[str, Callable[[Coroutine[Any, Any, Any]], Any] | None] = {
            "plain code": None,
            "another loop": runner.run,
            "the background loop": lambda coro: loop.create_task(coro).result(PATIENCE),
        }
        yield Consumer(runs[request.param])


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Count the consumers that have begun to wait for an item."""
    waits = threading.Semaphore(0)
    call_at_next = Channel.call_at_next

    def counting(*arguments: Any) -> bool:
        enlisted = call_at_next(*arguments)
        if enlisted:
            waits.release()
        return enlisted

    monkeypatch.setattr(Channel, "call_at_next", counting)
    return waits


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


# How far ahead


def test_a_call_starts_it(loop: BackgroundLoop) -> None:
    """The generator begins at the call, on the loop, with nobody iterating."""
    source = Source()
    stream = eager_stream(source)()
    assert isinstance(stream, EagerStream)
    assert source.begun.wait(PATIENCE)
    stream.close()
    assert [thread.name for thread in source.cleaned_in] == ["streams"]
    assert not loop.tasks()


def test_a_call_on_the_loops_own_thread_makes_items_before_it_returns(loop: BackgroundLoop) -> None:
    """Called on the background loop, a generator runs up to its first wait before the call returns."""

    async def caller() -> list[int]:
        source = Source()
        async with eager_stream(buffer=3)(source)():
            return source.made.copy()

    assert loop.create_task(caller()).result(PATIENCE) == [1, 2, 3]


@pytest.mark.parametrize("buffer", [1, 2, 3, 16, 100, 101, 150, 1000])
@pytest.mark.usefixtures("loop")
def test_at_most_buffer_items_are_made_and_not_taken(buffer: int) -> None:
    """With nobody taking, a generator makes just as many items as the buffer holds, and rests."""
    source = Source()
    with eager_stream(buffer=buffer)(source)():
        settle()
        for _ in range(buffer // 100):  # it pauses now and then, for others
            settle()
        assert len(source.made) == buffer


@pytest.mark.usefixtures("loop")
def test_a_stream_goes_on_when_half_of_the_buffer_is_taken() -> None:
    """A generator at rest fills its buffer again, in one go, once half of it is taken."""
    source = Source()
    with eager_stream(buffer=16)(source)() as stream:
        settle()
        for taken in range(1, 8):
            assert next(stream) == taken
        settle()
        assert len(source.made) == 16
        assert next(stream) == 8
        settle()
        assert len(source.made) == 8 + 16


@pytest.mark.parametrize("pausing", [False, True])
@pytest.mark.parametrize("buffer", [1, 2, 3, 16])
def test_never_more_than_buffer_ahead(consumer: Consumer, buffer: int, *, pausing: bool) -> None:
    """However fast the consumer is, no more than `buffer` items are ever ahead of it."""
    source = Source(200, pausing=pausing)
    stream = eager_stream(buffer=buffer)(source)()
    ahead = []
    for taken in range(1, 201):
        assert consumer.next(stream) == taken
        ahead.append(len(source.made) - taken)
    assert max(ahead) <= buffer
    assert consumer.next(stream) is END


def test_a_buffer_of_one_never_makes_two_ahead(consumer: Consumer) -> None:
    """With `buffer=1` the next item is made when the one before is taken, without being asked for."""
    source = Source()
    stream = eager_stream(buffer=1)(source)()
    for taken in range(5):
        settle()
        assert len(source.made) == taken + 1
        assert consumer.next(stream) == taken + 1
    stream.close()


# Iterating


@pytest.mark.parametrize("buffer", [1, 2, 16])
@pytest.mark.parametrize("pausing", [False, True])
def test_all_items_come_in_order(consumer: Consumer, buffer: int, *, pausing: bool) -> None:
    """A stream gives what the generator yields, in order, then ends; and stays ended."""
    source = Source(500, pausing=pausing)
    stream = eager_stream(buffer=buffer)(source)()
    assert consumer.all(stream) == list(range(1, 501))
    assert consumer.all(stream) == []
    assert consumer.next(stream) is END
    source.check_cleaned_once()


def test_an_empty_stream_ends_at_once(consumer: Consumer) -> None:
    """A generator that yields nothing makes an empty stream."""
    assert consumer.all(numbers(0)) == []


def test_the_first_item_is_not_held_back(consumer: Consumer) -> None:
    """An item can be taken as soon as it is made: none waits for others to fill a batch."""
    gate = Gate()

    @eager_stream
    async def slow() -> AsyncIterator[int]:
        yield 1
        await gate.passed()
        yield 2

    stream = slow()
    assert consumer.next(stream) == 1
    gate.open()
    assert consumer.all(stream) == [2]


def test_a_consumer_that_waits_gets_an_item_when_it_is_made(
    consumer: Consumer, waits: threading.Semaphore
) -> None:
    """A consumer waits for an item that isn't there yet, and is woken by it, then by the end."""
    gates = [Gate(), Gate()]

    @eager_stream
    async def slow() -> AsyncIterator[int]:
        await gates[0].passed()
        yield 1
        await gates[1].passed()

    stream = slow()
    for gate, expected in zip(gates, [1, END], strict=True):
        taking = run_in_thread(lambda: consumer.next(stream))
        assert waits.acquire(timeout=PATIENCE)
        assert not taking.done()
        gate.open()
        assert taking.result(PATIENCE) == expected


@pytest.mark.usefixtures("loop")
def test_a_stream_is_its_own_iterator() -> None:
    """`iter()` and `aiter()` return the stream itself: a second `for` goes on where the first one left."""
    stream = numbers(5)
    assert iter(stream) is stream
    assert aiter(stream) is stream
    assert list(itertools.islice(stream, 2)) == [1, 2]
    assert list(stream) == [3, 4, 5]


def test_streams_can_be_iterated_side_by_side(consumer: Consumer) -> None:
    """Each call is a stream of its own."""
    streams = [numbers_slowly(3) for _ in range(10)]
    assert [[consumer.next(stream) for stream in streams] for _ in range(3)] == [[n] * 10 for n in (1, 2, 3)]
    assert all(consumer.next(stream) is END for stream in streams)


def test_one_stream_can_feed_another(consumer: Consumer) -> None:
    """A generator may iterate over another stream, on the same loop."""

    @eager_stream
    async def doubled(inner: EagerStream[int]) -> AsyncIterator[int]:
        async for number in inner:
            yield 2 * number

    assert consumer.all(doubled(numbers_slowly(100))) == list(range(2, 201, 2))


@pytest.mark.usefixtures("loop")
def test_a_stream_passes_from_thread_to_thread_and_loop_to_loop(loop_factory: LoopFactory) -> None:
    """One after the other, threads, loops and the background loop may each take items of one stream."""

    def in_new_loop() -> Any:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(next_of(stream))

    def on_the_background_loop() -> Any:
        return shared_loop().create_task(next_of(stream)).result(PATIENCE)

    stream = eager_stream(buffer=1)(Source(40, pausing=True))()
    takers = [functools.partial(next, stream), in_new_loop, on_the_background_loop] * 13
    assert [run_in_thread(take).result(PATIENCE) for take in takers] == list(range(1, 40))
    assert list(stream) == [40]


def test_a_second_consumer_is_refused(consumer: Consumer, waits: threading.Semaphore) -> None:
    """While one consumer waits, another gets a RuntimeError that says what to do; the first one goes on."""
    gate = Gate()

    @eager_stream
    async def slow() -> AsyncIterator[int]:
        await gate.passed()
        yield 1

    stream = slow()
    first = run_in_thread(lambda: next(stream))
    assert waits.acquire(timeout=PATIENCE)
    with pytest.raises(RuntimeError, match=r"slow\(\).*one at a time.*queue\.Queue"):
        consumer.next(stream)
    gate.open()
    assert first.result(PATIENCE) == 1
    assert consumer.next(stream) is END


@pytest.mark.usefixtures("loop")
def test_two_tasks_of_a_loop_are_two_consumers(loop_factory: LoopFactory) -> None:
    """Of two asyncio tasks that want the next item at a time, the second is refused."""
    stream = gated(gate := Gate())

    async def main() -> list[Any]:
        first = asyncio.create_task(next_of(stream))
        await asyncio.sleep(0)
        refused = await asyncio.gather(next_of(stream), return_exceptions=True)
        gate.open()
        return [*refused, await first]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        refused, taken = runner.run(main())
    assert isinstance(refused, RuntimeError)
    assert taken == 1
    assert list(stream) == [2]


# Errors


@pytest.mark.parametrize("last", [0, 1, 16, 40])
def test_an_error_comes_after_the_items_before_it(consumer: Consumer, last: int) -> None:
    """What the generator raises comes out where the consumer stands, once; then the stream has ended."""
    stream = stumble(last)
    settle()
    assert [consumer.next(stream) for _ in range(last)] == list(range(1, last + 1))
    with pytest.raises(StumbledError, match="no") as caught:
        consumer.next(stream)
    assert caught.traceback[-1].name == "stumble"
    assert caught.value.__context__ is None
    assert consumer.next(stream) is END
    assert consumer.all(stream) == []


def test_an_error_reaches_a_consumer_that_waits(consumer: Consumer, waits: threading.Semaphore) -> None:
    """A consumer that waits for an item is woken by the generator's exception."""
    gate = Gate()

    @eager_stream
    async def fail() -> AsyncIterator[int]:
        await gate.passed()
        raise StumbledError("no")
        yield

    stream = fail()
    taking = run_in_thread(lambda: consumer.next(stream))
    assert waits.acquire(timeout=PATIENCE)
    gate.open()
    with pytest.raises(StumbledError):
        taking.result(PATIENCE)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_a_base_exception_goes_to_the_consumer(consumer: Consumer, kind: type[BaseException]) -> None:
    """Whatever a generator raises goes to its consumer, and the loop lives on."""

    @eager_stream
    async def leaving() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0)
        raise kind

    stream = leaving()
    settle()
    assert consumer.next(stream) == 1

    def catch() -> BaseException | None:
        try:
            consumer.next(stream)
        except BaseException as exc:
            return exc
        return None

    seen = None
    if consumer._run is None:
        seen = catch()
    else:  # asyncio lets some of these out of a loop whose own tasks raise them

        async def main() -> BaseException | None:
            try:
                await anext(stream)
            except BaseException as exc:
                return exc
            return None

        seen = consumer._run(main())
    assert isinstance(seen, kind)
    assert list(numbers(2)) == [1, 2]


@pytest.mark.parametrize("how", ["drop", "close", "break"])
@pytest.mark.usefixtures("loop")
def test_an_error_that_nobody_sees_is_reported_once(expected_log: Callable[[str], None], how: str) -> None:
    """If the consumer leaves before the error, it is logged once, with function and place of the call."""
    expected_log(r"stumble\(\) called at .*test_stream\.py:\d+.* never retrieved.*StumbledError: no")
    stream = stumble(1)
    settle()
    if how == "close":
        stream.close()
    elif how == "break":
        for _ in stream:
            break
    del stream
    gc.collect()


def test_an_error_that_is_seen_is_not_reported(consumer: Consumer) -> None:
    """An error that came out of the stream is logged nowhere, nor does it come out of close()."""
    stream = stumble(1)
    with contextlib.suppress(StumbledError):
        consumer.all(stream)
    consumer.close(stream)


# Leaving early


def test_break_ends_a_generator_that_nobody_else_refers_to(loop: BackgroundLoop) -> None:
    """A `for` over a fresh call, left by `break`, ends the generator, whose cleanup runs on the loop."""
    source = Source()
    for number in eager_stream(source)():
        if number == 5:
            break
    source.check_cleaned_once()
    assert source.cleaned_in[0].name == "streams"
    assert not loop.tasks()


@pytest.mark.usefixtures("loop")
def test_break_in_async_for_ends_it_too(loop_factory: LoopFactory) -> None:
    """As with `for`; no `aclose()` is needed, nor does the consumer's loop wait for the cleanup."""
    source = Source()

    async def main() -> None:
        async for number in eager_stream(source)():
            if number == 5:
                break

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    source.check_cleaned_once()


def test_an_error_of_the_consumer_ends_it(loop: BackgroundLoop) -> None:
    """A `for` over a fresh call that is left by an exception ends the generator."""
    source = Source()

    def consume() -> None:
        for _ in eager_stream(source)():
            raise StumbledError

    with pytest.raises(StumbledError):
        consume()
    source.check_cleaned_once()
    assert not loop.tasks()


WAYS_TO_LEAVE = ["close", "with", "closing", "aclose", "async with", "aclosing"]


def leave_by(way: str, stream: EagerStream[int], loop_factory: LoopFactory) -> None:
    """Take one item, if there is to be one, and leave."""

    async def leave_in_asyncio() -> None:
        if way == "aclose":
            await stream.aclose()
        elif way == "async with":
            async with stream as entered:
                assert entered is stream
        else:
            async with contextlib.aclosing(stream):
                pass

    if way == "close":
        stream.close()
    elif way == "with":
        with stream as entered:
            assert entered is stream
    elif way == "closing":
        with contextlib.closing(stream):
            pass
    else:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(leave_in_asyncio())


@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
@pytest.mark.parametrize("where", ["at a yield", "at an await", "ended", "seen to end"])
def test_leaving_waits_for_the_cleanup(
    loop: BackgroundLoop, loop_factory: LoopFactory, way: str, where: str
) -> None:
    """Each way to leave ends the generator wherever it is, and returns when its `finally` has run."""
    source = Source(1 if "end" in where else float("inf"))

    @eager_stream
    async def waiting() -> AsyncIterator[int]:
        async with contextlib.aclosing(source()) as inner:
            async for number in inner:
                yield number
                if where == "at an await":
                    await asyncio.sleep(PATIENCE)

    stream = waiting()
    assert next(stream) == 1
    settle()
    if where == "seen to end":
        assert list(stream) == []
    leave_by(way, stream, loop_factory)
    assert source.cleaned.is_set()
    assert len(source.cleaned_in) == 1
    assert not loop.tasks()
    assert list(stream) == []
    leave_by(way, stream, loop_factory)


@pytest.mark.usefixtures("loop")
def test_what_a_generator_gets_when_it_is_left() -> None:
    """At a `yield` it gets `GeneratorExit`, as from `aclose()`; at an `await`, `CancelledError`."""
    got: list[type[BaseException]] = []

    async def generate(*, at_yield: bool) -> AsyncIterator[int]:
        try:
            while at_yield:
                yield 1
            yield 1
            await asyncio.sleep(PATIENCE)
        except BaseException as exc:
            got.append(type(exc))
            raise

    for at_yield in (True, False):
        with eager_stream(generate)(at_yield=at_yield) as stream:
            assert next(stream) == 1
            settle()
    assert got == [GeneratorExit, asyncio.CancelledError]


@pytest.mark.usefixtures("loop")
def test_a_stream_that_is_closed_before_it_begins_never_begins() -> None:
    """A generator whose call was closed at once isn't run, and Python doesn't warn of it."""
    source = Source()
    release = threading.Event()

    async def block() -> None:
        assert release.wait(PATIENCE)

    blocking = shared_loop().create_task(block())
    stream = eager_stream(source)()
    closing = run_in_thread(stream.close)
    del stream
    settling = run_in_thread(settle)
    release.set()
    closing.result(PATIENCE)
    settling.result(PATIENCE)
    blocking.result(PATIENCE)
    gc.collect()


@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
@pytest.mark.usefixtures("loop")
def test_an_error_of_the_cleanup_comes_out_of_the_leaving(loop_factory: LoopFactory, way: str) -> None:
    """A `finally` that raises does so where the stream is left, and not in the log."""

    @eager_stream(buffer=1)
    async def untidy() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            raise StumbledError("untidy")

    stream = untidy()
    settle()
    with pytest.raises(StumbledError, match="untidy"):
        leave_by(way, stream, loop_factory)


@pytest.mark.usefixtures("loop")
def test_an_error_of_the_cleanup_is_reported_if_nobody_waits(expected_log: Callable[[str], None]) -> None:
    """If the last reference just goes, what the cleanup raises is logged."""
    expected_log(r"untidy\(\) called at .*StumbledError")

    @eager_stream(buffer=1)
    async def untidy() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise StumbledError

    for _ in untidy():
        break
    settle()
    gc.collect()


def test_closing_ends_a_wait(consumer: Consumer, waits: threading.Semaphore) -> None:
    """A consumer that waits for an item while another thread closes the stream sees the end."""
    stream = never()
    taking = run_in_thread(lambda: consumer.next(stream))
    assert waits.acquire(timeout=PATIENCE)
    stream.close()
    assert taking.result(PATIENCE) is END


def test_items_made_before_closing_are_dropped(consumer: Consumer) -> None:
    """Nothing comes out of a stream that was left, not even what is in its buffer."""
    stream = numbers(10)
    settle()
    assert consumer.next(stream) == 1
    consumer.close(stream)
    assert consumer.all(stream) == []
    assert "0 items ahead" in repr(stream)


@pytest.mark.parametrize("second", ["close", "aclose", "drop"])
@pytest.mark.usefixtures("loop")
def test_leaving_twice_does_not_interrupt_the_cleanup(loop_factory: LoopFactory, second: str) -> None:
    """While one waits for the cleanup another may close too, or let go: the `finally` runs to its end."""
    cleanup = Cleanup()
    stream = eager_stream(cleanup)()
    assert next(stream) == 1

    async def give_up(stream: EagerStream[int]) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stream.aclose(), 0.01)

    if second == "drop":  # by somebody who no longer waits for it
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(give_up(stream))
        assert cleanup.begun.wait(PATIENCE)
        closings = []
    else:
        closings = [run_in_thread(stream.close)]
        assert cleanup.begun.wait(PATIENCE)
        closings.append(run_in_thread(functools.partial(leave_by, second, stream, loop_factory)))
    del stream
    settle()
    cleanup.gate.open()
    for closing in closings:
        closing.result(PATIENCE)
    settle()
    assert cleanup.steps == ["cleaned"]


@pytest.mark.parametrize("buffer", [1, 2, 16])
@pytest.mark.parametrize("way", ["close", "drop", "shutdown"])
def test_a_generator_that_swallows_the_cancellation_ends_all_the_same(
    loop_factory: LoopFactory, buffer: int, way: str
) -> None:
    """Who goes on yielding in spite of the cancellation ends, at the latest with a full buffer."""
    begun = threading.Event()
    swallowed: list[str] = []

    async def stubborn() -> AsyncIterator[int]:
        try:
            while True:
                begun.set()
                try:
                    if not swallowed:
                        await asyncio.sleep(PATIENCE)
                except asyncio.CancelledError:
                    swallowed.append("once")
                yield 1
        finally:
            swallowed.append("cleaned")

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        stream = eager_stream(buffer=buffer, loop=loop)(stubborn)()
        assert begun.wait(PATIENCE)
        if way == "close":
            stream.close()
        elif way == "shutdown":
            loop.shutdown(cancel_futures=True)
        del stream
    assert swallowed == ["once", "cleaned"]


@pytest.mark.parametrize("buffer", [1, 16])
@pytest.mark.usefixtures("loop")
def test_a_generator_that_yields_in_its_finally_is_told_so(buffer: int) -> None:
    """Left at a `yield`, one that yields in its cleanup raises RuntimeError, as from `aclose()`."""

    @eager_stream(buffer=buffer)
    async def wrong() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            yield 2

    def leave_it() -> None:
        stream = wrong()
        settle()
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            stream.close()

    leave_it()
    gc.collect()


@pytest.mark.parametrize("buffer", [1, 16])
@pytest.mark.usefixtures("loop")
def test_a_generator_that_yields_in_its_finally_after_a_wait_ends(buffer: int) -> None:
    """Left at an `await`, one that yields in its cleanup ends there."""
    steps = []

    @eager_stream(buffer=buffer)
    async def wrong() -> AsyncIterator[int]:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            try:
                yield 1
            finally:
                steps.append("ended")

    stream = wrong()
    settle()
    stream.close()
    assert steps == ["ended"]


@pytest.mark.usefixtures("loop")
def test_a_cleanup_may_be_awaited_by_a_stream_of_its_own() -> None:
    """A cleanup may iterate over other streams and make eager calls."""
    seen = []

    async def outer() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            seen.extend([number async for number in numbers_slowly(3)])

    with eager_stream(outer)() as stream:
        assert next(stream) == 1
    assert seen == [1, 2, 3]


# Cancelling a wait


@pytest.mark.usefixtures("loop")
def test_an_aclose_that_is_cancelled_leaves_nothing_behind() -> None:
    """Whoever asks again and again whether a slow cleanup has ended adds nothing to what is kept."""
    cleanup = Cleanup()
    stream = eager_stream(cleanup)()
    assert next(stream) == 1
    before = list(stream._producing._callbacks or ())

    async def ask_again_and_again() -> None:
        for _ in range(50):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.aclose(), 0.001)

    asyncio.run(ask_again_and_again())
    left = list(stream._producing._callbacks or ())
    cleanup.gate.open()
    stream.close()
    assert left == before
    assert cleanup.steps == ["cleaned"]


@pytest.mark.parametrize("by", ["cancel", "wait_for", "timeout"])
@pytest.mark.parametrize("where", ["another loop", "the background loop"])
def test_cancelling_an_anext_leaves_the_stream_as_it_is(
    loop: BackgroundLoop, loop_factory: LoopFactory, by: str, where: str
) -> None:
    """A cancelled `anext` loses no item, raises just that, and the generator doesn't notice."""
    stream = gated(gate := Gate())

    async def main() -> list[Any]:
        waiting = asyncio.ensure_future(next_of(stream))
        await asyncio.sleep(0)
        with pytest.raises((asyncio.CancelledError, TimeoutError)) as caught:  # noqa: PT012
            if by == "cancel":
                waiting.cancel("enough")
                await waiting
            elif by == "wait_for":
                await asyncio.wait_for(waiting, 0)
            else:
                async with asyncio.timeout(0):
                    await waiting
        contexts = [caught.value.__context__, caught.value.__cause__]
        assert not any(isinstance(context, IndexError) for context in contexts)
        if by == "cancel":
            assert caught.value.args == ("enough",)
        gate.open()
        return await collect(stream)

    if where == "another loop":
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(main()) == [1, 2]
    else:
        assert loop.create_task(main()).result(PATIENCE) == [1, 2]


@pytest.mark.parametrize("woken", [False, True])
@pytest.mark.usefixtures("loop")
def test_a_cancellation_together_with_an_item_loses_nothing(
    loop_factory: LoopFactory, *, woken: bool
) -> None:
    """Cancelled when its item has come, but before it could take it: the item is the next one's."""
    stream = gated(gate := Gate())

    async def main() -> list[Any]:
        waiting = asyncio.create_task(next_of(stream))
        await asyncio.sleep(0)
        gate.open()
        settle()  # this loop doesn't turn meanwhile, but a call is on its way to it
        settle()
        if woken:
            asyncio.get_running_loop().call_soon(waiting.cancel)
        else:
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await collect(stream)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == [1, 2]


def test_a_cancellation_by_the_generator_loses_nothing(loop: BackgroundLoop) -> None:
    """The same on the background loop, where a generator cancels its consumer right after a `yield`."""
    consumers: list[asyncio.Task[Any]] = []

    @eager_stream
    async def cancelling() -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield 1
        consumers[0].cancel()
        yield 2

    async def main() -> list[Any]:
        stream = cancelling()
        consumers.append(asyncio.create_task(next_of(stream)))
        with pytest.raises(asyncio.CancelledError):
            await consumers[0]
        return await collect(stream)

    assert loop.create_task(main()).result(PATIENCE) == [1, 2]


def test_cancelling_one_wait_again_and_again_loses_nothing(
    loop_factory: LoopFactory, loop: BackgroundLoop
) -> None:
    """`wait_for` with tiny timeouts over all items of a stream gets each of them, in order."""
    del loop

    @eager_stream(buffer=2)
    async def uneven() -> AsyncIterator[int]:
        for number in range(100):
            await asyncio.sleep(0.0001 * (number % 3))
            yield number

    async def main() -> list[int]:
        stream, taken = uneven(), []
        while True:
            with contextlib.suppress(TimeoutError):
                number = await asyncio.wait_for(next_of(stream), 0.0001)
                if number is END:
                    return taken
                taken.append(number)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == list(range(100))


# Cancellations of the generator's own


@pytest.mark.parametrize("buffer", [4, 100])
def test_a_generator_that_swallows_a_cancellation_of_its_own_goes_on(consumer: Consumer, buffer: int) -> None:
    """One that nobody asked for through the library: no item is lost, with a full buffer or without."""

    @eager_stream(buffer=buffer)
    async def generate() -> AsyncIterator[int]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            yield 0
        for number in range(1, 20):
            yield number

    assert consumer.all(generate()) == list(range(20))


async def timed_out(full: asyncio.Event) -> AsyncIterator[int]:
    """Run out of time."""
    async with asyncio.timeout(None) as timeout:
        full_at(full, lambda: timeout.reschedule(0))
        for number in range(50):
            yield number
        await asyncio.sleep(PATIENCE)


async def failed_beside(full: asyncio.Event) -> AsyncIterator[int]:
    """Have a task beside it fail."""

    async def fail() -> None:
        await full.wait()
        raise StumbledError("beside")

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        for number in range(50):
            yield number
        await asyncio.sleep(PATIENCE)


async def cancelled_at_rest(full: asyncio.Event, *, more: range) -> AsyncIterator[int]:
    """Make more items when it is cancelled, if any, and end."""
    task = asyncio.current_task()
    assert task is not None
    full_at(full, task.cancel)
    try:
        for number in range(50):
            yield number
        await asyncio.sleep(PATIENCE)
    except asyncio.CancelledError:
        for number in more:
            yield number


def full_at(full: asyncio.Event, call: Callable[[], object]) -> None:
    """Make a call when the event is set."""

    async def wait() -> None:
        await full.wait()
        call()

    waiting.append(asyncio.create_task(wait()))


waiting: list[asyncio.Task[None]] = []  # asyncio keeps none


@pytest.mark.parametrize("buffer", [1, 4, 100])
@pytest.mark.parametrize(
    ("function", "outcome"),
    [
        (timed_out, "TimeoutError()"),
        (failed_beside, "ExceptionGroup('unhandled errors in a TaskGroup', [StumbledError('beside')])"),
        (functools.partial(cancelled_at_rest, more=range(100, 120)), list(range(100, 120))),
        (functools.partial(cancelled_at_rest, more=range(0)), []),
    ],
)
def test_a_cancellation_of_the_generators_own_reaches_it_at_its_yield(
    loop: BackgroundLoop, function: Callable[..., AsyncIterator[int]], buffer: int, outcome: object
) -> None:
    """With a full buffer too it comes to the block that asked for it, as at an `await`."""
    full: asyncio.Event = asyncio.Event()
    stream = eager_stream(buffer=buffer)(function)(full)
    settle(loop)
    loop.asyncio_loop.call_soon_threadsafe(full.set)
    settle(loop)
    items: list[int] = []
    try:
        items += [item for item in stream if item >= 50]
        seen: object = items
    except Exception as exc:
        seen = repr(exc)
    waiting.clear()
    assert seen == outcome


def test_a_generator_whose_yields_time_out_stays_within_its_buffer(loop: BackgroundLoop) -> None:
    """However often it is cancelled with a full buffer, it hears of that when there is room again."""
    fired: list[int] = []

    @eager_stream(buffer=2)
    async def generate() -> AsyncIterator[int]:
        for number in range(20):
            try:
                async with asyncio.timeout(None) as timeout:
                    timeout.reschedule(0)
                    yield number
            except TimeoutError:
                fired.append(number)

    stream = generate()
    for _ in range(5):
        settle(loop)
        assert "2 items ahead" in repr(stream)
    assert list(stream) == list(range(20))
    assert fired


@pytest.mark.usefixtures("loop")
def test_a_generator_that_takes_back_its_cancellation_can_be_closed() -> None:
    """One that swallows the request to end, `uncancel()` and all, ends at its next `yield` nevertheless."""
    ended = threading.Event()
    begun = threading.Event()

    @eager_stream(buffer=2)
    async def stubborn() -> AsyncIterator[int]:
        task = asyncio.current_task()
        assert task is not None
        try:
            while True:
                begun.set()
                try:
                    await asyncio.sleep(PATIENCE)
                except asyncio.CancelledError:
                    task.uncancel()
                yield 1
        finally:
            ended.set()

    stream = stubborn()
    assert begun.wait(PATIENCE)
    stream.close()
    assert ended.is_set()


# Deadlocks and stuck loops


def test_for_on_the_loops_own_thread_is_a_deadlock_error(loop: BackgroundLoop) -> None:
    """A `for` that could never go on raises at once, and says `async for`; the stream goes on."""
    gate = Gate()

    async def main() -> list[int]:
        stream = gated(gate)
        with pytest.raises(DeadlockError, match=r"gated\(\) called at .*`async for`") as caught:
            for _ in stream:
                pass
        with pytest.raises(DeadlockError, match="`async for`") as caught_in_next:
            next(stream)
        assert caught.value.__context__ is caught_in_next.value.__context__ is None
        gate.open()
        return await collect(stream)

    assert loop.create_task(main()).result(PATIENCE) == [1, 2]


def test_close_on_the_loops_own_thread_is_a_deadlock_error(loop: BackgroundLoop) -> None:
    """It says `await stream.aclose()`, and ends the generator all the same, cleanup included."""
    cleanup = Cleanup()

    async def main() -> None:
        stream = eager_stream(cleanup)()
        with pytest.raises(DeadlockError, match=r"`await stream.aclose\(\)`"):
            stream.close()
        await asyncio.sleep(0)
        del stream

    loop.create_task(main()).result(PATIENCE)
    assert cleanup.begun.wait(PATIENCE)
    settle()
    cleanup.gate.open()
    settle()
    assert cleanup.steps == ["cleaned"]


def test_a_stream_that_has_ended_can_be_iterated_and_closed_anywhere(loop: BackgroundLoop) -> None:
    """On the loop's own thread, `for` over a stream that has ended takes what is there."""

    async def main() -> list[int]:
        stream = numbers(3)
        await _turn()
        taken = list(stream)
        stream.close()
        return taken

    assert loop.create_task(main()).result(PATIENCE) == [1, 2, 3]


@pytest.mark.usefixtures("loop")
def test_a_generator_that_iterates_over_itself_is_told_so() -> None:
    """Waiting for one's own next item is a DeadlockError, not a hang."""
    itself: list[EagerStream[int]] = []

    @eager_stream
    async def narcissus(gate: Gate) -> AsyncIterator[int]:
        await gate.passed()
        yield await anext(itself[0])

    gate = Gate()
    itself.append(narcissus(gate))
    gate.open()
    settle()
    with pytest.raises(DeadlockError, match=r"narcissus\(\)"):
        next(itself.pop())


@pytest.mark.usefixtures("loop")
def test_a_generator_that_closes_itself_is_told_so() -> None:
    """`aclose()` from inside is a DeadlockError, not a hang, and ends it all the same."""
    itself: list[EagerStream[int]] = []
    told: list[BaseException] = []

    @eager_stream
    async def closing(gate: Gate) -> AsyncIterator[int]:
        await gate.passed()
        try:
            await itself[0].aclose()
        except DeadlockError as exc:
            told.append(exc)
        await asyncio.sleep(PATIENCE)
        yield 1

    gate = Gate()
    itself.append(stream := closing(gate))
    gate.open()
    assert list(stream) == []
    stream.close()
    assert "closing()" in str(told.pop())
    itself.clear()


@pytest.mark.parametrize("buffer", [16, 10**9])
def test_a_generator_that_never_waits_leaves_others_their_turn(loop: BackgroundLoop, buffer: int) -> None:
    """A generator without an `await` doesn't hold up its loop, be its buffer large or its consumer fast."""
    fired = threading.Event()
    source = Source()
    with eager_stream(buffer=buffer)(source)() as stream:
        taking = run_in_thread(lambda: all(not fired.is_set() for _ in stream))
        asyncio_loop = loop.asyncio_loop
        asyncio_loop.call_soon_threadsafe(asyncio_loop.call_later, 0.01, fired.set)
        assert fired.wait(PATIENCE)
        assert taking.result(PATIENCE) is False


class _WarningSignal(logging.Handler):
    """Sets an event at a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warned = threading.Event()

    def emit(self, _: logging.LogRecord) -> None:
        self.warned.set()


def test_waiting_for_a_loop_that_is_stuck_is_logged(
    loop_factory: LoopFactory, expected_log: Callable[[str], None]
) -> None:
    """A `for` that waits for a loop which is stuck has, after `blocked_after`, the blocking line logged."""
    expected_log("'stuck' has not turned" + ".*the blocking line" * GIL_ENABLED)
    handler = _WarningSignal()
    logging.getLogger("eager_async").addHandler(handler)

    async def stuck() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0)
        assert handler.warned.wait(PATIENCE)  # the blocking line
        yield 2

    try:
        with BackgroundLoop(name="stuck", blocked_after=0.05, loop_factory=loop_factory) as loop:
            assert list(eager_stream(loop=loop)(stuck)()) == [1, 2]
    finally:
        logging.getLogger("eager_async").removeHandler(handler)


@pytest.mark.usefixtures("loop")
def test_debug_mode_warns_of_a_for_that_blocks_another_loop(
    loop_factory: LoopFactory, waits: threading.Semaphore
) -> None:
    """In debug mode, a `for` in a coroutine of some other loop warns at its line, and says `async for`."""
    gate = Gate()

    @eager_stream
    async def held_up() -> AsyncIterator[int]:
        await gate.passed()
        try:
            yield 1
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0.2)  # so that close() has to wait

    stream = held_up()

    async def main() -> int:
        asyncio.get_running_loop().slow_callback_duration = PATIENCE
        with pytest.warns(RuntimeWarning, match=r"held_up\(\) called at .*`async for`") as caught:
            number = next(iter(stream))
        assert caught[0].filename == __file__
        with pytest.warns(RuntimeWarning, match=r"`await stream.aclose\(\)`") as caught, stream:
            pass
        assert caught[0].filename == __file__
        return number

    opening = run_in_thread(lambda: waits.acquire(timeout=PATIENCE) and gate.open())
    with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
        assert runner.run(main()) == 1
    opening.result(PATIENCE)


# Where it runs


def test_a_stream_runs_in_the_context_of_its_call(consumer: Consumer) -> None:
    """The generator sees context variables as they were at the call, and sets them for itself alone."""

    @eager_stream(buffer=1)
    async def inside() -> AsyncIterator[str]:
        yield variable.get()
        yield variable.get()
        variable.set("the generator's")
        yield variable.get()

    variable.set("at the call")
    stream = inside()
    variable.set("later")
    assert consumer.all(stream) == ["at the call", "at the call", "the generator's"]
    assert variable.get() == "later"
    variable.set("nothing")


def test_asyncio_works_in_a_generator(consumer: Consumer) -> None:
    """A generator runs in one asyncio task: timeouts, task groups and `to_thread` work."""

    @eager_stream
    async def generate() -> AsyncIterator[Any]:
        task = asyncio.current_task()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(PATIENCE)
        yield "timed out"
        async with asyncio.TaskGroup() as tasks:
            inner = tasks.create_task(asyncio.to_thread(lambda: "in a thread"))
        yield inner.result()
        yield asyncio.current_task() is task

    assert consumer.all(generate()) == ["timed out", "in a thread", True]


def test_eager_calls_in_a_generator(consumer: Consumer) -> None:
    """A generator may call eager functions, ahead of what it yields."""

    @eager
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    @eager_stream
    async def doubled(last: int) -> AsyncIterator[int]:
        for task in [double(number) for number in range(last)]:
            yield await task

    assert consumer.all(doubled(50)) == list(range(0, 100, 2))


def test_a_user_task_factory_changes_nothing(loop_factory: LoopFactory) -> None:
    """Streams work under a task factory, and rest when their buffer is full."""

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop, **options)

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        loop.asyncio_loop.set_task_factory(factory)
        source = Source()
        stream = eager_stream(loop=loop)(source)()
        assert list(itertools.islice(stream, 100)) == list(range(1, 101))
        settle(loop)
    assert source.cleaned.is_set()


# The end of the loop


def test_shutdown_ends_a_stream_at_rest(loop_factory: LoopFactory) -> None:
    """A full buffer doesn't hold up the shutdown: the generator ends, and its `finally` runs there."""
    source = Source()
    with BackgroundLoop(name="streams", loop_factory=loop_factory) as loop:
        stream = eager_stream(buffer=2, loop=loop)(source)()
        settle(loop)
    assert [thread.name for thread in source.cleaned_in] == ["streams"]
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(asyncio.CancelledError) as caught:
        next(stream)
    assert isinstance(caught.value, concurrent.futures.CancelledError)
    assert list(stream) == []


def test_shutdown_waits_for_a_stream_that_works(loop_factory: LoopFactory) -> None:
    """Without `cancel_futures`, a generator that has room goes on to its end."""
    gate = Gate()
    loop = BackgroundLoop(loop_factory=loop_factory)
    stream = eager_stream(loop=loop)(gated.__wrapped__)(gate)
    closing = run_in_thread(loop.shutdown)
    gate.open()
    closing.result(PATIENCE)
    assert list(stream) == [1, 2]


def test_shutdown_with_cancel_futures_cancels_streams(loop_factory: LoopFactory) -> None:
    """With `cancel_futures=True` it is cancelled; its items come out, then the cancellation."""

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    cleaned = threading.Event()
    loop = BackgroundLoop(loop_factory=loop_factory)
    stream = eager_stream(loop=loop)(generate)()
    settle(loop)
    loop.shutdown(cancel_futures=True)
    assert cleaned.is_set()
    assert next(stream) == 1
    with pytest.raises(asyncio.CancelledError):
        next(stream)


def test_a_consumer_that_waits_hears_of_the_shutdown(
    loop_factory: LoopFactory, waits: threading.Semaphore
) -> None:
    """A loop that is shut down wakes the consumers of its streams."""
    loop = BackgroundLoop(loop_factory=loop_factory)
    stream = eager_stream(loop=loop)(never.__wrapped__)()
    taking = run_in_thread(lambda: next(stream))
    assert waits.acquire(timeout=PATIENCE)
    loop.shutdown(cancel_futures=True)
    with pytest.raises(concurrent.futures.CancelledError):
        taking.result(PATIENCE)


def test_the_end_of_a_loop_that_nobody_refers_to_waits_for_its_streams() -> None:
    """A loop lives as long as its streams: they lose nothing when its last name goes."""
    loop = BackgroundLoop()
    source = Source(1000, pausing=True)
    stream = eager_stream(loop=loop)(source)()
    settle(loop)
    del loop
    gc.collect()
    assert list(stream) == list(range(1, 1001))


def test_a_loop_that_is_dropped_after_its_shutdown_ends_its_streams_at_rest() -> None:
    """`shutdown(wait=False)` stands: what it was to end doesn't run on because nobody keeps the loop."""
    gate, source = Gate(), Source()
    loop = BackgroundLoop()
    stream = eager_stream(loop=loop)(source)()
    task = loop.create_task(gate.passed())
    settle(loop)
    loop.shutdown(wait=False)
    del loop
    gc.collect()
    gate.open()
    task.result(PATIENCE)
    source.check_cleaned_once()
    with pytest.raises(asyncio.CancelledError):
        list(stream)


def test_a_replaced_shared_loop_goes_on_with_its_streams() -> None:
    """`set_shared_loop` disturbs no stream of the loop before, even if nobody keeps that."""
    set_shared_loop(BackgroundLoop())
    stream = numbers(1000)
    settle()
    set_shared_loop(BackgroundLoop())
    gc.collect()
    assert list(stream) == list(range(1, 1001))


class _FragileSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """A selector that can be broken."""

    broken = False

    def select(self, timeout: float | None = None) -> Any:
        if self.broken:
            raise StumbledError("broken")
        return super().select(timeout)


@pytest.mark.parametrize("state", ["at rest", "at an await"])
def test_a_loop_that_dies_ends_its_streams(
    expected_log: Callable[[str], None], waits: threading.Semaphore, state: str
) -> None:
    """When a loop's thread dies, consumers get what is in the buffer, then LoopClosedError."""
    expected_log("is dead")
    selector = _FragileSelector()
    loop = BackgroundLoop(loop_factory=lambda: asyncio.SelectorEventLoop(selector))
    asyncio_loop = loop.asyncio_loop

    async def generate() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(PATIENCE)

    def kill() -> None:
        selector.broken = True
        for task in asyncio.all_tasks(asyncio_loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own complaint
        asyncio_loop.call_soon_threadsafe(lambda: None)
        loop._loop_thread.join(PATIENCE)  # type: ignore[union-attr]

    def use() -> None:
        stream = eager_stream(buffer=1 if state == "at rest" else 16, loop=loop)(generate)()
        settle(loop)
        if state == "at rest":
            kill()
            assert next(stream) == 1
            taking = run_in_thread(lambda: next(stream))
        else:
            assert next(stream) == 1
            taking = run_in_thread(lambda: next(stream))
            assert waits.acquire(timeout=PATIENCE)
            kill()
        with pytest.raises(LoopClosedError, match=r"generate\(\) called at"):
            taking.result(PATIENCE)
        assert list(stream) == []
        stream.close()

    use()
    loop.shutdown()


def test_a_stream_that_has_ended_goes_when_its_module_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As at the end of the process, without the GIL: no traceback."""
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)

    @eager_stream
    async def numbers() -> AsyncIterator[int]:
        yield 1

    stream = numbers()
    assert list(stream) == [1]
    with monkeypatch.context() as context:
        context.setattr("eager_async._stream.CancelRequest", None)
        del stream
        gc.collect()
    assert raised == []


def test_a_stream_that_is_refused_never_begins(recwarn: pytest.WarningsRecorder) -> None:
    """A call on a loop that was shut down raises LoopClosedError; nothing begins, nothing is warned of."""
    loop = BackgroundLoop()
    loop.shutdown()
    source = Source()
    with pytest.raises(LoopClosedError):
        eager_stream(loop=loop)(source)()
    gc.collect()
    assert not source.begun.is_set()
    assert not recwarn.list


def test_a_stream_that_comes_while_its_loop_closes_is_refused(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The same if the loop closes in the middle of the call."""
    loop = BackgroundLoop()
    loop_thread = loop._admitting_thread()
    loop.shutdown()
    monkeypatch.setattr(loop, "_admitting_thread", lambda: loop_thread)
    source = Source()
    with pytest.raises(LoopClosedError):
        eager_stream(loop=loop)(source)()
    gc.collect()
    assert not source.begun.is_set()
    assert not recwarn.list


# What is decorated


def test_methods_of_all_kinds(consumer: Consumer) -> None:
    """Methods, class and static methods work, in either order of decorators, on class and instance."""

    class Shop:
        number = 1

        @eager_stream
        async def method(self, last: int) -> AsyncIterator[int]:
            yield self.number
            yield last

        @eager_stream(buffer=1)
        @classmethod
        async def class_method(cls, last: int) -> AsyncIterator[int]:
            yield cls.number
            yield last

        @classmethod
        @eager_stream
        async def method_of_class(cls, last: int) -> AsyncIterator[int]:
            yield cls.number
            yield last

        @eager_stream
        @staticmethod
        async def static_method(last: int) -> AsyncIterator[int]:
            yield 1
            yield last

        @staticmethod
        @eager_stream(buffer=1)
        async def method_of_nothing(last: int) -> AsyncIterator[int]:
            yield 1
            yield last

    shop = Shop()
    functions: list[Any] = [shop.method, functools.partial(Shop.method, shop)]
    for owner in (shop, Shop):
        functions += [owner.class_method, owner.method_of_class, owner.static_method, owner.method_of_nothing]
    for function in functions:
        assert consumer.all(function(last=2)) == [1, 2]


async def plain_numbers(first: int, last: int = 3) -> AsyncIterator[int]:
    """Count from one number to another."""
    for number in range(first, last + 1):
        yield number


decorated_numbers = eager_stream(buffer=1)(plain_numbers)
decorated_numbers.colour = "red"  # type: ignore[attr-defined]


class CountsWhenCalled:
    """An object with an `async def __call__` that yields."""

    async def __call__(self, last: int) -> AsyncIterator[int]:
        for number in range(1, last + 1):
            yield number


class Catalogue:
    """A class with a stream as its method."""

    @eager_stream
    async def pages(self) -> AsyncIterator[int]:
        """Yield the pages."""
        yield 1


def test_partials_and_objects_with_an_async_call(consumer: Consumer) -> None:
    """What `eager` takes of that kind, `eager_stream` takes too; also inline."""
    assert consumer.all(eager_stream(functools.partial(plain_numbers, 2))()) == [2, 3]
    assert consumer.all(eager_stream(CountsWhenCalled())(2)) == [1, 2]
    assert consumer.all(eager_stream(CountsWhenCalled().__call__)(2)) == [1, 2]


def test_a_decorated_function_looks_like_the_one_it_was() -> None:
    """Name, docstring, signature, annotations and attributes stay; `__wrapped__` is the undecorated one."""
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "__defaults__"):
        assert getattr(decorated_numbers, name) == getattr(plain_numbers, name)
    assert inspect.signature(decorated_numbers) == inspect.signature(plain_numbers)
    assert decorated_numbers.__wrapped__ is plain_numbers  # type: ignore[attr-defined]
    assert decorated_numbers.colour == "red"  # type: ignore[attr-defined]
    assert Catalogue.pages.__doc__ == "Yield the pages."
    assert str(inspect.signature(Catalogue().pages)) == str(
        inspect.signature(Catalogue.pages.__wrapped__)
    ).replace("self", "")
    assert "eager_stream" in repr(decorated_numbers)
    assert "plain_numbers" in repr(decorated_numbers)


@pytest.mark.parametrize(
    "function",
    [
        decorated_numbers,
        Catalogue.pages,
        Catalogue().pages,
        eager_stream(CountsWhenCalled()),
    ],
    ids=["function", "unbound method", "bound method", "object"],
)
def test_it_is_no_async_generator_function(function: Any) -> None:
    """Frameworks that ask `inspect` don't take it for what has `asend`, nor for a coroutine function."""
    assert not inspect.isasyncgenfunction(function)
    assert not inspect.iscoroutinefunction(function)
    assert not inspect.isgeneratorfunction(function)


def test_a_stream_is_read_only() -> None:
    """It is an iterator and an async iterator, and has nothing to send into the generator."""
    stream = numbers(0)
    for name in ("send", "throw", "asend", "athrow", "__await__"):
        assert not hasattr(stream, name)
    assert not inspect.isasyncgen(stream)
    assert list(stream) == []


def test_decorated_functions_are_pickled_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions and methods go to other processes by their qualified name, and are their own copies."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())
    for function in (numbers, Catalogue.pages):
        assert pickle.loads(pickle.dumps(function)) == function
        assert copy.copy(function) == copy.deepcopy(function) == function


def _this_module() -> Any:
    module = type(sys)(__name__)
    vars(module).update(globals())
    return module


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_itself_is_not_copied(duplicate: Callable[[object], object]) -> None:
    """As with a generator, a copy of a stream is a TypeError: two would share one consumer's place."""
    stream = numbers(2)
    with pytest.raises(TypeError):
        duplicate(stream)
    gc.collect()
    assert list(stream) == [1, 2]


async def coroutine_function() -> int:
    """Yield nothing."""
    return 1


def plain_generator_function() -> Iterator[int]:
    """Yield, but not in an `async def`."""
    yield 1


@pytest.mark.parametrize(
    "wrong",
    [
        coroutine_function,
        plain_generator_function,
        print,
        Source,
        staticmethod(coroutine_function),
        functools.partial(coroutine_function),
        decorated_numbers,
        eager(coroutine_function),
        3,
        "numbers",
    ],
    ids=repr,
)
def test_what_is_no_async_generator_function_is_refused(wrong: Any) -> None:
    """Anything else is a TypeError when decorating, which names it, and says `yield` and `@eager`."""
    with pytest.raises(TypeError, match=r"`yield`.*`@eager`") as caught:
        eager_stream(wrong)
    assert repr(wrong) in str(caught.value)
    with pytest.raises(TypeError, match="async generator function"):
        eager_stream(buffer=3)(wrong)


def test_an_async_generator_is_refused_and_not_run() -> None:
    """`eager_stream(numbers())`, a slip for `eager_stream(numbers)()`, is a TypeError."""
    with pytest.raises(TypeError, match="plain_numbers"):
        eager_stream(plain_numbers(1))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "buffer, kind",
    [
        (0, ValueError),
        (-1, ValueError),
        (True, TypeError),
        ("3", TypeError),
        (1.5, TypeError),
        (None, TypeError),
    ],
)
def test_a_wrong_buffer_is_refused(buffer: Any, kind: type[Exception]) -> None:
    """A buffer that is no number from 1 on fails at decoration, with the remedy."""
    with pytest.raises(kind, match=r"buffer must be .*write `buffer="):
        eager_stream(buffer=buffer)


def test_wrong_options_are_refused() -> None:
    """A wrong `loop` or `daemon` is a TypeError at decoration that says what to write."""
    with pytest.raises(TypeError, match=r"loop must be .*`@eager_stream\(loop="):
        eager_stream(loop=asyncio)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="daemon must be True, False or None"):
        eager_stream(daemon=1)  # type: ignore[call-overload]


def test_wrong_arguments_raise_in_the_caller() -> None:
    """Arguments that don't fit are a TypeError at the call, and nothing is started."""
    with pytest.raises(TypeError, match="numbers"):
        numbers()  # type: ignore[call-arg]
    assert shared_loop()._loop_thread is None or not shared_loop().tasks()


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.usefixtures("loop")
def test_what_a_generator_calls_takes_after_it(*, daemon: bool) -> None:
    """Eager calls and streams made in a daemon's generator are daemons, and in another's are not."""
    tasks: list[EagerTask[Any]] = []

    @eager
    async def inner() -> None:
        await asyncio.sleep(PATIENCE)

    async def inner_stream() -> AsyncIterator[int]:
        await asyncio.sleep(PATIENCE)
        yield 1

    streams = []

    @eager_stream(daemon=daemon)
    async def outer() -> AsyncIterator[int]:
        tasks.append(inner())
        streams.append(eager_stream(inner_stream)())
        yield 1

    assert list(outer()) == [1]
    loop_thread = shared_loop()._loop_thread
    assert loop_thread is not None
    assert list(loop_thread.tasks.values()) == [daemon, daemon]
    tasks[0].cancel()
    streams.pop().close()


# For people


@pytest.mark.usefixtures("loop")
def test_repr_says_what_a_stream_is_doing() -> None:
    """The `repr` names the function, its state, what is ahead, and the place of the call."""
    place = r"called at .*test_stream\.py:\d+>"
    stream = stumble(2)
    settle()
    for ahead in ("2 items ahead", "1 item ahead"):
        assert_matches(
            rf"<EagerStream 0x[0-9a-f]+ stumble\(\) raised StumbledError\('no'\), {ahead}, {place}", stream
        )
        next(stream)
    with pytest.raises(StumbledError):
        next(stream)
    with never() as stream:
        settle()
        assert_matches(rf"never\(\) running for \d+\.\d s, 0 items ahead, {place}", stream)
    assert_matches("never.*cancelled", stream)
    stream = numbers(1)
    settle()
    assert_matches("numbers.*ended, 1 item ahead", stream)


def assert_matches(pattern: str, stream: EagerStream[Any]) -> None:
    """Compare a `repr` with a regular expression."""
    assert re.search(pattern, repr(stream)), repr(stream)


def test_making_one_by_hand_fails_quietly() -> None:
    """`EagerStream()` is a TypeError and nothing else."""
    with pytest.raises(TypeError):
        EagerStream()  # type: ignore[call-arg]
    gc.collect()


# Memory


class Thing:
    """Something whose end can be waited for."""


class Gone:
    """Whether objects are gone, by reference counts alone."""

    def __init__(self, *things: object) -> None:
        # Bare locks: an event has one inside that the finalizer might find held by its own thread.
        self._alive = [threading.Lock() for _ in things]
        for thing, lock in zip(things, self._alive, strict=True):
            lock.acquire()
            weakref.finalize(thing, lock.release)

    def __bool__(self) -> bool:
        deadline = time.monotonic() + 5
        for lock in self._alive:
            while not lock.acquire(timeout=0.01):
                if time.monotonic() > deadline:
                    return False
                if not GIL_ENABLED:  # there, some objects are left to the collector (PEP 703)
                    gc.collect()
        return True


@pytest.fixture
def _without_the_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


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


# Races, staged


class Staged(dict[Any, Any]):
    """Those who wait at one end of a channel; something else happens just before or just after one comes."""

    def __init__(self, channel: Channel[Any], end: str, when: str, action: Callable[[], object]) -> None:
        super().__init__()
        self.channel, self.end, self.when, self.action = channel, end, when, action
        setattr(channel, end, self)

    def __setitem__(self, who: object, value: object) -> None:
        ordinary: dict[Any, Any] = {}  # without the GIL, `list` is atomic of such alone
        setattr(self.channel, self.end, ordinary)
        if self.when == "before":
            self.action()
        ordinary[who] = value
        if self.when == "after":
            self.action()


before_and_after = pytest.mark.parametrize("when", ["before", "after"])


@before_and_after
@pytest.mark.parametrize("last", ["item", "error", "end"])
@pytest.mark.usefixtures("loop")
def test_a_consumer_about_to_wait_sees_the_last_item_and_the_end(when: str, last: str) -> None:
    """The last item and the end may come while the consumer is about to wait: it gets both."""
    gate = Gate()

    @eager_stream
    async def ending() -> AsyncIterator[int]:
        await gate.passed()
        if last == "item":
            yield 1
        elif last == "error":
            raise StumbledError

    def end() -> None:
        gate.open()
        assert stream._producing.exception(PATIENCE) is None or last == "error"

    stream = ending()
    Staged(stream._channel, "_consumer", when, end)
    if last == "error":
        with pytest.raises(StumbledError):
            next(stream)
    else:
        assert list(stream) == ([1] if last == "item" else [])
    assert next(stream, END) is END


@before_and_after
@pytest.mark.usefixtures("loop")
def test_a_consumer_that_is_interrupted_as_it_begins_to_wait_loses_nothing(when: str) -> None:
    """Ctrl-C at that moment comes out, and the next wait gets the item."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    stream = gated(gate := Gate())
    Staged(stream._channel, "_consumer", when, interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        next(stream)
    assert caught.value.__context__ is None
    gate.open()
    assert list(stream) == [1, 2]


@before_and_after
@pytest.mark.parametrize("buffer", [1, 2, 3, 16])
def test_a_producer_about_to_rest_sees_that_all_was_taken(
    loop: BackgroundLoop, when: str, buffer: int
) -> None:
    """The consumer may take all there is while the generator is about to rest: it goes on all the same."""
    arrived, taken = threading.Event(), threading.Event()
    gate = Gate()

    def take_all() -> None:
        arrived.set()
        assert taken.wait(PATIENCE)

    async def generate() -> AsyncIterator[int]:
        await gate.passed()
        for number in range(3 * buffer):
            yield number

    stream = eager_stream(buffer=buffer)(generate)()
    Staged(stream._channel, "_producer", when, take_all)
    gate.open()
    assert arrived.wait(PATIENCE)
    assert [next(stream) for _ in range(buffer)] == list(range(buffer))
    taken.set()
    assert list(stream) == list(range(buffer, 3 * buffer))
    assert not loop.tasks()


@before_and_after
@pytest.mark.usefixtures("loop")
def test_a_consumer_about_to_wait_sees_that_the_stream_is_closed(when: str) -> None:
    """Another thread may close while the consumer is about to wait: it sees the end."""
    stream = never()
    Staged(stream._channel, "_consumer", when, lambda: run_in_thread(stream.close).result(PATIENCE))
    assert next(stream, END) is END


@pytest.mark.parametrize("step", ["take", "call_at_next"])
@pytest.mark.parametrize("where", ["plain code", "asyncio"])
@pytest.mark.usefixtures("loop")
def test_a_consumer_sees_the_end_whenever_another_thread_closes(
    monkeypatch: pytest.MonkeyPatch, loop_factory: LoopFactory, step: str, where: str
) -> None:
    """At whichever step of a consumer another thread closes, that gets the end, and no cancellation."""
    stream = never()
    function = getattr(Channel, step)

    def close_first(*arguments: Any) -> Any:
        monkeypatch.setattr(Channel, step, function)
        run_in_thread(stream.close).result(PATIENCE)
        return function(*arguments)

    monkeypatch.setattr(Channel, step, close_first)
    if where == "plain code":
        assert next(stream, END) is END
    else:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(next_of(stream)) is END


@before_and_after
@pytest.mark.parametrize("buffer", [1, 2, 16])
@pytest.mark.usefixtures("loop")
def test_a_producer_about_to_rest_sees_that_the_stream_is_closed(
    monkeypatch: pytest.MonkeyPatch, when: str, buffer: int
) -> None:
    """A stream may be closed while its generator is about to rest: it ends all the same."""
    arrived, closed = threading.Event(), threading.Event()
    gate = Gate()

    def wait_for_close() -> None:
        arrived.set()
        assert closed.wait(PATIENCE)

    source = Source()

    @eager_stream(buffer=buffer)
    async def generate() -> AsyncIterator[int]:
        await gate.passed()
        async with contextlib.aclosing(source()) as inner:
            async for number in inner:
                yield number

    stream = generate()
    close = Channel.close

    def close_and_tell(channel: Channel[int]) -> None:
        close(channel)
        closed.set()

    monkeypatch.setattr(Channel, "close", close_and_tell)
    Staged(stream._channel, "_producer", when, wait_for_close)
    gate.open()
    assert arrived.wait(PATIENCE)
    closing = run_in_thread(stream.close)
    closing.result(PATIENCE)
    source.check_cleaned_once()


@pytest.mark.parametrize("second", ["next", "anext"])
@pytest.mark.usefixtures("loop")
def test_of_two_that_begin_to_wait_at_once_none_gets_what_the_other_took(
    loop_factory: LoopFactory, second: str
) -> None:
    """If two threads begin to wait at the same moment, one or both are refused, and nothing is lost."""

    def come_second() -> object:
        if second == "next":
            return next(stream)
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(next_of(stream))

    refused: list[BaseException | None] = []
    stream = gated(gate := Gate())
    decided = threading.Event()

    def have_second_come() -> None:
        refused.append(run_in_thread(come_second).exception(PATIENCE))
        decided.set()

    Staged(stream._channel, "_consumer", "after", have_second_come)
    first = run_in_thread(lambda: next(stream))
    assert decided.wait(PATIENCE)
    gate.open()
    taken = []
    try:
        taken.append(first.result(PATIENCE))
    except RuntimeError as exc:
        assert "one at a time" in str(exc)  # noqa: PT017
    assert "one at a time" in str(refused[0])
    assert [*taken, *stream] == [1, 2]


def test_a_consumer_that_comes_to_wait_after_the_end_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator may end after its consumer has looked, and before it begins to wait."""
    gate = Gate()

    @eager_stream
    async def nothing() -> AsyncIterator[int]:
        await gate.passed()
        for number in ():
            yield number

    sees_end = EagerStream._sees_end

    def staged_sees_end(stream: EagerStream[int]) -> bool:
        seen = sees_end(stream)
        if not seen:
            gate.open()
            concurrent.futures.wait([stream._producing], PATIENCE)
        return seen

    monkeypatch.setattr(EagerStream, "_sees_end", staged_sees_end)
    assert list(nothing()) == []


def test_a_consumer_that_stops_waiting_while_others_are_woken_is_left_alone() -> None:
    """A call that was taken back is not made, also at the moment of the wake-up."""
    channel: Channel[int] = Channel(1, None)  # type: ignore[arg-type]
    woken: list[str] = []

    def first() -> None:
        woken.append("first")
        channel.forget(second)

    def second() -> None:
        woken.append("second")

    channel._consumer.update({first: True, second: True})
    channel.wake_consumer()
    assert woken == ["first"]


def test_aclose_of_a_stream_that_ends_in_the_meantime_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator may end after it was asked to, and before `aclose()` begins to wait for that."""

    @eager_stream
    async def waits() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    new_awaiter = EagerTask._new_awaiter

    def staged_new_awaiter(task: EagerTask[None]) -> object:
        awaiter = new_awaiter(task)
        concurrent.futures.wait([task], PATIENCE)
        return awaiter

    async def main() -> bool:
        stream = waits()
        monkeypatch.setattr(EagerTask, "_new_awaiter", staged_new_awaiter)
        await stream.aclose()
        return stream._producing.cancelled()

    assert asyncio.run(main())


# Races, stressed


@pytest.mark.untraced("its threads take turns all the time, which a tracer makes very slow")
@pytest.mark.usefixtures("_frequent_switches")
def test_two_threads_that_take_at_once_share_the_items(loop: BackgroundLoop) -> None:
    """Two threads over one stream may be refused, but no item is lost or taken twice."""
    del loop
    for buffer in (1, 2, 16) * 3:
        stream = eager_stream(buffer=buffer)(Source(50, pausing=True))()
        barrier = threading.Barrier(2)

        def take(
            stream: EagerStream[int] = stream, barrier: threading.Barrier = barrier
        ) -> tuple[list[int], int]:
            taken, refused = [], 0
            barrier.wait()
            while True:
                try:
                    number = next(stream, END)
                except RuntimeError:
                    refused += 1
                    time.sleep(0.0001)  # or it would keep the others from running
                    continue
                if number is END:
                    return taken, refused
                taken.append(number)

        takings = [run_in_thread(take) for _ in range(2)]
        outcomes = [taking.result(PATIENCE) for taking in takings]
        assert all(taken == sorted(taken) for taken, _ in outcomes)
        assert sorted(outcomes[0][0] + outcomes[1][0]) == list(range(1, 51))


class Uneven:
    """An async generator function that waits and fails at random, and consumers that change at random."""

    def __init__(self, seed: float, loop_factory: LoopFactory) -> None:
        self.rng = random.Random(seed)
        self.last = self.rng.randrange(60)
        self.fails = self.rng.random() < 0.3
        self.begun = self.ended = 0
        self.loop_factory = loop_factory
        self.taken: list[int] = []
        self.closing: concurrent.futures.Future[None] | None = None

    async def generate(self, seed: float) -> AsyncIterator[int]:
        rng = random.Random(seed)
        self.begun += 1
        try:
            for number in range(self.last):
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.choice([0, 0, 0, 0.0001]))
                yield number
            if self.fails:
                raise StumbledError
        finally:
            try:
                await asyncio.sleep(rng.choice([0, 0.0001]))
            finally:  # cancelled, if it is left while it ends by itself
                self.ended += 1

    def consume(self) -> None:
        """Take items in one way after the other; perhaps leave."""
        buffer = self.rng.choice([1, 2, 3, 16, 1000])
        stream = eager_stream(buffer=buffer)(self.generate)(self.rng.random())
        leaving = self.rng.choice([None, None, "drop", "close", "aclose", "another thread"])
        ways = [self.some_by_next, self.some_in_loop, self.some_in_loop, self.some_on_the_background_loop]
        over = False
        for _ in range(self.rng.randrange(5) if leaving else sys.maxsize):
            try:
                over = self.rng.choice(ways)(stream)
            except StumbledError:
                assert self.fails
                assert len(self.taken) == self.last
                over = True
            if over:
                break
        with contextlib.suppress(StumbledError):  # raised just then, it comes out of the leaving
            if leaving == "close":
                stream.close()
            elif leaving == "aclose":
                asyncio.run(leave(stream))
            elif leaving == "another thread":
                self.closing = run_in_thread(stream.close)
                with contextlib.suppress(StumbledError):
                    self.taken += stream
                self.closing.result(PATIENCE)
        if leaving is None:
            assert over
            assert len(self.taken) == self.last
            assert list(stream) == []
        assert self.taken == list(range(len(self.taken)))

    def some_by_next(self, stream: EagerStream[int]) -> bool:
        some = self.rng.randrange(1, 20)
        for number in itertools.islice(stream, some):
            self.taken.append(number)
            some -= 1
        return some > 0

    def some_in_loop(self, stream: EagerStream[int]) -> bool:
        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            return runner.run(self._some(stream))

    def some_on_the_background_loop(self, stream: EagerStream[int]) -> bool:
        return shared_loop().create_task(self._some(stream)).result(PATIENCE)

    async def _some(self, stream: EagerStream[int]) -> bool:
        """Take some, and now and then be cancelled."""
        for _ in range(self.rng.randrange(1, 20)):
            with contextlib.suppress(TimeoutError):
                timeout = self.rng.choice([None, None, 0, 0.0001])
                number = await asyncio.wait_for(next_of(stream), timeout)
                if number is END:
                    return True
                self.taken.append(number)
        return False


@pytest.mark.usefixtures("_frequent_switches")
def test_random_consumers_lose_nothing(loop: BackgroundLoop, loop_factory: LoopFactory) -> None:
    """However streams are read, handed over, cancelled and left: items come in order, all end once."""
    reported = _quietly(loop)
    streams = [Uneven(seed, loop_factory) for seed in range(100)]
    waiting = iter(streams)
    lock = threading.Lock()

    def consume() -> None:
        while True:
            with lock:
                stream = next(waiting, None)
            if stream is None:
                return
            stream.consume()

    for consuming in [run_in_thread(consume) for _ in range(3)]:
        consuming.result(PATIENCE)
    loop.shutdown()
    gc.collect()
    assert all(stream.begun == stream.ended <= 1 for stream in streams)
    assert all(isinstance(exception, StumbledError) for exception in reported)
    assert loop._loop_thread is not None
    assert not loop._loop_thread.resting


def _quietly(loop: BackgroundLoop) -> list[BaseException]:
    """Have a loop put down what it would log: errors of streams that were left before them."""
    reported: list[BaseException] = []
    asyncio_loop = loop.asyncio_loop
    asyncio_loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    return reported
