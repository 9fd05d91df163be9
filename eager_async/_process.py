"""What a process has once: the shared loop, and what a fork does to loops and tasks."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from eager_async import _call_queue, _exit, _failure, _limit, _loop_thread
from eager_async._cpython import keep_for_ever, prepare_keeping
from eager_async._exit import hold_process
from eager_async._loop import BackgroundLoop, instances

if TYPE_CHECKING:
    from eager_async._loop_thread import LoopThread

_shared = BackgroundLoop()
_lock = threading.RLock()  # for exchanging the shared loop

# What a child has inherited and must neither run, close nor collect.
_inherited: list[Any] = []


def shared_loop() -> BackgroundLoop:
    """Return the background loop that eager functions use. From any thread; it starts nothing.

    Once it was shut down, it is made anew, with the same settings; but to its own tasks, while they end, this
    is still the old one.
    """
    if _shared._shut_down and not _shared._is_own_thread():  # whose tasks may still start others there
        with _lock:
            if _shared._shut_down:
                set_shared_loop(_shared._successor())
    return _shared


def set_shared_loop(loop: BackgroundLoop) -> BackgroundLoop:
    """Have eager functions use another background loop from now on. From any thread.

    Args:
        loop: The loop to use.

    Returns:
        The one that they used before, which runs on.

    Raises:
        TypeError: If `loop` is not a `BackgroundLoop`.
    """
    global _shared
    if not isinstance(loop, BackgroundLoop):
        raise TypeError(
            f"a BackgroundLoop was expected, got {loop!r}; "
            f"write `set_shared_loop(BackgroundLoop(loop_factory=...))`"
        )
    with _lock:
        before, _shared = _shared, loop
    return before


def shared_thread() -> LoopThread:
    """The thread that takes on new calls of eager functions which have no loop of their own.

    Raises:
        LoopClosedError: If the loop is shut down in the meantime, or the process is ending.
    """
    loop_thread = _shared._loop_thread
    if loop_thread is not None and loop_thread.open:
        return loop_thread
    return shared_loop()._admitting_thread()


def _get_ready() -> None:
    """Before a fork."""
    if _loop_thread.live:
        prepare_keeping()


def _begin_anew() -> None:
    """In a forked child: leave the parent's loops alone, and start others on the next use."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    _call_queue.forget_parent()
    _exit.forget_parent()
    _failure.forget_parent()
    for limit in list(_limit.instances):
        limit.forget_parent()
    for loop in list(instances):
        loop._forget_parent()
    _inherited.extend(loop_thread.leave_behind() for loop_thread in _loop_thread.live.copy())
    _loop_thread.live.clear()
    if _inherited:
        # Not even the end of the process may collect them: without the GIL, nothing else keeps them then.
        keep_for_ever(_inherited)


if sys.platform != "win32":  # it has no fork
    os.register_at_fork(before=_get_ready, after_in_child=_begin_anew)

hold_process()
