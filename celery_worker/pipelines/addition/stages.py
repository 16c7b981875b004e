"""One stage: x + y."""

from __future__ import annotations

import time
from typing import Any

from celery_worker.workbench import Workbench

NAP_S = 0.1  # between two checkpoints of a delay


def add(bench: Workbench, given: dict[str, Any]) -> float:
    """Add x and y, after a delay that can be watched and dismissed."""
    delay = bench.params["delay"]
    started = time.monotonic()
    while (passed := time.monotonic() - started) < delay:
        bench.progress(passed, delay)
        time.sleep(min(NAP_S, delay - passed))
    total: float = bench.params["x"] + bench.params["y"]
    return total
