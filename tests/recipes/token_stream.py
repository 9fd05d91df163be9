"""Flask: a plain view that passes on what a language model says, token by token, while it says it.

Shows: server-sent events that are read over httpx in an async generator under `@eager_stream`; a view that
answers with that stream as it is, since WSGI asks for no more than something to iterate over; and how the
request upstream ends when the client goes away, since WSGI servers close what they iterate over.

To run it: `pip install flask httpx`, then `UPSTREAM=http://localhost:8000 flask --app token_stream run`, and
`curl --no-buffer 'localhost:5000/answer?question=why'`. It serves just as well under waitress.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator

import httpx
from flask import Flask, Response, request

from eager_async import eager_stream

UPSTREAM = os.environ.get("UPSTREAM", "http://localhost:8000")
PATIENCE = float(os.environ.get("PATIENCE", "60"))  # seconds, from one token to the next

app = Flask(__name__)


@eager_stream
async def tokens(question: str) -> AsyncIterator[str]:
    """Ask the model. Each event is a line of JSON; for other kinds of events there is httpx-sse."""
    async with (
        httpx.AsyncClient(base_url=UPSTREAM, timeout=PATIENCE) as client,  # flask_app.py has one for all
        client.stream("GET", "/tokens", params={"question": question}) as response,
    ):
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))["token"]


@app.get("/answer")
def answer() -> Response:
    """Pass the tokens on. A server that can't write the next one closes the stream."""
    return Response(tokens(request.args["question"]), mimetype="text/plain")
