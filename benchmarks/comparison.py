"""The library beside all its alternatives."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from benchmarks.peers import PEERS
from benchmarks.report import Job, Row, Section, cost_text
from benchmarks.workloads import (
    ASYNC_STREAM,
    BURST,
    GATHER,
    HTTP,
    MEMORY,
    NESTED,
    ONE,
    SLEEP,
    STREAM,
    Workload,
    compare,
)

if TYPE_CHECKING:
    from benchmarks.measuring import Effort
    from benchmarks.peers import LoopFactory, Peer

_WORKLOADS: Final = (BURST, SLEEP, ONE, GATHER, NESTED, MEMORY, STREAM, ASYNC_STREAM, HTTP)


# Enough for a rough comparison, since some peers are slow.
_MOST_CALLS: Final = 5_000


def peers(loop_kind: str, factory: LoopFactory, effort: Effort) -> Section:
    """All peers, with all that they can do."""
    installed = [peer for peer in PEERS if peer.is_installed()]
    missing = [peer.name for peer in PEERS if not peer.is_installed()]
    note = (
        "What a call costs, or an item, in time or in memory; less is better. A dash: it can't do that. Each "
        "row in one process, in turns, medians; the loops are of the same kind. `create_task` has the one "
        "loop of its caller, and no thread; `ThreadPoolExecutor` calls a plain function."
    )
    if missing:
        note += f" Not installed: {', '.join(missing)}."
    return Section(
        name=f"peers-{loop_kind}",
        title=f"Beside others, on {loop_kind}'s loop",
        note=note,
        columns=("workload", *(f"`{peer.name}`" for peer in installed)),
        jobs=[
            Job(workload.name, functools.partial(_compare_peers, workload, installed, factory, effort))
            for workload in _WORKLOADS
            if workload.is_possible()
        ],
    )


def _compare_peers(
    workload: Workload, installed: list[type[Peer]], factory: LoopFactory, effort: Effort
) -> Row:
    suitable = [peer for peer in installed if workload.suits(peer)]
    count = effort.calls(min(workload.count, _MOST_CALLS))
    costs = compare(workload, suitable, factory, count=count, rounds=effort.rounds_of(count, rough=True))
    cells = (cost_text(costs[peer.name], workload.unit) if peer.name in costs else "—" for peer in installed)
    return Row([workload.title_for(count), *cells], costs)
