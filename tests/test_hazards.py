"""Faults that other libraries have had, and that no other test here is about."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from eager_async import eager, shared_loop
from programs import FORK_WITH_THREADS, has_fork
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import RunPython


@eager
async def double(number: int) -> int:
    """Do something that suspends."""
    await asyncio.sleep(0)
    return 2 * number


def test_a_body_that_imports_the_module_which_waits_for_it_is_named(run_python: RunPython) -> None:
    """Waiting while a module is imported, for a body that imports it, is a deadlock on the import lock.

    Nobody can detect it, but the warning of a blocked loop shows the line, and a timeout gets out of it.
    """
    source = """
        import logging
        import pathlib
        import sys
        import threading

        from eager_async import BackgroundLoop, set_shared_loop

        class Watch(logging.Handler):
            def emit(self, record):
                print(*[line.strip() for line in record.getMessage().splitlines() if "import mine" in line])
                warned.set()

        warned = threading.Event()
        sys.warned = warned
        logging.getLogger("eager_async").addHandler(Watch())
        set_shared_loop(BackgroundLoop(blocked_after=0.05))
        pathlib.Path("mine.py").write_text('''if True:
            import sys

            from eager_async import ResultTimeoutError, eager

            @eager
            async def read():
                import mine
                return mine.value

            task = read()
            while not sys.warned.is_set():
                try:
                    task.result(0.2)
                except ResultTimeoutError:
                    pass
            value = "imported"
        ''')
        import mine
        print(mine.task.result())
    """
    process = run_python(source)
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    assert process.stdout.splitlines() == ["import mine" if gil else "", "imported"], process.stderr
    assert (process.returncode, process.stderr) == (0, "")


def test_an_abandoned_async_generator_is_closed_while_the_loop_runs() -> None:
    """A generator that a body leaves halfway is closed on the loop, cleanup included, without a shutdown."""
    cleaned_in: list[int] = []
    cleaned = threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(0)
            cleaned_in.append(threading.get_ident())
            cleaned.set()

    @eager
    async def first() -> int:
        async for number in numbers():
            return number
        return -1

    @eager
    async def own_ident() -> int:
        return threading.get_ident()

    assert first().result() == 0
    gc.collect()
    assert cleaned.wait(PATIENCE)
    assert cleaned_in == [own_ident().result()]


def test_the_loop_has_no_task_factory_of_the_librarys() -> None:
    """Eager functions start at once; asyncio's own tasks start on the loop's next turn, as everywhere."""
    order: list[str] = []

    async def note(text: str) -> None:
        order.append(text)

    @eager
    async def body() -> None:
        plain = asyncio.create_task(note("asyncio's"))
        own = eager(note)("eager")
        order.append("body")
        await plain
        await own

    body().result()
    assert order == ["eager", "body", "asyncio's"]
    assert shared_loop().asyncio_loop.get_task_factory() is None


def test_the_switch_interval_stays() -> None:
    """Calls, waits and shutdowns leave `sys.setswitchinterval` as the program has set it."""
    seen: list[float] = []

    @eager
    async def look() -> None:
        seen.append(sys.getswitchinterval())
        await asyncio.sleep(0)
        seen.append(sys.getswitchinterval())

    before = sys.getswitchinterval()
    sys.setswitchinterval(0.00321)
    try:
        expected = sys.getswitchinterval()
        tasks = [look() for _ in range(5)]
        concurrent.futures.wait(tasks)
        seen.append(sys.getswitchinterval())
        shared_loop().shutdown()
        seen.append(sys.getswitchinterval())
    finally:
        sys.setswitchinterval(before)
    assert seen == [expected] * 12


@has_fork
@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        ("return 'done'", "done"),
        ("raise ValueError('own')", "own"),
        ("raise asyncio.CancelledError('own')", "own"),
    ],
    ids=["returned", "raised", "cancelled"],
)
def test_a_task_that_is_done_at_the_fork_keeps_its_outcome(
    run_python: RunPython, ending: str, outcome: str
) -> None:
    """That holds from the moment when it says that it is done, be its callbacks still to come."""
    source = f"""
        import asyncio, concurrent.futures, os, signal, threading
        from eager_async import eager

        @eager
        async def body():
            while not go_on.is_set():
                await asyncio.sleep(0.001)
            {ending}

        def callback(task):
            reached.set()
            release.wait()

        def look():
            try:
                return task.result(0)
            except (Exception, asyncio.CancelledError) as exc:
                return exc

        go_on, reached, release = threading.Event(), threading.Event(), threading.Event()
        task = body()
        task.add_done_callback(callback)
        concurrent.futures.wait([task], timeout=0)
        go_on.set()
        reached.wait()
        print(task.done(), look(), flush=True)
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            called = []
            task.add_done_callback(called.append)
            concurrent.futures.wait([task])
            print(task.done(), look(), called == [task], task.cancel(), flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), look())
        release.set()
    """
    process = run_python(source, options=FORK_WITH_THREADS)
    expected = [f"True {outcome}", f"True {outcome} True False", f"0 {outcome}"]
    assert process.stdout.splitlines() == expected, process.stderr
    assert (process.returncode, process.stderr) == (0, "")
