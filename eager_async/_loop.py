"""The public face of a background loop: its settings, its start and its shutdown."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from eager_async._cpython import new_loop
from eager_async._errors import DeadlockError, LoopClosedError
from eager_async._exit import hold_process, is_over
from eager_async._fork import forget_parent, in_forked_child
from eager_async._loop_thread import LoopThread, inherited_daemon, live
from eager_async._where import calling_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Self

    from eager_async._task import EagerTask

T = TypeVar("T")

_instances: weakref.WeakSet[BackgroundLoop] = weakref.WeakSet()

_PROCESS_ENDS: Final = (
    "the process is ending: no background loop is started any more; "
    "what should run then belongs in the `finally` of a daemon task"
)


class BackgroundLoop:
    """One event loop in a thread of its own, started by the first use.

    Any thread may call any method. A loop that nobody refers to any more ends when its tasks have. If the
    loop dies, the next use starts another.

    Args:
        name: The name of the thread.
        loop_factory: Makes the asyncio loop; `uvloop.new_event_loop`, for one. None: asyncio's own.
        debug: asyncio's debug mode, which also logs the names of calls that take long. None: as it is made.
        blocked_after: After so many seconds of blocking, in `result()` for one, a thread looks whether the
            loop still turns, and logs it if not, with the stack of the loop's thread (not without the GIL).
        exit_timeout: How many seconds the process waits for this loop's tasks when it ends, before it
            cancels them, and again before it abandons them. None: as long as it takes.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a number of seconds is negative or not a number.
    """

    # The lock guards the start and the shutdown. It is reentrant for the sake of signal handlers and
    # finalizers, and a start that one of them has interrupted takes over what that one has started.
    def __init__(
        self,
        *,
        name: str = "eager-async",
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        debug: bool | None = None,
        blocked_after: float = 5.0,
        exit_timeout: float | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        if loop_factory is not None and not callable(loop_factory):
            raise TypeError(
                f"loop_factory must be callable, not {loop_factory!r}; "
                f"write `BackgroundLoop(loop_factory=uvloop.new_event_loop)`, for one"
            )
        _check_seconds("blocked_after", blocked_after)
        if exit_timeout is not None:
            _check_seconds("exit_timeout", exit_timeout)
            if exit_timeout > threading.TIMEOUT_MAX:
                exit_timeout = None  # infinity, for one
        self._name = name
        self._loop_factory = loop_factory
        self._debug = debug
        self._blocked_after = blocked_after
        self._exit_timeout = exit_timeout
        self._lock = threading.RLock()
        self._loop_thread: LoopThread | None = None
        self._starting: set[LoopThread] = set()  # by whoever holds the lock
        self._shut_down = False
        _instances.add(self)

    def _successor(self) -> BackgroundLoop:
        """A new loop with the same settings."""
        return BackgroundLoop(
            name=self._name,
            loop_factory=self._loop_factory,
            debug=self._debug,
            blocked_after=self._blocked_after,
            exit_timeout=self._exit_timeout,
        )

    @property
    def asyncio_loop(self) -> asyncio.AbstractEventLoop:
        """The asyncio loop itself, started if need be: for its exception handler, or to make clients on.

        What a thread schedules on it with `call_soon_threadsafe` may come before or after that thread's
        calls of eager functions: those keep their order among themselves alone.

        Raises:
            LoopClosedError: After `shutdown()`, but to the loop's own tasks while they end; or if the
                process is ending.
        """
        return self._admitting_thread().loop

    def create_task(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        daemon: bool | None = None,
        context: contextvars.Context | None = None,
    ) -> EagerTask[T]:
        """Start a coroutine that exists already. From any thread; returns at once.

        Args:
            coro: The coroutine. It is closed if the loop refuses it.
            name: For people. None: the coroutine's.
            daemon: Whether the process may end without it: then it is cancelled, and cleans up. None:
                as the eager task that makes this call; elsewhere False.
            context: The context variables to run it with, which are copied. None: the caller's.

        Raises:
            LoopClosedError: After `shutdown()`, but for calls of the loop's own tasks while they end; or if
                the process is ending.
            TypeError: If `coro` is not a coroutine.
        """
        if not asyncio.iscoroutine(coro):
            raise TypeError(
                f"a coroutine was expected, got {coro!r}; write `loop.create_task(f(...))` "
                f"with an `async def f`, or decorate that with `@eager` and call it"
            )
        if name is None:
            name = task_name(coro)
        if context is None:
            context = contextvars.copy_context()
        else:
            context = context.copy()
            context.run(inherited_daemon.set, inherited_daemon.get())  # the caller's, whosever the context is
        try:
            loop_thread = self._admitting_thread()
        except BaseException:
            coro.close()
            raise
        return loop_thread.start_task(coro, name, daemon, context, calling_frame())

    def tasks(self) -> set[EagerTask[Any]]:
        """Return the tasks that are unfinished now, those of streams too. From any thread."""
        loop_thread = self._loop_thread
        if loop_thread is None:
            return set()
        return {task for task in loop_thread.tasks.copy() if not task.done()}

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Refuse new work, wait for what is there, and close the loop as `asyncio.run` does.

        Tasks may still start others. Daemon tasks, and streams at rest, are cancelled when the rest have
        ended. Calling it again, with `cancel_futures=True` for example, is fine.

        Args:
            wait: Whether to return only when the thread has ended. False: at once.
            cancel_futures: Whether to cancel all tasks first. Their cleanup runs in any case.

        Raises:
            DeadlockError: In the loop's own thread, if `wait` is true.
        """
        forget_parent()
        if wait and self._in_loop_thread():
            raise DeadlockError(
                f"the background loop {self._name!r} can't end while its own thread waits for that; "
                f"there, write `loop.shutdown(wait=False)`"
            )
        with self._lock:
            self._shut_down = True
            loop_thread = self._loop_thread
        if loop_thread is not None:
            loop_thread.close(cancel=cancel_futures)
            if wait:
                loop_thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        loop_thread = self._loop_thread
        if loop_thread is None:
            state = "shut down" if self._shut_down else "not started"
        else:
            state = "closed" if loop_thread.closed else "closing" if loop_thread.closing else "open"
        unfinished = len(self.tasks())
        tasks = "task" if unfinished == 1 else "tasks"
        return f"<BackgroundLoop {self._name!r} {state}, {unfinished} unfinished {tasks}>"

    def _admitting_thread(self) -> LoopThread:
        """The thread that takes on what this caller starts; made, if none lives.

        Raises:
            LoopClosedError: After `shutdown()`, but for the loop's own tasks; or if the process is ending.
        """
        loop_thread = self._loop_thread
        if loop_thread is not None and loop_thread.admits:
            return loop_thread
        forget_parent()
        for starting in self._starting.copy():
            if starting.starts_here():  # a finalizer, while whoever holds the lock waits for this thread
                return starting
        with self._lock:
            loop_thread = self._loop_thread
            if loop_thread is not None and (loop_thread.open or self._in_loop_thread()):
                return loop_thread  # its own tasks may start others until it has ended
            if self._shut_down:
                raise LoopClosedError(
                    f"the background loop {self._name!r} was shut down; make another `BackgroundLoop`"
                )
            hold_process()
            if is_over() or (loop_thread is not None and loop_thread.closing):
                raise LoopClosedError(_PROCESS_ENDS)
            made = self._make_thread()
            self._starting.add(made)
            try:
                made.start()
            finally:
                self._starting.discard(made)
            if is_over():  # in the meantime; but the wait for tasks may have missed this thread
                made.close(cancel=True)
                made.join()
                raise LoopClosedError(_PROCESS_ENDS)
            # A signal handler that has come in may have shut this down, or started a thread.
            if self._shut_down or self._loop_thread is not loop_thread:  # type: ignore[redundant-expr]
                made.close(cancel=False)
                return self._admitting_thread()
            self._loop_thread = made  # no call since the look, and so no signal handler either
            # Whoever holds a stream may go on, though nobody holds its loop.
            weakref.finalize(self, made.close, cancel=False, keep_resting=True).atexit = False
            return made

    def _in_loop_thread(self) -> bool:
        loop_thread = self._loop_thread
        return loop_thread is not None and loop_thread.runs_here()

    def _make_thread(self) -> LoopThread:
        loop = new_loop(self._loop_factory)
        if loop.is_running():  # or it would be closed there when this one ends
            raise ValueError(
                f"loop_factory should have made a new loop, and returned {loop!r}; "
                f"write `loop_factory=asyncio.new_event_loop`, for one"
            )
        if self._debug is not None:
            loop.set_debug(self._debug)
        return LoopThread(
            loop, self._name, blocked_after=self._blocked_after, exit_timeout=self._exit_timeout
        )


@in_forked_child
def _forget_parent() -> None:
    """Loops start anew on their next use, whatever the parent's threads were doing."""
    for loop in list(_instances):
        loop._lock = threading.RLock()
        loop._starting = set()
        if loop._loop_thread not in live:  # no more: `_loop_thread`, imported earlier, forgets its own before
            loop._loop_thread = None


def task_name(function_or_coro: Any) -> str:
    """How a function's tasks are called: `fetch()`."""
    while isinstance(function_or_coro, functools.partial):
        function_or_coro = function_or_coro.func
    names = (getattr(function_or_coro, attribute, None) for attribute in ("__qualname__", "__name__"))
    default = type(function_or_coro).__qualname__
    name = next((name for name in names if isinstance(name, str)), default)  # some objects have any attribute
    return f"{name.rpartition('<locals>.')[2]}()"


def _check_seconds(setting: str, seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{setting} must be a number of seconds, not {seconds!r}")
    if seconds < 0 or math.isnan(seconds):
        raise ValueError(f"{setting} must be a number of seconds from 0 on, not {seconds!r}")
