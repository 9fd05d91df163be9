"""Call sites of an async function go on working when the function is decorated.

Each way in which asyncio code uses what a call returns is tried with an undecorated function and with the
decorated one: what the call site gets, and what the body sees, must be the same.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import re
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, eager, shared_loop
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from conftest import RunPython

    Call = Callable[[], Coroutine[Any, Any, Any]]
    Site = Callable[[Call], Coroutine[Any, Any, Any]]


class Function:
    """An async function, and what its body sees."""

    def __init__(self, kind: str, *, decorated: bool) -> None:
        self.kind = kind
        self.begun = threading.Event()
        self.seen: list[tuple[object, ...]] = []  # the arguments of each CancelledError
        self.ended = threading.Event()
        self.release = threading.Event()
        self.calls = 0
        self.call: Call = eager(self._body) if decorated else self._body

    async def _body(self) -> Any:
        self.calls += 1
        self.begun.set()
        try:
            await asyncio.sleep(0)
            return await self._end()
        except asyncio.CancelledError as exc:
            self.seen.append(exc.args)
            await asyncio.sleep(0.001)  # cleanup that awaits
            if self.kind == "swallows":
                return "went on"
            if self.kind == "fails":
                raise LookupError("in cleanup") from None
            raise
        finally:
            self.ended.set()

    async def _end(self) -> str:
        if self.kind == "returns":
            return "result"
        if self.kind == "raises":
            raise LookupError("why")
        if self.kind == "times out":
            raise TimeoutError("own")
        if self.kind == "cancels":
            raise asyncio.CancelledError("own")
        while not self.release.is_set():
            await asyncio.sleep(0.001)
        return "released"


# Call sites: each takes a function to call, and returns what it gets out of that.


async def awaits(call: Call) -> Any:
    """Await the call itself."""
    return await call()


async def creates_task(call: Call) -> Any:
    """The usual way to run it concurrently."""
    return await asyncio.create_task(call(), name="driver")


async def creates_task_in_group(call: Call) -> Any:
    """Structured concurrency."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call(), name="driver")
    return task.result()


async def ensures_future(call: Call) -> Any:
    """What libraries do with any awaitable."""
    future = asyncio.ensure_future(call())
    assert asyncio.ensure_future(future) is future
    return await future


async def gathers(call: Call) -> Any:
    """One call; the next site makes two."""
    return await asyncio.gather(call())


async def gathers_exceptions(call: Call) -> Any:
    """Two calls, whose exceptions are results."""
    return await asyncio.gather(call(), call(), return_exceptions=True)


async def waits_for(call: Call) -> Any:
    """With a time limit that is not reached."""
    return await asyncio.wait_for(call(), PATIENCE)


async def waits_for_ever(call: Call) -> Any:
    """Without a limit."""
    return await asyncio.wait_for(call(), None)


async def waits_within_timeout(call: Call) -> Any:
    """The context manager, not reached."""
    async with asyncio.timeout(PATIENCE):
        return await call()


async def shields(call: Call) -> Any:
    """Protect it."""
    return await asyncio.shield(call())


async def takes_as_completed(call: Call) -> Any:
    """Two calls, in the order in which they end."""
    results: list[Any] = []
    for earliest in asyncio.as_completed([call(), call()], timeout=PATIENCE):
        try:
            results.append(await earliest)
        except Exception as exc:
            results.append(exc)
    return results


async def waits_for_futures(call: Call) -> Any:
    """`asyncio.wait`, which takes futures only."""
    futures = [asyncio.ensure_future(call())]
    try:
        done, pending = await asyncio.wait(futures, timeout=PATIENCE)
    except asyncio.CancelledError:
        futures[0].cancel("by hand")
        await asyncio.wait(futures)
        raise
    assert (done, pending) == (set(futures), set())
    return await futures[0]


async def drives_from_a_coroutine(call: Call) -> Any:
    """Below two coroutines and a task."""

    async def wrapper(awaitable: Awaitable[Any]) -> Any:
        return await awaitable

    return await asyncio.create_task(wrapper(wrapper(call())))


async def creates_task_by_loop(call: Call) -> Any:
    """The loop's own method."""
    return await asyncio.get_running_loop().create_task(call())


async def creates_task_by_class(call: Call) -> Any:
    """The class itself."""
    return await asyncio.Task(call(), loop=asyncio.get_running_loop())


async def creates_task_in_plain_python(call: Call) -> Any:
    """With the implementation of asyncio's task in Python."""
    task: asyncio.Task[Any] = asyncio.tasks._PyTask(call(), loop=asyncio.get_running_loop())  # type: ignore[attr-defined]
    return await task


async def runs_from_another_thread(call: Call) -> Any:
    """`run_coroutine_threadsafe`, called in a worker thread."""
    loop = asyncio.get_running_loop()

    def run() -> Any:
        future = asyncio.run_coroutine_threadsafe(call(), loop)
        futures.append(future)
        return future.result(PATIENCE)

    futures: list[concurrent.futures.Future[Any]] = []
    try:
        return await asyncio.to_thread(run)
    except asyncio.CancelledError:
        if not futures[0].done():
            futures[0].cancel()
        raise


async def runs_another_loop(call: Call) -> Any:
    """`asyncio.run` in a worker thread."""

    def run() -> Any:
        return asyncio.run(call())  # type: ignore[arg-type]

    return await asyncio.to_thread(run)


async def runs_until_complete(call: Call) -> Any:
    """As before `asyncio.run`."""

    def run() -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(call())
        finally:
            loop.close()

    return await asyncio.to_thread(run)


async def starts_eagerly(call: Call) -> Any:
    """With asyncio's own eager start."""
    return await asyncio.Task(call(), loop=asyncio.get_running_loop(), eager_start=True)  # type: ignore[call-arg]


# A cancellation of these goes down to the body by asyncio's own means.
CANCELLABLE: list[Site] = [
    awaits,
    creates_task,
    creates_task_in_group,
    ensures_future,
    gathers,
    gathers_exceptions,
    waits_for,
    waits_for_ever,
    waits_within_timeout,
    waits_for_futures,
    drives_from_a_coroutine,
    creates_task_by_loop,
    creates_task_by_class,
    creates_task_in_plain_python,
]
if sys.version_info >= (3, 12):
    CANCELLABLE.append(starts_eagerly)

ALL_SITES: list[Site] = [
    *CANCELLABLE,
    shields,
    takes_as_completed,
    runs_from_another_thread,
    runs_another_loop,
    runs_until_complete,
]


def described(got: Any) -> Any:
    """Make what a call site got comparable: exceptions are equal if their kinds and arguments are."""
    if isinstance(got, BaseExceptionGroup):
        return type(got), got.message, [described(inner) for inner in got.exceptions]
    if isinstance(got, BaseException):
        return type(got), got.args
    if isinstance(got, list):
        return [described(item) for item in got]
    return got


async def end_of(awaitable: Awaitable[Any]) -> Any:
    """Return what an await returns, or the exception that it raises."""
    try:
        return await awaitable
    except BaseException as exc:
        return exc


async def happening(event: threading.Event) -> None:
    """Wait for an event of any thread, and let all that is ready on this loop run before and after."""
    await asyncio.sleep(0)
    assert await asyncio.to_thread(event.wait, PATIENCE)
    await asyncio.sleep(0)  # if the thread was quick, there was no turn of the loop


def pass_over_dropped_exceptions(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle what asyncio reports: some call sites drop an exception, however the function is defined."""
    if context["message"] != "Task exception was never retrieved":
        loop.default_exception_handler(context)


def plain_and_decorated(kind: str) -> Iterator[Function]:
    """Yield the undecorated function first."""
    for decorated in False, True:
        yield Function(kind, decorated=decorated)


def by_name(sites: list[Site]) -> pytest.MarkDecorator:
    """Run a test for each call site."""
    return pytest.mark.parametrize("site", sites, ids=[site.__name__ for site in sites])


@by_name(ALL_SITES)
@pytest.mark.parametrize("kind", ["returns", "raises", "times out", "cancels"])
def test_call_site_gets_the_same_outcome(
    kind: str, site: Site, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Result, exception, the coroutine's own `TimeoutError`, and its own cancellation."""
    got = []
    for function in plain_and_decorated(kind):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.get_loop().set_exception_handler(pass_over_dropped_exceptions)
            got.append((described(runner.run(end_of(site(function.call)))), function.calls))
    undecorated, decorated = got
    assert decorated == undecorated


@by_name(ALL_SITES)
def test_call_site_works_on_a_background_loop(site: Site) -> None:
    """Within another background loop's tasks it gets the same, too."""
    with BackgroundLoop(name="eager-async-test-other") as loop:
        undecorated, decorated = (
            described(loop.create_task(site(function.call)).result(PATIENCE))
            for function in plain_and_decorated("returns")
        )
    assert decorated == undecorated


@by_name(ALL_SITES)
def test_call_site_works_within_an_eager_function(site: Site) -> None:
    """On the function's own loop, where it starts before the call returns."""
    undecorated, decorated = (
        described(eager(site)(function.call).result(PATIENCE)) for function in plain_and_decorated("returns")
    )
    assert decorated == undecorated


@by_name(CANCELLABLE)
@pytest.mark.parametrize("kind", ["waits", "swallows", "fails"])
def test_cancelled_call_site_passes_the_request_on(
    kind: str, site: Site, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The body sees the same request, cleans up, and what comes out of it comes out of the call site."""

    async def main(function: Function) -> Any:
        caller = asyncio.create_task(site(function.call))
        await happening(function.begun)
        await shared_loop().create_task(asyncio.sleep(0))  # by then, all calls of the site have begun
        caller.cancel("stop")
        got = await end_of(caller)
        assert function.ended.is_set()
        return described(got), function.seen

    got = []
    for function in plain_and_decorated(kind):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.get_loop().set_exception_handler(pass_over_dropped_exceptions)
            got.append(runner.run(main(function)))
    undecorated, decorated = got
    by_chance = site is gathers_exceptions or (site is gathers and kind == "swallows")
    if by_chance and undecorated[0][0] is decorated[0][0] is asyncio.CancelledError:
        # Whether the message comes through gather depends on the moment, decorated or not.
        undecorated, decorated = ((asyncio.CancelledError, seen) for _, seen in got)
    assert decorated == undecorated
    assert decorated[1]


@pytest.mark.parametrize("kind", ["waits", "swallows", "fails"])
@pytest.mark.parametrize("how", ["wait_for", "timeout"])
def test_time_limit_cancels_and_waits_for_the_cleanup(how: str, kind: str) -> None:
    """`wait_for` and `timeout()` end as they do with an undecorated coroutine."""

    async def main(function: Function) -> Any:
        async def limited() -> Any:
            if how == "wait_for":
                return await asyncio.wait_for(function.call(), 0.05)
            async with asyncio.timeout(0.05):
                return await function.call()

        got = await end_of(limited())
        assert function.ended.is_set()
        return described(got), function.seen

    undecorated, decorated = (asyncio.run(main(function)) for function in plain_and_decorated(kind))
    assert decorated == undecorated
    assert decorated[1] == [()]


@pytest.mark.parametrize("site", [shields, takes_as_completed], ids=lambda site: site.__name__)
def test_cancelled_call_site_leaves_the_work_alone(site: Site) -> None:
    """`shield` and `as_completed` don't pass the request on."""

    async def main(function: Function) -> Any:
        caller = asyncio.create_task(site(function.call))
        await happening(function.begun)
        caller.cancel("stop")
        got = await end_of(caller)
        assert function.seen == []
        assert not function.ended.is_set()
        function.release.set()
        await happening(function.ended)
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
        return described(got), function.seen

    undecorated, decorated = (asyncio.run(main(function)) for function in plain_and_decorated("waits"))
    assert decorated == undecorated
    assert decorated[1] == []


def test_future_of_run_coroutine_threadsafe_cancels_the_work() -> None:
    """Its `cancel()` in another thread reaches the body."""

    async def main(function: Function) -> Any:
        loop = asyncio.get_running_loop()

        def run() -> bool:
            future = asyncio.run_coroutine_threadsafe(function.call(), loop)
            assert function.begun.wait(PATIENCE)
            return future.cancel()

        assert await asyncio.to_thread(run)
        await happening(function.ended)
        return function.seen

    undecorated, decorated = (asyncio.run(main(function)) for function in plain_and_decorated("waits"))
    assert decorated == undecorated
    assert len(decorated) == 1


def test_failing_task_group_cancels_the_work() -> None:
    """A sibling's exception reaches the body as a request, and the group waits for its cleanup."""

    async def main(function: Function) -> Any:
        async def fail() -> None:
            await happening(function.begun)
            raise LookupError("sibling")

        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(function.call())
                tasks.create_task(fail())

        got = await end_of(group())
        assert function.ended.is_set()
        return described(got), function.seen

    undecorated, decorated = (asyncio.run(main(function)) for function in plain_and_decorated("waits"))
    assert decorated == undecorated
    assert len(decorated[1]) == 1


def test_driver_that_is_cancelled_before_its_first_step_cancels_the_work() -> None:
    """The body has started already, unlike that of an undecorated coroutine, so it gets the request."""
    function = Function("waits", decorated=True)

    async def main() -> Any:
        task = function.call()
        await happening(function.begun)
        driver = asyncio.create_task(task)
        driver.cancel("at once")
        return await end_of(driver)

    assert described(asyncio.run(main())) == (asyncio.CancelledError, ("at once",))
    assert function.seen == [("at once",)]


def test_leftover_driver_is_cancelled_when_its_loop_ends() -> None:
    """As `asyncio.run` does, and it waits for the cleanup."""

    async def main(function: Function) -> asyncio.Task[Any]:
        driver = asyncio.create_task(function.call())
        await happening(function.begun)
        return driver

    for function in plain_and_decorated("waits"):
        driver = asyncio.run(main(function))
        assert driver.cancelled()
        assert function.ended.is_set()
        assert function.seen == [()]


def test_one_task_is_given_to_several_call_sites_at_a_time() -> None:
    """An undecorated coroutine couldn't be; here each gets the outcome, and the body runs once."""
    function = Function("waits", decorated=True)

    async def main() -> list[Any]:
        task = function.call()
        callers = [asyncio.create_task(site(lambda: task)) for site in ALL_SITES]
        await happening(function.begun)
        function.release.set()
        return [await caller for caller in callers]

    got = asyncio.run(main())
    assert len(got) == len(ALL_SITES)
    assert {str(result) for result in got} == {
        "released",
        "['released']",  # `as_completed` takes the two for one
        "['released', 'released']",
    }
    assert function.calls == 1


# What takes futures of `concurrent.futures`


@pytest.mark.parametrize("kind", ["returns", "raises", "times out"])
def test_wrap_future_gives_an_asyncio_future_of_the_outcome(kind: str) -> None:
    """Made before the end or after it."""
    function = Function(kind, decorated=True)

    async def main() -> list[Any]:
        task: Any = function.call()
        early = asyncio.wrap_future(task)
        assert asyncio.isfuture(early)
        direct = await end_of(task)
        return [described(await end_of(future)) for future in (early, asyncio.wrap_future(task))] + [
            described(direct)
        ]

    first, second, direct = asyncio.run(main())
    assert first == second == direct


def test_wrap_future_of_a_cancelled_task_is_cancelled() -> None:
    """With plain `asyncio.CancelledError`."""
    function = Function("waits", decorated=True)

    async def main() -> list[Any]:
        task: Any = function.call()
        early = asyncio.wrap_future(task)
        await happening(function.begun)
        task.cancel("why")
        got = [await end_of(early), await end_of(asyncio.wrap_future(task))]
        assert early.cancelled()
        return got

    assert [type(error) for error in asyncio.run(main())] == [asyncio.CancelledError] * 2


def test_cancel_of_a_wrapping_future_cancels_the_task() -> None:
    """As for any future of `concurrent.futures`; the wrapping one doesn't wait for the cleanup."""
    function = Function("waits", decorated=True)

    async def main() -> None:
        task: Any = function.call()
        future = asyncio.wrap_future(task)
        await happening(function.begun)
        future.cancel()
        assert isinstance(await end_of(future), asyncio.CancelledError)
        assert isinstance(await end_of(task), asyncio.CancelledError)

    asyncio.run(main())
    assert function.seen == [()]


def test_wrapping_future_of_a_closed_loop_disturbs_nobody() -> None:
    """The task ends as if it weren't there."""
    function = Function("waits", decorated=True)
    task: Any = function.call()
    loop = asyncio.new_event_loop()
    future = asyncio.wrap_future(task, loop=loop)
    loop.close()
    function.release.set()
    assert task.result(PATIENCE) == "released"
    assert not future.done()


# What refuses, and what people look at


def test_asyncio_wait_refuses_a_bare_task() -> None:
    """It refuses coroutines, and so users write `asyncio.ensure_future(task)`; the task runs on."""
    function = Function("returns", decorated=True)

    async def main() -> Any:
        task = function.call()
        with pytest.raises(TypeError):
            await asyncio.wait([task])  # type: ignore[type-var]
        return await task

    assert asyncio.run(main()) == "result"


def test_driver_is_shown_in_debug_mode() -> None:
    """What asyncio tells of a task that drives: `repr`, stack, and its coroutine."""
    function = Function("waits", decorated=True)

    async def main() -> None:
        task = function.call()
        driver = asyncio.create_task(task, name="driver")
        await happening(function.begun)
        assert driver.get_coro() is task
        assert re.search(r"driver.*coro=<\S*_body\(\)", repr(driver))
        assert driver.get_stack() == []
        function.release.set()
        await driver
        assert "driver" in repr(driver)

    asyncio.run(main(), debug=True)


def test_traceback_at_the_call_site_shows_the_body() -> None:
    """An exception comes with the frames of the caller and those of the coroutine."""
    for function in plain_and_decorated("raises"):
        try:
            asyncio.run(awaits(function.call))
        except LookupError as exc:
            names = [frame.name for frame in traceback.extract_tb(exc.__traceback__)]
        at_caller, in_body = names.index("awaits"), names.index("_body")
        assert at_caller < in_body
        assert names[-1] == "_end"


def test_asyncio_run_takes_the_task_of_a_call() -> None:
    """`asyncio.run(f())`, and a runner's `run`, with an `EagerTask`."""
    function = Function("returns", decorated=True)
    task = function.call()
    assert isinstance(task, EagerTask)
    assert asyncio.run(task) == "result"
    with asyncio.Runner(debug=True) as runner:
        assert runner.run(function.call()) == "result"
        assert runner.run(function.call(), context=None) == "result"


@pytest.mark.skipif(sys.platform == "win32", reason="a process can't send itself a Ctrl-C there")
@pytest.mark.parametrize("decorator", ["eager", "undecorated"])
def test_ctrl_c_during_asyncio_run_cancels_the_work(run_python: RunPython, decorator: str) -> None:
    """The body cleans up, then `KeyboardInterrupt` comes out of `asyncio.run`: as when undecorated."""
    ended = run_python(
        f"""
        import asyncio, os, signal
        from eager_async import eager

        def undecorated(function):
            return function

        @{decorator}
        async def work():
            asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGINT)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                print("cleaned up")
                raise

        try:
            asyncio.run(work())
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "cleaned up\ninterrupted\n", "")


# Functions that take a function


def test_dispatcher_that_asks_treats_a_decorated_function_as_before() -> None:
    """One that awaits async handlers and calls plain ones takes it for async."""

    def dispatch(handler: Callable[[], Any]) -> Any:
        return asyncio.run(handler()) if inspect.iscoroutinefunction(handler) else handler()

    @eager
    async def handle() -> str:
        return "handled"

    assert dispatch(handle) == "handled"
    assert dispatch(functools.partial(handle)) == "handled"


def test_async_exit_stack_takes_a_decorated_callback() -> None:
    """`AsyncExitStack.push_async_callback` awaits it."""
    function = Function("returns", decorated=True)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(function.call)
            assert function.calls == 0
        assert function.ended.is_set()

    asyncio.run(main())
    assert function.calls == 1
