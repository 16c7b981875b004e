"""What a library means when it breaks for want of memory, or of its device: most say it in words only."""

from __future__ import annotations

from collections.abc import Iterator

# "Failed to allocate memory for requested buffer of size N" is ONNX Runtime's arena; "cannot allocate" GDAL's and
# "insufficient memory" OpenCV's; the others are CUDA's, cuDNN's and cuBLAS's own names of error 2 and of what follows
# from it.
NO_MEMORY = (
    "failed to allocate memory",
    "cannot allocate",
    "insufficient memory",
    "out of memory",
    "cuda_error_out_of_memory",
    "alloc_failed",
)

# CUDA's errors that leave a process without its device; ONNX Runtime puts their number and name in its words.
NO_DEVICE = (
    "cuda failure 46",  # cudaErrorDevicesUnavailable
    "cuda failure 100",  # cudaErrorNoDevice
    "cuda failure 101",  # cudaErrorInvalidDevice
    "cuda failure 214",  # cudaErrorECCUncorrectable
    "cuda failure 700",  # cudaErrorIllegalAddress: the context is of no use any more
    "cuda failure 719",  # cudaErrorLaunchFailure
    "cuda failure 999",  # cudaErrorUnknown: what a GPU that fell off its bus answers
    "no cuda-capable device",
    "gpu is lost",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time may succeed: the host's memory or the device's has ended.

    What the error was raised from counts as well: rasterio wraps GDAL's words twice.
    """
    return any(
        isinstance(one, MemoryError) or any(words in _words(one) for words in NO_MEMORY) for one in _chain(error)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether this process can compute nothing more on its device."""
    return any(words in _words(error) for words in NO_DEVICE)


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
