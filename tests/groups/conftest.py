"""Groups of tests that need more than the package's own: each is run by its name alone.

A folder is a group. Its `requirements.txt` says what it needs, and is installed from the repository's root.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

HERE = Path(__file__).parent.resolve()


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Pass over the groups unless they are named on the command line."""
    named = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
    return None if any(path.is_relative_to(HERE) for path in named) else True
