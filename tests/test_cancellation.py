"""Cancellation is that of `asyncio.Task`, across threads: a request, answered by the coroutine's end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import random
import sys
import threading
import time
import traceback
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, ResultTimeoutError, eager, shared_loop
from threads import PATIENCE, in_threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

MESSAGES = pytest.mark.parametrize("message", ["why", "", 0, ("a", "b")], ids=repr)


class Body:
    """An eager coroutine that waits until it is cancelled, and records what it sees."""

    def __init__(self, *, swallow: bool = False, error: BaseException | None = None) -> None:
        self.begun = threading.Event()
        self.seen: list[tuple[object, ...]] = []  # the arguments of each CancelledError
        self.in_cleanup = threading.Event()
        self.end_cleanup = threading.Event()
        self._swallow = swallow
        self._error = error

    @eager
    async def run(self) -> str:
        """Wait; once cancelled, clean up until told to end."""
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as exc:
            self.seen.append(exc.args)
            self.in_cleanup.set()
            while not self.end_cleanup.is_set():
                try:
                    await asyncio.to_thread(self.end_cleanup.wait, PATIENCE)
                except asyncio.CancelledError as again:
                    self.seen.append(again.args)
            if self._error is not None:
                raise self._error from None
            if not self._swallow:
                raise
        return "went on"

    def start(self) -> EagerTask[str]:
        """Return a task that waits."""
        task = self.run()
        assert self.begun.wait(PATIENCE)
        turn(shared_loop())
        return task

    def start_cleanup(self) -> EagerTask[str]:
        """Return a task that cleans up after an explicit request."""
        task = self.start()
        task.cancel()
        assert self.in_cleanup.wait(PATIENCE)
        return task


def turn(loop: BackgroundLoop) -> None:
    """Wait until the loop has made the calls that were queued for it."""

    async def nothing() -> None:
        pass

    loop.create_task(nothing()).result(PATIENCE)


@contextlib.contextmanager
def occupied(loop: BackgroundLoop) -> Iterator[None]:
    """Keep a background loop's thread from doing anything else."""
    begun, go_on = threading.Event(), threading.Event()

    async def occupy() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    task = loop.create_task(occupy())
    assert begun.wait(PATIENCE)
    try:
        yield
    finally:
        go_on.set()
        task.result(PATIENCE)


def outcome(get: Callable[[], Any]) -> Any:
    """Return what a call returns, or the exception that it raises."""
    try:
        return get()
    except BaseException as exc:
        return exc


async def happening(event: threading.Event) -> None:
    """Wait for another thread, and let all that is ready on this loop run first."""
    await asyncio.sleep(0)
    assert await asyncio.to_thread(event.wait, PATIENCE)


async def end_of(awaitable: Awaitable[Any]) -> Any:
    """Return what an await returns, or the exception that it raises. `gather` would lose the message."""
    try:
        return await awaitable
    except BaseException as exc:
        return exc


# The request and the end


@MESSAGES
def test_message_travels_from_cancel_to_the_coroutine_and_to_all_who_wait(message: object) -> None:
    """What is given to `cancel` comes out in the coroutine and in every waiter."""
    body = Body()
    task = body.start()
    body.end_cleanup.set()
    assert task.cancel(message)
    assert outcome(task.result).args == (message,)
    assert outcome(task.exception).args == (message,)
    assert outcome(lambda: asyncio.run(task)).args == (message,)
    assert body.seen == [(message,)]


def test_cancel_without_a_message_raises_an_error_without_arguments() -> None:
    """As for `asyncio.Task`."""
    body = Body()
    task = body.start()
    body.end_cleanup.set()
    task.cancel()
    assert outcome(task.result).args == ()
    assert body.seen == [()]


def test_message_is_given_by_keyword_too() -> None:
    """`cancel(msg=...)` is how `asyncio.Task` spells it."""
    body = Body()
    task = body.start()
    body.end_cleanup.set()
    task.cancel(msg="why")
    assert outcome(task.result).args == ("why",)


def test_task_is_done_only_when_its_cleanup_has_ended() -> None:
    """Until then it is neither done nor cancelled, and nobody gets a result (python/cpython#105836)."""
    body = Body()
    task = body.start_cleanup()
    assert (task.done(), task.cancelled(), task.running()) == (False, False, True)
    assert "being cancelled" in repr(task)
    with pytest.raises(ResultTimeoutError):
        task.result(timeout=0)
    assert not concurrent.futures.wait([task], timeout=0).done
    body.end_cleanup.set()
    concurrent.futures.wait([task], PATIENCE)
    assert (task.done(), task.cancelled(), task.running()) == (True, True, False)


def test_result_of_a_coroutine_that_swallows_the_request_stands() -> None:
    """The task isn't cancelled then, and everybody gets the result (python/cpython#105836)."""
    body = Body(swallow=True)
    task = body.start_cleanup()
    body.end_cleanup.set()
    assert task.result(PATIENCE) == "went on"
    assert not task.cancelled()
    assert asyncio.run(task) == "went on"


def test_exception_out_of_the_cleanup_is_the_outcome() -> None:
    """The task has failed then, and isn't cancelled."""
    error = ValueError("from cleanup")
    body = Body(error=error)
    task = body.start_cleanup()
    body.end_cleanup.set()
    assert task.exception(PATIENCE) is error
    assert not task.cancelled()


def test_cancelled_error_of_the_coroutines_own_cancels_its_task() -> None:
    """As for `asyncio.Task`, message included."""

    @eager
    async def give_up() -> None:
        raise asyncio.CancelledError("own")

    task = give_up()
    assert outcome(task.result).args == ("own",)
    assert task.cancelled()


def test_every_explicit_request_reaches_the_coroutine() -> None:
    """A second `cancel()` interrupts the cleanup, as for `asyncio.Task`."""
    body = Body()
    task = body.start_cleanup()
    for message in "second", "third":
        assert task.cancel(message)
        turn(shared_loop())  # it is delivered
        turn(shared_loop())  # and seen
    body.end_cleanup.set()
    assert isinstance(outcome(task.result), asyncio.CancelledError)
    assert body.seen == [(), ("second",), ("third",)]


@pytest.mark.parametrize("how", ["returned", "raised", "cancelled"])
def test_cancel_of_a_done_task_is_refused(how: str) -> None:
    """It returns False and changes nothing."""

    @eager
    async def end() -> str:
        if how == "raised":
            raise ValueError
        if how == "cancelled":
            raise asyncio.CancelledError
        return how

    task = end()
    before = outcome(task.result)
    assert not task.cancel("too late")
    turn(shared_loop())
    assert repr(outcome(task.result)) == repr(before)
    assert task.cancelled() == (how == "cancelled")


def test_cancel_in_a_done_callback_is_refused() -> None:
    """There the task is done already."""
    answers: list[tuple[bool, bool]] = []
    body = Body(swallow=True)
    task = body.start_cleanup()
    task.add_done_callback(lambda task: answers.append((task.done(), task.cancel())))
    body.end_cleanup.set()
    assert task.result(PATIENCE) == "went on"
    turn(shared_loop())
    assert answers == [(True, False)]


def test_cancel_of_another_task_in_a_done_callback_reaches_it() -> None:
    """A callback may cancel whatever waits for the same thing."""
    first, second = Body(), Body()
    task, other = first.start(), second.start()
    first.end_cleanup.set()
    second.end_cleanup.set()
    task.add_done_callback(lambda _: other.cancel("the first has ended"))
    task.cancel()
    assert outcome(other.result).args == ("the first has ended",)


# Calls that have not begun


@pytest.mark.parametrize("message", [None, "why"])
def test_call_not_yet_begun_never_begins(message: str | None) -> None:
    """Its coroutine is closed without having run, and its task is cancelled."""
    body = Body()
    with occupied(shared_loop()):
        task = body.run()
        coro = task.get_coro()
        assert task.cancel(message)
    assert outcome(task.result).args == (() if message is None else (message,))
    assert task.cancelled()
    assert not body.begun.is_set()
    assert coro is not None
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def test_call_not_yet_begun_never_begins_when_its_awaiter_is_cancelled() -> None:
    """The request of an awaiter is one, too."""
    body = Body()

    async def main() -> BaseException:
        with occupied(shared_loop()):
            task = body.run()
            awaiter = asyncio.create_task(as_coroutine(task))
            await asyncio.sleep(0)
            awaiter.cancel("why")
            await asyncio.sleep(0)
        error: BaseException = await end_of(awaiter)
        assert task.cancelled()
        return error

    error = asyncio.run(main())
    assert type(error) is asyncio.CancelledError
    assert error.args == ("why",)
    assert not body.begun.is_set()


def test_call_that_waits_for_its_turn_on_the_loops_own_thread_never_begins() -> None:
    """Calls nested too deeply to begin at once can be cancelled before they do."""
    begun: list[int] = []
    deepest: list[EagerTask[None]] = []

    @eager
    async def nest(depth: int) -> None:
        begun.append(depth)
        task = nest(depth + 1)
        if not task.running() and not task.done():
            deepest.append(task)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    nest(0).result(PATIENCE)
    assert deepest[0].cancelled()
    assert len(begun) == begun[-1] + 1 < 1000


# What is raised


@pytest.mark.parametrize("method", ["result", "exception"])
@pytest.mark.parametrize(
    "kind",
    [asyncio.CancelledError, concurrent.futures.CancelledError, Exception],
    ids=["asyncio", "concurrent.futures", "Exception"],
)
def test_blocking_methods_raise_what_either_except_catches(kind: type[BaseException], method: str) -> None:
    """Plain code may know the task as a `concurrent.futures.Future` or as an asyncio task."""
    body = Body()
    task = body.start()
    body.end_cleanup.set()
    task.cancel("why")
    with pytest.raises(kind, match="why"):
        getattr(task, method)()


@pytest.mark.parametrize("method", ["result", "exception"])
def test_blocking_methods_raise_plain_cancelled_error_where_a_loop_runs(method: str) -> None:
    """There `except Exception` must not catch a cancellation."""
    body = Body()
    task = body.start()
    body.end_cleanup.set()
    task.cancel("why")
    outcome(task.result)

    async def main() -> BaseException:
        error: BaseException = outcome(getattr(task, method))
        return error

    for error in asyncio.run(main()), shared_loop().create_task(main()).result():
        assert type(error) is asyncio.CancelledError
        assert error.args == ("why",)


def test_await_raises_plain_cancelled_error() -> None:
    """In whichever loop, before the end and after."""
    body = Body()
    task = body.start()
    body.end_cleanup.set()

    async def main() -> BaseException:
        try:
            await task
        except BaseException as exc:
            return exc
        raise AssertionError

    early = shared_loop().create_task(main())
    task.cancel("why")
    for error in early.result(), asyncio.run(main()), shared_loop().create_task(main()).result():
        assert type(error) is asyncio.CancelledError
        assert error.args == ("why",)


def test_blocking_call_in_a_worker_thread_cancels_who_awaits_it() -> None:
    """`await to_thread(task.result)` of a cancelled task is a cancellation in asyncio's eyes."""
    body = Body()
    task = body.start()
    body.end_cleanup.set()
    task.cancel()

    async def main() -> bool:
        waiter = asyncio.ensure_future(asyncio.to_thread(task.result))
        await asyncio.wait([waiter])
        return waiter.cancelled()

    assert asyncio.run(main())


def test_each_waiter_gets_an_error_of_its_own() -> None:
    """So nobody sees another's traceback."""
    body = Body()
    task = body.start()
    body.end_cleanup.set()
    task.cancel()
    assert outcome(task.result) is not outcome(task.result)


async def wait_in_vain(begun: threading.Event) -> None:
    """Wait, and say why it was for nothing."""
    begun.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as exc:
        raise asyncio.CancelledError(*exc.args) from KeyError("why")


def check_shows_the_body(error: BaseException | None) -> None:
    """It shows where the coroutine raised it, and what from."""
    assert error is not None
    assert traceback.extract_tb(error.__traceback__)[-1].name == "wait_in_vain"
    assert repr(error.__cause__) == "KeyError('why')"
    assert isinstance(error.__context__, asyncio.CancelledError)
    assert error.__suppress_context__


@pytest.mark.parametrize("start", [lambda task: task, asyncio.ensure_future], ids=["task", "driver"])
def test_a_timeout_shows_where_the_coroutine_was(start: Callable[[Any], Awaitable[None]]) -> None:
    """As that of an undecorated function does, by its cause."""

    async def main() -> None:
        async with asyncio.timeout(None) as limit:
            begun = threading.Event()
            waiting = start(eager(wait_in_vain)(begun))
            await asyncio.to_thread(begun.wait, PATIENCE)
            limit.reschedule(0)
            await waiting

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(main())
    check_shows_the_body(caught.value.__cause__)


def test_a_blocked_thread_sees_where_the_coroutine_was_cancelled() -> None:
    """In the error that either `except` catches; one who comes later sees the cancellation alone."""
    begun = threading.Event()
    task = eager(wait_in_vain)(begun)

    def cancel() -> None:
        begun.wait(PATIENCE)
        while not task._callbacks:  # until somebody waits
            time.sleep(0.001)
        task.cancel("enough")

    threading.Thread(target=cancel).start()
    with pytest.raises(concurrent.futures.CancelledError, match="enough") as caught:
        task.result()
    check_shows_the_body(caught.value)
    with pytest.raises(concurrent.futures.CancelledError, match="enough") as later:
        task.result()
    assert later.value.__cause__ is None


def test_timeout_of_the_waiter_differs_from_one_of_the_coroutine() -> None:
    """`ResultTimeoutError` for the former, the coroutine's own object for the latter, in a timed wait too."""
    error = TimeoutError("the coroutine's own")
    body = Body(error=error)
    task = body.start_cleanup()
    with pytest.raises(ResultTimeoutError) as out_of_time:
        task.result(timeout=0.001)
    assert out_of_time.value is not error
    assert not task.done()
    body.end_cleanup.set()
    with pytest.raises(TimeoutError) as own:
        task.result(timeout=PATIENCE)
    assert own.value is error
    assert not isinstance(own.value, ResultTimeoutError)


# On the loop's own thread


def test_task_can_be_cancelled_by_another_on_the_same_loop() -> None:
    """The coroutine gets the request on the loop's next turn, before whoever asks goes on twice."""
    body = Body(swallow=True)
    body.end_cleanup.set()

    @eager
    async def run_and_cancel() -> str:
        task = body.run()
        assert task.cancel("why")
        return await task

    assert run_and_cancel().result(PATIENCE) == "went on"
    assert body.seen == [("why",)]


@pytest.mark.parametrize("suspended_before", [False, True], ids=["first segment", "later"])
@pytest.mark.parametrize("by_handle", [False, True], ids=["current_task", "handle"])
@pytest.mark.parametrize("ending", ["return", "raise", "await"])
def test_coroutine_can_cancel_itself(ending: str, by_handle: bool, suspended_before: bool) -> None:  # noqa: FBT001
    """As for `asyncio.Task`: at its next await, or as it returns; an exception goes first."""
    handle: list[EagerTask[str]] = []
    handed_over = threading.Event()

    @eager
    async def cancel_itself() -> str:
        if suspended_before:
            await asyncio.sleep(0)
        assert handed_over.wait(PATIENCE)
        itself = handle[0] if by_handle else asyncio.current_task()
        assert itself is not None
        assert itself.cancel("enough")
        if ending == "await":
            await asyncio.sleep(0)
        if ending == "raise":
            raise ValueError
        return "not reached by await"

    handle.append(cancel_itself())
    handed_over.set()
    error = outcome(handle[0].result)
    if ending == "raise":
        assert type(error) is ValueError
    else:
        assert isinstance(error, asyncio.CancelledError)
        assert error.args == ("enough",)


def own_factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """Make tasks as a user's factory may."""
    return asyncio.Task(coro, loop=loop, **options)


TASK_FACTORIES: list[Any] = [own_factory]
if sys.version_info >= (3, 12):
    TASK_FACTORIES.append(asyncio.eager_task_factory)


@pytest.mark.parametrize("task_factory", TASK_FACTORIES, ids=["own", "eager"][: len(TASK_FACTORIES)])
@pytest.mark.parametrize("ending", ["return", "await"])
def test_coroutine_can_cancel_itself_under_any_task_factory(ending: str, task_factory: Any) -> None:
    """In its first segment, which such a factory may run itself."""

    def make_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(task_factory)
        return loop

    handle: list[EagerTask[str]] = []
    handed_over = threading.Event()

    async def cancel_itself() -> str:
        assert handed_over.wait(PATIENCE)
        assert handle[0].cancel("enough")
        if ending == "await":
            await asyncio.sleep(0)
        return "not reached by await"

    with BackgroundLoop(name="eager-async-test-other", loop_factory=make_loop) as loop:
        handle.append(loop.create_task(cancel_itself()))
        handed_over.set()
        error = outcome(handle[0].result)
    assert isinstance(error, asyncio.CancelledError)
    assert error.args == ("enough",)


def test_self_cancellation_comes_before_calls_that_others_have_queued() -> None:
    """However many calls wait for the loop, the next await raises."""
    handle: list[EagerTask[str]] = []
    handed_over = threading.Event()

    @eager
    async def cancel_itself() -> str:
        assert handed_over.wait(PATIENCE)
        assert handle[0].cancel()
        await asyncio.sleep(0)
        return "went on"

    @eager
    async def nothing() -> None:
        pass

    handle.append(cancel_itself())
    others = [nothing() for _ in range(1000)]
    handed_over.set()
    assert isinstance(outcome(handle[0].result), asyncio.CancelledError)
    concurrent.futures.wait(others, PATIENCE)


def test_parent_can_be_cancelled_by_its_child_in_its_first_segment() -> None:
    """A nested call runs at once, in its caller's first segment too: the caller's next await raises."""
    handle: list[EagerTask[str]] = []
    handed_over = threading.Event()

    @eager
    async def child() -> None:
        assert handle[0].cancel("by the child")

    @eager
    async def parent() -> str:
        assert handed_over.wait(PATIENCE)
        task = child()
        assert task.done()
        await asyncio.sleep(0)
        return "went on"

    handle.append(parent())
    handed_over.set()
    assert outcome(handle[0].result).args == ("by the child",)


@pytest.mark.parametrize("task_factory", TASK_FACTORIES, ids=["own", "eager"][: len(TASK_FACTORIES)])
def test_a_nested_call_can_cancel_its_caller_under_any_task_factory(task_factory: Any) -> None:
    """In the first segment of both, which such a factory may run itself: the caller's next await raises."""

    def make_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(task_factory)
        return loop

    handle: list[EagerTask[str]] = []
    handed_over = threading.Event()

    async def child() -> bool:
        return handle[0].cancel("by the child")

    async def parent() -> str:
        assert handed_over.wait(PATIENCE)
        assert loop.create_task(child()).result()
        await asyncio.sleep(0)
        return "went on"

    with BackgroundLoop(name="eager-async-test-other", loop_factory=make_loop) as loop:
        handle.append(loop.create_task(parent()))
        handed_over.set()
        error = outcome(handle[0].result)
    assert isinstance(error, asyncio.CancelledError)
    assert error.args == ("by the child",)


def test_cancel_tells_that_it_has_cancelled_what_had_not_begun() -> None:
    """Also on the loop's own thread between two turns, where that is done at once."""
    told: list[tuple[bool, bool]] = []
    called = threading.Event()
    loop = shared_loop()

    def handle(*_: object) -> None:
        task = loop.create_task(asyncio.sleep(0))
        told.append((task.cancel(), task.cancelled()))
        called.set()

    loop.asyncio_loop.set_exception_handler(handle)
    loop.asyncio_loop.call_soon_threadsafe(sys.exit)  # the handler is told when the loop has stopped
    assert called.wait(PATIENCE)
    loop.asyncio_loop.set_exception_handler(None)
    assert told == [(True, True)]


def test_the_latest_message_counts_for_what_has_not_begun() -> None:
    """As for `asyncio.Task`."""
    with occupied(shared_loop()):
        task = Body().run()
        task.cancel("first")
        task.cancel("second")
    assert outcome(task.result).args == ("second",)


class Unclosable(Coroutine[Any, Any, None]):
    """A coroutine of a user's own, that raises when it is closed."""

    def send(self, _: object) -> None:
        raise StopIteration

    def throw(self, *_: object) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise ValueError("not to be closed")

    def __await__(self) -> Iterator[None]:
        return iter(())  # type: ignore[return-value]


def test_a_coroutine_that_raises_when_it_is_closed_is_cancelled(expected_log: Callable[[str], None]) -> None:
    """What it raises is for the loop's exception handler; nobody waits for ever."""
    expected_log("not to be closed")
    with occupied(shared_loop()):
        task = shared_loop().create_task(Unclosable())
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        task.result(PATIENCE)


# Requests of awaiters


async def as_coroutine(task: Awaitable[Any]) -> Any:
    """Await a task inside a coroutine."""
    return await task


def directly(task: Any) -> Any:
    """Have the asyncio task drive the eager task itself."""
    return task


AWAITING = pytest.mark.parametrize("awaiting", [as_coroutine, directly])


@AWAITING
@pytest.mark.parametrize("kind", ["raise", "swallow", "error"])
def test_cancelled_awaiter_waits_for_the_end_and_gets_what_comes_out(
    kind: str, awaiting: Callable[[Any], Any], loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The coroutine gets the message; the awaiter gets the cancellation, the result, or the exception."""
    error = ValueError() if kind == "error" else None
    body = Body(swallow=kind == "swallow", error=error)

    async def main() -> Any:
        task = body.run()
        awaiter = asyncio.create_task(awaiting(task))
        await happening(body.begun)
        assert awaiter.cancel("why")
        await happening(body.in_cleanup)
        await asyncio.sleep(0)
        assert not awaiter.done()
        body.end_cleanup.set()
        got = await end_of(awaiter)
        assert task.done()
        return got

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        got = runner.run(main())
    assert body.seen == [("why",)]
    if kind == "raise":
        assert type(got) is asyncio.CancelledError
        assert got.args == ("why",)
    else:
        assert got == "went on" if kind == "swallow" else got is error


@AWAITING
def test_timed_out_awaiter_waits_for_the_cleanup(awaiting: Callable[[Any], Any]) -> None:
    """`asyncio.timeout()` cancels the task, and raises `TimeoutError` once that has ended."""
    body = Body()

    async def main() -> None:
        task = body.run()

        async def end_cleanup() -> None:
            await happening(body.in_cleanup)
            assert not task.done()
            body.end_cleanup.set()

        ender = asyncio.create_task(end_cleanup())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await awaiting(task)
        assert task.cancelled()
        await ender

    asyncio.run(main())
    assert len(body.seen) == 1


@AWAITING
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_request_after_the_end_raises_cancelled_error(awaiting: Callable[[Any], Any], *, fails: bool) -> None:
    """An awaiter that is cancelled before it has heard of the outcome raises (python/cpython#86296)."""
    go_on = threading.Event()

    @eager
    async def end() -> str:
        await happening(go_on)
        if fails:
            raise ValueError
        return "result"

    async def main() -> Any:
        task = end()
        awaiter = asyncio.create_task(awaiting(task))
        await asyncio.sleep(0)
        go_on.set()
        assert isinstance(task.exception(PATIENCE), ValueError) == fails  # the awaiter's loop doesn't turn
        assert awaiter.cancel("too late")
        return await end_of(awaiter)

    got = asyncio.run(main())
    assert type(got) is asyncio.CancelledError
    assert got.args == ("too late",)


@AWAITING
def test_request_after_the_end_raises_on_the_loops_own_thread(awaiting: Callable[[Any], Any]) -> None:
    """As in other threads: whoever cancels an awaiter and is told True sees it cancelled."""

    @eager
    async def end(gate: asyncio.Event) -> str:
        await gate.wait()
        return "result"

    async def main() -> Any:
        gate = asyncio.Event()
        task = end(gate)
        awaiters: list[asyncio.Task[Any]] = []
        answers: list[bool] = []
        # Enlisted before the awaiter, it is called when the task is done and the awaiter hasn't gone on.
        task.add_done_callback(lambda _: answers.append(awaiters[0].cancel("too late")))
        awaiters.append(asyncio.create_task(awaiting(task)))
        await asyncio.sleep(0)
        gate.set()
        got = await end_of(awaiters[0])
        assert task.result() == "result"
        return answers, got

    answers, got = shared_loop().create_task(main()).result(PATIENCE)
    assert answers == [True]
    assert type(got) is asyncio.CancelledError
    assert got.args == ("too late",)


@AWAITING
def test_request_that_the_end_overtakes_raises_cancelled_error(awaiting: Callable[[Any], Any]) -> None:
    """If the coroutine ends before the request gets to it, its result stands, and the awaiter raises."""
    in_last_segment, go_on = threading.Event(), threading.Event()

    @eager
    async def end() -> str:
        await asyncio.sleep(0)
        in_last_segment.set()
        assert go_on.wait(PATIENCE)
        return "result"

    async def main() -> None:
        task = end()
        awaiter = asyncio.create_task(awaiting(task))
        await happening(in_last_segment)
        assert awaiter.cancel("overtaken")
        await asyncio.sleep(0)  # the request is on its way
        go_on.set()
        got = await end_of(awaiter)
        assert type(got) is asyncio.CancelledError
        assert got.args == ("overtaken",)
        assert task.result() == "result"

    asyncio.run(main())


async def cancelled_twice(body: Body, awaiting: Callable[[Any], Any]) -> tuple[EagerTask[str], Any]:
    """Cancel an awaiter, have the body end, and cancel it again before it has heard; return what it gets."""
    task = body.run()
    awaiter = asyncio.create_task(awaiting(task))
    await happening(body.begun)
    awaiter.cancel("in time")
    await happening(body.in_cleanup)
    body.end_cleanup.set()
    concurrent.futures.wait([task], PATIENCE)
    assert awaiter.cancel("too late")
    return task, await end_of(awaiter)


@AWAITING
def test_second_request_of_an_awaiter_counts_too(awaiting: Callable[[Any], Any]) -> None:
    """One that comes after the end raises, even if the first was in time and was swallowed."""
    body = Body(swallow=True)
    task, got = asyncio.run(cancelled_twice(body, awaiting))
    assert task.result() == "went on"
    assert type(got) is asyncio.CancelledError
    assert got.args == ("too late",)
    assert body.seen == [("in time",)]


@AWAITING
def test_an_error_of_the_cleanup_outlasts_further_requests(awaiting: Callable[[Any], Any]) -> None:
    """Who cancels an awaiter until it has ended, as scopes of anyio do, loses no error by that."""
    error = ValueError("rollback failed")
    body = Body(error=error)
    task, got = asyncio.run(cancelled_twice(body, awaiting))
    assert task.exception() is error
    assert got is error
    assert body.seen == [("in time",)]


@AWAITING
def test_awaiter_that_is_cancelled_finds_its_request_in_the_context(awaiting: Callable[[Any], Any]) -> None:
    """As if it were its own coroutine: by the message, a scope of anyio knows whether it was its own."""
    body = Body()
    task = body.start_cleanup()

    async def main() -> Any:
        awaiter = asyncio.create_task(awaiting(task))
        await asyncio.sleep(0)
        awaiter.cancel("my own")
        await asyncio.sleep(0)
        turn(shared_loop())
        body.end_cleanup.set()
        return await end_of(awaiter)

    got = asyncio.run(main())
    assert (type(got), got.args) == (asyncio.CancelledError, ())
    assert (type(got.__context__), got.__context__.args) == (asyncio.CancelledError, ("my own",))


def test_awaiter_whose_own_request_it_was_sees_the_coroutines_context() -> None:
    """As that of an undecorated function does: what was being handled where it waited."""
    begun = threading.Event()

    @eager
    async def handle() -> None:
        try:
            {}["why"]
        except KeyError:
            begun.set()
            await asyncio.Event().wait()

    async def main() -> None:
        async def wait() -> None:
            await handle()

        waiting = asyncio.create_task(wait())
        await asyncio.to_thread(begun.wait, PATIENCE)
        waiting.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough") as caught:
            await waiting
        assert isinstance(caught.value.__context__, KeyError)

    asyncio.run(main())


@AWAITING
def test_requests_of_an_awaiter_do_not_pile_up(awaiting: Callable[[Any], Any]) -> None:
    """However often it is cancelled while something blocks the background loop, one request is under way."""
    body = Body()
    body.end_cleanup.set()

    async def main() -> None:
        awaiter = asyncio.create_task(awaiting(body.start()))
        await asyncio.sleep(0)
        with occupied(shared_loop()):
            for _ in range(100):
                assert awaiter.cancel("why")
                await asyncio.sleep(0)
            waiting = shared_loop()._loop_thread
            assert waiting is not None
            assert len(waiting._calls._calls) == 1
        assert (await end_of(awaiter)).args == ("why",)

    asyncio.run(main())
    assert body.seen == [("why",)]


def test_awaiter_that_is_cancelled_again_goes_on_waiting() -> None:
    """Its further requests don't interrupt the cleanup, and it gets what comes out."""
    body = Body(swallow=True)

    async def main() -> Any:
        awaiter = asyncio.create_task(as_coroutine(body.run()))
        await happening(body.begun)
        for _ in range(3):
            assert awaiter.cancel("again")
            await asyncio.sleep(0)
            await happening(body.in_cleanup)
            await asyncio.to_thread(turn, shared_loop())
        assert not awaiter.done()
        body.end_cleanup.set()
        return await awaiter

    assert asyncio.run(main()) == "went on"
    assert body.seen == [("again",)]


def test_a_request_after_one_that_was_taken_back_is_delivered() -> None:
    """A body that calls `uncancel()` goes on, and is cancelled anew by the next awaiter."""
    hits: list[str] = []
    went_on = threading.Event()

    @eager
    async def stubborn() -> None:
        for number in ("first", "second"):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                hits.append(number)
                if number == "second":
                    raise
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
                went_on.set()

    async def main() -> None:
        task = stubborn()
        await asyncio.to_thread(turn, shared_loop())
        task.cancel()
        await happening(went_on)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.01)

    asyncio.run(main())
    assert hits == ["first", "second"]


def test_requests_of_many_awaiters_merge_into_one() -> None:
    """In several loops and threads, the own one included: the cleanup is interrupted by none of them."""
    body = Body()
    task = body.start()
    waiting = threading.Barrier(4)

    async def main() -> list[Any]:
        awaiters = [asyncio.create_task(as_coroutine(task)), asyncio.create_task(directly(task))]
        await asyncio.sleep(0)
        await asyncio.to_thread(waiting.wait, PATIENCE)
        for awaiter in awaiters:
            awaiter.cancel("stop")
        await happening(body.in_cleanup)
        for awaiter in awaiters:
            awaiter.cancel("stop, I say")
        await asyncio.sleep(0)
        await asyncio.to_thread(waiting.wait, PATIENCE)
        return await asyncio.gather(*awaiters, return_exceptions=True)

    def in_background() -> list[Any]:
        return shared_loop().create_task(main()).result(PATIENCE)

    def end_cleanup() -> list[Any]:
        waiting.wait(PATIENCE)
        waiting.wait(PATIENCE)
        turn(shared_loop())
        turn(shared_loop())
        assert not task.done()
        body.end_cleanup.set()
        return []

    errors = in_threads(lambda: asyncio.run(main()), lambda: asyncio.run(main()), in_background, end_cleanup)
    assert [type(error) for some in errors for error in some] == [asyncio.CancelledError] * 6
    assert body.seen == [("stop",)]


def test_awaiters_request_merges_with_an_explicit_one_but_not_the_other_way_round() -> None:
    """Only an explicit `cancel()` interrupts cleanup."""
    body = Body()

    async def main() -> None:
        task = body.run()
        awaiter = asyncio.create_task(as_coroutine(task))
        await happening(body.begun)
        task.cancel("explicit")
        await happening(body.in_cleanup)
        awaiter.cancel("merged")
        await asyncio.sleep(0)
        task.cancel("repeated")
        await asyncio.to_thread(turn, shared_loop())
        await asyncio.to_thread(turn, shared_loop())
        body.end_cleanup.set()
        await end_of(awaiter)

    asyncio.run(main())
    assert body.seen == [("explicit",), ("repeated",)]


def test_cancelled_awaiter_cancels_the_work_for_all_who_wait() -> None:
    """As for an asyncio task that several await."""
    body = Body()
    body.end_cleanup.set()
    task = body.start()

    async def main() -> list[Any]:
        first, second = (asyncio.create_task(as_coroutine(task)) for _ in range(2))
        blocked = asyncio.create_task(asyncio.to_thread(outcome, task.result))
        await asyncio.sleep(0)
        first.cancel("why")
        return [await end_of(waiter) for waiter in (first, second, blocked)]

    for error in asyncio.run(main()):
        assert isinstance(error, asyncio.CancelledError)
        assert error.args == ("why",)


def test_request_goes_down_a_chain_of_tasks_and_cleanup_comes_up() -> None:
    """Each level is cancelled in turn, on whichever loops they run; the innermost cleans up first."""
    steps: list[tuple[str, object]] = []
    begun = threading.Event()

    async def level(name: str, inner: Callable[[], Awaitable[Any]]) -> None:
        try:
            await inner()
        except asyncio.CancelledError as exc:
            steps.append((name, *exc.args))
            raise

    @eager
    async def innermost() -> None:
        begun.set()
        await level("innermost", asyncio.Event().wait)

    @eager
    async def middle() -> None:
        await level("middle", innermost)

    with BackgroundLoop(name="eager-async-test-other") as other:

        @eager(loop=other)
        async def outermost() -> None:
            await level("outermost", middle)

        task = outermost()
        assert begun.wait(PATIENCE)
        task.cancel("down and up")
        assert outcome(task.result).args == ("down and up",)
    assert steps == [(name, "down and up") for name in ("innermost", "middle", "outermost")]


def test_timeout_inside_the_coroutine_is_no_request() -> None:
    """A request that comes after it is delivered like the first one that it is."""
    waits_again = threading.Event()

    @eager
    async def time_out_and_wait() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        waits_again.set()
        await asyncio.Event().wait()

    async def main() -> bool:
        task = time_out_and_wait()
        awaiter = asyncio.create_task(as_coroutine(task))
        await happening(waits_again)
        awaiter.cancel()
        await asyncio.wait([awaiter])
        return task.cancelled()

    assert asyncio.run(main())


def test_awaiter_that_is_cancelled_counts_its_own_requests_only() -> None:
    """`asyncio.Task.cancelling()` of the eager task's asyncio task is what was delivered to it."""
    counted: list[int] = []
    begun = threading.Event()

    @eager
    async def count() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            current = asyncio.current_task()
            assert current is not None
            counted.append(current.cancelling())

    async def main() -> None:
        awaiters = [asyncio.create_task(as_coroutine(task)) for task in [count()] for _ in range(5)]
        await happening(begun)
        for awaiter in awaiters:
            awaiter.cancel()
        await asyncio.wait(awaiters)

    asyncio.run(main())
    assert counted == [1]


# Detached work


def test_shield_protects_shared_work() -> None:
    """The awaiter is cancelled at once, the task goes on."""
    body = Body(swallow=True)

    async def main() -> str:
        task = body.run()
        awaiter = asyncio.create_task(as_coroutine(asyncio.shield(task)))
        await happening(body.begun)
        awaiter.cancel()
        await asyncio.wait([awaiter])
        assert awaiter.cancelled()
        await asyncio.to_thread(turn, shared_loop())
        assert not task.done()
        assert body.seen == []
        body.end_cleanup.set()
        task.cancel()
        return await task

    assert asyncio.run(main()) == "went on"


def test_loop_that_ends_cancels_what_its_leftover_awaiters_await() -> None:
    """A shield of the task itself lasts as long as its loop, as with an undecorated coroutine."""
    body = Body()
    body.end_cleanup.set()

    async def main() -> EagerTask[str]:
        task = body.run()
        awaiter = asyncio.create_task(as_coroutine(asyncio.shield(task)))
        await happening(body.begun)
        awaiter.cancel()
        await asyncio.wait([awaiter])
        assert not task.done()
        return task

    task = asyncio.run(main())
    assert task.cancelled()


def test_shield_of_wrap_future_detaches_for_good() -> None:
    """The end of the awaiter's loop doesn't reach the task."""
    body = Body(swallow=True)

    async def main() -> EagerTask[str]:
        task = body.run()
        awaiter = asyncio.create_task(as_coroutine(asyncio.shield(asyncio.wrap_future(task))))
        await happening(body.begun)
        awaiter.cancel()
        await asyncio.wait([awaiter])
        return task

    task = asyncio.run(main())
    turn(shared_loop())
    turn(shared_loop())
    assert not task.done()
    assert body.seen == []
    body.end_cleanup.set()
    task.cancel()
    assert task.result(PATIENCE) == "went on"


# Races


class Runs:
    """Short eager coroutines that end soon, and note whether a request reached them."""

    def __init__(self) -> None:
        self.begun = False
        self.reached = False

    @eager
    async def run(self, turns: int, swallow: bool) -> str:  # noqa: FBT001
        """End after some turns of the loop."""
        self.begun = True
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.reached = True
            if swallow:
                return "went on"
            raise
        return "ended"


@pytest.mark.usefixtures("_frequent_switches")
def test_cancelled_awaiter_always_raises() -> None:
    """10,000 races of completions with requests of awaiters: no request is lost, nothing hangs."""

    async def race(chance: random.Random) -> None:
        for _ in range(100):
            runs = [Runs() for _ in range(50)]
            tasks = [run.run(chance.randrange(4), chance.random() < 0.5) for run in runs]
            awaiters = [asyncio.create_task(chance.choice([directly, as_coroutine])(task)) for task in tasks]
            for _ in range(chance.randrange(1, 4)):
                await asyncio.sleep(0)
            asked = [chance.random() < 0.9 and awaiter.cancel() for awaiter in awaiters]
            results = [await end_of(awaiter) for awaiter in awaiters]
            for run, task, was_asked, result in zip(runs, tasks, asked, results, strict=True):
                assert task.done()
                if isinstance(result, asyncio.CancelledError):
                    assert was_asked
                elif was_asked:
                    assert (run.reached, result) == (True, "went on")
                else:
                    assert (run.reached, result) == (False, "ended")

    in_threads(
        lambda: asyncio.run(race(random.Random(1))),
        lambda: asyncio.run(race(random.Random(2))),
    )


@pytest.mark.usefixtures("_frequent_switches")
def test_cancel_races_with_the_end_and_all_agree_on_the_outcome() -> None:
    """10,000 races of completions with `cancel()`: threads and loops that wait see the one outcome."""
    chance = random.Random(3)
    for _ in range(100):
        runs = [Runs() for _ in range(100)]
        tasks = [run.run(chance.randrange(4), chance.random() < 0.3) for run in runs]
        order = chance.sample(range(100), 100)

        def cancel(tasks: list[EagerTask[str]] = tasks, order: list[int] = order) -> dict[int, bool]:
            return {index: tasks[index].cancel() for index in order}

        def block(tasks: list[EagerTask[str]] = tasks) -> list[Any]:
            return [outcome(task.result) for task in tasks]

        async def wait(tasks: list[EagerTask[str]] = tasks) -> list[Any]:
            return await asyncio.gather(*(asyncio.shield(task) for task in tasks), return_exceptions=True)

        asked, blocked, awaited = in_threads(cancel, block, lambda wait=wait: asyncio.run(wait()))
        for index, (run, task) in enumerate(zip(runs, tasks, strict=True)):
            assert task.done()
            if task.cancelled():
                assert asked[index]
                assert run.reached or not run.begun
                assert isinstance(blocked[index], asyncio.CancelledError)
                assert isinstance(awaited[index], asyncio.CancelledError)
            else:
                assert blocked[index] == awaited[index] == ("went on" if run.reached else "ended")
