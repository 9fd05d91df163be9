"""A generator always ends, and cleans up: when its stream is left, cancelled or dropped, or its loop ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import selectors
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import (
    BackgroundLoop,
    EagerStream,
    LoopClosedError,
    eager_stream,
    set_shared_loop,
    shared_loop,
)
from gates import Gate
from gone import Gone
from streams import (
    END,
    Cleanup,
    Consumer,
    Source,
    StumbledError,
    collect,
    gated,
    never,
    next_of,
    numbers,
    numbers_slowly,
    run_in_thread,
    settle,
)
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

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
    """It cancels its consumer, on the background loop, right after a `yield`: the item is the next one's."""
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
    """When a loop's thread dies, consumers get what is in the buffer, then LoopClosedError. It goes."""
    expected_log("is dead")

    def kill(loop: BackgroundLoop, selector: _FragileSelector) -> None:
        selector.broken = True
        for task in asyncio.all_tasks(loop.asyncio_loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own complaint
        loop.asyncio_loop.call_soon_threadsafe(lambda: None)
        loop._loop_thread.join()  # type: ignore[union-attr]

    async def generate() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(PATIENCE)

    def use() -> Gone:
        selector = _FragileSelector()
        loop = BackgroundLoop(loop_factory=lambda: asyncio.SelectorEventLoop(selector))
        stream = eager_stream(buffer=1 if state == "at rest" else 16, loop=loop)(generate)()
        settle(loop)
        if state == "at rest":
            kill(loop, selector)
            assert next(stream) == 1
            taking = run_in_thread(lambda: next(stream))
        else:
            assert next(stream) == 1
            taking = run_in_thread(lambda: next(stream))
            assert waits.acquire(timeout=PATIENCE)
            kill(loop, selector)
        with pytest.raises(LoopClosedError, match=r"generate\(\) called at"):
            taking.result(PATIENCE)
        assert list(stream) == []
        stream.close()
        loop.shutdown()
        return Gone(loop)

    gone = use()
    gc.collect()  # exceptions keep this frame, and it keeps them
    assert gone


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


def check_refused(loop: BackgroundLoop, recwarn: pytest.WarningsRecorder) -> None:
    """A call raises LoopClosedError; nothing begins, nothing is warned of."""
    source = Source()
    with pytest.raises(LoopClosedError):
        eager_stream(loop=loop)(source)()
    gc.collect()
    assert not source.begun.is_set()
    assert not recwarn.list


def test_a_stream_that_is_refused_never_begins(recwarn: pytest.WarningsRecorder) -> None:
    """A call on a loop that was shut down raises LoopClosedError; nothing begins, nothing is warned of."""
    loop = BackgroundLoop()
    loop.shutdown()
    check_refused(loop, recwarn)


def test_a_stream_that_comes_while_its_loop_closes_is_refused(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """If the loop closes in the middle of the call, that raises, and nothing begins or is warned of."""
    loop = BackgroundLoop()
    loop_thread = loop._admitting_thread()
    loop.shutdown()
    monkeypatch.setattr(loop, "_admitting_thread", lambda: loop_thread)
    check_refused(loop, recwarn)
