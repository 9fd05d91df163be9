"""`limit`: how many calls of one function run at a time."""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from eager_async._task import EagerTask

_NOT_THERE: Final = object()

# A place. Added to a list by `+=`, since a call can fail where the stack is full.
_ONE: Final = (None,)

# All limits of this process, for those who have to find them after a fork.
instances: weakref.WeakSet[Limit] = weakref.WeakSet()


class Limit:
    """A number of places, and who waits for one, in the order of the calls.

    Threads: `line_up` is for any; the rest runs in loops' threads alone, where no signal handler raises.

    There is no lock, so a signal handler or a `__del__` that comes in at any point finds none held. Whoever
    wants a place lines up and *then* looks for a free one; whoever leaves frees a place and *then* looks for
    somebody waiting. So at least one of the two sees the other. Whoever is given a place is put among those
    that run and *then* looked at, whether it has ended; who has ended is marked so and *then* taken out. As
    that is one atomic step, each place is given back exactly once.

    What begins or ends on the last frames of a full stack is cut short anywhere; `leave_again` goes on.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self.forget_parent()
        instances.add(self)

    def forget_parent(self) -> None:
        """In a forked child: all places are free."""
        self._waiting: OrderedDict[EagerTask[Any], None] = OrderedDict()
        self._running: dict[EagerTask[Any], None] = {}  # who has a place
        self._starting: dict[EagerTask[Any], None] = {}  # those of them that are queued to begin
        self._used = itertools.count()  # places that were ever used: no more are made than needed
        self._free: list[None] = []  # those of them that were given back

    def line_up(self, task: EagerTask[Any]) -> None:
        """Have a task wait for its turn, before it is queued to begin. From any thread."""
        task._limit = self
        self._waiting[task] = None
        if task.done():  # lost in the meantime
            self._waiting.pop(task, None)

    def admit(self, task: EagerTask[Any]) -> bool:
        """Whether a task may begin now; else it is queued again when it may. In its loop's thread."""
        if task in self._running:
            self._starting.pop(task, None)
            return True
        return self._give_places(task)

    def leave(self, task: EagerTask[Any]) -> None:
        """Have the next one begin, soon, in place of one that has ended. In its loop's thread."""
        self._waiting.pop(task, None)
        self._starting.pop(task, None)
        self._give_back(task)
        self._give_places(None)

    def leave_again(self, task: EagerTask[Any]) -> None:
        """Do again what may have been cut short, since the stack was full. In a loop's thread."""
        for other in list(self._starting):
            loop_thread = other._loop_thread
            if loop_thread is not None:
                loop_thread.run_soon(other)  # perhaps once more, which does no harm
        self.leave(task)

    def _give_back(self, task: EagerTask[Any]) -> None:
        if self._running.pop(task, _NOT_THERE) is not _NOT_THERE:
            self._free += _ONE

    def _give_places(self, asking: EagerTask[Any] | None) -> bool:
        """Give free places to those who wait longest.

        Returns:
            Whether the one that asks has got one, and may begin at once: before nobody who got one earlier.
        """
        while self._waiting:
            try:
                del self._free[-1]
            except IndexError:
                if len(self._running) >= self._places or next(self._used) >= self._places:
                    return False
            try:
                successor, _ = self._waiting.popitem(last=False)
            except KeyError:  # the last one has been taken in the meantime
                self._free += _ONE
                continue
            except BaseException:  # a full stack
                self._free += _ONE
                raise
            self._running[successor] = None
            loop_thread = successor._loop_thread
            if loop_thread is None:  # lost in the meantime
                self._give_back(successor)
            elif successor is asking and not self._starting:
                return True
            else:
                self._starting[successor] = None
                loop_thread.run_soon(successor)
        return False
