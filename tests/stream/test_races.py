"""Streams lose nothing, whatever comes in between."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import gc
import itertools
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerStream, EagerTask, eager_stream, shared_loop
from eager_async._channel import Channel
from gates import Gate
from streams import END, Source, StumbledError, gated, leave, never, next_of, run_in_thread, settle
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

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


@pytest.mark.parametrize("buffer", [1, 4])
def test_a_consumer_that_found_nothing_sends_no_full_producer_on(loop: BackgroundLoop, buffer: int) -> None:
    """The buffer may have been filled since: then no more is made, and the consumer doesn't wait."""
    source = Source()
    stream = eager_stream(buffer=buffer)(source)()
    settle(loop)
    assert not stream._channel.call_at_next(lambda: None, stream._producing)
    settle(loop)
    assert source.made == list(range(1, buffer + 1))
    assert [next(stream) for _ in range(10)] == list(range(1, 11))


def test_an_item_that_is_put_as_the_stream_is_closed_is_dropped() -> None:
    """No item outlives that, whatever order the two come in."""

    class Items(collections.deque[int]):
        def append(self, item: int) -> None:
            channel.close()
            super().append(item)

    channel: Channel[int] = Channel(1, None)  # type: ignore[arg-type]
    channel.items = Items()
    assert not channel.put(1)
    assert not channel.items


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


@pytest.mark.usefixtures("loop")
def test_ctrl_c_after_an_item_was_taken_leaves_the_generator_going(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between taking an item and waking up the generator: the next look at the stream wakes it up."""

    @eager_stream(buffer=1)
    async def generate() -> AsyncIterator[int]:
        yield 1
        yield 2

    stream = generate()
    settle()
    wake_producer = Channel._wake_producer

    def interrupted(_: object) -> None:
        monkeypatch.setattr(Channel, "_wake_producer", wake_producer)
        raise KeyboardInterrupt

    monkeypatch.setattr(Channel, "_wake_producer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert list(stream) == [2]


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
