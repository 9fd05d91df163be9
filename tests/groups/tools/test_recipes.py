"""Recipes that are programs: pytest, unittest, tqdm, uvloop, OpenTelemetry, modules that are reloaded."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import eager_async
from eager_async import EagerTask, eager, shared_loop
from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from opentelemetry.sdk.trace import ReadableSpan

    from conftest import RunPython

RECIPES = Path(__file__).parents[2] / "recipes"


def source_of(recipe: str) -> str:
    """The text of a recipe."""
    return (RECIPES / recipe).read_text(encoding="utf-8")


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """What bodies wait for; it is set at the end in any case, lest a thread hang."""
    event = threading.Event()
    yield event
    event.set()


# Test frameworks


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_pytest_asyncio_runs_tests_of_eager_functions(mode: str, tmp_path: Path) -> None:
    """In both modes, in auto mode without marks; each test has a loop of its own."""
    source = source_of("testing_with_pytest.py")
    if mode == "auto":
        source = source.replace("@pytest.mark.asyncio\n", "")
    (tmp_path / "test_recipe.py").write_text(source, encoding="utf-8")
    options = ["-W", "error", "-o", "asyncio_default_fixture_loop_scope=function", f"--asyncio-mode={mode}"]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", *options],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    passed = re.findall(r"^PASSED test_recipe\.py::(\w+)$", process.stdout, re.MULTILINE)
    assert sorted(passed) == sorted(re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE))
    assert (process.returncode, process.stderr) == (0, ""), process.stdout
    assert re.search(r"= 5 passed in ", process.stdout)


def test_unittest_runs_tests_of_eager_functions(run_python: RunPython) -> None:
    """`IsolatedAsyncioTestCase` awaits tasks, also those of test methods that are eager themselves."""
    process = run_python(source_of("testing_with_unittest.py"), args=["--verbose"])
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("... ok\n") == 5
    assert process.stderr.endswith("\nOK\n")


@pytest.mark.parametrize("recipe", ["testing_with_pytest.py", "testing_with_unittest.py"])
def test_a_test_that_should_fail_fails(recipe: str, tmp_path: Path) -> None:
    """An eager test method isn't passed over: what it asserts counts."""
    source = source_of(recipe).replace('return f"page {number}"', 'return f"leaf {number}"')
    (tmp_path / "test_recipe.py").write_text(source, encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-rf", "-o", "asyncio_default_fixture_loop_scope=function"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    failed = re.findall(r"^FAILED test_recipe\.py::(?:\w+::)?(\w+)", process.stdout, re.MULTILINE)
    assert "test_on_the_background_loop" in failed, process.stdout
    assert process.returncode == 1


# Progress bars


def test_progress_bars_take_tasks(run_python: RunPython) -> None:
    """Those of tqdm count up to the last task: over `as_completed`, and in tqdm's own functions."""
    process = run_python(source_of("progress.py"))
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == ["highest: 24", "in order: [15, 16, 17]", "on average: 19.5"]
    ends = re.findall(r"(plain|gather|as they come): 100%\|[^|]*\| (\d+/\d+) ", process.stderr)
    # The last state of a bar may be drawn twice.
    assert set(ends) == {("plain", "50/50"), ("gather", "50/50"), ("as they come", "50/50")}


# uvloop


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop")
def test_uvloop_may_be_the_shared_loop(run_python: RunPython) -> None:
    """Servers and clients run on it; plain code and asyncio's own loop use them."""
    process = run_python(source_of("uvloop_shared.py"))
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines() == [
        "plain code asks uvloop: ['a', 'b']",
        "asyncio awaits uvloop: ['c', 'd']",
    ]


# OpenTelemetry


def test_spans_have_their_callers_span_as_parent(run_python: RunPython) -> None:
    """Also where eager functions call eager functions: the whole tree is that of undecorated functions."""
    process = run_python(source_of("tracing.py"))
    assert (process.returncode, process.stderr) == (0, "")
    one_report = ["query orders", "query payments"]
    assert process.stdout.splitlines() == [
        line
        for number in (1, 2)
        for line in [
            f"request {number}",
            "  report Ada",
            *(f"    {query}" for query in one_report),
            "  report Bob",
            *(f"    {query}" for query in one_report),
        ]
    ]


class Tracing:
    """A tracer, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer(__name__)

    def parents(self) -> dict[str, str | None]:
        """Each span's name with its parent's."""
        spans = self._exporter.get_finished_spans()
        names = {span.context.span_id: span.name for span in spans}
        return {span.name: names[span.parent.span_id] if span.parent else None for span in spans}

    def span(self, name: str) -> ReadableSpan:
        """The span of that name."""
        return next(span for span in self._exporter.get_finished_spans() if span.name == name)


@pytest.fixture
def tracing(caplog: pytest.LogCaptureFixture) -> Iterator[Tracing]:
    """A tracer that has no cause to complain, as it does when contexts get mixed up."""
    yield Tracing()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_span_in_the_body_is_not_the_callers(tracing: Tracing, go_on: threading.Event) -> None:
    """While the body's span is open, the caller's current span stays the caller's own."""
    opened = threading.Event()

    @eager
    async def body(name: str) -> None:
        with tracing.tracer.start_as_current_span(name):
            opened.set()
            await asyncio.to_thread(go_on.wait)

    with tracing.tracer.start_as_current_span("plain caller") as span:
        task = body("first body")
        assert opened.wait(PATIENCE)
        assert trace.get_current_span() is span
        go_on.set()
        task.result()
        assert trace.get_current_span() is span

    async def main() -> None:
        with tracing.tracer.start_as_current_span("async caller") as span:
            await body("second body")
            assert trace.get_current_span() is span

    asyncio.run(main())
    assert tracing.parents() == {
        "first body": "plain caller",
        "plain caller": None,
        "second body": "async caller",
        "async caller": None,
    }


def test_callers_in_many_threads_each_have_their_own_spans(tracing: Tracing) -> None:
    """Tasks that take turns on one loop don't see each other's spans."""

    @eager
    async def inner(number: int) -> None:
        for turn in range(5):
            with tracing.tracer.start_as_current_span(f"inner {number} {turn}"):
                await asyncio.sleep(0.001)

    @eager
    async def outer(number: int) -> None:
        with tracing.tracer.start_as_current_span(f"outer {number}"):
            await asyncio.gather(inner(2 * number), inner(2 * number + 1))

    def call(number: int) -> None:
        with tracing.tracer.start_as_current_span(f"caller {number}"):
            outer(number).result()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(16)))
    expected: dict[str, str | None] = {}
    for number in range(16):
        expected[f"caller {number}"] = None
        expected[f"outer {number}"] = f"caller {number}"
        for turn in range(5):
            expected[f"inner {2 * number} {turn}"] = f"outer {number}"
            expected[f"inner {2 * number + 1} {turn}"] = f"outer {number}"
    assert tracing.parents() == expected


def test_a_span_records_how_the_body_ended(tracing: Tracing) -> None:
    """A failure and a cancellation close the spans of the body, and mark them as they would undecorated."""
    waiting = threading.Event()

    @eager
    async def failing() -> None:
        with tracing.tracer.start_as_current_span("failing"):
            await asyncio.sleep(0)
            raise LookupError("no such page")

    @eager
    async def endless() -> None:
        with tracing.tracer.start_as_current_span("endless"):
            waiting.set()
            await asyncio.Event().wait()

    with pytest.raises(LookupError):
        failing().result()
    task = endless()
    assert waiting.wait(PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        task.result()
    assert tracing.span("failing").status.description == "LookupError: no such page"
    assert tracing.span("endless").end_time is not None


# Modules that are reloaded


def test_a_module_may_be_reloaded(run_python: RunPython) -> None:
    """A task under way ends as it began, new calls run the new code, and there is still one loop."""
    process = run_python(source_of("reloading.py"))
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines() == [
        "under way: done by version 1",
        "called anew: done by version 2",
        "same loop: True",
        "more threads: 0",
    ]


JOBS = """
import asyncio, threading
from eager_async import EagerTask, eager

@eager
async def inner(go_on: threading.Event) -> str:
    await asyncio.to_thread(go_on.wait)
    return VERSION

@eager
async def outer(go_on: threading.Event) -> list[str]:
    return [VERSION, await inner(go_on)]

class Client:
    @eager
    async def ask(self) -> str:
        return VERSION
"""


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Write a version of the module `jobs`, and import or reload it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would hide edits within one second

    def write_and_load(version: str) -> ModuleType:
        (tmp_path / "jobs.py").write_text(f"VERSION = {version!r}\n{JOBS}", encoding="utf-8")
        importlib.invalidate_caches()
        if "jobs" in sys.modules:
            return importlib.reload(sys.modules["jobs"])
        return importlib.import_module("jobs")

    yield write_and_load
    del sys.modules["jobs"]


def test_functions_objects_and_tasks_from_before_a_reload_still_work(
    edit: Callable[[str], ModuleType], go_on: threading.Event
) -> None:
    """Whoever has kept one uses it as before, with the same loop and thread, however often that happens."""
    jobs = edit("version 0")
    kept_function, kept_client, under_way = jobs.outer, jobs.Client(), jobs.outer(go_on)
    loop = shared_loop().asyncio_loop
    tasks: list[EagerTask[list[str]]] = []
    for number in range(1, 6):
        assert edit(f"version {number}") is jobs
        tasks += [kept_function(go_on), jobs.outer(go_on)]
    assert not any(task.done() for task in [under_way, *tasks])
    assert kept_client.ask().result() == jobs.Client().ask().result() == "version 5"
    go_on.set()
    assert under_way.result()[1] == "version 5"  # the globals of a module are those of its last load
    assert [task.result()[1] for task in tasks] == ["version 5"] * 10
    assert shared_loop().asyncio_loop is loop
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith("eager-async")] == ["eager-async-test"]


def test_the_package_itself_may_be_reloaded(go_on: threading.Event) -> None:
    """`importlib.reload(eager_async)` makes no second loop, and old and new names are the same."""

    @eager
    async def wait() -> str:
        await asyncio.to_thread(go_on.wait)
        return "waited"

    task = wait()
    loop = shared_loop()
    reloaded = importlib.reload(eager_async)
    assert reloaded.shared_loop() is loop
    assert reloaded.EagerTask is EagerTask
    go_on.set()
    assert [task.result(), reloaded.eager(wait.__wrapped__)().result()] == ["waited", "waited"]  # type: ignore[attr-defined]
