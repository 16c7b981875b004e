"""ONNX Runtime on a GPU: what its CUDA part is told, and why it does not start where it does not."""

from __future__ import annotations

import ctypes
from importlib import import_module
from pathlib import Path

from celery_worker import nvml
from celery_worker.workbench import Device

PROVIDER = "CUDAExecutionProvider"
LIBRARIES = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")  # the second needs the first


def provider(device: Device) -> tuple[str, dict[str, str]]:
    """The CUDA part and its options, for `InferenceSession(providers=...)`."""
    options = {
        "device_id": str(device.index),
        # Each number of inputs is a shape of its own. By trying every algorithm out, as ONNX Runtime would, the first
        # call of each takes up to a second or more, and no faster one is found (onnxruntime 19838, PaddleX 5057).
        "cudnn_conv_algo_search": "HEURISTIC",
        # A job gives the same on every device of its queue: TF32 keeps 10 of a float's 23 bits.
        "use_tf32": "0",
        # What a model takes is measured by what is gone from the device: the arena must not take twice what is asked.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if device.memory_bytes:
        # Of each model. Beyond it the arena breaks as it does where the device has no more, and the batch is halved.
        options["gpu_mem_limit"] = str(device.memory_bytes)
    return PROVIDER, options


def trouble() -> str:
    """Why ONNX Runtime computes on no GPU here: it goes on without a word. Empty where nothing is found wrong."""
    try:
        runtime = import_module("onnxruntime")
    except ImportError:
        return "onnxruntime is not installed"
    if PROVIDER not in runtime.get_available_providers():
        return (
            "this onnxruntime is the one without CUDA; requirements/gpu.txt has the other, to be installed in its place"
        )
    wanted = str(getattr(import_module("onnxruntime.capi.build_and_package_info"), "cuda_version", ""))
    if why := nvml.trouble():
        return f"the driver does not answer ({why})"
    driver, has = nvml.driver()
    if wanted and has[0] < int(wanted.split(".")[0]):
        return f"driver {driver} is for CUDA {has[0]}.{has[1]} at most, and this onnxruntime needs CUDA {wanted}"
    runtime.preload_dlls()
    try:
        for name in LIBRARIES:
            ctypes.CDLL(str(Path(runtime.__file__ or "").parent / "capi" / name), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return ""
