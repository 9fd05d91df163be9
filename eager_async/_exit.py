"""The end of the process: unfinished tasks are waited for, then all loops are closed."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from eager_async._cpython import UNINTERRUPTIBLE_WAIT, call_before_thread_shutdown
from eager_async._failure import report_unretrieved
from eager_async._fork import forget_parent, in_forked_child
from eager_async._log import logger
from eager_async._loop_thread import LoopThread, live
from eager_async._wake_up import WakeUp

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# Seconds of waiting after which a log line says what for, and how many tasks it names.
_SAY_AFTER: Final = 5.0
_MOST_NAMES: Final = 5

_arranged = False  # whether the wait will take place
_over = False  # whether it is over, or came too late to be arranged
_cancelled = False  # whether an interruption of it has cancelled the rest
_abandoned = False  # whether a later one has abandoned that

# Seconds that loops have to end in, whatever their `exit_timeout`: for cleanup that waits for nothing.
_LEAST_CLEANUP: Final = 0.1


def is_over() -> bool:
    """Whether it is too late to start a loop."""
    return _over


@in_forked_child
def _forget_parent() -> None:
    """The child's own end is still to come, though the parent's may have."""
    global _over, _cancelled, _abandoned  # noqa: PLW0603
    _over = _cancelled = _abandoned = False


def hold_process() -> None:
    """Have the process wait for unfinished tasks when its main thread ends.

    Called at import, as the first eager call may come from somebody else's hook, too late for ours; and
    whenever a loop starts, since hooks run latest first, and that of a process pool which was imported in
    between should come after.
    """
    global _arranged, _over  # noqa: PLW0603
    if call_before_thread_shutdown(_finish):
        _arranged = True
    elif not _arranged:
        _over = True


def _finish() -> None:
    """Wait for the tasks, then end all loops. In the main thread, when it has ended.

    A Ctrl-C, or whatever else a signal handler raises, cancels the rest; the next one abandons it.
    """
    global _over  # noqa: PLW0603
    forget_parent()
    if _over:
        return  # arranged more than once
    # No loop, and no call outside a `try`: the next signal (of three) would get through there.
    try:
        _end_all()
    except BaseException as exc:
        _over = True
        try:
            _cancel_all(exc)
        except BaseException as again:
            try:
                if _cancelled:
                    _abandon_all(again)
                else:
                    _cancel_all(again)
            except BaseException as last:
                if not _abandoned:
                    _abandon_all(last)
    report_unretrieved()


def _cancel_all(interruption: BaseException) -> None:
    global _cancelled  # noqa: PLW0603
    ending = live.copy()
    summary = _summary(ending)  # of what may end at once
    for loop_thread in ending:
        loop_thread.close(cancel=True)
    _cancelled = True
    logger.warning("interrupted at exit%s: cancelling %s", _by(interruption), summary)
    _end_all()


def _abandon_all(interruption: BaseException) -> None:
    global _abandoned  # noqa: PLW0603
    summary = _summary(live.copy())
    _abandoned = True
    logger.warning("abandoned at exit, since interrupted again%s: %s", _by(interruption), summary)


def _by(interruption: BaseException) -> str:
    return "" if isinstance(interruption, KeyboardInterrupt) else f" by {type(interruption).__name__}"


def _end_all() -> None:
    global _over  # noqa: PLW0603
    if not _over:
        _wait_while(LoopThread.holds_process, _say_what_for, _cancel)
        _over = True
    ending = live.copy()
    for loop_thread in ending:
        loop_thread.close(cancel=False)
    _wait_while(live.__contains__, _say_whose_cleanup, _abandon, least=_LEAST_CLEANUP)
    for loop_thread in ending - live:
        loop_thread.join()


def _say_what_for(busy: list[LoopThread]) -> None:
    logger.warning("the process waits for %s", _summary(busy, daemons=False))


def _say_whose_cleanup(busy: list[LoopThread]) -> None:
    logger.warning("the process waits for the cleanup of %s", _summary(busy))


def _cancel(loop_thread: LoopThread) -> None:
    logger.warning("time ran out at exit: cancelling %s", _summary([loop_thread]))
    loop_thread.close(cancel=True)


def _abandon(loop_thread: LoopThread) -> None:
    logger.warning("abandoned at exit, since time ran out: %s", _summary([loop_thread]))


def _wait_while(
    is_busy: Callable[[LoopThread], bool],
    say: Callable[[list[LoopThread]], None],
    give_up: Callable[[LoopThread], None],
    *,
    least: float = 0,
) -> None:
    """Wait until no loop is busy.

    Args:
        is_busy: Asked again whenever a task ends or comes to rest.
        say: Called once, with the busy ones, if that takes long.
        give_up: Called with a loop whose time ran out; it isn't waited for any more.
        least: Seconds that each has, whatever its `exit_timeout`.
    """
    changed = WakeUp()
    started = monotonic()
    said = False
    out_of_time: set[LoopThread] = set()
    while True:
        changed.wait(0)  # what has come so far
        watched = live - out_of_time
        for loop_thread in watched:
            loop_thread.watch(changed)
        busy = [loop_thread for loop_thread in watched if is_busy(loop_thread)]
        if not busy:
            return
        elapsed = monotonic() - started
        if not said and elapsed >= _SAY_AFTER:
            said = True
            say(busy)
        pauses = [] if said else [_SAY_AFTER - elapsed]
        if UNINTERRUPTIBLE_WAIT is not None:
            pauses.append(UNINTERRUPTIBLE_WAIT)
        for loop_thread in busy:
            if loop_thread.exit_timeout is None:
                continue
            left = max(loop_thread.exit_timeout, least) - elapsed
            if left <= 0:
                out_of_time.add(loop_thread)
                give_up(loop_thread)
            pauses.append(max(left, 0))
        changed.wait(min(pauses, default=-1))


def _summary(loop_threads: Collection[LoopThread], *, daemons: bool = True) -> str:
    """`2 eager tasks: fetch() called at app.py:30, running for 5.2 s; …`."""
    tasks = [
        task
        for loop_thread in loop_threads
        for task, daemon in loop_thread.tasks.copy().items()
        if daemons or not daemon
    ]
    if not tasks:
        return "asyncio tasks, async generators or executor threads that were left"
    names = [task._progress() for task in tasks[:_MOST_NAMES]]
    if len(tasks) > _MOST_NAMES:
        names.append("…")
    return f"{len(tasks)} eager {'task' if len(tasks) == 1 else 'tasks'}: {'; '.join(names)}"


hold_process()
