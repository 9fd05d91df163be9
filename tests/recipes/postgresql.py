"""PostgreSQL through asyncpg: one pool of connections, used from any number of plain threads.

    python -m pip install asyncpg
    python tests/recipes/postgresql.py postgresql://user:password@localhost/database

It moves money between accounts in a table that it makes and drops, and prints what they hold in the end.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import asyncpg

from eager_async import eager


@eager
async def open_pool(url: str) -> asyncpg.Pool:
    """Connect. A pool belongs to the loop on which it is made: here that of the eager functions."""
    pool = await asyncpg.create_pool(url, min_size=1, max_size=4)
    close_at_exit(pool)
    return pool


# A daemon doesn't hold the process. When that ends, the unfinished eager calls are waited for first; then
# daemons are cancelled, and their cleanup runs. (`atexit` would be too late: the loop is closed by then.)
@eager(daemon=True)
async def close_at_exit(pool: asyncpg.Pool) -> None:
    """Keep the pool open until the process ends."""
    async with pool:
        await asyncio.Event().wait()


@eager
async def transfer(pool: asyncpg.Pool, source: str, target: str, amount: int) -> None:
    """Move money: all of it or, if this fails or is cancelled, nothing."""
    async with pool.acquire() as connection, connection.transaction():
        # An order that is the same for all, so that two transfers don't wait for each other.
        await connection.execute(
            "SELECT FROM account WHERE name IN ($1, $2) ORDER BY name FOR UPDATE", source, target
        )
        await connection.execute("UPDATE account SET balance = balance - $2 WHERE name = $1", source, amount)
        await connection.execute("UPDATE account SET balance = balance + $2 WHERE name = $1", target, amount)


@eager
async def balance(pool: asyncpg.Pool, name: str) -> int:
    """Look up what an account holds."""
    return await pool.fetchval("SELECT balance FROM account WHERE name = $1", name)


def main(url: str) -> None:
    """Plain code: it calls, and waits where it needs a result."""
    pool = open_pool(url).result()

    # For a single statement no function is needed: `eager` takes the pool's own methods.
    execute = eager(pool.execute)
    execute(
        "CREATE TABLE account (name text PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0))"
    ).result()
    execute("INSERT INTO account VALUES ('Ada', 100), ('Grace', 100)").result()

    # Plain threads, more than there are connections. Each blocks until its own transfer is through.
    def pay(amount: int) -> None:
        transfer(pool, "Ada", "Grace", amount).result()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(pay, range(10)))

    # From one thread: start all, then collect.
    calls = {name: balance(pool, name) for name in ("Ada", "Grace")}
    print({name: call.result() for name, call in calls.items()})  # {'Ada': 55, 'Grace': 145}

    # The database's errors come out where the result is asked for.
    try:
        transfer(pool, "Ada", "Grace", 1_000).result()
    except asyncpg.CheckViolationError as error:
        print(error.constraint_name)  # account_balance_check

    execute("DROP TABLE account")  # the process waits for this, then closes the pool


if __name__ == "__main__":
    main(sys.argv[1])
