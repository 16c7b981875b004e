"""Splits numbers, squares each, and adds them up."""

import os
import time


def split(bench, given):
    for n in range(bench.params["parts"]):
        path = bench.scratch / "number"
        path.write_text(str(n))
        bench.emit(n, {"n": n, "ballast": "x" * bench.params["large"]}, {"number.txt": path})
        bench.progress(n + 1, bench.params["parts"])
    bench.log.info("split %d", bench.params["parts"])
    return {"parts": bench.params["parts"]}


def grind(bench, given):
    if given["n"] in bench.params["bad"]:
        raise ValueError("a stone")
    until = time.monotonic() + bench.params["nap"]
    while time.monotonic() < until:
        bench.checkpoint()
        time.sleep(0.01)
    number = int(bench.open(given["files"]["number.txt"]).read_text())
    assert len(given["ballast"]) == bench.params["large"]
    return {"square": number**2, "pid": os.getpid()}


def gather(bench, given):
    squares = [one.get("square") for one in given]
    bench.keep("squares.txt", "\n".join(map(str, squares)))
    assert bench.output("split") == {"parts": len(given)}
    return {"squares": squares, "sum": sum(n for n in squares if n is not None)}
