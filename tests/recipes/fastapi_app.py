"""FastAPI: eager functions as endpoints and as dependencies, and work that goes on after the answer.

Shows: an eager function that is an endpoint, and one that is a dependency; tasks awaited in an `async def`
endpoint and blocked on in a plain one; a client session on the background loop; reports that one endpoint
starts and another one polls; time-outs and errors as a 504 and a 502.

To run it: `pip install fastapi uvicorn aiohttp`, then
`UPSTREAM=http://localhost:8000 uvicorn --port 8001 fastapi_app:app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import aiohttp
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse

from eager_async import EagerTask, eager

UPSTREAM = os.environ.get("UPSTREAM", "http://localhost:8000")
PATIENCE = float(os.environ.get("PATIENCE", "5"))  # seconds


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the session before the first request; close it when the last report is done."""
    app.state.session = await open_session()
    yield
    await asyncio.gather(*reports.values(), return_exceptions=True)
    await eager(app.state.session.close)()


@eager  # a session belongs to the loop on which it is made: the background loop
async def open_session() -> aiohttp.ClientSession:
    """Make the session that all requests share."""
    return aiohttp.ClientSession(UPSTREAM, raise_for_status=True)


app = FastAPI(lifespan=lifespan)


@eager
async def fetch(path: str) -> Any:
    """Ask the service upstream."""
    async with app.state.session.get(path) as response:
        return await response.json()


@app.get("/pages/{number}")
@eager
async def page(number: int) -> Any:
    """An endpoint that is an eager function; other code may call `page(1)` as well."""
    async with asyncio.timeout(PATIENCE):
        return await fetch(f"/pages/{number}")


@eager
async def reader(x_token: Annotated[str, Header()]) -> Any:
    """A dependency that is an eager function."""
    return await fetch(f"/readers/{x_token}")


@app.get("/me")
async def me(reader: Annotated[Any, Depends(reader)]) -> Any:
    """Take what the dependency returned."""
    return reader


@app.get("/overview")
async def overview() -> Any:
    """Start all calls, then await them: this takes as long as the slowest of them."""
    tasks = [fetch(f"/pages/{number}") for number in (1, 2, 3)]
    return await asyncio.gather(*tasks)


@app.get("/plain-overview")
def plain_overview() -> Any:
    """The same in an endpoint that FastAPI runs in a thread: there, block."""
    tasks = [fetch(f"/pages/{number}") for number in (1, 2, 3)]
    return [task.result(timeout=PATIENCE) for task in tasks]


reports: dict[str, EagerTask[str]] = {}  # of this process: with several workers, this is for a database


@eager
async def write_report(pages: int) -> str:
    """Work that takes its time."""
    titles = [(await fetch(f"/pages/{number}"))["title"] for number in range(1, pages + 1)]
    return ", ".join(titles)


@app.post("/reports", status_code=202)
async def start_report(pages: int) -> Any:
    """Start a report, and answer at once."""
    name = uuid.uuid4().hex
    reports[name] = write_report(pages)
    return {"name": name}


@app.get("/reports/{name}")
async def poll_report(name: str) -> Any:
    """Say how a report gets on; hand it out once it is done."""
    if name not in reports:
        raise HTTPException(404)
    if not reports[name].done():
        return {"done": False}
    return {"done": True, "report": await reports.pop(name)}


@app.delete("/reports/{name}", status_code=204)
async def cancel_report(name: str) -> None:
    """Stop a report."""
    if name not in reports:
        raise HTTPException(404)
    reports.pop(name).cancel()


@app.exception_handler(TimeoutError)  # of `asyncio.timeout(...)` and of `result(timeout=...)`
async def too_slow(request: Request, error: TimeoutError) -> JSONResponse:  # noqa: ARG001
    """What a task raises comes out where it is awaited, and FastAPI handles it as any other error."""
    return JSONResponse({"error": "the service upstream is too slow"}, 504)


@app.exception_handler(aiohttp.ClientResponseError)
async def refused_upstream(request: Request, error: aiohttp.ClientResponseError) -> JSONResponse:  # noqa: ARG001
    """Tell a refusal of the service upstream from a fault of ours."""
    return JSONResponse({"error": f"the service upstream said {error.status}"}, 502)
