"""What importing the package loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
