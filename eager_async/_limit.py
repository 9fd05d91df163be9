"""`limit`: how many calls of one function run at a time."""

from __future__ import annotations

import weakref
from _thread import allocate_lock
from collections import deque
from typing import TYPE_CHECKING, Any

from eager_async._cpython import running_loop
from eager_async._fork import in_forked_child

if TYPE_CHECKING:
    from eager_async._task import EagerTask

_instances: weakref.WeakSet[Limit] = weakref.WeakSet()


class Limit:
    """A number of places, and who waits for one, in the order of the calls.

    Threads: `line_up` is for any; the rest runs in loops' threads alone, where no signal handler raises.

    Nobody ever waits for a lock, so a signal handler or a `__del__` that comes in at any point finds none in
    its way. One thread at a time gives places; others, and finalizers that come in, leave it to that one. No
    place lies idle: whoever lines up or ends says so and *then* looks whether somebody gives; the one that
    gives stops and *then* looks whether there is more to give. No place is lost: whoever gets one is put
    among those that run and *then* asked whether it has ended; who has ended is marked so and *then* taken
    out.

    What begins or ends on the last frames of a full stack is cut short anywhere; `leave_again` goes on.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._reset()
        _instances.add(self)

    def _reset(self) -> None:
        """All places are free, and nobody waits: at first, and in a forked child."""
        self._giving = allocate_lock()  # held by the thread that gives places; never waited for
        # Taking out of any of these is one atomic step. (Not of an OrderedDict: without the GIL, `popitem`
        # beside another thread's `pop` breaks it, python/cpython#125996.)
        self._waiting: deque[EagerTask[Any]] = deque()  # some may have ended since
        self._ended = 0  # about how many
        self._running: dict[EagerTask[Any], bool] = {}  # who has a place, and whether `_begin` called it up
        self._starting: dict[EagerTask[Any], None] = {}  # those of them that are queued to begin

    def line_up(self, task: EagerTask[Any]) -> None:
        """Have a task wait for its turn, before it is queued. From any thread."""
        task._limit = self
        self._waiting.append(task)

    def admit(self, task: EagerTask[Any]) -> bool:
        """Whether a task that has arrived may begin now; else it will, in its turn. In its loop's thread."""
        return self._running.get(task, False) or self._give_places(task)

    def leave(self, task: EagerTask[Any]) -> None:
        """Have the next one begin, soon, in place of one that has ended. In its loop's thread."""
        self._starting.pop(task, None)
        if self._running.pop(task, None) is None:
            self._ended += 1
            loop = running_loop()
            if self._ended > len(self._waiting) / 2 and loop is not None:
                self._ended = 0
                loop.call_soon(self._sweep)  # where the stack isn't full, so that it isn't cut short
        self._give_places(None)

    def _sweep(self) -> None:
        """Take out those that ended while they waited, unless places are being given. In a loop's thread.

        Each would be passed over in its turn; but that may never come, and one by one they are hard to find.
        """
        if self._giving.acquire(False):  # noqa: FBT003
            try:
                swept = [self._waiting.popleft() for _ in range(len(self._waiting))]
                self._waiting.extendleft(task for task in reversed(swept) if not task.done())
            finally:
                self._giving.release()
            self._give_places(None)  # in the meantime others may have seen nobody waiting

    def leave_again(self, task: EagerTask[Any]) -> None:
        """Do again what may have been cut short, since the stack was full. In a loop's thread."""
        for other in list(self._starting):
            self._queue(other)  # perhaps once more, which does no harm
        self.leave(task)

    def _give_places(self, asking: EagerTask[Any] | None) -> bool:
        """Give free places to those who wait longest, unless another thread is at it.

        Returns:
            Whether the one that asks may begin at once: it has a place, and nobody who got one earlier is
            still to begin.
        """
        at_once = False
        while self._waiting and len(self._running) < self._places and self._giving.acquire(False):  # noqa: FBT003
            try:
                at_once = self._give_one(asking) or at_once
            finally:
                self._giving.release()
        return at_once

    def _give_one(self, asking: EagerTask[Any] | None) -> bool:
        if len(self._running) >= self._places:
            return False
        try:
            successor = self._waiting.popleft()
        except IndexError:  # another thread's in the meantime
            return False
        self._running[successor] = False
        if successor._loop_thread is None:  # it has ended
            self._running.pop(successor, None)
            return False
        if successor is asking and not self._starting:
            return True
        self._starting[successor] = None
        self._queue(successor)
        if successor.done():  # in the meantime, perhaps before it was put there
            self._starting.pop(successor, None)
        return False

    def _queue(self, task: EagerTask[Any]) -> None:
        loop_thread = task._loop_thread
        if loop_thread is not None:
            loop_thread.call_soon(self._begin, task)

    def _begin(self, task: EagerTask[Any]) -> None:
        """Have a task begin in the place that it was given. In its loop's thread."""
        self._starting.pop(task, None)
        if task in self._running:
            self._running[task] = True
            task._run()


@in_forked_child
def _forget_parent() -> None:
    """Those who have places, and wait for them, are the parent's."""
    for limit in list(_instances):
        limit._reset()
