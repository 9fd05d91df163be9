"""Stands in for `typing_extensions` at run time: to import that takes longer than this whole package."""

from __future__ import annotations

from typing import TypeVar

F = TypeVar("F")


def override(method: F) -> F:
    """Say that a base class has a method of this name. Type checkers read `typing_extensions.override`."""
    return method
