"""What is done with a peer: which of its methods, with which body, how often."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import os
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measuring import Outcome, alternate
from benchmarks.peers import Peer, default_loops
from benchmarks.server import PAGE, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from benchmarks.peers import LoopFactory

    Wrap = Callable[[Any], Any]
    Run = Callable[[Wrap, int], Outcome]


# Of the calls of a run, when they are checked; and how many are made before.
_MOST_CHECKED: Final = 20_000
_WARM_UP: Final = 50

# The bodies


async def give(i: int) -> int:
    """Return at once."""
    return i


async def give_after_turn(i: int) -> int:
    """Suspend once."""
    await asyncio.sleep(0)
    return i


async def count_up(count: int) -> AsyncGenerator[int]:
    """Make so many items, without ever waiting."""
    for i in range(count):
        yield i


def checked(body: Any) -> Any:
    """A body that also asserts what every call promises: a real task of the loop that runs it."""

    @functools.wraps(body)
    async def call_in_task(i: int) -> int:
        _check_task()
        result: int = await body(i)
        return result

    @functools.wraps(body)
    async def iterate_in_task(count: int) -> AsyncGenerator[int]:
        async for item in body(count):
            _check_task()
            yield item

    return iterate_in_task if inspect.isasyncgenfunction(body) else call_in_task


def _check_task() -> None:
    task = asyncio.current_task()
    assert isinstance(task, asyncio.Task)
    assert task.get_loop() is asyncio.get_running_loop()


def unchecked(body: Any) -> Any:
    """The body itself, which is what is timed."""
    return body


@dataclass(frozen=True)
class Workload:
    """Something to be done with a peer, so many times.

    Args:
        name: For the command line.
        title: For the tables, with a place for how many calls there are.
        method: The method of `Peer` that does it.
        count: How many calls a run makes.
        prepared: Prepares a peer for runs, and cleans up after them.
        surroundings: What all peers need in common; its value goes to `prepared`.
        unit: Of the cost.
        needs_loop: Whether a plain function can't do the same.
        module: To be installed.
    """

    name: str
    title: str
    method: str
    count: int
    prepared: Callable[[Peer, Any], AbstractContextManager[Run]]
    surroundings: Callable[[], AbstractContextManager[Any]] = nullcontext
    unit: str = "s"
    needs_loop: bool = False
    module: str | None = None

    def title_for(self, count: int) -> str:
        """The title, when there are so many calls."""
        return self.title.format(count=count)

    def is_possible(self) -> bool:
        """Whether what it takes is installed."""
        return self.module is None or importlib.util.find_spec(self.module) is not None

    def suits(self, peer: type[Peer]) -> bool:
        """Whether a peer can do it."""
        return self.method in peer.can and (peer.has_loop or not self.needs_loop)


def compare(
    workload: Workload, peers: Iterable[type[Peer]], factory: LoopFactory, *, count: int, rounds: int
) -> dict[str, float]:
    """Measure a workload with several peers in turns, after an untimed run of each that checks it.

    Each run has a peer of its own, warmed up: where the system puts a peer's thread is luck, and stays so.

    Returns:
        The cost of a call, by the peer's name.
    """
    with workload.surroundings() as common, default_loops(factory):

        def run_once(kind: type[Peer], wrap: Wrap, count: int) -> Outcome:
            with closing(kind(factory)) as peer, workload.prepared(peer, common) as run:
                run(wrap, min(count, _WARM_UP))
                return run(wrap, count)

        runs: dict[str, Callable[[], Outcome]] = {}
        for kind in peers:
            tried = min(count, _MOST_CHECKED)
            results = list(run_once(kind, checked, tried).results)
            assert results == list(range(tried)), f"{workload.name} with {kind.name}: wrong results"
            runs[kind.name] = functools.partial(run_once, kind, unchecked, count)
        if workload.unit == "B":  # it doesn't vary
            costs = {name: run().cost for name, run in runs.items()}
        else:
            costs = alternate(runs, rounds)
    return {name: cost / count for name, cost in costs.items()}


def _calls(method: str, body: Any) -> Callable[[Peer, Any], AbstractContextManager[Run]]:
    """Call a body by a method of the peer."""

    @contextmanager
    def prepared(peer: Peer, _: object) -> Iterator[Run]:
        measured = getattr(peer, method)
        yield lambda wrap, count: measured(wrap(body), count)

    return prepared


@contextmanager
def _pending(peer: Peer, _: object) -> Iterator[Run]:
    """Have calls wait at a gate: one future of the loop, of the same kind for all peers."""

    def run(wrap: Wrap, count: int) -> Outcome:
        gate: asyncio.Future[None] = peer.run(_make_gate)

        async def wait_at_gate(i: int) -> int:
            await gate
            return i

        return peer.memory(wrap(wait_at_gate), count, gate)

    yield run


async def _make_gate(_: object) -> asyncio.Future[None]:
    # asyncio's, also on loops that have one of their own.
    return asyncio.Future(loop=asyncio.get_running_loop())


@contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Keep this thread, and those that it starts, to one CPU, where that can be done."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _requests(peer: Peer, address: str) -> Iterator[Run]:
    """Fetch a page in each call, with one client session on the peer's loop."""
    import aiohttp  # noqa: PLC0415

    async def open_session(_: object) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(raise_for_status=True)

    async def close_session(_: object) -> None:
        await session.close()

    async def fetch(i: int) -> int:
        async with session.get(address) as response:
            assert await response.read() == PAGE
        return i

    session: aiohttp.ClientSession = peer.run(open_session)
    yield lambda wrap, count: peer.burst(wrap(fetch), count)
    peer.run(close_session)


BURST: Final = Workload("burst", "burst of {count:,} calls", "burst", 5_000, _calls("burst", give))
SLEEP: Final = Workload(
    "sleep",
    "the same with `await asyncio.sleep(0)`",
    "burst",
    5_000,
    _calls("burst", give_after_turn),
    needs_loop=True,
)
ONE: Final = Workload("one", "one call and its result at a time", "one", 2_000, _calls("one", give))
ONE_CPU: Final = Workload(
    "one_cpu", "the same with both threads on one CPU", "one", 2_000, _calls("one", give), _on_one_cpu
)
GATHER: Final = Workload(
    "gather", "`gather` of {count:,} calls from another loop", "gather", 2_000, _calls("gather", give)
)
NESTED: Final = Workload(
    "nested", "a body that calls and awaits another, {count:,} times", "nested", 3_000, _calls("nested", give)
)
MEMORY: Final = Workload("memory", "memory of a pending call", "memory", 20_000, _pending, unit="B")
STREAM: Final = Workload(
    "stream", "{count:,} items into `for`", "stream", 100_000, _calls("stream", count_up)
)
ASYNC_STREAM: Final = Workload(
    "async_stream",
    "{count:,} items into `async for` on another loop",
    "async_stream",
    100_000,
    _calls("async_stream", count_up),
)
HTTP: Final = Workload(
    "http",
    "real work: {count:,} HTTP requests",
    "burst",
    500,
    _requests,
    serving,
    needs_loop=True,
    module="aiohttp",
)
