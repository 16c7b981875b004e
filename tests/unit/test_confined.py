"""A confined stage gets the memory that it may have, and not a byte of what goes beyond."""

import resource
from types import SimpleNamespace

import numpy as np
import pytest

from celery_worker.confined import confined
from celery_worker.workbench import Device, Limits

MIB = 1_048_576


def bench(mib, kind="cpu"):
    device = Device(kind=kind, name=kind)
    return SimpleNamespace(limits=Limits(max_pixels=1, max_memory_mb=mib), device=device)


def grown(mib):
    """How far the most memory that this process ever had grows by asking for so much, and writing to it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        np.ones(mib * MIB, np.uint8)
    finally:
        grown.by = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return grown.by


def test_what_is_within_the_limit_is_given():
    assert (
        confined(lambda bench, given: given["x"] + len(np.ones(32 * MIB, np.uint8)) // MIB)(bench(1), {"x": 10}) == 42
    )


def test_what_goes_beyond_the_limit_is_never_allocated():
    # Given a stage that asks for 3 GiB at once, faster than any parent looks
    soft = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(MemoryError):
        confined(lambda *_: grown(3_072))(bench(1_000), {})
    # Then it has got nothing of it, and the process is as free as it was before
    assert grown.by < 100
    assert resource.getrlimit(resource.RLIMIT_DATA) == soft
    assert len(np.ones(200 * MIB, np.uint8)) == 200 * MIB


def test_a_stage_on_a_gpu_is_left_to_its_parent():
    held = []
    confined(lambda *_: held.append(resource.getrlimit(resource.RLIMIT_DATA)))(bench(1, kind="cuda"), {})
    assert held == [resource.getrlimit(resource.RLIMIT_DATA)]
