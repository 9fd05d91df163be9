"""What a task keeps alive, what keeps a task alive, and that nothing grows."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import itertools
import sys
import threading
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, ResultTimeoutError, eager, shared_loop
from gates import Gate
from gone import Gone, Thing, without_the_collector
from threads import GIL_ENABLED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from conftest import RunPython


variable: contextvars.ContextVar[Thing | None] = contextvars.ContextVar("variable", default=None)


class StumbledError(Exception):
    """An exception whose end can be waited for."""


@pytest.fixture(autouse=True)
def _without_the_collector() -> Iterator[None]:
    with without_the_collector():
        yield


@eager
async def answer(_thing: object = None) -> int:
    """Return at once."""
    return 42


@eager
async def answer_later(thing: object = None) -> int:
    """Return after a turn of the loop."""
    await asyncio.sleep(0)
    del thing
    return 42


@eager
async def fail() -> None:
    """Raise at once."""
    raise StumbledError("no")


@eager
async def fail_later() -> None:
    """Raise after a turn of the loop."""
    await asyncio.sleep(0)
    raise StumbledError("no")


@eager
async def endless(_thing: object = None) -> None:
    """Go on until cancelled."""
    await asyncio.Event().wait()


@eager
async def wait_for(gate: Gate, _thing: object = None) -> None:
    """Return when the gate is open."""
    await gate.passed()


def cancelled(thing: object = None) -> EagerTask[None]:
    """A task that was cancelled while it ran."""
    task = endless(thing)
    answer().result()
    task.cancel()
    return task


def never_begun(thing: object = None) -> EagerTask[None]:
    """A task that was cancelled before it began."""
    gate, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait()

    shared_loop().asyncio_loop.call_soon_threadsafe(hold)
    held.wait()
    task = endless(thing)
    task.cancel()
    gate.set()
    return task


# What a finished task drops


@pytest.mark.parametrize("call", [answer, answer_later, cancelled, never_begun])
def test_a_finished_task_drops_its_arguments_and_locals(call: Callable[[object], EagerTask[Any]]) -> None:
    """And its coroutine with them, however it ended; if it was cancelled, when a waiter has seen that."""
    thing = Thing()
    argument_gone = Gone(thing)
    task = call(thing)
    del thing
    concurrent.futures.wait([task])
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
    assert argument_gone
    assert task.get_coro() is None


@pytest.mark.parametrize("call", [answer, answer_later, cancelled, never_begun, fail, fail_later])
def test_a_finished_task_drops_its_context(call: Callable[[], EagerTask[Any]]) -> None:
    """The values of its caller's context variables, and those that it set itself."""

    def call_with_a_value() -> tuple[EagerTask[Any], Gone]:
        thing = Thing()
        variable.set(thing)
        return call(), Gone(thing)

    task, value_gone = contextvars.Context().run(call_with_a_value)
    concurrent.futures.wait([task])
    assert value_gone
    if not task.cancelled():
        task.exception()


def test_a_finished_task_drops_the_coroutine_that_it_was_given() -> None:
    """`create_task` keeps nothing of it."""

    async def coroutine() -> None:
        await asyncio.sleep(0)

    coro = coroutine()
    coroutine_gone = Gone(coro)
    task = shared_loop().create_task(coro)
    del coro
    task.result()
    assert coroutine_gone


def test_a_failed_task_keeps_the_frames_of_its_traceback_alone() -> None:
    """Those of coroutines that ended well before are gone."""

    async def helper() -> Gone:
        thing = Thing()
        await asyncio.sleep(0)
        return Gone(thing)

    @eager
    async def outer() -> None:
        found.append(await helper())
        raise StumbledError("no")

    found: list[Gone] = []
    task = outer()
    assert isinstance(task.exception(), StumbledError)
    assert found[0]


def test_a_finished_task_drops_its_callbacks() -> None:
    """Those that were called and those that were taken back."""

    def add() -> list[Gone]:
        called, removed = Thing(), Thing()

        task.add_done_callback(called.hear)
        task.add_done_callback(removed.hear)
        task.remove_done_callback(removed.hear)
        return [Gone(called), Gone(removed)]

    gate = Gate()
    task = wait_for(gate)
    called_gone, removed_gone = add()
    assert removed_gone
    assert not called_gone.is_set()
    gate.open()
    assert called_gone
    assert task.done()


def test_a_running_task_does_not_keep_its_callers_frame() -> None:
    """Only its code, for the place of the call."""

    def caller() -> tuple[EagerTask[None], Gone]:
        thing = Thing()
        return wait_for(gate), Gone(thing)

    gate = Gate()
    task, local_gone = caller()
    assert local_gone
    gate.open()
    task.result()


# What a finished task is dropped by


def block_on(box: list[EagerTask[Any]]) -> None:
    """`result()`."""
    with contextlib.suppress(StumbledError, asyncio.CancelledError):
        box.pop().result()


def ask_for_exception(box: list[EagerTask[Any]]) -> None:
    """`exception()`."""
    with contextlib.suppress(asyncio.CancelledError):
        box.pop().exception()


async def await_here(box: list[EagerTask[Any]]) -> None:
    """`await`."""
    with contextlib.suppress(StumbledError, asyncio.CancelledError):
        await box.pop()


def await_it(box: list[EagerTask[Any]]) -> None:
    """`await` in another loop."""
    asyncio.run(await_here(box))


def await_in_own_loop(box: list[EagerTask[Any]]) -> None:
    """`await` in the task's own loop."""
    shared_loop().create_task(await_here(box)).result()


def wait(box: list[EagerTask[Any]]) -> None:
    """`concurrent.futures.wait` with a time-out, then without."""
    concurrent.futures.wait(box, timeout=0)
    concurrent.futures.wait(box)
    ask_for_exception(box)


def run_out_of_time(box: list[EagerTask[Any]]) -> None:
    """`result(timeout)`."""
    with contextlib.suppress(ResultTimeoutError, StumbledError, asyncio.CancelledError):
        box[0].result(timeout=0)
    ask_for_exception(box)


def as_a_coroutine(box: list[EagerTask[Any]]) -> None:
    """`create_task`."""

    async def main() -> None:
        with contextlib.suppress(StumbledError, asyncio.CancelledError):
            await asyncio.create_task(box.pop())

    asyncio.run(main())


def be_called_back(box: list[EagerTask[Any]]) -> None:
    """`add_done_callback`."""
    called = threading.Event()

    def callback(future: concurrent.futures.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()
        called.set()

    box.pop().add_done_callback(callback)
    called.wait()


@pytest.mark.parametrize(
    "use",
    [
        block_on,
        ask_for_exception,
        await_it,
        await_in_own_loop,
        wait,
        run_out_of_time,
        as_a_coroutine,
        be_called_back,
    ],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize(
    "call",
    [answer, answer_later, fail, fail_later, cancelled, never_begun],
    ids=["result", "later result", "exception", "later exception", "cancelled", "never begun"],
)
def test_a_task_is_gone_with_its_last_reference(
    call: Callable[[], EagerTask[Any]], use: Callable[[list[EagerTask[Any]]], None]
) -> None:
    """Neither the loop's thread nor an exception nor any way of waiting holds it, in a cycle or otherwise."""
    box = [call()]
    task_gone = Gone(box[0])
    use(box)
    box.clear()
    assert task_gone


def test_the_outcome_goes_with_the_task() -> None:
    """A result or an exception is kept by its task alone."""

    @eager
    async def make() -> Thing:
        return Thing()

    @eager
    async def raise_it() -> None:
        await asyncio.sleep(0)
        raise exceptions.pop()

    task = make()
    result_gone = Gone(task.result())
    assert not result_gone.is_set()
    del task
    assert result_gone
    exceptions = [StumbledError("no")]
    exception_gone = Gone(exceptions[0])
    failing = raise_it()
    block_on([failing])
    assert not exception_gone.is_set()
    del failing
    assert exception_gone


def test_a_task_that_fails_to_start_is_gone_with_its_last_reference() -> None:
    """As any other that fails: a user's task factory may raise."""

    def factory(*_: Any, **__: Any) -> asyncio.Task[Any]:
        raise StumbledError("no task")

    shared_loop().asyncio_loop.set_task_factory(factory)
    box = [answer()]
    task_gone = Gone(box[0])
    ask_for_exception(box)
    shared_loop().asyncio_loop.set_task_factory(None)
    assert task_gone


def test_a_body_that_fails_at_once_under_a_task_factory_is_gone_with_its_task() -> None:
    """Its frames lead back to those that took its first step."""

    def factory(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop, **options)

    shared_loop().asyncio_loop.set_task_factory(factory)
    exceptions = [StumbledError("no")]
    exception_gone = Gone(exceptions[0])

    @eager
    async def stumble() -> None:
        raise exceptions.pop()

    failing = stumble()
    block_on([failing])
    assert not exception_gone.is_set()
    del failing
    shared_loop().asyncio_loop.set_task_factory(None)
    assert exception_gone


def test_a_closed_loop_keeps_no_task_alive() -> None:
    """One that was waiting, or to be called back, when its loop was closed."""
    gate = Gate()
    box: list[EagerTask[None]] = [wait_for(gate)]
    task_gone = Gone(box[0])

    async def add() -> None:
        box[0].add_done_callback(print)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(add())
    loop.close()
    gate.open()
    box.pop().result()
    assert task_gone


# What keeps a running task


def test_a_running_task_is_kept_alive_by_its_loop_alone() -> None:
    """Though nobody refers to it, nor to what it waits for (python/cpython#91887)."""

    @eager
    async def forgotten() -> None:
        waiter = asyncio.get_running_loop().create_future()
        waiting.set_result(weakref.ref(waiter))
        await waiter
        ended.set()

    waiting: concurrent.futures.Future[weakref.ref[asyncio.Future[None]]] = concurrent.futures.Future()
    ended = threading.Event()
    forgotten()
    reference = waiting.result()
    for _ in range(3):
        answer().result()
        gc.collect()
    waiter = reference()
    assert waiter is not None
    shared_loop().asyncio_loop.call_soon_threadsafe(waiter.set_result, None)
    del waiter
    assert ended.wait(10)
    concurrent.futures.wait(shared_loop().tasks())


# The context of others


def call_in_a_context(call: Callable[[], Any]) -> tuple[Any, Gone]:
    """Call something while a context variable has a value that can be watched."""

    def run() -> tuple[Any, Gone]:
        thing = Thing()
        variable.set(thing)
        return call(), Gone(thing)

    return contextvars.Context().run(run)


def test_a_loop_does_not_keep_its_first_callers_context() -> None:
    """Its thread was started by that call, and runs on."""
    with BackgroundLoop() as loop:
        task, value_gone = call_in_a_context(lambda: loop.create_task(asyncio.sleep(0)))
        task.result()
        assert value_gone


@pytest.mark.skipif(sys.version_info < (3, 14), reason="threads take over no context")
def test_a_loop_does_not_inherit_its_first_callers_context(run_python: RunPython) -> None:
    """Where threads take over that of who starts them, which is how Python without the GIL does it."""
    process = run_python(
        """
        import asyncio, contextvars, weakref
        from eager_async import shared_loop

        class Thing: pass

        variable = contextvars.ContextVar("variable", default=None)

        def call():
            variable.set(Thing())
            shared_loop().create_task(asyncio.sleep(0)).result()
            return weakref.ref(variable.get())

        reference = contextvars.Context().run(call)
        for _ in range(3):
            shared_loop().create_task(asyncio.sleep(0)).result()
        print(reference())
        """,
        options=["-X", "thread_inherit_context=1"],
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "None\n", "")


def test_a_task_does_not_keep_the_context_of_a_call_made_before_it() -> None:
    """Of calls that begin in one turn of the loop, each has its own caller's context and no other's."""
    gate, held, go_on = Gate(), threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait()

    shared_loop().asyncio_loop.call_soon_threadsafe(hold)
    held.wait()
    first, value_gone = call_in_a_context(answer)
    second = wait_for(gate)
    go_on.set()
    first.result()
    answer().result()
    assert value_gone
    assert not second.done()
    gate.open()
    second.result()


def test_a_task_does_not_keep_the_context_of_who_waits_for_it() -> None:
    """Once they have gone."""

    def give_up() -> None:
        with pytest.raises(ResultTimeoutError):
            task.result(timeout=0.001)

    def take_back() -> None:
        task.add_done_callback(print)
        task.remove_done_callback(print)

    gate = Gate()
    task = wait_for(gate)
    for use in (give_up, take_back):
        _, value_gone = call_in_a_context(use)
        assert value_gone
    gate.open()
    task.result()


# Growth


def growth(work: Callable[[], None]) -> int:
    """How many bytes some work leaves behind each time: a table that doubles once is no leak."""

    def used_after() -> int:
        work()
        answer().result()
        if not GIL_ENABLED:
            gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        used = [used_after() for _ in range(4)]
    finally:
        tracemalloc.stop()
    return min(after - before for before, after in itertools.pairwise(used))


def test_calls_leave_nothing_behind() -> None:
    """100,000 of them, that return or fail, from another thread and on the loop's own."""

    @eager
    async def call_many() -> None:
        for _ in range(50):
            await answer()
            with contextlib.suppress(StumbledError):
                await fail()

    def work() -> None:
        for _ in range(125):
            tasks = [answer() for _ in range(98)]
            for task in tasks:
                task.result()
            fail().exception()
            call_many().result()

    assert growth(work) < (20_000 if GIL_ENABLED else 100_000)


def test_waiting_for_a_running_task_leaves_nothing_behind() -> None:
    """However often somebody gives up: a task may run for ever."""

    async def cancel_and_detach() -> None:
        callback_loop = asyncio.get_running_loop()
        for _ in range(50):
            task.add_done_callback(callback_loop.stop)
            task.remove_done_callback(callback_loop.stop)
            driver = task.__await__()
            driver.send(None)
            driver.close()

    def work() -> None:
        for _ in range(250):
            with contextlib.suppress(ResultTimeoutError):
                task.result(timeout=1e-6)
            with contextlib.suppress(ResultTimeoutError):
                task.exception(timeout=0)
            concurrent.futures.wait([task], timeout=0)
            task.add_done_callback(print)
            task.remove_done_callback(print)
        asyncio.run(cancel_and_detach())

    gate = Gate()
    task = wait_for(gate)
    work()  # warms up
    assert growth(work) < 20_000
    gate.open()
    task.result()


@pytest.mark.untraced("it takes memory of its own for each thread")
def test_starting_and_shutting_down_loops_leaves_nothing_behind() -> None:
    """A program may use one for each of its jobs."""

    def work() -> None:
        for _ in range(25):
            with BackgroundLoop() as loop:
                loop.create_task(asyncio.sleep(0)).result()
        gc.collect()

    work()  # warms up
    assert growth(work) < 20_000


def test_a_task_is_small() -> None:
    """A finished one takes less than a kilobyte, result aside."""
    tasks: list[Awaitable[int]] = []

    def work() -> None:
        made = [answer() for _ in range(1000)]
        for task in made:
            task.result()
        tasks.extend(made)

    assert growth(work) < 1000 * 1000
    assert sys.getrefcount(tasks[0]) <= 3
