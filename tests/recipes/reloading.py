"""A module with eager functions that is reloaded: tasks under way go on, and there is still one loop.

A decorated function has no loop or thread of its own. It looks up the shared loop at each call, and that
belongs to `eager_async`, which isn't reloaded. So `importlib.reload`, IPython's `%autoreload` and the
reloaders of web frameworks may replace the function as often as they like.

Run it: python tests/recipes/reloading.py
"""

import importlib
import sys
import tempfile
import threading
from pathlib import Path

from eager_async import shared_loop

JOBS = """
import asyncio
from eager_async import eager

@eager
async def work() -> str:
    await asyncio.sleep(0.5)
    return "done by version {version}"
"""

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # it would hide an edit within the same second
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        source = Path(folder, "jobs.py")
        source.write_text(JOBS.format(version=1), encoding="utf-8")
        importlib.invalidate_caches()
        jobs = importlib.import_module("jobs")
        under_way = jobs.work()
        loop = shared_loop().asyncio_loop
        threads = threading.active_count()

        source.write_text(JOBS.format(version=2), encoding="utf-8")
        importlib.reload(jobs)  # while the task runs
        anew = jobs.work()
        more_threads = threading.active_count() - threads

        print("under way:", under_way.result())
        print("called anew:", anew.result())
        print("same loop:", shared_loop().asyncio_loop is loop)
        print("more threads:", more_threads)
