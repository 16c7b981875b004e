"""Splits a job into numbers, squares each, adds them up; each execution appends a line to the effect log."""

import time

from tests.faults.effects import effect


def split(bench, given):
    effect(bench)
    rest(bench)
    for n in range(bench.params["parts"]):
        bench.emit(n, {"n": n})
    return {"parts": bench.params["parts"]}


def grind(bench, given):
    effect(bench)
    rest(bench)
    return {"square": given["n"] ** 2}


def gather(bench, given):
    effect(bench)
    rest(bench)
    total = sum(one["square"] for one in given)
    bench.keep("sum.txt", f"{bench.params['name']} {total}")
    return {"name": bench.params["name"], "sum": total}


def rest(bench):
    """Stops at checkpoints only if it `listens`."""
    first = bench.hands.claim.at.index == 0
    until = time.monotonic() + bench.params["nap"] + (bench.params["slow"] if first else 0.0)
    while time.monotonic() < until:
        if bench.params["listens"]:
            bench.checkpoint()
        time.sleep(min(0.05, max(0.0, until - time.monotonic())))
