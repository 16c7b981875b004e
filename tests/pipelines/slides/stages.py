"""A device that is none: a call takes its time and nothing of the processor, and says who was in it."""

import json
import os
import signal
import time
import uuid
from pathlib import Path

from jobs.errors import BadInput

CALL_S, INPUT_S = 0.008, 0.001
MEMORY = 4  # inputs, where one of them is `too_large`


def look(bench, given):
    """One input by itself."""
    return _call([bench])[0]


def look_batch(benches, givens):
    """Several in one call. What is wrong with one of them breaks the whole call, as it does on a GPU."""
    return _call(benches)


def probe(model, count):
    """A call on so many inputs."""
    time.sleep(CALL_S + INPUT_S * count)


PROBE = {"look": probe}


def _call(benches):
    for marks in {bench.params["marks"] for bench in benches if "marks" in bench.params}:
        names = [bench.key.split(".")[0] for bench in benches]
        (Path(marks) / f"{time.monotonic_ns()}.{uuid.uuid4().hex}").write_text(json.dumps(names))
    hows = {bench.params["how"] for bench in benches}
    if "die" in hows:
        os.kill(os.getpid(), signal.SIGKILL)
    if "break" in hows:
        raise ValueError("one of them is no picture")
    if "bad_input" in hows and len(benches) == 1:
        raise BadInput("That is no picture.")
    if "bad_input" in hows:
        raise ValueError("the shapes differ")
    if "too_large" in hows and benches[0].batch > MEMORY:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 4294967296")
    if "hog" in hows and benches[0].device.name.startswith("simulated:0"):
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
    if "lost" in hows and benches[0].device.kind == "simulated":
        raise RuntimeError("CUDA failure 999: unknown error ; GPU=0")
    if "wedge" in hows and benches[0].device.kind == "simulated":
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")
    time.sleep(CALL_S + INPUT_S * len(benches))
    for bench in benches:
        until = time.monotonic() + bench.params["seconds"]
        while time.monotonic() < until:
            bench.checkpoint()
            time.sleep(0.01)
        (bench.scratch / "note").write_text(bench.key)
        bench.log.info("looked with %d", len(benches))
    return [
        {"key": bench.key, "together": len(benches), "pid": os.getpid(), "sees": os.environ.get("CUDA_VISIBLE_DEVICES")}
        for bench in benches
    ]
