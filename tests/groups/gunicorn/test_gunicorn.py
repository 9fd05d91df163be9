"""Under gunicorn, whose workers are forked from a process that has made eager calls already."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from threads import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn needs fork")

BOOTING = r"Booting worker with pid: (\d+)"
READY = r"ready in (\d+)"
EXITING = r"Worker exiting \(pid: (\d+)\)"


class Server:
    """A gunicorn with two workers, on a free port of this machine."""

    def __init__(self, *options: str) -> None:
        here = Path(__file__).parent
        warnings = ["-W", "error::RuntimeWarning"]  # coroutines that were never awaited; gunicorn has others
        settings = ["--config", str(here / "settings.py"), "--chdir", str(here)]
        self.process = subprocess.Popen(
            [sys.executable, *warnings, "-m", "gunicorn", *settings, *options, "app"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            encoding="utf-8",
        )
        self.log: list[str] = []
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Wait until both workers are there."""
        self.port = int(self.wait_for_lines(r"Listening at: http://127.0.0.1:(\d+)")[0])
        self.wait_for_lines(READY, 2)

    def wait_until_settled(self) -> None:
        """Wait until no worker comes or goes: gunicorn loses a SIGTERM to one that has just begun."""
        self.process.send_signal(signal.SIGTTIN)  # it answers in the log, behind all that is there
        self.wait_for_lines("Handling signal: (ttin)")
        with self._logged:
            assert self._logged.wait_for(self._is_settled, PATIENCE), self.log

    def _is_settled(self) -> bool:
        begun, ended = set(self.found(BOOTING)), set(self.found(EXITING))
        recycled = set(self.found(r"\[(\d+)\] \[INFO\] Autorestarting"))
        return recycled <= ended and begun == set(self.found(READY)) and len(begun - ended) == 3

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                with self._logged:
                    self.log.append(line.rstrip())
                    self._logged.notify_all()

    def found(self, pattern: str) -> list[str]:
        """What the first group of a pattern has matched in the lines logged so far."""
        return [match[1] for match in (re.search(pattern, line) for line in self.log) if match]

    def wait_for_lines(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until as many lines match; return what the first group of the pattern matched."""
        with self._logged:
            assert self._logged.wait_for(lambda: len(self.found(pattern)) >= count, PATIENCE), self.log
            return self.found(pattern)

    def ask(self, path: str) -> dict[str, Any]:
        """Make a request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read()
            assert response.status == 200, (response.status, text, self.log)
            answer: dict[str, Any] = json.loads(text)
            return answer
        finally:
            connection.close()

    def check(self, number: int) -> int:
        """Make a request, check the answer, and return the process that gave it."""
        answer = self.ask(f"/{number}")
        pid: int = answer.pop("pid")
        assert answer == {
            "loaded in": self.process.pid,
            "loaded": 42,
            "watch": "LoopClosedError",
            "doubles": [2 * number, 2 * number + 2, 2 * number + 4],
            "nested": [2 * number, 2 * number + 2],
        }
        return pid

    def check_many(self, *, processes: int) -> set[int]:
        """Make requests from eight threads until so many processes have answered; return those."""
        numbers = itertools.count()
        pids: set[int] = set()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            while len(pids) < processes or next(numbers) < 100:
                pids.update(pool.map(self.check, [next(numbers) for _ in range(16)]))
        return pids

    def stop(self) -> None:
        """Stop it as `kill` does. It must end well, and say nothing but what it says every day."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail("\n".join(["it doesn't end:", *self.log]))
        self._reader.join(PATIENCE)
        assert code == 0, self.log
        usual = re.compile(r"\[[^]]+\] \[\d+\] \[INFO\] |app: ")
        assert [line for line in self.log if not usual.match(line)] == []
        # The cleanup of a daemon task that the parent has started runs in the parent alone.
        assert self.found(r"watch ended in (\d+)") == [str(self.process.pid)]

    def kill(self) -> None:
        """Leave nothing behind, whatever happened; what is still there writes its stacks into the log."""
        for pid in [*map(int, self.found(BOOTING)), self.process.pid]:
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSEGV)
        self.process.wait()
        self._reader.join()


WORKERS = {"sync": ["--worker-class=sync"], "gthread": ["--worker-class=gthread", "--threads=4"]}


@pytest.fixture(params=WORKERS.values(), ids=WORKERS.keys())
def options(request: pytest.FixtureRequest) -> Sequence[str]:
    """Run the test once for each kind of worker."""
    chosen: list[str] = request.param
    return chosen


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers, which are ended with the test."""
    made: list[Server] = []

    def start(*options: str) -> Server:
        made.append(Server(*options))
        made[-1].wait_until_ready()
        return made[-1]

    yield start
    for server in made:
        server.kill()


def test_workers_of_a_preloaded_application_answer(
    options: Sequence[str], serve: Callable[..., Server]
) -> None:
    """Both workers call eager functions, though their parent's background loop ran when they were forked."""
    server = serve(*options)
    assert len(server.check_many(processes=2)) == 2
    server.stop()


def test_workers_that_are_replaced_answer(options: Sequence[str], serve: Callable[..., Server]) -> None:
    """Workers may come and go by `--max-requests`: no request is lost, and each new one answers."""
    server = serve(*options, "--max-requests=20")
    assert len(server.check_many(processes=6)) >= 6
    server.wait_until_settled()
    server.stop()


def test_workers_answer_after_a_reload(options: Sequence[str], serve: Callable[..., Server]) -> None:
    """After SIGHUP new workers answer, and the old ones have ended without a word."""
    server = serve(*options)
    old = server.check_many(processes=2)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_lines(READY, 4)
    server.wait_for_lines(EXITING, 2)
    new = set(map(int, server.found(READY))) - old
    pids: set[int] = set()
    while not new <= pids:
        pids |= server.check_many(processes=2)
    server.stop()


def test_work_that_a_request_leaves_behind_is_finished(
    options: Sequence[str], serve: Callable[..., Server]
) -> None:
    """A worker that is stopped waits for the eager tasks which its requests have started."""
    server = serve(*options)
    for number in range(4):
        server.ask(f"/later/{number}")
    server.stop()
    assert sorted(server.found(r"finished (\d+) in")) == ["0", "1", "2", "3"]
