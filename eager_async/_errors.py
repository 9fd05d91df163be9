"""The errors of the package, and the one in which two kinds of cancellation meet."""

import asyncio
import concurrent.futures


class DeadlockError(RuntimeError):
    """A thread was about to wait for work that only that same thread can do.

    Raised at once, instead of the wait that would never end: on the thread of its own loop, by
    `EagerTask.result()` and `exception()`, by an `EagerStream` in `for`, `next` and `close()`, and by
    `BackgroundLoop.shutdown()`; and by a task that awaits its own end. The message says what to write
    instead.
    """


class LoopClosedError(RuntimeError):
    """The background loop was shut down, has died, or was left behind in the parent of a fork.

    Raised by calls that come too late, and the outcome of tasks that a loop could not finish.
    """


class ResultTimeoutError(TimeoutError):
    """`EagerTask.result(timeout)` or `exception(timeout)` ran out of time; the task runs on.

    A `TimeoutError` that the coroutine itself raises is never of this class (python/cpython's
    `concurrent.futures.TimeoutError` and `asyncio.TimeoutError` have been one class since 3.11).
    """


class BlockingCancelledError(asyncio.CancelledError, concurrent.futures.CancelledError):
    """What `result()` and `exception()` raise in plain code when its task was cancelled.

    Plain code may know the task as a `concurrent.futures.Future` or as an `asyncio.Task`, whose
    errors of that name have no class in common but `BaseException`: either `except` catches this one.
    """
