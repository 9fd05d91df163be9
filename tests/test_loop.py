"""`BackgroundLoop`: start, tasks, shutdown in all its forms, the shared loop, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import logging
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import (
    BackgroundLoop,
    DeadlockError,
    EagerTask,
    LoopClosedError,
    eager,
    set_shared_loop,
    shared_loop,
)
from eager_async._loop_thread import LoopThread
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def double(number: int) -> int:
    """Return twice the number, after a turn of the loop."""
    await asyncio.sleep(0)
    return 2 * number


class Gate:
    """A coroutine that says when it has begun, then waits to be let go or cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.opened = threading.Event()
        self.cleaned = threading.Event()

    async def __call__(self) -> str:
        """Wait, and take a few turns of the loop to clean up."""
        try:
            self.begun.set()
            await asyncio.to_thread(self.opened.wait)
        except asyncio.CancelledError:
            self.opened.set()
            raise
        else:
            return "opened"
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            self.cleaned.set()


def forever(gate: Gate) -> Coroutine[Any, Any, None]:
    """Wait for a cancellation, with cleanup."""

    async def wait() -> None:
        try:
            gate.begun.set()
            await asyncio.get_running_loop().create_future()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            gate.cleaned.set()

    return wait()


async def own_thread() -> threading.Thread:
    """Return the thread in which it runs."""
    return threading.current_thread()


async def plain_ident() -> int:
    """Return the identity of the thread in which it runs."""
    return threading.get_ident()


def together(*functions: Callable[[], object]) -> list[Any]:
    """Call functions at the same moment, in a thread each, and return what they returned or raised."""
    barrier = threading.Barrier(len(functions))
    outcomes: list[Any] = [None] * len(functions)

    def run(index: int, function: Callable[[], object]) -> None:
        barrier.wait(PATIENCE)
        try:
            outcomes[index] = function()
        except BaseException as exc:
            outcomes[index] = exc

    threads = [threading.Thread(target=run, args=numbered) for numbered in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


def in_threads(number: int, function: Callable[[], object]) -> list[Any]:
    """Call one function in several threads at the same moment, and return what it returned or raised."""
    return together(*[function] * number)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Return a gate of this test's own, which is open in the end."""
    gate = Gate()
    yield gate
    gate.opened.set()


# Start


def test_nothing_starts_before_the_first_use() -> None:
    """A loop that is only made has no thread and no event loop."""
    threads = threading.enumerate()
    made: list[object] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(1)
        return asyncio.new_event_loop()

    loop = BackgroundLoop(loop_factory=factory)
    assert loop.tasks() == set()
    assert "not started" in repr(loop)
    assert threading.enumerate() == threads
    assert not made
    with loop:
        assert loop.create_task(double(2)).result() == 4
        assert len(made) == 1


def test_threads_that_race_for_the_first_use_get_one_loop() -> None:
    """However many threads come while the loop is being made, it is made once, and serves them all."""
    made: list[asyncio.AbstractEventLoop] = []
    results: list[asyncio.AbstractEventLoop] = []
    arrived = threading.Semaphore(0)

    def use() -> None:
        arrived.release()
        results.append(loop.asyncio_loop)

    others = [threading.Thread(target=use) for _ in range(8)]

    def factory() -> asyncio.AbstractEventLoop:
        if not made:
            made.append(asyncio.new_event_loop())
            for other in others:
                other.start()
            for _ in others:
                assert arrived.acquire(timeout=PATIENCE)
            return made[0]
        made.append(asyncio.new_event_loop())
        return made[-1]

    with BackgroundLoop(loop_factory=factory) as loop:
        results.append(loop.asyncio_loop)
        for other in others:
            other.join(PATIENCE)
        assert set(results) == set(made)
        assert len(made) == 1
        assert len(results) == 9


@pytest.mark.usefixtures("_frequent_switches")
def test_first_uses_at_the_same_moment_get_one_loop() -> None:
    """Eight threads that use a fresh loop at once find one thread, twenty times over."""
    for _ in range(20):
        with BackgroundLoop() as loop:
            threads = {task.result() for task in in_threads(8, lambda: loop.create_task(own_thread()))}
            assert len(threads) == 1


def test_a_first_use_inside_the_first_use_starts_one_thread() -> None:
    """A signal handler or finalizer that comes in while the loop is made may use it."""
    inner: list[EagerTask[threading.Thread]] = []

    def factory() -> asyncio.AbstractEventLoop:
        made = asyncio.new_event_loop()
        if not inner:
            inner.append(None)  # type: ignore[arg-type]
            inner[0] = loop.create_task(own_thread())
        return made

    with BackgroundLoop(loop_factory=factory) as loop:
        assert loop.create_task(own_thread()).result() is inner[0].result()


def test_a_shutdown_inside_the_first_use_is_not_lost() -> None:
    """By a signal handler or finalizer that comes in while the loop is made: the call is refused."""

    def factory() -> asyncio.AbstractEventLoop:
        loop.shutdown()
        return asyncio.new_event_loop()

    loop = BackgroundLoop(loop_factory=factory)
    with pytest.raises(LoopClosedError, match="was shut down"):
        loop.create_task(own_thread())
    assert "shut down" in repr(loop)


def test_a_factory_that_returns_a_loop_in_use_is_refused() -> None:
    """The caller's own, for one: it would be closed when the background loop ends."""

    async def main() -> None:
        loop = BackgroundLoop(loop_factory=asyncio.get_running_loop)
        with pytest.raises(ValueError, match=r"should have made a new loop, and returned .*new_event_loop"):
            loop.create_task(own_thread())
        loop.shutdown()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_finalizer_in_the_new_thread_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started the thread holds a lock, and waits for it."""
    tasks: list[EagerTask[threading.Thread]] = []
    loop = BackgroundLoop()
    bootstrapped = threading.Thread._set_ident  # type: ignore[attr-defined]

    def call_in_new_thread(thread: threading.Thread) -> None:
        bootstrapped(thread)
        if not tasks and thread.name == "eager-async":
            tasks.append(loop.create_task(own_thread()))

    monkeypatch.setattr(threading.Thread, "_set_ident", call_in_new_thread)
    with loop:
        thread = loop.create_task(own_thread()).result(PATIENCE)
        assert tasks[0].result(PATIENCE) is thread


def test_asyncio_loop_is_the_one_that_runs(loop_factory: LoopFactory) -> None:
    """`asyncio_loop` is what the factory made and what tasks run on, with its exception handler."""
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(loop_factory())
        return made[-1]

    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with BackgroundLoop(loop_factory=factory) as loop:
        reported: list[object] = []
        loop.asyncio_loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        assert loop.create_task(running()).result() is loop.asyncio_loop
        assert made == [loop.asyncio_loop]
        assert loop.asyncio_loop.is_running()
        error = ValueError("for the handler")

        def fail() -> None:
            raise error

        loop.asyncio_loop.call_soon_threadsafe(fail)
        loop.create_task(double(1)).result()
        assert reported == [error]


def test_the_thread_has_the_loops_name() -> None:
    """`name` is the thread's name."""
    with BackgroundLoop(name="reader") as loop:
        assert loop.create_task(own_thread()).result().name == "reader"
        assert "'reader'" in repr(loop)


@pytest.mark.parametrize("made_with", [False, True])
@pytest.mark.parametrize("debug", [None, False, True])
def test_debug_is_set_if_it_is_said(debug: bool | None, made_with: bool) -> None:  # noqa: FBT001
    """`debug` sets asyncio's debug mode; None leaves it as the loop was made."""

    def factory() -> asyncio.AbstractEventLoop:
        made = asyncio.new_event_loop()
        made.set_debug(made_with)
        return made

    with BackgroundLoop(loop_factory=factory, debug=debug) as loop:
        assert loop.asyncio_loop.get_debug() is (made_with if debug is None else debug)


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"name": 1}, TypeError),
        ({"loop_factory": "uvloop"}, TypeError),
        ({"blocked_after": "5"}, TypeError),
        ({"blocked_after": None}, TypeError),
        ({"blocked_after": -1}, ValueError),
        ({"blocked_after": float("nan")}, ValueError),
        ({"exit_timeout": "5"}, TypeError),
        ({"exit_timeout": -1}, ValueError),
        ({"exit_timeout": float("nan")}, ValueError),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(
    settings: dict[str, Any], error: type[Exception]
) -> None:
    """A setting that can't work raises in the constructor, naming the setting, and not when it is used."""
    with pytest.raises(error, match=next(iter(settings))):
        BackgroundLoop(**settings)


def test_extreme_settings_work(caplog: pytest.LogCaptureFixture) -> None:
    """Zero and infinity are times as well."""
    caplog.set_level(logging.ERROR, "eager_async")  # with zero, every pause of the loop's thread is a stall
    for seconds in (0, float("inf")):
        with BackgroundLoop(blocked_after=seconds, exit_timeout=seconds) as loop:
            assert loop.create_task(double(2)).result() == 4


# Tasks


def test_create_task_runs_a_coroutine_that_exists() -> None:
    """`create_task` starts a coroutine from any thread, and hands back its EagerTask."""
    with BackgroundLoop() as loop:
        task = loop.create_task(double(21))
        assert isinstance(task, EagerTask)
        assert task.result() == 42
        assert {task.result() for task in in_threads(4, lambda: loop.create_task(double(3)))} == {6}


def test_a_tasks_name_is_the_coroutines_or_as_given() -> None:
    """`name` names the task and its asyncio task; without it the function's name does."""

    async def inner_name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    with BackgroundLoop() as loop:
        task = loop.create_task(inner_name(), name="reader-7")
        assert (task.get_name(), task.result()) == ("reader-7", "reader-7")
        task = loop.create_task(double(1))
        assert (task.get_name(), task.result()) == ("double()", 2)


def test_a_task_runs_in_a_copy_of_the_callers_context() -> None:
    """Context variables are those at the call; what the body sets stays with it."""

    async def look_and_set() -> str:
        seen = variable.get()
        variable.set("set by the body")
        return seen

    def call() -> None:
        variable.set("the caller's")
        with BackgroundLoop() as loop:
            assert loop.create_task(look_and_set()).result() == "the caller's"
            assert variable.get() == "the caller's"

    contextvars.copy_context().run(call)


def test_a_task_runs_in_a_copy_of_the_given_context() -> None:
    """`context` may be shared by many tasks, even while one is entered: each gets a copy."""

    async def look_and_set() -> str:
        seen = variable.get()
        variable.set("set by the body")
        await asyncio.sleep(0)
        return seen

    context = contextvars.Context()
    context.run(variable.set, "given")
    with BackgroundLoop() as loop:
        tasks = [loop.create_task(look_and_set(), context=context) for _ in range(3)]
        assert [task.result() for task in tasks] == ["given"] * 3
        assert context[variable] == "given"
        assert context.run(lambda: loop.create_task(look_and_set(), context=context)).result() == "given"


@pytest.mark.parametrize("thing", [double, 42, None], ids=repr)
def test_what_is_no_coroutine_is_refused(thing: Any) -> None:
    """Anything but a coroutine is a TypeError that names it, and starts nothing."""
    loop = BackgroundLoop()
    with pytest.raises(TypeError, match="a coroutine was expected"):
        loop.create_task(thing)
    assert "not started" in repr(loop)


def test_tasks_are_the_unfinished_ones(gate: Gate) -> None:
    """`tasks()` is a snapshot of the unfinished, daemons included."""
    with BackgroundLoop() as loop:
        finished = loop.create_task(double(1))
        waiting = loop.create_task(gate())
        daemon = loop.create_task(gate(), daemon=True)
        finished.result()
        snapshot = loop.tasks()
        assert snapshot == {waiting, daemon}
        snapshot.clear()
        assert loop.tasks() == {waiting, daemon}
        gate.opened.set()
        assert (waiting.result(), daemon.result()) == ("opened", "opened")
        loop.create_task(double(1)).result()  # a turn later
        assert loop.tasks() == set()


def test_repr_says_how_the_loop_is(gate: Gate) -> None:
    """`repr` tells name, state and how many tasks are unfinished."""
    loop = BackgroundLoop(name="reader")
    assert repr(loop) == "<BackgroundLoop 'reader' not started, 0 unfinished tasks>"
    task = loop.create_task(gate())
    assert repr(loop) == "<BackgroundLoop 'reader' open, 1 unfinished task>"
    loop.shutdown(wait=False)
    assert repr(loop) == "<BackgroundLoop 'reader' closing, 1 unfinished task>"
    gate.opened.set()
    loop.shutdown()
    assert repr(loop) == "<BackgroundLoop 'reader' closed, 0 unfinished tasks>"
    assert task.result() == "opened"


# Shutdown


def test_shutdown_waits_for_the_tasks(gate: Gate, loop_factory: LoopFactory) -> None:
    """`shutdown()` returns when the tasks have ended, the loop is closed and the thread is gone."""
    loop = BackgroundLoop(loop_factory=loop_factory)
    asyncio_loop = loop.asyncio_loop
    thread = loop.create_task(own_thread()).result()
    task = loop.create_task(gate())
    assert gate.begun.wait(PATIENCE)
    ended = threading.Event()

    def shut_down() -> None:
        loop.shutdown()
        ended.set()

    caller = threading.Thread(target=shut_down)
    caller.start()
    while "closing" not in repr(loop):
        assert not ended.wait(0.01)
    gate.opened.set()
    caller.join(PATIENCE)
    assert task.done()
    assert task.result() == "opened"
    assert asyncio_loop.is_closed()
    assert not thread.is_alive()


def test_shutdown_without_wait_returns_at_once(gate: Gate) -> None:
    """`shutdown(wait=False)` leaves the waiting to a thread in the background."""
    loop = BackgroundLoop()
    thread = loop.create_task(own_thread()).result()
    task = loop.create_task(gate())
    loop.shutdown(wait=False)
    assert not task.done()
    gate.opened.set()
    assert task.result() == "opened"
    thread.join(PATIENCE)
    assert not thread.is_alive()


def refusals(loop: BackgroundLoop) -> Iterator[Callable[[], object]]:
    """Name the ways to give a loop new work."""
    yield lambda: loop.create_task(double(1))
    yield lambda: eager(loop=loop)(double)(1)
    yield lambda: loop.asyncio_loop


def test_new_work_is_refused_from_the_shutdown_on(gate: Gate) -> None:
    """While a loop shuts down and afterwards, new work from outside raises LoopClosedError."""
    loop = BackgroundLoop(name="reader")
    task = loop.create_task(gate())
    loop.shutdown(wait=False)
    for refused in refusals(loop):
        with pytest.raises(LoopClosedError, match=r"'reader' was shut down"):
            refused()
    gate.opened.set()
    loop.shutdown()
    for refused in refusals(loop):
        with pytest.raises(LoopClosedError, match=r"'reader' was shut down"):
            refused()
    assert task.result() == "opened"


def test_a_loop_that_was_never_used_can_be_shut_down() -> None:
    """`shutdown()` before the first use starts nothing, and later work is refused."""
    made: list[object] = []
    loop = BackgroundLoop(loop_factory=lambda: made.append(1) or asyncio.new_event_loop())
    loop.shutdown(cancel_futures=True)
    for refused in refusals(loop):
        with pytest.raises(LoopClosedError):
            refused()
    assert not made
    assert "shut down" in repr(loop)


def test_a_refused_coroutine_is_closed() -> None:
    """A coroutine that comes too late is closed: it never runs, and no warning says it was never awaited."""
    loop = BackgroundLoop()
    loop.shutdown()
    coro = double(1)
    with pytest.raises(LoopClosedError):
        loop.create_task(coro)
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def test_tasks_may_start_others_while_the_loop_shuts_down(gate: Gate) -> None:
    """What a closing loop's own tasks start still runs to its end, on it, and begins at once."""
    loop = BackgroundLoop()
    call = eager(loop=loop)(double)
    begun_at_once: list[bool] = []

    async def note() -> None:
        begun_at_once[-1] = True

    async def chain(depth: int) -> int:
        if depth == 0:
            return await call(21)
        begun_at_once.append(False)
        loop.create_task(note())
        await asyncio.sleep(0)
        return await loop.create_task(chain(depth - 1))

    async def outer() -> int:
        await gate()
        assert loop.asyncio_loop is asyncio.get_running_loop()
        return await chain(3)

    task = loop.create_task(outer())
    loop.shutdown(wait=False)
    gate.opened.set()
    loop.shutdown()
    assert task.result() == 42
    assert begun_at_once == [True] * 3


def test_tasks_that_nobody_awaits_are_waited_for_too(gate: Gate) -> None:
    """A task started by the last one while the loop closes is not cut short."""
    loop = BackgroundLoop()
    started: list[EagerTask[int]] = []

    async def outer() -> None:
        await gate()
        started.append(loop.create_task(double(4)))

    loop.create_task(outer())
    loop.shutdown(wait=False)
    gate.opened.set()
    loop.shutdown()
    assert started[0].result() == 8


def test_eager_calls_of_the_shared_loops_own_tasks_stay_on_it_while_it_shuts_down(gate: Gate) -> None:
    """The shared loop's tasks may start others as well: there, and not on a loop made anew."""

    @eager
    async def inner() -> int:
        return threading.get_ident()

    @eager
    async def outer() -> tuple[bool, bool]:
        await gate()
        task = inner()
        return task.done(), await task == threading.get_ident()

    task = outer()
    shared_loop().shutdown(wait=False)
    gate.opened.set()
    assert task.result() == (True, True)


def test_daemons_live_as_long_as_the_rest(gate: Gate) -> None:
    """A shutdown cancels daemon tasks when the other tasks have ended, and their cleanup runs."""
    loop = BackgroundLoop()
    daemon_gate = Gate()
    states: list[bool] = []

    async def last() -> None:
        await gate()
        states.append(daemon.done() or daemon_gate.cleaned.is_set())

    daemon = loop.create_task(forever(daemon_gate), daemon=True)
    loop.create_task(last())
    loop.shutdown(wait=False)
    gate.opened.set()
    loop.shutdown()
    assert states == [False]
    assert daemon.cancelled()
    assert daemon_gate.cleaned.is_set()


def test_a_daemon_may_call_eager_functions_to_clean_up(gate: Gate) -> None:
    """The cleanup of a daemon task can start eager tasks of its own, and gets what they return."""
    loop = BackgroundLoop()
    saved: list[int] = []

    async def save() -> None:
        try:
            await forever(gate)
        finally:
            saved.append(await loop.create_task(double(5)))

    loop.create_task(save(), daemon=True)
    assert gate.begun.wait(PATIENCE)
    loop.shutdown()
    assert saved == [10]


def test_a_daemon_that_ends_normally_keeps_its_result() -> None:
    """A daemon task that swallows its cancellation has a result."""
    loop = BackgroundLoop()
    begun = threading.Event()

    async def stubborn() -> str:
        try:
            begun.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "saved"

    daemon = loop.create_task(stubborn(), daemon=True)
    assert begun.wait(PATIENCE)
    loop.shutdown()
    assert daemon.result() == "saved"


def test_a_daemon_that_never_began_is_cancelled(gate: Gate) -> None:
    """A daemon call that is still in the queue when the loop shuts down is cancelled unbegun."""
    loop = BackgroundLoop()
    opened = gate.opened

    async def block() -> None:
        gate.begun.set()
        opened.wait()

    loop.create_task(block())
    assert gate.begun.wait(PATIENCE)
    daemons = [loop.create_task(forever(Gate()), daemon=True) for _ in range(3)]
    loop.shutdown(wait=False)
    opened.set()
    loop.shutdown()
    assert all(daemon.cancelled() for daemon in daemons)


@pytest.mark.parametrize("daemon", [False, True])
def test_cancel_futures_cancels_all_and_cleanup_runs(daemon: bool) -> None:  # noqa: FBT001
    """`shutdown(cancel_futures=True)` cancels every task once; each cleans up undisturbed."""
    loop = BackgroundLoop()
    quick = loop.create_task(asyncio.sleep(3600))
    gates = [Gate() for _ in range(3)]
    tasks = [loop.create_task(forever(gate), daemon=daemon) for gate in gates]
    for gate in gates:
        assert gate.begun.wait(PATIENCE)
    loop.shutdown(cancel_futures=True)
    assert quick.cancelled()
    assert all(task.cancelled() for task in tasks)
    assert all(gate.cleaned.is_set() for gate in gates)


def test_a_later_cancel_futures_ends_a_shutdown_that_waits(gate: Gate) -> None:
    """Calling `shutdown` again is fine, and `cancel_futures=True` then cancels what it waits for."""
    loop = BackgroundLoop()
    task = loop.create_task(forever(gate))
    gate.begun.wait()
    loop.shutdown(wait=False)
    assert not task.done()
    loop.shutdown(wait=False)
    loop.shutdown(cancel_futures=True)
    assert task.cancelled()
    assert gate.cleaned.is_set()
    loop.shutdown()
    loop.shutdown(cancel_futures=True)


def test_calls_that_have_not_begun_never_begin_when_cancelled(gate: Gate) -> None:
    """`cancel_futures=True` reaches tasks that are still in the queue: their bodies never run."""
    loop = BackgroundLoop()
    ran: list[int] = []

    async def block() -> None:
        gate.begun.set()
        gate.opened.wait()

    async def body() -> None:
        ran.append(1)

    loop.create_task(block())
    assert gate.begun.wait(PATIENCE)
    tasks = [loop.create_task(body()) for _ in range(3)]
    loop.shutdown(wait=False, cancel_futures=True)
    gate.opened.set()
    loop.shutdown()
    assert all(task.cancelled() for task in tasks)
    assert not ran


def test_many_threads_may_shut_down_at_once(gate: Gate) -> None:
    """Threads that call `shutdown()` together all return, when the loop's thread has ended."""
    loop = BackgroundLoop()
    thread = loop.create_task(own_thread()).result()
    loop.create_task(gate())
    gate.opened.set()

    def shut_down() -> bool:
        loop.shutdown()
        return thread.is_alive()

    assert in_threads(6, shut_down) == [False] * 6


@pytest.mark.parametrize("leave", ["shutdown", "with"])
def test_waiting_for_itself_is_a_deadlock_error(leave: str) -> None:
    """On the loop's own thread `shutdown()` raises DeadlockError with the remedy; `wait=False` works."""
    loop = BackgroundLoop()

    async def body() -> str:
        with pytest.raises(DeadlockError, match=r"loop\.shutdown\(wait=False\)"):  # noqa: PT012
            if leave == "shutdown":
                loop.shutdown()
            else:
                with loop:
                    pass
        assert await loop.create_task(double(1)) == 2
        loop.shutdown(wait=False)
        return "ended"

    assert loop.create_task(body()).result() == "ended"
    loop.shutdown()


def test_a_thread_with_the_ended_threads_identity_is_another_thread() -> None:
    """An identity that the system gives out again is not taken for the loop's own thread."""
    loop = BackgroundLoop()
    ident = loop.create_task(plain_ident()).result()
    loop.shutdown()
    outcomes: list[tuple[bool, object]] = []

    def shut_down_again() -> None:
        if threading.get_ident() != ident:
            outcomes.append((False, None))
            return
        try:
            loop.shutdown()
            with pytest.raises(LoopClosedError):
                _ = loop.asyncio_loop
            outcomes.append((True, None))
        except BaseException as exc:
            outcomes.append((True, exc))

    for _ in range(20):
        thread = threading.Thread(target=shut_down_again)
        thread.start()
        thread.join()
        if outcomes[-1][0]:
            break
    else:
        pytest.skip("the system gave the identity to no other thread")
    assert outcomes[-1][1] is None


def test_async_generators_are_closed(loop_factory: LoopFactory) -> None:
    """The `finally` of an async generator that was left half-way runs at the shutdown, on the loop."""
    closed_in: list[threading.Thread] = []
    kept: list[AsyncIterator[int]] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed_in.append(threading.current_thread())

    async def take_one() -> threading.Thread:
        kept.append(numbers())
        await anext(kept[0])
        return threading.current_thread()

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        thread = loop.create_task(take_one()).result()
        assert not closed_in
    assert closed_in == [thread]


def test_the_default_executor_is_closed(gate: Gate, loop_factory: LoopFactory) -> None:
    """Threads of `asyncio.to_thread` have ended when the shutdown has, and were not cut short."""
    executor_threads: list[threading.Thread] = []
    ended: list[str] = []

    def work() -> None:
        executor_threads.append(threading.current_thread())
        gate.begun.set()
        gate.opened.wait()
        time.sleep(0.05)  # a shutdown that doesn't wait would be over by then
        ended.append("work")

    async def start_and_leave() -> None:
        asyncio.get_running_loop().run_in_executor(None, work)

    loop = BackgroundLoop(loop_factory=loop_factory)
    loop.create_task(start_and_leave()).result()
    assert gate.begun.wait(PATIENCE)
    loop.shutdown(wait=False)
    gate.opened.set()
    loop.shutdown()
    assert ended == ["work"]
    assert not executor_threads[0].is_alive()


def test_asyncio_tasks_that_were_left_over_are_cancelled(gate: Gate) -> None:
    """Plain asyncio tasks on the loop are cancelled at its end, with cleanup, as by `asyncio.run`."""
    kept: list[asyncio.Task[None]] = []

    async def leave_one() -> None:
        kept.append(asyncio.ensure_future(forever(gate)))
        await asyncio.sleep(0)

    with BackgroundLoop() as loop:
        loop.create_task(leave_one()).result()
        assert not kept[0].done()
    assert kept[0].cancelled()
    assert gate.cleaned.is_set()


def test_with_waits_even_if_the_block_raises(gate: Gate) -> None:
    """`with` shuts the loop down at its end, and waits, whatever ends the block."""
    gate.opened.set()
    with pytest.raises(ZeroDivisionError), BackgroundLoop() as loop:  # noqa: PT012
        task = loop.create_task(gate())
        raise ZeroDivisionError
    assert task.done()
    assert task.result() == "opened"
    with pytest.raises(LoopClosedError):
        loop.create_task(double(1))


# The shared loop


def test_the_shared_loop_is_made_anew_with_the_same_settings() -> None:
    """Once the shared loop was shut down, the next use gets another with name, factory and debug mode."""
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[-1]

    first = BackgroundLoop(name="mine", loop_factory=factory, debug=True)
    set_shared_loop(first)
    call = eager(own_thread)
    assert call().result().name == "mine"
    first.shutdown()
    thread = call().result()
    second = shared_loop()
    assert second is not first
    assert thread.name == "mine"
    assert made == [made[0], second.asyncio_loop]
    assert second.asyncio_loop.get_debug()
    assert shared_loop() is second


@pytest.mark.usefixtures("_frequent_switches")
def test_the_shared_loop_is_made_anew_once() -> None:
    """Threads that race for a shared loop which was shut down get the same new one."""
    for _ in range(20):
        shared_loop().shutdown()
        assert len(set(in_threads(8, shared_loop))) == 1


def test_a_call_that_a_shutdown_of_the_shared_loop_overtakes_starts_on_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no moment at which eager functions are refused."""
    admitting_thread = BackgroundLoop._admitting_thread

    def shut_down_first(loop: BackgroundLoop) -> Any:
        monkeypatch.undo()
        loop.shutdown()
        return admitting_thread(loop)

    for _ in range(2):  # before the first use of a loop, and later
        before = shared_loop()
        monkeypatch.setattr(BackgroundLoop, "_admitting_thread", shut_down_first)
        if before._loop_thread is not None:
            before._loop_thread.admits = False  # as while a thread forks: there, too, the slow way is taken
        assert eager(double)(2).result() == 4
        assert shared_loop() is not before


def test_set_shared_loop_returns_the_one_before_which_runs_on(gate: Gate) -> None:
    """Replacing the shared loop moves later calls only; the loop before runs on with its tasks."""
    before = shared_loop()
    task = eager(gate)()
    with BackgroundLoop(name="other") as other:
        assert set_shared_loop(other) is before
        assert shared_loop() is other
        assert eager(own_thread)().result().name == "other"
        gate.opened.set()
        assert task.result() == "opened"
        assert before.create_task(double(1)).result() == 2
        assert set_shared_loop(before) is other


@pytest.mark.parametrize("thing", [None, asyncio.new_event_loop, BackgroundLoop], ids=repr)
def test_set_shared_loop_takes_background_loops_alone(thing: Any) -> None:
    """Anything else is a TypeError, and changes nothing."""
    before = shared_loop()
    with pytest.raises(TypeError, match="a BackgroundLoop was expected"):
        set_shared_loop(thing)
    assert shared_loop() is before


def test_a_daemon_passes_that_on_with_any_context() -> None:
    """`daemon=None` takes after the calling eager task, whatever context the task is given."""
    loop = BackgroundLoop()
    gate = Gate()

    async def child() -> None:
        loop.create_task(forever(gate))  # would hold the shutdown for ever

    async def root() -> None:
        await loop.create_task(child(), context=contextvars.Context())

    loop.create_task(root(), daemon=True).result()
    assert gate.begun.wait(PATIENCE)
    loop.shutdown(wait=False)
    try:
        assert gate.cleaned.wait(5)
    finally:
        loop.shutdown(cancel_futures=True)


@pytest.mark.parametrize("daemon", [False, True])
def test_daemon_holds_for_any_context(gate: Gate, daemon: bool) -> None:  # noqa: FBT001
    """`daemon=...` and `context=...` may be given together: a shutdown waits for the task, or cancels it."""
    loop = BackgroundLoop()
    task = loop.create_task(forever(gate), daemon=daemon, context=contextvars.Context())
    assert gate.begun.wait(PATIENCE)
    loop.shutdown(wait=False)
    assert gate.cleaned.wait(PATIENCE if daemon else 0.05) is daemon
    loop.shutdown(cancel_futures=True)
    assert task.cancelled()


# Loops that nobody shuts down


def test_a_dropped_loop_ends_after_its_tasks(gate: Gate) -> None:
    """A loop that nobody refers to finishes its tasks, then its thread ends."""
    loop = BackgroundLoop()
    thread = loop.create_task(own_thread()).result()
    task = loop.create_task(gate())
    assert gate.begun.wait(PATIENCE)
    del loop
    gc.collect()
    assert thread.is_alive()
    gate.opened.set()
    assert task.result() == "opened"
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_loops_that_are_dropped_at_once_leave_no_threads() -> None:
    """Loops made and forgotten, a hundred times over, leave nothing behind."""
    threads: list[threading.Thread] = []
    for _ in range(100):
        task = BackgroundLoop().create_task(own_thread())
        threads.append(task.result())
    gc.collect()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


# Shutdown against calls from other threads


def test_a_call_admitted_just_before_the_shutdown_runs_or_is_refused(
    monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """A call between being admitted and being queued when the loop closes is never begun and cut short."""
    loop = BackgroundLoop()
    cleaning = threading.Event()
    left: list[asyncio.Task[None]] = []
    steps: list[str] = []

    async def leftover() -> None:  # while it cleans up, the loop is past waiting for tasks
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaning.set()
            await asyncio.to_thread(gate.opened.wait)

    async def leave_one() -> None:
        left.append(asyncio.ensure_future(leftover()))
        await asyncio.sleep(0)

    async def body() -> None:
        steps.append("begun")
        gate.opened.set()
        for _ in range(50):
            await asyncio.sleep(0)
        steps.append("ended")

    def admitted(*args: Any) -> EagerTask[None]:
        monkeypatch.undo()
        loop.shutdown(wait=False)
        assert cleaning.wait(PATIENCE)
        return EagerTask(*args)

    loop.create_task(leave_one()).result()
    monkeypatch.setattr("eager_async._loop_thread.EagerTask", admitted)
    try:
        task = loop.create_task(body())
    except LoopClosedError:
        task = None
    gate.opened.set()
    loop.shutdown()
    assert steps == ([] if task is None else ["begun", "ended"])
    assert task is None or task.result() is None


class Traced:
    """A call whose body notes its steps, and how it came out."""

    def __init__(self, loop: BackgroundLoop) -> None:
        self.steps: list[str] = []
        self.task: EagerTask[None] | None = None
        with contextlib.suppress(LoopClosedError):
            self.task = loop.create_task(self._body())

    async def _body(self) -> None:
        self.steps.append("begun")
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleanup
            raise
        finally:
            self.steps.append("ended")

    def outcome(self) -> str:
        """Wait for the end, and say what the call has come to."""
        if self.task is None:
            return f"refused {self.steps}"
        try:
            self.task.result(PATIENCE)
        except LoopClosedError:
            return f"refused {self.steps}"
        except asyncio.CancelledError:
            return f"cancelled {self.steps}"
        return f"result {self.steps}"


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("cancel", [False, True])
def test_calls_that_race_with_the_shutdown_run_to_their_end_or_are_refused(cancel: bool) -> None:  # noqa: FBT001
    """Of calls from many threads during a shutdown none hangs, is cut short, or runs after a refusal."""
    allowed = {"result ['begun', 'ended']", "refused []"}
    if cancel:
        allowed |= {"cancelled ['begun', 'ended']", "cancelled []"}

    def submit(loop: BackgroundLoop) -> list[str]:
        calls = [Traced(loop) for _ in range(10)]
        return [call.outcome() for call in calls]

    for round_ in range(40):
        loop = BackgroundLoop()
        if round_ % 2:
            loop.create_task(double(1)).result()
        submitting = partial(submit, loop)
        shutting_down = partial(loop.shutdown, cancel_futures=cancel)
        *outcomes, _ = together(submitting, submitting, submitting, shutting_down)
        for outcomes_of_one in outcomes:
            assert set(outcomes_of_one) <= allowed
        loop.shutdown()
        assert loop.tasks() == set()


def test_a_call_refused_at_the_last_moment_holds_no_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread sees it among the unfinished and waits for its end; the refusal makes it look again."""
    closed, put_in, turning = threading.Event(), threading.Event(), threading.Event()
    end_tasks, refuse = LoopThread._end_tasks, LoopThread._check_taken_on

    def staged_end_tasks(self: LoopThread) -> None:
        if self.closed and not closed.is_set():
            closed.set()
            assert put_in.wait(PATIENCE)
            self.loop.call_soon(turning.set)
        end_tasks(self)

    def staged_refuse(self: LoopThread, task: EagerTask[Any]) -> None:
        put_in.set()
        assert turning.wait(PATIENCE)
        refuse(self, task)

    monkeypatch.setattr(LoopThread, "_end_tasks", staged_end_tasks)
    monkeypatch.setattr(LoopThread, "_check_taken_on", staged_refuse)
    loop = BackgroundLoop()
    loop.create_task(own_thread()).result()
    loop_thread = loop._loop_thread
    assert loop_thread is not None
    loop.shutdown(wait=False)
    assert closed.wait(PATIENCE)
    with pytest.raises(LoopClosedError):
        loop_thread.start_task(own_thread(), "late()", None, contextvars.copy_context(), sys._getframe())
    loop_thread.join()


def test_a_call_made_between_two_turns_of_the_loop_begins_in_the_next() -> None:
    """As by an exception handler, when a callback has ended the turn: in a real task all the same."""
    tasks: list[EagerTask[bool]] = []
    called = threading.Event()

    async def is_in_task() -> bool:
        return asyncio.current_task() is not None

    with BackgroundLoop() as loop:

        def handle(*_: object) -> None:
            tasks.append(loop.create_task(is_in_task()))
            called.set()

        loop.asyncio_loop.set_exception_handler(handle)
        loop.asyncio_loop.call_soon_threadsafe(sys.exit, 3)
        assert called.wait(PATIENCE)
        assert tasks[0].result(PATIENCE)


def test_daemons_do_not_keep_a_loop_that_nobody_refers_to() -> None:
    """It ends when the rest have ended; daemons are cancelled."""
    loop = BackgroundLoop()
    task = loop.create_task(asyncio.sleep(3600), daemon=True)
    loop_thread = loop._loop_thread
    assert loop_thread is not None
    del loop
    gc.collect()
    loop_thread.join()
    assert task.cancelled()


def test_cleanup_of_abandoned_generators_may_call_eager_functions() -> None:
    """When all tasks have ended, and the loop takes on nothing more from other threads."""
    loop = BackgroundLoop()
    results: list[threading.Thread] = []

    async def abandoned() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            results.append(await loop.create_task(own_thread()))

    generator = abandoned()

    async def begin() -> int:
        return await anext(generator)

    assert loop.create_task(begin()).result(PATIENCE) == 1
    thread = loop.create_task(own_thread()).result(PATIENCE)
    loop.shutdown()
    assert results == [thread]


def test_a_refused_call_is_not_reported_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that gets LoopClosedError while the loop ends leaves no report of a lost task behind."""
    closing, go_on = threading.Event(), threading.Event()
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        close = made[-1].close

        def close_later() -> None:
            closing.set()
            assert go_on.wait(PATIENCE)
            close()

        made[-1].close = close_later  # type: ignore[method-assign]
        return made[-1]

    loop = BackgroundLoop(loop_factory=factory)
    thread = loop.create_task(own_thread()).result()

    class EndsDuringEntry(dict[Any, Any]):
        """The unfinished tasks: the loop's thread ends between a task's entry and the look at the state."""

        def __setitem__(self, key: Any, value: Any) -> None:
            loop.shutdown(wait=False)
            assert closing.wait(PATIENCE)
            super().__setitem__(key, value)
            go_on.set()
            thread.join(PATIENCE)

    monkeypatch.setattr(loop._loop_thread, "tasks", EndsDuringEntry())
    coro = double(1)
    try:
        task = loop.create_task(coro)
    except LoopClosedError:
        pass
    else:
        with pytest.raises(LoopClosedError):
            task.result(PATIENCE)
    finally:
        go_on.set()
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def test_a_call_that_the_whole_shutdown_overtakes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between being admitted and being queued: it gets LoopClosedError, and its coroutine is closed."""
    loop = BackgroundLoop()
    loop.create_task(double(1)).result()

    admitting_thread = loop._admitting_thread

    def admit_and_close() -> Any:
        admitted = admitting_thread()
        loop.shutdown()
        return admitted

    monkeypatch.setattr(loop, "_admitting_thread", admit_and_close)
    coro = double(1)
    with pytest.raises(LoopClosedError, match="has ended"):
        loop.create_task(coro)
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
    assert loop.tasks() == set()


def test_a_first_call_that_the_end_of_the_process_overtakes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it makes its loop the wait for tasks ends: LoopClosedError, and no thread or loop is left."""
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        monkeypatch.setattr("eager_async._exit._over", True)
        made.append(asyncio.new_event_loop())
        return made[-1]

    coro = double(1)
    with pytest.raises(LoopClosedError, match="the process is ending"):
        BackgroundLoop(name="overtaken", loop_factory=factory).create_task(coro)
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
    assert [loop.is_closed() for loop in made] == [True]
    assert "overtaken" not in {thread.name for thread in threading.enumerate()}


def test_interrupted_calls_that_nobody_holds_are_ended(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """A Ctrl-C just after a call was queued leaves no task behind, however many there were."""
    steps: list[str] = []

    async def body() -> None:
        steps.append("begun")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            steps.append("ended")

    async def block() -> None:
        gate.opened.wait()

    loop = BackgroundLoop()
    loop.create_task(block())
    loop_thread = loop._loop_thread
    assert loop_thread is not None
    run_soon = loop_thread.run_soon

    def queue_and_interrupt(task: Any) -> None:
        run_soon(task)
        raise KeyboardInterrupt

    coros = [body() for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(loop_thread, "run_soon", queue_and_interrupt)
        for coro in coros:
            with pytest.raises(KeyboardInterrupt):
                loop.create_task(coro)
    gate.opened.set()
    loop.shutdown()
    assert steps in ([], ["begun", "ended"])  # the first was queued before anybody knew of the interrupts
    assert [inspect.getcoroutinestate(coro) for coro in coros] == [inspect.CORO_CLOSED] * 3


def test_what_the_cleanup_of_async_generators_starts_runs_to_its_end() -> None:
    """A shutdown closes those that were left open, and waits for what they start then."""
    kept: list[AsyncIterator[int]] = []
    started: list[EagerTask[int]] = []
    loop = BackgroundLoop()

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            started.append(loop.create_task(double(2)))

    async def leave_one() -> None:
        kept.append(generate())
        await anext(kept[0])

    loop.create_task(leave_one()).result(PATIENCE)
    loop.shutdown()
    assert started[0].result(PATIENCE) == 4
