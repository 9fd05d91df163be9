"""What is raised for an outcome: an exception, in many threads, reported if nobody looks; a cancellation."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, NoReturn

from eager_async._fork import in_forked_child

if TYPE_CHECKING:
    from asyncio import CancelledError, Task
    from collections.abc import Callable

# Those that exist and may have to be reported, when the process ends.
_living: set[weakref.ref[Failure]] = set()

# The attribute itself: an exception's class may refuse to have any set, as a frozen dataclass does.
_context_of: Final[Any] = BaseException.__dict__["__context__"]


class Failure:
    """An exception, its own traceback and context, and whether somebody has retrieved it.

    Each retrieval starts from what the coroutine left, so neither traceback nor context grows. It
    doesn't know its task, so that a task is collected when its last user lets go; then the `Failure`
    goes too, and reports itself if need be.

    Threads: any, at any time. Two that retrieve at one moment may see each other's frames.
    """

    __slots__ = ("__weakref__", "_context", "_drivers", "_report", "_seen", "exception", "traceback")

    def __init__(self, exception: BaseException, report: Callable[[BaseException], object] | None) -> None:
        """Keep an exception.

        Args:
            exception: As the coroutine raised it.
            report: Called with the exception, once at most, if nobody has retrieved it. None: nobody need.
        """
        self.exception = exception
        self.traceback = exception.__traceback__
        self._context = exception.__context__
        self._report = report
        self._seen = False  # whether somebody has retrieved it, and not only a driver
        self._drivers: set[weakref.ref[Task[Any]]] = set()  # those that end with it
        if report is not None:
            _living.add(weakref.ref(self, _living.discard))

    def retrieve(self) -> BaseException:
        """Return the exception as the coroutine left it; it counts as seen from now on."""
        self._seen = True
        drivers, self._drivers = self._drivers, set()
        for reference in list(drivers):
            self._look_at(reference())
        return self._restore()

    def throw(self, driver: Task[Any] | None = None) -> NoReturn:
        """Raise the exception; what the calling thread is handling doesn't become its context.

        Args:
            driver: An asyncio task that ends with it. It will report the exception itself if nobody
                retrieves it there, nor from the task that it drives.
        """
        __tracebackhide__ = True
        if driver is None:
            exception = self.retrieve()
        else:
            # Whichever comes first of its end and of somebody else's look, the other finds it.
            self._drivers.add(weakref.ref(driver, self._drivers.discard))
            driver.add_done_callback(self._look_at)
            exception = self._restore()
        try:
            raise exception
        finally:
            _context_of.__set__(exception, self._context)
            del exception, driver, self  # no cycle through this frame

    def _look_at(self, driver: Task[Any] | None) -> None:
        """Have asyncio not report what somebody has seen."""
        if self._seen and driver is not None and driver.done():
            driver.exception()

    def _restore(self) -> BaseException:
        self._report = None
        _context_of.__set__(self.exception, self._context)
        return self.exception.with_traceback(self.traceback)

    def report(self) -> None:
        """Report the exception if nobody has retrieved it, and no second time."""
        report, self._report = self._report, None
        if report is not None:
            report(self.exception)

    def __del__(self) -> None:
        self.report()


class Cancellation:
    """That the work was cancelled: whoever asks gets an error of its own.

    The first shows what the coroutine's own did: where it was raised, and why. That one then goes, as from an
    `asyncio.Task`, with the frames that it keeps.

    Threads: any, at any time.
    """

    __slots__ = ("_raised", "arguments")

    def __init__(self, arguments: tuple[object, ...], raised: CancelledError | None = None) -> None:
        """Keep the arguments of the errors, and the one that the coroutine raised, if anybody has waited."""
        self.arguments = arguments
        self._raised: list[CancelledError] = [] if raised is None else [raised]

    def error(self, kind: type[CancelledError]) -> CancelledError:
        """Make an error."""
        error = kind(*self.arguments)
        try:
            raised = self._raised.pop()  # one atomic step
        except IndexError:
            return error
        error.__cause__ = raised.__cause__
        error.__context__ = raised.__context__
        error.__suppress_context__ = raised.__suppress_context__
        return error.with_traceback(raised.__traceback__)


def report_unretrieved() -> None:
    """Report all exceptions that nobody has retrieved so far. From any thread."""
    for failure in _alive(_living.copy()):
        failure.report()


@in_forked_child
def _forget_parent() -> None:
    """What the parent's tasks have raised is reported there."""
    inherited = _living.copy()
    for failure in _alive(inherited):
        failure._report = None
    _living.difference_update(inherited)


def _alive(references: set[weakref.ref[Failure]]) -> list[Failure]:
    return [failure for reference in references if (failure := reference()) is not None]
