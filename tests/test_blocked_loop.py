"""A loop that somebody blocks, or that missed a wake-up: noticed by those who wait in `result()`."""

from __future__ import annotations

import asyncio
import logging
import selectors
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, ResultTimeoutError
from eager_async._cpython import GIL_ENABLED
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Stall:
    """A body that blocks its loop's thread until a warning has been logged."""

    def __init__(self, warned: threading.Semaphore) -> None:
        self._warned = warned

    async def __call__(self) -> str:
        """Block."""
        assert self._warned.acquire(timeout=PATIENCE)  # the blocking line
        return "went on"


class WarningSignal(logging.Handler):
    """Releases a semaphore at each warning of the package."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warned = threading.Semaphore(0)
        self.number = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count it. In whichever thread logs."""
        del record
        self.number += 1
        self.warned.release()


@pytest.fixture
def signal_() -> Iterator[WarningSignal]:
    """Watch the package's warnings."""
    handler = WarningSignal()
    logger = logging.getLogger("eager_async")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


# With the stack of the loop's thread, down to the line that blocks; without the GIL it can't be read.
WARNING = (
    r"'stuck' has not turned for \d+\.\d s" + r".*in __call__\n.*acquire.*the blocking line" * GIL_ENABLED
)


def test_a_blocked_loop_is_named_once_a_stall(
    loop_factory: LoopFactory, signal_: WarningSignal, expected_log: Callable[[str], None]
) -> None:
    """Who waits for a loop that doesn't turn logs the blocking line: once a stall, however many wait."""
    with BackgroundLoop(name="stuck", blocked_after=0.05, loop_factory=loop_factory) as loop:
        for stall in (1, 2):
            expected_log(WARNING)
            task = loop.create_task(Stall(signal_.warned)())
            waiters = [threading.Thread(target=task.result) for _ in range(3)]
            for waiter in waiters:
                waiter.start()
            assert task.result() == "went on"
            for waiter in waiters:
                waiter.join(PATIENCE)
            assert signal_.number == stall
            # A stall ends when the loop turns: the next call could begin before it does.
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop.asyncio_loop).result(PATIENCE)


def test_a_long_stall_is_named_once(signal_: WarningSignal, expected_log: Callable[[str], None]) -> None:
    """Waiting on and on for the same stall adds no second warning."""
    expected_log("'stuck' has not turned")
    release = threading.Event()

    async def block() -> None:
        assert release.wait(PATIENCE)

    with BackgroundLoop(name="stuck", blocked_after=0.04) as loop:
        task = loop.create_task(block())
        waiter = threading.Thread(target=task.result)
        waiter.start()
        assert signal_.warned.acquire(timeout=PATIENCE)
        for _ in range(3):
            with pytest.raises(ResultTimeoutError):
                task.result(0.1)
        release.set()
        waiter.join(PATIENCE)
    assert signal_.number == 1


def test_waiting_for_a_loop_that_turns_says_nothing(signal_: WarningSignal) -> None:
    """A slow task on a loop that turns is no stall, however long one waits."""
    with BackgroundLoop(name="turning", blocked_after=1) as loop:
        release = threading.Event()
        task = loop.create_task(asyncio.to_thread(release.wait))
        with pytest.raises(ResultTimeoutError):
            task.result(1.6)
        release.set()
        assert task.result(PATIENCE)
    assert signal_.number == 0


def test_a_stall_shorter_than_blocked_after_says_nothing(signal_: WarningSignal) -> None:
    """Nobody is told of a stall while the wait is shorter than `blocked_after`."""
    with BackgroundLoop(name="stuck", blocked_after=PATIENCE) as loop:
        release = threading.Event()

        async def block() -> None:
            release.wait()

        task = loop.create_task(block())
        with pytest.raises(ResultTimeoutError):
            task.result(0.1)
        release.set()
        task.result()
    assert signal_.number == 0


def test_waiting_in_exception_looks_as_well(
    signal_: WarningSignal, expected_log: Callable[[str], None]
) -> None:
    """`exception()` notices a blocked loop as `result()` does."""
    expected_log(WARNING)
    with BackgroundLoop(name="stuck", blocked_after=0.05) as loop:
        assert loop.create_task(Stall(signal_.warned)()).exception() is None


class SleepSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """A selector that says when its loop sleeps, and only a wake-up can end that."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = threading.Event()

    def select(self, timeout: float | None = None) -> Any:
        """Wait for events."""
        if timeout is None:
            self.asleep.set()
        try:
            return super().select(timeout)
        finally:
            self.asleep.clear()


class DeafLoop(asyncio.SelectorEventLoop):
    """An event loop that loses wake-ups when told so."""

    lost = 0
    losing = False

    def _write_to_self(self) -> None:
        if self.losing:
            self.losing = False
            self.lost += 1
        else:
            super()._write_to_self()


async def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


@pytest.fixture
def self_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops are woken up by their self-pipe, as where there is no eventfd: a write to that can't get lost."""
    monkeypatch.delattr("os.eventfd", raising=False)


@pytest.mark.usefixtures("self_pipe")
@pytest.mark.skipif(sys.platform == "win32", reason="made of a selector event loop")
def test_a_wake_up_that_got_lost_is_made_good(signal_: WarningSignal) -> None:
    """A loop that sleeps on because a wake-up was lost is woken by whoever waits, without a warning."""
    selector = SleepSelector()
    deaf = DeafLoop(selector)
    with BackgroundLoop(loop_factory=lambda: deaf, blocked_after=1) as loop:
        assert loop.create_task(double(1)).result() == 2
        assert selector.asleep.wait(PATIENCE)
        deaf.losing = True
        tasks = [loop.create_task(double(number)) for number in range(3)]
        assert deaf.lost == 1
        assert not any(task.done() for task in tasks)
        assert [task.result(PATIENCE) for task in tasks] == [0, 2, 4]
    assert signal_.number == 0


@pytest.mark.usefixtures("self_pipe")
@pytest.mark.skipif(sys.platform == "win32", reason="made of a selector event loop")
def test_a_failed_wake_up_write_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits wakes the loop, without a warning; asyncio swallows it (python/cpython#156054)."""
    selector = SleepSelector()
    inner: Any = asyncio.SelectorEventLoop(selector)
    real: socket.socket = inner._csock
    failed = threading.Event()

    class FailsOnce:
        """The sending end of the loop's wake-up socket."""

        def send(self, data: bytes) -> int:
            if not failed.is_set():
                failed.set()
                raise OSError("no buffer space")
            return real.send(data)

        def close(self) -> None:
            real.close()

    with BackgroundLoop(blocked_after=1, loop_factory=lambda: inner) as loop:
        assert loop.create_task(double(1)).result() == 2
        assert selector.asleep.wait(PATIENCE)
        monkeypatch.setattr(inner, "_csock", FailsOnce())
        assert loop.create_task(double(21)).result(PATIENCE) == 42
        assert failed.is_set()


def test_without_the_gil_a_blocked_loop_is_named_without_its_stack(
    signal_: WarningSignal, expected_log: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of a thread that runs can't be read then; the warning says so."""
    monkeypatch.setattr("eager_async._loop_thread.GIL_ENABLED", False)
    expected_log(r"'stuck' has not turned .* \(without the GIL, its stack can't be read from here\)$")
    with BackgroundLoop(name="stuck", blocked_after=0.05) as loop:
        assert loop.create_task(Stall(signal_.warned)()).result(PATIENCE) == "went on"
    assert signal_.number == 1
