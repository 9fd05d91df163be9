"""Programs that tests run in processes of their own: on which loop, on which systems, and what they leave."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

# What makes the loop that a program uses.
_SET_UPS = {"asyncio": ""}
if sys.platform != "win32":
    _SET_UPS["uvloop"] = "import uvloop; set_shared_loop(BackgroundLoop(loop_factory=uvloop.new_event_loop))"
both_loops = pytest.mark.parametrize("set_up", _SET_UPS.values(), ids=_SET_UPS.keys())

has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
posix_signals = pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to one thread")
threads_at_exit = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3),
    reason="no thread can be started at the exit (python/cpython#113964)",
)

# From 3.12 on Python warns of any fork while threads run; that is what tests of forks are about.
FORK_WITH_THREADS = ["-W", "ignore:This process:DeprecationWarning"]


# What programs say, and how they fork: each is a part of what the programs of a module have in common.
SAY = """

def say(*words):
    print(" ".join(map(str, words)) + "\\n", end="", flush=True)  # one write, for threads that say at once
"""
FORK = '''

def fork(child):
    """Run a function in a child, which then ends as programs do; say how it ended."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # it would outlive a parent that is killed
        child()
        sys.exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    say("child ended", status)
'''


def with_set_up(set_up: str, source: str) -> str:
    """Put what a program needs before it."""
    return f"        from staging import *\n        {set_up}\n{source}"


def check(process: subprocess.CompletedProcess[str], *stdout: str, code: int = 0, stderr: str = "") -> None:
    """Compare what a process has left with what it should: stderr with a regular expression, whole."""
    said = process.stdout.splitlines()
    assert (said, process.returncode) == (list(stdout), code), process.stderr
    assert re.fullmatch(stderr, process.stderr.strip(), re.DOTALL), process.stderr
