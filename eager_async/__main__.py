"""A demonstration: `python -m eager_async`, or `python -m eager_async --fast` at a tenth of the time."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time

from eager_async import eager


@eager
async def work(second: float) -> str:
    """Do three steps, two seconds apart."""
    tell("SETUP")
    await asyncio.sleep(2 * second)
    tell("MIDDLE")
    await asyncio.sleep(2 * second)
    tell("END")
    return "worth the wait"


async def main(second: float) -> None:
    """Call it, poll it, block this thread and its loop meanwhile, and await it at last."""
    tell("START")
    task = work(second)
    tell(f"task.done(): {task.done()}")
    tell(f"task.done(): {task.done()}")
    tell("before first sleep")
    time.sleep(3 * second)  # noqa: ASYNC251  # nothing else can run in this thread, nor on its loop
    tell("after first sleep")
    tell(f"task.done(): {task.done()}")
    tell(f"task.done(): {task.done()}")
    tell("before second sleep")
    time.sleep(3 * second)  # noqa: ASYNC251
    tell("after second sleep")
    tell(f"task.done(): {task.done()}")
    tell(f"task.done(): {task.done()}")
    tell(f"Result: {await task}")


def tell(event: str) -> None:
    """Print an event with its time, in the column and the colour of the thread in which it happens."""
    with _printing:
        elapsed = time.perf_counter() - _started
        if threading.current_thread() is threading.main_thread():
            _print_row(f"{elapsed:.2f} s", event, "")
        else:
            _print_row(f"{elapsed:.2f} s", "", event)


def _print_row(when: str, in_main: str, in_background: str) -> None:
    row = f"{_DIM}{when:>8}{_PLAIN}  {_CYAN}{in_main:<22}{_PLAIN}{_YELLOW}{in_background}{_PLAIN}"
    print(row.rstrip(), flush=True)


def _colours(*codes: str) -> list[str]:
    """The escape sequences on a terminal that shows colours, else nothing."""
    wanted = (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")  # https://no-color.org
        and os.environ.get("TERM") != "dumb"
        and (sys.platform != "win32" or "WT_SESSION" in os.environ)  # older consoles print them as text
    )
    return [f"\x1b[{code}m" if wanted else "" for code in codes]


_DIM, _CYAN, _YELLOW, _PLAIN = _colours("2", "36", "33", "0")
_printing = threading.Lock()
_started = time.perf_counter()

if __name__ == "__main__":
    parser: argparse.ArgumentParser = argparse.ArgumentParser(
        prog="python -m eager_async",
        description="Show an async function that starts when it is called, and runs in another thread.",
    )
    parser.add_argument("--fast", action="store_true", help="run at a tenth of the time")
    fast: bool = parser.parse_args().fast
    _print_row("time", "main's thread", "background thread")
    asyncio.run(main(second=0.1 if fast else 1.0))
