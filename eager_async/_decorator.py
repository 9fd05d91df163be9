"""`@eager`: a function whose calls start at once."""

from __future__ import annotations

import copy
import inspect
from asyncio import iscoroutine
from contextvars import copy_context
from sys import _getframe
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import wrapt

from eager_async._limit import Limit
from eager_async._loop import BackgroundLoop, task_name
from eager_async._process import thread_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Protocol, Self

    from eager_async._task import EagerTask

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


P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


# wrapt's types can't say that a coroutine becomes a task; the overloads of `eager` do.
_BoundFunctionWrapper: Any = wrapt.BoundFunctionWrapper
_FunctionWrapper: Any = wrapt.FunctionWrapper


class _Starter:
    """Calls what a wrapper wraps, and starts the coroutine."""

    __slots__ = ()  # a `__dict__` of its own would hide wrapt's

    def __call__(self: Any, /, *args: Any, **kwargs: Any) -> EagerTask[Any]:
        loop, name, daemon, limit = self._self_options
        loop_thread = thread_of(loop)
        coro = self.__wrapped__(*args, **kwargs)  # wrong arguments raise TypeError here
        if coro.__class__ is not CoroutineType and not iscoroutine(coro):
            raise TypeError(f"{name} should have returned a coroutine, not {coro!r}; write it as `async def`")
        return loop_thread.start_task(coro, name, daemon, copy_context(), _getframe(1), limit)

    def __repr__(self: Any) -> str:
        return f"<eager {self.__wrapped__!r}>"


class _BoundEagerFunction(_Starter, _BoundFunctionWrapper):  # type: ignore[misc]
    """A method, as looked up on an instance or a class."""

    @property
    def _self_options(self) -> Any:
        return self._self_parent._self_options

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return getattr, (self._holder(), self.__name__)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(copy.deepcopy(self._holder(), memo), self.__name__)

    def _holder(self) -> Any:
        """The instance or class on which the method was looked up."""
        instance = getattr(self.__wrapped__, "__self__", None)
        return self._self_owner if instance is None else instance


class _EagerFunction(_Starter, _FunctionWrapper):  # type: ignore[misc]
    """A decorated function. How it is bound as a method is wrapt's to know."""

    __bound_function_wrapper__ = _BoundEagerFunction

    def __init__(self, function: Any, *options: object) -> None:
        _FunctionWrapper.__init__(self, function, function)
        self._self_options = options

    def __reduce_ex__(self, protocol: object) -> str:
        qualname: str = self.__qualname__
        return qualname

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # as of functions


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
    to its first suspension before the call returns. It runs in the loop's thread, in a copy of the
    caller's context. Any thread may call the function.

    Args:
        function: A function, method, class method or static method (either order of decorators), a
            `functools.partial` of one, or an object with an `async def __call__`.
        loop: The background loop to run on. None: the shared one at the time of the call.
        daemon: Whether the process may end without the calls: then they are cancelled, and clean up.
            None: as the eager task that makes the call; elsewhere False.
        limit: How many calls of this function may run at a time in this process, over all instances,
            loops and callers. The rest are pending, and begin in the order of the calls. None: all.
            A call that waits for another of its own function can wait for ever; let the function call
            an undecorated one, `function.__wrapped__` for example.

    Returns:
        What may be used in the function's place: name, signature and attributes stay, and
        `__wrapped__` is the undecorated one.

    Raises:
        TypeError: If that isn't an async function, or an option is of the wrong type. From a call: if
            the arguments don't fit.
        ValueError: If the limit is less than 1.
        LoopClosedError: From a call, if the loop was shut down, or the process is ending.
    """
    _check_options(loop, daemon)
    if limit is not None:
        _check_number("limit", limit)

    def decorate(function: Any, /) -> _EagerFunction:
        _check_function(function)
        places = None if limit is None else Limit(limit)
        return _EagerFunction(function, loop, task_name(_plain(function)), daemon, places)

    return decorate if function is None else decorate(function)


def _check_function(function: Any) -> None:
    if _is(inspect.isasyncgenfunction, function):
        raise TypeError(
            f"eager() needs an async function, and {function!r} is an async generator function: "
            f"decorate it with `@eager_stream`"
        )
    if not _is(inspect.iscoroutinefunction, function):
        raise TypeError(
            f"eager() needs an async function, not {function!r}: write `async def`, or call plain code "
            f"from one with `await asyncio.to_thread(...)`"
        )


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    """Whether a function, a class or static method, or an object that can be called is of a kind."""
    plain = _plain(function)
    return not inspect.isclass(plain) and (kind(plain) or kind(getattr(plain.__class__, "__call__", None)))  # noqa: B004


def _check_options(loop: object, daemon: object) -> None:
    if loop is not None and not isinstance(loop, BackgroundLoop):
        raise TypeError(f"loop must be a BackgroundLoop, not {loop!r}; write `@eager(loop=BackgroundLoop())`")
    if daemon is not None and not isinstance(daemon, bool):
        raise TypeError(f"daemon must be True, False or None, not {daemon!r}")


def _check_number(option: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{option} must be a whole number, not {number!r}; write `{option}=10`, for one")
    if number < 1:
        raise ValueError(f"{option} must be at least 1, not {number}; write `{option}=10`, for one")


def _plain(function: Any) -> Any:
    """The function in a class or static method."""
    return getattr(function, "__func__", function)
