"""A gate that holds up coroutines and threads until a test opens it."""

from __future__ import annotations

import asyncio
import concurrent.futures


class Gate:
    """Closed at first. Any thread may call any method."""

    def __init__(self) -> None:
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()

    def open(self) -> None:
        """Let all pass; it may be open already."""
        if not self._opened.done():
            self._opened.set_result(None)

    def pass_blocking(self) -> None:
        """Block until it is open."""
        self._opened.result()

    async def passed(self) -> None:
        """Wait until it is open."""
        await asyncio.shield(asyncio.wrap_future(self._opened))
