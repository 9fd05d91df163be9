"""What every test gets: a shared loop of its own, and a check that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

import eager_async
from eager_async import BackgroundLoop, set_shared_loop, shared_loop
from threads import frequent_switches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

pytest.register_assert_rewrite("programs")  # it asserts for the tests that import it

LOOP_FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if sys.platform != "win32":
    import uvloop

    LOOP_FACTORIES["uvloop"] = uvloop.new_event_loop

# For programs in processes of their own: the package of these tests, and stacks from a program that hangs.
_PROGRAM_ENVIRONMENT = {
    "PYTHONPATH": str(Path(eager_async.__file__).parents[1]),
    "PYTHONFAULTHANDLER": "1",
    "PYTHONIOENCODING": "utf-8",
}
_DUMP_STACKS = signal.SIGTERM if sys.platform == "win32" else signal.SIGABRT

# Programs inherit that it is ignored, as under `nohup`; but tests press Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Seconds for a thread that has nothing left to do until it is gone.
_THREAD_END = 5

# Seconds without a turn that are no slow machine's. Tests of stalls make loops of their own.
_STALL = 60


class LogWatch(logging.Handler):
    """Collects what is logged as a warning or worse, and compares it with what the test expects."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._expected: list[str] = []
        self._texts: list[str] = []  # not the records, which would keep frames and so objects alive

    def emit(self, record: logging.LogRecord) -> None:
        """Keep message and traceback. In whichever thread logs."""
        self._texts.append(f"{record.name} {record.levelname}: {self.format(record)}")

    def expect(self, pattern: str) -> None:
        """Declare one record: a regular expression found in its message or traceback."""
        self._expected.append(pattern)

    def problems(self) -> Iterator[str]:
        """Name what was logged and not expected, and the other way round."""
        unexpected = list(self._texts)
        for pattern in self._expected:
            found = next((text for text in unexpected if re.search(pattern, text, re.DOTALL)), None)
            if found is None:
                yield f"never logged: {pattern!r}"
            else:
                unexpected.remove(found)
        yield from (f"logged unexpectedly: {text}" for text in unexpected)


@pytest.fixture
def _log_watch() -> Iterator[LogWatch]:
    watch = LogWatch()
    loggers = [logging.getLogger(name) for name in ("eager_async", "asyncio")]
    for logger in loggers:
        logger.addHandler(watch)
    yield watch
    for logger in loggers:
        logger.removeHandler(watch)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(_log_watch: LogWatch) -> Iterator[None]:
    """Give the test a fresh shared loop; fail it if it leaks a task, a thread or a log record."""
    gc.collect()
    gc.freeze()  # what is left is pytest's; the collection after the test needn't look at it
    threads_before = set(threading.enumerate())
    own_loop = BackgroundLoop(name="eager-async-test", blocked_after=_STALL)
    loop_before = set_shared_loop(own_loop)
    yield
    problems = []
    for loop in {own_loop, shared_loop()}:
        problems += [f"left unfinished: {task!r}" for task in loop.tasks() if not task.done()]
        loop.shutdown(cancel_futures=True)
    set_shared_loop(loop_before)
    for thread in set(threading.enumerate()) - threads_before:
        thread.join(_THREAD_END)
        if thread.is_alive():
            problems.append(f"left running: {thread!r}")
    gc.collect()  # reports the exceptions that nobody has retrieved
    problems += _log_watch.problems()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the tests marked as `untraced` while coverage measures; `.ci/run` runs them by themselves."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        for item in items:
            if marker := item.get_closest_marker("untraced"):
                item.add_marker(pytest.mark.skip(reason=f"not under coverage: {marker.args[0]}"))


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    with frequent_switches():
        yield


@pytest.fixture
def expected_log(_log_watch: LogWatch) -> Callable[[str], None]:
    r"""Declare a warning or worse that the test is to log, as in `expected_log(r"fetch\(\) called at")`.

    Each call declares one record. The regular expression is searched in message and traceback.
    """
    return _log_watch.expect


@pytest.fixture(params=LOOP_FACTORIES.values(), ids=LOOP_FACTORIES.keys())
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Run the test once for each kind of event loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = request.param
    return factory


class RunPython(Protocol):
    """The type of the fixture `run_python`."""

    def __call__(
        self,
        source: str,
        *,
        timeout: float = 30,
        args: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        options: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, in a directory of its own, to its end.

        Args:
            source: The program; it may be indented.
            timeout: In seconds. The test fails with every thread's stack if the program takes longer.
            args: What follows the program on its command line.
            env: Added to the environment; None takes a variable out.
            options: For the interpreter, such as `-X`, `dev`.
        """


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run a program, named `program.py`, in a fresh process in which every warning is an error."""

    def run(
        source: str,
        *,
        timeout: float = 30,
        args: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        options: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        __tracebackhide__ = True
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(source), encoding="utf-8")
        command = [sys.executable, "-W", "error", *options, program.name, *args]
        variables = {**os.environ, **_PROGRAM_ENVIRONMENT, **(env or {})}
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        late = False
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            late = True
            process.send_signal(_DUMP_STACKS)
            stdout, stderr = process.communicate()
        if late:
            pytest.fail(f"still running after {timeout} s\nstdout:\n{stdout}\nstderr:\n{stderr}")
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    return run


@pytest.fixture
def run(run_python: RunPython, tmp_path: Path, request: pytest.FixtureRequest) -> RunPython:
    """Run a program that may import what the test's module has in STAGING, from `staging`."""
    (tmp_path / "staging.py").write_text(request.module.STAGING, encoding="utf-8")
    return run_python
