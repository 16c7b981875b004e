"""Cuts a job into parts that know which cut they are of; the last stage tells which ones it was given."""

import os
import signal
import subprocess
import time

from tests.faults.effects import effect

COARSER = 3  # parts that the first cut has less, if it does not come through


def cut(bench, given):
    effect(bench)
    number = bench.hands.claim.fence
    dies_after = bench.params["dies_after"] if number == 1 else 0
    parts = bench.params["parts"] - COARSER if dies_after else bench.params["parts"]
    for n in range(parts):
        if dies_after and n == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        bench.emit(n, {"cut": number, "n": n})
    return {"cut": number, "parts": parts}


def chew(bench, given):
    effect(bench)
    if bench.hands.claim.fence == 1:
        if given["n"] in bench.params["kills"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if given["n"] in bench.params["stalls"]:
            stall(bench.params["stall_s"])
    return given


def gather(bench, given):
    effect(bench)
    return {"name": bench.params["name"], "cut": bench.output("cut"), "given": given}


def stall(seconds):
    """The whole worker stands still, its parent too, so that nobody renews; then all of it goes on."""
    group = os.getpgid(0)
    until = time.monotonic() + seconds
    subprocess.Popen(
        ["sh", "-c", f"kill -STOP -{group}; sleep {seconds}; kill -CONT -{group}"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    while time.monotonic() < until:  # stopped in here
        time.sleep(0.01)
