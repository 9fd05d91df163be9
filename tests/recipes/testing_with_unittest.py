"""Tests of eager functions, with unittest.

Run it: python tests/recipes/testing_with_unittest.py
"""

import asyncio
import unittest
from unittest import mock

from eager_async import BackgroundLoop, eager, set_shared_loop

# The code under test.


@eager
async def fetch(number: int) -> str:
    """Get a page: here, wait a little."""
    await asyncio.sleep(0.01)
    return f"page {number}"


def count_letters(numbers: list[int]) -> int:
    """Get pages all at once, and count: plain code."""
    tasks = [fetch(number) for number in numbers]
    return sum(len(task.result()) for task in tasks)


# The tests.


def use_own_loop(test: unittest.TestCase) -> BackgroundLoop:
    """Give a test a background loop of its own, so that it doesn't meet what another has left running."""
    before = set_shared_loop(loop := BackgroundLoop())
    test.addCleanup(loop.shutdown, cancel_futures=True)
    test.addCleanup(set_shared_loop, before)  # runs first
    return loop


class AsyncTests(unittest.IsolatedAsyncioTestCase):
    """Eager tasks are awaited as coroutines are."""

    def setUp(self) -> None:
        self.loop = use_own_loop(self)

    async def test_awaits(self) -> None:
        assert await fetch(1) == "page 1"
        assert await asyncio.gather(fetch(2), fetch(3)) == ["page 2", "page 3"]

    @eager
    async def test_on_the_background_loop(self) -> None:
        # A test that is eager itself runs on the loop of the code under test, as some clients need.
        assert asyncio.get_running_loop() is self.loop.asyncio_loop
        assert await fetch(1) == "page 1"

    async def test_leaves_work_behind(self) -> None:
        fetch(1)  # is cancelled with its loop, and cleans up


class PlainTests(unittest.TestCase):
    """No event loop is needed."""

    def setUp(self) -> None:
        use_own_loop(self)

    def test_blocks(self) -> None:
        assert fetch(1).result(timeout=10) == "page 1"
        assert count_letters([1, 2, 3]) == 18

    def test_with_a_mock(self) -> None:
        # Decorate the mock: a bare AsyncMock returns coroutines, which have no `result()`.
        fake = eager(mock.AsyncMock(return_value="a page"))
        with mock.patch(f"{__name__}.fetch", fake):
            assert count_letters([1, 2]) == 12
        fake.assert_has_awaits([mock.call(1), mock.call(2)])


if __name__ == "__main__":
    unittest.main()
