"""NVML, NVIDIA's library that knows the GPUs: a session while it is needed, and how much of a GPU is in use now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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


def trouble() -> str:
    """Why NVML does not answer here; empty where it does."""
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        pynvml.nvmlShutdown()
    except (OSError, pynvml.NVMLError) as error:
        return f"NVML: {error}"
    return ""


def driver() -> tuple[str, tuple[int, int]]:
    """The driver's version, and the newest CUDA that it can run; an empty one and 0.0 where it does not say."""
    with session() as nvml:
        if nvml is not None:
            with suppress(nvml.NVMLError):
                newest = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
                return text(nvml.nvmlSystemGetDriverVersion()), (newest // 1000, newest % 1000 // 10)
    return "", (0, 0)


def text(value: str | bytes) -> str:
    """Older bindings answer bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


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
