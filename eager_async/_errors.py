"""The errors of the package, and the one in which two kinds of cancellation meet."""

import asyncio
import concurrent.futures


class DeadlockError(RuntimeError):
    """A thread was about to wait for work that only that same thread can do.

    Raised at once, instead of the wait that would never end: on the thread of its own loop, by
    `EagerTask.result()` and `exception()`, by an `EagerStream` in `for`, `next` and `close()`, and by
    `BackgroundLoop.shutdown()`: the message says what to write instead. Also raised by an await in the very
    task whose end is awaited.
    """


class LoopClosedError(RuntimeError):
    """The background loop was shut down, has died or stayed in a fork's parent, or the process is ending.

    Raised by calls that come too late, and the outcome of tasks that a loop could not finish.
    """


class ResultTimeoutError(TimeoutError):
    """`EagerTask.result(timeout)` or `exception(timeout)` ran out of time; the task runs on.

    A plain `TimeoutError` is the coroutine's own. (`concurrent.futures.TimeoutError` and
    `asyncio.TimeoutError` have been that one class since 3.11.) A coroutine that itself waits for another
    task with a timeout, and lets that error out, ends with one of these, which names the other task.
    """


class BlockingCancelledError(asyncio.CancelledError, concurrent.futures.CancelledError):
    """What `result()` and `exception()` raise in plain code when its task was cancelled.

    Plain code may know the task as a `concurrent.futures.Future` or as an `asyncio.Task`, whose
    errors of that name have no class in common but `BaseException`: either `except` catches this one.
    """
