"""What importing the package loads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import RunPython

# Small ones of the standard library.
_SMALL = {"__future__", "_queue", "concurrent.futures.thread", "copy", "queue"}


def test_import_adds_only_small_modules(run_python: RunPython) -> None:
    """`import eager_async` loads itself, what asyncio, concurrent.futures and wrapt load, and a few more."""
    done = run_python(
        """
        import asyncio
        import concurrent.futures
        import sys

        import wrapt

        before = set(sys.modules)
        import eager_async

        print(*set(sys.modules) - before)
        """
    )
    assert (done.stderr, done.returncode) == ("", 0)
    added = set(done.stdout.split())
    own = {name for name in added if name.partition(".")[0] == "eager_async"}
    assert "eager_async" in own
    assert added - own - _SMALL == set()


@pytest.mark.skipif(sys.version_info < (3, 15), reason="no lazy imports")
def test_it_can_be_imported_lazily(run_python: RunPython) -> None:
    """With all its parts, as `-X lazy_imports=all` has it."""
    done = run_python(
        """
        import eager_async

        @eager_async.eager
        async def double(x):
            return 2 * x

        print(double(1).result(), eager_async.EagerTask.__module__)
        """,
        options=["-X", "lazy_imports=all"],
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2 eager_async\n", "", 0)
