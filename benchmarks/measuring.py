"""How things are measured: in turns, in one process, as medians."""

from __future__ import annotations

import gc
import statistics
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Outcome(NamedTuple):
    """One run: what it cost altogether, in seconds or bytes, and what came out of its calls."""

    cost: float
    results: Sequence[object]


# Of a workload with one peer, in all rounds that are timed.
_MOST_CALLS: Final = 300_000


@dataclass(frozen=True)
class Effort:
    """How long to measure for."""

    rounds: int  # runs of which the median is taken, for the ratios; fewer of long ones
    rough_rounds: int  # for the rest
    share: float  # of the calls in a run that are made
    largest_burst: int
    latencies: int  # calls timed one by one
    flood: float  # seconds of each flood

    def calls(self, count: int) -> int:
        """How many calls a run makes, out of those that it should."""
        return max(4, round(count * self.share))

    def rounds_of(self, count: int, *, rough: bool = False) -> int:
        """How often so many calls are made."""
        return min(self.rough_rounds if rough else self.rounds, max(1, _MOST_CALLS // count))


FULL = Effort(rounds=15, rough_rounds=5, share=1, largest_burst=100_000, latencies=1_000, flood=2)
QUICK = Effort(rounds=3, rough_rounds=1, share=1, largest_burst=10_000, latencies=100, flood=0.5)
SMOKE = Effort(rounds=1, rough_rounds=1, share=0.01, largest_burst=100, latencies=5, flood=0.05)


def alternate(runs: Mapping[str, Callable[[], Outcome]], rounds: int) -> dict[str, float]:
    """Make runs in turns, each after a garbage collection. All of them have been tried before.

    Returns:
        The median cost of each.
    """
    costs: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            gc.collect()
            costs[name].append(run().cost)
    return {name: statistics.median(of_one) for name, of_one in costs.items()}


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Trace what is allocated, in all threads; call what this gives for the bytes that are still in use."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    def in_use() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    try:
        yield in_use
    finally:
        tracemalloc.stop()


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that so many percent of them don't exceed."""
    return sorted(values)[max(0, -int(-len(values) * percent // 100) - 1)]
