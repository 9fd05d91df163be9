"""Flask: plain views that call async code, several calls at a time.

Shows: an async client that all views share; a view that starts all calls and then collects their results;
a time-out that becomes a 504, and errors that become a 502 in Flask's own way.

To run it: `pip install flask httpx`, then `UPSTREAM=http://localhost:8000 flask --app flask_app run`.
It serves just as well under waitress or gunicorn.
"""

from __future__ import annotations

import asyncio
import functools
import os
from typing import Any

import httpx
from flask import Flask, request

from eager_async import ResultTimeoutError, eager

UPSTREAM = os.environ.get("UPSTREAM", "http://localhost:8000")
PATIENCE = float(os.environ.get("PATIENCE", "5"))  # seconds

app = Flask(__name__)


@functools.cache
def client() -> httpx.AsyncClient:
    """The client of this process: used in eager functions alone, and so made on their loop."""
    made = httpx.AsyncClient(base_url=UPSTREAM, timeout=None)  # views say how long they wait
    close_at_exit(made)
    return made


@eager(daemon=True)  # the process doesn't wait for a daemon: it cancels it, and `finally` runs
async def close_at_exit(made: httpx.AsyncClient) -> None:
    """Close the client when the process ends."""
    try:
        await asyncio.Event().wait()  # for ever
    finally:
        await made.aclose()


@eager
async def fetch(path: str) -> Any:
    """Ask the service upstream. Flask's `request` is here the one of the view that calls."""
    headers = {"X-Request-ID": request.headers.get("X-Request-ID", "none")}
    response = await client().get(path, headers=headers)
    return response.raise_for_status().json()


@app.get("/overview")
def overview() -> Any:
    """Start all calls, then collect: this takes as long as the slowest of them."""
    tasks = [fetch(f"/pages/{number}") for number in (1, 2, 3)]
    return [task.result() for task in tasks]


@app.get("/pages/<int:number>")
def page(number: int) -> Any:
    """Wait for a while, then give up."""
    task = fetch(f"/pages/{number}")
    try:
        return task.result(timeout=PATIENCE)
    except ResultTimeoutError:
        task.cancel()  # or it would run on
        return {"error": "the service upstream is too slow"}, 504


@app.errorhandler(httpx.HTTPStatusError)
def refused_upstream(error: httpx.HTTPStatusError) -> Any:
    """`result()` raises what the task raised, and Flask handles it as any other error."""
    return {"error": f"the service upstream said {error.response.status_code}"}, 502
