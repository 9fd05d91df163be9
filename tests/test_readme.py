"""README.md: all its Python code runs, and prints what it says."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.server
import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from eager_async import eager, shared_loop
from threads import PATIENCE

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    source: str
    heading: str  # the bold words or the heading above it
    below: str  # the text that follows it, up to the next block

    @property
    def is_complete(self) -> bool:
        """Whether it says itself where its names are from; else it goes on from another."""
        return "from eager_async import" in self.source

    @property
    def expected_output(self) -> str:
        """What its comments say that each `print` prints, a line each; `...` stands for anything."""
        comments = re.findall(r"^ *print\(.*\)  # (.*)$", self.source, re.MULTILINE)
        return "".join(f"{comment}\n" for comment in comments)


def _blocks() -> Iterator[Block]:
    end = 0
    headings = ""
    fences = list(re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
    for fence, following in zip(fences, [*fences[1:], None], strict=True):
        headings += README[end : fence.start()]
        end = fence.end()
        heading = re.findall(r"(?:^#+ |^(?:- )?\*\*)([\w ]+)", headings, re.MULTILINE)[-1]
        below = README[end : following.start() if following else None]
        yield Block(fence[1], fence[2], heading, below)


BLOCKS = list(_blocks())
PYTHON_BLOCKS = [block for block in BLOCKS if block.language == "python"]
FIRST = PYTHON_BLOCKS[0]
FLASK = next(block for block in PYTHON_BLOCKS if "app.route" in block.source)
CLIENT = next(block for block in PYTHON_BLOCKS if "aiohttp.ClientSession" in block.source)
TEST_FIXTURE = next(block for block in PYTHON_BLOCKS if "pytest.fixture" in block.source)
TO_BE_RUN = [
    block
    for block in PYTHON_BLOCKS
    if block is not TEST_FIXTURE and not (sys.platform == "win32" and "uvloop" in block.source)
]


class Pages(http.server.BaseHTTPRequestHandler):
    """The pages that the README asks for."""

    server: Website
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send `/pages/1`; let `/slow` wait; miss all others."""
        if self.path == "/slow":
            self.server.ending.wait()
            self.close_connection = True
            return
        found = re.fullmatch(r"/pages/(\d+)", self.path)
        body = f"page {found[1]}".encode() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Keep quiet."""


class Website(http.server.ThreadingHTTPServer):
    """A server for the README's `http://localhost:8000`, on whatever port is free."""

    daemon_threads = False  # so that closing waits for them
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Pages)
        self.ending = threading.Event()


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a server that runs."""
    with Website() as website:
        thread = threading.Thread(target=website.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{website.server_port}"
        website.ending.set()
        website.shutdown()
        thread.join()


class Flask:
    """What a block needs of Flask: it keeps the views. The recipe for Flask is tested with the real one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.views: list[Callable[[], object]] = []

    def route(self, _: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
        """Register a view."""

        def register(view: Callable[[], object]) -> Callable[[], object]:
            self.views.append(view)
            return view

        return register


class ReadmeCode:
    """Runs blocks, each in a namespace of its own."""

    def __init__(self, address: str) -> None:
        self._address = address

    @contextlib.contextmanager
    def run(self, block: Block) -> Iterator[tuple[str, dict[str, Any]]]:
        """Run a block, after that which makes the client if it isn't complete.

        Yields:
            What it has printed, and its names.
        """
        namespace: dict[str, Any] = {"__name__": "app"}
        try:
            if not block.is_complete:
                self._run(CLIENT, namespace)
            output = self._run(block, namespace)
            concurrent.futures.wait(shared_loop().tasks(), PATIENCE)
            yield output, namespace
        finally:
            if "session" in namespace:
                eager(namespace["session"].close)().result(PATIENCE)
            if "client" in namespace:
                eager(namespace["client"]().aclose)().result(PATIENCE)

    def _run(self, block: Block, namespace: dict[str, Any]) -> str:
        source = block.source.replace("http://localhost:8000", self._address)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(source, "app.py", "exec", dont_inherit=True), namespace)
        return output.getvalue()


@pytest.fixture
def readme_code(address: str, monkeypatch: pytest.MonkeyPatch) -> ReadmeCode:
    """Runs blocks against a server of this test."""
    monkeypatch.setitem(sys.modules, "flask", SimpleNamespace(Flask=Flask))
    return ReadmeCode(address)


def matches(output: str, expected: str) -> bool:
    """Whether an output is the one expected, in which `...` stands for anything, and ages may differ."""
    output, expected = (re.sub(r"running for \d+\.\d s", "running", text) for text in (output, expected))
    return re.fullmatch(".*".join(map(re.escape, expected.split("..."))), output, re.DOTALL) is not None


@pytest.mark.parametrize("block", TO_BE_RUN, ids=[block.heading.strip() for block in TO_BE_RUN])
def test_code_runs_and_prints_what_its_comments_say(block: Block, readme_code: ReadmeCode) -> None:
    """Each block runs as it stands, and leaves nothing running."""
    with readme_code.run(block) as (output, _):
        if block is not FIRST:
            assert matches(output, block.expected_output), output


def test_the_first_example_prints_what_the_text_below_it_says(readme_code: ReadmeCode) -> None:
    """Six lines below the imports, and their output is quoted right after them."""
    lines = [line for line in FIRST.source.splitlines() if line and "import" not in line]
    assert len(lines) == 6
    with readme_code.run(FIRST) as (output, _):
        assert FIRST.below.startswith(f"\n\nprints `{output.rstrip()}`")


def test_a_plain_view_returns_the_results(readme_code: ReadmeCode) -> None:
    """The view for Flask is a plain function that returns all pages in their order, or 504."""
    with readme_code.run(FLASK) as (_, namespace):
        (view,) = namespace["app"].views
        assert view() == ["page 1", "page 2", "page 3"]
        fetch = namespace["fetch"]
        namespace["fetch"] = lambda path: fetch("/slow" if path == "/pages/2" else path)
        code = FLASK.source.replace("timeout=5", "timeout=0.05")
        exec(code[code.index("@app.route") :], namespace)
        assert namespace["overview"]() == ("too slow", 504)


def test_the_fixture_gives_each_test_a_loop_of_its_own(tmp_path: Path) -> None:
    """A task that one test leaves running doesn't reach the next, nor the end of the run."""
    (tmp_path / "conftest.py").write_text(TEST_FIXTURE.source, encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        """
import asyncio
from eager_async import eager, shared_loop

loops = []

@eager
async def forever():
    await asyncio.Event().wait()

def test_leaves_a_task(own_loop):
    forever()
    loops.append(own_loop)
    assert shared_loop() is own_loop

def test_finds_none(own_loop):
    assert loops[0].tasks() == shared_loop().tasks() == set()
    assert loops[0] is not own_loop
""",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    process = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (process.returncode, process.stderr) == (0, ""), process.stdout
    assert "2 passed" in process.stdout


def test_commands_stand_on_a_line_each() -> None:
    """One command shows the demonstration, one runs the tests; CI takes them from here."""
    assert [block.source.splitlines() for block in BLOCKS if block.language == "sh"] == [
        ["pip install . && python -m eager_async", "pip install -e '.[test]' && python -m pytest"]
    ]


def test_no_other_code_escapes_these_tests() -> None:
    """All blocks are Python, or one of the commands."""
    assert {block.language for block in BLOCKS} == {"python", "sh"}
    assert README.count("```") == 2 * len(BLOCKS)


def test_supported_versions_are_those_of_the_package() -> None:
    """The README names the Pythons that `pyproject.toml` admits and lists."""
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', project)
    assert f"CPython 3.{versions[0]} to 3.{versions[-1]}" in README
    assert f'requires-python = ">=3.{versions[0]}"' in project
