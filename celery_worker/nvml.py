"""NVML, NVIDIA's library that knows the GPUs: a session while it is needed, and how much of a GPU is in use now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GpuUse:
    """One GPU now. Memory in bytes; `busy` 0..1, None where the device cannot tell (a MIG slice)."""

    device: str
    memory_used: int
    memory_size: int
    busy: float | None


@contextmanager
def session() -> Iterator[Any]:
    """NVML while it is needed; None where there is no driver or no GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def uses(devices: Sequence[tuple[str, str]]) -> list[GpuUse]:
    """The use of some GPUs, each by its name in a job's record and its UUID; those that do not answer are left out."""
    with session() as nvml:
        found = [_use(nvml, name, uuid) for name, uuid in devices] if nvml else []
    return [one for one in found if one is not None]


def _use(nvml: Any, name: str, uuid: str) -> GpuUse | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:  # it has vanished; the worker itself says so
        return None
    try:
        busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except nvml.NVMLError:
        busy = None
    return GpuUse(name, int(memory.used), int(memory.total), busy)
