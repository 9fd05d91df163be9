"""Measure, print the tables, and write them and the chart down.

`python -m benchmarks` measures all, on the Python that runs it, and writes `RESULTS.md` and `chart.svg`
beside this file. With `--only ratios --output benchmarks` it measures the ratios alone. In both cases it
keeps the ratios in `ratios-3.14.json`, named after the Python, and the table of ratios in `RESULTS.md` has
a column for each such file. So several Pythons come into one table, in any order:

    python3.11 -m benchmarks --only ratios --output benchmarks
    python3.13 -m benchmarks --only ratios --output benchmarks
    python3.14 -m benchmarks
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import shlex
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import chart, comparison, latency, ratios, report, scaling
from benchmarks.measuring import FULL, QUICK, SMOKE
from benchmarks.peers import default_factories
from benchmarks.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.measuring import Effort
    from benchmarks.report import Row, Section

_HERE: Final = Path(__file__).parent

# Seconds after which a smoke run, which takes about ten, has failed.
_SMOKE_TIMEOUT: Final = 120

# The rows of the comparison on asyncio's loop that the chart shows.
_CHARTED: Final = (
    ("burst", "A burst of 5,000 calls from a plain thread: time a call", "s"),
    ("one", "One call and its result at a time: time a call", "s"),
    ("memory", "Memory of a pending call", "B"),
    ("stream", "A stream into a for loop in a plain thread: time an item", "s"),
    ("async_stream", "A stream into async for on another loop: time an item", "s"),
    ("http", "Real work, 500 HTTP requests: time a request", "s"),
)


def main() -> None:
    """Do what the command line says."""
    parser = _parser()
    options = parser.parse_args()
    if options.output is not None and options.only not in (None, [ratios.NAME]):
        parser.error("--output is for all tables, or for `--only ratios`")
    report.check_debug_mode()
    if options.smoke:
        faulthandler.dump_traceback_later(_SMOKE_TIMEOUT, exit=True)
    effort = SMOKE if options.smoke else QUICK if options.quick else FULL
    sections = _chosen(_sections(effort, million=options.million), options.only)
    progress = Progress(sum(len(section.jobs) for section in sections))
    texts: dict[str, str] = {}
    measured: dict[str, dict[str, Row]] = {}
    for section in sections:
        rows = measured[section.name] = {}
        for job in section.jobs:
            progress.step(f"{section.title}: {job.name}")
            rows[job.name] = job.run()
        progress.clear()
        texts[section.name] = report.section_text(section, rows.values())
        print(texts[section.name], flush=True)
    print(report.surroundings_text(_command(options)))
    with _directory(options) as directory:
        if directory is not None:
            _write(directory, options, texts, measured)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="a table (ratios, peers-asyncio, peers-uvloop, scaling, threads, latency) "
        "or a row of one (burst, memory, ticker...); may be repeated; writes no files",
    )
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="a rough measurement; writes no files")
    effort.add_argument("--smoke", action="store_true", help="see whether it works; keeps no files")
    parser.add_argument("--million", action="store_true", help="also a burst of 1,000,000 calls (3 GB)")
    parser.add_argument(
        "--output",
        metavar="DIRECTORY",
        type=Path,
        help="write files in any case, and there; for all tables, or for `--only ratios`",
    )
    return parser


def _command(options: argparse.Namespace) -> str:
    """The command line, but for where files go."""
    words = ["python", "-m", "benchmarks"]
    for name in options.only or ():
        words += ["--only", name]
    words += [f"--{name}" for name in ("quick", "smoke", "million") if getattr(options, name)]
    return shlex.join(words)


def _sections(effort: Effort, *, million: bool) -> list[Section]:
    factories = default_factories()
    return [
        ratios.section(factories, effort),
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


@contextmanager
def _directory(options: argparse.Namespace) -> Iterator[Path | None]:
    """Where files go, if any are written."""
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        yield options.output
        print(f"written to {options.output}")
    elif options.only or options.quick:
        yield None
    elif options.smoke:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)  # to see that this works, too
    else:
        yield _HERE
        print(f"written to {_HERE}")


def _write(
    directory: Path,
    options: argparse.Namespace,
    texts: dict[str, str],
    measured: Mapping[str, Mapping[str, Row]],
) -> None:
    """Keep the results of all tables, or renew the ratios among those that are there."""
    command = _command(options)
    path = directory / "RESULTS.md"
    ratios.save(directory, measured[ratios.NAME], command)
    texts[ratios.NAME] = ratios.text_of_all(directory)
    if options.only is None:
        (directory / "chart.svg").write_text(_draw(measured["peers-asyncio"]), encoding="utf-8")
        results = "\n".join(["# Results\n", report.surroundings_text(command), *texts.values()])
    elif path.exists():
        results = ratios.renewed(path.read_text(encoding="utf-8"), texts[ratios.NAME])
    else:
        results = f"# Results\n\n{texts[ratios.NAME]}"
    path.write_text(results, encoding="utf-8")


def _draw(rows: Mapping[str, Row]) -> str:
    panels = [
        chart.Panel(heading, unit, rows[name].costs) for name, heading, unit in _CHARTED if name in rows
    ]
    notes = (
        "Less is better; each part has its own scale. Medians, on asyncio's event loop.",
        "create_task stays on its caller's loop; ThreadPoolExecutor calls a plain function.",
        f"{report.machine()}.",
    )
    return chart.draw("What a call costs", panels, notes)


if __name__ == "__main__":
    main()
