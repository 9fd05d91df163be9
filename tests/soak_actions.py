"""For the soak: what threads and asyncio tasks do at random."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import io
import os
import random
import signal
import threading
import time
import traceback

from eager_async import EagerTask, LoopClosedError, ResultTimeoutError, set_shared_loop, shared_loop
from soak_calls import (
    EXITING,
    FAILING,
    FRAGILE,
    HANG_SECONDS,
    LOOP_FACTORIES,
    QUIET,
    Call,
    Round,
    check_log,
    records,
    seen_by_awaiting,
    seen_by_blocking,
    start_threads,
)
from soak_streams import read_stream, read_stream_awaiting

counting = threading.Lock()  # never taken in a child


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
    task = this.start(call)
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
    if FRAGILE or not hasattr(os, "fork"):
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
        this.inside.clear()  # all places are free
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
ASYNC_ACTIONS += [read_stream_awaiting]
MANY = 8  # other actions for one of these
ACTIONS = [wait, time_out, cancel, drop, wait_for_many, play, play, read_stream] * MANY + [
    run_shortly,
    shut_down,
] * 2
ACTIONS += [replace_shared_loop, fork]
