"""Eager functions, as type checkers see them: `mypy` and `pyright` read this, nothing runs it."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Literal, Protocol, TypeVar, assert_type

from eager_async import BackgroundLoop, EagerTask, eager

T = TypeVar("T")

background = BackgroundLoop()


@eager
async def fetch(url: str, retries: int = 3, *, strict: bool = False) -> bytes:
    return url.encode() * retries if strict else b""


@eager(loop=background, daemon=True)
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
assert_type(eager(loop=None, daemon=None)(plain)(1), EagerTask[int])
assert_type(eager(functools.partial(plain, 1))(), EagerTask[int])
assert_type(functools.partial(fetch, "url")(), EagerTask[bytes])
assert_type(eager(asyncio.sleep)(1, "slept"), EagerTask[str])


# Arguments are checked

fetch()  # type: ignore[call-arg]
fetch(1)  # type: ignore[arg-type]
fetch("url", "three")  # type: ignore[arg-type]
fetch("url", 1, True)  # type: ignore[call-arg]
fetch("url", strict=1)  # type: ignore[arg-type]
fetch("url", wrong=1)  # type: ignore[call-arg]
with_options("x")  # type: ignore[arg-type]
without_options()  # type: ignore[call-arg]
fetch("url").result("soon")  # type: ignore[arg-type]
text: str = fetch("url").result()  # type: ignore[assignment]


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
eager(loop=background)(plain_function)  # type: ignore[arg-type]


# Options are checked

eager(loop=asyncio.new_event_loop())  # type: ignore[call-overload]
eager(daemon="yes")  # type: ignore[call-overload]
eager(retries=3)  # type: ignore[call-overload]
eager(plain, loop=background)  # type: ignore[call-overload]


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


# It is still a function to those who look at it

assert_type(inspect.signature(fetch), inspect.Signature)
is_async: bool = inspect.iscoroutinefunction(fetch)


# Literals and unions come through


@eager
async def literal() -> Literal["a", "b"] | None:
    return "a"


assert_type(literal().result(), Literal["a", "b"] | None)
