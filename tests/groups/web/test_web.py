"""The recipes for Flask, FastAPI and Django, each under a real server, with a real service upstream."""

from __future__ import annotations

import concurrent.futures
import http.client
import http.server
import json
import os
import queue
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECIPES = Path(__file__).parents[2] / "recipes"

# What servers say when they are reachable, and what none may say when nothing went wrong.
LISTENING = r"(?:[Rr]unning on|server at|Serving on) http://127\.0\.0\.1:(\d+)"
TROUBLE = re.compile(r"Traceback|Error|[Uu]nclosed|never |ignored|Task ")

# Pages upstream that aren't as others.
MISSING, GARBLED, SILENT, HELD = 404, 500, 600, 700


class Upstream(http.server.ThreadingHTTPServer):
    """A service with pages. It says when requests arrive, and how they end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _UpstreamRequest)
        self.arrived: queue.Queue[str] = queue.Queue()
        self.ended: queue.Queue[tuple[str, str]] = queue.Queue()
        self.request_ids: queue.Queue[str] = queue.Queue()
        self.meeting: threading.Barrier | None = None  # where requests wait for each other
        self.release = threading.Event()  # what requests for the page HELD wait for
        self.silent = False  # whether requests wait for the other side to hang up, as for the page SILENT

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _UpstreamRequest(http.server.BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        page = self.path.rpartition("/")[2]
        self.server.request_ids.put(self.headers.get("X-Request-ID", ""))
        self.server.arrived.put(self.path)
        if page == str(SILENT) or self.server.silent:
            self.connection.recv(1)  # returns when the other side hangs up
        elif page == str(HELD):
            self.server.release.wait(PATIENCE)
        elif self.server.meeting is not None:
            self.server.meeting.wait(PATIENCE)
        if select.select([self.connection], [], [], 0)[0]:
            self.server.ended.put((self.path, "given up"))
            self.close_connection = True
            return
        body = "{" if page == str(GARBLED) else json.dumps({"title": self.path.strip("/").replace("s/", " ")})
        self.send_response(404 if page == str(MISSING) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if page != str(HELD):  # whose connection is left for the recipe to close
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body.encode())
        self.server.ended.put((self.path, "answered"))

    def log_message(self, *args: object) -> None:
        """Be quiet."""


class Setup(NamedTuple):
    """A recipe and the server that runs it."""

    command: list[str]
    fan_outs: list[str]  # the paths of views that ask for pages 1, 2 and 3 upstream


DJANGO = ["/overview", "/async-overview"]
SETUPS = {
    "flask-werkzeug": Setup(["-m", "flask", "--app=flask_app", "run", "--port=0"], ["/overview"]),
    "flask-waitress": Setup(["-m", "waitress", "--listen=127.0.0.1:0", "flask_app:app"], ["/overview"]),
    "fastapi-uvicorn": Setup(
        ["-m", "uvicorn", "--port=0", "fastapi_app:app"], ["/overview", "/plain-overview"]
    ),
    "django-runserver": Setup(["django_app.py", "runserver", "--noreload", "127.0.0.1:0"], DJANGO),
    "django-uvicorn": Setup(["-m", "uvicorn", "--port=0", "--lifespan=off", "django_app:asgi"], DJANGO),
}


class Server:
    """A recipe that runs in a process of its own."""

    def __init__(self, name: str, upstream: Upstream, folder: Path, *, patience: float = PATIENCE) -> None:
        self.setup = SETUPS[name]
        self.database = folder / "pages.sqlite3"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "default::ResourceWarning:asyncio.selector_events", *self.setup.command],
            cwd=RECIPES,
            env={
                **os.environ,
                "UPSTREAM": upstream.url,
                "PATIENCE": str(patience),
                "DATABASE": str(self.database),
                "PYTHONFAULTHANDLER": "1",
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self.log: list[str] = []
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._logged:
                    self.log.append(line.rstrip())
                    self._logged.notify_all()

    def wait_for_line(self, pattern: str) -> str:
        """Wait until a line matches; return what the first group of the pattern matched, or the whole."""
        with self._logged:
            found = self._logged.wait_for(lambda: re.search(pattern, "\n".join(self.log)), PATIENCE)
            assert found, "\n".join(self.log)
            return found[found.re.groups]

    def wait_until_ready(self) -> None:
        """Wait until it can be asked."""
        self.port = int(self.wait_for_line(LISTENING))

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        """Make a request over a connection of its own; return status and JSON, or None if it isn't that."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=sent)
            response = connection.getresponse()
            text = response.read()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(text) if is_json and text else None
        finally:
            connection.close()

    def ask_until(self, path: str, answer: object) -> None:
        """Poll until it gives an answer."""
        deadline = time.monotonic() + PATIENCE
        while (got := self.ask(path)) != (200, answer):
            assert time.monotonic() < deadline, (got, self.log)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait_for_end(self) -> None:
        """Wait until it has ended, as it should after Ctrl-C."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail("\n".join(["it doesn't end:", *self.log]))
        self._reader.join(PATIENCE)
        assert code == 0, self.log

    def stop(self) -> None:
        """Press Ctrl-C. It must end well, and have said nothing of any trouble all its life."""
        self.interrupt()
        self.wait_for_end()
        assert [line for line in self.log if TROUBLE.search(line)] == [], self.log

    def kill(self) -> None:
        """Leave nothing behind, whatever happened; one that hangs writes its stacks into the log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGABRT)
        self.process.wait()
        self._reader.join()


@pytest.fixture(scope="module", autouse=True)
def _programs_take_ctrl_c() -> Iterator[None]:
    """Have programs take Ctrl-C, even if these tests are run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def _website() -> Iterator[Upstream]:
    upstream = Upstream()
    thread = threading.Thread(target=upstream.serve_forever, args=[0.05])
    thread.start()
    yield upstream
    upstream.shutdown()
    thread.join()
    upstream.server_close()


@pytest.fixture
def upstream(_website: Upstream) -> Iterator[Upstream]:
    """What recipes ask; as if it were new."""
    for seen in (_website.arrived, _website.ended, _website.request_ids):
        while not seen.empty():
            seen.get()
    _website.meeting = None
    _website.release.clear()
    _website.silent = False
    yield _website
    _website.release.set()


@pytest.fixture(scope="module")
def _running(
    request: pytest.FixtureRequest, _website: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server = Server(request.param, _website, tmp_path_factory.mktemp("server"))
    try:
        server.wait_until_ready()
        yield server
        server.interrupt()
        server.wait_for_end()
    finally:
        server.kill()


@pytest.fixture
def server(_running: Server, upstream: Upstream) -> Server:
    """A server that tests leave as it is, and so share; its upstream is as if it were new."""
    del upstream
    return _running


@pytest.fixture
def serve(upstream: Upstream, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers for one test."""
    made: list[Server] = []

    def start(name: str, *, patience: float = PATIENCE) -> Server:
        made.append(Server(name, upstream, tmp_path, patience=patience))
        made[-1].wait_until_ready()
        return made[-1]

    yield start
    for server in made:
        server.kill()


def page(number: int) -> dict[str, str]:
    """What is on a page upstream."""
    return {"title": f"page {number}"}


def on(framework: str = "") -> pytest.MarkDecorator:
    """Run a test with the shared servers of a framework, or with all of them."""
    names = [name for name in SETUPS if name.startswith(framework)]
    return pytest.mark.parametrize("_running", names, indirect=True, scope="module")


@on()
def test_views_fan_out(server: Server, upstream: Upstream) -> None:
    """All calls of a view are under way at once, and so are those of several requests."""
    for path in server.setup.fan_outs:
        upstream.meeting = threading.Barrier(6)  # nobody gets an answer until so many have asked
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(server.ask, [path, path]))
        assert answers == [(200, [page(1), page(2), page(3)])] * 2


@on()
def test_errors_of_a_task_can_be_mapped(server: Server) -> None:
    """What a task raises comes out in the view as itself, and is turned into an answer there."""
    assert server.ask(f"/pages/{MISSING}") == (502, {"error": "the service upstream said 404"})


@on()
def test_errors_of_a_task_become_a_500(server: Server) -> None:
    """What nobody handles is the framework's 500, and requests go on being answered."""
    assert server.ask(f"/pages/{GARBLED}")[0] == 500
    assert server.ask("/pages/8") == (200, page(8))


@pytest.mark.parametrize("name", SETUPS)
def test_time_out_becomes_a_504(serve: Callable[..., Server], upstream: Upstream, name: str) -> None:
    """A view that has waited for long enough says so, and the call that it gives up is ended."""
    server = serve(name, patience=0.3)
    assert server.ask(f"/pages/{SILENT}") == (504, {"error": "the service upstream is too slow"})
    assert upstream.ended.get(timeout=PATIENCE) == (f"/pages/{SILENT}", "given up")
    server.stop()


@pytest.mark.parametrize("name", SETUPS)
def test_client_that_goes_away(serve: Callable[..., Server], upstream: Upstream, name: str) -> None:
    """The call that its request has started goes on to its end, and neither server nor log is disturbed."""
    server = serve(name)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"GET /pages/{HELD} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert upstream.arrived.get(timeout=PATIENCE) == f"/pages/{HELD}"
    assert server.ask("/pages/8") == (200, page(8))
    upstream.release.set()
    ends = {upstream.ended.get(timeout=PATIENCE) for _ in range(2)}
    assert ends == {("/pages/8", "answered"), (f"/pages/{HELD}", "answered")}
    assert server.ask("/pages/9") == (200, page(9))
    server.stop()


@on("flask")
def test_flask_tasks_see_the_request(server: Server, upstream: Upstream) -> None:
    """In a task, Flask's `request` is that of the view which started it, though many are under way."""
    upstream.meeting = threading.Barrier(6)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda request_id: server.ask("/overview", X_Request_ID=request_id), ["one", "two"]))
    assert sorted(upstream.request_ids.get(timeout=PATIENCE) for _ in range(6)) == ["one"] * 3 + ["two"] * 3


@on("fastapi")
def test_fastapi_dependency(server: Server) -> None:
    """An eager function is a dependency: FastAPI reads its parameters, and awaits it."""
    assert server.ask("/me", X_Token="ada") == (200, {"title": "reader ada"})
    assert server.ask("/me")[0] == 422  # the header is missing


@on("fastapi")
def test_fastapi_endpoint_is_documented(server: Server) -> None:
    """An eager function as an endpoint is in the API's description as any other."""
    _, api = server.ask("/openapi.json")
    described = api["paths"]["/pages/{number}"]["get"]
    assert described["description"].startswith("An endpoint that is an eager function")
    assert described["parameters"][0]["schema"]["type"] == "integer"


@on("fastapi")
def test_fastapi_work_goes_on_after_the_answer(server: Server, upstream: Upstream) -> None:
    """One endpoint starts a report, another polls it, and hands it out once."""
    upstream.meeting = threading.Barrier(2)
    status, report = server.ask("/reports?pages=3", "POST")
    assert status == 202
    path = f"/reports/{report['name']}"
    assert upstream.arrived.get(timeout=PATIENCE) == "/pages/1"
    assert server.ask(path) == (200, {"done": False})
    meeting, upstream.meeting = upstream.meeting, None
    meeting.wait(PATIENCE)
    server.ask_until(path, {"done": True, "report": "page 1, page 2, page 3"})
    assert server.ask(path)[0] == 404


@on("fastapi")
def test_fastapi_work_can_be_cancelled(server: Server, upstream: Upstream) -> None:
    """A report that is not wanted any more is ended where it waits: its call upstream is given up."""
    upstream.silent = True
    _, report = server.ask("/reports?pages=3", "POST")
    assert upstream.arrived.get(timeout=PATIENCE) == "/pages/1"
    assert server.ask(f"/reports/{report['name']}", "DELETE") == (204, None)
    assert server.ask(f"/reports/{report['name']}")[0] == 404
    assert upstream.ended.get(timeout=PATIENCE) == ("/pages/1", "given up")


def test_fastapi_finishes_its_work_on_ctrl_c(serve: Callable[..., Server], upstream: Upstream) -> None:
    """The session stays open until the last report is done; then the server ends."""
    server = serve("fastapi-uvicorn")
    gate = upstream.meeting = threading.Barrier(2)
    assert server.ask("/reports?pages=2", "POST")[0] == 202
    assert upstream.arrived.get(timeout=PATIENCE) == "/pages/1"
    server.interrupt()
    server.wait_for_line("Waiting for application shutdown")
    upstream.meeting = None
    gate.wait(PATIENCE)
    server.wait_for_end()
    assert upstream.arrived.get(timeout=PATIENCE) == "/pages/2"
    assert [line for line in server.log if TROUBLE.search(line)] == []


@on("django")
def test_django_tasks_that_use_the_orm(server: Server) -> None:
    """A plain view may wait for tasks that use the ORM in threads, under WSGI and ASGI."""
    assert server.ask("/refresh?wait", "POST") == (202, {"started": 3})
    assert server.ask("/titles") == (200, ["page 1", "page 2", "page 3"])


@pytest.mark.parametrize("name", ["django-runserver", "django-uvicorn"])
def test_django_tasks_that_outlive_their_request(
    serve: Callable[..., Server], upstream: Upstream, name: str
) -> None:
    """Tasks that nobody waits for use the ORM after the answer, and the server waits for them on Ctrl-C."""
    server = serve(name)
    gate = upstream.meeting = threading.Barrier(4)
    assert server.ask("/refresh", "POST") == (202, {"started": 3})
    assert server.ask("/titles") == (200, ["not fetched yet"] * 3)
    server.interrupt()
    server.wait_for_line(r"the process waits for \d+ eager tasks: refresh\(\) called at django_app.py:\d+")
    gate.wait(PATIENCE)
    server.wait_for_end()
    with sqlite3.connect(server.database) as database:
        assert database.execute("SELECT title FROM pages_page ORDER BY number").fetchall() == [
            ("page 1",),
            ("page 2",),
            ("page 3",),
        ]
    database.close()
    assert [line for line in server.log if TROUBLE.search(line)] == []
