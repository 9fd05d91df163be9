"""Threads that tests race against one another, and wait for."""

from __future__ import annotations

import concurrent.futures
import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Whether threads take turns.
GIL_ENABLED: bool = getattr(sys.flags, "gil", 1) == 1

PATIENCE = 30  # seconds, for what comes at once unless it never comes


@contextlib.contextmanager
def frequent_switches() -> Iterator[None]:
    """Have threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions at one moment, each in a thread of its own; return what they return."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE)
        return function()

    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        futures = [pool.submit(run, function) for function in functions]
        return [future.result() for future in futures]
