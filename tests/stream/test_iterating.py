"""What an `EagerStream` gives to who iterates: items made ahead, taken anywhere, none lost, and errors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, DeadlockError, EagerStream, eager, eager_stream, shared_loop
from gates import Gate
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
    some_turns,
    stumble,
    variable,
)
from threads import GIL_ENABLED, PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

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


def test_an_item_that_answers_a_timeout_at_a_yield_counts(loop: BackgroundLoop) -> None:
    """What a generator yields when its own timeout strikes at a `yield` fills the buffer as any other."""
    made: list[int] = []

    @eager_stream(buffer=1)
    async def generate() -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(0):
                yield 1
        except TimeoutError:
            made.append(2)
            yield 2
        made.append(3)
        yield 3

    stream = generate()
    settle(loop)
    loop.create_task(asyncio.sleep(0.01)).result(PATIENCE)  # by then the timeout has struck
    assert next(stream) == 1
    settle(loop)
    assert made == [2]
    assert list(stream) == [2, 3]


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
    expected_log(r"stumble\(\) called at .*test_iterating\.py:\d+.* never retrieved.*StumbledError: no")
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


def test_for_on_the_loops_own_thread_is_an_error_with_items_there_too(loop: BackgroundLoop) -> None:
    """It would take those, and then stand still: it raises before the first."""

    async def main() -> list[int]:
        stream = numbers_slowly(3)
        while not stream._channel.items:
            await asyncio.sleep(0)
        with pytest.raises(DeadlockError, match="`async for`"):
            iter(stream)
        return await collect(stream)

    assert loop.create_task(main()).result(PATIENCE) == [1, 2, 3]


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
        await some_turns()
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


# For people


@pytest.mark.usefixtures("loop")
def test_repr_says_what_a_stream_is_doing() -> None:
    """The `repr` names the function, its state, what is ahead, and the place of the call."""
    place = r"called at .*test_iterating\.py:\d+>"
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


def test_the_stack_of_a_streams_task_is_that_of_the_generator(loop: BackgroundLoop) -> None:
    """`tasks()` has it, and `get_stack` leads through the library's own frames."""

    @eager_stream
    async def generate() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    with generate():
        settle(loop)
        (task,) = loop.tasks()
        assert task.get_stack()[0].f_code.co_name == "generate"
