"""A progress bar on the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_WIDTH = 30


class Progress:
    """A bar on stderr, if that is a terminal, that is drawn before each step.

    Args:
        steps: How many there will be.
    """

    def __init__(self, steps: int, stream: TextIO = sys.stderr) -> None:
        self._steps = steps
        self._done = 0
        self._stream = stream if stream.isatty() else None

    def step(self, label: str) -> None:
        """Say what begins now."""
        filled = _WIDTH * self._done // self._steps
        bar = "█" * filled + "░" * (_WIDTH - filled)
        self._draw(f"{bar} {self._done}/{self._steps} {label}")
        self._done += 1

    def clear(self) -> None:
        """Leave an empty line."""
        self._draw("")

    def _draw(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
