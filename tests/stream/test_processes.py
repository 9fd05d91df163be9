"""What the end of the process, forks and Ctrl-C do to streams.

Each test is a program in a process of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from programs import FORK, FORK_WITH_THREADS, SAY, both_loops, check, has_fork, posix_signals, with_set_up

if TYPE_CHECKING:
    from conftest import RunPython

STAGING = (
    '''
"""What the programs of these tests have in common."""

import asyncio
import contextlib
import os
import signal
import sys
import threading

from eager_async import BackgroundLoop, LoopClosedError, eager, eager_stream, set_shared_loop, shared_loop

'''
    + SAY
    + """

@eager
async def turn():
    for _ in range(10):
        await asyncio.sleep(0)

"""
    + FORK
    + '''

async def count(last=10**9, *, pause=0):
    """Count, and say on which thread the cleanup runs."""
    try:
        for number in range(1, last + 1):
            await asyncio.sleep(pause)
            yield number
        say("counted")
    finally:
        await asyncio.sleep(0.01)
        say("finally in", os.getpid() == parent and threading.current_thread().name)


parent = os.getpid()
'''
)


FINALLY = "finally in eager-async"


@both_loops
@pytest.mark.parametrize("daemon", [None, True])
def test_a_stream_at_rest_does_not_hold_the_process(
    run: RunPython, set_up: str, *, daemon: bool | None
) -> None:
    """A process ends though a buffer is full; the generator's `finally` runs on the loop."""
    source = f"""
        stream = eager_stream(daemon={daemon})(count)()
        say(next(stream))
        turn().result()
        turn().result()
    """
    check(run(with_set_up(set_up, source)), "1", FINALLY)


@both_loops
def test_a_stream_that_works_holds_the_process(run: RunPython, set_up: str) -> None:
    """A generator with room in its buffer goes on to its end after the main thread's."""
    source = """
        stream = eager_stream(count)(5, pause=0.05)
        say(next(stream))
    """
    check(run(with_set_up(set_up, source)), "1", "counted", FINALLY)


@both_loops
def test_a_stream_holds_the_process_until_it_rests(run: RunPython, set_up: str) -> None:
    """A generator that works when the main thread ends is ended when its buffer is full, and not before."""
    source = """
        async def noisy():
            async with contextlib.aclosing(count(pause=0.02)) as numbers:
                async for number in numbers:
                    say("made", number)
                    yield number

        stream = eager_stream(buffer=3)(noisy)()
    """
    check(run(with_set_up(set_up, source)), "made 1", "made 2", "made 3", FINALLY)


@both_loops
def test_a_daemon_stream_does_not_hold_the_process(run: RunPython, set_up: str) -> None:
    """With `daemon=True` a generator that works is cancelled at the exit, and cleans up."""
    source = """
        stream = eager_stream(daemon=True)(count)(pause=0.05)
        say(next(stream))
    """
    check(run(with_set_up(set_up, source)), "1", FINALLY)


@both_loops
def test_a_stream_that_was_dropped_cleans_up_before_the_exit(run: RunPython, set_up: str) -> None:
    """The cleanup of a stream that was left holds the process."""
    source = """
        for number in eager_stream(count)():
            say(number)
            break
    """
    check(run(with_set_up(set_up, source)), "1", FINALLY)


@both_loops
def test_a_stream_that_swallows_the_cancellation_does_not_hold_the_process(
    run: RunPython, set_up: str
) -> None:
    """One that goes on yielding in spite of the exit's cancellation ends when its buffer is full."""
    source = """
        async def stubborn():
            while True:
                try:
                    yield 1
                    await asyncio.sleep(0 if swallowed else 30)
                except asyncio.CancelledError:
                    swallowed.append(1)
                    say("swallowed")

        swallowed = []
        stream = eager_stream(daemon=True)(stubborn)()
        say(next(stream))
        turn().result()
    """
    check(run(with_set_up(set_up, source)), "1", "swallowed")


@both_loops
def test_an_eager_consumer_is_waited_for(run: RunPython, set_up: str) -> None:
    """An eager task that iterates over a stream holds the process, and gets all items."""
    source = """
        @eager
        async def consume():
            say(sum([number async for number in eager_stream(buffer=1)(count)(100)]))

        consume()
    """
    check(run(with_set_up(set_up, source)), "counted", FINALLY, "5050")


@both_loops
@has_fork
def test_a_child_gets_what_is_in_the_buffer_and_then_an_error(run: RunPython, set_up: str) -> None:
    """In a forked child a stream ends in LoopClosedError; the parent's goes on, `finally` included."""
    source = """
        def child():
            seen = []
            try:
                for number in stream:
                    seen.append(number)
            except LoopClosedError as exc:
                say(seen, "count()" in str(exc))
            say(list(stream))
            stream.close()
            with stream:
                pass
            say(next(eager_stream(count)(pause=0.001)) and "another")

        stream = eager_stream(buffer=3)(count)(10)
        turn().result()
        fork(child)
        say(list(stream))
    """
    check(
        run(with_set_up(set_up, source), options=FORK_WITH_THREADS),
        "[1, 2, 3] True",
        "[]",
        "another",
        "finally in False",  # that of the child's own
        "child ended 0",
        "counted",
        FINALLY,
        "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]",
    )


@both_loops
@has_fork
@pytest.mark.parametrize("way", ["del stream", "stream.close()", "asyncio.run(stream.aclose())"])
def test_leaving_in_a_child_leaves_the_parents_generator_alone(run: RunPython, set_up: str, way: str) -> None:
    """Whatever a child does with an inherited stream, the parent's goes on, and cleans up alone."""
    source = f"""
        def child():
            import gc
            global stream
            {way}
            gc.collect()

        stream = eager_stream(buffer=3)(count)(5)
        turn().result()
        fork(child)
        say(list(stream))
    """
    check(
        run(with_set_up(set_up, source), options=FORK_WITH_THREADS),
        "child ended 0",
        "counted",
        FINALLY,
        "[1, 2, 3, 4, 5]",
    )


@both_loops
@has_fork
def test_a_child_takes_from_a_stream_at_which_a_thread_of_the_parent_waits(
    run: RunPython, set_up: str
) -> None:
    """A consumer that waits in the parent isn't there in the child, which gets LoopClosedError."""
    source = """
        from eager_async._channel import Channel

        call_at_next, waits = Channel.call_at_next, threading.Event()

        def call_and_tell(*arguments):
            enlisted = call_at_next(*arguments)
            waits.set()
            return enlisted

        Channel.call_at_next = call_and_tell

        async def nothing():
            await asyncio.to_thread(gate.wait)
            yield 1

        def child():
            try:
                next(stream)
            except LoopClosedError:
                say("closed")
            gate.set()

        gate = threading.Event()
        stream = eager_stream(nothing)()
        taking = threading.Thread(target=lambda: say(list(stream)))
        taking.start()
        waits.wait()
        fork(child)
        gate.set()
        taking.join()
    """
    check(run(with_set_up(set_up, source), options=FORK_WITH_THREADS), "closed", "child ended 0", "[1]")


@both_loops
@posix_signals
@pytest.mark.parametrize("wait", ["next(stream)", "list(stream)", "for _ in stream: pass"])
def test_ctrl_c_interrupts_a_for_that_waits(run: RunPython, set_up: str, wait: str) -> None:
    """KeyboardInterrupt comes out of the wait at once, alone; the stream goes on, and loses nothing."""
    source = f"""
        import traceback

        async def held_up():
            await asyncio.to_thread(main_waits.wait)
            await asyncio.sleep(0.1)  # the main thread said so just before it began to wait
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            while not go_on.is_set():
                await asyncio.sleep(0.005)
            yield 1
            yield 2

        main_waits, go_on = threading.Event(), threading.Event()
        stream = eager_stream(held_up)()
        try:
            main_waits.set()
            {wait}
        except KeyboardInterrupt:
            say("interrupted", "IndexError" in traceback.format_exc())
        go_on.set()
        say(list(stream))
    """
    check(run(with_set_up(set_up, source)), "interrupted False", "[1, 2]")


@both_loops
@posix_signals
def test_ctrl_c_under_asyncio_run_leaves_by_the_async_for(run: RunPython, set_up: str) -> None:
    """Ctrl-C cancels the main task, which leaves its `async for`: the generator ends, and cleans up."""
    source = """
        async def main():
            async for number in eager_stream(buffer=1)(count)(pause=0.01):
                if number == 3:
                    signal.raise_signal(signal.SIGINT)

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            say("interrupted")
    """
    process = run(with_set_up(set_up, source))
    assert sorted(process.stdout.splitlines()) == [FINALLY, "interrupted"]
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.untraced("a signal handler that raises would leave its lock held")
@both_loops
@posix_signals
def test_ctrl_c_at_any_moment_leaves_a_stream_that_can_be_used(run: RunPython, set_up: str) -> None:
    """Interrupted again and again, wherever it is, a stream goes on, and its items are in order."""
    source = """
        def interrupt(*_):
            raise KeyboardInterrupt

        async def endless():
            number = 0
            while True:
                yield (number := number + 1)

        signal.signal(signal.SIGALRM, interrupt)
        stream = eager_stream(endless)()
        last = 0
        for _ in range(500):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002)
                while True:
                    number = next(stream)
                    assert number > last
                    last = number
            except KeyboardInterrupt:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert next(stream) > last
        stream.close()
        say("fine")
    """
    check(run(with_set_up(set_up, source)), "fine")
