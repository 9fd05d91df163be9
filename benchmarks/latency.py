"""How long single calls take, and how late a loop's timers are, when the machine is busy."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from contextlib import closing, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measuring import percentile
from benchmarks.peers import EagerAsync, Peer, RunCoroutineThreadsafe
from benchmarks.report import Job, Row, Section, seconds_text
from benchmarks.workloads import give

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.measuring import Effort
    from benchmarks.peers import LoopFactory

_SIDES: Final = (EagerAsync, RunCoroutineThreadsafe)
_PERCENTS: Final = (50, 99, 99.9)
_BUSY_THREADS: Final = 2
_FLOODING_THREADS: Final = 3
_FLOOD_BURST: Final = 1_000
_TICK: Final = 0.005
_TURNS: Final = 5  # of each side


def latency(factory: LoopFactory, effort: Effort) -> Section:
    """Percentiles, beside `run_coroutine_threadsafe`'s."""
    measurements: tuple[tuple[str, str, Callable[[Peer], list[float]]], ...] = (
        ("idle", "one call, nothing else going on", functools.partial(_time_calls, count=effort.latencies)),
        (
            "latency",
            f"one call, while {_BUSY_THREADS} threads hold the GIL",
            functools.partial(_time_calls_when_busy, count=effort.latencies // _TURNS),
        ),
        (
            "ticker",
            f"lateness of a 5 ms ticker, while {_FLOODING_THREADS} threads flood its loop",
            functools.partial(_time_ticks_in_flood, seconds=effort.flood),
        ),
    )
    return Section(
        name="latency",
        title="Latency",
        note=(
            "One call and its result at a time, from a plain thread; and how late a timer on the loop is "
            f"while threads call as fast as they can, in bursts of {_FLOOD_BURST:,} and then the results."
        ),
        columns=("what", *(f"`{side.name}`: median / 99 % / 99.9 %" for side in _SIDES)),
        jobs=[
            Job(name, functools.partial(_percentiles, title, measure, factory))
            for name, title, measure in measurements
        ],
    )


def _percentiles(title: str, measure: Callable[[Peer], list[float]], factory: LoopFactory) -> Row:
    with closing(EagerAsync(factory)) as ours, closing(RunCoroutineThreadsafe(factory)) as theirs:
        sides = (ours, theirs)
        values: dict[str, list[float]] = {side.name: [] for side in sides}
        for side in sides:
            _time_calls(side, 10)  # to warm up
        for _ in range(_TURNS):
            for side in sides:
                gc.collect()
                values[side.name] += measure(side)
    return Row([title, *(_percentiles_text(values[side.name]) for side in sides)])


def _percentiles_text(values: Sequence[float]) -> str:
    return " / ".join(seconds_text(percentile(values, percent)) for percent in _PERCENTS)


def _time_calls(peer: Peer, count: int) -> list[float]:
    start = peer.start(give)
    times = []
    for i in range(count):
        began = perf_counter()
        result = start(i).result()
        times.append(perf_counter() - began)
        assert result == i
    return times


def _time_calls_when_busy(peer: Peer, count: int) -> list[float]:
    with _threads(_BUSY_THREADS, _compute):
        return _time_calls(peer, count)


def _compute() -> None:
    sum(range(10_000))


def _time_ticks_in_flood(peer: Peer, seconds: float) -> list[float]:
    start = peer.start(give)

    def flood() -> None:
        for future in [start(i) for i in range(_FLOOD_BURST)]:
            future.result()

    with _threads(_FLOODING_THREADS, flood):
        lateness: list[float] = peer.run(_tick, seconds)
    return lateness


async def _tick(seconds: float) -> list[float]:
    """Sleep 5 ms at a time; return how much longer each took."""
    lateness = []
    end = perf_counter() + seconds
    while (began := perf_counter()) < end:
        await asyncio.sleep(_TICK)
        lateness.append(perf_counter() - began - _TICK)
    return lateness


@contextmanager
def _threads(number: int, work: Callable[[], Any]) -> Iterator[None]:
    """Have threads do something again and again."""
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            work()

    workers = [threading.Thread(target=again) for _ in range(number)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        over.set()
        for worker in workers:
            worker.join()
