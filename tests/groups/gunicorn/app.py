"""A WSGI application that calls eager functions: when it is imported, and in each request."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from eager_async import eager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def say(text: str) -> None:
    """Write a line at once, into the same stream as gunicorn's log."""
    os.write(sys.stderr.fileno(), f"app: {text}\n".encode())


@eager
async def double(number: int) -> int:
    """What requests ask for."""
    await asyncio.sleep(0.005)
    return await asyncio.to_thread(lambda: 2 * number)


@eager
async def double_all(numbers: list[int]) -> list[int]:
    """Eager functions that call eager functions."""
    return await asyncio.gather(*map(double, numbers))


@eager(daemon=True)
async def keep_watch() -> None:
    """Never ends by itself."""
    try:
        await asyncio.Event().wait()
    finally:
        say(f"watch ended in {os.getpid()}")


@eager
async def finish_later(number: int) -> None:
    """Work that a request leaves behind."""
    await asyncio.sleep(0.3)
    say(f"finished {number} in {os.getpid()}")


# Under --preload that is before the fork: one call has ended by then, the other goes on.
loaded_in = os.getpid()
loaded = double(21).result()
watch = keep_watch()


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer `/<number>`; `/later/<number>` leaves some work behind as well."""
    *later, last = environ["PATH_INFO"].strip("/").split("/")
    number = int(last)
    if later:
        finish_later(number)
    calls = [double(number + offset) for offset in range(3)]
    answer = {
        "pid": os.getpid(),
        "loaded in": loaded_in,
        "loaded": loaded,
        "watch": type(watch.exception()).__name__ if watch.done() else "running",
        "doubles": [call.result() for call in calls],
        "nested": double_all([number, number + 1]).result(),
    }
    time.sleep(0.005)  # or one worker could answer all
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
