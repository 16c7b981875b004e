"""What no stage should do."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from celery_worker.workbench import Dismissed
from jobs.errors import BadInput, TryAgain


def swallow(bench, given):
    if "marks" in bench.params:
        (Path(bench.params["marks"]) / f"{time.monotonic_ns()}.{os.getpid()}").touch()
    return globals()[f"_{bench.params['how']}"](bench)


def _nothing(bench):
    return None


def _kill_self(bench):
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault(bench):
    ctypes.string_at(0)


def _os_exit(bench):
    os._exit(0)


def _sys_exit(bench):
    sys.exit(3)


def _keyboard_interrupt(bench):
    raise KeyboardInterrupt


def _memory_error(bench):
    bytearray(1 << 60)


def _recursion(bench):
    return _recursion(bench)


def _endless(bench):
    while True:
        time.sleep(0.05)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.stuff = lambda: two

    def __str__(self):
        raise RuntimeError("no words")


def _unpicklable(bench):
    raise Unpicklable(1, 2)


def _not_json(bench):
    return {"set": {1, 2}}


def _nan(bench):
    return float("nan")


def _circular(bench):
    value = []
    value.append(value)
    return value


def _huge(bench):
    return "x" * (65 << 20)


def _large(bench):
    return "x" * (1 << 20)


def _bad_input(bench):
    raise BadInput("The file is not a video\0 \ud800.")


def _try_again(bench):
    raise TryAgain("The site is busy.")


def _false_dismissal(bench):
    raise Dismissed


def _hold_gil(bench):
    """PyDLL keeps the interpreter lock: no other thread of this process runs meanwhile."""
    ctypes.PyDLL(None).usleep(int(bench.params["seconds"] * 1e6))
    return "held"


def _eat_memory(bench):
    eaten = []
    until = time.monotonic() + (bench.params["seconds"] or 60)
    while time.monotonic() < until:
        if len(eaten) < 40:
            eaten.append(b"x" * (16 << 20))
        time.sleep(0.01)
    return len(eaten)


def _nap(bench):
    """Stops at checkpoints."""
    until = time.monotonic() + bench.params["seconds"]
    while time.monotonic() < until:
        bench.progress(1, 2)
        time.sleep(0.02)
    return "rested"


def _deaf(bench):
    """Never looks at a checkpoint."""
    time.sleep(bench.params["seconds"])
    return "rested"
