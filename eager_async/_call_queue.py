"""A loop's `call_soon` for other threads, at one wake-up a burst."""

from __future__ import annotations

import collections
import os
import threading
import weakref
from _thread import get_ident
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from eager_async._cpython import running_loop
from eager_async._fork import in_forked_child
from eager_async._log import logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Protocol

    class Runnable(Protocol):
        """What can be queued: it runs itself, as an `asyncio.Handle` for each call costs too much."""

        def _run(self) -> object: ...


# Seconds after which the calls that are left wait for the loop's next turn, so that a flood of them leaves
# room for timers and sockets; and how many are made between two looks at the clock.
_LONGEST_DRAIN: Final = 0.0001
_CALLS_A_LOOK: Final = 20

_os: Any = os  # type checkers know `eventfd` on Linux alone


class CallQueue:
    """Calls that any thread may queue, and one loop makes in its thread, in order.

    `loop.call_soon_threadsafe` writes to a socket each time, which costs more than all the rest of a
    call. Here the loop is woken up only if that isn't under way: `_armed` says that it is to come and look.
    A background loop's queue has a descriptor for that, where it can (`listen`): it costs less, and stays
    readable until no calls are left. To all other loops it comes by `call_soon_threadsafe`, in their own
    threads too, as a signal handler may queue there while the loop sleeps.

    No call is lost: whoever queues appends and *then* looks at `_armed`; the loop clears it and *then* looks
    whether there are calls. So a thread that finds it set has appended before that look; both orders hold
    without the GIL too, as appending, and storing to the slot, each take their object's lock. Two threads
    that arm at once cost a look that finds nothing. Whoever is interrupted while arming wakes the loop all
    the same; and a signal handler that finds it set by the very thread that it has interrupted does so
    itself: `_arming` tells.

    Threads: `listen` comes before the loop runs; `unlisten` when it runs no more, and nobody else runs it.
    `_wake_up` reads `_descriptor` once, and so keeps it open while it writes.
    """

    __slots__ = ("_armed", "_arming", "_calls", "_descriptor", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._armed = False
        self._arming: set[int] = set()  # the threads that are about to wake up the loop
        self._calls: collections.deque[Runnable] = collections.deque()
        self._loop = weakref.ref(loop)  # the queue of a foreign loop must not keep it
        self._descriptor: _Descriptor | None = None

    def listen(self) -> None:
        """Be woken up by a descriptor, if system and loop can do that. Before the loop runs."""
        loop = self._loop()
        if loop is None or not hasattr(os, "eventfd"):
            return
        try:
            descriptor = _Descriptor()
            loop.add_reader(descriptor.number, self._on_readable, descriptor)
        except (NotImplementedError, OSError):  # not with this loop, or no descriptor can be had
            return
        self._descriptor = descriptor

    def unlisten(self) -> None:
        """End that. When the loop runs no more, before it is closed."""
        loop, descriptor, self._descriptor = self._loop(), self._descriptor, None
        if loop is not None and descriptor is not None and not loop.is_closed():
            loop.remove_reader(descriptor.number)

    def call_soon(self, function: Callable[..., object], *arguments: object) -> bool:
        """Have the loop make a call, in this thread's order. From any thread.

        Returns:
            False if the loop is closed, and may never make the call.
        """
        return self.run_soon(_Call(function, arguments))

    def run_soon(self, call: Runnable) -> bool:
        """`call_soon` for what knows how to run."""
        self._calls.append(call)
        if self._armed and not (self._arming and get_ident() in self._arming):
            return True
        return self._arm()

    def _arm(self) -> bool:
        loop = self._loop()
        if loop is None:
            return False
        thread = get_ident()
        outermost = thread not in self._arming
        try:
            self._arming.add(thread)
            self._armed = True
            self._wake_up(loop)
        except BaseException as exc:
            self._armed = False
            if isinstance(exc, RuntimeError) and loop.is_closed():
                self._calls.clear()  # or they would be kept as long as the loop's thread has no other
                return False
            with suppress(Exception):  # it was a Ctrl-C: others may have queued meanwhile, and found it armed
                self._wake_up(loop)
            raise
        finally:
            if outermost:
                self._arming.discard(thread)
        return True

    def _wake_up(self, loop: asyncio.AbstractEventLoop) -> None:
        descriptor = self._descriptor
        if descriptor is None:
            loop.call_soon_threadsafe(self._drain)
            return
        if running_loop() is loop:
            loop.call_soon(self._drain)  # for the order among the loop's own callbacks
        descriptor.write()  # in its own thread too: a finalizer may come in when it is about to sleep

    def _on_readable(self, descriptor: _Descriptor) -> None:
        """`_drain`, for the descriptor."""
        self._make_calls()
        if not self._calls:  # else it stays readable, and the loop comes back in its next turn
            descriptor.read()  # after the calls: it lets other threads take the GIL
            self._armed = False
            if self._calls:
                self._arm()

    def _drain(self) -> None:
        self._armed = False
        try:
            self._make_calls()
        finally:
            if self._calls and not self._armed:
                self._arm()

    def _make_calls(self) -> None:
        """Make the calls that are there, or as many as the time allows."""
        calls = self._calls
        left = len(calls)  # those that come in the meantime wait for the next turn
        loop = self._loop()
        if left and loop is not None and loop.get_debug():
            _run_timed(calls.popleft(), loop)  # one a look, as asyncio takes the time of each
            return
        deadline = monotonic() + _LONGEST_DRAIN
        while left > 0:
            for _ in range(min(left, _CALLS_A_LOOK)):
                calls.popleft()._run()
            left -= _CALLS_A_LOOK
            if monotonic() > deadline:
                break


def _run_timed(call: Runnable, loop: asyncio.AbstractEventLoop) -> None:
    """Make a call, and log it if it takes long, as asyncio's debug mode does, which would name the queue."""
    started = monotonic()
    call._run()
    took = monotonic() - started
    if took >= getattr(loop, "slow_callback_duration", 0.1):
        logger.warning("executing %r took %.3f seconds", call, took)


class _Descriptor:
    """What threads write to and a loop listens to: Linux's eventfd.

    It is closed when nobody refers to it any more, so no thread writes to a number that is somebody else's.
    """

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number: int = _os.eventfd(0, _os.EFD_NONBLOCK | _os.EFD_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the end of the process, the module's own names may be gone.
        if hasattr(self, "number"):
            close(self.number)

    def write(self) -> None:
        _os.eventfd_write(self.number, 1)

    def read(self) -> None:
        with suppress(BlockingIOError):  # read already: a turn that is broken off is made up for in the next
            _os.eventfd_read(self.number)


class _Call:
    """A function and its arguments."""

    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._function = function
        self._arguments = arguments

    def __repr__(self) -> str:
        return f"<call of {self._function!r} with {self._arguments!r}>"

    def _run(self) -> None:
        self._function(*self._arguments)


_local = threading.local()


def call_queue(loop: asyncio.AbstractEventLoop) -> CallQueue:
    """The queue of the loop that runs in this thread."""
    queue: CallQueue | None = getattr(_local, "queue", None)
    if queue is None or queue._loop() is not loop:
        queue = CallQueue(loop)
        adopt(queue)
    return queue


def adopt(queue: CallQueue) -> None:
    """Make a queue that of the loop which runs in this thread."""
    _local.queue = queue


@in_forked_child
def _forget_parent() -> None:
    """A wake-up that was under way in the parent never comes here."""
    global _local  # noqa: PLW0603
    _local = threading.local()
