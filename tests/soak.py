"""Random use of the library for a while: is anything lost, untrue, left alive or logged?

    python tests/soak.py --seconds 300 [--seed 7]

Threads and asyncio loops call, wait, time out, cancel, drop, await, gather, drive, shut down and fork at
random, in rounds of a second or two. After each round every body that began must have ended, what each waiter
saw must be what the body did and what was asked, and nothing may be left. Never may more calls of a function
run than its limit says. A hang ends the process with all stacks. The seed repeats the actions, though not
their timing. pytest doesn't collect this file; exit code 1 says that something was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import faulthandler
import gc
import logging
import random
import sys
import threading
import time
import warnings

from eager_async import set_shared_loop, shared_loop
from soak_actions import ACTIONS, ASYNC_ACTIONS
from soak_calls import (
    HANG_SECONDS,
    LOOP_FACTORIES,
    Call,
    Keeper,
    Round,
    check_log,
    seen_by_blocking,
    start_threads,
)

ROUND_SECONDS = 1.5


def act(this: Round, rng: random.Random) -> None:
    """One thread of a round."""
    until = time.monotonic() + ROUND_SECONDS
    while time.monotonic() < until:
        rng.choice(ACTIONS)(this, rng)


def act_in_loop(this: Round, rng: random.Random) -> None:
    """One thread of a round with an asyncio loop of its own."""
    until = time.monotonic() + ROUND_SECONDS

    async def act_in_task(rng: random.Random) -> None:
        while time.monotonic() < until:
            await rng.choice(ASYNC_ACTIONS)(this, rng)

    async def main() -> None:
        await asyncio.gather(*(act_in_task(random.Random(rng.random())) for _ in range(3)))

    with asyncio.Runner(loop_factory=rng.choice(LOOP_FACTORIES)) as runner:
        runner.run(main())


def play_round(rng: random.Random) -> Round:
    """Let threads act for a while, end all loops, and look at what is left."""
    this = Round(rng)
    threads_before = set(threading.enumerate())
    sys.setswitchinterval(rng.choice([1e-6, 1e-4, 0.005]))
    loop_before = set_shared_loop(this.new_loop(rng))
    for thread in start_threads(this, rng, [act] * 4 + [act_in_loop] * 2):
        thread.join()
    this.loops.append(shared_loop())
    for loop in this.loops:
        loop.shutdown()
    set_shared_loop(loop_before)
    this.problems += [f"left unfinished: {task}" for loop in this.loops for task in loop.tasks()]
    for thread in set(threading.enumerate()) - threads_before:
        thread.join(10)
        if thread.is_alive():
            this.problems.append(f"left running: {thread}")
    for call in this.calls:
        check_end(this, call)
    if any(this.inside.values()):
        this.problems.append(f"limited calls that never ended: {this.inside}")
    gc.collect()
    unreported: dict[object, object] = {
        call.number: call for call in this.calls if call.task is None and call.outcome == "raised"
    }
    for flow in this.flows:
        flow.check_end(this)
        if flow.raised and not flow.seen:
            unreported[flow.number] = flow
    check_log(this, unreported)
    return this


def check_end(this: Round, call: Call) -> None:
    """What must be true of each call when all loops have ended."""
    never = call.outcome == "refused" or (call.outcome == "never begun" and call.asked)
    if not call.begun == call.ended == (0 if never else 1):
        this.problems.append(f"{call} did not end well")
    if call.task is not None:
        this.check(call, seen_by_blocking(call.task, 0))
    if len(call.callbacks_made) != call.callbacks_added:
        this.problems.append(f"{call} made {len(call.callbacks_made)} of {call.callbacks_added} callbacks")


def prepare() -> None:
    """Have whatever goes wrong seen: warnings, log records, exceptions in finalizers, hangs."""
    warnings.simplefilter("error")
    # From 3.12 on Python warns of any fork while threads run. That it works all the same is promised.
    warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)
    for name in ("eager_async", "asyncio"):
        logging.getLogger(name).addHandler(Keeper(logging.WARNING))
        logging.getLogger(name).propagate = False
    if hasattr(logging.Logger, "_tls"):
        # 3.13.5 drops what a thread logs while it logs something else: finalizers may (python/cpython#91555).
        logging.Logger._is_disabled = lambda logger: logger.disabled  # type: ignore[attr-defined]
    faulthandler.enable()
    sys.unraisablehook = lambda raised: logging.getLogger("asyncio").error(
        "unraisable in %r", raised.object, exc_info=raised.exc_value
    )


def main() -> int:
    """Play rounds until the time is over, or something is wrong."""
    parser = argparse.ArgumentParser(description="Use the library at random, and check that nothing is lost.")
    parser.add_argument("--seconds", type=float, required=True, help="how long")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    arguments = parser.parse_args()
    sys.stdout.write(f"soak: seed {arguments.seed}\n")
    sys.stdout.flush()  # should it hang
    prepare()
    started = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    while not problems and time.monotonic() - started < arguments.seconds:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        counts["rounds"] += 1
        this = play_round(random.Random(f"{arguments.seed} {counts['rounds']}"))
        counts.update(call.outcome for call in this.calls)
        counts["calls"] += len(this.calls)
        counts["limited"] += sum(call.limited for call in this.calls)
        counts["streams"] += len(this.flows)
        counts["forks"] += len(this.children)
        problems = this.problems
    faulthandler.cancel_dump_traceback_later()
    for problem in problems[:20]:
        sys.stderr.write(f"seed {arguments.seed}, round {counts['rounds']}: {problem}\n")
    sys.stdout.write(
        f"soak: seed {arguments.seed}, {time.monotonic() - started:.0f} s, {len(problems)} problems, "
        f"{', '.join(f'{count} {what}' for what, count in counts.items())}\n"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
