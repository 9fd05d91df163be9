"""Loops that somebody stops, breaks or can't start: tasks go on or fail, and nobody hangs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import selectors
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, LoopClosedError, eager, shared_loop
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]


async def double(number: int) -> int:
    """Return twice the number, after a turn of the loop."""
    await asyncio.sleep(0)
    return 2 * number


class Broken(Exception):  # noqa: N818
    """What a broken part raises."""


class FragileSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """A selector that can be broken."""

    broken: BaseException | None = None

    def select(self, timeout: float | None = None) -> Any:
        """Wait for events, or raise what broke it."""
        if self.broken is not None:
            raise self.broken
        return super().select(timeout)


class FragileLoop:
    """A background loop whose event loop dies on request."""

    def __init__(self) -> None:
        self.selectors: list[FragileSelector] = []
        self.loop = BackgroundLoop(name="fragile", loop_factory=self._make)

    def _make(self) -> asyncio.AbstractEventLoop:
        self.selectors.append(FragileSelector())
        return asyncio.SelectorEventLoop(self.selectors[-1])

    def kill(self, exception: BaseException) -> None:
        """Have the event loop's thread die of an exception. From any thread."""
        self.selectors[-1].broken = exception
        self.loop.asyncio_loop.call_soon_threadsafe(lambda: None)


@pytest.fixture
def fragile() -> Iterator[FragileLoop]:
    """Return a background loop that can be killed; what comes after it is shut down."""
    fragile = FragileLoop()
    yield fragile
    fragile.loop.shutdown(cancel_futures=True)


# Stopped by somebody


@pytest.mark.parametrize("where", ["body", "callback", "thread"])
def test_a_loop_that_somebody_stops_goes_on(loop_factory: LoopFactory, where: str) -> None:
    """`loop.stop()`, from a task, a callback or another thread, ends nothing."""

    async def stopping() -> int:
        asyncio.get_running_loop().stop()
        return await double(1)

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        waiting = loop.create_task(double(20))
        if where == "body":
            assert loop.create_task(stopping()).result(PATIENCE) == 2
        elif where == "callback":
            loop.asyncio_loop.call_soon_threadsafe(loop.asyncio_loop.stop)
        else:
            loop.asyncio_loop.stop()
        assert waiting.result(PATIENCE) == 40
        assert loop.create_task(double(21)).result(PATIENCE) == 42


def test_a_loop_that_somebody_stops_while_it_shuts_down_finishes_its_tasks() -> None:
    """Stopping the loop again and again during the shutdown, cleanup included, loses nothing."""
    steps: list[str] = []
    begun = threading.Event()

    async def stop_often() -> None:
        for _ in range(5):
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0)

    async def daemon() -> None:
        try:
            begun.set()
            await asyncio.get_running_loop().create_future()
        finally:
            await stop_often()
            steps.append("daemon cleaned up")

    async def body() -> None:
        try:
            await stop_often()
        finally:
            await stop_often()
            steps.append("body ended")

    loop = BackgroundLoop()
    loop.create_task(daemon(), daemon=True)
    assert begun.wait(PATIENCE)
    loop.create_task(body())
    loop.shutdown()
    assert steps == ["body ended", "daemon cleaned up"]


# SystemExit and KeyboardInterrupt


@pytest.mark.parametrize("exception_type", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("late", [False, True], ids=["first segment", "later"])
def test_what_a_body_raises_goes_to_its_task(
    loop_factory: LoopFactory,
    exception_type: type[BaseException],
    late: bool,  # noqa: FBT001
) -> None:
    """SystemExit and KeyboardInterrupt of a body come out of its task; loop and neighbours live on."""
    error = exception_type(3)

    async def body() -> None:
        if late:
            await asyncio.sleep(0)
        raise error

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        thread_before = loop.create_task(own_thread()).result()
        release = threading.Event()
        neighbour = loop.create_task(asyncio.to_thread(release.wait))
        with pytest.raises(exception_type) as caught:
            loop.create_task(body()).result(PATIENCE)
        assert caught.value is error
        release.set()
        assert neighbour.result(PATIENCE)
        assert loop.create_task(own_thread()).result(PATIENCE) is thread_before


def test_an_exit_is_told_to_nobody_while_the_loop_raises_it_too(loop_factory: LoopFactory) -> None:
    """What a body's SystemExit does in the loop's thread comes first there: uvloop raises it a turn later."""
    order: list[str] = []
    sample = loop_factory()
    sample.close()

    class NotingLoop(type(sample)):  # type: ignore[misc]
        def run_forever(self) -> None:
            try:
                super().run_forever()
            except SystemExit:
                order.append("let out")
                raise

    async def leave() -> None:
        await asyncio.sleep(0)
        raise SystemExit(3)

    with BackgroundLoop(loop_factory=NotingLoop) as loop:
        task = loop.create_task(leave())
        task.add_done_callback(lambda _: order.append("told"))
        with pytest.raises(SystemExit):
            task.result(PATIENCE)
    assert order == ["let out", "told"]


@pytest.mark.parametrize("exception_type", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("late", [False, True], ids=["first segment", "later"])
def test_what_an_inner_call_raises_goes_to_whoever_awaits_it(
    exception_type: type[BaseException],
    late: bool,  # noqa: FBT001
) -> None:
    """An eager function that calls another gets its SystemExit at the `await`, not at the call."""

    @eager
    async def inner() -> None:
        if late:
            await asyncio.sleep(0)
        raise exception_type(3)

    @eager
    async def outer() -> str:
        task = inner()
        try:
            await task
        except exception_type as exc:
            return f"caught {exc.args}"
        return "nothing"

    assert outer().result(PATIENCE) == "caught (3,)"


@pytest.mark.parametrize("exception_type", [SystemExit, KeyboardInterrupt, GeneratorExit, Broken])
def test_a_callback_that_raises_does_not_end_the_loop(
    loop_factory: LoopFactory,
    exception_type: type[BaseException],
    expected_log: Callable[[str], None],
) -> None:
    """Whatever a callback of the event loop raises is reported once, and the loop goes on."""

    def callback() -> None:
        raise exception_type("from the callback")

    expected_log("from the callback")
    with BackgroundLoop(loop_factory=loop_factory) as loop:
        thread = loop.create_task(own_thread()).result()
        loop.asyncio_loop.call_soon_threadsafe(callback)
        assert loop.create_task(double(1)).result(PATIENCE) == 2
        assert loop.create_task(own_thread()).result(PATIENCE) is thread


def test_an_exception_handler_that_exits_does_not_end_the_loop(expected_log: Callable[[str], None]) -> None:
    """It is logged, as what a callback raises."""
    expected_log("exception reporting that a callback raised it.*SystemExit: handler")
    handled = threading.Event()

    def handle(*_: object) -> None:
        handled.set()
        raise SystemExit("handler")

    def fail() -> None:
        raise ValueError("callback")

    with BackgroundLoop() as loop:
        loop.asyncio_loop.set_exception_handler(handle)
        loop.asyncio_loop.call_soon_threadsafe(fail)
        assert handled.wait(PATIENCE)
        loop.asyncio_loop.set_exception_handler(lambda *_: sys.exit("handler"))
        assert loop.create_task(asyncio.sleep(0, "goes on")).result(PATIENCE) == "goes on"


def test_an_exit_in_the_last_cleanup_loses_nobody_elses(expected_log: Callable[[str], None]) -> None:
    """SystemExit of a daemon's cleanup, during the shutdown, leaves the others to clean up."""
    cleaned: list[int] = []
    begun = threading.Semaphore(0)

    async def daemon(number: int) -> None:
        try:
            begun.release()
            await asyncio.get_running_loop().create_future()
        finally:
            if number == 1:
                raise SystemExit(5)
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.append(number)

    loop = BackgroundLoop()
    tasks = [loop.create_task(daemon(number), daemon=True) for number in range(3)]
    for _ in tasks:
        assert begun.acquire(timeout=PATIENCE)
    loop.shutdown()
    assert sorted(cleaned) == [0, 2]
    expected_log(r"SystemExit: 5")
    del tasks


def test_a_done_callback_that_raises_is_logged(
    loop_factory: LoopFactory, expected_log: Callable[[str], None]
) -> None:
    """SystemExit in a done callback is logged with the callback's name; the loop and others go on."""

    def leave(_task: Any) -> None:
        raise SystemExit(4)

    expected_log(r"leave.*SystemExit: 4")
    gate = threading.Event()
    seen = threading.Event()
    with BackgroundLoop(loop_factory=loop_factory) as loop:
        task = loop.create_task(asyncio.to_thread(gate.wait))
        task.add_done_callback(leave)
        task.add_done_callback(lambda _: seen.set())
        gate.set()
        assert task.result(PATIENCE)
        assert seen.wait(PATIENCE)
        assert loop.create_task(double(1)).result(PATIENCE) == 2


# Dead


async def own_thread() -> threading.Thread:
    """Return the thread in which it runs."""
    return threading.current_thread()


def test_an_exit_that_comes_after_the_end_of_its_task_changes_nothing() -> None:
    """As when the loop dies between the body's SystemExit and the turn after it."""
    task = shared_loop().create_task(own_thread())
    thread = task.result(PATIENCE)
    task._exit(SystemExit(3))
    assert task.result() is thread


def test_tasks_of_a_loop_that_dies_fail(
    fragile: FragileLoop,
    expected_log: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When a loop's own machinery breaks, its tasks fail with LoopClosedError, begun or not."""
    # As if every call took a second: then they aren't all made in one turn of the loop.
    monkeypatch.setattr("eager_async._call_queue.monotonic", itertools.count().__next__)
    expected_log(r"'fragile' is dead.*Broken: selector")
    expected_log("Task was destroyed but it is pending")
    begun, blocking = threading.Event(), threading.Event()
    ran: list[int] = []

    async def suspended() -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    async def block() -> None:
        blocking.wait()
        fragile.selectors[-1].broken = Broken("selector")

    async def unbegun() -> None:
        ran.append(1)

    async def await_it() -> None:
        await suspended_task

    suspended_task = fragile.loop.create_task(suspended(), daemon=None)
    assert begun.wait(PATIENCE)
    thread = fragile.loop.create_task(own_thread()).result()
    awaiter = eager(await_it)()
    fragile.loop.create_task(block())
    late = [fragile.loop.create_task(unbegun()) for _ in range(250)]
    blocking.set()
    with pytest.raises(LoopClosedError, match=r"suspended\(\) called at .*test_dying_loops\.py:\d+"):
        suspended_task.result(PATIENCE)
    with pytest.raises(LoopClosedError):
        awaiter.result(PATIENCE)
    outcomes = [type(task.exception(PATIENCE)) for task in late]
    assert outcomes == [type(None)] * len(ran) + [LoopClosedError] * (len(late) - len(ran))
    assert len(ran) < len(late)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert fragile.loop.tasks() == set()


def test_a_coroutine_that_cannot_be_closed_keeps_nobody_waiting(
    fragile: FragileLoop, expected_log: Callable[[str], None]
) -> None:
    """One that has begun by other means, and goes on in its `finally`: the others fail all the same."""
    expected_log(r"'fragile' is dead.*Broken: selector")
    expected_log(r"exception closing the coroutine of .*stubborn\(\).*ignored GeneratorExit")
    expected_log("Task was destroyed but it is pending")
    suspending, blocked, go_on = threading.Event(), threading.Event(), threading.Event()

    @types.coroutine
    def pause() -> Iterator[None]:
        yield

    async def stubborn() -> None:
        try:
            await pause()
        finally:
            await pause()

    def break_it() -> None:
        blocked.set()
        go_on.wait(PATIENCE)
        fragile.selectors[-1].broken = Broken("selector")

    async def suspended() -> None:
        suspending.set()
        await asyncio.get_running_loop().create_future()

    tasks = [fragile.loop.create_task(suspended())]
    assert suspending.wait(PATIENCE)
    fragile.loop.asyncio_loop.call_soon_threadsafe(break_it)
    assert blocked.wait(PATIENCE)
    begun = stubborn()
    begun.send(None)
    tasks += [fragile.loop.create_task(begun), fragile.loop.create_task(asyncio.sleep(0))]
    go_on.set()
    for task in tasks:
        assert isinstance(task.exception(PATIENCE), LoopClosedError)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("exception", [Broken("selector"), GeneratorExit("selector")], ids=repr)
def test_a_dead_loop_is_made_anew_by_the_next_use(
    fragile: FragileLoop, exception: BaseException, expected_log: Callable[[str], None]
) -> None:
    """A loop that died was not shut down: the next call starts another event loop, with its settings."""
    expected_log("'fragile' is dead")
    dead_thread = fragile.loop.create_task(own_thread()).result()
    fragile.kill(exception)
    dead_thread.join(PATIENCE)
    thread = fragile.loop.create_task(own_thread()).result(PATIENCE)
    assert thread is not dead_thread
    assert thread.name == "fragile"
    assert len(fragile.selectors) == 2
    assert fragile.loop.asyncio_loop.is_running()


def test_all_kinds_of_waiters_of_a_dead_loop_are_released(
    fragile: FragileLoop, expected_log: Callable[[str], None]
) -> None:
    """Threads that block, loops that await and callbacks all learn that the loop has died."""
    expected_log("'fragile' is dead")
    expected_log("Task was destroyed but it is pending")
    begun = threading.Event()

    async def suspended() -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    task = fragile.loop.create_task(suspended())
    assert begun.wait(PATIENCE)
    called = threading.Event()
    task.add_done_callback(lambda _: called.set())
    outcomes: list[BaseException | None] = []
    blocked = threading.Thread(target=lambda: outcomes.append(task.exception()))
    blocked.start()

    async def awaiting() -> None:
        asyncio.get_running_loop().call_soon(fragile.kill, Broken("selector"))
        await task

    with pytest.raises(LoopClosedError):
        asyncio.run(awaiting())
    blocked.join(PATIENCE)
    assert called.wait(PATIENCE)
    assert [type(outcome) for outcome in outcomes] == [LoopClosedError]
    with pytest.raises(LoopClosedError):
        task.result()


def test_a_dead_loop_can_be_shut_down(fragile: FragileLoop, expected_log: Callable[[str], None]) -> None:
    """`shutdown()` of a loop that has died returns, and later work is refused."""
    expected_log("'fragile' is dead")
    thread = fragile.loop.create_task(own_thread()).result()
    fragile.kill(Broken("selector"))
    thread.join(PATIENCE)
    fragile.loop.shutdown()
    with pytest.raises(LoopClosedError):
        fragile.loop.create_task(double(1))


def test_calls_that_race_with_a_dying_loop_end(expected_log: Callable[[str], None]) -> None:
    """Calls made while a loop dies come to an end, on it, on the next one, or with LoopClosedError."""
    for _ in range(10):
        expected_log("'fragile' is dead")
        fragile = FragileLoop()
        thread = fragile.loop.create_task(own_thread()).result()
        tasks: list[EagerTask[int]] = []
        start = threading.Barrier(4)

        def submit(fragile: FragileLoop = fragile, start: threading.Barrier = start) -> None:
            start.wait(PATIENCE)
            for _ in range(20):
                with contextlib.suppress(LoopClosedError):
                    tasks.append(fragile.loop.create_task(instant()))  # noqa: B023

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for submitter in threads:
            submitter.start()
        start.wait(PATIENCE)
        fragile.kill(Broken("selector"))
        for submitter in threads:
            submitter.join(PATIENCE)
        for task in tasks:
            assert isinstance(task.exception(PATIENCE), LoopClosedError | None)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        fragile.loop.shutdown()


async def instant() -> int:
    """Return at once."""
    return 1


# Never started


def test_a_factory_that_raises_raises_in_the_call() -> None:
    """What `loop_factory` raises comes out of the call, whose coroutine is closed; the next tries again."""
    works: list[bool] = []

    def factory() -> asyncio.AbstractEventLoop:
        if not works:
            raise Broken("factory")
        return asyncio.new_event_loop()

    with BackgroundLoop(loop_factory=factory) as loop:
        coro = double(1)
        with pytest.raises(Broken, match="factory"):
            loop.create_task(coro)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        with pytest.raises(Broken, match="factory"):
            _ = loop.asyncio_loop
        assert loop.tasks() == set()
        works.append(True)
        assert loop.create_task(double(1)).result(PATIENCE) == 2


def test_a_thread_that_cannot_start_raises_in_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system has no thread left, the call says so and leaves nothing open; the next tries again."""
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[-1]

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with BackgroundLoop(loop_factory=factory) as loop:
        coro = double(1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                loop.create_task(coro)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        assert made[0].is_closed()
        assert loop.create_task(double(1)).result(PATIENCE) == 2


@pytest.mark.parametrize("begun", [False, True], ids=["before it runs", "while it runs"])
def test_an_interrupt_while_the_thread_starts_leaves_nothing_broken(
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,  # noqa: FBT001
) -> None:
    """Ctrl-C during the first call comes out of it; the next call works, and no thread or loop is left."""
    made: list[asyncio.AbstractEventLoop] = []
    threads: list[threading.Thread] = []
    running = threading.Event()
    real_start = threading.Thread.start

    def factory() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        made[-1].call_soon(running.set)
        return made[-1]

    def start(thread: threading.Thread) -> None:
        threads.append(thread)
        real_start(thread)
        if begun:
            assert running.wait(PATIENCE)
        raise KeyboardInterrupt

    with BackgroundLoop(loop_factory=factory) as loop:
        coro = double(1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(KeyboardInterrupt):
                loop.create_task(coro)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        assert loop.create_task(double(1)).result(PATIENCE) == 2
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert all(asyncio_loop.is_closed() for asyncio_loop in made)


def test_tasks_that_await_one_another_on_a_dead_loop_all_fail(
    fragile: FragileLoop, expected_log: Callable[[str], None]
) -> None:
    """The loop can't wake up an awaiter of its own any more, which fails all the same, in peace."""
    expected_log("'fragile' is dead")
    expected_log("Task was destroyed but it is pending")
    expected_log("Task was destroyed but it is pending")
    waiting = threading.Event()

    async def suspended() -> None:
        await asyncio.get_running_loop().create_future()

    async def await_it() -> None:
        asyncio.get_running_loop().call_soon(waiting.set)
        await inner

    inner = fragile.loop.create_task(suspended())
    outer = fragile.loop.create_task(await_it())
    assert waiting.wait(PATIENCE)
    fragile.kill(Broken("selector"))
    for task in (inner, outer):
        assert isinstance(task.exception(PATIENCE), LoopClosedError)


def test_who_blocks_while_the_loop_dies_gets_the_tasks_error(expected_log: Callable[[str], None]) -> None:
    """A thread that looks whether the loop turns may find it closed already, and goes on waiting."""
    expected_log("'fragile' is dead")
    expected_log("Task was destroyed but it is pending")
    selector = FragileSelector()
    looked = threading.Event()

    class SlowToDie(asyncio.SelectorEventLoop):
        """A loop that is closed for a while before its tasks fail."""

        def close(self) -> None:
            super().close()
            assert looked.wait(PATIENCE)

        def call_soon_threadsafe(self, *args: Any, **options: Any) -> asyncio.Handle:
            if self.is_closed():
                looked.set()
            return super().call_soon_threadsafe(*args, **options)

    async def die() -> None:
        selector.broken = Broken("selector")
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)
        await asyncio.get_running_loop().create_future()

    loop = BackgroundLoop(name="fragile", blocked_after=0.02, loop_factory=lambda: SlowToDie(selector))
    task = loop.create_task(die())
    with pytest.raises(LoopClosedError, match=r"die\(\) called at"):
        task.result(PATIENCE)
    loop.shutdown()


def test_a_task_that_has_ended_is_not_lost(fragile: FragileLoop, expected_log: Callable[[str], None]) -> None:
    """Its outcome stands, even if the loop dies before it has struck the task off the unfinished."""
    expected_log("'fragile' is dead")
    task = fragile.loop.create_task(double(1))
    assert task.result() == 2
    loop_thread = fragile.loop._loop_thread
    assert loop_thread is not None
    loop_thread.tasks[task] = False  # as between its end and that
    fragile.kill(Broken("selector"))
    loop_thread.join()
    assert task.result() == 2
    assert fragile.loop.tasks() == set()


# Bodies that cancel whatever they find


async def cancel_all_others() -> None:
    """Cancel every asyncio task of the loop but this one."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)


def test_a_body_that_cancels_all_tasks_cancels_just_those(loop_factory: LoopFactory) -> None:
    """Code that cancels `asyncio.all_tasks()` cancels the eager tasks on that loop, and the loop lives on."""
    with BackgroundLoop(loop_factory=loop_factory) as loop:
        begun = threading.Event()

        async def victim() -> None:
            begun.set()
            await asyncio.get_running_loop().create_future()

        task = loop.create_task(victim())
        assert begun.wait(PATIENCE)
        loop.create_task(cancel_all_others()).result(PATIENCE)
        with pytest.raises(asyncio.CancelledError):
            task.result(PATIENCE)
        assert loop.create_task(double(1)).result(PATIENCE) == 2


def test_cleanup_that_cancels_all_tasks_does_not_harm_the_shutdown(loop_factory: LoopFactory) -> None:
    """A daemon whose cleanup cancels all tasks of the loop still cleans up to its end."""
    begun = threading.Event()
    cleaned: list[str] = []

    async def daemon() -> None:
        try:
            begun.set()
            await asyncio.get_running_loop().create_future()
        finally:
            for _ in range(3):
                await cancel_all_others()
            cleaned.append("cleaned")

    loop = BackgroundLoop(loop_factory=loop_factory)
    task = loop.create_task(daemon(), daemon=True)
    assert begun.wait(PATIENCE)
    loop.shutdown()
    assert cleaned == ["cleaned"]
    assert task.cancelled()


def test_an_async_generator_that_cancels_all_tasks_does_not_harm_the_shutdown(
    loop_factory: LoopFactory,
) -> None:
    """While it is closed: the loop's executor is shut all the same, and the loop is closed in peace."""
    left: list[Any] = []
    cleaned: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                for task in asyncio.all_tasks():
                    task.cancel()
                await asyncio.sleep(0)
            cleaned.append("cleaned")

    async def leave_one() -> threading.Thread:
        left.append(numbers())
        await anext(left[0])
        return await asyncio.to_thread(threading.current_thread)

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        worker = loop.create_task(leave_one()).result(PATIENCE)
        asyncio_loop = loop.asyncio_loop
    assert cleaned == ["cleaned"]
    assert asyncio_loop.is_closed()
    worker.join(PATIENCE)
    assert not worker.is_alive()
