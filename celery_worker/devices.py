"""Which GPU is mine, how much memory it has, whether it is still there, how many cores I may use; the CPU otherwise."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from celery_worker import cuda, nvml
from celery_worker.nvml import text
from celery_worker.workbench import Device
from jobs import log
from jobs.errors import SettingsInvalid

CGROUP = Path("/sys/fs/cgroup")


# A JSON list of GPUs that stands for this machine's, for tests and for trying things out: models then run on the CPU,
# and everything says `simulated`.
LIST = "GRISTMILL_GPU_LIST"
UUID_CHARS = 12  # `GPU-` and the first of its groups

logger = log.get(__name__)


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of one, as NVML knows it. `number` is the machine's own of the whole GPU."""

    number: int
    uuid: str
    name: str
    memory_bytes: int
    is_slice: bool = False


def find(setting: str = "auto") -> Device:
    """The device that a setting names: auto, cpu, the number of a GPU, the UUID of a GPU or a slice.

    `auto` takes the first GPU that the process may see and that ONNX Runtime can use, else the CPU. `index` counts
    the GPUs that CUDA_VISIBLE_DEVICES leaves, `name` has the machine's own number. Raises SettingsInvalid.
    """
    if setting == "cpu":
        return cpu()
    if not (setting == "auto" or setting.isdecimal() or setting.startswith(("GPU-", "MIG-"))):
        raise SettingsInvalid(f"DEVICE is {setting!r}: it must be auto, cpu, the number of a GPU, or a UUID.")
    gpus = _visible(list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    wanted = [(index, gpu) for index, gpu in enumerate(gpus) if setting in ("auto", str(gpu.number), gpu.uuid)]
    kind = "simulated" if LIST in os.environ else "cuda"
    if wanted and (kind == "simulated" or _runtime_has_cuda()):
        index, gpu = wanted[0]
        # In a container every GPU is number 0: the first letters of its UUID tell which one it is.
        return Device(
            f"{kind}:{gpu.number} {gpu.name} {gpu.uuid[:UUID_CHARS]}", kind, index, gpu.memory_bytes, uuid=gpu.uuid
        )
    if setting == "auto":
        if gpus:
            logger.warning("gpu_not_used", gpus=[gpu.name for gpu in gpus], why=cuda.trouble())
        return cpu()
    if wanted:
        raise SettingsInvalid(f"DEVICE is {setting}, but ONNX Runtime cannot use it: {cuda.trouble()}.")
    seen = ", ".join(f"{gpu.number} {gpu.name} {gpu.uuid}" for gpu in gpus) or nvml.trouble() or "none"
    raise SettingsInvalid(f"DEVICE is {setting}, but there is no such GPU here. Those that are seen: {seen}.")


def cpu() -> Device:
    """The CPU. One thread: a worker has one inference child per core."""
    return Device("cpu", "cpu", memory_bytes=_memory_bytes())


def pin(device: Device) -> Device:
    """Let this process and its children see that GPU only; call it before anything touches CUDA."""
    if device.kind == "cpu":
        return device
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = device.uuid
    return replace(device, index=0)


def is_there(device: Device) -> bool:
    """Whether the device still answers: a GPU may fall off its bus, or be taken away."""
    return device.kind == "cpu" or device.uuid in {gpu.uuid for gpu in list_gpus()}


def used_bytes(device: Device) -> int:
    """How much memory is taken now: of the whole GPU; on a CPU by this process."""
    if device.kind == "cuda":
        return next((one.memory_used for one in nvml.uses([(device.name, device.uuid)])), 0)
    return int(psutil.Process().memory_info().rss)


def cores() -> int:
    """How many cores this process may use: its affinity, or less where a control group allows less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cpu_quota())))


def list_gpus() -> list[Gpu]:
    """Every NVIDIA GPU of this machine that answers, a divided one as its slices; none without the driver.

    A GPU that is to be divided and has no slice yet is left out: CUDA computes on the slices only.
    """
    if LIST in os.environ:
        return [Gpu(**one) for one in json.loads(Path(os.environ[LIST]).read_text())]
    with nvml.session() as library:
        return [] if library is None else _listed(library)


def _listed(library: Any) -> list[Gpu]:
    found: list[Gpu] = []
    with suppress(library.NVMLError):
        for number in range(library.nvmlDeviceGetCount()):
            with suppress(library.NVMLError):  # lost, or not ours: the others are there
                found += _of_handle(library, number, library.nvmlDeviceGetHandleByIndex(number))
    return found


def _of_handle(library: Any, number: int, handle: Any) -> list[Gpu]:
    """A whole GPU, or the slices of one that is divided."""
    most = _most_slices(library, handle)
    if most is None:
        return [_gpu(library, number, handle)]
    found = []
    for n in range(most):
        with suppress(library.NVMLError):  # there are as many as were made, and others may be somebody else's
            one = library.nvmlDeviceGetMigDeviceHandleByIndex(handle, n)
            found.append(_gpu(library, number, one, is_slice=True))
    return found


def _gpu(library: Any, number: int, handle: Any, *, is_slice: bool = False) -> Gpu:
    return Gpu(
        number=number,
        uuid=text(library.nvmlDeviceGetUUID(handle)),
        name=text(library.nvmlDeviceGetName(handle)),
        memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
        is_slice=is_slice,
    )


def _most_slices(library: Any, handle: Any) -> int | None:
    """How many MIG slices a divided GPU may have; None where it is whole, or cannot be divided."""
    try:
        current, _ = library.nvmlDeviceGetMigMode(handle)
        return int(library.nvmlDeviceGetMaxMigDeviceCount(handle)) if current else None
    except library.NVMLError:
        return None


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
    return cuda.PROVIDER in onnxruntime.get_available_providers()


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
