"""For the soak: calls that know what their bodies did and what was asked of them, in rounds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from eager_async import BackgroundLoop, EagerTask, LoopClosedError, eager

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from soak_streams import Flow

# 3.13 without the GIL fails by itself where two threads raise one exception object, where one reads the
# frames of a coroutine that runs in another (python/cpython#142599), and in a forked child, for which a dict
# can stay locked that several threads of the parent were using.
FRAGILE = sys.version_info < (3, 14) and not getattr(sys, "_is_gil_enabled", lambda: True)()

# Without the GIL, uvloop's close() and call_soon_threadsafe() crash together (MagicStack/uvloop#720).
LOOP_FACTORIES: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
with contextlib.suppress(ImportError):
    import uvloop

    if not FRAGILE:
        LOOP_FACTORIES.append(uvloop.new_event_loop)

# In a child Python collects what the parent's other threads had, asyncio tasks of their own loops included.
FOREIGN_TASK = re.compile(r"Task was destroyed but it is pending!\ntask: <Task pending name='Task-\d+'")

LIMIT = 3  # how many calls of a limited function may run at a time

HANG_SECONDS = 120  # for a round, and for a child

QUIET = ["value", "value", "value", "stubborn", "to_thread", "nested"]  # they return, or are cancelled
FAILING = ["error", "error", "timeout"]
EXITING = ["exit"]  # asyncio lets these out of a loop whose own tasks raise them: not for those who drive


class BodyError(Exception):
    """What a body raises."""


FAILURES = {"error": BodyError, "timeout": TimeoutError, "exit": SystemExit}


class Call:
    """One call: what its body is to do, what it has done, and what was asked of it."""

    def __init__(
        self, kind: str, rng: random.Random, parent: Call | None, loop: BackgroundLoop | None
    ) -> None:
        self.kind = kind
        self.number = rng.getrandbits(60)  # what comes out: as a result, or in an exception
        self.seed = rng.random()
        self.parent = parent
        self.loop = loop  # None: the shared one
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.pauses = [rng.choice([0, 0, 0.001, 0.01]) for _ in range(rng.randrange(4))]
        self.cleanup = rng.choice([None, None, 0, 0.005])
        # Not those that call others: they could use up all places, and wait for one.
        self.limited = kind != "nested" and rng.random() < 0.4
        self.own_asked = False
        self.task: EagerTask[int] | None = None  # None: dropped, or refused
        self.begun = self.ended = 0
        self.outcome = "never begun"
        self.callbacks_added = 0
        self.callbacks_made: list[object] = []
        self.drivers: list[asyncio.Task[int]] = []  # asyncio holds them weakly

    @property
    def asked(self) -> bool:
        """Whether anybody may have asked for its cancellation."""
        return self.own_asked or (self.parent is not None and self.parent.asked)

    def __repr__(self) -> str:
        asked = "asked to cancel" if self.asked else "not asked to cancel"
        did = f"{self.outcome}, {self.begun} begun, {self.ended} ended"
        kind = f"limited {self.kind}" if self.limited else self.kind
        return f"<{kind} {self.number}, {asked}: {did}, {self.task}>"


class Round:
    """What happens in one round, and what is wrong with it."""

    def __init__(self, rng: random.Random) -> None:
        self.calls: list[Call] = []
        self.pool: list[Call] = []  # those that any thread may play with
        self.loops: list[BackgroundLoop] = []  # shared ones that were replaced
        self.children: list[int] = []
        self.problems: list[str] = []
        self.flows: list[Flow] = []
        self.in_child = False
        self.inside: dict[BackgroundLoop | None, set[Call]] = {}  # the limited ones that run
        self.limited_on: dict[BackgroundLoop, Callable[[Round, Call], EagerTask[int]]] = {}
        self.blocked_after = rng.choice([0.01, HANG_SECONDS])

    def new_loop(self, rng: random.Random) -> BackgroundLoop:
        return BackgroundLoop(loop_factory=rng.choice(LOOP_FACTORIES), blocked_after=self.blocked_after)

    def call(
        self,
        rng: random.Random,
        kinds: list[str],
        *,
        asked: bool = False,
        parent: Call | None = None,
        loop: BackgroundLoop | None = None,
    ) -> Call:
        """Start a body of one of these kinds; `asked` if its cancellation is to come."""
        call = Call(rng.choice(kinds), rng, parent, loop)
        call.own_asked = asked
        self.calls.append(call)
        try:
            call.task = self.start(call)
        except LoopClosedError:
            call.outcome = "refused"
            if loop is None or parent is not None:
                self.problems.append(f"{call} was refused, though its loop should have taken it")
        if call.kind in QUIET or not FRAGILE:
            self.pool.append(call)
        return call

    def start(self, call: Call) -> EagerTask[int]:
        """Call the body, or one with a limit, on the call's loop."""
        if call.loop is None:
            return (limited_body if call.limited else body)(self, call)
        if call.limited:
            function = eager(loop=call.loop, limit=LIMIT)(body.__wrapped__)
            return self.limited_on.setdefault(call.loop, function)(self, call)
        return call.loop.create_task(body.__wrapped__(self, call))

    def check(self, call: Call, seen: object, *, interrupted: bool = False) -> None:
        """Compare what a waiter saw of a call with what its body did.

        Args:
            call: What was waited for.
            seen: A result or an exception.
            interrupted: Whether the waiter was cancelled itself.
        """
        if not isinstance(seen, BaseException):
            true = seen == call.number and call.outcome == "returned"
        elif isinstance(seen, asyncio.CancelledError):
            true = interrupted or (call.asked and call.outcome in {"cancelled", "never begun"})
        else:
            true = seen.args == (call.number,) and call.outcome == "raised"
        if not true:
            self.problems.append(f"{call} was seen to end with {seen!r}")

    def guard(self, function: Callable[..., object], *args: object) -> None:
        """Run a thread; what it raises is a problem."""
        try:
            function(self, *args)
        except BaseException:
            self.problems.append(traceback.format_exc())


@eager
async def body(this: Round, call: Call) -> int:
    """Do what a call is to do, and put it down."""
    call.begun += 1
    inside = this.inside.setdefault(call.loop, set())
    if call.limited:
        inside.add(call)
        if len(inside) > LIMIT:
            this.problems.append(f"{len(inside)} limited calls run at a time, {call} is the last")
    try:
        try:
            await work(this, call)
        finally:
            if call.cleanup is not None:
                await asyncio.sleep(call.cleanup)
    except asyncio.CancelledError:
        call.outcome = "cancelled"
        raise
    except BaseException:
        call.outcome = "raised"
        raise
    else:
        call.outcome = "returned"
        return call.number
    finally:
        inside.discard(call)
        call.ended += 1


limited_body = eager(limit=LIMIT)(body.__wrapped__)  # the places are those of all rounds


async def work(this: Round, call: Call) -> None:
    """Return or raise, as the kind of the call says."""
    for pause in call.pauses:
        try:
            await asyncio.sleep(pause)
        except asyncio.CancelledError:
            if call.kind != "stubborn":
                raise
    if call.kind in FAILURES:
        raise FAILURES[call.kind](call.number)
    if call.kind == "to_thread":
        await asyncio.to_thread(time.sleep, 0)
    if call.kind == "nested":
        await nested(this, call)


async def nested(this: Round, call: Call) -> None:
    """Start calls on the loop's own thread; await some, and leave others to themselves."""
    rng = random.Random(call.seed)
    kinds = FAILING + EXITING + (QUIET if call.depth < 3 else ["value"])
    inner = [this.call(rng, kinds, parent=call, loop=call.loop) for _ in range(rng.randrange(1, 4))]
    for one in inner:
        if one.task is not None and rng.random() < 0.7:
            seen = await seen_by_awaiting(one.task)
            this.check(one, seen, interrupted=call.asked)
            if isinstance(seen, asyncio.CancelledError) and call.asked:
                raise seen


async def seen_by_awaiting(awaitable: Awaitable[object]) -> object:
    """What an awaiter gets: a result or an exception."""
    try:
        return await awaitable
    except BaseException as exc:
        return exc


def seen_by_blocking(task: EagerTask[int], timeout: float | None = None) -> object:
    """What a blocked thread gets: a result or an exception."""
    try:
        return task.result(timeout)
    except BaseException as exc:
        return exc


def start_threads(
    this: Round, rng: random.Random, functions: list[Callable[..., None]]
) -> list[threading.Thread]:
    """Run functions in threads, each with random numbers of its own."""
    threads = [
        threading.Thread(target=this.guard, args=(function, random.Random(rng.random())))
        for function in functions
    ]
    for thread in threads:
        thread.start()
    return threads


# What is logged

records: list[logging.LogRecord] = []


class Keeper(logging.Handler):
    """Keeps what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        records.append(record)


def check_log(this: Round, unreported: dict[object, object]) -> None:
    """Exceptions of dropped calls and streams alone are logged, once each, perhaps that a loop is stuck."""
    for record in records:
        message = record.getMessage()
        exception = record.exc_info[1] if record.exc_info else None
        if (
            "never retrieved" in message
            and exception is not None
            and exception.args[:1]
            and (unreported.pop(exception.args[0], None))
        ):
            continue
        if "has not turned" in message and this.blocked_after < 1:
            continue
        if this.in_child and FOREIGN_TASK.search(message):
            continue
        this.problems.append(f"{record.name} {record.levelname}: {logging.Formatter().format(record)}")
    records.clear()
    this.problems += [f"never reported: {call}" for call in unreported.values()]
