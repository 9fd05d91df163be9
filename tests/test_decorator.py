"""What `@eager` makes of a function: what it takes, what stays, and what it refuses."""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import copy
import functools
import importlib
import inspect
import pickle
import sys
import threading
import types
import typing
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from unittest.mock import AsyncMock, Mock, create_autospec, patch

import pytest
import wrapt

from eager_async import BackgroundLoop, EagerTask, eager, shared_loop
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from conftest import RunPython


async def plain_add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    return x + y


@eager
async def add(x: int, y: int = 1, *, scale: int = 1) -> int:
    """Add two numbers."""
    await asyncio.sleep(0)
    return (x + y) * scale


add.unit = "metres"  # type: ignore[attr-defined]


class Account:
    """Every kind of method, in either order of decorators."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Account) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    @eager
    async def method(self, x: int = 0) -> tuple[Account, int]:
        """Say which object."""
        return self, x

    @eager
    @classmethod
    async def eager_class(cls, x: int = 0) -> tuple[type[Account], int]:
        """Say which class."""
        return cls, x

    @classmethod
    @eager
    async def class_eager(cls, x: int = 0) -> tuple[type[Account], int]:
        """Say which class."""
        return cls, x

    @eager
    @staticmethod
    async def eager_static(x: int = 0) -> int:
        """Give it back."""
        return x

    @staticmethod
    @eager
    async def static_eager(x: int = 0) -> int:
        """Give it back."""
        return x

    @property
    @eager
    async def balance(self) -> str:
        """A property over an eager function."""
        return f"balance of {self.name}"

    async def plain(self, x: int = 0) -> tuple[Account, int]:
        """Undecorated, for decorating inline."""
        return self, x


class Savings(Account):
    """Overrides, and calls what it overrides."""

    @eager
    async def method(self, x: int = 0) -> tuple[Account, int]:
        """Add a hundred."""
        account, y = await super().method(x)
        return account, y + 100

    @classmethod
    @eager
    async def class_eager(cls, x: int = 0) -> tuple[type[Account], int]:
        """Add a hundred."""
        kind, y = await super().class_eager(x)
        return kind, y + 100

    @eager
    @classmethod
    async def eager_class(cls, x: int = 0) -> tuple[type[Account], int]:
        """Add a hundred."""
        kind, y = await super().eager_class(x)
        return kind, y + 100


@wrapt.decorator
def through(function: Any, _instance: object, args: Any, kwargs: Any) -> Any:
    """Call on, bound in wrapt's way."""
    return function(*args, **kwargs)


class Through:
    """Calls on, bound in Python's way."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def __get__(self, instance: object, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    async def __call__(self, *args: Any) -> Any:
        return await self._function(*args)


class Layered:
    """Eager methods over descriptors of other kinds."""

    @eager
    @through
    async def bound_by_wrapt(self) -> object:
        return self

    @eager
    @Through
    async def bound_by_an_object(self) -> object:
        return self

    @eager
    @eager
    async def bound_by_eager(self) -> object:
        return self

    @eager
    @through
    @classmethod
    async def of_class(cls) -> object:
        return cls


class Bag(list[int]):
    """A container, which is false while it is empty."""

    @eager
    async def method(self) -> int:
        """Count."""
        return len(self)


class Adder:
    """An object that is called as a function."""

    async def __call__(self, x: int, y: int = 1) -> int:
        return x + y


class Remote:
    """Has whatever attribute is asked for, as a client of remote calls."""

    def __getattr__(self, name: str) -> Remote:
        if name.startswith("__"):
            return self
        return Remote()

    async def __call__(self, x: int) -> int:
        return x


class Holder:
    """Keeps one of its own bound methods."""

    def __init__(self) -> None:
        self.callback = self.method

    @eager
    async def method(self) -> Holder:
        """Say which object."""
        return self


ALL_METHODS = ["method", "eager_class", "class_eager", "eager_static", "static_eager"]


# What it takes


def test_a_call_returns_a_task_with_the_result() -> None:
    """A call returns an EagerTask, whose result is what the body returns."""
    task = add(2, y=3, scale=10)
    assert type(task) is EagerTask
    assert task.result(PATIENCE) == 50


def test_a_method_knows_its_instance() -> None:
    """A method called on an instance gets it as `self`; called on the class, it takes it as an argument."""
    account = Account("a")
    assert account.method(1).result(PATIENCE)[0] is account
    assert Account.method(account, x=2).result(PATIENCE) == (account, 2)


@pytest.mark.parametrize("name", ["eager_class", "class_eager"])
def test_a_class_method_works_in_either_order(name: str) -> None:
    """`@eager` above or below `@classmethod`: it gets the class that it is looked up on."""
    for kind in (Account, type("Sub", (Account,), {})):
        assert getattr(kind, name)(1).result(PATIENCE) == (kind, 1)
        assert getattr(kind("a"), name)(x=2).result(PATIENCE) == (kind, 2)


@pytest.mark.parametrize("name", ["eager_static", "static_eager"])
def test_a_static_method_works_in_either_order(name: str) -> None:
    """`@eager` above or below `@staticmethod`: on the class or an instance, it gets its arguments alone."""
    assert getattr(Account, name)(1).result(PATIENCE) == 1
    assert getattr(Account("a"), name)(x=2).result(PATIENCE) == 2


def test_partials_can_be_decorated() -> None:
    """A `functools.partial` of an async function is one, of functions and of methods."""
    assert eager(functools.partial(plain_add, 1))(y=2).result(PATIENCE) == 3
    account = Account("a")
    assert eager(functools.partial(account.plain, x=5))().result(PATIENCE) == (account, 5)
    assert eager(functools.partial(functools.partial(plain_add, 1), 4))().result(PATIENCE) == 5


def test_eager_functions_can_be_made_partial() -> None:
    """A `functools.partial` or `partialmethod` of an eager function starts it when it is called."""
    task = functools.partial(add, 1, scale=2)(y=3)
    assert isinstance(task, EagerTask)
    assert task.result(PATIENCE) == 8
    assert inspect.iscoroutinefunction(functools.partial(add, 1))

    class Fives(Account):
        five = functools.partialmethod(Account.method, 5)

    fives = Fives("f")
    assert fives.five().result(PATIENCE) == (fives, 5)


def test_callable_objects_can_be_decorated() -> None:
    """An object with an `async def __call__` can be decorated."""
    assert eager(Adder())(1, y=2).result(PATIENCE) == 3


def test_bound_methods_can_be_decorated_inline() -> None:
    """`eager(client.get)(url)` starts a method of somebody else's class."""
    account = Account("a")
    assert eager(account.plain)(3).result(PATIENCE) == (account, 3)


def test_an_eager_function_can_be_decorated_again() -> None:
    """Decorating twice does no harm: the result and the name are as with one decorator."""
    task = eager(add)(1)
    assert (task.result(PATIENCE), task.get_name()) == (2, "add()")


def test_an_eager_call_that_is_handed_to_a_loop_is_cancelled_with_its_task() -> None:
    """Also before that task has begun; it goes by the function's name."""

    @eager
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    release = threading.Event()
    inner = wait_for_ever()
    with BackgroundLoop() as other:
        other.asyncio_loop.call_soon_threadsafe(release.wait)
        outer = other.create_task(inner)
        assert outer.get_name() == "wait_for_ever()"
        outer.cancel()
        release.set()
        concurrent.futures.wait([inner, outer], PATIENCE)
    assert inner.cancelled()
    assert outer.cancelled()


def test_decorating_takes_options_or_none() -> None:
    """`@eager`, `@eager()` and `@eager(loop=..., daemon=...)` decorate alike."""
    assert eager()(plain_add)(1).result(PATIENCE) == 2
    with BackgroundLoop() as other:
        decorated = eager(loop=other, daemon=True)(plain_add)
        assert decorated.__wrapped__ is plain_add  # type: ignore[attr-defined]
        assert decorated(1).result(PATIENCE) == 2


def test_options_apply_to_every_kind_of_method() -> None:
    """The loop given to the decorator is the one on which methods run, however they are looked up."""
    with BackgroundLoop() as other:
        ran_on = set()

        class Client:
            @eager(loop=other)
            async def method(self) -> None:
                ran_on.add(asyncio.get_running_loop())

            @eager(loop=other)
            @classmethod
            async def eager_class(cls) -> None:
                ran_on.add(asyncio.get_running_loop())

            @staticmethod
            @eager(loop=other)
            async def static_eager() -> None:
                ran_on.add(asyncio.get_running_loop())

        client = Client()
        for task in (client.method(), Client.eager_class(), client.eager_class(), client.static_eager()):
            task.result(PATIENCE)
        assert ran_on == {other.asyncio_loop}


def test_the_shared_loop_is_looked_up_at_each_call() -> None:
    """Without `loop=`, a call runs on whichever loop is the shared one by then."""

    @eager
    async def loop_of_body() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    first = shared_loop()
    assert loop_of_body().result(PATIENCE) is first.asyncio_loop
    first.shutdown()
    assert shared_loop() is not first
    assert loop_of_body().result(PATIENCE) is shared_loop().asyncio_loop


# What it refuses


async def async_generator() -> Any:
    """Not a coroutine function."""
    yield 1


class GeneratorCall:
    """Called, it makes an async generator."""

    async def __call__(self) -> Any:
        yield 1


class PlainCall:
    """Called, it does plain work."""

    def __call__(self) -> None:
        pass


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        "fetch",
        len,
        print,
        lambda: None,
        Adder,
        PlainCall(),
        Mock(),
        functools.partial(len),
        staticmethod(len),
        classmethod(len),
        property(plain_add),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_plain_functions_are_refused_with_the_remedy(wrong: Any) -> None:
    """What isn't an async function is a TypeError when decorating, which names it and `asyncio.to_thread`."""
    for decorate in (eager, eager(), eager(daemon=True)):
        with pytest.raises(TypeError, match=r"async def.*asyncio\.to_thread") as caught:
            decorate(wrong)
        assert repr(wrong) in str(caught.value)


def test_a_call_in_place_of_a_function_is_refused_with_the_remedy() -> None:
    """Whether of an undecorated function or of an eager one."""
    coro, task = plain_add(1), add(1)
    for call in (coro, task):
        with pytest.raises(TypeError, match=r"what a call of one returns: write `eager\(f\)\(\.\.\.\)`"):
            eager(call)  # type: ignore[call-overload]
    coro.close()
    assert task.result() == 2


@pytest.mark.parametrize(
    "wrong",
    [
        async_generator,
        functools.partial(async_generator),
        staticmethod(async_generator),
        classmethod(async_generator),
        GeneratorCall(),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_async_generators_are_refused_with_the_remedy(wrong: Any) -> None:
    """An async generator function is a TypeError when decorating, which names it and `eager_stream`."""
    with pytest.raises(TypeError, match=r"async generator.*eager_stream") as caught:
        eager(wrong)
    assert repr(wrong) in str(caught.value)


def test_a_coroutine_is_refused_and_not_run() -> None:
    """`eager(f())`, a slip for `eager(f)`, is a TypeError."""
    coro = plain_add(1)
    with pytest.raises(TypeError, match="plain_add"):
        eager(coro)  # type: ignore[call-overload]
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
    coro.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loop": 3}, "loop must be a BackgroundLoop, not 3"),
        ({"loop": BackgroundLoop}, "loop must be a BackgroundLoop"),
        ({"daemon": 1}, "daemon must be True, False or None, not 1"),
        ({"daemon": "yes"}, "daemon must be True, False or None, not 'yes'"),
        ({"retries": 3}, "retries"),
    ],
)
def test_options_are_checked_when_decorating(options: dict[str, Any], message: str) -> None:
    """An option that isn't one, or of the wrong type, is a TypeError at the decorator, which names it."""
    with pytest.raises(TypeError, match=message):
        eager(**options)
    with pytest.raises(TypeError, match=message):
        eager(plain_add, **options)


def test_a_users_event_loop_is_refused_as_loop() -> None:
    """An asyncio loop is no BackgroundLoop, and the message says what to write."""
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(TypeError, match=r"@eager\(loop=BackgroundLoop\(\)\)"):
            eager(loop=loop)  # type: ignore[call-overload]
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 3}), ((1,), {"x": 1}), ((), {"y": 1})]
)
def test_wrong_arguments_raise_in_the_caller(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    """Arguments that don't fit are a TypeError at the call, with the usual message; nothing starts."""
    with pytest.raises(TypeError) as expected:
        inspect.unwrap(add)(*args, **kwargs)
    with pytest.raises(TypeError) as caught:
        add(*args, **kwargs)
    assert str(caught.value) == str(expected.value)
    assert shared_loop().tasks() == set()


@pytest.mark.parametrize("name", ALL_METHODS)
def test_wrong_arguments_to_methods_raise_in_the_caller(name: str) -> None:
    """So do those of methods, on the instance."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        getattr(Account("a"), name)(z=1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="markcoroutinefunction came with 3.12")
@pytest.mark.parametrize("returned", [3, None, asyncio.sleep], ids=str)
def test_a_marked_function_that_returns_no_coroutine_fails_at_once(returned: object) -> None:
    """What only claims to be a coroutine function ends in a TypeError, never in a task without an end."""

    def liar() -> object:
        return returned

    liar = inspect.markcoroutinefunction(liar)  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        eager(liar)().result(PATIENCE)  # type: ignore[type-var]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="markcoroutinefunction came with 3.12")
def test_a_marked_function_that_returns_a_coroutine_works() -> None:
    """A plain function that returns a coroutine, and says so, can be decorated."""

    def marked(x: int) -> Coroutine[Any, Any, int]:
        return plain_add(x)

    marked = inspect.markcoroutinefunction(marked)  # type: ignore[attr-defined]
    assert eager(marked)(1).result(PATIENCE) == 2


# What stays


def test_a_decorator_may_be_written_with_wraps_above() -> None:
    """`functools.wraps` above `@eager` names the inner function; what is called stays that function."""
    steps: list[str] = []

    def noted(function: Callable[[int], Coroutine[Any, Any, int]]) -> Callable[[int], EagerTask[int]]:
        @functools.wraps(function)
        @eager
        async def run(number: int) -> int:
            steps.append("before")
            return await function(number)

        return run

    async def double(number: int) -> int:
        """Twice as much."""
        return 2 * number

    doubled = noted(double)
    assert (doubled(2).result(), steps) == (4, ["before"])
    assert (doubled.__name__, doubled.__doc__) == ("double", "Twice as much.")
    assert inspect.unwrap(doubled) is double


def test_name_docstring_and_attributes_stay() -> None:
    """Name, qualified name, module, docstring and attributes are the undecorated function's."""
    assert (add.__name__, add.__qualname__) == ("add", "add")
    assert add.__module__ == __name__
    assert add.__doc__ == "Add two numbers."
    assert add.unit == "metres"  # type: ignore[attr-defined]
    assert Account.method.__qualname__ == "Account.method"
    assert Account("a").class_eager.__doc__ == "Say which class."


def test_signature_and_annotations_stay() -> None:
    """`inspect.signature` and `typing.get_type_hints` see what they saw before, for bound methods too."""
    assert str(inspect.signature(add)) == "(x: 'int', y: 'int' = 1, *, scale: 'int' = 1) -> 'int'"
    assert add.__annotations__ == inspect.unwrap(add).__annotations__ != {}
    assert typing.get_type_hints(add) == {"x": int, "y": int, "scale": int, "return": int}
    assert list(inspect.signature(Account.method).parameters) == ["self", "x"]
    for name in ALL_METHODS:
        assert list(inspect.signature(getattr(Account("a"), name)).parameters) == ["x"]
    assert list(inspect.signature(eager(functools.partial(plain_add, 1))).parameters) == ["y"]


def test_wrapped_is_the_undecorated_function() -> None:
    """`__wrapped__` is the function itself, a way to call it as before; of a method, too."""
    assert eager(plain_add).__wrapped__ is plain_add  # type: ignore[attr-defined]
    assert inspect.unwrap(add).__code__.co_name == "add"
    assert asyncio.run(add.__wrapped__(1)) == 2  # type: ignore[attr-defined]
    account = Account("a")
    coro = account.method.__wrapped__(account, 4)  # type: ignore[attr-defined]
    assert inspect.iscoroutine(coro)
    assert asyncio.run(coro) == (account, 4)


def test_it_stays_a_coroutine_function() -> None:
    """`inspect.iscoroutinefunction` is true, so that frameworks treat it as they did."""
    assert inspect.iscoroutinefunction(add)
    assert not inspect.isasyncgenfunction(add)
    assert inspect.isfunction(add)
    for name in ALL_METHODS:
        assert inspect.iscoroutinefunction(getattr(Account, name))
        assert inspect.iscoroutinefunction(getattr(Account("a"), name))
    assert inspect.ismethod(Account("a").method)


def test_bound_methods_compare_as_before() -> None:
    """Two look-ups of a method are equal and hash alike, so that callbacks can be found and removed."""
    account, other = Account("a"), Account("b")
    assert account.method == account.method
    assert hash(account.method) == hash(account.method)
    assert account.method != other.method
    assert account.method.__self__ is account  # type: ignore[attr-defined]


def test_methods_are_pythons_own() -> None:
    """What takes methods apart, keeps them weakly or looks for their kind finds what it knows."""
    for name in ("method", "eager_class", "class_eager"):
        assert type(getattr(Account("a"), name)) is types.MethodType
    for name, kind in (("eager_class", classmethod), ("eager_static", staticmethod)):
        assert type(vars(Account)[name]) is kind
    account, layered = Account("a"), Layered()
    for method in (account.method, layered.bound_by_an_object, layered.bound_by_eager):
        kept: Any = weakref.WeakMethod(method)
        assert kept() == method
        assert kept()().result(PATIENCE)


def test_attributes_of_a_class_method_stay() -> None:
    """What was set on the class or static method itself stays on it."""
    for kind in (classmethod, staticmethod):
        method: Any = kind(plain_add)
        method.colour = "red"
        assert eager(method).colour == "red"


def test_kinds_of_class_methods_can_be_decorated() -> None:
    """A subclass of `classmethod` too, whatever it takes to make one."""

    class Tagged(classmethod):  # type: ignore[type-arg]
        def __new__(cls, function: Any, **_: Any) -> Tagged:
            return super().__new__(cls, function)

        def __init__(self, function: Any, *, tag: str) -> None:
            super().__init__(function)
            self.tag = tag

    class Holding:
        async def own(self) -> object:
            return self

        own = eager(Tagged(own, tag="t"))  # type: ignore[assignment, arg-type, type-var]

    assert Holding.own().result(PATIENCE) is Holding  # type: ignore[call-arg, attr-defined]
    assert vars(Holding)["own"].tag == "t"


def test_a_function_is_no_list_of_functions() -> None:
    """What takes a function or several of them, as pandas does, takes it for one."""
    assert not isinstance(add, Iterable)


def test_the_repr_says_eager() -> None:
    """`repr` tells an eager function from a plain one."""
    assert repr(add) == f"<eager {inspect.unwrap(add)!r}>"
    assert repr(Account.method) == f"<eager {inspect.unwrap(Account.method)!r}>"


def test_a_task_is_named_as_its_function() -> None:
    """A task goes by the qualified name of its function, a partial by that of the function in it."""

    async def local() -> None:
        pass

    async def named_by_wraps() -> None: ...

    @functools.wraps(named_by_wraps)
    @eager
    async def wrapper() -> None: ...

    tasks: dict[str, EagerTask[Any]] = {
        "add()": add(1),
        "local()": eager(local)(),
        "plain_add()": eager(functools.partial(plain_add, 1))(),
        "Adder()": eager(Adder())(1),
        "Account.plain()": eager(Account("a").plain)(),
        "named_by_wraps()": wrapper(),
        "Remote()": eager(Remote().some.method)(1),
        **{f"Account.{name}()": getattr(Account("a"), name)() for name in ALL_METHODS},
    }
    for task in tasks.values():
        task.result(PATIENCE)
    assert [task.get_name() for task in tasks.values()] == list(tasks)


# Classes


def test_super_reaches_what_was_overridden() -> None:
    """Eager methods and class methods can be overridden, and call the overridden one by `super()`."""
    savings = Savings("s")
    assert savings.method(1).result(PATIENCE) == (savings, 101)
    assert Savings.class_eager(1).result(PATIENCE) == (Savings, 101)
    assert savings.eager_class(1).result(PATIENCE) == (Savings, 101)


def test_a_plain_override_takes_its_place() -> None:
    """A subclass may override an eager method with a plain async one, and the other way round."""

    class Plain(Account):
        async def method(self, x: int = 0) -> tuple[Account, int]:  # type: ignore[override]
            account, y = await super().method(x)
            return account, -y

    class Eager(Plain):
        @eager
        async def method(self, x: int = 0) -> tuple[Account, int]:  # type: ignore[override]
            account, y = await super().method(x)
            return account, y - 1

    assert asyncio.run(Plain("p").method(1))[1] == -1
    assert Eager("e").method(1).result(PATIENCE)[1] == -2


def test_a_property_starts_its_function() -> None:
    """`@property` over `@eager`: each access starts a task; through the class, it is the property."""
    task = Account("a").balance
    assert isinstance(task, EagerTask)
    assert task.result(PATIENCE) == "balance of a"
    assert isinstance(Account.balance, property)


def test_a_cached_property_starts_its_function_once() -> None:
    """`functools.cached_property` over `@eager`: one task, which every access awaits."""
    starts: list[int] = []

    class Lazy:
        @functools.cached_property
        @eager
        async def value(self) -> int:
            starts.append(1)
            return 7

    lazy = Lazy()
    assert lazy.value is lazy.value
    assert [lazy.value.result(PATIENCE), lazy.value.result(PATIENCE), starts] == [7, 7, [1]]


def test_abstract_methods_stay_abstract() -> None:
    """`@eager` with `@abstractmethod`, in either order, keeps a class from being instantiated."""

    class Above(abc.ABC):
        @eager
        @abc.abstractmethod
        async def method(self) -> int: ...

    class Below(abc.ABC):
        @abc.abstractmethod
        @eager
        async def method(self) -> int: ...

    for kind in (Above, Below):
        with pytest.raises(TypeError, match="abstract"):
            kind()

        class Concrete(kind):  # type: ignore[valid-type, misc]
            @eager
            async def method(self) -> int:
                return 1

        assert Concrete().method().result(PATIENCE) == 1


def test_eager_methods_satisfy_protocols() -> None:
    """A class with eager methods is an instance of a runtime protocol that asks for them."""

    @runtime_checkable
    class HasMethod(Protocol):
        def method(self, x: int = 0) -> Any: ...

    assert isinstance(Account("a"), HasMethod)
    assert not isinstance(Adder(), HasMethod)


def test_a_class_with_slots_can_have_eager_methods() -> None:
    """Nothing is stored on instances: they may have slots, and be frozen."""

    class Slotted:
        __slots__ = ()

        @eager
        async def method(self) -> int:
            return 1

    assert Slotted().method().result(PATIENCE) == 1


# Other decorators, and mocks


def test_decorators_stack_above_and_below() -> None:
    """A decorator above sees the task, one below sees the coroutine; both wrap as before."""
    seen: list[tuple[str, type]] = []

    def above(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            made = function(*args)
            seen.append(("above", type(made)))
            return made

        return wrapper

    def below(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any) -> Any:
            coro = function(*args)
            seen.append(("below", type(coro)))
            return await coro

        return wrapper

    @above
    @eager
    @below
    async def stacked(x: int) -> int:
        """Documented."""
        return x

    assert stacked(4).result(PATIENCE) == 4
    assert dict(seen)["above"] is EagerTask
    assert dict(seen)["below"] is types.CoroutineType
    assert (stacked.__name__, stacked.__doc__) == ("stacked", "Documented.")


def test_a_decorator_that_asks_for_the_object_gets_it() -> None:
    """One of wrapt's, below or above, is told the object or the class. What isn't bound gets none."""
    seen: list[object] = []

    @wrapt.decorator
    def telling(function: Any, instance: object, args: Any, kwargs: Any) -> Any:
        seen.append(instance)
        return function(*args, **kwargs)

    class Told:
        @eager
        @telling
        async def below(self, x: int) -> tuple[object, int]:
            return self, x

        @telling
        @eager
        async def above(self, x: int) -> tuple[object, int]:
            return self, x

        @eager
        @telling
        @classmethod
        async def of_class(cls, x: int) -> tuple[object, int]:
            return cls, x

        adder = eager(Adder())

    told = Told()
    assert told.adder(1).result(PATIENCE) == 2
    for method, holder in ((told.below, told), (told.above, told), (told.of_class, Told)):
        assert inspect.iscoroutinefunction(method)
        assert list(inspect.signature(method).parameters) == ["x"]
        assert method(1).result(PATIENCE) == (holder, 1)
        assert seen.pop() is holder
        assert not seen


def test_a_cached_eager_function_gives_out_one_task() -> None:
    """`functools.cache` over `@eager`: one run for each argument, for any number of awaiters."""
    starts: list[int] = []

    @functools.cache
    @eager
    async def cached(x: int) -> int:
        starts.append(x)
        return x

    async def awaits_twice() -> list[int]:
        return [await cached(1), await cached(1)]

    assert asyncio.run(awaits_twice()) == [1, 1]
    assert cached(1).result(PATIENCE) == 1
    assert starts == [1]


def test_async_mocks_can_be_decorated() -> None:
    """An `AsyncMock` is taken for an async function, and records the await."""
    mock = AsyncMock(return_value=7)
    assert eager(mock)(1, two=2).result(PATIENCE) == 7
    mock.assert_awaited_once_with(1, two=2)
    failing = eager(AsyncMock(side_effect=KeyError("gone")))()
    with pytest.raises(KeyError, match="gone"):
        failing.result(PATIENCE)


def test_mocks_made_from_eager_functions_are_async() -> None:
    """`patch` and `create_autospec` make async mocks of eager functions, with their signature."""
    with patch(f"{__name__}.Account.method") as method:
        assert isinstance(method, AsyncMock)
    with patch.object(Account, "method", autospec=True, return_value=5) as method:
        account = Account("a")
        assert asyncio.run(account.method(3)) == 5
        method.assert_awaited_once_with(account, 3)
    spec = create_autospec(add, return_value=9)
    assert asyncio.run(spec(1, scale=2)) == 9
    with pytest.raises(TypeError):
        asyncio.run(spec(1, 2, 3))


# Pickling and copying


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_function_pickles_by_its_qualified_name(protocol: int) -> None:
    """An eager function unpickles as the very same object, under every protocol."""
    assert pickle.loads(pickle.dumps(add, protocol)) is add
    assert b"add" in pickle.dumps(add, protocol)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ALL_METHODS)
def test_methods_pickle(name: str, protocol: int) -> None:
    """Methods looked up on a class pickle too, and work when they are back."""
    restored = pickle.loads(pickle.dumps(getattr(Account, name), protocol))
    args = (Account("a"), 1) if name == "method" else (1,)
    assert restored(*args).result(PATIENCE) == getattr(Account, name)(*args).result(PATIENCE)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_bound_methods_pickle_with_their_object(name: str) -> None:
    """A bound method pickles with its object, as that of any class."""
    restored = pickle.loads(pickle.dumps(getattr(Account("a"), name)))
    assert restored(1).result(PATIENCE) == getattr(Account("a"), name)(1).result(PATIENCE)


@pytest.mark.parametrize("name", ["bound_by_wrapt", "bound_by_an_object", "bound_by_eager", "of_class"])
def test_methods_over_other_descriptors_pickle_and_are_copied(name: str) -> None:
    """As methods of plain functions: with their object or class."""
    layered = Layered()
    layered.own = getattr(layered, name)  # type: ignore[attr-defined]
    for twin in (copy.deepcopy(layered), pickle.loads(pickle.dumps(layered))):
        assert twin is not layered
        assert twin.own().result(PATIENCE) is (Layered if name == "of_class" else twin)
    of_class = pickle.loads(pickle.dumps(getattr(Layered, name)))
    task = of_class() if name == "of_class" else of_class(layered)
    assert task.result(PATIENCE) is (Layered if name == "of_class" else layered)


def test_an_object_is_copied_with_its_inline_decorated_method() -> None:
    """The copy's is that of the copy, as if it weren't decorated."""
    account = Account("a")
    account.own = eager(account.plain)  # type: ignore[attr-defined]
    twin = copy.deepcopy(account)
    assert twin.own().result(PATIENCE)[0] is twin  # type: ignore[attr-defined]


def test_a_bound_method_of_a_false_object_pickles_with_it() -> None:
    """An object's truth, which for an empty container is false, isn't asked for."""
    assert pickle.loads(pickle.dumps(Bag().method))().result(PATIENCE) == 0
    assert pickle.loads(pickle.dumps(Bag([1, 2]).method))().result(PATIENCE) == 2


def test_what_has_no_qualified_name_does_not_pickle() -> None:
    """A function made in a function is a pickling error, as without `@eager`."""

    @eager
    async def local() -> None: ...

    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(local)


def test_copies_of_functions_are_the_same_function() -> None:
    """`copy.copy` and `copy.deepcopy` return an eager function itself, as they do functions."""
    assert copy.copy(add) is add
    assert copy.deepcopy({"task": add})["task"] is add
    assert copy.deepcopy(Account.class_eager)(1).result(PATIENCE) == (Account, 1)


def test_a_bound_method_is_copied_with_its_object() -> None:
    """`copy.deepcopy` of an object that keeps a bound method of its own binds it to the copy."""
    holder = Holder()
    assert copy.copy(holder.callback)().result(PATIENCE) is holder
    copied = copy.deepcopy(holder)
    assert copied.callback().result(PATIENCE) is copied


def test_worker_processes_take_eager_functions(run_python: RunPython) -> None:
    """Functions and bound methods reach spawned processes, and run there on a loop of that process."""
    done = run_python(
        """
        import concurrent.futures
        import multiprocessing
        import os
        from eager_async import eager

        @eager
        async def double(x):
            return 2 * x, os.getpid()

        class Counter:
            def __init__(self, start):
                self.start = start

            @eager
            async def add(self, x):
                return self.start + x, os.getpid()

            @classmethod
            @eager
            async def name(cls, x):
                return cls.__name__, os.getpid()

        def outcome(function, x):
            return function(x).result()

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                for function in (double, Counter(10).add, Counter.name):
                    value, pid = pool.submit(outcome, function, 4).result()
                    print(value, pid != os.getpid())
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("8 True\n14 True\nCounter True\n", "", 0)


# Reloading


def test_a_reloaded_module_decorates_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `importlib.reload` the new function runs the new code; tasks of the old one end as they began."""
    source = (
        "from eager_async import eager\n"
        "@eager\n"
        "async def version(gate=None):\n"
        "    if gate is not None:\n"
        "        await gate\n"
        "    return {}\n"
    )
    path = tmp_path / "reloaded_by_a_test.py"
    path.write_text(source.format(1), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module: Any = importlib.import_module("reloaded_by_a_test")
    try:
        opened = threading.Event()
        old, task = module.version, module.version(asyncio.to_thread(opened.wait, PATIENCE))
        path.write_text(source.format("'two'"), encoding="utf-8")
        importlib.reload(module)
        assert module.version().result(PATIENCE) == "two"
        opened.set()
        assert task.result(PATIENCE) == 1
        assert pickle.loads(pickle.dumps(module.version)) is module.version
        with pytest.raises(pickle.PicklingError, match="not the same object"):
            pickle.dumps(old)
    finally:
        del sys.modules["reloaded_by_a_test"]
