"""A result that can be polled, blocked on and awaited, in any thread and any loop."""

from __future__ import annotations

import concurrent.futures
import contextvars
import warnings
from _thread import allocate_lock
from asyncio import CancelledError, InvalidStateError, get_running_loop
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from eager_async._call_queue import call_queue
from eager_async._cpython import CANCELLED, FINISHED, GIL_ENABLED, RUNNING, running_loop
from eager_async._errors import BlockingCancelledError, DeadlockError, ResultTimeoutError
from eager_async._fork import forget_parent
from eager_async._log import logger
from eager_async._look import Look
from eager_async._where import users_level

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from typing_extensions import override

    from eager_async._call_queue import CallQueue
    from eager_async._loop_thread import LoopThread
else:
    from eager_async._typing import override

T = TypeVar("T")

FAILED: Final = "FAILED"  # the work raised; to `concurrent.futures` it is FINISHED, too


class EagerFuture(concurrent.futures.Future[T]):
    """A `concurrent.futures.Future` that can also be awaited.

    Threads: any thread may call any public method. The future is settled once, by its loop's thread, or in a
    forked child.

    There is no lock, so a signal handler or a `__del__` that comes in at any point finds none held.
    All who wait are entries of one dict, `_callbacks`, which the first of them makes. Whoever waits
    puts its entry in and *then* looks whether the future is done; whoever settles marks it done and
    *then* takes the entries out. So at least one of the two sees the other, and as taking out is one
    atomic step, exactly one of them makes the call.
    """

    # The base class's `__init__` isn't called: `Look` stands in for its condition and waiters. What else
    # few futures need is made by `setdefault` on the `__dict__`, one atomic step: two threads get the same.
    # (No `__slots__`: beside the `__dict__`, which the base class brings, they cost time and memory.)
    _loop_thread: LoopThread | None  # None once done: that is the mark
    # The outcome. Both are set a moment before the mark, and mean nothing without it.
    _status: str | None  # FINISHED, FAILED or CANCELLED
    _result: Any  # the result, the Failure or the Cancellation
    _callbacks: dict[object, Callable[[], object]] | None  # made for the first who waits

    @override
    def done(self) -> bool:
        """Return True if there is a result, an exception or a cancellation. From any thread."""
        return self._loop_thread is None

    @override
    def running(self) -> bool:
        """Return True if the work has begun and hasn't ended. From any thread."""
        raise NotImplementedError

    @override
    def cancelled(self) -> bool:
        """Return True if the work ended by being cancelled. From any thread."""
        return self._loop_thread is None and self._status == CANCELLED

    @override
    def result(self, timeout: float | None = None) -> T:
        """Wait for the end, and return the result. From any thread but the loop's own.

        Args:
            timeout: The most to wait, in seconds. None: as long as it takes.

        Raises:
            ResultTimeoutError: If the time ran out. The work runs on; `cancel()` ends it.
            DeadlockError: On the loop's own thread, if there is no result yet and timeout isn't 0.
            asyncio.CancelledError: If the work was cancelled. In a thread where no event loop runs
                it is a `concurrent.futures.CancelledError` too.
            LoopClosedError: If the loop died, or was left behind in a fork's parent.
            BaseException: What the work raised, as the same object each time.

        In asyncio's debug mode, a wait that blocks another running loop gives a `RuntimeWarning`.
        """
        __tracebackhide__ = True  # in notebooks and pytest, the user's own frames follow each other
        if self._loop_thread is not None:
            self._block(timeout)
        if self._status == FINISHED:
            result: T = self._result
            return result
        try:
            self._raise()
        finally:
            del self  # no cycle from the exception through this frame (python/cpython#80111)

    @override
    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end, and return the exception, or None. From any thread but the loop's own.

        Args:
            timeout: The most to wait, in seconds. None: as long as it takes.

        Raises:
            ResultTimeoutError: If the time ran out. The work runs on; `cancel()` ends it.
            DeadlockError: On the loop's own thread, if there is no outcome yet and timeout isn't 0.
            asyncio.CancelledError: If the work was cancelled. In a thread where no event loop runs
                it is a `concurrent.futures.CancelledError` too.
        """
        __tracebackhide__ = True
        if self._loop_thread is not None:
            self._block(timeout)
        if self._status == CANCELLED:
            self._raise()
        return self._result.retrieve() if self._status == FAILED else None

    def _raise(self, driver: asyncio.Task[Any] | None = None) -> NoReturn:
        __tracebackhide__ = True
        try:
            if self._status == FAILED:
                self._result.throw(driver)
            raise self._result.error(CancelledError if running_loop() else BlockingCancelledError)
        finally:
            del self, driver

    def _block(self, timeout: float | None, remedy: str = "`await task`") -> None:
        """Wait until done, or raise."""
        __tracebackhide__ = True
        loop_thread = self._loop_thread
        if loop_thread is None:
            return  # done in the meantime
        if timeout is not None and timeout <= 0:
            raise self._timeout_error(timeout)
        self._check_blocking(remedy)
        if loop_thread.spinner.spin(self.done):
            return
        began = monotonic()
        lock = allocate_lock()
        lock.acquire()
        if not self._call_when_done(lock, lock.release):
            return
        try:
            if not loop_thread.wait_for(lock, timeout) and self._loop_thread is not None:
                raise self._timeout_error(timeout)
        finally:
            self._forget(lock)
            if self.done():
                loop_thread.spinner.slept(monotonic() - began)

    def _check_deadlock(self, remedy: str) -> None:
        """Raise where a wait could not end."""
        __tracebackhide__ = True
        if self._in_loop_thread():
            raise DeadlockError(
                f"{self._description()} can't end while its own loop's thread waits for it; "
                f"there, write {remedy}"
            )

    def _check_blocking(self, remedy: str) -> None:
        """Raise where a wait could not end; warn, in debug mode, where it holds up a loop."""
        __tracebackhide__ = True
        self._check_deadlock(remedy)
        loop = running_loop()
        if loop is not None and loop.get_debug():
            warnings.warn(
                f"waiting for {self._description()} blocks the event loop of this thread; "
                f"there, write {remedy}",
                RuntimeWarning,
                stacklevel=users_level(),
            )

    def _timeout_error(self, timeout: float | None) -> ResultTimeoutError:
        raise NotImplementedError

    def _description(self) -> str:
        """What is being waited for: `fetch() called at app.py:30`."""
        raise NotImplementedError

    # Awaiting

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the end in any asyncio task, of any loop, without blocking it.

        A cancellation of the awaiting task asks for this one's, and the wait goes on until the end:
        then what came out of it is raised or returned, or `CancelledError` if the end was earlier.

        Raises:
            asyncio.CancelledError: If the work was cancelled, or ended before it could be.
            LoopClosedError: If the loop died, or was left behind in a fork's parent.
            DeadlockError: In the very coroutine whose end is awaited.
            BaseException: What the work raised, as the same object each time.
        """
        if self._loop_thread is None and self._status == FINISHED:
            result: T = self._result  # most calls on the loop's own thread end before they return
            return result
        __tracebackhide__ = True
        request: CancelRequest | None = None
        while self._loop_thread is not None:
            awaiter = self._new_awaiter()
            if not self._call_when_done(awaiter, awaiter):
                break
            try:
                yield from awaiter.future
            except CancelledError as exc:
                request = self._request_for_awaiter(exc, request)
            finally:
                self._forget(awaiter)
        try:
            return self._outcome(request)
        finally:
            del self  # no cycle, as in `result`

    def _new_awaiter(self) -> Awaiter:
        """What the asyncio task that runs now is to wait for."""
        __tracebackhide__ = True
        loop = get_running_loop()
        loop_thread = self._loop_thread
        if loop_thread is not None and loop_thread.loop is loop:
            self._check_awaiter()
            return Awaiter(loop, None)
        return Awaiter(loop, call_queue(loop))

    def _outcome(self, request: CancelRequest | None, driver: asyncio.Task[Any] | None = None) -> T:
        """What an awaiter gets, who may have asked for a cancellation, and may be a driver."""
        __tracebackhide__ = True
        try:
            # A repeat that comes too late doesn't hide a failure that the first may have brought about.
            if request is not None and not (request.in_time or (request.repeats and self._status == FAILED)):
                raise CancelledError(*request.arguments)
            if self._status == FINISHED:
                result: T = self._result
                return result
            asked = () if request is None else request.arguments
            if self._status == CANCELLED and asked not in ((), self._result.arguments):
                # Another's message comes out; a scope of anyio looks for its own in the context.
                try:
                    raise CancelledError(*asked)  # noqa: TRY301
                except CancelledError:
                    self._raise()
            self._raise(driver)
        finally:
            del self, driver  # no cycle, as in `result`

    def _check_awaiter(self) -> None:
        """Raise if the awaiter, on this loop, is what it waits for."""

    def _in_loop_thread(self) -> bool:
        loop_thread = self._loop_thread
        return loop_thread is not None and loop_thread.runs_here()

    def _request_for_awaiter(self, exc: CancelledError, earlier: CancelRequest | None) -> CancelRequest:
        """Ask for a cancellation for an awaiter that is itself cancelled, and may have been before."""
        if earlier is not None and not earlier.in_time:
            return earlier  # it is under way, or came after the end, as this does
        request = CancelRequest(*exc.args[:1], repeats=earlier is not None)  # the message travels along
        self._cancel_for_awaiter(request)
        return request

    def _cancel_for_awaiter(self, request: CancelRequest) -> None:
        raise NotImplementedError

    # Callbacks

    @override
    def add_done_callback(
        self,
        fn: Callable[[concurrent.futures.Future[T]], object],
        *,
        context: contextvars.Context | None = None,
    ) -> None:
        """Have `fn(future)` called when the work is done. From any thread.

        Added while an asyncio loop runs in the calling thread, it is called on that loop, soon, as for
        `asyncio.Future`, and dropped if that loop is closed by then. Added elsewhere it is called in the
        thread of the future's own loop, or at once if the work is done, as for `concurrent.futures.Future`.
        What it raises is logged.

        Args:
            fn: Called with the future as its only argument.
            context: Where to run `fn`. None: in a copy of the caller's context.
        """
        loop = running_loop()
        callback = _DoneCallback(
            fn,
            self,
            contextvars.copy_context() if context is None else context,
            None if loop is None else call_queue(loop),
        )
        if not self._call_when_done(callback, callback):
            callback()

    def remove_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> int:
        """Take back all callbacks that are equal to `fn`. From any thread.

        Returns:
            How many there were.
        """
        return sum(
            self._forget(entry)
            for entry in list(self._callbacks or ())
            if isinstance(entry, _DoneCallback) and entry.function == fn
        )

    def _call_when_done(self, who: object, call: Callable[[], object]) -> bool:
        """Have the settling thread make a call; it must not raise.

        Returns:
            False if the future is done, and the call is left to whoever asks.
        """
        forget_parent()
        callbacks = self._callbacks
        if callbacks is None:
            made: dict[object, Callable[[], object]] = {}
            if not GIL_ENABLED:
                made = vars(self).setdefault("_made_callbacks", made)
            # No call between look and store, so with the GIL no other thread: all who come get the same.
            self._callbacks = callbacks = made if self._callbacks is None else self._callbacks
        callbacks[who] = call
        return self._loop_thread is not None or callbacks.pop(who, None) is None

    def _forget(self, who: object) -> bool:
        """Take a call back; return whether it was still to be made."""
        callbacks = self._callbacks
        return callbacks is not None and callbacks.pop(who, None) is not None

    def _make_calls(self, callbacks: dict[object, Callable[[], object]]) -> None:
        for who in list(callbacks):
            call = callbacks.pop(who, None)
            if call is not None:
                try:
                    call()
                except BaseException:  # a strange loop's: it must not disturb the others
                    logger.exception("exception waking up a waiter of %r", self)

    # What `concurrent.futures` asks of its futures

    if not TYPE_CHECKING:  # for checkers, `concurrent.futures` wants attributes that can be set

        @property
        def _condition(self) -> Look:
            return Look(self)

        @property
        def _waiters(self) -> Look:
            return Look(self)

        @property
        def _state(self) -> str:
            if self._loop_thread is not None or Look(self).sees_unfinished():
                return RUNNING
            return FINISHED if self._status == FAILED else self._status

    def _tell(self, waiter: Any) -> None:
        """Tell one who waits in `concurrent.futures.wait` or its like that the future is done."""
        if self._status == CANCELLED:
            waiter.add_cancelled(self)
        elif self._status == FAILED:
            waiter.add_exception(self)
        else:
            waiter.add_result(self)

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """Done, cancelled, result, exception: how `asyncio.wrap_future` reads it since 3.15."""
        if not self.done():
            return False, False, None, None
        if self._status == FAILED:
            return True, False, None, self._result.retrieve()
        if self._status == CANCELLED:
            return True, True, None, None
        return True, False, self._result, None

    @override
    def set_running_or_notify_cancel(self) -> bool:
        """Not for users: raises RuntimeError."""
        raise RuntimeError(f"{type(self).__name__} does not support set_running_or_notify_cancel")

    @override
    def set_result(self, result: T) -> None:  # noqa: ARG002  # the base class has it
        """Not for users: raises RuntimeError, as that of `asyncio.Task` does."""
        raise RuntimeError(f"{type(self).__name__} does not support set_result operation")

    @override
    def set_exception(self, exception: BaseException | None) -> None:  # noqa: ARG002  # as above
        """Not for users: raises RuntimeError, as that of `asyncio.Task` does."""
        raise RuntimeError(f"{type(self).__name__} does not support set_exception operation")


class CancelRequest:
    """That a task be cancelled, and whether this came before its end."""

    __slots__ = ("arguments", "in_time", "repeats")

    def __init__(self, message: object = None, *, repeats: bool = False) -> None:
        self.arguments: tuple[object, ...] = () if message is None else (message,)  # of the CancelledError
        self.in_time: bool = False
        self.repeats = repeats  # whether an earlier one of the same awaiter was in time

    @property
    def message(self) -> Any:
        return self.arguments[0] if self.arguments else None


def wake_in_child(call: Callable[[], object]) -> None:
    """In a forked child, make a call that wakes up a thread: the one that forked may have been waiting."""
    getattr(call, "leave_behind", call)()


class _Waiter:
    """A call to be made when a future is done: on a loop, or at once."""

    __slots__ = ("_queue",)

    def __init__(self, queue: CallQueue | None) -> None:
        self._queue = queue  # of the loop; None: at once

    def __call__(self) -> None:
        if self._queue is None:
            self._run()
        else:
            self._queue.run_soon(self)

    def leave_behind(self) -> None:
        """In a forked child, do nothing: it is for a loop of the parent's, or the user's."""

    def _run(self) -> None:
        raise NotImplementedError


class Awaiter(_Waiter):
    """An asyncio task that waits for an eager future, by a future of its own loop."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop, queue: CallQueue | None) -> None:
        self._queue = queue  # `super().__init__` costs a call
        self.future: asyncio.Future[None] = loop.create_future()

    @override
    def _run(self) -> None:
        try:
            if not self.future.done():
                self.future.set_result(None)
        except (InvalidStateError, RuntimeError):
            pass  # a signal handler has cancelled it just now; or its loop is closed


class _DoneCallback(_Waiter):
    """A user's callback."""

    __slots__ = ("_context", "_future", "function")

    def __init__(
        self,
        function: Callable[[Any], object],
        future: EagerFuture[Any],
        context: contextvars.Context,
        queue: CallQueue | None,
    ) -> None:
        super().__init__(queue)
        self.function = function
        self._future = future
        self._context = context

    def __repr__(self) -> str:
        return f"<callback {self.function!r} of {self._future!r}>"

    @override
    def _run(self) -> None:
        try:
            self._context.run(self.function, self._future)
        except BaseException:  # SystemExit too: it would end the loop's thread
            logger.exception("exception calling callback %r for %r", self.function, self._future)
