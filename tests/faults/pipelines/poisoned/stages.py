"""As the battery's pipeline, with one part that kills, breaks or outgrows its worker."""

import ctypes
import os
import signal
import time

from tests.faults.effects import effect


def split(bench, given):
    effect(bench)
    for n in range(bench.params["parts"]):
        bench.emit(n, {"n": n})
    return {"parts": bench.params["parts"]}


def grind(bench, given):
    effect(bench)
    if given["n"] == bench.params["bad"]:
        return POISONS[bench.params["how"]](bench)
    return {"square": given["n"] ** 2}


def gather(bench, given):
    effect(bench)
    total = sum(one["square"] for one in given)
    bench.keep("sum.txt", f"{bench.params['name']} {total}")
    return {"name": bench.params["name"], "sum": total}


def kill(bench):
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(bench):
    ctypes.string_at(0)


def memory_error(bench):
    bytearray(1 << 60)


def endless(bench):
    while True:
        time.sleep(0.05)


def greedy(bench):
    eaten = [b"x" * (64 << 20) for _ in range(bench.params["memory_mb"] // 64)]
    while eaten:
        time.sleep(0.05)


def huge(bench):
    return "x" * (65 << 20)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.stuff = lambda: two

    def __str__(self):
        raise RuntimeError("no words")


def unpicklable(bench):
    raise Unpicklable(1, 2)


POISONS = {
    "kill": kill,
    "segfault": segfault,
    "memory_error": memory_error,
    "endless": endless,
    "greedy": greedy,
    "huge": huge,
    "unpicklable": unpicklable,
}
