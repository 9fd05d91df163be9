"""The queue by which other threads make calls on a loop: none is lost, and a burst costs one wake-up."""

from __future__ import annotations

import asyncio
import collections
import errno
import gc
import itertools
import os
import select
import selectors
import threading
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, eager, set_shared_loop, shared_loop
from eager_async._call_queue import CallQueue, _Descriptor, call_queue
from interrupter import Interrupter, in_module
from threads import PATIENCE, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable


class ManualLoop:
    """A loop that is woken up and turned by hand."""

    def __init__(self) -> None:
        self.wake_ups = 0
        self.closed = False
        self.failure: BaseException | None = None
        self._ready: collections.deque[Callable[[], object]] = collections.deque()

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        """Take a callback, or raise."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.wake_ups += 1
        self._ready.append(callback)

    def is_closed(self) -> bool:
        """Whether it is."""
        return self.closed

    def get_debug(self) -> bool:
        """Whether it is in debug mode: no."""
        return False

    def turn(self) -> bool:
        """Make the calls that are ready now; return whether there were any."""
        ready = len(self._ready)
        for _ in range(ready):
            self._ready.popleft()()
        return ready > 0

    def turn_until_idle(self) -> None:
        """Turn as long as there is something ready."""
        while self.turn():
            pass


@pytest.fixture
def loop() -> ManualLoop:
    """A loop that turns when the test says so."""
    return ManualLoop()


@pytest.fixture
def queue(loop: ManualLoop) -> CallQueue:
    """The queue of that loop."""
    return CallQueue(loop)  # type: ignore[arg-type]


def run_interrupted(work: Callable[[], object], interruptions: dict[int, Callable[[], object]]) -> bool:
    """Do some work, and other things in its midst, before these instructions of the queue's own code.

    Returns:
        False if there are not that many instructions.
    """
    interrupter = Interrupter(interruptions, in_module("_call_queue"))
    with interrupter:
        work()
    return interrupter.happened


def test_calls_are_made_in_order_at_the_next_turn(loop: ManualLoop, queue: CallQueue) -> None:
    """Calls wait for the loop's turn, and are made in the order in which they were queued."""
    made: list[int] = []
    for number in range(10):
        assert queue.call_soon(lambda n=number: made.append(n))  # type: ignore[misc]
    assert made == []
    loop.turn()
    assert made == list(range(10))


def test_a_burst_costs_one_wake_up(loop: ManualLoop, queue: CallQueue) -> None:
    """Any number of calls before the loop's next turn wake it up once; the first one after it does again."""
    for _ in range(3):
        before = loop.wake_ups  # a drain that takes long wakes it up again for the rest
        for _ in range(90):
            queue.call_soon(int)
        assert loop.wake_ups == before + 1
        loop.turn_until_idle()


@pytest.fixture(params=["descriptor", "self-pipe"])
def woken_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How loops are woken up: by a descriptor of the queue's, where there are such, or by their own means."""
    if request.param == "self-pipe":
        monkeypatch.delattr("os.eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("Linux has them")


@pytest.mark.parametrize("busy_with", ["a callback", "a call"])
@pytest.mark.usefixtures("woken_by")
def test_a_burst_of_eager_calls_costs_one_wake_up(monkeypatch: pytest.MonkeyPatch, busy_with: str) -> None:
    """While the loop is busy; none while it makes calls and has a descriptor, as it comes back by itself."""
    wake_ups: list[int] = []
    write = _Descriptor.write

    def counting_write(descriptor: _Descriptor) -> None:
        wake_ups.append(1)
        write(descriptor)

    monkeypatch.setattr(_Descriptor, "write", counting_write)

    class CountingLoop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
            wake_ups.append(1)
            return super().call_soon_threadsafe(*args, **kwargs)

    set_shared_loop(BackgroundLoop(loop_factory=CountingLoop))
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait(PATIENCE)

    @eager
    async def call() -> None:
        hold()

    if busy_with == "a call":
        call()
    else:
        shared_loop().asyncio_loop.call_soon_threadsafe(hold)
    assert entered.wait(PATIENCE)
    wake_ups.clear()
    tasks = [eager(asyncio.sleep)(0, number) for number in range(50)]
    comes_back = busy_with == "a call" and hasattr(os, "eventfd")
    assert len(wake_ups) == (0 if comes_back else 1)
    leave.set()
    assert [task.result(PATIENCE) for task in tasks] == list(range(50))


def test_no_call_is_lost_at_any_point_of_the_draining(loop: ManualLoop, queue: CallQueue) -> None:
    """Whenever another thread queues a call while the loop makes some, that call is made as well."""
    at = 0
    interrupted = True
    while interrupted:
        at += 1
        made: list[str] = []
        queue.call_soon(lambda made=made: made.append("first"))  # type: ignore[misc]
        queue.call_soon(lambda made=made: made.append("second"))  # type: ignore[misc]
        interrupted = run_interrupted(
            loop.turn,
            {at: lambda made=made: queue.call_soon(lambda: made.append("other thread's"))},  # type: ignore[misc]
        )
        loop.turn_until_idle()
        assert made == ["first", "second"] + ["other thread's"] * interrupted, f"at instruction {at}"
    assert at > 10


def test_no_call_is_lost_at_any_point_of_the_queueing(loop: ManualLoop, queue: CallQueue) -> None:
    """Whenever the loop turns while a thread queues a call, that call is made, and needs no other to be."""
    at = 0
    interrupted = True
    while interrupted:
        at += 1
        made: list[str] = []
        queue.call_soon(lambda made=made: made.append("before"))  # type: ignore[misc]
        interrupted = run_interrupted(
            lambda made=made: queue.call_soon(lambda: made.append("call")),  # type: ignore[misc]
            {at: loop.turn},
        )
        loop.turn_until_idle()
        assert made == ["before", "call"], f"at instruction {at}"
    assert at > 5


def test_no_call_is_lost_when_two_threads_queue_at_once(loop: ManualLoop, queue: CallQueue) -> None:
    """Whenever a second thread queues a call while a first one does, both are made."""
    at = 0
    interrupted = True
    while interrupted:
        at += 1
        made: list[str] = []
        interrupted = run_interrupted(
            lambda made=made: queue.call_soon(lambda: made.append("one")),  # type: ignore[misc]
            {at: lambda made=made: queue.call_soon(lambda: made.append("two"))},  # type: ignore[misc]
        )
        loop.turn_until_idle()
        assert sorted(made) == ["one", "two"][: 1 + interrupted], f"at instruction {at}"
    assert at > 5


def test_a_signal_handler_may_queue_a_call_and_wait_for_it(loop: ManualLoop, queue: CallQueue) -> None:
    """Wherever it interrupts its own thread's queueing, which stands still meanwhile, its call is made."""
    at = 0
    interrupted = True
    while interrupted:
        at += 1
        made: list[str] = []

        def handler(made: list[str] = made, at: int = at) -> None:
            queue.call_soon(lambda: made.append("handler's"))
            loop.turn_until_idle()
            assert "handler's" in made, f"at instruction {at}"

        interrupted = run_interrupted(
            lambda made=made: queue.call_soon(lambda: made.append("thread's")),  # type: ignore[misc]
            {at: handler},
        )
        loop.turn_until_idle()
        assert sorted(made) == ["handler's", "thread's"][1 - interrupted :], f"at instruction {at}"
    assert at > 5


@pytest.mark.parametrize("who", ["another thread", "an earlier handler"])
def test_a_signal_handler_may_wait_after_others_have_queued(
    loop: ManualLoop, queue: CallQueue, who: str
) -> None:
    """Its call is made, although another's was queued, and made, just before the signal came."""

    def queue_another() -> None:
        if who == "another thread":
            thread = threading.Thread(target=queue.call_soon, args=(int,))
            thread.start()
            thread.join()
        else:
            queue.call_soon(int)
        loop.turn_until_idle()

    for first in range(1, 80):
        for second in range(first + 1, first + 25):
            made: list[str] = []

            def handler(made: list[str] = made, at: tuple[int, int] = (first, second)) -> None:
                queue.call_soon(lambda: made.append("handler's"))
                loop.turn_until_idle()
                assert "handler's" in made, f"at instructions {at}"

            interrupted = run_interrupted(
                lambda made=made: queue.call_soon(lambda: made.append("thread's")),  # type: ignore[misc]
                {first: queue_another, second: handler},
            )
            loop.turn_until_idle()
            assert "thread's" in made
            if not interrupted:
                break


@pytest.mark.parametrize("limit", [None, 1])
def test_debug_mode_names_a_call_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, expected_log: Callable[[str], None], loop_factory: Any, limit: int | None
) -> None:
    """As asyncio's does; of calls that come together, the one that it was."""
    now = [0.0]
    monkeypatch.setattr("eager_async._call_queue.monotonic", lambda: now[0])

    expected_log(
        r"executing .*<EagerTask \w+ take\(\) returned 101, called at [^>]*>.* took 101\.000 seconds"
    )
    entered, leave = threading.Event(), threading.Event()
    with BackgroundLoop(debug=True, loop_factory=loop_factory) as loop:
        loop.asyncio_loop.slow_callback_duration = 100  # type: ignore[attr-defined]

        @eager(loop=loop, limit=limit)
        async def take(seconds: float) -> float:
            now[0] += seconds
            return seconds

        def hold() -> None:
            entered.set()
            leave.wait(PATIENCE)

        loop.asyncio_loop.call_soon_threadsafe(hold)
        assert entered.wait(PATIENCE)
        tasks = [take(seconds) for seconds in (1, 101, 99, 50)]
        leave.set()
        for task in tasks:
            task.result(PATIENCE)


def test_debug_mode_names_a_callback_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, expected_log: Callable[[str], None]
) -> None:
    """It is called on the loop on which it was added."""
    now = [0.0]
    monkeypatch.setattr("eager_async._call_queue.monotonic", lambda: now[0])

    def call_back(_: object) -> None:
        now[0] += 101

    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = 100  # type: ignore[attr-defined]
        task = eager(asyncio.sleep)(0)
        task.add_done_callback(call_back)
        while not now[0]:
            await asyncio.sleep(0)

    expected_log(
        r"executing <callback <function \S+call_back at \w+> of <EagerTask .*>> took 101\.000 seconds"
    )
    asyncio.run(main(), debug=True)


@pytest.mark.usefixtures("_frequent_switches")
def test_no_call_is_lost_under_stress() -> None:
    """Eight threads at once, calls in bursts and one by one: all are made, each thread's in order."""
    made: list[tuple[int, int]] = []
    barrier = threading.Barrier(8)

    async def caller_per_thread() -> None:
        own_queue = call_queue(asyncio.get_running_loop())
        loop_done = asyncio.Event()

        def last() -> None:
            if len(made) == 8 * 300:
                loop_done.set()

        def produce(thread: int) -> None:
            barrier.wait()
            answered = threading.Event()
            for number in range(300):
                own_queue.call_soon(lambda n=number: made.append((thread, n)))  # type: ignore[misc]
                if number % 50 == 49:  # let the queue run dry
                    own_queue.call_soon(answered.set)
                    assert answered.wait(PATIENCE)
                    answered.clear()
            own_queue.call_soon(last)

        threads = [threading.Thread(target=produce, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(loop_done.wait(), PATIENCE)
        for thread in threads:
            thread.join()

    asyncio.run(caller_per_thread())
    for thread in range(8):
        assert [number for caller, number in made if caller == thread] == list(range(300))


def test_a_call_may_queue_calls(loop: ManualLoop, queue: CallQueue) -> None:
    """What a call queues is made too, after what was queued before it."""
    made: list[str] = []

    def first() -> None:
        made.append("first")
        queue.call_soon(lambda: made.append("third"))

    queue.call_soon(first)
    queue.call_soon(lambda: made.append("second"))
    loop.turn_until_idle()
    assert made == ["first", "second", "third"]


# The descriptor by which a loop is woken up


needs_descriptors = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="Linux has them")


def is_open(number: int) -> bool:
    """Whether a descriptor is."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@needs_descriptors
def test_a_descriptor_is_open_as_long_as_a_thread_may_write_to_it() -> None:
    """One that is about to write when the loop ends must not find another file under that number."""
    loop = BackgroundLoop()
    loop.create_task(asyncio.sleep(0)).result(PATIENCE)
    assert loop._loop_thread is not None
    writer = loop._loop_thread._calls._descriptor
    assert writer is not None
    number = writer.number
    loop.shutdown()
    assert is_open(number)
    writer.write()
    del writer
    assert not is_open(number)


@needs_descriptors
def test_a_descriptor_is_closed_when_its_module_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As at the end of the process, without the GIL."""
    descriptor = _Descriptor()
    number = descriptor.number
    with monkeypatch.context() as context:
        context.setattr("eager_async._call_queue.os", None)
        context.setattr("eager_async._call_queue._os", None)
        del descriptor
    assert not is_open(number)


@needs_descriptors
def test_a_loop_that_has_nothing_to_do_rests() -> None:
    """A wake-up is used up by the calls that it is for."""
    with BackgroundLoop() as loop:
        loop.create_task(asyncio.sleep(0)).result(PATIENCE)
        assert loop._loop_thread is not None
        descriptor = loop._loop_thread._calls._descriptor
        assert descriptor is not None
        assert select.select([descriptor.number], [], [], 0)[0] == []


@needs_descriptors
@pytest.mark.parametrize("when", ["never started", "shut down", "dropped"])
def test_loops_leave_no_descriptor_behind(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if no thread can be had for one."""
    made: list[int] = []
    make = os.eventfd  # type: ignore[attr-defined, unused-ignore]

    def eventfd(*args: int) -> int:
        made.append(make(*args))
        return made[-1]

    monkeypatch.setattr(os, "eventfd", eventfd)
    loop = BackgroundLoop()
    if when == "never started":
        with monkeypatch.context() as context:
            context.setattr(
                threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread"))
            )
            with pytest.raises(RuntimeError, match="no thread"):
                loop.create_task(asyncio.sleep(0))
    else:
        loop.create_task(asyncio.sleep(0)).result(PATIENCE)
        thread = loop._loop_thread
        assert thread is not None
        if when == "shut down":
            loop.shutdown()
        else:
            del loop
            gc.collect()
            thread.join()
        del thread
    gc.collect()
    assert len(made) == 1
    assert not is_open(made[0])


@needs_descriptors
@pytest.mark.parametrize("cause", ["no descriptor left", "a loop that can't listen"])
def test_loops_work_without_a_descriptor(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are then woken up by their own means."""

    class Deaf(asyncio.SelectorEventLoop):
        def add_reader(self, *_: object) -> Any:
            raise NotImplementedError

    def eventfd(*_: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    if cause == "no descriptor left":
        monkeypatch.setattr(os, "eventfd", eventfd)
        loop = BackgroundLoop()
    else:
        loop = BackgroundLoop(loop_factory=Deaf)
    with loop:
        assert [loop.create_task(asyncio.sleep(0, n)).result(PATIENCE) for n in range(3)] == [0, 1, 2]
        assert loop._loop_thread is not None
        assert loop._loop_thread._calls._descriptor is None


@pytest.fixture
def slow_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every call took a second."""
    monkeypatch.setattr("eager_async._call_queue.monotonic", itertools.count().__next__)


def test_calls_that_queue_one_another_end_a_turn(loop: ManualLoop, queue: CallQueue) -> None:
    """What is queued while calls are being made waits for the next turn."""
    rounds: list[object] = []

    def again() -> None:
        rounds.append(None)
        queue.call_soon(again)

    queue.call_soon(again)
    for turn in range(1, 4):
        loop.turn()
        assert len(rounds) == turn


@pytest.mark.usefixtures("slow_calls")
def test_a_flood_of_calls_lets_the_loop_turn(loop: ManualLoop, queue: CallQueue) -> None:
    """Calls that queue one another for ever, and a thousand queued at once, end a turn all the same."""
    made: list[int] = []
    rounds: list[int] = []

    def again() -> None:
        rounds.append(len(made))
        queue.call_soon(again)

    queue.call_soon(again)
    loop.turn()
    assert len(rounds) == 1
    for number in range(1, 1001):
        queue.call_soon(lambda n=number: made.append(n))  # type: ignore[misc]
    turns = 0
    while len(made) < 1000:
        before = len(made)
        assert loop.turn()
        assert len(made) > before
        turns += 1
    assert turns >= 50
    assert made == list(range(1, 1001))
    assert len(rounds) > 1


@pytest.mark.usefixtures("slow_calls")
def test_a_flood_of_eager_calls_lets_timers_in() -> None:
    """A timer that is due, and a callback, come in between a thousand calls that wait for their start."""
    order: list[object] = []
    entered, leave = threading.Event(), threading.Event()

    @eager
    async def hold() -> None:
        entered.set()
        leave.wait(PATIENCE)

    @eager
    async def start(number: int) -> None:
        if number == 0:
            loop = asyncio.get_running_loop()
            loop.call_later(0, order.append, "timer")
            loop.call_soon(order.append, "callback")
        order.append(number)

    tasks = [hold()]
    assert entered.wait(PATIENCE)
    tasks += [start(number) for number in range(1000)]
    leave.set()
    for task in tasks:
        task.result(PATIENCE)
    assert [entry for entry in order if isinstance(entry, int)] == list(range(1000))
    assert order.index("timer") < 100
    assert order.index("callback") < 100


def test_a_call_that_raises_costs_no_other(loop: ManualLoop, queue: CallQueue) -> None:
    """An exception comes out in the loop's turn; the calls after it are made in the next."""
    made: list[str] = []
    for failure in (ValueError("a call's"), KeyboardInterrupt("a call's"), SystemExit("a call's")):

        def fail(failure: BaseException = failure) -> None:
            raise failure

        made.clear()
        queue.call_soon(lambda: made.append("before"))
        queue.call_soon(fail)
        queue.call_soon(lambda: made.append("after"))
        with pytest.raises(type(failure), match="a call's"):
            loop.turn()
        loop.turn_until_idle()
        assert made == ["before", "after"]


def test_a_closed_loop_says_so(loop: ManualLoop, queue: CallQueue) -> None:
    """`call_soon` returns False once the loop is closed, each time, and keeps nothing alive."""

    class Call:
        def __call__(self) -> None:
            raise AssertionError("made on a closed loop")

    loop.closed = True
    calls = [Call(), Call()]
    assert [queue.call_soon(call) for call in calls] == [False, False]
    del calls
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Call]


def test_a_loop_that_is_gone_says_so(loop: ManualLoop, queue: CallQueue) -> None:
    """A queue doesn't keep its loop alive; `call_soon` returns False when that is gone."""
    assert queue._loop() is loop
    other = ManualLoop()
    queue = CallQueue(other)  # type: ignore[arg-type]
    del other
    gc.collect()
    assert queue.call_soon(int) is False


def test_a_loop_that_closes_does_not_hide_its_other_errors(loop: ManualLoop, queue: CallQueue) -> None:
    """A RuntimeError of a loop that isn't closed is raised, and the next call wakes the loop up."""
    made: list[str] = []
    loop.failure = RuntimeError("Non-thread-safe operation")
    with pytest.raises(RuntimeError, match="Non-thread-safe"):
        queue.call_soon(lambda: made.append("one"))
    assert queue.call_soon(lambda: made.append("two"))
    loop.turn_until_idle()
    assert made[-1] == "two"


def test_an_interrupted_wake_up_is_made_up_for(loop: ManualLoop, queue: CallQueue) -> None:
    """Ctrl-C in the midst of a wake-up is raised; the loop is woken up all the same."""
    made: list[str] = []
    loop.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        queue.call_soon(lambda: made.append("one"))
    assert loop.wake_ups == 1
    loop.turn_until_idle()
    assert made == ["one"]


def test_an_interrupted_wake_up_is_made_up_for_to_others(loop: ManualLoop, queue: CallQueue) -> None:
    """Another thread may have counted on it: wherever Ctrl-C comes, the call of that thread is made."""
    for step in itertools.count(1):
        made: list[str] = []

        def interrupt(made: list[str] = made) -> None:
            in_threads(lambda: queue.call_soon(lambda: made.append("other's")))
            raise KeyboardInterrupt

        try:
            run_interrupted(lambda: queue.call_soon(int), {step: interrupt})
        except KeyboardInterrupt:
            loop.turn_until_idle()
            assert made == ["other's"], f"at instruction {step}"
        else:
            break  # there are not that many
    assert step > 20


def test_a_wake_up_that_a_closing_loop_refuses_hides_no_interruption(
    loop: ManualLoop, queue: CallQueue
) -> None:
    """Ctrl-C is raised, not that the loop is closed."""
    loop.failure = KeyboardInterrupt()
    take = loop.call_soon_threadsafe

    def close_and_take(callback: Callable[[], object]) -> None:
        try:
            take(callback)
        finally:
            loop.closed = True

    loop.call_soon_threadsafe = close_and_take  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        queue.call_soon(int)


class DrowsyLoop(asyncio.SelectorEventLoop):
    """A loop in which something comes in, once, when it is about to sleep for as long as it takes."""

    def __init__(self) -> None:
        self.comes_in: list[Callable[[], object]] = []
        comes_in = self.comes_in

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                if timeout is None and comes_in:
                    comes_in.pop()()
                return super().select(timeout)

        super().__init__(Selector())


@pytest.mark.parametrize("what", ["callback", "call", "cancellation"])
@pytest.mark.usefixtures("woken_by")
def test_what_comes_in_when_the_loop_is_about_to_sleep_wakes_it_up(what: str) -> None:
    """A finalizer, for one; plain `call_soon` would leave it asleep."""
    happened = threading.Event()

    async def turn() -> None:
        await asyncio.sleep(0)
        happened.set()

    async def sleep() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            happened.set()

    asyncio_loop = DrowsyLoop()
    with BackgroundLoop(loop_factory=lambda: asyncio_loop) as loop:
        sleeper = loop.create_task(sleep(), daemon=True)
        done = loop.create_task(asyncio.sleep(0))
        done.result()
        asyncio_loop.comes_in.append(
            {
                "callback": lambda: done.add_done_callback(lambda _: happened.set()),
                "call": lambda: loop.create_task(turn()),
                "cancellation": sleeper.cancel,
            }[what]
        )
        loop.create_task(asyncio.sleep(0)).result()
        assert happened.wait(PATIENCE)


def test_a_loop_has_one_queue() -> None:
    """In one thread, the running loop has the same queue each time; the next loop has another."""

    async def ask() -> list[CallQueue]:
        running = asyncio.get_running_loop()
        return [call_queue(running), call_queue(running)]

    first, again = asyncio.run(ask())
    assert first is again
    other, _ = asyncio.run(ask())
    assert other is not first


def test_the_background_loops_thread_uses_one_queue() -> None:
    """Calls into a background loop and callbacks added on it share one queue, and so keep one order."""
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    @eager
    async def hold() -> None:
        entered.set()
        leave.wait(PATIENCE)

    @eager
    async def work() -> None:
        order.append("started")

    holding = hold()
    assert entered.wait(PATIENCE)
    shared_loop()
    first, second = work(), work()
    first.add_done_callback(lambda _: order.append("called back"))
    leave.set()
    for task in (holding, first, second):
        task.result(PATIENCE)
    assert order == ["started", "called back", "started"]
