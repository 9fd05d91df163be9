"""Dask: work that is spread over processes or machines, called like any other eager function.

    python -m pip install distributed
    python tests/recipes/dask_cluster.py

Dask's scheduler finds a worker for each call; here the workers are processes of this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import as_completed
from typing import Any, TypeVar

from distributed import Client, LocalCluster

from eager_async import eager

T = TypeVar("T")


@eager
async def start_cluster(workers: int = 2) -> Client:
    """Start worker processes, and connect to them, all on the loop of the eager functions.

    For a cluster on other machines: `await Client("tcp://its-scheduler:8786", asynchronous=True)`.
    """
    cluster = await LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", asynchronous=True
    )
    client = await Client(cluster, asynchronous=True)
    close_at_exit(client, cluster)
    return client


# A daemon doesn't hold the process. When that ends, the unfinished eager calls are waited for first; then
# daemons are cancelled, and their cleanup runs.
@eager(daemon=True)
async def close_at_exit(client: Client, cluster: LocalCluster) -> None:
    """Keep the cluster until the process ends."""
    async with cluster, client:
        await asyncio.Event().wait()


@eager
async def compute(client: Client, function: Callable[..., T], *args: Any) -> T:
    """Call a plain function in some worker.

    Cancelling takes the call off the cluster's queue; one that a worker has begun goes on there, unheeded.
    """
    future = client.submit(function, *args, pure=False)  # True: equal calls share one result
    try:
        return await future
    except asyncio.CancelledError:
        await future.cancel()
        raise


def count_primes(start: int, stop: int) -> int:
    """Something that keeps a processor busy."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), stop))


def main() -> None:
    """Plain code: start all calls, then collect their results, in order or as they come."""
    client = start_cluster().result()

    tasks = [compute(client, count_primes, start, start + 1000) for start in range(0, 10_000, 1000)]
    print([task.result() for task in tasks])  # [168, 135, 127, 120, 119, 114, 117, 107, 110, 112]

    # The results are futures like those of an executor.
    tasks = [compute(client, abs, -number) for number in range(5)]
    print(sorted(task.result() for task in as_completed(tasks)))  # [0, 1, 2, 3, 4]

    # What a worker raises comes out where the result is asked for.
    error = compute(client, divmod, 1, 0).exception()
    print(repr(error))  # ZeroDivisionError('integer division or modulo by zero')


if __name__ == "__main__":  # Dask's processes import this file too
    main()
