"""In a Jupyter notebook: a real kernel, in a process of its own, runs the cells."""

from __future__ import annotations

import asyncio
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTEBOOK = Path(__file__).parents[2] / "recipes" / "notebook.ipynb"
TRANSPORT = "tcp" if sys.platform == "win32" else "ipc"
PATIENCE = 60  # seconds: for a kernel to start, for a cell to end
STAGING = """
import asyncio, os, threading
from eager_async import BackgroundLoop, eager, set_shared_loop, shared_loop

go_on = threading.Event()

@eager
async def work():
    try:
        await asyncio.to_thread(go_on.wait)
        return "worked"
    except asyncio.CancelledError:
        go_on.set()  # for the thread
        raise

def say(text):
    os.write(2, f"{text}\\n".encode())
"""


class Cell:
    """What a cell has shown."""

    def __init__(self) -> None:
        self.printed = ""
        self.result: str | None = None
        self.error: str | None = None
        self.traceback = ""


class Kernel:
    """A kernel with which a test talks as a notebook does."""

    def __init__(self, manager: KernelManager, log: Path) -> None:
        self.manager = manager
        self._log = log
        self._stream = log.open("wb")
        manager.start_kernel(stdout=self._stream, stderr=self._stream)
        self.process = manager.provisioner.process
        self.client = manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)
        self._cells: dict[str, Cell] = {}  # by the message that has sent them

    def run(self, code: str, *, when_printed: tuple[str, Callable[[], object]] | None = None) -> Cell:
        """Run a cell to its end; do something when it has printed a line."""
        request = self.client.execute(textwrap.dedent(code))
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            cell = self._cell_of(message)
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    cell.printed += content["text"]
                    if when_printed is not None and when_printed[0] in content["text"].splitlines():
                        when_printed[1]()
                case "execute_result":
                    cell.result = content["data"]["text/plain"]
                case "error":
                    cell.error = content["ename"]
                    cell.traceback = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"]))
                case "status" if content["execution_state"] == "idle" and cell is self._cells.get(request):
                    return cell

    def run_well(self, code: str) -> str | None:
        """Run a cell that has to succeed; return its result."""
        cell = self.run(code)
        assert cell.error is None, cell.traceback
        return cell.result

    def _cell_of(self, message: dict[str, Any]) -> Cell:
        return self._cells.setdefault(message["parent_header"].get("msg_id"), Cell())  # some have no parent

    def interrupt(self) -> None:
        """Press the stop button."""
        self.manager.interrupt_kernel()

    def log(self) -> list[str]:
        """What the kernel's processes have written to their own stdout and stderr."""
        return self._log.read_text(encoding="utf-8").splitlines()

    def restart(self) -> None:
        """Press the restart button."""
        self.manager.restart_kernel()
        self.client.wait_for_ready(timeout=PATIENCE)

    def end(self) -> None:
        """Leave nothing behind."""
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
        self._stream.close()


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Jupyter leave its files in the test's folder, and find none elsewhere."""
    for variable in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel in which STAGING has been run."""
    started = Kernel(KernelManager(transport=TRANSPORT), tmp_path / "kernel.log")
    try:
        started.run_well(STAGING)
        yield started
    finally:
        started.end()


class InterruptingClient(NotebookClient):
    """Presses stop when a cell asks for that."""

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str, cell_index: int) -> Any:
        """Take what a cell puts out."""
        if "press stop now" in msg["content"].get("text", ""):
            self.interrupting = asyncio.ensure_future(self.km.interrupt_kernel())
        return super().output(outs, msg, display_id, cell_index)


def text_of(outputs: list[dict[str, Any]]) -> str:
    """What stands below a cell."""
    texts = {
        "stream": lambda output: output["text"],
        "execute_result": lambda output: output["data"]["text/plain"],
        "error": lambda output: f"{output['ename']}: {output['evalue']}",
    }
    return "".join(texts[output["output_type"]](output) for output in outputs)


def test_the_recipe_does_what_it_says() -> None:
    """A call in one cell, polled in the next, awaited in a third; errors, Ctrl-C; tasks that read well."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    InterruptingClient(notebook, timeout=PATIENCE).execute()
    shown = [text_of(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    expected = [
        r"",
        r"<EagerTask .*fetch\(\).* (pending|running) for \d\.\d s, called at .*:1>",
        r"False",
        r"'Hello, Ada!'",
        r"<EagerTask .*fetch\(\).* returned 'Hello, Ada!', called at .*:1>",
        r"\['Hello, Bob!', 'Hello, Eve!', 'Hello, Mallory!'\]",
        r"ValueError: nobody has no name",
        r"press stop now, or let it go on\nKeyboardInterrupt: ",
        r"'Hello, Trent!'",
        r"",
    ]
    assert len(shown) == len(expected)
    for text, pattern in zip(shown, expected, strict=True):
        assert re.fullmatch(pattern, text)


def test_what_a_body_prints_stands_below_the_cell_that_called_it(kernel: Kernel) -> None:
    """Also when it prints while a later cell runs: the cell's context has come with the call."""
    calling = kernel.run("""
        @eager
        async def speak():
            await asyncio.to_thread(go_on.wait)
            print("spoken", flush=True)

        task = speak()
    """)
    later = kernel.run("go_on.set(); await task; print('later', flush=True)")
    assert (calling.printed, later.printed) == ("spoken\n", "later\n")


def test_an_error_shows_the_lines_of_the_cells_it_comes_from(kernel: Kernel) -> None:
    """The line that asked for the result, and those in the body and below it, awaited or blocked for."""
    kernel.run_well("""
        async def look_up(name):
            raise LookupError(name)

        @eager
        async def fetch(name):
            await asyncio.sleep(0.01)
            return await look_up(name)
    """)
    for line in ("await fetch('Ada')", "fetch('Ada').result()"):
        cell = kernel.run(line)
        arrows = re.findall(r"^-+> \d+ +(.*)$", cell.traceback, re.MULTILINE)
        assert arrows[0] == line
        assert arrows[-2:] == ["return await look_up(name)", "raise LookupError(name)"]
        assert cell.traceback.endswith("\nLookupError: Ada")


# Ctrl-C


def test_ctrl_c_interrupts_a_cell_that_blocks(kernel: Kernel) -> None:
    """The cell gets KeyboardInterrupt in `result()`, the task runs on, and the next cells can have it."""
    kernel.run_well("""
        @eager
        async def say_and_work():
            await asyncio.sleep(0.2)  # the cell blocks soon
            print("interrupt", flush=True)
            return await work()
    """)
    cell = kernel.run("task = say_and_work()\ntask.result()", when_printed=("interrupt", kernel.interrupt))
    assert cell.error == "KeyboardInterrupt"
    assert re.search(r"^-+> 2 +task\.result\(\)$", cell.traceback, re.MULTILINE)
    assert kernel.run_well("task.running()") == "True"
    assert kernel.run_well("go_on.set(); await task") == "'worked'"


# The kernel's own loop has to turn, or it doesn't notice: ipython/ipykernel#881.
TURN = """
async def turn():
    while True:
        await asyncio.sleep(0.05)

turning = asyncio.create_task(turn())
"""


@pytest.mark.parametrize("call", ["work()", "work.__wrapped__()"], ids=["eager", "undecorated"])
def test_ctrl_c_cancels_what_a_cell_awaits(kernel: Kernel, call: str) -> None:
    """A task as well as the coroutine of an undecorated function."""
    kernel.run_well(TURN)
    cell = kernel.run(
        f"call = asyncio.ensure_future({call})\nprint('interrupt', flush=True)\nawait call",
        when_printed=("interrupt", kernel.interrupt),
    )
    assert cell.error == "CancelledError"
    assert kernel.run_well("call.cancelled(), go_on.is_set(), shared_loop().tasks()") == "(True, True, set())"


def test_ctrl_c_leaves_alone_what_a_cell_awaits_behind_a_shield(kernel: Kernel) -> None:
    """The wait is cancelled, the task runs on."""
    kernel.run_well(TURN)
    cell = kernel.run(
        "task = work()\nprint('interrupt', flush=True)\nawait asyncio.shield(task)",
        when_printed=("interrupt", kernel.interrupt),
    )
    assert cell.error == "CancelledError"
    assert kernel.run_well("go_on.set(); await task") == "'worked'"


# The end of a kernel

UNFINISHED = {
    "daemon": (
        """
        @eager(daemon=True)
        async def keep_watch():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.1)
                say("ended")

        task = keep_watch()
        """
    ),
    "ordinary": (
        """
        @eager
        async def finish():
            await asyncio.sleep(0.5)
            say("ended")

        task = finish()
        """
    ),
}
unfinished = pytest.mark.parametrize("code", UNFINISHED.values(), ids=UNFINISHED.keys())


@unfinished
def test_a_shutdown_ends_unfinished_tasks(kernel: Kernel, code: str) -> None:
    """A daemon cleans up, another task ends by itself; then the kernel is gone, without a word."""
    kernel.run_well(code)
    kernel.manager.shutdown_wait_time = PATIENCE
    kernel.manager.shutdown_kernel()
    assert kernel.log() == ["ended"]
    assert kernel.process.returncode == 0


@unfinished
def test_a_restart_ends_unfinished_tasks(kernel: Kernel, code: str) -> None:
    """As a shutdown does; the new kernel starts from nothing, and eager calls work there."""
    kernel.run_well(code)
    kernel.manager.shutdown_wait_time = PATIENCE
    kernel.restart()
    assert kernel.log() == ["ended"]
    assert kernel.process.returncode == 0
    assert kernel.run("task").error == "NameError"
    kernel.run_well(STAGING)
    assert kernel.run_well("task = work(); go_on.set(); await task") == "'worked'"


ENDLESS = """
@eager
async def endless():
    try:
        await asyncio.Event().wait()
    finally:
        say("cleaned up")

task = endless()
"""


def test_a_restart_does_not_wait_for_ever(kernel: Kernel) -> None:
    """An ordinary task that never ends has as long as Jupyter gives its kernels, and no cleanup after it."""
    kernel.run_well(ENDLESS)
    kernel.manager.shutdown_wait_time = 1
    kernel.restart()
    assert kernel.process.returncode != 0
    assert kernel.log() == []
    assert kernel.run_well("1 + 1") == "2"


def test_an_exit_timeout_spares_endless_tasks_that(kernel: Kernel) -> None:
    """With a loop that has one shorter than Jupyter's patience, their cleanup runs."""
    kernel.run_well("set_shared_loop(BackgroundLoop(exit_timeout=0.2));" + ENDLESS)
    kernel.manager.shutdown_wait_time = PATIENCE
    kernel.manager.shutdown_kernel()
    assert "cleaned up" in kernel.log()
    assert kernel.process.returncode == 0


# Modules that are edited


def test_autoreload_takes_up_edited_functions(kernel: Kernel, tmp_path: Path) -> None:
    """`%autoreload` gives new code to functions, methods and instances that cells have already imported."""
    module = tmp_path / "jobs.py"
    source = """
from eager_async import eager

@eager
async def work(): return {0!r}

class Client:
    @eager
    async def ask(self): return {0!r}

    @eager
    @classmethod
    async def make(cls): return {0!r}

    @staticmethod
    @eager
    async def ping(): return {0!r}
"""
    ask = "[await f() for f in (work, client.ask, Client.make, Client.ping)]"
    module.write_text(source.format("old"), encoding="utf-8")
    kernel.run_well(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.dont_write_bytecode = True")
    kernel.run_well("%load_ext autoreload\n%autoreload 2\nfrom jobs import Client, work\nclient = Client()")
    assert kernel.run_well(ask) == "['old', 'old', 'old', 'old']"
    kernel.run_well("loop, threads = shared_loop().asyncio_loop, threading.active_count()")
    module.write_text(source.format("edited"), encoding="utf-8")
    assert kernel.run_well(ask) == "['edited', 'edited', 'edited', 'edited']"
    same = "shared_loop().asyncio_loop is loop, threading.active_count() - threads"
    assert kernel.run_well(same) == "(True, 0)"
