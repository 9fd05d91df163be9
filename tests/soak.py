"""Random use of the library for a while: is anything lost, untrue, left alive or logged?

    python tests/soak.py --seconds 300 [--seed 7]

Threads and asyncio loops call, wait, time out, cancel, drop, await, gather, drive, shut down and fork at
random, in rounds of a second or two. After each round every body that began must have ended, what each waiter
saw must be what the body did and what was asked, and nothing may be left. A hang ends the process with all
stacks. The seed repeats the actions, though not their timing. pytest doesn't collect this file; exit code 1
says that something was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import faulthandler
import gc
import io
import logging
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from typing import TYPE_CHECKING

from eager_async import (
    BackgroundLoop,
    EagerTask,
    LoopClosedError,
    ResultTimeoutError,
    eager,
    set_shared_loop,
    shared_loop,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOP_FACTORIES: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
with contextlib.suppress(ImportError):
    import uvloop

    LOOP_FACTORIES.append(uvloop.new_event_loop)

# 3.13 without the GIL crashes by itself where two threads raise one exception object, or one reads the
# frames of a coroutine that runs in another (python/cpython#142599).
FRAGILE = sys.version_info < (3, 14) and not getattr(sys, "_is_gil_enabled", lambda: True)()

# In a child Python collects what the parent's other threads had, asyncio tasks of their own loops included.
FOREIGN_TASK = re.compile(r"Task was destroyed but it is pending!\ntask: <Task pending name='Task-\d+'")

ROUND_SECONDS = 1.5
HANG_SECONDS = 120  # for a round, and for a child

QUIET = ["value", "value", "value", "stubborn", "to_thread", "nested"]  # they return, or are cancelled
FAILING = ["error", "error", "timeout"]
EXITING = ["exit"]  # asyncio lets these out of a loop whose own tasks raise them: not for those who drive


counting = threading.Lock()  # never taken in a child


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
        return f"<{self.kind} {self.number}, {asked}: {did}, {self.task}>"


class Round:
    """What happens in one round, and what is wrong with it."""

    def __init__(self, rng: random.Random) -> None:
        self.calls: list[Call] = []
        self.pool: list[Call] = []  # those that any thread may play with
        self.loops: list[BackgroundLoop] = []  # shared ones that were replaced
        self.children: list[int] = []
        self.problems: list[str] = []
        self.in_child = False
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
            call.task = body(self, call) if loop is None else loop.create_task(body.__wrapped__(self, call))
        except LoopClosedError:
            call.outcome = "refused"
            if loop is None:
                self.problems.append(f"{call} was refused by the shared loop")
        if call.kind in QUIET or not FRAGILE:
            self.pool.append(call)
        return call

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
        call.ended += 1


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
        if rng.random() < 0.7:
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


# What threads do


def wait(this: Round, rng: random.Random) -> None:
    """Call, and block until the end."""
    call = this.call(rng, QUIET + FAILING + EXITING)
    this.check(call, seen_by_blocking(call.task))


def time_out(this: Round, rng: random.Random) -> None:
    """Block for a moment, perhaps ask for the end, and block again."""
    call = this.call(rng, QUIET + FAILING + EXITING)
    seen = seen_by_blocking(call.task, rng.choice([0, 0.0001, 0.005]))
    if not isinstance(seen, ResultTimeoutError):
        this.check(call, seen)
    elif rng.random() < 0.5:
        call.own_asked = True
        call.task.cancel()
    this.check(call, seen_by_blocking(call.task))


def cancel(this: Round, rng: random.Random) -> None:
    """Cancel at some point, and block until the end."""
    call = this.call(rng, QUIET + FAILING, asked=True)
    time.sleep(rng.choice([0, 0, 0.0001, 0.005]))
    for _ in range(rng.randrange(1, 3)):
        call.task.cancel("please")
    seen = seen_by_blocking(call.task)
    this.check(call, seen)
    if isinstance(seen, asyncio.CancelledError) != isinstance(seen, concurrent.futures.CancelledError):
        this.problems.append(f"{seen!r} is not both kinds of CancelledError")


def drop(this: Round, rng: random.Random) -> None:
    """Call, and keep no task; perhaps cancel first. An exception is to be reported."""
    call = Call(rng.choice(QUIET + FAILING + EXITING), rng, None, None)
    call.own_asked = rng.random() < 0.3
    this.calls.append(call)
    task = body(this, call)
    if call.own_asked:
        task.cancel()


def wait_for_many(this: Round, rng: random.Random) -> None:
    """Wait for several calls as `concurrent.futures` does, then look at each."""
    calls = {
        call.task: call for call in (this.call(rng, QUIET + FAILING) for _ in range(rng.randrange(1, 20)))
    }
    when = rng.choice([concurrent.futures.FIRST_COMPLETED, concurrent.futures.ALL_COMPLETED])
    concurrent.futures.wait(calls, timeout=rng.choice([None, 0.001]), return_when=when)
    for task in concurrent.futures.as_completed(calls):
        this.check(calls[task], seen_by_blocking(task))


def play(this: Round, rng: random.Random) -> None:
    """Do something with a call that others have made and use."""
    call = rng.choice(this.pool[-50:] or [None])
    if call is None or (task := call.task) is None:
        return
    action = rng.randrange(6)
    if action == 0:
        call.own_asked = True
        task.cancel()
    elif action == 1:
        seen = seen_by_blocking(task, 0.01)
        if not isinstance(seen, ResultTimeoutError):
            this.check(call, seen)
    elif action == 2:
        with counting:
            call.callbacks_added += 1
        task.add_done_callback(call.callbacks_made.append)
    elif action == 3:
        repr(task), task.done(), task.running(), task.cancelled(), task.get_coro()
    elif action == 4 and not FRAGILE:
        task.print_stack(file=io.StringIO())
    else:
        asyncio.run(wrap(this, call, task))


async def wrap(this: Round, call: Call, task: EagerTask[int]) -> None:
    """Await a task of somebody else's by `asyncio.wrap_future`, in a loop of this thread's."""
    this.check(call, await seen_by_awaiting(asyncio.shield(asyncio.wrap_future(task))))


def run_shortly(this: Round, rng: random.Random) -> None:
    """Run an asyncio loop that ends while a task of it drives a call."""

    async def main() -> None:
        call = this.call(rng, QUIET, asked=True)
        call.drivers.append(asyncio.create_task(call.task))
        await rng.choice(ASYNC_ACTIONS)(this, rng)

    with asyncio.Runner(loop_factory=rng.choice(LOOP_FACTORIES)) as runner:
        runner.run(main())


def shut_down(this: Round, rng: random.Random) -> None:
    """Shut a loop down while other threads submit to it."""
    loop, cancel_futures = this.new_loop(rng), rng.random() < 0.5

    def submit(this: Round, rng: random.Random) -> None:
        while this.call(rng, QUIET + FAILING + EXITING, asked=cancel_futures, loop=loop).task is not None:
            time.sleep(rng.choice([0, 0.0005]))

    threads = start_threads(this, rng, [submit] * 2)
    time.sleep(rng.choice([0, 0.002, 0.02]))
    loop.shutdown(wait=rng.random() < 0.5, cancel_futures=cancel_futures)
    for thread in threads:
        thread.join()
    loop.shutdown()
    if loop.tasks():
        this.problems.append(f"left on a loop that was shut down: {loop.tasks()}")


def replace_shared_loop(this: Round, rng: random.Random) -> None:
    """Give eager functions another shared loop."""
    this.loops.append(set_shared_loop(this.new_loop(rng)))


def fork(this: Round, rng: random.Random) -> None:
    """Fork; the child's exit status must be 0."""
    if not hasattr(os, "fork"):
        return
    known = [(call, call.task, call.task.done()) for call in this.pool[-30:] if call.task is not None]
    pid = os.fork()
    if pid == 0:
        in_child(this, rng, known)
    this.children.append(pid)
    deadline = time.monotonic() + HANG_SECONDS / 2
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)  # it writes its stacks
            ended = os.waitpid(pid, 0)
            break
        time.sleep(0.005)
    if status := os.waitstatus_to_exitcode(ended[1]):
        this.problems.append(f"a child ended with {status}")


def in_child(this: Round, rng: random.Random, known: list[tuple[Call, EagerTask[int], bool]]) -> None:
    """Look at inherited tasks, make calls, and exit."""
    status = 1
    try:
        signal.alarm(HANG_SECONDS)  # should the parent be gone
        this.in_child = True
        this.problems.clear()
        records.clear()
        for call, task, was_done in known:
            seen = seen_by_blocking(task, 0)
            if was_done or not isinstance(seen, LoopClosedError):
                this.check(call, seen)
        for _ in range(3):
            call = this.call(rng, QUIET + FAILING + EXITING)
            this.check(call, seen_by_blocking(call.task))
        if rng.random() < 0.5:
            shared_loop().shutdown()
        gc.collect()
        check_log(this, {})
        if this.problems:
            os.write(2, "\n".join(["in a child:", *this.problems, ""]).encode())
        else:
            status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


# What asyncio tasks do, several in a loop


async def await_one(this: Round, rng: random.Random) -> None:
    """Call and await, perhaps after something else."""
    call = this.call(rng, QUIET + FAILING + EXITING)
    await asyncio.sleep(rng.choice([0, 0, 0.005]))
    this.check(call, await seen_by_awaiting(call.task))


async def await_others(this: Round, rng: random.Random) -> None:
    """Await a call that others have made and use."""
    call = rng.choice(this.pool[-50:] or [None])
    if call is not None and call.task is not None:
        this.check(call, await seen_by_awaiting(call.task))


async def gather(this: Round, rng: random.Random) -> None:
    """Await several calls at a time."""
    calls = [this.call(rng, QUIET + FAILING) for _ in range(rng.randrange(1, 10))]
    outcomes = await asyncio.gather(*(call.task for call in calls), return_exceptions=True)
    for call, seen in zip(calls, outcomes, strict=True):
        this.check(call, seen)


async def time_out_awaiting(this: Round, rng: random.Random) -> None:
    """Await for a moment: whatever comes of that, the body has ended then."""
    call = this.call(rng, QUIET + FAILING, asked=True)
    timeout = rng.choice([0.0001, 0.002, 0.01])
    if rng.random() < 0.5:
        seen = await seen_by_awaiting(asyncio.wait_for(call.task, timeout))
    else:
        try:
            async with asyncio.timeout(timeout):
                seen = await seen_by_awaiting(call.task)
                if isinstance(seen, asyncio.CancelledError):
                    raise seen
        except (TimeoutError, asyncio.CancelledError) as exc:
            seen = exc
    if not call.task.done():
        this.problems.append(f"a cancelled awaiter went on before the end of {call}")
    if not isinstance(seen, TimeoutError) or seen.args:
        this.check(call, seen)


async def group(this: Round, rng: random.Random) -> None:
    """Drive calls in a task group, which cancels them all if one fails."""
    calls = []
    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(rng.randrange(1, 6)):
                call = this.call(rng, QUIET + QUIET + FAILING, asked=True)
                calls.append(call)
                call.drivers.append(tasks.create_task(call.task))
    for call in calls:
        this.check(call, await seen_by_awaiting(call.drivers[0]), interrupted=True)
        if not call.task.done():
            this.problems.append(f"a task group ended before {call}")


async def drive(this: Round, rng: random.Random) -> None:
    """Have two asyncio tasks drive one call as a coroutine, and perhaps cancel one of them."""
    call = this.call(rng, QUIET + FAILING, asked=rng.random() < 0.5)
    call.drivers += [asyncio.create_task(call.task) for _ in range(2)]
    if call.own_asked:
        await asyncio.sleep(rng.choice([0, 0, 0.002]))
        call.drivers[0].cancel()
    for driver in call.drivers:
        this.check(
            call, await seen_by_awaiting(driver), interrupted=call.own_asked and driver is call.drivers[0]
        )


async def shield(this: Round, rng: random.Random) -> None:
    """Time out on a shielded call, and await it then."""
    call = this.call(rng, QUIET)
    seen = await seen_by_awaiting(asyncio.wait_for(asyncio.shield(call.task), 0.002))
    if not isinstance(seen, TimeoutError):
        this.check(call, seen)
    this.check(call, await seen_by_awaiting(call.task))


async def block(this: Round, rng: random.Random) -> None:
    """Do in a loop's thread what plain threads do; that blocks the loop for a moment."""
    rng.choice([wait, time_out, drop, fork])(this, rng)


ASYNC_ACTIONS = [await_one, await_others, gather, time_out_awaiting, group, drive, shield, block]
MANY = 8  # other actions for one of these
ACTIONS = [wait, time_out, cancel, drop, wait_for_many, play, play] * MANY + [run_shortly, shut_down] * 2
ACTIONS += [replace_shared_loop, fork]


def act(this: Round, rng: random.Random) -> None:
    """One thread of a round."""
    until = time.monotonic() + ROUND_SECONDS
    while time.monotonic() < until:
        rng.choice(ACTIONS)(this, rng)


def act_in_loop(this: Round, rng: random.Random) -> None:
    """One thread of a round with an asyncio loop of its own."""
    until = time.monotonic() + ROUND_SECONDS

    async def act_in_task(rng: random.Random) -> None:
        while time.monotonic() < until:
            await rng.choice(ASYNC_ACTIONS)(this, rng)

    async def main() -> None:
        await asyncio.gather(*(act_in_task(random.Random(rng.random())) for _ in range(3)))

    with asyncio.Runner(loop_factory=rng.choice(LOOP_FACTORIES)) as runner:
        runner.run(main())


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


# A round, and what is left of it

records: list[logging.LogRecord] = []


class Keeper(logging.Handler):
    """Keeps what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        records.append(record)


def play_round(rng: random.Random) -> Round:
    """Let threads act for a while, end all loops, and look at what is left."""
    this = Round(rng)
    threads_before = set(threading.enumerate())
    sys.setswitchinterval(rng.choice([1e-6, 1e-4, 0.005]))
    loop_before = set_shared_loop(this.new_loop(rng))
    for thread in start_threads(this, rng, [act] * 4 + [act_in_loop] * 2):
        thread.join()
    this.loops.append(shared_loop())
    for loop in this.loops:
        loop.shutdown()
    set_shared_loop(loop_before)
    this.problems += [f"left unfinished: {task}" for loop in this.loops for task in loop.tasks()]
    for thread in set(threading.enumerate()) - threads_before:
        thread.join(10)
        if thread.is_alive():
            this.problems.append(f"left running: {thread}")
    for call in this.calls:
        check_end(this, call)
    gc.collect()
    check_log(
        this, {call.number: call for call in this.calls if call.task is None and call.outcome == "raised"}
    )
    return this


def check_end(this: Round, call: Call) -> None:
    """What must be true of each call when all loops have ended."""
    if call.begun != call.ended or call.begun > 1 or (call.outcome == "never begun" and not call.asked):
        this.problems.append(f"{call} did not end well")
    if call.task is not None:
        this.check(call, seen_by_blocking(call.task, 0))
    if len(call.callbacks_made) != call.callbacks_added:
        this.problems.append(f"{call} made {len(call.callbacks_made)} of {call.callbacks_added} callbacks")


def check_log(this: Round, unreported: dict[object, Call]) -> None:
    """Only exceptions of dropped calls are logged, each once, and perhaps that a loop is held up."""
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


def prepare() -> None:
    """Have whatever goes wrong seen: warnings, log records, exceptions in finalizers, hangs."""
    warnings.simplefilter("error")
    # From 3.12 on Python warns of any fork while threads run. That it works all the same is promised.
    warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)
    for name in ("eager_async", "asyncio"):
        logging.getLogger(name).addHandler(Keeper(logging.WARNING))
        logging.getLogger(name).propagate = False
    faulthandler.enable()
    sys.unraisablehook = lambda raised: logging.getLogger("asyncio").error(
        "unraisable in %r", raised.object, exc_info=raised.exc_value
    )


def main() -> int:
    """Play rounds until the time is over, or something is wrong."""
    parser = argparse.ArgumentParser(description="Use the library at random, and check that nothing is lost.")
    parser.add_argument("--seconds", type=float, required=True, help="how long")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    arguments = parser.parse_args()
    prepare()
    started = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    while not problems and time.monotonic() - started < arguments.seconds:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        counts["rounds"] += 1
        this = play_round(random.Random(f"{arguments.seed} {counts['rounds']}"))
        counts.update(call.outcome for call in this.calls)
        counts["calls"] += len(this.calls)
        counts["forks"] += len(this.children)
        problems = this.problems
    faulthandler.cancel_dump_traceback_later()
    for problem in problems[:20]:
        sys.stderr.write(f"seed {arguments.seed}, round {counts['rounds']}: {problem}\n")
    sys.stdout.write(
        f"soak: seed {arguments.seed}, {time.monotonic() - started:.0f} s, {len(problems)} problems, "
        f"{', '.join(f'{count} {what}' for what, count in counts.items())}\n"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
