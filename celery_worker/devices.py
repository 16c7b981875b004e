"""Which GPU is mine, how much memory it has, how many cores I may use; the CPU otherwise."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from celery_worker.nvml import session
from celery_worker.workbench import Device
from jobs.errors import SettingsInvalid

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML knows it."""

    number: int
    uuid: str
    name: str
    memory_bytes: int


def find(setting: str = "auto") -> Device:
    """The device that a setting names: auto, cpu, or the number of a GPU. Raises SettingsInvalid.

    `auto` takes the first GPU that the process may see and that ONNX Runtime can use, else the CPU. `index` counts
    the GPUs that CUDA_VISIBLE_DEVICES leaves, `name` has the machine's own number.
    """
    if setting == "cpu":
        return cpu()
    if setting != "auto" and not setting.isdecimal():
        raise SettingsInvalid(f"DEVICE is {setting!r}: it must be auto, cpu, or the number of a GPU.")
    gpus = _visible(list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    wanted = [(index, gpu) for index, gpu in enumerate(gpus) if setting in ("auto", str(gpu.number))]
    if wanted and _runtime_has_cuda():
        index, gpu = wanted[0]
        return Device(f"cuda:{gpu.number} {gpu.name}", "cuda", index, gpu.memory_bytes)
    if setting == "auto":
        return cpu()
    raise SettingsInvalid(f"DEVICE is {setting}, but there is no such GPU, or ONNX Runtime has no CUDA here.")


def cpu() -> Device:
    """The CPU. One thread: a worker has one inference child per core."""
    return Device("cpu", "cpu", memory_bytes=_memory_bytes())


def pin(device: Device) -> Device:
    """Let this process and its children see that GPU only; call it before anything touches CUDA."""
    if device.kind != "cuda":
        return device
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    visible = _visible(list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[device.index].uuid
    return replace(device, index=0)


def cores() -> int:
    """How many cores this process may use: its affinity, or less where a control group allows less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cpu_quota())))


def list_gpus() -> list[Gpu]:
    """Every NVIDIA GPU of this machine; none without the driver."""
    with session() as nvml:
        if nvml is None:
            return []
        handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        return [
            Gpu(
                number=number,
                uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                name=_text(nvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            )
            for number, handle in enumerate(handles)
        ]


def _visible(gpus: list[Gpu], setting: str | None) -> list[Gpu]:
    """The GPUs that CUDA would show, in its order. As CUDA does, stop at the first entry that names none."""
    if setting is None:
        return gpus
    shown: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        named = [gpu for gpu in gpus if entry and (entry == str(gpu.number) or gpu.uuid.startswith(entry))]
        if not named:
            break
        shown.append(named[0])
    return shown


def _runtime_has_cuda() -> bool:
    """A GPU that the runtime cannot use must not stand in a job's record."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _cpu_quota() -> float:
    """Cores that the control group grants; infinite without a limit. Version 2, then version 1."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = (CGROUP / "cpu/cpu.cfs_quota_us").read_text()
        period = (CGROUP / "cpu/cpu.cfs_period_us").read_text()
        return math.inf if int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _memory_bytes() -> int:
    """The machine's memory, or what the control group grants of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, int((CGROUP / file).read_text()))
        except (OSError, ValueError):
            continue
    return total


def _text(value: str | bytes) -> str:
    """Older drivers' bindings answer bytes."""
    return value.decode() if isinstance(value, bytes) else value
