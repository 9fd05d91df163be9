"""Call an async function, and it runs: from plain code or from asyncio, on a background event loop.

task = fetch("…")  # fetch is an `async def` under `@eager`; task is an EagerTask, already running
task.done()  # poll, from anywhere
task.result(timeout=5)  # block, from plain code
await task  # or await, inside any asyncio code
"""

import sys

from eager_async._decorator import eager, eager_stream
from eager_async._errors import DeadlockError, LoopClosedError, ResultTimeoutError
from eager_async._loop import BackgroundLoop
from eager_async._shared import set_shared_loop, shared_loop
from eager_async._stream import EagerStream
from eager_async._task import EagerTask

__all__ = [
    "BackgroundLoop",
    "DeadlockError",
    "EagerStream",
    "EagerTask",
    "LoopClosedError",
    "ResultTimeoutError",
    "eager",
    "eager_stream",
    "set_shared_loop",
    "shared_loop",
]

for _name in __all__:
    # What users see, and what pickles. (By `getattr`: what is in `globals()` may be a lazy import of 3.15's.)
    getattr(sys.modules[__name__], _name).__module__ = __name__
