"""The ground of `_cpython`: behaviour of CPython, some of it private, that the package stands on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import dis
import re
import sys
import sysconfig
import threading
import time
from asyncio import tasks as asyncio_tasks
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, LoopClosedError, _cpython, eager, set_shared_loop, shared_loop
from eager_async._future import EagerFuture
from threads import PATIENCE, frequent_switches

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from conftest import RunPython

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class UsersTask(asyncio.Task[Any]):
    """A task class of the user's own."""


async def fails(exc: BaseException) -> None:
    """Raise before the first suspension."""
    raise exc


def run(loop_factory: LoopFactory, main: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` on a loop of some kind."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)


# What one thread does without another coming in between


@pytest.mark.skipif(not _cpython.GIL_ENABLED, reason="done in another way without the GIL")
def test_nothing_comes_between_the_look_for_callbacks_and_their_store() -> None:
    """The interpreter changes threads, and runs signal handlers, at calls, jumps back and starts alone."""
    names = [
        instruction.opname if instruction.argval != "_callbacks" else f"{instruction.opname} _callbacks"
        for instruction in dis.get_instructions(EagerFuture._call_when_done)
    ]
    store = names.index("STORE_ATTR _callbacks")
    calls = [index for index, name in enumerate(names[:store]) if name.startswith("CALL")]
    between = names[calls[-1] + 1 : store]
    assert "LOAD_ATTR _callbacks" in between
    harmless = ("LOAD_", "STORE_FAST", "POP_JUMP_", "JUMP_FORWARD", "COPY", "SWAP", "NOT_TAKEN", "NOP")
    assert [name for name in between if not name.startswith(harmless) or "BACKWARD" in name] == []


def test_threads_that_are_the_first_to_wait_are_all_woken_up() -> None:
    """Whichever of them makes the dict of callbacks, no entry is lost."""
    threads, tasks = 3, 500
    start = threading.Barrier(threads + 1)
    called: list[object] = []

    async def enlist_all() -> None:
        release = asyncio.Event()
        waiting = [shared_loop().create_task(release.wait()) for _ in range(tasks)]

        def enlist() -> None:
            start.wait(PATIENCE)
            for task in waiting:
                task.add_done_callback(called.append)

        helpers = [threading.Thread(target=enlist) for _ in range(threads)]
        for helper in helpers:
            helper.start()
        await asyncio.to_thread(start.wait, PATIENCE)
        for helper in helpers:
            await asyncio.to_thread(helper.join, PATIENCE)
        release.set()
        await asyncio.gather(*waiting)

    with frequent_switches():
        shared_loop().create_task(enlist_all()).result(PATIENCE)
    assert len(called) == threads * tasks


def test_without_the_gil_the_first_who_wait_get_the_same_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dict of callbacks is then made in the task's own `__dict__`, and found there by the next."""
    monkeypatch.setattr("eager_async._future.GIL_ENABLED", False)
    called: list[object] = []

    async def enlist() -> object:
        release = asyncio.Event()
        task = shared_loop().create_task(release.wait())
        task.add_done_callback(called.append)
        made, task._callbacks = task._callbacks, None  # as another thread, which comes now, sees it
        task.add_done_callback(called.append)
        assert task._callbacks is made
        release.set()
        await task
        return task

    task = shared_loop().create_task(enlist()).result(PATIENCE)
    assert called == [task, task]


def test_without_the_gil_a_child_forgets_the_parents_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They aren't found again in the task's `__dict__`."""
    monkeypatch.setattr("eager_async._future.GIL_ENABLED", False)
    parents: list[object] = []
    childs: list[object] = []

    async def leave_behind() -> None:
        release = asyncio.Event()
        task = shared_loop().create_task(release.wait())
        task.add_done_callback(parents.append)
        loop_thread = task._loop_thread
        assert loop_thread is not None
        kept: list[object] = []
        task._leave_behind(kept)
        del loop_thread.tasks[task]  # here it isn't a child's
        task.add_done_callback(childs.append)
        assert task.remove_done_callback(parents.append) == 0
        release.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert isinstance(task.exception(), LoopClosedError)
        del kept

    shared_loop().create_task(leave_behind()).result(PATIENCE)
    assert (len(parents), len(childs)) == (0, 1)


def test_the_coarse_clock_is_the_monotonic_one_a_little_late() -> None:
    """Ages are differences of the two."""
    before = time.monotonic()
    assert before - 0.05 <= _cpython.coarse_monotonic() <= time.monotonic()


# The states of futures


def test_futures_have_the_states_of_concurrent_futures() -> None:
    """A `concurrent.futures.Future` passes through `_state`s of these names."""
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    assert future._state == _cpython.RUNNING  # type: ignore[attr-defined]
    future.set_result(None)
    assert future._state == _cpython.FINISHED  # type: ignore[attr-defined]
    cancelled: concurrent.futures.Future[None] = concurrent.futures.Future()
    cancelled.cancel()
    cancelled.set_running_or_notify_cancel()
    assert cancelled._state == _cpython.CANCELLED  # type: ignore[attr-defined]


def test_wait_and_as_completed_go_by_these_states() -> None:
    """`concurrent.futures.wait` and `as_completed` tell done eager tasks from others by `_state`."""
    done, cancelled = eager(asyncio.sleep)(0), eager(asyncio.sleep)(PATIENCE)
    done.result(PATIENCE)
    running = eager(asyncio.sleep)(PATIENCE)
    cancelled.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        cancelled.result(PATIENCE)
    outcome = concurrent.futures.wait([done, cancelled, running], timeout=0)
    assert outcome == ({done, cancelled}, {running})
    assert set(concurrent.futures.as_completed([done, cancelled], timeout=0)) == {done, cancelled}
    running.cancel()
    assert not concurrent.futures.wait([running], PATIENCE).not_done


# Facts about this Python


@pytest.mark.parametrize("gil", [None, "0", "1"])
def test_the_gil_is_known(run_python: RunPython, gil: str | None) -> None:
    """`GIL_ENABLED` is false if it may ever be off, also where it is on for a moment."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if gil == "0" and not free_threaded:
        pytest.skip("it can't be off")
    program = """
        import sys
        sys._is_gil_enabled = lambda: True  # as while a thread imports an extension module
        from eager_async._cpython import GIL_ENABLED
        print(GIL_ENABLED)
    """
    process = run_python(program, env={"PYTHON_GIL": gil})
    assert (process.stdout, process.stderr) == (f"{not free_threaded or gil == '1'}\n", "")


def test_waits_are_cut_up_where_they_cannot_be_interrupted() -> None:
    """That is on Windows before 3.14; elsewhere Ctrl-C interrupts a wait for a lock."""
    uninterruptible = sys.platform == "win32" and sys.version_info < (3, 14)
    assert (_cpython.UNINTERRUPTIBLE_WAIT is not None) == uninterruptible


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is sent by the process to itself")
def test_a_wait_for_a_lock_can_be_interrupted(run_python: RunPython) -> None:
    """With no cutting up, a signal that comes while the main thread waits for a lock ends the wait."""
    done = run_python(
        """
        import os
        import signal
        import threading
        from eager_async._cpython import UNINTERRUPTIBLE_WAIT

        assert UNINTERRUPTIBLE_WAIT is None
        signal.signal(signal.SIGINT, signal.default_int_handler)
        lock = threading.Lock()
        lock.acquire()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            lock.acquire(True, 20)
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)


def test_the_running_loop_is_that_of_this_thread(loop_factory: LoopFactory) -> None:
    """`running_loop` is the running loop, or None where none runs; it raises nothing."""
    seen: list[object] = []

    async def main() -> asyncio.AbstractEventLoop:
        thread = threading.Thread(target=lambda: seen.append(_cpython.running_loop()))
        thread.start()
        thread.join()
        assert _cpython.running_loop() is asyncio.get_running_loop()
        return asyncio.get_running_loop()

    run(loop_factory, main())
    assert seen == [None]
    assert _cpython.running_loop() is None


def test_making_a_loop_takes_no_lock_of_asyncios(run_python: RunPython) -> None:
    """Importing the package makes asyncio's policy, without which making a loop takes a lock."""
    done = run_python(
        """
        import asyncio
        import asyncio.events
        import threading

        print(asyncio.events._event_loop_policy)
        import eager_async
        print(type(asyncio.events._event_loop_policy).__name__)

        def make():
            asyncio.new_event_loop().close()
            print("made")

        with asyncio.events._lock:
            thread = threading.Thread(target=make, daemon=True)
            thread.start()
            thread.join(20)
        """
    )
    assert re.fullmatch(r"None\n_?\w+EventLoopPolicy\nmade\n", done.stdout)
    assert (done.stderr, done.returncode) == ("", 0)


# Starting a task at once


@pytest.mark.parametrize("task_class", [asyncio.Task, UsersTask])
def test_a_new_task_schedules_its_first_step(task_class: type, loop_factory: LoopFactory) -> None:
    """A task has `loop.call_soon` call its first step: without arguments, in its context, bound to the task.

    `_step_by_hand` recognises the step by all of that, and finds `call_soon` on the loop object.
    """

    async def main() -> None:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        original = loop.call_soon

        def call_soon(callback: Any, *args: Any, **kwargs: Any) -> asyncio.Handle:
            recorded.append((callback, args, kwargs))
            return original(callback, *args, **kwargs)

        loop.call_soon = call_soon  # type: ignore[method-assign]
        try:
            task = task_class(asyncio.sleep(0, 7), loop=loop, context=context)
        finally:
            del loop.call_soon
        ((step, args, options),) = recorded
        assert step.__self__ is task
        assert (args, options) == ((), {"context": context})
        assert await task == 7

    run(loop_factory, main())


def test_a_step_can_be_run_inside_another_task(loop_factory: LoopFactory) -> None:
    """Between `_leave_task` and `_enter_task` a task's step can be run inside another task."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        assert me is not None
        asyncio_tasks._leave_task(loop, me)
        assert asyncio.current_task() is None
        asyncio_tasks._enter_task(loop, me)
        assert asyncio.current_task() is me
        with pytest.raises(RuntimeError):
            asyncio_tasks._enter_task(loop, me)  # they keep account: there is no entering twice

    run(loop_factory, main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly since 3.12")
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_task_that_exits_while_it_starts_is_there_all_the_same(kind: type[BaseException]) -> None:
    """`Task.__init__` with `eager_start` raises the body's SystemExit; the task is there, done with it."""

    async def main() -> None:
        exc = kind("at once")
        task: asyncio.Task[None] = asyncio.Task.__new__(asyncio.Task)
        with pytest.raises(kind, match="at once"):
            task.__init__(  # type: ignore[misc]
                fails(exc), loop=asyncio.get_running_loop(), context=contextvars.Context(), eager_start=True
            )
        assert task.done()
        assert task.exception() is exc

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly since 3.12")
def test_a_task_that_starts_eagerly_lends_its_place(loop_factory: LoopFactory) -> None:
    """It runs to its first suspension, in the context that it was given; then the outer task is current."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def main() -> None:
        seen: list[object] = []

        async def body() -> None:
            seen.append((asyncio.current_task(), variable.get()))
            await asyncio.sleep(0)
            seen.append("goes on")

        context = contextvars.copy_context()
        context.run(variable.set, "set")
        me = asyncio.current_task()
        task = asyncio.Task(
            body(),
            loop=asyncio.get_running_loop(),
            context=context,
            eager_start=True,  # type: ignore[call-arg]
        )
        assert seen == [(task, "set")]
        assert asyncio.current_task() is me
        await task
        assert seen[1:] == ["goes on"]

    run(loop_factory, main())


def test_eager_start_is_used_where_it_is_there() -> None:
    """Tasks start by hand on 3.11 alone, unless a task factory asks for it."""
    by_hand: list[object] = []
    ways = (_cpython._step_by_hand.__code__, _cpython._step_on_3_11.__code__)

    def profile(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code in ways:
            by_hand.append(frame.f_code)

    @eager
    async def profiled() -> None:
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            await eager(asyncio.sleep)(0)
        finally:
            sys.setprofile(before)

    profiled().result(PATIENCE)
    assert bool(by_hand) == (sys.version_info < (3, 12))


class BusyLoop(asyncio.SelectorEventLoop):
    """A loop on which another thread schedules something right after each call."""

    def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        handle = super().call_soon(*args, **kwargs)
        super().call_soon(int)
        return handle


def test_a_first_step_is_found_when_others_schedule_too() -> None:
    """On 3.11 it needn't be the last in the schedule."""
    begun: list[object] = []

    @eager
    async def inner() -> None:
        begun.append(asyncio.current_task())
        await asyncio.sleep(0)

    @eager
    async def outer() -> bool:
        task = inner()
        begun_at_once = bool(begun)
        await task
        return begun_at_once

    with BackgroundLoop(loop_factory=BusyLoop) as loop:
        before = set_shared_loop(loop)
        try:
            assert outer().result(PATIENCE)
        finally:
            set_shared_loop(before)


# The end of a loop and of the process


def test_the_executor_is_shut_where_its_thread_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `shutdown_default_executor` can't start a thread, the executor is shut directly."""

    async def main() -> concurrent.futures.Executor:
        loop = asyncio.get_running_loop()
        assert await asyncio.to_thread(int, "3") == 3
        executor: concurrent.futures.Executor = loop._default_executor  # type: ignore[attr-defined]

        async def refuse() -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        with monkeypatch.context() as patch:
            patch.setattr(loop, "shutdown_default_executor", refuse)
            await _cpython.shut_default_executor(loop)
        return executor

    executor = asyncio.run(main())
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_an_executor_out_of_reach_is_left_where_its_thread_cannot_start() -> None:
    """A loop that isn't asyncio's, as uvloop's: shutting it goes on."""

    class Refusing:
        """All of a loop that is asked for."""

        async def shutdown_default_executor(self) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

    loop: Any = Refusing()
    assert asyncio.run(_cpython.shut_default_executor(loop)) is None


def test_worker_threads_can_be_used_while_the_process_ends(
    loop_factory: LoopFactory, run_python: RunPython
) -> None:
    """On each kind of loop a task that outlives the main thread may still call `asyncio.to_thread`."""
    module = "uvloop" if loop_factory is not asyncio.new_event_loop else "asyncio"
    done = run_python(
        f"""
        import asyncio
        import threading
        import {module}
        from eager_async import BackgroundLoop, eager

        worker_is_there, ending = threading.Event(), threading.Event()

        @eager(loop=BackgroundLoop(loop_factory={module}.new_event_loop))
        async def work():
            await asyncio.to_thread(worker_is_there.set)
            while not ending.is_set():
                await asyncio.sleep(0.01)
            print(await asyncio.to_thread(str, "worker's"))

        work()
        worker_is_there.wait()
        threading._register_atexit(ending.set)
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("worker's\n", "", 0)


@pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info < (3, 12, 3),
    reason="no thread can be started there (python/cpython#113964)",
)
def test_the_exit_hook_comes_before_threads_are_shut(run_python: RunPython) -> None:
    """A hook runs when the main thread has ended; threads and executors can still be started in it."""
    done = run_python(
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        from eager_async._cpython import call_before_thread_shutdown

        def hook():
            thread = threading.Thread(target=print, args=("a thread",))
            thread.start()
            thread.join()
            with ThreadPoolExecutor(1) as pool:
                print(pool.submit(str, "an executor").result())

        threading._register_atexit(print, "hooks have run")
        print(call_before_thread_shutdown(hook))
        print("end of main")
        """
    )
    expected = "True\nend of main\na thread\nan executor\nhooks have run\n"
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


def test_an_exit_hook_can_come_too_late(run_python: RunPython) -> None:
    """Once the hooks have run, `call_before_thread_shutdown` says that it is too late."""
    done = run_python(
        """
        import atexit
        import threading
        from eager_async._cpython import call_before_thread_shutdown

        threading._register_atexit(print, "hooks run")
        atexit.register(lambda: print(call_before_thread_shutdown(print)))
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("hooks run\nFalse\n", "", 0)


def test_exit_hooks_run_latest_first(run_python: RunPython) -> None:
    """A hook that was registered later runs earlier; to be first again, a callback is registered again."""
    done = run_python(
        """
        import threading
        from eager_async._cpython import call_before_thread_shutdown

        def ours():
            print("ours")

        threading._register_atexit(print, "first")
        call_before_thread_shutdown(ours)
        threading._register_atexit(print, "second")
        call_before_thread_shutdown(ours)
        call_before_thread_shutdown(ours)
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ours\nsecond\nours\nfirst\n", "", 0)


def test_the_executors_hook_is_registered_before_ours(run_python: RunPython) -> None:
    """The package imports `concurrent.futures.thread` first, whose exit hook so comes after the package's."""
    done = run_python(
        """
        import sys
        import threading

        registered = []
        original = threading._register_atexit

        def register(function, *args, **kwargs):
            registered.append(function.__module__)
            return original(function, *args, **kwargs)

        threading._register_atexit = register
        import eager_async
        print(registered[0], [name.partition(".")[0] for name in registered[1:]])
        """
    )
    assert (done.stdout, done.stderr) == ("concurrent.futures.thread ['eager_async']\n", "")


CONTEXT_OPTIONS: list[list[str]] = [[]]
if sys.version_info >= (3, 14):
    CONTEXT_OPTIONS += [["-X", "thread_inherit_context=1"], ["-X", "thread_inherit_context=0"]]


@pytest.mark.parametrize("options", CONTEXT_OPTIONS, ids=" ".join)
def test_a_new_thread_takes_over_no_context(run_python: RunPython, options: list[str]) -> None:
    """A thread of the package's starts with empty context variables, and doesn't hold the process."""
    done = run_python(
        """
        import contextvars
        from eager_async._cpython import new_thread

        variable = contextvars.ContextVar("variable")
        variable.set("the maker's")
        thread = new_thread(lambda: print(variable.get("nothing")), "its name")
        thread.start()
        thread.join()
        print(thread.name, thread.daemon)
        """,
        options=options,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("nothing\nits name True\n", "", 0)


def test_what_is_kept_for_ever_is_not_even_collected_at_exit(run_python: RunPython) -> None:
    """Objects kept for ever, and those that they refer to, run no finalizer when the process ends."""
    done = run_python(
        """
        import gc
        from eager_async._cpython import keep_for_ever, prepare_keeping

        class Thing:
            def __init__(self, name):
                self.name = name

            def __del__(self):
                print("collected", self.name)

        prepare_keeping()
        keep_for_ever([Thing("kept")])
        let_go = [Thing("let go")]
        del let_go
        gc.collect()
        print("end")
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("collected let go\nend\n", "", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a loop of another system")
def test_loops_that_take_signals_when_they_are_made_give_them_back(run_python: RunPython) -> None:
    """On Windows, a loop made in the main thread takes the wake-up descriptor of the loop that runs there."""
    done = run_python(
        """
        import asyncio, signal, threading
        from eager_async import BackgroundLoop, _cpython

        class AsOnWindows(asyncio.SelectorEventLoop):
            def __init__(self):
                super().__init__()
                if threading.current_thread() is threading.main_thread():
                    signal.set_wakeup_fd(self._csock.fileno())

        async def main():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, print)
            with BackgroundLoop(loop_factory=AsOnWindows) as background:
                await background.create_task(asyncio.sleep(0))
                print(signal.set_wakeup_fd(-1) == loop._csock.fileno())

        for taken in True, False:
            _cpython.NEW_LOOPS_TAKE_SIGNALS = taken
            asyncio.run(main())
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\nFalse\n", "", 0)


def test_the_shared_loop_thread_is_one_of_these() -> None:
    """The loop's thread is made by `new_thread`: a daemon thread, for the package's hook ends it."""
    shared_loop().create_task(asyncio.sleep(0)).result(PATIENCE)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "eager-async-test"]
    assert thread.daemon
