"""Eager methods, as type checkers see them: `mypy` and `pyright` read this, nothing runs it."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Generic, Protocol, Self, TypeVar, assert_type

from typing_extensions import override

from eager_async import BackgroundLoop, EagerTask, eager

T = TypeVar("T")

background = BackgroundLoop()


class Client:
    @eager
    async def get(self, url: str, *, timeout: float = 1.0) -> bytes:
        return url.encode() * int(timeout)

    @eager(loop=background)
    async def post(self, url: str) -> int:
        return len(url)

    @eager
    async def entered(self) -> Self:
        return self

    @eager
    @classmethod
    async def eager_class(cls, x: int) -> str:
        return f"{cls}{x}"

    @classmethod
    @eager
    async def class_eager(cls, x: int) -> str:
        return f"{cls}{x}"

    @eager
    @staticmethod
    async def eager_static(x: int) -> str:
        return str(x)

    @staticmethod
    @eager
    async def static_eager(x: int) -> str:
        return str(x)

    @eager(loop=background)
    @classmethod
    async def class_with_options(cls, x: int) -> str:
        return f"{cls}{x}"

    @eager(daemon=True)
    @staticmethod
    async def static_with_options(x: int) -> str:
        return str(x)

    @property
    @eager
    async def size(self) -> int:
        return 1

    async def plain(self, x: int) -> str:
        return str(x)


client = Client()


# On instances

assert_type(client.get("url"), EagerTask[bytes])
assert_type(client.get("url", timeout=2).result(), bytes)
assert_type(client.post("url"), EagerTask[int])
assert_type(client.entered(), EagerTask[Client])
assert_type(client.eager_class(1), EagerTask[str])
assert_type(client.class_eager(1), EagerTask[str])
assert_type(client.eager_static(1), EagerTask[str])
assert_type(client.static_eager(1), EagerTask[str])
assert_type(client.class_with_options(1), EagerTask[str])
assert_type(client.static_with_options(1), EagerTask[str])
assert_type(client.size, EagerTask[int])
assert_type(eager(client.plain)(1), EagerTask[str])
assert_type(eager(Client.plain)(client, 1), EagerTask[str])
assert_type(eager(daemon=True)(client.plain)(1), EagerTask[str])

client.get()  # type: ignore[call-arg]
client.get(1)  # type: ignore[arg-type]
client.get(client, "url")  # type: ignore[call-arg, arg-type]
client.post(1)  # type: ignore[arg-type]
client.eager_class("x")  # type: ignore[arg-type]
client.class_eager("x")  # type: ignore[arg-type]
client.eager_static("x")  # type: ignore[arg-type]
client.static_eager("x")  # type: ignore[arg-type]
client.class_with_options("x")  # type: ignore[arg-type]
client.static_with_options("x")  # type: ignore[arg-type]
eager(client.plain)("x")  # type: ignore[arg-type]
eager(Client.plain)(1)  # type: ignore[call-arg, arg-type]
client.missing()  # type: ignore[attr-defined]


# On the class

assert_type(Client.get(client, "url"), EagerTask[bytes])
assert_type(Client.post(client, "url"), EagerTask[int])
assert_type(Client.eager_class(1), EagerTask[str])
assert_type(Client.class_eager(1), EagerTask[str])
assert_type(Client.eager_static(1), EagerTask[str])
assert_type(Client.static_eager(1), EagerTask[str])
assert_type(Client.class_with_options(1), EagerTask[str])
assert_type(Client.static_with_options(1), EagerTask[str])

Client.get("url")  # type: ignore[call-arg, arg-type]
Client.eager_class()  # type: ignore[call-arg]
Client.class_eager(Client, 1)  # type: ignore[call-arg, arg-type]
Client.eager_static()  # type: ignore[call-arg]
Client.class_with_options("x")  # type: ignore[arg-type]
Client.static_with_options("x")  # type: ignore[arg-type]


# As callbacks

callback: Callable[[str], Coroutine[Any, Any, bytes]] = client.get
starter: Callable[[str], EagerTask[bytes]] = client.get
unbound: Callable[[Client, str], EagerTask[bytes]] = Client.get
of_class: Callable[[int], EagerTask[str]] = Client.class_eager
wrong: Callable[[int], EagerTask[bytes]] = client.get  # type: ignore[assignment]


class SupportsCall(Protocol):
    def __call__(self, url: str, *, timeout: float = 1.0) -> EagerTask[bytes]: ...


by_protocol: SupportsCall = client.get
wrong_by_protocol: SupportsCall = client.post  # type: ignore[assignment]


# Class and static methods made of functions that are there already


async def takes_class(cls: type[Any], x: int) -> str:
    return f"{cls}{x}"


async def takes_none(x: int) -> str:
    return str(x)


class Assembled:
    of_class = eager(classmethod(takes_class))
    of_none = eager(staticmethod(takes_none))
    of_class_with_options = eager(daemon=True)(classmethod(takes_class))
    of_none_with_options = eager(daemon=True)(staticmethod(takes_none))


assert_type(Assembled.of_class(1), EagerTask[str])
assert_type(Assembled().of_none(1), EagerTask[str])
assert_type(Assembled().of_class_with_options(1), EagerTask[str])
assert_type(Assembled.of_none_with_options(1), EagerTask[str])
Assembled().of_class("x")  # type: ignore[arg-type]
Assembled.of_none("x")  # type: ignore[arg-type]
Assembled.of_class_with_options("x")  # type: ignore[arg-type]
Assembled().of_none_with_options("x")  # type: ignore[arg-type]
eager(staticmethod(print))  # type: ignore[arg-type]


# What isn't async can't be decorated


class Mistakes:
    @eager  # type: ignore[arg-type]
    def plain(self) -> int:
        return 1

    @eager  # type: ignore[arg-type]
    @classmethod
    def class_method(cls) -> int:
        return 1

    @eager(daemon=True)  # type: ignore[arg-type]
    @staticmethod
    def static_method() -> int:
        return 1

    @eager  # type: ignore[prop-decorator, arg-type]
    @property
    def size(self) -> int:
        return 1

    @eager  # type: ignore[arg-type]
    async def generator(self) -> AsyncIterator[int]:
        yield 1


# Subclasses


class CachingClient(Client):
    @override
    @eager
    async def get(self, url: str, *, timeout: float = 1.0) -> bytes:
        return await super().get(url, timeout=timeout)

    @classmethod
    @override
    @eager
    async def class_eager(cls, x: int) -> str:
        return await super().class_eager(x)


class PlainClient:
    async def get(self, url: str) -> bytes:
        return url.encode()


class EagerPlainClient(PlainClient):
    # As above. A base class that declares `def get(...) -> Coroutine[Any, Any, bytes]` has no such trouble.
    @override
    @eager
    async def get(self, url: str) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return await super().get(url)


class WrongClient(Client):
    @eager
    async def post(self, url: int) -> int:  # type: ignore[override]
        return url


assert_type(CachingClient().get("url"), EagerTask[bytes])
assert_type(CachingClient.class_eager(1), EagerTask[str])
assert_type(CachingClient.eager_class(1), EagerTask[str])
assert_type(CachingClient().entered(), EagerTask[CachingClient])


# Generic classes, abstract methods, protocols


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content

    @eager
    async def get(self) -> T:
        return self.content


assert_type(Box(1).get(), EagerTask[int])
assert_type(Box("x").get().result(), str)


class Base(abc.ABC):
    @eager
    @abc.abstractmethod
    async def eager_abstract(self) -> int: ...

    @abc.abstractmethod
    @eager
    async def abstract_eager(self) -> int: ...


class Concrete(Base):
    @eager
    async def eager_abstract(self) -> int:
        return 1

    @eager
    async def abstract_eager(self) -> int:
        return 1


assert_type(Concrete().eager_abstract(), EagerTask[int])


class SupportsGet(Protocol):
    def get(self, url: str) -> Coroutine[Any, Any, bytes]: ...


class SupportsAsyncGet(Protocol):
    async def get(self, url: str) -> bytes: ...


class SupportsOther(Protocol):
    async def get(self, url: bytes) -> bytes: ...


supports: SupportsGet = client
# Pyright takes an `async def` for one that returns a `types.CoroutineType`, which no other class is.
supports_async: SupportsAsyncGet = client  # pyright: ignore[reportAssignmentType]
supports_other: SupportsOther = client  # type: ignore[assignment]
