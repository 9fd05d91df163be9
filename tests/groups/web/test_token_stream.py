"""The recipe that passes on a stream of tokens, under real servers, with a real service upstream."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import queue
import runpy
import select
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import waitress.server
import werkzeug.serving

from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask

RECIPE = Path(__file__).parents[2] / "recipes" / "token_stream.py"

# What the model does in place of a token: its answer is complete, or its connection breaks.
COMPLETE, BREAK = "complete", "break"


class Model(http.server.ThreadingHTTPServer):
    """A service that says what the test wants, when the test wants it."""

    daemon_threads = False  # so that its end waits for them

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ModelRequest)
        self.asked: queue.Queue[str] = queue.Queue()
        self.to_say: queue.Queue[str] = queue.Queue()
        self.happened: queue.Queue[str] = queue.Queue()


class _ModelRequest(http.server.BaseHTTPRequestHandler):
    server: Model
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.put(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._send_chunk(": a comment, as services send to keep a connection alive\n\n")
        while (token := self.server.to_say.get(timeout=PATIENCE)) not in {COMPLETE, BREAK}:
            try:
                if select.select([self.connection], [], [], 0)[0]:
                    raise ConnectionResetError
                self._send_chunk(f"data: {json.dumps({'token': token})}\n\n")
            except ConnectionError:  # the other side has hung up
                self.server.happened.put("given up")
                return
            self.server.happened.put("said")
        if token == COMPLETE:
            self._send_chunk("")

    def _send_chunk(self, text: str) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text.encode("ascii")))

    def log_message(self, *args: object) -> None:
        """Be quiet."""


class Werkzeug:
    """Flask's own server."""

    def __init__(self, app: Flask) -> None:
        self._server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
        self._server.daemon_threads = False  # so that its end waits for them
        self.port = self._server.port

    def run(self) -> None:
        self._server.serve_forever(0.05)

    def end(self) -> None:
        self._server.shutdown()


class Waitress:
    """A server for production."""

    def __init__(self, app: Flask) -> None:
        self._server = waitress.server.create_server(app, listen="127.0.0.1:0")
        self.port = self._server.effective_port

    def run(self) -> None:
        self._server.run()
        self._server.task_dispatcher.shutdown()

    def end(self) -> None:
        self._server.trigger.pull_trigger(self._server.close)


@pytest.fixture
def model() -> Iterator[Model]:
    """What the recipe asks."""
    model = Model()
    thread = threading.Thread(target=model.serve_forever, args=[0.05])
    thread.start()
    yield model
    model.to_say.put(BREAK)
    model.shutdown()
    thread.join()
    model.server_close()


@pytest.fixture(params=[Werkzeug, Waitress])
def client(
    request: pytest.FixtureRequest, model: Model, monkeypatch: pytest.MonkeyPatch
) -> Iterator[http.client.HTTPConnection]:
    """Who asks the recipe, under each server."""
    monkeypatch.setenv("UPSTREAM", f"http://127.0.0.1:{model.server_port}")
    server = request.param(runpy.run_path(str(RECIPE))["app"])
    thread = threading.Thread(target=server.run)
    thread.start()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)) as client:
        yield client
    server.end()
    thread.join()


def test_a_token_reaches_the_client_before_the_next_is_made(
    client: http.client.HTTPConnection, model: Model
) -> None:
    """The view passes each token on as it comes, and its answer ends when the model's does."""
    client.request("GET", "/answer?question=why+not")
    assert model.asked.get(timeout=PATIENCE) == "/tokens?question=why+not"
    model.to_say.put("Because")
    response = client.getresponse()
    assert (response.status, response.headers.get_content_type()) == (200, "text/plain")
    assert response.read1() == b"Because"
    for token in (" it", "'s", "\n", " schön"):
        model.to_say.put(token)
        assert response.read1().decode() == token
    model.to_say.put(COMPLETE)
    assert response.read() == b""


def test_the_model_is_stopped_when_the_client_goes_away(
    client: http.client.HTTPConnection, model: Model
) -> None:
    """The server can't write the next token, and so closes the stream: the request upstream is given up."""
    client.request("GET", "/answer?question=why")
    model.to_say.put("Because")
    response = client.getresponse()
    assert response.read1() == b"Because"
    response.close()
    client.close()
    deadline = time.monotonic() + PATIENCE
    while model.happened.get(timeout=PATIENCE) != "given up":
        assert time.monotonic() < deadline
        model.to_say.put(" and")


def test_an_answer_that_breaks_off_is_not_taken_for_complete(
    client: http.client.HTTPConnection, model: Model
) -> None:
    """If the model's answer breaks off, so does the view's, after the tokens that came."""
    client.request("GET", "/answer?question=why")
    model.to_say.put("Because")
    response = client.getresponse()
    model.to_say.put(BREAK)
    with pytest.raises(http.client.IncompleteRead) as caught:
        response.read()
    assert caught.value.partial == b"Because"
