"""Ways to run a coroutine from elsewhere, each as its own documents have it.

A peer is made with the factory of the loops on which it is measured. What one can't do, such as to start
a call without waiting for it, isn't measured. The function around those that are no decorators adds some
0.05 µs to their calls.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Final
from unittest import mock

from benchmarks.measuring import Outcome, traced_memory
from eager_async import BackgroundLoop, eager, eager_stream, set_shared_loop, shared_loop

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
    )

    Body = Callable[[int], Coroutine[Any, Any, int]]
    Items = Callable[[int], AsyncGenerator[int]]
    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

CALLS: Final = frozenset({"burst", "one", "gather", "nested", "memory"})
STREAMS: Final = frozenset({"stream", "async_stream"})


class Peer:
    """A way to run a coroutine. These defaults are for those whose calls return a future."""

    name: ClassVar[str]
    module: ClassVar[str] = "asyncio"  # to be installed
    can: ClassVar[frozenset[str]] = CALLS  # the methods of this class that can be measured
    has_loop: ClassVar[bool] = True

    def __init__(self, factory: LoopFactory) -> None:
        self.factory = factory

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it can be measured here."""
        return importlib.util.find_spec(cls.module) is not None

    def close(self) -> None:
        """End its threads."""

    # How it calls

    def start(self, body: Body) -> Callable[[int], Any]:
        """A function whose calls return a future, which has a `result()`."""
        raise NotImplementedError

    def awaited(self, body: Body) -> Callable[[int], Awaitable[int]]:
        """A function whose calls can be awaited on another loop, and on its own."""
        raise NotImplementedError

    def run(self, body: Callable[[Any], Coroutine[Any, Any, Any]], argument: object = None) -> Any:
        """Run something on its loop, to prepare a run, and wait for it."""
        return self.start(body)(argument).result()  # type: ignore[arg-type]

    # What is measured

    def burst(self, body: Body, count: int) -> Outcome:
        """So many calls from a plain thread, then all results."""
        start = self.start(body)
        began = perf_counter()
        results = [future.result() for future in [start(i) for i in range(count)]]
        return Outcome(perf_counter() - began, results)

    def one(self, body: Body, count: int) -> Outcome:
        """From a plain thread: one call, and its result, at a time."""
        start = self.start(body)
        began = perf_counter()
        results = [start(i).result() for i in range(count)]
        return Outcome(perf_counter() - began, results)

    def gather(self, body: Body, count: int) -> Outcome:
        """`asyncio.gather` of so many calls, from another loop."""
        with asyncio.Runner(loop_factory=self.factory) as runner:
            return runner.run(_gather(self.awaited(body), count))

    def nested(self, body: Body, count: int) -> Outcome:
        """On the peer's loop, a body that calls and awaits another, one at a time."""
        call = self.awaited(body)

        async def outer(_: object) -> Outcome:
            began = perf_counter()
            results = [await call(i) for i in range(count)]
            return Outcome(perf_counter() - began, results)

        outcome: Outcome = self.run(outer)
        return outcome

    def memory(self, body: Body, count: int, gate: asyncio.Future[None]) -> Outcome:
        """The memory that so many calls take up while they await a future of the loop."""
        start = self.start(body)
        futures: list[Any] = [None] * count
        with traced_memory() as in_use:
            for i in range(count):
                futures[i] = start(i)
            self.run(_turn)  # begins after them all
            used = in_use()
        gate.get_loop().call_soon_threadsafe(gate.set_result, None)
        return Outcome(used, [future.result() for future in futures])

    def stream(self, items: Items, count: int) -> Outcome:
        """So many items of an async generator into a `for` loop, in a plain thread."""
        raise NotImplementedError

    def async_stream(self, items: Items, count: int) -> Outcome:
        """The same into an `async for`, on another loop."""
        with asyncio.Runner(loop_factory=self.factory) as runner:
            return runner.run(self._async_stream(items, count))

    async def _async_stream(self, items: Items, count: int) -> Outcome:
        raise NotImplementedError


class EagerAsync(Peer):
    """This library, as its users have it: with the shared loop."""

    name = "eager_async"
    can = CALLS | STREAMS

    def __init__(self, factory: LoopFactory) -> None:
        super().__init__(factory)
        self._before = set_shared_loop(BackgroundLoop(loop_factory=factory))

    def close(self) -> None:
        shared_loop().shutdown()
        set_shared_loop(self._before)

    def start(self, body: Body) -> Callable[[int], Any]:
        return eager(body)

    def awaited(self, body: Body) -> Callable[[int], Awaitable[int]]:
        return eager(body)

    def stream(self, items: Items, count: int) -> Outcome:
        return _iterate(eager_stream(items), count)

    async def _async_stream(self, items: Items, count: int) -> Outcome:
        return await _iterate_async(eager_stream(items), count)


class RunCoroutineThreadsafe(Peer):
    """`asyncio.run_coroutine_threadsafe` on a loop in a thread."""

    name = "run_coroutine_threadsafe"
    can = CALLS | STREAMS

    def __init__(self, factory: LoopFactory) -> None:
        super().__init__(factory)
        self._loop = factory()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, body: Body) -> Callable[[int], Any]:
        loop, run_coroutine_threadsafe = self._loop, asyncio.run_coroutine_threadsafe
        return lambda i: run_coroutine_threadsafe(body(i), loop)

    def awaited(self, body: Body) -> Callable[[int], Awaitable[int]]:
        loop, run_coroutine_threadsafe = self._loop, asyncio.run_coroutine_threadsafe
        wrap_future = asyncio.wrap_future
        return lambda i: wrap_future(run_coroutine_threadsafe(body(i), loop))

    def stream(self, items: Items, count: int) -> Outcome:
        loop, run_coroutine_threadsafe = self._loop, asyncio.run_coroutine_threadsafe
        results = []
        began = perf_counter()
        iterator = items(count)
        with suppress(StopAsyncIteration):
            while True:
                results.append(run_coroutine_threadsafe(iterator.__anext__(), loop).result())
        return Outcome(perf_counter() - began, results)

    async def _async_stream(self, items: Items, count: int) -> Outcome:
        loop, run_coroutine_threadsafe = self._loop, asyncio.run_coroutine_threadsafe
        wrap_future = asyncio.wrap_future
        results = []
        began = perf_counter()
        iterator = items(count)
        with suppress(StopAsyncIteration):
            while True:
                results.append(await wrap_future(run_coroutine_threadsafe(iterator.__anext__(), loop)))
        return Outcome(perf_counter() - began, results)


class Floor(RunCoroutineThreadsafe):
    """What waking up a loop and being woken up takes, with no coroutine: a call can't be cheaper."""

    name = "call_soon_threadsafe + lock"
    can = frozenset({"one"})

    def one(self, body: Body, count: int) -> Outcome:  # noqa: ARG002
        call_soon_threadsafe = self._loop.call_soon_threadsafe
        began = perf_counter()
        for _ in range(count):
            lock = threading.Lock()
            lock.acquire()
            call_soon_threadsafe(lock.release)
            lock.acquire()
        return Outcome(perf_counter() - began, range(count))


class CreateTask(Peer):
    """`asyncio.create_task` on one loop, without threads."""

    name = "create_task"
    can = CALLS - {"one"}

    def __init__(self, factory: LoopFactory) -> None:
        super().__init__(factory)
        self._runner = asyncio.Runner(loop_factory=factory)

    def close(self) -> None:
        self._runner.close()

    def awaited(self, body: Body) -> Callable[[int], Awaitable[int]]:
        create_task = asyncio.create_task
        return lambda i: create_task(body(i))

    def run(self, body: Callable[[Any], Coroutine[Any, Any, Any]], argument: object = None) -> Any:
        return self._runner.run(body(argument))

    def burst(self, body: Body, count: int) -> Outcome:
        """`gather` takes the place of waiting for all results."""
        return self.gather(body, count)

    def gather(self, body: Body, count: int) -> Outcome:
        """On its own loop, there being no other."""
        return self._runner.run(_gather(self.awaited(body), count))

    def memory(self, body: Body, count: int, gate: asyncio.Future[None]) -> Outcome:
        async def hold() -> Outcome:
            start = self.awaited(body)
            tasks: list[Any] = [None] * count
            with traced_memory() as in_use:
                for i in range(count):
                    tasks[i] = start(i)
                await _turn()
                used = in_use()
            gate.set_result(None)
            return Outcome(used, [await task for task in tasks])

        return self._runner.run(hold())


class Unsync(Peer):
    """`@unsync`. It has one loop, of the default kind, for the whole process."""

    name = "unsync"
    module = "unsync"
    can = CALLS - {"gather"}  # its futures can be awaited on its own loop alone

    def __init__(self, factory: LoopFactory) -> None:
        import unsync  # noqa: PLC0415

        super().__init__(factory)
        self._unsync: Any = unsync.unsync
        self._unsync._init_loop()  # a new one, as the default may have changed

    def close(self) -> None:
        self._unsync.loop.call_soon_threadsafe(self._unsync.loop.stop)
        self._unsync.thread.join()
        self._unsync.loop.close()

    def start(self, body: Body) -> Callable[[int], Any]:
        function: Callable[[int], Any] = self._unsync(body)
        return function

    def awaited(self, body: Body) -> Callable[[int], Awaitable[int]]:
        return self.start(body)


class BlockingPortal(Peer):
    """anyio's blocking portal: `start_task_soon` in a burst, `call` one at a time."""

    name = "anyio portal"
    module = "anyio"
    can = frozenset({"burst", "one", "memory"})

    def __init__(self, factory: LoopFactory) -> None:
        from anyio.from_thread import start_blocking_portal  # noqa: PLC0415

        super().__init__(factory)
        self._opened = start_blocking_portal("asyncio", {"loop_factory": factory})
        self._portal = self._opened.__enter__()

    def close(self) -> None:
        self._opened.__exit__(None, None, None)

    def start(self, body: Body) -> Callable[[int], Any]:
        start_task_soon = self._portal.start_task_soon
        return lambda i: start_task_soon(body, i)

    def one(self, body: Body, count: int) -> Outcome:
        call = self._portal.call
        began = perf_counter()
        results = [call(body, i) for i in range(count)]
        return Outcome(perf_counter() - began, results)


class AsyncToSync(Peer):
    """`asgiref.sync.async_to_sync`, which makes a loop of the default kind for each call."""

    name = "async_to_sync"
    module = "asgiref"
    can = frozenset({"one"})

    def one(self, body: Body, count: int) -> Outcome:
        from asgiref.sync import async_to_sync  # noqa: PLC0415

        return _call_each(async_to_sync(body), count)


class Synchronicity(Peer):
    """A function wrapped by a `Synchronizer`: plain, with `_future=True`, or its `.aio` on other loops."""

    name = "synchronicity"
    module = "synchronicity"
    can = (CALLS | STREAMS) - {"nested"}  # its bodies await one another undecorated

    def __init__(self, factory: LoopFactory) -> None:
        from synchronicity import Synchronizer  # noqa: PLC0415

        super().__init__(factory)
        self._synchronizer = Synchronizer()
        self.run(_turn)  # starts its loop, of the default kind

    def close(self) -> None:
        self._synchronizer._close_loop()

    def _wrap(self, body: Any) -> Any:
        return self._synchronizer.wrap(body, body.__name__, __name__)

    def start(self, body: Body) -> Callable[[int], Any]:
        function = self._wrap(body)
        return lambda i: function(i, _future=True)

    def awaited(self, body: Body) -> Callable[[int], Awaitable[int]]:
        function: Callable[[int], Awaitable[int]] = self._wrap(body).aio
        return function

    def one(self, body: Body, count: int) -> Outcome:
        return _call_each(self._wrap(body), count)

    def stream(self, items: Items, count: int) -> Outcome:
        return _iterate(self._wrap(items), count)

    async def _async_stream(self, items: Items, count: int) -> Outcome:
        return await _iterate_async(self._wrap(items).aio, count)


class ThreadPool(Peer):
    """`ThreadPoolExecutor.submit` of a plain function that does the same: no coroutine, no loop."""

    name = "ThreadPoolExecutor"
    can = frozenset({"burst", "one", "gather"})
    has_loop = False

    def __init__(self, factory: LoopFactory) -> None:
        super().__init__(factory)
        self._pool = ThreadPoolExecutor()

    def close(self) -> None:
        self._pool.shutdown()

    def start(self, body: Body) -> Callable[[int], Any]:  # noqa: ARG002
        submit = self._pool.submit
        return lambda i: submit(_plain, i)

    def awaited(self, body: Body) -> Callable[[int], Awaitable[int]]:  # noqa: ARG002
        pool = self._pool
        return lambda i: asyncio.get_running_loop().run_in_executor(pool, _plain, i)


PEERS: Final[tuple[type[Peer], ...]] = (
    EagerAsync,
    RunCoroutineThreadsafe,
    CreateTask,
    Unsync,
    BlockingPortal,
    AsyncToSync,
    Synchronicity,
    ThreadPool,
)


def default_factories() -> dict[str, LoopFactory]:
    """The kinds of loops that can be measured here."""
    factories = {"asyncio": asyncio.new_event_loop}
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop  # noqa: PLC0415

        factories["uvloop"] = uvloop.new_event_loop
    return factories


@contextmanager
def default_loops(factory: LoopFactory) -> Iterator[None]:
    """Have peers that take no loop and no factory make their loops with this one."""
    with mock.patch("asyncio.new_event_loop", factory), mock.patch("asyncio.events.new_event_loop", factory):
        yield


async def _gather(call: Callable[[int], Awaitable[int]], count: int) -> Outcome:
    began = perf_counter()
    results = await asyncio.gather(*[call(i) for i in range(count)])
    return Outcome(perf_counter() - began, results)


def _call_each(call: Callable[[int], int], count: int) -> Outcome:
    began = perf_counter()
    results = [call(i) for i in range(count)]
    return Outcome(perf_counter() - began, results)


def _iterate(stream: Callable[[int], Iterable[int]], count: int) -> Outcome:
    began = perf_counter()
    results = [item for item in stream(count)]  # noqa: C416 - a loop, as users write it
    return Outcome(perf_counter() - began, results)


async def _iterate_async(stream: Callable[[int], AsyncIterable[int]], count: int) -> Outcome:
    began = perf_counter()
    results = [item async for item in stream(count)]
    return Outcome(perf_counter() - began, results)


async def _turn(_: object = None) -> None:
    """Let what was called before get to its first suspension."""
    for _turns in range(3):
        await asyncio.sleep(0)


def _plain(i: int) -> int:
    return i
