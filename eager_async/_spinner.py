"""How a thread that waits for a moment stays awake, which spares it sleep and wake-up."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from eager_async._cpython import give_way

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds that a wait spins at most: about what it costs to go to sleep and be woken up.
_LONGEST: Final = 0.00005

# In credits, of which a short wait earns one: the price of so many seconds spent in vain, and the most that
# can be saved, and owed.
_PRICE: Final = 10
_MOST_SAVED: Final = 100
_MOST_OWED: Final = 10_000


class Spinner:
    """Has waits spin at first, as long as that pays.

    It doesn't where they are long; nor where others who are given way keep the CPU or the GIL for long, as a
    sleeper is woken up before those. So whoever spins in vain pays for that time, and short waits earn it.

    Threads: any. If two reckon at one time, one may not count, which does no harm.
    """

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        self._credit: float = 0

    def spin(self, is_over: Callable[[], bool]) -> bool:
        """Wait for a moment without going to sleep, if there is credit; return whether the wait is over."""
        if self._credit <= 0:
            return False
        began = monotonic()
        while True:
            give_way()
            over = is_over()
            spent = monotonic() - began
            if spent > _LONGEST:
                self._credit = max(self._credit - _PRICE * spent / _LONGEST, -_MOST_OWED)
                return over
            if over:
                self._earn()
                return True

    def slept(self, seconds: float) -> None:
        """Take note of a wait that slept from beginning to end."""
        if seconds < 2 * _LONGEST:  # one that spins would take half of that
            self._earn()

    def _earn(self) -> None:
        self._credit = min(self._credit + 1, _MOST_SAVED)
