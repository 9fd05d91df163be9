"""How others wake up one thread that waits."""

from __future__ import annotations

from _thread import allocate_lock
from contextlib import suppress


class WakeUp:
    """A call that wakes up the one thread that waits for it; of several before it looks, one counts.

    Threads: any may call it. It is no `Event`, as that has a lock inside, which a signal handler or a
    finalizer that comes in may find held by its own thread.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()  # free from a wake-up until somebody has waited for it
        self._lock.acquire()

    def __call__(self) -> None:
        with suppress(RuntimeError):  # it is free
            self._lock.release()

    def wait(self, timeout: float = -1) -> None:
        """Wait for a wake-up, for so many seconds at most; -1: as long as it takes."""
        self._lock.acquire(True, timeout)  # noqa: FBT003
