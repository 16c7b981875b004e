"""What a library means when it breaks for want of memory, or of its device: most say it in words only."""

from __future__ import annotations

from collections.abc import Iterator

# "Failed to allocate memory for requested buffer of size N" and "Available memory of M is smaller than requested bytes
# of N" are ONNX Runtime's arena; "cannot allocate" GDAL's and "insufficient memory" OpenCV's; the others are CUDA's,
# cuBLAS's and cuDNN's own names of error 2 and of what follows from it: ALLOC_FAILED, and since cuDNN 9
# INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
NO_MEMORY = (
    "failed to allocate memory",
    "is smaller than requested bytes of",
    "cannot allocate",
    "insufficient memory",
    "out of memory",
    "cuda_error_out_of_memory",
    "alloc_failed",
    "allocation_failed",
)

# CUDA's errors of a device that is not there any more; ONNX Runtime puts their number and words into its own:
# "CUDA failure 100: no CUDA-capable device is detected ; GPU=0 ; ...".
GONE = (
    "cuda failure 46:",  # cudaErrorDevicesUnavailable
    "cuda failure 100:",  # cudaErrorNoDevice
    "cuda failure 101:",  # cudaErrorInvalidDevice
    "cuda failure 214:",  # cudaErrorECCUncorrectable
    "cuda failure 999:",  # cudaErrorUnknown: what a GPU that fell off its bus answers
    "no cuda-capable device",
    "gpu is lost",
)

# What leaves the device as it is, but its process with nothing to compute in: in CUDA's words "any further CUDA work
# will return the same error" until the process is started anew. cuDNN and cuBLAS hide CUDA's number behind their own.
BROKEN = (
    "cuda failure 700:",  # cudaErrorIllegalAddress
    "cuda failure 702:",  # cudaErrorLaunchTimeout
    "cuda failure 709:",  # cudaErrorContextIsDestroyed
    "cuda failure 710:",  # cudaErrorAssert
    "cuda failure 714:",  # cudaErrorHardwareStackError
    "cuda failure 715:",  # cudaErrorIllegalInstruction
    "cuda failure 716:",  # cudaErrorMisalignedAddress
    "cuda failure 717:",  # cudaErrorInvalidAddressSpace
    "cuda failure 718:",  # cudaErrorInvalidPc
    "cuda failure 719:",  # cudaErrorLaunchFailure
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
)


class DeviceGone(Exception):
    """The device was lost before this part had its turn."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time may succeed: the host's memory or the device's has ended.

    What the error was raised from counts as well: rasterio wraps GDAL's words twice.
    """
    return any(isinstance(one, MemoryError) for one in _chain(error)) or _says(error, NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether this process can compute nothing more on its device."""
    return _says(error, (*GONE, *BROKEN)) and not is_out_of_memory(error)


def is_device_gone(error: BaseException) -> bool:
    """Whether the device itself is away: whatever it was asked, it would have said so."""
    return isinstance(error, DeviceGone) or (_says(error, GONE) and not is_out_of_memory(error))


def _says(error: BaseException, those: tuple[str, ...]) -> bool:
    return any(words in said for said in map(_words, _chain(error)) for words in those)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that stand behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _words(error: BaseException) -> str:
    """A stage's own exception may refuse to speak."""
    try:
        return str(error).lower()
    except Exception:  # noqa: BLE001 - whatever it raises
        return ""
