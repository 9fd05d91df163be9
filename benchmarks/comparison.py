"""The library beside its alternatives: the ratios that it should reach, and all peers in a table."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.peers import PEERS, CreateTask, EagerAsync, Floor, Peer, RunCoroutineThreadsafe
from benchmarks.report import Job, Row, Section, cost_text
from benchmarks.workloads import BURST, GATHER, HTTP, MEMORY, NESTED, ONE, SLEEP, Workload, compare

if TYPE_CHECKING:
    from benchmarks.measuring import Effort
    from benchmarks.peers import LoopFactory

_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Goal:
    """How much faster, or smaller, than something else a workload should be."""

    name: str
    workload: Workload
    against: type[Peer]
    on_311: float  # the least, and on 3.12
    on_313: float  # the least, and on later ones
    aim: float

    @property
    def minimum(self) -> float:
        """The least on this Python."""
        return self.on_313 if sys.version_info >= (3, 13) else self.on_311


# Enough for the table of all peers, since memory takes long to measure.
_MOST_CALLS: Final = 5_000

# Of these a cost, and so a most: one call, in terms of what waking up a loop and being woken up takes.
_AT_MOST: Final = "floor"

GOALS: Final = (
    Goal("burst", BURST, RunCoroutineThreadsafe, on_311=4, on_313=7, aim=10),
    Goal("sleep", SLEEP, RunCoroutineThreadsafe, on_311=3, on_313=4, aim=5),
    Goal("one", ONE, RunCoroutineThreadsafe, on_311=1.3, on_313=1.5, aim=2),
    Goal(_AT_MOST, ONE, Floor, on_311=2, on_313=1.25, aim=1.1),
    Goal("gather", GATHER, RunCoroutineThreadsafe, on_311=2.5, on_313=4, aim=5),
    Goal("nested", NESTED, RunCoroutineThreadsafe, on_311=5, on_313=12, aim=15),
    Goal("create_task", BURST, CreateTask, on_311=0.75, on_313=1.2, aim=1.5),
    Goal("memory", MEMORY, RunCoroutineThreadsafe, on_311=2.6, on_313=2.75, aim=3),
)


def ratios(factory: LoopFactory, effort: Effort) -> Section:
    """How many times faster than its alternative each workload is."""
    return Section(
        name="ratios",
        title="What a call costs, as ratios",
        note=(
            "How many times faster (or, for memory, smaller) than the alternative. “At most” says the "
            "opposite: how many times the cost of the alternative, which is a floor. On asyncio's loop, "
            "each pair in one process and in turns, medians; a pending call awaits one `asyncio.Future` "
            "that all share, and its memory is that of task, coroutine, handle, all."
        ),
        columns=(
            "workload",
            "against",
            "ratio",
            f"minimum on {_PYTHON}",
            "aim",
            "reached",
            "a call",
            "the other's",
        ),
        jobs=[Job(goal.name, functools.partial(_ratio, goal, factory, effort)) for goal in GOALS],
    )


def _ratio(goal: Goal, factory: LoopFactory, effort: Effort) -> Row:
    count = effort.calls(goal.workload.count)
    costs = compare(goal.workload, (EagerAsync, goal.against), factory, count=count, rounds=effort.rounds)
    ours, theirs = costs[EagerAsync.name], costs[goal.against.name]
    at_most = goal.name == _AT_MOST
    ratio = ours / theirs if at_most else theirs / ours
    reached = "no"
    for name, limit in (("minimum", goal.minimum), ("aim", goal.aim)):
        if (ratio <= limit) if at_most else (ratio >= limit):
            reached = name
    prefix = "at most " if at_most else ""
    return Row(
        [
            goal.workload.title,
            f"`{goal.against.name}`",
            f"{ratio:.2f}",
            f"{prefix}{goal.minimum:g}",
            f"{prefix}{goal.aim:g}",
            reached,
            cost_text(ours, goal.workload.unit),
            cost_text(theirs, goal.workload.unit),
        ],
        costs,
    )


def peers(loop_kind: str, factory: LoopFactory, effort: Effort) -> Section:
    """All peers, with all that they can do."""
    installed = [peer for peer in PEERS if peer.is_installed()]
    missing = [peer.name for peer in PEERS if not peer.is_installed()]
    note = (
        "What a call costs, in time or in memory; less is better. A dash: it can't do that. Each row in one "
        "process, in turns, medians; the loops are of the same kind. `create_task` has the one loop of its "
        "caller, and no thread; `ThreadPoolExecutor` calls a plain function."
    )
    if missing:
        note += f" Not installed: {', '.join(missing)}."
    workloads = [
        workload for workload in (BURST, SLEEP, ONE, GATHER, NESTED, MEMORY, HTTP) if workload.is_possible()
    ]
    return Section(
        name=f"peers-{loop_kind}",
        title=f"Beside others, on {loop_kind}'s loop",
        note=note,
        columns=("workload", *(f"`{peer.name}`" for peer in installed)),
        jobs=[
            Job(workload.name, functools.partial(_compare_peers, workload, installed, factory, effort))
            for workload in workloads
        ],
    )


def _compare_peers(
    workload: Workload, installed: list[type[Peer]], factory: LoopFactory, effort: Effort
) -> Row:
    suitable = [peer for peer in installed if workload.suits(peer)]
    count = effort.calls(min(workload.count, _MOST_CALLS))
    costs = compare(workload, suitable, factory, count=count, rounds=effort.rough_rounds)
    cells = (cost_text(costs[peer.name], workload.unit) if peer.name in costs else "—" for peer in installed)
    return Row([workload.title, *cells], costs)
