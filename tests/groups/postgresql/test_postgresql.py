"""PostgreSQL through asyncpg: a pool on the background loop, used from plain threads and from asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from eager_async import BackgroundLoop, eager, set_shared_loop
from threads import PATIENCE

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.append(str(RECIPES))

from postgresql import balance, open_pool, transfer  # noqa: E402

if TYPE_CHECKING:
    from conftest import RunPython
    from groups.postgresql.conftest import Database

THREADS = 8


@pytest.fixture
def pool(database: Database, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[asyncpg.Pool]:
    """The recipe's pool, on each kind of loop; with two accounts. It closes when its loop ends."""
    database.ask("CREATE TABLE account (name text PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0))")
    database.ask("INSERT INTO account VALUES ('Ada', 1000), ('Grace', 1000)")
    loop = BackgroundLoop(loop_factory=loop_factory)
    before = set_shared_loop(loop)
    pool = open_pool(database.url).result(PATIENCE)
    yield pool
    set_shared_loop(before)
    unfinished = [task.get_name() for task in loop.tasks()]
    idle, connections = pool.get_idle_size(), pool.get_size()
    loop.shutdown(cancel_futures=True)
    assert unfinished == ["close_at_exit()"]
    assert idle == connections, "a connection has not come back to the pool"


@eager
async def pay_and_wait(pool: asyncpg.Pool, wait: Callable[[asyncpg.Connection], object]) -> None:
    """Change something in a transaction, then wait inside that."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE account SET balance = 0 WHERE name = 'Ada'")
        await wait(connection)


def run_in_threads(function: Callable[[int], object]) -> list[object]:
    """Call a function in eight threads at a time, with the number of the thread."""
    together = threading.Barrier(THREADS)

    def run(number: int) -> object:
        together.wait(PATIENCE)
        return function(number)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(run, range(THREADS)))


def test_a_thousand_queries_from_eight_threads(pool: asyncpg.Pool) -> None:
    """Any number of threads may share one pool: each gets its own answers."""
    numbers = [range(start, 1000, THREADS) for start in range(THREADS)]

    def ask(thread: int) -> list[int]:
        tasks = [eager(pool.fetchval)("SELECT 3 * $1::int", number) for number in numbers[thread]]
        return [task.result(PATIENCE) for task in tasks]

    assert run_in_threads(ask) == [[3 * number for number in part] for part in numbers]


def test_transactions_from_eight_threads(pool: asyncpg.Pool) -> None:
    """Transactions that compete for the same rows are all carried out, once."""

    def pay(thread: int) -> None:
        for amount in range(10):
            transfer(pool, "Ada", "Grace", amount).result(PATIENCE)
            transfer(pool, "Grace", "Ada", thread).result(PATIENCE)

    run_in_threads(pay)
    moved = THREADS * sum(range(10)) - 10 * sum(range(THREADS))
    assert balance(pool, "Ada").result(PATIENCE) == 1000 - moved
    assert balance(pool, "Grace").result(PATIENCE) == 1000 + moved


def test_a_cancelled_transaction_rolls_back(pool: asyncpg.Pool, database: Database) -> None:
    """A thread may cancel an eager call in the middle of its transaction: nothing of that stays."""
    waiting = threading.Event()

    async def wait(_: asyncpg.Connection) -> None:
        waiting.set()
        await asyncio.Event().wait()

    task = pay_and_wait(pool, wait)
    assert waiting.wait(PATIENCE)
    assert database.connections("state = 'idle in transaction'") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        task.result(PATIENCE)
    assert balance(pool, "Ada").result(PATIENCE) == 1000
    assert database.connections("state = 'idle in transaction'") == 0


def test_a_cancelled_query_ends_on_the_server_too(pool: asyncpg.Pool, database: Database) -> None:
    """A query under way when its call is cancelled doesn't go on in the database."""
    task = pay_and_wait(pool, lambda connection: connection.execute("SELECT pg_sleep(3600)"))
    database.wait_for_connections(1, "wait_event = 'PgSleep'")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        task.result(PATIENCE)
    database.wait_for_connections(0, "wait_event = 'PgSleep'")
    assert balance(pool, "Ada").result(PATIENCE) == 1000


@eager
async def open_all(pool: asyncpg.Pool) -> None:
    """Open as many connections as the pool may have."""
    for connection in [await pool.acquire() for _ in range(pool.get_max_size())]:
        await pool.release(connection)


def test_cancelled_at_any_moment_a_transaction_is_whole(pool: asyncpg.Pool) -> None:
    """Wherever a cancellation hits, all of a transaction has happened or nothing, and the pool goes on."""
    open_all(pool).result(PATIENCE)  # asyncpg drops a connection that is cancelled while it is being opened

    def pay(thread: int) -> int:
        cancelled = 0
        for turn in range(20):
            task = transfer(pool, "Ada", "Grace", 1)
            for _ in range((turn + thread) % 5):
                balance(pool, "Ada").result(PATIENCE)  # some time passes
            task.cancel()
            concurrent.futures.wait([task], PATIENCE)
            cancelled += task.cancelled()
        return cancelled

    cancelled = sum(run_in_threads(pay))
    ada, grace = (balance(pool, name).result(PATIENCE) for name in ("Ada", "Grace"))
    assert ada + grace == 2000
    assert THREADS * 20 - cancelled <= grace - 1000 <= THREADS * 20


def test_an_error_of_the_database_comes_out_in_the_thread(pool: asyncpg.Pool) -> None:
    """A query that fails raises asyncpg's own error where the result is asked for; the pool goes on."""
    with pytest.raises(asyncpg.UniqueViolationError) as caught:
        eager(pool.execute)("INSERT INTO account VALUES ('Ada', 1)").result(PATIENCE)
    assert caught.value.constraint_name == "account_pkey"
    with pytest.raises(asyncpg.CheckViolationError):
        transfer(pool, "Ada", "Grace", 5000).result(PATIENCE)
    assert balance(pool, "Ada").result(PATIENCE) == 1000


def test_an_asyncio_program_can_await_it(pool: asyncpg.Pool, database: Database) -> None:
    """Code on another event loop uses the same pool: results, errors and time-outs come as usual."""

    async def main() -> None:
        assert await asyncio.gather(*(balance(pool, name) for name in ("Ada", "Grace"))) == [1000, 1000]
        with pytest.raises(asyncpg.UndefinedTableError):
            await eager(pool.fetchval)("SELECT FROM nothing")
        slow = pay_and_wait(pool, lambda connection: connection.execute("SELECT pg_sleep(3600)"))
        await asyncio.to_thread(database.wait_for_connections, 1, "wait_event = 'PgSleep'")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow, timeout=0.01)
        assert slow.cancelled()
        assert await balance(pool, "Ada") == 1000

    asyncio.run(main())


def test_a_pool_that_cannot_be_opened_says_why(database: Database) -> None:
    """The error of the database comes out of the call that opens the pool, and nothing is left behind."""
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        open_pool(f"{database.url}_missing").result(PATIENCE)


def test_the_recipe_closes_its_pool_at_exit(database: Database) -> None:
    """The recipe, as a process, prints what it says, ends well, and takes its leave of the database."""
    recipe = subprocess.run(
        [sys.executable, "-W", "error", RECIPES / "postgresql.py", database.url],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert recipe.stdout == "{'Ada': 55, 'Grace': 145}\naccount_balance_check\n"
    assert (recipe.stderr, recipe.returncode) == ("", 0)
    database.wait_for_connections(0)
    assert database.dropped_connections() == 0
    assert database.ask("SELECT count(*) FROM pg_tables WHERE tablename = 'account'") == "0"


def test_the_pool_stays_open_for_calls_under_way_at_exit(database: Database, run_python: RunPython) -> None:
    """Calls that the main thread leaves behind are carried out, new ones of theirs too, before it closes."""
    database.ask("CREATE TABLE visit (number int)")
    program = run_python(
        """
        import sys
        sys.path.append(sys.argv[1])

        from eager_async import eager
        from postgresql import open_pool

        @eager
        async def visit(number):
            await pool.execute("SELECT pg_sleep(0.2)")
            await pool.execute("INSERT INTO visit VALUES ($1)", number)
            if number < 10:
                visit(number + 10)

        pool = open_pool(sys.argv[2]).result()
        for number in range(10):
            visit(number)
        """,
        args=[str(RECIPES), database.url],
    )
    assert (program.stdout, program.stderr, program.returncode) == ("", "", 0)
    assert database.ask("SELECT count(*), sum(number) FROM visit") == "20|190"
    database.wait_for_connections(0)
    assert database.dropped_connections() == 0


def test_a_forked_child_opens_a_pool_of_its_own(database: Database, run_python: RunPython) -> None:
    """A child may open its own pool and end; the connections of its parent go on undisturbed."""
    program = run_python(
        """
        import os, sys, warnings
        sys.path.append(sys.argv[1])

        from eager_async import eager
        from postgresql import open_pool

        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, as there are threads
        pool = open_pool(sys.argv[2]).result()
        before = eager(pool.fetchval)("SELECT pg_backend_pid()").result()
        child = os.fork()
        if child == 0:
            pool = open_pool(sys.argv[2]).result()
            assert eager(pool.fetchval)("SELECT pg_backend_pid()").result() != before
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert eager(pool.fetchval)("SELECT pg_backend_pid()").result() == before
        """,
        args=[str(RECIPES), database.url],
    )
    assert (program.stdout, program.stderr, program.returncode) == ("", "", 0)
    database.wait_for_connections(0)
    assert database.dropped_connections() == 0
