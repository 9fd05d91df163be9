"""A PostgreSQL server for the tests, and a database for each."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from threads import PATIENCE


class Server:
    """A PostgreSQL that listens on loopback alone, with its data in a temporary directory."""

    def __init__(self, directory: str) -> None:
        self._programs = _find_programs()
        self._directory = directory
        self._user = None
        if os.geteuid() == 0:  # as which PostgreSQL refuses to run; its package has made a user for it
            self._user = "postgres"
            shutil.chown(directory, self._user)
        self._port = 0
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._run("initdb", "--no-sync", "--auth=trust", "--username=tester", "--encoding=UTF8", "data")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        options = f"-F -p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self._run("pg_ctl", "start", "--wait", "--pgdata=data", "--log=log", f"--options={options}")

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self._run("pg_ctl", "stop", "--wait", "--pgdata=data", "--mode=fast")

    def url(self, database: str) -> str:
        """How to connect to a database."""
        return f"postgresql://tester@127.0.0.1:{self._port}/{database}"

    def ask(self, sql: str, database: str = "postgres") -> str:
        """Run a statement, in a session of its own; return its rows as text."""
        only_rows = ("--no-psqlrc", "--tuples-only", "--no-align")
        return self._run("psql", *only_rows, f"--command={sql}", self.url(database)).strip()

    def make_database(self) -> Database:
        """Make a database that is empty."""
        name = f"test_{next(self._numbers)}"
        self.ask(f"CREATE DATABASE {name}")
        return Database(self, name)

    def _run(self, program: str, *args: str) -> str:
        with tempfile.TemporaryFile("w+") as output:  # no pipe: the server would keep it open
            code = subprocess.run(
                [self._programs / program, *args],
                cwd=self._directory,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
                check=False,
            ).returncode
            output.seek(0)
            text = output.read()
        assert code == 0, (program, *args, text)
        return text


class Database:
    """A database of the server, which knows who is connected and how they left."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name
        self.url = server.url(name)

    def ask(self, sql: str) -> str:
        """Run a statement, in a session of its own; return its rows as text."""
        return self._server.ask(sql, self._name)

    def connections(self, condition: str = "true") -> int:
        """Count the sessions that are open now, or those that meet a condition on `pg_stat_activity`."""
        return int(
            self._server.ask(
                f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{self._name}' AND ({condition})"
            )
        )

    def wait_for_connections(self, count: int, condition: str = "true") -> None:
        """Wait until so many sessions meet a condition."""
        started = monotonic()
        while (found := self.connections(condition)) != count:
            assert monotonic() - started < PATIENCE, f"{found} connections where {condition}, not {count}"

    def dropped_connections(self) -> int:
        """Count the sessions whose client vanished without taking its leave; of those that have ended."""
        return int(
            self._server.ask(
                f"SELECT sessions_abandoned FROM pg_stat_database WHERE datname = '{self._name}'"
            )
        )

    def drop(self) -> None:
        """Remove it."""
        self._server.ask(f"DROP DATABASE {self._name} WITH (FORCE)")


def _find_programs() -> Path:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    initdb = debian[-1] if debian else shutil.which("initdb")
    if initdb is None:
        pytest.fail("PostgreSQL is missing; run `bash tests/groups/postgresql/install`", pytrace=False)
    return Path(initdb).parent


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for all tests of the group."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as directory:
        server = Server(directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """An empty database; the test fails if it leaves a connection open, or lets one drop."""
    database = server.make_database()
    try:
        yield database
        database.wait_for_connections(0)
        assert database.dropped_connections() == 0
    finally:
        database.drop()
