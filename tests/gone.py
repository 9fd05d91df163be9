"""Whether objects are freed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

from threads import GIL_ENABLED

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 5  # seconds, for threads that are about to drop something


class Thing:
    """Something whose end can be waited for."""

    def hear(self, _: object) -> None:
        """Be called back."""


class Gone:
    """True when all objects are freed, by their reference counts alone, or soon are."""

    def __init__(self, *things: object) -> None:
        # Bare locks: an event has one inside that the finalizer might find held by its own thread.
        self._alive = [threading.Lock() for _ in things]
        for thing, lock in zip(things, self._alive, strict=True):
            lock.acquire()
            weakref.finalize(thing, lock.release)

    def __bool__(self) -> bool:
        deadline = time.monotonic() + _PATIENCE
        for lock in self._alive:
            while not lock.acquire(timeout=0.01):
                if time.monotonic() > deadline:
                    return False
                if not GIL_ENABLED:  # there, some objects are left to the collector (PEP 703)
                    gc.collect()
            lock.release()
        return True

    def is_set(self) -> bool:
        """Whether they are freed now."""
        return not any(lock.locked() for lock in self._alive)


@contextmanager
def without_the_collector() -> Iterator[None]:
    """What is freed is freed at once: there are no cycles for the collector to find."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
