"""Tables of what was measured, for the terminal and for `RESULTS.md`."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_LIBRARIES: Final = (
    "wrapt",
    "aiohttp",
    "anyio",
    "asgiref",
    "synchronicity",
    "unsync",
    "uvloop",
)


@dataclass(frozen=True)
class Row:
    """A row of a table, and for the chart the costs that it shows."""

    cells: Sequence[str]
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What has to be done for one row of a table."""

    name: str
    run: Callable[[], Row]


@dataclass(frozen=True)
class Section:
    """A table, and how to get at its rows."""

    name: str
    title: str
    note: str
    columns: Sequence[str]
    jobs: Sequence[Job]


def table(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """A Markdown table whose columns are aligned, to be read as it is, too."""
    lines = [list(columns), *([*row.cells] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded) + "\n"


def section_text(section: Section, rows: Iterable[Row]) -> str:
    """A table with its title and its note."""
    return f"## {section.title}\n\n{section.note}\n\n{table(section.columns, rows)}"


def surroundings_text(command: str) -> str:
    """Where and how it was measured."""
    now = dt.datetime.now(tz=dt.UTC)
    lines = [
        f"Measured on {now:%Y-%m-%d} with `{command}`:",
        "",
        f"- {machine()}, {_gil()}",
        f"- {_system()}{_load()}",
        f"- {', '.join(_versions())}",
    ]
    return "\n".join(lines) + "\n"


def surroundings_line(command: str) -> str:
    """The same in one line, without what isn't measured."""
    today = f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}"
    versions = ", ".join(text for text in _versions() if text.startswith(("eager-async", "wrapt", "uvloop")))
    return f"{machine()}, {_gil()}{_load()}; {versions}; {today}, `{command}`"


def python_version() -> str:
    """The version of this Python, as in the name of its command."""
    return f"{sys.version_info.major}.{sys.version_info.minor}{'' if _has_gil() else 't'}"


def machine() -> str:
    """The Python and the processor, in a few words."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {_cpu_model()}, {os.cpu_count()} cores"


def check_debug_mode() -> None:
    """Refuse to measure asyncio's debug mode."""
    loop = asyncio.new_event_loop()
    loop.close()
    if loop.get_debug():
        sys.exit("asyncio's debug mode is on; measure without -X dev and PYTHONASYNCIODEBUG")


def seconds_text(seconds: float) -> str:
    """A time, in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{_three_digits(seconds * scale)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs"


def cost_text(cost: float, unit: str) -> str:
    """What a call costs: a time, or bytes."""
    return f"{cost:,.0f} B" if unit == "B" else seconds_text(cost)


def _three_digits(number: float) -> str:
    decimals = 2 if number < 10 else 1 if number < 100 else 0  # noqa: PLR2004
    return f"{number:,.{decimals}f}"


def _cpu_model() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _load() -> str:
    if not hasattr(os, "getloadavg"):
        return ""
    return f", load {os.getloadavg()[0]:.1f} at the end"


def _system() -> str:
    with suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.release()}"
    return platform.platform()


def _gil() -> str:
    return "with the GIL" if _has_gil() else "without the GIL"


def _has_gil() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def _versions() -> list[str]:
    versions = []
    for name in ("eager-async", *_LIBRARIES):
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return versions
