"""When a call starts: how soon, in which order, where, and in which context."""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import functools
import gc
import operator
import signal
import sys
import threading
import warnings
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, eager, eager_stream, set_shared_loop, shared_loop
from threads import PATIENCE, frequent_switches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from conftest import RunPython

    TaskFactory = Callable[..., asyncio.Task[Any]]
    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

DEEPEST = 50  # nested levels that start before the call returns

variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable", default="unset")


class UsersTask(asyncio.Task[Any]):
    """A task class of the user's own."""


def old_style_factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A factory from before Python 3.11, which takes no context."""
    return asyncio.Task(coro, loop=loop)


def users_task_factory(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """A factory that passes on what it gets."""
    return UsersTask(coro, loop=loop, **options)


TASK_FACTORIES: dict[str, TaskFactory | None] = {
    "no factory": None,
    "old style": old_style_factory,
    "own class": users_task_factory,
}
EAGER_FACTORIES: list[TaskFactory | None] = []
if sys.version_info >= (3, 12):
    EAGER_FACTORIES += [asyncio.eager_task_factory, asyncio.create_eager_task_factory(UsersTask)]
    TASK_FACTORIES |= zip(["eager", "eager, own class"], EAGER_FACTORIES, strict=True)


@pytest.fixture(params=TASK_FACTORIES.values(), ids=TASK_FACTORIES.keys())
def task_factory(request: pytest.FixtureRequest, loop_factory: LoopFactory) -> TaskFactory | None:
    """Give the test a shared loop of each kind, with each kind of task factory."""
    factory: TaskFactory | None = request.param

    def make() -> asyncio.AbstractEventLoop:
        loop = loop_factory()
        loop.set_task_factory(factory)
        return loop

    set_shared_loop(BackgroundLoop(loop_factory=make))
    return factory


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Run `work(0)`, `work(1)`, ... in threads that start together, and raise what one of them raises."""
    barrier = threading.Barrier(count)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


@eager
async def echo(x: Any) -> Any:
    """Return the argument, without ever suspending."""
    return x


@eager
async def on_loop(function: Callable[[], Any]) -> Any:
    """Call a plain function in the loop's thread, inside a task."""
    return function()


@contextmanager
def loop_held_up() -> Iterator[None]:
    """Keep the shared loop's thread busy with one call."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait(PATIENCE)

    task = on_loop(hold)
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        leave.set()
        task.result(PATIENCE)


# From another thread


def test_starts_without_the_caller_yielding(loop_factory: LoopFactory) -> None:
    """A call from asyncio code starts though the caller keeps its own loop busy."""
    set_shared_loop(BackgroundLoop(loop_factory=loop_factory))
    started = threading.Event()

    async def caller() -> bool:
        task = on_loop(started.set)
        seen = started.wait(PATIENCE)  # blocks the caller's loop: only another thread can set it
        await task
        return seen

    assert asyncio.run(caller())


def test_starts_without_being_awaited() -> None:
    """A call from plain code runs to its end though nobody asks for its result."""
    ended = threading.Event()

    @eager
    async def work() -> None:
        await asyncio.sleep(0)
        ended.set()

    task = work()
    assert ended.wait(PATIENCE)
    task.result(PATIENCE)  # for this test to leave nothing behind


def test_goes_on_while_the_caller_blocks() -> None:
    """The body gets past its suspensions, too, while the caller's thread is blocked."""
    third = threading.Event()

    @eager
    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(0.001)
        third.set()

    async def caller() -> bool:
        task = work()
        seen = third.wait(PATIENCE)
        await task
        return seen

    assert asyncio.run(caller())


def test_a_call_never_blocks() -> None:
    """Calls return at once though the loop is held up; they start when it is free again."""
    started: list[int] = []
    with loop_held_up():
        tasks = [on_loop(lambda n=number: started.append(n)) for number in range(1000)]  # type: ignore[misc]
        assert started == []
        assert not any(task.done() or task.running() for task in tasks)
    for task in tasks:
        task.result(PATIENCE)
    assert started == list(range(1000))


def test_c_code_may_make_the_call_in_a_thread_of_its_own() -> None:
    """Where no function of Python's is around it: eager functions, streams and `create_task`."""
    begun = threading.Semaphore(0)
    made: list[Any] = []

    async def begin() -> None:
        begun.release()

    async def generate() -> AsyncIterator[None]:
        begun.release()
        yield

    functions: list[Callable[[], object]] = [
        eager(begin),
        eager_stream(generate),
        functools.partial(shared_loop().create_task, begin()),
    ]
    for function in functions:
        _thread.start_new_thread(made.extend, (map(operator.call, [function]),))  # all of them C code
        assert begun.acquire(timeout=PATIENCE)


def test_calls_of_one_thread_start_in_order() -> None:
    """Whatever other threads do, each thread's calls start in the order in which it made them."""
    started: list[tuple[int, int]] = []

    @eager
    async def work(thread: int, number: int) -> None:
        started.append((thread, number))
        await asyncio.sleep(0)

    tasks: list[EagerTask[None]] = []
    with frequent_switches():
        in_threads(4, lambda thread: tasks.extend([work(thread, number) for number in range(200)]))
    for task in tasks:
        task.result(PATIENCE)
    for thread in range(4):
        assert [number for caller, number in started if caller == thread] == list(range(200))


def test_calls_of_one_thread_to_different_functions_start_in_order() -> None:
    """The order holds across functions, kinds of call, and `create_task`."""
    started: list[str] = []

    async def plain(name: str) -> None:
        started.append(name)

    names = [str(number) for number in range(30)]
    with loop_held_up():
        kinds: list[Callable[[str], EagerTask[None]]] = [
            eager(plain),
            lambda name: shared_loop().create_task(plain(name)),
            eager(daemon=True)(plain),
        ]
        tasks = [kinds[index % 3](name) for index, name in enumerate(names)]
    for task in tasks:
        task.result(PATIENCE)
    assert started == names


def test_the_body_runs_in_the_loops_thread() -> None:
    """Every call runs in one thread, that of the loop, which is not the caller's."""

    @eager
    async def where() -> tuple[int, asyncio.AbstractEventLoop]:
        before = threading.get_ident()
        await asyncio.sleep(0)
        assert threading.get_ident() == before
        return before, asyncio.get_running_loop()

    seen = {where().result(PATIENCE) for _ in range(5)}
    in_threads(3, lambda _: seen.add(where().result(PATIENCE)))
    ((ident, loop),) = seen
    assert ident != threading.get_ident()
    assert loop is shared_loop().asyncio_loop


def test_a_call_on_another_background_loops_thread_goes_to_its_own() -> None:
    """On the thread of one background loop, a call for another starts in that other's thread."""
    with BackgroundLoop() as other:

        @eager(loop=other)
        async def where() -> int:
            return threading.get_ident()

        async def caller() -> tuple[int, int]:
            return threading.get_ident(), await where()

        here, there = eager(caller)().result(PATIENCE)
        assert here != there
        assert there == where().result(PATIENCE)


# On the loop's own thread


@pytest.mark.usefixtures("task_factory")
def test_runs_to_its_first_suspension_before_the_call_returns() -> None:
    """One eager function calls another: that one's body runs at once, up to its first suspension."""
    log: list[str] = []

    @eager
    async def inner() -> str:
        log.append("inner starts")
        await asyncio.sleep(0)
        log.append("inner goes on")
        return "inner's result"

    @eager
    async def outer() -> str:
        task = inner()
        log.append("call has returned")
        assert task.running()
        result = await task
        log.append("outer goes on")
        return result

    assert outer().result(PATIENCE) == "inner's result"
    assert log == ["inner starts", "call has returned", "inner goes on", "outer goes on"]


@pytest.mark.usefixtures("task_factory")
def test_suspends_on_futures_and_sleeps_alike() -> None:
    """The first suspension is the first one, whatever it waits for."""
    log: list[str] = []

    @eager
    async def waits(gate: asyncio.Future[None]) -> None:
        log.append("waits")
        await gate
        log.append("through")

    @eager
    async def outer() -> None:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = waits(gate)
        log.append("returned")
        gate.set_result(None)
        log.append("opened")
        await task

    outer().result(PATIENCE)
    assert log == ["waits", "returned", "opened", "through"]


@pytest.mark.usefixtures("task_factory")
def test_a_body_that_never_suspends_is_done_when_the_call_returns() -> None:
    """Without a suspension the call returns a finished task, whose result needs no waiting."""

    @eager
    async def outer() -> tuple[bool, int]:
        task = echo(3)
        return task.done(), task.result()

    assert outer().result(PATIENCE) == (True, 3)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_a_body_raises_at_once_goes_to_its_task(
    kind: type[BaseException],
    task_factory: TaskFactory | None,
    expected_log: Callable[[str], None],
) -> None:
    """An exception before the first suspension is not raised by the call, and the caller's task is intact."""
    if task_factory in EAGER_FACTORIES and kind in {SystemExit, KeyboardInterrupt}:
        # The factory raises it, too, instead of returning the task, which then reports it for itself.
        expected_log("exception was never retrieved")

    @eager
    async def fails() -> None:
        raise kind("at once")

    @eager
    async def outer() -> str:
        me = asyncio.current_task()
        task = fails()
        assert task.done()
        assert asyncio.current_task() is me
        with pytest.raises(kind, match="at once"):
            await task
        assert asyncio.current_task() is me
        await asyncio.sleep(0)
        return "goes on"

    assert outer().result(PATIENCE) == "goes on"
    assert echo(1).result(PATIENCE) == 1  # the loop lives on


@pytest.mark.usefixtures("task_factory")
def test_nested_calls_start_at_once_too() -> None:
    """Levels of eager functions that call one another all start before the outermost call returns."""
    log: list[int] = []

    @eager
    async def nest(n: int) -> int:
        log.append(n)
        task = nest(n - 1) if n else None
        log.append(-n)
        await asyncio.sleep(0)
        return 0 if task is None else 1 + await task

    assert nest(4).result(PATIENCE) == 4
    assert log == [4, 3, 2, 1, 0, 0, -1, -2, -3, -4]


@pytest.mark.usefixtures("task_factory")
def test_a_callback_of_the_loop_can_call() -> None:
    """A plain callback, outside any task, starts an eager function at once, inside a task."""
    log: list[object] = []
    called = threading.Event()
    tasks: list[EagerTask[None]] = []

    @eager
    async def work() -> None:
        log.append(asyncio.current_task() is not None)
        await asyncio.sleep(0)
        log.append("goes on")

    def callback() -> None:
        log.append(asyncio.current_task())
        tasks.append(work())
        log.append(asyncio.current_task())
        called.set()

    shared_loop().asyncio_loop.call_soon_threadsafe(callback)
    assert called.wait(PATIENCE)
    tasks[0].result(PATIENCE)
    assert log == [None, True, None, "goes on"]


@pytest.mark.usefixtures("task_factory")
def test_fifty_nested_levels_start_at_once_and_the_rest_soon() -> None:
    """Past 50 nested levels a call starts on the loop's next turn; recursion without an end to it works."""
    begun: list[int] = []
    at_once: list[bool] = []

    @eager
    async def nest(n: int) -> int:
        begun.append(n)
        if n == 0:
            return 0
        task = nest(n - 1)
        at_once.append(begun[-1] < n)  # appended innermost first
        return 1 + await task

    assert nest(DEEPEST).result(PATIENCE) == DEEPEST
    assert at_once == [True] * DEEPEST
    begun.clear()
    at_once.clear()
    assert nest(DEEPEST + 1).result(PATIENCE) == DEEPEST + 1
    assert at_once == [False] + [True] * DEEPEST
    assert nest(1000).result(PATIENCE) == 1000


def test_levels_that_have_ended_do_not_count() -> None:
    """Calls one after another are not nested, whether they return or raise."""

    @eager
    async def fails() -> None:
        raise ValueError

    @eager
    async def outer() -> bool:
        for _ in range(3 * DEEPEST):
            with pytest.raises(ValueError, match=r"^$"):
                await fails()
        return echo(1).done()

    assert outer().result(PATIENCE)


# Inside a task


@pytest.mark.usefixtures("task_factory")
@pytest.mark.parametrize("nested", [False, True], ids=["from a thread", "on the loop"])
def test_the_body_is_inside_an_asyncio_task(*, nested: bool) -> None:
    """`current_task()` is a real task of the body's own, the same from the first line to the last."""

    @eager
    async def body() -> tuple[asyncio.Task[Any] | None, bool]:
        first = asyncio.current_task()
        assert isinstance(first, asyncio.Task)
        assert first in asyncio.all_tasks()
        await asyncio.sleep(0)
        assert asyncio.current_task() is first
        return first, first in asyncio.all_tasks()

    @eager
    async def outer() -> tuple[asyncio.Task[Any] | None, bool]:
        me = asyncio.current_task()
        task = body()
        assert asyncio.current_task() is me
        result = await task
        assert asyncio.current_task() is me
        assert result[0] is not me
        return result

    task, known = (outer if nested else body)().result(PATIENCE)
    assert task is not None
    assert known
    assert task.done()


@pytest.mark.parametrize("nested", [False, True], ids=["from a thread", "on the loop"])
def test_a_task_factory_makes_the_task(task_factory: TaskFactory | None, *, nested: bool) -> None:
    """The user's own factory is asked for each call's task, which then is named as it is without one."""

    @eager
    async def body() -> type:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.get_name().endswith("body()")
        return type(task)

    @eager
    async def outer() -> type:
        return await body()

    names = {factory: name for name, factory in TASK_FACTORIES.items()}
    expected = UsersTask if "own class" in names[task_factory] else asyncio.Task
    assert (outer if nested else body)().result(PATIENCE) is expected


@pytest.mark.usefixtures("task_factory")
@pytest.mark.parametrize("nested", [False, True], ids=["from a thread", "on the loop"])
def test_timeouts_work_from_the_first_line(*, nested: bool) -> None:
    """`asyncio.timeout` as the first thing in a body cancels that body, and no other."""

    @eager
    async def body() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(PATIENCE)
        except TimeoutError:
            return "timed out"
        return "went through"

    @eager
    async def outer() -> str:
        task = body()
        await asyncio.sleep(0)
        return await task

    assert (outer if nested else body)().result(PATIENCE) == "timed out"


@pytest.mark.parametrize("nested", [False, True], ids=["from a thread", "on the loop"])
def test_task_groups_work_from_the_first_line(
    task_factory: TaskFactory | None, loop_factory: LoopFactory, *, nested: bool
) -> None:
    """`asyncio.TaskGroup` as the first thing in a body runs its tasks, and cancels the body if one fails."""
    if loop_factory is not asyncio.new_event_loop and task_factory not in {None, users_task_factory}:
        pytest.skip("uvloop's own create_task hands these factories arguments that they don't take")

    async def child(x: int) -> int:
        await asyncio.sleep(0)
        if x < 0:
            raise ValueError(x)
        return x

    @eager
    async def body(x: int) -> int:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(child(1))
            second = group.create_task(child(x))
            await asyncio.sleep(PATIENCE if x < 0 else 0)
        return first.result() + second.result()

    @eager
    async def outer(x: int) -> int:
        return await body(x)

    function = outer if nested else body
    assert function(2).result(PATIENCE) == 3
    with pytest.raises(ExceptionGroup) as caught:
        function(-1).result(PATIENCE)
    assert [str(exc) for exc in caught.value.exceptions] == ["-1"]


@pytest.mark.usefixtures("task_factory")
def test_a_call_leaves_the_callers_task_alone() -> None:
    """Calls from another loop's task leave its `current_task()` as it was, before and after awaiting."""

    async def caller() -> None:
        me = asyncio.current_task()
        tasks = [echo(number) for number in range(20)]
        assert asyncio.current_task() is me
        for number, task in enumerate(tasks):
            assert await task == number
            assert asyncio.current_task() is me
        assert asyncio.all_tasks() == {me}

    asyncio.run(caller())


# Context


@pytest.mark.usefixtures("task_factory")
@pytest.mark.parametrize("nested", [False, True], ids=["from a thread", "on the loop"])
def test_runs_in_a_copy_of_the_callers_context(*, nested: bool) -> None:
    """The body sees the caller's variables as at the call; neither sees what the other sets later."""
    gate = threading.Event()

    @eager
    async def body() -> list[object]:
        seen = [variable.get()]
        variable.set("the body's")
        await asyncio.to_thread(gate.wait, PATIENCE)
        return [*seen, variable.get()]

    async def calls() -> tuple[object, list[object], object]:
        variable.set("the caller's")
        task = body()
        after_call = variable.get()
        variable.set("set later")
        gate.set()
        return after_call, await task, variable.get()

    result = eager(calls)().result(PATIENCE) if nested else asyncio.run(calls())
    assert result == ("the caller's", ["the caller's", "the body's"], "set later")
    assert variable.get() == "unset"


@pytest.mark.usefixtures("task_factory")
def test_each_caller_has_its_own_context() -> None:
    """Calls that start in one burst each get the context of the thread that made them."""

    @eager
    async def body() -> tuple[object, object]:
        before = variable.get()
        await asyncio.sleep(0)
        after = variable.get()
        variable.set("left behind")
        return before, after

    results: dict[int, list[EagerTask[tuple[object, object]]]] = {}

    def caller(number: int) -> None:
        variable.set(number)
        results[number] = [body() for _ in range(20)]

    with loop_held_up():
        in_threads(6, caller)
    for number, tasks in results.items():
        assert [task.result(PATIENCE) for task in tasks] == [(number, number)] * 20
    assert body().result(PATIENCE) == ("unset", "unset")


@pytest.mark.usefixtures("task_factory")
@pytest.mark.parametrize("nested", [False, True], ids=["from a thread", "on the loop"])
def test_a_context_can_be_given(*, nested: bool) -> None:
    """`create_task(context=...)` runs the coroutine in a copy of that context, in place of the caller's."""
    given = contextvars.copy_context()
    given.run(variable.set, "given")

    async def body() -> object:
        await asyncio.sleep(0)
        value = variable.get()
        variable.set("the body's")
        return value

    async def calls() -> object:
        variable.set("the caller's")
        return await shared_loop().create_task(body(), context=given)

    assert (eager(calls)().result(PATIENCE) if nested else asyncio.run(calls())) == "given"
    assert given[variable] == "given"


@pytest.mark.usefixtures("task_factory")
def test_a_context_that_is_entered_can_be_given() -> None:
    """`create_task(context=...)` copies the context, so that the one which the caller runs in will do."""
    entered = contextvars.copy_context()

    async def child() -> object:
        value = variable.get()
        variable.set("the child's")
        await asyncio.sleep(0)
        return value

    def calls() -> EagerTask[object]:
        variable.set("entered")
        me = asyncio.current_task()
        task = shared_loop().create_task(child(), context=entered)
        assert asyncio.current_task() is me
        return task

    @eager
    async def outer() -> object:
        me = asyncio.current_task()
        result = await entered.run(calls)
        assert asyncio.current_task() is me
        return result

    assert outer().result(PATIENCE) == "entered"
    assert entered[variable] == "entered"


CONTEXT_OPTIONS: list[list[str]] = [[]]
if sys.version_info >= (3, 14):
    CONTEXT_OPTIONS += [["-X", "thread_inherit_context=1"], ["-X", "thread_inherit_context=0"]]


@pytest.mark.parametrize("options", CONTEXT_OPTIONS, ids=" ".join)
def test_the_loop_does_not_keep_the_first_callers_context(run_python: RunPython, options: list[str]) -> None:
    """What the first caller has in its context variables is free to go when its task is done."""
    done = run_python(
        """
        import contextvars
        import gc
        import weakref
        from eager_async import eager, shared_loop

        variable = contextvars.ContextVar("variable")

        class Session:
            pass

        @eager
        async def work():
            variable.get(None)

        def first_call():
            session = Session()
            variable.set(session)
            work().result()
            return weakref.ref(session)

        reference = contextvars.Context().run(first_call)
        shared_loop().asyncio_loop.call_soon_threadsafe(lambda: None)
        contextvars.Context().run(work).result()
        gc.collect()
        print(reference())

        async def read():
            return variable.get("nothing")
        print(contextvars.Context().run(eager(read)).result())
        """,
        options=options,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("None\nnothing\n", "", 0)


# The first start


def test_nothing_starts_at_import(run_python: RunPython) -> None:
    """Importing, decorating and asking for the shared loop start no thread and make no event loop."""
    done = run_python(
        """
        import asyncio
        import sys
        import threading

        made = []
        original = asyncio.new_event_loop

        def new_event_loop():
            made.append(1)
            return original()

        asyncio.new_event_loop = new_event_loop
        interval = sys.getswitchinterval()
        import eager_async
        from eager_async import BackgroundLoop, eager, shared_loop

        @eager
        async def work():
            return 7

        repr(work), repr(shared_loop()), shared_loop().tasks(), BackgroundLoop()
        print(threading.active_count(), made)
        print(work().result())
        print(threading.active_count(), made, sys.getswitchinterval() == interval)
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1 []\n7\n2 [1] True\n", "", 0)


def test_threads_that_race_for_the_first_start_get_one_loop() -> None:
    """Twenty threads make the first call at one moment: one loop is made, and one thread; ten rounds."""
    for _ in range(10):
        made: list[asyncio.AbstractEventLoop] = []

        def make(made: list[asyncio.AbstractEventLoop] = made) -> asyncio.AbstractEventLoop:
            made.append(asyncio.new_event_loop())
            return made[-1]

        seen: set[tuple[int, asyncio.AbstractEventLoop]] = set()
        with BackgroundLoop(loop_factory=make) as loop:

            @eager(loop=loop)
            async def where() -> tuple[int, asyncio.AbstractEventLoop]:
                return threading.get_ident(), asyncio.get_running_loop()

            with frequent_switches():
                in_threads(20, lambda _, where=where, seen=seen: seen.add(where().result(PATIENCE)))  # type: ignore[misc]
        assert len(made) == 1
        assert [running for _, running in seen] == made


def test_a_slow_first_start_is_shared() -> None:
    """Calls that come while the first one is still making the loop get that same loop."""
    threads = 16
    calling = threading.Semaphore(0)
    made: list[asyncio.AbstractEventLoop] = []

    def make() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        for _ in range(threads - 1):
            assert calling.acquire(timeout=PATIENCE)
        return made[-1]

    with BackgroundLoop(loop_factory=make) as loop:

        @eager(loop=loop)
        async def where() -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        seen: list[asyncio.AbstractEventLoop] = []

        def call(_: int) -> None:
            calling.release()  # one more than the factory waits for: its own thread's
            seen.append(where().result(PATIENCE))

        in_threads(threads, call)
    assert seen == made * threads


def test_a_loop_that_cannot_be_made_leaves_nothing_behind() -> None:
    """What the loop factory raises comes out of the call, whose coroutine is closed; the next tries again."""
    attempts: list[int] = []

    def make() -> asyncio.AbstractEventLoop:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("no more descriptors")
        return asyncio.new_event_loop()

    with BackgroundLoop(loop_factory=make) as loop:
        with pytest.raises(OSError, match="no more descriptors"):
            eager(loop=loop)(asyncio.sleep)(0, 1)
        gc.collect()  # would warn of a coroutine that was never awaited
        assert loop.tasks() == set()
        assert eager(loop=loop)(asyncio.sleep)(0, 1).result(PATIENCE) == 1


@pytest.mark.usefixtures("task_factory")
def test_a_thousand_calls_from_eight_threads() -> None:
    """A thousand calls that eight threads make at once all run, once each, and return their own result."""
    ran: list[int] = []

    @eager
    async def work(number: int) -> int:
        ran.append(number)
        if number % 3:
            await asyncio.sleep(0)
        return 2 * number

    @eager
    async def nested(number: int) -> int:
        return await work(number)

    def caller(thread: int) -> None:
        numbers = range(thread * 125, (thread + 1) * 125)
        tasks = [(nested if number % 5 == 0 else work)(number) for number in numbers]
        assert [task.result(PATIENCE) for task in tasks] == [2 * number for number in numbers]

    with frequent_switches():
        in_threads(8, caller)
    assert sorted(ran) == list(range(1000))
    assert shared_loop().tasks() == set()


def test_eight_threads_ten_times() -> None:
    """Callers on loops of their own get their results, in ten rounds with a fresh background loop each."""

    async def gathers(thread: int) -> None:
        numbers = range(thread * 125, (thread + 1) * 125)
        assert await asyncio.gather(*[echo(number) for number in numbers]) == list(numbers)

    for _ in range(10):
        shared_loop().shutdown()
        with frequent_switches():
            in_threads(8, lambda thread: asyncio.run(gathers(thread)))
        assert shared_loop().tasks() == set()


# Users' loops and factories


class StrictLoop(asyncio.SelectorEventLoop):
    """A loop that takes no arguments that it doesn't know."""

    def create_task(self, coro: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        """Take the coroutine alone."""
        return super().create_task(coro)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        """Take what tasks pass, and no more."""
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any) -> asyncio.Handle:  # type: ignore[override]
        """Take no context."""
        return super().call_soon_threadsafe(callback, *args)

    def set_debug(self, enabled: bool) -> None:  # noqa: FBT001
        """Take it by place alone."""
        super().set_debug(enabled)


@pytest.mark.parametrize("factory", [None, old_style_factory], ids=["no factory", "old style"])
def test_strict_loops_work(factory: TaskFactory | None) -> None:
    """A loop whose methods accept few arguments runs everything: calls, nested calls, awaiting, the end."""

    def make() -> asyncio.AbstractEventLoop:
        loop = StrictLoop()
        loop.set_task_factory(factory)
        return loop

    with BackgroundLoop(loop_factory=make, debug=False) as loop:

        @eager(loop=loop)
        async def inner() -> object:
            assert asyncio.current_task() is not None
            await asyncio.sleep(0)
            return variable.get()

        @eager(loop=loop)
        async def outer() -> object:
            variable.set("outer's")
            task = inner()
            assert task.running()
            return await task

        async def awaits() -> object:
            return await outer()

        assert outer().result(PATIENCE) == "outer's"
        assert asyncio.run(awaits()) == "outer's"
        assert loop.create_task(asyncio.sleep(0, 5)).result(PATIENCE) == 5


def test_a_loop_with_its_own_call_soon_keeps_it(loop_factory: LoopFactory) -> None:
    """A `call_soon` that the user has put on the loop object, to trace it, stays there and is called."""
    calls: list[object] = []

    def make() -> asyncio.AbstractEventLoop:
        loop = loop_factory()
        loop.set_task_factory(users_task_factory)
        original = loop.call_soon

        def traced(callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
            calls.append(callback)
            return original(callback, *args, context=context)

        loop.call_soon = traced  # type: ignore[method-assign]
        return loop

    set_shared_loop(BackgroundLoop(loop_factory=make))
    own = vars(shared_loop().asyncio_loop)["call_soon"]

    @eager
    async def outer() -> int:
        await asyncio.sleep(0)
        return await echo(1) + await echo(2)

    for _ in range(2):
        before = len(calls)
        assert outer().result(PATIENCE) == 3
        assert len(calls) > before
        assert vars(shared_loop().asyncio_loop)["call_soon"] is own


@pytest.mark.parametrize("nested", [False, True], ids=["from a thread", "on the loop"])
def test_a_task_factory_that_raises_fails_its_task_alone(loop_factory: LoopFactory, *, nested: bool) -> None:
    """What a task factory raises is its call's outcome; the coroutine is closed, and the loop lives on."""
    refuse = False

    def refuses(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        if refuse:
            raise LookupError("no task today")
        return asyncio.Task(coro, loop=loop, **options)

    def make() -> asyncio.AbstractEventLoop:
        loop = loop_factory()
        loop.set_task_factory(refuses)
        return loop

    set_shared_loop(BackgroundLoop(loop_factory=make))

    async def calls() -> EagerTask[int]:
        nonlocal refuse
        refuse = True
        try:
            task: EagerTask[int] = echo(1)
            if not nested:
                task.exception(PATIENCE)
            return task
        finally:
            refuse = False

    task = eager(calls)().result(PATIENCE) if nested else asyncio.run(calls())
    with pytest.raises(LookupError, match="no task today"):
        task.result(PATIENCE)
    gc.collect()  # would warn of a coroutine that was never awaited
    assert echo(2).result(PATIENCE) == 2


def test_debug_mode_works(loop_factory: LoopFactory) -> None:
    """In asyncio's debug mode, too, nested calls start at once."""
    set_shared_loop(BackgroundLoop(loop_factory=loop_factory, debug=True))

    @eager
    async def outer() -> bool:
        assert asyncio.get_running_loop().get_debug()
        done = echo(1).done()
        await asyncio.sleep(0)
        return done

    assert outer().result(PATIENCE)


# What a call leaves alone


def test_the_callers_loop_and_policy_stay() -> None:
    """No call changes the event loop of the caller's thread, the policy, or a running loop's settings."""
    loop = asyncio.new_event_loop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # policies are on their way out
        asyncio.set_event_loop(loop)
        policy = asyncio.get_event_loop_policy()
        try:
            assert echo(1).result(PATIENCE) == 1
            assert asyncio.get_event_loop_policy() is policy
            assert asyncio.get_event_loop() is loop

            async def caller() -> None:
                await echo(2)

            def settings() -> tuple[object, ...]:
                return (
                    loop.get_task_factory(),
                    loop.get_exception_handler(),
                    loop.get_debug(),
                    set(vars(loop)),
                )

            before = settings()
            loop.run_until_complete(caller())
            assert settings() == before
            assert asyncio.get_event_loop() is loop
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def test_a_call_schedules_nothing_on_the_callers_loop() -> None:
    """A call that nobody awaits puts nothing on the loop of the asyncio code that makes it."""

    async def caller() -> int:
        loop = asyncio.get_running_loop()
        scheduled: list[object] = []
        for name in ("call_soon", "call_soon_threadsafe", "call_later", "call_at", "create_task"):
            setattr(loop, name, lambda *args, **_: scheduled.append(args))
        try:
            task = echo(1)
            ended = threading.Event()
            in_thread = threading.Thread(target=lambda: (task.result(PATIENCE), ended.set()))
            in_thread.start()
            assert ended.wait(PATIENCE)
        finally:
            for name in ("call_soon", "call_soon_threadsafe", "call_later", "call_at", "create_task"):
                delattr(loop, name)
        in_thread.join()
        return len(scheduled)

    assert asyncio.run(caller()) == 0


def test_signal_handlers_stay() -> None:
    """No call sets a signal handler or the wake-up descriptor."""

    def state() -> tuple[dict[int, object], int]:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        return {number: signal.getsignal(number) for number in signal.valid_signals()}, wakeup

    before = state()
    assert echo(1).result(PATIENCE) == 1
    assert state() == before
    shared_loop().shutdown()
    assert state() == before


def test_arguments_are_dropped_with_the_task() -> None:
    """What was passed to a call is free to go when its task is done, however it started."""

    class Big:
        pass

    def call(*, nested: bool) -> weakref.ref[Big]:
        big = Big()
        reference = weakref.ref(big)

        @eager
        async def takes(_: Big) -> None:
            await asyncio.sleep(0)

        @eager
        async def outer(big: Big) -> None:
            await takes(big)

        (outer if nested else takes)(big).result(PATIENCE)
        return reference

    references = [call(nested=False), call(nested=True)]
    echo(1).result(PATIENCE)  # the loop has let go of the turn in which they ended
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_first_step_that_breaks_off_fails_its_task_alone(
    kind: type[BaseException], expected_log: Callable[[str], None]
) -> None:
    """What the body awaits may be broken: what it raises goes to the task, and the loop lives on."""
    expected_log("exception was never retrieved")  # asyncio's own task, too, can't go on

    class Broken(asyncio.Future[None]):
        """A future that nobody can wait for."""

        def add_done_callback(self, *_args: Any, **_options: Any) -> None:
            raise kind("broken")

    @eager
    async def awaits_it() -> None:
        await Broken()

    @eager
    async def outer() -> str:
        asyncio.get_running_loop().set_task_factory(users_task_factory)
        me = asyncio.current_task()
        task = awaits_it()
        assert asyncio.current_task() is me
        with pytest.raises(kind, match="broken"):
            await task
        return "goes on"

    assert outer().result(PATIENCE) == "goes on"
    assert echo(1).result(PATIENCE) == 1
