"""The GPU image, on a machine without a GPU: it is built, holds CUDA's libraries, and says what it misses.

Not part of the whole run: CUDA's libraries are large to fetch. `make acceptance T=tests/compose/check_gpu_image.py`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.compose.conftest import FIGURES, bytes_of
from tests.compose.stack import Stack, docker

IMAGE = "gristmill/worker-vision-gpu:dev"
# Says what the CUDA part of ONNX Runtime is linked to, or opens later, and does not find after the preloading that a
# worker does.
MISSING = """
import ctypes, pathlib, re, subprocess, onnxruntime
onnxruntime.preload_dlls()
cuda = pathlib.Path(onnxruntime.__file__).parent / 'capi' / 'libonnxruntime_providers_cuda.so'
linked = re.findall(r'(\\S+) =>', subprocess.run(['ldd', cuda], capture_output=True, text=True, check=True).stdout)
assert 'libcublas.so.13' in linked, linked
for name in (*linked, 'libcudnn.so.9', 'libcufft.so.12'):
    try:
        ctypes.CDLL(name)
    except OSError:
        print(name)
"""
WARMED_UP = """
from pathlib import Path
from celery_worker import devices
from celery_worker.models import Models
models = Models(Path('models'), devices.find('cpu'))
models.warm_up(['efficientdet-lite0'])
print(*models.load('efficientdet-lite0').get_providers())
"""


@pytest.fixture(scope="module")
def gpu() -> Iterator[Stack]:
    """A project with the override for one GPU; its inference image is built."""
    files = ("docker-compose.yml", "docker-compose.gpu.yml")
    with Stack("rabbitmq-redis", "gristmill-gpu", files=files) as one:
        one.compose("build", "worker-inference", timeout=3600)
        FIGURES["image_mb_worker_vision_gpu"] = (bytes_of(IMAGE) - bytes_of(one.variable("PYTHON_IMAGE"))) / 1e6
        yield one


def test_of_cudas_libraries_only_the_drivers_own_is_missing(gpu: Stack) -> None:
    # When the libraries are looked up in the image, where there is no driver
    said = docker("run", "--rm", "--network", "none", IMAGE, "python", "-c", MISSING)
    # Then all are there but the driver's, which comes from the machine with the GPU
    assert said.split() == ["libcuda.so.1"]


def test_without_its_gpu_the_worker_says_so_and_ends(gpu: Stack) -> None:
    # When the worker of the override starts where there is no GPU
    told = ("BROKER_URL=amqp://x:y@nowhere//", "STORE_URL=redis://nowhere", "QUEUES=inference", "DEVICE=0")
    environment = (word for one in told for word in ("-e", one))
    command = ["docker", "run", "--rm", "--network", "none", *environment, IMAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    # Then it ends, and says which device is missing
    assert done.returncode != 0
    assert "DEVICE is 0, but there is no such GPU" in done.stderr


def test_the_same_image_computes_on_a_cpu(gpu: Stack) -> None:
    # When the detector is loaded and run once in the image, on the CPU
    said = docker("run", "--rm", "--network", "none", IMAGE, "python", "-c", WARMED_UP)
    # Then it is the CPU's part of ONNX Runtime that did it
    assert said.split() == ["CPUExecutionProvider"]
