"""What no stage should do, by name."""

import ctypes
import os
import signal
import sys
import time

from celery_worker.workbench import Dismissed
from jobs.errors import BadInput, TryAgain


def nothing(bench):
    return None


def kill_self(bench):
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(bench):
    ctypes.string_at(0)


def os_exit(bench):
    os._exit(0)


def sys_exit(bench):
    sys.exit(3)


def keyboard_interrupt(bench):
    raise KeyboardInterrupt


def memory_error(bench):
    bytearray(1 << 60)


def recursion(bench):
    return recursion(bench)


def endless(bench):
    while True:
        time.sleep(0.05)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.stuff = lambda: two

    def __str__(self):
        raise RuntimeError("no words")


def unpicklable(bench):
    raise Unpicklable(1, 2)


def not_json(bench):
    return {"set": {1, 2}}


def nan(bench):
    return float("nan")


def circular(bench):
    value = []
    value.append(value)
    return value


def huge(bench):
    return "x" * (65 << 20)


def large(bench):
    return "x" * (1 << 20)


def bad_input(bench):
    raise BadInput("The file is not a video\0 \ud800.")


def try_again(bench):
    raise TryAgain("The site is busy.")


def false_dismissal(bench):
    raise Dismissed


def hold_gil(bench):
    """PyDLL keeps the interpreter lock: no other thread of this process runs meanwhile."""
    ctypes.PyDLL(None).usleep(int(bench.params["seconds"] * 1e6))
    return "held"


def eat_memory(bench):
    eaten = []
    until = time.monotonic() + (bench.params["seconds"] or 60)
    while time.monotonic() < until:
        if len(eaten) < 40:
            eaten.append(b"x" * (16 << 20))
        time.sleep(0.01)
    return len(eaten)


def greedy(bench):
    eaten = [b"x" * (64 << 20) for _ in range(bench.params["memory_mb"] // 64)]
    while eaten:
        time.sleep(0.05)


def nap(bench):
    """Stops at checkpoints."""
    until = time.monotonic() + bench.params["seconds"]
    while time.monotonic() < until:
        bench.progress(1, 2)
        time.sleep(0.02)
    return "rested"


def deaf(bench):
    """Never looks at a checkpoint."""
    time.sleep(bench.params["seconds"])
    return "rested"
