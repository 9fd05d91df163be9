"""Tests of eager functions, with pytest and pytest-asyncio.

Run it: pip install pytest-asyncio
python -m pytest -o asyncio_default_fixture_loop_scope=function tests/recipes/testing_with_pytest.py

It works in both modes of pytest-asyncio; with `--asyncio-mode=auto` the marks aren't needed. The option is
pytest-asyncio's own wish, and is best put into your configuration.
"""

import asyncio
from collections.abc import Iterator
from unittest import mock

import pytest

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


# This belongs into conftest.py.


@pytest.fixture(autouse=True)
def own_loop() -> Iterator[BackgroundLoop]:
    """Give each test a background loop of its own, so that none meets what another has left running."""
    before = set_shared_loop(loop := BackgroundLoop())
    yield loop
    set_shared_loop(before)
    loop.shutdown(cancel_futures=True)


# The tests.


@pytest.mark.asyncio
async def test_an_async_test_awaits() -> None:
    """Eager tasks are awaited as coroutines are."""
    assert await fetch(1) == "page 1"
    assert await asyncio.gather(fetch(2), fetch(3)) == ["page 2", "page 3"]


def test_a_plain_test_blocks() -> None:
    """No event loop is needed."""
    assert fetch(1).result(timeout=10) == "page 1"
    assert count_letters([1, 2, 3]) == 18


@pytest.mark.asyncio
@eager
async def test_on_the_background_loop(own_loop: BackgroundLoop) -> None:
    """A test that is eager itself runs on the loop of the code under test, as some clients need."""
    assert asyncio.get_running_loop() is own_loop.asyncio_loop
    assert await fetch(1) == "page 1"


def test_with_a_mock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decorate the mock: a bare AsyncMock returns coroutines, which have no `result()`."""
    fake = eager(mock.AsyncMock(return_value="a page"))
    monkeypatch.setitem(globals(), "fetch", fake)  # elsewhere: monkeypatch.setattr("module.fetch", fake)
    assert count_letters([1, 2]) == 12
    fake.assert_has_awaits([mock.call(1), mock.call(2)])


@pytest.mark.asyncio
async def test_leaves_work_behind() -> None:
    """What a test has left running is cancelled with its loop, and cleans up."""
    fetch(1)
