"""Tasks among futures: `concurrent.futures.wait`, `as_completed` and `asyncio.wrap_future`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
import time
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, eager
from eager_async._cpython import FINISHED, RUNNING
from eager_async._look import Look
from gates import Gate
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

Future = concurrent.futures.Future[Any]


@eager
async def wait_for(gate: Gate, value: object = None) -> object:
    """Return when the gate is open."""
    await gate.passed()
    return value


@eager
async def fail_after(gate: Gate) -> None:
    """Raise when the gate is open."""
    await gate.passed()
    raise ValueError("no")


@eager
async def answer(value: object = 42) -> object:
    """Return at once."""
    return value


@eager
async def endless() -> None:
    """Go on until cancelled."""
    await asyncio.Event().wait()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """An executor, for futures of its own and for threads that wait."""
    with ThreadPoolExecutor(8) as executor:
        yield executor


# Alone


def test_wait_returns_when_all_are_done(threads: ThreadPoolExecutor) -> None:
    """Those that ended before, those that end meanwhile, failed and cancelled ones."""
    gate = Gate()
    done_before = answer()
    done_before.result()
    failing, cancelled = fail_after(gate), endless()
    tasks: list[Future] = [done_before, wait_for(gate), failing, cancelled]
    waiting = threads.submit(concurrent.futures.wait, tasks)
    cancelled.cancel()
    gate.open()
    done, not_done = waiting.result()
    assert (done, not_done) == (set(tasks), set())
    assert all(task.done() for task in tasks)
    assert isinstance(failing.exception(), ValueError)
    assert cancelled.cancelled()


def test_wait_for_the_first_completed(threads: ThreadPoolExecutor) -> None:
    """Returns as soon as one is done."""
    gates = [Gate(), Gate()]
    tasks = [wait_for(gate) for gate in gates]
    waiting = threads.submit(concurrent.futures.wait, tasks, None, FIRST_COMPLETED)
    gates[1].open()
    assert waiting.result() == ({tasks[1]}, {tasks[0]})
    assert concurrent.futures.wait(tasks, None, FIRST_COMPLETED) == ({tasks[1]}, {tasks[0]})
    gates[0].open()
    assert not concurrent.futures.wait(tasks).not_done


def test_wait_for_the_first_exception(threads: ThreadPoolExecutor) -> None:
    """Returns as soon as one has failed, not when another has a result."""
    gates = [Gate(), Gate(), Gate()]
    failing = fail_after(gates[1])
    tasks: list[Future] = [wait_for(gates[0]), failing, wait_for(gates[2])]
    waiting = threads.submit(concurrent.futures.wait, tasks, None, FIRST_EXCEPTION)
    gates[0].open()
    tasks[0].result()
    gates[1].open()
    done, not_done = waiting.result()
    assert (done, not_done) == ({tasks[0], failing}, {tasks[2]})
    assert isinstance(failing.exception(), ValueError)
    gates[2].open()
    tasks[2].result()


@pytest.mark.parametrize("return_when", [ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION])
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_wait_gives_up_after_its_timeout(return_when: str, timeout: float) -> None:
    """And may be called again."""
    gate = Gate()
    task = wait_for(gate)
    for _ in range(3):
        assert concurrent.futures.wait([task], timeout, return_when) == (set(), {task})
        assert not task._callbacks  # nothing of that wait is left
    gate.open()
    assert concurrent.futures.wait([task], None, return_when) == ({task}, set())


def test_as_completed_yields_tasks_in_the_order_of_their_ends() -> None:
    """Each once, though it was given twice."""
    gates = [Gate() for _ in range(4)]
    tasks = [wait_for(gate, number) for number, gate in enumerate(gates)]
    seen: list[object] = []
    order = [2, 0, 3, 1]
    gates[order[0]].open()
    for task in concurrent.futures.as_completed([*tasks, tasks[0]]):
        seen.append(task.result())
        if len(seen) < len(order):
            gates[order[len(seen)]].open()
    assert seen == order


def test_as_completed_gives_up_after_its_timeout() -> None:
    """With TimeoutError, after those that are done."""
    gate = Gate()
    tasks = [answer(), wait_for(gate)]
    tasks[0].result()
    seen = []
    with pytest.raises(TimeoutError):
        seen.extend(concurrent.futures.as_completed(tasks, timeout=0.01))
    gate.open()
    tasks[1].result()


def test_as_completed_yields_failed_and_cancelled_tasks() -> None:
    """As it does executors' futures."""
    gate = Gate()
    gate.open()
    failing, cancelled = fail_after(gate), endless()
    cancelled.cancel()
    done = set(concurrent.futures.as_completed([failing, cancelled]))
    assert done == {failing, cancelled}
    assert isinstance(failing.exception(), ValueError)


# Among other futures


def test_wait_takes_tasks_and_executor_futures_together(threads: ThreadPoolExecutor) -> None:
    """Of several background loops and executors."""
    gate = Gate()
    with BackgroundLoop(name="other") as other:
        futures: list[Future] = [
            wait_for(gate),
            threads.submit(gate.pass_blocking),
            other.create_task(gate.passed()),
            threads.submit(int),
            answer(),
        ]
        waiting = threads.submit(concurrent.futures.wait, futures)
        gate.open()
        assert waiting.result() == (set(futures), set())


def test_as_completed_takes_tasks_and_executor_futures_together(threads: ThreadPoolExecutor) -> None:
    """In the order of their ends."""
    gates = [Gate() for _ in range(4)]
    futures: list[Future] = [
        wait_for(gates[0]),
        threads.submit(gates[1].pass_blocking),
        wait_for(gates[2]),
        threads.submit(gates[3].pass_blocking),
    ]
    order = [1, 2, 3, 0]
    seen: list[int] = []
    gates[order[0]].open()
    for future in concurrent.futures.as_completed(futures):
        seen.append(futures.index(future))
        if len(seen) < len(order):
            gates[order[len(seen)]].open()
    assert seen == order


def test_an_executor_can_block_on_tasks(threads: ThreadPoolExecutor) -> None:
    """As on any future."""
    tasks = [answer(number) for number in range(20)]
    assert list(threads.map(EagerTask.result, tasks)) == list(range(20))


# Staged races


class Pause(Future):
    """A future of `concurrent.futures` itself: who looks at its state for the first time is held up.

    `wait` and `as_completed` hold all conditions then, and have enlisted with none.
    """

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._true_state = ""
        super().__init__()

    @property
    def _state(self) -> str:
        if not self.reached.is_set():
            self.reached.set()
            self.go_on.wait()
        return self._true_state

    @_state.setter
    def _state(self, state: str) -> None:
        self._true_state = state


def wait_until_enlisted(future: Future) -> None:
    """Return when somebody waits for a future of `concurrent.futures` itself, and holds no lock of it."""
    waiters: list[object] = future._waiters  # type: ignore[attr-defined]
    while not waiters:
        time.sleep(0.001)
    condition: threading.Condition = future._condition  # type: ignore[attr-defined]
    with condition:
        pass


@pytest.mark.parametrize("return_when", [ALL_COMPLETED, FIRST_EXCEPTION])
@pytest.mark.parametrize("failing", [False, True])
def test_wait_counts_a_task_once(threads: ThreadPoolExecutor, return_when: str, failing: bool) -> None:  # noqa: FBT001
    """One that ends while `wait` begins; it would return before the others are done, or never."""
    pause = Pause()
    gate = Gate()
    task: Future = fail_after(gate) if failing else wait_for(gate)
    others: list[Future] = [concurrent.futures.Future(), pause]
    waiting = threads.submit(concurrent.futures.wait, [task, *others], None, return_when)
    pause.reached.wait()
    gate.open()
    assert bool(task.exception()) == failing
    assert answer("the loop goes on").result() == "the loop goes on"
    pause.go_on.set()
    if not (failing and return_when == FIRST_EXCEPTION):
        wait_until_enlisted(pause)
        others[0].set_result(None)
        concurrent.futures.wait([waiting], timeout=0.05)  # time to return too early
        pause.set_result(None)
    done, not_done = waiting.result()
    assert task in done
    assert done | not_done == {task, *others}
    assert all(future.done() for future in done)
    for future in not_done:
        future.set_result(None)


def test_wait_is_told_of_a_task_that_was_cancelled_meanwhile(threads: ThreadPoolExecutor) -> None:
    """It ends while `wait` begins, and nothing else does."""
    pause = Pause()
    task = endless()
    waiting = threads.submit(concurrent.futures.wait, [task, pause], None, FIRST_COMPLETED)
    pause.reached.wait()
    task.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        task.result()
    pause.go_on.set()
    assert waiting.result() == ({task}, {pause})


def test_as_completed_does_not_yield_a_task_twice(threads: ThreadPoolExecutor) -> None:
    """Those that end while `as_completed` begins."""
    with BackgroundLoop(name="other") as other:
        gate, pause = Gate(), Pause()
        tasks: list[Future] = [wait_for(gate), other.create_task(gate.passed())]
        completed = concurrent.futures.as_completed([*tasks, pause])
        beginning = threads.submit(next, completed)
        pause.reached.wait()
        gate.open()
        for task in tasks:
            task.result()
        pause.go_on.set()
        seen = [beginning.result(), next(completed)]
        pause.set_result(None)
        seen += completed
    assert len(seen) == 3
    assert set(seen[:2]) == set(tasks)


def test_conditions_that_are_never_released_harm_nobody(threads: ThreadPoolExecutor) -> None:
    """A Ctrl-C while `wait` acquires the conditions of many futures, in its `with`, leaves them so."""
    gate = Gate()
    task = wait_for(gate, "done")

    def acquire() -> None:
        task._condition.acquire()
        task._condition.acquire()  # another time

    def wait_again() -> bool:
        done = concurrent.futures.wait([task]).done
        return done == {task} == set(concurrent.futures.as_completed([task], timeout=PATIENCE))

    with ThreadPoolExecutor(1) as interrupted:
        interrupted.submit(acquire).result()
        waiting = [interrupted.submit(wait_again), threads.submit(wait_again)]
        gate.open()
        assert task.result(PATIENCE) == "done"
        assert answer("the loop goes on").result(PATIENCE) == "the loop goes on"
        waiting.append(interrupted.submit(wait_again))
        assert all(future.result(PATIENCE) for future in waiting)


def test_a_signal_handler_may_wait_while_others_are_looked_at() -> None:
    """One that comes in while its thread holds a task's condition may wait for that task, and others."""
    gate = Gate()
    task = wait_for(gate, "done")
    with task._condition:
        assert concurrent.futures.wait([task], timeout=0) == (set(), {task})
        gate.open()
        assert task.result(PATIENCE) == "done"
        assert concurrent.futures.wait([task], PATIENCE).done == {task}
        assert answer("the loop goes on").result(PATIENCE) == "the loop goes on"
        assert task._state == RUNNING  # to what was interrupted
    assert task._state == FINISHED
    assert concurrent.futures.wait([task], timeout=0).done == {task}


def test_a_look_that_is_interrupted_in_another_ends_with_that() -> None:
    """A Ctrl-C in a handler's `wait`, which came into another one: that is as it was."""

    def press_ctrl_c(frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and frame.f_code is Look.release.__code__:
            lines.add(frame.f_lineno)
            if len(lines) == number:
                raise KeyboardInterrupt
        return press_ctrl_c

    before = sys.gettrace()
    for number in range(1, 20):
        lines: set[int] = set()
        gate = Gate()
        task = wait_for(gate)
        with task._condition:
            gate.open()
            task.result()
            with contextlib.suppress(KeyboardInterrupt):
                sys.settrace(press_ctrl_c)
                try:
                    concurrent.futures.wait([task], timeout=0)
                finally:
                    sys.settrace(before)
            assert task._state == RUNNING
        assert concurrent.futures.wait([task], PATIENCE).done == {task}
        if len(lines) < number:
            break
    assert number > 3


def test_one_who_waits_is_told_once(threads: ThreadPoolExecutor) -> None:
    """Though others begin to wait for the same task while it ends."""
    gate, told, go_on = Gate(), threading.Event(), threading.Event()
    task = wait_for(gate)
    others: list[Future] = [concurrent.futures.Future(), concurrent.futures.Future()]
    waiting = threads.submit(concurrent.futures.wait, [task, *others])
    wait_until_enlisted(others[1])

    def hold(_: Future) -> None:
        told.set()
        go_on.wait()

    task.add_done_callback(hold)  # told after the waiter
    gate.open()
    told.wait()
    with ThreadPoolExecutor(4) as more:
        again = [more.submit(concurrent.futures.wait, [task]) for _ in range(4)]
        concurrent.futures.wait(again, timeout=0.05)
        go_on.set()
        assert all(future.result().done == {task} for future in again)
    others[0].set_result(None)
    concurrent.futures.wait([waiting], timeout=0.05)
    others[1].set_result(None)
    assert waiting.result() == ({task, *others}, set())


# Under stress


@pytest.mark.usefixtures("_frequent_switches")
def test_many_threads_wait_for_the_same_tasks_while_they_end(threads: ThreadPoolExecutor) -> None:
    """Nobody hangs, returns early or sees a task twice."""

    def wait_all(futures: list[Future], barrier: threading.Barrier) -> bool:
        barrier.wait()
        return not concurrent.futures.wait(futures).not_done

    def complete(futures: list[Future], barrier: threading.Barrier) -> bool:
        barrier.wait()
        seen = list(concurrent.futures.as_completed(futures))
        return len(seen) == len(futures) == len(set(seen))

    def wait_first(futures: list[Future], barrier: threading.Barrier) -> bool:
        barrier.wait()
        left = set(futures)
        while left:
            done, left = concurrent.futures.wait(left, return_when=FIRST_COMPLETED)
            assert all(future.done() for future in done)
            assert done
        return True

    functions: list[Callable[[list[Future], threading.Barrier], bool]] = [wait_all, complete, wait_first]
    for _ in range(25):
        gates = [Gate() for _ in range(5)]
        futures: list[Future] = [wait_for(gate) for gate in gates]
        futures += [concurrent.futures.Future() for _ in range(2)]
        barrier = threading.Barrier(7)
        waiting = [threads.submit(function, futures, barrier) for function in functions * 2]
        barrier.wait()
        for gate in gates:
            gate.open()
        for future in futures[-2:]:
            future.set_result(None)
        assert [future.result() for future in waiting] == [True] * 6


@pytest.mark.usefixtures("_frequent_switches")
def test_the_first_to_wait_may_be_many(threads: ThreadPoolExecutor) -> None:
    """Threads that begin to wait for one task at the same moment are all told."""
    for _ in range(50):
        gate = Gate()
        task = wait_for(gate)
        barrier = threading.Barrier(7)

        def wait(task: EagerTask[object] = task, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return task in concurrent.futures.wait([task]).done

        waiting = [threads.submit(wait) for _ in range(6)]
        barrier.wait()
        gate.open()
        assert all(future.result() for future in waiting)


# asyncio.wrap_future


def test_wrap_future_hands_on_the_result(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Of tasks that run and of those that are done, in any loop."""

    async def main() -> list[object]:
        gate = Gate()
        finished = answer("first")
        finished.result()
        running = wait_for(gate, "second")
        wrapped = [asyncio.wrap_future(finished), asyncio.wrap_future(running)]
        gate.open()
        return await asyncio.gather(*wrapped)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == ["first", "second"]
    assert eager(main)().result() == ["first", "second"]


def test_wrap_future_hands_on_the_exception() -> None:
    """The same object."""

    async def main() -> None:
        gate = Gate()
        task = fail_after(gate)
        wrapped = asyncio.wrap_future(task)
        gate.open()
        with pytest.raises(ValueError, match="no") as caught:
            await wrapped
        assert caught.value is task.exception()

    asyncio.run(main())


def test_wrap_future_hands_cancellation_on_in_both_directions() -> None:
    """Cancelling either cancels the other."""

    async def main() -> None:
        task = endless()
        wrapped = asyncio.wrap_future(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        task = endless()
        asyncio.wrap_future(task).cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())


def test_a_snapshot_is_as_of_any_future() -> None:
    """What `wrap_future` reads since 3.15 says of a task what it says of other futures."""
    gate = Gate()
    pending: Any = wait_for(gate)
    assert pending._get_snapshot() == (False, False, None, None)
    gate.open()
    finished: Any = answer("yes")
    failed: Any = fail_after(gate)
    cancelled: Any = endless()
    cancelled.cancel("no more")
    concurrent.futures.wait([pending, finished, failed, cancelled])
    assert finished._get_snapshot() == (True, False, "yes", None)
    assert failed._get_snapshot() == (True, False, None, failed.exception())
    assert cancelled._get_snapshot() == (True, True, None, None)


def test_a_task_can_be_wrapped_in_many_loops_at_once(threads: ThreadPoolExecutor) -> None:
    """All get the result."""

    async def main() -> object:
        wrapped = asyncio.wrap_future(task)
        barrier.wait()
        return await wrapped

    gate = Gate()
    task = wait_for(gate, "all")
    barrier = threading.Barrier(5)
    running = [threads.submit(lambda: asyncio.run(main())) for _ in range(4)]
    barrier.wait()
    gate.open()
    assert [future.result() for future in running] == ["all"] * 4
