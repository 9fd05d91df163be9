"""What decorating an existing async function changes for its callers, and what to write then."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import signal
import sys
import threading
from typing import Any

import pytest

from eager_async import EagerTask, eager, shared_loop
from threads import PATIENCE, frequent_switches

# The body starts at the call, not at the await


def test_the_body_starts_at_the_call() -> None:
    """What a call does happens even if nobody awaits it, and before it is awaited."""
    begun = threading.Event()

    @eager
    async def work() -> str:
        begun.set()
        return "done"

    async def caller() -> str:
        task = work()
        assert begun.wait(PATIENCE)  # not awaited yet
        return await task

    assert asyncio.run(caller()) == "done"


def test_remedy_call_it_later() -> None:
    """To start something later, keep the function and its arguments, and call when it is time."""
    begun: list[str] = []

    @eager
    async def work(name: str) -> str:
        begun.append(name)
        return name

    async def caller() -> str:
        later = functools.partial(work, "later")
        await asyncio.sleep(0)
        assert begun == []
        return await later()

    assert asyncio.run(caller()) == "later"
    assert begun == ["later"]


def test_remedy_the_undecorated_function_starts_when_awaited() -> None:
    """`__wrapped__` is there for those who want a coroutine, which waits for its await, in their own loop."""
    begun: list[int] = []

    @eager
    async def work() -> None:
        begun.append(threading.get_ident())

    async def caller() -> None:
        coro = work.__wrapped__()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert begun == []
        await coro

    asyncio.run(caller())
    assert begun == [threading.get_ident()]


# It runs in another thread


def test_the_body_runs_in_another_thread() -> None:
    """Not in the caller's thread, and not on the caller's loop."""

    @eager
    async def where() -> tuple[int, asyncio.AbstractEventLoop]:
        return threading.get_ident(), asyncio.get_running_loop()

    async def caller() -> None:
        ident, loop = await where()
        assert ident != threading.get_ident()
        assert loop is not asyncio.get_running_loop()

    asyncio.run(caller())


# Objects bound to the caller's loop


class Client:
    """As client sessions do, it takes the loop that runs when it is made for the one it is used on."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def get(self) -> str:
        """Work on its own loop alone."""
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("Client is attached to a different loop")
        await asyncio.sleep(0)
        return "page"


def test_clients_bound_to_the_callers_loop_do_not_work_in_the_body() -> None:
    """A client made on the caller's loop refuses to work on the background loop."""

    @eager
    async def fetch(client: Client) -> str:
        return await client.get()

    async def caller() -> None:
        with pytest.raises(RuntimeError, match="different loop"):
            await fetch(Client())

    asyncio.run(caller())


def test_remedy_make_clients_on_the_background_loop() -> None:
    """Made by an eager function, a client works in all others, whoever calls them."""

    @eager
    async def connect() -> Client:
        return Client()

    @eager
    async def fetch(client: Client) -> str:
        return await client.get()

    async def caller() -> str:
        return await fetch(await connect())

    assert asyncio.run(caller()) == "page"
    client = connect().result(PATIENCE)
    assert client.loop is shared_loop().asyncio_loop
    assert fetch(client).result(PATIENCE) == "page"
    assert eager(client.get)().result(PATIENCE) == "page"


def test_a_lock_of_the_callers_loop_does_not_work_in_the_body() -> None:
    """An `asyncio.Lock` that both the caller and the body wait for belongs to one loop alone."""

    @eager
    async def waits(lock: asyncio.Lock) -> None:
        async with lock:
            pass

    async def caller() -> None:
        lock = asyncio.Lock()
        async with lock:
            waiter = asyncio.create_task(lock.acquire())
            await asyncio.sleep(0)  # now the lock belongs to this loop
            with pytest.raises(RuntimeError, match="bound to a different event loop"):
                await waits(lock)
        assert await waiter
        lock.release()

    asyncio.run(caller())


def test_remedy_use_locks_on_the_background_loop_alone() -> None:
    """A lock that eager functions alone touch keeps them apart, whatever loop they are called from."""
    lock = asyncio.Lock()
    inside: list[int] = []
    most: list[int] = []

    @eager
    async def section(number: int) -> None:
        async with lock:
            inside.append(number)
            most.append(len(inside))
            await asyncio.sleep(0)
            inside.remove(number)

    async def caller() -> None:
        await asyncio.gather(*[section(number) for number in range(5)])

    asyncio.run(caller())
    for task in [section(number) for number in range(5)]:
        task.result(PATIENCE)
    assert most == [1] * 10


# Thread-locals


def test_the_body_does_not_see_the_callers_thread_locals() -> None:
    """What the caller keeps in a `threading.local` is not there in the body."""
    local = threading.local()
    local.user = "caller"

    @eager
    async def work() -> str:
        return getattr(local, "user", "nobody")

    assert work().result(PATIENCE) == "nobody"


def test_remedy_pass_an_argument_or_use_a_context_variable() -> None:
    """An argument reaches the body, and so does a context variable."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("caller")

    @eager
    async def work(user: str) -> tuple[str, str]:
        return user, variable.get()

    assert work("caller").result(PATIENCE) == ("caller", "caller")


# Shared state


def test_stretches_without_an_await_are_not_atomic_towards_the_caller() -> None:
    """Between two lines of the body, none of which awaits, the caller's thread may change what both use."""
    account = {"balance": 100}
    read, changed = threading.Event(), threading.Event()

    @eager
    async def withdraw(amount: int) -> None:
        balance = account["balance"]
        read.set()
        assert changed.wait(PATIENCE)
        account["balance"] = balance - amount

    async def caller() -> None:
        task = withdraw(10)
        assert read.wait(PATIENCE)
        account["balance"] += 50  # no await here either
        changed.set()
        await task

    asyncio.run(caller())
    assert account == {"balance": 90}  # the caller's 50 are lost


def test_remedy_a_lock_for_threads() -> None:
    """A `threading.Lock`, held for a stretch without an await, makes it atomic towards the caller."""
    account = {"balance": 100}
    lock = threading.Lock()
    read, tries = threading.Event(), threading.Event()

    @eager
    async def withdraw(amount: int) -> None:
        with lock:
            balance = account["balance"]
            read.set()
            assert tries.wait(PATIENCE)
            account["balance"] = balance - amount

    async def caller() -> None:
        task = withdraw(10)
        assert read.wait(PATIENCE)
        assert not lock.acquire(blocking=False)
        tries.set()
        with lock:
            account["balance"] += 50
        await task

    asyncio.run(caller())
    assert account == {"balance": 140}


def test_remedy_keep_state_to_eager_functions() -> None:
    """Eager functions share one thread: towards one another, stretches without an await stay atomic."""
    counter = [0]

    @eager
    async def increment() -> None:
        for _ in range(50):
            value = counter[0]
            value += 1
            counter[0] = value
            await asyncio.sleep(0)

    with frequent_switches():
        tasks: list[EagerTask[None]] = []
        threads = [
            threading.Thread(target=lambda: tasks.extend([increment() for _ in range(10)])) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for task in tasks:
            task.result(PATIENCE)
    assert counter == [4 * 10 * 50]


# Context variables that the body sets for its caller


def test_what_the_body_sets_in_its_context_does_not_reach_the_caller() -> None:
    """An awaited coroutine can set its caller's context variables; an eager function can't."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def log_in() -> None:
        variable.set("logged in")

    async def caller(function: Any) -> str:
        await function()
        return variable.get()

    assert asyncio.run(caller(log_in)) == "logged in"
    assert asyncio.run(caller(eager(log_in))) == "unset"


def test_remedy_return_what_the_caller_is_to_set() -> None:
    """The body returns the value, and the caller sets it; or both share an object in the variable."""
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default="unset")

    @eager
    async def log_in() -> str:
        return "logged in"

    @eager
    async def note_it() -> None:
        variable.get()["state"] = "logged in"

    async def returned() -> str:
        variable.set(await log_in())
        return str(variable.get())

    async def shared() -> str:
        variable.set({})
        await note_it()
        return str(variable.get()["state"])

    assert asyncio.run(returned()) == asyncio.run(shared()) == "logged in"


# current_task() taken for the caller's


def test_the_current_task_is_the_bodys_own() -> None:
    """In an awaited coroutine `current_task()` is the caller's; in an eager function it is another."""

    async def current() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    async def caller() -> None:
        me = asyncio.current_task()
        assert await current() is me
        assert await eager(current)() is not me
        assert asyncio.current_task() is me

    asyncio.run(caller())


def test_remedy_pass_the_task_on() -> None:
    """A body that is about its caller's task gets it as an argument, and talks to it through its loop."""

    @eager
    async def cancel(task: asyncio.Task[Any]) -> None:
        task.get_loop().call_soon_threadsafe(task.cancel)

    async def caller() -> None:
        me = asyncio.current_task()
        assert me is not None
        tasks.append(cancel(me))
        await asyncio.sleep(PATIENCE)

    tasks: list[EagerTask[None]] = []
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(caller())
    assert tasks[0].result(PATIENCE) is None


# Signal handlers


def test_the_body_cannot_set_signal_handlers() -> None:
    """Python lets the main thread alone set signal handlers, and asyncio does, too."""

    @eager
    async def plain() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with pytest.raises(ValueError, match="main thread"):
        plain().result(PATIENCE)


@pytest.mark.skipif(sys.platform == "win32", reason="loops on Windows have no signal handlers")
def test_the_background_loop_cannot_have_signal_handlers() -> None:
    """`loop.add_signal_handler` in the body raises what asyncio raises outside of the main thread."""

    @eager
    async def of_asyncio() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)

    with pytest.raises((RuntimeError, ValueError), match=r"main thread|wakeup fd"):
        of_asyncio().result(PATIENCE)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGUSR1")
def test_remedy_set_signal_handlers_in_the_main_thread() -> None:
    """A handler of the main thread's may call eager functions, and cancel tasks."""
    tasks: list[EagerTask[str]] = []

    @eager
    async def handle(number: int) -> str:
        return signal.Signals(number).name

    waits: EagerTask[None] = eager(asyncio.sleep)(PATIENCE)

    def handler(number: int, _: object) -> None:
        tasks.append(handle(number))
        waits.cancel()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [task.result(PATIENCE) for task in tasks] == ["SIGUSR1"]
    with pytest.raises(asyncio.CancelledError):
        waits.result(PATIENCE)


# asyncio.wait


def test_asyncio_wait_refuses_a_bare_task() -> None:
    """`asyncio.wait` takes no coroutines, and so no eager tasks."""

    async def caller() -> None:
        task = eager(asyncio.sleep)(0)
        with pytest.raises(TypeError, match="coroutines"):
            await asyncio.wait([task])
        await task

    asyncio.run(caller())


def test_remedy_ensure_future() -> None:
    """`asyncio.ensure_future(task)` makes something that `asyncio.wait` takes."""

    async def caller() -> list[int]:
        futures = [asyncio.ensure_future(eager(asyncio.sleep)(0, number)) for number in range(3)]
        done, pending = await asyncio.wait(futures)
        assert not pending
        return sorted(future.result() for future in done)

    assert asyncio.run(caller()) == [0, 1, 2]
