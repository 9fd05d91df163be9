"""All that differs between versions of CPython, or leans on one of its private names.

(But for how futures are awaited and looked at, in `_future`, `_look` and `EagerTask.send`; how frames are
read, in `_where`, `_decorator` and `LoopThread._stack_text`; how a thread is joined, in `LoopThread.join`;
and a fault of `reprlib`'s, in `_task`.)

Each entry says why it is there; `tests/test_cpython.py` fails when its ground shifts.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import importlib
import inspect
import os
import signal
import sys
import threading
import time
import types
from asyncio import tasks as _tasks
from concurrent.futures import _base as _futures
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

with contextlib.suppress(RuntimeError):  # too late for that, in a thread that outlives the main one
    importlib.import_module("concurrent.futures.thread")  # its exit hook has to come before ours

# The states that eager futures have (RUNNING from the call on), as `concurrent.futures` names them in the
# attribute `_state`, which `wait` and `as_completed` compare.
RUNNING: str = _futures.RUNNING
CANCELLED: str = _futures.CANCELLED_AND_NOTIFIED
FINISHED: str = _futures.FINISHED

# Whether the GIL is on for good. (Not `sys._is_gil_enabled()`: a free-threaded build has it on while a thread
# imports an extension module.) Without it, frames of a coroutine that runs in another thread can't be read
# safely (python/cpython#142599).
GIL_ENABLED: bool = getattr(sys.flags, "gil", 1) == 1

# Seconds after which a wait for a lock lets signal handlers run, where it can't be interrupted
# (python/cpython#125541).
UNINTERRUPTIBLE_WAIT: float | None = 0.1 if sys.platform == "win32" and sys.version_info < (3, 14) else None

# Whether a loop that is made in the main thread has signals wake it up, in place of the loop there
# (asyncio.proactor_events.BaseProactorEventLoop).
NEW_LOOPS_TAKE_SIGNALS: bool = sys.platform == "win32"

# `time.monotonic`, some milliseconds late, in less time: Linux's CLOCK_MONOTONIC_COARSE, which `time`
# has no name for.
coarse_monotonic: Callable[[], float] = (
    functools.partial(time.clock_gettime, 6) if sys.platform == "linux" else time.monotonic
)

# Lets others have the GIL, and the CPU, for a moment. Windows has no `sched_yield`.
give_way: Callable[[], None] = getattr(os, "sched_yield", functools.partial(time.sleep, 0))

# The loop that runs in this thread, or None: asyncio's own way to ask without an exception.
running_loop: Callable[[], asyncio.AbstractEventLoop | None] = asyncio._get_running_loop

# asyncio makes its policy on first use, under a lock: a signal handler that comes in then must not need
# it too. From 3.14 on the public name warns.
if sys.version_info >= (3, 14):
    asyncio.events._get_event_loop_policy()  # type: ignore[attr-defined]
else:
    asyncio.get_event_loop_policy()  # pyright: ignore[reportDeprecated]

# 3.12 and later start a single task eagerly, if it is made so; 3.11 and users' task factories need
# `start_by_hand`. A task is made in two steps, as what its first step raises must not take it along; and the
# context must not be entered, or `current_task()` is corrupted (3.12 to 3.14). Names save look-ups.
HAS_EAGER_START: bool = sys.version_info >= (3, 12)
Task: Any = asyncio.Task
new_task: Callable[[type[asyncio.Task[Any]]], asyncio.Task[Any]] = Task.__new__
init_task: Callable[..., None] = Task.__init__


class Owner(Protocol):
    """Who has an asyncio task made, and may want to cancel it in its first step already."""

    _asyncio_task: asyncio.Task[Any] | None


def start_by_hand(
    owner: Owner,
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any],
    context: contextvars.Context,
    name: str,
) -> asyncio.Task[Any]:
    """Make an asyncio task of a coroutine, give it to its owner, and run it up to its first suspension.

    For where CPython doesn't: on 3.11, and under a task factory of the user's. Only on the thread in which
    the loop runs, inside a task or not.
    """
    try:
        factory: Callable[..., Any] | None = loop.get_task_factory()
        make: Callable[..., Any]
        if factory is not None:
            make = functools.partial(_make_named, factory, loop, name)
        elif isinstance(loop, asyncio.BaseEventLoop):
            return _step_on_3_11(owner, loop, asyncio.Task(coro, loop=loop, name=name, context=context))
        else:
            make = functools.partial(asyncio.Task, loop=loop, name=name, context=context)
        return _step_by_hand(owner, loop, coro, context, make)
    finally:
        # The frames of a first step that raises lead back here: no cycle (python/cpython#128552).
        del owner, context


def _make_named(
    factory: Callable[..., asyncio.Task[Any]],
    loop: asyncio.AbstractEventLoop,
    name: str,
    coro: Coroutine[Any, Any, Any],
) -> asyncio.Task[Any]:
    # Without more arguments: factories differ in those that they accept (python/cpython#133745).
    task = factory(loop, coro)
    with contextlib.suppress(AttributeError):  # it needn't be asyncio's
        task.set_name(name)
    return task


def _step_by_hand(
    owner: Owner,
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any],
    context: contextvars.Context,
    make: Callable[..., asyncio.Task[Any]],
) -> asyncio.Task[Any]:
    """Make a task, run its first step at once, and take it out of the loop's schedule.

    A new task has its first step scheduled by `loop.call_soon`.
    """
    task: asyncio.Task[Any] | None = None
    scheduled: list[tuple[asyncio.Handle, Callable[[], object], contextvars.Context]] = []
    call_soon = loop.call_soon

    def recording_call_soon(
        callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = call_soon(callback, *args, context=context)
        if context is not None and not args and not _has_begun(coro):
            scheduled.append((handle, callback, context))
        return handle

    before = vars(loop).get("call_soon")  # a user's, or that of a call around this one
    loop.call_soon = recording_call_soon  # type: ignore[method-assign, assignment]
    try:
        try:
            task = owner._asyncio_task = context.run(make, coro)
        finally:
            if before is None:
                del loop.call_soon
            else:
                loop.call_soon = before  # type: ignore[method-assign]
        assert task is not None
        while scheduled:  # no loop variables, which would refer to the task when its step raises
            if _is_step_of(task, scheduled[0][1]) and not scheduled[0][0].cancelled():
                _step(loop, task, *scheduled[0])
            del scheduled[0]
        return task
    finally:
        scheduled.clear()
        del owner, task, context, make  # no cycle, as in start_by_hand


def _step_on_3_11(owner: Owner, loop: asyncio.BaseEventLoop, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    """Run a new task's first step; what `_step_by_hand` does, where the schedule is in reach.

    3.11 is frozen. Other threads may schedule at the same time, so that it needn't be the last one.
    """
    owner._asyncio_task = task
    try:
        ready: Any = vars(loop)["_ready"]
        handle = ready[-1]
        if not _is_step_of(task, handle._callback):
            handle = next(other for other in ready.copy() if _is_step_of(task, other._callback))
        _step(loop, task, handle, handle._callback, handle._context)
        return task
    finally:
        del owner, task  # no cycle, as in start_by_hand


def _is_step_of(task: asyncio.Task[Any], callback: object) -> bool:
    return getattr(callback, "__self__", None) is task


def _has_begun(coro: Coroutine[Any, Any, Any]) -> bool:
    return isinstance(coro, types.CoroutineType) and inspect.getcoroutinestate(coro) != inspect.CORO_CREATED


def _step(
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[Any],
    handle: asyncio.Handle,
    step: Callable[[], object],
    context: contextvars.Context,
) -> None:
    """Run a task's step, which is scheduled, inside whatever task is running now."""
    outer = asyncio.current_task(loop)
    if outer is not None:
        _tasks._leave_task(loop, outer)
    try:
        context.run(step)
        handle.cancel()  # not before: a step that could not be made here is made in its turn
    except (SystemExit, KeyboardInterrupt):
        if task.done():  # it is the body's
            handle.cancel()
        raise
    finally:
        if outer is not None:
            _tasks._enter_task(loop, outer)
        del task, handle, step, context  # no cycle, as in start_by_hand


async def shut_default_executor(loop: asyncio.AbstractEventLoop) -> None:
    """`loop.shutdown_default_executor()`, also where it can't start the thread that it needs."""
    try:
        await loop.shutdown_default_executor()
    except RuntimeError:  # when the process ends, on 3.12.0 to 3.12.2 (python/cpython#113964)
        executor = getattr(loop, "_default_executor", None)  # uvloop's is out of reach
        if executor is not None:
            executor.shutdown()


_last_hook: object = None


def call_before_thread_shutdown(callback: Callable[[], None]) -> bool:
    """Have a callback run when the main thread has ended, while other threads can still be started.

    `atexit` is too late: by then the default executors are shut (python/cpython#99704). The latest comes
    first; if nothing was registered since this one, it isn't registered again. For one callback only.

    Returns:
        False if it is too late for that already (python/cpython#86813).
    """
    global _last_hook  # noqa: PLW0603
    hooks: list[object] = threading._threading_atexits  # type: ignore[attr-defined]
    if not hooks or hooks[-1] is not _last_hook:
        try:
            threading._register_atexit(callback)  # type: ignore[attr-defined]
        except RuntimeError:
            return False
        _last_hook = hooks[-1]  # pyright: ignore[reportUnknownVariableType]
    return True


def new_loop(factory: Callable[[], asyncio.AbstractEventLoop] | None) -> asyncio.AbstractEventLoop:
    """Make a loop that is to run in another thread, and leave no trace of that in this one."""
    # In an empty context, since the handles of a loop's own sockets keep the one they are made in.
    context = contextvars.Context()
    make = factory or asyncio.new_event_loop
    if not NEW_LOOPS_TAKE_SIGNALS or threading.current_thread() is not threading.main_thread():
        return context.run(make)
    callers = signal.set_wakeup_fd(-1)
    try:
        return context.run(make)
    finally:
        signal.set_wakeup_fd(callers)


def new_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """A daemon thread that takes over nothing of its maker's context variables.

    From 3.14 a thread may run in its maker's context, and keep it.
    """
    if sys.version_info >= (3, 14):
        return threading.Thread(target=target, name=name, daemon=True, context=contextvars.Context())
    return threading.Thread(target=target, name=name, daemon=True)


_count_up: Callable[[object], None] | None = None  # CPython's `Py_IncRef`


def prepare_keeping() -> None:
    """Get ready for `keep_for_ever` in the child of a fork that is about to come.

    It takes an import, whose lock would stay locked there if another thread held it at the fork.
    """
    global _count_up  # noqa: PLW0603
    if _count_up is not None:
        return
    with contextlib.suppress(ImportError):  # not every Python has it
        import ctypes  # noqa: PLC0415  only a process that forks beside its loops needs it

        _count_up = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", ctypes.pythonapi))


def keep_for_ever(thing: object) -> None:
    """Keep an object, and all that it refers to, from being collected, even when the process ends."""
    if _count_up is not None:
        _count_up(thing)
