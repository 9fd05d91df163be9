"""Tasks where futures and coroutines are expected: `mypy` and `pyright` read this, nothing runs it."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import types
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar, assert_type

from eager_async import (
    BackgroundLoop,
    DeadlockError,
    EagerTask,
    LoopClosedError,
    ResultTimeoutError,
    eager,
    set_shared_loop,
    shared_loop,
)

T = TypeVar("T")


@eager
async def number() -> int:
    return 1


@eager
async def text() -> str:
    return ""


async def plain() -> int:
    return 1


# Plain code

task = number()
assert_type(task.result(), int)
assert_type(task.result(5), int)
assert_type(task.exception(timeout=None), BaseException | None)
assert_type(task.done(), bool)
assert_type(task.running(), bool)
assert_type(task.cancelled(), bool)
assert_type(task.cancel(), bool)
assert_type(task.cancel("message"), bool)
assert_type(task.get_name(), str)
assert_type(task.get_coro(), Coroutine[Any, Any, int] | None)
assert_type(task.get_stack(limit=1), list[types.FrameType])
task.print_stack(limit=1, file=None)
task.get_loop()  # type: ignore[attr-defined]

future: concurrent.futures.Future[int] = task
coroutine: Coroutine[Any, Any, int] = task
awaitable: Awaitable[int] = task
any_future: concurrent.futures.Future[Any] = task
any_coroutine: Coroutine[Any, Any, object] = task
wrong_future: concurrent.futures.Future[str] = task  # type: ignore[assignment]
wrong_coroutine: Coroutine[Any, Any, str] = task  # type: ignore[assignment]
asyncio_future: asyncio.Future[int] = task  # type: ignore[assignment]


def poll(future: concurrent.futures.Future[T]) -> T | None:
    return future.result() if future.done() else None


async def drive(coro: Coroutine[Any, Any, T]) -> T:
    return await coro


assert_type(poll(task), int | None)
assert_type(asyncio.run(drive(task)), int)
poll(plain())  # type: ignore[arg-type]
asyncio.run(drive(3))  # type: ignore[arg-type]

assert_type(concurrent.futures.wait([number(), number()]).done, set[concurrent.futures.Future[int]])
for finished in concurrent.futures.as_completed([number(), number()]):
    assert_type(finished.result(), int)


# Callbacks


def takes_future(done: concurrent.futures.Future[int]) -> None:
    done.result()


def takes_text(done: concurrent.futures.Future[str]) -> None:
    done.result()


task.add_done_callback(takes_future)
task.add_done_callback(takes_future, context=contextvars.copy_context())
task.add_done_callback(print)
task.add_done_callback(takes_text)  # type: ignore[arg-type]
assert_type(task.remove_done_callback(takes_future), int)


# asyncio

assert_type(asyncio.run(number()), int)


async def asyncio_code() -> None:
    assert_type(await number(), int)
    assert_type(await asyncio.create_task(number()), int)
    assert_type(asyncio.create_task(number(), name="number"), asyncio.Task[int])
    assert_type(await asyncio.gather(number(), text()), tuple[int, str])
    assert_type(
        await asyncio.gather(number(), text(), return_exceptions=True),
        tuple[int | BaseException, str | BaseException],
    )
    assert_type(await asyncio.gather(*[number() for _ in range(3)]), list[int])
    assert_type(await asyncio.wait_for(number(), timeout=1), int)
    assert_type(await asyncio.shield(number()), int)
    assert_type(await asyncio.wrap_future(number()), int)
    assert_type(await asyncio.ensure_future(number()), int)
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(number()), asyncio.Task[int])
    for next_done in asyncio.as_completed([number(), number()]):
        assert_type(await next_done, int)
    done, _ = await asyncio.wait([asyncio.ensure_future(number())])
    assert_type({finished.result() for finished in done}, set[int])
    loop = asyncio.get_running_loop()
    assert_type(asyncio.run_coroutine_threadsafe(number(), loop).result(), int)
    assert_type(await loop.create_task(number()), int)
    loop.run_until_complete(number())
    wrong: str = await number()  # type: ignore[assignment]
    await asyncio.sleep(0, wrong)
    wrong = await asyncio.shield(number())  # type: ignore[arg-type]
    wrong = await asyncio.wait_for(number(), timeout=1)  # type: ignore[arg-type]
    wrong = await asyncio.create_task(number())  # type: ignore[arg-type]
    wrong, _ = await asyncio.gather(number(), text())  # type: ignore[assignment]


# Not called, or not for asyncio's functions

asyncio.run(number)  # type: ignore[arg-type]


async def mistakes() -> None:
    await number  # type: ignore[misc]
    await asyncio.create_task(number)  # type: ignore[arg-type]
    await asyncio.gather(number)  # type: ignore[call-overload]
    await asyncio.wait_for(number, timeout=1)  # type: ignore[arg-type]
    await asyncio.shield(number)  # type: ignore[arg-type]
    await asyncio.wait([number()])  # type: ignore[type-var]
    async with asyncio.TaskGroup() as group:
        group.create_task(number)  # type: ignore[arg-type]


# Loops

with BackgroundLoop(name="mine", loop_factory=asyncio.new_event_loop, debug=True) as loop:
    assert_type(loop, BackgroundLoop)
    assert_type(loop.create_task(plain()), EagerTask[int])
    assert_type(
        loop.create_task(plain(), name="n", daemon=True, context=contextvars.copy_context()), EagerTask[int]
    )
    assert_type(loop.create_task(number()), EagerTask[int])
    loop.create_task(plain)  # type: ignore[arg-type]
    loop.create_task(asyncio.sleep(1), "name")  # type: ignore[call-arg]
    loop.create_task(asyncio.Future[int]())  # type: ignore[arg-type]
    loop.create_task(plain(), name=1)  # type: ignore[arg-type]
    loop.create_task(plain(), daemon="yes")  # type: ignore[arg-type]
    loop.create_task(plain(), context={})  # type: ignore[arg-type]
    loop.create_task(plain(), retries=3)  # type: ignore[call-arg]
    wrong_task: EagerTask[str] = loop.create_task(plain())  # type: ignore[arg-type]
    assert_type(loop.tasks(), set[EagerTask[Any]])
    assert_type(loop.asyncio_loop, asyncio.AbstractEventLoop)
    loop.shutdown(wait=False, cancel_futures=True)
    loop.shutdown(True, True)  # type: ignore[call-arg]

BackgroundLoop("mine")  # type: ignore[call-arg]
BackgroundLoop(name=1)  # type: ignore[arg-type]
BackgroundLoop(loop_factory=asyncio.new_event_loop())  # type: ignore[arg-type]
BackgroundLoop(loop_factory=BackgroundLoop)  # type: ignore[arg-type]
BackgroundLoop(debug="yes")  # type: ignore[arg-type]
BackgroundLoop(blocked_after="5")  # type: ignore[arg-type]
BackgroundLoop(exit_timeout="5")  # type: ignore[arg-type]
BackgroundLoop(threads=2)  # type: ignore[call-arg]
BackgroundLoop(exit_timeout=None, blocked_after=1)
assert_type(shared_loop(), BackgroundLoop)
assert_type(set_shared_loop(BackgroundLoop()), BackgroundLoop)
set_shared_loop(asyncio.new_event_loop())  # type: ignore[arg-type]
set_shared_loop(None)  # type: ignore[arg-type]


# Errors

errors: list[type[RuntimeError]] = [DeadlockError, LoopClosedError]
timeouts: list[type[TimeoutError]] = [ResultTimeoutError]
