"""One event loop in one thread, from its start to its end."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import traceback
from _thread import allocate_lock, get_ident
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from eager_async._call_queue import CallQueue, adopt
from eager_async._cpython import (
    GIL_ENABLED,
    UNINTERRUPTIBLE_WAIT,
    keep_for_ever,
    new_thread,
    prepare_keeping,
    running_loop,
    shut_default_executor,
)
from eager_async._errors import LoopClosedError
from eager_async._fork import in_forked_child, is_under_way
from eager_async._future import CancelRequest
from eager_async._log import logger
from eager_async._spinner import Spinner
from eager_async._task import EagerTask
from eager_async._wake_up import WakeUp
from eager_async._where import coroutine_part

if TYPE_CHECKING:
    import types
    from _thread import LockType
    from collections.abc import Callable, Coroutine

    from eager_async._call_queue import Runnable
    from eager_async._limit import Limit

T = TypeVar("T")

# Calls made in the loop's own thread begin at once, up to this many inside one another. Deeper ones
# begin on the loop's next turn, to save the stack.
_DEEPEST_CALL: Final = 50

# Whether calls that don't say so are daemons: set in the context of a task that was told.
inherited_daemon: contextvars.ContextVar[bool] = contextvars.ContextVar("eager_async_daemon", default=False)

# The loop threads of this process that have started and not ended.
live: set[LoopThread] = set()


def _can_inherit() -> bool:
    """Whether the caller can be an eager task: callbacks on a user's loop may have one's context alone."""
    loop = running_loop()
    return loop is None or any(loop_thread.loop is loop for loop_thread in live.copy())


class LoopThread:
    """One run of an event loop: its thread, its unfinished tasks, and its end.

    Threads: `tell_watchers` and what begins with an underscore run in the loop's own, but
    for `_check_taken_on`, `_check_turning` and `_stack_text`; `leave_behind`, and its `_set_ended`, in a
    forked child. The rest is for any thread, `join` for any other.

    No task is left hanging. `start_task` puts it among the unfinished and *then* looks whether the loop
    is closed (to its own thread: ended); the thread marks it so and *then* ends those that it finds
    unfinished. It does so whatever ends it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        *,
        blocked_after: float,
        exit_timeout: float | None,
    ) -> None:
        self.loop = loop
        self.exit_timeout = exit_timeout
        # Stages, each reached for good, and who may still start tasks then. At first it is open, to anybody.
        self.closing: bool = False  # the thread itself, and others who had found it open
        self.closed: bool = False  # the thread itself
        self.ended: bool = False  # nobody
        self.admits: bool = True  # it is open, and no fork is under way: whoever calls need look no further
        self._ident: int | None = None  # while the thread runs
        self.tasks: dict[EagerTask[Any], bool] = {}  # the unfinished; daemons (True) don't hold the process
        self.resting: set[asyncio.Task[Any]] = set()  # producers that are far enough ahead: nor do they
        self.interrupted: list[EagerTask[Any]] = []  # calls that a Ctrl-C or a full stack interrupted
        self.watchers: list[Callable[[], object]] = []  # called when a task ends or comes to rest
        self._calls = CallQueue(loop)
        contextvars.Context().run(self._calls.listen)  # the handle keeps the context in which it is made
        self.call_soon: Callable[..., bool] = self._calls.call_soon
        self.run_soon: Callable[[Runnable], bool] = self._calls.run_soon
        self.spinner: Spinner = Spinner()
        self._ends_resting = False  # whether those at rest are cancelled when only such are left
        self._depth = 0  # eager calls on this thread's stack
        # A probe is sent after half of the time, and missed after the other half.
        self._check_every = min(max(blocked_after / 2, 0.001), threading.TIMEOUT_MAX)
        self._probe: _Probe | None = None
        self._thread = new_thread(self._run, name)

    @property
    def open(self) -> bool:
        """Whether anybody may start tasks."""
        return not (self.closing or self.closed)

    def start(self) -> None:
        """Start the thread. Once."""
        live.add(self)
        try:
            self._thread.start()
        except Exception:  # no thread can be had
            live.discard(self)
            self._calls.unlisten()
            self.loop.close()
            raise
        except BaseException:  # a Ctrl-C: it may have started, and then it ends itself
            live.discard(self)
            self.close(cancel=False)
            raise

    def start_task(  # noqa: C901, PLR0912  # in one piece, as a call in between costs every eager call
        self,
        coro: Coroutine[Any, Any, T],
        name: str,
        daemon: bool | None,  # noqa: FBT001
        context: contextvars.Context,
        caller: types.FrameType,
        limit: Limit | None = None,
    ) -> EagerTask[T]:
        """Have a coroutine begin: before this returns if the loop runs in this thread, else soon.

        With a limit, that may be only when others have ended; past `_DEEPEST_CALL`, it is soon. The context
        is for this task alone, with the caller's `inherited_daemon`. A coroutine that isn't taken on is
        closed.

        Raises:
            LoopClosedError: If the loop is closed; to its own thread: if it has ended.
        """
        try:
            inherited = inherited_daemon.get()
            if daemon is None:
                daemon = inherited and _can_inherit()
            if daemon is not inherited:
                context.run(inherited_daemon.set, daemon)
            task = EagerTask(self, coro, context, name, caller)
        except BaseException:
            coro.close()
            raise
        try:
            self.tasks[task] = daemon
            if self.closed:
                self._check_taken_on(task)
            if limit is not None:
                limit.line_up(task)
            if running_loop() is self.loop and (depth := self._depth) < _DEEPEST_CALL:
                self._depth = depth + 1
                try:
                    task._run()
                finally:
                    self._depth = depth
                if task._loop_thread is not None:
                    self.turn_again()
            else:
                self.run_soon(task)
        except LoopClosedError:
            coro.close()
            raise
        except BaseException:  # a Ctrl-C at any point, or a full stack: it may have been queued or not
            self.interrupted.append(task)
            self.call_soon(self._end_interrupted)
            raise
        else:
            return task
        finally:
            del task  # no cycle, as in `EagerTask._run`

    def _check_taken_on(self, task: EagerTask[Any]) -> None:
        """Raise, unless the thread still takes on its own, or has found the task, and ended it."""
        if self.runs_here() and not self.ended:
            return
        if self.tasks.pop(task, None) is not None:
            self.call_soon(self._stop)  # the thread may have seen it there, and wait for its end
            raise LoopClosedError(f"the background loop {self._thread.name!r} has ended")

    def runs_here(self) -> bool:
        """Whether the calling thread is this one."""
        return self._ident == get_ident()

    def starts_here(self) -> bool:
        """The same, also before it runs the loop."""
        return self._thread.ident == get_ident()

    def turn_again(self) -> None:
        """Have the loop turn for what was scheduled in its thread just now, unless a task did that.

        A finalizer may have come in when the loop was about to sleep, and asyncio wouldn't wake it up.
        """
        if asyncio.current_task(self.loop) is None:
            self.call_soon(_do_nothing)

    def tell_watchers(self) -> None:
        """Tell those who watch that a task, or the loop, has ended, or that a task has come to rest."""
        if self.interrupted:  # and perhaps there was no stack left to say so
            self.call_soon(self._end_interrupted)
        for watcher in self.watchers:
            watcher()

    def _end_interrupted(self) -> None:
        """Bring calls to their end that were interrupted before they returned."""
        while self.interrupted:
            task = self.interrupted.pop()
            task._withdraw()
            if task.done():
                self.tasks.pop(task, None)

    def watch(self, watcher: Callable[[], object]) -> None:
        """Have something called, in the loop's thread, whenever `tell_watchers` is."""
        if watcher not in self.watchers:
            self.watchers.append(watcher)

    def holds_process(self) -> bool:
        """Whether a task is left that the process waits for when it ends. From any thread."""
        tasks = self.tasks.copy()
        return any(not daemon and task._asyncio_task not in self.resting for task, daemon in tasks.items())

    def report(self, message: str, exception: BaseException) -> None:
        """Tell the loop's exception handler of an error that nobody else would hear of."""
        try:
            self.loop.call_exception_handler({"message": message, "exception": exception})
        except BaseException:  # a user's handler that exits, or a Ctrl-C in it: the loop and the exit go on
            logger.exception("exception reporting that %s: %r", message, exception)

    # Waiting for the loop

    def wait_for(self, lock: LockType, timeout: float | None) -> bool:
        """Acquire a lock that the loop's thread will release; look now and then whether it is stuck.

        Args:
            lock: To be acquired.
            timeout: The most to wait, in seconds. None: as long as it takes.

        Returns:
            False if the time ran out.
        """
        now = monotonic()
        next_check = now + self._check_every
        deadline = None if timeout is None else now + timeout
        while True:
            until = next_check if deadline is None else min(deadline, next_check)
            pause = max(until - now, 0)
            if UNINTERRUPTIBLE_WAIT is not None:
                pause = min(pause, UNINTERRUPTIBLE_WAIT)
            if lock.acquire(True, pause):  # noqa: FBT003
                return True
            now = monotonic()
            if deadline is not None and now >= deadline:
                return False
            if now >= next_check:
                self._check_turning()
                next_check = now + self._check_every

    def _check_turning(self) -> None:
        """Send the loop a probe; warn, once, if it hasn't answered the one before. In any thread."""
        probe = self._probe
        if probe is None or probe.answered:
            self._probe = probe = _Probe()
            try:
                # Not by the queue: without a descriptor, that may wait for a wake-up whose write to its
                # self-pipe has failed, which asyncio swallows (python/cpython#156054). This makes up for it.
                self.loop.call_soon_threadsafe(probe.answer)
            except RuntimeError:
                return  # closed
        elif monotonic() - probe.sent >= self._check_every and probe.first_to_warn():
            logger.warning(
                "the event loop of thread %r has not turned for %.1f s: something blocks it%s",
                self._thread.name,
                monotonic() - probe.sent,
                self._stack_text(),
            )

    def _stack_text(self) -> str:
        if not GIL_ENABLED:
            return " (without the GIL, its stack can't be read from here)"
        frame = sys._current_frames().get(self._ident or 0)
        return ", at\n" + "".join(traceback.format_stack(frame)).rstrip()

    # The end

    def close(self, *, cancel: bool, keep_resting: bool = False) -> None:
        """Have the thread end when its tasks have, or cancel them first. Returns at once.

        Those at rest are cancelled too when only such are left, unless `keep_resting`.
        """
        if self.ended:
            return  # in a forked child, the parent's would be woken up
        if not keep_resting:
            self._ends_resting = True  # and so it stays, if the loop is dropped after its shutdown
        self.closing = True
        self.admits = False
        if cancel:
            # Those that wait first, or one would begin in the place of another that is cancelled.
            for task in sorted(self.tasks.copy(), key=lambda task: task.running()):
                task.cancel()
        self.watch(self._stop)
        self.call_soon(self._stop)

    def _stop(self) -> None:
        """Have the thread look whether it may end."""
        if not self.ended:
            self.loop.stop()

    def join(self) -> None:
        """Wait for the thread's end."""
        # Not by `Thread.join` at first: up to 3.12, one that a Ctrl-C interrupts takes the thread for ended.
        ended = WakeUp()
        self.watch(ended)
        while self in live:
            ended.wait()
        self._thread.join()

    def _run(self) -> None:
        self._ident = get_ident()
        adopt(self._calls)
        try:
            self._turn_while(lambda: self.open)
            self._end_tasks()
            self.closed = True
            self._end_tasks()  # what has slipped in
            self._complete(self.loop.shutdown_asyncgens())
            self._end_tasks()  # what their cleanup has started
            self._complete(shut_default_executor(self.loop))
        except BaseException:
            logger.exception("the event loop of thread %r is dead", self._thread.name)
        finally:
            self._bury()

    def _turn_while(self, condition: Callable[[], bool]) -> None:
        """Run the loop on, whoever stops it, while a condition holds; look when it is stopped."""
        while condition():
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as exc:
                if coroutine_part(exc.__traceback__) is None:  # else a task has it
                    self.report("a callback raised it, and the loop goes on", exc)

    def _complete(self, coro: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine to its end, whoever stops the loop."""
        # Not by the user's task factory, which may refuse.
        task: asyncio.Task[object] = asyncio.Task(coro, loop=self.loop)
        self._await_ends({task})
        if not task.cancelled():
            task.result()

    def _await_ends(self, asyncio_tasks: set[asyncio.Task[Any]]) -> None:
        # Not in an asyncio task, which a cleanup that cancels all tasks would hit.
        for asyncio_task in asyncio_tasks:
            asyncio_task.add_done_callback(lambda _: self.loop.stop())
        self._turn_while(lambda: not all(asyncio_task.done() for asyncio_task in asyncio_tasks))

    def _end_tasks(self) -> None:
        """Wait for the tasks, then for daemons and users' asyncio tasks, which are cancelled, once."""
        cancelled: set[asyncio.Task[Any]] = set()
        while True:
            self._turn_while(self._cancel_unheld)
            leftovers = asyncio.all_tasks(self.loop) - cancelled
            if not leftovers:
                return
            for leftover in leftovers:
                leftover.cancel()
            cancelled |= leftovers
            self._await_ends(leftovers)

    def _cancel_unheld(self) -> bool:
        """If no task holds the process, cancel all, but not in their cleanup; return whether any is left."""
        tasks = self.tasks.copy()
        held = self.holds_process() if self._ends_resting else not all(tasks.values())
        if not held:
            for task in tasks:
                task._cancel_for_awaiter(CancelRequest())
        return bool(tasks)

    def _bury(self) -> None:
        """Close the loop, and fail what is still unfinished."""
        self._set_ended()
        try:
            self._calls.unlisten()
            self.loop.close()
        finally:
            while self.tasks:
                with suppress(KeyError):  # struck off in the meantime
                    self.tasks.popitem()[0]._lose()
            self.resting.clear()  # a thread that dies leaves some, and they would keep the loop's owner
            live.discard(self)  # before watchers are told, who look there
            self._ident = None  # from now on it may be another thread's
            self.tell_watchers()

    def _set_ended(self) -> None:
        self.admits = False
        self.closed = True
        self.ended = True

    def leave_behind(self, kept: list[object]) -> None:
        """In a forked child: end the tasks, and touch nothing else; but wake up this thread, if it waited.

        Args:
            kept: To this is added what the child must neither run, close nor collect.
        """
        self._set_ended()
        kept.append(self)
        for task in self.tasks.copy():
            task._leave_behind(kept)
        for watcher in self.watchers:
            if isinstance(watcher, WakeUp):
                watcher()


def _do_nothing() -> None:
    """For its sake, the loop turns."""


class _Probe:
    """A call that is made as soon as the loop turns."""

    def __init__(self) -> None:
        self.sent = monotonic()
        self.answered = False
        self._warning = allocate_lock()

    def answer(self) -> None:
        self.answered = True

    def first_to_warn(self) -> bool:
        return self._warning.acquire(False)  # noqa: FBT003


# What a forked child keeps of its parent's loops and tasks: not even its end may collect them (without the
# GIL, nothing else keeps them then).
_inherited: list[object] = []


def _stand_aside() -> None:
    """Before a fork: in the child, no call may go straight to a thread of the parent's."""
    for loop_thread in live.copy():
        loop_thread.admits = False
    if live:
        prepare_keeping()


def _go_on() -> None:
    """In the parent, after it; but that may itself be a child that has its own parent still to forget."""
    for loop_thread in live.copy():
        loop_thread.admits = not is_under_way()
        if not loop_thread.open:  # closed in the meantime
            loop_thread.admits = False


@in_forked_child
def _forget_parent() -> None:
    """The threads, and what runs in them, are the parent's."""
    inherited = live.copy()
    for loop_thread in inherited:
        loop_thread.leave_behind(_inherited)
    live.difference_update(inherited)
    if _inherited:
        keep_for_ever(_inherited)


if sys.platform != "win32":  # it has no fork
    # Registered after those of `_fork`, so that `_go_on` finds this thread's fork over.
    os.register_at_fork(before=_stand_aside, after_in_parent=_go_on)
