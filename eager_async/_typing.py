"""What `typing_extensions` is needed for at run time: its import takes longer than that of this package."""

from __future__ import annotations

from typing import TypeVar

F = TypeVar("F")


def override(method: F) -> F:
    """Say that a base class has a method of this name. Type checkers read `typing_extensions.override`."""
    return method
