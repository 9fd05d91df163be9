"""`limit`: how many calls of one function run at a time."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eager_async._task import EagerTask

# All limits of this process, for those who have to find them after a fork.
instances: weakref.WeakSet[Limit] = weakref.WeakSet()


class Limit:
    """A number of places, and who waits for one, in the order of the calls.

    Threads: any. The lock is held for a few steps, in which no code of a user's runs; it is reentrant
    for the sake of signal handlers and finalizers that make calls.

    No place is lost: who has one is a member of `_running` until it ends, however it ends.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self.forget_parent()
        instances.add(self)

    def forget_parent(self) -> None:
        """In a forked child: all places are free."""
        self._lock = threading.RLock()
        self._running: set[EagerTask[Any]] = set()
        self._waiting: OrderedDict[EagerTask[Any], None] = OrderedDict()

    def admit(self, task: EagerTask[Any]) -> bool:
        """Give a task a place if there is one, else have it wait.

        Returns:
            Whether the caller is to have it begin.
        """
        task._limit = self
        with self._lock:
            if len(self._running) < self._places:
                self._running.add(task)
                return True
            self._waiting[task] = None
            return False

    def leave(self, task: EagerTask[Any]) -> None:
        """Have the next one begin, soon, in place of one that has ended."""
        with self._lock:
            self._waiting.pop(task, None)
            self._running.discard(task)
            while self._waiting and len(self._running) < self._places:
                successor, _ = self._waiting.popitem(last=False)
                loop_thread = successor._loop_thread
                if loop_thread is not None:  # else it is lost, and on its way here
                    self._running.add(successor)
                    loop_thread.run_soon(successor)
