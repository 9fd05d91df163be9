"""What an async generator makes in the background, some items ahead of whoever iterates over it."""

from __future__ import annotations

from _thread import allocate_lock
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from eager_async._channel import Channel, OccupiedError
from eager_async._future import CancelRequest

if TYPE_CHECKING:
    import contextvars
    import types
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
    from typing import Self

    from eager_async._loop_thread import LoopThread
    from eager_async._task import EagerTask

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_FOR: Final = "`async for` in place of `for`"


class EagerStream(Generic[T_co]):
    """The items of an async generator, which has started: iterate with `for`, or with `async for`.

    It stays at most `buffer` items ahead of its consumer. Exceptions come out where the consumer stands,
    after the items before them. Leaving early ends the generator, and runs its cleanup on the loop: with
    `close()`, `with`, their async twins, or by dropping the last reference, as a `for` over a fresh call
    does when it is left.

    Functions under `@eager_stream` make streams. One consumer may iterate at a time, in any thread or
    loop; any thread may close.
    """

    # The generator's run knows the channel alone, so that a stream that nobody refers to is collected.
    __slots__ = ("__weakref__", "_channel", "_over", "_producing")

    def __init__(self, producing: EagerTask[None], channel: Channel[T_co]) -> None:
        """Not for users: call a function under `@eager_stream`."""
        self._producing = producing
        self._over = False  # whether the consumer has seen the end, or left
        self._channel = channel
        if not producing._call_when_done(channel, channel):
            channel.wake_consumer()

    # In plain code

    def __iter__(self) -> Iterator[T_co]:
        """Iterate in plain code, blocking the thread while there is no item.

        Raises:
            DeadlockError: In the loop's own thread, while the generator runs.
        """
        self._producing._check_deadlock(_FOR)
        return self

    def __next__(self) -> T_co:
        """Return the next item, as soon as there is one. From any thread but the loop's own.

        Raises:
            StopIteration: At the end, or after `close()`.
            BaseException: What the generator raised, once.
            RuntimeError: If another consumer waits for an item.
            DeadlockError: In the loop's own thread, if there is no item yet.
            asyncio.CancelledError: If the loop was shut down, or the process ends.
        """
        __tracebackhide__ = True
        try:
            while not self._over:
                try:
                    return self._channel.take()
                except IndexError:
                    pass  # out of the handler, or what follows would get this as its context
                if not self._sees_end():
                    self._block()
            raise StopIteration
        finally:
            del self  # no cycle from the exception through this frame (python/cpython#80111)

    def _block(self) -> None:
        """Wait until there is an item, or the end."""
        __tracebackhide__ = True
        loop_thread = self._producing._loop_thread
        if loop_thread is None:
            return  # the end
        self._producing._check_blocking(_FOR)
        lock = allocate_lock()
        lock.acquire()
        wake = lock.release
        try:
            if self._call_at_next(wake):
                loop_thread.wait_for(lock, None)
        finally:
            self._channel.forget(wake)

    def close(self) -> None:
        """End the generator if it runs, and wait for its cleanup. From any thread but the loop's own.

        What it does at the moment is cancelled; at a `yield`, it gets `GeneratorExit`.

        Raises:
            DeadlockError: In the loop's own thread, if it runs; it ends all the same.
            BaseException: What the cleanup raised.
        """
        __tracebackhide__ = True
        try:
            if self._leave():
                self._producing._block(None, "`await stream.aclose()` in place of `stream.close()`")
                self._raise_from_cleanup()
        finally:
            del self  # no cycle, as in `__next__`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.close()
        finally:
            del self  # no cycle, as in `__next__`

    # In asyncio

    def __aiter__(self) -> AsyncIterator[T_co]:
        """Iterate in any asyncio task, of any loop, without blocking it."""
        return self

    async def __anext__(self) -> T_co:
        """Return the next item, as soon as there is one. A wait that is cancelled loses none.

        Raises:
            StopAsyncIteration: At the end, or after `aclose()`.
            BaseException: What the generator raised, once.
            RuntimeError: If another consumer waits for an item.
            DeadlockError: In the generator itself.
            asyncio.CancelledError: If the loop was shut down, or the process ends.
        """
        __tracebackhide__ = True
        try:
            while not self._over:
                try:
                    return self._channel.take()
                except IndexError:
                    pass
                if not self._sees_end():
                    await self._wait()
            raise StopAsyncIteration
        finally:
            del self  # no cycle, as in `__next__`

    async def _wait(self) -> None:
        """Wait until there is an item, or the end."""
        __tracebackhide__ = True
        awaiter = self._producing._new_awaiter()
        try:
            if self._call_at_next(awaiter):
                await awaiter.future
        finally:
            self._channel.forget(awaiter)

    async def aclose(self) -> None:
        """End the generator if it runs, and wait for its cleanup. In any asyncio task, of any loop.

        What it does at the moment is cancelled; at a `yield`, it gets `GeneratorExit`.

        Raises:
            DeadlockError: In the generator itself; it ends all the same.
            BaseException: What the cleanup raised.
        """
        __tracebackhide__ = True
        try:
            if self._leave():
                awaiter = self._producing._new_awaiter()
                try:
                    if self._producing._call_when_done(awaiter, awaiter):
                        await awaiter.future
                finally:
                    self._producing._forget(awaiter)
                self._raise_from_cleanup()
        finally:
            del self  # no cycle, as in `__next__`

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self.aclose()
        finally:
            del self  # no cycle, as in `__next__`

    # For both

    def __del__(self) -> None:
        if hasattr(self, "_channel"):  # else it was never made
            self._leave()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Not for users: raises TypeError. Two streams would take each other's items."""
        raise TypeError("a stream can't be copied or pickled; its items can: write `list(stream)`")

    def __repr__(self) -> str:
        producing, ahead = self._producing, len(self._channel.items)
        items = "item" if ahead == 1 else "items"
        state = producing._state_text("ended")
        return (
            f"<EagerStream {id(self):#x} {producing.get_name()} {state}, {ahead} {items} ahead, "
            f"{producing._call_text()}>"
        )

    def _call_at_next(self, call: Callable[[], object]) -> bool:
        """`Channel.call_at_next`, with an error that helps."""
        __tracebackhide__ = True
        try:
            return self._channel.call_at_next(call, self._producing)
        except OccupiedError:
            raise RuntimeError(
                f"{self!r} has a consumer that waits for the next item; a stream has one at a time: "
                f"make a call for each, or let one hand the items on, by a `queue.Queue` for example"
            ) from None

    def _sees_end(self) -> bool:
        """Whether no item will come; raises what the generator raised."""
        __tracebackhide__ = True
        done = self._producing.done()  # looked at first, for no item comes after the end
        if self._channel.items or not done:
            return False
        try:
            if not self._over:  # else another thread has closed it
                self._over = True
                self._producing.result()
        finally:
            del self  # no cycle, as in `__next__`
        return True

    def _leave(self) -> bool:
        """Have the generator end; return whether it still ran. Called again, it cancels nothing more."""
        runs = not self._producing.done()
        self._over = True
        self._channel.close()
        if runs:  # else this may be the end of the process, when the module's names are gone
            self._producing._cancel_for_awaiter(CancelRequest())
        return runs

    def _raise_from_cleanup(self) -> None:
        __tracebackhide__ = True
        try:
            if not self._producing.cancelled():
                self._producing.result()
        finally:
            del self  # no cycle, as in `__next__`


def start_stream(
    generator: AsyncGenerator[T, Any],
    buffer: int,
    loop_thread: LoopThread,
    name: str,
    daemon: bool | None,  # noqa: FBT001
    context: contextvars.Context,
    caller: types.FrameType,
) -> EagerStream[T]:
    """Have a generator begin on a loop; as for `LoopThread.start_task`."""
    channel: Channel[T] = Channel(buffer, loop_thread)
    producing = loop_thread.start_task(_produce(generator, channel), name, daemon, context, caller)
    producing._keeps_cancellation = False
    return EagerStream(producing, channel)


async def _produce(generator: AsyncGenerator[T, Any], channel: Channel[T]) -> None:
    try:
        async for item in generator:
            if not channel.put(item) and not await _rest(generator, channel):
                break
    except GeneratorExit:  # its loop is dead, and nothing can be awaited any more
        raise
    except BaseException:
        await generator.aclose()
        raise
    await generator.aclose()


async def _rest(generator: AsyncGenerator[T, Any], channel: Channel[T]) -> bool:
    """Rest as `Channel.rest` does, and return what that does.

    A cancellation that isn't the library's, but of the generator's own timeout, say, is raised at its `yield`
    when it goes on.
    """
    cancelled: CancelledError | None = None
    try:
        while True:
            try:
                wanted = await channel.rest()
            except CancelledError as exc:
                if channel.is_cancelled():
                    raise
                cancelled = exc
                continue
            if cancelled is None:
                return wanted
            try:
                item = await generator.athrow(cancelled)
            except StopAsyncIteration:
                return False
            if channel.put(item):
                return True
            cancelled = None
    finally:
        del cancelled  # no cycle from the exception through this frame
