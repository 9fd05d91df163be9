"""The end of the process: who is waited for, who is cancelled, what still works, and what is said.

Each test is a program in a process of its own.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from programs import SAY, both_loops, check, posix_signals, threads_at_exit, with_set_up

if TYPE_CHECKING:
    from conftest import RunPython

STAGING = (
    '''
"""What the programs of these tests have in common."""

import asyncio
import signal
import threading

from eager_async import BackgroundLoop, LoopClosedError, eager, set_shared_loop, shared_loop


def main_has_ended():
    return threading._SHUTTING_DOWN


async def main_end():
    while not main_has_ended():
        await asyncio.sleep(0.005)

'''
    + SAY
    + """

async def interrupt_main(*numbers):
    await main_end()
    await asyncio.sleep(0.05)  # the main thread waits by then
    for number in numbers or [signal.SIGINT]:
        signal.pthread_kill(threading.main_thread().ident, number)
"""
)

# What is waited for


@both_loops
def test_a_process_waits_for_its_tasks(run: RunPython, set_up: str) -> None:
    """A program whose main thread ends runs on until its tasks have ended, their `finally` included."""
    source = """
        @eager
        async def work():
            try:
                await main_end()
                await asyncio.sleep(0.02)
                say("worked")
            finally:
                await asyncio.sleep(0.02)
                say("cleaned up")

        work()
        say("main ends")
    """
    check(run(with_set_up(set_up, source)), "main ends", "worked", "cleaned up")


@threads_at_exit
@both_loops
def test_everything_works_while_the_process_waits(run: RunPython, set_up: str) -> None:
    """DNS look-ups, `to_thread`, eager calls, also from new threads and on new loops, work at the exit."""
    source = """
        import socket

        @eager
        async def double(number):
            await asyncio.sleep(0)
            return 2 * number

        @eager
        async def chain(depth):
            return await chain(depth - 1) if depth else "chained"

        @eager
        async def work():
            await main_end()
            loop = asyncio.get_running_loop()
            addresses = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
            say("DNS", any("127.0.0.1" in address[-1] or "::1" in address[-1] for address in addresses))
            say("to_thread", await asyncio.to_thread(lambda: "ran"))
            say("blocking", await asyncio.to_thread(lambda: double(1).result()))
            say("eager", await chain(3))
            for name in ("first", "second"):
                other = BackgroundLoop(name=name)
                say(name, await eager(loop=other)(double.__wrapped__)(2))
            last()

        @eager
        async def last():
            await asyncio.sleep(0.02)
            say("a call that nobody waits for")

        work()
    """
    check(
        run(with_set_up(set_up, source)),
        "DNS True",
        "to_thread ran",
        "blocking 2",
        "eager chained",
        "first 4",
        "second 4",
        "a call that nobody waits for",
    )


def test_tasks_of_all_loops_are_waited_for(run: RunPython) -> None:
    """Loops that are shutting down, were dropped or never shut down: tasks of each run to their end."""
    source = """
        from staging import *

        async def work(name):
            await main_end()
            await asyncio.sleep(0.02)
            say(name)

        kept, closing = BackgroundLoop(), BackgroundLoop()
        kept.create_task(work("kept"))
        closing.create_task(work("closing"))
        closing.shutdown(wait=False)
        BackgroundLoop().create_task(work("dropped"))
        eager(work)("shared")
    """
    process = run(source)
    assert sorted(process.stdout.split()) == ["closing", "dropped", "kept", "shared"]
    assert (process.returncode, process.stderr) == (0, "")


@threads_at_exit
@both_loops
def test_nothing_is_said_in_development_mode(run: RunPython, set_up: str) -> None:
    """`python -X dev` finds no open loop, socket or coroutine at the end, busy or idle."""
    source = """
        @eager
        async def work():
            await main_end()
            await asyncio.to_thread(int)
            say("worked")

        @eager(daemon=True)
        async def idle():
            await asyncio.get_running_loop().create_future()

        idle()
        work()
    """
    check(run(with_set_up(set_up, source), options=["-X", "dev"]), "worked")


@threads_at_exit
def test_a_process_pool_works_while_the_process_waits(run: RunPython) -> None:
    """A body may use a process pool at the exit, imported before or after the package."""
    source = """
        from staging import *
        import concurrent.futures
        import multiprocessing

        @eager
        async def work(pool):
            await main_end()
            say(await asyncio.get_running_loop().run_in_executor(pool, int, "42"))

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            # Kept: its own exit hook may wake up one that is collected at that moment, and fail (3.11).
            pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
            work(pool)
    """
    check(run(source), "42")


# Exit codes and errors


@pytest.mark.parametrize(
    "last_line, code, stderr",
    [
        ("", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no way')", 1, "no way"),
        ("raise ValueError('the error of main')", 1, r"Traceback.*ValueError: the error of main"),
    ],
)
def test_the_exit_code_stays(run: RunPython, last_line: str, code: int, stderr: str) -> None:
    """`sys.exit` and uncaught errors of the main thread keep code and message, and tasks are waited for."""
    source = f"""
        from staging import *

        @eager
        async def work():
            await main_end()
            say("worked")

        work()
        {last_line}
    """
    process = run(source)
    check(process, "worked", code=code, stderr=stderr)
    assert process.stderr.count("Traceback") == ("ValueError" in last_line)


def test_errors_that_nobody_looked_at_are_reported_at_the_exit(run: RunPython) -> None:
    """A task that fails while the process waits is reported, once, with function and line."""
    source = """
        from staging import *

        @eager
        async def work():
            await main_end()
            raise ValueError("lost")

        task = work()
    """
    process = run(source)
    check(process, stderr=r".*work\(\) called at program\.py:9.*ValueError: lost")
    assert process.stderr.count("ValueError: lost") == 1


def test_an_exit_in_a_body_is_the_tasks_own(run: RunPython) -> None:
    """`sys.exit` in a body at the exit changes neither the exit code nor the others' fate."""
    source = """
        from staging import *
        import sys

        @eager
        async def leave():
            await main_end()
            sys.exit(7)

        @eager
        async def work():
            await main_end()
            await asyncio.sleep(0.05)
            say("worked")

        task = leave()
        task.add_done_callback(lambda task: say(repr(task.exception())))
        work()
    """
    check(run(source), "SystemExit(7)", "worked")


# Daemons


@threads_at_exit
@both_loops
def test_daemons_are_cancelled_and_clean_up(run: RunPython, set_up: str) -> None:
    """Daemon tasks don't hold the process: at its end they are cancelled, and may await in their cleanup."""
    source = """
        @eager
        async def save():
            await asyncio.sleep(0.02)
            await asyncio.to_thread(int)
            say("saved")

        @eager(daemon=True)
        async def watch(begun):
            try:
                begun.set()
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                say("cancelled")
                raise
            finally:
                await save()
                say("cleaned up")

        begun = threading.Event()
        watch(begun)
        begun.wait()
        say("main ends")
    """
    check(run(with_set_up(set_up, source)), "main ends", "cancelled", "saved", "cleaned up")


@pytest.mark.parametrize(
    "way", ["loop.call_soon_threadsafe(save)", "run_coroutine_threadsafe(call_save(), loop)"]
)
def test_calls_that_a_daemon_hands_to_another_loop_are_none(run: RunPython, way: str) -> None:
    """Its context comes along to the callback; but the call is made by the loop that was handed it."""
    source = f"""
        from staging import *
        from asyncio import run_coroutine_threadsafe

        @eager
        async def save():
            called.set()
            await main_end()
            await asyncio.sleep(0.02)
            say("saved")

        async def call_save():
            save()

        @eager(daemon=True)
        async def listen(loop):
            {way}
            await asyncio.get_running_loop().create_future()

        async def main():
            listen(asyncio.get_running_loop())
            await asyncio.to_thread(called.wait)

        called = threading.Event()
        asyncio.run(main())
    """
    check(run(source), "saved")


def test_daemons_live_until_the_rest_have_ended(run: RunPython) -> None:
    """While the process waits for other tasks, its daemon tasks go on."""
    source = """
        from staging import *

        @eager(daemon=True)
        async def answer(questions):
            while True:
                future = await questions.get()
                future.set_result("answered")

        @eager
        async def work():
            questions = asyncio.Queue()
            answer(questions)
            await main_end()
            future = asyncio.get_running_loop().create_future()
            await questions.put(future)
            say(await future)

        work()
    """
    check(run(source), "answered")


def test_a_daemons_calls_are_daemons(run: RunPython) -> None:
    """`daemon=None` takes after the calling eager task, through any depth; `daemon=` says otherwise."""
    source = """
        from staging import *
        import contextvars

        def waiting(name, daemon=None):
            @eager(daemon=daemon)
            async def wait():
                try:
                    begun.release()
                    await asyncio.get_running_loop().create_future()
                finally:
                    say(name)
            return wait

        @eager
        async def inherit():
            waiting("inherited")()
            shared_loop().create_task(waiting("by create_task").__wrapped__())
            await asyncio.create_task(plain())
            await asyncio.to_thread(waiting("in a thread"))

        async def plain():
            waiting("in an asyncio task")()

        @eager(daemon=False)
        async def hold():
            waiting("told", daemon=True)()
            await main_end()
            await asyncio.sleep(0.02)
            say("held")

        @eager(daemon=True)
        async def root():
            await inherit()
            hold()

        begun = threading.Semaphore(0)
        root().result()
        for _ in range(5):
            begun.acquire()
        waiting("told from main", daemon=True)()
    """
    process = run(source)
    said = process.stdout.splitlines()
    assert said[0] == "held"
    assert sorted(said[1:6]) == ["by create_task", "in a thread", "in an asyncio task", "inherited", "told"]
    assert (process.returncode, process.stderr) == (0, "")


def test_a_handler_that_exits_keeps_no_exception_from_being_reported(run: RunPython) -> None:
    """What an exception handler raises at the exit, `SystemExit` or Ctrl-C too, is logged itself."""
    source = """
        from staging import *

        def handle(loop, context):
            say("handles", context["exception"])
            raise SystemExit(3)

        @eager
        async def fail(number):
            raise ValueError(number)

        shared_loop().asyncio_loop.set_exception_handler(handle)
        tasks = [fail(number) for number in range(2)]
        for task in tasks:
            shared_loop().create_task(asyncio.sleep(0)).result()
    """
    done = run(source)
    assert sorted(done.stdout.splitlines()) == ["handles 0", "handles 1"]
    assert done.returncode == 0
    assert done.stderr.count("exception reporting that exception of fail() called at") == 2
    assert "threading shutdown" not in done.stderr


# Running out of time


def test_without_any_time_cleanup_that_waits_for_nothing_runs(run: RunPython) -> None:
    """An `exit_timeout` of 0: calls are cancelled at once; a loop that is idle isn't abandoned for that."""
    source = """
        from staging import *

        idle, busy = (BackgroundLoop(exit_timeout=0) for _ in range(2))

        @eager(loop=busy, daemon=True)
        async def endless():
            try:
                begun.set()
                await asyncio.get_running_loop().create_future()
            finally:
                say("cleaned up")

        begun = threading.Event()
        endless()
        begun.wait()
        idle.asyncio_loop
    """
    check(run(source), "cleaned up")


def test_exit_timeout_cancels_what_is_left(run: RunPython) -> None:
    """After `exit_timeout` seconds the loop's tasks are cancelled, which is logged, and clean up."""
    source = """
        from staging import *

        @eager(loop=BackgroundLoop(exit_timeout=0.1))
        async def endless():
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0.02)
                say("cleaned up")

        @eager
        async def patient():
            await main_end()
            await asyncio.sleep(0.3)
            say("not concerned")

        endless()
        patient()
    """
    check(
        run(source),
        "cleaned up",
        "not concerned",
        stderr=r"time ran out at exit: cancelling 1 eager task: endless\(\) called at program\.py:\d+, "
        r"running for 0\.\d s",
    )


@pytest.mark.parametrize("say_after", [5, 0.05], ids=["before the log line", "after it"])
@both_loops
def test_cleanup_that_outlasts_exit_timeout_is_abandoned(
    run: RunPython, set_up: str, say_after: float
) -> None:
    """After another `exit_timeout` the process ends without it, and says which task it abandoned, once."""
    source = f"""
        from eager_async import _exit
        _exit._SAY_AFTER = {say_after}
        factory = {"uvloop.new_event_loop" if "uvloop" in set_up else None}
        loop = BackgroundLoop(exit_timeout=0.1, loop_factory=factory)

        async def endless():
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.get_running_loop().create_future()
                say("never")

        task = loop.create_task(endless())
    """
    check(
        run(with_set_up(set_up, source)),
        stderr=r"(the process waits for [^\n]*\n)?"
        r"time ran out at exit: cancelling 1 eager task: endless\(\) [^\n]*\n"
        r"(the process waits for the cleanup of [^\n]*\n)?"
        r"abandoned at exit, since time ran out: 1 eager task: endless\(\) [^\n]*",
    )


def test_a_blocked_loop_is_abandoned_after_exit_timeout(run: RunPython) -> None:
    """A body that blocks its loop's thread for ever can't hold a process with `exit_timeout`."""
    source = """
        from staging import *

        @eager(loop=BackgroundLoop(exit_timeout=0.1))
        async def block():
            begun.set()
            threading.Event().wait()

        begun = threading.Event()
        block()
        begun.wait()
    """
    check(
        run(source), stderr=r"time ran out.*abandoned at exit, since time ran out: 1 eager task: block\(\).*"
    )


def test_the_shared_loop_made_anew_keeps_exit_timeout(run: RunPython) -> None:
    """`exit_timeout` is one of the settings that a shared loop made anew takes over."""
    source = """
        from staging import *

        @eager
        async def endless():
            await asyncio.get_running_loop().create_future()

        set_shared_loop(BackgroundLoop(exit_timeout=0.1))
        shared_loop().shutdown()
        endless()
    """
    check(run(source), stderr=r"time ran out at exit: cancelling 1 eager task: endless\(\).*")


def test_a_thread_that_goes_on_calling_does_not_hold_the_process(run: RunPython) -> None:
    """Once a loop's time has run out, calls of threads that live on are refused, and no loop is made anew."""
    source = """
        from staging import *

        loop = BackgroundLoop(exit_timeout=0.1)

        @eager(loop=loop)
        async def endless():
            await asyncio.get_running_loop().create_future()

        begun = threading.Event()

        def call_on():
            while True:
                try:
                    task = endless()
                    begun.set()
                    task.exception()
                except asyncio.CancelledError:
                    continue
                except LoopClosedError as exc:
                    say("refused")
                    return

        threading.Thread(target=call_on).start()
        begun.wait()
    """
    check(run(source), "refused", stderr=r"time ran out at exit: cancelling 1 eager task: endless\(\)[^\n]*")


@posix_signals
@both_loops
@pytest.mark.untraced("a signal handler that blocks would do so with its lock held")
def test_signal_handlers_may_block_while_the_process_waits(run: RunPython, set_up: str) -> None:
    """At any moment, also when a task's end has just woken up the main thread."""
    source = f"""
        from staging import *
        {set_up}

        heard, inside = [], False

        def handle(*_):
            global inside
            if not inside:  # one in another would fill the stack
                inside = True
                heard.append(answer().result())
                inside = False

        @eager
        async def answer():
            await asyncio.sleep(0)
            return 42

        @eager
        async def work():
            await main_end()
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            calls = 0
            while calls < 4000 or len(heard) <= 10:
                calls += 1
                await answer()
                await asyncio.sleep(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            say(set(heard))

        signal.signal(signal.SIGALRM, handle)
        work()
    """
    check(run(source), "{42}")


@pytest.mark.parametrize("seconds", ["float('inf')", "1e10"])
def test_an_endless_exit_timeout_waits(run: RunPython, seconds: str) -> None:
    """A number of seconds beyond what the system can wait for is as good as none."""
    source = f"""
        from staging import *
        from eager_async import _exit

        _exit._SAY_AFTER = 0.02

        @eager(loop=BackgroundLoop(exit_timeout={seconds}))
        async def work():
            await main_end()
            await asyncio.sleep(0.1)
            say("worked")

        work()
    """
    check(run(source), "worked", stderr=r"the process waits for 1 eager task: work\(\) [^\n]*")


def test_a_long_wait_is_explained(run: RunPython) -> None:
    """After five seconds a log line names what is waited for, since when, and where it was called; once."""
    source = """
        from staging import *
        from eager_async import _exit

        say(_exit._SAY_AFTER)
        _exit._SAY_AFTER = 0.1

        @eager
        async def fetch(number):
            await main_end()
            await asyncio.sleep(0.4 if number == 1 else 0.2)

        tasks = [fetch(number) for number in range(7)]
    """
    check(
        run(source),
        "5.0",
        stderr=r"the process waits for 7 eager tasks: "
        r"(fetch\(\) called at program\.py:13, running for 0\.\d s; ){5}…",
    )


def test_daemons_are_not_among_what_is_waited_for(run: RunPython) -> None:
    """The log line leaves them out: nobody should look for the delay there."""
    source = """
        from staging import *
        from eager_async import _exit

        _exit._SAY_AFTER = 0.02

        @eager(daemon=True)
        async def watch():
            await asyncio.Event().wait()

        @eager
        async def work():
            await main_end()
            await asyncio.sleep(0.1)

        tasks = [watch(), work()]
    """
    check(run(source), stderr=r"the process waits for 1 eager task: work\(\) [^\n]*")


def test_a_long_cleanup_is_explained(run: RunPython) -> None:
    """A daemon's too, which the process has cancelled and waits for: another log line names it, once."""
    source = """
        from staging import *
        from eager_async import _exit

        _exit._SAY_AFTER = 0.02

        @eager(daemon=True)
        async def watch():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.1)
                say("cleaned up")

        watch()
    """
    check(
        run(source),
        "cleaned up",
        stderr=r"the process waits for the cleanup of 1 eager task: watch\(\) [^\n]*",
    )


def test_what_is_no_eager_task_is_said_to_be_waited_for(run: RunPython) -> None:
    """As a thread of the loop's default executor, which goes on when its awaiter has given up."""
    source = """
        from staging import *
        import logging
        from eager_async import _exit

        class Opens(logging.Handler):
            def emit(self, record):
                go_on.set()

        @eager
        async def give_up():
            try:
                await asyncio.wait_for(asyncio.to_thread(go_on.wait), 0.01)
            except TimeoutError:
                say("gave up")

        _exit._SAY_AFTER = 0.05
        go_on = threading.Event()
        logging.getLogger("eager_async").addHandler(Opens())
        logging.getLogger("eager_async").addHandler(logging.StreamHandler())
        give_up().result()
    """
    check(
        run(source),
        "gave up",
        stderr="the process waits for the cleanup of asyncio tasks, async generators or executor threads "
        "that were left",
    )


# Ctrl-C


@posix_signals
def test_a_first_ctrl_c_during_a_daemons_cleanup_cancels_it_again(run: RunPython) -> None:
    """It is the first one, and abandons nothing: what the cleanup waits for is cancelled."""
    source = """
        from staging import *

        @eager(daemon=True)
        async def watch():
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    await interrupt_main()
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.05)
                    say("cleaned up")

        watch()
    """
    check(
        run(source),
        "cleaned up",
        stderr=r"interrupted at exit: cancelling 1 eager task: watch\(\) [^\n]*",
    )


@posix_signals
@both_loops
def test_ctrl_c_at_the_exit_cancels_the_rest(run: RunPython, set_up: str) -> None:
    """One Ctrl-C while the process waits cancels its tasks, which is logged; their cleanup runs."""
    source = """
        @eager
        async def endless():
            try:
                await interrupt_main()
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0.05)
                say("cleaned up")

        endless()
        raise SystemExit(5)
    """
    check(
        run(with_set_up(set_up, source)),
        "cleaned up",
        code=5,
        stderr=r"interrupted at exit: cancelling 1 eager task: endless\(\) called at program\.py:\d+, [^\n]*",
    )


@posix_signals
@both_loops
def test_a_second_ctrl_c_ends_the_process_at_once(run: RunPython, set_up: str) -> None:
    """Cleanup that outlasts a second Ctrl-C is abandoned, which is logged; there is no traceback."""
    source = """
        @eager
        async def endless():
            try:
                await interrupt_main()
                await asyncio.get_running_loop().create_future()
            finally:
                await interrupt_main()
                await asyncio.get_running_loop().create_future()
                say("never")

        task = endless()
    """
    check(
        run(with_set_up(set_up, source)),
        stderr=r"interrupted at exit: cancelling 1 eager task: endless\(\) [^\n]*\n"
        r"abandoned at exit, since interrupted again: 1 eager task: endless\(\) [^\n]*",
    )


@posix_signals
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_handler_that_raises_at_the_exit_cancels_the_rest(run: RunPython, number: str) -> None:
    """As a Ctrl-C does: with the usual `sys.exit` for SIGTERM, cleanup runs, and there is no traceback."""
    source = f"""
        from staging import *
        import sys

        @eager
        async def endless():
            try:
                await interrupt_main(signal.{number})
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0.05)
                say("cleaned up")

        signal.signal(signal.{number}, lambda *_: sys.exit(3))
        endless()
    """
    check(
        run(source),
        "cleaned up",
        stderr=r"interrupted at exit by SystemExit: cancelling 1 eager task: endless\(\) [^\n]*",
    )


def test_an_interruption_before_the_rest_was_cancelled_is_one_with_the_first(run: RunPython) -> None:
    """The rest is cancelled then, and what comes after that abandons it."""
    source = """
        from staging import *
        import atexit
        from eager_async import _exit

        def end_all():
            raise KeyboardInterrupt

        def summary(loop_threads):
            _exit._summary = real_summary
            raise SystemExit

        @eager
        async def endless():
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                say("cancelled")
                told.set()
                await asyncio.get_running_loop().create_future()

        real_summary, _exit._summary, _exit._end_all = _exit._summary, summary, end_all
        begun, told = threading.Event(), threading.Event()
        atexit.register(told.wait, 10)
        endless()
        begun.wait()
    """
    check(
        run(source),
        "cancelled",
        stderr=r"interrupted at exit by SystemExit: cancelling 1 eager task: endless\(\) [^\n]*\n"
        r"abandoned at exit, since interrupted again: 1 eager task: endless\(\) [^\n]*",
    )


@pytest.mark.untraced("a signal handler that raises would do so inside the tracer")
@posix_signals
@pytest.mark.parametrize("numbers", ["SIGINT SIGTERM", "SIGTERM SIGINT", "SIGINT SIGUSR1 SIGTERM"])
def test_signals_that_come_together_at_the_exit_leave_no_traceback(run: RunPython, numbers: str) -> None:
    """As when a terminal and a wrapper both pass on a Ctrl-C, whether they are taken for one or for two."""
    source = f"""
        from staging import *
        import sys

        @eager
        async def endless():
            try:
                await interrupt_main(*map(signal.Signals.__getitem__, "{numbers}".split()))
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0.05)
                say("cleaned up")

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
        endless()
    """
    process = run(source)
    assert (process.returncode, "Traceback" in process.stderr) == (0, False), process.stderr
    assert re.fullmatch(r"((interrupted|abandoned) at exit[^\n]*\n){1,2}", process.stderr)
    if "abandoned" not in process.stderr:
        assert process.stdout == "cleaned up\n"


@posix_signals
@pytest.mark.parametrize("most", [2, 3])
def test_ctrl_c_while_the_one_before_is_being_logged_counts(run: RunPython, most: int) -> None:
    """However soon the next one comes, nothing but the log lines tells of them."""
    source = f"""
        from staging import *
        import logging

        class Presses(logging.StreamHandler):
            def emit(self, record):
                super().emit(record)
                if len(pressed) < {most}:
                    pressed.append(True)
                    signal.raise_signal(signal.SIGINT)

        @eager
        async def endless():
            try:
                await interrupt_main()
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.get_running_loop().create_future()

        pressed = [True]
        logging.getLogger("eager_async").addHandler(Presses())
        endless()
    """
    check(
        run(source),
        stderr=r"interrupted at exit: cancelling 1 eager task: endless\(\) [^\n]*\n"
        r"abandoned at exit, since interrupted again: 1 eager task: endless\(\) [^\n]*",
    )


@posix_signals
def test_ctrl_c_at_the_exit_gets_through_where_a_wait_cannot_be_interrupted(run: RunPython) -> None:
    """As on Windows before 3.14: the process waits in short pieces, and looks in between."""
    source = """
        from staging import *
        from eager_async import _exit

        _exit.UNINTERRUPTIBLE_WAIT = 0.05
        _exit._SAY_AFTER = 3600

        @eager
        async def endless():
            try:
                await main_end()
                await asyncio.sleep(0.05)
                signal.raise_signal(signal.SIGINT)  # in this thread: the main thread's wait doesn't feel it
                await asyncio.get_running_loop().create_future()
            finally:
                say("cleaned up")

        endless()
    """
    check(
        run(source), "cleaned up", stderr=r"interrupted at exit: cancelling 1 eager task: endless\(\) [^\n]*"
    )


# Threads that outlive the main thread


@pytest.mark.parametrize("used_before", [False, True], ids=["never used", "used before"])
def test_calls_after_the_wait_are_refused(run: RunPython, used_before: bool) -> None:  # noqa: FBT001
    """A thread that outlives the main thread, and the wait, gets LoopClosedError; no loop is made."""
    source = f"""
        from staging import *

        @eager
        async def work():
            say("ran")

        def late():
            threading.main_thread().join()
            for call in (work, lambda: BackgroundLoop().create_task(work.__wrapped__())):
                try:
                    call()
                except LoopClosedError as exc:
                    say("refused, since", "the process is ending" in str(exc))
            say([thread.name for thread in threading.enumerate() if thread.name.startswith("eager")])

        if {used_before}:
            work().result()
        threading.Thread(target=late).start()
    """
    check(run(source), *["ran"][: int(used_before)], "refused, since True", "refused, since True", "[]")


@threads_at_exit
def test_a_first_call_while_the_process_waits_works(run: RunPython) -> None:
    """The first call to the shared loop may come from a thread, when the process already waits for others."""
    source = """
        from staging import *

        called = threading.Event()

        @eager
        async def work():
            await asyncio.sleep(0.05)
            say("worked")

        async def hold():
            await main_end()
            await asyncio.to_thread(called.wait)

        def late():
            while not main_has_ended():
                called.wait(0.005)
            say("result" if work().result() is None else "")
            work()
            called.set()

        BackgroundLoop().create_task(hold())
        threading.Thread(target=late).start()
    """
    check(run(source), "worked", "result", "worked")


@threads_at_exit
def test_a_loop_may_be_started_while_the_process_waits_whatever_was_imported_since(run: RunPython) -> None:
    """Such as a process pool, whose exit hook is newer than ours, which can't be renewed any more then."""
    source = """
        from staging import *
        import concurrent.futures.process

        async def work():
            return "worked"

        async def hold():
            await main_end()
            for _ in range(2):
                say(await BackgroundLoop().create_task(work()))

        BackgroundLoop().create_task(hold())
        threading._register_atexit(int)
    """
    check(run(source), "worked", "worked")


@threads_at_exit
def test_the_first_call_may_come_from_an_exit_hook(run: RunPython) -> None:
    """Of a library that was imported later: its hook comes before ours, and its calls are served."""
    source = """
        import threading
        from eager_async import eager

        async def work():
            return "worked"

        threading._register_atexit(lambda: print(eager(work)().result()))
    """
    check(run(source), "worked")


def test_an_import_after_the_end_of_the_main_thread_works(run: RunPython) -> None:
    """A thread that outlives the main thread can import the package; its calls get LoopClosedError."""
    source = """
        import threading

        def late():
            threading.main_thread().join()
            from eager_async import LoopClosedError, eager

            async def work(): ...

            try:
                eager(work)()
            except LoopClosedError:
                print("refused")

        threading.Thread(target=late).start()
    """
    check(run(source), "refused")


def test_calls_of_exit_handlers_are_refused(run: RunPython) -> None:
    """`atexit` handlers come after the wait: their calls get LoopClosedError, and no coroutine is lost."""
    source = """
        from staging import *
        import atexit

        @eager
        async def work():
            say("ran")

        @atexit.register
        def last():
            try:
                work()
            except LoopClosedError as exc:
                say("refused")

        work().result()
    """
    check(run(source), "ran", "refused")


# Child processes


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_wait_for_their_tasks(run: RunPython, method: str) -> None:
    """A child of `multiprocessing` runs its tasks to their end, and cancels its daemons, before it ends."""
    if sys.platform == "win32" and method != "spawn":
        pytest.skip("Windows has no fork")
    source = f"""
        from staging import *
        import multiprocessing

        @eager
        async def work(name):
            await main_end()
            await asyncio.sleep(0.02)
            say(name, "worked")

        @eager(daemon=True)
        async def watch(begun):
            try:
                begun.set()
                await asyncio.get_running_loop().create_future()
            finally:
                say("cancelled")

        def child():
            begun = threading.Event()
            watch(begun)
            begun.wait()
            work("child")
            raise SystemExit(4)

        if __name__ == "__main__":
            process = multiprocessing.get_context("{method}").Process(target=child)
            process.start()
            process.join()
            say(process.exitcode)
            work("parent")
    """
    check(run(source), "child worked", "cancelled", "4", "parent worked")


def test_abandoned_cleanup_is_abandoned_once(run: RunPython) -> None:
    """However often the wait was arranged: it is anew when a process pool was imported in between."""
    source = """
        from staging import *

        async def stubborn():
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(60)

        BackgroundLoop(exit_timeout=0.1).create_task(stubborn())
        import concurrent.futures.process
        BackgroundLoop().create_task(asyncio.sleep(0)).result()
    """
    done = run(source)
    assert (done.stderr.count("abandoned at exit"), done.returncode) == (1, 0)


def test_a_loop_whose_time_ran_out_is_not_made_anew(run: RunPython) -> None:
    """While the process waits for other loops, calls on one that was given up are refused."""
    source = """
        from staging import *

        short, long = BackgroundLoop(exit_timeout=0.1), BackgroundLoop()

        async def call_late(task):
            while short._loop_thread.open or not task.done() or not short._loop_thread.ended:
                await asyncio.sleep(0.01)
            try:
                await short.create_task(asyncio.sleep(0))
            except LoopClosedError as exc:
                say(exc)

        long.create_task(call_late(short.create_task(asyncio.sleep(60))))
    """
    check(
        run(source),
        "the process is ending: no background loop is started any more; "
        "what should run then belongs in the `finally` of a daemon task",
        stderr="time ran out at exit.*",
    )
