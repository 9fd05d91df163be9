"""Stands in for `typing_extensions` at run time, whose import takes half as long again as this package's."""

from __future__ import annotations

from typing import TypeVar

F = TypeVar("F")


def override(method: F) -> F:
    """Say that a base class has a method of this name. Type checkers read `typing_extensions.override`."""
    return method
