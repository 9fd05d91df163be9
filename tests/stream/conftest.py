"""Where streams are produced and consumed."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, set_shared_loop
from eager_async._channel import Channel
from streams import Consumer
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[BackgroundLoop]:
    """Have streams run on a loop of each kind; it ends by itself when the test does."""
    with BackgroundLoop(name="streams", loop_factory=loop_factory) as loop:
        before = set_shared_loop(loop)
        yield loop
        set_shared_loop(before)


@pytest.fixture(params=["plain code", "another loop", "the background loop"])
def consumer(
    request: pytest.FixtureRequest, loop: BackgroundLoop, loop_factory: LoopFactory
) -> Iterator[Consumer]:
    """Consume in each of the three places."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runs: dict[str, Callable[[Coroutine[Any, Any, Any]], Any] | None] = {
            "plain code": None,
            "another loop": runner.run,
            "the background loop": lambda coro: loop.create_task(coro).result(PATIENCE),
        }
        yield Consumer(runs[request.param])


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Count the consumers that have begun to wait for an item."""
    waits = threading.Semaphore(0)
    call_at_next = Channel.call_at_next

    def counting(*arguments: Any) -> bool:
        enlisted = call_at_next(*arguments)
        if enlisted:
            waits.release()
        return enlisted

    monkeypatch.setattr(Channel, "call_at_next", counting)
    return waits
