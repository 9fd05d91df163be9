"""Items on their way from a producer on a background loop to a consumer anywhere."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from eager_async._call_queue import call_queue
from eager_async._future import Awaiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from eager_async._future import EagerFuture
    from eager_async._loop_thread import LoopThread

T = TypeVar("T")

_PRODUCER: Final = "producer"
_CONSUMER: Final = "consumer"

# Items that a generator which never waits may make before other tasks of its loop have their turn.
_MOST_IN_A_ROW: Final = 100


class Channel(Generic[T]):
    """A buffer between one producer and one consumer.

    Threads: `put` and `rest` are for the producer, in its loop's thread; `take` and `call_at_next` for
    the consumer, in any one thread at a time; `close` and `wake_consumer` for all.

    There is no lock, as in `EagerFuture`: who has to wait puts a call among the sleepers and *then* looks
    whether it still has to; the other changes that and *then* takes the call out, which is one atomic
    step, and makes it.
    """

    __slots__ = ("_few", "_in_a_row", "_loop_thread", "_size", "_sleepers", "items")

    def __init__(self, size: int, loop_thread: LoopThread) -> None:
        self.items: deque[T] = deque()  # made and not yet taken
        self._size = size  # how many there may be; 0 once closed
        self._few = size // 2  # with no more than that left, a producer at rest goes on
        self._in_a_row = 0  # how many were put since the loop turned
        self._sleepers: dict[str, Callable[[], object]] = {}
        self._loop_thread = loop_thread

    def put(self, item: T) -> bool:
        """Hand over an item; return whether another may follow at once."""
        self.items.append(item)
        self.wake_consumer()
        self._in_a_row += 1
        return len(self.items) < self._size and self._in_a_row < _MOST_IN_A_ROW

    async def rest(self) -> bool:
        """Let the loop turn until there is room again; return whether more items are wanted.

        While the buffer is full the producer doesn't hold the process.
        """
        self._in_a_row = 0
        loop, resting = self._loop_thread.loop, self._loop_thread.resting
        producer = asyncio.current_task(loop)
        assert producer is not None
        awaiter = Awaiter(loop, call_queue(loop))
        self._sleepers[_PRODUCER] = awaiter
        try:
            if len(self.items) > self._few:
                resting.add(producer)
                self._loop_thread.tell_watchers()
                await awaiter.future
            else:
                await asyncio.sleep(0)
        finally:
            resting.discard(producer)
            self._sleepers.pop(_PRODUCER, None)
        return self._size > 0

    def take(self) -> T:
        """Take the oldest item.

        Raises:
            IndexError: If there is none.
        """
        item = self.items.popleft()
        # In a forked child the producer is the parent's.
        if self._sleepers and len(self.items) <= self._few and not self._loop_thread.ended:
            self._wake(_PRODUCER)
        return item

    def call_at_next(self, call: Callable[[], object], producing: EagerFuture[None]) -> bool:
        """Have a call made when there is an item, or the producer has ended.

        Returns:
            False if that is so already, and the call isn't made.
        """
        self._sleepers[_CONSUMER] = call
        return not (self.items or producing.done()) or self._sleepers.pop(_CONSUMER, None) is None

    def forget_consumer(self) -> None:
        """Take back the call that `call_at_next` was given."""
        self._sleepers.pop(_CONSUMER, None)

    def wake_consumer(self) -> None:
        """Make the call that `call_at_next` was given."""
        if self._sleepers:
            self._wake(_CONSUMER)

    def close(self) -> None:
        """Want no more items, nor those that are there."""
        self._size = 0
        self.items.clear()

    def _wake(self, who: str) -> None:
        call = self._sleepers.pop(who, None)
        if call is not None:
            call()
