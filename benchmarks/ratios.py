"""The ratios that the library should reach, in one table for all Pythons on which they were measured."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from benchmarks import report
from benchmarks.peers import CreateTask, EagerAsync, Floor, RunCoroutineThreadsafe
from benchmarks.report import Job, Row, Section, cost_text
from benchmarks.workloads import (
    ASYNC_STREAM,
    BURST,
    GATHER,
    MEMORY,
    NESTED,
    ONE,
    ONE_CPU,
    SLEEP,
    STREAM,
    Workload,
    compare,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.measuring import Effort
    from benchmarks.peers import LoopFactory, Peer

NAME: Final = "ratios"
_TITLE: Final = "What a call costs, as ratios"
_NOTE: Final = """\
How many times faster than the alternative, or for memory, how many times smaller; **bold** where the aim is
reached, ✗ where the minimum is not. “At most” says the opposite: how many times the cost of the
alternative, the plainest hand-over that asyncio has. One call at a time is two hand-overs between threads,
and what these take differs by far more than the work, by where the system puts the threads: so it is also
measured on one CPU. Each pair in one process, in turns, each run with a loop and a thread of its own,
medians, on asyncio's loop unless another is named. A pending call awaits one `asyncio.Future` that all
share; its memory is that of task, coroutine, handle, all."""

_PYTHON: Final = report.python_version()


@dataclass(frozen=True)
class Goal:
    """How much faster, or smaller, than something else a workload should be."""

    name: str
    workload: Workload
    against: type[Peer]
    on_313: float  # the least on 3.13 and later
    on_311: float  # the least on 3.11 and 3.12
    aim: float | None = None
    at_most: bool = False  # the others are at least
    loop: str = "asyncio"

    def minimum(self, python: str) -> float:
        """The least on a Python; the most, if it is `at_most`."""
        return self.on_311 if python in {"3.11", "3.12"} else self.on_313

    def title(self) -> str:
        """What is done, and where."""
        text = self.workload.title_for(self.workload.count)
        return text if self.loop == "asyncio" else f"{text}, {self.loop}"


GOALS: Final = (
    Goal("burst", BURST, RunCoroutineThreadsafe, on_313=7, on_311=4, aim=10),
    Goal("sleep", SLEEP, RunCoroutineThreadsafe, on_313=4, on_311=3, aim=5),
    Goal("one", ONE, RunCoroutineThreadsafe, on_313=1.5, on_311=1.3, aim=2),
    Goal("floor", ONE, Floor, on_313=1.25, on_311=2, aim=1.1, at_most=True),
    Goal("one_cpu", ONE_CPU, RunCoroutineThreadsafe, on_313=1.5, on_311=1.3, aim=2),
    Goal("floor_cpu", ONE_CPU, Floor, on_313=1.25, on_311=2, aim=1.1, at_most=True),
    Goal("gather", GATHER, RunCoroutineThreadsafe, on_313=4, on_311=2.5, aim=5),
    Goal("nested", NESTED, RunCoroutineThreadsafe, on_313=12, on_311=5, aim=15),
    Goal("create_task", BURST, CreateTask, on_313=1.2, on_311=0.75, aim=1.5),
    Goal("memory", MEMORY, RunCoroutineThreadsafe, on_313=2.75, on_311=2.6, aim=3),
    Goal("stream", STREAM, RunCoroutineThreadsafe, on_313=5, on_311=5),
    Goal("async_stream", ASYNC_STREAM, RunCoroutineThreadsafe, on_313=5, on_311=5),
    Goal("stream_uvloop", STREAM, RunCoroutineThreadsafe, on_313=5, on_311=5, loop="uvloop"),
    Goal("async_stream_uvloop", ASYNC_STREAM, RunCoroutineThreadsafe, on_313=5, on_311=5, loop="uvloop"),
)


@dataclass(frozen=True)
class Measured:
    """What one Python came to."""

    python: str
    about: str  # machine, versions and time
    costs: Mapping[str, Mapping[str, float]]  # by a goal's name and a peer's


def section(factories: Mapping[str, LoopFactory], effort: Effort) -> Section:
    """How many times faster than its alternative each workload is, on this Python."""
    return Section(
        name=NAME,
        title=_TITLE,
        note=_NOTE,
        columns=_columns([_PYTHON]),
        jobs=[
            Job(goal.name, functools.partial(_measure, goal, factories[goal.loop], effort))
            for goal in GOALS
            if goal.loop in factories
        ],
    )


def _measure(goal: Goal, factory: LoopFactory, effort: Effort) -> Row:
    count = effort.calls(goal.workload.count)
    sides = (EagerAsync, goal.against)
    costs = compare(goal.workload, sides, factory, count=count, rounds=effort.rounds_of(count))
    return Row(_cells(goal, [Measured(_PYTHON, "", {goal.name: costs})]), costs)


def _columns(pythons: Sequence[str]) -> list[str]:
    return [
        "workload",
        "against",
        "minimum",
        "aim",
        *pythons,
        f"a call on {pythons[-1]}",
        "the other's",
    ]


def _cells(goal: Goal, measured: Sequence[Measured]) -> list[str]:
    prefix = "at most " if goal.at_most else ""
    minimum = f"{prefix}{goal.on_313:g}"
    if goal.on_311 != goal.on_313:
        minimum += f" (3.11: {goal.on_311:g})"
    newest = measured[-1].costs.get(goal.name, {})
    return [
        goal.title(),
        f"`{goal.against.name}`",
        minimum,
        "" if goal.aim is None else f"{prefix}{goal.aim:g}",
        *(_ratio_text(goal, one) for one in measured),
        *(
            cost_text(newest[side.name], goal.workload.unit) if newest else "—"
            for side in (EagerAsync, goal.against)
        ),
    ]


def _ratio_text(goal: Goal, measured: Measured) -> str:
    if goal.name not in measured.costs:
        return "—"
    costs = measured.costs[goal.name]
    ours, theirs = costs[EagerAsync.name], costs[goal.against.name]
    ratio = ours / theirs if goal.at_most else theirs / ours

    def reaches(limit: float) -> bool:
        return ratio <= limit if goal.at_most else ratio >= limit

    # Rounded to the worse side, so as not to look reached.
    text = f"{(math.ceil if goal.at_most else math.floor)(ratio * 100) / 100:.2f}"
    if not reaches(goal.minimum(measured.python)):
        return f"{text} ✗"
    return f"**{text}**" if goal.aim is not None and reaches(goal.aim) else text


# Of several Pythons


def save(directory: Path, rows: Mapping[str, Row], command: str) -> None:
    """Keep what this Python came to."""
    about = report.surroundings_line(command)
    measured = Measured(_PYTHON, about, {name: row.costs for name, row in rows.items()})
    text = json.dumps(asdict(measured), indent=1)
    (directory / f"ratios-{_PYTHON}.json").write_text(f"{text}\n", encoding="utf-8")


def text_of_all(directory: Path) -> str:
    """The table, with a column for each Python that was kept."""
    kept = [
        Measured(**json.loads(path.read_text(encoding="utf-8"))) for path in directory.glob("ratios-*.json")
    ]
    kept.sort(key=lambda one: [int(number) for number in re.findall(r"\d+", one.python)])
    rows = [Row(_cells(goal, kept)) for goal in GOALS if any(goal.name in one.costs for one in kept)]
    table = report.table(_columns([one.python for one in kept]), rows)
    return f"## {_TITLE}\n\n{_NOTE}\n\n{table}\n" + "".join(f"- {one.about}\n" for one in kept)


def renewed(results: str, text: str) -> str:
    """`RESULTS.md` with another table of ratios."""
    pattern = rf"^## {_TITLE}\n.*?(?=^## |\Z)"
    return re.sub(pattern, lambda _: f"{text}\n", results, flags=re.MULTILINE | re.DOTALL).rstrip() + "\n"
