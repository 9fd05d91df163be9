"""Dask's cluster of processes, its client on the background loop: called from plain code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import uvloop
from distributed import Client, Future, Worker

from eager_async import BackgroundLoop, eager, set_shared_loop
from threads import PATIENCE

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.append(str(RECIPES))  # workers get it too

from dask_cluster import compute, count_primes, start_cluster  # noqa: E402

if TYPE_CHECKING:
    from conftest import RunPython

T = TypeVar("T")

LOOP_FACTORIES = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", params=LOOP_FACTORIES.values(), ids=LOOP_FACTORIES.keys())
def _cluster(request: pytest.FixtureRequest) -> Iterator[tuple[BackgroundLoop, Client]]:
    """The recipe's cluster, on each kind of loop; one for all tests. It closes when its loop ends."""
    loop = BackgroundLoop(loop_factory=request.param)
    before = set_shared_loop(loop)
    client = start_cluster().result(PATIENCE)
    compute(client, abs, -1).result(PATIENCE)  # starts the threads that Dask keeps
    set_shared_loop(before)
    yield loop, client
    loop.shutdown(cancel_futures=True)


@pytest.fixture
def client(_cluster: tuple[BackgroundLoop, Client]) -> Iterator[Client]:
    """A client of two workers, with a thread each."""
    loop, client = _cluster
    before = set_shared_loop(loop)
    yield client
    set_shared_loop(before)
    assert [task.get_name() for task in loop.tasks()] == ["close_at_exit()"]


@eager
async def run_everywhere(client: Client, function: Callable[..., T]) -> list[T]:
    """Call a function once in each worker, at once, whatever else that has to do."""
    return list((await client.run(function)).values())


def wait_for_calls(client: Client, count: int) -> None:
    """Wait until the workers have so many calls, begun or not."""

    def count_calls(dask_worker: Worker) -> int:
        return len(dask_worker.state.tasks)

    started = time.monotonic()
    while (found := sum(run_everywhere(client, count_calls).result(PATIENCE))) != count:
        assert time.monotonic() - started < PATIENCE, f"the workers have {found} calls, not {count}"


def test_calls_run_in_the_workers(client: Client) -> None:
    """Plain code, in any thread, starts calls and blocks on results that come from other processes."""

    def count(start: int) -> int:
        return compute(client, count_primes, start, start + 500).result(PATIENCE)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(count, range(0, 10_000, 500))) == 1229
    pids = {task.result(PATIENCE) for task in [compute(client, os.getpid) for _ in range(20)]}
    assert pids <= set(run_everywhere(client, os.getpid).result(PATIENCE))
    assert os.getpid() not in pids


def test_an_asyncio_program_can_await_them(client: Client) -> None:
    """Code on another event loop awaits the same calls; a time-out there cancels its call."""

    async def main() -> None:
        assert await asyncio.gather(*(compute(client, abs, -n) for n in range(20))) == list(range(20))
        slow = compute(client, time.sleep, 0.5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow, timeout=0.01)
        assert slow.cancelled()

    asyncio.run(main())


def test_a_cancelled_call_never_begins(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelling the eager task cancels the Dask future, and takes the call off the cluster's queue."""

    def submit(*args: Any, **kwargs: Any) -> Future:
        submitted.append(Client.submit(client, *args, **kwargs))
        return submitted[-1]

    submitted: list[Future] = []  # as long as they are kept, Dask itself drops no call
    monkeypatch.setattr(client, "submit", submit)
    pipes = [tmp_path / str(number) for number in range(2)]
    for pipe in pipes:
        os.mkfifo(pipe)
    holding = [compute(client, Path.read_text, pipe) for pipe in pipes]
    with ExitStack() as writers:
        for pipe in pipes:
            writers.enter_context(pipe.open("w"))  # once it has a reader: both workers are busy then

        task = compute(client, Path.touch, tmp_path / "begun")
        wait_for_calls(client, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            task.result(PATIENCE)
        assert [future.status for future in submitted] == ["pending", "pending", "cancelled"]
        wait_for_calls(client, 2)

    assert [task.result(PATIENCE) for task in holding] == ["", ""]
    assert [compute(client, abs, -n).result(PATIENCE) for n in range(20)] == list(range(20))
    assert not (tmp_path / "begun").exists()


def test_an_error_in_a_worker_comes_out_in_the_thread(client: Client) -> None:
    """It is of its own type, and its traceback leads into the function that the worker called."""

    def fail(number: int) -> None:
        raise LookupError(number)

    with pytest.raises(LookupError) as caught:
        compute(client, fail, 3).result(PATIENCE)
    assert caught.value.args == (3,)
    assert caught.traceback[-1].name == "fail"


def test_a_worker_that_dies_is_an_error_in_the_thread(run_python: RunPython) -> None:
    """Nobody waits for ever for a call that kills its worker, and the cluster goes on with new ones."""
    program = run_python(
        """
        import os, sys
        sys.path.append(sys.argv[1])

        from eager_async import eager
        from dask_cluster import compute, start_cluster

        @eager
        async def wait_for_workers(client, count):
            await client.wait_for_workers(count)

        if __name__ == "__main__":
            client = start_cluster().result()
            print(type(compute(client, os._exit, 3).exception()).__name__)
            wait_for_workers(client, 2).result()
            print(compute(client, abs, -3).result())
        """,
        args=[str(RECIPES)],
        env={
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",  # else it tries on other workers first
            "DASK_LOGGING": "{'distributed': 'critical'}",  # its own report of the death
        },
        timeout=2 * PATIENCE,
    )
    assert program.stdout.split() == ["KilledWorker", "3"]
    assert (program.stderr, program.returncode) == ("", 0)


def test_the_recipe_closes_its_cluster_at_exit() -> None:
    """The recipe, as a process, prints what it says, and ends well."""
    recipe = subprocess.run(
        [sys.executable, "-W", "error", RECIPES / "dask_cluster.py"],
        env={
            **os.environ,
            "DASK_LOGGING": "{'distributed.worker': 'critical'}",
        },  # its own report of the error
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=2 * PATIENCE,
        check=False,
    )
    assert recipe.stdout.splitlines() == [
        "[168, 135, 127, 120, 119, 114, 117, 107, 110, 112]",
        "[0, 1, 2, 3, 4]",
        "ZeroDivisionError('integer division or modulo by zero')",
    ]
    assert (recipe.stderr, recipe.returncode) == ("", 0)


def test_the_cluster_stays_for_calls_under_way_at_exit(tmp_path: Path, run_python: RunPython) -> None:
    """Calls that the main thread leaves behind are carried out; then the workers end."""
    program = run_python(
        """
        import os, sys, time
        from pathlib import Path
        sys.path.append(sys.argv[1])

        from eager_async import eager
        from dask_cluster import compute, start_cluster

        @eager
        async def worker_pids(client):
            return (await client.run(os.getpid)).values()

        @eager
        async def leave_mark(client, number):
            await compute(client, time.sleep, 0.1)
            await compute(client, Path.touch, Path(str(number)))

        if __name__ == "__main__":
            client = start_cluster().result()
            print(*worker_pids(client).result())
            for number in range(4):
                leave_mark(client, number)
        """,
        args=[str(RECIPES)],
        timeout=2 * PATIENCE,
    )
    assert (program.stderr, program.returncode) == ("", 0)
    assert all((tmp_path / str(number)).exists() for number in range(4))
    workers = [int(pid) for pid in program.stdout.split()]
    assert len(workers) == 2
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_loop_of_a_plain_client_does_no_harm(run_python: RunPython) -> None:
    """Dask's own loop, in a thread of its own, goes along with ours: in use, at a fork, and at exit."""
    program = run_python(
        """
        import asyncio, os, warnings
        from distributed import Client, LocalCluster

        from eager_async import eager

        @eager
        async def double(number):
            await asyncio.sleep(0.01)
            return 2 * number

        @eager(daemon=True)
        async def keep_watch():
            try:
                await asyncio.Event().wait()
            finally:
                print("watch ended", flush=True)

        @eager
        async def compute_later():  # on Dask's loop, while the process ends
            await asyncio.sleep(0.1)
            print(await asyncio.to_thread(lambda: client.submit(abs, -5).result()), flush=True)

        if __name__ == "__main__":
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, at the fork
            cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0")
            client = Client(cluster)
            keep_watch()
            print(double(1).result(), client.submit(abs, -3).result(), flush=True)
            child = os.fork()
            if child == 0:
                print(double(2).result(), flush=True)
                os._exit(7)  # what Dask has registered for the exit would take the workers for its own
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            print(double(3).result(), client.submit(abs, -4).result(), flush=True)
            compute_later()
        """,
        env={"DASK_LOGGING": "{'distributed.scheduler': 'error'}"},  # it regrets results lost at exit
        timeout=2 * PATIENCE,
    )
    assert program.stdout.splitlines() == ["2 3", "4", "7", "6 4", "5", "watch ended"]
    assert (program.stderr, program.returncode) == ("", 0)
