"""A task as its user sees it: polled, blocked on, timed out, named, printed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import io
import pickle
import re
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, DeadlockError, EagerTask, ResultTimeoutError, eager, shared_loop
from interrupter import Interrupter, in_functions
from programs import posix_signals
from threads import frequent_switches

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Coroutine

    from conftest import RunPython


class Gate:
    """Holds coroutines up until a test opens it."""

    def __init__(self) -> None:
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()

    def open(self) -> None:
        self._opened.set_result(None)

    async def passed(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._opened))

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._opened.done():
            self.open()


class HeldLoop:
    """Keeps the shared loop from turning, so that what is called meanwhile can't begin."""

    def __enter__(self) -> None:
        held = threading.Event()
        self._released = threading.Event()

        def hold() -> None:
            held.set()
            self._released.wait()

        shared_loop().asyncio_loop.call_soon_threadsafe(hold)
        held.wait()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        """Let the loop turn."""
        self._released.set()


@eager
async def answer(value: object = 42) -> object:
    """Return at once."""
    return value


@eager
async def fail(exc: BaseException) -> None:
    """Raise at once."""
    raise exc


@eager
async def wait_for(gate: Gate, value: object = None) -> object:
    """Return when the gate is open."""
    await inner(gate)
    return value


async def inner(gate: Gate) -> None:
    """Suspend, one coroutine further in."""
    await gate.passed()


@eager
async def started() -> None:
    """Return when all that was called before has begun."""


@eager
async def sleep_for_ever() -> None:
    """Go on until cancelled."""
    await asyncio.Event().wait()


def line_in(function: Callable[..., object], offset: int) -> int:
    """The number of the line so many lines below a function's `def`."""
    return function.__code__.co_firstlineno + offset


# Polling


def test_polling_answers_at_once_whatever_the_task_does() -> None:
    """`done()`, `running()` and `cancelled()` tell pending, running, finished and cancelled apart."""

    def states(task: EagerTask[object]) -> tuple[bool, bool, bool]:
        return task.done(), task.running(), task.cancelled()

    with Gate() as gate:
        with HeldLoop():
            task = wait_for(gate)
            assert states(task) == (False, False, False)
        started().result()
        assert states(task) == (False, True, False)
    task.result()
    assert states(task) == (True, False, False)
    endless = sleep_for_ever()
    endless.cancel()
    concurrent.futures.wait([endless])
    assert states(endless) == (True, False, True)
    failed = fail(ValueError("no"))
    failed.exception()
    assert states(failed) == (True, False, False)


def test_a_task_has_every_public_name_of_the_two_classes_it_follows() -> None:
    """All of `concurrent.futures.Future`, and of `asyncio.Task` what makes sense in any thread."""
    task = answer()
    assert isinstance(task, concurrent.futures.Future)
    future_names = {name for name in dir(concurrent.futures.Future) if not name.startswith("_")}
    task_names = {"remove_done_callback", "get_name", "get_coro", "get_stack", "print_stack"}
    assert all(callable(getattr(task, name)) for name in future_names | task_names)
    task.result()


# Blocking


def test_any_number_of_threads_get_the_result() -> None:
    """Those that block, and those that come after the end, get the same object."""
    value = object()
    with Gate() as gate, ThreadPoolExecutor(8) as threads:
        task = wait_for(gate, value)
        waiting = [threads.submit(task.result) for _ in range(8)]
        gate.open()
        assert [future.result() for future in waiting] == [value] * 8
        assert [threads.submit(task.result, 0).result() for _ in range(2)] == [value] * 2
        assert task.exception() is None


def test_threads_that_block_while_the_task_ends_all_get_the_result() -> None:
    """Whether they come just before or just after the end."""
    with frequent_switches(), ThreadPoolExecutor(4) as threads:
        for number in range(100):
            barrier = threading.Barrier(5)
            with Gate() as gate:
                task = wait_for(gate, number)

                def get(task: EagerTask[object] = task, barrier: threading.Barrier = barrier) -> object:
                    barrier.wait()
                    return task.result()

                waiting = [threads.submit(get) for _ in range(4)]
                barrier.wait()
                gate.open()
                assert [future.result() for future in waiting] == [number] * 4


@pytest.mark.parametrize("call", [EagerTask.result, EagerTask.exception])
def test_a_cancelled_task_raises_what_either_except_catches(call: Callable[..., object]) -> None:
    """In plain code: asyncio's CancelledError and that of concurrent.futures at once, with the message."""
    task = sleep_for_ever()
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough") as caught:
        call(task)
    assert isinstance(caught.value, concurrent.futures.CancelledError)


@pytest.mark.parametrize("call", [EagerTask.result, EagerTask.exception])
def test_where_a_loop_runs_a_cancelled_task_raises_asyncios_error(call: Callable[..., object]) -> None:
    """There `except Exception` must not swallow it, so it is plain `asyncio.CancelledError`."""
    task = sleep_for_ever()
    task.cancel()
    concurrent.futures.wait([task])

    async def main() -> None:
        call(task)

    with pytest.raises(asyncio.CancelledError) as caught:
        asyncio.run(main())
    assert type(caught.value) is asyncio.CancelledError


@posix_signals
def test_ctrl_c_interrupts_a_blocked_result() -> None:
    """KeyboardInterrupt comes out of `result()`; the task runs on."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    @eager
    async def press_ctrl_c() -> None:
        while not pressed:
            await asyncio.sleep(0.01)
            signal.pthread_kill(main_thread, signal.SIGINT)

    pressed: list[str] = []
    with Gate() as gate:
        task = wait_for(gate, "ran on")
        presser = press_ctrl_c()
        try:
            with pytest.raises(KeyboardInterrupt):
                task.result()
        finally:
            pressed.append("yes")
            while not presser.done():
                with contextlib.suppress(KeyboardInterrupt):  # it may have been pressed twice
                    presser.result()
        gate.open()
        assert task.result() == "ran on"


# Time-outs


def test_a_timeout_says_what_for_how_long_called_where_and_suspended_where() -> None:
    """`ResultTimeoutError` names function, age, call site and the line that the coroutine waits at."""
    with Gate() as gate:
        task = wait_for(gate)
        called = sys._getframe().f_lineno - 1
        started().result()
        with pytest.raises(ResultTimeoutError) as caught:
            task.result(timeout=0.01)
    task.result()
    assert isinstance(caught.value, TimeoutError)
    assert re.fullmatch(
        rf"no result within 0\.01 s: wait_for\(\) called at \S*test_task\.py:{called}, "
        rf"running for \d+\.\d s, suspended at \S*test_task\.py:{line_in(Gate.passed, 1)} in passed\. "
        r"It runs on; `task\.cancel\(\)` ends it",
        str(caught.value),
    )


def test_a_timeout_names_a_line_of_the_users_code_rather_than_asyncios() -> None:
    """For `await asyncio.sleep(...)` that is the line of the await."""

    @eager
    async def nap() -> None:
        await asyncio.sleep(3600)

    task = nap()
    started().result()
    with pytest.raises(ResultTimeoutError, match=r"suspended at \S*test_task\.py:\d+ in \S*nap\b"):
        task.result(timeout=0.01)
    task.cancel()
    concurrent.futures.wait([task])


def test_a_timeout_of_a_call_that_has_not_begun_says_pending() -> None:
    """It isn't suspended anywhere yet, and the text doesn't claim so."""
    with HeldLoop():
        task = answer()
        with pytest.raises(ResultTimeoutError, match=r"answer\(\) called at .*, pending for") as caught:
            task.result(timeout=0.01)
    assert "suspended" not in str(caught.value)
    assert task.result() == 42


@pytest.mark.parametrize("timeout", [0, 0.001, -1])
def test_the_task_runs_on_after_a_timeout(timeout: float) -> None:
    """`result()` and `exception()` give up waiting, and nothing else happens."""
    with Gate() as gate:
        task = wait_for(gate, "late")
        with pytest.raises(ResultTimeoutError):
            task.result(timeout)
        with pytest.raises(ResultTimeoutError):
            task.exception(timeout)
        assert not task.done()
    assert task.result(timeout=3600) == "late"


def test_a_timeout_of_a_finished_task_does_not_matter() -> None:
    """The outcome is there, so even 0 seconds are enough."""
    task = answer()
    task.result()
    assert (task.result(0), task.exception(0), task.result(-1)) == (42, None, 42)


@pytest.mark.parametrize("error", [TimeoutError, asyncio.TimeoutError, ResultTimeoutError])
def test_a_timeout_error_of_the_coroutines_own_comes_out_as_itself(error: type[Exception]) -> None:
    """The same object, so that it can't be taken for a wait that ran out."""
    raised = error("mine")
    task = fail(raised)
    with pytest.raises(error) as caught:
        task.result(timeout=3600)
    assert caught.value is raised


def test_an_enormous_timeout_waits() -> None:
    """More than a lock can wait for is as good as for ever."""
    with Gate() as gate, ThreadPoolExecutor(1) as threads:
        task = wait_for(gate, "there")
        waiting = [threads.submit(task.result, timeout) for timeout in (1e12, float("inf"), sys.maxsize)]
        gate.open()
        assert [future.result() for future in waiting] == ["there"] * 3


# Deadlocks


@pytest.mark.parametrize("call", [EagerTask.result, EagerTask.exception])
@pytest.mark.parametrize("timeout", [None, 3600])
def test_blocking_the_tasks_own_loop_is_a_deadlock_error(
    call: Callable[..., object], timeout: float | None
) -> None:
    """At once, naming the task and saying what to write instead."""

    @eager
    async def outer() -> None:
        task = wait_for(gate)
        try:
            call(task, timeout)
        finally:
            gate.open()
            await task

    gate = Gate()
    with pytest.raises(DeadlockError, match=r"wait_for\(\) called at \S*test_task\.py:\d+.*`await task`"):
        outer().result()


def test_in_its_own_loop_a_task_may_be_asked_without_waiting() -> None:
    """`timeout=0` raises `ResultTimeoutError` until the task is done; then any timeout will do."""

    @eager
    async def outer() -> list[object]:
        with Gate() as gate:
            task = wait_for(gate, "done")
            with pytest.raises(ResultTimeoutError):
                task.result(timeout=0)
            with pytest.raises(ResultTimeoutError):
                task.exception(timeout=0)
        await task
        return [task.result(), task.result(timeout=5), task.exception()]

    assert outer().result() == ["done", "done", None]


def test_a_task_cannot_wait_for_itself() -> None:
    """It would wait for ever."""

    @eager
    async def narcissus() -> None:
        own.result().result()

    own: concurrent.futures.Future[EagerTask[None]] = concurrent.futures.Future()
    with HeldLoop():
        task = narcissus()
        own.set_result(task)
    with pytest.raises(DeadlockError, match=r"narcissus\(\) called at"):
        task.result()


def test_loops_may_block_on_each_others_tasks() -> None:
    """`DeadlockError` is for a task's own loop alone."""
    with BackgroundLoop(name="other") as other:

        @eager(loop=other)
        async def outer() -> object:
            return answer("from another loop").result()

        assert outer().result() == "from another loop"


# asyncio's debug mode


def in_asyncio(function: Callable[[], object], *, debug: bool) -> None:
    """Call a function while an asyncio loop runs in this thread."""

    async def main() -> None:
        function()

    asyncio.run(main(), debug=debug)


def test_in_debug_mode_blocking_another_loop_warns() -> None:
    """A RuntimeWarning at the line of the caller, naming the task and the remedy."""

    def block() -> None:
        task.result(timeout=0.001)

    text = r"wait_for\(\) called at .*blocks the event loop.*`await task`"
    with Gate() as gate:
        task = wait_for(gate)
        with pytest.warns(RuntimeWarning, match=text) as caught, pytest.raises(ResultTimeoutError):
            in_asyncio(block, debug=True)
    task.result()
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line_in(block, 1))]


def test_blocking_does_not_warn_without_need() -> None:
    """Not for a finished task, a look without waiting, or a loop that isn't in debug mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finished = answer()
        finished.result()
        in_asyncio(finished.result, debug=True)
        in_asyncio(lambda: answer().result(), debug=False)
        with Gate() as gate:
            task = wait_for(gate)
            with pytest.raises(ResultTimeoutError):
                in_asyncio(lambda: task.result(timeout=0), debug=True)
        task.result()


# For people


class Client:
    """Has a method."""

    @eager
    async def get(self) -> None:
        """Return at once."""


def test_a_task_is_named_after_its_function() -> None:
    """With its class; `create_task` takes another name."""

    @eager
    async def local() -> None: ...

    async def coroutine() -> None: ...

    loop = shared_loop()
    tasks: list[EagerTask[object]] = [
        answer(),
        Client().get(),
        local(),
        loop.create_task(coroutine()),
        loop.create_task(coroutine(), name="given"),
    ]
    assert [task.get_name() for task in tasks] == [
        "answer()",
        "Client.get()",
        "local()",
        "coroutine()",
        "given",
    ]
    for task in tasks:
        task.result()


@pytest.mark.parametrize("from_loop", [False, True], ids=["from another thread", "from the loop"])
def test_the_asyncio_task_inside_has_the_name_too(*, from_loop: bool) -> None:
    """So that asyncio's own messages can be read."""

    @eager
    async def named() -> str:
        current = asyncio.current_task()
        assert current is not None
        return current.get_name()

    @eager
    async def outer() -> str:
        return await named()

    assert (outer() if from_loop else named()).result() == "named()"


def test_repr_tells_name_state_age_call_and_outcome() -> None:
    """In each state of a task."""
    here = r"called at \S*test_task\.py:\d+"
    with Gate() as gate:
        with HeldLoop():
            pending = wait_for(gate)
            text_pending = repr(pending)
        started().result()
        text_running = repr(pending)
    pending.result()
    assert re.fullmatch(rf"<EagerTask 0x\w+ wait_for\(\) pending for \d+\.\d s, {here}>", text_pending)
    assert re.fullmatch(rf"<EagerTask 0x\w+ wait_for\(\) running for \d+\.\d s, {here}>", text_running)
    returned = answer({"a": 1})
    returned.result()
    assert re.fullmatch(rf"<EagerTask 0x\w+ answer\(\) returned {{'a': 1}}, {here}>", repr(returned))
    failed = fail(ValueError("no"))
    failed.exception()
    assert re.fullmatch(rf"<EagerTask 0x\w+ fail\(\) raised ValueError\('no'\), {here}>", repr(failed))
    cancelled = sleep_for_ever()
    cancelled.cancel()
    concurrent.futures.wait([cancelled])
    assert re.fullmatch(rf"<EagerTask 0x\w+ sleep_for_ever\(\) cancelled, {here}>", repr(cancelled))


def test_repr_says_so_while_a_task_is_being_cancelled() -> None:
    """Cleanup may take its time."""

    @eager
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await gate.passed()

    with Gate() as gate:
        task = stubborn()
        started().result()
        task.cancel()
        started().result()
        assert " being cancelled, running for " in repr(task)
    concurrent.futures.wait([task])


def test_repr_is_short_and_survives_a_bad_result() -> None:
    """A large result is cut; one whose own `repr` raises does no harm."""

    class Bad:
        def __repr__(self) -> str:
            raise ValueError("bad repr")

    class deque:  # noqa: N801
        """Not the one that `reprlib` knows by this name."""

    for value in ("x" * 100_000, list(range(100_000)), Bad(), deque()):
        task = answer(value)
        task.result()
        assert len(repr(task)) < 250


def test_repr_names_an_exception_whose_text_is_long() -> None:
    """The text is cut, not the name."""

    class ConnectionWasRefusedByTheServerError(Exception):
        pass

    @eager
    async def fail_at_length() -> None:
        raise ConnectionWasRefusedByTheServerError("x" * 1000)

    task = fail_at_length()
    task.exception()
    assert " raised ConnectionWasRefusedByTheServerError('x" in repr(task)
    assert len(repr(task)) < 250


def test_a_task_is_not_copied_or_pickled() -> None:
    """A copy would never end; deep copies of what refers to a task, and pickles, raise as well."""
    for task in (sleep_for_ever(), answer()):
        for take in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"its result can: write `task\.result\(\)`"):
                take(task)
        task.cancel()
        concurrent.futures.wait([task])


def test_a_timeout_that_is_no_number_raises() -> None:
    """As in `concurrent.futures`, and doesn't wait for ever."""
    task = sleep_for_ever()
    with pytest.raises(ValueError, match=r"(?i)nan"):
        task.result(float("nan"))
    task.cancel()
    concurrent.futures.wait([task])


def test_get_coro_is_the_coroutine_until_the_end() -> None:
    """Then None: the task keeps its outcome alone."""

    async def coroutine() -> None:
        await gate.passed()

    with Gate() as gate:
        coro: Coroutine[object, object, None] = coroutine()
        task = shared_loop().create_task(coro)
        assert task.get_coro() is coro
        started().result()
        assert task.get_coro() is coro
    task.result()
    assert task.get_coro() is None


# Stacks


def test_get_stack_tells_where_a_coroutine_is_suspended() -> None:
    """From another thread: its frames and those of the coroutines that it awaits, oldest first."""
    with Gate() as gate:
        task = wait_for(gate)
        started().result()
        frames = task.get_stack()
        names = [frame.f_code.co_name for frame in frames]
        assert names[:3] == ["wait_for", "inner", "passed"]
        assert frames[1].f_lineno == line_in(inner, 2)
        assert [frame.f_code.co_name for frame in task.get_stack(limit=2)] == names[-2:]
        assert task.get_stack(limit=0) == []
        del frames
    task.result()
    assert task.get_stack() == []


def test_get_stack_works_in_the_tasks_own_loop() -> None:
    """Where another task looks, or the task itself."""

    @eager
    async def outer() -> tuple[list[str], list[str]]:
        with Gate() as gate:
            task = wait_for(gate)
            other = [frame.f_code.co_name for frame in task.get_stack()]
        await task
        own = [frame.f_code.co_name for frame in (await me.passed_on()).get_stack()]
        return other, own

    class Handed:
        def __init__(self) -> None:
            self.task: concurrent.futures.Future[EagerTask[object]] = concurrent.futures.Future()

        async def passed_on(self) -> EagerTask[object]:
            return await asyncio.wrap_future(self.task)

    me = Handed()
    task = outer()
    me.task.set_result(task)
    other, own = task.result()
    assert other[:3] == ["wait_for", "inner", "passed"]
    assert own[:1] == ["outer"]


def test_get_stack_of_a_failed_task_is_that_of_its_exception() -> None:
    """The coroutine's frames; `limit` keeps the oldest, as for `asyncio.Task`."""

    async def deeper() -> None:
        raise ValueError("no")

    @eager
    async def outer() -> None:
        await deeper()

    task = outer()
    task.exception()
    assert [frame.f_code.co_name for frame in task.get_stack()] == ["outer", "deeper"]
    assert [frame.f_code.co_name for frame in task.get_stack(limit=1)] == ["outer"]


def test_print_stack_prints_where_a_coroutine_is_suspended() -> None:
    """As `asyncio.Task.print_stack` does: a heading, then lines with their source."""
    with Gate() as gate:
        task = wait_for(gate)
        started().result()
        out = io.StringIO()
        task.print_stack(file=out)
    task.result()
    head, *lines = out.getvalue().splitlines()
    assert re.fullmatch(r"Stack for <EagerTask .*> \(most recent call last\):", head)
    assert lines[2] == f'  File "{__file__}", line {line_in(inner, 2)}, in inner'
    assert lines[3] == "    await gate.passed()"
    out = io.StringIO()
    task.print_stack(file=out)
    assert re.fullmatch(r"No stack for <EagerTask .*>\n", out.getvalue())


def test_print_stack_of_a_failed_task_prints_the_exception(capsys: pytest.CaptureFixture[str]) -> None:
    """With the frames of its coroutine, to stderr unless told otherwise."""
    task = fail(ValueError("no"))
    task.exception()
    task.print_stack()
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Traceback for <EagerTask .*> \(most recent call last\):", lines[0])
    assert re.fullmatch(r'  File ".*test_task\.py", line \d+, in fail', lines[1])
    assert lines[-1] == "ValueError: no"


def test_stacks_and_names_can_be_read_in_any_thread_while_the_task_runs() -> None:
    """Many threads look at a task that keeps running and being suspended; none fails."""

    @eager
    async def busy() -> None:
        while not over.is_set():
            await asyncio.sleep(0)

    def look() -> None:
        for _ in range(20):
            assert all(frame.f_code.co_name for frame in task.get_stack())
            task.print_stack(file=io.StringIO())
            assert "busy()" in repr(task)
            with pytest.raises(ResultTimeoutError):
                task.result(timeout=0)

    over = threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        task = busy()
        with ThreadPoolExecutor(4) as threads:
            looking = [threads.submit(look) for _ in range(4)]
        for future in looking:
            future.result()
    finally:
        over.set()
        sys.setswitchinterval(interval)
    task.result()


def test_a_stack_can_be_asked_for_while_the_loop_is_held_up() -> None:
    """The answer comes, be it an empty one, and so does the text of a time-out."""
    with Gate() as gate:
        task = wait_for(gate)
        started().result()
        with HeldLoop():
            names = [frame.f_code.co_name for frame in task.get_stack()]
            assert names[:1] in ([], ["wait_for"])
            with pytest.raises(ResultTimeoutError, match=r"wait_for\(\) called at"):
                task.result(timeout=0.01)
    task.result()


# What users can't do


@pytest.mark.parametrize("done", [False, True])
def test_users_cannot_settle_a_task(*, done: bool) -> None:
    """`set_result` and its like raise RuntimeError, as on `asyncio.Task`, and change nothing."""
    with Gate() as gate:
        task = wait_for(gate, "own")
        if done:
            gate.open()
            task.result()
        with pytest.raises(RuntimeError, match="EagerTask does not support set_result"):
            task.set_result("other")
        with pytest.raises(RuntimeError, match="EagerTask does not support set_exception"):
            task.set_exception(ValueError())
        with pytest.raises(RuntimeError, match="EagerTask does not support set_running_or_notify_cancel"):
            task.set_running_or_notify_cancel()
        assert task.done() is done
    assert task.result() == "own"


def test_a_call_site_can_be_named_when_the_working_directory_is_gone(run_python: RunPython) -> None:
    """`repr` then has the whole path, in place of the one below the working directory."""
    done = run_python(
        """
        import os
        from eager_async import eager

        @eager
        async def work(): ...

        task = work()
        task.result()
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir(os.getcwd())
        print(repr(task).partition("called at ")[2] == f"{__file__}:8>")
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_a_call_in_a_notebook_is_named_by_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in IPython's own tracebacks: the file of a cell doesn't exist."""

    class Shell:
        @property
        def compile(self) -> Shell:
            return self

        def format_code_name(self, name: str) -> tuple[str, str] | None:
            return ("Cell", "In[4]") if name == "/tmp/ipykernel_1/2.py" else None

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=Shell))
    names: dict[str, Any] = {"answer": answer}
    exec(compile("task = answer()", "/tmp/ipykernel_1/2.py", "exec"), names)
    task = answer()
    assert names["task"].result() == task.result() == 42
    assert "called at Cell In[4]:1>" in repr(names["task"])
    assert "test_task.py:" in repr(task)


# Without the GIL


def test_without_the_gil_the_loops_thread_says_where_a_task_is_suspended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frames can't be read from other threads then. A loop that doesn't answer soon isn't waited for."""
    monkeypatch.setattr("eager_async._task.GIL_ENABLED", False)
    with Gate() as gate:
        task = wait_for(gate)
        started().result()
        with pytest.raises(ResultTimeoutError, match=r"suspended at .* in passed"):
            task.result(timeout=0.01)
        names = [frame.f_code.co_name for frame in task.get_stack()]
        assert (names[0], names[-1]) == ("wait_for", "passed")
        with HeldLoop():
            with pytest.raises(ResultTimeoutError, match=r"running for \d+\.\d s\. It runs on") as caught:
                task.result(timeout=0.01)
            assert task.get_stack() == []
    assert "wait_for() called at" in str(caught.value)
    task.result()
    assert task.get_stack() == []


@pytest.mark.untraced("it traces this thread")
@pytest.mark.parametrize("look", [EagerTask.running, repr], ids=["running", "repr"])
def test_a_call_that_never_begins_is_not_seen_to_run_while_it_ends(
    look: Callable[[EagerTask[Any]], object],
) -> None:
    """At whatever point of the look its end comes."""
    ended = True
    point = 0
    while ended:
        point += 1
        held = HeldLoop()

        def end() -> None:
            held.release()  # noqa: B023  # it is called in this round
            concurrent.futures.wait([task])  # noqa: B023

        with held:
            task = answer()
            task.cancel()
            with Interrupter({point: end}, in_functions(EagerTask.running, EagerTask._state_text)):
                seen = look(task)
            ended = task.done()
        assert seen is not True, f"at point {point}"
        assert "running" not in str(seen), f"at point {point}"
        concurrent.futures.wait([task])
    assert point > 5


@pytest.mark.untraced("it traces this thread")
def test_a_stack_is_of_one_moment_while_the_task_ends() -> None:
    """At whatever point its end comes: what is printed as a traceback ends where the exception was raised."""

    @eager
    async def fail_later() -> None:
        await asyncio.to_thread(go_on.wait)
        raise LookupError

    def end() -> None:
        go_on.set()
        concurrent.futures.wait([task])

    ended = True
    point = 0
    while ended:
        point += 1
        go_on = threading.Event()
        task = fail_later()
        text = io.StringIO()
        with Interrupter({point: end}, in_functions(EagerTask.print_stack, EagerTask.get_stack)):
            task.print_stack(file=text)
        ended = task.done()
        end()
        assert isinstance(task.exception(), LookupError)
        if "Traceback for" in text.getvalue():
            assert text.getvalue().endswith("    raise LookupError\nLookupError\n"), f"at point {point}"
        else:
            assert "\nLookupError\n" not in text.getvalue(), f"at point {point}"
    assert point > 20


def outcome_now(task: EagerTask[Any]) -> str:
    """What there is without waiting, whatever it is."""
    try:
        return repr(task.exception(0) or task.result(0))
    except asyncio.CancelledError:
        return "cancelled"
    except Exception as exc:
        return f"{exc!r} instead of an outcome"


async def end_somehow(kind: str) -> int:
    """End in one of three ways."""
    if kind == "is cancelled":
        raise asyncio.CancelledError
    if kind == "raises":
        raise LookupError
    return 42


@pytest.mark.untraced("it traces the loop's thread")
@pytest.mark.parametrize("kind", ["returns", "raises", "is cancelled", "never begins"])
def test_what_other_threads_see_at_the_end_is_true(kind: str) -> None:
    """A task that is seen to be done has its outcome, and one that never begins is never seen to run."""
    seen: list[tuple[object, ...]] = []
    entered, leave = threading.Event(), threading.Event()

    def look(frame: types.FrameType, event: str, _: object) -> Any:
        if frame.f_code is not EagerTask._end.__code__ or frame.f_locals["self"] is not task:
            return None
        if event == "line":
            seen.append((task.done(), task.running(), task.cancelled(), task.done() and outcome_now(task)))
        return look

    async def hold() -> None:
        entered.set()
        leave.wait()
        sys.settrace(look)

    async def let_go() -> None:
        sys.settrace(None)

    with BackgroundLoop() as loop:
        loop.create_task(hold())
        entered.wait()
        task = loop.create_task(end_somehow(kind))
        if kind == "never begins":
            task.cancel()
        letting_go = loop.create_task(let_go())
        leave.set()
        letting_go.result()
    last = outcome_now(task)
    assert {entry for entry in seen if entry[0]} == {(True, False, last == "cancelled", last)}
    before = {entry for entry in seen if not entry[0]}
    assert before
    assert before <= {(False, False, False, False), (False, kind != "never begins", False, False)}
