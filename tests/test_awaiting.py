"""Awaiting a task in any loop and any thread, and driving it as a coroutine by hand."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, eager, shared_loop
from threads import PATIENCE, in_threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from conftest import RunPython


class Gate:
    """Lets an eager coroutine begin, wait, and end when told to."""

    def __init__(self) -> None:
        self._open = threading.Event()

    @eager
    async def result(self, value: object = "result", error: BaseException | None = None) -> Any:
        """Wait for the gate to open; return or raise."""
        await asyncio.to_thread(self._open.wait, PATIENCE)
        if error is not None:
            raise error
        return value

    def open(self) -> None:
        """Let it end."""
        self._open.set()


async def as_coroutine(awaitable: Awaitable[Any]) -> Any:
    """Await inside a coroutine."""
    return await awaitable


async def end_of(awaitable: Awaitable[Any]) -> Any:
    """Return what an await returns, or the exception that it raises."""
    try:
        return await awaitable
    except BaseException as exc:
        return exc


async def happening(event: threading.Event) -> None:
    """Wait for another thread, and let all that is ready on this loop run first."""
    await asyncio.sleep(0)
    assert await asyncio.to_thread(event.wait, PATIENCE)


def turn(loop: BackgroundLoop) -> None:
    """Wait until the loop has made the calls that were queued for it."""

    async def nothing() -> None:
        pass

    loop.create_task(nothing()).result(PATIENCE)


@pytest.fixture(params=["shared", "background", "foreign", "foreign in debug mode"])
def run(
    request: pytest.FixtureRequest, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> Iterator[Callable[[Any], Any]]:
    """Run a coroutine: on the eager functions' own loop, another background loop, or in this thread."""
    if request.param.startswith("foreign"):
        with asyncio.Runner(loop_factory=loop_factory, debug=request.param.endswith("debug mode")) as runner:
            yield runner.run
    elif request.param == "background":
        with BackgroundLoop(name="eager-async-test-other", loop_factory=loop_factory) as loop:
            yield lambda coro: loop.create_task(coro).result(PATIENCE)
    else:
        yield lambda coro: shared_loop().create_task(coro).result(PATIENCE)


# What an await gives


@pytest.mark.parametrize("late", [False, True], ids=["before the end", "after it"])
def test_await_returns_the_result_in_any_loop(run: Callable[[Any], Any], late: bool) -> None:  # noqa: FBT001
    """The same object, in asyncio's and uvloop's loops and the background loop itself, debug mode too."""
    gate, value = Gate(), object()

    async def main() -> Any:
        task = gate.result(value)
        if late:
            gate.open()
            await asyncio.wait([asyncio.ensure_future(task)])
        else:
            asyncio.get_running_loop().call_soon(gate.open)
        return await task

    assert run(main()) is value


@pytest.mark.parametrize("late", [False, True], ids=["before the end", "after it"])
def test_await_raises_the_exception_in_any_loop(run: Callable[[Any], Any], late: bool) -> None:  # noqa: FBT001
    """As the same object each time."""
    gate, error = Gate(), LookupError("the coroutine's own")

    async def main() -> tuple[Any, Any]:
        task = gate.result(error=error)
        if late:
            gate.open()
            await end_of(asyncio.ensure_future(task))
        else:
            asyncio.get_running_loop().call_soon(gate.open)
        return await end_of(task), await end_of(task)

    first, second = run(main())
    assert first is second is error


def test_await_raises_the_cancellation_in_any_loop(run: Callable[[Any], Any]) -> None:
    """Plain `asyncio.CancelledError`, with the message."""
    gate = Gate()

    async def main() -> tuple[Any, Any]:
        task = gate.result()
        asyncio.get_running_loop().call_soon(task.cancel, "why")
        try:
            return await end_of(task), await end_of(task)
        finally:
            gate.open()

    for error in run(main()):
        assert type(error) is asyncio.CancelledError
        assert error.args == ("why",)


def test_cancelled_awaiter_raises_in_any_loop(run: Callable[[Any], Any]) -> None:
    """And the coroutine has been cancelled by then."""
    gate = Gate()

    async def main() -> tuple[Any, bool]:
        task = gate.result()
        awaiter = asyncio.create_task(as_coroutine(task))
        await asyncio.sleep(0)
        awaiter.cancel("why")
        try:
            return await end_of(awaiter), task.cancelled()
        finally:
            gate.open()

    error, cancelled = run(main())
    assert type(error) is asyncio.CancelledError
    assert error.args == ("why",)
    assert cancelled


def test_any_number_of_loops_and_threads_get_the_outcome_together() -> None:
    """Loops that await, each several times, and threads that block: all get the same object."""
    gate, value = Gate(), object()
    task = gate.result(value)
    waiting = threading.Barrier(6, action=gate.open)

    async def main() -> list[Any]:
        awaiters = [asyncio.create_task(as_coroutine(task)) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.to_thread(waiting.wait, PATIENCE)
        return [await awaiter for awaiter in awaiters]

    def block() -> list[Any]:
        waiting.wait(PATIENCE)
        return [task.result(PATIENCE)] * 5

    def in_background() -> list[Any]:
        return shared_loop().create_task(main()).result(PATIENCE)

    def in_loop() -> list[Any]:
        return asyncio.run(main())

    assert in_threads(in_loop, in_loop, in_loop, in_background, block, block) == [[value] * 5] * 6


def test_late_awaiters_get_the_outcome_in_any_thread() -> None:
    """However long after the end, and in loops made since."""
    gate = Gate()
    gate.open()
    task = gate.result()
    task.result(PATIENCE)
    assert in_threads(*[lambda: asyncio.run(as_coroutine(task))] * 4) == ["result"] * 4


def test_await_of_a_finished_task_goes_on_without_a_turn_of_the_loop(run: Callable[[Any], Any]) -> None:
    """As in asyncio, not as in JavaScript."""
    gate = Gate()
    gate.open()

    async def main() -> list[str]:
        task = gate.result()
        await asyncio.wait([asyncio.ensure_future(task)])
        order: list[str] = []
        asyncio.get_running_loop().call_soon(order.append, "the loop has turned")
        order.append(await task)
        return order.copy()

    assert run(main()) == ["result"]


def test_awaiters_go_on_in_the_order_in_which_they_came(run: Callable[[Any], Any]) -> None:
    """On one loop, as for an asyncio task."""
    gate = Gate()

    async def main() -> list[int]:
        task = gate.result()
        order: list[int] = []

        async def wait(number: int) -> None:
            await task
            order.append(number)

        waiters = [asyncio.create_task(wait(number)) for number in range(5)]
        asyncio.get_running_loop().call_soon(gate.open)
        await asyncio.wait(waiters)
        return order

    assert run(main()) == [0, 1, 2, 3, 4]


def test_await_gives_other_tasks_of_its_loop_the_turn() -> None:
    """The awaiter's loop isn't blocked while the task runs."""
    gate = Gate()

    async def main() -> str:
        awaiter = asyncio.create_task(as_coroutine(gate.result()))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not awaiter.done()
        gate.open()
        result: str = await awaiter
        return result

    assert asyncio.run(main()) == "result"


def test_what_a_body_has_sent_to_the_awaiters_loop_comes_before_its_end(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Also where the wake-up for another task is on its way already."""
    first, second, items = Gate(), Gate(), []

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()

        @eager
        async def send() -> None:
            await second.result()
            loop.call_soon_threadsafe(items.append, "item")

        async def receive() -> list[str]:
            await sending
            return list(items)

        other, sending = first.result(), send()
        waiting = asyncio.create_task(as_coroutine(other))
        receiving = asyncio.create_task(receive())
        await asyncio.sleep(0)
        for gate, task in (first, other), (second, sending):  # this loop doesn't turn meanwhile
            gate.open()
            concurrent.futures.wait([task], PATIENCE)
        await waiting
        return await receiving

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == ["item"]


def test_debug_mode_names_the_task_that_goes_on_and_is_slow(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], expected_log: Callable[[str], None]
) -> None:
    """What asyncio times and names is the task which has awaited, not what has woken it up."""
    gate = Gate()

    async def slow() -> None:
        task = gate.result()
        loop = asyncio.get_running_loop()
        loop.call_soon(gate.open)
        await task
        loop.call_soon(setattr, loop, "slow_callback_duration", PATIENCE)
        loop.slow_callback_duration = 0

    expected_log(r"Executing <Task .*slow\(\).* took")
    with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
        runner.run(slow())


def test_an_awaiter_that_ends_the_program_stops_no_other(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Where two tasks of one loop go on together and the first raises SystemExit, the other goes on."""
    gate = Gate()

    async def leave(task: EagerTask[Any]) -> None:
        await task
        raise SystemExit(3)

    async def both() -> asyncio.Task[Any]:
        task = gate.result()
        leaving = asyncio.create_task(leave(task))
        staying = asyncio.create_task(as_coroutine(task))
        await asyncio.sleep(0)
        leaving_by_itself.append(leaving)
        return staying

    leaving_by_itself: list[asyncio.Task[Any]] = []  # nobody awaits it
    loop = loop_factory()
    try:
        staying = loop.run_until_complete(both())
        gate.open()
        with pytest.raises(SystemExit):
            loop.run_until_complete(staying)
        assert loop.run_until_complete(staying) == "result"
        assert isinstance(leaving_by_itself[0].exception(), SystemExit)
    finally:
        loop.close()


def test_coroutine_that_awaits_its_own_task_gets_an_error() -> None:
    """As for an asyncio task, `RuntimeError`, and no deadlock."""
    handle: list[EagerTask[None]] = []
    handed_over = threading.Event()

    @eager
    async def await_itself(*, suspended_before: bool) -> None:
        if suspended_before:
            await asyncio.sleep(0)
        assert handed_over.wait(PATIENCE)
        await handle.pop()

    for suspended_before in False, True:
        handed_over.clear()
        task = await_itself(suspended_before=suspended_before)
        handle.append(task)
        handed_over.set()
        assert isinstance(task.exception(timeout=PATIENCE), RuntimeError)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has no eager tasks yet")
def test_self_await_under_an_eager_task_factory_is_an_error_too(run_python: RunPython) -> None:
    """Such a factory runs the first segment before it returns the task."""
    ended = run_python(
        """
        import asyncio, os, threading
        from eager_async import BackgroundLoop

        def make_loop():
            loop = asyncio.new_event_loop()
            loop.set_task_factory(asyncio.eager_task_factory)
            return loop

        async def await_itself():
            handed_over.wait()
            await handle[0]

        handle, handed_over = [], threading.Event()
        handle.append(BackgroundLoop(loop_factory=make_loop).create_task(await_itself()))
        handed_over.set()
        try:
            print(isinstance(handle[0].exception(timeout=5), RuntimeError), flush=True)
        except TimeoutError as exc:
            print(exc, flush=True)
        os._exit(0)  # not held up by a task that can't end
        """
    )
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr


# Loops that go away


def stop_while_awaiting(loop: asyncio.AbstractEventLoop, task: EagerTask[Any]) -> asyncio.Task[Any]:
    """Run a loop until it awaits a task, and stop it there."""
    awaiter = loop.create_task(as_coroutine(task))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not awaiter.done()
    return awaiter


def test_awaiter_whose_loop_is_closed_disturbs_no_other(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], expected_log: Callable[[str], None]
) -> None:
    """Those who came before it and after it get the outcome."""
    gate = Gate()
    task = gate.result()
    loops = [loop_factory() for _ in range(3)]
    first, closed, last = (stop_while_awaiting(loop, task) for loop in loops)
    loops[1].close()
    called: list[object] = []
    task.add_done_callback(called.append)
    gate.open()
    assert task.result(PATIENCE) == "result"
    assert loops[0].run_until_complete(first) == loops[2].run_until_complete(last) == "result"
    turn(shared_loop())
    assert called == [task]
    loops[0].close()
    loops[2].close()
    expected_log("Task was destroyed but it is pending")  # asyncio's own complaint, of a loop closed too soon
    del closed, loops
    gc.collect()


def test_loop_that_is_closed_at_the_very_moment_of_the_end_disturbs_no_other(
    expected_log: Callable[[str], None],
) -> None:
    """The race between `is_closed()` and `call_soon_threadsafe` isn't run."""
    gate = Gate()
    task = gate.result()

    class ClosedWhenCalled(asyncio.SelectorEventLoop):
        closes = False

        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
            if self.closes:
                self.close()
            return super().call_soon_threadsafe(*args, **kwargs)

    closing, other = ClosedWhenCalled(), asyncio.new_event_loop()
    awaiters = [stop_while_awaiting(loop, task) for loop in (closing, other)]
    closing.closes = True
    gate.open()
    assert task.result(PATIENCE) == "result"
    assert other.run_until_complete(awaiters[1]) == "result"
    assert closing.is_closed()
    other.close()
    expected_log("Task was destroyed but it is pending")
    del awaiters, closing
    gc.collect()


def test_loop_that_is_stopped_meanwhile_gets_the_outcome_when_it_runs_on(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A loop at rest misses nothing, though another has run in its thread in the meantime."""
    gate = Gate()
    task = gate.result()
    loop = loop_factory()
    awaiter = stop_while_awaiting(loop, task)
    gate.open()
    assert asyncio.run(as_coroutine(task)) == "result"
    assert loop.run_until_complete(asyncio.wait_for(awaiter, PATIENCE)) == "result"
    loop.close()


def test_loop_of_an_awaiter_is_not_kept_alive(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Neither by the task, finished or not, nor by the thread."""
    gate = Gate()
    unfinished, finished = gate.result(), shared_loop().create_task(as_coroutine(asyncio.sleep(0)))
    finished.result(PATIENCE)

    async def main() -> weakref.ref[asyncio.AbstractEventLoop]:
        await finished
        awaiter = asyncio.create_task(as_coroutine(asyncio.shield(asyncio.wrap_future(unfinished))))
        await asyncio.sleep(0)
        awaiter.cancel()
        await asyncio.wait([awaiter])
        unfinished.send(None)
        unfinished.close()
        return weakref.ref(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.run(main())
    del runner
    gate.open()
    unfinished.result(PATIENCE)
    turn(shared_loop())
    gc.collect()
    assert loop() is None


def test_an_await_that_is_closed_leaves_no_entry() -> None:
    """Nothing grows with those who give up."""

    async def main() -> None:
        task = eager(asyncio.sleep)(PATIENCE)
        waiting = task.__await__()
        next(waiting)
        assert task._callbacks
        waiting.close()
        assert not task._callbacks
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


# As a coroutine, driven by hand


def drive(task: EagerTask[Any]) -> asyncio.Future[None]:
    """Take a step of the wait by hand: as an asyncio task does, which then waits for what it gets."""
    waiter: asyncio.Future[None] = task.send(None)
    assert asyncio.isfuture(waiter)
    assert not waiter.done()
    return waiter


def test_send_waits_for_the_end_and_stops_with_the_result(run: Callable[[Any], Any]) -> None:
    """It yields a future of the running loop, and then raises `StopIteration`, also when asked again."""
    gate = Gate()

    async def main() -> list[Any]:
        task = gate.result()
        waiter = drive(task)
        assert waiter.get_loop() is asyncio.get_running_loop()
        gate.open()
        await asyncio.wait([waiter])
        results = []
        for _ in range(3):
            with pytest.raises(StopIteration) as stop:
                task.send(None)
            results.append(stop.value.value)
        return results

    assert run(main()) == ["result"] * 3


def test_finished_task_is_driven_without_any_loop() -> None:
    """Result and exception are there at the first step."""
    gate = Gate()
    gate.open()
    task, failed = gate.result(), gate.result(error=LookupError())
    concurrent.futures.wait([task, failed], PATIENCE)
    with pytest.raises(StopIteration) as stop:
        task.send(None)
    assert stop.value.value == "result"
    with pytest.raises(LookupError):
        failed.send(None)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        (asyncio.CancelledError("why"),),
        (asyncio.CancelledError, asyncio.CancelledError("why")),
        (asyncio.CancelledError, "why"),
        (asyncio.CancelledError, "why", None),
    ],
    ids=["instance", "class and instance", "class and argument", "three"],
)
def test_throw_of_cancelled_error_is_a_request(arguments: tuple[Any, ...], started: bool) -> None:  # noqa: FBT001
    """The driver goes on waiting, started or not; the coroutine gets the message, and may end otherwise."""
    seen: list[tuple[object, ...]] = []

    @eager
    async def swallow(gate: asyncio.Event) -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError as exc:
            seen.append(exc.args)
        return "went on"

    async def main() -> str:
        task = swallow(asyncio.Event())
        if started:
            drive(task)
        waiter = task.throw(*arguments)
        assert asyncio.isfuture(waiter)
        assert await as_coroutine(task) == "went on"
        with pytest.raises(StopIteration) as stop:
            task.send(None)
        result: str = stop.value.value
        return result

    assert shared_loop().create_task(main()).result(PATIENCE) == "went on"
    assert seen == [("why",)]


def test_throw_of_cancelled_error_after_the_end_raises_it() -> None:
    """Too late for the coroutine, so the driver gets it."""
    gate = Gate()
    gate.open()
    task = gate.result()
    task.result(PATIENCE)
    with pytest.raises(asyncio.CancelledError, match="too late"):
        task.throw(asyncio.CancelledError("too late"))
    assert task.result() == "result"


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        (LookupError("why"),),
        (LookupError,),
        (LookupError, "why"),
        (LookupError, LookupError("why")),
        (KeyboardInterrupt,),
    ],
    ids=["instance", "class", "class and argument", "class and instance", "KeyboardInterrupt"],
)
def test_any_other_throw_detaches_that_driver_alone(arguments: tuple[Any, ...], started: bool) -> None:  # noqa: FBT001
    """It comes out where it was thrown in; the task and its other drivers go on."""
    gate = Gate()

    async def main() -> str:
        task = gate.result()
        other = asyncio.create_task(task)
        await asyncio.sleep(0)
        if started:
            drive(task)
        kind = arguments[0] if isinstance(arguments[0], type) else type(arguments[0])
        with pytest.raises(kind) as thrown:
            task.throw(*arguments)
        if isinstance(arguments[-1], BaseException):
            assert thrown.value is arguments[-1]
        assert not task.done()
        assert "being cancelled" not in repr(task)
        drive(task)  # it may come back
        gate.open()
        result: str = await other
        return result

    assert asyncio.run(main()) == "result"


def test_throw_takes_a_traceback() -> None:
    """The third argument of old."""
    gate = Gate()
    task = gate.result()
    with pytest.raises(LookupError) as earlier:
        raise LookupError
    traceback = earlier.value.__traceback__
    with pytest.raises(KeyError) as thrown:
        task.throw(KeyError, KeyError("why"), traceback)
    frames = []
    step = thrown.value.__traceback__
    while step is not None:
        frames.append(step)
        step = step.tb_next
    assert traceback in frames
    gate.open()
    task.result(PATIENCE)


def test_close_detaches_that_driver_alone() -> None:
    """The task and its other drivers go on; what was closed may be driven again."""
    gate = Gate()

    async def main() -> str:
        task = gate.result()
        task.close()  # not driven yet
        other = asyncio.create_task(task)
        await asyncio.sleep(0)
        task.close()  # the other's wait isn't ours
        waiter = drive(task)
        task.close()
        task.close()
        assert drive(task) is not waiter
        task.close()
        assert not task.done()
        gate.open()
        result: str = await other
        return result

    assert asyncio.run(main()) == "result"


def test_close_of_a_finished_task_keeps_its_result() -> None:
    """It drops nothing."""
    gate = Gate()
    gate.open()
    task = gate.result()
    task.result(PATIENCE)
    task.close()
    assert task.result() == "result"


def test_task_is_a_coroutine_to_those_who_ask() -> None:
    """`collections.abc.Coroutine`, and `asyncio.iscoroutine`."""
    gate = Gate()
    gate.open()
    task = gate.result()
    assert asyncio.iscoroutine(task)
    assert not asyncio.isfuture(task)
    task.result(PATIENCE)


# Several drivers at a time


def test_several_loops_drive_one_task_at_a_time() -> None:
    """Each with several asyncio tasks: every driver gets the result."""
    gate = Gate()
    task = gate.result()
    driving = threading.Barrier(4, action=gate.open)

    async def main() -> list[Any]:
        drivers = [
            asyncio.create_task(task),
            asyncio.ensure_future(task),
            asyncio.create_task(as_coroutine(task)),
        ]
        await asyncio.sleep(0)
        await asyncio.to_thread(driving.wait, PATIENCE)
        return [await driver for driver in drivers]

    def in_background() -> list[Any]:
        return shared_loop().create_task(main()).result(PATIENCE)

    def in_loop() -> list[Any]:
        return asyncio.run(main())

    assert in_threads(in_loop, in_loop, in_loop, in_background) == [["result"] * 3] * 4


def test_several_drivers_get_the_same_exception() -> None:
    """One object for all of them."""
    gate, error = Gate(), LookupError()
    task = gate.result(error=error)

    async def main() -> list[Any]:
        drivers = [asyncio.create_task(task) for _ in range(3)]
        asyncio.get_running_loop().call_soon(gate.open)
        return [await end_of(driver) for driver in drivers]

    assert all(raised is error for raised in asyncio.run(main()))


def test_cancelled_driver_cancels_the_task_for_all_drivers() -> None:
    """In other loops and threads too."""
    gate = Gate()
    task = gate.result()
    driving = threading.Barrier(3)

    async def main(*, cancel: bool) -> list[Any]:
        drivers = [asyncio.create_task(task) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.to_thread(driving.wait, PATIENCE)
        if cancel:
            drivers[1].cancel("why")
        return [await end_of(driver) for driver in drivers]

    errors = in_threads(
        lambda: asyncio.run(main(cancel=False)),
        lambda: asyncio.run(main(cancel=True)),
        lambda: shared_loop().create_task(main(cancel=False)).result(PATIENCE),
    )
    gate.open()
    assert [(type(error), error.args) for some in errors for error in some] == [
        (asyncio.CancelledError, ("why",))
    ] * 9


def test_finished_drivers_are_not_kept_by_the_task() -> None:
    """A long-lived task doesn't collect those who once waited for it."""
    gate = Gate()

    async def main() -> None:
        task = gate.result()
        drivers = [asyncio.create_task(as_coroutine(task)), asyncio.create_task(task)]
        gate.open()
        await asyncio.wait(drivers)
        references = [weakref.ref(driver) for driver in drivers]
        del drivers
        await shared_loop().create_task(asyncio.sleep(0))  # it may have been at the end of telling them
        gc.collect()
        assert [reference() for reference in references] == [None, None]
        assert task.done()

    asyncio.run(main())


@pytest.mark.usefixtures("_frequent_switches")
def test_no_wake_up_is_lost_between_loops() -> None:
    """Tasks that end while several loops in several threads begin to await them: all go on."""

    @eager
    async def end(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    for _ in range(30):
        tasks = [end(number % 4) for number in range(40)]

        async def main(tasks: list[EagerTask[int]] = tasks) -> list[int]:
            drivers = [asyncio.create_task(task) for task in tasks]
            awaited = [await task for task in tasks]
            assert awaited == [await driver for driver in drivers]
            return awaited

        def in_loop(main: Callable[[], Any] = main) -> Any:
            return asyncio.run(main())

        def in_background(main: Callable[[], Any] = main) -> Any:
            return shared_loop().create_task(main()).result(PATIENCE)

        assert in_threads(in_loop, in_loop, in_background) == [[number % 4 for number in range(40)]] * 3
