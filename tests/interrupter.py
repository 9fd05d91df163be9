"""Interruptions of a thread, step by step, as other threads, signal handlers and finalizers come in."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import eager_async

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType, FrameType

PACKAGE = os.path.dirname(eager_async.__file__)


def in_package(code: CodeType) -> bool:
    """Whether code is the package's."""
    return os.path.dirname(code.co_filename) == PACKAGE


def in_module(name: str) -> Callable[[CodeType], bool]:
    """What says whether code is that of a module of the package."""
    path = os.path.join(PACKAGE, f"{name}.py")
    return lambda code: code.co_filename == path


def in_functions(*functions: Callable[..., Any]) -> Callable[[CodeType], bool]:
    """What says whether code is that of some functions."""
    codes = {function.__code__ for function in functions}
    return lambda code: code in codes


class Interrupter:
    """A context in which something is called in the midst of what this thread does.

    Args:
        calls: What to call before which step, counted from 1.
        within: Which code's steps count: the library's whole code, or a part.
        event: What a step is: a bytecode ("opcode") or a "line".
    """

    def __init__(
        self,
        calls: Mapping[int, Callable[[], object]],
        within: Callable[[CodeType], bool] = in_package,
        *,
        event: str = "opcode",
    ) -> None:
        self._calls = dict(calls)
        self._within = within
        self._event = event
        self._step = 0
        self._previous: Any = None

    @property
    def happened(self) -> bool:
        """Whether there were as many steps, and all was called."""
        return not self._calls

    def __enter__(self) -> None:
        self._previous = sys.gettrace()
        # 3.12 looks at the next `settrace` whether any frame wants opcodes.
        sys._getframe().f_trace_opcodes = self._event == "opcode"
        sys.settrace(self._trace)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._previous)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not self._within(frame.f_code):
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        if event == self._event and self._calls and self._is_step(frame):
            self._step += 1
            call = self._calls.pop(self._step, None)
            if call is not None:
                call()
        return self._trace

    def _is_step(self, frame: FrameType) -> bool:  # noqa: ARG002  # for subclasses, which count some alone
        """Whether what the frame does next is a step."""
        return True
