"""Forks: a child forgets its parent before it does anything else with the library."""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_to_forget: list[Callable[[], None]] = []  # what is called in a child, in order
_forking: list[int] = []  # the thread of each fork that is under way; in the child, until all is forgotten
_pid = os.getpid()  # of the process that has forgotten, or has no parent to forget


def in_forked_child(forget: Callable[[], None]) -> Callable[[], None]:
    """Have a function called in each forked child: it forgets what is the parent's, and nothing else."""
    _to_forget.append(forget)
    return forget


def forget_parent() -> None:
    """In a forked child, forget, if that isn't done yet.

    It is for whoever is about to wait: others' hooks, signal handlers and finalizers may come in before the
    hook below or in its midst, and then they do it all.
    """
    if _forking and os.getpid() != _pid:
        _forget()


def _forget() -> None:
    global _pid  # noqa: PLW0603
    for forget in _to_forget:
        forget()
        if not _forking:
            return  # done in its midst
    _pid = os.getpid()
    _forking.clear()


def is_under_way() -> bool:
    """Whether some thread is forking, or this is a child that has its parent still to forget."""
    return bool(_forking)


def _begin() -> None:
    _forking.append(get_ident())


def _end_in_parent() -> None:
    _forking.remove(get_ident())


def _end_in_child() -> None:
    # The one holds where a child has its parent's id, in a new namespace; the other where C code forked and
    # had no `_begin` called.
    if _forking or os.getpid() != _pid:
        _begin()
        _forget()


if sys.platform != "win32":  # it has no fork
    os.register_at_fork(before=_begin, after_in_parent=_end_in_parent, after_in_child=_end_in_child)
