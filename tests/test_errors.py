"""Exceptions on their way to whoever looks, and to the log if nobody does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import re
import sys
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from eager_async import BackgroundLoop, EagerTask, eager, shared_loop
from eager_async._where import line_of
from interrupter import in_package
from threads import GIL_ENABLED, frequent_switches

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunPython


@eager
async def answer() -> int:
    """Return at once."""
    return 42


@eager
async def fail(exc: BaseException) -> None:
    """Raise at once."""
    raise exc


@eager
async def fail_later(exc: BaseException) -> None:
    """Raise after a turn of the loop."""
    await asyncio.sleep(0)
    await deeper(exc)


def stumble(exc: BaseException) -> None:
    """Raise in plain code."""
    raise exc


async def deeper(exc: BaseException) -> None:
    """Raise, one coroutine further in."""
    raise exc


@eager
async def fail_within(exc: BaseException) -> None:
    """Await an eager function that raises at once."""
    await fail(exc)


def let_go() -> None:
    """Return when the loop's thread has let go of the tasks that ended before."""
    answer().result()
    answer().result()


def frames(exc: BaseException | None) -> list[str]:
    """The functions in an exception's traceback, the outermost first."""
    assert exc is not None
    return [frame.f_code.co_name for frame, _ in traceback.walk_tb(exc.__traceback__)]


def blocked_on(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception with `result()`."""
    try:
        task.result()
    except BaseException as exc:
        return exc
    raise AssertionError("it didn't fail")


def asked_for(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception with `exception()`."""
    exc = task.exception()
    assert exc is not None
    return exc


async def awaited_here(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception with `await`."""
    try:
        await task
    except BaseException as exc:
        return exc
    raise AssertionError("it didn't fail")


def awaited(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception with `await` in another loop."""
    return asyncio.run(awaited_here(task))


def awaited_in_its_loop(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception with `await` in the task's own loop."""
    return shared_loop().create_task(awaited_here(task)).result()


def gathered(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception with `asyncio.gather`."""

    async def main() -> list[BaseException | None]:
        return await asyncio.gather(task, return_exceptions=True)

    (exc,) = asyncio.run(main())
    assert exc is not None
    return exc


def wrapped(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception through `asyncio.wrap_future`."""

    async def main() -> BaseException:
        try:
            await asyncio.wrap_future(task)
        except BaseException as exc:
            return exc
        raise AssertionError("it didn't fail")

    return asyncio.run(main())


def as_completed(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception through `concurrent.futures.as_completed`."""
    (done,) = concurrent.futures.as_completed([task])
    exc = done.exception()
    assert exc is not None
    return exc


def called_back(task: EagerTask[None]) -> BaseException:
    """Retrieve the exception in a done callback."""
    got: concurrent.futures.Future[BaseException | None] = concurrent.futures.Future()

    def callback(task: concurrent.futures.Future[None]) -> None:
        got.set_result(task.exception())

    task.add_done_callback(callback)
    exc = got.result()
    assert exc is not None
    return exc


RETRIEVALS = [
    blocked_on,
    asked_for,
    awaited,
    awaited_in_its_loop,
    gathered,
    wrapped,
    as_completed,
    called_back,
]
retrievals = pytest.mark.parametrize("retrieve", RETRIEVALS, ids=lambda function: function.__name__)


# As the coroutine raised it


@retrievals
def test_the_exception_is_the_same_object_however_it_is_retrieved(
    retrieve: Callable[[EagerTask[None]], BaseException],
) -> None:
    """No copy, no wrapper, each time."""
    exc = ValueError("no")
    task = fail_later(exc)
    assert retrieve(task) is exc
    assert retrieve(task) is exc


@pytest.mark.parametrize("function", [fail_later, fail_within, fail])
def test_exception_has_the_coroutines_own_frames(
    function: Callable[[BaseException], EagerTask[None]],
) -> None:
    """None of the library's or asyncio's comes before them."""
    exc = asked_for(function(ValueError("no")))
    own = [name for name in frames(exc) if name in {"fail", "fail_later", "fail_within", "deeper"}]
    assert frames(exc)[0] == own[0] == function.__name__
    assert frames(exc)[-1] == own[-1] == ("deeper" if function is fail_later else "fail")


def test_a_raised_exception_shows_the_way_from_the_retrieval_to_the_fault() -> None:
    """`result()` adds the caller's frames in front of the coroutine's, which stay whole."""
    task = fail_later(ValueError("no"))
    names = frames(blocked_on(task))
    assert names[0] == "blocked_on"
    assert names[-2:] == ["fail_later", "deeper"]
    names = frames(awaited(task))
    assert names[0] == "awaited_here"
    assert names[-2:] == ["fail_later", "deeper"]


@retrievals
def test_tracebacks_do_not_grow_with_each_retrieval(
    retrieve: Callable[[EagerTask[None]], BaseException],
) -> None:
    """The hundredth is as long as the first."""
    task = fail_later(ValueError("no"))
    first = frames(retrieve(task))
    for _ in range(99):
        assert frames(retrieve(task)) == first


def test_a_retrieval_shows_nothing_of_the_one_before() -> None:
    """Whichever ways of retrieval follow each other."""
    alone = {}
    for retrieve in RETRIEVALS:
        alone[retrieve] = frames(retrieve(fail_later(ValueError("no"))))
    task = fail_later(ValueError("no"))
    for retrieve in [*RETRIEVALS, *reversed(RETRIEVALS)]:
        assert frames(retrieve(task)) == alone[retrieve]


@eager
async def wait_for(event: threading.Event) -> None:
    """Wait for an event."""
    await asyncio.to_thread(event.wait)


@eager
async def block(wait: Callable[[EagerTask[Any]], object], event: threading.Event) -> None:
    """Wait for another task where only an `await` can."""
    wait(wait_for(event))


async def in_itself() -> None:
    """Await the very task that this is."""
    await shared_loop().tasks().pop()


def failing_waits() -> dict[str, Callable[[threading.Event], object]]:
    """Waits that end in an exception, for a task that waits for an event, and others."""
    return {
        "result": lambda _: fail_later(ValueError()).result(),
        "result in time": lambda event: wait_for(event).result(0.01),
        "exception in time": lambda event: wait_for(event).exception(0.01),
        "result now": lambda event: wait_for(event).result(0),
        "result of a cancelled one": lambda event: cancelled(event).result(),
        "exception of a cancelled one": lambda event: cancelled(event).exception(),
        "deadlock in result": lambda event: block(EagerTask.result, event).result(),
        "deadlock in exception": lambda event: block(EagerTask.exception, event).result(),
        "deadlock in await": lambda _: shared_loop().create_task(in_itself()).result(),
        "run": lambda _: asyncio.run(fail_later(ValueError())),
        "await": lambda _: asyncio.run(fail_within.__wrapped__(ValueError())),
        "await within": lambda _: fail_within(ValueError()).result(),
        "throw": lambda event: wait_for(event).throw(ValueError()),
    }


def cancelled(event: threading.Event) -> EagerTask[None]:
    """A task that was cancelled."""
    task = wait_for(event)
    task.cancel()
    concurrent.futures.wait([task])
    return task


@pytest.mark.parametrize("way", failing_waits())
def test_notebooks_and_pytest_show_the_users_own_frames_alone(way: str) -> None:
    """They leave out those with `__tracebackhide__`, and all of the library have it."""
    event = threading.Event()
    with pytest.raises((Exception, asyncio.CancelledError)) as caught:
        failing_waits()[way](event)
    event.set()
    concurrent.futures.wait(shared_loop().tasks())
    shown = [
        frame.f_code.co_name
        for frame, _ in traceback.walk_tb(caught.value.__traceback__)
        if in_package(frame.f_code) and not frame.f_locals.get("__tracebackhide__")
    ]
    assert shown == []


def test_an_exception_of_several_tasks_shows_each_ones_frames() -> None:
    """One that an eager function gets from another, and lets pass, is the outcome of both."""
    inner = fail_later(ValueError("no"))

    @eager
    async def outer() -> None:
        await inner

    task = outer()
    outermost = frames(asked_for(task))
    assert outermost[0] == "outer"
    assert outermost[-2:] == ["fail_later", "deeper"]
    assert frames(asked_for(inner)) == ["fail_later", "deeper"]
    assert frames(asked_for(task)) == outermost


@retrievals
def test_what_the_caller_is_handling_is_no_context(
    retrieve: Callable[[EagerTask[None]], BaseException],
) -> None:
    """An exception has the context that the coroutine gave it, and neither loses nor gains by retrieval."""

    @eager
    async def while_handling() -> None:
        try:
            stumble(KeyError("first"))
        except KeyError:
            await deeper(error)

    error = ValueError("second")
    task = while_handling()
    for _ in range(3):
        try:
            stumble(OSError("of the caller"))
        except OSError:
            exc = retrieve(task)
        assert isinstance(exc.__context__, KeyError)
        assert exc.__context__.__context__ is None
    bare = fail_later(ValueError("no"))
    try:
        stumble(OSError("of the caller"))
    except OSError:
        assert retrieve(bare).__context__ is None


def test_what_somebody_adds_by_raising_it_is_gone_with_the_next_retrieval() -> None:
    """An exception that was got by `exception()` may be raised anywhere; the next sees no trace of that."""

    def raise_elsewhere(exc: BaseException) -> None:
        try:
            stumble(OSError("elsewhere"))
        except OSError:
            raise exc  # noqa: B904

    task = fail_later(ValueError("no"))
    for _ in range(2):
        exc = asked_for(task)
        assert exc.__context__ is None
        assert frames(exc) == ["fail_later", "deeper"]
        with pytest.raises(ValueError, match="no"):
            raise_elsewhere(exc)
        assert isinstance(exc.__context__, OSError)
    assert asked_for(task).__context__ is None


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """One on which nothing can be set."""

    code: int


@retrievals
def test_an_exception_that_is_frozen_comes_out_as_itself(
    retrieve: Callable[[EagerTask[None]], BaseException],
) -> None:
    """Its class may refuse to set attributes, as a frozen dataclass does."""
    error = FrozenError(404)
    assert retrieve(fail_later(error)) is error


def test_the_cause_stays() -> None:
    """What `raise ... from ...` said."""

    @eager
    async def explained() -> None:
        raise ValueError("no") from KeyError("why")

    task = explained()
    for _ in range(2):
        assert isinstance(blocked_on(task).__cause__, KeyError)
        assert blocked_on(task).__suppress_context__


@pytest.mark.skipif(
    sys.version_info < (3, 14) and not GIL_ENABLED,
    reason="3.13t crashes when two threads raise one object",
)
def test_many_threads_may_retrieve_at_once() -> None:
    """All get the same object, with the coroutine's frames at its end, and nothing grows."""
    exc = ValueError("no")
    task = fail_later(exc)
    barrier = threading.Barrier(4)

    def retrieve_often() -> None:
        barrier.wait()
        for _ in range(50):
            assert blocked_on(task) is exc
            assert asked_for(task) is exc

    with frequent_switches():
        with ThreadPoolExecutor(4) as threads:
            retrieving = [threads.submit(retrieve_often) for _ in range(4)]
        for future in retrieving:
            future.result()
    assert frames(asked_for(task)) == ["fail_later", "deeper"]
    assert exc.__context__ is None


# Whatever is raised


class Strange(BaseException):
    """Derived from neither Exception nor anything that Python knows."""


BASE_EXCEPTIONS = [SystemExit, KeyboardInterrupt, GeneratorExit, Strange]


@pytest.mark.parametrize("error", BASE_EXCEPTIONS)
@pytest.mark.parametrize("function", [fail, fail_later, fail_within])
def test_base_exceptions_go_to_their_task_and_the_loop_lives_on(
    function: Callable[[BaseException], EagerTask[None]], error: type[BaseException]
) -> None:
    """The same object with the coroutine's own frames, from the first step or a later one; no thread ends."""
    before = shared_loop().asyncio_loop
    exc = error("stop")
    task = function(exc)
    assert asked_for(task) is exc
    assert blocked_on(task) is exc
    assert frames(asked_for(task))[0] == function.__name__
    assert answer().result() == 42
    assert shared_loop().asyncio_loop is before


@pytest.mark.parametrize("error", BASE_EXCEPTIONS)
def test_base_exceptions_can_be_awaited(error: type[BaseException]) -> None:
    """By an eager function, which may handle them."""

    @eager
    async def handle() -> BaseException:
        return await awaited_here(fail_later(exc))

    exc = error("stop")
    assert handle().result() is exc
    assert answer().result() == 42


def test_stop_iteration_becomes_a_runtime_error() -> None:
    """As in every coroutine (PEP 479)."""
    error = asked_for(fail(StopIteration(1)))
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, StopIteration)


def test_an_exception_group_comes_out_of_a_task_group() -> None:
    """As one object, with its members."""

    @eager
    async def group() -> None:
        async with asyncio.TaskGroup() as members:
            members.create_task(deeper(ValueError("one")))
            members.create_task(deeper(KeyError("two")))

    error = asked_for(group())
    assert isinstance(error, ExceptionGroup)
    assert [type(member) for member in error.exceptions] == [ValueError, KeyError]


# Nothing fails in silence


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    """What the shared loop's exception handler is told."""
    told: list[dict[str, Any]] = []
    shared_loop().asyncio_loop.set_exception_handler(lambda _, context: told.append(context))
    return told


def collect() -> None:
    """Have the tasks end, and those that nobody refers to any more collected."""
    concurrent.futures.wait(shared_loop().tasks())
    let_go()
    gc.collect()
    if not GIL_ENABLED:  # there, references are counted late (PEP 703)
        let_go()
        gc.collect()


def line_here() -> int:
    """The number of the caller's line."""
    return sys._getframe(1).f_lineno


@pytest.mark.parametrize("function", [fail, fail_later])
def test_an_exception_that_nobody_retrieves_is_reported_at_collection(
    reports: list[dict[str, Any]], function: Callable[[BaseException], EagerTask[None]]
) -> None:
    """Once, to the event loop's exception handler, with the exception, naming function and call site."""
    exc = ValueError("no")
    task, line = function(exc), line_here()
    concurrent.futures.wait([task])
    let_go()
    assert reports == []  # as long as somebody may look
    del task
    collect()
    (report,) = reports
    assert report["exception"] is exc
    assert re.search(rf"\b{function.__name__}\(\) called at \S*test_errors\.py:{line}\b", report["message"])
    assert "never retrieved" in report["message"]


def test_a_call_whose_task_is_dropped_at_once_is_reported() -> None:
    """`fail()` with nobody to hold the task: fire and forget isn't silent; without the cyclic collector."""
    told: list[str] = []
    arrived = threading.Lock()  # an event has one inside that the report might find held by its own thread
    arrived.acquire()

    def handler(_: object, context: dict[str, Any]) -> None:
        told.append(context["message"])
        arrived.release()

    shared_loop().asyncio_loop.set_exception_handler(handler)
    gc.disable()
    try:
        fail_later(ValueError("no"))
        for _ in range(1000):
            if arrived.acquire(timeout=0.01):
                break
            if not GIL_ENABLED:  # there, some objects are left to the collector (PEP 703)
                gc.collect()
    finally:
        gc.enable()
    assert len(told) == 1


def test_without_a_handler_the_report_goes_to_the_log(expected_log: Callable[[str], None]) -> None:
    """The handler of asyncio itself logs it, with the traceback of the coroutine."""
    expected_log(r"fail_later\(\) called at \S*test_errors\.py:\d+.*in fail_later.*in deeper.*ValueError: no")
    fail_later(ValueError("no"))
    collect()


@retrievals
def test_an_exception_that_was_retrieved_is_not_reported(
    reports: list[dict[str, Any]], retrieve: Callable[[EagerTask[None]], BaseException]
) -> None:
    """In whatever way."""
    task = fail_later(ValueError("no"))
    retrieve(task)
    del task
    collect()
    assert reports == []


def test_an_exception_that_was_retrieved_before_the_end_of_a_wait_is_not_reported(
    reports: list[dict[str, Any]],
) -> None:
    """By a thread that was blocked in `result()` when the task failed."""

    @eager
    async def fail_when_told() -> None:
        await asyncio.wrap_future(told)
        raise ValueError("no")

    told: concurrent.futures.Future[None] = concurrent.futures.Future()
    task = fail_when_told()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(blocked_on, task)
        told.set_result(None)
        assert str(waiting.result()) == "no"
    del task, waiting
    collect()
    assert reports == []


@pytest.mark.parametrize("how", ["awaited", "asked for", "asked for elsewhere"])
@pytest.mark.parametrize("late", [False, True], ids=["together", "later"])
def test_who_gave_up_behind_a_shield_reports_nothing_that_another_retrieves(how: str, *, late: bool) -> None:
    """The asyncio task that `shield` makes ends with the exception too, and nobody looks at it there."""

    @eager
    async def fail_at(event: threading.Event) -> None:
        await asyncio.to_thread(event.wait)
        raise ValueError("no")

    async def share() -> None:
        event = threading.Event()
        task = fail_at(event)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.01)
        abandoned = asyncio.all_tasks() - {asyncio.current_task()}
        event.set()
        if late:
            await asyncio.wait(abandoned)
        if how == "awaited":
            with pytest.raises(ValueError, match="no"):
                await task
        elif how == "asked for":
            assert isinstance(task.exception(), ValueError)
        else:
            assert isinstance(await asyncio.to_thread(task.exception), ValueError)
        if not late:
            await asyncio.wait(abandoned)

    asyncio.run(share())
    gc.collect()


def test_a_failed_task_forgets_who_has_driven_it() -> None:
    """However many do: each retrieval takes as long as the first."""
    task = fail_later(ValueError("no"))

    async def drive_often() -> None:
        for _ in range(100):
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(drive_often())
    shared_loop().create_task(asyncio.sleep(0)).result()  # by now, its thread has let go of the first of them
    gc.collect()
    assert not task._result._drivers
    assert isinstance(task.exception(), ValueError)
    asyncio.run(drive_often())
    assert not task._result._drivers


def test_a_driver_whose_loop_stops_with_its_end_reports_nothing_that_another_retrieves() -> None:
    """Then no callback comes any more; the task knows it all the same."""
    loop = asyncio.new_event_loop()
    task = fail_later(ValueError("no"))
    driver = loop.create_task(task)
    while not driver.done():
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
    assert isinstance(task.exception(), ValueError)
    del driver
    gc.collect()


def test_who_drives_a_task_by_hand_has_retrieved_what_it_raises() -> None:
    """An asyncio task that catches it, and then fails otherwise, is not taken for one that ended with it."""

    async def drive_and_fail() -> None:
        task = fail_later(ValueError("no"))
        await asyncio.to_thread(concurrent.futures.wait, [task])
        with pytest.raises(ValueError, match="no"):
            task.send(None)
        assert isinstance(task.exception(), ValueError)
        raise LookupError

    async def main() -> None:
        failing = asyncio.ensure_future(drive_and_fail())
        await asyncio.wait([failing])
        assert failing._log_traceback  # type: ignore[attr-defined]  # it is still to be reported
        assert isinstance(failing.exception(), LookupError)

    asyncio.run(main())


def test_what_nobody_but_an_abandoned_driver_got_is_reported_once(
    expected_log: Callable[[str], None],
) -> None:
    """By asyncio, whose task it is."""
    expected_log("(?s)Task exception was never retrieved.*ValueError: no")

    async def share() -> None:
        task = fail_later(ValueError("no"))
        driver = asyncio.ensure_future(task)
        await asyncio.wait([driver])

    asyncio.run(share())
    gc.collect()


def test_looking_at_a_task_is_not_retrieving(reports: list[dict[str, Any]]) -> None:
    """Neither waiting, polling, printing nor a callback that doesn't ask counts."""
    task = fail_later(ValueError("no"))
    concurrent.futures.wait([task])
    task.add_done_callback(lambda _: None)
    assert task.done()
    assert repr(task)
    assert task.get_stack()
    task.cancel()
    del task
    collect()
    assert len(reports) == 1


def test_a_cancelled_task_is_not_reported(reports: list[dict[str, Any]]) -> None:
    """Whoever cancels knows."""

    @eager
    async def endless() -> None:
        await asyncio.Event().wait()

    task = endless()
    task.cancel()
    concurrent.futures.wait([task])
    del task
    collect()
    assert reports == []


@pytest.mark.parametrize("error", BASE_EXCEPTIONS)
def test_base_exceptions_are_reported_too(reports: list[dict[str, Any]], error: type[BaseException]) -> None:
    """Once, though asyncio itself lets some of them pass through the loop."""
    fail_later(error("stop"))
    collect()
    assert [type(report["exception"]) for report in reports] == [error]


def test_an_exception_is_reported_after_the_loop_was_shut_down() -> None:
    """To the handler of the closed loop."""
    reports: list[str] = []
    with BackgroundLoop() as loop:
        loop.asyncio_loop.set_exception_handler(lambda _, context: reports.append(context["message"]))
        task = loop.create_task(deeper(ValueError("no")))
    assert reports == []
    del task
    gc.collect()
    (report,) = reports
    assert "deeper() called at" in report


def test_a_handler_that_fails_harms_nobody(expected_log: Callable[[str], None]) -> None:
    """It is logged, and the loop lives on."""

    def handler(_loop: object, _context: object) -> None:
        raise OSError("handler")

    expected_log("Unhandled error in exception handler")
    shared_loop().asyncio_loop.set_exception_handler(handler)
    fail_later(ValueError("no"))
    collect()
    assert answer().result() == 42


def test_an_exception_in_a_reference_cycle_is_reported_by_the_collector(
    reports: list[dict[str, Any]],
) -> None:
    """The task may sit in a cycle of the user's."""

    class Owner:
        task: EagerTask[None]
        itself: Owner

    owner = Owner()
    owner.itself = owner
    owner.task = fail_later(ValueError("no"))
    concurrent.futures.wait([owner.task])
    gone = weakref.ref(owner)
    del owner
    collect()
    assert gone() is None
    assert len(reports) == 1


# At the end of the process


PROGRAM = """
    import asyncio, sys
    from eager_async import eager, shared_loop

    @eager
    async def fail():
        await asyncio.sleep(0.01)
        raise ValueError("no")

"""


def test_an_exception_is_reported_at_the_end_of_the_process(run_python: RunPython) -> None:
    """Of a task that a module still holds, even one that fails while the process waits for it."""
    process = run_python(PROGRAM + "    task = fail()\n")
    assert process.returncode == 0
    assert process.stdout == ""
    assert process.stderr.count("ValueError: no") == 1
    assert len(re.findall(r"\bfail\(\) called at program\.py:10\b", process.stderr)) == 1
    assert "Traceback" in process.stderr


def test_an_exception_that_was_reported_at_collection_is_not_reported_again(run_python: RunPython) -> None:
    """Each once: one dropped at once, one dropped later, one held."""
    process = run_python(
        PROGRAM
        + """
    fail()
    dropped = fail()
    held = fail()
    import concurrent.futures
    concurrent.futures.wait([dropped])
    del dropped
    """
    )
    assert process.returncode == 0
    assert process.stderr.count("was never retrieved") == 3
    assert process.stderr.count("ValueError: no") == 3


def test_the_report_at_the_end_goes_to_the_handler(run_python: RunPython) -> None:
    """Which can still print."""
    process = run_python(
        PROGRAM
        + """
    def handler(loop, context):
        print("told:", context["message"].split(" called")[0], repr(context["exception"]))

    shared_loop().asyncio_loop.set_exception_handler(handler)
    task = fail()
    """
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "told: exception of fail() ValueError('no')\n"


def test_nothing_is_reported_at_the_end_if_all_was_retrieved(run_python: RunPython) -> None:
    """Though the tasks are still there."""
    process = run_python(
        PROGRAM
        + """
    tasks = [fail() for _ in range(4)]
    tasks[0].exception()
    try:
        tasks[1].result()
    except ValueError:
        pass
    async def main():
        return await asyncio.gather(*tasks[2:], return_exceptions=True)
    print(len(asyncio.run(main())))
    """
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "2\n", "")


def test_a_failed_task_leaves_the_exit_code_alone(run_python: RunPython) -> None:
    """Of a program that ends with a code of its own; SystemExit in a task is no exit of the program."""
    process = run_python(
        """
        import sys
        from eager_async import eager

        @eager
        async def leave():
            sys.exit(3)

        task = leave()
        sys.exit(7)
        """
    )
    assert process.returncode == 7
    assert process.stderr.count("leave() called at program.py:9") == 1


def test_a_report_at_the_end_that_drops_other_tasks_loses_none(run_python: RunPython) -> None:
    """Each exception is reported once, also if the handler drops the last reference to the others."""
    process = run_python(
        PROGRAM
        + """
    def handler(loop, context):
        tasks.clear()
        print("told")

    shared_loop().asyncio_loop.set_exception_handler(handler)
    tasks = [fail() for _ in range(3)]
    """
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "told\n" * 3, "")


def test_code_without_a_line_table_is_named_by_its_first_line() -> None:
    """As of a compiler that writes none."""
    code = test_code_without_a_line_table_is_named_by_its_first_line.__code__
    assert line_of(code.replace(co_linetable=b""), 0).endswith(f"test_errors.py:{code.co_firstlineno}")
