"""What a forked child inherits: nothing runs, nothing hangs, and its own calls start anew.

Each test is a program in a process of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from programs import FORK, FORK_WITH_THREADS, SAY, both_loops, check, has_fork, threads_at_exit, with_set_up

if TYPE_CHECKING:
    from conftest import RunPython

pytestmark = has_fork

STAGING = (
    '''
"""What the programs of these tests have in common."""

import asyncio
import concurrent.futures
import gc
import os
import signal
import sys
import threading
import time

from eager_async import BackgroundLoop, LoopClosedError, eager, set_shared_loop, shared_loop

'''
    + SAY
    + FORK
    + '''

@eager
async def double(number):
    await asyncio.sleep(0)
    return 2 * number


@eager
async def own_thread():
    return threading.current_thread()


class Work:
    """A body that is under way, and is let go by an event."""

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    async def __call__(self):
        try:
            self.begun.set()
            while not self.go_on.is_set():
                await asyncio.sleep(0.005)
            return "worked"
        finally:
            say("finally")
'''
)


@both_loops
def test_a_child_starts_anew(run: RunPython, set_up: str) -> None:
    """Loops that run in the parent are started anew by their first use in the child, with their settings."""
    source = """
        mine = BackgroundLoop(name="mine", debug=True)

        def child():
            say(double(1).result(), mine.create_task(double.__wrapped__(2)).result())
            say(own_thread().result() is not thread, mine.asyncio_loop is not asyncio_loop)
            say(mine.asyncio_loop.get_debug(), type(shared_loop().asyncio_loop) is loop_type)
            say(len(mine.tasks()), len(shared_loop().tasks()))

        thread = own_thread().result()
        asyncio_loop, loop_type = mine.asyncio_loop, type(shared_loop().asyncio_loop)
        fork(child)
        say(double(3).result(), own_thread().result() is thread, mine.asyncio_loop is asyncio_loop)
    """
    check(
        run(with_set_up(set_up, source), options=FORK_WITH_THREADS),
        "2 4",
        "True True",
        "True True",
        "0 0",
        "child ended 0",
        "6 True True",
    )


def test_a_child_of_an_unused_package_starts_its_own(run: RunPython) -> None:
    """A fork before the first call, without a warning: parent and child have a loop each."""
    source = """
        from staging import *

        fork(lambda: say(double(1).result()))
        say(double(2).result())
    """
    check(run(source), "2", "child ended 0", "4")


@both_loops
def test_inherited_tasks_fail_in_the_child_and_go_on_in_the_parent(run: RunPython, set_up: str) -> None:
    """In the child, unfinished tasks are done, with LoopClosedError for whoever asks; not in the parent."""
    source = """
        def outcome(ask):
            try:
                return ask()
            except LoopClosedError:
                return "closed"

        async def awaited(task):
            return await task

        def child():
            for task in (running, queued):
                say(task.done(), task.running(), task.cancelled(), task.cancel())
                say(outcome(task.result), type(task.exception()).__name__)
                say(outcome(lambda: asyncio.run(awaited(task))))
                say(outcome(lambda: eager(awaited)(task).result()))
                say(len(concurrent.futures.wait([task]).done), task.get_coro(), task in shared_loop().tasks())
                say("called at program.py" in repr(task))
            try:
                running.result()
            except LoopClosedError as exc:
                say("program.py" in str(exc))

        work, block = Work(), threading.Event()
        running = eager(work)()
        work.begun.wait()

        @eager
        async def blocking():
            begun.set()
            block.wait()

        begun = threading.Event()
        blocking()
        begun.wait()
        queued = eager(work)()
        fork(child)
        say(running.done(), queued.done())
        block.set()
        work.go_on.set()
        say(running.result(), queued.result())
    """
    in_child = [
        "True False False False",
        "closed LoopClosedError",
        "closed",
        "closed",
        "1 None False",
        "True",
    ]
    check(
        run(with_set_up(set_up, source), options=FORK_WITH_THREADS),
        *in_child * 2,
        "True",
        "child ended 0",
        "False False",
        "finally",
        "finally",
        "worked worked",
    )


def test_finished_tasks_keep_their_outcome_in_the_child(run: RunPython) -> None:
    """Tasks that were done at the fork have result, exception or cancellation in both processes."""
    source = """
        from staging import *

        @eager
        async def fail():
            raise ValueError("mine")

        def look():
            say(done.result(), repr(failed.exception()), cancelled.cancelled())

        done, failed, cancelled = double(1), fail(), eager(asyncio.sleep)(60)
        cancelled.cancel()
        concurrent.futures.wait([done, failed, cancelled])
        fork(look)
        look()
    """
    expected = "2 ValueError('mine') True"
    check(run(source, options=FORK_WITH_THREADS), expected, "child ended 0", expected)


def test_callbacks_of_inherited_tasks_do_not_run_in_the_child(run: RunPython) -> None:
    """Done callbacks and waiters registered before the fork are called in the parent alone."""
    source = """
        from staging import *

        work = Work()
        task = eager(work)()
        task.add_done_callback(lambda task: say("called", os.getpid() == parent))
        parent = os.getpid()
        work.begun.wait()

        def child():
            double(1).result()
            gc.collect()

        fork(child)
        work.go_on.set()
        task.result()
    """
    process = run(source, options=FORK_WITH_THREADS)
    check(process, "child ended 0", "finally", "called True")


@both_loops
def test_inherited_coroutines_never_clean_up_in_the_child(run: RunPython, set_up: str) -> None:
    """No `finally` of an inherited body, inner task or async generator runs in the child, even at its end."""
    source = """
        go_on = threading.Event()
        begun = threading.Semaphore(0)

        def cleaned(name):
            say(name, "in the parent" if os.getpid() == parent else "IN THE CHILD")

        async def numbers():
            try:
                yield 1
                await wait("generator")
            finally:
                cleaned("generator")

        async def wait(name):
            begun.release()
            while not go_on.is_set():
                await asyncio.sleep(0.005)

        async def inner():
            try:
                await wait("inner")
            finally:
                cleaned("inner")

        @eager
        async def body():
            try:
                task = asyncio.create_task(inner())
                async for _ in numbers():
                    pass
                await task
            finally:
                cleaned("body")

        def child():
            global task
            del task
            shared_loop().shutdown()
            gc.collect()
            double(1).result()
            gc.collect()

        parent = os.getpid()
        task = body()
        begun.acquire(), begun.acquire()
        fork(child)
        go_on.set()
        task.result()
    """
    process = run(with_set_up(set_up, source), options=FORK_WITH_THREADS)
    lines = process.stdout.splitlines()
    assert lines[0] == "child ended 0", process.stderr
    assert sorted(lines[1:]) == ["body in the parent", "generator in the parent", "inner in the parent"]
    assert (process.returncode, process.stderr) == (0, "")


@both_loops
def test_the_parents_connections_live_through_a_childs_whole_life(run: RunPython, set_up: str) -> None:
    """A socket on which the parent's loop waits still wakes it up when a child has come and gone."""
    source = """
        import socket

        @eager
        async def receive(end):
            reader, writer = await asyncio.open_connection(sock=end)
            begun.set()
            try:
                return await reader.readline()
            finally:
                writer.close()

        def child():
            double(1).result()
            gc.collect()

        begun = threading.Event()
        mine, its = socket.socketpair()
        task = receive(its)
        begun.wait()
        for _ in range(3):
            fork(child)
        mine.sendall(b"hello\\n")
        say(task.result())
        mine.close()
    """
    check(
        run(with_set_up(set_up, source), options=FORK_WITH_THREADS),
        *["child ended 0"] * 3,
        r"b'hello\n'",
    )


@pytest.mark.untraced("it has locks of its own, which other threads hold at the fork")
def test_a_fork_while_other_threads_submit(run: RunPython) -> None:
    """Fifty forks while threads call and wait: each child's own calls work, and each parent's go on."""
    source = """
        from staging import *

        stop = threading.Event()
        finished = []

        def submit():
            number = 0
            while not stop.is_set():
                number += 1
                tasks = [double(number) for _ in range(5)]
                concurrent.futures.wait(tasks)
                assert [task.result() for task in tasks] == [2 * number] * 5
            finished.append(number > 1)

        def child():
            if [double(number).result(15) for number in range(3)] != [0, 2, 4]:
                os._exit(3)
            if number % 10:
                os._exit(0)  # the other children end as programs do

        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(50):
            fork(child)
        stop.set()
        for thread in threads:
            thread.join()
        say(finished)
    """
    check(run(source, options=FORK_WITH_THREADS, timeout=60), *["child ended 0"] * 50, "[True, True, True]")


def test_an_import_that_is_under_way_at_the_fork_does_not_block_the_child(run: RunPython) -> None:
    """Of what the library itself needs there: `ctypes`, to keep what the child inherits."""
    source = """
        from staging import *
        import importlib.abc
        import time

        class Slow(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "_ctypes":
                    importing.set()
                    forking.wait()
                    time.sleep(0.05)  # the fork comes now, or waits for this import

        assert "ctypes" not in sys.modules
        importing, forking = threading.Event(), threading.Event()
        sys.meta_path.insert(0, Slow())
        os.register_at_fork(before=forking.set)
        double(1).result()
        thread = threading.Thread(target=__import__, args=["ctypes"])
        thread.start()
        importing.wait()
        fork(lambda: say(double(2).result()))
        thread.join()
    """
    check(run(source, options=FORK_WITH_THREADS), "4", "child ended 0")


def test_a_python_without_ctypes_can_fork(run: RunPython) -> None:
    """Nothing is printed, and the child has loops of its own."""
    source = """
        from staging import *

        sys.modules["ctypes"] = None
        work = Work()
        task = eager(work)()
        work.begun.wait()
        fork(lambda: say(double(2).result()))
        work.go_on.set()
        say(task.result())
    """
    check(run(source, options=FORK_WITH_THREADS), "4", "child ended 0", "finally", "worked")


def test_locks_held_at_the_fork_do_not_block_the_child(run: RunPython) -> None:
    """Threads that start or end a loop, or wait for tasks, at the fork hold nobody up in the child."""
    source = """
        from staging import *

        holding, release = threading.Semaphore(0), threading.Event()
        parent = os.getpid()

        def slow_factory():  # called while the loop's start is under way
            if os.getpid() == parent:
                holding.release()
                release.wait()
            return asyncio.new_event_loop()

        starting = BackgroundLoop(loop_factory=slow_factory)
        ending = BackgroundLoop()
        work = Work()
        task = eager(work)()
        left = eager(loop=ending)(work)()
        work.begun.wait()

        def hold_condition():
            with task._condition:  # as `concurrent.futures.wait` does for a moment
                holding.release()
                release.wait()

        def wait_for_it():
            holding.release()
            task.result()

        def shut_down():
            holding.release()
            ending.shutdown()

        actions = [lambda: starting.asyncio_loop, hold_condition, wait_for_it, shut_down]
        threads = [threading.Thread(target=action) for action in actions]
        for thread in threads:
            thread.start()
        for _ in threads:
            holding.acquire()

        def child():
            say(starting.create_task(double.__wrapped__(1)).result())
            say(type(task.exception()).__name__, len(concurrent.futures.wait([task, left]).done))
            ending.shutdown()
            starting.shutdown()

        fork(child)
        release.set()
        work.go_on.set()
        for thread in threads:
            thread.join()
        say(starting.create_task(double.__wrapped__(2)).result(), task.result(), left.result())
    """
    check(
        run(source, options=FORK_WITH_THREADS),
        "2",
        "LoopClosedError 2",
        "child ended 0",
        "finally",
        "finally",
        "4 worked worked",
    )


@pytest.mark.parametrize("when", ["in a hook", "later"])
@pytest.mark.parametrize("use", ["double(2).result()", "set_shared_loop(BackgroundLoop())"])
def test_a_fork_during_the_shared_loops_renewal(run: RunPython, use: str, when: str) -> None:
    """A thread that makes the shared loop anew at the fork doesn't keep the child from using it."""
    source = f"""
        import os, threading
        os.register_at_fork(after_in_child=lambda: {when == "in a hook"} and use())
        from staging import *

        making, release = threading.Event(), threading.Event()
        parent = os.getpid()
        real = BackgroundLoop.__init__

        def slow(self, **settings):
            if os.getpid() == parent:
                making.set()
                release.wait()
            real(self, **settings)

        def use():
            signal.alarm(20)
            {use}
            say("used")

        double(1).result()
        shared_loop().shutdown()
        BackgroundLoop.__init__ = slow
        thread = threading.Thread(target=shared_loop)
        thread.start()
        making.wait()
        fork(lambda: {when == "later"} and use())
        release.set()
        thread.join()
        say(double(3).result())
    """
    check(run(source, options=FORK_WITH_THREADS), "used", "child ended 0", "6")


@both_loops
def test_a_fork_after_shutdown_gives_no_warning(run: RunPython, set_up: str) -> None:
    """After `shutdown()` the process is single-threaded again: a fork under `-W error` says nothing."""
    source = """
        async def to_thread():
            await asyncio.to_thread(int)

        for number in range(10):
            double(1).result()
            eager(to_thread)().result()
            shared_loop().shutdown()
            if os.fork() == 0:
                os._exit(double(number).result())
            say(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    check(run(with_set_up(set_up, source)), *[str(2 * number) for number in range(10)])


def test_a_shutdown_in_the_child_leaves_the_parent_alone(run: RunPython) -> None:
    """Shutting an inherited loop down in the child closes nothing of the parent's."""
    source = """
        from staging import *

        loop, shut = BackgroundLoop(), BackgroundLoop()
        shut.create_task(double.__wrapped__(1)).result()
        shut.shutdown()
        work = Work()
        task = loop.create_task(work())
        work.begun.wait()

        def child():
            loop.shutdown(cancel_futures=True)
            for closed in (loop, shut):
                try:
                    closed.create_task(double.__wrapped__(1))
                except LoopClosedError:
                    say("closed")
            say(double(1).result())

        fork(child)
        say(task.done())
        work.go_on.set()
        say(task.result(), loop.create_task(double.__wrapped__(2)).result())
    """
    check(
        run(source, options=FORK_WITH_THREADS),
        "closed",
        "closed",
        "2",
        "child ended 0",
        "False",
        "finally",
        "worked 4",
    )


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="loops are woken up in another way")
def test_a_child_does_not_wake_up_the_parents_loop(run: RunPython) -> None:
    """Whatever it does with an inherited loop: collect it, close it, or use it."""
    source = """
        from staging import *

        entered, leave = threading.Semaphore(0), threading.Event()

        def hold():  # the loop's thread, so that it reads no wake-up
            entered.release()
            leave.wait()

        loop, other = BackgroundLoop(), BackgroundLoop()
        tasks, descriptors = [], []
        for one in (loop, other):
            tasks.append(one.create_task(asyncio.sleep(3600)))
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), one.asyncio_loop).result()  # that one is read
            one.asyncio_loop.call_soon_threadsafe(hold)
            entered.acquire()
            descriptors.append(one._loop_thread._calls._descriptor.number)

        def child():
            global loop
            say(type(tasks[0].exception()).__name__, tasks[0].cancel())
            other.shutdown(cancel_futures=True)
            del loop
            gc.collect()

        fork(child)
        for number in descriptors:
            try:
                say("woken up", os.eventfd_read(number))
            except BlockingIOError:
                say("asleep")
        leave.set()
        for task in tasks:
            task.cancel()
    """
    check(
        run(source, options=FORK_WITH_THREADS), "LoopClosedError False", "child ended 0", "asleep", "asleep"
    )


@pytest.mark.parametrize("awaited", ["task", "anext(stream)"])
def test_a_child_does_not_wake_up_a_loop_of_the_parents_that_awaits(run: RunPython, awaited: str) -> None:
    """Its self-pipe is the parent's too."""
    source = """
        from staging import *
        from eager_async import eager_stream

        work = Work()

        @eager_stream
        async def produce():
            yield await work()

        async def main():
            task, stream = (eager(work)(), None) if AWAITED == "task" else (None, produce())

            async def wait():
                return await eval(AWAITED, {"task": task, "stream": stream, "anext": anext})

            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            work.begun.wait()
            fork(lambda: os._exit(0))
            try:
                say("woken up", asyncio.get_running_loop()._ssock.recv(1))
            except BlockingIOError:
                say("asleep")
            work.go_on.set()
            say(await waiting)

        asyncio.run(main())
    """.replace("AWAITED", repr(awaited))
    check(run(source, options=FORK_WITH_THREADS), "child ended 0", "asleep", "finally", "worked")


@pytest.mark.parametrize(
    ("wait", "in_child", "in_parent"),
    [
        ("task.result()", "LoopClosedError", "done"),
        ("type(task.exception()).__name__", "LoopClosedError", "NoneType"),
        ("len(concurrent.futures.wait([task]).done)", "1", "1"),
        ("next(concurrent.futures.as_completed([task])) is task", "True", "True"),
        ("next(stream)", "LoopClosedError", "item"),
        ("stream.close()", "LoopClosedError", "None"),
        ("shared_loop().shutdown()", "None", "None"),
    ],
)
def test_a_fork_in_a_signal_handler_leaves_no_wait_of_the_child_hanging(
    run: RunPython, wait: str, in_child: str, in_parent: str
) -> None:
    """The wait that the handler has interrupted goes on in both: in the child, the task has failed."""
    source = """
        from staging import *
        from eager_async import eager_stream

        begun, go_on = threading.Semaphore(0), threading.Event()

        async def wait_for_it():
            begun.release()
            while not go_on.is_set():
                await asyncio.sleep(0.001)

        @eager
        async def work():
            await wait_for_it()
            return "done"

        @eager_stream
        async def produce():
            try:
                await wait_for_it()
                yield "item"
            finally:
                await wait_for_it()

        def fork_here(*_):
            global here
            child = os.fork()
            if child == 0:
                here = "child"
                signal.alarm(20)
                return
            status = os.waitpid(child, 0)[1]
            say("child ended", status)
            go_on.set()

        def interrupt(thread=threading.get_ident()):
            place = ""
            while place not in ("_loop_thread.py wait_for", "_wake_up.py wait"):
                time.sleep(0.001)
                code = sys._current_frames()[thread].f_code
                place = f"{os.path.basename(code.co_filename)} {code.co_name}"
            signal.pthread_kill(thread, signal.SIGUSR1)

        here = "parent"
        signal.signal(signal.SIGUSR1, fork_here)
        task, stream = work(), produce()
        begun.acquire()
        begun.acquire()
        threading.Thread(target=interrupt).start()
        try:
            outcome = WAIT
        except Exception as exc:
            outcome = type(exc).__name__
        say(here, outcome)
        if here == "child":
            os._exit(0)
    """.replace("WAIT", wait)
    check(run(source, options=FORK_WITH_THREADS), f"child {in_child}", "child ended 0", f"parent {in_parent}")


def test_children_of_children(run: RunPython) -> None:
    """A child with a busy loop may fork in turn."""
    source = """
        from staging import *

        def descend(depth):
            work = Work()
            task = eager(work)()
            work.begun.wait()
            if depth:
                inherited.append(task)
                fork(lambda: descend(depth - 1))
                inherited.pop()
            say(depth, [type(other.exception()).__name__ for other in inherited])
            work.go_on.set()
            say(task.result())

        inherited = []
        double(1).result()
        descend(2)
    """
    check(
        run(source, options=FORK_WITH_THREADS),
        "0 ['LoopClosedError', 'LoopClosedError']",
        "finally",
        "worked",
        "child ended 0",
        "1 ['LoopClosedError']",
        "finally",
        "worked",
        "child ended 0",
        "2 []",
        "finally",
        "worked",
    )


def test_a_fork_in_another_thread(run: RunPython) -> None:
    """The forking thread is the child's main thread: calls work there, and its end waits for tasks."""
    source = """
        from staging import *
        import multiprocessing

        @eager
        async def last():
            await asyncio.sleep(0.05)
            say("last")

        def child():
            signal.alarm(20)
            say(double(1).result())
            last()

        def forking():
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            say(process.exitcode)

        double(1).result()
        thread = threading.Thread(target=forking)
        thread.start()
        thread.join()
        say(double(2).result())
    """
    check(run(source, options=FORK_WITH_THREADS), "2", "last", "0", "4")


@threads_at_exit
def test_a_fork_when_the_parents_main_thread_has_ended(run: RunPython) -> None:
    """The wait at the parent's exit is over, and the child's own is still to come."""
    source = """
        from staging import *

        def fork_late():
            threading.main_thread().join()
            while shared_loop()._loop_thread in _loop_thread.live:
                time.sleep(0.005)
            pid = os.fork()
            if not pid:
                say(double(1).result())
                os._exit(0)
            say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        from eager_async import _loop_thread
        double(2).result()
        threading.Thread(target=fork_late).start()
    """
    check(run(source, options=FORK_WITH_THREADS), "2", "0")


def test_a_fork_under_a_loop_that_awaits_a_task(run: RunPython) -> None:
    """Forking inside `asyncio.run` leaves the parent's awaiters alone; the child can use its own calls."""
    source = """
        from staging import *

        async def main():
            work = Work()
            task = eager(work)()
            waiting = asyncio.ensure_future(task)
            await asyncio.to_thread(work.begun.wait)
            pid = os.fork()
            if pid == 0:
                os._exit(double(21).result() if type(task.exception()) is LoopClosedError else 1)
            say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            work.go_on.set()
            say(await waiting)

        asyncio.run(main())
    """
    check(run(source, options=FORK_WITH_THREADS), "42", "finally", "worked")


def test_a_fork_on_the_loops_own_thread_may_exit_or_exec(run: RunPython) -> None:
    """A body may fork a child that ends by `os._exit` or `exec`; tasks go on."""
    source = """
        from staging import *
        import subprocess

        @eager
        async def body():
            for ending in (lambda: os._exit(3), lambda: os.execv("/bin/sh", ["sh", "-c", "exit 4"])):
                pid = os.fork()
                if pid == 0:
                    ending()
                say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            process = await asyncio.create_subprocess_exec("sh", "-c", "exit 5")
            say(await process.wait(), subprocess.call(["sh", "-c", "exit 6"]))
            return await double(1)

        say(body().result())
    """
    check(run(source, options=FORK_WITH_THREADS), "3", "4", "5 6", "2")


def test_a_child_does_not_report_the_parents_errors(run: RunPython) -> None:
    """An exception that nobody has looked at yet is the parent's to report; a child ends without a word."""
    source = """
        from staging import *

        @eager
        async def fail():
            raise ValueError("mine")

        task = fail()
        concurrent.futures.wait([task])

        def child():
            global task
            del task
            gc.collect()

        fork(child)
        fork(lambda: None)
        say(repr(task.exception()))
    """
    check(run(source, options=FORK_WITH_THREADS), "child ended 0", "child ended 0", "ValueError('mine')")


def test_a_child_reports_its_own_errors(run: RunPython) -> None:
    """What fails in the child, with nobody looking, is reported there at its end."""
    source = """
        from staging import *

        @eager
        async def fail():
            raise ValueError("the child's")

        def child():
            globals()["kept"] = fail()

        double(1).result()
        fork(child)
    """
    process = run(source, options=FORK_WITH_THREADS)
    assert (process.stdout, process.returncode) == ("child ended 0\n", 0)
    assert process.stderr.count("ValueError: the child's") == 1
    assert "fail() called at program.py" in process.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_a_busy_parent(run: RunPython, method: str) -> None:
    """Worker processes of a parent whose loop is busy can call eager functions, however they are started."""
    source = f"""
        from staging import *
        import multiprocessing

        def worker(number):
            return double(number).result() + sum(task.result() for task in [double(1), double(2)])

        if __name__ == "__main__":
            work = Work()
            task = eager(work)()
            work.begun.wait()
            context = multiprocessing.get_context("{method}")
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                say(list(pool.map(worker, range(4))))
            work.go_on.set()
            say(task.result())
    """
    check(run(source, options=FORK_WITH_THREADS), "[6, 8, 10, 12]", "finally", "worked")


def test_a_child_that_takes_an_inherited_item_wakes_up_nobody(run: RunPython) -> None:
    """The generator at rest is the parent's."""
    source = """
        from staging import *
        from eager_async import _call_queue, eager_stream

        @eager_stream(buffer=1)
        async def generate():
            yield 1
            yield 2

        def child():
            _call_queue.CallQueue.run_soon = lambda *_: say("woken up")
            say(next(stream))
            try:
                next(stream)
            except LoopClosedError:
                say("closed")

        stream = generate()
        while not shared_loop()._loop_thread.resting:
            time.sleep(0.005)
        fork(child)
        say(list(stream))
    """
    check(run(source, options=FORK_WITH_THREADS), "1", "closed", "child ended 0", "[1, 2]")


def test_a_wake_up_under_way_at_the_fork_is_not_waited_for(run: RunPython) -> None:
    """A child that runs the forking thread's own loop on is told of the ends of its tasks."""
    source = """
        from staging import *
        from eager_async._call_queue import call_queue

        async def main():
            return await double(1), call_queue(asyncio.get_running_loop())

        def child():
            say(loop.run_until_complete(main())[0])
            loop.close()

        loop = asyncio.new_event_loop()
        queue = loop.run_until_complete(main())[1]
        queue._armed = True  # by a thread that is about to wake the loop up
        fork(child)
        loop.close()
    """
    check(run(source, options=FORK_WITH_THREADS), "2", "child ended 0")


# Others' hooks, signal handlers and finalizers come in before the package's own hook has run, or in its midst

COMING_IN = {
    "a call": ("say(mine.create_task(double.__wrapped__(1)).result(), double(1).result())", "2 2"),
    "result()": ("refused(task.result)", "closed"),
    "await": ("refused(lambda: asyncio.run(awaited()))", "closed"),
    "wait()": ("say(len(concurrent.futures.wait([task]).done))", "1"),
    "next()": ("refused(lambda: next(stream))", "closed"),
    "shutdown()": ("mine.shutdown(); shared_loop().shutdown(); say(double(1).result())", "2"),
}


@pytest.mark.parametrize("when", ["before", "in its midst"])
@pytest.mark.parametrize(("action", "said"), COMING_IN.values(), ids=COMING_IN.keys())
def test_a_child_may_wait_before_it_has_forgotten_its_parent(
    run: RunPython, when: str, action: str, said: str
) -> None:
    """Whoever calls or waits then, on the thread that has to forget, finds it forgotten."""
    source = f"""
        import os, threading
        os.register_at_fork(after_in_child=lambda: before and come_in())
        from staging import *
        from eager_async import eager_stream
        from eager_async._loop_thread import LoopThread

        class LeftBehind(LoopThread):
            def leave_behind(self, kept):
                super().leave_behind(kept)
                if in_midst:
                    in_midst.clear()
                    come_in()

        def come_in():
            signal.alarm(20)  # `fork` sets it too late for this
            {action}

        def refused(ask):
            try:
                ask()
            except LoopClosedError:
                say("closed")

        async def awaited():
            await task

        async def forever():
            await asyncio.Event().wait()

        @eager_stream
        async def generate():
            await forever()
            yield

        before = {when == "before"}
        in_midst = [] if before else [True]
        mine = BackgroundLoop()
        task, stream = eager(daemon=True)(forever)(), generate()
        of_mine = mine.create_task(forever(), daemon=True)
        for loop in (mine, shared_loop()):
            loop._loop_thread.__class__ = LeftBehind
        fork(lambda: say(double(2).result()))
        stream.close()
    """
    check(run(source, options=FORK_WITH_THREADS, timeout=25), said, "4", "child ended 0")


def test_after_a_fork_calls_go_straight_to_open_loops_again(run: RunPython) -> None:
    """In the parent, where they cost what they did; but not to one that was shut down in the meantime."""
    source = """
        import os
        os.register_at_fork(after_in_parent=lambda: mine.shutdown(wait=False))
        from staging import *

        mine = BackgroundLoop()
        work = Work()
        task = mine.create_task(work())
        double(1).result()
        work.begun.wait()
        threads = [loop._loop_thread for loop in (shared_loop(), mine)]
        say([thread.admits for thread in threads])
        fork(lambda: None)
        say([thread.admits for thread in threads])
        work.go_on.set()
        say(task.result())
    """
    check(
        run(source, options=FORK_WITH_THREADS),
        "[True, True]",
        "child ended 0",
        "[True, False]",
        "finally",
        "worked",
    )


@pytest.mark.parametrize("inner", ["before", "after_in_child"])
def test_a_fork_in_the_hooks_of_a_fork(run: RunPython, inner: str) -> None:
    """The outer one's child forgets its parent all the same, before it waits in a hook of its own."""
    source = f"""
        import os, threading, concurrent.futures.thread  # their hooks come first
        forks = []

        def fork_once():
            if not forks:
                forks.append("under way")
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)
                forks.append("done")

        def call():
            if "done" in forks:
                signal.alarm(20)
                say(double(1).result())

        os.register_at_fork({inner}=fork_once)
        os.register_at_fork(after_in_child=call)
        from staging import *

        double(0).result()
        fork(lambda: say(double(2).result()))
        say(double(3).result())
    """
    check(run(source, options=FORK_WITH_THREADS, timeout=25), "2", "4", "child ended 0", "6")


def test_a_child_whose_forgetting_is_interrupted_does_not_wait_for_its_parent(run: RunPython) -> None:
    """Python goes on after a Ctrl-C in a hook; the child's end makes up for it."""
    source = """
        from staging import *
        from eager_async import _fork

        def interrupt_once():
            _fork._to_forget.remove(interrupt_once)
            raise KeyboardInterrupt

        work = Work()
        task = eager(work)()
        work.begun.wait()
        _fork._to_forget.insert(0, interrupt_once)
        fork(lambda: None)
        work.go_on.set()
        say(task.result())
    """
    process = run(source, options=FORK_WITH_THREADS)
    assert process.stdout.splitlines() == ["child ended 0", "finally", "worked"]
    assert "KeyboardInterrupt" in process.stderr
    assert "the process waits" not in process.stderr


def test_loops_that_start_while_the_rest_is_forgotten_stay(run: RunPython) -> None:
    """They are the child's."""
    source = """
        from staging import *

        class Loop(BackgroundLoop):
            def __setattr__(self, name, value):
                super().__setattr__(name, value)
                if name == "_lock" and os.getpid() != parent and not threads:
                    threads.append("to come")
                    threads[:] = own_threads()

        def own_threads():
            return [loop.create_task(own_thread.__wrapped__()).result() for loop in loops]

        threads, parent = [], os.getpid()
        loops = [Loop() for _ in range(4)]
        own_threads()
        fork(lambda: say(threads == own_threads()))
    """
    check(run(source, options=FORK_WITH_THREADS), "True", "child ended 0")


@pytest.mark.parametrize(
    "fault",
    ["os.getpid = lambda: 1", "os.register_at_fork(after_in_child=lambda: _fork._forking.clear())"],
    ids=["same process id", "no hook before"],
)
def test_a_child_that_looks_like_its_parent_forgets_it_all_the_same(run: RunPython, fault: str) -> None:
    """One that has its id, in a new namespace; or that C code has forked without telling Python before."""
    source = f"""
        import os, threading
        {fault}
        from staging import *
        from eager_async import _fork

        task = eager(daemon=True)(asyncio.Event().wait)()
        double(1).result()

        def child():
            say(double(2).result(), type(task.exception()).__name__)

        fork(child)
        fork(child)
    """
    lines = ["4 LoopClosedError", "child ended 0"]
    check(run(source, options=FORK_WITH_THREADS), *lines, *lines)


def test_a_child_waits_for_what_a_finalizer_starts_while_it_forgets_its_parent(run: RunPython) -> None:
    """Its calls are the child's, wherever the collector comes in."""
    source = """
        import gc, os, threading
        gc.disable()
        os.register_at_fork(after_in_child=gc.enable)
        from staging import *

        @eager
        async def clean():
            await asyncio.sleep(0.01)
            say("cleaned")

        class Connection:
            def __init__(self):
                self.cycle = self

            def __del__(self):
                if os.getpid() != parent:
                    clean()

        parent = os.getpid()
        forever = eager(daemon=True)(asyncio.Event().wait)
        tasks = [forever() for _ in range(300)]
        for allocations in range(1, 700, 70):
            gc.collect()
            gc.set_threshold(allocations)
            Connection()
            fork(gc.collect)
    """
    check(run(source, options=FORK_WITH_THREADS), *["cleaned", "child ended 0"] * 10)
