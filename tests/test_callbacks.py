"""Done callbacks: where they run, how they are taken back, and that they harm nobody."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, eager
from gates import Gate
from threads import frequent_switches

if TYPE_CHECKING:
    from collections.abc import Callable

Future = concurrent.futures.Future[Any]


@eager
async def wait_for(gate: Gate, value: object = 42) -> object:
    """Return when the gate is open."""
    await gate.passed()
    return value


@eager
async def answer() -> int:
    """Return at once."""
    return 42


@eager
async def loop_ident() -> int:
    """The thread of the shared loop."""
    return threading.get_ident()


def finished() -> EagerTask[int]:
    """A task that is done."""
    task = answer()
    task.result()
    return task


def settled() -> None:
    """Return when the callbacks of what ended before have been called, in the loop's thread."""
    answer().result()
    answer().result()


# Where they run


def test_a_callback_runs_in_the_loops_thread_with_the_task() -> None:
    """If added in a thread without a loop before the end; the task is done by then."""
    gate = Gate()
    task = wait_for(gate)
    called: list[tuple[Future, bool, int]] = []
    task.add_done_callback(lambda future: called.append((future, future.done(), threading.get_ident())))
    gate.open()
    task.result()
    settled()
    assert called == [(task, True, loop_ident().result())]


def test_a_callback_of_a_finished_task_runs_at_once() -> None:
    """In the calling thread, before `add_done_callback` returns, if no loop runs there."""
    called: list[int] = []
    finished().add_done_callback(lambda _: called.append(threading.get_ident()))
    assert called == [threading.get_ident()]


@pytest.mark.parametrize("is_done", [False, True])
def test_a_callback_added_in_an_asyncio_loop_is_called_on_that_loop(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], *, is_done: bool
) -> None:
    """Soon, not inside `add_done_callback`: as for `asyncio.Future`."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        called: asyncio.Future[tuple[int, asyncio.AbstractEventLoop]] = loop.create_future()
        gate = Gate()
        task: EagerTask[Any] = finished() if is_done else wait_for(gate)
        task.add_done_callback(
            lambda _: called.set_result((threading.get_ident(), asyncio.get_running_loop()))
        )
        assert not called.done()
        gate.open()
        assert await called == (threading.get_ident(), loop)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("is_done", [False, True])
def test_a_callback_added_in_the_tasks_own_loop_is_called_on_that_loop(*, is_done: bool) -> None:
    """Soon there, too."""

    @eager
    async def main() -> list[str]:
        gate = Gate()
        task: EagerTask[Any] = answer() if is_done else wait_for(gate)
        assert task.done() is is_done
        called = asyncio.Event()
        order: list[str] = []

        def callback(_: Future) -> None:
            order.append("called" if asyncio.get_running_loop() is loop else "elsewhere")
            called.set()

        loop = asyncio.get_running_loop()
        task.add_done_callback(callback)
        order.append("added")
        gate.open()
        await called.wait()
        return order

    assert main().result() == ["added", "called"]


def test_callbacks_of_all_places_are_called_for_one_task() -> None:
    """Plain thread, asyncio loop, another background loop, own loop: each where it was added."""
    gate = Gate()
    task = wait_for(gate)
    places: dict[str, int] = {}
    expected: dict[str, int] = {}
    everywhere = threading.Semaphore(0)

    def add(name: str) -> None:
        def callback(_: Future) -> None:
            places[name] = threading.get_ident()
            everywhere.release()

        expected[name] = threading.get_ident()
        task.add_done_callback(callback)

    async def add_here(name: str) -> None:
        add(name)

    async def main() -> None:
        add("asyncio")
        gate.open()
        await asyncio.to_thread(lambda: [everywhere.acquire() for _ in range(3)])
        while "asyncio" not in places:
            await asyncio.sleep(0)

    with BackgroundLoop(name="other") as other, ThreadPoolExecutor(1) as threads:
        threads.submit(add, "thread").result()
        other.create_task(add_here("other")).result()
        eager(add_here)("own").result()
        asyncio.run(main())
    expected["thread"] = expected["own"]
    assert places == expected


def test_callbacks_are_called_in_their_order() -> None:
    """One after the other; one that was added twice is called twice."""
    gate = Gate()
    task = wait_for(gate)
    called: list[int] = []

    def first(_: Future) -> None:
        called.append(1)

    task.add_done_callback(first)
    task.add_done_callback(lambda _: called.append(2))
    task.add_done_callback(first)
    gate.open()
    task.result()
    settled()
    assert called == [1, 2, 1]


@pytest.mark.parametrize("is_done", [False, True])
def test_a_callback_runs_in_a_copy_of_its_adders_context(*, is_done: bool) -> None:
    """Or in the context that is given, which it may change, as for `asyncio.Future`."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    given = contextvars.Context()
    given.run(variable.set, "given")
    seen: list[str] = []

    def callback(_: Future) -> None:
        seen.append(variable.get())
        variable.set("changed")

    def add() -> None:
        variable.set("caller's")
        task.add_done_callback(callback)
        task.add_done_callback(callback, context=given)
        assert variable.get() == "caller's"

    gate = Gate()
    task: EagerTask[Any] = finished() if is_done else wait_for(gate)
    contextvars.copy_context().run(add)
    gate.open()
    task.result()
    settled()
    assert seen == ["caller's", "given"]
    assert given.run(variable.get) == "changed"


def test_callbacks_are_called_however_the_task_ends() -> None:
    """By its result, an exception or a cancellation, before it began or later."""

    @eager
    async def fail() -> None:
        raise ValueError("no")

    gate = Gate()
    ended: list[str] = []

    def callback(future: Future) -> None:
        if future.cancelled():
            ended.append("cancelled")
        else:
            ended.append(str(future.exception() or future.result()))

    for task in (answer(), fail(), wait_for(gate)):
        task.add_done_callback(callback)
        task.cancel() if task.get_name().startswith("wait_for") else None
        concurrent.futures.wait([task])
    settled()
    assert ended == ["42", "no", "cancelled"]


# Callbacks that call in again


def test_a_callback_may_add_another() -> None:
    """The task is done by then, so it is called on the loop, soon."""
    gate = Gate()
    task = wait_for(gate)
    called: list[str] = []

    def callback(future: Future) -> None:
        future.add_done_callback(lambda _: called.append("second"))
        called.append("first")

    task.add_done_callback(callback)
    gate.open()
    task.result()
    settled()
    assert called == ["first", "second"]


def test_a_callback_may_ask_the_task_anything() -> None:
    """The result, its name, its stack; cancelling does nothing any more; other calls may be started."""
    gate = Gate()
    task = wait_for(gate)
    called: list[object] = []

    def callback(future: Any) -> None:
        called.extend([future.result(), future.cancel(), future.get_coro(), future.get_stack()])
        called.append(answer().result())  # it ends before the call returns

    task.add_done_callback(callback)
    gate.open()
    task.result()
    settled()
    assert called == [42, False, None, [], 42]


def test_a_callback_may_remove_a_later_one() -> None:
    """It isn't called then."""
    gate = Gate()
    task = wait_for(gate)
    called: list[str] = []

    def later(_: Future) -> None:
        called.append("later")

    task.add_done_callback(lambda _: called.append(f"removed {task.remove_done_callback(later)}"))
    task.add_done_callback(later)
    gate.open()
    task.result()
    settled()
    assert called == ["removed 1"]


# Taking them back


class Listener:
    """Has a method to be called."""

    def __init__(self) -> None:
        self.calls = 0

    def heard(self, _: Future) -> None:
        """Count a call."""
        self.calls += 1


def test_remove_done_callback_takes_back_all_that_are_equal() -> None:
    """It returns how many there were; bound methods of one object are equal."""
    gate = Gate()
    task = wait_for(gate)
    removed, kept = Listener(), Listener()
    for listener in (removed, kept, removed):
        task.add_done_callback(listener.heard)
    assert task.remove_done_callback(removed.heard) == 2
    assert task.remove_done_callback(removed.heard) == 0
    gate.open()
    task.result()
    settled()
    assert (removed.calls, kept.calls) == (0, 1)
    assert task.remove_done_callback(kept.heard) == 0


def test_callbacks_can_be_removed_from_any_thread_and_loop() -> None:
    """Wherever they were added."""
    gate = Gate()
    task = wait_for(gate)
    listener = Listener()

    async def add() -> None:
        task.add_done_callback(listener.heard)

    async def remove() -> int:
        return task.remove_done_callback(listener.heard)

    with ThreadPoolExecutor(1) as threads:
        for take_back in (
            lambda: task.remove_done_callback(listener.heard),
            lambda: asyncio.run(remove()),
            lambda: threads.submit(task.remove_done_callback, listener.heard).result(),
            lambda: eager(remove)().result(),
        ):
            task.add_done_callback(listener.heard)
            asyncio.run(add())
            threads.submit(task.add_done_callback, listener.heard).result()
            eager(add)().result()
            assert take_back() == 4
    gate.open()
    task.result()
    settled()
    assert listener.calls == 0


def test_what_is_not_a_users_callback_cannot_be_removed() -> None:
    """Those who block and await stay, whatever is removed."""

    class EqualToAll:
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

        def __call__(self, _: Future) -> None: ...

    gate = Gate()
    task = wait_for(gate)

    async def main() -> object:
        waiting = asyncio.ensure_future(task)
        await asyncio.sleep(0)
        task.add_done_callback(print)
        assert task.remove_done_callback(EqualToAll()) == 1
        gate.open()
        return await waiting

    assert asyncio.run(main()) == 42


# Whatever they raise


ERRORS = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
PATTERN = r"exception calling callback .*unlucky.* for <EagerTask .*in unlucky.*%s"


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_callback_raises_is_logged_and_harms_nobody(
    expected_log: Callable[[str], None], error: type[BaseException]
) -> None:
    """In the loop's thread: later callbacks, waiting threads and the loop go on."""

    def unlucky(_: Future) -> None:
        raise error("oh no")

    expected_log(PATTERN % error.__name__)
    gate = Gate()
    task = wait_for(gate)
    called: list[str] = []
    task.add_done_callback(unlucky)
    task.add_done_callback(lambda _: called.append("later"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(task.result)
        gate.open()
        assert waiting.result() == 42
    settled()
    assert called == ["later"]
    assert answer().result() == 42


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_callback_of_a_finished_task_raises_is_logged(
    expected_log: Callable[[str], None], error: type[BaseException]
) -> None:
    """`add_done_callback` doesn't raise it."""

    def unlucky(_: Future) -> None:
        raise error("oh no")

    expected_log(PATTERN % error.__name__)
    finished().add_done_callback(unlucky)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("is_done", [False, True])
def test_what_a_callback_raises_on_an_asyncio_loop_is_logged(
    expected_log: Callable[[str], None], error: type[BaseException], *, is_done: bool
) -> None:
    """That loop goes on, and calls those that come after."""

    async def main() -> None:
        called = asyncio.Event()
        gate = Gate()
        task: EagerTask[Any] = finished() if is_done else wait_for(gate)
        task.add_done_callback(unlucky)
        task.add_done_callback(lambda _: called.set())
        gate.open()
        await called.wait()

    def unlucky(_: Future) -> None:
        raise error("oh no")

    expected_log(PATTERN % error.__name__)
    asyncio.run(main())


def test_a_callback_that_takes_no_argument_is_logged(expected_log: Callable[[str], None]) -> None:
    """As any other that fails."""
    expected_log("exception calling callback .*TypeError")
    task = finished()
    task.add_done_callback(lambda: None)  # type: ignore[arg-type,misc]


# Loops that are gone


def test_a_callback_whose_loop_is_closed_is_dropped() -> None:
    """In silence, and nobody else is disturbed."""
    gate = Gate()
    task = wait_for(gate)
    called: list[str] = []

    async def add() -> None:
        task.add_done_callback(lambda _: called.append("on a closed loop"))

    asyncio.run(add())
    task.add_done_callback(lambda _: called.append("elsewhere"))
    gate.open()
    assert task.result() == 42
    settled()
    assert called == ["elsewhere"]


def test_a_loop_that_refuses_calls_disturbs_nobody_else(expected_log: Callable[[str], None]) -> None:
    """Whatever its `call_soon_threadsafe` raises: other callbacks and waiters are served; it is logged."""

    class Refusing(asyncio.SelectorEventLoop):
        refuses = False

        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
            if self.refuses:
                raise OSError("refused")
            return super().call_soon_threadsafe(*args, **kwargs)

    async def add() -> None:
        task.add_done_callback(lambda _: called.append("on the refusing loop"))

    gate = Gate()
    task = wait_for(gate)
    called: list[str] = []
    loop = Refusing()
    try:
        loop.run_until_complete(add())
        task.add_done_callback(lambda _: called.append("elsewhere"))
        loop.refuses = True
        expected_log("OSError: refused")
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(task.result, 10)
            gate.open()
            assert waiting.result() == 42
        settled()
        assert called == ["elsewhere"]
    finally:
        loop.refuses = False
        loop.close()


# Under stress


class Counter(Listener):
    """Counts calls of many threads."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def heard(self, _: Future) -> None:
        """Count a call."""
        with self._lock:
            self.calls += 1


def test_each_callback_is_called_once_whenever_it_is_added() -> None:
    """By threads that add and remove while the task ends: called once, or removed once, never both."""

    def add_and_remove(
        task: EagerTask[object], listener: Listener, barrier: threading.Barrier, every: int
    ) -> int:
        barrier.wait()
        removed = 0
        for count in range(10):
            task.add_done_callback(listener.heard)
            if count % every == 0:
                removed += task.remove_done_callback(listener.heard)
        return removed

    with frequent_switches(), ThreadPoolExecutor(4) as threads:
        for _ in range(60):
            gate, listener, barrier = Gate(), Counter(), threading.Barrier(5)
            task = wait_for(gate)
            adding = [
                threads.submit(add_and_remove, task, listener, barrier, every) for every in (1, 2, 3, 4)
            ]
            barrier.wait()
            gate.open()
            removed = sum(future.result() for future in adding)
            task.result()
            settled()
            assert listener.calls + removed == 40
