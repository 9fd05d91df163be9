"""How `concurrent.futures.wait` and `as_completed` look at eager futures, and wait for them.

They hold a condition of each future, so that none changes its state while they look at all and then enlist
with all; who ends one waits for its condition, and then for the locks of those enlisted. Any of these may
never be released: a Ctrl-C may come just after one was acquired, or a signal handler that itself waits. So a
loop's thread must wait for none. Here, to the thread that looks, a future stays as it was; and those enlisted
are told in their own threads.
"""

from __future__ import annotations

import collections
import weakref
from _thread import get_ident
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from eager_async._wake_up import WakeUp

if TYPE_CHECKING:
    from eager_async._future import EagerFuture


class Look:
    """A future's condition and its list of waiters, as these functions use them. In any thread."""

    __slots__ = ("_future",)

    def __init__(self, future: EagerFuture[Any]) -> None:
        self._future = future

    def acquire(self) -> bool:
        """Keep the future as it is, to this thread."""
        seen = vars(self._future).setdefault("_seen", {})
        thread = get_ident()
        unfinished, times = seen.get(thread, (not self._future.done(), 0))
        seen[thread] = (unfinished, times + 1)
        return True

    def release(self) -> None:
        """End that, if it was acquired no more than once."""
        seen = vars(self._future)["_seen"]
        thread = get_ident()
        unfinished, times = seen.get(thread, (False, 1))
        if times > 1:
            seen[thread] = (unfinished, times - 1)
        else:
            seen.pop(thread, None)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def sees_unfinished(self) -> bool:
        """Whether the future was not done yet when this thread began to look."""
        seen = vars(self._future).get("_seen", {})
        return bool(seen.get(get_ident(), (False, 0))[0])

    def append(self, waiter: Any) -> None:
        """Have a waiter told of the end, unless this thread has seen it."""
        if not self.sees_unfinished():
            return
        if not isinstance(waiter.event, _Event):
            waiter.event = _Event(waiter)  # before anybody waits for it, or may set it
        tell = partial(waiter.event.end, self._future)
        if not self._future._call_when_done(waiter, tell):
            tell()

    def remove(self, waiter: Any) -> None:
        """Take that back."""
        self._future._forget(waiter)


class _Event:
    """The `threading.Event` of a waiter, but for its lock: nobody waits in here but who waits for the event.

    Threads: `wait` and `clear` are for the one that waits; the rest is for any. Whoever ends a future adds it
    and *then* wakes up the one that waits; that looks, sleeps, and looks again.
    """

    __slots__ = ("_ended", "_set", "_waiter", "_wake_up")

    def __init__(self, waiter: Any) -> None:
        self._waiter = weakref.ref(waiter)
        self._ended: collections.deque[EagerFuture[Any]] = collections.deque()  # to be told to the waiter
        self._set = False
        self._wake_up = WakeUp()

    def end(self, future: EagerFuture[Any]) -> None:
        """Have the waiter told that a future is done."""
        self._ended.append(future)
        self._wake_up()

    def set(self) -> None:
        self._set = True
        self._wake_up()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Tell the waiter what has ended, until that sets the event, or time (in seconds) runs out."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            while self._ended:
                self._ended.popleft()._tell(self._waiter())
            if self._set:
                return True
            left = -1 if deadline is None else deadline - monotonic()
            if deadline is not None and left <= 0:
                return False
            self._wake_up.wait(left)
