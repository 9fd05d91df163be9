"""One coroutine's run on a background loop."""

from __future__ import annotations

import asyncio
import reprlib
import sys
import traceback
from asyncio import CancelledError, current_task
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from eager_async._cpython import (
    CANCELLED,
    FINISHED,
    GIL_ENABLED,
    HAS_EAGER_START,
    Task,
    coarse_monotonic,
    init_task,
    new_task,
    running_loop,
    start_by_hand,
)
from eager_async._errors import DeadlockError, LoopClosedError, ResultTimeoutError
from eager_async._failure import Cancellation, Failure
from eager_async._future import FAILED, CancelRequest, EagerFuture, wake_in_child
from eager_async._log import logger
from eager_async._wake_up import WakeUp
from eager_async._where import coroutine_part, line_of, suspended_at, suspended_frames, users_part

if TYPE_CHECKING:
    import contextvars
    import types
    from collections.abc import Callable, Coroutine
    from typing import TextIO

    from typing_extensions import override

    from eager_async._limit import Limit
    from eager_async._loop_thread import LoopThread
else:
    from eager_async._typing import override

T = TypeVar("T")
R = TypeVar("R")

# Seconds in which the loop's thread should say where a task is suspended, when nobody else can.
_LONGEST_READING: Final = 0.1


if TYPE_CHECKING:

    class _Base(EagerFuture[T], Coroutine[Any, Any, T]):
        """Which methods a task has."""

else:
    _Base = EagerFuture  # the ABC knows a coroutine by its methods; with its metaclass, tasks are made slower


class EagerTask(_Base[T]):
    """The handle of a call that has started: poll it, block on it, or await it.

    It is a `concurrent.futures.Future`, with what `asyncio.Task` has beyond that. It also is a
    coroutine, so that `asyncio.run`, `create_task`, `gather` and their like take it as they took the
    coroutine of the undecorated function; several of them may do so at a time.

    Eager functions and `BackgroundLoop.create_task` make tasks. Any thread may call any method; only a wait
    for the outcome in the loop's own thread raises `DeadlockError`.
    """

    # Threads. `_run`, `_cancel_unbegun`, `_finish`, `_exit`, `_new_failure`, `_end`, `_lose`, `_withdraw`,
    # `_deliver` and `_known_asyncio_task` run in the loop's thread alone, `_leave_behind` in a forked child.
    # Others only ask: they set `_asked`, which `_run` looks at, and *then* queue a `_deliver`.
    _cancelling: bool = False  # whether a cancellation has been delivered to the coroutine
    _keeps_cancellation: bool = True  # its CancelledError, for those who wait; a stream's consumer won't ask
    _requests: dict[object, CancelRequest] | None = None  # of those who drive it, by `_driver`

    def __init__(
        self,
        loop_thread: LoopThread,
        coro: Coroutine[Any, Any, T],
        context: contextvars.Context,
        name: str,
        caller: types.FrameType,
    ) -> None:
        """Not for users: call an eager function, or `BackgroundLoop.create_task`."""
        # Set here, though some are None at first: one that is added later can cost its object a dict.
        self._loop_thread = loop_thread
        self._callbacks = self._result = self._status = None
        self._coro: Coroutine[Any, Any, T] | None = coro
        self._context: contextvars.Context | None = context  # None once it has begun or ended
        self._name = name
        self._asyncio_task: asyncio.Task[T] | None = None  # from the first step to the end
        self._asked: CancelRequest | None = None  # the latest cancellation asked for, from any thread
        self._limit: Limit | None = None  # the one towards which it counts
        # The line of the call is worked out when somebody wants to read it.
        self._called_in = caller.f_code
        self._called_at = caller.f_lasti
        self._called_when = coarse_monotonic()

    @override
    def running(self) -> bool:
        """Return True if the coroutine has begun and hasn't ended. From any thread."""
        # `_context` first, as `_end` drops it last: what has never begun is never seen to run.
        return self._context is None and self._loop_thread is not None

    # The run, in the loop's thread

    def _run(self) -> None:
        """Run the coroutine up to its first suspension, if it has a place or needs none."""
        context = self._context
        if context is None:
            return  # begun, cancelled or lost in the meantime
        coro: Any = self._coro
        loop_thread: Any = self._loop_thread
        if self._asked is not None:
            self._cancel_unbegun(self._asked)
            return
        if self._limit is not None and not self._limit.admit(self):
            return  # its turn will come
        self._context = None
        asyncio_task: asyncio.Task[T] | None = None
        try:
            loop = loop_thread.loop
            if HAS_EAGER_START and loop.get_task_factory() is None:
                # Without a call in between, as each costs.
                asyncio_task = self._asyncio_task = new_task(Task)
                init_task(asyncio_task, coro, loop=loop, name=self._name, context=context, eager_start=True)
            else:
                asyncio_task = start_by_hand(self, loop, coro, context, self._name)
            if asyncio_task.done():
                self._finish(asyncio_task)
            else:
                asyncio_task.add_done_callback(self._finish, context=context)  # or it would copy one
        except BaseException as exc:  # a user's task factory may raise anything; a body, SystemExit
            if self._loop_thread is None:  # it has an outcome, and this is none
                raise
            asyncio_task, self._asyncio_task = self._asyncio_task, None
            if asyncio_task is not None and asyncio_task.done():
                asyncio_task.exception()  # asyncio need not report it
            self._end(FAILED, self._new_failure(exc))
            coro.close()
        finally:
            # The frames of a first step that raises lead back here: no cycle (python/cpython#128552).
            del self, context, asyncio_task

    def _cancel_unbegun(self, request: CancelRequest) -> None:
        """End a call that hasn't begun, and never will."""
        coro: Any = self._coro
        request.in_time = True
        # Before the rest, as a coroutine of the user's own may raise.
        self._end(CANCELLED, Cancellation(request.arguments))
        if isinstance(coro, EagerTask):  # which has begun by itself
            coro._cancel_for_awaiter(CancelRequest(request.message))
        coro.close()

    def _finish(self, asyncio_task: asyncio.Task[T]) -> None:
        """Take over what came out of the coroutine."""
        loop_thread = self._loop_thread
        if loop_thread is None:
            return  # lost, or told twice
        try:
            exc = asyncio_task.exception()
        except CancelledError as cancelled:
            exc = cancelled
        if exc is None:
            self._end(FINISHED, asyncio_task.result())
        elif isinstance(exc, CancelledError):
            exc.with_traceback(users_part(exc.__traceback__))  # without this frame: no cycle
            kept = self._keeps_cancellation and self._callbacks is not None
            self._end(CANCELLED, Cancellation(exc.args, exc if kept else None))
        elif isinstance(exc, SystemExit | KeyboardInterrupt):
            # The loop raises it too, uvloop only after this turn: two threads must not raise one object at a
            # time.
            loop_thread.loop.call_soon(self._exit, exc)
        else:
            self._end(FAILED, self._new_failure(exc))

    def _exit(self, exc: BaseException) -> None:
        """End with what the loop has raised, but without the frames that it passed there."""
        if self._loop_thread is not None:  # not lost in the meantime
            self._end(FAILED, self._new_failure(exc.with_traceback(coroutine_part(exc.__traceback__))))

    def _new_failure(self, exc: BaseException) -> Failure:
        """A `Failure` of an exception, which loses the library's frames at the head of its traceback."""
        assert self._loop_thread is not None
        exc.with_traceback(users_part(exc.__traceback__))
        message = f"exception of {self._description()} was never retrieved"
        return Failure(exc, partial(self._loop_thread.report, message))

    def _end(self, status: str, result: object) -> None:
        """Settle: drop all but the outcome, and make it known to all who wait."""
        loop_thread: Any = self._loop_thread
        self._coro = self._asyncio_task = self._asked = None
        # In this order: whoever finds `_loop_thread` None finds the outcome too; and for `_context`, see
        # `running`.
        self._result = result
        self._status = status
        self._loop_thread = None
        self._context = None
        if self._callbacks is not None:
            self._make_calls(self._callbacks)
        loop_thread.tasks.pop(self, None)  # before watchers are told, who look there
        if self._limit is not None:
            self._limit.leave(self)
        if loop_thread.watchers or loop_thread.interrupted:
            loop_thread.tell_watchers()

    def _lose(self) -> None:
        """End without the coroutine: its loop is dead."""
        if self.done():
            return
        coro = self._coro if self._context is not None else None
        error = LoopClosedError(f"{self._description()} can't go on: its background loop has ended")
        self._end(FAILED, self._new_failure(error))
        if coro is not None:
            try:
                coro.close()  # or Python would warn that it was never awaited
            except BaseException:  # one of the user's own; the loop's other tasks are still to end
                logger.exception("exception closing the coroutine of %r", self)

    def _withdraw(self) -> None:
        """Bring to its end a call that was interrupted somewhere, and whose caller has no handle."""
        coro: Any = self._coro
        asyncio_task = self._asyncio_task
        if self._context is not None:  # it hasn't begun
            self._cancel_unbegun(CancelRequest())
        elif asyncio_task is not None:  # it is under way
            asyncio_task.cancel()
            asyncio_task.add_done_callback(self._finish)
        elif self._loop_thread is not None:  # it was to begin, and has no asyncio task yet
            self._end(CANCELLED, Cancellation(()))
            coro.close()
        elif self._limit is not None:  # it has ended, and may not have left its place
            self._limit.leave_again(self)

    def _leave_behind(self, kept: list[object]) -> None:
        """In a forked child: end, without any callback.

        But wake up this thread, in case that a signal handler forked while it waited.

        Args:
            kept: To this is added what the child must never run, close or collect: it is the parent's.
        """
        kept.append((self._coro, self._context, self._asyncio_task, self._callbacks))
        vars(self).pop("_made_callbacks", None)
        callbacks, self._callbacks = self._callbacks, None
        if not self.done():
            error = LoopClosedError(f"{self._description()} runs in the parent process")
            self._result = Failure(error, None)
            self._status = FAILED
        self._coro = self._context = self._asyncio_task = self._loop_thread = None
        for call in list((callbacks or {}).values()):
            wake_in_child(call)

    # Cancellation

    @override
    def cancel(self, msg: object = None) -> bool:
        """Ask for the task to be cancelled. From any thread; returns at once.

        As for `asyncio.Task`: a `CancelledError` is raised inside the coroutine where it waits, and the
        task is done when the coroutine has ended, cleanup included; if it goes on in spite of that, its
        result stands. A call that hasn't begun never begins.

        Args:
            msg: Passed on to that `CancelledError`, if not None.

        Returns:
            False if the task is done already.
        """
        return self._ask(CancelRequest(msg), again=True)

    @override
    def _cancel_for_awaiter(self, request: CancelRequest) -> None:
        self._ask(request, again=False)

    def _ask(self, request: CancelRequest, *, again: bool) -> bool:
        """Deliver a request in the loop's thread.

        At once if that is this one; but what hasn't begun ends only when nothing else runs there, or its
        callbacks would run inside whatever cancels it.
        """
        loop_thread = self._loop_thread
        if loop_thread is None:
            return False
        self._asked = request
        if self._in_loop_thread() and (self._context is None or running_loop() is None):
            delivered = self._deliver(request, again=again)
            loop_thread.turn_again()
            return delivered
        return loop_thread.call_soon(partial(self._deliver, request, again=again))

    def _deliver(self, request: CancelRequest, *, again: bool) -> bool:
        """Cancel, unless this comes after the end. Awaiters' requests merge while one is being served."""
        if self._context is not None:
            self._cancel_unbegun(self._asked or request)  # the latest, as in `asyncio.Task`
            return True
        asyncio_task = self._known_asyncio_task()
        if asyncio_task is None or asyncio_task.done():
            return False
        request.in_time = True
        if again or not (self._cancelling and asyncio_task.cancelling()):
            self._cancelling = True
            asyncio_task.cancel(request.message)
        return True

    @override
    def _check_awaiter(self) -> None:
        __tracebackhide__ = True
        asyncio_task = self._known_asyncio_task()
        if asyncio_task is not None and asyncio_task is current_task():
            raise DeadlockError(f"{self._description()} can't end while it awaits its own end")

    def _known_asyncio_task(self) -> asyncio.Task[Any] | None:
        """The asyncio task, also in a first step that a user's eager task factory runs."""
        if self._asyncio_task is None and self.running():
            return next((task for task in asyncio.all_tasks() if task.get_coro() is self._coro), None)
        return self._asyncio_task

    # As a coroutine. Each asyncio task that drives it is an awaiter of its own.

    @override
    def send(self, value: Any) -> Any:  # noqa: ARG002  # asyncio sends None
        """Go on waiting for the end, for the asyncio task that runs now. Called by that task.

        Raises:
            StopIteration: With the result, when the task is done.
            BaseException: What the work raised.
        """
        if self._loop_thread is None and self._requests is None and self._status == FINISHED:
            raise StopIteration(self._result)
        __tracebackhide__ = True
        driver = _driver()
        try:
            if self._loop_thread is not None:
                awaiter = self._new_awaiter()
                if self._call_when_done(driver, awaiter):
                    awaiter.future._asyncio_future_blocking = True  # as `yield from` would set
                    return awaiter.future
            request = None if self._requests is None else self._requests.pop(driver, None)
            if not isinstance(driver, asyncio.Task) or driver.get_coro() is not self:
                driver = None  # it is driven by hand, and who does that gets what it raises
            raise StopIteration(self._outcome(request, driver))  # pyright: ignore[reportUnknownArgumentType]
        finally:
            del self, driver  # no cycle from the exception through this frame

    @override
    def throw(self, typ: Any, val: Any = None, tb: types.TracebackType | None = None) -> Any:
        """Raise an exception in the wait of the asyncio task that runs now. Called by that task.

        A `CancelledError` asks for the work to be cancelled, and the wait goes on. Any other ends
        this wait alone.

        Raises:
            StopIteration: With the result, when the task is done.
            BaseException: The exception, or what the work raised.
        """
        __tracebackhide__ = True
        exc = val if isinstance(val, BaseException) else typ if val is None else typ(val)
        if isinstance(exc, type):
            exc = exc()
        if tb is not None:
            exc = exc.with_traceback(tb)
        try:
            earlier = self._end_wait()
            if not isinstance(exc, CancelledError):
                raise exc
            request = self._request_for_awaiter(exc, earlier)
            vars(self).setdefault("_requests", {})[_driver()] = request
            return self.send(None)
        finally:
            del self, exc, typ, val  # no cycle from the exception through this frame

    @override
    def close(self) -> None:
        """End the wait of the asyncio task that runs now, if it waits. The work runs on; `cancel` ends it."""
        self._end_wait()

    def _end_wait(self) -> CancelRequest | None:
        """End the driver's wait; return the cancellation for which it has asked, if it has."""
        driver = _driver()
        self._forget(driver)
        return None if self._requests is None else self._requests.pop(driver, None)

    # For people

    def get_name(self) -> str:
        """Return the name that was given to `create_task`, or else the function's. From any thread."""
        return self._name

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How asyncio shows a task that drives this one."""
        return self._name.removesuffix("()")

    def get_coro(self) -> Coroutine[Any, Any, T] | None:
        """Return the coroutine, or None once the task is done. From any thread."""
        return self._coro

    def get_stack(self, *, limit: int | None = None) -> list[types.FrameType]:
        """Return the frames at which the coroutine is suspended, or those of its exception.

        As for `asyncio.Task`: the oldest first, and none for a task that returned or was cancelled. The
        coroutines that it awaits are included. From any thread; without the GIL, that of the loop is asked,
        and if it doesn't answer within 0.1 s, there are none.

        Args:
            limit: The most frames: the newest of a suspended coroutine, the oldest of an exception.
        """
        return self._frames(self._failure_if_any(), limit)

    def _frames(self, failure: Failure | None, limit: int | None) -> list[types.FrameType]:
        if failure is not None:
            frames = [frame for frame, _ in traceback.walk_tb(failure.traceback)]
            return frames if limit is None else frames[:limit]
        frames = self._read_coroutine(suspended_frames) or []
        return frames if limit is None else frames[max(len(frames) - limit, 0) :]

    def print_stack(self, *, limit: int | None = None, file: TextIO | None = None) -> None:
        """Print the frames of `get_stack`, as `asyncio.Task.print_stack` does. From any thread.

        Args:
            limit: The most frames, as for `get_stack`.
            file: Where to print. None: to `sys.stderr`.
        """
        failure = self._failure_if_any()
        frames = self._frames(failure, limit)
        kind = "Stack" if failure is None else "Traceback"
        head = f"{kind} for {self!r} (most recent call last):" if frames else f"No stack for {self!r}"
        lines = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames).format()
        if failure is not None:
            lines += traceback.format_exception_only(failure.exception)
        print(head, "\n", *lines, sep="", end="", file=sys.stderr if file is None else file)

    def _failure_if_any(self) -> Failure | None:
        """What the coroutine raised, if it is done and has."""
        failure: Failure | None = self._result if self.done() and self._status == FAILED else None
        return failure

    @override
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Not for users: raises TypeError. A copy would never end."""
        raise TypeError("a task can't be copied or pickled; its result can: write `task.result()`")

    @override
    def __repr__(self) -> str:
        return f"<EagerTask {id(self):#x} {self._name} {self._state_text()}, {self._call_text()}>"

    @override
    def _description(self) -> str:
        return f"{self._name} {self._call_text()}"

    def _progress(self) -> str:
        """`fetch() called at app.py:30, running for 5.2 s`."""
        return f"{self._description()}, {self._state_text()}"

    def _call_text(self) -> str:
        return f"called at {line_of(self._called_in, self._called_at)}"

    def _state_text(self, returned: str | None = None) -> str:
        """What the task is doing, or what came out of it."""
        state = "running" if self._context is None else "pending"  # first, as in `running`
        if self._loop_thread is not None:
            if self._asked is not None:
                state = f"being cancelled, {state}"
            return f"{state} for {monotonic() - self._called_when:.1f} s"
        if self._status == CANCELLED:
            return "cancelled"
        if self._status == FAILED:
            return f"raised {_short_repr(self._result.exception)}"
        return returned or f"returned {_short_repr(self._result)}"

    @override
    def _timeout_error(self, timeout: float | None) -> ResultTimeoutError:
        line = self._read_coroutine(suspended_at) if self.running() else None
        place = "" if line is None else f", suspended at {line}"
        return ResultTimeoutError(
            f"no result within {timeout} s: {self._progress()}{place}. It runs on; `task.cancel()` ends it"
        )

    def _read_coroutine(self, read: Callable[[Any], R]) -> R | None:
        """Read the coroutine's frames: without the GIL, in the loop's thread, if that answers soon."""
        loop_thread = self._loop_thread
        if GIL_ENABLED or loop_thread is None or self._in_loop_thread():
            return read(self._coro)
        answer: list[R] = []
        answered = WakeUp()

        def give_answer() -> None:
            answer.append(read(self._coro))
            answered()

        loop_thread.call_soon(give_answer)
        answered.wait(_LONGEST_READING)
        return answer[0] if answer else None


_reprs: Final = reprlib.Repr()
_reprs.maxother = 100  # enough for the names of most exceptions, and the head of their messages


def _short_repr(thing: object) -> str:
    try:
        return _reprs.repr(thing)
    except Exception:  # of a class named as a built-in, which it is taken for (up to 3.13)
        return object.__repr__(thing)


def _driver() -> Any:
    """Who drives a coroutine now: the asyncio task that runs in this thread, else the loop, else None."""
    loop = running_loop()
    return None if loop is None else current_task(loop) or loop
