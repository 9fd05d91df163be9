"""Where code was called, and where it is suspended: lines for people to read."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import sys
import types
from typing import Any

_ASYNCIO = os.path.dirname(asyncio.__file__)
_HERE = os.path.dirname(__file__)


def line_of(code: types.CodeType, instruction: int) -> str:
    """Name the line of an instruction (a frame's `f_lasti`): `app.py:30`."""
    positions = next(itertools.islice(code.co_positions(), instruction // 2, None), None)
    line = None if positions is None else positions[0]
    return f"{_short(code.co_filename)}:{line or code.co_firstlineno}"


def calling_frame() -> types.FrameType:
    """The frame that called the calling function; that function's, if it was called from outside Python."""
    try:
        return sys._getframe(2)
    except ValueError:  # by C code, in a thread in which no other function runs
        return sys._getframe(1)


def suspended_frames(coro: Any) -> list[types.FrameType]:
    """The frames of a suspended coroutine and of those that it awaits, from the outside in."""
    frames: list[types.FrameType] = []
    while coro is not None:
        frame = _attribute(coro, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            break
        if _is_ours(frame):
            coro = frame.f_locals.get("generator")  # of a stream; nothing else leads there
            continue
        frames.append(frame)
        coro = _attribute(coro, "cr_await", "gi_yieldfrom", "ag_await")
    return frames


def suspended_at(coro: Any) -> str | None:
    """Name the line at which a coroutine waits: the innermost that isn't asyncio's own."""
    frames = [
        frame for frame in suspended_frames(coro) if os.path.dirname(frame.f_code.co_filename) != _ASYNCIO
    ]
    if not frames:
        return None
    code = frames[-1].f_code
    return f"{_short(code.co_filename)}:{frames[-1].f_lineno} in {code.co_name}"


def coroutine_part(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback from its first coroutine on; None if no coroutine is in it."""
    while traceback is not None and not traceback.tb_frame.f_code.co_flags & inspect.CO_COROUTINE:
        traceback = traceback.tb_next
    return traceback


def users_level() -> int:
    """The `stacklevel` of a warning given in the calling function: the user's line."""
    frame: types.FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and _is_ours(frame):
        frame = frame.f_back
        level += 1
    return level


def users_part(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback without the frames of this package that stand at its head."""
    while traceback is not None and _is_ours(traceback.tb_frame):
        traceback = traceback.tb_next
    return traceback


def _is_ours(frame: types.FrameType) -> bool:
    return os.path.dirname(frame.f_code.co_filename) == _HERE


def _attribute(thing: Any, *names: str) -> Any:
    return next((getattr(thing, name) for name in names if hasattr(thing, name)), None)


def _short(filename: str) -> str:
    """A path below the working directory without that; a notebook's cell as `Cell In[4]`."""
    cell = _cell_name(filename)
    if cell is not None:
        return cell
    try:
        base = os.path.join(os.getcwd(), "")
    except OSError:  # the directory is gone
        return filename
    return filename.removeprefix(base)


def _cell_name(filename: str) -> str | None:
    """What IPython shows in place of a cell's file, which doesn't exist."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None:
        return None
    name: tuple[str, str] | None = shell.compile.format_code_name(filename)
    return None if name is None else " ".join(name)
