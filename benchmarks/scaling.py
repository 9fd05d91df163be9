"""Whether a call costs the same in small and large bursts, and from one thread and many."""

from __future__ import annotations

import functools
import gc
import threading
from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measuring import Outcome, alternate
from benchmarks.peers import EagerAsync, Peer, RunCoroutineThreadsafe
from benchmarks.report import Job, Row, Section, cost_text, seconds_text
from benchmarks.workloads import BURST, MEMORY, compare, give

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measuring import Effort
    from benchmarks.peers import LoopFactory

_SIDES: Final = (EagerAsync, RunCoroutineThreadsafe)
_MILLION: Final = 1_000_000
_THREADS: Final = (1, 2, 4, 8, 16)
_CALLS_OF_THREADS: Final = 8_000  # of all threads together


def bursts(factory: LoopFactory, effort: Effort, *, million: bool) -> Section:
    """Time and memory of a call, in ever larger bursts."""
    counts = [count for count in (100, 1_000, 10_000, 100_000) if count <= effort.largest_burst]
    if million:
        counts.append(_MILLION)
    return Section(
        name="scaling",
        title="Bursts of any size",
        note=(
            "What a call costs. Time: until all results are there; also with `gc.disable()`, as the garbage "
            "collector goes over all tasks that are alive. Memory: while all are pending."
        ),
        columns=(
            "calls",
            *(f"time, `{side.name}`" for side in _SIDES),
            *(f"without collections, `{side.name}`" for side in _SIDES),
            *(f"memory, `{side.name}`" for side in _SIDES),
        ),
        jobs=[Job(f"{count:,} calls", functools.partial(_burst, count, factory, effort)) for count in counts],
    )


def _burst(count: int, factory: LoopFactory, effort: Effort) -> Row:
    sides = _SIDES[:1] if count >= _MILLION else _SIDES  # the other would take gigabytes
    rounds = effort.rounds_of(count, rough=True)
    times = compare(BURST, sides, factory, count=count, rounds=rounds)
    gc.disable()
    try:
        uncollected = compare(BURST, sides, factory, count=count, rounds=rounds)
    finally:
        gc.enable()
    sizes = compare(MEMORY, sides, factory, count=count, rounds=1)
    return Row([f"{count:,}", *_cells(times, "s"), *_cells(uncollected, "s"), *_cells(sizes, "B")])


def _cells(costs: dict[str, float], unit: str) -> list[str]:
    return [cost_text(costs[side.name], unit) if side.name in costs else "—" for side in _SIDES]


def threads(factory: LoopFactory, effort: Effort) -> Section:
    """Time of a call, from one thread and from many at a time."""
    count = effort.calls(_CALLS_OF_THREADS)
    return Section(
        name="threads",
        title="Any number of calling threads",
        note=f"{count:,} calls altogether. Each thread makes its share in a burst, then gets the results.",
        columns=("threads", *(f"`{side.name}`, a call" for side in _SIDES)),
        jobs=[
            Job(f"{number} threads", functools.partial(_from_threads, number, count, factory, effort))
            for number in _THREADS
        ],
    )


def _from_threads(number: int, count: int, factory: LoopFactory, effort: Effort) -> Row:
    share = max(1, count // number)
    with closing(EagerAsync(factory)) as ours, closing(RunCoroutineThreadsafe(factory)) as theirs:
        runs: dict[str, Callable[[], Outcome]] = {
            peer.name: functools.partial(_burst_from_threads, peer, number, share) for peer in (ours, theirs)
        }
        for run in runs.values():
            run()  # to warm up
        costs = alternate(runs, effort.rough_rounds)
    return Row([str(number), *(seconds_text(costs[side.name] / (share * number)) for side in _SIDES)])


def _burst_from_threads(peer: Peer, number: int, share: int) -> Outcome:
    start = peer.start(give)
    ready = threading.Barrier(number + 1)
    results: list[list[Any]] = []

    def burst() -> None:
        ready.wait()
        results.append([future.result() for future in [start(i) for i in range(share)]])

    callers = [threading.Thread(target=burst) for _ in range(number)]
    for caller in callers:
        caller.start()
    ready.wait()
    began = perf_counter()
    for caller in callers:
        caller.join()
    took = perf_counter() - began
    assert results == [list(range(share))] * number
    return Outcome(took, results)
