"""Waits of plain code that stay awake for a moment: where that pays, and where it doesn't."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from eager_async import BackgroundLoop, ResultTimeoutError, eager
from eager_async._spinner import Spinner
from gates import Gate
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST = 50e-6  # seconds


class Surroundings:
    """A clock that stands still, and others who take their time when a thread gives way."""

    def __init__(self) -> None:
        self.now = 0.0
        self.take = 0.0
        self.looks = 0

    def give_way(self) -> None:
        """Let time pass."""
        self.looks += 1
        self.now += self.take


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    """What a spinner finds around it."""
    around = Surroundings()
    monkeypatch.setattr("eager_async._spinner.monotonic", lambda: around.now)
    monkeypatch.setattr("eager_async._spinner.give_way", around.give_way)
    return around


def short_waits_until_it_spins(spinner: Spinner, around: Surroundings) -> int:
    """How many there have to be."""
    around.take, around.looks = 0, 0
    for count in itertools.count():
        spinner.spin(lambda: True)
        if around.looks:
            return count
        spinner.slept(LONGEST)
    raise AssertionError


def test_only_short_waits_are_followed_by_ones_that_spin(around: Surroundings) -> None:
    """Those of a loop whose tasks take their time go to sleep at once."""
    spinner = Spinner()
    assert not spinner.spin(lambda: True)
    spinner.slept(2 * LONGEST)
    assert not spinner.spin(lambda: True)
    spinner.slept(LONGEST)
    assert spinner.spin(lambda: True)
    assert around.looks == 1


def test_a_wait_spins_until_it_is_over(around: Surroundings) -> None:
    """It looks each time that it has given way."""
    spinner = Spinner()
    spinner.slept(0)
    around.take = LONGEST / 10
    assert spinner.spin(lambda: around.looks == 4)
    assert spinner.spin(lambda: around.looks == 8)


@pytest.mark.parametrize("take", [LONGEST / 10, LONGEST, LONGEST * 80])
def test_who_spins_in_vain_pays(around: Surroundings, take: float) -> None:
    """The more the longer it took, above all if others kept the CPU or the GIL meanwhile."""
    spinner = Spinner()
    spinner.slept(0)
    around.take = take
    assert not spinner.spin(lambda: False)
    spent = around.now
    assert spent < LONGEST * 81
    assert short_waits_until_it_spins(spinner, around) == pytest.approx(10 * spent / LONGEST, abs=1)


def test_a_spin_that_took_long_is_paid_for_though_it_came_to_the_end(around: Surroundings) -> None:
    """A sleeper may have been woken up earlier."""
    spinner = Spinner()
    spinner.slept(0)
    around.take = LONGEST * 80
    assert spinner.spin(lambda: True)
    assert short_waits_until_it_spins(spinner, around) == pytest.approx(800, abs=1)


def test_some_spins_in_vain_are_allowed_for(around: Surroundings) -> None:
    """As many as short waits have earned, but no more than so many; and what is owed has its limit too."""
    spinner = Spinner()
    for _ in range(1000):
        spinner.slept(0)
    around.take = 2 * LONGEST
    for _ in range(10):
        spinner.spin(lambda: False)
    assert around.looks == 5
    short_waits_until_it_spins(spinner, around)
    around.take = 3600
    spinner.spin(lambda: False)
    assert short_waits_until_it_spins(spinner, around) == pytest.approx(10_000, abs=1)


# With tasks


def have_earned(loop: BackgroundLoop) -> None:
    """Have the next wait for a loop's task spin, as after a short one."""
    assert loop._loop_thread is not None
    loop._loop_thread.spinner.slept(0)


def spin_by(monkeypatch: pytest.MonkeyPatch, give_way: Callable[[], object]) -> None:
    """Have something done in place of giving way."""
    monkeypatch.setattr("eager_async._spinner.give_way", give_way)


def test_a_wait_that_spins_needs_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task may end at any look."""
    ended = threading.Event()

    def let_it_end() -> None:
        gate.open()
        assert ended.wait(PATIENCE)

    with BackgroundLoop() as loop:
        gate = Gate()
        task = loop.create_task(gate.passed(), daemon=True)
        task.add_done_callback(lambda _: ended.set())
        have_earned(loop)
        spin_by(monkeypatch, let_it_end)
        monkeypatch.delattr("eager_async._future.allocate_lock")
        assert task.result() is None


def test_short_calls_have_waits_that_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call and its result at a time."""

    @eager
    async def answer() -> None:
        """Return at once."""

    looks: list[int] = []
    spin_by(monkeypatch, lambda: looks.append(1))
    deadline = time.monotonic() + PATIENCE
    while not looks:
        assert time.monotonic() < deadline
        answer().result()


def test_long_waits_go_to_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, but for the first."""
    looks: list[int] = []
    spin_by(monkeypatch, lambda: looks.append(1))
    with BackgroundLoop() as loop:
        gate = Gate()
        task = loop.create_task(gate.passed(), daemon=True)
        have_earned(loop)
        with pytest.raises(ResultTimeoutError):
            task.result(0.01)
        assert looks
        looks.clear()
        with pytest.raises(ResultTimeoutError):
            task.result(0.01)
        assert not looks


def test_waits_without_an_outcome_earn_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short they are: who polls with tiny time-outs has nobody spin."""
    looks: list[int] = []
    spin_by(monkeypatch, lambda: looks.append(1))
    with BackgroundLoop() as loop:
        gate = Gate()
        task = loop.create_task(gate.passed(), daemon=True)
        for _ in range(100):
            with pytest.raises(ResultTimeoutError):
                task.result(1e-9)
        assert not looks


def test_ctrl_c_interrupts_a_wait_that_spins(monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt comes out of `result()`; the task runs on."""
    with BackgroundLoop() as loop:
        gate = Gate()
        task = loop.create_task(gate.passed(), daemon=True)
        have_earned(loop)
        with monkeypatch.context() as context:
            spin_by(context, lambda: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                task.result()
        gate.open()
        assert task.result() is None
