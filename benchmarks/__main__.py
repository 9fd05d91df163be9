"""Measure, print the tables, and write them and the chart down: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import chart, comparison, latency, report, scaling
from benchmarks.measuring import FULL, QUICK, SMOKE
from benchmarks.peers import default_factories
from benchmarks.progress import Progress

if TYPE_CHECKING:
    from benchmarks.measuring import Effort
    from benchmarks.report import Row, Section

_HERE: Final = Path(__file__).parent

# The rows of the comparison on asyncio's loop that the chart shows.
_CHARTED: Final = (
    ("burst", "A burst of 5,000 calls from a plain thread: time a call", "s"),
    ("one", "One call and its result at a time: time a call", "s"),
    ("memory", "Memory of a pending call", "B"),
    ("http", "Real work, 500 HTTP requests: time a request", "s"),
)


def main() -> None:
    """Do what the command line says."""
    options = _parser().parse_args()
    report.check_debug_mode()
    effort = SMOKE if options.smoke else QUICK if options.quick else FULL
    sections = _chosen(_sections(effort, million=options.million), options.only)
    progress = Progress(sum(len(section.jobs) for section in sections))
    texts = []
    measured: dict[str, dict[str, Row]] = {}
    for section in sections:
        rows = measured[section.name] = {}
        for job in section.jobs:
            progress.step(f"{section.title}: {job.name}")
            rows[job.name] = job.run()
        progress.clear()
        texts.append(report.section_text(section, rows.values()))
        print(texts[-1], flush=True)
    surroundings = report.surroundings_text(shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]))
    print(surroundings)
    _write(
        options, f"# Results\n\n{surroundings}\n" + "\n".join(texts), _draw(measured.get("peers-asyncio", {}))
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="a table (ratios, peers-asyncio, peers-uvloop, scaling, threads, latency) "
        "or a row of one (burst, memory, ticker...); may be repeated; writes no files",
    )
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="a rough measurement; writes no files")
    effort.add_argument("--smoke", action="store_true", help="see whether it works; writes no files")
    parser.add_argument("--million", action="store_true", help="also a burst of 1,000,000 calls (3 GB)")
    parser.add_argument(
        "--output",
        metavar="DIRECTORY",
        type=Path,
        help="where to write RESULTS.md and chart.svg in any case; otherwise beside this program",
    )
    return parser


def _sections(effort: Effort, *, million: bool) -> list[Section]:
    factories = default_factories()
    return [
        comparison.ratios(factories["asyncio"], effort),
        *(comparison.peers(kind, factory, effort) for kind, factory in factories.items()),
        scaling.bursts(factories["asyncio"], effort, million=million),
        scaling.threads(factories["asyncio"], effort),
        latency.latency(factories["asyncio"], effort),
    ]


def _chosen(sections: list[Section], names: list[str] | None) -> list[Section]:
    """The tables and rows that were asked for, which is all if nothing was."""
    if names is None:
        return sections
    kept = []
    for section in sections:
        jobs = [job for job in section.jobs if not {section.name, job.name}.isdisjoint(names)]
        if jobs:
            kept.append(dataclasses.replace(section, jobs=jobs))
    known = {section.name for section in sections} | {
        job.name for section in sections for job in section.jobs
    }
    if unknown := set(names) - known:
        raise SystemExit(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return kept


def _draw(rows: dict[str, Row]) -> str | None:
    """The chart, if all that it needs was measured."""
    panels = [
        chart.Panel(heading, unit, rows[name].costs) for name, heading, unit in _CHARTED if name in rows
    ]
    if not panels:
        return None
    notes = (
        "Less is better. create_task stays on its caller's loop; ThreadPoolExecutor calls a plain function.",
        f"Medians, on asyncio's event loop. {report.machine()}.",
    )
    return chart.draw("What a call costs", panels, notes)


def _write(options: argparse.Namespace, results: str, drawing: str | None) -> None:
    """Keep the results of a whole run, or of any if that was asked for."""
    if options.output is None and (options.only or options.quick or options.smoke):
        return
    directory: Path = options.output or _HERE
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "RESULTS.md").write_text(results, encoding="utf-8")
    if drawing is not None:
        (directory / "chart.svg").write_text(drawing, encoding="utf-8")
    print(f"written to {directory}")


if __name__ == "__main__":
    main()
