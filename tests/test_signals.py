"""Ctrl-C while the main thread waits for a task, in plain code and under asyncio, and signal handlers.

Each test is a program in a process of its own. What Ctrl-C does at the exit is in `test_exit.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from programs import SAY, both_loops, check, posix_signals, threads_at_exit

if TYPE_CHECKING:
    from conftest import RunPython

pytestmark = posix_signals

STAGING = (
    '''
"""What the programs of these tests have in common."""

import asyncio
import concurrent.futures
import signal
import sys
import threading
import time

from eager_async import BackgroundLoop, EagerTask, eager, set_shared_loop, shared_loop

'''
    + SAY
    + '''

class Work:
    """A body that interrupts the main thread when that waits, and then waits to be let go."""

    def __init__(self, signal_number=signal.SIGINT):
        self.go_on = threading.Event()
        self.main_waits = threading.Event()
        self.signal_number = signal_number

    async def __call__(self):
        try:
            await asyncio.to_thread(self.main_waits.wait)
            await asyncio.sleep(0.1)  # the main thread said so just before it began to wait
            signal.pthread_kill(threading.main_thread().ident, self.signal_number)
            while not self.go_on.is_set():
                await asyncio.sleep(0.005)
            return "worked"
        finally:
            say("finally")
'''
)


@pytest.mark.parametrize(
    "wait",
    [
        "task.result()",
        "task.result(60)",
        "task.exception()",
        "concurrent.futures.wait([task])",
        "list(concurrent.futures.as_completed([task]))",
        "shared_loop().shutdown()",
    ],
)
@both_loops
def test_ctrl_c_interrupts_a_thread_that_blocks(run: RunPython, set_up: str, wait: str) -> None:
    """KeyboardInterrupt comes out of the wait at once; the task runs on, and can be waited for again."""
    source = f"""
        from staging import *
        {set_up}

        work = Work()
        task = eager(work)()
        try:
            work.main_waits.set()
            {wait}
        except KeyboardInterrupt:
            say("interrupted")
        say(task.done())
        work.go_on.set()
        say(task.result())
    """
    check(run(source), "interrupted", "False", "finally", "worked")


def test_a_shutdown_after_one_that_ctrl_c_interrupted_waits_too(run: RunPython) -> None:
    """Until the cleanup has ended; up to 3.12, Python takes the thread for ended then."""
    source = """
        from staging import *

        loop = BackgroundLoop()
        work = Work()

        async def clean_up_slowly():
            try:
                await work()
            finally:
                await asyncio.sleep(0.2)
                say("cleaned up")

        loop.create_task(clean_up_slowly())
        try:
            work.main_waits.set()
            loop.shutdown()
        except KeyboardInterrupt:
            say("interrupted")
        loop.shutdown(cancel_futures=True)
        say("shut down")
    """
    check(run(source), "interrupted", "finally", "cleaned up", "shut down")


def test_ctrl_c_in_an_await_cancels_the_task(run: RunPython) -> None:
    """Under `asyncio.run` Ctrl-C cancels the main task, and so what it awaits: as with a plain coroutine."""
    source = """
        from staging import *

        async def main():
            global task
            task = eager(work)()
            asyncio.get_running_loop().call_soon(work.main_waits.set)
            await task

        work = Work()
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            say("interrupted", task.cancelled())
    """
    check(run(source), "finally", "interrupted True")


def test_ctrl_c_leaves_a_shielded_task_alone(run: RunPython) -> None:
    """`asyncio.shield` keeps the cancellation of Ctrl-C from the task."""
    source = """
        from staging import *

        async def main():
            global task
            task = eager(work)()
            asyncio.get_running_loop().call_soon(work.main_waits.set)
            await asyncio.shield(asyncio.wrap_future(task))

        work = Work()
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            say("interrupted", task.done())
        work.go_on.set()
    """
    check(run(source), "interrupted False", "finally")


def test_ctrl_c_that_nobody_catches_ends_the_program(run: RunPython) -> None:
    """The traceback is the program's own; its tasks are waited for, as at any end."""
    source = """
        from staging import *

        async def let_go():
            while not threading._SHUTTING_DOWN:
                await asyncio.sleep(0.005)
            work.go_on.set()

        work = Work()
        task = eager(work)()
        eager(let_go)()
        work.main_waits.set()
        task.result()
    """
    process = run(source)
    assert process.stdout.splitlines() == ["finally"]
    assert process.returncode in {-2, 130}  # killed by SIGINT, or as shells say it
    assert process.stderr.count("Traceback") == 1
    assert process.stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_signal_handler_may_call_and_wait_while_its_thread_waits(run: RunPython) -> None:
    """A handler that runs inside `result()` can call eager functions and block on them; the wait goes on."""
    source = """
        from staging import *

        @eager
        async def double(number):
            await asyncio.sleep(0)
            return 2 * number

        def handle(signal_number, frame):
            say("handler", double(21).result())
            work.go_on.set()

        signal.signal(signal.SIGUSR1, handle)
        work = Work(signal.SIGUSR1)
        task = eager(work)()
        work.main_waits.set()
        say(task.result())
    """
    check(run(source), "handler 42", "finally", "worked")


def test_signals_that_come_in_anywhere_disturb_nothing(run: RunPython) -> None:
    """A handler that calls eager functions while the main thread does, at any point: all calls end true."""
    source = """
        from staging import *

        @eager
        async def double(number):
            await asyncio.sleep(0)
            return 2 * number

        handled = []

        def handle(signal_number, frame):
            number = len(handled)  # the handler may itself be interrupted by the next signal
            handled.append((number, double(number)))

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        number = 0
        while len(handled) < 200:
            number += 1
            assert double(number).result() == 2 * number
            tasks = [double(number) for _ in range(5)]
            assert len(concurrent.futures.wait(tasks).done) == 5
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(all(task.result() == 2 * number for number, task in handled))
    """
    check(run(source), "True")


@pytest.mark.untraced("signals would come in faster than its tracer lets a call end")
def test_interrupts_that_come_in_anywhere_lose_no_task(run: RunPython) -> None:
    """KeyboardInterrupt at any point of a call or a wait: the call had no effect or runs to its end."""
    source = """
        from staging import *

        begun, ended = [], []

        @eager
        async def body():
            begun.append(1)
            try:
                await asyncio.sleep(0)
            finally:
                ended.append(1)

        def handle(signal_number, frame):
            if armed:
                raise KeyboardInterrupt

        armed = False
        signal.signal(signal.SIGALRM, handle)
        body().result()
        signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
        interrupted = 0
        while interrupted < 200:
            try:
                armed = True
                for _ in range(50):
                    body().result()
                armed = False
            except KeyboardInterrupt:
                armed = False
                interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(body().result(10))
        shared_loop().shutdown()
        say(len(begun) == len(ended), len(shared_loop().tasks()))
    """
    # Between the function's call and the library's first look Python itself has the coroutine.
    never_awaited = ["-W", "ignore:coroutine 'body' was never awaited"]
    check(run(source, options=never_awaited), "None", "True 0")


@threads_at_exit
def test_calls_leave_signal_handlers_alone(run: RunPython) -> None:
    """No call, start, shutdown or exit touches the program's signal handlers."""
    source = """
        from staging import *
        import atexit

        def handlers():
            return [signal.getsignal(number) for number in signal.valid_signals()], signal.set_wakeup_fd(-1)

        async def body():
            await asyncio.to_thread(int)

        before = handlers()
        eager(body)().result()
        say(handlers() == before)
        shared_loop().shutdown()
        eager(body)()
        atexit.register(lambda: say(handlers() == before))
    """
    check(run(source), "True", "True")


def test_ctrl_c_gets_through_where_a_wait_for_a_lock_cannot_be_interrupted(run: RunPython) -> None:
    """As on Windows before 3.14: a blocked `result()` waits in short pieces, and looks in between."""
    source = """
        from staging import *
        from eager_async import _loop_thread

        _loop_thread.UNINTERRUPTIBLE_WAIT = 0.05
        set_shared_loop(BackgroundLoop(blocked_after=3600))

        class Unfelt(Work):
            '''Interrupts by a signal that another thread gets: it doesn't wake up the main thread.'''

            async def __call__(self):
                await asyncio.to_thread(self.main_waits.wait)
                await asyncio.sleep(0.1)
                signal.raise_signal(signal.SIGINT)
                await asyncio.to_thread(self.go_on.wait)
                return "worked"

        work = Unfelt()
        task = eager(work)()
        for wait in (task.result, lambda: task.result(60)):
            try:
                work.main_waits.set()
                wait()
            except KeyboardInterrupt:
                say("interrupted")
                break
        work.go_on.set()
        say(task.result())
    """
    check(run(source), "interrupted", "worked")
