"""The demonstration: `python -m eager_async`."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

DEMO = [sys.executable, "-W", "error", "-m", "eager_async", "--fast"]

MAIN_EVENTS = [
    "START",
    "task.done(): False",
    "task.done(): False",
    "before first sleep",
    "after first sleep",
    "task.done(): False",
    "task.done(): False",
    "before second sleep",
    "after second sleep",
    "task.done(): True",
    "task.done(): True",
    "Result: worth the wait",
]


@pytest.fixture(scope="module")
def demo() -> subprocess.CompletedProcess[str]:
    """One run of the demonstration into a pipe."""
    return subprocess.run(
        DEMO, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def rows(demo: subprocess.CompletedProcess[str]) -> list[tuple[float, str, str]]:
    """The lines below the heading: time in seconds, main's event, the function's event."""
    heading, *lines = demo.stdout.splitlines()
    left, right = heading.index("main's thread"), heading.index("background thread")
    return [(float(line[:left].rstrip(" s")), line[left:right].strip(), line[right:]) for line in lines]


def events(demo: subprocess.CompletedProcess[str]) -> list[str]:
    """Both columns' events, in their order."""
    return [in_main or in_background for _, in_main, in_background in rows(demo)]


def test_ends_well_and_complains_of_nothing(demo: subprocess.CompletedProcess[str]) -> None:
    """Exit code 0, and nothing on stderr."""
    assert (demo.returncode, demo.stderr) == (0, "")


def test_main_is_never_held_up(demo: subprocess.CompletedProcess[str]) -> None:
    """The polls answer at once, False until the function has ended; the left column tells main's events."""
    assert [in_main for _, in_main, _ in rows(demo) if in_main] == MAIN_EVENTS


def test_the_function_runs_in_the_other_column(demo: subprocess.CompletedProcess[str]) -> None:
    """Three steps in their order, in the column of the background thread."""
    assert [in_background for _, _, in_background in rows(demo) if in_background] == [
        "SETUP",
        "MIDDLE",
        "END",
    ]


def test_the_function_goes_on_while_main_blocks_its_thread(demo: subprocess.CompletedProcess[str]) -> None:
    """SETUP once it is called, MIDDLE during the first sleep, END during the second."""
    at = events(demo).index
    assert at("START") < at("SETUP") < at("MIDDLE")
    assert at("before first sleep") < at("MIDDLE") < at("after first sleep")
    assert at("before second sleep") < at("END") < at("after second sleep")


def test_setup_comes_two_steps_before_the_end(demo: subprocess.CompletedProcess[str]) -> None:
    """The times are those at which it happened: steps are 0.2 s apart, sleeps take 0.3 s, none goes back."""
    time_of = {in_main or in_background: time for time, in_main, in_background in rows(demo)}
    times = [time for time, _, _ in rows(demo)]
    slack = 0.02  # times are rounded, and clocks tick
    assert times == sorted(times)
    assert time_of["MIDDLE"] - time_of["SETUP"] >= 0.2 - slack
    assert time_of["END"] - time_of["MIDDLE"] >= 0.2 - slack
    assert time_of["after first sleep"] - time_of["before first sleep"] >= 0.3 - slack
    assert time_of["after second sleep"] - time_of["before second sleep"] >= 0.3 - slack


def test_a_pipe_gets_plain_text(demo: subprocess.CompletedProcess[str]) -> None:
    """Printable ASCII alone, no blanks at line ends."""
    assert re.fullmatch(r"([ -~]*[!-~]\n)+", demo.stdout)


if sys.platform != "win32":
    import pty

    def run_on_terminal(**environment: str) -> str:
        """Run the demonstration on a terminal, and return what it shows."""
        ours, theirs = pty.openpty()
        env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        env |= {"TERM": "xterm", **environment}
        with subprocess.Popen(DEMO, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
            os.close(theirs)
            shown = b""
            try:
                while chunk := os.read(ours, 4096):
                    shown += chunk
            except OSError:  # how Linux says that the other end is closed
                pass
            finally:
                os.close(ours)
        assert process.returncode == 0
        return shown.decode()

    def test_a_terminal_gets_two_colours() -> None:
        """A colour for each thread."""
        shown = run_on_terminal()
        assert "\x1b[36mSTART" in shown
        assert "\x1b[33mSETUP" in shown

    @pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
    def test_a_terminal_gets_no_colour_if_it_wants_none(environment: dict[str, str]) -> None:
        """As https://no-color.org has it, and on a terminal that can't."""
        assert "\x1b" not in run_on_terminal(**environment)
