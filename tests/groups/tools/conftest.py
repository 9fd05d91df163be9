"""What the tests of this group have in common."""

from __future__ import annotations

import warnings

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Let pytest-asyncio be installed: it warns of an option that only those who use it can set."""
    warnings.filterwarnings("ignore", ".*asyncio_default_fixture_loop_scope", pytest.PytestDeprecationWarning)
