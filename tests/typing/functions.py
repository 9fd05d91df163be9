"""Eager functions, as type checkers see them: `mypy` and `pyright` read this, nothing runs it."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, assert_type, overload

from eager_async import BackgroundLoop, EagerTask, eager

P = ParamSpec("P")
T = TypeVar("T")

background = BackgroundLoop()


@eager
async def fetch(url: str, retries: int = 3, *, strict: bool = False) -> bytes:
    return url.encode() * retries if strict else b""


@eager(loop=background, daemon=True, limit=3)
async def with_options(x: int) -> str:
    return str(x)


@eager()
async def without_options(x: int) -> str:
    return str(x)


@eager
async def nothing() -> None: ...


@eager
async def generic(x: T) -> list[T]:
    return [x]


async def plain(x: int, y: int = 1) -> int:
    return x + y


# Results

assert_type(fetch("url"), EagerTask[bytes])
assert_type(fetch("url", 1, strict=True).result(timeout=1.0), bytes)
assert_type(with_options(1), EagerTask[str])
assert_type(without_options(1), EagerTask[str])
assert_type(nothing(), EagerTask[None])
assert_type(generic(1), EagerTask[list[int]])
assert_type(generic("x").result(), list[str])
assert_type(eager(plain)(1, y=2), EagerTask[int])
assert_type(eager(loop=background)(plain)(1), EagerTask[int])
assert_type(eager(loop=None, daemon=None, limit=None)(plain)(1), EagerTask[int])
assert_type(eager(limit=3)(plain)(1), EagerTask[int])
assert_type(eager(functools.partial(plain, 1))(), EagerTask[int])
assert_type(functools.partial(fetch, "url")(), EagerTask[bytes])
assert_type(eager(asyncio.sleep)(1, "slept"), EagerTask[str])


@eager
async def collects(*numbers: int, **names: str) -> int:
    return len(numbers) + len(names)


assert_type(collects(1, 2, key="value"), EagerTask[int])
started: list[EagerTask[bytes]] = [fetch(url) for url in ("a", "b")]


# Arguments are checked

fetch()  # type: ignore[call-arg]
fetch(1)  # type: ignore[arg-type]
fetch("url", "three")  # type: ignore[arg-type]
fetch("url", 1, True)  # type: ignore[call-arg]
fetch("url", strict=1)  # type: ignore[arg-type]
fetch("url", wrong=1)  # type: ignore[call-arg]
with_options("x")  # type: ignore[arg-type]
without_options()  # type: ignore[call-arg]
collects("one")  # type: ignore[arg-type]
collects(key=1)  # type: ignore[arg-type]
eager(plain)("x")  # type: ignore[arg-type]
eager(daemon=True)(plain)()  # type: ignore[call-arg]
eager(limit=3)(plain)("x")  # type: ignore[arg-type]
fetch("url").result("soon")  # type: ignore[arg-type]
text: str = fetch("url").result()  # type: ignore[assignment]
not_called: EagerTask[bytes] = fetch  # type: ignore[assignment]
other_tasks: list[EagerTask[str]] = [fetch("url")]  # type: ignore[list-item]


# What can be decorated


class Adder:
    async def __call__(self, x: int) -> int:
        return x


def makes_coroutine(x: int) -> Coroutine[Any, Any, int]:
    return plain(x)


def plain_function(x: int) -> int:
    return x


async def generator() -> AsyncIterator[int]:
    yield 1


assert_type(eager(Adder())(1), EagerTask[int])
assert_type(eager(makes_coroutine)(1), EagerTask[int])
eager(plain_function)  # type: ignore[arg-type]
eager(generator)  # type: ignore[arg-type]
eager(plain(1))  # type: ignore[call-overload]
eager(3)  # type: ignore[call-overload]
eager(None)  # type: ignore[call-overload]
eager(plain, plain)  # type: ignore[call-overload]
eager(functools.partial(plain_function, 1))  # type: ignore[arg-type]
eager(time.sleep)  # type: ignore[arg-type]
eager(loop=background)(plain_function)  # type: ignore[arg-type]
eager(loop=background)(generator)  # type: ignore[arg-type]
eager(loop=background)()  # type: ignore[call-overload]


@eager  # type: ignore[arg-type]
def decorated_plain(x: int) -> int:
    return x


@eager(daemon=True)  # type: ignore[arg-type]
def decorated_plain_with_options(x: int) -> int:
    return x


# Options are checked

eager(loop=asyncio.new_event_loop())  # type: ignore[call-overload]
eager(loop="background")  # type: ignore[call-overload]
eager(loop=BackgroundLoop)  # type: ignore[call-overload]
eager(daemon="yes")  # type: ignore[call-overload]
eager(daemon=1)  # type: ignore[call-overload]
eager(limit="3")  # type: ignore[call-overload]
eager(limit=0.5)  # type: ignore[call-overload]
eager(retries=3)  # type: ignore[call-overload]
eager(buffer=3)  # type: ignore[call-overload]
eager(plain, loop=background)  # type: ignore[call-overload]
eager(plain, limit=3)  # type: ignore[call-overload]


# Callback protocols, and functions that take functions


class Fetcher(Protocol):
    def __call__(self, url: str, retries: int = 3, *, strict: bool = False) -> Coroutine[Any, Any, bytes]: ...


class FutureFetcher(Protocol):
    def __call__(self, url: str, retries: int = 3) -> EagerTask[bytes]: ...


class OtherFetcher(Protocol):
    def __call__(self, url: bytes) -> Coroutine[Any, Any, bytes]: ...


fetcher: Fetcher = fetch
future_fetcher: FutureFetcher = fetch
other_fetcher: OtherFetcher = fetch  # type: ignore[assignment]
handler: Callable[[str], Coroutine[Any, Any, bytes]] = fetch
starter: Callable[[str], EagerTask[bytes]] = fetch
wrong_handler: Callable[[int], Coroutine[Any, Any, bytes]] = fetch  # type: ignore[assignment]
wrong_result: Callable[[str], Coroutine[Any, Any, str]] = fetch  # type: ignore[assignment]


def route(function: Callable[[str], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(function("url"))


assert_type(route(fetch), bytes)
route(with_options)  # type: ignore[arg-type]


# With other decorators, above and below


def logged(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    return function


def timed(function: Callable[P, T]) -> Callable[P, T]:
    return function


@logged
@eager
async def logged_eager(x: int) -> str:
    return str(x)


@eager
@logged
async def eager_logged(x: int) -> str:
    return str(x)


@timed
@eager
async def timed_eager(x: int) -> str:
    return str(x)


assert_type(asyncio.run(logged_eager(1)), str)
assert_type(eager_logged(1), EagerTask[str])
assert_type(timed_eager(1), EagerTask[str])
asyncio.run(logged_eager("x"))  # type: ignore[arg-type]
eager_logged("x")  # type: ignore[arg-type]
timed_eager("x")  # type: ignore[arg-type]


# Overloads


@overload
@eager
async def double(x: int) -> int: ...
@overload
@eager
async def double(x: str) -> str: ...
@eager
async def double(x: int | str) -> Any:
    return x * 2


assert_type(double(1), EagerTask[int])
assert_type(double("x").result(), str)
double(b"x")  # type: ignore[call-overload]


# It is still a function to those who look at it

assert_type(inspect.signature(fetch), inspect.Signature)
is_async: bool = inspect.iscoroutinefunction(fetch)


# Literals and unions come through


@eager
async def literal() -> Literal["a", "b"] | None:
    return "a"


assert_type(literal().result(), Literal["a", "b"] | None)
