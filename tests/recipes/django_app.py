"""Django in one file: plain views that call async code, several calls at a time, and where the ORM goes.

Shows: an async client that all views share; a plain view that starts all calls and then collects their
results; an async view that awaits them; the ORM outside of tasks, and inside; a time-out as a 504.

To run it: `pip install django aiohttp`, then `UPSTREAM=http://localhost:8000 python django_app.py runserver`.
Other servers take `django_app:wsgi` or `django_app:asgi`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
from typing import Any

import aiohttp
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

from eager_async import ResultTimeoutError, eager

UPSTREAM = os.environ.get("UPSTREAM", "http://localhost:8000")
PATIENCE = float(os.environ.get("PATIENCE", "5"))  # seconds

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("DATABASE", "pages.sqlite3"),
        }
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for this example",
)
wsgi = get_wsgi_application()
asgi = get_asgi_application()


class Page(models.Model):
    """What is known of a page upstream."""

    number = models.IntegerField(unique=True)
    title = models.CharField(max_length=100)

    class Meta:
        """The model isn't in an application of its own."""

        app_label = "pages"

    def __str__(self) -> str:
        return self.title


def create_table() -> None:
    """In place of migrations."""
    try:
        if Page._meta.db_table not in connection.introspection.table_names():
            with connection.schema_editor() as editor:
                editor.create_model(Page)
            Page.objects.bulk_create(Page(number=number, title="not fetched yet") for number in (1, 2, 3))
    finally:
        connection.close()


# ASGI servers may import this while their event loop runs, and there the ORM refuses to work.
creation = threading.Thread(target=create_table)
creation.start()
creation.join()


@functools.cache
def session() -> aiohttp.ClientSession:
    """The session of this process: used in eager functions alone, and so made on their loop."""
    made = aiohttp.ClientSession(UPSTREAM, raise_for_status=True)
    close_at_exit(made)
    return made


@eager(daemon=True)  # the process doesn't wait for a daemon: it cancels it, and `finally` runs
async def close_at_exit(made: aiohttp.ClientSession) -> None:
    """Close the session when the process ends."""
    try:
        await asyncio.Event().wait()  # for ever
    finally:
        await made.close()


@eager
async def fetch(number: int) -> dict[str, str]:
    """Ask the service upstream."""
    async with session().get(f"/pages/{number}") as response:
        page: dict[str, str] = await response.json()
        return page


def overview(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """Start all calls, then collect: this takes as long as the slowest of them.

    A database connection belongs to its thread. So the view asks the ORM, and tasks get plain values.
    """
    numbers = Page.objects.order_by("number").values_list("number", flat=True)
    tasks = [fetch(number) for number in numbers]
    return JsonResponse([task.result() for task in tasks], safe=False)


async def async_overview(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """The same in an async view: ask the ORM in its async way, and await the tasks."""
    numbers = Page.objects.order_by("number").values_list("number", flat=True)
    tasks = [fetch(number) async for number in numbers]
    return JsonResponse(await asyncio.gather(*tasks), safe=False)


def page(request: HttpRequest, number: int) -> JsonResponse:  # noqa: ARG001
    """Wait for a while, then give up. What `result()` raises is handled as any other error."""
    task = fetch(number)
    try:
        return JsonResponse(task.result(timeout=PATIENCE))
    except ResultTimeoutError:
        task.cancel()  # or it would run on
        return JsonResponse({"error": "the service upstream is too slow"}, status=504)
    except aiohttp.ClientResponseError as error:
        return JsonResponse({"error": f"the service upstream said {error.status}"}, status=502)


@eager
async def refresh(number: int) -> None:
    """Work that uses the ORM itself.

    It does so in a thread, as all that blocks. Not by `sync_to_async`, nor the ORM's own async methods:
    these would want the thread of the request, which may be blocked in `result()`, or have ended.
    """
    fetched = await fetch(number)
    await asyncio.to_thread(store, number, fetched["title"])


def store(number: int, title: str) -> None:
    """Outside of a request, nobody but us closes the thread's connection."""
    try:
        Page.objects.filter(number=number).update(title=title)
    finally:
        connection.close()


@require_POST
def refresh_all(request: HttpRequest) -> JsonResponse:
    """Start the work, and answer at once, or when it is done."""
    tasks = [refresh(number) for number in Page.objects.values_list("number", flat=True)]
    if "wait" in request.GET:
        for task in tasks:
            task.result()
    return JsonResponse({"started": len(tasks)}, status=202)


def titles(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """What is in the database."""
    return JsonResponse(list(Page.objects.order_by("number").values_list("title", flat=True)), safe=False)


urlpatterns: list[Any] = [
    path("overview", overview),
    path("async-overview", async_overview),
    path("pages/<int:number>", page),
    path("refresh", refresh_all),
    path("titles", titles),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
