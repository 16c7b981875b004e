"""Holds the interpreter's lock, as some libraries do for seconds: no other thread of the child runs meanwhile."""

import ctypes

from tests.faults.effects import effect


def hold(bench, given):
    effect(bench)
    ctypes.PyDLL(None).usleep(int(bench.params["seconds"] * 1e6))  # PyDLL keeps the lock while the function runs
    return {"name": bench.params["name"]}
