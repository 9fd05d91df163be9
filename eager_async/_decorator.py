"""`@eager` and `@eager_stream`: functions whose calls start at once."""

from __future__ import annotations

import copy
import functools
import inspect
from asyncio import iscoroutine
from contextvars import copy_context
from sys import _getframe
from types import CoroutineType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

import wrapt

from eager_async._limit import Limit
from eager_async._loop import BackgroundLoop, task_name
from eager_async._shared import shared_thread
from eager_async._stream import start_stream
from eager_async._where import calling_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from types import CodeType
    from typing import Protocol, Self

    from eager_async._stream import EagerStream
    from eager_async._task import EagerTask

    _Starter = Callable[[Any], Callable[..., Any]]

    class _Decorator(Protocol):
        @overload
        def __call__(
            self, function: classmethod[C, P, Coroutine[Any, Any, T]], /
        ) -> classmethod[C, P, EagerTask[T]]: ...
        @overload
        def __call__(
            self, function: staticmethod[P, Coroutine[Any, Any, T]], /
        ) -> staticmethod[P, EagerTask[T]]: ...
        @overload
        def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, EagerTask[T]]: ...

    class _StreamDecorator(Protocol):
        @overload
        def __call__(
            self, function: classmethod[C, P, AsyncIterator[T]], /
        ) -> classmethod[C, P, EagerStream[T]]: ...
        @overload
        def __call__(
            self, function: staticmethod[P, AsyncIterator[T]], /
        ) -> staticmethod[P, EagerStream[T]]: ...
        @overload
        def __call__(self, function: Callable[P, AsyncIterator[T]], /) -> Callable[P, EagerStream[T]]: ...


P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


# Types can't say how a coroutine becomes a task in here; the overloads of `eager` do.
_FunctionWrapper: Any = wrapt.FunctionWrapper
_CoroutineType: Any = CoroutineType


class _Function(_FunctionWrapper):  # type: ignore[misc]
    """A decorated function, or what another descriptor has made of it for an instance."""

    # A call finds a plain function in this slot, with all that it needs in its closure: nothing has to be
    # read from the proxy, which takes long.
    __slots__ = ("__call__",)

    # For whom another descriptor has bound it. (An annotation here would hide those of all proxies.)
    _self_holder = cast("Any", None)

    if hasattr(_FunctionWrapper, "__iter__"):  # wrapt 1: functions would be taken for lists of functions
        __iter__ = None

    def __init__(self, function: Any, starter: _Starter) -> None:
        _FunctionWrapper.__init__(self, function, starter)
        self.__call__ = starter(function)

    def __get__(self: Any, instance: Any, owner: Any = None) -> Any:
        function = self.__wrapped__
        if type(function) is FunctionType:  # a method of Python's own takes less time than wrapt's
            return self if instance is None else MethodType(self, instance)
        bind = getattr(type(function), "__get__", None)  # pyright: ignore[reportUnknownArgumentType]
        bound = function if bind is None else bind(function, instance, owner)
        if bound is function:
            return self
        if type(bound) is MethodType and bound.__func__ is function:
            return MethodType(self, bound.__self__)
        method = type(self)(bound, self._self_wrapper)
        method._self_holder = owner if instance is None else instance
        return method

    def __setattr__(self, name: str, value: object) -> None:
        # What `functools.wraps` sets. A proxy would call `__wrapped__` from now on, and with wrapt 1, setting
        # `__annotations__` hides those of all proxies.
        if name in {"__wrapped__", "__annotations__"}:
            setattr(self.__wrapped__, name, value)
            return
        _FunctionWrapper.__setattr__(self, name, value)
        if name == "__qualname__":  # tasks are named after it
            self.__call__ = self._self_wrapper(self.__wrapped__)

    def __repr__(self) -> str:
        return f"<{self._self_decorator} {self.__wrapped__!r}>"

    def __reduce_ex__(self, protocol: object) -> str | tuple[Any, ...]:
        qualname: str = self.__qualname__
        return qualname if self._self_holder is None else (getattr, (self._self_holder, self.__name__))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._self_holder is not None:
            return getattr(copy.deepcopy(self._self_holder, memo), self.__name__)
        if isinstance(self.__wrapped__, FunctionType):
            return self  # as functions are
        return type(self)(copy.deepcopy(self.__wrapped__, memo), self._self_wrapper)


class _EagerFunction(_Function):
    __slots__ = ()
    _self_decorator = "eager"


def _task_starter(
    loop: BackgroundLoop | None,
    daemon: bool | None,  # noqa: FBT001
    limit: Limit | None,
) -> _Starter:
    """What makes the calls of a function, or of a method that was bound, start tasks."""
    find_thread = shared_thread if loop is None else loop._admitting_thread

    def starter(function: Any) -> Callable[..., EagerTask[Any]]:
        name = task_name(_plain(function))

        def start(*args: Any, **kwargs: Any) -> EagerTask[Any]:
            loop_thread = find_thread()
            # Wrong arguments raise TypeError here. (`**kwargs` copies the dict, even an empty one.)
            coro = function(*args, **kwargs) if kwargs else function(*args)
            if type(coro) is not _CoroutineType and not iscoroutine(coro):
                raise TypeError(
                    f"{name} should have returned a coroutine, not {coro!r}; write it as `async def`"
                )
            try:
                caller = _getframe(1)
            except ValueError:  # as in `calling_frame`, whose call would cost more than this
                caller = _getframe()
            return loop_thread.start_task(coro, name, daemon, copy_context(), caller, limit)

        return start

    return starter


class _StreamFunction(_Function):
    __slots__ = ()
    _self_decorator = "eager_stream"

    @property
    def __code__(self) -> CodeType:
        """Without the mark of an async generator function: what a call returns has no `asend`."""
        code: CodeType = self.__wrapped__.__code__
        return code.replace(co_flags=code.co_flags & ~inspect.CO_ASYNC_GENERATOR)

    @__code__.setter
    def __code__(self, code: CodeType) -> None:
        # As IPython's autoreload does, with what this property gives, or a plain function's.
        self.__wrapped__.__code__ = code.replace(co_flags=code.co_flags | inspect.CO_ASYNC_GENERATOR)

    @property
    def __func__(self) -> Any:
        """Of a bound method: its function as one of this kind, since `inspect` looks for the mark there."""
        return type(self)(self.__wrapped__.__func__, self._self_wrapper)

    @property
    def func(self) -> Any:
        """Of a partial function, in the same way."""
        return type(self)(self.__wrapped__.func, self._self_wrapper)


def _stream_starter(
    loop: BackgroundLoop | None,
    daemon: bool | None,  # noqa: FBT001
    buffer: int,
) -> _Starter:
    """What makes the calls of a function, or of a method that was bound, start streams."""
    find_thread = shared_thread if loop is None else loop._admitting_thread

    def starter(function: Any) -> Callable[..., EagerStream[Any]]:
        name = task_name(_plain(function))

        def start(*args: Any, **kwargs: Any) -> EagerStream[Any]:
            loop_thread = find_thread()
            generator = function(*args, **kwargs)
            return start_stream(generator, buffer, loop_thread, name, daemon, copy_context(), calling_frame())

        return start

    return starter


def _decorated(kind: type[_Function], function: Any, starter: _Starter) -> Any:
    """A function whose calls start. A class or static method stays one, of the function in it."""
    if type(function) not in {classmethod, staticmethod}:
        return kind(function, starter)
    method: Any = type(function)(kind(function.__func__, starter))
    vars(method).update(vars(function))  # pyright: ignore[reportUnknownMemberType]
    return method


@overload
def eager(function: classmethod[C, P, Coroutine[Any, Any, T]], /) -> classmethod[C, P, EagerTask[T]]: ...
@overload
def eager(function: staticmethod[P, Coroutine[Any, Any, T]], /) -> staticmethod[P, EagerTask[T]]: ...
@overload
def eager(function: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, EagerTask[T]]: ...
@overload
def eager(
    *, loop: BackgroundLoop | None = None, daemon: bool | None = None, limit: int | None = None
) -> _Decorator: ...
def eager(
    function: Any = None,
    /,
    *,
    loop: BackgroundLoop | None = None,
    daemon: bool | None = None,
    limit: int | None = None,
) -> Any:
    """Decorate an async function, so that calling it starts it.

    A call returns an `EagerTask` at once. Made from another thread, the body starts as soon as the
    background loop is free, without waiting for the caller; made on the loop's own thread, it runs up
    to its first suspension before the call returns (unless its limit has no place, or 50 calls are under
    way inside one another). It runs in the loop's thread, in a copy of the caller's context. Any thread
    may call the function.

    Args:
        function: A function, method, class method or static method (either order of decorators), a
            `functools.partial` of one, or an object with an `async def __call__`.
        loop: The background loop to run on. None: the shared one at the time of the call.
        daemon: Whether the process may end without the calls: then they are cancelled, and clean up.
            None: as the eager task that makes the call; elsewhere False.
        limit: How many calls of this function may run at a time in this process, over all instances,
            loops and callers. The rest are pending, and begin in the order of the calls. None: no limit.
            A call that waits for another of its own function can wait for ever; let the function call
            an undecorated one, `function.__wrapped__` for example.

    Returns:
        What may be used in the function's place: name, signature and attributes stay, and
        `__wrapped__` is the undecorated one.

    Raises:
        TypeError: If `function` isn't an async function, or an option is of the wrong type. From a call:
            if the arguments don't fit, or no coroutine comes out.
        ValueError: If the limit is less than 1.
        LoopClosedError: From a call, if the loop was shut down, or the process is ending.
    """
    _check_options("eager", loop, daemon)
    if limit is not None:
        _check_number("limit", limit)

    def decorate(function: Any, /) -> Any:
        _check_function(function)
        if limit is not None and _is_eager(function):
            raise TypeError(
                f"{function!r} is eager already: its calls start before a limit can hold them up; "
                f"write `eager(limit={limit})(function.__wrapped__)`"
            )
        places = None if limit is None else Limit(limit)
        return _decorated(_EagerFunction, function, _task_starter(loop, daemon, places))

    return decorate if function is None else decorate(function)


def _check_function(function: Any) -> None:
    if _is(inspect.isasyncgenfunction, function):
        raise TypeError(
            f"eager() needs an async function, and {function!r} is an async generator function: "
            f"decorate it with `@eager_stream`"
        )
    if iscoroutine(function):
        raise TypeError(
            f"eager() needs an async function, and {function!r} is what a call of one returns: "
            f"write `eager(f)(...)` in place of `eager(f(...))`"
        )
    if not _is(inspect.iscoroutinefunction, function):
        raise TypeError(
            f"eager() needs an async function, not {function!r}: write `async def`, or call plain code "
            f"from one with `await asyncio.to_thread(...)`"
        )


@overload
def eager_stream(function: classmethod[C, P, AsyncIterator[T]], /) -> classmethod[C, P, EagerStream[T]]: ...
@overload
def eager_stream(function: staticmethod[P, AsyncIterator[T]], /) -> staticmethod[P, EagerStream[T]]: ...
@overload
def eager_stream(function: Callable[P, AsyncIterator[T]], /) -> Callable[P, EagerStream[T]]: ...
@overload
def eager_stream(
    *, buffer: int = 16, loop: BackgroundLoop | None = None, daemon: bool | None = None
) -> _StreamDecorator: ...
def eager_stream(
    function: Any = None,
    /,
    *,
    buffer: int = 16,
    loop: BackgroundLoop | None = None,
    daemon: bool | None = None,
) -> Any:
    """Decorate an async generator function, so that calling it starts it.

    A call returns an `EagerStream` at once; the generator runs in the loop's thread, in a copy of the
    caller's context, up to `buffer` items ahead of whoever iterates. Any thread may call the function.

    Args:
        function: An async generator function, or what `eager` takes of that kind.
        buffer: The most items that are made and not yet taken. While there are so many, the generator
            is at rest at its `yield`, and the process may end without it; it goes on when half of them
            are taken.
        loop: The background loop to run on. None: the shared one at the time of the call.
        daemon: As for `eager`.

    Returns:
        What may be used in the function's place, as for `eager`; `inspect.isasyncgenfunction` is false.

    Raises:
        TypeError: If `function` isn't an async generator function, or an option is of the wrong type. From a
            call: if the arguments don't fit.
        ValueError: If the buffer is less than 1.
        LoopClosedError: From a call, if the loop was shut down, or the process is ending.
    """
    _check_options("eager_stream", loop, daemon)
    _check_number("buffer", buffer)

    def decorate(function: Any, /) -> Any:
        if not _is(inspect.isasyncgenfunction, function):
            raise TypeError(
                f"eager_stream() needs an async generator function, not {function!r}: write `yield` in an "
                f"`async def`, or decorate an async function with `@eager`"
            )
        return _decorated(_StreamFunction, function, _stream_starter(loop, daemon, buffer))

    return decorate if function is None else decorate(function)


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    """Whether a function, a class or static method, or an object that can be called is of a kind."""
    plain = _plain(function)
    return not inspect.isclass(plain) and (kind(plain) or kind(_call_of(plain)))


def _is_eager(function: Any) -> bool:
    """Whether the calls of a function start by themselves."""
    plain = _plain(function)
    calls = function, plain, _call_of(plain)
    if any(isinstance(call, _EagerFunction) for call in calls):
        return True
    return isinstance(plain, functools.partial) and _is_eager(plain.func)


def _call_of(thing: Any) -> Any:
    """What an object that can be called is called by."""
    return getattr(thing.__class__, "__call__", None)  # noqa: B004


def _check_options(decorator: str, loop: object, daemon: object) -> None:
    if loop is not None and not isinstance(loop, BackgroundLoop):
        raise TypeError(
            f"loop must be a BackgroundLoop, not {loop!r}; write `@{decorator}(loop=BackgroundLoop())`"
        )
    if daemon is not None and not isinstance(daemon, bool):
        raise TypeError(f"daemon must be True, False or None, not {daemon!r}")


def _check_number(option: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{option} must be a whole number, not {number!r}; write `{option}=10`, for one")
    if number < 1:
        raise ValueError(f"{option} must be at least 1, not {number}; write `{option}=10`, for one")


def _plain(function: Any) -> Any:
    """The function in a class or static method, or in a bound one."""
    return getattr(function, "__func__", function)
