"""Eager functions of real libraries, over real connections: HTTP on loopback, SQLite on a file."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import aiosqlite
import anyio
import httpx
import pytest
from aiohttp import web

from eager_async import BackgroundLoop, EagerTask, ResultTimeoutError, eager, set_shared_loop
from threads import PATIENCE

if TYPE_CHECKING:
    from conftest import RunPython

CALLS = 200

if sys.platform != "win32":
    import resource

    @pytest.fixture(scope="module", autouse=True)
    def _enough_descriptors() -> Iterator[None]:
        """Each connection takes two descriptors of this process, and macOS starts with 256."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * CALLS), hard))
        yield
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Server:
    """An HTTP server on loopback, on a loop and in a thread that the package knows nothing of."""

    def __init__(self) -> None:
        self.held = threading.Event()  # `/hold` has sent its head, and will never send its body
        self.left = threading.Event()  # the client of `/hold` has closed the connection
        self.relay: Callable[[], EagerTask[Any]]  # what `/relay` calls
        self._port = 0
        self._loop: asyncio.AbstractEventLoop
        self._ending: asyncio.Event
        self._all_here: asyncio.Barrier
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="server")

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._started.wait(PATIENCE)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def url(self, path: str) -> str:
        """The address of a page."""
        return f"http://127.0.0.1:{self._port}{path}"

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self._all_here = asyncio.Barrier(CALLS)
        app = web.Application()
        app.router.add_get("/number/{n}", self._number)
        app.router.add_get("/together/{n}", self._together)
        app.router.add_get("/status/{n}", self._status)
        app.router.add_get("/hold", self._hold)
        app.router.add_get("/hang-up", self._hang_up)
        app.router.add_get("/relay", self._relay)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2 * CALLS)
        await site.start()
        self._port = runner.addresses[0][1]
        self._started.set()
        await self._ending.wait()
        await runner.cleanup()

    async def _number(self, request: web.Request) -> web.Response:
        return web.json_response(int(request.match_info["n"]))

    async def _together(self, request: web.Request) -> web.Response:
        """Answer when all calls are here at the same time."""
        await self._all_here.wait()
        return web.json_response(int(request.match_info["n"]))

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["n"]))

    async def _hold(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        self.held.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        return response

    async def _hang_up(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _relay(self, _: web.Request) -> web.Response:
        return web.json_response(await self.relay())


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that runs."""
    with Server() as server:
        yield server


@pytest.fixture
def _kind_of_loop(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[None]:
    """Eager functions run on asyncio's own loop, and again on uvloop."""
    # On a slow machine 200 requests make turns of seconds.
    with BackgroundLoop(loop_factory=loop_factory, blocked_after=60) as loop:
        before = set_shared_loop(loop)
        yield
        set_shared_loop(before)


class Client(Protocol):
    """One library's HTTP client, which was made on the background loop."""

    status_error: type[Exception]
    refused_error: type[Exception]
    hang_up_error: type[Exception]
    read_timeout_error: type[Exception]

    def fetch(self, url: str, read_timeout: float = PATIENCE) -> EagerTask[Any]:
        """Request a page, and decode its JSON."""

    def close(self) -> EagerTask[None]:
        """Close all connections."""


class AiohttpClient:
    """An aiohttp session, which belongs to the loop on which it was made."""

    status_error = aiohttp.ClientResponseError
    refused_error = aiohttp.ClientConnectorError
    hang_up_error = aiohttp.ClientConnectionError
    read_timeout_error = aiohttp.ServerTimeoutError

    def __init__(self) -> None:
        self._session = self._open_session().result(PATIENCE)

    @staticmethod
    @eager
    async def _open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    @eager
    async def fetch(self, url: str, read_timeout: float = PATIENCE) -> Any:
        """Request a page, and decode its JSON."""
        timeout = aiohttp.ClientTimeout(sock_read=read_timeout)
        async with self._session.get(url, timeout=timeout, raise_for_status=True) as response:
            return await response.json()

    @eager
    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


class HttpxClient:
    """An httpx client, whose own methods are made eager where they are called."""

    status_error = httpx.HTTPStatusError
    refused_error = httpx.ConnectError
    hang_up_error = httpx.TransportError
    read_timeout_error = httpx.ReadTimeout

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(limits=limits, trust_env=False, verify=False)

    @eager
    async def fetch(self, url: str, read_timeout: float = PATIENCE) -> Any:
        """Request a page, and decode its JSON."""
        timeout = httpx.Timeout(PATIENCE, read=read_timeout)
        response = await eager(self._client.get)(url, timeout=timeout)
        return response.raise_for_status().json()

    def close(self) -> EagerTask[None]:
        """Close all connections."""
        return eager(self._client.aclose)()


@pytest.fixture(params=[AiohttpClient, HttpxClient], ids=["aiohttp", "httpx"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:  # noqa: ARG001 outlives it
    """Each library's client, on the shared loop of the test."""
    client: Client = request.param()
    yield client
    client.close().result(PATIENCE)


# Plain code


@pytest.mark.usefixtures("_kind_of_loop")
def test_a_plain_for_loop_makes_200_requests_at_a_time(server: Server, client: Client) -> None:
    """The calls run at once, all over connections of one client, and each task has its own answer.

    The server answers none of them before all have arrived.
    """
    tasks = []
    for n in range(CALLS):
        tasks.append(client.fetch(server.url(f"/together/{n}")))  # noqa: PERF401  the loop is what is shown
    assert [task.result(PATIENCE) for task in tasks] == list(range(CALLS))


def test_answers_are_taken_as_they_come(server: Server, client: Client) -> None:
    """`concurrent.futures.as_completed` yields the answers that are there, and those that fail."""
    urls = [server.url(path) for path in ("/number/1", "/status/503", "/number/2")]
    asked = {client.fetch(url): url for url in urls}
    failed = {asked[task] for task in as_completed(asked, PATIENCE) if task.exception()}
    assert failed == {server.url("/status/503")}


def test_plain_threads_share_a_client(server: Server, client: Client) -> None:
    """A client that belongs to the background loop serves any number of threads."""

    def ask(n: int) -> Any:
        return client.fetch(server.url(f"/number/{n}")).result(PATIENCE)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(40))) == list(range(40))


def test_a_status_is_the_librarys_own_error(server: Server, client: Client) -> None:
    """`raise_for_status` raises in `result()` what it raises in the coroutine."""
    with pytest.raises(client.status_error, match="404"):
        client.fetch(server.url("/status/404")).result(PATIENCE)


def test_a_refused_connection_is_the_librarys_own_error(client: Client) -> None:
    """Nobody listens at the port."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, so that nobody else gets it, but not listening
        task = client.fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert isinstance(task.exception(PATIENCE), client.refused_error)


def test_a_broken_connection_is_the_librarys_own_error(server: Server, client: Client) -> None:
    """The server drops the connection in place of an answer; the client serves on."""
    with pytest.raises(client.hang_up_error):
        client.fetch(server.url("/hang-up")).result(PATIENCE)
    assert client.fetch(server.url("/number/3")).result(PATIENCE) == 3


def test_a_timeout_of_the_library_is_its_own_error(server: Server, client: Client) -> None:
    """A read time-out inside the body comes out as itself, and is no `ResultTimeoutError`."""
    task = client.fetch(server.url("/hold"), read_timeout=0.05)
    with pytest.raises(client.read_timeout_error) as caught:
        task.result(PATIENCE)
    assert not isinstance(caught.value, ResultTimeoutError)
    assert server.left.wait(PATIENCE)


@pytest.mark.usefixtures("_kind_of_loop")
def test_asyncio_timeout_works_inside_the_body(server: Server, client: Client) -> None:
    """`asyncio.timeout` ends what the library waits for, and the connection with it."""

    @eager
    async def fetch_in_time(url: str) -> Any:
        async with asyncio.timeout(None) as limit:
            request = client.fetch(url)
            await asyncio.to_thread(server.held.wait, PATIENCE)
            limit.reschedule(0)
            return await request

    with pytest.raises(TimeoutError) as caught:
        fetch_in_time(server.url("/hold")).result(PATIENCE)
    assert not isinstance(caught.value, ResultTimeoutError)
    assert server.left.wait(PATIENCE)


@pytest.mark.usefixtures("_kind_of_loop")
def test_result_times_out_and_cancel_closes_the_connection(server: Server, client: Client) -> None:
    """`result(timeout)` leaves the request running, and says which it is; `cancel()` takes it back."""
    task = client.fetch(server.url("/hold"))
    assert server.held.wait(PATIENCE)
    with pytest.raises(ResultTimeoutError, match=r"Client\.fetch\(\) called at .*test_real_libraries"):
        task.result(timeout=0.01)
    assert task.running()
    assert not server.left.is_set()
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        task.result(PATIENCE)
    assert server.left.wait(PATIENCE)


# asyncio


@pytest.mark.usefixtures("_kind_of_loop")
def test_another_loop_makes_200_requests_at_a_time(
    server: Server, client: Client, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A client of the background loop serves any other loop: there its tasks are awaited."""

    async def main() -> list[Any]:
        requests = [client.fetch(server.url(f"/together/{n}")) for n in range(CALLS)]
        return await asyncio.gather(*requests)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == list(range(CALLS))


def test_errors_reach_those_who_await(server: Server, client: Client) -> None:
    """Each awaiter of one failed request catches the library's own error."""

    async def main() -> None:
        request = client.fetch(server.url("/status/500"))
        for _ in range(2):
            with pytest.raises(client.status_error, match="500"):
                await request

    asyncio.run(main())


def test_a_timeout_of_the_awaiter_closes_the_connection(server: Server, client: Client) -> None:
    """`asyncio.timeout` around `await` cancels the request in the other thread."""

    async def main() -> None:
        request = client.fetch(server.url("/hold"))
        await asyncio.to_thread(server.held.wait, PATIENCE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await request
        assert request.cancelled()

    asyncio.run(main())
    assert server.left.wait(PATIENCE)


def test_one_failure_in_a_task_group_closes_the_other_connections(server: Server, client: Client) -> None:
    """`asyncio.TaskGroup` takes the tasks, and cancels those that are left when one has failed."""

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(client.fetch(server.url("/hold")))
            await asyncio.to_thread(server.held.wait, PATIENCE)
            group.create_task(client.fetch(server.url("/status/500")))

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert [type(exc) for exc in caught.value.exceptions] == [client.status_error]
    assert server.left.wait(PATIENCE)


def test_a_scope_of_anyio_ends_what_it_cancels() -> None:
    """Also if what it awaits was being cancelled already, or raises a cancellation of its own."""
    begun, in_cleanup, end_cleanup = (threading.Event() for _ in range(3))

    @eager
    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            in_cleanup.set()
            await asyncio.to_thread(end_cleanup.wait, PATIENCE)
            raise asyncio.CancelledError from None

    async def cancel_both(task: EagerTask[None], scope: anyio.CancelScope) -> None:
        await asyncio.to_thread(begun.wait, PATIENCE)
        task.cancel()
        await asyncio.to_thread(in_cleanup.wait, PATIENCE)
        scope.cancel()
        await asyncio.sleep(0)
        end_cleanup.set()

    async def main() -> None:
        task = work()
        with anyio.CancelScope() as scope:
            canceller = asyncio.create_task(cancel_both(task, scope))
            await task
        assert scope.cancelled_caught
        await canceller

    asyncio.run(main())


def test_a_server_awaits_eager_functions(server: Server, client: Client) -> None:
    """A handler on the server's own loop awaits a request that runs on the background loop."""
    server.relay = partial(client.fetch, server.url("/number/7"))
    assert client.fetch(server.url("/relay")).result(PATIENCE) == 7


def test_cancellation_goes_through_a_server(server: Server, client: Client) -> None:
    """A cancelled request closes its connection; the handler there is cancelled, and so what it awaits."""
    server.relay = partial(client.fetch, server.url("/hold"))
    task = client.fetch(server.url("/relay"))
    assert server.held.wait(PATIENCE)
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        task.result(PATIENCE)
    assert server.left.wait(PATIENCE)


# The end of the process


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3),
    reason="no thread can be started at the exit (python/cpython#113964)",
)
def test_a_script_that_ends_still_gets_its_answer(server: Server, run_python: RunPython) -> None:
    """Name look-up, request and printing go on when the main thread has nothing left to do."""
    program = """
        import sys
        import aiohttp
        from eager_async import eager

        @eager
        async def show(url):
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                print(await response.json())

        show(sys.argv[1])
    """
    url = server.url("/number/5").replace("127.0.0.1", "localhost")
    process = run_python(program, args=[url])
    assert (process.returncode, process.stdout, process.stderr) == (0, "5\n", "")


# A database


class Database:
    """A file database with one connection, which was made on the background loop."""

    def __init__(self, path: Path) -> None:
        self._connection = self._connect(path).result(PATIENCE)

    @staticmethod
    @eager
    async def _connect(path: Path) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(path)
        await connection.execute("CREATE TABLE items (n INTEGER PRIMARY KEY)")
        await connection.commit()
        return connection

    @eager
    async def insert(self, *numbers: int) -> int:
        """Add numbers, all or none, and return how many."""
        async with self._transaction() as connection:
            for n in numbers:
                await connection.execute("INSERT INTO items VALUES (?)", [n])
        return len(numbers)

    @eager
    async def insert_and_wait(self, n: int, inserted: threading.Event) -> None:
        """Add a number, and never come to the end of the transaction."""
        async with self._transaction() as connection:
            await connection.execute("INSERT INTO items VALUES (?)", [n])
            inserted.set()
            await asyncio.Event().wait()

    @eager
    async def count_for_ever(self, begun: threading.Event) -> None:
        """Run a query that has no end."""
        await self._connection.create_function("begin", 0, begun.set)
        numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)"
        try:
            await self._connection.execute(f"{numbers} SELECT count(begin()) FROM numbers")
        finally:
            await self._connection.interrupt()

    @eager
    async def numbers(self) -> list[int]:
        """All numbers, as another connection sees them."""
        async with self._connection.execute("SELECT n FROM items ORDER BY n") as cursor:
            return [n async for (n,) in cursor]

    @eager
    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        try:
            yield self._connection
        except BaseException:
            await self._connection.rollback()
            raise
        await self._connection.commit()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    database = Database(tmp_path / "items.sqlite")
    yield database
    database.close().result(PATIENCE)


@pytest.mark.usefixtures("_kind_of_loop")
def test_a_plain_for_loop_fills_a_database(database: Database, tmp_path: Path) -> None:
    """Statements of 200 calls at a time go through one connection, and are in the file afterwards."""
    tasks = [database.insert(n) for n in range(CALLS)]
    assert [task.result(PATIENCE) for task in tasks] == [1] * CALLS
    with contextlib.closing(sqlite3.connect(tmp_path / "items.sqlite")) as connection:
        assert connection.execute("SELECT count(*), sum(n) FROM items").fetchone() == (200, 19900)


def test_another_loop_fills_a_database(database: Database) -> None:
    """The connection of the background loop serves an `async def main` on a loop of its own."""

    async def main() -> list[int]:
        await asyncio.gather(*[database.insert(n) for n in range(20)])
        return await database.numbers()

    assert asyncio.run(main()) == list(range(20))


def test_a_failed_transaction_is_rolled_back(database: Database) -> None:
    """The database's own error comes out, and the cleanup of the body has run by then."""
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        database.insert(1, 2, 1).result(PATIENCE)
    assert database.numbers().result(PATIENCE) == []


@pytest.mark.usefixtures("_kind_of_loop")
def test_a_cancelled_transaction_is_rolled_back(database: Database) -> None:
    """A cancelled task is done when its cleanup has run, awaits and all: the row is gone by then."""
    inserted = threading.Event()
    task = database.insert_and_wait(1, inserted)
    assert inserted.wait(PATIENCE)
    assert database.numbers().result(PATIENCE) == [1]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        task.result(PATIENCE)
    assert database.numbers().result(PATIENCE) == []


def test_an_endless_query_is_ended_by_the_timeout_of_its_awaiter(database: Database) -> None:
    """The query has been interrupted by the body's cleanup when `await` raises: the connection is free."""

    async def main() -> list[int]:
        begun = threading.Event()
        query = database.count_for_ever(begun)
        await asyncio.to_thread(begun.wait, PATIENCE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await query
        assert query.cancelled()
        return await database.numbers()

    assert asyncio.run(main()) == []
