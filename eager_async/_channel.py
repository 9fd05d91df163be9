"""Items on their way from a producer on a background loop to a consumer anywhere."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from eager_async._call_queue import call_queue
from eager_async._fork import forget_parent
from eager_async._future import Awaiter, wake_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from eager_async._future import EagerFuture
    from eager_async._loop_thread import LoopThread

T = TypeVar("T")

# Items that are put before other tasks of the loop have a turn for sure: the generator may never wait.
_MOST_IN_A_ROW: Final = 100

# All values are True, so that `pop(call, False)` says who took a call out.
_Sleepers = dict["Callable[[], object]", bool]


class OccupiedError(Exception):
    """Another consumer waits."""


class Channel(Generic[T]):
    """A buffer between one producer and one consumer.

    Threads: `put`, `rest` and `is_cancelled` are for the producer, in its loop's thread; `take`,
    `call_at_next` and `forget` for the consumer, in any one thread at a time; `close` and `wake_consumer`
    for all.

    There is no lock, as in `EagerFuture`: who has to wait puts a call among the sleepers and *then* looks
    whether it still has to; the other changes that and *then* makes the call. A consumer's is taken out for
    that, which is one atomic step; a producer's stays until the producer goes on, and may be made again. Who
    closes doesn't make it, but cancels the producer.
    """

    __slots__ = ("_consumer", "_in_a_row", "_loop_thread", "_low_water", "_producer", "_size", "items")

    def __init__(self, size: int, loop_thread: LoopThread) -> None:
        self.items: deque[T] = deque()  # made and not yet taken
        self._size = size  # how many there may be; 0 once closed
        self._low_water = size // 2  # with no more than that left, a producer at rest goes on
        self._in_a_row = 0  # how many were put since the producer was last at rest
        self._consumer: _Sleepers = {}
        self._producer: _Sleepers = {}
        self._loop_thread = loop_thread

    def put(self, item: T) -> bool:
        """Hand over an item; return whether another may follow at once."""
        self.items.append(item)
        if self._size == 0:  # closed, perhaps just now
            self.items.clear()
            return False
        self.wake_consumer()
        self._in_a_row += 1
        return len(self.items) < self._size and self._in_a_row < _MOST_IN_A_ROW

    async def rest(self) -> bool:
        """Let the loop turn, until few items are left; return whether more are wanted.

        From a full buffer on until few items are left, the producer doesn't hold the process.
        """
        self._in_a_row = 0
        if len(self.items) < self._size:
            await asyncio.sleep(0)
            return True
        while await self._sleep():
            pass  # perhaps the consumer woke it up on coming to an empty buffer, which has been filled since
        return not self._is_to_end()

    async def _sleep(self) -> bool:
        """Sleep until somebody wakes the producer up, if it may rest; return whether it did."""
        loop, resting = self._loop_thread.loop, self._loop_thread.resting
        task = asyncio.current_task(loop)
        assert task is not None
        awaiter = Awaiter(loop, call_queue(loop))
        self._producer[awaiter] = True
        try:
            # `close` comes before the cancellation that goes with it: rest until that is here, or it would
            # interrupt the cleanup. If the generator has swallowed it already, no other comes.
            if self._is_to_end() or (self._size > 0 and len(self.items) <= self._low_water):
                return False
            resting.add(task)
            self._loop_thread.tell_watchers()
            await awaiter.future
            return True
        finally:
            resting.discard(task)
            self._producer.pop(awaiter, False)
            del task, awaiter  # no cycle from a cancellation through this frame

    def _is_to_end(self) -> bool:
        """Whether the producer was told to end, though it may have swallowed that."""
        return self.is_cancelled() or (self._size == 0 and self._was_told())

    def is_cancelled(self) -> bool:
        """Whether the producer was told to end, and not cancelled by a timeout of its own, for one."""
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling() > 0 and self._was_told()

    def _was_told(self) -> bool:
        """Whether a request to end was delivered to the producer, whatever it has made of that."""
        task = asyncio.current_task()
        return any(
            eager_task._cancelling
            for eager_task in self._loop_thread.tasks.copy()
            if eager_task._asyncio_task is task
        )

    def take(self) -> T:
        """Take the oldest item.

        Raises:
            IndexError: If there is none.
        """
        item = self.items.popleft()
        if self._producer and len(self.items) <= self._low_water:
            self._wake_producer()
        return item

    def call_at_next(self, call: Callable[[], object], producing: EagerFuture[None]) -> bool:
        """Have a call made when there is an item, or the producer has ended.

        Returns:
            False if that is so already, and the call isn't made.

        Raises:
            OccupiedError: If another consumer waits. (Of two who come at the same time, both may get it.)
        """
        forget_parent()
        self._wake_producer()  # again: a Ctrl-C may have come in between when the last item was taken
        self._consumer[call] = True
        if len(self._consumer) > 1:
            raise OccupiedError
        if not self.items and not producing.done():
            return True
        return not self._consumer.pop(call, False)  # taken out in the meantime, and so made

    def forget(self, call: Callable[[], object]) -> None:
        """Take back a call that `call_at_next` was given."""
        self._consumer.pop(call, False)

    def wake_consumer(self) -> None:
        """Make the call that `call_at_next` was given."""
        for call in list(self._consumer):
            if self._consumer.pop(call, False):
                call()

    __call__ = wake_consumer  # when the producer has ended

    def leave_behind(self) -> None:
        """In a forked child, as `wake_in_child` for that call."""
        for call in list(self._consumer):
            wake_in_child(call)

    def _wake_producer(self) -> None:
        if not self._loop_thread.ended:  # in a forked child, it is the parent's
            for call in list(self._producer):
                call()

    def close(self) -> None:
        """Want no more items, nor those that are there. The producer is then to be cancelled."""
        self._size = 0
        self.items.clear()
