"""What `@eager_stream` makes of a function: what it takes, what stays, and what it refuses."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest
import wrapt

from eager_async import EagerTask, eager, eager_stream, shared_loop
from streams import Consumer, Source, numbers
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def test_methods_of_all_kinds(consumer: Consumer) -> None:
    """Methods, class and static methods work, in either order of decorators, on class and instance."""

    class Shop:
        number = 1

        @eager_stream
        async def method(self, last: int) -> AsyncIterator[int]:
            yield self.number
            yield last

        @eager_stream(buffer=1)
        @classmethod
        async def class_method(cls, last: int) -> AsyncIterator[int]:
            yield cls.number
            yield last

        @classmethod
        @eager_stream
        async def method_of_class(cls, last: int) -> AsyncIterator[int]:
            yield cls.number
            yield last

        @eager_stream
        @staticmethod
        async def static_method(last: int) -> AsyncIterator[int]:
            yield 1
            yield last

        @staticmethod
        @eager_stream(buffer=1)
        async def method_of_nothing(last: int) -> AsyncIterator[int]:
            yield 1
            yield last

    shop = Shop()
    functions: list[Any] = [shop.method, functools.partial(Shop.method, shop)]
    for owner in (shop, Shop):
        functions += [owner.class_method, owner.method_of_class, owner.static_method, owner.method_of_nothing]
    for function in functions:
        assert consumer.all(function(last=2)) == [1, 2]


async def plain_numbers(first: int, last: int = 3) -> AsyncIterator[int]:
    """Count from one number to another."""
    for number in range(first, last + 1):
        yield number


decorated_numbers = eager_stream(buffer=1)(plain_numbers)
decorated_numbers.colour = "red"  # type: ignore[attr-defined]


class CountsWhenCalled:
    """An object with an `async def __call__` that yields."""

    async def __call__(self, last: int) -> AsyncIterator[int]:
        for number in range(1, last + 1):
            yield number


@wrapt.decorator
def pass_on(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
    """Do nothing."""
    return wrapped(*args, **kwargs)


class Catalogue:
    """A class with streams as its methods."""

    @eager_stream
    async def pages(self) -> AsyncIterator[int]:
        """Yield the pages."""
        yield 1

    @eager_stream
    @pass_on
    async def passed_on(self) -> AsyncIterator[int]:
        """Yield the pages, by way of another decorator."""
        yield 1


def test_partials_and_objects_with_an_async_call(consumer: Consumer) -> None:
    """What `eager` takes of that kind, `eager_stream` takes too; also inline."""
    assert consumer.all(eager_stream(functools.partial(plain_numbers, 2))()) == [2, 3]
    assert consumer.all(eager_stream(CountsWhenCalled())(2)) == [1, 2]
    assert consumer.all(eager_stream(CountsWhenCalled().__call__)(2)) == [1, 2]


def test_a_decorated_function_looks_like_the_one_it_was() -> None:
    """Name, docstring, signature, annotations and attributes stay; `__wrapped__` is the undecorated one."""
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "__defaults__"):
        assert getattr(decorated_numbers, name) == getattr(plain_numbers, name)
    assert inspect.signature(decorated_numbers) == inspect.signature(plain_numbers)
    assert decorated_numbers.__wrapped__ is plain_numbers  # type: ignore[attr-defined]
    assert decorated_numbers.colour == "red"  # type: ignore[attr-defined]
    assert Catalogue.pages.__doc__ == "Yield the pages."
    assert str(inspect.signature(Catalogue().pages)) == str(
        inspect.signature(Catalogue.pages.__wrapped__)
    ).replace("self", "")
    assert "eager_stream" in repr(decorated_numbers)
    assert "plain_numbers" in repr(decorated_numbers)


@pytest.mark.parametrize(
    "function",
    [
        decorated_numbers,
        Catalogue.pages,
        Catalogue().pages,
        eager_stream(CountsWhenCalled()),
        eager_stream(CountsWhenCalled().__call__),
        eager_stream(functools.partial(plain_numbers, 1)),
        Catalogue().passed_on,
    ],
    ids=["function", "unbound method", "bound method", "object", "inline", "partial", "decorated below"],
)
def test_it_is_no_async_generator_function(function: Any) -> None:
    """Frameworks that ask `inspect` don't take it for what has `asend`, nor for a coroutine function."""
    assert not inspect.isasyncgenfunction(function)
    assert not inspect.iscoroutinefunction(function)
    assert not inspect.isgeneratorfunction(function)


def test_a_stream_is_read_only() -> None:
    """It is an iterator and an async iterator, and has nothing to send into the generator."""
    stream = numbers(0)
    for name in ("send", "throw", "asend", "athrow", "__await__"):
        assert not hasattr(stream, name)
    assert not inspect.isasyncgen(stream)
    assert list(stream) == []


def test_decorated_functions_are_pickled_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions and methods go to other processes by their qualified name, and are their own copies."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())
    for function in (numbers, Catalogue.pages):
        assert pickle.loads(pickle.dumps(function)) == function
        assert copy.copy(function) == copy.deepcopy(function) == function


def _this_module() -> Any:
    module = type(sys)(__name__)
    vars(module).update(globals())
    return module


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_itself_is_not_copied(duplicate: Callable[[object], object]) -> None:
    """As with a generator, a copy of a stream is a TypeError: two would share one consumer's place."""
    stream = numbers(2)
    with pytest.raises(TypeError):
        duplicate(stream)
    gc.collect()
    assert list(stream) == [1, 2]


async def coroutine_function() -> int:
    """Yield nothing."""
    return 1


def plain_generator_function() -> Iterator[int]:
    """Yield, but not in an `async def`."""
    yield 1


@pytest.mark.parametrize(
    "wrong",
    [
        coroutine_function,
        plain_generator_function,
        print,
        Source,
        staticmethod(coroutine_function),
        functools.partial(coroutine_function),
        decorated_numbers,
        eager(coroutine_function),
        3,
        "numbers",
    ],
    ids=repr,
)
def test_what_is_no_async_generator_function_is_refused(wrong: Any) -> None:
    """Anything else is a TypeError when decorating, which names it, and says `yield` and `@eager`."""
    with pytest.raises(TypeError, match=r"`yield`.*`@eager`") as caught:
        eager_stream(wrong)
    assert repr(wrong) in str(caught.value)
    with pytest.raises(TypeError, match="async generator function"):
        eager_stream(buffer=3)(wrong)


def test_an_async_generator_is_refused_and_not_run() -> None:
    """`eager_stream(numbers())`, a slip for `eager_stream(numbers)()`, is a TypeError."""
    with pytest.raises(TypeError, match="plain_numbers"):
        eager_stream(plain_numbers(1))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "buffer, kind",
    [
        (0, ValueError),
        (-1, ValueError),
        (True, TypeError),
        ("3", TypeError),
        (1.5, TypeError),
        (None, TypeError),
    ],
)
def test_a_wrong_buffer_is_refused(buffer: Any, kind: type[Exception]) -> None:
    """A buffer that is no number from 1 on fails at decoration, with the remedy."""
    with pytest.raises(kind, match=r"buffer must be .*write `buffer="):
        eager_stream(buffer=buffer)


def test_wrong_options_are_refused() -> None:
    """A wrong `loop` or `daemon` is a TypeError at decoration that says what to write."""
    with pytest.raises(TypeError, match=r"loop must be .*`@eager_stream\(loop="):
        eager_stream(loop=asyncio)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="daemon must be True, False or None"):
        eager_stream(daemon=1)  # type: ignore[call-overload]


def test_wrong_arguments_raise_in_the_caller() -> None:
    """Arguments that don't fit are a TypeError at the call, and nothing is started."""
    with pytest.raises(TypeError, match="numbers"):
        numbers()  # type: ignore[call-arg]
    assert shared_loop()._loop_thread is None or not shared_loop().tasks()


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.usefixtures("loop")
def test_what_a_generator_calls_takes_after_it(*, daemon: bool) -> None:
    """Eager calls and streams made in a daemon's generator are daemons, and in another's are not."""
    tasks: list[EagerTask[Any]] = []

    @eager
    async def inner() -> None:
        await asyncio.sleep(PATIENCE)

    async def inner_stream() -> AsyncIterator[int]:
        await asyncio.sleep(PATIENCE)
        yield 1

    streams = []

    @eager_stream(daemon=daemon)
    async def outer() -> AsyncIterator[int]:
        tasks.append(inner())
        streams.append(eager_stream(inner_stream)())
        yield 1

    assert list(outer()) == [1]
    loop_thread = shared_loop()._loop_thread
    assert loop_thread is not None
    assert list(loop_thread.tasks.values()) == [daemon, daemon]
    tasks[0].cancel()
    streams.pop().close()


def test_its_code_can_be_exchanged() -> None:
    """As IPython's autoreload does, for those who keep the old function."""

    @eager_stream
    async def function() -> AsyncIterator[int]:
        yield 1

    @eager_stream
    async def decorated() -> AsyncIterator[int]:
        yield 2

    async def plain() -> AsyncIterator[int]:
        yield 3

    for code, item in ((decorated.__code__, 2), (plain.__code__, 3)):  # type: ignore[attr-defined]
        function.__code__ = code  # type: ignore[attr-defined]
        assert list(function()) == [item]
    assert not inspect.isasyncgenfunction(function)
