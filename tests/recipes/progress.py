"""Progress bars over eager tasks, with tqdm: in plain code and in asyncio.

Run it: pip install tqdm && python tests/recipes/progress.py
"""

import asyncio
import random
from concurrent.futures import as_completed

from tqdm import tqdm
from tqdm.asyncio import tqdm as async_tqdm

from eager_async import eager


@eager
async def measure(station: int) -> int:
    """Ask a station for its temperature: here, wait a little."""
    await asyncio.sleep(random.uniform(0.05, 0.5))
    return 15 + station % 10


def in_plain_code() -> None:
    """A task is a `concurrent.futures.Future`, so what is made for thread pools takes it."""
    tasks = [measure(station) for station in range(50)]
    temperatures = [task.result() for task in tqdm(as_completed(tasks), total=len(tasks), desc="plain")]
    print("highest:", max(temperatures))


async def in_asyncio() -> None:
    """A task can be awaited, so what is made for asyncio takes it too: in order, or as they come."""
    tasks = [measure(station) for station in range(50)]
    temperatures = await async_tqdm.gather(*tasks, desc="gather")
    print("in order:", temperatures[:3])

    tasks = [measure(station) for station in range(50)]
    total = 0
    for temperature in async_tqdm.as_completed(tasks, desc="as they come"):
        total += await temperature
    print("on average:", total / len(tasks))


if __name__ == "__main__":
    in_plain_code()
    asyncio.run(in_asyncio())
