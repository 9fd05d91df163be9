"""`@eager(limit=N)`: at most N calls of a function run at a time; the others wait in order, none is lost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import gc
import itertools
import os
import random
import re
import selectors
import sys
import threading
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import eager_async
from eager_async import (
    BackgroundLoop,
    EagerTask,
    LoopClosedError,
    ResultTimeoutError,
    eager,
    set_shared_loop,
    shared_loop,
)
from interrupter import Interrupter, in_module
from programs import FORK, FORK_WITH_THREADS, SAY, check, has_fork, posix_signals
from threads import GIL_ENABLED, PATIENCE, frequent_switches, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from conftest import RunPython

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

PACKAGE = os.path.dirname(eager_async.__file__)

variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable", default=None)


class Work:
    """A body whose calls run until each is let go, on any loop, and which knows who has begun."""

    def __init__(self) -> None:
        self.begun: list[object] = []
        self.running = 0
        self.most = 0  # that ran at a time
        self._lock = threading.Lock()
        self._gates: dict[object, concurrent.futures.Future[None]] = {}
        self._begun: dict[object, threading.Event] = {}

    async def __call__(self, number: object = None) -> object:
        """Run until let go; return the number."""
        with self._lock:
            self.begun.append(number)
            self.running += 1
            self.most = max(self.most, self.running)
        self._event(number).set()
        try:
            await asyncio.shield(asyncio.wrap_future(self._gate(number)))
        finally:
            with self._lock:
                self.running -= 1
        return number

    def let_go(self, *numbers: object) -> None:
        """Have these calls end, those too that haven't begun."""
        for number in numbers:
            gate = self._gate(number)
            if not gate.done():
                gate.set_result(None)

    def wait_for(self, *numbers: object) -> None:
        """Wait until these calls have begun."""
        for number in numbers:
            assert self._event(number).wait(PATIENCE), f"{number} hasn't begun; {self.begun} have"

    def _gate(self, number: object) -> concurrent.futures.Future[None]:
        return self._gates.setdefault(number, concurrent.futures.Future())

    def _event(self, number: object) -> threading.Event:
        return self._begun.setdefault(number, threading.Event())


class Gauge:
    """Counts who is inside, and the most that were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = self.most = self.entered = 0

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.entered += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self.inside -= 1


def turn(*loops: BackgroundLoop) -> None:
    """Wait until loops have done what was queued for them, and what that has queued."""
    for _ in range(2):
        for loop in loops or [shared_loop()]:
            loop.create_task(asyncio.sleep(0)).result(PATIENCE)


def outcome(task: EagerTask[Any]) -> object:
    """What comes out of a task: its result, or the exception."""
    try:
        return task.result(PATIENCE)
    except BaseException as exc:
        return exc


def has_free_places(function: Callable[[Work], EagerTask[object]], places: int) -> bool:
    """Whether so many calls run at a time, and not one more. They are told what to do by their argument."""
    work = Work()
    tasks = [function(work) for _ in range(places)]
    deadline = threading.Event()
    for _ in range(PATIENCE * 100):
        if work.running == places:
            break
        deadline.wait(0.01)
    one_more = function(work)
    turn()
    full = work.running == work.most == places
    work.let_go(None)
    return full and all(outcome(task) is None for task in [*tasks, one_more])


async def do(work: Callable[[], Coroutine[Any, Any, object]]) -> object:
    """Do as the argument says."""
    return await work()


def points(step: int, most: int = 2000) -> Iterator[int]:
    """Numbers of bytecodes, for interrupters, until whoever asks has enough."""
    return iter(range(1, most, step))


# At most N


class Host:
    """All kinds of methods, each of which runs the work that it is given."""

    @eager(limit=2)
    async def method(self, work: Work, number: int) -> object:
        """On instances."""
        return await work(number)

    @eager(limit=2)
    @classmethod
    async def outer_class_method(cls, work: Work, number: int) -> object:
        """On the class."""
        return await work(number)

    @classmethod
    @eager(limit=2)
    async def inner_class_method(cls, work: Work, number: int) -> object:
        """On the class."""
        return await work(number)

    @eager(limit=2)
    @staticmethod
    async def outer_static_method(work: Work, number: int) -> object:
        """On the class or instances."""
        return await work(number)

    @staticmethod
    @eager(limit=2)
    async def inner_static_method(work: Work, number: int) -> object:
        """On the class or instances."""
        return await work(number)


class SubHost(Host):
    """Inherits them."""


@eager(limit=2)
async def run_work(work: Work, number: int) -> object:
    """Run the work."""
    return await work(number)


async def plain(work: Work, number: int) -> object:
    """Run the work, for those who decorate inline."""
    return await work(number)


class Callable_:  # noqa: N801
    """An object that is an async function."""

    async def __call__(self, work: Work, number: int) -> object:
        """Run the work."""
        return await work(number)


LIMITED: dict[str, list[Any]] = {
    "function": [run_work] * 5,
    "method": [
        Host().method,
        Host().method,
        SubHost().method,
        Host().method,
        functools.partial(Host.method, Host()),
    ],
    "class method outside": [Host.outer_class_method, Host().outer_class_method, SubHost.outer_class_method]
    * 2,
    "class method inside": [Host.inner_class_method, Host().inner_class_method, SubHost.inner_class_method]
    * 2,
    "static method outside": [Host.outer_static_method, Host().outer_static_method] * 2,
    "static method inside": [Host.inner_static_method, SubHost().inner_static_method] * 2,
    "inline": [eager(limit=2)(plain)] * 4,
    "partial": [eager(limit=2)(functools.partial(plain))] * 4,
    "object": [eager(limit=2)(Callable_())] * 4,
}


@pytest.mark.parametrize("calls", LIMITED.values(), ids=LIMITED)
def test_no_more_than_the_limit_run_at_a_time(loop_factory: LoopFactory, calls: list[Any]) -> None:
    """Over all instances, classes and ways to look the function up; one that ends makes room for one."""
    with BackgroundLoop(loop_factory=loop_factory) as loop:
        before = set_shared_loop(loop)
        work = Work()
        tasks = [call(work, number) for number, call in enumerate(calls)]
        set_shared_loop(before)
        work.wait_for(0, 1)
        turn(loop)
        assert work.begun == [0, 1]
        work.let_go(1)
        work.wait_for(2)
        turn(loop)
        assert work.begun == [0, 1, 2]
        work.let_go(0, *range(2, len(calls)))
        assert [task.result(PATIENCE) for task in tasks] == list(range(len(calls)))
        assert work.most == 2


def test_without_a_limit_all_calls_run() -> None:
    """`limit=None` is no limit, as is leaving it out."""
    for decorate in (eager, eager(limit=None)):
        work = Work()
        function = decorate(work)
        tasks = [function(number) for number in range(50)]
        work.wait_for(*range(50))
        work.let_go(*range(50))
        assert [outcome(task) for task in tasks] == list(range(50))


def test_the_limit_holds_over_loops() -> None:
    """Calls on two background loops share the places; one that ends on one lets one begin on the other."""
    work = Work()
    function = eager(limit=2)(work)
    before = shared_loop()
    with BackgroundLoop() as first, BackgroundLoop() as second:
        tasks = []
        for number, loop in enumerate([first, second, first, second, second]):
            set_shared_loop(loop)
            tasks.append(function(number))
        set_shared_loop(before)
        work.wait_for(0, 1)
        turn(first, second)
        assert sorted(work.begun, key=str) == [0, 1]
        assert (len(first.tasks()), len(second.tasks())) == (2, 3)
        for ended, next_one in ((0, 2), (1, 3), (2, 4)):
            work.let_go(ended)
            work.wait_for(next_one)
        work.let_go(3, 4)
        assert [outcome(task) for task in tasks] == [0, 1, 2, 3, 4]
        assert work.most == 2


def test_the_limit_holds_over_threads_and_callers() -> None:
    """Plain threads, asyncio code and other eager functions wait in one line."""
    gauge = Gauge()

    @eager(limit=3)
    async def limited() -> None:
        with gauge:
            await asyncio.sleep(0.001)

    @eager
    async def outer() -> None:
        await asyncio.gather(*(limited() for _ in range(20)))

    async def main() -> None:
        await asyncio.gather(*(limited() for _ in range(20)))

    def call() -> None:
        concurrent.futures.wait([limited() for _ in range(20)])

    in_threads(call, call, lambda: asyncio.run(main()), lambda: asyncio.run(main()), lambda: outer().result())
    assert (gauge.entered, gauge.most) == (100, 3)


def test_each_decorated_function_has_places_of_its_own() -> None:
    """Also if one decorator, kept in a variable, has decorated both; decorating twice gives two."""
    one_at_a_time = eager(limit=1)
    works = [Work(), Work()]
    functions = [one_at_a_time(works[0]), one_at_a_time(works[1]), eager(limit=1)(works[0])]
    tasks = [function(number) for number, function in enumerate(functions)]
    works[0].wait_for(0, 2)
    works[1].wait_for(1)
    works[0].let_go(0, 2)
    works[1].let_go(1)
    assert [outcome(task) for task in tasks] == [0, 1, 2]


def test_a_limit_may_be_larger_than_anything() -> None:
    """It costs nothing in advance."""
    work = Work()
    function = eager(limit=sys.maxsize * 2)(work)
    tasks = [function(number) for number in range(100)]
    work.wait_for(*range(100))
    work.let_go(*range(100))
    assert [outcome(task) for task in tasks] == list(range(100))


# Order


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_calls_begin_in_the_order_in_which_they_were_made(loop_factory: LoopFactory, limit: int) -> None:
    """Those of a plain thread, whoever has ended in the meantime."""
    begun: list[int] = []

    async def limited(number: int) -> None:
        begun.append(number)
        for _ in range(number % 3):
            await asyncio.sleep(0)

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        function = eager(limit=limit, loop=loop)(limited)
        concurrent.futures.wait([function(number) for number in range(500)], PATIENCE)
    assert begun == list(range(500))


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_calls_on_the_loops_own_thread_begin_in_order(loop_factory: LoopFactory, limit: int) -> None:
    """Whether there is a place at the call or later."""
    begun: list[int] = []

    async def limited(number: int) -> None:
        begun.append(number)
        for _ in range(number % 3):
            await asyncio.sleep(0)

    async def outer() -> None:
        tasks = []
        for number in range(500):
            tasks.append(function(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        function = eager(limit=limit, loop=loop)(limited)
        loop.create_task(outer()).result(PATIENCE)
    assert begun == list(range(500))


def test_calls_of_one_thread_on_two_loops_begin_in_order() -> None:
    """With one place they begin one by one, wherever they run."""
    begun: list[int] = []

    @eager(limit=1)
    async def limited(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(0)

    before = shared_loop()
    with BackgroundLoop() as first, BackgroundLoop() as second:
        tasks = []
        for number in range(300):
            set_shared_loop([first, second][number % 5 % 2])
            tasks.append(limited(number))
        set_shared_loop(before)
        concurrent.futures.wait(tasks, PATIENCE)
    assert begun == list(range(300))


@pytest.mark.parametrize("turns", range(6))
def test_nobody_overtakes_one_whose_turn_has_come(loop_factory: LoopFactory, turns: int) -> None:
    """A call made right after places have become free begins after those that were waiting for them."""
    begun: list[int] = []

    async def limited(number: int, gate: asyncio.Event | None = None) -> None:
        begun.append(number)
        if gate is not None:
            await gate.wait()

    async def outer() -> None:
        gate = asyncio.Event()
        tasks = [function(1, gate), function(2, gate), function(3)]
        assert begun == [1, 2]
        gate.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks.append(function(4))
        await asyncio.gather(*tasks)

    with BackgroundLoop(loop_factory=loop_factory) as loop:
        function = eager(limit=2, loop=loop)(limited)
        loop.create_task(outer()).result(PATIENCE)
    assert begun == [1, 2, 3, 4]


def test_nobody_overtakes_one_that_is_given_a_place_by_another_loop() -> None:
    """At whatever point of that, though more places become free on yet another loop: calls begin in order."""
    function = eager(limit=2)(do)
    mine = shared_loop()

    async def note(begun: list[int], number: int) -> None:
        begun.append(number)

    @eager
    async def occupy(busy: threading.Event, go_on: threading.Event) -> None:
        busy.set()
        assert go_on.wait(PATIENCE)

    async def make_room(point: int, call_in: Callable[[], object], held: asyncio.Event) -> bool:
        interrupter = Interrupter({point: call_in}, in_module("_limit"))
        with interrupter:
            held.set()
            for _ in range(5):
                await asyncio.sleep(0)
        return interrupter.happened

    with BackgroundLoop() as first, BackgroundLoop() as second:

        def in_the_meantime() -> None:
            work.let_go("second")
            turn(second)
            go_on.set()
            turn(mine)

        for point in points(1):
            held, work, begun = asyncio.Event(), Work(), list[int]()
            holders = [
                call_on(first, lambda held=held: function(held.wait)),
                call_on(second, lambda work=work: function(functools.partial(work, "second"))),
            ]
            work.wait_for("second")
            busy, go_on = threading.Event(), threading.Event()
            occupied = occupy(busy, go_on)
            assert busy.wait(PATIENCE)
            tasks = [function(functools.partial(note, begun, number)) for number in (1, 2)]
            happened = first.create_task(make_room(point, in_the_meantime, held)).result(PATIENCE)
            in_the_meantime()
            assert not concurrent.futures.wait([*holders, occupied, *tasks], PATIENCE).not_done
            assert begun == [1, 2], f"at point {point}"
            if not happened:
                break
    assert point > 20


def test_a_call_on_the_loops_own_thread_begins_at_once_if_there_is_a_place() -> None:
    """It runs up to its first suspension before the call returns; without a place, it waits."""
    work = Work()
    function = eager(limit=2)(work)

    @eager
    async def outer() -> list[object]:
        tasks = []
        for number in range(3):
            tasks.append(function(number))
            assert work.begun == [0, 1][: number + 1]
        assert [task.running() for task in tasks] == [True, True, False]
        work.let_go(0, 1, 2)
        return list(await asyncio.gather(*tasks))

    assert outer().result(PATIENCE) == [0, 1, 2]


def test_calls_far_down_the_stack_are_limited_too() -> None:
    """Those that begin on the loop's next turn, as too many are inside one another, get places in order."""
    begun: list[int] = []

    @eager(limit=100)
    async def descend(depth: int) -> None:
        begun.append(depth)
        if depth < 99:
            await descend(depth + 1)

    descend(0).result(PATIENCE)
    assert begun == list(range(100))


# While it waits


@contextlib.contextmanager
def full(limit: int = 1) -> Iterator[tuple[Work, Callable[[object], EagerTask[object]]]]:
    """A limited function all of whose places are taken, by calls named "a", "b" and so on."""
    work = Work()
    function = eager(limit=limit)(work)
    names = "abcdefghijk"[:limit]
    holders = [function(name) for name in names]
    work.wait_for(*names)
    try:
        yield work, function
    finally:
        work.let_go(*names)
        concurrent.futures.wait(holders, PATIENCE)


def test_a_waiting_call_is_pending() -> None:
    """To `done`, `running`, `cancelled`, `repr`, time-outs, and among its loop's tasks."""
    with full() as (work, function):
        task = function(1)
        turn()
        assert (task.done(), task.running(), task.cancelled()) == (False, False, False)
        assert re.fullmatch(
            r"<EagerTask 0x\w+ Work\(\) pending for \d+\.\d s, called at .*test_limit\.py:\d+>", repr(task)
        )
        assert task in shared_loop().tasks()
        assert task.get_coro() is not None
        with pytest.raises(ResultTimeoutError, match=r"no result within 0 s: Work\(\) .*, pending for"):
            task.result(timeout=0)
        assert not concurrent.futures.wait([task], 0).done
        assert work.begun == ["a"]
        work.let_go(1)
    assert task.result(PATIENCE) == 1


def test_a_waiting_call_goes_on_without_its_handle() -> None:
    """It is kept by its loop, as a running one is."""
    with full() as (work, function):
        function(1)
        gc.collect()
    work.wait_for(1)
    work.let_go(1)
    turn()


def test_a_waiting_call_keeps_the_context_of_its_call() -> None:
    """Values that are set later, or by whoever makes room for it, are not seen."""
    seen: list[object] = []

    @eager(limit=1)
    async def look(gate: Work | None) -> None:
        if gate is not None:
            variable.set("the body's")
            await gate()
        seen.append(variable.get())

    def look_with(value: object) -> EagerTask[None]:
        variable.set(value)
        return look(None)

    work = Work()
    first = look(work)
    waiting = [contextvars.copy_context().run(look_with, value) for value in (1, 2, 3)]
    variable.set("later")
    work.let_go(None)
    assert not concurrent.futures.wait([first, *waiting], PATIENCE).not_done
    assert seen == ["the body's", 1, 2, 3]


def test_arguments_are_checked_at_the_call() -> None:
    """Not when the turn comes."""
    with full() as (_, function), pytest.raises(TypeError, match="argument"):
        function(1, 2, 3)  # type: ignore[call-arg]


def test_exceptions_of_calls_that_waited_are_reported(expected_log: Callable[[str], None]) -> None:
    """Nothing fails in silence: with the place of the call."""
    expected_log(r"exception of fail\(\) called at .*test_limit\.py:\d+ was never retrieved.*ValueError: no")

    @eager(limit=1)
    async def fail(gate: Work | None = None) -> None:
        if gate is not None:
            await gate("gate")
        else:
            raise ValueError("no")

    work = Work()
    first, second = fail(work), fail()
    work.let_go("gate")
    concurrent.futures.wait([first, second], PATIENCE)


# Cancelled before its turn


async def cancelled_awaiter(task: EagerTask[object]) -> None:
    """Cancel an asyncio task that awaits it."""

    async def wait() -> None:
        await task

    awaiter = asyncio.create_task(wait())
    await asyncio.sleep(0)
    awaiter.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await awaiter


async def timed_out_awaiter(task: EagerTask[object]) -> None:
    """Give up on it with `wait_for`."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 0.001)


async def timed_out_block(task: EagerTask[object]) -> None:
    """Give up on it with `asyncio.timeout`."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await task


async def failed_group(task: EagerTask[object]) -> None:
    """Have it driven by a task group that fails."""
    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(task)
            await asyncio.sleep(0)
            raise ValueError


WAYS_TO_CANCEL: dict[str, Callable[[EagerTask[object]], object]] = {
    "cancel": lambda task: task.cancel(),
    "on the loop": lambda task: shared_loop().asyncio_loop.call_soon_threadsafe(task.cancel),
    "awaiter": lambda task: asyncio.run(cancelled_awaiter(task)),
    "awaiter on the loop": lambda task: eager(cancelled_awaiter)(task).result(PATIENCE),
    "wait_for": lambda task: asyncio.run(timed_out_awaiter(task)),
    "timeout": lambda task: asyncio.run(timed_out_block(task)),
    "timeout on the loop": lambda task: eager(timed_out_block)(task).result(PATIENCE),
    "task group": lambda task: asyncio.run(failed_group(task)),
}


@pytest.mark.parametrize("cancel", WAYS_TO_CANCEL.values(), ids=WAYS_TO_CANCEL)
def test_a_call_cancelled_before_its_turn_never_begins(cancel: Callable[[EagerTask[object]], object]) -> None:
    """It is done although no place is free; others keep their turns, and its arguments are let go."""
    with full() as (work, function):
        argument = Work()
        dropped = weakref.ref(argument)
        before, task, after = function(1), function(argument), function(2)
        del argument
        cancel(task)
        assert concurrent.futures.wait([task], PATIENCE).done
        assert task.cancelled()
        turn()
        gc.collect()
        assert dropped() is None
        assert work.begun == ["a"]
        work.let_go(1, 2)
    assert [before.result(PATIENCE), after.result(PATIENCE)] == [1, 2]
    assert work.begun == ["a", 1, 2]


def test_the_message_of_a_cancellation_before_the_turn_arrives() -> None:
    """As that of any cancellation."""
    with full() as (_, function):
        task = function(1)
        task.cancel("changed my mind")
        with pytest.raises(asyncio.CancelledError, match="changed my mind"):
            task.result(PATIENCE)


def test_cancelled_calls_cost_no_turn() -> None:
    """When a place becomes free, the next one that was not cancelled gets it, however many were."""
    with full(2) as (work, function):
        tasks = [function(number) for number in range(1000)]
        for task in tasks[:500] + tasks[501:]:
            task.cancel()
        concurrent.futures.wait(tasks[:500] + tasks[501:], PATIENCE)
        work.let_go("a")
        work.wait_for(500)
        assert work.begun == ["a", "b", 500]
        work.let_go(500)
        assert tasks[500].result(PATIENCE) == 500


@pytest.mark.parametrize("many", [3, 1000])
def test_cancelled_calls_are_not_kept_for_their_turn(many: int) -> None:
    """Which may be far off: few are still there, whatever their order; the others keep theirs."""
    rng = random.Random(1)
    with full() as (work, function):
        tasks = [function(number) for number in range(many + many // 10 + 2)]
        cancelled = rng.sample(tasks, many)
        left = [number for number, task in enumerate(tasks) if task not in set(cancelled)]
        kept = weakref.WeakSet(cancelled)
        for task in cancelled:
            task.cancel()
        assert concurrent.futures.wait(cancelled, PATIENCE).not_done == set()
        left += [5000, 5001]
        tasks = [task for task in tasks if not task.done()] + [function(5000), function(5001)]
        del cancelled, task
        turn()
        gc.collect()
        assert len(kept) < many / 5
        work.let_go("a", *left)
        assert [task.result(PATIENCE) for task in tasks] == left
    assert work.begun == ["a", *left]


def test_a_place_that_becomes_free_while_cancelled_calls_are_taken_out_is_given() -> None:
    """At any point of that, in the thread of another loop: whoever looks then may see nobody waiting."""
    function = eager(limit=1)(do)
    begun: list[str] = []

    def call(name: str) -> EagerTask[object]:
        async def note() -> None:
            begun.append(name)

        return function(note)

    async def take_out(holder: EagerTask[object], end: Callable[[], object], point: int) -> bool:
        cancelled = [call("cancelled") for _ in range(3)]
        waiting = [call("first"), call("second")]

        def free_the_place() -> None:
            waiting.append(call("late"))
            end()
            holder.result(PATIENCE)
            turn(other)

        interrupter = Interrupter({point: free_the_place}, in_module("_limit"))
        with interrupter:
            for task in cancelled:
                task.cancel()
            await asyncio.gather(*cancelled, return_exceptions=True)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        end()
        await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
        assert begun == ["first", "second", "late"][: len(waiting)]
        begun.clear()
        return interrupter.happened

    with BackgroundLoop(name="other") as other:
        for point in points(1):
            held: concurrent.futures.Future[None] = concurrent.futures.Future()
            holder = call_on(other, lambda held=held: function(lambda: asyncio.wrap_future(held)))  # type: ignore[misc]
            turn(other)
            if not eager(take_out)(holder, functools.partial(set_once, held), point).result(PATIENCE):
                break
    assert point > 100


def set_once(future: concurrent.futures.Future[None]) -> None:
    """Give a future its result, unless it has it."""
    if not future.done():
        future.set_result(None)


def test_a_cancellation_that_meets_the_turn_is_either_early_or_late() -> None:
    """One that comes as a place becomes free: the call never begins or is cancelled; no place is lost."""
    gauge = Gauge()

    @eager(limit=1)
    async def limited() -> None:
        with gauge:
            await asyncio.sleep(0)

    for _ in range(300):
        holder, task = limited(), limited()
        concurrent.futures.wait([holder], PATIENCE)
        task.cancel()
        assert isinstance(outcome(task), asyncio.CancelledError | None)
    assert limited().result(PATIENCE) is None
    assert (gauge.inside, gauge.most) == (0, 1)


# The end of a call


async def raise_later(exc: BaseException) -> None:
    """Raise after a turn of the loop."""
    await asyncio.sleep(0)
    raise exc


async def raise_at_once(exc: BaseException) -> None:
    """Raise in the first step."""
    raise exc


@pytest.mark.parametrize("body", [raise_at_once, raise_later])
@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit]
)
def test_a_call_that_raises_frees_its_place(
    loop_factory: LoopFactory, body: Callable[..., Any], error: type[BaseException]
) -> None:
    """Whatever it raises, whenever."""
    with BackgroundLoop(loop_factory=loop_factory) as loop:
        function = eager(limit=2, loop=loop)(do)
        # An object for each: two threads that raise one crash Python 3.13 without the GIL.
        tasks = [function(lambda: body(error())) for _ in range(5)]
        for task in tasks:
            assert isinstance(outcome(task), error)
        assert has_free_places(function, 2)


def test_a_cancelled_call_frees_its_place_after_its_cleanup() -> None:
    """Not before: it still runs."""
    clean_up = threading.Event()
    cleaning = threading.Event()
    work = Work()

    @eager(limit=1)
    async def limited(number: int) -> None:
        try:
            await work(number)
        finally:
            if number == 0:
                cleaning.set()
                while not clean_up.is_set():
                    await asyncio.sleep(0.001)

    first, second = limited(0), limited(1)
    work.wait_for(0)
    first.cancel()
    assert cleaning.wait(PATIENCE)
    turn()
    assert work.begun == [0]
    clean_up.set()
    work.wait_for(1)
    assert first.cancelled()
    work.let_go(1)
    assert second.result(PATIENCE) is None


def test_a_call_that_a_task_factory_refuses_frees_its_place() -> None:
    """An error on the way to the first step is that of the call."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("refused")

    function = eager(limit=1)(do)
    with BackgroundLoop() as loop:
        before = set_shared_loop(loop)
        loop.asyncio_loop.set_task_factory(refuse)
        tasks = [function(lambda: raise_at_once(TypeError())) for _ in range(3)]
        assert [repr(outcome(task)) for task in tasks] == ["ValueError('refused')"] * 3
        set_shared_loop(before)
    assert has_free_places(function, 1)


def test_a_call_that_waits_for_another_function_s_place_keeps_its_own() -> None:
    """A limited function may await another limited one."""
    inner, outer = Gauge(), Gauge()

    @eager(limit=2)
    async def fetch(number: int) -> int:
        with inner:
            await asyncio.sleep(0)
            return number

    @eager(limit=3)
    async def fetch_both(number: int) -> int:
        with outer:
            return await fetch(number) + await fetch(number)

    @eager
    async def fetch_all() -> list[int]:  # on the loop's thread, where as many as may begin at once
        return await asyncio.gather(*[fetch_both(number) for number in range(100)])

    assert fetch_all().result(PATIENCE) == [2 * number for number in range(100)]
    assert (inner.most, outer.most) == (2, 3)


def test_a_function_that_waits_for_its_own_limit_waits_for_ever() -> None:
    """As with a semaphore; it can be cancelled. `__wrapped__` is the way to call without a second place."""

    @eager(limit=1)
    async def count(number: int) -> int:
        return number + (await count(number - 1) if number else 0)

    @eager(limit=1)
    async def count_on(number: int) -> int:
        return number + (await count_on.__wrapped__(number - 1) if number else 0)

    assert count(0).result(PATIENCE) == 0
    task = count(1)
    with pytest.raises(ResultTimeoutError, match="suspended at" if GIL_ENABLED else "running"):
        task.result(timeout=0.1)
    inner = next(iter(shared_loop().tasks() - {task}))
    assert not inner.running()
    task.cancel()
    assert concurrent.futures.wait([task, inner], PATIENCE).not_done == set()
    assert task.cancelled()
    assert inner.cancelled()
    assert count(0).result(PATIENCE) == 0
    assert count_on(4).result(PATIENCE) == 10


# The end of a loop


class FragileSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """A selector that can be broken."""

    broken = False

    def select(self, timeout: float | None = None) -> Any:
        """Wait for events, or raise."""
        if self.broken:
            raise OSError("broken selector")
        return super().select(timeout)


class FragileLoop(BackgroundLoop):
    """A background loop whose event loop dies on request."""

    def __init__(self) -> None:
        super().__init__(name="fragile", loop_factory=self._make)

    def _make(self) -> asyncio.AbstractEventLoop:
        self._selector = FragileSelector()
        return asyncio.SelectorEventLoop(self._selector)

    def kill(self) -> None:
        """Have the event loop's thread die, and wait for that. From any other thread."""
        loop_thread = self._loop_thread
        assert loop_thread is not None
        self._selector.broken = True
        with contextlib.suppress(RuntimeError):  # dead already
            loop_thread.loop.call_soon_threadsafe(lambda: None)
        loop_thread.join()


def call_on(loop: BackgroundLoop, call: Callable[[], EagerTask[object]]) -> EagerTask[object]:
    """Make a call that runs on a certain background loop."""
    before = set_shared_loop(loop)
    try:
        return call()
    finally:
        set_shared_loop(before)


def test_a_loop_that_is_shut_down_frees_its_places() -> None:
    """With `cancel_futures`, its waiting calls never begin; those of other loops go on in their order."""
    work = Work()
    function = eager(limit=2)(work)
    ending = BackgroundLoop()
    running = [call_on(ending, lambda number=number: function(number)) for number in (0, 1)]
    waiting = []
    for number in range(2, 8):
        loop = ending if number % 2 else shared_loop()
        waiting.append(call_on(loop, lambda number=number: function(number)))
    work.wait_for(0, 1)
    ending.shutdown(cancel_futures=True)
    assert all(task.cancelled() for task in running + waiting[1::2])
    work.wait_for(2, 4)
    turn()
    assert work.begun == [0, 1, 2, 4]
    work.let_go(2, 4, 6)
    assert [outcome(task) for task in waiting[::2]] == [2, 4, 6]
    assert work.most == 2


@pytest.mark.parametrize("daemon", [False, True])
def test_no_waiting_call_begins_when_all_are_cancelled(
    monkeypatch: pytest.MonkeyPatch,
    daemon: bool,  # noqa: FBT001
) -> None:
    """Not in the place of one that has been cancelled a moment earlier, be that a daemon, either."""
    cancel = EagerTask.cancel

    def cancel_slowly(task: EagerTask[object]) -> None:
        was_running = task.running()
        cancel(task)
        if was_running:
            assert not concurrent.futures.wait([task], PATIENCE).not_done
            for _ in range(3):  # until the loop has done what comes of that
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), asyncio_loop).result(PATIENCE)

    async def start_first() -> EagerTask[object]:
        return function(0)

    work = Work()
    ending = BackgroundLoop()
    asyncio_loop = ending.asyncio_loop
    function = eager(limit=1, loop=ending)(work)
    tasks = [ending.create_task(start_first(), daemon=daemon).result(PATIENCE)]
    tasks += [function(number) for number in range(1, 100)]
    work.wait_for(0)
    monkeypatch.setattr(EagerTask, "cancel", cancel_slowly)
    ending.shutdown(cancel_futures=True)
    assert all(task.cancelled() for task in tasks)
    assert work.begun == [0]


def test_a_loop_waits_for_its_waiting_calls_when_it_is_shut_down() -> None:
    """Without `cancel_futures` they get their turn, also if the place is held on another loop."""
    work = Work()
    function = eager(limit=1)(work)
    first = function(0)
    ending = BackgroundLoop()
    task = call_on(ending, lambda: function(1))
    ending.shutdown(wait=False)
    work.wait_for(0)
    turn(shared_loop())
    assert not task.done()
    work.let_go(0, 1)
    ending.shutdown()
    assert (first.result(PATIENCE), task.result(timeout=0)) == (0, 1)


def test_a_loop_that_nobody_refers_to_still_serves_its_waiting_calls() -> None:
    """It ends when they have."""
    work = Work()
    function = eager(limit=1)(work)
    first = function(0)
    loop = BackgroundLoop()
    task = call_on(loop, lambda: function(1))
    dropped = weakref.ref(loop)
    del loop
    gc.collect()
    assert dropped() is None
    work.let_go(0, 1)
    assert (first.result(PATIENCE), task.result(PATIENCE)) == (0, 1)


def test_a_loop_that_dies_frees_its_places(expected_log: Callable[[str], None]) -> None:
    """Its calls fail with LoopClosedError, begun or not; those of other loops go on."""
    expected_log(r"'fragile' is dead.*broken selector")
    expected_log("Task was destroyed but it is pending")
    expected_log("Task was destroyed but it is pending")
    work = Work()
    function = eager(limit=2)(work)
    fragile = FragileLoop()
    running = [call_on(fragile, lambda number=number: function(number)) for number in (0, 1)]
    work.wait_for(0, 1)
    waiting = []
    for number in range(2, 8):
        loop = fragile if number % 2 else shared_loop()
        waiting.append(call_on(loop, lambda number=number: function(number)))
    turn()
    fragile.kill()
    for task in running + waiting[1::2]:
        assert isinstance(outcome(task), LoopClosedError)
    work.wait_for(2, 4)
    turn()
    assert work.begun == [0, 1, 2, 4]
    work.let_go(2, 4, 6)
    assert [outcome(task) for task in waiting[::2]] == [2, 4, 6]
    del running, task
    gc.collect()


def test_a_call_that_a_closed_loop_refuses_takes_no_place() -> None:
    """LoopClosedError comes out of the call, and that is all."""
    loop = BackgroundLoop()
    function = eager(limit=1)(do)
    bound = eager(limit=1, loop=loop)(do)
    loop.shutdown()
    for _ in range(3):
        with pytest.raises(LoopClosedError):
            bound(lambda: raise_at_once(ValueError()))
    before = set_shared_loop(shared_loop())
    set_shared_loop(before)
    assert has_free_places(function, 1)


def test_a_loop_that_dies_during_a_call_takes_no_place_with_it(expected_log: Callable[[str], None]) -> None:
    """At whatever point of the call: it raises or its task fails, and the place is free."""

    async def at_once() -> str:
        return "ended"

    def call(interrupter: Interrupter) -> EagerTask[object] | None:
        with contextlib.suppress(LoopClosedError), interrupter:
            return function(at_once)
        return None

    function = eager(limit=1)(do)
    for point in points(7):
        fragile = FragileLoop()
        fragile.create_task(at_once()).result(PATIENCE)
        interrupter = Interrupter({point: fragile.kill})
        task = call_on(fragile, functools.partial(call, interrupter))
        if interrupter.happened:
            expected_log(r"'fragile' is dead.*broken selector")
        if task is not None:
            assert isinstance(outcome(task), str | LoopClosedError)
        fragile.shutdown()
        assert has_free_places(function, 1), f"at point {point}"
        if not interrupter.happened:
            break
    assert point > 100


def test_a_loop_that_dies_while_its_call_is_given_a_place_returns_it(
    expected_log: Callable[[str], None],
) -> None:
    """At whatever point of that, in the thread of the loop on which the place has become free."""
    function = eager(limit=1)(do)

    async def at_once() -> None: ...

    @eager
    async def make_room(fragile: FragileLoop, point: int) -> bool:
        held = asyncio.Event()
        holder = function(held.wait)
        waiting = call_on(fragile, lambda: function(at_once))
        interrupter = Interrupter({point: fragile.kill}, in_module("_limit"))
        with interrupter:
            held.set()
            await holder
        fragile.kill()
        assert isinstance(outcome(waiting), LoopClosedError | None)
        return interrupter.happened

    for point in points(1):
        fragile = FragileLoop()
        fragile.create_task(raise_at_once(SystemExit())).exception(PATIENCE)
        happened = make_room(fragile, point).result(PATIENCE)
        expected_log(r"'fragile' is dead.*broken selector")
        assert has_free_places(function, 1), f"at point {point}"
        if not happened:
            break
    assert point > 20


def test_a_call_that_is_cancelled_while_it_is_given_a_place_leaves_nothing() -> None:
    """At whatever point of that, in its own loop's thread: later calls begin at once where they may."""
    function = eager(limit=1)(do)

    async def make_room(waiting: list[EagerTask[object]], point: int) -> bool:
        held = asyncio.Event()
        holder = function(held.wait)
        waiting.append(call_on(other, lambda: function(asyncio.Event().wait)))
        turn(other)

        def cancel() -> None:
            waiting[0].cancel()
            assert isinstance(outcome(waiting[0]), asyncio.CancelledError)
            turn(other)

        interrupter = Interrupter({point: cancel}, in_module("_limit"))
        with interrupter:
            held.set()
            await holder
        if not interrupter.happened:
            cancel()
        return interrupter.happened

    async def at_once() -> None: ...

    async def begins_at_once() -> bool:
        return function(at_once).done()

    with BackgroundLoop(name="other") as other:
        for point in points(1):
            waiting: list[EagerTask[object]] = []
            happened = eager(make_room)(waiting, point).result(PATIENCE)
            turn(other, shared_loop())
            assert eager(begins_at_once)().result(PATIENCE), f"at point {point}"
            if not happened:
                break
    assert point > 20


# Signal handlers and finalizers


def test_a_handler_that_calls_in_the_middle_of_a_call_gets_its_turn() -> None:
    """At any point of the limited call that it interrupts: both run, and no more than the limit at a time."""
    function = eager(limit=1)(do)
    for point in points(3):
        work = Work()
        inner: list[EagerTask[object]] = []
        interrupter = Interrupter({point: lambda work=work, inner=inner: inner.append(function(work))})
        holder = function(work) if point % 2 else None  # with a place to be had, and without
        with interrupter:
            task = function(work)
        turn()
        assert work.running <= 1
        work.let_go(None)
        for one in [task, *inner, *([holder] if holder else [])]:
            assert outcome(one) is None
        assert work.most == 1, f"at point {point}"
        if not interrupter.happened:
            break
    assert point > 30


def test_a_handler_may_block_in_the_middle_of_a_limited_call() -> None:
    """At any point, while other calls of the same limit end on the loop: nothing is in each other's way."""
    function = eager(limit=2)(do)
    answer = eager(do)

    def call_in(work: Work, holder: EagerTask[object], heard: list[object]) -> None:
        work.let_go(1)
        holder.result(PATIENCE)
        heard.append(answer(lambda: asyncio.sleep(0, "unlimited")).result(PATIENCE))
        heard.append(function(lambda: asyncio.sleep(0, "limited")).result(PATIENCE))

    for point in points(3):
        work = Work()
        heard: list[object] = []
        holder = function(functools.partial(work, 1))
        work.wait_for(1)
        interrupter = Interrupter({point: functools.partial(call_in, work, holder, heard)})
        with interrupter:
            task = function(lambda: asyncio.sleep(0, "slept"))
        if not interrupter.happened:
            work.let_go(1)
        assert [task.result(PATIENCE), holder.result(PATIENCE)] == ["slept", 1]
        if not interrupter.happened:
            break
        assert heard == ["unlimited", "limited"]
    assert point > 30


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_handler_that_raises_in_a_limited_call_takes_no_place() -> None:
    """At any point, as Ctrl-C may: the exception comes out, no task is left, all places are free."""
    function = eager(limit=2)(do)

    def press_ctrl_c() -> None:
        raise KeyboardInterrupt

    for point in points(1):
        interrupter = Interrupter({point: press_ctrl_c})
        raised = False
        try:
            with interrupter:
                function(lambda: asyncio.sleep(0))
        except KeyboardInterrupt:
            raised = True
        assert raised is interrupter.happened, f"at point {point}"
        turn()
        assert not concurrent.futures.wait(shared_loop().tasks(), PATIENCE).not_done, f"at point {point}"
        tasks = [function(lambda: asyncio.sleep(0)) for _ in range(3)]
        assert not concurrent.futures.wait(tasks, PATIENCE).not_done, f"at point {point}"
        if not interrupter.happened:
            break
    assert point > 50
    assert has_free_places(function, 2)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_finalizer_may_call_at_any_point_on_the_loops_thread(limit: int) -> None:
    """While limited calls begin, wait and end there: its own get their turns, and the limit holds."""
    gauge = Gauge()

    @eager(limit=limit)
    async def limited(turns: int) -> int:
        with gauge:
            for _ in range(turns):
                await asyncio.sleep(0)
            return turns

    @eager
    async def outer(point: int) -> bool:
        # Entered by hand: the ends of calls, in other callbacks of the loop, are interrupted too.
        interrupter = Interrupter(
            {point: lambda: heard.extend([limited(0), limited(1)])}, in_module("_limit")
        )
        with interrupter:
            tasks = [limited(number % 3) for number in range(5)]
            cancelled = [limited(0) for _ in range(4)]
            for task in cancelled:
                task.cancel()
            assert await asyncio.gather(*tasks) == [0, 1, 2, 0, 1]
            await asyncio.gather(*cancelled, return_exceptions=True)
        return interrupter.happened

    heard: list[EagerTask[int]] = []
    for point in points(2):
        if not outer(point).result(PATIENCE):
            break
        assert gauge.most <= limit, f"at point {point}"
    assert point > 100
    assert [task.result(PATIENCE) for task in heard] == [0, 1] * (len(heard) // 2)
    assert gauge.most <= limit


def test_two_limits_do_not_wait_for_each_other() -> None:
    """One thread is inside a function's limit and calls another; a second thread, the other way round."""
    first, second = eager(limit=1)(do), eager(limit=1)(do)
    heard: list[EagerTask[object]] = []

    def call_when_both_are_inside(function: Any, barrier: threading.Barrier) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(0.2)
        heard.append(function(lambda: asyncio.sleep(0)))

    @eager
    async def use_on_loop(point: int, barrier: threading.Barrier) -> None:
        call_in = functools.partial(call_when_both_are_inside, first, barrier)
        with Interrupter({point: call_in}, in_module("_limit"), event="line"):
            await asyncio.gather(*(second(lambda: asyncio.sleep(0)) for _ in range(3)))

    for point in range(1, 30):
        barrier = threading.Barrier(2)
        call_in = functools.partial(call_when_both_are_inside, second, barrier)
        on_loop = use_on_loop(point, barrier)
        interrupter = Interrupter({point % 4 + 1: call_in}, in_module("_limit"), event="line")
        with interrupter:
            heard += [first(lambda: asyncio.sleep(0)) for _ in range(3)]
        assert interrupter.happened
        on_loop.result(PATIENCE)
    assert not concurrent.futures.wait(heard, PATIENCE).not_done


def test_calls_without_stack_left_lose_no_place(run_python: RunPython) -> None:
    """A limited call that ends on the last frames of a deep recursion lets the next one begin, too."""
    source = """
        import _thread, concurrent.futures, sys, warnings
        from eager_async import eager

        begun, go_on = _thread.allocate_lock(), _thread.allocate_lock()
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")

        @eager(limit=1)
        async def limited(first):
            if first:
                begun.release()
                go_on.acquire()  # without a frame more

        def descend(depth):
            descend(depth - 1) if depth else limited(True)

        @eager
        async def top(depth):
            try:
                descend(depth)
            except RecursionError:
                return 1
            return 0

        limited(False).result()
        begun.acquire(), go_on.acquire()
        failed = 0
        limit = sys.getrecursionlimit()
        for depth in range(210, 300):
            sys.setrecursionlimit(300)
            task = top(depth)
            while not begun.acquire(timeout=0.005) and not task.done():
                pass
            next_one = limited(False)
            go_on.release()
            while not task.done():  # without making a call on the loop
                concurrent.futures.wait([], 0)
            sys.setrecursionlimit(limit)
            failed += task.result()
            go_on.acquire(False), begun.acquire(False)
            next_one.result(5)
        print(failed > 5)
    """
    process = run_python(source, timeout=60)
    assert (process.returncode, process.stdout) == (0, "True\n"), process.stderr


REAL_CTRL_C = """
    import signal, sys, time
    from eager_async import eager, shared_loop

    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    @eager(limit=2)
    async def limited():
        return 42

    def call_often():
        for _ in range(50):
            limited()

    import gc, warnings
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    assert limited().result(10) == 42
    signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    for number in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0003 + 0.000001 * number)
            while True:
                call_often()
        except Interrupted:
            interrupted += 1
        assert limited().result(10) == 42
    print(interrupted)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no timer signals")
@pytest.mark.untraced("a signal handler that raises would leave its lock held")
def test_real_signals_that_raise_in_limited_calls_do_no_harm(run_python: RunPython) -> None:
    """Wherever CPython lets them in: the next call is served."""
    process = run_python(REAL_CTRL_C, timeout=60)
    assert (process.returncode, process.stdout) == (0, "300\n"), process.stderr


# Exit and fork


STAGING = (
    '''
"""What the programs of these tests have in common."""

import asyncio
import concurrent.futures
import os
import signal
import sys
import threading

from eager_async import BackgroundLoop, LoopClosedError, eager, set_shared_loop, shared_loop

'''
    + SAY
    + """

async def main_end():
    while not threading._SHUTTING_DOWN:
        await asyncio.sleep(0.005)

"""
    + FORK
    + """"""
)


def test_a_process_waits_for_its_waiting_calls(run: RunPython) -> None:
    """They get their turns after the main thread's end, in order."""
    source = """
        from staging import *

        @eager(limit=1)
        async def work(number):
            await main_end()
            await asyncio.sleep(0)
            say("worked", number)

        for number in range(4):
            work(number)
        say("main ends")
    """
    check(run(source), "main ends", *[f"worked {number}" for number in range(4)])


def test_daemon_calls_that_wait_do_not_hold_the_process(run: RunPython) -> None:
    """They never begin; the one that runs is cancelled, and cleans up."""
    source = """
        from staging import *

        begun = threading.Event()

        @eager(limit=1, daemon=True)
        async def work(number):
            try:
                say("begun", number)
                begun.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                say("cleaned up", number)

        tasks = [work(number) for number in range(1000)]
        begun.wait()
        say("main ends")
    """
    check(run(source), "begun 0", "main ends", "cleaned up 0")


@posix_signals
def test_ctrl_c_at_exit_cancels_those_that_wait(run: RunPython) -> None:
    """Those never begin, the ones that run clean up, and the process ends."""
    source = """
        from staging import *

        @eager(limit=1)
        async def work(number):
            try:
                say("begun", number)
                await main_end()
                await asyncio.sleep(0.05)  # the main thread waits by then
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                say("cleaned up", number)

        for number in range(100):
            work(number)
        say("main ends")
    """
    process = run(source)
    assert sorted(process.stdout.splitlines()) == ["begun 0", "cleaned up 0", "main ends"], process.stderr
    assert process.returncode == 0
    assert re.fullmatch(r"interrupted at exit: cancelling 100 eager tasks: work\(\) .*\n", process.stderr)


@has_fork
def test_a_forked_child_starts_with_all_places_free(run: RunPython) -> None:
    """Calls of the parent's, running or waiting, take no place in the child, and go on in the parent."""
    source = """
        from staging import *

        go_on, begun = threading.Event(), threading.Semaphore(0)

        @eager(limit=2)
        async def work(number):
            begun.release()
            while not go_on.is_set():
                await asyncio.sleep(0.001)
            return number

        def child():
            say([type(task.exception(0)).__name__ for task in tasks] == ["LoopClosedError"] * 5)
            mine = [work(number) for number in range(4)]
            begun.acquire(), begun.acquire()
            say(begun.acquire(timeout=0.05), [task.running() for task in mine])
            go_on.set()
            say([task.result(10) for task in mine])

        tasks = [work(number) for number in range(5)]
        begun.acquire(), begun.acquire()
        fork(child)
        say([task.running() for task in tasks])
        go_on.set()
        say([task.result(10) for task in tasks])
    """
    check(
        run(source, options=FORK_WITH_THREADS),
        "True",
        "False [True, True, False, False]",
        "[0, 1, 2, 3]",
        "child ended 0",
        "[True, True, False, False, False]",
        "[0, 1, 2, 3, 4]",
    )


@has_fork
@pytest.mark.untraced("it traces threads to stop them inside the package")
@pytest.mark.parametrize("where", ["caller", "loop"])
def test_a_fork_while_another_thread_is_inside_the_limit(run: RunPython, where: str) -> None:
    """At whatever line of it: the child's calls are served, and the parent's thread goes on."""
    source = """
        from staging import *

        class Stop:
            # Before the n-th line of `_limit.py` that this thread runs.
            def __init__(self, number):
                self.left = number
                self.inside, self.go_on = threading.Event(), threading.Event()

            def __call__(self, frame, event, _):
                if not frame.f_code.co_filename.endswith("_limit.py"):
                    return None
                if event == "line":
                    self.left -= 1
                    if self.left == 0:
                        self.inside.set()
                        self.go_on.wait()
                return self

        @eager(limit=1)
        async def work(number):
            await asyncio.sleep(0)
            return number

        @eager
        async def on_loop(stop):
            sys.settrace(stop)
            try:
                return await use()
            finally:
                sys.settrace(None)

        async def use():
            return await asyncio.gather(*(work(number) for number in range(3)))

        def call(stop):
            if sys.argv[1] == "loop":
                results.append(on_loop(stop).result(20))
            else:
                sys.settrace(stop)
                tasks = [work(number) for number in range(3)]
                sys.settrace(None)
                results.append([task.result(20) for task in tasks])
            stop.inside.set()

        def child():
            assert [task.result(10) for task in [work(1), work(2), work(3)]] == [1, 2, 3]
            os._exit(0)

        number = 0
        while True:
            number += 1
            results = []
            stop = Stop(number)
            thread = threading.Thread(target=call, args=[stop])
            thread.start()
            stop.inside.wait()
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                child()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            stop.go_on.set()
            thread.join()
            assert status == 0, (number, status)
            assert results == [[0, 1, 2]], (number, results)
            if stop.left > 0:
                break
        say(number > 6)
    """
    check(run(source, options=FORK_WITH_THREADS, args=[where], timeout=60), "True")


# Many


def test_ending_a_loop_asks_each_waiting_daemon_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not all of them again whenever some have ended."""
    many, cancel, requests = 5000, EagerTask._cancel_for_awaiter, itertools.count()

    def counted(task: EagerTask[object], request: Any) -> None:
        next(requests)
        cancel(task, request)

    monkeypatch.setattr(EagerTask, "_cancel_for_awaiter", counted)
    with BackgroundLoop() as loop:
        endless = eager(limit=1, daemon=True, loop=loop)(do)
        tasks = [endless(lambda: asyncio.sleep(PATIENCE)) for _ in range(many)]
        turn(loop)
    assert all(task.cancelled() for task in tasks)
    assert next(requests) < 2 * many


def test_waiting_calls_cost_next_to_nothing() -> None:
    """However many: less than 1 kB each beyond the coroutine, no thread or timer; all can be cancelled."""
    many = 20_000
    with full() as (_, function):
        turn()
        loop: Any = shared_loop().asyncio_loop
        threads, timers = threading.active_count(), len(loop._scheduled)
        gc.collect()
        tracemalloc.start()
        try:
            start = tracemalloc.get_traced_memory()[0]
            coroutines = [function.__wrapped__(None) for _ in range(many)]  # type: ignore[attr-defined]
            alone = tracemalloc.get_traced_memory()[0] - start
            while coroutines:
                coroutines.pop().close()
            start = tracemalloc.get_traced_memory()[0]
            tasks = [function(None) for _ in range(many)]
            turn()
            waiting = tracemalloc.get_traced_memory()[0] - start
        finally:
            tracemalloc.stop()
        assert (threading.active_count(), len(loop._scheduled)) == (threads, timers)
        assert not any(task.done() or task.running() for task in tasks)
        for task in tasks:
            task.cancel()
        assert not concurrent.futures.wait(tasks, PATIENCE).not_done
        assert all(task.cancelled() for task in tasks)
        assert (waiting - alone) / many < 1000


@pytest.mark.parametrize("turns", [0, 1])
def test_any_number_of_calls_may_end_at_once(turns: int) -> None:
    """From another thread and on the loop's own, with a place or without: no recursion, and all have run."""
    many = 20_000
    ended: list[int] = []

    @eager(limit=1)
    async def limited(number: int) -> None:
        if number == 0:
            for _ in range(turns):
                await asyncio.sleep(0)
        ended.append(number)

    def call_many() -> EagerTask[None]:
        return [limited(number) for number in range(many)][-1]

    @eager
    async def call_many_on_the_loop() -> None:
        await call_many()

    for call in (call_many, call_many_on_the_loop):
        call().result(PATIENCE * 3)
        assert ended == list(range(many))
        ended.clear()


@pytest.mark.parametrize("repetition", range(10))
def test_races_lose_no_call_and_no_place(repetition: int) -> None:
    """Eight threads, two loops, random cancellations and failures, and a great many thread switches."""
    gauge = Gauge()

    @eager(limit=3)
    async def limited(turns: int) -> int:
        with gauge:
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns == 2:
                raise ValueError(turns)
            return turns

    @eager
    async def call_on_loop(turns: int) -> int:
        tasks = [limited(turns % 2) for _ in range(3)]
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return turns % 2

    def act(rng: random.Random) -> set[str]:
        seen: set[str] = set()
        for _ in range(25):
            set_shared_loop(rng.choice(loops))
            tasks = [rng.choice([limited, limited, call_on_loop])(rng.randrange(4)) for _ in range(4)]
            for task in rng.sample(tasks, rng.randrange(3)):
                task.cancel()
            for result in [outcome(task) for task in tasks]:
                seen.add("cancelled" if isinstance(result, asyncio.CancelledError) else repr(result))
        return seen

    before = shared_loop()
    with BackgroundLoop() as first, BackgroundLoop() as second:
        loops = [first, second]
        with frequent_switches():
            seen = in_threads(
                *(functools.partial(act, random.Random(f"{repetition} {number}")) for number in range(8))
            )
        set_shared_loop(before)
    assert set.union(*seen) == {"0", "1", "3", "ValueError(2)", "cancelled"}
    assert (gauge.inside, gauge.most) == (0, 3)
    assert concurrent.futures.wait([limited(0) for _ in range(4)], PATIENCE).not_done == set()


# Bad input


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    """When decorating, with the remedy."""
    with pytest.raises(ValueError, match=rf"^limit must be at least 1, not {limit}; write `limit=10`"):
        eager(limit=limit)


def test_a_limit_on_what_is_eager_already_is_refused() -> None:
    """When decorating, with the remedy: the calls inside would start before it could hold them up."""

    class Callable:
        __call__ = Host.method

    wrapped: list[Any] = [eager(plain), Host().method, eager(functools.partial(plain))]
    for function in wrapped:
        eager(limit=2)(function.__wrapped__)
    for function in [*wrapped, functools.partial(eager(plain)), staticmethod(eager(plain)), Callable()]:
        with pytest.raises(TypeError, match=r"is eager already.*`eager\(limit=2\)\(function\.__wrapped__\)`"):
            eager(limit=2)(function)


@pytest.mark.parametrize("limit", [True, False, "3", 1.5, 2.0, [1]], ids=repr)
def test_a_limit_that_is_no_whole_number_is_refused(limit: Any) -> None:
    """When decorating, with the remedy."""
    message = f"limit must be a whole number, not {limit!r}; write `limit=10`"
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        eager(limit=limit)
