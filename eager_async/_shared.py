"""The background loop that eager functions share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from eager_async._errors import LoopClosedError
from eager_async._fork import forget_parent, in_forked_child
from eager_async._loop import BackgroundLoop

if TYPE_CHECKING:
    from eager_async._loop_thread import LoopThread

_shared = BackgroundLoop()
_lock = threading.RLock()  # for exchanging it


def shared_loop() -> BackgroundLoop:
    """Return the background loop that eager functions use. From any thread; it starts nothing.

    Once it was shut down, it is made anew, with the same settings; but to its own tasks, while they end, this
    is still the old one.
    """
    if _shared._shut_down and not _shared._in_loop_thread():  # whose tasks may still start others there
        forget_parent()
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
    forget_parent()
    with _lock:
        before, _shared = _shared, loop
    return before


def shared_thread() -> LoopThread:
    """The thread that takes on new calls of eager functions which have no loop of their own.

    Raises:
        LoopClosedError: If the process is ending.
    """
    loop_thread = _shared._loop_thread
    if loop_thread is not None and loop_thread.admits:
        return loop_thread
    while True:
        loop = shared_loop()
        try:
            return loop._admitting_thread()
        except LoopClosedError:
            if not loop._shut_down:
                raise


@in_forked_child
def _forget_parent() -> None:
    """Another thread may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
