"""The end of the process: unfinished tasks are waited for, then all loops are closed."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from eager_async._cpython import UNINTERRUPTIBLE_WAIT, call_before_thread_shutdown
from eager_async._failure import report_unretrieved
from eager_async._log import logger
from eager_async._loop_thread import live

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eager_async._loop_thread import LoopThread

# Seconds of waiting after which a log line says what for, and how many tasks it names.
_SAY_AFTER: Final = 5.0
_MOST_NAMES: Final = 5

_arranged = False  # whether the wait will take place
_over = False  # whether it is over, or came too late to be arranged


def is_over() -> bool:
    """Whether it is too late to start a loop."""
    return _over


def hold_process() -> None:
    """Have the process wait for unfinished tasks when its main thread ends.

    Called whenever a loop starts, since hooks run latest first, and that of a process pool which was
    imported in between should come after.
    """
    global _arranged, _over  # noqa: PLW0603
    if call_before_thread_shutdown(_finish):
        _arranged = True
    elif not _arranged:
        _over = True


def _finish() -> None:
    """Wait for the tasks, then end all loops. In the main thread, when it has ended."""
    global _over  # noqa: PLW0603
    if _over:
        return  # arranged more than once
    try:
        interrupted = not _wait_for_tasks()
        _over = True
        ending = live.copy()
        for loop_thread in ending:
            loop_thread.close(cancel=interrupted)
        for loop_thread in ending:
            if not loop_thread.join(loop_thread.exit_timeout):
                logger.warning("abandoned at exit, since time ran out: %s", _summary([loop_thread]))
    except KeyboardInterrupt:
        _over = True
        logger.warning("abandoned at exit, since interrupted again: %s", _summary(live.copy()))
    report_unretrieved()


def _wait_for_tasks() -> bool:
    """Wait until no task holds the process, but for those whose loop's time ran out.

    Returns:
        False if a Ctrl-C cut that short.
    """
    try:
        _wait_until_idle()
    except KeyboardInterrupt:
        logger.warning("interrupted at exit: cancelling %s", _summary(live.copy()))
        return False
    return True


def _wait_until_idle() -> None:
    task_ended = threading.Event()
    started = monotonic()
    said = False
    out_of_time: set[LoopThread] = set()
    while True:
        task_ended.clear()
        busy = [loop_thread for loop_thread in live.copy() if loop_thread not in out_of_time]
        for loop_thread in busy:
            loop_thread.watch(task_ended.set)
        busy = [loop_thread for loop_thread in busy if loop_thread.tasks]
        if not busy:
            return
        elapsed = monotonic() - started
        if not said and elapsed >= _SAY_AFTER:
            said = True
            logger.warning("the process waits for %s", _summary(busy))
        pauses = [] if said else [_SAY_AFTER - elapsed]
        if UNINTERRUPTIBLE_WAIT is not None:
            pauses.append(UNINTERRUPTIBLE_WAIT)
        for loop_thread in busy:
            if loop_thread.exit_timeout is None:
                continue
            left = loop_thread.exit_timeout - elapsed
            if left <= 0:
                out_of_time.add(loop_thread)
                logger.warning("time ran out at exit: cancelling %s", _summary([loop_thread]))
                loop_thread.close(cancel=True)
            pauses.append(max(left, 0))
        task_ended.wait(min(pauses, default=None))


def _summary(loop_threads: Iterable[LoopThread]) -> str:
    """`2 eager tasks: fetch() called at app.py:30, running for 5.2 s; …`."""
    tasks = [task for loop_thread in loop_threads for task in [*loop_thread.tasks, *loop_thread.daemons]]
    names = [task._progress() for task in tasks[:_MOST_NAMES]]
    if len(tasks) > _MOST_NAMES:
        names.append("…")
    return f"{len(tasks)} eager {'task' if len(tasks) == 1 else 'tasks'}: {'; '.join(names)}"
