"""Finalizers and signal handlers that call in again, while the library is anywhere in its own code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import dis
import gc
import os
import signal
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import eager_async
from eager_async import BackgroundLoop, DeadlockError, EagerTask, ResultTimeoutError, eager, shared_loop
from interrupter import Interrupter, in_package
from programs import posix_signals
from threads import GIL_ENABLED, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from conftest import RunPython


PACKAGE = os.path.dirname(eager_async.__file__)

variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")


@eager
async def answer(_thing: object = None) -> int:
    """Return at once."""
    return 42


@eager
async def answer_later(_thing: object = None) -> int:
    """Return after a turn of the loop."""
    await asyncio.sleep(0)
    return 42


@eager
async def fail_with(exc: BaseException) -> None:
    """Raise at once."""
    raise exc


@eager
async def endless() -> None:
    """Go on until cancelled."""
    await asyncio.Event().wait()


def settled() -> None:
    """Return when all tasks have ended, and the loop's thread has let go of them."""
    concurrent.futures.wait(shared_loop().tasks(), PATIENCE)
    answer().result(PATIENCE)
    answer().result(PATIENCE)


def outcome(thing: object) -> object:
    """What a finalizer has heard, or will hear."""
    return thing.result(PATIENCE) if isinstance(thing, EagerTask) else thing


class CallsIn:
    """Starts an eager function at its end, and blocks on it where that is allowed."""

    def __init__(self, heard: list[object]) -> None:
        self._heard = heard

    def __del__(self) -> None:
        task = answer_later()
        try:
            self._heard.append(task.result(PATIENCE))
        except DeadlockError:  # in the loop's own thread
            self._heard.append(task)


# Finalizers


def test_a_finalizer_may_call_eager_functions() -> None:
    """And block on them, in whichever thread the last reference to an argument is dropped."""
    heard: list[object] = []
    for call in (answer, answer_later):
        call(CallsIn(heard)).result()
    settled()
    assert len(heard) == 2
    assert all(outcome(thing) == 42 for thing in heard)


def test_finalizers_of_all_that_a_task_holds_may_call_in() -> None:
    """Results, exceptions, context values, callbacks."""

    class FailingError(Exception):
        def __init__(self, thing: CallsIn) -> None:
            self.thing = thing

    async def give(make: Callable[[], object]) -> object:
        return make()

    class Called(CallsIn):
        def __call__(self, _: object) -> None: ...

    def with_value() -> None:
        variable.set(CallsIn(heard))
        answer_later().result()

    heard: list[object] = []
    eager(give)(lambda: CallsIn(heard)).result()
    with contextlib.suppress(FailingError):
        fail_with(FailingError(CallsIn(heard))).result()
    contextvars.Context().run(with_value)
    task = answer_later()
    task.add_done_callback(Called(heard))
    task.result()
    removed = Called(heard)
    task = answer_later()
    task.add_done_callback(removed)
    task.remove_done_callback(removed)
    del removed
    task.result()
    del task
    settled()
    gc.collect()
    settled()
    assert len(heard) == 5
    assert all(outcome(thing) == 42 for thing in heard)


def test_the_end_of_a_task_may_start_another() -> None:
    """A weak reference's callback calls in, and blocks."""
    heard: list[object] = []
    task = answer()
    task.result()
    settled()
    reference = weakref.ref(task, lambda _: heard.append(answer_later().result(PATIENCE)))
    del task
    assert reference() is None
    assert heard == [42]


def test_a_report_of_an_unretrieved_exception_may_call_in() -> None:
    """An exception handler is called inside a finalizer, and it may log by an eager function."""
    heard: list[object] = []
    shared_loop().asyncio_loop.set_exception_handler(lambda *_: heard.append(answer_later()))
    for _ in range(3):
        fail_with(ValueError("no"))
    settled()
    gc.collect()
    assert [task.result(PATIENCE) for task in heard] == [42] * 3  # type: ignore[attr-defined]


def test_the_collector_may_call_in_anywhere() -> None:
    """It runs whenever memory is allocated, in any thread, and finalizers with it."""
    busy = threading.local()
    heard: list[EagerTask[int]] = []

    def call_in(phase: str, _: object) -> None:
        # Each call makes garbage, and so collections and calls; under a tracer there would be no end to it.
        if phase == "stop" and not getattr(busy, "now", False) and len(heard) < 1000:
            busy.now = True
            try:
                heard.append(answer_later())
            finally:
                busy.now = False

    @eager
    async def nested() -> int:
        tasks = [answer_later() for _ in range(5)]
        return sum([await task for task in tasks])

    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.callbacks.append(call_in)
    gc.set_threshold(7, 1000, 1000)
    try:
        for _ in range(60):
            assert nested().result(PATIENCE) == 5 * 42
            endless_one = endless()
            endless_one.cancel()
            concurrent.futures.wait([endless_one], PATIENCE)
            if not GIL_ENABLED:  # there, the collector waits for more garbage than this test makes
                gc.collect()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(call_in)
        gc.unfreeze()
    assert len(heard) > 10
    assert all(task.result(PATIENCE) == 42 for task in heard)


# Interruptions at every point of the library's code


def operations() -> dict[str, Callable[[], object]]:
    """What a user may be doing while a signal arrives."""

    def cancel() -> None:
        task = endless()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            task.result(PATIENCE)

    def callbacks() -> None:
        task = answer_later()
        task.add_done_callback(str)
        task.remove_done_callback(str)
        task.add_done_callback(str)
        task.result(PATIENCE)

    def fail() -> None:
        with contextlib.suppress(ValueError):
            fail_with(ValueError("no")).result(PATIENCE)

    def time_out() -> None:
        task = endless()
        with contextlib.suppress(ResultTimeoutError):
            task.result(timeout=0)
        task.cancel()

    async def await_here() -> None:
        assert await answer_later() == 42

    return {
        "call": answer,
        "result": lambda: answer_later().result(PATIENCE),
        "exception": lambda: answer().exception(PATIENCE),
        "fail": fail,
        "time out": time_out,
        "cancel": cancel,
        "callbacks": callbacks,
        "await": lambda: asyncio.run(await_here()),
        "wait": lambda: concurrent.futures.wait([answer_later(), answer_later()], PATIENCE),
        "as completed": lambda: list(concurrent.futures.as_completed([answer_later(), answer()], PATIENCE)),
        "look": lambda: (repr(answer()), answer().get_stack(), shared_loop().tasks()),
    }


_calls: dict[CodeType, set[int]] = {}


class SignalLike(Interrupter):
    """Comes in where signal handlers can: at the start of a function and after a call or a jump."""

    def _is_step(self, frame: FrameType) -> bool:
        code = frame.f_code
        if code not in _calls:
            points, may = set(), False
            for instruction in dis.get_instructions(code):
                if may:
                    points.add(instruction.offset)
                may = instruction.opname.startswith(("CALL", "RESUME", "JUMP_BACKWARD"))
            _calls[code] = points
        return frame.f_lasti in _calls[code]


WAITS = {os.path.dirname(module.__file__) for module in (concurrent.futures, threading)}


def in_package_or_waits(code: CodeType) -> bool:
    """Whether code is the package's, or that of `concurrent.futures` or `threading`."""
    return in_package(code) or os.path.dirname(code.co_filename) in WAITS


def interruptions(
    kind: type[Interrupter], operation: Callable[[], object], call: Callable[[], object], *, step: int = 1
) -> Iterator[int]:
    """Run an operation again and again, interrupted one point later each time, until it ends first."""
    number = 1
    while True:
        interrupter = kind({number: call})
        with interrupter:
            operation()
        if not interrupter.happened:
            return
        yield number
        number += step


@pytest.mark.parametrize("name", operations())
def test_a_handler_may_block_on_an_eager_call_at_any_point(name: str) -> None:
    """Whatever the library was doing in that thread, both go on; no lock of the library is in the way."""
    operation = operations()[name]
    heard: list[int] = []

    def call_in() -> None:
        heard.append(answer().result(PATIENCE))

    operation()  # what is made but once is there
    points = sum(1 for _ in interruptions(Interrupter, operation, call_in, step=3))
    settled()
    assert points > 20
    assert heard == [42] * points


@pytest.mark.parametrize("factory", [None, asyncio.Task], ids=["asyncio's own", "task factory"])
def test_a_finalizer_may_call_in_at_any_point_in_the_loops_thread(
    factory: type[asyncio.Task[Any]] | None,
) -> None:
    """While an eager call begins, is awaited, cancelled and ends there."""

    def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop, **options)

    @eager
    async def nested() -> None:
        current = asyncio.current_task()
        assert await answer() == 42
        assert await answer_later() == 42
        task = endless()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert asyncio.current_task() is current

    @eager
    async def interrupted(number: int) -> bool:
        interrupter = Interrupter({number: lambda: heard.extend([answer(), answer_later()])})
        with interrupter:
            await nested()
        return interrupter.happened

    if factory is not None:
        shared_loop().asyncio_loop.set_task_factory(make)
    heard: list[EagerTask[int]] = []
    number = 1
    while interrupted(number).result(PATIENCE):
        number += 5
    assert len(heard) > 50
    assert [task.result(PATIENCE) for task in heard] == [42] * len(heard)


def test_a_handler_may_call_in_while_a_loop_starts() -> None:
    """The very first start too: its call is served, the interrupted one as well, and one loop is left."""
    loops: list[BackgroundLoop] = []
    heard: list[object] = []

    async def which() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def call_in() -> None:
        heard.append(loops[-1].create_task(which()).result(PATIENCE))

    number = 1
    while True:
        with BackgroundLoop(name=f"interrupted {number}") as loop:
            loops.append(loop)
            interrupter = SignalLike({number: call_in})
            with interrupter:
                task = loop.create_task(which())
            task.result(PATIENCE)
            assert loop.create_task(which()).result(PATIENCE) is loop.asyncio_loop
            if interrupter.happened:
                assert heard.pop() is loop.asyncio_loop
                assert task.result() is loop.asyncio_loop
        if not interrupter.happened:
            break
        number += 1
    assert number > 10


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("late", [False, True], ids=["at once", "when the loop has turned"])
def test_a_handler_that_raises_in_a_call_leaves_nothing_unfinished(*, late: bool) -> None:
    """At any point: the exception comes out, no task is left behind, and the next call is served."""
    begun: list[int] = []

    @eager
    async def work(number: int) -> None:
        begun.append(number)
        if not late:
            await asyncio.sleep(0)

    def press_ctrl_c() -> None:
        if late:
            answer().result(PATIENCE)
        raise KeyboardInterrupt

    work(0).result()
    number = 0
    while True:
        number += 1
        interrupter = Interrupter({number: press_ctrl_c})
        raised = False
        try:
            with interrupter:
                work(number)
        except KeyboardInterrupt:
            raised = True
        assert raised is interrupter.happened, f"at point {number}"
        settled()
        left = concurrent.futures.wait(shared_loop().tasks(), PATIENCE).not_done
        assert not left, f"at point {number}"
        if not interrupter.happened:
            break
    assert number > 50
    assert begun.count(number) == 1


def test_a_handler_that_raises_in_result_leaves_the_task_alone() -> None:
    """At any point: it runs on, and can be waited for again."""

    def press_ctrl_c() -> None:
        raise KeyboardInterrupt

    number = 0
    while True:
        number += 1
        task = answer_later()
        interrupter = Interrupter({number: press_ctrl_c})
        with contextlib.suppress(KeyboardInterrupt), interrupter:
            task.result(PATIENCE)
        assert task.result(PATIENCE) == 42
        if not interrupter.happened:
            break
    assert number > 3


def test_a_handler_may_cancel_at_any_point_who_awaits() -> None:
    """As that of `asyncio.run` does at a Ctrl-C: it is cancelled, or it was too late, and nothing else."""
    awaiting: list[asyncio.Task[bool]] = []

    @eager
    async def wait_for(event: threading.Event) -> bool:
        return await asyncio.to_thread(event.wait, PATIENCE)

    async def await_it() -> bool:
        event = threading.Event()
        awaiting.append(asyncio.create_task(wait_for(event)))
        await asyncio.sleep(0)
        event.set()
        return await awaiting[0]

    def operation() -> None:
        awaiting.clear()
        with contextlib.suppress(asyncio.CancelledError):
            assert asyncio.run(await_it())

    def cancel() -> None:
        for task in awaiting:
            task.cancel()

    points = sum(1 for _ in interruptions(Interrupter, operation, cancel))
    settled()
    assert points > 20


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "blocks"])
@pytest.mark.parametrize("name", ["wait", "as completed"])
def test_a_handler_in_a_wait_for_many_leaves_the_loop_alone(name: str, *, raises: bool) -> None:
    """At any point of `concurrent.futures`' own functions, whose locks may stay locked then."""

    def wait_for(tasks: list[EagerTask[int]]) -> None:
        if name == "wait":
            assert concurrent.futures.wait(tasks, PATIENCE).done == set(tasks)
        else:
            assert set(concurrent.futures.as_completed(tasks, PATIENCE)) == set(tasks)

    def come_in() -> None:
        if raises:
            raise KeyboardInterrupt
        assert answer_later().result(PATIENCE) == 42

    number = 0
    while True:
        number += 1
        tasks = [answer_later(), answer(), answer_later()]
        interrupter = SignalLike({number: come_in}, in_package_or_waits)
        with contextlib.suppress(KeyboardInterrupt), interrupter:
            wait_for(tasks)
        assert [task.result(PATIENCE) for task in tasks] == [42] * 3, f"at point {number}"
        assert answer_later().result(PATIENCE) == 42, f"at point {number}"
        wait_for(tasks)
        if not interrupter.happened:
            break
    assert number > 50


# Real signals


@posix_signals
def test_real_signals_may_call_in_and_block() -> None:
    """A flood of them, while the main thread uses all of the library."""
    heard: list[int] = []
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    over = threading.Event()
    handled = threading.Lock()  # held while a signal is under way

    def handle(_signal: int, _frame: object) -> None:
        heard.append(answer_later().result(PATIENCE))
        handled.release()

    def send() -> None:
        while not over.wait(0.0007) and handled.acquire(timeout=PATIENCE):
            signal.pthread_kill(main_thread, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            for operation in operations().values():
                operation()
            with BackgroundLoop() as loop:
                loop.create_task(asyncio.sleep(0)).result(PATIENCE)
    finally:
        over.set()
        sender.join()
        handled.acquire(timeout=PATIENCE)
        signal.signal(signal.SIGUSR1, before)
    assert len(heard) > 10
    assert set(heard) == {42}
    settled()


PROGRAM = """
    import sys
    from eager_async import BackgroundLoop, eager, set_shared_loop

    @eager
    async def answer():
        return 42

    class Interrupter:
        # At the start of the n-th of all the functions that a call runs, wherever they are.
        def __init__(self, number, within=None):
            self.left = number
            self.within = within

        def __call__(self, frame, event, _):
            if self.within is None or called_by(frame, self.within):
                self.left -= 1
                if self.left == 0:
                    sys.settrace(None)
                    assert answer().result(10) == 42

    def called_by(frame, name):
        while frame is not None and frame.f_code.co_name != name:
            frame = frame.f_back
        return frame is not None

    def call(interrupter):
        sys.settrace(interrupter)
        task = answer()
        sys.settrace(None)
        assert task.result(10) == 42

"""


def test_signals_during_the_starts_of_a_process(run_python: RunPython) -> None:
    """In whichever function, those of asyncio and threading included, from the very first call on."""
    process = run_python(
        PROGRAM
        + """
    number = 0
    while True:
        number += 1
        loop = BackgroundLoop()
        set_shared_loop(loop)
        interrupter = Interrupter(number)
        call(interrupter)
        loop.shutdown()
        if interrupter.left > 0:
            break
    print("interrupted often:", number > 30)
    """
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "interrupted often: True\n", "")


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_signal_while_asyncio_makes_its_first_policy(run_python: RunPython, number: int) -> None:
    """Which it does once a process, under a lock that isn't reentrant."""
    process = run_python(PROGRAM + f"    call(Interrupter({number}, within='_init_event_loop_policy'))\n")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


# Errors in the middle of a call


def test_a_call_without_stack_left_leaves_nothing_unfinished(run_python: RunPython) -> None:
    """On the last frames of a deep recursion, in the loop's thread: it works or raises, and that is all."""
    process = run_python(
        """
        import asyncio, concurrent.futures, sys, warnings
        from eager_async import eager, shared_loop

        @eager
        async def answer():
            return 42

        @eager
        async def answer_later():
            await asyncio.sleep(0)
            return 42

        def descend(depth):
            if depth:
                descend(depth - 1)
            else:
                made.append(answer())
                made.append(answer_later())

        @eager
        async def top():
            failed = 0
            for depth in range(100, 300):
                try:
                    descend(depth)
                except RecursionError:
                    failed += 1
            return failed

        made = []
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")
        answer().result()
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(300)
        failed = top().result()
        sys.setrecursionlimit(limit)
        print(failed > 10, len(made) > 100)
        assert answer().result() == 42
        print(len(concurrent.futures.wait(shared_loop().tasks(), timeout=2).not_done))
        for task in made:
            assert isinstance(task.exception(timeout=2), RecursionError | None)
        """,
        timeout=20,
    )
    assert (process.returncode, process.stdout) == (0, "True True\n0\n")
