"""What a stage of a test pipeline leaves behind each time it runs: a line in the log of effects."""

from __future__ import annotations

import os
import time
from typing import Any


def effect(bench: Any) -> None:
    """One line, written in one go: job, stage, generation, index, fence, pid, when it began."""
    claim = bench.hands.claim
    at = claim.at
    line = f"{at.job_id} {at.stage} {at.generation} {at.index} {claim.fence} {os.getpid()} {time.monotonic():.3f}\n"
    log = os.open(os.environ["GRISTMILL_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(log, line.encode())
    finally:
        os.close(log)
