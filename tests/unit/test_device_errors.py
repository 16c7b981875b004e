"""What CUDA, cuDNN and ONNX Runtime say when memory has ended, the device is away, or a call has broken it."""

import pytest

from celery_worker.device_errors import DeviceGone, is_device_gone, is_device_lost, is_out_of_memory

# As ONNX Runtime 1.31 writes what a call of CUDA, cuBLAS or cuDNN answered.
CALL = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'c' Message: {} "
    "; GPU=0 ; hostname=box ; file=cuda_call.cc ; line=129 ; expr=cudaStreamSynchronize(stream); "
)
ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Mul node. Message: "
    "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) {}"
)


@pytest.mark.parametrize(
    "said",
    [
        ARENA.format("Failed to allocate memory for requested buffer of size 8388608000"),
        ARENA.format("Available memory of 0 is smaller than requested bytes of 135383040"),
        CALL.format("CUDA failure 2: out of memory"),
        CALL.format("CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        CALL.format("CUDNN failure 4003: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        CALL.format("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_the_end_of_memory_is_no_loss_of_the_device(said):
    error = RuntimeError(said)
    assert (is_out_of_memory(error), is_device_lost(error), is_device_gone(error)) == (True, False, False)


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ("CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable", True),
        ("CUDA failure 100: no CUDA-capable device is detected", True),
        ("CUDA failure 214: uncorrectable ECC error encountered", True),
        ("CUDA failure 999: unknown error", True),
        ("CUDA failure 700: an illegal memory access was encountered", False),
        ("CUDA failure 719: unspecified launch failure", False),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR", False),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_a_device_that_is_away_is_told_from_one_that_a_call_broke(said, gone):
    error = RuntimeError(CALL.format(said))
    assert (is_device_lost(error), is_device_gone(error), is_out_of_memory(error)) == (True, gone, False)
    # also where the pipeline, or the loading of a model, put an error of its own around it
    wrapped = ValueError("the model cannot be loaded")
    wrapped.__cause__ = error
    assert (is_device_lost(wrapped), is_device_gone(wrapped)) == (True, gone)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA failure 1: invalid argument",
        "CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED",
        "CUDA failure 7000: a number that begins so",
    ],
)
def test_what_one_call_does_wrong_leaves_the_device_to_the_next(said):
    error = RuntimeError(CALL.format(said))
    assert (is_device_lost(error), is_device_gone(error), is_out_of_memory(error)) == (False, False, False)


def test_a_part_that_had_no_turn_is_not_blamed():
    assert is_device_gone(DeviceGone())
