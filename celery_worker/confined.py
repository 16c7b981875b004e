"""A hard limit on the memory of what decodes other people's files: an allocation over it fails, and is never made.

The parent looks at a child's memory five times a second; a decoder that is led to ask for ten gigabytes at once is
faster than that.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import psutil

from celery_worker.device_errors import is_out_of_memory
from celery_worker.workbench import Workbench

MIB = 1_048_576
LEAST_MIB = 64  # what a stage may always ask for, however much its process has already


def confined(stage: Callable[[Workbench, Any], Any]) -> Callable[[Workbench, Any], Any]:
    """The stage, with `limits.max_memory_mb` as the limit of its process: beyond it MemoryError is raised.

    It is raised too where the stage took a library's want of memory for a fault of the file: GDAL and OpenCV tell the
    one nearly as they tell the other.

    A GPU's driver maps far more than it uses; there the parent's look alone counts.
    """

    @wraps(stage)
    def run(bench: Workbench, given: Any) -> Any:
        if bench.device.kind == "cuda":
            return stage(bench, given)
        with _limit(bench.limits.max_memory_mb):
            try:
                return stage(bench, given)
            except Exception as error:
                if is_out_of_memory(error):
                    raise MemoryError("The stage took more memory than it may.") from error
                raise

    return run


@contextmanager
def _limit(most_mib: int) -> Iterator[None]:
    """RLIMIT_DATA, since Linux 4.7, counts all memory that a process may write to, and no file that it maps to read."""
    has = psutil.Process().memory_info()
    room = max(LEAST_MIB, most_mib - has.rss // MIB) * MIB
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = min(limit for limit in (has.data + room, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
