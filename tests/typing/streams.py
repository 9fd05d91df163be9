"""Streams, as type checkers see them: `mypy` and `pyright` read this, nothing runs it."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar, assert_type

from eager_async import BackgroundLoop, EagerStream, EagerTask, eager, eager_stream

T = TypeVar("T")

background = BackgroundLoop()


@eager_stream
async def rows(table: str, start: int = 0, *, strict: bool = False) -> AsyncIterator[bytes]:
    yield table.encode() * start if strict else b""


@eager_stream(buffer=1, loop=background, daemon=True)
async def with_options(x: int) -> AsyncIterator[str]:
    yield str(x)


@eager_stream()
async def without_options(x: int) -> AsyncGenerator[str, None]:
    yield str(x)


@eager_stream
async def generic(x: T) -> AsyncIterator[list[T]]:
    yield [x]


async def plain(x: int, y: int = 1) -> AsyncIterator[int]:
    yield x + y


# Calls

assert_type(rows("users"), EagerStream[bytes])
assert_type(rows("users", 1, strict=True), EagerStream[bytes])
assert_type(with_options(1), EagerStream[str])
assert_type(without_options(1), EagerStream[str])
assert_type(generic(1), EagerStream[list[int]])
assert_type(eager_stream(plain)(1, y=2), EagerStream[int])
assert_type(eager_stream(buffer=2)(plain)(1), EagerStream[int])
assert_type(eager_stream(loop=None, daemon=None)(plain)(1), EagerStream[int])
assert_type(eager_stream(functools.partial(plain, 1))(), EagerStream[int])
assert_type(functools.partial(rows, "users")(), EagerStream[bytes])

rows()  # type: ignore[call-arg]
rows(1)  # type: ignore[arg-type]
rows("users", "first")  # type: ignore[arg-type]
rows("users", 1, True)  # type: ignore[call-arg]
rows("users", wrong=1)  # type: ignore[call-arg]
with_options("x")  # type: ignore[arg-type]
without_options()  # type: ignore[call-arg]
eager_stream(plain)("x")  # type: ignore[arg-type]
eager_stream(buffer=2)(plain)()  # type: ignore[call-arg]


# In plain code

stream = rows("users")
for row in stream:
    assert_type(row, bytes)
for number, row in enumerate(rows("users")):
    assert_type((number, row), tuple[int, bytes])
assert_type(next(stream), bytes)
assert_type(next(stream, None), bytes | None)
assert_type(iter(stream), Iterator[bytes])
assert_type(list(stream), list[bytes])
assert_type([row.decode() for row in stream], list[str])
assert_type(dict(zip(stream, with_options(1), strict=False)), dict[bytes, str])
with rows("users") as entered:
    assert_type(entered, EagerStream[bytes])
with contextlib.closing(rows("users")) as closing:
    assert_type(closing, EagerStream[bytes])
stream.close()

iterator: Iterator[bytes] = stream
iterable: Iterable[object] = stream
wrong_iterator: Iterator[str] = stream  # type: ignore[assignment]
wrong_row: str = next(stream)  # type: ignore[assignment]
not_called: EagerStream[bytes] = rows  # type: ignore[assignment]
for _ in rows:  # type: ignore[attr-defined]
    pass
len(stream)  # type: ignore[arg-type]
stream[0]  # type: ignore[index]
stream.send(None)  # type: ignore[attr-defined]
stream.result()  # type: ignore[attr-defined]


# In asyncio


async def asyncio_code() -> None:
    async for row in rows("users"):
        assert_type(row, bytes)
    assert_type(await anext(stream), bytes)
    assert_type(await asyncio.wait_for(anext(stream), timeout=1), bytes)
    assert_type(aiter(stream), AsyncIterator[bytes])
    assert_type([row.decode() async for row in stream], list[str])
    async with rows("users") as entered:
        assert_type(entered, EagerStream[bytes])
    async with contextlib.aclosing(rows("users")) as closing:
        assert_type(closing, EagerStream[bytes])
    await stream.aclose()

    wrong_row: str = await anext(stream)  # type: ignore[arg-type]
    await asyncio.sleep(0, wrong_row)
    await stream  # type: ignore[misc]
    async for _ in rows:  # type: ignore[attr-defined]
        pass
    await stream.asend(None)  # type: ignore[attr-defined]
    await stream.athrow(ValueError())  # type: ignore[attr-defined]


async_iterator: AsyncIterator[bytes] = stream
async_iterable: AsyncIterable[object] = stream
wrong_async_iterator: AsyncIterator[str] = stream  # type: ignore[assignment]
async_generator: AsyncGenerator[bytes, None] = stream  # type: ignore[assignment]
a_task: EagerTask[bytes] = stream  # type: ignore[assignment]


# What can be decorated


class Counter:
    async def __call__(self, x: int) -> AsyncIterator[int]:
        yield x


async def coroutine(x: int) -> int:
    return x


def generator(x: int) -> Iterator[int]:
    yield x


def makes_async_iterator(x: int) -> AsyncIterator[int]:  # types can't tell it from a generator function
    return plain(x)


assert_type(eager_stream(Counter())(1), EagerStream[int])
assert_type(eager_stream(makes_async_iterator)(1), EagerStream[int])
eager_stream(coroutine)  # type: ignore[arg-type]
eager_stream(generator)  # type: ignore[arg-type]
eager_stream(eager(coroutine))  # type: ignore[arg-type]
eager_stream(plain(1))  # type: ignore[call-overload]
eager_stream(3)  # type: ignore[call-overload]
eager_stream(None)  # type: ignore[call-overload]
eager_stream(plain, plain)  # type: ignore[call-overload]
eager_stream(buffer=2)(coroutine)  # type: ignore[arg-type]
eager_stream(buffer=2)(generator)  # type: ignore[arg-type]
eager_stream(buffer=2)()  # type: ignore[call-overload]
eager(plain)  # type: ignore[arg-type]
eager(rows)  # type: ignore[arg-type]


@eager_stream  # type: ignore[arg-type]
async def decorated_coroutine(x: int) -> int:
    return x


@eager_stream(daemon=True)  # type: ignore[arg-type]
def decorated_generator(x: int) -> Iterator[int]:
    yield x


# Options are checked

eager_stream(buffer="16")  # type: ignore[call-overload]
eager_stream(buffer=1.5)  # type: ignore[call-overload]
eager_stream(buffer=None)  # type: ignore[call-overload]
eager_stream(loop=asyncio.new_event_loop())  # type: ignore[call-overload]
eager_stream(daemon="yes")  # type: ignore[call-overload]
eager_stream(limit=3)  # type: ignore[call-overload]
eager_stream(plain, buffer=2)  # type: ignore[call-overload]


# Methods


class Database:
    @eager_stream
    async def rows(self, table: str, *, start: int = 0) -> AsyncIterator[bytes]:
        yield table.encode() * start

    @eager_stream(buffer=100, loop=background)
    async def names(self) -> AsyncGenerator[str, None]:
        yield ""

    @eager_stream
    async def copies(self) -> AsyncIterator[Self]:
        yield self

    @eager_stream
    @classmethod
    async def stream_class(cls, x: int) -> AsyncIterator[str]:
        yield f"{cls}{x}"

    @classmethod
    @eager_stream
    async def class_stream(cls, x: int) -> AsyncIterator[str]:
        yield f"{cls}{x}"

    @eager_stream
    @staticmethod
    async def stream_static(x: int) -> AsyncIterator[str]:
        yield str(x)

    @staticmethod
    @eager_stream
    async def static_stream(x: int) -> AsyncIterator[str]:
        yield str(x)

    @eager_stream(buffer=2)
    @classmethod
    async def class_with_options(cls, x: int) -> AsyncIterator[str]:
        yield f"{cls}{x}"

    @eager_stream(daemon=True)
    @staticmethod
    async def static_with_options(x: int) -> AsyncIterator[str]:
        yield str(x)

    async def plain(self, x: int) -> AsyncIterator[str]:
        yield str(x)


database = Database()

assert_type(database.rows("users", start=1), EagerStream[bytes])
assert_type(database.names(), EagerStream[str])
assert_type(database.copies(), EagerStream[Database])
assert_type(database.stream_class(1), EagerStream[str])
assert_type(database.class_stream(1), EagerStream[str])
assert_type(database.stream_static(1), EagerStream[str])
assert_type(database.static_stream(1), EagerStream[str])
assert_type(database.class_with_options(1), EagerStream[str])
assert_type(database.static_with_options(1), EagerStream[str])
assert_type(eager_stream(database.plain)(1), EagerStream[str])
assert_type(eager_stream(Database.plain)(database, 1), EagerStream[str])
assert_type(eager_stream(buffer=2)(database.plain)(1), EagerStream[str])

assert_type(Database.rows(database, "users"), EagerStream[bytes])
assert_type(Database.stream_class(1), EagerStream[str])
assert_type(Database.class_stream(1), EagerStream[str])
assert_type(Database.stream_static(1), EagerStream[str])
assert_type(Database.static_stream(1), EagerStream[str])
assert_type(Database.class_with_options(1), EagerStream[str])
assert_type(Database.static_with_options(1), EagerStream[str])

database.rows()  # type: ignore[call-arg]
database.rows(1)  # type: ignore[arg-type]
database.names(1)  # type: ignore[call-arg]
database.stream_class("x")  # type: ignore[arg-type]
database.class_stream("x")  # type: ignore[arg-type]
database.stream_static("x")  # type: ignore[arg-type]
database.static_stream("x")  # type: ignore[arg-type]
database.class_with_options("x")  # type: ignore[arg-type]
database.static_with_options("x")  # type: ignore[arg-type]
eager_stream(database.plain)("x")  # type: ignore[arg-type]
Database.rows("users")  # type: ignore[call-arg, arg-type]
Database.stream_class()  # type: ignore[call-arg]
Database.class_stream(Database, 1)  # type: ignore[call-arg, arg-type]
Database.static_with_options()  # type: ignore[call-arg]


# Class and static methods made of functions that are there already


async def takes_class(cls: type[Any], x: int) -> AsyncIterator[str]:
    yield f"{cls}{x}"


async def takes_none(x: int) -> AsyncIterator[str]:
    yield str(x)


class Assembled:
    of_class = eager_stream(classmethod(takes_class))
    of_none = eager_stream(staticmethod(takes_none))
    of_class_with_options = eager_stream(buffer=2)(classmethod(takes_class))
    of_none_with_options = eager_stream(daemon=True)(staticmethod(takes_none))


assert_type(Assembled.of_class(1), EagerStream[str])
assert_type(Assembled().of_none(1), EagerStream[str])
assert_type(Assembled().of_class_with_options(1), EagerStream[str])
assert_type(Assembled.of_none_with_options(1), EagerStream[str])
Assembled().of_class("x")  # type: ignore[arg-type]
Assembled.of_none("x")  # type: ignore[arg-type]
Assembled.of_class_with_options("x")  # type: ignore[arg-type]
Assembled().of_none_with_options("x")  # type: ignore[arg-type]
eager_stream(staticmethod(print))  # type: ignore[arg-type]


class Mistakes:
    @eager_stream  # type: ignore[arg-type]
    async def coroutine(self) -> int:
        return 1

    @eager_stream  # type: ignore[arg-type]
    @classmethod
    def generator(cls) -> Iterator[int]:
        yield 1

    @eager_stream(buffer=2)  # type: ignore[arg-type]
    @staticmethod
    async def static_coroutine() -> int:
        return 1


# Subclasses, generic classes, abstract methods


class Replica(Database):
    @eager_stream
    async def rows(self, table: str, *, start: int = 0) -> AsyncIterator[bytes]:
        async for row in super().rows(table, start=start):
            yield row


class WrongReplica(Database):
    @eager_stream
    async def names(self) -> AsyncIterator[bytes]:  # type: ignore[override]
        yield b""


class PlainDatabase:
    async def names(self) -> AsyncIterator[str]:
        yield ""


class EagerDatabase(PlainDatabase):
    @eager_stream
    async def names(self) -> AsyncIterator[str]:
        yield ""


class Box(Generic[T]):
    def __init__(self, *contents: T) -> None:
        self.contents = contents

    @eager_stream
    async def each(self) -> AsyncIterator[T]:
        for content in self.contents:
            yield content


class Base(abc.ABC):
    @abc.abstractmethod
    @eager_stream
    async def numbers(self) -> AsyncIterator[int]:
        yield 1


class Concrete(Base):
    @eager_stream
    async def numbers(self) -> AsyncIterator[int]:
        yield 1


assert_type(Replica().rows("users"), EagerStream[bytes])
assert_type(Replica().copies(), EagerStream[Replica])
assert_type(EagerDatabase().names(), EagerStream[str])
assert_type(Box(1, 2).each(), EagerStream[int])
assert_type(Concrete().numbers(), EagerStream[int])


# As callbacks and by protocols


class SupportsNames(Protocol):
    def names(self) -> AsyncIterator[str]: ...


class SupportsPlainNames(Protocol):
    def names(self) -> Iterator[str]: ...


class SupportsOther(Protocol):
    def names(self) -> AsyncIterator[bytes]: ...


def first(function: Callable[[str], Iterable[T]]) -> T:
    return next(iter(function("users")))


callback: Callable[[str], AsyncIterator[bytes]] = rows
starter: Callable[[str], EagerStream[bytes]] = database.rows
wrong_callback: Callable[[int], AsyncIterator[bytes]] = rows  # type: ignore[assignment]
wrong_result: Callable[[str], Iterator[str]] = rows  # type: ignore[assignment]
supports: SupportsNames = database
supports_plain: SupportsPlainNames = database
supports_other: SupportsOther = database  # type: ignore[assignment]
assert_type(first(rows), bytes)
first(with_options)  # type: ignore[arg-type]


# A stream of something more special will do, as for iterators


def takes_objects(stream: EagerStream[object]) -> None:
    next(stream)


takes_objects(rows("users"))
